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
            C(LVS-MARK) in table mangle and C(LVS-SNAT) in table nat, with their rules and jumps to them, but for rules
            of M(lvs.fleet.iptables_mark). They are put into the section that the table has already, rules behind the
            others, because C(iptables-restore) empties a table each time that it comes to a section of it.
          - V(ipvsadm) is a text for C(ipvsadm -R), with our part as a block at the end. Services by a mark of the block
            are dropped elsewhere in the file; C(ipvsadm-save) puts them there.
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

import os
import re
from typing import Any, Callable

from ansible_collections.lvs.fleet.plugins.module_utils import _host as host
from ansible_collections.lvs.fleet.plugins.module_utils import _parts as parts
from ansible_collections.lvs.fleet.plugins.module_utils._errors import LvsError, ParseError, ValidationError, reason
from ansible_collections.lvs.fleet.plugins.module_utils._module import Module
from ansible_collections.lvs.fleet.plugins.module_utils._options import is_text, path_problem, show
from ansible_collections.lvs.fleet.plugins.module_utils._text import printable_lines

UNITS = "/etc/systemd/system"
WANTS = f"{UNITS}/multi-user.target.wants"
# The folder that is ours as a whole. Others belong to the distribution, with their modes.
OWN_FOLDER = "/etc/lvs"
OWN_FOLDER_MODE = 0o700


class Changes:
    """What is done, or would be in check mode, in order, with the diffs of it."""

    def __init__(self, check_mode: bool) -> None:
        self._check_mode = check_mode
        self._ways_back: list[Callable[[], None]] = []
        self.operations: list[str] = []
        self.diffs: list[dict[str, str]] = []

    def do(self, operation: str, action: Callable[..., None], path: str, *arguments: Any) -> None:
        self.operations.append(operation)
        if not self._check_mode:
            way_back = host.way_back(path)
            action(path, *arguments)
            self._ways_back.append(way_back)

    def undo(self) -> str:
        """Go back, and say how that went."""
        done = len(self._ways_back)
        try:
            while self._ways_back:
                self._ways_back.pop()()
        except Exception as error:
            why = reason(error)
            return f"Going back failed as well, so the files are half changed ({done} operations were done): {why}"
        if not done:
            return "Nothing had been changed."
        return f"The {done} operations done until then were undone; the files are as they were before."

    def show(self, path: str, what: str, before: str | None, after: str | None) -> None:
        headers = {"before_header": path, "after_header": f"{path} ({what})"}
        self.diffs.append({**headers, "before": shown(before), "after": shown(after)})


def check(options: dict[str, Any]) -> None:
    """Raises ValidationError for every path, mode, part or unit that is not one."""
    problems = []
    for place, file in enumerate(options["files"]):
        problems += [f"files[{place}].{problem}" for problem in file_problems(file)]
    for place, path in enumerate(options["absent"]):
        if path_problem(path):
            problems.append(f"absent[{place}]: {path_problem(path)}")
    for key in ("enabled_units", "disabled_units"):
        for place, unit in enumerate(options[key]):
            if not re.fullmatch(r"[A-Za-z0-9_.@-]+\.(service|timer|target)", unit, re.ASCII):
                problems.append(f"{key}[{place}]: {show(unit)} is not the name of a unit")
    if problems:
        raise ValidationError(problems)


def file_problems(file: dict[str, Any]) -> list[str]:
    problems = []
    if path_problem(file["path"]):
        problems.append(f"path: {path_problem(file['path'])}")
    if not re.fullmatch(r"0?[0-7]{3}", file["mode"], re.ASCII):
        problems.append(f"mode: {show(file['mode'])} is not an octal mode such as '0600'")
    if not isinstance(file["content"], str):
        return [*problems, f"content: {show(file['content'])} is not a text"]
    if not is_text(file["content"]):
        problems.append("content: has characters that no file can hold")
    try:
        if file["part"]:
            parts.check(file["part"], file["content"])
    except ParseError as error:
        problems.append(f"content: {error}")
    return problems


def folders_of(options: dict[str, Any]) -> list[str]:
    paths = [*(file["path"] for file in options["files"]), *options["absent"]]
    return sorted({WANTS, *map(os.path.dirname, paths)})


def check_places(options: dict[str, Any]) -> None:
    """Raises ValidationError for folders in which others can write, and for files that are no files."""
    paths = [file["path"] for file in options["files"]]
    problems = [why for why in map(host.folder_problem, folders_of(options)) if why]
    problems += [f"{path} is there, and is no regular file; remove it" for path in paths
                 if os.path.exists(path) and not os.path.isfile(path)]  # fmt: skip
    if problems:
        raise ValidationError(problems)


def read(files: list[dict[str, Any]]) -> dict[str, str | None]:
    """What each file holds, by its path; None if it is not there. A link that leads nowhere is empty."""
    return {file["path"]: text_of(file["path"], bool(file["part"])) for file in files}


