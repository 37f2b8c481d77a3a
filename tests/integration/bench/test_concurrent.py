# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Several writers on one router: runs of ours in several processes, and other people's commands beside them."""

from __future__ import annotations

import itertools
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from ansible.module_utils.basic import AnsibleModule

from ansible_collections.lvs.fleet.tests.integration.harness import FAMILIES, Result, Router, Snapshot
from ansible_collections.lvs.fleet.tests.integration.load import FORK
from ansible_collections.lvs.fleet.tests.integration.moments import Interruption, at_each_moment
from ansible_collections.lvs.fleet.tests.integration.places import EVERY
from ansible_collections.lvs.fleet.tests.integration.shapes import service

ROUNDS = 6
LONGEST = 60


def web(**settings: Any) -> dict[str, Any]:
    """A service of both families."""
    traffic = {"destination": ["192.0.2.10", "2001:db8::10"], "protocol": "tcp", "ports": [80, 443]}
    usual = {"real_servers": [{"address": "10.0.0.11"}, {"address": "10.0.0.12"}, {"address": "2001:db8:1::11"}]}
    return service("web", 80, traffic, **{**usual, **settings})


def extra(name: str, fwmark: int) -> dict[str, Any]:
    traffic = {"destination": f"192.0.2.{fwmark}", "protocol": "udp", "ports": [53]}
    return service(name, fwmark, traffic, real_servers=[{"address": "10.0.0.11"}])


# Two ways to declare web, each with a service that the other one does not have.
ONE = [web(), extra("one", 101)]
TWO = [web(scheduler="rr", real_servers=[{"address": "10.0.0.12", "weight": 2}, {"address": "10.0.0.13"}])]
TWO += [extra("two", 102)]


def ours(snapshot: Snapshot) -> tuple[list[str], ...]:
    return (*(snapshot.own_rules(family) for family in FAMILIES), snapshot.services())


def settle(router: Router, services: list[dict[str, Any]]) -> tuple[list[str], ...]:
    """What there is of ours after a run that has the router for itself."""
    router.run("lvs_service", services=services)
    return ours(router.snapshot())


# -- two of ours --------------------------------------------------------------------------------------------------


@contextmanager
def others(count: int = 1) -> Iterator[ProcessPoolExecutor]:
    """Processes of our own on the same router."""
    with ProcessPoolExecutor(count, mp_context=FORK) as pool:
        yield pool


def at_once(router: Router, *runs: dict[str, Any]) -> list[Result]:
    """Run lvs_service several times at the same time; every run has to succeed."""
    with others(len(runs)) as pool:
        return [done.result() for done in [pool.submit(router.run, "lvs_service", **options) for options in runs]]


@contextmanager
def journal(file: Path) -> Iterator[Callable[[], list[str]]]:
    """Who turns to the kernel, one process after the other, each named once for as long as it goes on."""

    def note() -> None:
        with file.open("a") as journal:
            journal.write(f"{os.getpid()}\n")
        time.sleep(0.005)

    def turns() -> list[str]:
        return [pid for pid, _moments in itertools.groupby(file.read_text().split())]

    with at_each_moment(note):
        yield turns


