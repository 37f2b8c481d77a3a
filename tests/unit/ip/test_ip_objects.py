# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The module on a fake ip: files, failures and the way back. What a real ip does is in the integration tests."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.lvs.fleet.plugins.module_utils import _host as host
from ansible_collections.lvs.fleet.plugins.module_utils._ip import machine as ip_machine
from ansible_collections.lvs.fleet.plugins.module_utils._ip.objects import IpObject
from ansible_collections.lvs.fleet.plugins.module_utils._ip.words import ip_object
from ansible_collections.lvs.fleet.plugins.modules import ip_objects
from ansible_collections.lvs.fleet.tests.unit.running import answer_of

VIP = "address add 192.0.2.10/32 dev eth0"
VIP2 = "address add 192.0.2.11/32 dev eth0"
ROUTE = "route add local default dev lo table 100"
PORT = "fou add port 6080 gue"


class FakeIp:
    """A machine with lo and eth0, as ip shows it and changes it."""

    def __init__(self) -> None:
        self.objects: list[IpObject] = []
        self.commands: list[str] = []
        self.fou_loaded = False
        self.refuse: Callable[[str], bool] = lambda _command: False

    def attempt(self, argv: Sequence[str], _stdin: str = "") -> tuple[int, str, str]:
        if argv[:2] == ["ip", "-json"]:
            return self.show(argv[2:])
        command = " ".join(argv)
        self.commands.append(command)
        if self.refuse(command):
            return 2, "", "RTNETLINK answers: Operation not permitted\n"
        if command == "modprobe fou":
            self.fou_loaded = True
        elif " add " in command:
            self.objects.append(ip_object(command[3:]))
        else:
            [gone] = [found for found in self.objects if f"ip {found.delete}" == command]
            self.objects.remove(gone)
        return 0, "", ""

    def show(self, words: Sequence[str]) -> tuple[int, str, str]:
        if "link" in words:
            return 0, json.dumps([{"ifname": name, "flags": ["UP"]} for name in ("lo", "eth0")]), ""
        if "address" in words:
            found = [each.identity for each in self.objects if each.kind == "address"]
            infos = [{"local": address, "prefixlen": length} for _kind, address, length, _device in found]
            return 0, json.dumps([{"ifname": "eth0", "addr_info": infos}]), ""
        if "route" in words:
            if not any(each.kind == "route" for each in self.objects):
                return 2, "[", "Error: ipv4: FIB table does not exist.\nDump terminated\n"
            return 0, json.dumps([{"type": "local", "dst": "default", "dev": "lo"}]), ""
        ports = [
            {"port": each.identity[2], "gue": None, "family": "inet"} for each in self.objects if each.kind == "fou"
        ]
        return (0, json.dumps(ports), "") if self.fou_loaded else (1, "", "Error talking to the kernel\n")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> FakeIp:
    found = FakeIp()

    @contextmanager
    def lock(timeout: int, warn: Callable[[str], None]) -> Iterator[None]:
        found.commands.append(f"lock {timeout}")
        if timeout == 99:
            warn("waited")
        yield

    monkeypatch.setattr(host, "attempt", found.attempt)
    monkeypatch.setattr(host, "lock", lock)
    return found


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return tmp_path / "lvs/vips"


def call(path: Path, *commands: str, check: bool = False, **options: Any) -> dict[str, Any]:
    return answer_of(ip_objects, check, path=str(path), commands=list(commands), **options)


def quartet(machine: FakeIp, path: Path, *commands: str) -> dict[str, Any]:
    """Check, run, check, run."""
    before, text = list(machine.objects), path.exists() and path.read_text()
    told = call(path, *commands, check=True)
    assert (machine.objects, path.exists() and path.read_text()) == (before, text)
    done = call(path, *commands)
    assert told == done
    machine.commands.clear()
    for check in (True, False):
        again = call(path, *commands, check=check)
        assert (again["changed"], again["operations"]) == (False, [])
        assert again["diff"]["before"] == again["diff"]["after"] == done["diff"]["after"]
    assert machine.commands == ["lock 30"]
    return done


