#!/usr/bin/python
# Copyright: lvs.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: report_file
short_description: Write a report on the controller, or remove an older one
version_added: 0.1.0
description:
  - Writes a file that only its owner can read, or removes it. A file that is there is not written to, but replaced.
  - Refuses a path at which there is anything but a regular file. So nobody who can put a link or a folder there decides
    what is overwritten or removed.
extends_documentation_fragment:
  - lvs.fleet.attributes
attributes:
  diff_mode:
    support: none
    details: A report is new each time.
options:
  path:
    description: The file, from the root. Its folder has to be there.
    type: str
    required: true
  content:
    description: What the file is to hold. Without it the file is removed.
    type: str
author:
  - lvs.fleet contributors (@lvs-fleet)
seealso:
  - ref: ansible_collections.lvs.fleet.audit_filter
    description: What the playbook C(lvs.fleet.audit) reports.
"""

EXAMPLES = r"""
- name: Write a report
  lvs.fleet.report_file:
    path: /root/audit.json
    content: "{{ ansible_play_hosts_all | lvs.fleet.audit(hostvars) | to_nice_json }}"
  delegate_to: localhost
  run_once: true
"""

RETURN = r""" # """

from ansible_collections.lvs.fleet.plugins.module_utils._errors import LvsError
from ansible_collections.lvs.fleet.plugins.module_utils._module import Module
from ansible_collections.lvs.fleet.plugins.module_utils._report_file import write_report


def main() -> None:
    module = Module(
        argument_spec={"path": {"type": "str", "required": True}, "content": {"type": "str"}},
        supports_check_mode=True,
    )
    given = module.params
    try:
        changed = write_report(given["path"], given["content"], module.check_mode)
    except (LvsError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=changed)


if __name__ == "__main__":
    main()