def test_two_inventories(router: Router, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two controllers that do not agree take turns: in the end there is what the later one declares, and no mixture."""
    allowed = [settle(router, services) for services in (ONE, TWO)]
    assert allowed[0] != allowed[1]
    last = Counter[int]()
    for number in range(ROUNDS):
        settle(router, [])
        with journal(tmp_path / str(number)) as turns:
            at_once(router, *[{"services": services} for services in ((ONE, TWO), (TWO, ONE))[number % 2]])
        assert len(turns()) == 2, "the runs have interleaved"
        last[allowed.index(ours(router.snapshot()))] += 1
    with capsys.disabled():
        print(f"\ntwo inventories at once: {ROUNDS} times; the first was the later one {last[0]} times")


def test_the_same_inventory_twice(router: Router, tmp_path: Path) -> None:
    """Of two runs of one inventory one does it all and the other finds nothing to do."""
    for number, services in enumerate((ONE, TWO) * 2):
        with journal(tmp_path / str(number)) as turns:
            results = at_once(router, {"services": services}, {"services": services})
        assert len(turns()) == 2, "the runs have interleaved"
        assert sorted(result["changed"] for result in results) == [False, True]
    router.is_settled("lvs_service", services=TWO)


def test_two_that_share_a_router(router: Router, tmp_path: Path) -> None:
    """With purge none each manages services of its own names, and neither undoes what the other does."""
    mine = [{"services": [extra("mine", number)], "purge": "none"} for number in (110, 111)]
    yours = [{"services": [extra("yours", number)], "purge": "none"} for number in (120, 121)]
    for number, pair in enumerate(itertools.product(mine, yours)):
        with journal(tmp_path / str(number)) as turns:
            at_once(router, *pair)
        assert len(turns()) == 2, "the runs have interleaved"
        for options in pair:
            router.is_settled("lvs_service", **options)


@contextmanager
def held_by_a_run(router: Router, services: list[dict[str, Any]]) -> Iterator[tuple[int, Callable[[], None]]]:
    """A run in another process that has the lock and does not go on until it is let; its process, and what lets it."""
    began, go_on = FORK.Event(), FORK.Event()

    def stop() -> None:
        began.set()
        go_on.wait()

    with others() as pool:
        with at_each_moment(Interruption(3, stop)):
            done: Future[Result] = pool.submit(router.run, "lvs_service", services=services)
        [pid] = pool._processes
        try:
            assert began.wait(LONGEST)
            yield pid, go_on.set
        finally:
            go_on.set()
        done.result()


def test_who_waits_for_whom(router: Router) -> None:
    """A run that cannot have the router in time says who has it, and has changed nothing; one that waits can go on."""
    before = ours(router.snapshot())
    with held_by_a_run(router, ONE) as (pid, _go_on):
        message = router.fail("lvs_service", services=TWO, lock_timeout=1)
        said = rf"/run/lock/lvs-fleet\.lock: still held by process {pid} \(.+ since .+\) after waiting for 1 s"
        assert re.fullmatch(said, message)
        assert ours(router.snapshot()) == before
    with held_by_a_run(router, TWO) as (pid, go_on), others() as pool:
        waits, pause, warnings = FORK.Event(), time.sleep, FORK.SimpleQueue()
        with (
            patch.object(time, "sleep", lambda seconds: (waits.set(), pause(seconds))),
            # Where something of the controller is imported, Ansible takes us for that and shows warnings at once.
            patch.object(AnsibleModule, "warn", lambda _module, text: warnings.put(text)),
        ):
            waiting = pool.submit(router.run, "lvs_service", services=ONE, lock_timeout=LONGEST)
        assert waits.wait(LONGEST)
        go_on()
        assert waiting.result()["changed"]
        told = [warnings.get() for _warning in iter(warnings.empty, True)]
        assert any(re.fullmatch(rf"waited \d+ s for process {pid} \(.+ since .+\)", text) for text in told), told
    router.is_settled("lvs_service", services=ONE)


# -- beside others ------------------------------------------------------------------------------------------------

# What somebody does again and again. The rules and services with an even number stay.
_BUSY = """
n=0
until [ -e "$1" ]; do
    n=$((n + 1))
    iptables -w 10 -t mangle -A PREROUTING -d 203.0.113.9/32 -j MARK --set-mark $n || exit 1
    ipvsadm -A -f $((9000 + n)) -s rr || exit 2
    ipvsadm -a -f $((9000 + n)) -r 10.9.0.1 -g -w $n || exit 3
    [ $((n % 2)) = 0 ] && continue
    iptables -w 10 -t mangle -D PREROUTING -d 203.0.113.9/32 -j MARK --set-mark $n || exit 4
    ipvsadm -D -f $((9000 + n)) || exit 5
done
echo $n
"""


def test_beside_other_commands(router: Router, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """While somebody adds and deletes rules and services of his own, runs succeed, and he has all of his in the end."""
    enough = tmp_path / "enough"
    expected = [settle(router, services) for services in (ONE, TWO)]
    with others() as pool:
        theirs = pool.submit(router.tool, "sh", "-c", _BUSY, "busy", str(enough))
        for services in (ONE, TWO) * ROUNDS:
            assert router.run("lvs_service", services=services)["changed"]
        enough.touch()
        rounds = int(theirs.result())
    assert rounds >= ROUNDS
    left = router.snapshot()
    kept = range(2, rounds + 1, 2)
    rules = [line for line in left.foreign_rules("ipv4").splitlines() if line.startswith("-A PREROUTING")]
    assert rules == [f"-A PREROUTING -d 203.0.113.9/32 -j MARK --set-xmark {n:#x}/0xffffffff" for n in kept]
    services = [f"-A -f {9000 + n} -s rr" for n in kept] + [f"-a -f {9000 + n} -r 10.9.0.1:0 -g -w {n}" for n in kept]
    assert [line for line in left.services() if " -f 9" in line] == sorted(services)
    own = (*(left.own_rules(family) for family in FAMILIES), [x for x in left.services() if " -f 9" not in x])
    assert own == expected[1]
    with capsys.disabled():
        print(f"\nbeside other commands: {2 * ROUNDS} runs, {rounds} rounds of theirs, none failed, nothing lost")


def test_a_run_that_fails_beside_others(router: Router) -> None:
    """What somebody adds or removes while a run fails stays as he left it: the way back is only ours."""
    router.ipvsadm("-A -f 9001 -s rr\n-A -f 9002 -s rr")
    before = settle(router, ONE)
    router.shadow("ip6tables-restore", 'ipvsadm -D -f 9001; ipvsadm -A -f 9003 -s rr; echo "no" >&2; exit 4')
    message = router.fail("lvs_service", services=[{**TWO[0], "fwmark": 81}, TWO[1]])
    router.unshadow()
    assert message.endswith("were undone; the router is as it was before.")
    rules4, rules6, services = before
    kept = sorted({*services, "-A -f 9003 -s rr"} - {"-A -f 9001 -s rr"})
    assert ours(router.snapshot()) == (rules4, rules6, kept)


# -- under a flush ------------------------------------------------------------------------------------------------

FLUSHES = {
    "iptables -F": "iptables -t mangle -F; iptables -t mangle -X",
    "iptables-restore": "printf '*mangle\\nCOMMIT\\n' | iptables-restore",
    "ipvsadm -C": "ipvsadm -C",
}


@pytest.mark.parametrize("flush", FLUSHES)
def test_flush(router: Router, flush: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Somebody flushes at moments of a run: it succeeds, or goes back and says so; the next one makes all whole.

    Each chain and each service is what it was before, what it was to be, or nothing; never a part of it.
    """
    # No service goes: once its rules are flushed, nobody could tell that it was ours.
    before, after = ONE, [*TWO, extra("one", 101)]
    expected = [settle(router, services) for services in ([], before, after)]
    outcomes = Counter[str]()
    for moment in itertools.count(list(FLUSHES).index(flush), EVERY):
        router.run("lvs_service", services=before)
        interruption = Interruption(moment, lambda: router.tool("sh", "-c", FLUSHES[flush]))
        with at_each_moment(interruption):
            result = router.call("lvs_service", services=after)
        if not interruption.happened:
            break
        outcomes[outcome(result)] += 1
        wholes = [parts(state) for state in expected]
        for part, lines in parts(ours(router.snapshot())).items():
            assert lines in [whole.get(part) for whole in wholes], (moment, result)
        router.run("lvs_service", services=after)
        assert ours(router.snapshot()) == expected[2]
    assert moment > 10
    with capsys.disabled():
        print(f"\n{flush} at {outcomes.total()} of {moment} moments: {dict(outcomes)}")


def parts(state: tuple[list[str], ...]) -> dict[str, list[str]]:
    """Each chain, and each service with its real servers; a chain without rules is as good as none."""
    *chains, services = state
    found = {family: rules for family, rules in zip(FAMILIES, chains, strict=True) if "lvs:" in str(rules)}
    for line in services:
        [service] = re.findall(r"^-[Aa] (-f \d+(?: -6)?)", line)
        found.setdefault(service, []).append(line)
    return found


def outcome(result: Result) -> str:
    """How a run ended; if it failed, its last line has to say what became of the router."""
    if not result.get("failed"):
        return "succeeded"
    last = result["msg"].splitlines()[-1]
    assert "Traceback" not in result["msg"] and "exception" not in result, result
    assert last == "Nothing had been changed." or last.endswith("were undone; the router is as it was before."), result
    return "undone"
