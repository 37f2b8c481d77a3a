# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""From a declaration and what is there to what should be there, and the way between. PRIVATE to the collection. Pure.

A target is a whole state, with everything in it that is not ours. So there is one planner for all modules, for check
mode and for the way back after a failure.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Iterable, Iterator, Mapping, Sequence

from ._errors import LvsError
from ._marks import nftables
from ._marks.foreign import obstacle_in_chain
from ._marks.iptables import COMMAND, alike, chain_rule, edit_chain, parse_table, record_rule, retired
from ._marks.markmap import is_record
from ._marks.nft_records import edit_records, in_order, record_element
from ._marks.ownership import OwnRule, given_by_the_other, managed, not_there_yet
from ._model import (
    NFTABLES,
    Chain,
    ChainEdit,
    ChainId,
    ChainRule,
    Declaration,
    IpvsOperation,
    MarkRule,
    Operation,
    Pool,
    RealServer,
    RealServerId,
    RouterState,
    ServiceId,
    Stray,
    VirtualService,
)
from ._packets.overlaps import Overlaps

# -- what should be there -----------------------------------------------------------------------------------------


def virtual_services_target(current: RouterState, declared: Declaration, purge: str) -> RouterState:
    """Both halves of the declared services, and of the others what purge leaves (none: all, owned: what is not ours).

    A service is ours if a rule of ours in the chain gives its mark, or is its record where it has none: the kernel
    itself keeps the record of ownership.
    Whatever purge says, a declared service leaves nothing behind of what it was before, say under another mark.
    """
    if purge == "all":
        only = {
            key: _holding(key, chain, (*declared_rules(declared, key), *nftables.irrevocable(chain.rules)))
            for key, chain in current.chains.items()
        }
        return RouterState(_without_strays(only), declared.pools)
    names = frozenset(declared.names) if purge == "none" else None
    chains = _chains_target(current, declared, names)
    still_given = _ids(chains, lambda rule: True)
    replaced = _ids(current.chains, managed(declared, names)) - still_given
    pools = {service_id: pool for service_id, pool in current.pools.items() if service_id not in replaced}
    return RouterState(chains, {**pools, **declared.pools})


def virtual_services_absent(current: RouterState, declared: Declaration) -> RouterState:
    """Without the named services: their rules and records, the services of these, and those of the declared mark.

    A service whose mark iptables_mark gives is somebody else's.
    """
    owned = _ids(current.chains, managed(declared, frozenset(declared.names)))
    gone = (owned | set(declared.ids)) - given_by_the_other(current, declared)
    pools = {service_id: pool for service_id, pool in current.pools.items() if service_id not in gone}
    return RouterState(_chains_without(current, declared), pools)


def marks_target(current: RouterState, declared: Declaration, purge: bool) -> RouterState:
    """The declared MARK rules; of the other rules of iptables_mark those that purge leaves."""
    names = None if purge else frozenset(declared.names)
    return replace(current, chains=_chains_target(current, not_there_yet(current, declared), names))


def marks_absent(current: RouterState, declared: Declaration) -> RouterState:
    return replace(current, chains=_chains_without(current, declared))


def pools_target(current: RouterState, declared: Declaration, purge: bool) -> RouterState:
    """The declared virtual services with exactly their real servers; the others unless purge takes them away."""
    return replace(current, pools={**({} if purge else current.pools), **declared.pools})


def pools_absent(current: RouterState, declared: Declaration) -> RouterState:
    gone = set(declared.ids)
    return replace(current, pools={key: pool for key, pool in current.pools.items() if key not in gone})


def declared_chain(declared: Declaration, chain_id: ChainId) -> Chain:
    """One of our chains as a declaration makes it where there is nothing else."""
    return _holding(chain_id, Chain(), declared_rules(declared, chain_id))


def declared_rules(declared: Declaration, chain_id: ChainId) -> tuple[ChainRule, ...]:
    """What a declaration wants in one of our chains."""
    if chain_id.table == "nat":
        return tuple(chain_rule(rule) for rule in declared.snat_rules if rule.family == chain_id.family)
    if chain_id.has_records:
        return _declared_records(declared, chain_id)
    own = [rule for rule in declared.rules if rule.family == chain_id.family and chain_id.tool == declared.marking]
    return nftables.declared_entries(own) if chain_id.tool == NFTABLES else tuple(map(chain_rule, own))


def _declared_records(declared: Declaration, chain_id: ChainId) -> tuple[ChainRule, ...]:
    own = [one for one in declared.records if one.family == chain_id.family and chain_id.tool == declared.marking]
    return in_order(map(record_element, own)) if chain_id.tool == NFTABLES else tuple(map(record_rule, own))


