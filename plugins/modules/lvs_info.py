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
options:
  rate_interval:
    description:
      - How many seconds there are between two looks at the counters, from which the rates in RV(pools) come. With V(0)
        there is one look, and no rates.
      - The kernel brings its counters up to date every two seconds, so a rate over 10 seconds is right to a fifth.
    type: int
    default: 0
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

- name: Read the router twice within 10 seconds
  lvs.fleet.lvs_info:
    rate_interval: 10
  register: router

- name: Name the real servers that get no new connections
  ansible.builtin.debug:
    msg: "{{ router.pools | selectattr('weight', 'equalto', 0) | map(attribute='address') | unique }}"

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
pools:
  description:
    - Every real server of the whole IPVS table, whoever made it, as one flat list that needs no joining. A service
      without real servers is in RV(ipvs_services) alone.
    - All keys are in every entry. What does not apply is V(0), or null.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The name of the service, from a rule of ours that gives its mark; null if none does.
      type: str
      returned: success
      sample: web
    fwmark:
      description: The mark of the service; V(0) of a service by address.
      type: int
      returned: success
      sample: 80
    protocol:
      description: The protocol of a service by address; null of one by mark.
      type: str
      returned: success
      sample: null
    virtual_address:
      description: The address of a service by address; null of one by mark.
      type: str
      returned: success
      sample: null
    virtual_port:
      description: The port of a service by address; V(0) of one by mark.
      type: int
      returned: success
      sample: 0
    family:
      description: V(ipv4) or V(ipv6), the family of the service.
      type: str
      returned: success
      sample: ipv4
    address:
      description: The address of the real server.
      type: str
      returned: success
      sample: 10.0.0.11
    port:
      description: The port of the real server; V(0) if packets keep theirs.
      type: int
      returned: success
      sample: 0
    weight:
      description: Its weight as the kernel has it now.
      type: int
      returned: success
      sample: 0
    declared_weight:
      description: Its weight as it was declared; null where the router has no record of that.
      type: int
      returned: success
      sample: null
    maintenance:
      description: Why it is out of service; null where the router has no record of that.
      type: list
      elements: dict
      returned: success
      sample: null
    forward_method:
      description: V(direct), V(masquerade), V(tunnel), or what else the kernel has.
      type: str
      returned: success
      sample: direct
    upper_threshold:
      description: With so many connections it is full; V(0) is never.
      type: int
      returned: success
      sample: 100
    lower_threshold:
      description: Below so many connections it is no longer full.
      type: int
      returned: success
      sample: 75
    active_connections:
      description: Open TCP and SCTP connections. Those that a sync daemon has taken over count as well.
      type: int
      returned: success
      sample: 41
    inactive_connections:
      description: Connections that are being closed, and all of UDP.
      type: int
      returned: success
      sample: 6
    persistent_connections:
      description: Templates of clients that would come back to this server.
      type: int
      returned: success
      sample: 88
    connections:
      description: How many connections it has got since it was added.
      type: int
      returned: success
      sample: 41207
    in_packets:
      description: Packets of clients since then.
      type: int
      returned: success
      sample: 329656
    out_packets:
      description: Packets of the server that came back through the router.
      type: int
      returned: success
      sample: 0
    in_bytes:
      description: Bytes of clients.
      type: int
      returned: success
      sample: 25383512
    out_bytes:
      description: Bytes of the server that came back through the router.
      type: int
      returned: success
      sample: 0
    connections_per_second:
      description: New connections in each second of O(rate_interval); null without it.
      type: float
      returned: success
      sample: 96.4
    in_packets_per_second:
      description: Packets of clients in each second of O(rate_interval); null without it.
      type: float
      returned: success
      sample: 771.2
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
    - The services made by hand, by address or with a mark that MARK rules in C(PREROUTING) give, in the shape of
      RV(services) and not among them.
    - Declare RV(adoptable.before), RV(services) and RV(adoptable.behind) as one list in this order, with
      O(lvs.fleet.lvs_service#module:adopt), and nothing changes for any packet.
  returned: success
  type: dict
  contains:
    before:
      description:
        - Those by address, and those whose rules stand before our jump.
        - Our rules override them, as later services do earlier ones.
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
      mark of an IPVS service. C(record_without_service) - IPVS does not have a service by address that is on record.
      C(hidden) - all packets to a service by address get a mark, whose service the kernel prefers. C(vip_not_local) -
      the destination is no address of the router.
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

from ansible_collections.lvs.fleet.plugins.module_utils._errors import LvsError
from ansible_collections.lvs.fleet.plugins.module_utils._module import Module
from ansible_collections.lvs.fleet.plugins.module_utils._survey import survey

# Nobody waits longer for an answer, and a connection to the router might not last as long.
LONGEST_INTERVAL = 300


def main() -> None:
    # Thousands of values and hardly a cycle among them: looking for cycles would take a fifth of the time.
    gc.disable()
    module = Module(argument_spec={"rate_interval": {"type": "int", "default": 0}}, supports_check_mode=True)
    interval = module.params["rate_interval"]
    if not 0 <= interval <= LONGEST_INTERVAL:
        module.fail_json(msg=f"rate_interval: {interval} is not between 0 and {LONGEST_INTERVAL} seconds")
    try:
        result = survey(interval)
    except (LvsError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
