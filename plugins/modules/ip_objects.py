#!/usr/bin/python
# Copyright: lvs.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ip_objects
short_description: Keep addresses, tunnel devices, policy rules and routes, now and for the next boot
version_added: 0.1.0
description:
  - Makes the objects of C(ip) what a list of commands says, and keeps the commands in a file.
  - The file is the record of what this module has set, and what a unit runs at boot. Each line is the arguments of one
    C(ip) command, so C(xargs -r -L 1 ip <FILE) brings everything back and does no harm on a machine that has it.
    C(ip -batch) does not take such a file, because it knows no family of a single line.
  - What is wanted and there already without being on record is somebody else's. It is left alone, neither recorded nor
    ever removed.
  - Refuses a record that is a link or belongs to another user than root, and a folder in which others can write.
  - What is on record and not wanted any more is removed, after everything new was added.
extends_documentation_fragment:
  - lvs.fleet.attributes
  - lvs.fleet.writer
options:
  path:
    description: The file, which only root can read. There need not be one; its folder is made if it is missing.
    type: path
    required: true
  commands:
    description:
      - The commands that make the objects, each as the arguments of C(ip). For boot they are kept in this order.
      - "C(address add ADDRESS/LENGTH dev DEVICE [nodad] [preferred_lft 0])"
      - "C(link add NAME up type ipip|gre|ip6gre local ADDRESS [icsum]) and
        C(link add NAME up type ip6tnl mode ip6ip6 local ADDRESS), tunnels with any other end"
      - "C([-6] fou add port PORT gue)"
      - "C([-6] rule add [from ADDRESS] [to ADDRESS] [fwmark MARK] lookup main|TABLE [suppress_prefixlength 0]
        priority PRIORITY)"
      - "C([-6] route add local default dev lo table TABLE) and C([-6] route add default via ADDRESS table TABLE)"
      - Anything else is refused. The family may be left out where an address tells it.
    type: list
    elements: str
    required: true
notes:
  - Needs root, and on the machine nothing but Python 3.8 or later and C(ip).
author:
  - lvs.fleet contributors (@lvs-fleet)
seealso:
  - module: lvs.fleet.boot_files
"""

EXAMPLES = r"""
- name: Put a virtual address on the interface of an LVS router
  lvs.fleet.ip_objects:
    path: /etc/lvs/vips
    commands:
      - address add 192.0.2.10/32 dev eth0
      - address add 2001:db8:0:10::10/128 dev eth0 nodad

- name: Let packets with a mark in without owning the address
  lvs.fleet.ip_objects:
    path: /etc/lvs/vips
    commands:
      - route add local default dev lo table 100
      - rule add fwmark 80 lookup 100 priority 100

- name: Receive from tunnels on a real server
  lvs.fleet.ip_objects:
    path: /etc/lvs/real-server
    commands:
      - link add lvs-ipip up type ipip local 10.0.0.11
      - address add 192.0.2.10/32 dev lo

- name: Take away whatever is on record
  lvs.fleet.ip_objects:
    path: /etc/lvs/vips
    commands: []
"""

RETURN = r"""
operations:
  description: What was done, or would be done in check mode, in order.
  returned: success
  type: list
  elements: str
  sample:
    - ip address add 192.0.2.10/32 dev eth0
    - ip address delete 192.0.2.9/32 dev eth0
    - write /etc/lvs/vips
"""

from ansible_collections.lvs.fleet.plugins.module_utils import _host as host
from ansible_collections.lvs.fleet.plugins.module_utils._errors import LvsError
from ansible_collections.lvs.fleet.plugins.module_utils._ip.machine import converge
from ansible_collections.lvs.fleet.plugins.module_utils._module import Module


def main() -> None:
    module = Module(
        argument_spec={
            "path": {"type": "path", "required": True},
            "commands": {"type": "list", "elements": "str", "required": True},
            "lock_timeout": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    given = module.params
    try:
        host.expect_root()
        done = converge(given["path"], given["commands"], module.check_mode, given["lock_timeout"], module.warn)
    except (LvsError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**done)


if __name__ == "__main__":
    main()
