# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Plans, carried out on the fake kernel: they arrive, and every place on the way is a good one to be left at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any, TypeVar

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ansible_collections.lvs.fleet.plugins.module_utils import _plan
from ansible_collections.lvs.fleet.plugins.module_utils._declared.params import ipvs_services, marks, virtual_services
from ansible_collections.lvs.fleet.plugins.module_utils._engine import Target, converge
from ansible_collections.lvs.fleet.plugins.module_utils._marks.iptables import parse_rule
from ansible_collections.lvs.fleet.plugins.module_utils._model import (
    FAMILIES,
    IPTABLES,
    MARKINGS,
    NFTABLES,
    Chain,
    ChainEdit,
    Declaration,
    IpvsOperation,
    MarkRule,
    Pool,
    RealServer,
    RouterState,
    ServiceId,
    VirtualService,
)
from ansible_collections.lvs.fleet.plugins.module_utils._plan import apply, plan
from ansible_collections.lvs.fleet.plugins.module_utils._router import Router
from ansible_collections.lvs.fleet.tests.unit.fake_kernel import FakeKernel, Killed, Rule
from ansible_collections.lvs.fleet.tests.unit.running import CHAIN, CHAINS, MARKS, kernel_with, read
from ansible_collections.lvs.fleet.tests.unit.strategies import (
    declared_ipvs,
    declared_marks,
    declared_services,
    lone_marks,
    states,
)

T = TypeVar("T")
PURGES = st.sampled_from(["none", "owned", "all"])


def carry_out(kernel: FakeKernel, operations: Any) -> RouterState:
    with kernel.running(), Router(CHAINS, ipvs=True, nftables=True) as router:
        kernel.locked = True
        router.prepare(operations)
        assert sum(router.write(operations)) == len(operations)
        kernel.locked = False
        return router.read()


def run(kernel: FakeKernel, target: Target) -> None:
    with kernel.running(), Router(CHAINS, ipvs=True, nftables=True) as router:
        converge(router, target, check_mode=False, lock_timeout=30)


def services_target(given: list[dict[str, Any]], purge: str, marking: str = IPTABLES) -> Target:
    declared = replace(virtual_services(given), marking=marking)
    return lambda current: _plan.virtual_services_target(current, declared, purge)


@st.composite
def targets(draw: Any) -> Target:
    """What any of the modules may want."""
    declared = replace(virtual_services(draw(declared_services())), marking=draw(st.sampled_from(MARKINGS)))
    rules = marks(draw(declared_marks()))
    pools = ipvs_services(draw(declared_ipvs()))
    purge = draw(st.booleans())
    wanted: list[Target] = [
        *(lambda state, purge=purge: _plan.virtual_services_target(state, declared, purge)
          for purge in ("none", "owned", "all")),
        lambda state: _plan.virtual_services_absent(state, declared),
        lambda state: _plan.marks_target(state, rules, purge),
        lambda state: _plan.marks_absent(state, rules),
        lambda state: _plan.pools_target(state, pools, purge),
        lambda state: _plan.pools_absent(state, pools),
    ]  # fmt: skip
    return draw(st.sampled_from(wanted))


def reachable(target: RouterState, current: RouterState) -> RouterState:
    """The target, as far as rules of others outside of our chain let it be."""
    chains = {}
    for key, chain in target.chains.items():
        references = current.chains[key].references
        if chain.exists or references:
            chains[key] = replace(chain, exists=True, references=references)
        else:
            chains[key] = Chain()
    return replace(target, chains=chains)


@given(states())
def test_from_a_state_to_itself_there_is_nothing_to_do(state: RouterState) -> None:
    assert plan(state, state) == []


@given(states(), states())
def test_a_plan_arrives_at_any_state(current: RouterState, other: RouterState) -> None:
    target, kernel = reachable(other, current), kernel_with(current)
    operations = plan(read(kernel), target)
    assert apply(current, operations) == target
    assert carry_out(kernel, operations) == target


@given(states(), targets())
def test_a_plan_arrives_at_what_a_module_wants(current: RouterState, wanted: Target) -> None:
    target, kernel = wanted(current), kernel_with(current)
    operations = plan(read(kernel), target)
    assert apply(current, operations) == target
    there = carry_out(kernel, operations)
    assert there == target
    assert wanted(there) == there, "a second run would do something"


def foreign_elements(kernel: FakeKernel) -> list[Any]:
    """What else there is in our tables of nftables."""
    return [
        (place, name, key, *value)
        for place, table in kernel.nft.tables.items()
        for name, elements in table.maps.items()
        for key, value in (*elements.items(), ("", ("", 0)))
        if not value[0].startswith("lvs:") and (key or name == "other")
    ]


