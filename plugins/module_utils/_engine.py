# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Read, plan, write, read again: what joins the pure core to the router. PRIVATE to the collection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Mapping, Sequence

from . import _host as host
from ._errors import LvsError, reason
from ._ipvs import ipvsadm
from ._marks import nftables
from ._marks.iptables import command_lines
from ._marks.iptables import save_lines as chain_lines
from ._marks.nft_records import record_lines
from ._model import NFTABLES, ChainEdit, Operation, RouterState
from ._plan import apply, plan
from ._report.changes import sentences
from ._router import Router
from ._text import printable, printable_lines

# The state that is wanted, given the state that is there.
Target = Callable[[RouterState], RouterState]
# How many operations a message names.
_SHOWN = 5


@dataclass(frozen=True)
class Outcome:
    """What was done or, in check mode, would be done: the states before and after, and the way between them."""

    before: RouterState
    after: RouterState
    operations: Sequence[Operation]

    def result(self, with_diff: bool) -> dict[str, Any]:
        """The return values that all writing modules share."""
        result: dict[str, Any] = {
            "changed": bool(self.operations),
            "operations": [printable(line) for operation in self.operations for line in describe(operation)],
            "changes": [printable(line) for line in sentences(self.before, self.after, self.operations)],
        }
        if with_diff:
            result["diff"] = {
                "before": printable_lines(render(self.before)),
                "after": printable_lines(render(self.after)),
            }
        return result


def invocation(options: Mapping[str, Any]) -> dict[str, Any]:
    """What Ansible shows with -vvv of the options: of a long list only its length.

    To send thousands of services back to where they came from takes as long as to read them from the kernel.
    """
    shown = {key: f"{len(value)} items" if isinstance(value, list) else value for key, value in options.items()}
    return {"module_args": shown}


def describe(operation: Operation) -> list[str]:
    """An operation in the words of the tools people know."""
    if isinstance(operation, ChainEdit) and operation.id.tool == NFTABLES:
        return [f"nft {line}" for line in operation.lines]
    if isinstance(operation, ChainEdit):
        return command_lines(operation)
    return [ipvsadm.command_line(operation)]


def render(state: RouterState) -> str:
    """A state in iptables-save and ipvsadm -S form, for the diff."""
    lines: list[str] = []
    for key, chain in state.chains.items():
        if key.tool == NFTABLES and key.has_records and chain.exists:
            lines += [f"# {key.family}, nftables, services by address", *record_lines(key, chain)]
        elif key.tool == NFTABLES and chain.exists:
            lines += [f"# {key.family}, nftables", *nftables.save_lines(chain)]
        elif chain.exists or chain.strays:
            lines += [f"# {key.family}, table {key.table}", *chain_lines(key, chain)]
    if state.pools:
        lines += ["# IPVS", *ipvsadm.save_lines(state.pools)]
    return "".join(f"{line}\n" for line in lines)


def converge(
    router: Router,
    target: Target,
    check_mode: bool,
    lock_timeout: int,
    warn: Callable[[str], None] = lambda waited: None,
) -> Outcome:
    """Bring the router to the target state. Check mode only reads, and takes no lock.

    If there is another writer, warn is told in the end for whom the run had to wait.
    Raises LvsError; if something had been changed by then, it was undone as far as the message says.
    """
    if check_mode:
        outlook = _outlook(router, target)
        router.foresee(outlook.operations)
        return outlook
    with host.lock(lock_timeout, warn=warn):
        outlook = _outlook(router, target)
        if outlook.operations:
            _carry_out(router, target, outlook)
        return outlook


def _outlook(router: Router, target: Target) -> Outcome:
    before = router.read()
    operations = plan(before, target(before))
    return Outcome(before, apply(before, operations), operations)


def _carry_out(router: Router, target: Target, outlook: Outcome) -> None:
    router.prepare(outlook.operations)
    done = 0
    try:
        for more in router.write(outlook.operations):
            done += more
        _verify(router, target, outlook)
    # Whatever it was, memory that ran out or a mistake of ours: nothing is left half done.
    except Exception as error:
        raise LvsError(f"{reason(error)}\n{_undo(router, outlook, done)}") from error


def _verify(router: Router, target: Target, outlook: Outcome) -> None:
    """What was written must read back as wanted: a mistake of ours or another writer shows here, not in production.

    Only what was touched is read again, all of it from the kernel: about the rest the kernel was told nothing, and one
    changed weight must not cost a second reading of everything. A rule that somebody else put into a chain meanwhile is
    no mistake; the services touched have to be just what they were to become.
    """
    now = router.read_again(outlook.after, outlook.operations)
    left = plan(now, RouterState(target(now).chains, outlook.after.pools))
    if left:
        lines = [line for operation in left for line in describe(operation)]
        raise LvsError(f"the router is not as it was told to be; missing afterwards: {'; '.join(lines[:_SHOWN])}")


def _undo(router: Router, outlook: Outcome, done: int) -> str:
    """Plan the way back from whatever is there now of what was touched, go it, and say how that went.

    What somebody else did to the rest meanwhile is not ours to undo.
    """
    back: list[Operation] = []
    gone = 0
    try:
        back = plan(router.read_again(outlook.before, outlook.operations), outlook.before)
        for more in router.write(back):
            gone += more
    except Exception as error:
        left = [line for operation in back[gone:] for line in describe(operation)]
        return (
            f"Going back failed as well, so the router is half changed ({done} operations were done): {reason(error)}"
            + (f"\nLeft to undo: {'; '.join(left[:_SHOWN])}" if left else "")
        )
    if not done:
        return "Nothing had been changed."
    return f"The {done} operations done until then were undone; the router is as it was before."
