# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.lvs.fleet.plugins.filter.report import (
    PROOF,
    REAL_SERVER,
    RESULTS,
    ROUTER,
    SHOWN,
    audit,
    audit_lines,
    summary,
)

ROLES = Path(__file__).parents[2] / "roles"
SAME: dict[str, Any] = {"changed": False, "operations": []}
SKIPPED = {"changed": False, "skipped": True, "skip_reason": "Conditional result was False"}
LOST = {"unreachable": True, "changed": False, "msg": "Failed to connect to the host via ssh: timed out\n"}
ADD = "ipvsadm -a -f 80 -r 10.0.0.11 -g -w 10"
CHANGED = {"changed": True, "operations": [ADD], "changes": ["web: weight of 10.0.0.11 1 -> 10"]}
AS_DECLARED = {
    "lvs_found": {"changed": False, "problems": []},
    "__lvs_router_machine": {"changed": False, "missing_commands": []},
    "__lvs_router_set": SKIPPED,
    "__lvs_router_services": SAME,
    "__lvs_router_kept": SAME,
    "__lvs_router_let_in": SKIPPED,
}


def entry(status: str, message: str = "", operations: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    told = {"status": status, "message": message, "operations": list(operations), "problems": []}
    return {**told, "changes": list(operations), **more}


def failure(message: str, task: str = "Keep the files") -> dict[str, str]:
    return {"task": task, "message": message}


def of_one(variables: dict[str, Any]) -> dict[str, Any]:
    report = audit(["router1"], {"router1": variables})
    assert report["as_declared"] == (report["routers"]["router1"]["status"] == "as_declared")
    return report["routers"]["router1"]


def test_nothing_differs() -> None:
    assert of_one(AS_DECLARED) == entry("as_declared")


@pytest.mark.parametrize("missing", PROOF)
def test_what_was_not_compared_is_not_as_declared(missing: str) -> None:
    rest = {name: result for name, result in AS_DECLARED.items() if name != missing}
    assert (of_one(rest)["status"], of_one(rest)["message"]) == ("failed", "the role did not come to its end")
    assert of_one({})["message"] == "the role did not come to its end"


def test_operations_are_in_the_order_of_the_role() -> None:
    changes = {
        "__lvs_router_let_in": {"changed": True, "operations": ["ip address add 192.0.2.10/32 dev eth0"]},
        "__lvs_router_kept": {"changed": True, "operations": ["write /etc/lvs/ipvs.rules"]},
        "__lvs_router_services": {"changed": True, "operations": [ADD], "changes": ["web: new, with 1 real server"]},
        "__lvs_router_restorer": {"changed": True, "stdout": "1 newly installed"},
        "__lvs_router_set": {"changed": True, "cmd": ["sysctl", "--write", "net.ipv4.vs.conntrack=1"]},
        "__lvs_router_helped": {"changed": False, "cmd": ["modprobe", "ip_vs_ftp"]},
        "__lvs_router_loaded": {"changed": True, "cmd": ["modprobe", "ip_vs"]},
        "__lvs_router_installed": {"changed": True},
        "__lvs_router_machine": {"changed": False, "missing_commands": ["ipvsadm", "nft"]},
    }
    wanted = (
        "install what brings ipvsadm, nft",
        "modprobe ip_vs",
        "sysctl --write net.ipv4.vs.conntrack=1",
        "install what restores rules at boot",
        ADD,
        "write /etc/lvs/ipvs.rules",
        "ip address add 192.0.2.10/32 dev eth0",
    )
    found = of_one(AS_DECLARED | changes)
    assert (found["status"], found["operations"]) == ("differs", list(wanted))
    assert found["changes"] == [
        "packages: install what brings ipvsadm, nft",
        "kernel modules: modprobe ip_vs",
        "settings: sysctl --write net.ipv4.vs.conntrack=1",
        "packages: install what restores rules at boot",
        "web: new, with 1 real server",
        "boot files: write /etc/lvs/ipvs.rules",
        "addresses: ip address add 192.0.2.10/32 dev eth0",
    ]


@pytest.mark.parametrize("name", ["lvs_found", *RESULTS])
def test_a_router_that_is_lost_on_the_way_is_unreachable(name: str) -> None:
    variables = AS_DECLARED | {"lvs_failure": failure("what came of it"), name: LOST}
    found = of_one(variables)
    assert (found["status"], found["message"]) == ("unreachable", LOST["msg"].strip())


@pytest.mark.parametrize("name", RESULTS)
def test_a_failure_is_told_by_its_own_message(name: str) -> None:
    found = of_one(AS_DECLARED | {name: {"failed": True, "changed": True, "msg": "no"}})
    assert (found["status"], found["message"], found["operations"]) == ("failed", "no", [])


def test_a_failure_does_not_hide_what_was_found_before_it() -> None:
    found = of_one(AS_DECLARED | {"__lvs_router_services": CHANGED, "lvs_failure": failure("full")})
    assert found == entry("failed", "Keep the files: full", (ADD,), changes=CHANGED["changes"])


def test_problems_are_told_and_do_not_count() -> None:
    problems = [{"kind": "jump", "message": "not entered", "family": "ipv4"}]
    shown = [{"kind": "jump", "message": "not entered"}]
    assert of_one(AS_DECLARED | {"lvs_found": {"problems": problems}}) == entry("as_declared", problems=shown)
    unread = [{"kind": "lvs_info", "message": "no ipvsadm"}]
    assert of_one(AS_DECLARED | {"lvs_found": {"msg": "no ipvsadm"}}) == entry("as_declared", problems=unread)


def test_the_lines_are_in_the_order_of_the_names() -> None:
    problem = {"kind": "jump", "message": "not entered"}
    variables = {
        "router3": {"lvs_found": LOST},
        "router1": AS_DECLARED | {"__lvs_router_services": CHANGED},
        "router2": AS_DECLARED | {"lvs_found": {"problems": [problem]}},
        "router4": {"lvs_failure": failure("one\ntwo")},
    }
    report = audit(variables, variables)
    assert not report["as_declared"]
    assert audit_lines(report) == [
        "router1: differs",
        "    web: weight of 10.0.0.11 1 -> 10",
        "router2: as declared",
        "    problem: not entered",
        "router3: unreachable",
        "    Failed to connect to the host via ssh: timed out",
        "router4: failed",
        "    Keep the files: one",
        "    two",
    ]


def told(check_mode: bool = False, **machines: dict[str, Any]) -> list[str]:
    found = summary(list(machines), machines, check_mode)
    assert found["failed"] == [
        line.partition(":")[0] for line in found["lines"] if re.match(r"\w+: (failed|unreachable)", line)
    ]
    return found["lines"]


NEXT = "Next: mend what is said of {}, and run the same command again. It goes on where this run stopped."


def test_a_deploy_that_went_well() -> None:
    changed = AS_DECLARED | {"__lvs_router_services": CHANGED}
    lines = ["router1: changed", "    web: weight of 10.0.0.11 1 -> 10", "router2: as declared"]
    assert told(router1=changed, router2=AS_DECLARED) == lines
    assert told(True, router1=changed, router2=AS_DECLARED) == [
        "router1: would change",
        *lines[1:],
        "Next: run the same command without --check.",
    ]
    assert told(True, router1=AS_DECLARED) == ["router1: as declared"]


def test_a_deploy_that_failed() -> None:
    between = {"__lvs_router_machine": {}, "__lvs_router_services": CHANGED, "lvs_failure": failure("no space left")}
    assert told(router1=AS_DECLARED, router2=between, router3={}) == [
        "router1: as declared",
        "router2: failed",
        "    Keep the files: no space left",
        "    changed: web: weight of 10.0.0.11 1 -> 10",
        "    state: services as declared, boot files as before, addresses as before",
        "router3: not begun",
        NEXT.format("router2"),
    ]


def test_a_router_that_was_lost() -> None:
    lost = {"__lvs_router_machine": LOST, "lvs_failure": failure("of no interest")}
    assert told(router1=lost, router2={}) == [
        "router1: unreachable",
        "    Failed to connect to the host via ssh: timed out",
        "    state: services as before, boot files as before, addresses as before",
        "router2: not begun",
        NEXT.format("router1"),
    ]


@pytest.mark.parametrize(
    ("found", "state"),
    [
        ({}, "services as before, boot files as before, addresses as before"),
        ({"__lvs_router_services": {"failed": True, "msg": "undone"}},
         "services as before, boot files as before, addresses as before"),
        ({"__lvs_router_services": {"failed": True, "msg": "so the router is half changed (2 operations were done)"}},
         "services half changed, boot files as before, addresses as before"),
        ({"__lvs_router_services": LOST}, "services not known, boot files as before, addresses as before"),
        ({"__lvs_router_services": SAME, "__lvs_router_kept": SAME, "__lvs_router_let_in": {"failed": True}},
         "services as declared, boot files as declared, addresses as before"),
        ({"__lvs_real_server_objects": SAME}, "addresses as declared, boot files as before"),
    ],
)  # fmt: skip
def test_the_state_of_a_machine_that_failed(found: dict[str, Any], state: str) -> None:
    assert f"    state: {state}" in told(machine=found | {"lvs_failure": failure("no")})


def test_what_is_missing_after_a_deploy() -> None:
    compared = {"failed": True, "operations": [ADD]}
    lines = told(router1=AS_DECLARED | {"lvs_compared": compared, "lvs_failure": failure("", "Compare once more")})
    assert f"    Compare once more: still missing: {ADD}" in lines


def test_a_message_may_be_a_list() -> None:
    """As assert returns it before ansible-core 2.19."""
    lines = told(router1={"lvs_failure": {"task": "Check", "message": ["one", "two"]}})
    assert lines[1:3] == ["    Check: one", "    two"]


def test_long_stories_are_shortened() -> None:
    many = {"changed": True, "operations": [ADD], "changes": [f"web: {number}" for number in range(SHOWN + 2)]}
    lines = told(router1=AS_DECLARED | {"__lvs_router_services": many})
    assert len(lines) == SHOWN + 2 and lines[-1] == "    and 2 more"


def test_answers_that_are_not_understood() -> None:
    lines = told(router1={"__lvs_router_services": 7}, router2=AS_DECLARED)
    assert lines[0] == "router1: failed" and lines[1].startswith("    its answers are not understood: ")
    assert "router2: as declared" in lines


@pytest.mark.parametrize(("role", "results"), [("lvs_router", ROUTER), ("lvs_real_server", REAL_SERVER)])
def test_the_roles_register_what_the_report_reads(role: str, results: dict[str, str]) -> None:
    tasks = "".join(path.read_text() for path in sorted((ROLES / role / "tasks").glob("*.yml")))
    assert set(re.findall(r"register: (\w+)", tasks)) == set(results)
