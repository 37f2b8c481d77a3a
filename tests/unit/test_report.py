# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.lvs.fleet.plugins.filter.report import PROOF, RESULTS, audit, audit_lines

ROLE = Path(__file__).parents[2] / "roles/lvs_router"
SAME: dict[str, Any] = {"changed": False, "operations": []}
SKIPPED = {"changed": False, "skipped": True, "skip_reason": "Conditional result was False"}
LOST = {"unreachable": True, "changed": False, "msg": "Failed to connect to the host via ssh: timed out\n"}
ADD = "ipvsadm -a -f 80 -r 10.0.0.11 -g -w 10"
AS_DECLARED = {
    "lvs_audit_info": {"changed": False, "problems": []},
    "__lvs_router_machine": {"changed": False, "missing_commands": []},
    "__lvs_router_set": SKIPPED,
    "__lvs_router_services": SAME,
    "__lvs_router_kept": SAME,
    "__lvs_router_let_in": SKIPPED,
}


def entry(status: str, message: str = "", operations: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    return {"status": status, "message": message, "operations": list(operations), "problems": [], **more}


def of_one(variables: dict[str, Any]) -> dict[str, Any]:
    report = audit(["router1"], {"router1": variables})
    assert report["as_declared"] == (report["routers"]["router1"]["status"] == "as_declared")
    return report["routers"]["router1"]


def test_nothing_differs() -> None:
    assert of_one(AS_DECLARED) == entry("as_declared")


@pytest.mark.parametrize("missing", PROOF)
def test_what_was_not_compared_is_not_as_declared(missing: str) -> None:
    rest = {name: result for name, result in AS_DECLARED.items() if name != missing}
    assert of_one(rest) == entry("failed", "the role did not come to its end")
    assert of_one({}) == entry("failed", "the role did not come to its end")


def test_operations_are_in_the_order_of_the_role() -> None:
    changes = {
        "__lvs_router_let_in": {"changed": True, "operations": ["ip address add 192.0.2.10/32 dev eth0"]},
        "__lvs_router_kept": {"changed": True, "operations": ["write /etc/lvs/ipvs.rules"]},
        "__lvs_router_services": {"changed": True, "operations": [ADD]},
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
    assert of_one(AS_DECLARED | changes) == entry("differs", operations=wanted)


@pytest.mark.parametrize("name", ["lvs_audit_info", *RESULTS])
def test_a_router_that_is_lost_on_the_way_is_unreachable(name: str) -> None:
    variables = AS_DECLARED | {"lvs_audit_failure": "what came of it", name: LOST}
    assert of_one(variables) == entry("unreachable", LOST["msg"].strip())


@pytest.mark.parametrize("name", RESULTS)
def test_a_failure_is_told_by_its_own_message(name: str) -> None:
    assert of_one(AS_DECLARED | {name: {"failed": True, "msg": "no"}}) == entry("failed", "no")


def test_a_failure_does_not_hide_what_was_found_before_it() -> None:
    found = AS_DECLARED | {"__lvs_router_services": {"changed": True, "operations": [ADD]}, "lvs_audit_failure": "full"}
    assert of_one(found) == entry("failed", "full", (ADD,))


def test_problems_are_told_and_do_not_count() -> None:
    problems = [{"kind": "jump", "message": "not entered", "family": "ipv4"}]
    shown = [{"kind": "jump", "message": "not entered"}]
    assert of_one(AS_DECLARED | {"lvs_audit_info": {"problems": problems}}) == entry("as_declared", problems=shown)
    unread = [{"kind": "lvs_info", "message": "no ipvsadm"}]
    assert of_one(AS_DECLARED | {"lvs_audit_info": {"msg": "no ipvsadm"}}) == entry("as_declared", problems=unread)


def test_the_lines_are_in_the_order_of_the_names() -> None:
    problem = {"kind": "jump", "message": "not entered"}
    variables = {
        "router3": {"lvs_audit_info": LOST},
        "router1": AS_DECLARED | {"__lvs_router_services": {"changed": True, "operations": [ADD]}},
        "router2": AS_DECLARED | {"lvs_audit_info": {"problems": [problem]}},
        "router4": {"lvs_audit_failure": "one\ntwo"},
    }
    report = audit(variables, variables)
    assert not report["as_declared"]
    assert audit_lines(report) == [
        "router1: differs",
        f"    {ADD}",
        "router2: as declared",
        "    problem: not entered",
        "router3: unreachable",
        "    Failed to connect to the host via ssh: timed out",
        "router4: failed",
        "    one",
        "    two",
    ]


def test_the_role_registers_what_the_report_reads() -> None:
    tasks = "".join(path.read_text() for path in sorted((ROLE / "tasks").glob("*.yml")))
    assert set(re.findall(r"register: (\w+)", tasks)) == set(RESULTS)
