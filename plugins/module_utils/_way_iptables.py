# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The hooks of netfilter as iptables-save prints what stands there. PRIVATE to the collection. Pure."""

from __future__ import annotations

import re
from ipaddress import ip_network
from typing import Iterable, Iterator, NamedTuple, Sequence

from . import _way as way
from ._conditions import (
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
from ._iptables import PROTOCOL_NUMBERS, saved_lines, split_words
from ._model import FULL_MASK, ChainId

# The built-in chains by table, with the priority of each hook.
_PRIORITIES = {
    "raw": {"PREROUTING": -300, "OUTPUT": -300},
    "mangle": {"PREROUTING": -150, "INPUT": -150, "FORWARD": -150, "OUTPUT": -150, "POSTROUTING": -150},
    "nat": {"PREROUTING": -100, "INPUT": 100, "OUTPUT": -100, "POSTROUTING": 100},
    "filter": {"INPUT": 0, "FORWARD": 0, "OUTPUT": 0},
    "security": {"INPUT": 50, "FORWARD": 50, "OUTPUT": 50},
}
_ACTIONS = {
    "ACCEPT": way.ACCEPTS,
    "RETURN": way.RETURNS,
    "DROP": way.DROPS,
    "REJECT": way.DROPS,
    "DNAT": way.TRANSLATES,
    "REDIRECT": way.TRANSLATES,
    "NETMAP": way.TRANSLATES,
    "TPROXY": way.TRANSLATES,
    "NOTRACK": way.UNTRACKS,
    "MASQUERADE": way.SOURCE_NAT,
    "SNAT": way.SOURCE_NAT,
}
_INTERVALS = {"-s": SOURCE, "-d": DESTINATION}
_PORTS = {"--dport": PORTS, "--dports": PORTS, "--sport": SOURCE_PORTS, "--sports": SOURCE_PORTS}
_LISTS = {"--ctstate": STATE, "--state": STATE, "--dst-type": DESTINATION_TYPE, "--src-type": SOURCE_TYPE}
_WORDS = {"-i": IN_INTERFACE, "-o": OUT_INTERFACE, "-p": PROTOCOL}
_UNDERSTOOD = ("comment", "tcp", "udp", "sctp", "multiport", "mark", "conntrack", "state", "addrtype")
_DECLARED = re.compile(r":(\S+) (\S+) \[")
_HEX = re.compile(r"0x([0-9a-f]+)(?:/0x([0-9a-f]+))?")
# Rules that have the kernel track connections.
_TRACKS = re.compile(r"-m (conntrack|state|connmark) |-j (DNAT|SNAT|MASQUERADE|REDIRECT|NETMAP|CONNMARK|CT)\b")


class Saved(NamedTuple):
    """What iptables-save prints: the chains of each table with their policies, and each rule without "-A CHAIN "."""

    chains: dict[str, dict[str, str]]
    rules: dict[str, dict[str, list[str]]]


def saved_rules(text: str) -> Saved:
    """The tables that are printed to their end: iptables-nft stops where it meets a native rule."""
    found = Saved({}, {})
    table = ""
    chains: dict[str, str] = {}
    rules: dict[str, list[str]] = {}
    for line in saved_lines(text):
        if line.startswith("*"):
            table, chains, rules = line[1:].strip(), {}, {}
        elif declared := _DECLARED.match(line):
            chains[declared[1]] = declared[2]
        elif line.startswith("-A "):
            name, _space, rule = line[3:].partition(" ")
            rules.setdefault(name, []).append(rule)
        elif line.rstrip() == "COMMIT":
            found.chains[table], found.rules[table] = chains, rules
    return found


def hooks(saved: Saved, family: str, variant: str = "", own: Iterable[ChainId] = ()) -> Iterator[way.Hook]:
    """Every table at every hook. variant tells the tables of one from those of the other; own are chains of ours."""
    for table, chains in saved.chains.items():
        words = f"{table}{variant}"
        leads = {(key.hook, f"-j {key.name}") for key in own if (key.family, key.table) == (family, table)}
        indexed = {
            name: way.RuleIndex(_chain_rules(name, saved.rules[table].get(name, ()), chains, leads)) for name in chains
        }
        tracks = any(_TRACKS.search(text) for texts in saved.rules[table].values() for text in texts)
        for name, policy in chains.items():
            if name in _PRIORITIES.get(table, {}):
                priority = _PRIORITIES[table][name]
                drops, nat = policy == "DROP", table == "nat"
                yield way.Hook(name.lower(), priority, words, name, indexed, drops, nat, tracks)


def _chain_rules(
    name: str, texts: Sequence[str], chains: Iterable[str], leads: set[tuple[str, str]]
) -> Iterator[way.Rule]:
    for position, text in enumerate(texts, start=1):
        if (name, text) in leads:
            yield way.Rule(name, position, text, way.OURS)
        else:
            yield rule_of(name, position, text, chains)


def rule_of(chain: str, position: int, text: str, chains: Iterable[str]) -> way.Rule:
    """A rule as a value, from its text without "-A CHAIN "."""
    words = split_words(text)
    place = next((place for place, word in enumerate(words) if word in ("-j", "-g")), len(words))
    target = words[place + 1] if place + 1 < len(words) else ""
    options = words[place + 2 :]
    rule = way.Rule(chain, position, text, way.PASSES, conditions_of(words[:place]))
    if target in chains:
        return rule._replace(action=way.GOES if words[place] == "-g" else way.JUMPS, target=target)
    return _with_action(rule, target, options)


def _with_action(rule: way.Rule, target: str, options: Sequence[str]) -> way.Rule:
    if target == "MARK":
        value, mask = _hex(_after(options, "--set-xmark"))
        return rule._replace(action=way.SETS_MARK, value=value, mask=mask)
    if target == "CONNMARK":
        return _connmark(rule, options)
    if target == "CT" and "--notrack" in options:
        return rule._replace(action=way.UNTRACKS)
    return rule._replace(action=_ACTIONS.get(target, way.PASSES))


def _connmark(rule: way.Rule, options: Sequence[str]) -> way.Rule:
    nfmask, ctmask = (_hex(_after(options, name) or "0xffffffff")[0] for name in ("--nfmask", "--ctmask"))
    if "--restore-mark" in options:
        return rule._replace(action=way.RESTORES_MARK, value=ctmask, mask=nfmask)
    if "--save-mark" in options:
        return rule._replace(action=way.SAVES_MARK, value=nfmask, mask=ctmask)
    value, mask = _hex(_after(options, "--set-xmark"))
    return rule._replace(action=way.SETS_CT_MARK, value=value, mask=mask)


def _after(words: Sequence[str], option: str) -> str:
    return words[words.index(option) + 1] if option in words[:-1] else ""


def _hex(text: str) -> tuple[int, int]:
    """VALUE or VALUE/MASK; without a mask all bits count."""
    found = _HEX.fullmatch(text)
    return (int(found[1], 16), int(found[2], 16) if found[2] else FULL_MASK) if found else (0, 0)


# -- matches ------------------------------------------------------------------------------------------------------


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
        return Condition(MARK, (_hex(values[0]),))
    if option == "--tcp-flags":
        return _first_of_tcp(*values)
    return Condition(NOT_UNDERSTOOD)


def _first_of_tcp(looked_at: str, set_ones: str) -> Condition:
    """The first packet of a TCP connection has SYN set and nothing else."""
    seen = {"SYN"} if {"SYN", "ALL"} & set(looked_at.split(",")) else set()
    return Condition(NOTHING, inverted=seen == set(set_ones.split(",")) - {"NONE"})
