# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""kill -9 on lvs_service, wherever it is: no packet without a service, nothing of others lost, and the next run heals.

KILLS=1000 in the environment asks for so many at random moments.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from typing import Any

import pytest

from ansible_collections.lvs.fleet.plugins.module_utils._ipvs.machine import IpvsTable
from ansible_collections.lvs.fleet.plugins.module_utils._marks import machine as marks_machine
from ansible_collections.lvs.fleet.tests.integration import foreign, oracle
from ansible_collections.lvs.fleet.tests.integration.child import Child, at_step, die
from ansible_collections.lvs.fleet.tests.integration.harness import FAMILIES, Namespace, Result, Router, Snapshot
from ansible_collections.lvs.fleet.tests.integration.places import EVERY
from ansible_collections.lvs.fleet.tests.integration.shapes import service

KILLS = int(os.environ.get("KILLS") or 16)
WRITES = {marks_machine.write.__code__, IpvsTable.write.__code__}


def traffic(number: int, *ports: int) -> dict[str, Any]:
    return {
        "destination": [f"192.0.2.{number}", f"2001:db8::{number}"],
        "protocol": ["tcp"],
        "ports": list(ports),
    }


def servers(*numbers: int, weight: int = 1) -> list[dict[str, Any]]:
    addresses = [address for n in numbers for address in (f"10.0.0.{n}", f"2001:db8:1::{n}")]
    return [{"address": address, "weight": weight} for address in addresses]


def by_address(name: str, *entries: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return {"name": name, "traffic": list(entries), **settings}


FTP = {"helper": "ftp", "persistence_timeout": 300, "forward_method": "masquerade"}
# From one to the other everything happens: services and real servers come, change and go, and so do marks and chains.
INVENTORIES = (
    [
        service("web", 80, traffic(10, 80, 443), real_servers=servers(1, 2)),
        service("old", 7, traffic(11, 25), real_servers=servers(3)),
        service("dns", 53, traffic(12, 53), scheduler="rr", real_servers=servers(1)),
        by_address("mail", traffic(14, 25, 587), real_servers=servers(1, 2)),
        by_address("turns", traffic(15, 143), real_servers=servers(3)),
    ],
    [
        service("dns", 54, traffic(12, 53), real_servers=servers(1)),
        service("web", 80, traffic(10, 80), scheduler="sh", real_servers=servers(2, 4, weight=5)),
        service("ftp", 21, traffic(13, 20, 21), real_servers=servers(5), **FTP),
        by_address("mail", traffic(14, 25, 465), scheduler="rr", real_servers=servers(2, 4)),
        service("turns", 143, traffic(15, 143), real_servers=servers(3)),
        by_address("new", traffic(16, 110), real_servers=servers(1)),
    ],
)
MARKS = (80, 7, 53, 54, 21, 143)
# Where the addresses of ours begin, to ipvsadm.
ADDRESSES = (" 192.0.2.1", " [2001:db8::1")


def picture(there: Snapshot) -> dict[str, Any]:
    """What has to be the same wherever a run came from; the kernel lists services in an order of its own."""
    rules = {family: (there.own_rules(family), there.foreign_rules(family)) for family in FAMILIES}
    return {**rules, "services": there.services()}


class Victim:
    """A router between two inventories, each of which it has seen, and runs that are killed on the way."""

    def __init__(self, router: Router) -> None:
        self.router = router
        self.side = 0
        self.foreign_services = router.snapshot(rules=False).services()
        self.unrecorded = oracle.unrecorded(router.snapshot())
        self.states = []
        for side in (0, 1, 0):
            self.run(side)
            self.states.append(picture(router.snapshot()))
        assert self.states.pop() == self.states[0]
        self.outcomes: Counter[str] = Counter()

    def run(self, side: int, **options: Any) -> Result:
        return self.router.run("lvs_service", services=INVENTORIES[side], **options)

    def child(self, step: int = -1) -> Child:
        """On the way to the other side, killed at that step."""

        def go() -> Result:
            at_step(step, die, WRITES)
            return self.run(1 - self.side)

        return Child(go)

    def survive(self, answer: Result | None) -> bool:
        """What is there after the kill, and that the same run again comes to the end. Whether it was killed at all."""
        there = self.router.snapshot()
        self.outcomes["not killed" if answer else self.how_far(picture(there))] += 1
        assert answer is None or not answer.get("failed"), answer
        assert oracle.lone_marks(there) == set()
        assert oracle.unrecorded(there) == self.unrecorded
        others = [line for line in there.services_without(*MARKS) if not any(own in line for own in ADDRESSES)]
        assert others == self.foreign_services
        for family in FAMILIES:
            assert there.foreign_rules(family) == self.states[0][family][1]
        self.side = 1 - self.side
        self.run(self.side)
        assert picture(self.router.snapshot()) == self.states[self.side]
        return answer is None

    def how_far(self, there: dict[str, Any]) -> str:
        return {self.side: "as before", 1 - self.side: "done"}.get(
            next((side for side, state in enumerate(self.states) if state == there), -1), "half way"
        )


@pytest.fixture
def victim(router: Router) -> Victim:
    foreign.settle_rules(router)
    foreign.settle_services(router)
    return Victim(router)


def tell(what: str, outcomes: Counter[str], capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n{what}: {', '.join(f'{count} {outcome}' for outcome, count in sorted(outcomes.items()))}")


def test_killed_at_steps_that_write(victim: Victim, capsys: pytest.CaptureFixture[str]) -> None:
    """Before calls that write on the way there, and after them on the way back."""
    step = 0
    while victim.outcomes["not killed"] < 2:
        child = victim.child(step)
        victim.survive(child.wait())
        child.wait_for_commands()
        step += EVERY
    tell("kill -9 at steps of lvs_service", victim.outcomes, capsys)
    assert victim.outcomes["half way"] > 45 // EVERY


def test_killed_at_any_moment(victim: Victim, capsys: pytest.CaptureFixture[str]) -> None:
    """Its commands may still be at work then, and the next run does not wait for them by itself."""
    began = time.monotonic()
    undisturbed = victim.child().wait()
    duration = time.monotonic() - began
    assert not victim.survive(undisturbed)
    chance, killed = random.Random(KILLS), 0
    while killed < KILLS:
        child = victim.child()
        time.sleep(chance.uniform(0, duration))
        child.kill()
        if victim.survive(child.wait()):
            killed += 1
        else:
            # This one was quicker than the one that was measured.
            duration *= 0.9
        child.wait_for_commands()
    tell("kill -9 at any moment of lvs_service", victim.outcomes, capsys)


def test_the_way_does_not_count(victim: Victim) -> None:
    """What all the above end with is what a run on an empty router makes."""
    empty = Namespace()
    try:
        with empty.inside():
            for side, state in enumerate(victim.states):
                victim.run(side, purge="all")
                there = victim.router.snapshot()
                assert there.services() == [line for line in state["services"] if line not in victim.foreign_services]
                for family in FAMILIES:
                    ours = [line for line in state[family][0] if "lvs:" in line and "vpn:" not in line]
                    assert [line for line in there.own_rules(family) if "lvs:" in line] == ours
    finally:
        empty.close()
