# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a run costs in which there is nothing to do: on one router and on a fleet, beside plays of as many ping tasks.

The routers are machines of the lab, on user-mode-linux, with the services of the demo. They share this machine's
processors with Ansible, which real routers do not; so the seconds say little, and the ratios what they should.

To the controller the fleet has 50 routers, but each machine has several names: to boot 50 machines and deploy to them
for the first time takes longer than all that is measured here.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from ansible_collections.lvs.fleet.tests.bench.measure import Comparison, compared, in_turns, seconds

TESTS = Path(__file__).resolve().parent.parent
LAB = TESTS / "lab" / "lab"
FOLDER = TESTS.parent / ".build" / "bench-fleet"
INVENTORY = FOLDER / "inventory"
MACHINES, NAMES = 10, 5
FLEET = MACHINES * NAMES
# How many routers, and how often.
SIZES = {1: 2, MACHINES: 1, FLEET: 1}
# What goes to a router when nothing is to be done, and what stays on the controller.
ROLE = {
    "Look at the router",
    "Make the virtual services what they are declared to be",
    "Keep the declared state for the next boot",
    "Let the packets of the services in",
}
DEPLOY = ROLE | {"Look for what does not fit together"}
CONTROLLER = {
    "Validating arguments against arg spec",
    "Make the machine an LVS router",
    "Work out what the services need of a router",
    "Check the virtual services and the variables",
    "Check that the role fits the router",
    "Load the names of the distribution's packages and files",
}
# Once for all routers, but for the last.
LAST = {"Put the summary together", "Summary", "Expect that nothing has failed"}
RECAP = re.compile(r"^(\S+)\s+: ok=(\d+) +changed=(\d+) +unreachable=(\d+) +failed=(\d+) ", re.MULTILINE)


def comparisons() -> Iterator[Comparison]:
    try:
        start()
        yield compared(
            "role with nothing to do, 1 router",
            "s",
            reference="as many ping tasks",
            ways={"as many ping tasks": partial(ping, ROLE, 1), "the role": partial(converged, "role.yml", ROLE, 1)},
            repetitions=SIZES[1],
            note=f"{len(ROLE)} tasks that go to the router; both with the start of ansible-playbook",
        )
        for routers, repetitions in SIZES.items():
            yield deployment(routers, repetitions)
    finally:
        subprocess.run([LAB, "fleet", "down"], check=True)


def deployment(routers: int, repetitions: int) -> Comparison:
    """The playbook, in seconds per router."""
    ways = {
        "as many ping tasks": partial(ping, DEPLOY, routers),
        "lvs.fleet.deploy": partial(converged, "lvs.fleet.deploy", DEPLOY, routers),
    }
    samples = in_turns(ways, repetitions)
    per_router = {way: [figure / routers for figure in figures] for way, figures in samples.items()}
    note = f"{len(DEPLOY)} tasks that go to each router, all routers in one batch, as many forks"
    note += f"; {MACHINES} machines with {NAMES} names each" * (routers == FLEET)
    title = f"playbook with nothing to do, {routers} router{'s' * (routers > 1)}"
    return Comparison(title, "s per router", "as many ping tasks", per_router, note)


def start() -> None:
    """Boot the fleet and bring it to where nothing is left to do."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    shutil.copytree(TESTS / "demo" / "inventory", INVENTORY)
    hosts = INVENTORY / "hosts.yml"
    subprocess.run([LAB, "fleet", "up", "--routers", str(MACHINES), "--inventory", hosts], check=True)
    hosts.write_text(json.dumps(with_more_names(yaml.safe_load(hosts.read_text()))))
    write("role.yml", [{"name": "the role", "ansible.builtin.import_role": {"name": "lvs.fleet.lvs_router"}}])
    for tasks in (ROLE, DEPLOY):
        pings = [{"name": f"ping {number}", "ansible.builtin.ping": {}} for number, _task in enumerate(tasks)]
        write(f"ping-{len(tasks)}.yml", pings)
    recap(playbook("lvs.fleet.deploy", MACHINES), MACHINES)


def with_more_names(inventory: dict[str, Any]) -> dict[str, Any]:
    """The inventory of the lab, with the routers once more for each further name."""
    group = inventory["all"]["children"]["lvs_routers"]
    hosts = group["hosts"]
    group["hosts"] = hosts | {f"{name}-{copy}": host for copy in range(1, NAMES) for name, host in hosts.items()}
    return inventory


def write(name: str, tasks: list[dict[str, Any]]) -> None:
    """A playbook with these tasks, and otherwise like lvs.fleet.deploy."""
    play = {"name": name, "hosts": "lvs_routers", "become": True, "gather_facts": False, "tasks": tasks}
    (FOLDER / name).write_text(json.dumps([play]))


def ping(tasks: set[str], routers: int) -> float:
    """A play of as many ping tasks."""
    outputs: list[str] = []
    took = seconds(lambda: outputs.append(playbook(f"ping-{len(tasks)}.yml", routers)))
    expected = [(len(tasks), 0)] * routers
    assert recap(outputs[0], routers) == expected, outputs[0]
    return took


def converged(name: str, tasks: set[str], routers: int) -> float:
    """A playbook that finds nothing to do, and does exactly these tasks on every router."""
    outputs: list[str] = []
    took = seconds(lambda: outputs.append(playbook(name, routers)))
    done = done_tasks(outputs[0])
    wanted = tasks | CONTROLLER | (LAST if tasks == DEPLOY else set())
    assert done == wanted, sorted(done ^ wanted)
    assert not any(changed for _ok, changed in recap(outputs[0], routers)), outputs[0]
    return took


def playbook(name: str, routers: int) -> str:
    """The output of a playbook for the first routers of the fleet."""
    command = ["ansible-playbook", "--inventory", INVENTORY, "--limit", f"lvs_routers[0:{routers - 1}]"]
    command += ["--forks", str(routers), "--extra-vars", '{"deploy_serial": ["100%"]}']
    done = subprocess.run([*command, name], cwd=FOLDER, text=True, stdout=subprocess.PIPE, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout


def done_tasks(output: str) -> set[str]:
    """The names of the tasks that some host has done and not skipped, without the role's name."""
    found = set()
    for name, lines in re.findall(r"^TASK \[(.*?)\] \**\n((?:.+\n)*)", output, re.MULTILINE):
        if re.search(r"^(ok|changed|included): ", lines, re.MULTILINE):
            found.add(name.rpartition(" : ")[2].partition(" 'main'")[0])
    return found


def recap(output: str, routers: int) -> list[tuple[int, int]]:
    """How many tasks were done on each host, and how many of them changed it; none may have failed."""
    found = [tuple(map(int, numbers)) for _host, *numbers in RECAP.findall(output)]
    assert len(found) == routers and not any(any(numbers[2:]) for numbers in found), output
    return [(numbers[0], numbers[1]) for numbers in found]
