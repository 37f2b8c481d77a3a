# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""lvs_service and iptables_mark in one chain: what one of them wrote is not the other's to change or to take away."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.lvs.fleet.plugins.module_utils._marks.iptables import parse_rule, render_rule
from ansible_collections.lvs.fleet.plugins.module_utils._model import IPTABLES_MARK, IPV4, LVS_SERVICE, MarkRule
from ansible_collections.lvs.fleet.plugins.modules import iptables_mark, ipvs_service, lvs_info, lvs_service
from ansible_collections.lvs.fleet.tests.unit.fake_kernel import FakeKernel
from ansible_collections.lvs.fleet.tests.unit.running import CHAIN, quartet, run_module, to_adopt
from ansible_collections.lvs.fleet.tests.unit.test_modules import MARK, MARK_RULE, RULE, WEB

TRAFFIC = {"destination": ["192.0.2.25"], "protocol": ["tcp"], "ports": [25]}
MAIL = {"name": "mail", "mark": 100, **TRAFFIC}
MAIL_SERVICE = {"name": "mail", "fwmark": 100, "traffic": [TRAFFIC]}
MAIL_RULE = (
    "-d 192.0.2.25/32 -p tcp -m multiport --dports 25 -m comment --comment iptables_mark "
    '-m comment --comment "lvs:mail" -j MARK --set-xmark 0x64/0xffffffff'
)
OLD_MAIL_RULE = MAIL_RULE.replace("-m comment --comment iptables_mark ", "")


WEB_OF = "lvs:web with mark 80 (ipv4) belongs to"


def beside_keepalived() -> FakeKernel:
    """keepalived balances mail; its mark comes from iptables_mark."""
    kernel = FakeKernel()
    run_module(ipvs_service, kernel, services=[{"fwmark": 100, "real_servers": [{"address": "10.0.0.25"}]}])
    run_module(iptables_mark, kernel, rules=[MAIL])
    return kernel


def chain(kernel: FakeKernel) -> list[str]:
    return [rule.text for rule in kernel.mangle["ipv4"].chains.get(CHAIN, [])]


def told_whose(answer: dict[str, Any]) -> list[str]:
    return [warning for warning in answer.get("warnings", []) if " belongs to " in warning]


def services(kernel: FakeKernel) -> list[int]:
    return [found.get("fwmark", 0) for found in run_module(lvs_info, kernel, check=True)["ipvs_services"]]


# -- the record ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "comments, name, owner",
    [
        ('-m comment --comment "lvs:web"', "web", LVS_SERVICE),
        ('-m comment --comment "lvs:web" -m comment --comment iptables_mark', "web", IPTABLES_MARK),
        ('-m comment --comment iptables_mark -m comment --comment "lvs:web"', "web", IPTABLES_MARK),
        ('-m comment --comment "lvs:iptables_mark"', "iptables_mark", LVS_SERVICE),
        ('-i iptables_mark -m comment --comment "lvs:web"', "web", LVS_SERVICE),
    ],
)
def test_a_rule_says_whose_it_is(comments: str, name: str, owner: str) -> None:
    found = parse_rule(f"-d 192.0.2.10/32 -p tcp {comments} -j MARK --set-xmark 0x50/0xffffffff", IPV4)
    interface = "iptables_mark" if "-i" in comments else ""
    rule = MarkRule(name, 80, "192.0.2.10/32", "tcp", in_interface=interface, owner=owner)
    assert (found.meaning, found.name, found.owner) == (rule, name, owner)
    assert parse_rule(render_rule(rule), IPV4) == found


@pytest.mark.parametrize(
    "comments", ["-m comment --comment iptables_mark", '-m comment --comment "iptables_mark lvs:web"']
)
def test_a_rule_without_a_name_is_nobody_s_of_us(comments: str) -> None:
    text = f"-d 192.0.2.10/32 -p tcp {comments} -j MARK --set-xmark 0x50/0xffffffff"
    assert (parse_rule(text, IPV4).name, parse_rule(text, IPV4).meaning) == ("", text)


