# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The usual way, one Ansible task for each rule, service and real server, beside lvs_service: on a router of the lab,
over ssh, as ansible-playbook does it.

The usual way is measured on one service, and extrapolated: a thousand of them would take hours.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible_collections.lvs.fleet.tests.bench import shapes
from ansible_collections.lvs.fleet.tests.bench.measure import Comparison, compared, seconds, tool

TESTS = Path(__file__).resolve().parent.parent
LAB = TESTS / "lab/lab"
FOLDER = TESTS.parent / ".build/bench/tasks"
SERVICES = 1000
# Each of the usual way is one service: a rule, the service and its real servers.
REPETITIONS = 2
ITEMS = 2 + shapes.REAL_SERVERS


def comparisons() -> Iterator[Comparison]:
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    write("start", {"ansible.builtin.ping": {}})
    write("usual", {"ansible.builtin.command": "{{ item }}", "loop": commands()})
    write("module", {"lvs.fleet.lvs_service": {"services": shapes.services(SERVICES)}})
    try:
        subprocess.run([LAB, "fleet", "up", "--routers", "1", "--inventory", FOLDER / "hosts.yml"], check=True)
        start = min(play("start") for _repetition in range(3))
        yield compared(
            f"{SERVICES:,} services from empty, over ssh",
            "s",
            "lvs_service",
            {"lvs_service": load, "a task for each rule, service and server": lambda: extrapolated(start)},
            REPETITIONS,
            f"the tasks were measured with {REPETITIONS} times one service, {REPETITIONS * ITEMS} items in all, and"
            f" extrapolated to {SERVICES:,}; what a playbook with one ping task takes was counted once",
        )
    finally:
        subprocess.run([LAB, "fleet", "down"], check=True)


def write(name: str, task: dict[str, Any]) -> None:
    """A playbook of one task."""
    play = {"name": name, "hosts": "lvs_routers", "gather_facts": False, "tasks": [{"name": name, **task}]}
    (FOLDER / f"{name}.yml").write_text(json.dumps([play]))


def commands() -> list[str]:
    """What makes one service by hand."""
    return [
        f"iptables -t mangle -A PREROUTING -d {shapes.address(10, 1)} -p tcp -m multiport --dports 80,443"
        " -j MARK --set-mark 1",
        "ipvsadm -A -f 1 -s wlc",
        *(f"ipvsadm -a -f 1 -r {server} -g -w 1" for server in shapes.servers(1)),
    ]


def play(name: str) -> float:
    """Run a playbook."""
    command = ["ansible-playbook", "--inventory", FOLDER / "hosts.yml", FOLDER / f"{name}.yml"]

    def run() -> None:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:]

    return seconds(run)


def load() -> float:
    empty()
    took = play("module")
    check(SERVICES)
    return took


def extrapolated(start: float) -> float:
    empty()
    took = play("usual")
    check(1)
    return start + (took - start) * SERVICES


def empty() -> None:
    """Unloading ip_vs frees what it keeps of removed real servers, and slows down who adds others."""
    on_router("iptables -t mangle -F; iptables -t mangle -X; ipvsadm -C; modprobe -r ip_vs_wlc ip_vs")


def check(services: int) -> None:
    """So many services are there, all with their servers and rules."""
    table = on_router("ipvsadm -Sn").splitlines()
    assert len(table) == services * (1 + shapes.REAL_SERVERS), f"{len(table)} lines instead of {services} services"
    marks = on_router("iptables-save -t mangle").count("-j MARK --set-xmark")
    assert marks == services, f"{marks} rules instead of {services}"


def on_router(command: str) -> str:
    return tool(LAB, "fleet", "exec", "router1", "sh", "-c", command)
