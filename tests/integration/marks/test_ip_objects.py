# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""ip_objects with a real ip, and the rules that go with tunnels. Tunnels themselves are for the bench's kernel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from ansible_collections.lvs.fleet.plugins.filter.fleet import mss_rules
from ansible_collections.lvs.fleet.plugins.module_utils import _host
from ansible_collections.lvs.fleet.tests.integration.harness import Router

COMMANDS = [
    "route add default via 10.0.0.254 table 101",
    "-6 route add default via 2001:db8:0:1::fe table 101",
    "route add local default dev lo table 100",
    "-6 route add local default dev lo table 100",
    "rule add from 10.0.0.11 lookup main suppress_prefixlength 0 priority 101",
    "rule add from 10.0.0.11 lookup 101 priority 102",
    "-6 rule add from 2001:db8:0:1::11 lookup 101 priority 102",
    "rule add fwmark 80 lookup 100 priority 100",
    "-6 rule add fwmark 80 lookup 100 priority 100",
    "address add 192.0.2.10/32 dev eth0",
    "address add 2001:db8:0:10::10/128 dev lo nodad preferred_lft 0",
]
OTHERS = [
    "address add 192.0.2.99/32 dev eth0",
    "address add 192.0.2.98/24 dev eth0",
    "address add 2001:db8:0:10::99/128 dev eth0 nodad",
    "rule add fwmark 81 lookup 100 priority 100",
    "-6 rule add fwmark 0x50/0xff lookup 100 priority 100",
    "route add 198.51.100.0/24 via 10.0.0.1 table 101",
]


@pytest.fixture
def machine(router: Router) -> Router:
    """One with a network on eth0."""
    with_network(router)
    return router


