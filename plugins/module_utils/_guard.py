# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""How many live services one run may take away: a list that got shorter by accident is no wish. PRIVATE. Pure.

Ansible does not merge lists. A list in host_vars replaces that of group_vars, and looks like a whole declaration.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Iterable, Mapping

from ._errors import LvsError
from ._marks.markmap import is_record
from ._model import LVS_SERVICE, Declaration, MarkRule, RouterState, ServiceId

# How many services the message names.
_NAMED = 10


@dataclass
class Service:
    """A service with one mark, or with one name: the names of its rules, and what it is to IPVS."""

    names: set[str] = field(default_factory=set)
    ids: set[ServiceId] = field(default_factory=set)


def check_removals(current: RouterState, target: RouterState, declared: Declaration, percent: int) -> None:
    """Raises LvsError if more of the live services would go than percent (0-100) allows.

    One of several may go in any case, unless percent is 0; all of them go only with 100.
    """
    live = _live(current)
    removed = _removed(live, target, declared)
    too_many = len(removed) * 100 > percent * len(live)
    if too_many and (percent == 0 or len(removed) > 1 or len(removed) == len(live)):
        raise LvsError(_refusal(removed, len(live), percent))


def _live(state: RouterState) -> dict[int | str, Service]:
    """The services of lvs_service that IPVS has, in any family: by mark, or by the name of those by address."""
    live: dict[int | str, Service] = {}
    for key, chain in state.chains.items():
        for rule in chain.rules:
            retired = isinstance(rule.meaning, MarkRule) and is_record(rule.meaning)
            own = rule.name and rule.owner == LVS_SERVICE and not retired
            service_id = rule.service_id(key.family)
            if own and service_id and service_id in state.pools:
                service = live.setdefault(rule.mark or rule.name, Service())
                service.names.add(rule.name)
                service.ids.add(service_id)
    return live


def _removed(live: Mapping[int | str, Service], target: RouterState, declared: Declaration) -> list[str]:
    """The names of services that go.

    One that has a new name keeps its mark or an address, and one with a new mark or address its name.
    """
    stay = {service_id for service in _live(target).values() for service_id in service.ids}
    marks = {service_id.fwmark for service_id in stay} - {0}
    names = set(declared.names)
    return [
        "/".join(sorted(service.names))
        for key, service in live.items()
        if key not in marks and not service.ids & stay and not service.names & names
    ]


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