def test_the_order_of_comments_makes_no_difference() -> None:
    """Versions of iptables-nft may print them in another one."""
    kernel = beside_keepalived()
    name, word = '-m comment --comment "lvs:mail"', "-m comment --comment iptables_mark"
    turned = MAIL_RULE.replace(f"{word} {name}", f"{name} {word}")
    kernel.mangle["ipv4"].chains[CHAIN][0].text = turned
    assert not quartet(iptables_mark, kernel, rules=[MAIL])["changed"]
    assert chain(kernel) == [turned] != [MAIL_RULE]


# -- neither takes away what the other wrote ----------------------------------------------------------------------


@pytest.mark.parametrize("marking", ["iptables", "nftables"])
@pytest.mark.parametrize("purge", ["none", "owned"])
def test_a_mark_of_keepalived_outlives_every_service(purge: str, marking: str) -> None:
    """From nothing to a service, over its changes, and back to nothing."""
    kernel = beside_keepalived()
    before = kernel.snapshot()
    for wanted in ([WEB], [{**WEB, "fwmark": 81}], [{**WEB, "name": "shop", "fwmark": 81}], []):
        done = quartet(lvs_service, kernel, services=wanted, purge=purge, marking=marking)
        assert told_whose(done) == []
        assert MAIL_RULE in chain(kernel) and 100 in services(kernel)
    if purge == "none":
        quartet(lvs_service, kernel, services=[{"name": "shop", "fwmark": 81}], state="absent")
        quartet(lvs_service, kernel, services=[{"name": "web", "fwmark": 80}], state="absent", marking=marking)
    assert chain(kernel) == [MAIL_RULE] and services(kernel) == [100]
    assert marking == "nftables" or purge == "none" or kernel.snapshot() == before


def test_absent_with_the_mark_of_keepalived_leaves_it() -> None:
    kernel = beside_keepalived()
    done = quartet(lvs_service, kernel, services=[{"name": "mail", "fwmark": 100}], state="absent")
    assert not done["changed"]
    assert chain(kernel) == [MAIL_RULE] and services(kernel) == [100]


def test_purge_all_takes_everything() -> None:
    kernel = beside_keepalived()
    assert told_whose(quartet(lvs_service, kernel, services=[MAIL_SERVICE], purge="all")) == []
    assert chain(kernel) == [OLD_MAIL_RULE] and services(kernel) == [100]


@pytest.mark.parametrize(
    "options", [{"rules": [], "purge": True}, {"rules": [{"name": "web"}], "state": "absent"}, {"rules": []}]
)
def test_iptables_mark_leaves_what_lvs_service_wrote(options: dict[str, Any]) -> None:
    kernel = FakeKernel()
    run_module(lvs_service, kernel, services=[WEB])
    assert not quartet(iptables_mark, kernel, **options)["changed"]
    assert chain(kernel) == [RULE]


def test_rules_of_an_earlier_version_are_those_of_lvs_service() -> None:
    """It wrote no second comment; a service by such a rule is ours, and goes when it is not declared any more."""
    kernel = beside_keepalived()
    kernel.mangle["ipv4"].chains[CHAIN][0].text = OLD_MAIL_RULE
    done = quartet(lvs_service, kernel, services=[WEB])
    assert "ipvsadm -D -f 100" in done["operations"]
    assert chain(kernel) == [RULE]


def test_in_a_chain_of_another_name_all_is_of_iptables_mark() -> None:
    """An earlier version wrote such a rule; nobody else can have."""
    kernel = FakeKernel()
    run_module(iptables_mark, kernel, rules=[MAIL], chain="OTHER")
    kernel.mangle["ipv4"].chains["OTHER"][0].text = OLD_MAIL_RULE
    assert not quartet(iptables_mark, kernel, rules=[MAIL], chain="OTHER")["changed"]
    quartet(iptables_mark, kernel, rules=[], purge=True, chain="OTHER")
    assert "OTHER" not in kernel.mangle["ipv4"].chains


# -- the same in both ---------------------------------------------------------------------------------------------