def with_network(router: Router, *more: str) -> None:
    router.tool("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "peer")
    lines = ["link set eth0 up", "link set peer up", "address add 10.0.0.11/24 dev eth0"]
    run(router, *lines, "address add 2001:db8:0:1::11/64 dev eth0 nodad", *more)


def run(router: Router, *commands: str) -> None:
    for command in commands:
        router.tool("ip", *command.split())


def state(router: Router) -> list[str]:
    """Addresses, rules and the routes of our tables by the witness; link-local addresses come when they like."""
    lines: list[str] = []
    for link in json.loads(router.tool("ip", "-json", "address", "show")):
        for found in link["addr_info"]:
            if found["scope"] == "global":
                lines.append(f"{link['ifname']} {found['local']}/{found['prefixlen']} {found.get('deprecated')}")
    for family in ("-4", "-6"):
        lines += router.tool("ip", family, "rule", "show").splitlines()
        for table in ("100", "101"):
            lines += router.attempt("ip", family, "route", "show", "table", table).stdout.splitlines()
    return sorted(lines)


def converge(router: Router, path: Path, commands: list[str]) -> dict[str, Any]:
    """Check, run, check, run."""
    before = state(router)
    told = router.run("ip_objects", check=True, path=str(path), commands=commands)
    assert state(router) == before
    done = router.run("ip_objects", path=str(path), commands=commands)
    assert told == done
    after = state(router)
    for check in (True, False):
        again = router.run("ip_objects", check=check, path=str(path), commands=commands)
        assert (again["changed"], again["operations"]) == (False, [])
    assert state(router) == after
    return done


def test_from_nothing_and_back(machine: Router, tmp_path: Path) -> None:
    run(machine, *OTHERS)
    before, record = state(machine), tmp_path / "record"
    done = converge(machine, record, COMMANDS)
    assert done["operations"] == [f"ip {command}" for command in COMMANDS] + [f"write {record}"]
    assert len(state(machine)) == len(before) + len(COMMANDS)
    gone = converge(machine, record, [])
    assert len(gone["operations"]) == len(COMMANDS) + 1
    assert state(machine) == before


def test_what_was_there_before_is_somebody_elses(machine: Router, tmp_path: Path) -> None:
    wanted = [
        "address add 192.0.2.99/32 dev eth0",
        "address add 192.0.2.98/32 dev eth0",
        "address add 2001:db8:0:10::99/128 dev eth0 nodad preferred_lft 0",
        "rule add fwmark 81 lookup 100 priority 100",
        "-6 rule add fwmark 80 lookup 100 priority 100",
    ]
    run(machine, *OTHERS)
    before, record = state(machine), tmp_path / "record"
    done = converge(machine, record, wanted)
    assert done["operations"] == [f"ip {wanted[-1]}", f"write {record}"]
    assert record.read_text() == f"{wanted[-1]}\n"
    converge(machine, record, [])
    assert state(machine) == before


@pytest.mark.parametrize("after", range(len(COMMANDS)))
def test_killed_on_the_way(machine: Router, tmp_path: Path, after: int) -> None:
    """Wherever a run dies, nothing that it has set is forgotten."""
    before, record = state(machine), tmp_path / "record"
    left = after + 1

    def killed(words: list[str], stdin: str = "") -> str:
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt
        return machine.tool(*words, stdin=stdin)

    with patch.object(_host, "run", killed), pytest.raises(KeyboardInterrupt):
        machine.call("ip_objects", path=str(record), commands=COMMANDS)
    assert len(state(machine)) == len(before) + after
    machine.run("ip_objects", path=str(record), commands=[])
    assert (state(machine), record.read_text()) == (before, "")


def test_at_boot_and_once_more(machine: Router, tmp_path: Path) -> None:
    """What the units run: it brings back everything, and on a machine at work it does no harm."""
    record = tmp_path / "record"
    machine.run("ip_objects", path=str(record), commands=COMMANDS)
    after, text = state(machine), record.read_text()
    machine.run("ip_objects", path=str(record), commands=[])
    record.write_text(text)
    command = ["xargs", "--no-run-if-empty", "--max-lines=1", f"--arg-file={record}", "ip"]
    for status in (0, 123):
        assert machine.attempt(*command).returncode == status
        assert state(machine) == after
    assert not machine.run("ip_objects", path=str(record), commands=COMMANDS)["changed"]


def test_the_units_run_just_that() -> None:
    roles = Path(__file__).parents[3] / "roles"
    for unit in ("lvs_router/files/lvs-vips.service", "lvs_real_server/files/lvs-real-server.service"):
        text = (roles / unit).read_text()
        assert "ExecStart=-/usr/bin/xargs --no-run-if-empty --max-lines=1 --arg-file=/etc/lvs/" in text


def test_a_failure_is_undone(machine: Router, tmp_path: Path) -> None:
    run(machine, *OTHERS)
    machine.run("ip_objects", path=str(tmp_path / "record"), commands=COMMANDS[2:])
    before, text = state(machine), (tmp_path / "record").read_text()
    far = "route add default via 10.77.0.1 table 101"
    message = machine.fail("ip_objects", path=str(tmp_path / "record"), commands=[*COMMANDS[7:], far])
    assert message == (f"ip {far}: exit status 2: Error: Nexthop has invalid gateway.\nNothing had been changed.")
    wanted = ["address add 192.0.2.55/32 dev lo", far]
    message = machine.fail("ip_objects", path=str(tmp_path / "record"), commands=wanted)
    assert message.endswith("The 1 operations done until then were undone; the machine is as it was before.")
    assert (state(machine), (tmp_path / "record").read_text()) == (before, text)


def test_segments(router: Router) -> None:
    """The module's rules, and the file that brings them back, are the same to iptables."""
    segments = {"192.0.2.21": 1440, "2001:db8::21": 1400}
    told = router.run("iptables_mss", check=True, segments=segments)
    done = router.run("iptables_mss", segments=segments)
    assert told == done and done["changed"]
    assert not router.run("iptables_mss", segments=segments)["changed"]
    shown = {family: lines(router, family) for family in ("ipv4", "ipv6")}
    assert len(shown["ipv4"]) == len(shown["ipv6"]) == 3
    assert router.run("iptables_mss", segments={})["changed"]
    assert lines(router, "ipv4") == []
    for family, program in (("ipv4", "iptables-restore"), ("ipv6", "ip6tables-restore")):
        router.tool(program, "--noflush", "--wait", "10", stdin=mss_rules(segments, family))
        assert lines(router, family) == shown[family]
    assert not router.run("iptables_mss", segments=segments)["changed"]


def lines(router: Router, family: str) -> list[str]:
    saved = getattr(router.snapshot(services=False), family)
    return [line for line in saved.splitlines() if "LVS-MSS" in line]
