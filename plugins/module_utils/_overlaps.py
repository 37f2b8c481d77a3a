# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which of many rules may see a packet that another rule sees, without a look at each of them. PRIVATE. Pure.

A router has thousands of rules of its own, and a firewall beside them has tens of thousands. To compare each with each
would take minutes. A network is a block of addresses that begins at a multiple of its size, and a range of ports is a
few such blocks. Two blocks either lie one in the other, or they have nothing in common. So the blocks that hold a given
one are found by their size, and those that lie in it are neighbours in a sorted list.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Generic, Iterator, Mapping, Sequence, Tuple, TypeVar

from ._match import address_range, disjoint
from ._model import MarkRule, PortRange

T = TypeVar("T")
# The first number of a block, and the power of two that is its size.
Block = Tuple[int, int]
_EVERY_PORT: Block = (0, 16)


class Overlaps:
    """Rules, by the packets that they may see."""

    def __init__(self, rules: Sequence[MarkRule]) -> None:
        found: dict[Block, dict[Block, list[int]]] = {}
        for place, rule in enumerate(rules):
            ports = found.setdefault(_addresses(rule.destination), {})
            for block in _ports(rule.ports):
                ports.setdefault(block, []).append(place)
        self._rules = rules
        self._destinations = _Blocks({block: _Blocks(ports) for block, ports in found.items()})

    def places(self, rule: MarkRule) -> list[int]:
        """The places of the rules that may see a packet of this one, from the first on."""
        blocks = list(_ports(rule.ports))
        near = {
            place
            for ports in self._destinations.meeting(_addresses(rule.destination))
            for block in blocks
            for places in ports.meeting(block)
            for place in places
        }
        return [place for place in sorted(near) if not disjoint(self._rules[place], rule)]

    def rules(self, rule: MarkRule) -> list[MarkRule]:
        """The rules that may see a packet of this one, in their order."""
        return [self._rules[place] for place in self.places(rule)]


class _Blocks(Generic[T]):
    """Values by blocks of numbers."""

    def __init__(self, values: Mapping[Block, T]) -> None:
        self._values = values
        self._sorted: list[Block] = sorted(values)
        self._sizes = {size for _first, size in values}

    def meeting(self, block: Block) -> Iterator[T]:
        """The values of the blocks that hold this one or lie in it."""
        first, size = block
        holding = [(first >> wider << wider, wider) for wider in self._sizes if wider >= size]
        yield from (self._values[wide] for wide in holding if wide in self._values)
        start, end = (bisect_left(self._sorted, (number, 0)) for number in (first, first + (1 << size)))
        yield from (self._values[small] for small in self._sorted[start:end] if small[1] < size)


def _addresses(network: str) -> Block:
    """A network as a block; no IPv4 address has the number of an IPv6 one."""
    version, first, last = address_range(network)
    return (version << 128) + first, (last - first).bit_length()


def _ports(ports: Sequence[PortRange]) -> Iterator[Block]:
    """Ranges of ports as blocks, the largest that fit."""
    if not ports:
        yield _EVERY_PORT
    for low, high in ports:
        while low <= high:
            aligned = (low & -low).bit_length() - 1 if low else _EVERY_PORT[1]
            size = min(aligned, (high - low + 1).bit_length() - 1)
            yield low, size
            low += 1 << size
