# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The last word of the playbooks, and which machines fail. The machines' modules answer what was laid down for them."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.lvs.fleet.tests.unit.test_lying_router import ANSWERS, Fleet

SAME = {"changed": False, "operations": [], "changes": []}
WEIGHT = {
    "changed": True,
    "operations": ["ipvsadm -e -f 80 -r 10.0.0.11 -g -w 20"],
    "changes": ["web: weight of 10.0.0.11 10 -> 20"],
}
FILE = {"changed": True, "operations": ["write /etc/lvs/ipvs.rules"]}
AS_DECLARED = {
    "lvs_info": {"changed": False, "problems": []},
    "lvs_service": SAME,
    "boot_files": SAME,
    "ip_objects": SAME,
    "machine_info": {
        **ANSWERS["machine_info"],
        "settings": {
            "net.ipv4.vs.conntrack": "0", "net.ipv4.vs.conn_reuse_mode": "1", "net.ipv4.vs.expire_nodest_conn": "0",
            "net.ipv4.vs.expire_quiescent_template": "0",
        },
    },
}  # fmt: skip
FULL = {"failed": True, "changed": False, "msg": "/etc/lvs/ipvs.rules: No space left on device"}
# The services are as they should be when they are asked for again.
CONVERGING = """\
#!/bin/sh
module=${1##*/}
module=${module#AnsiballZ_}
answer=$(dirname "$0")/${module%.py}
cat "$answer.json"
if [ -e "$answer.next" ]; then mv "$answer.next" "$answer.json"; fi
"""


class Machines(Fleet):
    def add(self, name: str, answers: Mapping[str, Any] | None = None) -> None:
        super().add(name, {**AS_DECLARED, **(answers or {})})
        home = self.folder / "routers" / name
        (home / "python").write_text(CONVERGING)
        (home / "lvs_service.next").write_text(json.dumps(SAME))


@pytest.fixture(name="fleet")
def machines(tmp_path: Path) -> Machines:
    return Machines(tmp_path)


def last_words(run: subprocess.CompletedProcess[str], task: str = "Summary") -> list[str]:
    """The lines of the report."""
    found = re.search(rf'TASK \[{task}\] \*+\n\w+: \[\S+\] => \{{\n    "msg": (\[.*?\n    \])', run.stdout, re.DOTALL)
    assert found, run.stdout + run.stderr
    lines: list[str] = json.loads(found[1])
    return lines


def failed(run: subprocess.CompletedProcess[str]) -> list[str]:
    """The machines that the recap names as failed."""
    return [line.split()[0] for line in run.stdout.splitlines() if re.search(r" : ok=.* failed=[1-9]", line)]


def test_a_deploy_of_which_one_router_fails(fleet: Machines) -> None:
    """Whatever name it gives itself, by a fact, which is a variable to Ansible."""
    renamed = {**AS_DECLARED["machine_info"], "ansible_facts": {"inventory_hostname": "router1"}}
    fleet.add("router1", {"lvs_service": WEIGHT, "boot_files": FILE})
    fleet.add("router2", {"lvs_service": WEIGHT, "boot_files": FULL, "machine_info": renamed})
    fleet.add("router3")
    run = fleet.play("lvs.fleet.deploy", "-e", '{"deploy_serial": [1]}')
    assert last_words(run) == [
        "router1: changed",
        "    web: weight of 10.0.0.11 10 -> 20",
        "    boot files: write /etc/lvs/ipvs.rules",
        "router2: failed",
        "    Keep the declared state for the next boot: /etc/lvs/ipvs.rules: No space left on device",
        "    changed: web: weight of 10.0.0.11 10 -> 20",
        "    state: services as declared, boot files as before, addresses as before",
        "router3: not begun",
        "Next: mend what is said of router2, and run the same command again. It goes on where this run stopped.",
    ]
    assert (failed(run), run.returncode) == (["router2"], 2)


