# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The real kernel says no, at every place of a plan: all is as before, and the message says what was done."""

from __future__ import annotations

import resource
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest

from ansible_collections.lvs.fleet.plugins.module_utils import _engine
from ansible_collections.lvs.fleet.plugins.module_utils._model import (
    Chain,
    ChainEdit,
    ChainId,
    IpvsOperation,
    Operation,
    RealServer,
    ServiceId,
    VirtualService,
)
from ansible_collections.lvs.fleet.plugins.module_utils._router import Router as EngineRouter
from ansible_collections.lvs.fleet.plugins.modules import lvs_service
from ansible_collections.lvs.fleet.tests.integration import foreign
from ansible_collections.lvs.fleet.tests.integration.bench.test_kills import INVENTORIES, WRITES, picture, tell
from ansible_collections.lvs.fleet.tests.integration.child import Child, at_step
from ansible_collections.lvs.fleet.tests.integration.harness import CHAIN, Result, Router
from ansible_collections.lvs.fleet.tests.integration.places import EVERY

UNDONE = "operations done until then were undone; the router is as it was before."
HALF = "Going back failed as well, so the router is half changed"


@pytest.fixture
def busy(router: Router) -> Router:
    """A router with services of ours and with rules and services of others."""
    foreign.settle_rules(router)
    foreign.settle_services(router)
    router.run("lvs_service", services=INVENTORIES[0])
    return router


def told_in_full(message: str) -> None:
    """What was refused, and what became of the rest."""
    *refusal, rest = message.split("\n")
    assert refusal
    assert rest == "Nothing had been changed." or rest.endswith(UNDONE)


# -- one operation that the kernel refuses ------------------------------------------------------------------------

KEPT = VirtualService(ServiceId("ipv4", 80))
NOBODY = VirtualService(ServiceId("ipv4", 99))
THERE, NOT_THERE = RealServer("10.0.0.2"), RealServer("10.0.0.77")
GUE = {"tunnel_type": "gue", "tunnel_checksum": "nocsum"}
# What the kernel refuses by itself, or because somebody was there meanwhile. No validation stands before these.
REFUSALS = {
    "lower threshold above upper": (
        "a",
        KEPT,
        NOT_THERE._replace(upper_threshold=1, lower_threshold=2),
        "the lower thr",
    ),
    "the same in an edit": ("e", KEPT, THERE._replace(upper_threshold=1, lower_threshold=2), "the lower threshold"),
    "the other family, not by tunnel": (
        "a",
        KEPT,
        RealServer("2001:db8:1::77"),
        "an address is not unicast, or a setting",
    ),
    "multicast": ("a", KEPT, RealServer("224.0.0.1"), "an address is not unicast"),
    "gue without a port": (
        "a",
        KEPT,
        NOT_THERE._replace(forward_method="tunnel", **GUE),
        "an address is not",
    ),
    "unknown scheduler": ("A", NOBODY._replace(scheduler="nosuch"), None, "it has no scheduler nosuch"),
    "unknown scheduler in an edit": ("E", KEPT._replace(scheduler="nosuch"), None, "it has no scheduler nosuch"),
    "unknown engine": (
        "A",
        NOBODY._replace(persistence_timeout=9, persistence_engine="nosuch"),
        None,
        "no persistence engine nosuch",
    ),
    "the service is there": ("A", KEPT, None, "it was added by somebody else meanwhile"),
    "the server is there": ("a", KEPT, THERE, "it was added by somebody else meanwhile"),
    "the service is gone, edit": ("E", NOBODY, None, "the virtual service was removed by somebody else meanwhile"),
    "the service is gone, removal": ("D", NOBODY, None, "the virtual service was removed by somebody else meanwhile"),
    "the service is gone, server": ("a", NOBODY, THERE, "the virtual service was removed by somebody else meanwhile"),
    "the server is gone, edit": ("e", KEPT, NOT_THERE, "the real server was removed by somebody else meanwhile"),
    "the server is gone, removal": ("d", KEPT, NOT_THERE, "the real server was removed by somebody else meanwhile"),
}
# The IPVS half alone takes no process, so there is time for each refusal at each place.
BEFORE = [
    {"fwmark": 80, "real_servers": [{"address": "10.0.0.1"}, {"address": "10.0.0.2"}]},
    {"fwmark": 7, "family": "ipv6", "real_servers": [{"address": "2001:db8:1::1"}]},
]
AFTER = [
    {"fwmark": 80, "persistence_timeout": 60, "real_servers": [{"address": "10.0.0.2"}, {"address": "10.0.0.3"}]},
    {"fwmark": 8, "scheduler": "rr", "real_servers": [{"address": "10.0.0.1"}, {"address": "10.0.0.4"}]},
    {"protocol": "tcp", "address": "192.0.2.10", "port": 80, "real_servers": [{"address": "10.0.0.1"}]},
]


