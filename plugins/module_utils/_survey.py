# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What lvs_info tells of a router: what joins the rooms to a report. PRIVATE to the collection; it only reads."""

from __future__ import annotations

from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any

from . import _host as host
from ._errors import ParseError
from ._ipvs.machine import IpvsTable, pools_of
from ._marks.foreign import foreign_rules
from ._marks.iptables import (
    mark_chains,
    parse_chain,
    parse_table,
    record_chains,
    snat_chains,
)
from ._marks.machine import (
    mixed_tables,
    read_chains,
    read_nftables,
    saved_other_ruleset,
    saved_ruleset,
    saved_table,
)
from ._marks.nftables import NFT_FAMILY
from ._model import FAMILIES, Chain, ChainId, RouterState, TableRule
from ._report import adopt as adoption
from ._report import conflicts as conflict
from ._report import machine as surroundings
from ._report import report
from ._report.pools import pools
from ._text import printable
from ._way import machine as on_way
from ._way import troubles as trouble
from ._way.iptables import hooks, saved_rules
from ._way.walk import Follower, Hook


@dataclass
class Rules:
    """What iptables and nftables tell, by chain and family; problems has one for each table that cannot be read."""

    chains: dict[ChainId, Chain] = field(default_factory=dict)
    tables: dict[ChainId, tuple[TableRule, ...]] = field(default_factory=dict)
    given: dict[str, trouble.Given] = field(default_factory=dict)
    hooks: dict[str, list[Hook]] = field(default_factory=dict)
    saved: dict[str, str] = field(default_factory=dict)
    problems: list[dict[str, Any]] = field(default_factory=list)


def read_rules() -> Rules:
    found = Rules()
    for chain_id, record_chain in zip(mark_chains(), record_chains()):
        try:
            saved = saved_table(chain_id.family, chain_id.table)
            found.chains[chain_id] = parse_chain(saved, chain_id)
            found.chains[record_chain] = parse_chain(saved, record_chain)
            found.tables[chain_id] = parse_table(saved, chain_id.family)
        except ParseError as error:
            found.problems.append(report.unreadable(chain_id.family, str(error)))
    found.chains.update(read_nftables())
    for chain_id in snat_chains():
        with suppress(ParseError):
            found.chains.update(read_chains([chain_id]))
    read_hooks(found)
    return found


def read_hooks(found: Rules) -> None:
    """All tables of both variants of iptables, and those of nftables."""
    printed = {}
    for family in FAMILIES:
        found.saved[family] = saved_ruleset(family)
        variant, other = saved_other_ruleset(family)
        in_use, unused = saved_rules(found.saved[family]), saved_rules(other)
        for table in mixed_tables(family, in_use.chains):
            del in_use.chains[table]
        printed[NFT_FAMILY[family]] = [*in_use.chains, *unused.chains]
        found.hooks[family] = [
            *hooks(in_use, family, own=mark_chains()),
            *hooks(unused, family, f" of iptables-{variant}"),
        ]
    native, unread = on_way.native_hooks(printed)
    for family in FAMILIES:
        found.hooks[family] += native[family]
        own = {rule.mark for key, chain in found.chains.items() if key.family == family for rule in chain.rules}
        found.given[family] = trouble.marks_given(found.hooks[family], own, unread)


def foreign(rules: Rules) -> list[dict[str, Any]]:
    return [
        report.foreign_rule(rule, key.family)
        for key, table in rules.tables.items()
        for rule in foreign_rules(table, key)
    ]


def routing(state: RouterState) -> tuple[list[dict[str, Any]], list[dict[str, Any]], set[str]]:
    """The routing rules by mark; what is wrong with the routing of our packets; the addresses that are local."""
    own = report.own_rules(state)
    destinations = report.single_destinations(state)
    ways = on_way.ways_to(destinations)
    policies, local_priority = on_way.routing_rules()
    caught = conflict.catching(policies, own)
    routes = on_way.local_routes({(mine.family, policy["table"]) for policy, mine in caught if policy["table"]})
    local = {key for key, way in ways.items() if way == "local"} | conflict.delivered_singles(caught, routes)
    problems = [
        *report.not_local(destinations, local),
        *conflict.policy_problems(caught, routes, ways, local_priority),
        *conflict.source_problems(caught, routes, on_way.sources_by_mark()),
    ]
    return policies, problems, {address for address, _mark in local}


def duplicates(state: RouterState, rules: Rules) -> list[dict[str, Any]]:
    own = report.own_rules(state)
    return [
        problem
        for key, table in rules.tables.items()
        for problem in conflict.duplicates(table, key, [rule for rule in own if rule.family == key.family])
    ]


def on_their_way(state: RouterState, rules: Rules, local: set[str]) -> list[dict[str, Any]]:
    """What happens to packets of ours between their mark and IPVS."""
    found = []
    asked = {address for address, _mark in report.single_destinations(state)}
    device_of = on_way.devices_to(report.masqueraded(state))
    conntrack = on_way.tracks_ipvs()
    for family in FAMILIES:
        own = [rule for rule in report.own_rules(state) if rule.family == family]
        hooks_of_family, ours = trouble.up_to_ipvs(rules.hooks[family], rules.chains, family)
        follower = Follower(hooks_of_family, ours, host.interfaces())
        found += trouble.mark_troubles(follower, own, local, asked)
        found += trouble.mark_readers(rules.hooks[family], own, conntrack)
        found += trouble.replies(rules.hooks[family], own, state.pools, device_of, conntrack)
    return found


def survey(rate_interval: int = 0) -> dict[str, Any]:
    """All of it. With an interval in seconds, how much the counters grow in that time as well."""
    host.expect_root()
    with closing(IpvsTable()) as table:
        before = report.counters_of(table.entries()) if rate_interval else []
        seconds = host.wait(rate_interval)
        entries = list(table.entries())
        timeouts, daemons = table.timeouts(), table.daemons()
    rules = read_rules()
    state = RouterState(rules.chains, pools_of(entries))
    services, undeclarable = report.services(state)
    counters = report.counters_of(entries)
    policies, misrouted, local = routing(state)
    controllers, daemon = surroundings.programs()
    adoptable, not_adoptable = adoption.adoptable(state, rules.tables, rules.given, services)
    problems = [
        *rules.problems,
        *report.problems(state, rules.given),
        *undeclarable,
        *misrouted,
        *on_their_way(state, rules, local),
        *trouble.filter_readers(on_way.mark_filters(), report.own_rules(state)),
        *duplicates(state, rules),
        *conflict.controller_problems(controllers),
        *conflict.firewall_problems(surroundings.flushing_units(), rules.chains),
    ]
    return {
        "services": services,
        "rules": report.rules(state),
        "ipvs_services": report.ipvs_services(state),
        "pools": pools(state, counters, before, seconds),
        "counters": counters,
        "timeouts": timeouts,
        "daemons": daemons,
        "foreign_rules": foreign(rules),
        "policy_rules": policies,
        "controllers": controllers,
        "firewalls": [*daemon, *conflict.firewalls(rules.saved)],
        "adoptable": adoptable,
        "not_adoptable": [printable(reason) for reason in not_adoptable],
        "problems": [{**problem, "message": printable(problem["message"])} for problem in problems],
    }
