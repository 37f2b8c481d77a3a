# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""How many live services one run may take away: a list that got shorter by accident is no wish. PRIVATE. Pure.

Ansible does not merge lists. A list in host_vars replaces that of group_vars, and looks like a whole declaration.
"""

from __future__ import annotations

from typing import Iterable

from ._errors import LvsError
from ._marks.markmap import is_record
from ._model import LVS_SERVICE, Declaration, MarkRule, RouterState, ServiceId

# How many services the message names.
_NAMED = 10


def check_removals(current: RouterState, target: RouterState, declared: Declaration, percent: int) -> None:
    """Raises LvsError if more of the live services would go than percent (0-100) allows.

    One of several may go in any case, unless percent is 0; all of them go only with 100.
    """
    live = _live(current)
    removed = _removed(live, target, declared)
    too_many = len(removed) * 100 > percent * len(live)
    if too_many and (percent == 0 or len(removed) > 1 or len(removed) == len(live)):
        raise LvsError(_refusal(removed, len(live), percent))


def _live(state: RouterState) -> dict[int, set[str]]:
    """The marks that rules of lvs_service give and an IPVS service has, in any family, with the names of the rules."""
    live: dict[int, set[str]] = {}
    for key, chain in state.chains.items():
        for rule in chain.rules:
            record = isinstance(rule.meaning, MarkRule) and is_record(rule.meaning)
            own = rule.name and rule.owner == LVS_SERVICE and not record
            if own and ServiceId(key.family, rule.mark) in state.pools:
                live.setdefault(rule.mark, set()).add(rule.name)
    return live


def _removed(live: dict[int, set[str]], target: RouterState, declared: Declaration) -> list[str]:
    """The names of services that go. One that has a new name keeps its mark, and one with a new mark its name."""
    stay, names = _live(target), set(declared.names)
    return ["/".join(sorted(own)) for mark, own in live.items() if mark not in stay and not own & names]


def _refusal(removed: list[str], live: int, percent: int) -> str:
    return (
        f"services: this run would remove {len(removed)} of the {live} services that lvs_service made on this router:"
        f" {_listed(removed)}. At most {percent} percent may go (max_removals). Nothing was changed. The usual cause is"
        " a list that got shorter by accident: Ansible does not merge the lists of several variable files. If the"
        " removal is meant, allow it by -e lvs_router_max_removals=100, or in a task of your own by max_removals: 100"
    )


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = len(ordered) - _NAMED
    return ", ".join(ordered[:_NAMED]) + (f" and {more} more" if more > 0 else "")