def test_a_deploy_in_which_routers_of_a_step_are_lost(fleet: Machines) -> None:
    """All others of the step come to their end."""
    fleet.add("router1", {"lvs_service": WEIGHT})
    fleet.add("router2")
    (fleet.folder / "inventory/host_vars").mkdir()
    (fleet.folder / "inventory/host_vars/router2.yml").write_text("ansible_remote_tmp: /dev/null/none\n")
    fleet.add("router3", {"lvs_service": WEIGHT})
    (fleet.folder / "routers/router3/lvs_service.next").write_text(json.dumps(WEIGHT))
    run = fleet.play("lvs.fleet.deploy")
    lines = last_words(run)
    assert lines[:3] == ["router1: changed", "    web: weight of 10.0.0.11 10 -> 20", "router2: unreachable"]
    assert "    state: services as before, boot files as before, addresses as before" in lines
    assert lines[-4:-1] == [
        f"    Compare the router with the inventory once more: still missing: {WEIGHT['operations'][0]}",
        "    changed: web: weight of 10.0.0.11 10 -> 20",
        "    state: services as declared, boot files as declared, addresses as declared",
    ]
    assert (failed(run), run.returncode) == (["router2", "router3"], 2)


def test_a_prediction(fleet: Machines) -> None:
    fleet.add("router1", {"lvs_service": WEIGHT})
    fleet.add("router2")
    run = fleet.play("lvs.fleet.deploy", "--check")
    assert last_words(run) == [
        "router1: would change",
        "    web: weight of 10.0.0.11 10 -> 20",
        "router2: as declared",
        "Next: run the same command without --check.",
    ]
    assert (failed(run), run.returncode) == ([], 0)


@pytest.mark.parametrize(("part", "changed"), [("services", ["web", "boot files"]), ("boot", ["boot files"]),
                                               ("addresses", ["addresses"])])  # fmt: skip
def test_a_part(fleet: Machines, part: str, changed: list[str]) -> None:
    address = {"changed": True, "operations": ["ip address add 192.0.2.10/32 dev eth0"]}
    fleet.add("router1", {"lvs_service": WEIGHT, "boot_files": FILE, "ip_objects": address})
    run = fleet.play("lvs.fleet.deploy", "--tags", part)
    lines = last_words(run)
    assert lines[0] == "router1: changed" and run.returncode == 0
    assert [line.strip().partition(":")[0] for line in lines[1:]] == changed


@pytest.mark.parametrize("part", [(), ("--tags", "boot"), ("--skip-tags", "services")])
def test_what_is_refused_is_refused_before_anything_changes(fleet: Machines, part: tuple[str, ...]) -> None:
    """Settings, files and addresses of services that must not go."""
    settings = {**AS_DECLARED["machine_info"]["settings"], "net.ipv4.vs.conntrack": "1"}
    machine = {**AS_DECLARED["machine_info"], "settings": settings}
    refusal = {"failed": True, "msg": "services: this run would remove all"}
    changed = {"changed": True, "operations": ["too early"]}
    others = {"command": changed, "boot_files": changed, "ip_objects": changed}
    fleet.add("router1", {"lvs_service": refusal, "machine_info": machine, **others})
    run = fleet.play("lvs.fleet.deploy", *part)
    assert last_words(run)[:3] == [
        "router1: failed",
        "    Check that not too many services go: services: this run would remove all",
        "    state: services as before, boot files as before, addresses as before",
    ]
    assert (failed(run), run.returncode) == (["router1"], 2)


def test_no_run_begins_where_nobody_has_looked(fleet: Machines) -> None:
    fleet.add("router1")
    run = fleet.play("lvs.fleet.deploy", "--start-at-task", "Let the packets of the services in")
    assert "No matching task" in run.stdout + run.stderr and "undefined" not in run.stdout + run.stderr
    run = fleet.play("lvs.fleet.deploy", "--start-at-task", "Compare the router with the inventory once more")
    assert last_words(run) == ["router1: as declared"], run.stdout
    assert run.returncode == 0


def test_real_servers(fleet: Machines) -> None:
    fleet.add("server1", {"command": {"failed": True, "msg": "ip: not found", "rc": 127}})
    fleet.add("server2")
    run = fleet.play("lvs.fleet.real_servers")
    assert last_words(run) == [
        "server1: failed",
        "    Read the addresses of the machine: ip: not found",
        "    state: addresses as before, boot files as before",
        "server2: not begun",
        "Next: mend what is said of server1, and run the same command again. It goes on where this run stopped.",
    ]
    assert (failed(run), run.returncode) == (["server1"], 2)