@contextmanager
def in_between(wrong: Operation, place: int) -> Iterator[list[int]]:
    """One operation more at this place of what is written next; how many there are without it."""
    write = EngineRouter.write
    counts: list[int] = []

    def once(self: EngineRouter, operations: list[Operation]) -> Iterator[int]:
        more = [] if counts else [wrong]
        counts.append(len(operations))
        return write(self, [*operations[:place], *more, *operations[place:]])

    with patch.object(EngineRouter, "write", once):
        yield counts


def refuse_at_places(router: Router, first: int, wrong: Operation, module: str, **options: Any) -> Iterator[str]:
    """The messages of a module that fails at place after place, from the first on, and leaves no trace."""
    rules = module == "lvs_service"
    before = picture(router.snapshot(rules=rules))
    place, places = first, 1
    while place <= places:
        with in_between(wrong, place) as counts:
            message = router.fail(module, **options)
        yield message
        told_in_full(message)
        assert picture(router.snapshot(rules=rules)) == before
        place, places = place + EVERY, counts[0]
    assert places > 7
    assert router.run(module, **options)["changed"]
    router.is_settled(module, **options)


@pytest.mark.parametrize("refusal", REFUSALS)
def test_refused_at_places(router: Router, refusal: str) -> None:
    command, virtual, server, meaning = REFUSALS[refusal]
    router.run("ipvs_service", services=BEFORE)
    wrong = IpvsOperation(command, virtual, server)
    for message in refuse_at_places(router, 0, wrong, "ipvs_service", services=AFTER, purge=True):
        assert message.startswith(f"ipvsadm -{command} -f {virtual.id.fwmark}") and meaning in message


MARK_CHAIN = ChainId("ipv4", "mangle", "PREROUTING", CHAIN)
WRONG: dict[str, Operation] = {
    "a server": IpvsOperation("a", KEPT, NOT_THERE._replace(lower_threshold=1)),
    "a rule that is gone": ChainEdit(MARK_CHAIN, (f"-D {CHAIN} -s 203.0.113.77/32 -j RETURN",), Chain()),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_both_halves_refused_at_places(busy: Router, wrong: str) -> None:
    for message in refuse_at_places(
        busy, list(WRONG).index(wrong), WRONG[wrong], "lvs_service", services=INVENTORIES[1]
    ):
        assert message.startswith(
            ("ipvsadm -a -f 80 -r 10.0.0.77 ", "iptables-restore --noflush --wait 10: exit status")
        )


TEXTS = {
    "a chain that is not there": "-A NOSUCH -j RETURN",
    "a target that is not there": f"-A {CHAIN} -j NOSUCH",
    "a rule of another family": f"-A {CHAIN} -d 2001:db8::1 -j RETURN",
    "not in this table": f"-A {CHAIN} -j SNAT --to-source 192.0.2.1",
    "a chain in use": f"-X {CHAIN}",
    "a jump to itself": f"-A {CHAIN} -j {CHAIN}",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_refused_rules(busy: Router, text: str) -> None:
    before = picture(busy.snapshot())
    with in_between(ChainEdit(MARK_CHAIN, (f"-A {CHAIN} -s 203.0.113.77/32 -j RETURN", text), Chain()), 12):
        message = busy.fail("lvs_service", services=INVENTORIES[1])
    assert message.startswith("iptables-restore --noflush --wait 10: exit status")
    told_in_full(message)
    assert picture(busy.snapshot()) == before


# -- somebody else at the same time -------------------------------------------------------------------------------

MEANWHILE = {
    "our service comes": ("-A -f 8 -s rr", "ipvsadm -A -f 8 -s rr: the kernel says: File exists"),
    "our server comes": ("-a -f 80 -r 10.0.0.3", "ipvsadm -a -f 80 -r 10.0.0.3 -g -w 1: the kernel says: File exists"),
    "our service goes": ("-D -f 80", "ipvsadm -a -f 80 -r 10.0.0.3 -g -w 1: the kernel says: No such process"),
    "our server goes": ("-d -f 80 -r 10.0.0.1", "ipvsadm -d -f 80 -r 10.0.0.1: the kernel says: No such file"),
}


@contextmanager
def meanwhile(act: Callable[[], object]) -> Iterator[None]:
    """Somebody does this after a run has read the state, and before it writes."""
    prepare = EngineRouter.prepare

    def late(self: EngineRouter, operations: list[Operation]) -> None:
        prepare(self, operations)
        act()

    with patch.object(EngineRouter, "prepare", late):
        yield


@pytest.mark.parametrize("case", MEANWHILE)
def test_somebody_is_faster(router: Router, case: str) -> None:
    """All is as it was when the run began, and the next run converges."""
    hand, refusal = MEANWHILE[case]
    foreign.settle_services(router)
    router.run("ipvs_service", services=BEFORE)
    before = router.snapshot(rules=False).services()
    with meanwhile(lambda: router.ipvsadm(hand)):
        message = router.fail("ipvs_service", services=AFTER)
    assert message.startswith(refusal)
    told_in_full(message)
    assert router.snapshot(rules=False).services() == before
    router.run("ipvs_service", services=AFTER)
    router.is_settled("ipvs_service", services=AFTER)


def test_what_others_did_meanwhile_is_not_undone(router: Router) -> None:
    """The way back is about what this run has touched."""
    foreign.settle_services(router)
    router.run("ipvs_service", services=BEFORE)
    before = router.snapshot(rules=False).services()
    theirs = ["-A -f 4242 -s rr", "-a -f 4242 -r 10.9.9.9:0 -g -w 1"]
    with meanwhile(lambda: router.ipvsadm("\n".join([*theirs, "-A -f 8"]))):
        message = router.fail("ipvs_service", services=AFTER)
    told_in_full(message)
    assert router.snapshot(rules=False).services() == sorted([*before, *theirs])


# -- want of anything ---------------------------------------------------------------------------------------------


def limit(kind: int, value: int) -> None:
    resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))


