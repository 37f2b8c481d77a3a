#!/usr/bin/python
# Copyright: lvs.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: lvs_service
short_description: Manage virtual services by firewall mark or by address, MARK rules and IPVS table together
version_added: 0.1.0
description:
  - A virtual service with several ports has two halves. iptables gives its packets a firewall mark, and IPVS balances
    what carries the mark. This module manages both as one object and in one transaction.
  - A service without O(services[].fwmark) is balanced by address. IPVS has one service for each destination, protocol
    and port of it, and no packet is marked. Whose these services are is on record in the chain C(LVS-SERVICE) of table
    C(mangle), to which nothing leads, or with O(marking=nftables) in a set of the table C(lvs-service).
  - The MARK rules live in the chain C(LVS-MARK) of table C(mangle), each with the comment C(lvs:NAME). The chain is
    entered by one jump from C(PREROUTING). No other rule and no other chain is touched.
  - A service that is there is edited in place, never deleted and added again, and its connections go on. New
    services come before the marks, and the marks change before services go, so that no packet ever carries a mark
    without a service.
  - Both the MARK rules and the IPVS table are compared field by field, whoever wrote them and in whatever form.
extends_documentation_fragment:
  - lvs.fleet.attributes
  - lvs.fleet.writer
notes:
  - Needs root, and on the router nothing but Python 3.8 or later, C(iptables) and a kernel with IPVS.
