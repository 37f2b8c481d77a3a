# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rules made by hand are taken over where that changes nothing for any packet, and left where it would."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ansible_collections.lvs.fleet.plugins.modules import iptables_mark, lvs_service
from ansible_collections.lvs.fleet.tests.unit.fake_kernel import FakeKernel, Rule, Table
from ansible_collections.lvs.fleet.tests.unit.packets import mark, packets
from ansible_collections.lvs.fleet.tests.unit.running import CHAIN, kernel_with, quartet, run_module
from ansible_collections.lvs.fleet.tests.unit.strategies import declared_services, hooks, states

END = "-j MARK --set-xmark 0x50/0xffffffff"
HTTP = f"-d 192.0.2.10/32 -p tcp -m tcp --dport 80 {END}"
HTTPS = f"-d 192.0.2.10/32 -p tcp -m tcp --dport 443 {END}"
BOTH = f'-d 192.0.2.10/32 -p tcp -m multiport --dports 443,80 -m comment --comment "by hand" {END}'
OURS = '-d 192.0.2.10/32 -p tcp -m multiport --dports 80,443 -m comment --comment "lvs:web"'
OF_IPTABLES_MARK = OURS.replace("-m comment", "-m comment --comment iptables_mark -m comment")
JUMP = f"-j {CHAIN}"
MARK = {"name": "web", "mark": 80, "destination": ["192.0.2.10"], "protocol": "tcp", "ports": [80, 443]}


def kernel_of(*hook: str, chain: tuple[str, ...] = (), **chains: list[str]) -> FakeKernel:
    kernel = FakeKernel()
    content = {"PREROUTING": hook, **({CHAIN: chain} if JUMP in hook else {}), **chains}
    for name, texts in content.items():
        kernel.mangle["ipv4"].chains[name] = [Rule(text) for text in texts]
    return kernel


def texts(kernel: FakeKernel, chain: str = "PREROUTING") -> list[str]:
    return [rule.text for rule in kernel.mangle["ipv4"].chains[chain]]


# What is in PREROUTING before and after; our own rule is there already where the jump is.
TAKEN = {
    "one rule": ([HTTP], [JUMP]),
    "two rules of one port each": ([HTTP, HTTPS], [JUMP]),
    "other words, and a comment": ([BOTH], [JUMP]),
    "the same rule twice": ([HTTP, HTTP], [JUMP]),
    "the jump comes to the place of the last": (
        ["-s 10.0.0.1/32 -j DROP", HTTP, "-d 192.0.2.9/32 -j ACCEPT", HTTPS, "-j ACCEPT"],
        ["-s 10.0.0.1/32 -j DROP", "-d 192.0.2.9/32 -j ACCEPT", JUMP, "-j ACCEPT"],
    ),
    "before our jump": ([HTTP, "-p udp -j ACCEPT", JUMP, "-j ACCEPT"], ["-p udp -j ACCEPT", JUMP, "-j ACCEPT"]),
    "behind our jump": ([JUMP, "-p udp -j ACCEPT", HTTP], [JUMP, "-p udp -j ACCEPT"]),
    "between them a rule that only looks": ([HTTP, "-j LOG", JUMP], ["-j LOG", JUMP]),
    "between them the same mark for more": (
        [HTTP, f"-d 192.0.2.10/32 {END}", JUMP],
        [f"-d 192.0.2.10/32 {END}", JUMP],
    ),
}


@pytest.mark.parametrize("case", TAKEN)
def test_taken_over(case: str) -> None:
    before, after = TAKEN[case]
    kernel = kernel_of(*before, chain=(f"{OF_IPTABLES_MARK} {END}",))
    done = quartet(iptables_mark, kernel, rules=[MARK], adopt=True)
    assert (texts(kernel), texts(kernel, CHAIN)) == (after, [f"{OF_IPTABLES_MARK} {END}"])
    gone = [text for text in before if text not in after]
    assert [line for line in done["operations"] if " -D " in line] == [
        f"iptables -t mangle -D PREROUTING {text}" for text in gone
    ]
    assert [line for line in done["diff"]["before"].splitlines() if line.startswith("-A PREROUTING -d")] == [
        f"-A PREROUTING {text}" for text in gone
    ]
    assert "-A PREROUTING -d" not in done["diff"]["after"]


