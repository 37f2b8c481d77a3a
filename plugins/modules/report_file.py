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

import os
import stat

from ansible_collections.lvs.fleet.plugins.module_utils import _host as host
from ansible_collections.lvs.fleet.plugins.module_utils._errors import LvsError, ValidationError
from ansible_collections.lvs.fleet.plugins.module_utils._module import Module
from ansible_collections.lvs.fleet.plugins.module_utils._options import path_problem, show

MODE = 0o600


def problem(path: str) -> str:
    """Why there can be no report at a path; empty if there can."""
    if path_problem(path):
        return path_problem(path)
    folder, name = os.path.split(path)
    if name in ("", ".", ".."):
        return f"{show(path)} names a folder, not a file"
    if not os.path.isdir(folder):
        return f"there is no folder {show(folder)}"
    if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
        return f"{show(path)} is there, and is no regular file; it was left alone, take another path"
    return ""


def converge(path: str, content: str | None, check_mode: bool) -> bool:
    """Whether anything was to do."""
    why = problem(path)
    if why:
        raise ValidationError([f"path: {why}"])
    if content is None and not os.path.lexists(path):
        return False
    if not check_mode and content is None:
        os.unlink(path)
    elif not check_mode:
        host.write_file(path, content, MODE)
    return True


def main() -> None:
    module = Module(
        argument_spec={"path": {"type": "str", "required": True}, "content": {"type": "str"}},
        supports_check_mode=True,
    )
    given = module.params
    try:
        changed = converge(given["path"], given["content"], module.check_mode)
    except (LvsError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=changed)


if __name__ == "__main__":
    main()
