#!/usr/bin/python
# Copyright: lvs.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: iptables_mark
short_description: Manage the iptables rules that give packets a firewall mark
version_added: 0.1.0
description:
  - Manages MARK rules in a chain of their own in table C(mangle), for services whose IPVS half somebody else manages, a
    health-checking daemon for instance. M(lvs.fleet.lvs_service) manages both halves.
  - The chain is entered by one jump from C(PREROUTING), and changes in one transaction per family. Every rule has the
    comment C(lvs:NAME), and a second one, C(iptables_mark), which says what wrote it. No other rule is touched, be it
    in this chain or another one.
  - M(lvs.fleet.lvs_service) has its rules in the same chain. Neither module changes or removes what the other wrote.
    Give each of them names and marks of its own; a name or mark that both have is told in a warning. A rule that
    M(lvs.fleet.lvs_service) has already is not made a second time.
  - Earlier versions wrote no second comment. What they wrote belongs to M(lvs.fleet.lvs_service). Take it over once
    with O(adopt), declared as it is.
  - The last rule takes the chain and the jump with it.
extends_documentation_fragment:
  - lvs.fleet.attributes
  - lvs.fleet.writer
notes:
  - Needs root, and on the router nothing but Python 3.8 or later and C(iptables).
  - Keeps nothing for the next boot. C(lvs-restore.service) of the role C(lvs.fleet.lvs_router) leaves the rules alone;
    after a boot they are there again when this module has run, or when something restores them from a file that was
    saved with them, such as C(netfilter-persistent).
options:
  rules:
    description:
      - The rules, in their order; a later one overrides an earlier one that matches the same packet.
      - Several items may have the same name. Together they are all the rules of that name.
      - A key without a value, which is null in YAML, is an error at any depth. Leave such a key out.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description:
          - The label of the rules, which becomes their comment.
          - A letter or digit, then at most 62 letters, digits, C(_), C(.) or C(-).
        type: str
        required: true
      mark:
        description: The mark to set, 1 to 2147483647. With O(state=absent) it may be left out.
        type: int
      mask:
        description:
          - The bits of the packet's mark to set; the others keep their value.
          - IPVS compares all 32 bits. A mask is for those who know that the other bits are zero.
        type: int
        default: 4294967295
      destination:
        description: Addresses or networks that the packets go to. With O(state=absent) it may be left out.
        type: list
        elements: str
      protocol:
        description:
          - One or several of V(tcp), V(udp) and V(sctp). Required where there are ports.
          - Without it all packets to the destination get the mark. IPVS balances those of the three protocols.
        type: list
        elements: str
        choices: [tcp, udp, sctp]
      ports:
        description:
          - Destination ports, each a number or a range such as V(10000:20000). Leave it out for every port.
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
          - Write those of the other LVS routers here where they are real servers of the service as well. Otherwise each
            of them balances again what the other one has balanced.
          - Only packets that come in by Ethernet get a mark then.
        type: list
        elements: str
  chain:
    description: The chain of the rules, at most 28 letters, digits, C(_) or C(-).
    type: str
    default: LVS-MARK
  state:
    description:
      - V(present) makes the rules of the given names what they are declared to be.
      - V(absent) removes all rules of the given names that this module wrote.
    type: str
    choices: [present, absent]
    default: present
  purge:
    description: Whether to remove, with O(state=present), the rules of other names that this module wrote, too.
    type: bool
    default: false
  adopt:
    description:
      - Whether to take over, with O(state=present), MARK rules that somebody put into C(PREROUTING) by hand and that do
        nothing but what the declared ones do, as O(lvs.fleet.lvs_service#module:adopt) says.
      - Rules that M(lvs.fleet.lvs_service) wrote and that are declared here as they are become rules of this module.
    type: bool
    default: false
author:
  - lvs.fleet contributors (@lvs-fleet)
seealso:
  - module: lvs.fleet.lvs_service
  - module: lvs.fleet.lvs_info
"""

EXAMPLES = r"""
- name: Mark the packets of a service that keepalived balances
  lvs.fleet.iptables_mark:
    rules:
      - name: web
        mark: 80
        destination: [192.0.2.10, "2001:db8::10"]
        protocol: tcp
        ports: [80, 443]

- name: Mark them no more
  lvs.fleet.iptables_mark:
    rules:
      - name: web
    state: absent
"""

RETURN = r"""
operations:
  description: What was done, or would be done in check mode, in order and in the words of iptables.
  returned: success
  type: list
  elements: str
  sample:
    - iptables -t mangle -N LVS-MARK
    - iptables -t mangle -A PREROUTING -j LVS-MARK
changes:
  description:
    - The same in words, one sentence for each thing that changes; it begins with the name of the service.
    - Both families of a service share a sentence.
  returned: success
  type: list
  elements: str
  sample:
    - "mail: ports of 192.0.2.10 tcp 25 -> 25,587"
"""

import gc
from dataclasses import replace

from ansible_collections.lvs.fleet.plugins.module_utils._declared.doubts import mark_doubts
from ansible_collections.lvs.fleet.plugins.module_utils._declared.params import chain_of, marks
from ansible_collections.lvs.fleet.plugins.module_utils._engine import converge, invocation
from ansible_collections.lvs.fleet.plugins.module_utils._errors import LvsError
from ansible_collections.lvs.fleet.plugins.module_utils._marks.iptables import DEFAULT_CHAIN, mark_chains
from ansible_collections.lvs.fleet.plugins.module_utils._marks.ownership import shared
from ansible_collections.lvs.fleet.plugins.module_utils._model import RouterState
from ansible_collections.lvs.fleet.plugins.module_utils._module import Module
from ansible_collections.lvs.fleet.plugins.module_utils._plan import marks_absent, marks_target
from ansible_collections.lvs.fleet.plugins.module_utils._router import Router


def main() -> None:
    # Thousands of values and hardly a cycle among them: looking for cycles would take a fifth of the time.
    gc.disable()
    module = Module(
        argument_spec={
            "rules": {"type": "list", "elements": "dict", "required": True},
            "chain": {"default": DEFAULT_CHAIN},
            "state": {"choices": ["present", "absent"], "default": "present"},
            "purge": {"type": "bool", "default": False},
            "adopt": {"type": "bool", "default": False},
            "lock_timeout": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    absent = module.params["state"] == "absent"

    def target(current: RouterState) -> RouterState:
        if absent:
            return marks_absent(current, declared)
        return marks_target(current, declared, module.params["purge"])

    try:
        declared = marks(module.params["rules"], absent=absent)
        for doubt in mark_doubts(declared) if not absent else []:
            module.warn(doubt)
        declared = replace(declared, adopt=module.params["adopt"] and not absent)
        adopting = declared.rules if declared.adopt else ()
        with Router(mark_chains(chain_of(module.params["chain"])), ipvs=False, adopting=adopting) as router:
            outcome = converge(router, target, module.check_mode, module.params["lock_timeout"], module.warn)
    except (LvsError, OSError) as error:
        module.fail_json(msg=str(error))
    for warning in shared(outcome.after, declared):
        module.warn(warning)
    module.exit_json(invocation=invocation(module.params), **outcome.result(module._diff))


if __name__ == "__main__":
    main()
