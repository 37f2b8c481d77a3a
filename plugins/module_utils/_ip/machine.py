# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The objects of ip on the machine we run on, and the file that says which of them are ours.

PRIVATE to the collection.
"""

from __future__ import annotations

import json
import os
from typing import Any, Callable, Sequence

from .. import _host as host
from .._declared.options import path_problem
from .._errors import LvsError, ParseError, ToolError, ValidationError, reason
from .objects import IpObject, Plan, Step, plan, text_of
from .words import ip_object, ip_objects, queries

MODE = 0o600
SHOW_FOU = ["ip", "-json", "fou", "show"]


def converge(
    path: str, commands: Sequence[str], check_mode: bool, lock_timeout: int, warn: Callable[[str], None]
) -> dict[str, Any]:
    if path_problem(path):
        raise ValidationError([f"path: {path_problem(path)}"])
    wanted = ip_objects(commands)
    if check_mode:
        record = Record(path)
        return result(record, outlook(record, wanted))
    with host.lock(lock_timeout, warn=warn):
        record = Record(path)
        way = outlook(record, wanted)
        carry_out(record, wanted, way)
        return result(record, way)


def outlook(record: Record, wanted: Sequence[IpObject]) -> Plan:
    recorded = record.objects()
    there = [found for query in queries([*wanted, *recorded]) for found in query.read(ask(query.words))]
    return plan(wanted, recorded, there)


def operations(record: Record, way: Plan) -> list[str]:
    writing = [f"write {record.path}"] * (text_of(way.after) != record.text)
    return [f"ip {step.command}" for step in way.steps] + writing


def result(record: Record, way: Plan) -> dict[str, Any]:
    done = operations(record, way)
    diff = {"header": record.path, "before": text_of(way.before), "after": text_of(way.after)}
    return {"changed": bool(done), "operations": done, "diff": diff}


def carry_out(record: Record, wanted: Sequence[IpObject], way: Plan) -> None:
    """What is about to be set is on record before it is, and what is about to go until it is gone.

    So the next run knows what is ours, wherever this one is killed.
    """
    done: list[Step] = []
    try:
        record.write(way.meanwhile)
        for step in way.steps:
            execute(step)
            done.append(step)
        record.write(way.after)
        verify(record.path, wanted)
    # Whatever it was: nothing is left half done.
    except Exception as error:
        raise LvsError(f"{reason(error)}\n{undo(record, way, done)}") from error


def execute(step: Step) -> None:
    if step.adds and step.object.kind == "fou" and host.attempt(SHOW_FOU)[0]:
        # Unlike a tunnel device, a port does not load its module.
        host.run(["modprobe", "fou"])
    host.run(["ip", *step.command.split()])


def verify(path: str, wanted: Sequence[IpObject]) -> None:
    record = Record(path)
    left = operations(record, outlook(record, wanted))
    if left:
        raise LvsError(f"the machine is not as it was told to be; missing afterwards: {'; '.join(left[:5])}")


def undo(record: Record, way: Plan, done: Sequence[Step]) -> str:
    try:
        # A disk that takes nothing has taken no record either.
        if done or host.read_text(record.path) != record.text:
            record.write(way.meanwhile)
            for step in reversed(done):
                execute(step.back())
            record.put_back()
    except Exception as error:
        why = reason(error)
        return f"Going back failed as well, so the machine is half changed ({len(done)} operations were done): {why}"
    if not done:
        return "Nothing had been changed."
    return f"The {len(done)} operations done until then were undone; the machine is as it was before."


def ask(words: Sequence[str]) -> Any:
    """What ip answers, as JSON. A table without routes does not exist, nor does a port before its module is loaded."""
    argv = ["ip", "-json", *words]
    status, output, said = host.attempt(argv)
    if status and ("FIB table does not exist" in said or argv == SHOW_FOU):
        return []
    if status:
        raise ToolError(argv, status, said)
    try:
        return json.loads(output or "[]")
    except (ValueError, RecursionError):
        raise ParseError(f"{' '.join(argv)}: the answer is not JSON: {output[:80]!r}") from None


class Record:
    """The file: what this module has set, or is about to."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.was_there = os.path.lexists(path)
        why = host.folder_problem(os.path.dirname(path))
        if not why and self.was_there and not host.is_own(path):
            why = f"{path} is a link, or belongs to another user, who could have us remove any address; remove it"
        if why:
            raise LvsError(why)
        self.text = host.read_text(path)

    def objects(self) -> list[IpObject]:
        """What the file says. A run that was killed may have left two versions of an object there."""
        found = []
        for place, line in enumerate(self.text.splitlines(), start=1):
            try:
                found.append(ip_object(line))
            except ValueError as error:
                raise ParseError(f"{self.path}:{place}: {error}") from None
        return found

    def write(self, objects: Sequence[IpObject]) -> None:
        text = text_of(objects)
        if text != host.read_text(self.path):
            host.write_file(self.path, text, MODE)

    def put_back(self) -> None:
        if self.was_there:
            host.write_file(self.path, self.text, MODE)
        elif os.path.lexists(self.path):
            host.remove(self.path)