@given(states(), declared_services(), st.sampled_from(["none", "owned"]), st.sampled_from(MARKINGS))
def test_what_is_not_ours_is_never_touched(
    current: RouterState, given: list[dict[str, Any]], purge: str, marking: str
) -> None:
    kernel = kernel_with(current)

    def others() -> list[Any]:
        """Their rules as objects, which stand for counters, each in its order."""
        return [
            rule
            for table in (*kernel.mangle.values(), *kernel.nat.values())
            for rules in table.chains.values()
            for rule in rules
            if "lvs:" not in rule.text and rule.text not in (f"-j {CHAIN}", "-j LVS-SNAT")
        ]

    ours = {r.service_id(key.family) for key, chain in current.chains.items() for r in chain.rules if r.name}
    declared = virtual_services(given)
    theirs = {key: pool for key, pool in current.pools.items() if key not in ours and key not in declared.pools}
    before = others()
    elements = foreign_elements(kernel)
    run(kernel, services_target(given, purge, marking))
    assert foreign_elements(kernel) == elements
    assert list(map(id, others())) == list(map(id, before))
    after = read(kernel)
    assert {key: pool for key, pool in after.pools.items() if key in theirs} == theirs


@given(states(), declared_services(), PURGES, st.sampled_from(MARKINGS))
def test_no_packet_ever_gets_a_mark_without_a_service(
    current: RouterState, given: list[dict[str, Any]], purge: str, marking: str
) -> None:
    lone = lone_marks(current)
    seen = after_each_write(lone_marks, current, services_target(given, purge, marking))
    assert [sorted(found - lone) for found in seen if found - lone] == []


def after_each_write(found: Callable[[RouterState], T], current: RouterState, target: Target) -> list[T]:
    """What is found on a router after each write of a run."""
    kernel = kernel_with(current)
    seen: list[T] = []

    def look() -> None:
        locked, kernel.locked = kernel.locked, False
        seen.append(found(read(kernel)))
        kernel.locked = locked

    kernel.after_write = look
    run(kernel, target)
    return seen


def unowned(state: RouterState) -> set[ServiceId]:
    """The services by address that are on no record."""
    recorded = {rule.service_id(key.family) for key, chain in state.chains.items() for rule in chain.rules if rule.name}
    return {key for key in state.pools if not key.fwmark and key not in recorded}


@given(states(), declared_services(), PURGES, st.sampled_from(MARKINGS))
def test_no_service_by_address_ever_lacks_its_record(
    current: RouterState, given: list[dict[str, Any]], purge: str, marking: str
) -> None:
    by_hand = unowned(current)
    seen = after_each_write(unowned, current, services_target(given, purge, marking))
    assert [sorted(found - by_hand) for found in seen if found - by_hand] == []


@given(st.sampled_from(MARKINGS), st.sampled_from(MARKINGS))
def test_between_mark_and_address_the_new_service_is_there_before_packets_go_to_it(before: str, after: str) -> None:
    traffic = {"traffic": [{"destination": "192.0.2.10", "protocol": "tcp", "ports": [80]}]}
    by_mark, by_address = {"name": "web", "fwmark": 80, **traffic}, {"name": "web", **traffic}
    for first, then in ((by_mark, by_address), (by_address, by_mark)):
        kernel = FakeKernel()
        run(kernel, services_target([first], "owned", before))
        operations = plan(read(kernel), services_target([then], "owned", after)(read(kernel)))
        kinds = [one.command if isinstance(one, IpvsOperation) else one.id.has_records for one in operations]
        marks = kinds.index(False)
        assert kinds.index("A") < marks < kinds.index("D"), kinds
        records = kinds.index(True)
        assert (records < kinds.index("A")) if "fwmark" in first else (records > kinds.index("D")), kinds


@given(states(), declared_services(), PURGES, st.sampled_from(MARKINGS), st.integers(0, 40))
def test_the_same_run_again_heals_an_interrupted_one(
    current: RouterState, given: list[dict[str, Any]], purge: str, marking: str, place: int
) -> None:
    kernel, target = kernel_with(current), services_target(given, purge, marking)
    wanted = target(current)
    interrupt(kernel, target, place)
    run(kernel, target)
    assert read(kernel) == wanted


def interrupt(kernel: FakeKernel, target: Target, place: int) -> None:
    """A run that is killed before its operation number place, counted around."""
    count = len(plan(read(kernel), target(read(kernel))))
    assume(count)
    kernel.killed_at = kernel.writes + place % count
    with pytest.raises(Killed):
        run(kernel, target)
    kernel.killed_at = -1