def _ids(chains: Mapping[ChainId, Chain], chosen: OwnRule) -> set[ServiceId]:
    """The services of the marks that chosen rules give, or that they are the records of."""
    found = (rule.service_id(key.family) for key, chain in chains.items() for rule in chain.rules if chosen(rule))
    return {service_id for service_id in found if service_id}


def _chains_without(current: RouterState, declared: Declaration) -> dict[ChainId, Chain]:
    return _chains_target(current, replace(declared, rules=(), snat_rules=(), records=()), frozenset(declared.names))


def _chains_target(current: RouterState, declared: Declaration, names: frozenset[str] | None) -> dict[ChainId, Chain]:
    return _without_strays(chains_with(current, declared, names))


def chains_with(current: RouterState, declared: Declaration, names: frozenset[str] | None) -> dict[ChainId, Chain]:
    """The chains with the declared rules in place of those of the names; strays are where they were."""
    is_managed = managed(declared, names)
    return {
        key: _holding(key, chain, _merged(chain.rules, declared_rules(declared, key), is_managed))
        for key, chain in current.chains.items()
    }


def _holding(chain_id: ChainId, chain: Chain, rules: tuple[ChainRule, ...]) -> Chain:
    """The chain as it should be with these rules."""
    if chain_id.has_records:
        return chain.with_records(in_order(rules) if chain_id.tool == NFTABLES else rules)
    return chain.with_rules(*nftables.content(rules)) if chain_id.tool == NFTABLES else chain.with_rules(rules)


def _without_strays(chains: Mapping[ChainId, Chain]) -> dict[ChainId, Chain]:
    """The chains with all strays taken over. Raises LvsError where that would change what happens to a packet."""
    refused = [why for key, chain in chains.items() for why in refusals(key, chain)]
    if refused:
        raise LvsError("\n".join(refused))
    return {key: replace(chain, strays=()) for key, chain in chains.items()}


def refusals(chain_id: ChainId, chain: Chain) -> list[str]:
    where = f"{COMMAND[chain_id.family]} -t {chain_id.table}: {chain_id.hook}"
    return [f"{where} {stray.text} cannot be adopted: {why}" for stray, why, _mark in obstacles(chain_id, chain)]


def obstacles(chain_id: ChainId, chain: Chain) -> Iterator[tuple[Stray, str, int]]:
    """The strays that must stay, each with the reason: another rule that it may be before or behind, but not both.

    Then the mark that this other rule gives if it is one of our chain, or 0.
    """
    content = "".join(f"-A {chain_id.name} {rule.text}\n" for rule in chain.rules) if chain.strays else ""
    rules = parse_table(content, chain_id.family)
    near = Overlaps([rule.seen for rule in rules])
    for stray in chain.strays:
        inside = None if stray.obstacle else obstacle_in_chain(stray, rules, near)
        which = f"{chain_id.name} {inside.text}" if inside else f"{chain_id.hook} {stray.obstacle}"
        if stray.obstacle or inside:
            yield stray, f"{which} may see the same packets, and the order counts", inside.seen.mark if inside else 0


def _merged(current: Sequence[ChainRule], wanted: tuple[ChainRule, ...], is_managed: OwnRule) -> tuple[ChainRule, ...]:
    """The wanted rules, each where the managed one it equals or replaces stands now; the others stay put.

    A later MARK rule overrides an earlier one, so the wanted order is kept, but rules of others may stand in between:
    two callers that each manage their own names do not push each other around, and an exception that somebody made
    by hand between two rules of ours stays between them. Without managed rules the wanted ones come last.
    """
    own = [rule for rule in current if is_managed(rule)]
    if not own:
        return (*current, *wanted)
    instead: list[list[ChainRule]] = [[] for _rule in own]
    start = first = 0
    for stop, last in [*alike(own, wanted), (len(own), len(wanted))]:
        for offset, rule in enumerate(wanted[first:last]):
            instead[max(min(start + offset, stop - 1), 0)].append(rule)
        if stop < len(own):
            instead[stop].append(wanted[last])
        start, first = stop + 1, last + 1
    replacements = iter(instead)
    return tuple(new for rule in current for new in (next(replacements) if is_managed(rule) else [rule]))


# -- the way there ------------------------------------------------------------------------------------------------


def plan(current: RouterState, target: RouterState) -> list[Operation]:
    """The operations from current to target, in an order that never marks a packet for a service that is not there.

    The records of services by address; new services, new real servers, edits in place; then each chain in one swap;
    then what is to go, and its records.
    """
    retiring = _retiring(current, target)
    records = {key: chain for key, chain in retiring.items() if key.has_records}
    recorded = {**current.chains, **records}
    announced = _edits_of_chains(current.chains, records)
    operations: list[Operation] = [*_additions(current.pools, target.pools), *_edits(current.pools, target.pools)]
    swapped = _edits_of_chains(recorded, retiring)
    removals = _removals(current.pools, target.pools)
    cleared = _edits_of_chains(retiring, target.chains)
    return [*announced, *operations, *swapped, *removals, *cleared]