def test_from_nothing_and_back(machine: FakeIp, record: Path) -> None:
    done = quartet(machine, record, VIP, ROUTE, PORT)
    assert done["operations"] == [f"ip {VIP}", f"ip {ROUTE}", f"ip {PORT}", f"write {record}"]
    assert done["diff"] == {"header": str(record), "before": "", "after": f"{VIP}\n{ROUTE}\n{PORT}\n"}
    assert (record.read_text(), record.stat().st_mode & 0o777) == (f"{VIP}\n{ROUTE}\n{PORT}\n", 0o600)
    gone = quartet(machine, record)
    assert gone["operations"] == [
        "ip fou delete port 6080 gue",
        "ip route delete local default dev lo table 100",
        "ip address delete 192.0.2.10/32 dev eth0",
        f"write {record}",
    ]
    assert (machine.objects, record.read_text()) == ([], "")


def test_who_had_to_wait_says_for_whom(machine: FakeIp, record: Path) -> None:
    said: list[str] = []
    ip_machine.converge(str(record), [VIP], False, 30, said.append)
    assert said == []
    ip_machine.converge(str(record), [VIP], False, 99, said.append)
    assert said == ["waited"]


def test_nothing_wanted_and_nothing_on_record_leaves_nothing(machine: FakeIp, record: Path) -> None:
    assert not quartet(machine, record)["changed"]
    assert not record.exists()


def test_somebody_elses_is_left_alone(machine: FakeIp, record: Path) -> None:
    machine.objects = [ip_object(VIP)]
    assert quartet(machine, record, VIP, VIP2)["operations"] == [f"ip {VIP2}", f"write {record}"]
    assert quartet(machine, record)["operations"] == [
        "ip address delete 192.0.2.11/32 dev eth0",
        f"write {record}",
    ]
    assert machine.objects == [ip_object(VIP)]


def test_what_somebody_took_away_comes_back(machine: FakeIp, record: Path) -> None:
    call(record, VIP, VIP2)
    del machine.objects[0]
    done = quartet(machine, record, VIP, VIP2)
    assert (done["operations"], done["diff"]["before"]) == ([f"ip {VIP}"], f"{VIP2}\n")


@pytest.mark.parametrize("kind", ["link", "folder", "owner"])
def test_a_record_that_others_could_write_is_not_believed(machine: FakeIp, record: Path, kind: str) -> None:
    """It names the address as ours, so it would be removed."""
    machine.objects.append(ip_object(VIP))
    record.parent.mkdir(parents=True, exist_ok=True)
    text = record.with_name("theirs") if kind == "link" else record
    text.write_text(f"{VIP}\n")
    if kind == "link":
        record.symlink_to(text)
    elif kind == "folder":
        record.parent.chmod(0o777)
    elif os.geteuid():
        pytest.skip("takes root")
    else:
        os.chown(record, 1000, 1000)
    for check in (True, False):
        assert str(record.parent) in call(record, check=check)["msg"]
    assert machine.objects == [ip_object(VIP)] and text.read_text() == f"{VIP}\n"


def test_the_module_of_ports_is_loaded_once(machine: FakeIp, record: Path) -> None:
    call(record, PORT)
    call(record, PORT, "fou add port 6081 gue")
    assert machine.commands.count("modprobe fou") == 1
    assert machine.commands[1:3] == ["modprobe fou", f"ip {PORT}"]


def test_the_record_is_ahead_of_what_is_added_and_behind_what_is_removed(machine: FakeIp, record: Path) -> None:
    call(record, VIP)
    seen: list[tuple[str, str]] = []

    def look(command: str) -> bool:
        seen.append((command, record.read_text()))
        return False

    machine.refuse = look
    call(record, VIP2)
    both = f"{VIP}\n{VIP2}\n"
    assert seen == [(f"ip {VIP2}", both), ("ip address delete 192.0.2.10/32 dev eth0", both)]
    assert record.read_text() == f"{VIP2}\n"