options:
  services:
    description:
      - The virtual services, whole, one after the other. Real servers that are not listed are removed from a service.
      - A key without a value, which is null in YAML, is an error at any depth. Leave such a key out.
      - Where two services match the same packet, the mark of the later one counts.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description:
          - The label of the service, which becomes the comment of its rules.
          - A letter or digit, then at most 62 letters, digits, C(_), C(.) or C(-). Unique.
        type: str
        required: true
      fwmark:
        description:
          - The firewall mark, 1 to 2147483647. Together with the family it identifies the IPVS service. Unique.
          - Without it the service is balanced by address. Then destinations are single addresses, ports are single
            ports, and there is no O(services[].traffic[].source), O(services[].traffic[].in_interface) or
            O(services[].traffic[].exclude_mac).
          - By address a client stays with its real server for each port alone. So O(services[].persistence_timeout)
            goes with one port only.
          - Where a service by mark and one by address match the same packet, the kernel takes that by mark.
        type: int
      traffic:
        description:
          - Which packets are balanced. At least one entry; with O(state=absent) it may be left out.
          - With IPv4 and IPv6 destinations the service exists in both families under the same mark.
        type: list
        elements: dict
        suboptions:
          destination:
            description: Addresses or networks that the packets go to.
            type: list
            elements: str
            required: true
          protocol:
            description:
              - One or several of V(tcp), V(udp) and V(sctp). Required where there are ports, and by address.
              - Without it all packets to the destination get the mark. IPVS balances those of the three protocols.
            type: list
            elements: str
            choices: [tcp, udp, sctp]
          ports:
            description:
              - Destination ports, each a number or a range such as V(10000:20000). Leave it out for every port, which
                by address takes O(services[].persistence_timeout).
              - Put ranges in quotes. YAML takes a bare 20:21 for the number 1221.
              - As many as you like. A rule has 15 slots, of which a range takes two; there are as many rules as needed.
            type: list
            elements: raw
          source:
            description: Addresses or networks that the packets come from. Leave it out for anywhere.
            type: list
            elements: str
          in_interface:
            description: The interface that the packets arrive at. A C(+) at the end stands for any ending.
            type: str
          exclude_mac:
            description:
              - MAC addresses, as in V(52:54:00:12:34:56). Packets that come directly from these machines get no mark.
              - Write those of the other LVS routers here where they are real servers of the service as well. Otherwise
                each of them balances again what the other one has balanced.
              - Only packets that come in by Ethernet get a mark then.
            type: list
            elements: str
      scheduler:
        description: The IPVS scheduler, for instance V(wlc), V(wrr), V(sh) or V(mh). The kernel must have it.
        type: str
        default: wlc
      scheduler_flags:
        description:
          - Flags of the scheduler.
          - The generic names V(flag-1), V(flag-2) and V(flag-3) fit every scheduler; the others only their own.
        type: list
        elements: str
        choices: [sh-fallback, sh-port, flag-3, mh-fallback, mh-port, flag-1, flag-2]
        default: []
      persistence_timeout:
        description:
          - For how many seconds a client stays with its real server, across all ports of the mark; at most 2678400.
          - V(0) turns persistence off. Then the ports of one client may well go to different real servers.
        type: int
        default: 0
      persistence_netmask:
        description:
          - IPv4 clients with this prefix in common count as one client. A dotted mask is accepted too.
          - Without persistence it means nothing.
        type: raw
        default: 32
      persistence_netmask6:
        description: The same for IPv6 clients.
        type: int
        default: 128
      persistence_engine:
        description: What recognises a client, if not its address. V(sip) takes the SIP call ID.
        type: str
        choices: [sip]
      one_packet:
        description: Schedule every single UDP packet anew.
        type: bool
        default: false
      forward_method:
        description:
          - How packets reach the real servers, unless a real server says otherwise.
          - V(masquerade) is NAT, V(direct) is direct routing, V(tunnel) is encapsulation.
        type: str
        choices: [masquerade, direct, tunnel]
        default: direct
      helper:
        description:
          - What the protocol needs beside the mark. V(ftp) is for FTP, whose control connection names the address and
            port of a data connection.
          - It demands a O(services[].persistence_timeout), whatever the forwarding method, and the tcp ports 20 and 21
            among the ports; by address the port 21 alone, as the kernel finds the others itself. By mark the passive
            ports of the real servers belong there as well, for instance V(10000:10100).
          - With masquerading it needs exactly one destination address of a family. The data connections of active FTP
            then come from that address, by a rule for each real server in the chain C(LVS-SNAT) of table C(nat), which
            is entered by one jump from C(POSTROUTING). These rules also make the kernel track connections. Without that
            the helper C(ip_vs_ftp) leaves the real server's own address in replies to C(PASV).
          - The module C(ip_vs_ftp) must be loaded, which the role C(lvs.fleet.lvs_router) sees to.
        type: str
        choices: [ftp]
      real_servers:
        description:
          - The real servers. Each belongs to the half of the service that has its own family.
          - They get the packets on the port that the client asked for, unless they have a
            O(services[].real_servers[].port).
        type: list
        elements: dict
        default: []
        suboptions:
          address:
            description: The address of the real server.
            type: str
            required: true
          port:
            description:
              - The port that the real server listens on, if it is another one than that of the service. Only with the
                forwarding method V(masquerade), and only by address, where the traffic has one port.
              - By mark the kernel would send all ports of the service to it, or with persistence none.
            type: int
          weight:
            description:
              - Its share, 0 to 65535. With V(0) it keeps its connections, and new clients go to other real servers.
              - A persistent client stays. Its new connections go to the real server with V(0), too, for as long as the
                client comes back in time. C(net.ipv4.vs.expire_quiescent_template=1) sends them elsewhere.
              - The schedulers V(dh), and V(sh) and V(mh) without their fallback flag, refuse some clients then.
            type: int
            default: 1
          forward_method:
            description: How packets reach this real server. The default is that of the service.
            type: str
            choices: [masquerade, direct, tunnel]
          upper_threshold:
            description: From this many connections on it gets no new ones; V(0) is no limit.
            type: int
            default: 0
          lower_threshold:
            description:
              - Below this many connections it gets new ones again; V(0) leaves it to the kernel, which takes three
                quarters of O(services[].real_servers[].upper_threshold).
            type: int
            default: 0
          tunnel_type:
            description: The encapsulation, V(ipip) unless said otherwise. Only with the forwarding method V(tunnel).
            type: str
            choices: [ipip, gue, gre]
          tunnel_port:
            description: The UDP port of V(gue), required there.
            type: int
          tunnel_checksum:
            description: The checksum of V(gue) and V(gre), V(nocsum) unless said otherwise. V(remcsum) is for V(gue).
            type: str
            choices: [nocsum, csum, remcsum]
  state:
    description:
      - V(present) makes the services what they are declared to be.
      - V(absent) removes the rules with their names, the IPVS services of the marks of these rules, and those of the
        marks given here, in both families. Nothing but O(services[].name) and O(services[].fwmark) is needed for that.
        Rules of M(lvs.fleet.iptables_mark) stay, and so do the IPVS services of their marks.
    type: str
    choices: [present, absent]
    default: present
  purge:
    description:
      - What happens, with O(state=present), to services that are not declared.
      - V(owned) removes what is ours. A service is ours if a rule that this module wrote in C(LVS-MARK) gives its mark,
        and no rule of M(lvs.fleet.iptables_mark) does.
      - V(none) removes nothing.
      - V(all) removes every other service from the IPVS table and every other rule from C(LVS-MARK), whoever made them,
        M(lvs.fleet.iptables_mark) included; from the tables of nftables every other element.
    type: str
    choices: [none, owned, all]
    default: owned
  max_removals:
    description:
      - How many percent of the services of this module one run may remove, 0 to 100, with O(state=present). A run that
        would remove more fails before it changes anything, in check mode too, and its message names the services.
      - It is a guard against a list that got shorter by accident. Ansible does not merge lists of several variable
        files; one replaces the other.
      - A service counts if a rule that this module wrote gives its mark, and there is an IPVS service for the mark; by
        address, if there is an IPVS service of it that is on record. Both families and all addresses of a service count
        once. A new name or a new mark is no removal.
      - V(0) allows no removal at all. From V(1) on one of several services may go, and only with V(100) all of them.
      - The role C(lvs.fleet.lvs_router) has a default of its own, 50.
    type: int
    default: 100
  marking:
    description:
      - What gives the packets their marks.
      - V(iptables) has one rule in C(LVS-MARK) for each destination, protocol, source and 15 ports, and each packet
        passes all of them.
      - V(nftables) has a table C(lvs-mark) for each family, in which a packet finds its mark by one lookup, however
        many services there are. Only traffic with O(services[].traffic[].source),
        O(services[].traffic[].in_interface) or O(services[].traffic[].exclude_mac) takes a rule. It needs C(nft) 0.9.4
        and Linux 5.6 or later.
      - Where two services match the same packet, the mark of the later one counts with both. With V(nftables) and a
        O(purge) that leaves other services alone, the services of this run count before those.
      - Going from one to the other is one run, in which no packet is without its mark. The rules that
        O(services[].helper) needs stay with iptables.
    type: str
    choices: [iptables, nftables]
    default: iptables
  adopt:
    description:
      - Whether to take over, with O(state=present), MARK rules that somebody put into C(PREROUTING) by hand and that do
        nothing but what the declared ones do. They are deleted in the transaction that makes ours.
      - A rule is taken over if the declared rules of its mark see every packet that it sees. Its comment does not
        matter.
      - Rules of M(lvs.fleet.iptables_mark) that are declared here as they are become rules of this module.
      - If our jump is not there yet, it comes to the place of the last such rule.
      - If another rule between such a rule and our jump may see the same packets, and may change their mark or end the
        chain, the module fails before it changes anything, and its message names both rules.
      - The IPVS half needs no adoption. A service by a declared mark or address is edited in place, whoever made it.
      - Only with O(marking=iptables). Take the rules over first, and change O(marking) then.
    type: bool
    default: false
