#!/usr/bin/python
# Copyright: lvs.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: machine_info
short_description: Read at once what has to be known of a machine before it is changed
version_added: 0.1.0
description:
  - Tells the distribution's family, which commands are missing, the kernel's settings, which paths are there, and which
    firewalls empty whole tables.
  - A role that asks all of this in one go has to do nothing else on a machine that is as it should be. That counts on a
    fleet, where gathering facts, looking at packages and reading settings would be a connection each.
extends_documentation_fragment:
  - lvs.fleet.attributes
attributes:
  diff_mode:
    support: N/A
    details: There is nothing to change.
notes:
  - Needs nothing but Python 3.8 or later, and not even root, but for settings and paths that only root may see.
options:
  commands:
    description: Commands that should be installed. The folders C(sbin) are searched as well.
    type: list
    elements: str
    default: []
  settings:
    description:
      - Settings of the kernel, named as C(sysctl) names them, as in V(net.ipv4.ip_forward).
      - With slashes where a part of the name may hold dots, as in V(net/ipv4/conf/eth0.5/send_redirects).
    type: list
    elements: str
    default: []
  paths:
    description: Files, folders or links that may be there.
    type: list
    elements: path
    default: []
author:
  - lvs.fleet contributors (@lvs-fleet)
seealso:
  - module: lvs.fleet.lvs_info
"""

EXAMPLES = r"""
- name: Look at the router
  lvs.fleet.machine_info:
    commands: [ipvsadm, iptables]
    settings: [net.ipv4.ip_forward]
  register: machine

- name: Install what is missing
  ansible.builtin.package:
    name: [ipvsadm, iptables]
    state: present
  when: machine.missing_commands != []
"""

RETURN = r"""
os_family:
  description:
    - The family of the distribution, by what C(/etc/os-release) calls itself and is like.
    - One of V(Debian), V(RedHat) and V(other), whatever the machine calls itself.
  returned: success
  type: str
  sample: Debian
os_version:
  description: The version of the distribution, numbers with dots between them. Empty if it has none.
  returned: success
  type: str
  sample: "12"
missing_commands:
  description: The commands that are not installed.
  returned: success
  type: list
  elements: str
  sample: [ipvsadm]
settings:
  description: The values of the settings, by their names as they were given. What the kernel does not have is left out.
  returned: success
  type: dict
  sample: {net.ipv4.ip_forward: "1"}
paths:
  description: Those of the paths that are there.
  returned: success
  type: list
  elements: str
  sample: [/usr/sbin/ufw]
flushing_units:
  description:
    - Firewalls that start at boot or are active, and that remove all rules of iptables when they start, reload or stop,
      whoever made the rules.
    - V(nftables.service) is among them. It removes the tables of nftables as well.
    - Of C(firewalld), C(shorewall), C(ferm), C(firehol), C(arno-iptables-firewall) and C(nftables).
  returned: success
  type: list
  elements: str
  sample: [firewalld.service]
"""

from ansible_collections.lvs.fleet.plugins.module_utils import _host as host
from ansible_collections.lvs.fleet.plugins.module_utils._errors import LvsError
from ansible_collections.lvs.fleet.plugins.module_utils._module import Module
from ansible_collections.lvs.fleet.plugins.module_utils._report.machine import facts


def main() -> None:
    module = Module(
        argument_spec={
            "commands": {"type": "list", "elements": "str", "default": []},
            "settings": {"type": "list", "elements": "str", "default": []},
            "paths": {"type": "list", "elements": "path", "default": []},
        },
        supports_check_mode=True,
    )
    given = module.params
    try:
        # Not for what is read here, but for all that the roles do next.
        host.expect_root()
        result = facts(given["commands"], given["settings"], given["paths"])
    except (LvsError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