NOT_TAKEN = {
    "another mark": HTTP.replace("0x50/", "0x51/"),
    "another mask": HTTP.replace("0xffffffff", "0xff"),
    "another port": HTTP.replace("80", "8080"),
    "more ports": BOTH.replace("443,80", "80:443"),
    "every port": f"-d 192.0.2.10/32 -p tcp {END}",
    "every protocol": f"-d 192.0.2.10/32 {END}",
    "another protocol": f"-d 192.0.2.10/32 -p udp -m udp --dport 80 {END}",
    "more addresses": f"-d 192.0.2.0/24 -p tcp -m tcp --dport 80 {END}",
    "a match that we have no words for": f"-d 192.0.2.10/32 -p tcp -m tcp --sport 9 --dport 80 {END}",
    "all but": f"! -d 192.0.2.10/32 -p tcp -m tcp --dport 80 {END}",
    "a mask with gaps": f"-d 192.0.2.10/255.0.255.0 -p tcp -m tcp --dport 80 {END}",
}


@pytest.mark.parametrize("case", NOT_TAKEN)
def test_left_alone(case: str) -> None:
    kernel = kernel_of(NOT_TAKEN[case])
    done = quartet(iptables_mark, kernel, rules=[MARK], adopt=True)
    assert texts(kernel) == [NOT_TAKEN[case], JUMP]
    assert not any(" -D " in line for line in done["operations"])


def test_source_and_interface_count() -> None:
    narrow = f"-s 10.1.0.0/16 -d 192.0.2.10/32 -i eth0 -p tcp -m tcp --dport 80 {END}"
    wide = {**MARK, "source": ["10.0.0.0/8"], "in_interface": "eth+"}
    for rule, taken in ((MARK, True), (wide, True), ({**wide, "source": ["10.1.1.0/24"]}, False),
                        ({**wide, "in_interface": "eth1"}, False)):  # fmt: skip
        kernel = kernel_of(narrow)
        run_module(iptables_mark, kernel, rules=[rule], adopt=True)
        assert (narrow not in texts(kernel)) == taken, rule


def test_machines_that_are_left_out_count() -> None:
    mac, other = "52:54:00:00:00:01", "52:54:00:00:00:0A"
    narrow = f"-d 192.0.2.10/32 -p tcp -m mac ! --mac-source {mac} -m tcp --dport 80 {END}"
    for excluded, taken in (({}, True), ({"exclude_mac": [mac]}, True), ({"exclude_mac": [other]}, False),
                            ({"exclude_mac": [mac, other]}, False)):  # fmt: skip
        kernel = kernel_of(narrow)
        run_module(iptables_mark, kernel, rules=[{**MARK, **excluded}], adopt=True)
        assert (narrow not in texts(kernel)) == taken, excluded


def test_only_one_machine_is_not_all_but_one() -> None:
    kernel = kernel_of(f"-d 192.0.2.10/32 -p tcp -m mac --mac-source 52:54:00:00:00:01 -m tcp --dport 80 {END}")
    run_module(iptables_mark, kernel, rules=[{**MARK, "exclude_mac": ["52:54:00:00:00:01"]}], adopt=True)
    assert "--mac-source" in texts(kernel)[0]


def test_without_adopt_nothing_is_taken() -> None:
    kernel = kernel_of(HTTP)
    quartet(iptables_mark, kernel, rules=[MARK])
    assert texts(kernel) == [HTTP, JUMP]


def test_absence_adopts_nothing() -> None:
    kernel = kernel_of(HTTP)
    quartet(iptables_mark, kernel, rules=[MARK], adopt=True, state="absent")
    assert texts(kernel) == [HTTP]


