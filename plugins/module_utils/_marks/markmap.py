# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""MARK rules as a map: each packet finds its mark by one lookup, however many rules there are. PRIVATE. Pure.

In a chain the last rule that sees a packet counts. A map knows no order, so what a later rule takes from an earlier
one is cut out of that one. Only entries of a single address and port (exact) may lie in wider ones; they override them.
Rules that look at the source, the interface or the MAC address (conditional) stay rules, and come last.

An entry is a rule with one network and one range of ports.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from dataclasses import replace
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_network
from itertools import groupby
from typing import Iterable, Iterator, NamedTuple, Sequence

from .._model import FULL_NETMASK, IPV4, MarkRule, PortRange, family_of
from .iptables import NOWHERE, merge_ports, split_ports

EVERY_PORT: PortRange = (0, 65535)
# Networks of both families are counted in 128 bits, IPv4 in the upper ones, so that their lengths mean the same.
_BITS = 128
_IPV4_SHIFT = _BITS - 32


class Box(NamedTuple):
    """What a rule covers: a network by its first address and its length, and a range of ports."""

    first: int
    length: int
    low: int
    high: int
    name: str = ""


class Boxes:
    """Boxes, to be asked which of them overlap another one."""

    def __init__(self) -> None:
        # The networks of one protocol and length, in order; the boxes with one of them.
        self._networks: dict[tuple[str, int], list[int]] = {}
        self._boxes: dict[tuple[str, int, int], list[Box]] = {}

    def add(self, protocol: str, box: Box) -> None:
        boxes = self._boxes.setdefault((protocol, box.length, box.first), [])
        if not boxes:
            insort(self._networks.setdefault((protocol, box.length), []), box.first)
        boxes.append(box)

    def overlapping(self, protocol: str, box: Box) -> list[Box]:
        return [
            other
            for (own, length), networks in self._networks.items()
            if own == protocol
            for first in _touching(networks, length, box)
            for other in self._boxes[protocol, length, first]
            if other.low <= box.high and box.low <= other.high
        ]


def _touching(networks: Sequence[int], length: int, box: Box) -> Sequence[int]:
    """Those of the networks of one length that hold the box's network or lie in it."""
    first = box.first >> (_BITS - length) << (_BITS - length)
    last = first if length <= box.length else first | ((1 << (_BITS - box.length)) - 1)
    return networks[bisect_left(networks, first) : bisect_right(networks, last)]


def is_exact(rule: MarkRule) -> bool:
    """Whether it covers no more than one address and one port."""
    single = rule.destination.endswith(f"/{FULL_NETMASK[rule.family]}")
    return single and len(rule.ports) == 1 and rule.ports[0][0] == rule.ports[0][1]


def is_conditional(rule: MarkRule) -> bool:
    """Whether it looks at more than destination, protocol and port."""
    return bool(rule.source or rule.in_interface or rule.exclude_mac) and not is_record(rule)


def is_record(rule: MarkRule) -> bool:
    """Whether it only says whose a mark was; see retired()."""
    return rule.source == NOWHERE[rule.family]


def as_entries(rules: Iterable[MarkRule]) -> list[MarkRule]:
    """Rules one range of ports at a time, in their order; of equal ones the last, which is the one that counts."""
    found = (_entry(rule, box) for rule in rules if not is_record(rule) for box in _boxes(rule))
    return list(dict.fromkeys(reversed(list(found))))[::-1]


def arranged(rules: Iterable[MarkRule]) -> list[MarkRule]:
    """The same marks for the same packets by entries that do not overlap, sorted; then conditional ones in their order.

    In this order the entries are rules that give these marks.
    """
    wide, exact = Boxes(), Boxes()
    found: list[MarkRule] = []
    conditional: list[MarkRule] = []
    for rule in reversed(list(rules)):
        if is_conditional(rule):
            conditional += reversed(_narrowed(rule, (wide, exact)))
        elif not is_record(rule):
            found += _entries(rule, wide, exact)
    return [*sorted(found, key=entry_order), *reversed(conditional)]


def _entries(rule: MarkRule, wide: Boxes, exact: Boxes) -> Iterator[MarkRule]:
    """What the rule gives its mark to, without what later ones have; these are in the boxes, and so is it then."""
    for box in _boxes(rule):
        for piece in _rest(rule.protocol, box, (wide,)):
            entry = _entry(rule, piece)
            own = exact if is_exact(entry) else wide
            if own is wide or not exact.overlapping(rule.protocol, piece):
                own.add(rule.protocol, piece)
                yield entry


def entry_order(rule: MarkRule) -> tuple[bool, str, str, tuple[PortRange, ...]]:
    """As they are looked up, the later the more they count."""
    return (is_exact(rule), rule.destination, rule.protocol, rule.ports)


def with_neighbours(rules: Iterable[MarkRule]) -> list[MarkRule]:
    """Entries in their order as rules: neighbours whose ports follow each other are one, of 15 slots at the most."""
    runs: list[list[MarkRule]] = []
    for rule in rules:
        last = runs[-1][-1] if runs else None
        if last and last.ports and last.ports < rule.ports and _with_any_ports(last) == _with_any_ports(rule):
            runs[-1].append(rule)
        else:
            runs.append([rule])
    return [
        replace(run[0], ports=ports)
        for run in runs
        for ports in split_ports([ports for rule in run for ports in rule.ports])
    ]


