# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a router made by hand would have to declare to stay as it is. PRIVATE to the collection. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Iterable, Iterator, Mapping, Sequence

from .._declared.params import virtual_services
from .._errors import ValidationError
from .._ipvs.ipvsadm import endpoint
from .._marks.foreign import foreign_rules, strays
from .._marks.iptables import merge_ports
from .._model import (
    FAMILIES,
    FULL_MASK,
    Chain,
    ChainId,
    MarkRule,
    Pool,
    RouterState,
    ServiceId,
    ServiceRecord,
    Stray,
    TableRule,
    Traffic,
)
from .._packets.overlaps import Overlaps
from .._plan import chains_with, obstacles, refusals
from .._way.troubles import Given
from .report import expressible, own_rules, service_records, service_rules, virtual_service
from .shorthand import server_order

Tables = Mapping[ChainId, Sequence[TableRule]]
# The MARK rules in each hook, by their mark.
ByHand = Mapping[ChainId, Mapping[int, Sequence[TableRule]]]


@dataclass(frozen=True)
class Candidate:
    """A service made by hand, as an option of lvs_service, and whether its first rule stands behind our jump."""

    service: dict[str, Any]
    behind: bool


def adoptable(
    state: RouterState, tables: Tables, given: Mapping[str, Given], services: Sequence[dict[str, Any]]
) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """The services made by hand that can be declared beside ours, the services; and why others are not there.

    They are in two lists, for what stands before our jump is overridden by our rules, and what stands behind overrides
    them: who declares the list "before", then ours, then the list "behind", and adopts, changes nothing.
    """
    reasons = [*_left_out(state, services), *_unmarked(state, tables, given)]
    addresses = _by_address(state, reasons)
    candidates: dict[int, Candidate] = {}
    by_hand = {key: _in_hook(key, tables) for key in tables}
    taken_names = {rule.name for rule in own_rules(state)}
    for mark in _marks_by_hand(state, by_hand):
        try:
            name = f"fwmark-{mark}-by-hand" if f"fwmark-{mark}" in taken_names else f"fwmark-{mark}"
            found = _candidate(mark, name, state, by_hand, reasons)
            candidates.update({mark: found} if found else {})
        except ValueError as error:
            reasons.append(f"mark {mark}: {error}")
    while True:
        before = [one.service for one in candidates.values() if not one.behind]
        behind = [one.service for one in candidates.values() if one.behind]
        wanted = [*before, *services, *behind]
        chains = _with_strays(state, tables, wanted)
        unfit = _conflicts(chains, state, wanted, set(candidates))
        if not unfit:
            reasons += [why for key, chain in chains.items() for why in refusals(key, chain)]
            return {"before": [*addresses, *before], "behind": behind}, reasons
        candidates = {mark: found for mark, found in candidates.items() if mark not in unfit}
        reasons += [f"mark {mark}: {why}" for mark, why in unfit.items()]


def _left_out(state: RouterState, services: Iterable[Mapping[str, Any]]) -> list[str]:
    """Rules of lvs_service that are no whole service: they are not in the list, and who deploys it removes them."""
    told = {service["name"] for service in services}
    own: Sequence[Traffic] = (*service_rules(state), *service_records(state))
    names = dict.fromkeys(one.name for one in own)
    return [f"{name}: is ours, but no service that can be declared; a deploy removes it"
            for name in names if name not in told]  # fmt: skip


def _by_address(state: RouterState, reasons: list[str]) -> list[dict[str, Any]]:
    """The services by address that are not on record, each an item; reasons gets those that no item makes.

    Their place among the others does not matter: IPVS finds an address by itself.
    """
    own = {record.service: record.name for record in service_records(state)}
    found = []
    for key in sorted(state.pools):
        if key.fwmark or key in own:
            continue
        name = f"{key.protocol}-{key.address.replace(':', '-')}-{key.port}"
        name += "-by-hand" * (name in own.values())
        try:
            found.append(_service([ServiceRecord(name, key)], [state.pools[key]]))
        except ValueError as error:
            reasons.append(f"{key.protocol} {endpoint(key.address, key.port)}: {error}")
    return found


def _unmarked(state: RouterState, tables: Tables, given: Mapping[str, Given]) -> list[str]:
    taken = {ServiceId(key.family, rule.seen.mark) for key, rules in tables.items()
             for rule in rules if rule.marks and rule.chain in (key.hook, key.name)}  # fmt: skip
    lone = [key for key in state.pools if key.fwmark and key not in taken]
    return [f"mark {key.fwmark}: {_why_unmarked(key, given[key.family])}" for key in lone]


def _why_unmarked(service: ServiceId, given: Given) -> str:
    place = given.places.get(service.fwmark)
    if place:
        return f"{place} gives it; only rules in PREROUTING of table mangle are adopted"
    return f"{given.denial(service.fwmark)} to a packet of its {service.family} service"


