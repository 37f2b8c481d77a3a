# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The boot files of the machine we run on: compared, and brought to what they should hold or put back.

PRIVATE to the collection.
"""

from __future__ import annotations

import os
from typing import Any, Callable

from .. import _host as host
from .._errors import LvsError, ValidationError, reason
from .files import UNITS, WANTS, check, folders_of, shown, wanted

# The folder that is ours as a whole. Others belong to the distribution, with their modes.
OWN_FOLDER = "/etc/lvs"
OWN_FOLDER_MODE = 0o700


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