def joined(rules: Sequence[MarkRule]) -> list[MarkRule]:
    """Entries of any family, in their order, as rules that give the same marks if they are declared in this order.

    What differs only in its ports is one rule, as far as the 15 slots of a chain's rules allow.
    """
    places = {name: place for place, name in enumerate(_declarable_order(rules))}
    conditional = [rule for rule in rules if is_conditional(rule)]
    plain = sorted((rule for rule in rules if not is_conditional(rule)), key=_but_for_ports)
    found: list[MarkRule] = []
    for (alike, _every_port), group in groupby(
        [*conditional, *plain], key=lambda rule: (replace(rule, ports=()), not rule.ports)
    ):
        ranges = merge_ports(ports for rule in group for ports in rule.ports)
        found += [replace(alike, ports=ports) for ports in split_ports(ranges)]
    return sorted(found, key=lambda rule: (places[rule.name], is_conditional(rule)))


def _declarable_order(rules: Sequence[MarkRule]) -> list[str]:
    """The names, each behind those whose packets its own rules take; those of conditional rules as they are."""
    boxes = Boxes()
    behind: dict[str, dict[str, None]] = {}
    conditional = [key for key, _rules in groupby((rule.family, rule.name) for rule in rules if is_conditional(rule))]
    for (family, one), (next_family, next_one) in zip(conditional, conditional[1:]):
        # The last one of a family says nothing about the first one of the other.
        if family == next_family:
            behind.setdefault(next_one, {})[one] = None
    for rule in rules:
        kind = f"{rule.family} {rule.protocol}"
        for box in _boxes(rule):
            taken = behind.setdefault(rule.name, {})
            taken.update((other.name, None) for other in boxes.overlapping(kind, box) if other.name != rule.name)
            boxes.add(kind, box)
    found: dict[str, None] = {}

    def visit(name: str) -> None:
        for other in behind.pop(name, {}):
            visit(other)
        found[name] = None

    for name in list(behind):
        visit(name)
    return list(found)


def _with_any_ports(rule: MarkRule) -> tuple[MarkRule, bool]:
    return (replace(rule, ports=()), not rule.ports)


def _but_for_ports(rule: MarkRule) -> tuple[object, ...]:
    return (rule.name, rule.mark, rule.destination, rule.protocol, rule.ports)


def _narrowed(rule: MarkRule, later: Iterable[Boxes]) -> list[MarkRule]:
    """A conditional rule without what later entries take from it, whatever the source or interface."""
    return [
        _entry(rule, piece)
        for piece in sorted(piece for box in _boxes(rule) for piece in _rest(rule.protocol, box, later))
    ]


def _boxes(rule: MarkRule) -> list[Box]:
    first, length = extent(rule.destination)
    return [Box(first, length, low, high, rule.name) for low, high in rule.ports or (EVERY_PORT,)]


def _entry(rule: MarkRule, box: Box) -> MarkRule:
    ports = (box.low, box.high)
    return replace(
        rule,
        destination=_destination(rule.family, box.first, box.length),
        ports=() if ports == EVERY_PORT else (ports,),
    )


def _rest(protocol: str, box: Box, taken: Iterable[Boxes]) -> list[Box]:
    """What is left of a box without those that overlap it."""
    pieces = [box]
    for other in [other for boxes in taken for other in boxes.overlapping(protocol, box)]:
        pieces = [rest for piece in pieces for rest in _without(piece, other)]
    return pieces


def _without(box: Box, other: Box) -> Iterator[Box]:
    """A box without another: halves of its network until the other's is left, then the ports around the other's."""
    common = _BITS - min(box.length, other.length)
    if box.first >> common != other.first >> common or box.low > other.high or other.low > box.high:
        yield box
        return
    while box.length < other.length:
        bit = 1 << (_BITS - box.length - 1)
        inside = (box.first | bit) if other.first & bit else box.first
        yield box._replace(first=inside ^ bit, length=box.length + 1)
        box = box._replace(first=inside, length=box.length + 1)
    if box.low < other.low:
        yield box._replace(high=other.low - 1)
    if other.high < box.high:
        yield box._replace(low=other.high + 1)


@lru_cache(maxsize=None)
def extent(destination: str) -> tuple[int, int]:
    """The first address of a network in 128 bits, and its length. Raises ValueError for what is no network."""
    network = ip_network(destination)
    shift = _IPV4_SHIFT if network.version == 4 else 0
    return int(network.network_address) << shift, network.prefixlen


def canonical(network: str) -> str:
    """A network as this Python prints it. Raises ValueError for what is no network."""
    return _destination(family_of(network), *extent(network))


@lru_cache(maxsize=None)
def _destination(family: str, first: int, length: int) -> str:
    if family == IPV4:
        return str(IPv4Network((first >> _IPV4_SHIFT, length)))
    return str(IPv6Network((first, length)))