def in_want(router: Router, kind: int, begin: Callable[[], object], for_good: bool) -> Result:
    """A run in a process of its own that comes to want something, for good or until it goes back."""
    enough, converge, undo = resource.getrlimit(kind)[0], lvs_service.converge, _engine._undo

    def starved(*arguments: Any, **options: Any) -> Any:
        begin()
        try:
            return converge(*arguments, **options)
        finally:
            sys.setprofile(None)
            limit(kind, enough)

    def relieved(*arguments: Any) -> str:
        limit(kind, resource.getrlimit(kind)[0] if for_good else enough)
        return undo(*arguments)

    def go() -> Result:
        with patch.object(lvs_service, "converge", starved), patch.object(_engine, "_undo", relieved):
            return router.call("lvs_service", services=INVENTORIES[1], lock_timeout=0)

    answer = Child(go).wait()
    assert answer is not None
    return answer


def starve(router: Router, runs: Iterable[tuple[int, Callable[[], object], bool]]) -> Counter[str]:
    """Run after run in want of something: what each has said is true, and the next run converges."""
    outcomes: Counter[str] = Counter()
    before = picture(router.snapshot())
    for kind, begin, for_good in runs:
        answer = in_want(router, kind, begin, for_good)
        message = answer.get("msg", "")
        assert "Traceback" not in message, message
        half = HALF in message
        assert for_good or not half, message
        outcomes["done" if not answer.get("failed") else "half way, as it says" if half else "as before"] += 1
        if answer.get("failed") and not half:
            assert picture(router.snapshot()) == before, message
        if half:
            router.run("lvs_service", services=INVENTORIES[1], lock_timeout=0)
            router.is_settled("lvs_service", services=INVENTORIES[1])
        router.run("lvs_service", services=INVENTORIES[0], lock_timeout=0)
        assert picture(router.snapshot()) == before
    return outcomes


def test_out_of_files(busy: Router, capsys: pytest.CaptureFixture[str]) -> None:
    """From some step on no file, socket or pipe can be opened, so no command can be run."""
    steps = [partial(at_step, step, partial(limit, resource.RLIMIT_NOFILE, 3), WRITES) for step in range(0, 40, 6)]
    runs = [(resource.RLIMIT_NOFILE, step, place % 3 == 2) for place, step in enumerate(steps)]
    outcomes = starve(busy, runs)
    tell("out of files", outcomes, capsys)
    assert outcomes["as before"] > outcomes["done"]