def left_over(kernel: FakeKernel, given: list[dict[str, Any]]) -> list[ServiceId]:
    run(kernel, services_target(given, "owned"))
    return [key for key in read(kernel).pools if key not in virtual_services(given).pools]


@given(
    declared_services(),
    declared_services(),
    declared_services(),
    st.sampled_from(list(product(MARKINGS, MARKINGS))),
    st.integers(0, 40),
)
def test_an_interrupted_run_leaves_no_old_service_without_an_owner(
    first: list[dict[str, Any]],
    second: list[dict[str, Any]],
    third: list[dict[str, Any]],
    markings: tuple[str, str],
    place: int,
) -> None:
    kernel = FakeKernel()
    run(kernel, services_target(first, "owned", markings[0]))
    interrupt(kernel, services_target(second, "owned", markings[1]), place)
    old = virtual_services(first).pools
    assert [key for key in left_over(kernel, third) if key in old] == []


@pytest.mark.parametrize("old, new", [(IPTABLES, NFTABLES), (NFTABLES, IPTABLES)])
@given(declared_services(), st.booleans())
def test_on_the_way_from_one_tool_to_the_other_one_of_them_has_all_marks(
    old: str, new: str, given: list[dict[str, Any]], with_foreign_rules: bool
) -> None:
    """Whatever of somebody else keeps our chain or table from going with the last rule of ours."""
    assume(given)
    kernel = FakeKernel()
    run(kernel, services_target(given, "owned", old))
    if with_foreign_rules:
        for table in kernel.mangle.values():
            table.chains.setdefault(CHAIN, []).append(Rule("-j RETURN"))
        for found in kernel.nft.tables.values():
            found.maps["other"] = {}
            found.types["other"] = "{ type mark; }"
    before, wanted = (our_marks(read(kernel), tool) for tool in (old, new))
    assert wanted == []
    seen = []

    def look() -> None:
        locked, kernel.locked = kernel.locked, False
        seen.append(read(kernel))
        kernel.locked = locked

    kernel.after_write = look
    run(kernel, services_target(given, "owned", new))
    after = our_marks(read(kernel), new)
    assert seen
    for family in FAMILIES:
        for state_ in seen:
            complete = ((before, our_marks(state_, old)), (after, our_marks(state_, new)))
            assert any(of_family(whole, family) == of_family(there, family) for whole, there in complete)
    assert our_marks(read(kernel), old) == []


def our_marks(state_: RouterState, tool: str) -> list[MarkRule]:
    """What gives marks in the chains of one tool, and is entered."""
    chains = [chain for key, chain in state_.chains.items() if key.tool == tool and key.table != "nat" and chain.jumps]
    return [
        rule.meaning for chain in chains for rule in chain.rules if rule.name and isinstance(rule.meaning, MarkRule)
    ]


def of_family(rules: list[MarkRule], family: str) -> list[MarkRule]:
    return [rule for rule in rules if rule.family == family]


# -- the order, and single cases ----------------------------------------------------------------------------------


def pool(mark: int, *servers: str, scheduler: str = "wlc", weight: int = 1) -> Pool:
    service = VirtualService(ServiceId("ipv4", mark), scheduler, persistence_netmask=32)
    found = [RealServer(address, weight=weight) for address in servers]
    return Pool(service, {server.id: server for server in found})


def state(*pools: Pool, rules: tuple[str, ...] = (), **chain: Any) -> RouterState:
    parsed = tuple(parse_rule(text, "ipv4") for text in rules)
    content = Chain(bool(rules), parsed, int(bool(rules)))
    return RouterState({MARKS: replace(content, **chain)}, {one.service.id: one for one in pools})


def own(name: str, mark: int, address: str = "192.0.2.10") -> str:
    return f'-d {address}/32 -m comment --comment "lvs:{name}" -j MARK --set-xmark {mark:#x}/0xffffffff'


def short(operations: Any) -> list[str]:
    return [
        f"marks: {len(one.lines)} lines" if isinstance(one, ChainEdit)
        else f"{one.command} {one.service.id.fwmark} {one.real_server.address if one.real_server else ''}".rstrip()
        for one in operations
    ]  # fmt: skip


