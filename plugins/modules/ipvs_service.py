#!/usr/bin/python
# Copyright: lvs.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ipvs_service
short_description: Manage virtual services and their real servers in the kernel's IPVS table
version_added: 0.1.0
description:
  - Manages the IPVS table alone, services by firewall mark as well as by protocol, address and port.
    M(lvs.fleet.lvs_service) manages a service by mark together with the rules that give the mark.
  - Speaks to the kernel directly and does not need C(ipvsadm). What is there already is edited in place, never deleted
    and added again, and its connections go on.
extends_documentation_fragment:
  - lvs.fleet.attributes
  - lvs.fleet.writer
notes:
  - Needs root, and on the router nothing but Python 3.8 or later and a kernel with IPVS.
options:
  services:
    description:
      - The virtual services. What identifies one is O(services[].fwmark) with O(services[].family), or
        O(services[].protocol), O(services[].address) and O(services[].port).
      - A key without a value, which is null in YAML, is an error at any depth. Leave such a key out.
    type: list
    elements: dict
    required: true
    suboptions:
      fwmark:
        description: The firewall mark, 1 to 2147483647.
        type: int
      family:
        description:
          - The family of a service by mark, V(ipv4) unless said otherwise.
          - A service by address has the family of its address.
        type: str
        choices: [ipv4, ipv6]
      protocol:
        description: The protocol of a service by address.
        type: str
        choices: [tcp, udp, sctp]
      address:
        description: The virtual address of a service by address.
        type: str
      port:
        description: The port of a service by address. V(0) stands for every port, and needs persistence.
        type: int
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
      real_servers:
        description:
          - The real servers, all of them. What is not listed is removed from the service.
          - Only through a tunnel may they be of another family than the service.
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
              - The port on the real server. The default is that of the service, and only V(masquerade) allows another.
              - With a mark it is V(0), the port that the client asked for, and anything else does harm.
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
      - V(absent) removes them; of their options only those that identify them count.
    type: str
    choices: [present, absent]
    default: present
  purge:
    description: Whether to remove, with O(state=present), every other service from the table, whoever made it.
    type: bool
    default: false
author:
  - lvs.fleet contributors (@lvs-fleet)
seealso:
  - module: lvs.fleet.lvs_service
  - module: lvs.fleet.lvs_info
"""

EXAMPLES = r"""
- name: Balance DNS by address
  lvs.fleet.ipvs_service:
    services:
      - protocol: udp
        address: 192.0.2.53
        port: 53
        scheduler: rr
        one_packet: true
        real_servers:
          - {address: 10.0.0.11}
          - {address: 10.0.0.12}

- name: Balance by mark in IPv6
  lvs.fleet.ipvs_service:
    services:
      - fwmark: 80
        family: ipv6
        persistence_timeout: 300
        persistence_netmask6: 64
        real_servers:
          - {address: "2001:db8:0:1::11", weight: 10}
"""

RETURN = r"""
operations:
  description: What was done, or would be done in check mode, in order and in the words of ipvsadm.
  returned: success
  type: list
  elements: str
  sample:
    - ipvsadm -A -u 192.0.2.53:53 -s rr -o
    - ipvsadm -a -u 192.0.2.53:53 -r 10.0.0.11:53 -g -w 1
changes:
  description:
    - The same in words, one sentence for each thing that changes; it begins with the name of the service.
    - Both families of a service share a sentence.
  returned: success
  type: list
  elements: str
  sample:
    - "mark 80: scheduler wlc -> rr"
"""

import gc

from ansible_collections.lvs.fleet.plugins.module_utils._declared.doubts import ipvs_doubts
from ansible_collections.lvs.fleet.plugins.module_utils._declared.params import ipvs_services
from ansible_collections.lvs.fleet.plugins.module_utils._engine import converge, invocation
from ansible_collections.lvs.fleet.plugins.module_utils._errors import LvsError
from ansible_collections.lvs.fleet.plugins.module_utils._model import RouterState
from ansible_collections.lvs.fleet.plugins.module_utils._module import Module
from ansible_collections.lvs.fleet.plugins.module_utils._plan import pools_absent, pools_target
from ansible_collections.lvs.fleet.plugins.module_utils._router import Router


def main() -> None:
    # Thousands of values and hardly a cycle among them: looking for cycles would take a fifth of the time.
    gc.disable()
    module = Module(
        argument_spec={
            "services": {"type": "list", "elements": "dict", "required": True},
            "state": {"choices": ["present", "absent"], "default": "present"},
            "purge": {"type": "bool", "default": False},
            "lock_timeout": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    absent = module.params["state"] == "absent"

    def target(current: RouterState) -> RouterState:
        return pools_absent(current, declared) if absent else pools_target(current, declared, module.params["purge"])

    try:
        declared = ipvs_services(module.params["services"], absent=absent)
        for doubt in ipvs_doubts(declared) if not absent else []:
            module.warn(doubt)
        with Router((), ipvs=True) as router:
            outcome = converge(router, target, module.check_mode, module.params["lock_timeout"], module.warn)
    except (LvsError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(invocation=invocation(module.params), **outcome.result(module._diff))


if __name__ == "__main__":
    main()
