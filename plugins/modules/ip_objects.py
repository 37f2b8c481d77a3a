#!/usr/bin/python
# Copyright: lvs.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ip_objects
short_description: Keep addresses, tunnel devices, policy rules and routes, now and for the next boot
version_added: 0.1.0
description:
  - Makes the objects of C(ip) what a list of commands says, and keeps the commands in a file.
  - The file is the record of what this module has set, and what a unit runs at boot. Each line is the arguments of one
    C(ip) command, so C(xargs -r -L 1 ip <FILE) brings everything back and does no harm on a machine that has it.
    C(ip -batch) does not take such a file, because it knows no family of a single line.
  - What is wanted and there already without being on record is somebody else's. It is left alone, neither recorded nor
    ever removed.
  - Refuses a record that is a link or belongs to another user than root, and a folder in which others can write.
  - What is on record and not wanted any more is removed, after everything new was added.
extends_documentation_fragment:
  - lvs.fleet.attributes
  - lvs.fleet.writer
options:
  path:
    description: The file, which only root can read. There need not be one; its folder is made if it is missing.
    type: path
    required: true
  commands:
    description:
      - The commands that make the objects, each as the arguments of C(ip). For boot they are kept in this order.
      - "C(address add ADDRESS/LENGTH dev DEVICE [nodad] [preferred_lft 0])"
      - "C(link add NAME up type ipip|gre|ip6gre local ADDRESS [icsum]) and
        C(link add NAME up type ip6tnl mode ip6ip6 local ADDRESS), tunnels with any other end"
      - "C([-6] fou add port PORT gue)"
      - "C([-6] rule add [from ADDRESS] [fwmark MARK] lookup main|TABLE [suppress_prefixlength 0] priority PRIORITY)"
      - "C([-6] route add local default dev lo table TABLE) and C([-6] route add default via ADDRESS table TABLE)"
      - Anything else is refused. The family may be left out where an address tells it.
    type: list
    elements: str
    required: true
notes:
  - Needs root, and on the machine nothing but Python 3.8 or later and C(ip).
author:
  - lvs.fleet contributors (@lvs-fleet)
seealso:
  - module: lvs.fleet.boot_files
"""

EXAMPLES = r"""
- name: Put a virtual address on the interface of an LVS router
  lvs.fleet.ip_objects:
    path: /etc/lvs/vips
    commands:
      - address add 192.0.2.10/32 dev eth0
      - address add 2001:db8:0:10::10/128 dev eth0 nodad

- name: Let packets with a mark in without owning the address
  lvs.fleet.ip_objects:
    path: /etc/lvs/vips
    commands:
      - route add local default dev lo table 100
      - rule add fwmark 80 lookup 100 priority 100

- name: Receive from tunnels on a real server
  lvs.fleet.ip_objects:
    path: /etc/lvs/real-server
    commands:
      - link add lvs-ipip up type ipip local 10.0.0.11
      - address add 192.0.2.10/32 dev lo

- name: Take away whatever is on record
  lvs.fleet.ip_objects:
    path: /etc/lvs/vips
    commands: []
"""

RETURN = r"""
operations:
  description: What was done, or would be done in check mode, in order.
  returned: success
  type: list
  elements: str
  sample:
    - ip address add 192.0.2.10/32 dev eth0
    - ip address delete 192.0.2.9/32 dev eth0
    - write /etc/lvs/vips
"""

import json
import os
from typing import Any, Callable, Sequence

from ansible_collections.lvs.fleet.plugins.module_utils import _host as host
from ansible_collections.lvs.fleet.plugins.module_utils._errors import (
    LvsError,
    ParseError,
    ToolError,
    ValidationError,
    reason,
)
from ansible_collections.lvs.fleet.plugins.module_utils._ip import IpObject, Plan, Step, plan, text_of
from ansible_collections.lvs.fleet.plugins.module_utils._ip_words import ip_object, ip_objects, queries
from ansible_collections.lvs.fleet.plugins.module_utils._module import Module
from ansible_collections.lvs.fleet.plugins.module_utils._options import path_problem

MODE = 0o600
SHOW_FOU = ["ip", "-json", "fou", "show"]


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


def outlook(record: Record, wanted: Sequence[IpObject]) -> Plan:
    recorded = record.objects()
    there = [found for query in queries([*wanted, *recorded]) for found in query.read(ask(query.words))]
    return plan(wanted, recorded, there)


def operations(record: Record, way: Plan) -> list[str]:
    writing = [f"write {record.path}"] * (text_of(way.after) != record.text)
    return [f"ip {step.command}" for step in way.steps] + writing


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


def main() -> None:
    module = Module(
        argument_spec={
            "path": {"type": "path", "required": True},
            "commands": {"type": "list", "elements": "str", "required": True},
            "lock_timeout": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    given = module.params
    try:
        host.expect_root()
        done = converge(given["path"], given["commands"], module.check_mode, given["lock_timeout"], module.warn)
    except (LvsError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**done)


if __name__ == "__main__":
    main()