author:
  - lvs.fleet contributors (@lvs-fleet)
seealso:
  - module: lvs.fleet.iptables_mark
  - module: lvs.fleet.ipvs_service
  - module: lvs.fleet.lvs_info
"""

EXAMPLES = r"""
- name: Balance HTTP and HTTPS together, a client always to the same real server
  lvs.fleet.lvs_service:
    services:
      - name: web
        fwmark: 80
        traffic:
          - destination: [192.0.2.10]
            protocol: tcp
            ports: [80, 443]
        persistence_timeout: 300
        real_servers:
          - {address: 10.0.0.11, weight: 10}
          - {address: 10.0.0.12, weight: 10}

- name: Balance mail by address, and an application that listens on another port
  lvs.fleet.lvs_service:
    services:
      - name: mail
        traffic:
          - destination: [192.0.2.11, "2001:db8:0:10::11"]
            protocol: tcp
            ports: [25, 587]
        real_servers:
          - {address: 10.0.0.21}
          - {address: "2001:db8:0:1::21"}
      - name: app
        traffic:
          - {destination: 192.0.2.12, protocol: tcp, ports: 80}
        forward_method: masquerade
        real_servers:
          - {address: 10.0.0.31, port: 8080}

- name: Take the rules and the service over that somebody made by hand
  lvs.fleet.lvs_service:
    services: "{{ lvs_services }}"
    adopt: true

- name: Give thousands of services their marks in constant time
  lvs.fleet.lvs_service:
    services: "{{ lvs_services }}"
    marking: nftables

