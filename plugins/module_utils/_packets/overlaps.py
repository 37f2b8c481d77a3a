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
from typing import Generic, Iterable, Iterator, Mapping, Sequence, Tuple, TypeVar

from .._model import MarkRule, PortRange
from .match import address_range, disjoint

T = TypeVar("T")
# The first number of a block, and the power of two that is its size.
Block = Tuple[int, int]
EVERY_ADDRESS: Block = (0, 128)
EVERY_PORT: Block = (0, 16)


class Overlaps:
    """Rules, by the packets that they may see."""

    def __init__(self, rules: Sequence[MarkRule]) -> None:
        self._rules = rules
        self._index = Index(
            (place, _addresses(rule.destination), port_blocks(rule.ports)) for place, rule in enumerate(rules)
        )

    def places(self, rule: MarkRule) -> list[int]:
        """The places of the rules that may see a packet of this one, from the first on."""
        near = self._index.meeting(_addresses(rule.destination), port_blocks(rule.ports))
        return [place for place in sorted(near) if not disjoint(self._rules[place], rule)]

    def rules(self, rule: MarkRule) -> list[MarkRule]:
        """The rules that may see a packet of this one, in their order."""
        return [self._rules[place] for place in self.places(rule)]


class Index:
    """Places of rules, each by a block of addresses and blocks of ports."""

    def __init__(self, rules: Iterable[tuple[int, Block, Iterable[Block]]]) -> None:
        found: dict[Block, dict[Block, list[int]]] = {}
        for place, addresses, ports in rules:
            by_port = found.setdefault(addresses, {})
            for block in ports:
                by_port.setdefault(block, []).append(place)
        self._by_address = _Blocks({addresses: _Blocks(by_port) for addresses, by_port in found.items()})

    def meeting(self, addresses: Block, ports: Iterable[Block]) -> set[int]:
        """The places of the rules that have addresses and ports in common with these."""
        blocks = list(ports)
        return {
            place
            for by_port in self._by_address.meeting(addresses)
            for block in blocks
            for places in by_port.meeting(block)
            for place in places
        }


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
    return network_block(first + (version << 128), last + (version << 128))


def network_block(first: int, last: int) -> Block:
    """A network, by its first and its last address, as a block."""
    return first, (last - first).bit_length()


def is_network(first: int, last: int) -> bool:
    """Whether two addresses are the first and the last one of a network."""
    size = last - first + 1
    return not size & (size - 1) and not first % size


def port_blocks(ports: Sequence[PortRange]) -> Iterator[Block]:
    """Ranges of ports as blocks, the largest that fit; every port where there are no ranges."""
    if not ports:
        yield EVERY_PORT
    for low, high in ports:
        while low <= high:
            aligned = (low & -low).bit_length() - 1 if low else EVERY_PORT[1]
            size = min(aligned, (high - low + 1).bit_length() - 1)
            yield low, size
            low += 1 << size
