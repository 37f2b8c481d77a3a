# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A run that would take too many services away is refused before it changes anything."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.lvs.fleet.plugins.module_utils._marks.iptables import render_rule, retired
from ansible_collections.lvs.fleet.plugins.module_utils._model import FAMILIES, MARKINGS
from ansible_collections.lvs.fleet.plugins.modules import iptables_mark, ipvs_service, lvs_service
from ansible_collections.lvs.fleet.tests.unit.fake_kernel import FakeKernel, Rule
from ansible_collections.lvs.fleet.tests.unit.running import CHAIN, quartet, run_module


def service(number: int, **other: Any) -> dict[str, Any]:
    """A service of both families."""
    traffic = {"destination": [f"192.0.2.{number}", f"2001:db8::{number}"], "protocol": ["tcp"], "ports": [80]}
    return {"name": f"web-{number:02}", "fwmark": number, "traffic": [traffic], **other}


def services(count: int, first: int = 1) -> list[dict[str, Any]]:
    return [service(number) for number in range(first, first + count)]


def router_with(count: int, marking: str = "iptables") -> FakeKernel:
    kernel = FakeKernel()
    run_module(lvs_service, kernel, services=services(count), marking=marking)
    return kernel


def refused(kernel: FakeKernel, **options: Any) -> str:
    """What a run says that is refused, and check mode alike."""
    before = kernel.snapshot()
    answers = [run_module(lvs_service, kernel, check=check, **options) for check in (True, False)]
    assert kernel.snapshot() == before
    assert answers[0]["failed"] and answers[0] == answers[1]
    message: str = answers[0]["msg"]
    return message


ALLOWED = [
    (5, 3, 50), (2, 1, 50), (4, 2, 50), (3, 2, 50), (5, 4, 50), (1, 1, 50), (3, 3, 0), (0, 0, 50), (0, 0, 0), (0, 2, 0),
    (4, 3, 1), (4, 1, 75), (5, 0, 100), (1, 0, 100),
]  # fmt: skip
REFUSED = [(5, 2, 50), (3, 1, 50), (1, 0, 50), (2, 0, 50), (5, 0, 50), (5, 0, 99), (1, 0, 99), (3, 2, 0), (4, 2, 49)]


@pytest.mark.parametrize("live, left, percent", ALLOWED)
def test_so_many_may_go(live: int, left: int, percent: int) -> None:
    quartet(lvs_service, router_with(live), services=services(left), max_removals=percent)


@pytest.mark.parametrize("live, left, percent", REFUSED)
def test_so_many_may_not_go(live: int, left: int, percent: int) -> None:
    message = refused(router_with(live), services=services(left), max_removals=percent)
    assert message.startswith(f"services: this run would remove {live - left} of the {live} services that lvs_service ")
    assert f" At most {percent} percent may go (max_removals). Nothing was changed. " in message


@pytest.mark.parametrize("marking", MARKINGS)
@pytest.mark.parametrize("purge", ["owned", "all"])
def test_it_makes_no_difference_how_marks_are_given(marking: str, purge: str) -> None:
    """Nor how they were given until now."""
    for before in MARKINGS:
        kernel = router_with(3, before)
        message = refused(kernel, services=services(1), purge=purge, marking=marking, max_removals=50)
        assert "remove 2 of the 3 " in message and ": web-02, web-03. " in message


def test_the_message_names_ten_and_the_remedy() -> None:
    message = refused(router_with(13), services=services(1), max_removals=50)
    named = ", ".join(f"web-{number:02}" for number in range(2, 12))
    assert f": {named} and 2 more. " in message
    assert "-e lvs_router_max_removals=100, " in message and message.endswith(" max_removals: 100")


def test_by_itself_the_module_removes_what_is_not_declared() -> None:
    assert quartet(lvs_service, router_with(3), services=[])["changed"]


def test_who_removes_nothing_is_not_refused() -> None:
    kernel = router_with(3)
    quartet(lvs_service, kernel, services=[], purge="none", max_removals=0)
    gone = [{"name": item["name"], "fwmark": item["fwmark"]} for item in services(3)]
    quartet(lvs_service, kernel, services=gone, state="absent", max_removals=0)


def test_a_new_name_and_a_new_mark_are_no_removal() -> None:
    renamed = [{**item, "name": f"new-{item['fwmark']}"} for item in services(2)]
    quartet(lvs_service, router_with(2), services=renamed, max_removals=0)
    marked = [{**item, "fwmark": item["fwmark"] + 100} for item in services(2)]
    quartet(lvs_service, router_with(2), services=marked, max_removals=0)


def test_one_family_that_goes_is_no_removal() -> None:
    ipv4 = [{**item, "traffic": [{**item["traffic"][0], "destination": [f"192.0.2.{item['fwmark']}"]}]}
            for item in services(2)]  # fmt: skip
    quartet(lvs_service, router_with(2), services=ipv4, max_removals=0)


def test_new_services_do_not_make_up_for_those_that_go() -> None:
    assert "remove 3 of the 3 " in refused(router_with(3), services=services(9, first=10), max_removals=50)


def test_what_iptables_mark_marks_does_not_count() -> None:
    """Neither as there nor, with purge all, as gone."""
    kernel = router_with(2)
    others = [{"name": f"mail-{mark}", "mark": mark, "destination": ["192.0.2.25"], "protocol": "tcp", "ports": [mark]}
              for mark in (25, 26, 27, 28)]  # fmt: skip
    run_module(ipvs_service, kernel, services=[{"fwmark": other["mark"], "real_servers": []} for other in others])
    run_module(iptables_mark, kernel, rules=others)
    assert "remove 2 of the 2 " in refused(kernel, services=[], purge="all", max_removals=99)
    quartet(lvs_service, kernel, services=services(2), purge="all", max_removals=0)


def test_what_is_gone_already_does_not_count() -> None:
    """Rules without their services, and what a run has left that died before it had removed the service."""
    kernel = router_with(2)
    kernel.ipvs.services.clear()
    quartet(lvs_service, kernel, services=[], max_removals=0)
    kernel = router_with(3)
    for family in FAMILIES:
        kernel.mangle[family].chains[CHAIN][0] = Rule(render_rule(retired("web-01", 1, family)))
    quartet(lvs_service, kernel, services=services(2, first=2), max_removals=0)


@pytest.mark.parametrize("percent", [-1, 101])
def test_what_is_no_percentage_is_named(percent: int) -> None:
    message = refused(FakeKernel(), services=[], max_removals=percent)
    assert message == f"max_removals: {percent} is not a percentage (0-100)"