def _marks_by_hand(state: RouterState, by_hand: ByHand) -> list[int]:
    """The marks that rules in the hook give and that are not ours already, in their order; 0 is no mark."""
    own = {0, *(rule.mark for rule in own_rules(state))}
    return list(dict.fromkeys(mark for marks in by_hand.values() for mark in marks if mark not in own))


def _in_hook(key: ChainId, tables: Tables) -> dict[int, list[TableRule]]:
    found: dict[int, list[TableRule]] = {}
    for rule in foreign_rules(tables[key], key):
        if rule.chain == key.hook and rule.marks:
            found.setdefault(rule.seen.mark, []).append(rule)
    return found


def _candidate(mark: int, name: str, state: RouterState, by_hand: ByHand, reasons: list[str]) -> Candidate | None:
    """The service of one mark, if there is one; reasons gets what stays. Raises ValueError if it is not declarable."""
    taken: list[MarkRule] = []
    behind = False
    for key, marks in by_hand.items():
        rules = marks.get(mark, ())
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


def _merged(rules: Iterable[MarkRule], name: str) -> list[MarkRule]:
    """Rules that differ in their ports alone are one."""
    found: dict[MarkRule, MarkRule] = {}
    for rule in rules:
        key = replace(rule, name=name, ports=())
        there = found.get(key, replace(rule, name=name))
        every = not rule.ports or not there.ports
        found[key] = replace(there, ports=() if every else merge_ports((*there.ports, *rule.ports)))
    return list(found.values())


def _service(seen: Sequence[Traffic], pools: Sequence[Pool]) -> dict[str, Any]:
    """The traffic and pools as one service. Raises ValueError if no declared service is like that."""
    service = virtual_service(seen[0].name, seen, pools)
    marked = [pool for pool in pools if pool.service.id.fwmark]
    ports = [server for pool in marked for server in pool.real_servers.values() if server.port]
    if ports:
        raise ValueError(f"real server {ports[0].address} has the port {ports[0].port}")
    try:
        declared = virtual_services([service], "service")
    except ValidationError as error:
        raise ValueError("; ".join(error.problems)) from None
    if dict(declared.pools) != {pool.service.id: pool for pool in pools}:
        raise ValueError("its IPv4 and IPv6 services have different settings")
    # The kernel lists them from the last to the first that was added.
    service["real_servers"].sort(key=server_order)
    return service


def _with_strays(state: RouterState, tables: Tables, wanted: Sequence[dict[str, Any]]) -> dict[ChainId, Chain]:
    """Our chains with the wanted services declared, and the rules in the hook that these would take over."""
    declared = virtual_services(wanted)
    found = {key: replace(chain, strays=strays(tables[key], key, declared.rules)) if key in tables else chain
             for key, chain in state.chains.items()}  # fmt: skip
    return chains_with(replace(state, chains=found), declared, None)


def _conflicts(
    chains: Mapping[ChainId, Chain], state: RouterState, wanted: Sequence[dict[str, Any]], marks: set[int]
) -> dict[int, str]:
    """The marks that cannot be adopted along with the others, each with the reason; nothing if all can.

    A mark that only one of these stands in the way of is not among them: once that one is gone, it may well fit. So
    the question has to be asked again, but hardly ever as many times as there are marks.
    """
    if not marks:
        return {}
    unfit: dict[int, str] = {}
    for key, chain in chains.items():
        for stray, why, by in obstacles(key, chain):
            if stray.rule.mark in marks and by not in unfit:
                unfit.setdefault(stray.rule.mark, why)
    return unfit or _out_of_order(chains, state, wanted, marks)


def _out_of_order(
    chains: Mapping[ChainId, Chain], state: RouterState, wanted: Sequence[dict[str, Any]], marks: set[int]
) -> dict[int, str]:
    """The marks whose rules would change places with those of another mark."""
    unfit: dict[int, str] = {}
    order = {service.get("fwmark", 0): place for place, service in enumerate(wanted)}
    for key, chain in chains.items():
        for first, second in _overlapping(state.chains[key], chain.strays):
            pair = {first, second}
            if order.get(first, -1) > order.get(second, len(order)) and pair & marks and not pair & set(unfit):
                mark, other = (second, first) if second in marks else (first, second)
                unfit[mark] = f"services in a row cannot keep the order of its rules to those of mark {other}"
    return unfit


def _overlapping(chain: Chain, found: Sequence[Stray]) -> Iterator[tuple[int, int]]:
    """Marks of rules that may see the same packet, the one that it gets first before the one that it gets later."""
    rules = [stray.rule for stray in found if not stray.behind]
    rules += [rule.meaning for rule in chain.rules if isinstance(rule.meaning, MarkRule)]
    rules += [stray.rule for stray in found if stray.behind]
    near = Overlaps(rules)
    for place, first in enumerate(rules):
        for second in near.places(first):
            if second > place and rules[second].mark != first.mark:
                yield first.mark, rules[second].mark