@pytest.mark.parametrize("before", [None, "", f"{VIP2}\n"])
def test_a_failure_half_way_is_undone(machine: FakeIp, record: Path, before: str | None) -> None:
    if before is not None:
        record.parent.mkdir()
        record.write_text(before)
        machine.objects = [ip_object(line) for line in before.splitlines()]
    there = list(machine.objects)
    machine.refuse = lambda command: "6080" in command
    machine.fou_loaded = True
    answer = call(record, VIP, ROUTE, PORT)
    assert answer == {
        "failed": True,
        "msg": f"ip {PORT}: exit status 2: RTNETLINK answers: Operation not permitted\n"
        "The 2 operations done until then were undone; the machine is as it was before.",
    }
    assert machine.objects == there
    assert (record.read_text() if record.exists() else None) == before


def test_a_failure_at_once(machine: FakeIp, record: Path) -> None:
    machine.refuse = lambda _command: True
    assert call(record, VIP)["msg"].endswith("not permitted\nNothing had been changed.")
    assert not record.exists()


def test_the_way_back_fails_as_well(machine: FakeIp, record: Path) -> None:
    """What is left is on record, so the next run knows whose it is."""
    machine.refuse = lambda command: "add 192.0.2.11" in command or "delete" in command
    message = call(record, VIP, VIP2)["msg"]
    assert (
        "Going back failed as well, so the machine is half changed (1 operations were done): ip address del" in message
    )
    machine.refuse = lambda _command: False
    assert call(record)["operations"] == ["ip address delete 192.0.2.10/32 dev eth0", f"write {record}"]
    assert machine.objects == []


def test_what_was_written_is_read_again(machine: FakeIp, record: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(argv: Sequence[str], stdin: str = "") -> tuple[int, str, str]:
        return (0, "", "") if " ".join(argv) == f"ip {VIP2}" else machine.attempt(argv, stdin)

    monkeypatch.setattr(host, "attempt", forgetful)
    machine.refuse = lambda command: "delete 192.0.2.11" in command
    message = call(record, VIP, VIP2)["msg"]
    assert message.startswith(f"the machine is not as it was told to be; missing afterwards: ip {VIP2}\n")


@pytest.mark.parametrize("check", [True, False])
def test_bad_input_touches_nothing(machine: FakeIp, record: Path, check: bool) -> None:
    assert (
        call(record, "flush", check=check)["msg"] == "commands[0]: 'flush' is not one of the commands that are managed"
    )
    assert call(Path("vips"), check=check)["msg"] == "path: 'vips' does not start at the root"
    assert call(Path("/vips\0"), check=check)["msg"] == "path: '/vips\\x00' is not a path"
    assert machine.commands == []
    record.parent.mkdir()
    record.write_text(f"{VIP}\naddress replace 192.0.2.1/32 dev eth0\n")
    answer = call(record, VIP, check=check)
    assert answer["msg"] == (
        f"{record}:2: 'address replace 192.0.2.1/32 dev eth0' is not one of the commands that are managed"
    )
    assert call(record, check=check, lock_timeout="x")["failed"]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((255, "", "ip: no such option\n"), "ip -json -details link show: exit status 255: ip: no such option"),
        ((0, "<html>", ""), "ip -json -details link show: the answer is not JSON: '<html>'"),
    ],
)
def test_ip_cannot_be_asked(
    machine: FakeIp, record: Path, monkeypatch: pytest.MonkeyPatch, answer: tuple[int, str, str], message: str
) -> None:
    monkeypatch.setattr(host, "attempt", lambda _argv, _stdin="": answer)
    assert call(record, VIP)["msg"] == message
    assert not record.exists()