def test_both_halves_are_adopted() -> None:
    kernel = kernel_of(HTTP, HTTPS)
    service = {
        "name": "web",
        "fwmark": 80,
        "traffic": [{key: MARK[key] for key in ("destination", "protocol", "ports")}],
    }
    run_module(lvs_service, kernel, services=[{**service, "name": "tmp"}])
    kernel.mangle["ipv4"].chains = {**Table("ipv4", "mangle").chains, "PREROUTING": [Rule(HTTP), Rule(HTTPS)]}
    assert quartet(lvs_service, kernel, services=[service], adopt=True)["operations"] == [
        f"iptables -t mangle -N {CHAIN}",
        f"iptables -t mangle -A {CHAIN} {OURS} {END}",
        f"iptables -t mangle -D PREROUTING {HTTP}",
        f"iptables -t mangle -D PREROUTING {HTTPS}",
        f"iptables -t mangle -I PREROUTING 1 {JUMP}",
    ]


# -- obstacles ----------------------------------------------------------------------------------------------------

OTHER = "-s 10.0.0.1/32 -j MARK --set-xmark 0x9/0xffffffff"
IN_THE_WAY = {
    "another mark": ([HTTP, OTHER, JUMP], OTHER),
    "the end of the chain": ([HTTP, "-p tcp -j RETURN", JUMP], "-p tcp -j RETURN"),
    "a chain of somebody": ([HTTP, "-j SOMEBODY", JUMP], "-j SOMEBODY"),
    "the mark of the connection": ([HTTP, "-j CONNMARK --restore-mark", JUMP], "-j CONNMARK --restore-mark"),
    "a rule that looks at the mark": ([HTTP, "-m mark --mark 0x50 -j LOG", JUMP], "-m mark --mark 0x50 -j LOG"),
    "behind the jump": ([JUMP, OTHER, HTTP], OTHER),
    "before the last that is taken over": ([HTTP, OTHER, HTTPS], OTHER),
}


@pytest.mark.parametrize("case", IN_THE_WAY)
def test_refused_with_both_rules_in_the_message(case: str) -> None:
    hook, obstacle = IN_THE_WAY[case]
    kernel = kernel_of(*hook, chain=(f"{OURS} {END}",), SOMEBODY=[])
    kernel.read_only = True
    for check in (True, False):
        answer = run_module(iptables_mark, kernel, check=check, rules=[MARK], adopt=True)
        assert (answer["failed"], answer["msg"]) == (
            True,
            f"iptables -t mangle: PREROUTING {HTTP} cannot be adopted: PREROUTING {obstacle} may see the same packets, "
            "and the order counts",
        )
    assert kernel.writes == 0


def test_a_rule_in_our_chain_gets_in_the_way() -> None:
    returns = "-s 10.0.0.1/32 -j RETURN"
    kernel = kernel_of(HTTP, JUMP, chain=(returns, f"{OURS} {END}"))
    assert f"{CHAIN} {returns} may see" in run_module(iptables_mark, kernel, rules=[MARK], adopt=True)["msg"]
    kernel = kernel_of(HTTP, JUMP, chain=(f"{OURS} {END}", returns))
    assert run_module(iptables_mark, kernel, rules=[MARK], adopt=True)["changed"]


def test_a_later_mark_of_ours_counts_only_for_a_rule_behind_the_jump() -> None:
    later = {**MARK, "name": "later", "mark": 9}
    kernel = kernel_of(HTTP, JUMP)
    assert run_module(iptables_mark, kernel, rules=[MARK, later], adopt=True)["changed"]
    kernel = kernel_of(JUMP, HTTP)
    assert "may see the same packets" in run_module(iptables_mark, kernel, rules=[MARK, later], adopt=True)["msg"]


