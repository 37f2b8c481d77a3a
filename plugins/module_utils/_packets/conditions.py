# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What rules ask of packets, and whether packets fit: all, some, none, or it is not known. PRIVATE. Pure.

The packets are always the first ones of connections: for later ones IPVS knows the connection and looks at no mark.
So they are new to conntrack, and of TCP they are a SYN.
"""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any, Iterable, NamedTuple, Sequence, Tuple

from .._model import EVERYWHERE, FULL_NETMASK, MarkRule

Interval = Tuple[int, int]
Intervals = Tuple[Interval, ...]

# Answers, from the weakest to the strongest: one condition that no packet fits decides, whatever the others say.
ALL, SOME, UNKNOWN, NO = range(4)

# What a condition is about.
DESTINATION = "destination"
SOURCE = "source"
PROTOCOL = "protocol"
PORTS = "ports"
SOURCE_PORTS = "source ports"
IN_INTERFACE = "in interface"
OUT_INTERFACE = "out interface"
MARK = "mark"
STATE = "conntrack state"
DESTINATION_TYPE = "destination type"
SOURCE_TYPE = "source type"
NOTHING = "nothing"
NOT_UNDERSTOOD = "not understood"

NEW, UNTRACKED, INVALID, ESTABLISHED = "NEW", "UNTRACKED", "INVALID", "ESTABLISHED"
EVERY_PORT: Intervals = ((0, 65535),)
LOOPBACK = "lo"


class Condition(NamedTuple):
    """One match of a rule. A packet fits if one of the values does; if none does where it is inverted.

    values are intervals of numbers for addresses and ports, (value, mask) for marks, and words for all else.
    """

    kind: str
    values: tuple[Any, ...] = ()
    inverted: bool = False


class Packets(NamedTuple):
    """First packets of connections. An empty word is any; mark and ct_mark are None where nobody can tell.

    local says whether the destination is an address of this machine.
    """

    destination: Interval
    source: Interval
    everywhere: Interval
    protocol: str = ""
    ports: Intervals = EVERY_PORT
    source_ports: Intervals = EVERY_PORT
    in_interface: str = ""
    out_interface: str = ""
    mark: int | None = 0
    ct_mark: int | None = 0
    state: str = NEW
    local: bool | None = None


def packets_of(rule: MarkRule, local: bool | None = None) -> Packets:
    """The packets that a MARK rule sees."""
    everywhere = interval(EVERYWHERE[rule.family])
    return Packets(
        interval(rule.destination),
        interval(rule.source) if rule.source else everywhere,
        everywhere,
        rule.protocol,
        rule.ports or EVERY_PORT,
        in_interface=rule.in_interface,
        local=local,
    )


def interval(network: str) -> Interval:
    """First and last address of a network."""
    parsed = ip_network(network)
    return (int(parsed.network_address), int(parsed.broadcast_address))


def prefix_interval(address: int, length: int, family: str) -> Interval:
    size = 1 << (FULL_NETMASK[family] - length)
    return (address, address + size - 1)


def answer(conditions: Iterable[Condition], packets: Packets) -> int:
    """How many of the packets fit all conditions: ALL, SOME, NO, or UNKNOWN."""
    worst = ALL
    for condition in conditions:
        found = one_answer(condition, packets)
        if found == NO:
            return NO
        worst = max(worst, found)
    return worst


def one_answer(condition: Condition, packets: Packets) -> int:
    """How many of the packets fit one condition."""
    found = _plain_answer(condition, packets)
    return {ALL: NO, NO: ALL}.get(found, found) if condition.inverted else found


def _plain_answer(condition: Condition, packets: Packets) -> int:
    kind, values = condition.kind, condition.values
    if kind == DESTINATION:
        return _within([packets.destination], values)
    if kind == SOURCE:
        return _within([packets.source], values)
    if kind == PORTS:
        return _within(packets.ports, values)
    if kind == SOURCE_PORTS:
        return _within(packets.source_ports, values)
    if kind == PROTOCOL:
        return _word(packets.protocol, values, SOME)
    if kind == IN_INTERFACE:
        return _interface(packets.in_interface, values)
    if kind == OUT_INTERFACE:
        return _interface(packets.out_interface, values) if packets.out_interface else UNKNOWN
    if kind == MARK:
        return _mark(packets.mark, values)
    if kind == STATE:
        return _word(packets.state, values, UNKNOWN)
    if kind == DESTINATION_TYPE:
        return _destination_type(packets.local, values)
    if kind == SOURCE_TYPE:
        # A client is neither the router itself nor a group.
        return NO if not set(values) - {"LOCAL", "BROADCAST", "MULTICAST", "ANYCAST"} else UNKNOWN
    return NO if kind == NOTHING else UNKNOWN


def _within(own: Sequence[Interval], values: Sequence[Interval]) -> int:
    """own and values are sorted, and values do not touch each other."""
    met = [any(low <= last and first <= high for first, last in values) for low, high in own]
    if not any(met):
        return NO
    whole = all(any(first <= low and high <= last for first, last in values) for low, high in own)
    return ALL if whole else SOME


def _word(own: str, values: Sequence[str], if_any: int) -> int:
    if not own:
        return if_any
    return ALL if own in values else NO


def _mark(own: int | None, values: Iterable[tuple[int, int]]) -> int:
    if own is None:
        return UNKNOWN
    return ALL if any(own & mask == value for value, mask in values) else NO


def _destination_type(local: bool | None, values: Iterable[str]) -> int:
    """Broadcast and the like are no virtual addresses."""
    asked = {"LOCAL", "UNICAST"} & set(values)
    if not asked or local is None:
        return UNKNOWN if asked else NO
    return ALL if ("LOCAL" if local else "UNICAST") in asked else NO


def _interface(own: str, patterns: Sequence[str]) -> int:
    """Packets of clients come in by any interface but the loopback."""
    if any(covers_interface(pattern, own) for pattern in patterns):
        return ALL
    if not own:
        return SOME if set(patterns) - {LOOPBACK} else NO
    return SOME if any(covers_interface(own, pattern) for pattern in patterns) else NO


def covers_interface(wide: str, narrow: str) -> bool:
    """A + at the end stands for any ending."""
    return wide == narrow or (wide.endswith("+") and narrow.startswith(wide[:-1]))


def merged(intervals: Iterable[Interval]) -> Intervals:
    """Sorted, and joined where they touch or overlap."""
    found: list[Interval] = []
    for low, high in sorted(intervals):
        if found and low <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(high, found[-1][1]))
        else:
            found.append((low, high))
    return tuple(found)


def common(one: Iterable[Interval], other: Sequence[Interval]) -> Intervals:
    """What is in both."""
    pairs = ((max(low, first), min(high, last)) for low, high in one for first, last in other)
    return tuple(sorted((low, high) for low, high in pairs if low <= high))


def without(one: Sequence[Interval], other: Iterable[Interval]) -> Intervals:
    """What is in the first and not in the other."""
    rest = list(one)
    for first, last in other:
        rest = [
            piece
            for low, high in rest
            for piece in ((low, min(high, first - 1)), (max(low, last + 1), high))
            if piece[0] <= piece[1]
        ]
    return tuple(rest)
