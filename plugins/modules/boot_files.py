#!/usr/bin/python
# Copyright: lvs.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: boot_files
short_description: Keep the files that bring an LVS router back after a reboot
version_added: 0.1.0
description:
  - Compares a set of small files with what they should hold, and writes those that differ, each atomically.
  - Keeps its own part, and only that, in files that others write, too.
  - Enables systemd units by the link that C(systemctl enable) makes, so that check mode can tell about units to come.
  - Makes a file of ours anew that belongs to another user or group than root, or has a link in its place. What the link
    leads to is neither read nor changed.
  - Gives C(/etc/lvs), which is ours as a whole, the mode 0700. Other folders that are there keep their modes.
  - Refuses folders that are links, belong to another user, or in which others can write.
  - Removes only when everything that should be there is, so that a run that dies half way leaves one way to come back.
  - Removes temporary files (C(.lvs-) and eight characters) that a run which was killed has left beside them.
  - One run of this module takes the place of a dozen file tasks, which counts on a fleet.
extends_documentation_fragment:
  - lvs.fleet.attributes
  - lvs.fleet.writer
notes:
  - Needs root, and on the router nothing but Python 3.8 or later.
options:
  files:
    description: The files, or our part of them. Missing folders are made, for root alone.
    type: list
    elements: dict
    required: true
    suboptions:
      path:
        description: Where the file is, from the root.
        type: path
        required: true
      content:
        description: The text that it holds, or our part of it. An empty part is taken out.
        type: raw
        required: true
      mode:
        description:
          - Its permissions, as an octal number in quotes.
          - With O(files[].part) they, the owner and the SELinux label of a file that is there stay as they are.
        type: str
        default: "0600"
      part:
        description:
          - The kind of a file in which only a part is ours. Other lines stay as they are, to the byte. A file that was
            not there before goes with our part, if nobody else has written to it.
          - V(iptables) is a text for C(iptables-restore). Chains that O(files[].content) declares are ours, and so are
            C(LVS-MARK) and C(LVS-SERVICE) in table mangle and C(LVS-SNAT) in table nat, with their rules and jumps to
            them, but for rules
            of M(lvs.fleet.iptables_mark). They are put into the section that the table has already, rules behind the
            others, because C(iptables-restore) empties a table each time that it comes to a section of it.
          - V(ipvsadm) is a text for C(ipvsadm -R), with our part as a block at the end. Services of the block are
            dropped elsewhere in the file; C(ipvsadm-save) puts them there.
          - V(settings) is a file of shell variables, with our part as a block at the end, where it wins.
        type: str
        choices: [iptables, ipvsadm, settings]
  enabled_units:
    description: Units in C(/etc/systemd/system) that C(multi-user.target) pulls in at boot.
    type: list
    elements: str
    default: []
  disabled_units:
    description: Units that it does not pull in.
    type: list
    elements: str
    default: []
  absent:
    description: Files that should not be there, removed last and in this order. A folder goes only if it is empty then.
    type: list
    elements: path
    default: []
author:
  - lvs.fleet contributors (@lvs-fleet)
seealso:
  - module: lvs.fleet.lvs_service
"""

EXAMPLES = r"""
- name: Keep the virtual services for the next boot
  lvs.fleet.boot_files:
    files:
      - path: /etc/lvs/ipvs.rules
        content: "{{ lvs_services | lvs.fleet.ipvs_rules }}"
      - path: /etc/lvs/marks.v4
        content: "{{ lvs_services | lvs.fleet.marks('ipv4') }}"

- name: Keep the IPv4 marks in the file that netfilter-persistent restores, instead
  lvs.fleet.boot_files:
    files:
      - path: /etc/iptables/rules.v4
        part: iptables
        content: "{{ lvs_services | lvs.fleet.marks('ipv4') }}"
    absent: [/etc/lvs/marks.v4]
"""

RETURN = r"""
operations:
  description: What was done, or would be done in check mode, in order.
  returned: success
  type: list
  elements: str
  sample:
    - write /etc/lvs/ipvs.rules
    - chmod 0600 /etc/lvs/marks.v4
    - systemctl enable lvs-restore.service
    - remove /etc/lvs/marks.v6
"""

from ansible_collections.lvs.fleet.plugins.module_utils import _host as host
from ansible_collections.lvs.fleet.plugins.module_utils._boot.machine import converge
from ansible_collections.lvs.fleet.plugins.module_utils._boot.parts import KINDS
from ansible_collections.lvs.fleet.plugins.module_utils._errors import LvsError
from ansible_collections.lvs.fleet.plugins.module_utils._module import Module


def main() -> None:
    module = Module(
        argument_spec={
            "files": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "path": {"type": "path", "required": True},
                    # Not str, which makes an empty text of null: that would empty a file, or take our part out of it.
                    "content": {"type": "raw", "required": True},
                    "mode": {"type": "str", "default": "0600"},
                    "part": {"type": "str", "choices": list(KINDS)},
                },
            },
            "enabled_units": {"type": "list", "elements": "str", "default": []},
            "disabled_units": {"type": "list", "elements": "str", "default": []},
            "absent": {"type": "list", "elements": "path", "default": []},
            "lock_timeout": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    try:
        host.expect_root()
        result = converge(module.params, module.check_mode, module.warn)
    except (LvsError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