def test_an_audit_blames_whom_it_should(fleet: Machines) -> None:
    fleet.add("router1")
    fleet.add("router2", {"lvs_service": WEIGHT})
    fleet.add("router3", {"lvs_service": {"failed": True, "msg": "no"}})
    fleet.add("router4")
    run = fleet.play("lvs.fleet.audit")
    assert last_words(run, "Report") == [
        "router1: as declared",
        "router2: differs",
        "    web: weight of 10.0.0.11 10 -> 20",
        "router3: failed",
        "    Make the virtual services what they are declared to be: no",
        "router4: as declared",
    ]
    assert (failed(run), run.returncode) == (["router2", "router3"], 2)


def adopting(services: list[dict[str, Any]]) -> dict[str, Any]:
    by_hand = {"before": services, "behind": []}
    return {"lvs_info": {"changed": False, "services": [], "adoptable": by_hand, "not_adoptable": []}}


WEB = {
    "name": "web",
    "fwmark": 80,
    "traffic": [{"destination": ["192.0.2.10"], "protocol": ["tcp"]}],
    "scheduler": "wlc",
    "real_servers": [{"address": f"10.0.0.{number}", "weight": 1, "forward_method": "direct"} for number in (12, 11)],
}
WRITTEN = {
    "lvs_router_adopt": True,
    "lvs_services": [
        {"name": "web", "fwmark": 80, "traffic": [{"destination": ["192.0.2.10"], "protocol": "tcp"}],
         "real_servers": [{"address": "10.0.0.11"}, {"address": "10.0.0.12"}]},
    ],
}  # fmt: skip


def test_adopting_what_all_routers_do(fleet: Machines) -> None:
    """One file, for the real servers, too; below the folder in which the command was given."""
    for name in ("router1", "router2"):
        fleet.add(name, adopting([WEB]))
    (fleet.folder / "here").mkdir()
    run = fleet.play("lvs.fleet.adopt", "-e", "adopt_dir=here")
    assert run.returncode == 0, run.stdout
    assert fleet.files() == {"inventory/hosts.yml", "here/group_vars/all/lvs_services.yml"}
    assert yaml.safe_load((fleet.folder / "here/group_vars/all/lvs_services.yml").read_text()) == WRITTEN
    assert f"written: {fleet.folder}/here/group_vars/all/lvs_services.yml" in run.stdout
    own = fleet.folder / "here/host_vars/router2/lvs_services.yml"
    own.parent.mkdir(parents=True)
    own.write_text("lvs_services: []\n")
    run = fleet.play("lvs.fleet.adopt", "-e", "adopt_dir=here", "-e", "adopt_overwrite=true")
    assert f"{own}: this router would not see the file" in run.stdout + run.stderr
    assert failed(run) == ["router2"] and own.read_text() == "lvs_services: []\n"


def test_adopting_what_routers_do_differently(fleet: Machines) -> None:
    """And no folder hides the variables that a host has in a file."""
    fleet.add("router1", adopting([WEB]))
    fleet.add("router2", adopting([]))
    fleet.add("router3", adopting([]))
    (fleet.folder / "inventory/host_vars").mkdir()
    (fleet.folder / "inventory/host_vars/router3.yml").write_text("x: y\n")
    run = fleet.play("lvs.fleet.adopt")
    written = {f"inventory/host_vars/router{number}/lvs_services.yml" for number in (1, 2)}
    assert fleet.files() == {"inventory/hosts.yml", "inventory/host_vars/router3.yml", *written}
    assert yaml.safe_load((fleet.folder / "inventory/host_vars/router1/lvs_services.yml").read_text()) == {
        "lvs_router_adopt": True, "lvs_services_router1": WRITTEN["lvs_services"],
    }  # fmt: skip
    for name in written:
        assert f"written: {fleet.folder}/{name}" in run.stdout
    assert "router3.yml: Ansible would not read it beside a folder of that name" in run.stdout + run.stderr
    assert (failed(run), run.returncode) == (["router3"], 2)


def test_adopting_without_a_folder(fleet: Machines) -> None:
    """A list of hosts has none."""
    fleet.add("router1", adopting([WEB]))
    run = fleet.play("lvs.fleet.adopt", "-e", "target=all", inventory="router1,")
    assert fleet.files() == {"inventory/hosts.yml"} and run.returncode == 2
    assert "Say which one, for instance -e adopt_dir=inventory" in run.stdout + run.stderr