def test_rules_go_back_in_their_order_and_not_beyond_the_end() -> None:
    """After a failure, even if somebody took other rules away meanwhile."""
    kernel = kernel_of("-s 10.0.0.1/32 -j LOG", HTTP, "-s 10.0.0.2/32 -j LOG", HTTPS)
    kernel.refused = lambda number: number == 1
    both = {**MARK, "destination": ["192.0.2.10", "2001:db8::10"]}
    hook = texts(kernel)
    assert "were undone" in run_module(iptables_mark, kernel, rules=[both], adopt=True)["msg"]
    assert texts(kernel) == hook

    def meddle() -> None:
        hook = kernel.mangle["ipv4"].chains["PREROUTING"]
        hook[:] = [rule for rule in hook if "LOG" not in rule.text]

    kernel.after_write = meddle
    kernel.refused = lambda number: number == 4
    assert "were undone" in run_module(iptables_mark, kernel, rules=[both], adopt=True)["msg"]
    assert texts(kernel) == [HTTP, HTTPS]


# -- any router ---------------------------------------------------------------------------------------------------


def with_strays(kernel: FakeKernel, before: dict[str, list[str]]) -> FakeKernel:
    """The kernel as it would be without adoption, but with the jump in the same place."""
    other = FakeKernel()
    for family, hook in before.items():
        table = other.mangle[family]
        table.chains = dict(kernel.mangle[family].chains)
        kept = [rule.text for rule in table.chains["PREROUTING"]]
        gone = [place for place, text in enumerate(hook) if text not in kept]
        again = list(hook)
        if JUMP in kept and JUMP not in hook:
            again.insert(gone[-1] + 1 if gone else len(hook), JUMP)
        table.chains["PREROUTING"] = [Rule(text) for text in again]
    return other


@given(states(), declared_services(), st.data(), st.sampled_from(["none", "owned", "all"]))
def test_adoption_makes_no_difference_to_any_packet(
    state: Any, services: list[dict[str, Any]], data: Any, purge: str
) -> None:
    kernel = kernel_with(state)
    data.draw(hooks(kernel, services))
    before = {family: [rule.text for rule in table.chains["PREROUTING"]] for family, table in kernel.mangle.items()}
    # Which one of two jumps goes is another question.
    assume(all(hook.count(JUMP) < 2 for hook in before.values()))
    answer = run_module(lvs_service, kernel, services=services, adopt=True, purge=purge)
    assume("failed" not in answer)
    unadopted = with_strays(kernel, before)
    for family, table in kernel.mangle.items():
        if [rule.text for rule in table.chains["PREROUTING"]] == [*before[family], JUMP]:
            continue
        for packet in packets(family):
            assert mark(table, packet) == mark(unadopted.mangle[family], packet), packet


@given(states(), declared_services(), st.data())
def test_check_and_run_and_run_again_with_adoption(state: Any, services: list[dict[str, Any]], data: Any) -> None:
    kernel = kernel_with(state)
    data.draw(hooks(kernel, services))
    before = kernel.snapshot()
    told = run_module(lvs_service, kernel, check=True, services=services, adopt=True)
    assert kernel.snapshot() == before
    if "failed" in told:
        assert run_module(lvs_service, kernel, services=services, adopt=True) == told
        assert kernel.snapshot() == before
    else:
        quartet(lvs_service, kernel, services=services, adopt=True)


@given(states(), declared_services(), st.data(), st.integers(0, 12))
def test_a_refused_adoption_puts_every_rule_back_where_it_was(
    state: Any, services: list[dict[str, Any]], data: Any, place: int
) -> None:
    kernel = kernel_with(state)
    data.draw(hooks(kernel, services))
    before = {family: [rule.text for rule in table.chains["PREROUTING"]] for family, table in kernel.mangle.items()}
    kernel.refused = lambda number: number == place
    answer = run_module(lvs_service, kernel, services=services, adopt=True)
    assume("failed" in answer)
    after = {family: [rule.text for rule in table.chains["PREROUTING"]] for family, table in kernel.mangle.items()}
    assert after == before
