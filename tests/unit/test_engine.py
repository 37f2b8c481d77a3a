# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs that go well, and all the ways they can go wrong; on the fake kernel."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.lvs.fleet.plugins.module_utils import _engine, _host
from ansible_collections.lvs.fleet.plugins.module_utils._declared.params import ipvs_services, virtual_services
from ansible_collections.lvs.fleet.plugins.module_utils._engine import Outcome, Target, converge
from ansible_collections.lvs.fleet.plugins.module_utils._errors import LockError, LvsError, ParseError, ToolError
from ansible_collections.lvs.fleet.plugins.module_utils._ipvs.wire import encode_service
from ansible_collections.lvs.fleet.plugins.module_utils._model import (
    IPTABLES,
    MARKINGS,
    IpvsOperation,
    Operation,
    ServiceId,
    VirtualService,
)
from ansible_collections.lvs.fleet.plugins.module_utils._plan import plan, pools_target, virtual_services_target
from ansible_collections.lvs.fleet.plugins.module_utils._router import Router
from ansible_collections.lvs.fleet.tests.unit.fake_kernel import FakeKernel, Rule
from ansible_collections.lvs.fleet.tests.unit.running import CHAIN, CHAINS, MARKS, MARKS6, kernel_with, read
from ansible_collections.lvs.fleet.tests.unit.strategies import declared_services, states

TRAFFIC = [{"destination": ["192.0.2.10", "2001:db8::10"], "protocol": "tcp", "ports": [80, 443]}]
BEFORE = [
    {
        "name": "web",
        "fwmark": 80,
        "traffic": TRAFFIC,
        "real_servers": [{"address": "10.0.0.1"}, {"address": "10.0.0.2"}],
    },
    {"name": "old", "fwmark": 7, "traffic": TRAFFIC, "real_servers": [{"address": "10.0.0.9"}]},
]
AFTER = [
    {"name": "web", "fwmark": 80, "traffic": TRAFFIC, "scheduler": "rr",
     "real_servers": [{"address": "10.0.0.2", "weight": 5}, {"address": "2001:db8:1::3"}]},
    {"name": "new", "fwmark": 8, "traffic": TRAFFIC, "real_servers": [{"address": "10.0.0.3"}]},
]  # fmt: skip


def wanting(given: list[dict[str, Any]], purge: str = "owned", marking: str = IPTABLES) -> Target:
    declared = replace(virtual_services(given), marking=marking)
    return lambda current: virtual_services_target(current, declared, purge)


def run(kernel: FakeKernel, target: Target, check: bool = False) -> Outcome:
    with kernel.running(), Router(CHAINS, ipvs=True, nftables=True) as router:
        return converge(router, target, check, 30)


def kernel_before() -> FakeKernel:
    kernel = FakeKernel()
    run(kernel, wanting(BEFORE))
    kernel.writes = 0
    return kernel


COUNT = len(plan(read(kernel_before()), wanting(AFTER)(read(kernel_before()))))


def test_a_run_then_nothing_more_to_do() -> None:
    kernel = kernel_before()
    outcome = run(kernel, wanting(AFTER))
    assert read(kernel) == outcome.after
    assert kernel.writes == len(outcome.operations) == COUNT > 10
    again = run(kernel, wanting(AFTER))
    assert (list(again.operations), again.before, again.after) == ([], outcome.after, outcome.after)
    assert kernel.writes == COUNT


def end_of_step(operations: Sequence[Operation], place: int) -> int:
    """Up to where the kernel goes on after an operation that it refuses: additions are sent at once, and edits."""
    sent_together = next((kind for kind in ("Aa", "Ee") if letter(operations[place]) in kind), "")
    end = place + 1
    while end < len(operations) and letter(operations[end]) in sent_together:
        end += 1
    return end


def letter(operation: Operation) -> str:
    return operation.command if isinstance(operation, IpvsOperation) else "a chain"