def test_the_order_is_add_edit_mark_remove_forget() -> None:
    current = state(pool(1, "10.0.0.1", "10.0.0.2"), pool(2, "10.0.0.1"), rules=(own("a", 1), own("b", 2)))
    target = state(
        pool(1, "10.0.0.2", "10.0.0.3", scheduler="rr", weight=2),
        pool(3, "10.0.0.9"),
        rules=(own("a", 1), own("c", 3)),
    )
    assert short(plan(current, target)) == [
        "A 3",
        "a 1 10.0.0.3",
        "a 3 10.0.0.9",
        "E 1",
        "e 1 10.0.0.2",
        "marks: 3 lines",  # b's rule goes; c's, and the record that b owns mark 2, come
        "d 1 10.0.0.1",
        "D 2",
        "marks: 1 lines",
    ]


def test_the_record_of_an_owner_never_matches_and_is_cleared() -> None:
    current = state(pool(2), rules=(own("b", 2),))
    edits = [one for one in plan(current, state()) if isinstance(one, ChainEdit)]
    nowhere = '-s 255.255.255.255/32 -m comment --comment "lvs:b" -j MARK --set-xmark 0x2/0xffffffff'
    assert [list(edit.lines) for edit in edits] == [
        [f"-D {CHAIN} {own('b', 2)}", f"-A {CHAIN} {nowhere}"],
        [f"-D {CHAIN} {nowhere}", f"-D PREROUTING -j {CHAIN}", f"-X {CHAIN}"],
    ]


def test_an_owner_is_not_recorded_twice() -> None:
    current = state(pool(2), rules=(own("b", 2), own("c", 2)))
    edits = [one for one in plan(current, state(rules=(own("c", 2),))) if isinstance(one, ChainEdit)]
    assert [edit.lines for edit in edits] == [(f"-D {CHAIN} {own('b', 2)}",)]


def test_a_service_that_goes_takes_its_real_servers_along() -> None:
    assert short(plan(state(pool(1, "10.0.0.1")), state())) == ["D 1"]


@pytest.mark.parametrize(
    "purge, kept",
    [("none", {1, 2, 9}), ("owned", {1, 9}), ("all", {1})],
)
def test_purge(purge: str, kept: set[int]) -> None:
    current = state(pool(2), pool(9), rules=(own("old", 2), "-j RETURN"))
    declared = Declaration(names=("web",), pools={ServiceId("ipv4", 1): pool(1)}, ids=(ServiceId("ipv4", 1),))
    target = _plan.virtual_services_target(current, declared, purge)
    assert {key.fwmark for key in target.pools} == kept
    texts = [rule.text for rule in target.chains[MARKS].rules]
    assert texts == {"none": [own("old", 2), "-j RETURN"], "owned": ["-j RETURN"], "all": []}[purge]


@pytest.mark.parametrize(
    "before, wanted, after",
    [
        (["-j X", own("a", 1), "-j Y"], [own("a", 1)], ["-j X", own("a", 1), "-j Y"]),
        (["-j X", own("a", 1), "-j Y"], [own("a", 2)], ["-j X", own("a", 2), "-j Y"]),
        (["-j X", own("b", 1)], [own("a", 2)], ["-j X", own("b", 1), own("a", 2)]),
        ([own("a", 1), "-j X", own("a", 2)], [own("a", 1), own("a", 2)], [own("a", 1), "-j X", own("a", 2)]),
        ([own("a", 2), "-j X", own("a", 1)], [own("a", 1), own("a", 2)], [own("a", 1), own("a", 2), "-j X"]),
        ([own("a", 1), own("a", 1)], [own("a", 1)], [own("a", 1)]),
        ([own("a", 1), own("b", 1)], [], [own("b", 1)]),
    ],
)
def test_where_rules_come_to_stand(before: list[str], wanted: list[str], after: list[str]) -> None:
    current = state(rules=tuple(before))
    rules = tuple(parse_rule(text, "ipv4").meaning for text in wanted)
    declared = Declaration(names=("a",), rules=rules)  # type: ignore[arg-type]
    target = _plan.marks_target(current, declared, purge=False)
    assert [rule.text for rule in target.chains[MARKS].rules] == after


def test_a_declared_service_leaves_its_old_mark_whatever_purge_says() -> None:
    current = state(pool(1), rules=(own("web", 1),))
    declared = Declaration(names=("web",), pools={ServiceId("ipv4", 2): pool(2)}, ids=(ServiceId("ipv4", 2),))
    assert {key.fwmark for key in _plan.virtual_services_target(current, declared, "none").pools} == {2}


def test_an_operation_on_what_is_not_there_is_a_mistake_of_the_plan() -> None:
    with pytest.raises(KeyError):
        apply(state(), [IpvsOperation("D", pool(1).service)])