- name: Take a service away, and leave the others alone
  lvs.fleet.lvs_service:
    services:
      - {name: web}
    state: absent
"""

RETURN = r"""
operations:
  description: What was done, or would be done in check mode, in order and in the words of ipvsadm and iptables.
  returned: success
  type: list
  elements: str
  sample:
    - ipvsadm -A -f 80 -s wlc -p 300
    - ipvsadm -a -f 80 -r 10.0.0.11 -g -w 10
    - iptables -t mangle -N LVS-MARK
changes:
  description:
    - The same in words, one sentence for each thing that changes; it begins with the name of the service.
    - Both families of a service share a sentence.
  returned: success
  type: list
  elements: str
  sample:
    - "web: weight of 10.0.0.11 10 -> 20"
    - "web: real server 10.0.0.13 added, weight 10"
"""

import gc
from dataclasses import replace
from typing import Any

from ansible_collections.lvs.fleet.plugins.module_utils._declared.doubts import service_doubts
from ansible_collections.lvs.fleet.plugins.module_utils._declared.params import virtual_services
from ansible_collections.lvs.fleet.plugins.module_utils._engine import converge, invocation
from ansible_collections.lvs.fleet.plugins.module_utils._errors import LvsError, ValidationError
from ansible_collections.lvs.fleet.plugins.module_utils._guard import check_removals
from ansible_collections.lvs.fleet.plugins.module_utils._marks.iptables import mark_chains, record_chains, snat_chains
from ansible_collections.lvs.fleet.plugins.module_utils._marks.ownership import shared
from ansible_collections.lvs.fleet.plugins.module_utils._model import IPTABLES, MARKINGS, Declaration, RouterState
from ansible_collections.lvs.fleet.plugins.module_utils._module import Module
from ansible_collections.lvs.fleet.plugins.module_utils._plan import virtual_services_absent, virtual_services_target
from ansible_collections.lvs.fleet.plugins.module_utils._router import Router


def router_for(declared: Declaration) -> Router:
    """The router with table nat, which only FTP needs: where it is not readable, the others must go on."""
    adopting = declared.rules if declared.adopt else ()
    chains = (*record_chains(), *mark_chains())
    if declared.snat_rules:
        return Router((*snat_chains(), *chains), ipvs=True, adopting=adopting, nftables=True)
    return Router(chains, ipvs=True, if_readable=snat_chains(), adopting=adopting, nftables=True)


def declaration(params: dict[str, Any]) -> Declaration:
    """What the options ask for. Raises ValidationError."""
    absent = params["state"] == "absent"
    declared = virtual_services(params["services"], absent=absent)
    if params["adopt"] and params["marking"] != IPTABLES:
        raise ValidationError(["adopt: is for marking iptables: take the rules over first, and change marking then"])
    if not 0 <= params["max_removals"] <= 100:
        raise ValidationError([f"max_removals: {params['max_removals']} is not a percentage (0-100)"])
    return replace(declared, marking=params["marking"], adopt=params["adopt"] and not absent)


def main() -> None:
    # Thousands of values and hardly a cycle among them: looking for cycles would take a fifth of the time.
    gc.disable()
    module = Module(
        argument_spec={
            "services": {"type": "list", "elements": "dict", "required": True},
            "state": {"choices": ["present", "absent"], "default": "present"},
            "purge": {"choices": ["none", "owned", "all"], "default": "owned"},
            "marking": {"choices": list(MARKINGS), "default": IPTABLES},
            "adopt": {"type": "bool", "default": False},
            "max_removals": {"type": "int", "default": 100},
            "lock_timeout": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    absent = module.params["state"] == "absent"

    def target(current: RouterState) -> RouterState:
        if absent:
            return virtual_services_absent(current, declared)
        wanted = virtual_services_target(current, declared, module.params["purge"])
        check_removals(current, wanted, declared, module.params["max_removals"])
        return wanted

    try:
        declared = declaration(module.params)
        for doubt in service_doubts(declared) if not absent else []:
            module.warn(doubt)
        with router_for(declared) as router:
            outcome = converge(router, target, module.check_mode, module.params["lock_timeout"], module.warn)
    except (LvsError, OSError) as error:
        module.fail_json(msg=str(error))
    for warning in shared(outcome.after, declared):
        module.warn(warning)
    module.exit_json(invocation=invocation(module.params), **outcome.result(module._diff))


if __name__ == "__main__":
    main()