def text_of(path: str, follow: bool) -> str | None:
    """The text of a file; nothing of what a link in place of a file of ours leads to, which may be anybody's."""
    if not os.path.lexists(path):
        return None
    return host.read_text(path) if follow or not os.path.islink(path) else ""


def wanted(files: list[dict[str, Any]], before: dict[str, str | None]) -> dict[str, str | None]:
    """What each file should hold, by its path; None if it should not be there."""
    texts, problems = {}, []
    for file in files:
        path, content = file["path"], file["content"]
        try:
            texts[path] = parts.merge(file["part"], before[path], content) if file["part"] else content
        except ParseError as error:
            problems.append(f"{path}: {error}")
    if problems:
        raise ValidationError(problems)
    return texts


def shown(text: str | None) -> str:
    """Bytes that are no text have no place in a module's answer, nor has what a terminal would act on."""
    return printable_lines((text or "").encode("utf-8", "surrogateescape").decode("utf-8", "replace"))


def converge_file(changes: Changes, file: dict[str, Any], before: str | None, after: str | None) -> None:
    path, mode = file["path"], int(file["mode"], 8)
    if after is None:
        converge_absent(changes, path)
        return
    ours = before is None or not file["part"]
    # One that is another user's or group's is made anew: he may have it open. And a link gives way to a file.
    theirs = ours and before is not None and not host.is_own_file(path)
    wrong_mode = ours and before is not None and not theirs and host.mode_of(path) != mode
    if wrong_mode:
        changes.do(f"chmod {mode:04o} {path}", os.chmod, path, mode)
    if (before != after or theirs) and ours:
        changes.do(f"write {path}", host.write_file, path, after, mode)
    elif before != after:
        changes.do(f"write {path}", host.rewrite_file, path, after)
    if wrong_mode or theirs or before != after:
        changes.show(path, f"{mode:04o}" if ours else "our part", before, after)


def converge_own_folder(changes: Changes) -> None:
    """A folder that was made by hand lets everybody look into it."""
    if os.path.isdir(OWN_FOLDER) and host.mode_of(OWN_FOLDER) != OWN_FOLDER_MODE:
        changes.do(f"chmod {OWN_FOLDER_MODE:04o} {OWN_FOLDER}", os.chmod, OWN_FOLDER, OWN_FOLDER_MODE)


def converge_unit(changes: Changes, unit: str, enabled: bool) -> None:
    link, target = f"{WANTS}/{unit}", f"{UNITS}/{unit}"
    if enabled and not (os.path.islink(link) and os.readlink(link) == target):
        changes.do(f"systemctl enable {unit}", host.link, link, target)
    if not enabled and os.path.lexists(link):
        changes.do(f"systemctl disable {unit}", host.remove, link)


def converge_absent(changes: Changes, path: str) -> None:
    """Remove a file, or a folder in which there is nothing else than what has just been removed."""
    if not os.path.lexists(path):
        return
    folder = os.path.isdir(path) and not os.path.islink(path)
    if folder and not {f"remove {path}/{name}" for name in os.listdir(path)} <= set(changes.operations):
        return
    before = text_of(path, follow=False) if os.path.isfile(path) else None
    changes.do(f"remove {path}", host.remove, path)
    if not folder:
        changes.show(path, "absent", before, None)


def converge(options: dict[str, Any], check_mode: bool, warn: Callable[[str], None]) -> dict[str, Any]:
    check(options)
    if check_mode:
        return outcome(options, Changes(check_mode=True))
    with host.lock(options["lock_timeout"], warn=warn):
        return outcome(options, Changes(check_mode=False))


def outcome(options: dict[str, Any], changes: Changes) -> dict[str, Any]:
    """Compare everything, and change what differs or nothing."""
    check_places(options)
    before = read(options["files"])
    after = wanted(options["files"], before)
    try:
        carry_out(options, before, after, changes)
    # Whatever it was: nothing is left half done.
    except Exception as error:
        raise LvsError(f"{reason(error)}\n{changes.undo()}") from error
    return {"changed": bool(changes.operations), "operations": changes.operations, "diff": changes.diffs}


def carry_out(
    options: dict[str, Any], before: dict[str, str | None], after: dict[str, str | None], changes: Changes
) -> None:
    files = options["files"]
    for folder in folders_of(options):
        if folder == OWN_FOLDER:
            converge_own_folder(changes)
        for path in host.leftovers(folder):
            changes.do(f"remove {path}", host.remove, path)
    # What brings the router back is complete before anything that did so until now goes, be it a part of a file.
    kept = [file for file in files if file["content"] or not file["part"]]
    for file in kept:
        converge_file(changes, file, before[file["path"]], after[file["path"]])
    for unit in options["enabled_units"]:
        converge_unit(changes, unit, enabled=True)
    for unit in options["disabled_units"]:
        converge_unit(changes, unit, enabled=False)
    for file in [file for file in files if file not in kept]:
        converge_file(changes, file, before[file["path"]], after[file["path"]])
    for path in options["absent"]:
        converge_absent(changes, path)


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
                    "part": {"type": "str", "choices": list(parts.KINDS)},
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
