# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The files that bring a router back after a reboot: what was asked for, and what each should hold.

PRIVATE to the collection. Pure.
"""

from __future__ import annotations

import re
from posixpath import dirname
from typing import Any

from .._declared.options import is_text, path_problem, show
from .._errors import ParseError, ValidationError
from .._text import printable_lines
from . import parts

UNITS = "/etc/systemd/system"
WANTS = f"{UNITS}/multi-user.target.wants"


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
    return sorted({WANTS, *map(dirname, paths)})


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
