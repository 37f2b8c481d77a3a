# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Work grows with the number of rules, not with its square. Function calls are counted: seconds are never alike."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given

from ansible_collections.lvs.fleet.plugins.module_utils._declared.params import marks
from ansible_collections.lvs.fleet.plugins.module_utils._packets.match import disjoint
from ansible_collections.lvs.fleet.plugins.module_utils._packets.overlaps import Overlaps
from ansible_collections.lvs.fleet.plugins.modules import lvs_info, lvs_service
from ansible_collections.lvs.fleet.tests.unit.fake_kernel import FakeKernel, Rule
from ansible_collections.lvs.fleet.tests.unit.running import run_module
from ansible_collections.lvs.fleet.tests.unit.strategies import declared_marks

SIZES = (60, 120, 180)
# How much more the last step of SIZES may cost than the step before it. Sorting and searching need a few per cent.
BEND = 0.1


def address(number: int) -> str:
    return str(ip_address("192.0.0.0") + number)


def service(number: int) -> dict[str, Any]:
    traffic = [{"destination": [address(number)], "protocol": "tcp", "ports": [80, 443]}]
    server = {"address": "10.0.0.11", "forward_method": "direct"}
    return {"name": f"s{number}", "fwmark": number + 1, "traffic": traffic, "real_servers": [server]}


def router(number: int) -> FakeKernel:
    """With so many services of ours."""
    kernel = FakeKernel()
    run_module(lvs_service, kernel, services=[service(place) for place in range(number)])
    kernel.local = {address(place) for place in range(number)}
    return kernel


def mark_words(port: int, number: int, mark: int) -> str:
    return f"-d {address(number)}/32 -p tcp -m tcp --dport {port} -j MARK --set-xmark {mark:#x}/0xffffffff"


def add_to_hook(kernel: FakeKernel, texts: list[str]) -> None:
    kernel.mangle["ipv4"].chains["PREROUTING"] += [Rule(text) for text in texts]


def by_hand(kernel: FakeKernel, number: int, first_mark: int) -> None:
    """So many services that somebody made, on the addresses of ours with other ports."""
    services = [{**service(place), "name": f"h{place}", "fwmark": first_mark + place} for place in range(number)]
    run_module(lvs_service, kernel, services=services, purge="none")
    # They lose the rules that made them ours, and get such as a person writes.
    chain = kernel.mangle["ipv4"].chains["LVS-MARK"]
    chain[:] = [rule for rule in chain if "lvs:h" not in rule.text]
    add_to_hook(kernel, [mark_words(8080, place, first_mark + place) for place in range(number)])


def one_by_hand(number: int) -> FakeKernel:
    kernel = router(number)
    by_hand(kernel, 1, 100_000)
    return kernel


def many_by_hand(number: int) -> FakeKernel:
    kernel = router(1)
    by_hand(kernel, number, 100_000)
    return kernel


def conflicting(number: int) -> FakeKernel:
    """Each of them with a rule behind it that sees the same packets, so that none can be adopted."""
    kernel = many_by_hand(number)
    add_to_hook(kernel, [mark_words(8080, place, 9) for place in range(number)])
    return kernel


def in_turns(number: int) -> FakeKernel:
    """Of each the rules stand before and behind those of the next, so that no list has their order."""
    kernel = many_by_hand(number)
    turns = [(place, mark) for place in range(0, number, 2) for mark in (100_000 + place, 100_001 + place)]
    add_to_hook(kernel, [mark_words(81, place, mark) for place, mark in turns])
    add_to_hook(kernel, [mark_words(81, place, 100_000 + place) for place in range(0, number, 2)])
    return kernel


def foreign(number: int) -> FakeKernel:
    """Rules of others beside ours: for the same addresses, for many more, and for none of ours."""
    kernel = router(number)
    add_to_hook(kernel, [mark_words(8080, place, 9) for place in range(number)])
    kernel.mangle["ipv4"].chains["OWN"] = [Rule(f"-s {address(place)}/32 -j DROP") for place in range(number)]
    return kernel


def ports_of_one_address(number: int) -> FakeKernel:
    kernel = FakeKernel()
    ports = [{"destination": ["192.0.2.10"], "protocol": "tcp", "ports": [1000 + place]} for place in range(number)]
    services = [{**service(place), "traffic": [ports[place]]} for place in range(number)]
    run_module(lvs_service, kernel, services=services)
    add_to_hook(kernel, [f"-d 192.0.2.10/32 -p tcp -m tcp --dport {1500 + place} -j MARK --set-xmark 0x9/0xffffffff"
                         for place in range(number)])  # fmt: skip
    return kernel


def calls(work: Callable[[], object]) -> int:
    """How many functions are called. A profile would be told of each return and of each function in C, too."""
    count = 0

    def seen(_frame: Any, _event: str, _argument: Any) -> None:
        nonlocal count
        count += 1

    before = sys.gettrace()
    sys.settrace(seen)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def check_growth(prepare: Callable[[int], Callable[[], object]]) -> None:
    small, middle, large = (calls(prepare(size)) for size in SIZES)
    first, last = middle - small, large - middle
    assert last <= (1 + BEND) * first, (small, middle, large)


SHAPES = [router, one_by_hand, many_by_hand, conflicting, in_turns, foreign, ports_of_one_address]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
def test_reading_a_router(shape: Callable[[int], FakeKernel]) -> None:
    check_growth(lambda size: partial(run_module, lvs_info, shape(size)))


def adopting(number: int) -> Callable[[], dict[str, Any]]:
    kernel = FakeKernel()
    texts = [mark_words(port, place, place + 1) for place in range(number) for port in (80, 443)]
    add_to_hook(kernel, [*texts[:number], "-s 10.0.0.1/32 -j LOG", *texts[number:]])
    services = [service(place) for place in range(number)]
    return partial(run_module, lvs_service, kernel, services=services, adopt=True)


def test_adopting_many_rules() -> None:
    check_growth(adopting)
    assert "failed" not in adopting(1)()


@given(declared_marks(), declared_marks())
def test_overlaps_are_those_that_a_look_at_each_finds(some: list[dict[str, Any]], more: list[dict[str, Any]]) -> None:
    rules = marks(some).rules + marks(more).rules
    overlaps = Overlaps(rules)
    for rule in rules:
        assert overlaps.places(rule) == [place for place, other in enumerate(rules) if not disjoint(other, rule)]
