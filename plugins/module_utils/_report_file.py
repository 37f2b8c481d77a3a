# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The report of a fleet as a file, on the controller. PRIVATE to the collection."""

from __future__ import annotations

import os
import stat

from . import _host as host
from ._declared.options import path_problem, show
from ._errors import ValidationError

_MODE = 0o600


def write_report(path: str, content: str | None, check_mode: bool) -> bool:
    """Write the report of a fleet, on the controller, or remove it if there is none; whether anything was to do."""
    why = _problem(path)
    if why:
        raise ValidationError([f"path: {why}"])
    if content is None and not os.path.lexists(path):
        return False
    if check_mode:
        return True
    if content is None:
        os.unlink(path)
    else:
        host.write_file(path, content, _MODE)
    return True


def _problem(path: str) -> str:
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