def _retiring(current: RouterState, target: RouterState) -> dict[ChainId, Chain]:
    """The chains for as long as services are being removed: the wanted rules, and who owned the services that go.

    Without that record, a run that dies between the swap and the removal would leave services that nobody owns.
    """
    chains = {}
    gone = current.pools.keys() - target.pools.keys()
    for key, wanted in target.chains.items():
        left = {rule.service_id(key.family) for rule in wanted.rules}
        owners = {
            service_id: rule if key.has_records else chain_rule(retired(rule.name, rule.mark, key.family))
            for rule in current.chains[key].rules
            for service_id in [rule.service_id(key.family)]
            if rule.name and service_id in gone and service_id not in left
        }
        chains[key] = _holding(key, wanted, (*wanted.rules, *owners.values())) if owners else wanted
    return chains


def _edits_of_chains(current: Mapping[ChainId, Chain], target: Mapping[ChainId, Chain]) -> Iterable[ChainEdit]:
    """Chains that only cease to give marks come last: what moves from one chain to another is never in neither."""
    ceasing = {key: _giving(chain) <= _giving(current[key]) for key, chain in target.items()}
    in_order = sorted(target, key=lambda key: ceasing[key])
    return [edit for key in in_order for edit in _chain_edits(key, current[key], target[key])]


def _giving(chain: Chain) -> set[ChainRule]:
    """The rules that packets may meet, without records of whose a mark was."""
    met = chain.entries or chain.rules
    return {rule for rule in met if not (isinstance(rule.meaning, MarkRule) and is_record(rule.meaning))}


def _chain_edits(chain_id: ChainId, before: Chain, after: Chain) -> Sequence[ChainEdit]:
    if chain_id.tool == NFTABLES and chain_id.has_records:
        return edit_records(chain_id, before, after)
    if chain_id.tool == NFTABLES:
        return nftables.edit_table(chain_id, before, after)
    edit = edit_chain(chain_id, before, after)
    return [edit] if edit else []


def _additions(current: Mapping[ServiceId, Pool], target: Mapping[ServiceId, Pool]) -> Iterable[IpvsOperation]:
    for service_id, pool in target.items():
        if service_id not in current:
            yield IpvsOperation("A", pool.service)
    for service_id, pool in target.items():
        there = current[service_id].real_servers if service_id in current else {}
        for key, server in pool.real_servers.items():
            if key not in there:
                yield IpvsOperation("a", pool.service, server)


def _edits(current: Mapping[ServiceId, Pool], target: Mapping[ServiceId, Pool]) -> Iterable[IpvsOperation]:
    for service_id, pool in target.items():
        before = current.get(service_id)
        if before is None or before == pool:
            continue
        if before.service != pool.service:
            yield IpvsOperation("E", pool.service)
        for key, server in pool.real_servers.items():
            if before.real_servers.get(key, server) != server:
                yield IpvsOperation("e", pool.service, server)


def _removals(current: Mapping[ServiceId, Pool], target: Mapping[ServiceId, Pool]) -> Iterable[IpvsOperation]:
    """Real servers of services that stay, then services: the kernel lets go of a service's real servers with it."""
    for service_id, pool in current.items():
        wanted = target.get(service_id)
        for key, server in pool.real_servers.items():
            if wanted is not None and key not in wanted.real_servers:
                yield IpvsOperation("d", pool.service, server)
    for service_id, pool in current.items():
        if service_id not in target:
            yield IpvsOperation("D", pool.service)


# -- what an operation leads to -----------------------------------------------------------------------------------


def apply(state: RouterState, operations: Iterable[Operation]) -> RouterState:
    """The state after the operations, as the kernel would have it."""
    chains = dict(state.chains)
    services = {key: pool.service for key, pool in state.pools.items()}
    servers = {key: dict(pool.real_servers) for key, pool in state.pools.items()}
    for operation in operations:
        if isinstance(operation, ChainEdit):
            chains[operation.id] = operation.after
        else:
            _apply_ipvs(services, servers, operation)
    return RouterState(chains, {key: Pool(service, servers[key]) for key, service in services.items()})


def _apply_ipvs(
    services: dict[ServiceId, VirtualService],
    servers: dict[ServiceId, dict[RealServerId, RealServer]],
    operation: IpvsOperation,
) -> None:
    key, server = operation.service.id, operation.real_server
    if operation.command == "D":
        del services[key], servers[key]
    elif server is None:
        services[key] = operation.service
        servers.setdefault(key, {})
    elif operation.command == "d":
        del servers[key][server.id]
    else:
        servers[key][server.id] = server
