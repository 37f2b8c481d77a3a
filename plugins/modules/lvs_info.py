#!/usr/bin/python
# Copyright: lvs.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: lvs_info
short_description: Read the virtual services, MARK rules and IPVS table of an LVS router
version_added: 0.1.0
description:
  - Returns what is there in the very shape that the other modules of this collection accept. Feeding it back to them
    changes nothing.
  - Reading changes nothing either. Where the kernel has not loaded C(ip_vs) or the table C(mangle), they stay unloaded
    and count as empty.
extends_documentation_fragment:
  - lvs.fleet.attributes
attributes:
  diff_mode:
    support: N/A
    details: There is nothing to change.
notes:
  - Needs root, and on the router nothing but Python 3.8 or later and C(ip).
options: {}
author:
  - lvs.fleet contributors (@lvs-fleet)
seealso:
  - module: lvs.fleet.lvs_service
  - module: lvs.fleet.iptables_mark
  - module: lvs.fleet.ipvs_service
"""

EXAMPLES = r"""
- name: Read the router
  lvs.fleet.lvs_info:
  register: router

- name: Stop when something does not fit together
  ansible.builtin.assert:
    that: router.problems is not truthy
    fail_msg: "{{ router.problems | map(attribute='message') | join('; ') }}"
"""

RETURN = r"""
services:
  description:
    - The virtual services of ours that are complete, as O(lvs.fleet.lvs_service#module:services) takes them. Those of
      marks that M(lvs.fleet.iptables_mark) gives are not among them.
    - Settings at their default are left out.
  returned: success
  type: list
  elements: dict
  sample:
    - name: web
      fwmark: 80
      traffic:
        - {destination: [192.0.2.10], protocol: [tcp], ports: [80, 443]}
      scheduler: wlc
      persistence_timeout: 300
      real_servers:
        - {address: 10.0.0.11, weight: 10, forward_method: direct}
rules:
  description:
    - The MARK rules of ours in the chain C(LVS-MARK), as O(lvs.fleet.iptables_mark#module:rules) takes them, be they
      written by M(lvs.fleet.iptables_mark) or by M(lvs.fleet.lvs_service).
  returned: success
  type: list
  elements: dict
  sample:
    - {name: web, mark: 80, mask: 4294967295, destination: [192.0.2.10], protocol: [tcp], ports: [80, 443]}
ipvs_services:
  description:
    - The whole IPVS table, whoever made it, as O(lvs.fleet.ipvs_service#module:services) takes it.
    - The kernel takes settings by netlink that ipvsadm could not restore at boot, such as weights above 65535. They are
      shown as they are, that module refuses them, and RV(problems) has an entry for each such service.
  returned: success
  type: list
  elements: dict
  sample:
    - fwmark: 80
      family: ipv4
      scheduler: wlc
      persistence_timeout: 300
      real_servers:
        - {address: 10.0.0.11, port: 0, weight: 10, forward_method: direct}
counters:
  description:
    - What the kernel counted for each IPVS service and each of its real servers since they were added.
    - The kernel brings the numbers up to date every two seconds.
  returned: success
  type: list
  elements: dict
  sample:
    - fwmark: 80
      family: ipv4
      connections: 12
      in_packets: 96
      out_packets: 0
      in_bytes: 7392
      out_bytes: 0
      real_servers:
        - address: 10.0.0.11
          port: 0
          connections: 12
          in_packets: 96
          out_packets: 0
          in_bytes: 7392
          out_bytes: 0
          active_connections: 1
          inactive_connections: 3
          persistent_connections: 1
timeouts:
  description: After how many idle seconds IPVS forgets a connection. Empty while C(ip_vs) is not loaded.
  returned: success
  type: dict
  sample: {tcp: 900, tcp_fin: 120, udp: 300}
daemons:
  description: The connection sync daemons that are running.
  returned: success
  type: list
  elements: dict
  sample:
    - {state: master, interface: eth0, sync_id: 10, sync_maxlen: 1472, group: 224.0.0.81, port: 8848, ttl: 1}
foreign_rules:
  description:
    - Every rule of table C(mangle) but those in our chain and our jump, in the words of C(iptables-save).
    - MARK rules have C(mark) and C(mask) as well, and their traffic in the shape of RV(rules) where the options of
      this collection can say it.
  returned: success
  type: list
  elements: dict
  sample:
    - {family: ipv4, chain: PREROUTING, position: 1, rule: "-p tcp -j DOCKER-MARK", target: DOCKER-MARK}
    - family: ipv4
      chain: PREROUTING
      position: 2
      rule: "-d 192.0.2.10/32 -p tcp -m tcp --dport 80 -j MARK --set-xmark 0x50/0xffffffff"
      target: MARK
      mark: 80
      mask: 4294967295
      destination: [192.0.2.10]
      protocol: [tcp]
      ports: [80]
policy_rules:
  description:
    - Routing rules (C(ip rule)) that look at a packet's mark; with C(inverted) they ask for all others.
    - What else they ask for is in C(from), C(to), C(iif) and C(oif). C(action) says what they do instead of a look into
      a table, as C(prohibit).
  returned: success
  type: list
  elements: dict
  sample:
    - {family: ipv4, priority: 100, fwmark: 80, mask: 4294967295, table: "100"}
controllers:
  description: Other programs in this network namespace that manage IPVS. Each is named once, with its first process.
  returned: success
  type: list
  elements: dict
  sample:
    - {name: keepalived, pid: 612}
firewalls:
  description: Who else has rules here, by the names of chains in all tables, or by a process. Best effort.
  returned: success
  type: list
  elements: dict
  sample:
    - {name: docker, evidence: chain DOCKER of ipv4 table nat}
adoptable:
  description:
    - The services made by hand, with a mark that MARK rules in C(PREROUTING) give, in the shape of RV(services) and not
      among them.
    - Declare RV(adoptable.before), RV(services) and RV(adoptable.behind) as one list in this order, with
      O(lvs.fleet.lvs_service#module:adopt), and nothing changes for any packet.
  returned: success
  type: dict
  contains:
    before:
      description: Those whose rules stand before our jump. Our rules override them, as later services do earlier ones.
      returned: success
      type: list
      elements: dict
      sample:
        - name: fwmark-80
          fwmark: 80
          traffic:
            - {destination: [192.0.2.10], protocol: [tcp], ports: [80, 443]}
          scheduler: wlc
          real_servers:
            - {address: 10.0.0.11, weight: 1, forward_method: direct}
    behind:
      description: Those with a rule behind our jump, which overrides ours.
      returned: success
      type: list
      elements: dict
      sample: []
not_adoptable:
  description: What is made by hand and not in RV(adoptable), what of ours is not in RV(services), and why.
  returned: success
  type: list
  elements: str
  sample:
    - "mark 90: real server 10.0.0.12 has the port 8080"
problems:
  description:
    - What does not fit together, each with a C(kind), a C(message), and what it is about.
    - C(mark_without_service) - packets get a mark that IPVS does not know. C(service_without_mark) - no rule gives the
      mark of an IPVS service. C(vip_not_local) - the destination is no address of the router.
    - C(jump) - our chain is not entered, or more than once. C(foreign_rule) - a rule of somebody else is in our chain.
      C(not_declarable) - no single declaration makes a service of ours as it is now, or no declaration makes an IPVS
      service, with the reason. C(duplicate) - a rule made by hand
      does what rules of ours do. C(unreadable) - iptables cannot print a table.
    - C(bypassed) - a rule before our jump ends the way to it. C(overridden) - a later rule gives another mark.
      C(connmark) - a later rule restores the mark of the connection. C(dropped) - a rule or a policy drops the packets
      before IPVS sees them, or what a masqueraded real server answers. C(translated) - a rule gives them another
      destination. C(mark_read) - a rule behind IPVS singles out packets with our mark. These have C(table), C(chain)
      and C(position) of the rule; the position of a policy is 0. A filter of C(tc) that does so has its C(device).
    - C(policy_rule) - a routing rule takes packets elsewhere because of their mark. C(src_valid_mark) - a setting has
      the kernel drop packets because of their mark. C(controller) - another program manages IPVS.
      C(firewall) - a firewall is going to remove our rules of iptables.
    - The message says what to do. It says "may" where a rule has a match that this module does not understand.
  returned: success
  type: list
  elements: dict
  sample:
    - kind: vip_not_local
      message: "192.0.2.10 is not local to this router: IPVS will not see its packets"
      address: 192.0.2.10
      fwmark: 80
"""

import gc
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.lvs.fleet.plugins.module_utils import _adopt as adoption
from ansible_collections.lvs.fleet.plugins.module_utils import _conflicts as conflict
from ansible_collections.lvs.fleet.plugins.module_utils import _report as report
from ansible_collections.lvs.fleet.plugins.module_utils import _surroundings as surroundings
from ansible_collections.lvs.fleet.plugins.module_utils import _troubles as trouble
from ansible_collections.lvs.fleet.plugins.module_utils._errors import LvsError, ParseError
from ansible_collections.lvs.fleet.plugins.module_utils._foreign import foreign_rules
from ansible_collections.lvs.fleet.plugins.module_utils._iptables import (
    mark_chains,
    parse_chain,
    parse_table,
    snat_chains,
)
from ansible_collections.lvs.fleet.plugins.module_utils._model import FAMILIES, Chain, ChainId, RouterState, TableRule
from ansible_collections.lvs.fleet.plugins.module_utils._module import Module
from ansible_collections.lvs.fleet.plugins.module_utils._nftables import NFT_FAMILY
from ansible_collections.lvs.fleet.plugins.module_utils._router import (
    Router,
    devices_to,
    mixed_tables,
    native_hooks,
    pools_of,
    read_chain,
    read_nftables,
    saved_other_ruleset,
    saved_ruleset,
    saved_table,
    ways_to,
)
from ansible_collections.lvs.fleet.plugins.module_utils._text import printable
from ansible_collections.lvs.fleet.plugins.module_utils._way import Follower, Hook
from ansible_collections.lvs.fleet.plugins.module_utils._way_iptables import hooks, saved_rules


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
    for chain_id in mark_chains():
        try:
            saved = saved_table(chain_id.family, chain_id.table)
            found.chains[chain_id] = parse_chain(saved, chain_id)
            found.tables[chain_id] = parse_table(saved, chain_id.family)
        except ParseError as error:
            found.problems.append(report.unreadable(chain_id.family, str(error)))
    found.chains.update(read_nftables())
    for chain_id in snat_chains():
        with suppress(ParseError):
            found.chains[chain_id] = read_chain(chain_id)
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
    native, unread = native_hooks(printed)
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
    ways = ways_to(destinations)
    policies, local_priority = surroundings.routing_rules()
    caught = conflict.catching(policies, own)
    routes = surroundings.local_routes({(mine.family, policy["table"]) for policy, mine in caught if policy["table"]})
    local = {key for key, way in ways.items() if way == "local"} | conflict.delivered_singles(caught, routes)
    problems = [
        *report.not_local(destinations, local),
        *conflict.policy_problems(caught, routes, ways, local_priority),
        *conflict.source_problems(caught, routes, surroundings.sources_by_mark()),
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
    device_of = devices_to(report.masqueraded(state))
    conntrack = surroundings.tracks_ipvs()
    for family in FAMILIES:
        own = [rule for rule in report.own_rules(state) if rule.family == family]
        hooks_of_family, ours = trouble.up_to_ipvs(rules.hooks[family], rules.chains, family)
        follower = Follower(hooks_of_family, ours, surroundings.devices())
        found += trouble.mark_troubles(follower, own, local, asked)
        found += trouble.mark_readers(rules.hooks[family], own, conntrack)
        found += trouble.replies(rules.hooks[family], own, state.pools, device_of, conntrack)
    return found


def survey() -> dict[str, Any]:
    with Router((), ipvs=True) as router:
        entries = list(router.entries())
        timeouts, daemons = router.timeouts(), router.daemons()
    rules = read_rules()
    state = RouterState(rules.chains, pools_of(entries))
    services, undeclarable = report.services(state)
    policies, misrouted, local = routing(state)
    controllers, daemon = surroundings.programs()
    adoptable, not_adoptable = adoption.adoptable(state, rules.tables, rules.given, services)
    problems = [
        *rules.problems,
        *report.problems(state, rules.given),
        *undeclarable,
        *misrouted,
        *on_their_way(state, rules, local),
        *trouble.filter_readers(surroundings.mark_filters(), report.own_rules(state)),
        *duplicates(state, rules),
        *conflict.controller_problems(controllers),
        *conflict.firewall_problems(surroundings.flushing_units(), rules.chains),
    ]
    return {
        "services": services,
        "rules": report.rules(state),
        "ipvs_services": report.ipvs_services(state),
        "counters": report.counters_of(entries),
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


def main() -> None:
    # Thousands of values and hardly a cycle among them: looking for cycles would take a fifth of the time.
    gc.disable()
    module = Module(argument_spec={}, supports_check_mode=True)
    try:
        result = survey()
    except (LvsError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
