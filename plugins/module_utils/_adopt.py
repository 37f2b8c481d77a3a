# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a router made by hand would have to declare to stay as it is. PRIVATE to the collection. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import ip_address
from itertools import combinations
from typing import Any, Iterable, Iterator, Mapping, Sequence

from ._errors import ValidationError
from ._foreign import foreign_rules, strays
from ._iptables import merge_ports
from ._match import disjoint
from ._model import (
    FAMILIES,
    FULL_MASK,
    Chain,
    ChainId,
    MarkRule,
    Pool,
    RouterState,
    ServiceId,
    Stray,
    TableRule,
    family_of,
)
from ._params import virtual_services
from ._plan import chains_with, obstacles, refusals
from ._report import expressible, own_rules, virtual_service

Tables = Mapping[ChainId, Sequence[TableRule]]


@dataclass(frozen=True)
class Candidate:
    """A service made by hand, as an option of lvs_service, and whether its first rule stands behind our jump."""

    service: dict[str, Any]
    behind: bool


def adoptable(
    state: RouterState, tables: Tables, services: Sequence[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[str]]:
    """The services to declare so that adopting changes nothing: ours, those made by hand; and why others are not there.

    What stands before our jump is overridden by our rules, so it comes first in the list; what stands behind, last.
    """
    reasons = [*_left_out(state, services), *_unmarked(state, tables)]
    candidates: dict[int, Candidate] = {}
    for mark in _marks_by_hand(state, tables):
        try:
            found = _candidate(mark, state, tables, reasons)
            candidates.update({mark: found} if found else {})
        except ValueError as error:
            reasons.append(f"mark {mark}: {error}")
    while True:
        before = [one.service for one in candidates.values() if not one.behind]
        wanted = [*before, *services, *(one.service for one in candidates.values() if one.behind)]
        chains = _with_strays(state, tables, wanted)
        mark, why = _conflict(chains, state, wanted, set(candidates))
        if not mark:
            return wanted, [*reasons, *(why for key, chain in chains.items() for why in refusals(key, chain))]
        del candidates[mark]
        reasons.append(f"mark {mark}: {why}")


def _left_out(state: RouterState, services: Iterable[Mapping[str, Any]]) -> list[str]:
    """Rules of ours that are no whole service: they are not in the list, and who deploys it removes them."""
    told = {service["name"] for service in services}
    names = dict.fromkeys(rule.name for rule in own_rules(state))
    return [f"{name}: is ours, but no service that can be declared; a deploy removes it"
            for name in names if name not in told]  # fmt: skip


def _unmarked(state: RouterState, tables: Tables) -> list[str]:
    given = {ServiceId(key.family, rule.seen.mark) for key, rules in tables.items()
             for rule in rules if rule.marks and rule.chain in (key.hook, key.name)}  # fmt: skip
    return [f"mark {key.fwmark}: no rule in PREROUTING gives it to a packet of its {key.family} service"
            for key in state.pools if key.fwmark and key not in given]  # fmt: skip


def _marks_by_hand(state: RouterState, tables: Tables) -> list[int]:
    """The marks that rules in the hook give and that are not ours already, in their order."""
    own = {rule.mark for rule in own_rules(state)}
    return list(dict.fromkeys(rule.seen.mark for key in tables for rule in _in_hook(key, tables)
                              if rule.seen.mark not in own))  # fmt: skip


def _in_hook(key: ChainId, tables: Tables) -> list[TableRule]:
    return [rule for rule in foreign_rules(tables[key], key) if rule.chain == key.hook and rule.marks]


def _candidate(mark: int, state: RouterState, tables: Tables, reasons: list[str]) -> Candidate | None:
    """The service of one mark, if there is one; reasons gets what stays. Raises ValueError if it is not declarable."""
    taken: list[MarkRule] = []
    name = _name(mark, state)
    behind = False
    for key in tables:
        rules = [rule for rule in _in_hook(key, tables) if rule.seen.mark == mark]
        usable = [rule for rule in rules if rule.seen.mask == FULL_MASK and expressible(rule)]
        if rules and ServiceId(key.family, mark) not in state.pools:
            reasons.append(f"mark {mark}: there is no {key.family} service for it; its rules stay as they are")
            continue
        reasons += [f"mark {mark}: {key.family} {rule.chain} {rule.text}: our options have no words for it; it stays"
                    for rule in rules if rule not in usable]  # fmt: skip
        taken += _merged([rule.seen for rule in usable], name)
        jump = max(state.chains[key].jump_places, default=0) if key in state.chains else 0
        behind = behind or any(0 < jump < rule.position for rule in usable)
    if not taken:
        return None
    pools = [state.pools[ServiceId(family, mark)] for family in FAMILIES if any(r.family == family for r in taken)]
    return Candidate(_service(taken, pools), behind)


def _name(mark: int, state: RouterState) -> str:
    name = f"fwmark-{mark}"
    return f"{name}-by-hand" if name in {rule.name for rule in own_rules(state)} else name


def _merged(rules: Iterable[MarkRule], name: str) -> list[MarkRule]:
    """Rules that differ in their ports alone are one."""
    found: dict[MarkRule, MarkRule] = {}
    for rule in rules:
        key = replace(rule, name=name, ports=())
        there = found.get(key, replace(rule, name=name))
        every = not rule.ports or not there.ports
        found[key] = replace(there, ports=() if every else merge_ports((*there.ports, *rule.ports)))
    return list(found.values())


def _service(rules: Sequence[MarkRule], pools: Sequence[Pool]) -> dict[str, Any]:
    """The rules and pools as one service. Raises ValueError if no declared service is like that."""
    service = virtual_service(rules[0].name, rules, pools)
    ports = [server for pool in pools for server in pool.real_servers.values() if server.port]
    if ports:
        raise ValueError(f"real server {ports[0].address} has the port {ports[0].port}")
    try:
        declared = virtual_services([service], "service")
    except ValidationError as error:
        raise ValueError("; ".join(error.problems)) from None
    if dict(declared.pools) != {pool.service.id: pool for pool in pools}:
        raise ValueError("its IPv4 and IPv6 services have different settings")
    # The kernel lists them from the last to the first that was added.
    service["real_servers"].sort(key=lambda server: (family_of(server["address"]), ip_address(server["address"])))
    return service


def _with_strays(state: RouterState, tables: Tables, wanted: Sequence[dict[str, Any]]) -> dict[ChainId, Chain]:
    """Our chains with the wanted services declared, and the rules in the hook that these would take over."""
    declared = virtual_services(wanted)
    found = {key: replace(chain, strays=strays(tables[key], key, declared.rules)) if key in tables else chain
             for key, chain in state.chains.items()}  # fmt: skip
    return chains_with(replace(state, chains=found), declared, None)


def _conflict(
    chains: Mapping[ChainId, Chain], state: RouterState, wanted: Sequence[dict[str, Any]], marks: set[int]
) -> tuple[int, str]:
    """A mark that cannot be adopted along with the others, and why; 0 if there is none."""
    if not marks:
        return 0, ""
    for key, chain in chains.items():
        for stray, why in obstacles(key, chain):
            if stray.rule.mark in marks:
                return stray.rule.mark, why
    order = {service["fwmark"]: place for place, service in enumerate(wanted)}
    for key, chain in chains.items():
        for first, second in _overlapping(state.chains[key], chain.strays):
            if order.get(first, -1) > order.get(second, len(order)) and {first, second} & marks:
                mark, other = (second, first) if second in marks else (first, second)
                return mark, f"services in a row cannot keep the order of its rules to those of mark {other}"
    return 0, ""


def _overlapping(chain: Chain, found: Sequence[Stray]) -> Iterator[tuple[int, int]]:
    """Marks of rules that may see the same packet, the one that it gets first before the one that it gets later."""
    rules = [stray.rule for stray in found if not stray.behind]
    rules += [rule.meaning for rule in chain.rules if isinstance(rule.meaning, MarkRule)]
    rules += [stray.rule for stray in found if stray.behind]
    for first, second in combinations(rules, 2):
        if first.mark != second.mark and not disjoint(first, second):
            yield first.mark, second.mark
