# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the matches of an iptables rule ask of packets. PRIVATE to the collection. Pure."""

from __future__ import annotations

import re
from ipaddress import ip_network
from typing import Sequence

from .._model import FULL_MASK
from .._packets.conditions import (
    DESTINATION,
    DESTINATION_TYPE,
    IN_INTERFACE,
    MARK,
    NOT_UNDERSTOOD,
    NOTHING,
    OUT_INTERFACE,
    PORTS,
    PROTOCOL,
    SOURCE,
    SOURCE_PORTS,
    SOURCE_TYPE,
    STATE,
    Condition,
    interval,
    merged,
)
from .iptables import PROTOCOL_NUMBERS

_INTERVALS = {"-s": SOURCE, "-d": DESTINATION}
_PORTS = {"--dport": PORTS, "--dports": PORTS, "--sport": SOURCE_PORTS, "--sports": SOURCE_PORTS}
_LISTS = {"--ctstate": STATE, "--state": STATE, "--dst-type": DESTINATION_TYPE, "--src-type": SOURCE_TYPE}
_WORDS = {"-i": IN_INTERFACE, "-o": OUT_INTERFACE, "-p": PROTOCOL}
_UNDERSTOOD = ("comment", "tcp", "udp", "sctp", "multiport", "mark", "conntrack", "state", "addrtype")
_HEX = re.compile(r"0x([0-9a-f]+)(?:/0x([0-9a-f]+))?")


def conditions_of(words: Sequence[str]) -> tuple[Condition, ...]:
    """What the words before the target ask of a packet."""
    found: list[Condition] = []
    module, place = "", 0
    while place < len(words):
        inverted = words[place] == "!"
        place += inverted
        option, values = words[place] if place < len(words) else "", _values(words, place + 1)
        place += 1 + len(values)
        if option == "-m":
            module = values[0] if values else ""
            found += [] if module in _UNDERSTOOD else [Condition(NOT_UNDERSTOOD)]
        elif option != "--comment":
            condition = _condition(option, values, module)
            found.append(condition._replace(inverted=condition.inverted != inverted))
    return tuple(found)


def _values(words: Sequence[str], start: int) -> list[str]:
    """What follows an option. A comment may be anything, the others' values do not begin like options."""
    if start <= len(words) and words[start - 1] == "--comment":
        return list(words[start : start + 1])
    end = next((n for n in range(start, len(words)) if words[n] == "!" or words[n].startswith("-")), len(words))
    return list(words[start:end])


def _condition(option: str, values: Sequence[str], module: str) -> Condition:
    try:
        return _understood(option, values, module)
    except (ValueError, IndexError):
        return Condition(NOT_UNDERSTOOD)


def _understood(option: str, values: Sequence[str], module: str) -> Condition:
    """Raises ValueError or IndexError for what cannot be, say a mask with gaps, which is no network."""
    if option in _INTERVALS:
        return Condition(_INTERVALS[option], (interval(str(ip_network(values[0]))),))
    if option in _WORDS:
        return Condition(_WORDS[option], (PROTOCOL_NUMBERS.get(values[0], values[0]),))
    if option in _PORTS:
        ranges = [item.partition(":") for item in values[0].split(",")]
        return Condition(_PORTS[option], merged((int(low), int(high or low)) for low, _colon, high in ranges))
    if option in _LISTS:
        return Condition(_LISTS[option], tuple(values[0].split(",")))
    if option == "--mark" and module == "mark":
        return Condition(MARK, (value_and_mask(values[0]),))
    if option == "--tcp-flags":
        return _first_of_tcp(*values)
    return Condition(NOT_UNDERSTOOD)


def _first_of_tcp(looked_at: str, set_ones: str) -> Condition:
    """The first packet of a TCP connection has SYN set and nothing else."""
    seen = {"SYN"} if {"SYN", "ALL"} & set(looked_at.split(",")) else set()
    return Condition(NOTHING, inverted=seen == set(set_ones.split(",")) - {"NONE"})


def value_and_mask(text: str) -> tuple[int, int]:
    """VALUE or VALUE/MASK; without a mask all bits count."""
    found = _HEX.fullmatch(text)
    return (int(found[1], 16), int(found[2], 16) if found[2] else FULL_MASK) if found else (0, 0)