@pytest.mark.parametrize("place", range(COUNT))
def test_refused_at_any_operation_all_is_as_before(place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = kernel_before()
    before = read(kernel)
    operations = plan(before, wanting(AFTER)(before))
    kernel.refused = lambda number: number == place
    done: list[int] = []
    kernel.after_write = lambda: done.append(kernel.writes)
    undo, begun, successes = _engine._undo, [], []

    def noting(*arguments: Any) -> str:
        begun.append(kernel.writes)
        successes.append(len(done))
        return undo(*arguments)

    monkeypatch.setattr(_engine, "_undo", noting)
    with pytest.raises(LvsError) as caught:
        run(kernel, wanting(AFTER))
    assert read(kernel) == before
    first, last = str(caught.value).split("\n")
    refusal = "Cannot allocate memory" if "ipvsadm" in first else "exit status 4: Another app is currently holding"
    assert refusal in first
    words = _engine.describe(operations[place])[0].split(" -t mangle")[0]
    assert first.startswith(words)
    assert begun == [end_of_step(operations, place)]
    told = f"The {successes[0]} operations done until then were undone; the router is as it was before."
    assert last == (told if successes[0] else "Nothing had been changed.")


@given(
    states(),
    declared_services(),
    st.sampled_from(["none", "owned", "all"]),
    st.sampled_from(MARKINGS),
    st.integers(0, 40),
)
def test_any_refused_run_leaves_any_router_as_it_was(
    current: Any, given: list[dict[str, Any]], purge: str, marking: str, place: int
) -> None:
    kernel = kernel_with(current)
    kernel.refused = lambda number: number == place
    try:
        run(kernel, wanting(given, purge, marking))
    except LvsError:
        assert read(kernel) == current
    else:
        assert kernel.writes <= place


@pytest.mark.parametrize("place", [1, COUNT - 1])
def test_when_going_back_fails_as_well_the_message_says_so(place: int) -> None:
    kernel = kernel_before()
    kernel.refused = lambda number: number >= place
    with pytest.raises(LvsError) as caught:
        run(kernel, wanting(AFTER))
    _refusal, failure, left = str(caught.value).split("\n")
    assert f"Going back failed as well, so the router is half changed ({place} operations were done): " in failure
    back = plan(read(kernel), read(kernel_before()))
    first = [line for operation in back for line in _engine.describe(operation)][:5]
    assert left == f"Left to undo: {'; '.join(first)}"


@pytest.mark.parametrize("place", range(COUNT))
def test_a_mistake_of_ours_is_undone_as_well(place: int) -> None:
    kernel = kernel_before()
    before = read(kernel)

    def fail() -> None:
        if kernel.writes == place + 1:
            raise MemoryError("no more")

    kernel.after_write = fail
    with pytest.raises(LvsError) as caught:
        run(kernel, wanting(AFTER))
    assert read(kernel) == before
    first, last = str(caught.value).split("\n")
    assert first == "MemoryError: no more"
    assert last.endswith("the router is as it was before.") or (place < 4 and last == "Nothing had been changed.")


def test_another_writer_is_noticed_afterwards_and_all_is_undone() -> None:
    kernel = kernel_before()
    before = read(kernel)

    def meddle() -> None:
        if kernel.writes == COUNT:
            kernel.mangle["ipv4"].chains["PREROUTING"].append(Rule(f"-j {CHAIN}"))

    kernel.after_write = meddle
    with pytest.raises(LvsError) as caught:
        run(kernel, wanting(AFTER))
    first, last = str(caught.value).split("\n")
    assert first == (
        "the router is not as it was told to be; missing afterwards: iptables -t mangle -D PREROUTING -j LVS-MARK"
    )
    assert last == f"The {COUNT} operations done until then were undone; the router is as it was before."
    assert read(kernel) == before


def lose(kernel: FakeKernel, place: int) -> None:
    """Have the kernel say yes to one write and not do it."""

    def losing(carry_out: Any) -> Any:
        return lambda *arguments: 0 if kernel.writes == place + 1 else carry_out(*arguments)

    for table in (*kernel.mangle.values(), *kernel.nat.values()):
        table.restore = losing(table.restore)  # type: ignore[method-assign]
    kernel.ipvs.request = losing(kernel.ipvs.request)  # type: ignore[method-assign]


@pytest.mark.parametrize("place", range(COUNT))
def test_an_operation_that_came_to_nothing_is_noticed_and_all_is_undone(place: int) -> None:
    kernel = kernel_before()
    before = read(kernel)
    lose(kernel, place)
    with pytest.raises(LvsError, match="were undone; the router is as it was before"):
        run(kernel, wanting(AFTER))
    assert kernel.writes > place
    assert read(kernel) == before


def test_only_what_was_touched_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = kernel_before()
    dumped: list[int] = []
    answer = kernel.ipvs.dump

    def dump(command: int, body: bytes) -> list[bytes]:
        dumped.append(command)
        return answer(command, body)

    monkeypatch.setattr(kernel.ipvs, "dump", dump)
    reads = kernel_reads(kernel, monkeypatch)
    changed = {**BEFORE[0], "real_servers": [{"address": "10.0.0.1", "weight": 9}, {"address": "10.0.0.2"}]}
    assert len(run(kernel, wanting([changed, BEFORE[1]])).operations) == 1
    services, servers = 4, 8
    # Some services have no real servers: whether they are still there is asked once more.
    assert dumped == [services, *[servers] * 4, services, services, servers]
    by_nft = [
        ["nft", "-j", "list", "table", family, table]
        for table in ("lvs-service", "lvs-mark")
        for family in ("ip", "ip6")
    ]
    by_iptables = [[f"{tool}-save", "-t", table] for table in ("nat", "mangle") for tool in ("iptables", "ip6tables")]
    assert reads == [*by_nft, *by_iptables]


def kernel_reads(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that print tables, as they come."""
    reads: list[list[str]] = []
    tell = kernel._run

    def note(argv: list[str], **options: Any) -> Any:
        reads.append(argv)
        return tell(argv, **options)

    monkeypatch.setattr(kernel, "_run", note)
    return reads


@pytest.mark.parametrize("error", [OSError(105, "No buffer space available"), ToolError(["iptables-save"], 1, "no")])
def test_an_error_while_reading_back_is_undone_too(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = kernel_before()
    before = read(kernel)

    def fail_once(*_arguments: Any) -> Any:
        monkeypatch.undo()
        raise error

    monkeypatch.setattr(Router, "read_again", fail_once)
    with pytest.raises(LvsError, match="operations done until then were undone"):
        run(kernel, wanting(AFTER))
    assert read(kernel) == before


@given(states(), declared_services(), st.sampled_from(["none", "owned", "all"]))
def test_check_mode_writes_nothing_and_tells_what_the_run_does(
    current: Any, given: list[dict[str, Any]], purge: str
) -> None:
    kernel = kernel_with(current)
    before = kernel.snapshot()
    kernel.read_only = True
    told = run(kernel, wanting(given, purge), check=True)
    kernel.read_only = False
    assert kernel.snapshot() == before
    done = run(kernel, wanting(given, purge))
    assert told.result(with_diff=True) == done.result(with_diff=True)
    assert _engine.render(read(kernel)) == told.result(with_diff=True)["diff"]["after"]
    assert told.result(with_diff=False).keys() == {"changed", "operations", "changes"}


# -- the module, and the tools ------------------------------------------------------------------------------------


def test_ip_vs_is_loaded_only_for_a_write() -> None:
    kernel = FakeKernel(loaded=False)
    assert run(kernel, wanting(BEFORE), check=True).operations
    assert not kernel.loaded
    run(kernel, wanting(BEFORE))
    assert kernel.loaded
    assert read(kernel).pools


@pytest.mark.parametrize("check, asked", [(False, "modprobe ip_vs"), (True, "modprobe --show-depends ip_vs")])
def test_without_the_module_nothing_is_begun(check: bool, asked: str) -> None:
    kernel = FakeKernel(loaded=False)
    kernel.loadable = False
    with pytest.raises(LvsError) as caught:
        run(kernel, wanting(BEFORE), check=check)
    said = "modprobe: FATAL: Module ip_vs not found."
    assert str(caught.value) == f"this kernel has no IPVS: {asked}: exit status 1: {said}"
    assert kernel.writes == 0


def test_without_modprobe_check_mode_cannot_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes with a package that is not installed yet, as iptables does."""
    kernel = FakeKernel(loaded=False)
    kernel.loadable = False
    monkeypatch.setattr(kernel, "_installed", lambda tool: "")
    assert run(kernel, wanting(BEFORE), check=True).operations


def test_check_mode_knows_schedulers_and_engines_that_the_kernel_has_not() -> None:
    """modprobe is asked, as the kernel asks it; all that is missing is named at once."""
    kernel = FakeKernel()
    wrong = [{**BEFORE[0], "scheduler": "wcl", "persistence_timeout": 60, "persistence_engine": "sip"}]
    wrong[0]["traffic"] = TRAFFIC
    assert "ip_vs_wlc" not in kernel.modules, "not loaded, but there"
    with pytest.raises(LvsError) as caught:
        run(kernel, wanting(wrong), check=True)
    assert str(caught.value) == (
        "ipvsadm -A -f 80 -6 -s wcl -p 60 --pe sip: this kernel has no scheduler wcl; did you mean wlc?"
    )
    with pytest.raises(LvsError, match=r"\(it has no scheduler wcl; did you mean wlc\? or no persistence engine sip\)"):
        run(kernel, wanting(wrong))
    assert kernel.ipvs.services == {}


def test_of_what_is_in_use_or_built_in_modprobe_need_not_know() -> None:
    kernel = FakeKernel()
    custom = [{**BEFORE[0], "scheduler": "custom"}]
    kernel.modules.add("ip_vs_custom")
    assert run(kernel, wanting(custom), check=True).operations
    kernel.modules.remove("ip_vs_custom")
    with pytest.raises(LvsError, match=r"this kernel has no scheduler custom$"):
        run(kernel, wanting(custom), check=True)
    kernel.loadable = False
    assert run(kernel, wanting(custom), check=True).operations


@pytest.mark.parametrize("check", [True, False])
def test_real_servers_of_the_other_family_are_refused_beside_a_sync_daemon(check: bool) -> None:
    """The kernel would say EINVAL, and means something else by it in all other cases."""
    kernel = FakeKernel()
    mixed = {"fwmark": 80, "real_servers": [{"address": "2001:db8:1::1", "forward_method": "tunnel"}]}
    declared = ipvs_services([mixed])
    kernel.ipvs.daemons = [{1: struct.pack("=I", 1), 2: b"eth1\0", 3: struct.pack("=I", 7)}]
    with kernel.running(), Router((), ipvs=True) as router, pytest.raises(LvsError) as caught:
        converge(router, lambda current: pools_target(current, declared, False), check, 30)
    assert str(caught.value) == (
        "ipvsadm -a -f 80 -r 2001:db8:1::1 -i -w 1 --tun-type ipip: no real server may be of the other family than its "
        "service while a sync daemon runs (master on eth1); stop the daemon first"
    )
    assert kernel.writes == 0
    kernel.ipvs.daemons = []
    with kernel.running(), Router((), ipvs=True) as router:
        assert converge(router, lambda current: pools_target(current, declared, False), check, 30).operations


def test_a_mask_that_is_no_prefix_is_seen_and_comes_back() -> None:
    """Somebody's "ipvsadm -M 0.255.255.255" is neither taken for /24, nor lost when a failure is undone."""
    kernel = FakeKernel()
    odd = VirtualService(ServiceId("ipv4", 80), persistence_timeout=60, persistence_netmask="0.255.255.255")
    assert kernel.ipvs.request(1, encode_service(odd)) == 0
    there = deepcopy(kernel.ipvs.services)
    web = wanting([{**BEFORE[0], "persistence_timeout": 60, "persistence_netmask": 24}])
    operations = run(kernel, web, check=True).operations
    assert ["ipvsadm -E -f 80 -s wlc -p 60 -M 255.255.255.0"] in map(_engine.describe, operations)
    kernel.refused = lambda number: number == len(operations) - 1
    with pytest.raises(LvsError, match="the router is as it was before"):
        run(kernel, web)
    assert kernel.ipvs.services == there


@pytest.mark.parametrize("said", ["iptables-restore: line 5 failed", "Another app is currently holding the lock."])
def test_a_module_that_is_missing_is_named(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it may have been the reason; those that are there are not named."""
    kernel = FakeKernel()
    kernel.modules.add("xt_comment")
    kernel.loadable_modules.add("xt_mark")
    refused = SimpleNamespace(returncode=1, stdout="", stderr=f"{said}\n")
    monkeypatch.setattr(kernel, "_restore", lambda *_arguments: refused)
    with pytest.raises(LvsError) as caught:
        run(kernel, wanting(BEFORE))
    hint = "\nmodprobe finds no xt_multiport for this kernel; on RHEL 10 look into kernel-modules-extra"
    start = f"iptables-restore --noflush --wait 10: exit status 1: {said}{hint * ('line' in said)}\nThe "
    assert str(caught.value).startswith(start)


def test_without_ip6tables_nothing_is_begun() -> None:
    kernel = FakeKernel()
    kernel.installed = {"iptables"}
    with pytest.raises(ToolError) as caught:
        run(kernel, wanting(BEFORE))
    assert str(caught.value) == "ip6tables-restore: exit status 127: it is not installed"
    assert kernel.writes == 0


def test_legacy_iptables_is_not_asked_for_a_table_that_is_not_loaded() -> None:
    kernel = FakeKernel(backend="legacy")
    assert run(kernel, wanting(BEFORE)).operations
    assert read(kernel).chains[MARKS6].exists
    del kernel.mangle["ipv6"]
    assert not read(kernel).chains[MARKS6].exists


@pytest.mark.parametrize(
    "status, error, said",
    [
        (3, ParseError, "iptables-save -t mangle: exit status 3: the table holds rules that iptables cannot express "
                        r"\(see: nft list table ip mangle\): oops"),
        (1, ToolError, "iptables-save -t mangle: exit status 1: oops"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_read(status: int, error: Any, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = FakeKernel()
    with kernel.running():
        monkeypatch.setattr(_host, "attempt", lambda argv, stdin="": (status, "", "oops\n"))
        with Router((MARKS, MARKS6), ipvs=True) as router, pytest.raises(error, match=said):
            router.read()
        monkeypatch.undo()


@pytest.mark.parametrize(
    "change, said",
    [
        ({"scheduler": "nosuch"}, "ipvsadm -A -f 8 -s nosuch: the kernel says: No such file or directory (it has no "
                                  "scheduler nosuch)"),
        ({"scheduler": "nosuch", "persistence_engine": "sip"},
         "ipvsadm -A -f 8 -s nosuch --pe sip: the kernel says: No such file or directory (it has no scheduler nosuch "
         "or no persistence engine sip)"),
    ],
)  # fmt: skip
def test_an_unknown_scheduler(change: dict[str, Any], said: str) -> None:
    kernel = kernel_before()
    before = read(kernel)
    with pytest.raises(LvsError) as caught:
        run(kernel, wanting([*BEFORE, {**AFTER[1], **change}]))
    assert str(caught.value) == f"{said}\nNothing had been changed."
    assert read(kernel) == before


def test_an_edit_of_a_service_that_somebody_removed() -> None:
    kernel = kernel_before()
    target = wanting(AFTER)

    def removed(current: Any) -> Any:
        kernel.ipvs.services.clear()
        return target(current)

    with pytest.raises(LvsError, match=r"No such process \(the virtual service was removed by somebody else meanwhile"):
        run(kernel, removed)


def test_the_lock_is_waited_for_and_check_mode_takes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = kernel_before()
    with kernel.running(), Router(CHAINS, ipvs=True, nftables=True) as router:

        def held(timeout: int, warn: Any) -> Any:
            raise LockError(f"held for {timeout}")

        monkeypatch.setattr(_host, "lock", held)
        with pytest.raises(LockError, match="held for 5"):
            converge(router, wanting(AFTER), False, 5)
        assert converge(router, wanting(AFTER), True, 5).operations
        monkeypatch.undo()
    assert kernel.writes == 0


def test_who_had_to_wait_says_for_whom() -> None:
    kernel = kernel_before()
    said: list[str] = []
    with kernel.running(), Router(CHAINS, ipvs=True, nftables=True) as router:
        converge(router, wanting(AFTER), False, 30, said.append)
        assert said == []
        kernel.waited = "waited 3 s for process 7 (lvs_service)"
        converge(router, wanting(AFTER), False, 30, said.append)
    assert said == [kernel.waited]


def test_what_ansible_shows_of_the_options_leaves_long_lists_out() -> None:
    shown = _engine.invocation({"services": AFTER, "purge": "owned", "adopt": False})
    assert shown == {"module_args": {"services": "2 items", "purge": "owned", "adopt": False}}
