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
  - Enables systemd units by the link that C(systemctl enable) makes, so that check mode can tell about units to come.
  - One run of this module takes the place of a dozen file tasks, which counts on a fleet.
extends_documentation_fragment:
  - lvs.fleet.attributes
notes:
  - Needs root, and on the router nothing but Python 3.8 or later.
options:
  files:
    description: The files. Missing folders are made, for root alone.
    type: list
    elements: dict
    required: true
    suboptions:
      path:
        description: Where the file is, from the root.
        type: path
        required: true
      content:
        description: What it holds.
        type: str
        required: true
      mode:
        description: Its permissions, as an octal number in quotes.
        type: str
        default: "0600"
  enabled_units:
    description: Units in C(/etc/systemd/system) that C(multi-user.target) pulls in at boot.
    type: list
    elements: str
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
previous:
  description: What each file held before, by its path; empty for a file that was not there.
  returned: success
  type: dict
  sample:
    /etc/lvs/ipvs.rules: "-A -f 80 -s wlc\n"
"""

import os
import re
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.lvs.fleet.plugins.module_utils import _host as host
from ansible_collections.lvs.fleet.plugins.module_utils._errors import LvsError, ValidationError

UNITS = "/etc/systemd/system"
WANTS = f"{UNITS}/multi-user.target.wants"


def check(files: list[dict[str, Any]], units: list[str]) -> None:
    """Raises ValidationError for every path, mode or unit that is not one."""
    problems = []
    for place, file in enumerate(files):
        if not os.path.isabs(file["path"]):
            problems.append(f"files[{place}].path: {file['path']!r} does not start at the root")
        if not re.fullmatch(r"0?[0-7]{3}", file["mode"], re.ASCII):
            problems.append(f"files[{place}].mode: {file['mode']!r} is not an octal mode such as '0600'")
    for place, unit in enumerate(units):
        if not re.fullmatch(r"[A-Za-z0-9_.@-]+\.(service|timer|target)", unit, re.ASCII):
            problems.append(f"enabled_units[{place}]: {unit!r} is not the name of a unit")
    if problems:
        raise ValidationError(problems)


def converge_file(file: dict[str, Any], check_mode: bool) -> tuple[list[str], dict[str, str]]:
    """Bring one file to its content and mode; what that took, and the diff."""
    path, content, mode = file["path"], file["content"], int(file["mode"], 8)
    before = host.read_text(path)
    there = os.path.lexists(path)
    operations = []
    if there and host.mode_of(path) != mode:
        operations.append(f"chmod {mode:04o} {path}")
        if not check_mode:
            os.chmod(path, mode)
    if not there or before != content:
        operations.append(f"write {path}")
        if not check_mode:
            host.write_file(path, content, mode)
    headers = {"before_header": path, "after_header": f"{path} ({mode:04o})"}
    return operations, {**headers, "before": before, "after": content}


def converge_unit(unit: str, check_mode: bool) -> list[str]:
    link, target = f"{WANTS}/{unit}", f"{UNITS}/{unit}"
    if os.path.islink(link) and os.readlink(link) == target:
        return []
    if not check_mode:
        host.link(link, target)
    return [f"systemctl enable {unit}"]


def converge(files: list[dict[str, Any]], units: list[str], check_mode: bool) -> dict[str, Any]:
    check(files, units)
    previous = {file["path"]: host.read_text(file["path"]) for file in files}
    operations, diffs = [], []
    for file in files:
        done, diff = converge_file(file, check_mode)
        operations += done
        diffs += [diff] if done else []
    for unit in units:
        operations += converge_unit(unit, check_mode)
    return {"changed": bool(operations), "operations": operations, "previous": previous, "diff": diffs}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "files": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "path": {"type": "path", "required": True},
                    "content": {"type": "str", "required": True},
                    "mode": {"type": "str", "default": "0600"},
                },
            },
            "enabled_units": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    try:
        result = converge(module.params["files"], module.params["enabled_units"], module.check_mode)
    except (LvsError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