def test_a_rule_that_lvs_service_has_is_not_there_twice() -> None:
    kernel = FakeKernel()
    run_module(lvs_service, kernel, services=[WEB])
    done = run_module(iptables_mark, kernel, rules=[MARK])
    assert not done["changed"]
    assert told_whose(done) == [
        f"{WEB_OF} lvs_service, and stays as it is; give each module names and marks of its own"
    ]


@pytest.mark.parametrize("change", [{"name": "shop"}, {"fwmark": 81}, {"fwmark": 81, "state": "absent"}])
def test_one_name_or_one_mark_in_both_is_told(change: dict[str, Any]) -> None:
    kernel = FakeKernel()
    run_module(iptables_mark, kernel, rules=[MARK])
    state = change.pop("state", "present")
    done = run_module(lvs_service, kernel, services=[{**WEB, **change}], state=state)
    assert [warning.split(";")[0] for warning in told_whose(done)] == [f"{WEB_OF} iptables_mark, and stays as it is"]
    assert MARK_RULE in chain(kernel)


def test_a_mark_in_both_keeps_its_service_when_lvs_service_lets_it_go() -> None:
    kernel = FakeKernel()
    run_module(iptables_mark, kernel, rules=[MARK])
    run_module(lvs_service, kernel, services=[{**WEB, "name": "shop"}])
    run_module(lvs_service, kernel, services=[])
    assert chain(kernel) == [MARK_RULE] and services(kernel) == [80]


def test_adopt_takes_a_rule_over_and_back() -> None:
    """In one transaction, so that no packet is without its mark."""
    kernel = FakeKernel()
    run_module(lvs_service, kernel, services=[WEB])
    done = quartet(iptables_mark, kernel, rules=[MARK], adopt=True)
    assert done["operations"] == [f"iptables -t mangle -D {CHAIN} {RULE}", f"iptables -t mangle -A {CHAIN} {MARK_RULE}"]
    quartet(lvs_service, kernel, services=[])
    assert chain(kernel) == [MARK_RULE] and services(kernel) == [80]
    quartet(lvs_service, kernel, services=[WEB], adopt=True)
    assert chain(kernel) == [RULE]


def test_adopt_takes_no_more_than_it_declares() -> None:
    kernel = FakeKernel()
    run_module(lvs_service, kernel, services=[WEB])
    done = quartet(iptables_mark, kernel, rules=[{**MARK, "ports": [80]}], adopt=True)
    assert len(done["operations"]) == 1 and RULE in chain(kernel)


# -- what lvs_info tells ------------------------------------------------------------------------------------------


def test_info_tells_each_module_its_own() -> None:
    kernel = beside_keepalived()
    run_module(lvs_service, kernel, services=[WEB])
    kernel.local = {"192.0.2.10", "192.0.2.25"}
    told = run_module(lvs_info, kernel, check=True)
    assert [found["name"] for found in told["services"]] == ["web"]
    assert told["adoptable"] == {"before": [], "behind": []}
    assert {found["name"] for found in told["rules"]} == {"mail", "web"}
    assert (told["problems"], told["not_adoptable"]) == ([], [])
    for module, options in (
        (iptables_mark, {"rules": told["rules"], "purge": True}),
        (lvs_service, {"services": told["services"]}),
        (lvs_service, {"services": to_adopt(told), "adopt": True}),
    ):
        assert run_module(module, kernel, **options)["operations"] == []


def test_info_tells_no_service_of_a_mark_that_iptables_mark_gives() -> None:
    kernel = FakeKernel()
    run_module(lvs_service, kernel, services=[WEB])
    run_module(iptables_mark, kernel, rules=[{**MARK, "name": "more", "destination": ["192.0.2.11"]}])
    told = run_module(lvs_info, kernel, check=True)
    assert told["services"] == []
    assert "not_declarable" in [problem["kind"] for problem in told["problems"]]


def test_info_tells_of_a_mark_of_iptables_mark_that_nobody_serves() -> None:
    kernel = FakeKernel()
    run_module(iptables_mark, kernel, rules=[MAIL])
    problems = run_module(lvs_info, kernel, check=True)["problems"]
    assert "mail: mark 100 has no IPVS service in ipv4" in [problem["message"] for problem in problems]
