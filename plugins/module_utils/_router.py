# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""One LVS router as the engine sees it: a state to read, operations to write. PRIVATE to the collection."""

from __future__ import annotations

from contextlib import suppress
from itertools import groupby, islice
from types import TracebackType
from typing import Collection, Iterable, Iterator, Sequence

from . import _host as host
from ._errors import ParseError
from ._ipvs.machine import IpvsTable
from ._marks import machine as marks
from ._model import (
    IPTABLES,
    NFTABLES,
    Chain,
    ChainEdit,
    ChainId,
    IpvsOperation,
    MarkRule,
    Operation,
    RouterState,
)

# How many changes of the IPVS table go to the kernel at once, and which ones may: ipvsadm's letters.
_AT_ONCE = 128
_TOGETHER = {"A": "additions", "a": "additions", "E": "edits", "e": "edits"}


class Router:
    """Chains and the IPVS table of the machine we run on, each only if asked for. Use it in a with statement.

    if_readable: more chains; they are left out of the state where iptables cannot print their table.
    adopting: the declared rules for which strays are looked for. nftables: our tables there, too.
    """

    def __init__(
        self,
        chains: Collection[ChainId],
        ipvs: bool,
        if_readable: Collection[ChainId] = (),
        adopting: Collection[MarkRule] = (),
        nftables: bool = False,
    ) -> None:
        self._chains = chains
        self._if_readable = if_readable
        self._adopting = adopting
        self._nftables = nftables
        self._with_ipvs = ipvs
        self.ipvs = IpvsTable()

    def __enter__(self) -> Router:
        host.expect_root()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ipvs.close()

    def read(self) -> RouterState:
        """The state as it is. Reading changes nothing and loads no kernel module: what is not loaded is empty."""
        chains: dict[ChainId, Chain] = {}
        for chain_id in self._if_readable:
            with suppress(ParseError):
                chains.update(marks.read_chains([chain_id]))
        if self._nftables:
            chains.update(marks.read_nftables())
        chains.update(marks.read_chains(self._chains, self._adopting))
        return RouterState(chains, self.ipvs.pools() if self._with_ipvs else {})

    def read_again(self, state: RouterState, operations: Iterable[Operation]) -> RouterState:
        """A state, but what the operations touched as it is now."""
        edited = {operation.id for operation in operations if isinstance(operation, ChainEdit)}
        by_iptables = [key for key in edited if key.tool == IPTABLES]
        chains = marks.read_chains(key for key in by_iptables if key not in self._chains)
        chains.update(marks.read_chains((key for key in by_iptables if key in self._chains), self._adopting))
        if any(key.tool == NFTABLES for key in edited):
            chains.update(marks.read_nftables())
        touched = {operation.service.id for operation in operations if isinstance(operation, IpvsOperation)}
        pools = {key: pool for key, pool in state.pools.items() if key not in touched}
        if touched:
            pools.update(self.ipvs.pools(touched))
        return RouterState({**state.chains, **chains}, pools)

    def foresee(self, operations: Collection[Operation]) -> None:
        """Raises LvsError if this kernel cannot have what the operations need of IPVS; loads nothing."""
        self.ipvs.foresee(_of_ipvs(operations))

    def prepare(self, operations: Collection[Operation]) -> None:
        """See to what the operations need, before the first of them changes anything.

        Loads ip_vs. Raises LvsError for what is missing.
        """
        for tool in {marks.writer(operation.id) for operation in operations if isinstance(operation, ChainEdit)}:
            host.find(tool)
        self.ipvs.prepare(_of_ipvs(operations))

    def write(self, operations: Sequence[Operation]) -> Iterator[int]:
        """Carry out operations in their order; after each step, how many more are done.

        Raises ToolError or KernelError, and then nothing of a later step was begun.
        """
        for step in _steps(operations):
            if isinstance(step[0], ChainEdit):
                marks.write(step[0])
                yield 1
            else:
                yield from self.ipvs.write(_of_ipvs(step))


def _of_ipvs(operations: Iterable[Operation]) -> list[IpvsOperation]:
    return [operation for operation in operations if isinstance(operation, IpvsOperation)]


def _steps(operations: Iterable[Operation]) -> Iterator[list[Operation]]:
    """Operations that are sent at once, although the kernel goes on after one that it refuses.

    That does no harm where they add or edit. What gives a mark or takes something away goes alone, once all before it
    is known to be done.
    """
    for together, group in groupby(operations, key=_together):
        while step := list(islice(group, _AT_ONCE if together else 1)):
            yield step


def _together(operation: Operation) -> str:
    return "" if isinstance(operation, ChainEdit) else _TOGETHER.get(operation.command, "")
