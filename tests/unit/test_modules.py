# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The modules as Ansible runs them, on the fake kernel."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from ansible.module_utils.basic import AnsibleModule
from hypothesis import given

from ansible_collections.lvs.fleet.plugins.filter.status import status
from ansible_collections.lvs.fleet.plugins.module_utils._model import (
    Pool,
    RealServer,
    RouterState,
    ServiceId,
    VirtualService,
)
from ansible_collections.lvs.fleet.plugins.module_utils._report import report
from ansible_collections.lvs.fleet.plugins.modules import iptables_mark, ipvs_service, lvs_info, lvs_service
from ansible_collections.lvs.fleet.tests.unit.fake_kernel import FakeKernel, Rule
from ansible_collections.lvs.fleet.tests.unit.running import CHAIN, MARKS6, kernel_with, quartet, read, run_module
from ansible_collections.lvs.fleet.tests.unit.strategies import (
    declared_ipvs,
    declared_marks,
    declared_services,
    states,
)

WEB = {
    "name": "web",
    "fwmark": 80,
    "traffic": [{"destination": ["192.0.2.10"], "protocol": "tcp", "ports": [80, 443]}],
    "persistence_timeout": 300,
    "real_servers": [{"address": "10.0.0.11", "weight": 10}],
}
BOTH = {
    "name": "dns",
    "fwmark": 53,
    "traffic": [{"destination": ["192.0.2.53", "2001:db8::53"], "protocol": ["udp"], "ports": [53]}],
    "scheduler": "rr",
    "real_servers": [{"address": "10.0.0.53"}, {"address": "2001:db8:1::53"}],
}
MARK = {"name": "web", "mark": 80, "destination": ["192.0.2.10"], "protocol": "tcp", "ports": [80, 443]}
IPVS = {"fwmark": 80, "persistence_timeout": 300, "real_servers": [{"address": "10.0.0.11", "weight": 10}]}
RULE = (
    '-d 192.0.2.10/32 -p tcp -m multiport --dports 80,443 -m comment --comment "lvs:web" '
    "-j MARK --set-xmark 0x50/0xffffffff"
)
# The same one, written by iptables_mark.
MARK_RULE = RULE.replace(" -m comment", " -m comment --comment iptables_mark -m comment")
MARK_OPERATIONS = [
    "iptables -t mangle -N LVS-MARK",
    f"iptables -t mangle -A LVS-MARK {RULE}",
    "iptables -t mangle -A PREROUTING -j LVS-MARK",
]
IPVS_OPERATIONS = ["ipvsadm -A -f 80 -s wlc -p 300", "ipvsadm -a -f 80 -r 10.0.0.11 -g -w 10"]
MARK_DIFF = f"# ipv4, table mangle\n:LVS-MARK - [0:0]\n-A PREROUTING -j LVS-MARK\n-A LVS-MARK {RULE}\n"
IPVS_DIFF = "# IPVS\n-A -f 80 -s wlc -p 300\n-a -f 80 -r 10.0.0.11:0 -g -w 10\n"
CASES = [
    (lvs_service, {"services": [WEB]}, [*IPVS_OPERATIONS, *MARK_OPERATIONS], MARK_DIFF + IPVS_DIFF),
    (
        iptables_mark,
        {"rules": [MARK]},
        [line.replace(RULE, MARK_RULE) for line in MARK_OPERATIONS],
        MARK_DIFF.replace(RULE, MARK_RULE),
    ),
    (ipvs_service, {"services": [IPVS]}, IPVS_OPERATIONS, IPVS_DIFF),
]


@pytest.mark.parametrize("module, options, operations, diff", CASES, ids=lambda value: getattr(value, "__name__", ""))
def test_from_nothing_and_back(module: ModuleType, options: dict[str, Any], operations: list[str], diff: str) -> None:
    kernel = FakeKernel()
    nothing = kernel.snapshot()
    done = quartet(module, kernel, **options)
    assert done.pop("changes")
    assert done == {"changed": True, "operations": operations, "diff": {"before": "", "after": diff}}
    gone = quartet(module, kernel, state="absent", **options)
    assert gone["changed"] and gone["diff"] == {"before": diff, "after": ""}
    assert kernel.snapshot() == nothing


@given(states(), declared_services(), declared_marks(), declared_ipvs())
def test_the_quartet_on_any_router(
    state: Any, services: list[dict[str, Any]], rules: list[dict[str, Any]], ipvs: list[dict[str, Any]]
) -> None:
    for purge in ("none", "owned", "all"):
        quartet(lvs_service, kernel_with(state), services=services, purge=purge)
    for purge in (False, True):
        quartet(iptables_mark, kernel_with(state), rules=rules, purge=purge)
        quartet(ipvs_service, kernel_with(state), services=ipvs, purge=purge)
    quartet(lvs_service, kernel_with(state), services=services, state="absent")
    quartet(iptables_mark, kernel_with(state), rules=rules, state="absent")
    quartet(ipvs_service, kernel_with(state), services=ipvs, state="absent")


@pytest.mark.parametrize(
    "module, options, message",
    [
        (lvs_service, {"services": [{"name": "web"}]},
         "services[0] (web).traffic: needs at least one entry"),
        (iptables_mark, {"rules": [{**MARK, "prots": 1}]},
         "rules[0] (web).prots: is not an option; did you mean ports?"),
        (iptables_mark, {"rules": [], "chain": "INPUT"}, "chain: INPUT belongs to the kernel, not to us"),
        (ipvs_service, {"services": [{}]}, "services[0]: needs fwmark, or protocol, address and port"),
        (lvs_service, {"services": [], "purge": "some"},
         "value of purge must be one of: none, owned, all, got: some"),
    ],
)  # fmt: skip
def test_bad_options_touch_nothing(module: ModuleType, options: dict[str, Any], message: str) -> None:
    kernel = FakeKernel()
    kernel.read_only = True
    answer = run_module(module, kernel, **options)
    assert (answer.get("failed"), answer["msg"]) == (True, message)
    assert kernel.sockets == []


@pytest.mark.parametrize("module, options, _operations, _diff", CASES, ids=lambda v: getattr(v, "__name__", ""))
def test_a_refusal_is_a_failure_with_a_message(
    module: ModuleType, options: dict[str, Any], _operations: Any, _diff: Any
) -> None:
    kernel = FakeKernel()
    kernel.refused = lambda number: number == 0
    answer = run_module(module, kernel, **options)
    assert answer["failed"] is True and answer["msg"].endswith("\nNothing had been changed.")
    assert set(answer) == {"failed", "msg"}


# A rule that somebody else wrote into our chain by hand.
HOSTILE = '-m comment --comment "lvs:x\x1b[2J\x85" -j MARK --set-xmark 0x9/0xffffffff'


def with_hostile_rule() -> FakeKernel:
    kernel = FakeKernel()
    kernel.mangle["ipv4"].chains[CHAIN] = [Rule(HOSTILE)]
    return kernel


def test_what_a_terminal_would_act_on_stays_an_escape(monkeypatch: pytest.MonkeyPatch) -> None:
    warned: list[str] = []
    monkeypatch.setattr(AnsibleModule, "warn", lambda _module, warning: warned.append(warning))
    done = run_module(iptables_mark, with_hostile_rule(), rules=[], purge=True)
    said = [*done["operations"], *done["changes"], *done["diff"]["before"].splitlines()]
    run_module(iptables_mark, with_hostile_rule(), rules=[{**MARK, "mark": 9}])
    told = run_module(lvs_info, with_hostile_rule())
    problems = [problem["message"] for problem in told["problems"]]
    for lines in (said, warned, problems, told["not_adoptable"]):
        assert all(line.isprintable() for line in lines) and any(r"x\x1b[2J\x85" in line for line in lines)


@pytest.mark.parametrize("module, options, _operations, _diff", CASES[:2], ids=lambda v: getattr(v, "__name__", ""))
def test_what_a_tool_quotes_stays_an_escape(
    module: ModuleType, options: dict[str, Any], _operations: Any, _diff: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the message of a failure, whose own line breaks stay."""
    kernel = FakeKernel()
    refused = SimpleNamespace(returncode=1, stdout="", stderr="x\x1b[2J\x85\u2028\r\n\ty\n")
    monkeypatch.setattr(kernel, "_restore", lambda *_arguments: refused)
    message = run_module(module, kernel, **options)["msg"]
    assert r"x\x1b[2J\x85\u2028\r" + "\n\ty\n" in message
    assert all(char.isprintable() or char in "\n\t" for char in message)


def test_the_lock_timeout_arrives() -> None:
    kernel = FakeKernel()
    run_module(lvs_service, kernel, services=[], lock_timeout=7)
    run_module(lvs_service, kernel, services=[])
    assert kernel._lock_timeouts == [7, 30]


# -- purge, and the life of a service -----------------------------------------------------------------------------


def crowded() -> FakeKernel:
    """Ours: dns. Of others: a rule in our chain, a service by mark, one by address."""
    kernel = FakeKernel()
    run_module(lvs_service, kernel, services=[BOTH])
    run_module(ipvs_service, kernel, services=[{"fwmark": 9}, {"protocol": "tcp", "address": "192.0.2.1", "port": 22}])
    kernel.mangle["ipv4"].chains[CHAIN].append(Rule("-s 10.0.0.1/32 -j RETURN"))
    return kernel


def there(kernel: FakeKernel) -> tuple[list[Any], list[str]]:
    state = read(kernel)
    rules = [rule.name or rule.text for chain in state.chains.values() for rule in chain.rules]
    return [f"{key.family} {key.fwmark or key.port}" for key in state.pools], rules


@pytest.mark.parametrize(
    "purge, services, rules",
    [
        ("none", ["ipv4 53", "ipv6 53", "ipv4 9", "ipv4 22", "ipv4 80"],
         ["dns", "-s 10.0.0.1/32 -j RETURN", "web", "dns"]),
        ("owned", ["ipv4 9", "ipv4 22", "ipv4 80"], ["web", "-s 10.0.0.1/32 -j RETURN"]),
        ("all", ["ipv4 80"], ["web"]),
    ],
)  # fmt: skip
def test_purge_of_lvs_service(purge: str, services: list[str], rules: list[str]) -> None:
    kernel = crowded()
    quartet(lvs_service, kernel, services=[WEB], purge=purge)
    assert there(kernel) == (services, rules)


def test_owned_is_the_default_purge() -> None:
    kernel = crowded()
    run_module(lvs_service, kernel, services=[WEB])
    assert there(kernel)[0] == ["ipv4 9", "ipv4 22", "ipv4 80"]


def test_purge_is_off_in_the_other_modules() -> None:
    kernel = crowded()
    run_module(iptables_mark, kernel, rules=[MARK])
    before = there(kernel)
    run_module(iptables_mark, kernel, rules=[])
    run_module(ipvs_service, kernel, services=[])
    assert there(kernel) == before
    quartet(iptables_mark, kernel, rules=[], purge=True)
    quartet(ipvs_service, kernel, services=[], purge=True)
    assert there(kernel) == ([], ["dns", "-s 10.0.0.1/32 -j RETURN", "dns"])


def test_absent_takes_both_families_and_leaves_the_others() -> None:
    kernel = crowded()
    run_module(lvs_service, kernel, services=[WEB], purge="none")
    quartet(lvs_service, kernel, services=[{"name": "dns", "fwmark": 53}], state="absent")
    assert there(kernel) == (["ipv4 9", "ipv4 22", "ipv4 80"], ["-s 10.0.0.1/32 -j RETURN", "web"])


def test_absent_takes_the_services_of_all_marks_that_the_name_has() -> None:
    kernel = crowded()
    quartet(lvs_service, kernel, services=[{"name": "dns", "fwmark": 9}], state="absent")
    assert there(kernel) == (["ipv4 22"], ["-s 10.0.0.1/32 -j RETURN"])


@pytest.mark.parametrize("purge", ["none", "owned"])
def test_another_mark_for_a_service(purge: str) -> None:
    kernel = crowded()
    quartet(lvs_service, kernel, services=[{**BOTH, "fwmark": 54}], purge=purge)
    assert there(kernel)[0] == ["ipv4 9", "ipv4 22", "ipv4 54", "ipv6 54"]


@pytest.mark.parametrize("purge", ["none", "owned"])
def test_a_family_is_taken_from_a_service(purge: str) -> None:
    kernel = crowded()
    only = {**BOTH, "traffic": [{**BOTH["traffic"][0], "destination": "192.0.2.53"}],
            "real_servers": [{"address": "10.0.0.53"}]}  # fmt: skip
    done = quartet(lvs_service, kernel, services=[only], purge=purge)
    assert there(kernel)[0] == ["ipv4 53", "ipv4 9", "ipv4 22"]
    assert not read(kernel).chains[MARKS6].exists
    assert [line for line in done["operations"] if line.startswith("ipvsadm")] == ["ipvsadm -D -f 53 -6"]


def test_two_names_with_one_mark_do_not_lose_their_service() -> None:
    kernel = FakeKernel()
    run_module(lvs_service, kernel, services=[WEB])
    run_module(iptables_mark, kernel, rules=[{**MARK, "name": "more", "destination": "192.0.2.11"}])
    quartet(lvs_service, kernel, services=[{**WEB, "fwmark": 81}], purge="none")
    assert there(kernel) == (["ipv4 80", "ipv4 81"], ["web", "more"])


@pytest.mark.parametrize(
    "drifted",
    [
        RULE.replace("--dports 80,443", "--dports 443,80"),
        RULE.replace("-m multiport", "-m tcp -m multiport"),
        f'-m comment --comment "lvs:web" {RULE.replace(" -m comment --comment " + chr(34) + "lvs:web" + chr(34), "")}',
    ],
)
def test_rules_in_other_words_are_adopted(drifted: str) -> None:
    kernel = FakeKernel()
    run_module(lvs_service, kernel, services=[WEB])
    kernel.mangle["ipv4"].chains[CHAIN][0].text = drifted
    assert not quartet(lvs_service, kernel, services=[WEB])["changed"]
    assert kernel.mangle["ipv4"].chains[CHAIN][0].text == drifted


@pytest.mark.parametrize(
    "change, operations",
    [
        (lambda kernel: kernel.mangle["ipv4"].chains["PREROUTING"].clear(), [MARK_OPERATIONS[2]]),
        (lambda kernel: kernel.mangle["ipv4"].chains[CHAIN].clear(), [MARK_OPERATIONS[1]]),
        (lambda kernel: kernel.ipvs.services.clear(), IPVS_OPERATIONS),
        (lambda kernel: next(iter(kernel.ipvs.services.values())).servers.clear(), IPVS_OPERATIONS[1:]),
        (lambda kernel: kernel.mangle["ipv4"].chains[CHAIN].append(Rule("-j RETURN")), []),
    ],
)
def test_drift_is_healed_with_the_fewest_operations(change: Any, operations: list[str]) -> None:
    kernel = FakeKernel()
    run_module(lvs_service, kernel, services=[WEB])
    change(kernel)
    assert quartet(lvs_service, kernel, services=[WEB])["operations"] == operations


def test_a_chain_of_another_name() -> None:
    kernel = FakeKernel()
    quartet(iptables_mark, kernel, rules=[MARK], chain="OTHER")
    assert [rule.text for rule in kernel.mangle["ipv4"].chains["OTHER"]] == [MARK_RULE]
    assert CHAIN not in kernel.mangle["ipv4"].chains


# -- lvs_info -----------------------------------------------------------------------------------------------------


def info(kernel: FakeKernel) -> dict[str, Any]:
    before = kernel.snapshot()
    answer = run_module(lvs_info, kernel, check=True)
    assert kernel.snapshot() == before and answer.pop("changed") is False
    return answer


def test_info_of_an_empty_router() -> None:
    kernel = FakeKernel(loaded=False)
    kernel.installed = set()
    assert info(kernel) == {
        "services": [],
        "rules": [],
        "ipvs_services": [],
        "pools": [],
        "counters": [],
        "timeouts": {},
        "daemons": [],
        "foreign_rules": [],
        "policy_rules": [],
        "controllers": [],
        "firewalls": [],
        "adoptable": {"before": [], "behind": []},
        "not_adoptable": [],
        "problems": [],
    }
    assert not kernel.loaded


@given(declared_services())
def test_what_info_tells_is_what_was_declared(services: list[dict[str, Any]]) -> None:
    kernel = FakeKernel()
    run_module(lvs_service, kernel, services=services)
    told = info(kernel)
    kinds = {problem["kind"] for problem in told["problems"]}
    assert kinds <= {"vip_not_local", "hidden"}
    assert {item["name"] for item in told["services"]} == {item["name"] for item in services}
    for module, options in (
        (lvs_service, {"services": told["services"]}),
        (lvs_service, {"services": told["services"], "purge": "all"}),
        (iptables_mark, {"rules": told["rules"], "purge": True}),
        (ipvs_service, {"services": told["ipvs_services"], "purge": True}),
    ):
        assert run_module(module, kernel, **options)["operations"] == []
    fresh = FakeKernel()
    run_module(lvs_service, fresh, services=told["services"])
    assert read(fresh) == read(kernel)


@given(declared_marks(), declared_ipvs())
def test_the_halves_are_fed_back_alone(rules: list[dict[str, Any]], services: list[dict[str, Any]]) -> None:
    kernel = FakeKernel()
    run_module(iptables_mark, kernel, rules=rules)
    run_module(ipvs_service, kernel, services=services)
    told = info(kernel)
    assert run_module(iptables_mark, kernel, rules=told["rules"], purge=True)["operations"] == []
    assert run_module(ipvs_service, kernel, services=told["ipvs_services"], purge=True)["operations"] == []


def test_info_of_a_service() -> None:
    kernel = FakeKernel()
    run_module(lvs_service, kernel, services=[WEB])
    kernel.local = {"192.0.2.10"}
    told = info(kernel)
    server = {"address": "10.0.0.11", "weight": 10, "forward_method": "direct"}
    traffic = {"destination": ["192.0.2.10"], "protocol": ["tcp"], "ports": [80, 443]}
    assert told["services"] == [
        {"name": "web", "fwmark": 80, "traffic": [traffic], "scheduler": "wlc", "persistence_timeout": 300,
         "real_servers": [server]}
    ]  # fmt: skip
    assert told["rules"] == [{"name": "web", "mark": 80, "mask": 2**32 - 1, **traffic}]
    assert told["ipvs_services"] == [
        {"fwmark": 80, "family": "ipv4", "scheduler": "wlc", "persistence_timeout": 300,
         "real_servers": [{"address": "10.0.0.11", "port": 0, "weight": 10, "forward_method": "direct"}]}
    ]  # fmt: skip
    assert told["timeouts"] == {"tcp": 9, "tcp_fin": 8, "udp": 7}
    assert told["problems"] == []
    (counted,) = told["counters"]
    assert (counted["fwmark"], counted["real_servers"][0]["active_connections"]) == (80, 0)


def test_info_asks_tc_once_for_each_device() -> None:
    kernel = FakeKernel()
    run_module(lvs_service, kernel, services=[WEB])
    kernel.local = {"192.0.2.10"}
    kernel.installed.add("tc")
    kernel.traffic_control = {
        "": "qdisc noqueue 0: dev lo root\nqdisc htb 1: dev eth0 root\nqdisc clsact ffff: dev eth0 parent ffff:fff1\n",
        "filter show dev eth0 parent 1:\nfilter show dev eth0 egress\n": (
            "filter protocol ip pref 1 fw chain 0 handle 0x50\n"
        ),
    }
    [found] = info(kernel)["problems"]
    assert found == {
        "kind": "mark_read", "name": "web", "fwmark": 80, "family": "ipv4", "device": "eth0",
        "message": "web: tc on device eth0 (filter protocol ip pref 1 fw chain 0 handle 0x50) singles out packets "
        "with the mark 80 behind IPVS; take a mark that it does not ask for",
    }  # fmt: skip


def foreign_rule(kernel: FakeKernel) -> None:
    kernel.mangle["ipv4"].chains[CHAIN].append(Rule("-j RETURN"))


def second_jump(kernel: FakeKernel) -> None:
    kernel.mangle["ipv4"].chains["PREROUTING"].append(Rule(f"-j {CHAIN}"))


def lost_service(kernel: FakeKernel) -> None:
    kernel.ipvs.services.clear()


def lost_rules(kernel: FakeKernel) -> None:
    kernel.mangle["ipv4"].chains[CHAIN].clear()


def odd_port(kernel: FakeKernel) -> None:
    run_module(ipvs_service, kernel, services=[{**IPVS, "real_servers": [{"address": "10.0.0.11", "port": 80}]}])


def not_local(kernel: FakeKernel) -> None:
    kernel.local.clear()


@pytest.mark.parametrize(
    "spoil, problem",
    [
        (foreign_rule, {"kind": "foreign_rule", "family": "ipv4",
                        "message": "a rule in our ipv4 chain LVS-MARK that is not ours: -j RETURN"}),
        (second_jump, {"kind": "jump", "family": "ipv4",
                       "message": "the ipv4 chain LVS-MARK is entered from PREROUTING 2 times instead of once"}),
        (lost_service, {"kind": "mark_without_service", "name": "web", "fwmark": 80, "family": "ipv4",
                        "message": "web: mark 80 has no IPVS service in ipv4"}),
        (lost_rules, {"kind": "service_without_mark", "fwmark": 80, "family": "ipv4",
                      "message": "no rule gives the mark 80 of the ipv4 IPVS service"}),
        (odd_port, {"kind": "not_declarable", "name": "web", "fwmark": 80,
                    "message": "web: its rules and IPVS services are not what one declared service makes"}),
        (not_local, {"kind": "vip_not_local", "address": "192.0.2.10", "fwmark": 80,
                     "message": "192.0.2.10 is not local to this router: IPVS will not see its packets"}),
    ],
)  # fmt: skip
def test_problems(spoil: Any, problem: dict[str, Any]) -> None:
    kernel = FakeKernel()
    run_module(lvs_service, kernel, services=[WEB])
    kernel.local = {"192.0.2.10"}
    spoil(kernel)
    assert info(kernel)["problems"] == [problem]


def test_a_table_that_cannot_be_read_is_a_problem_and_the_rest_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = FakeKernel()
    run_module(lvs_service, kernel, services=[BOTH])
    monkeypatch.setattr(kernel.mangle["ipv6"], "save", lambda: "*mangle\n:PREROUTING ACCEPT [0:0]\n")
    told = info(kernel)
    assert told["problems"][0]["kind"] == "unreadable" and told["problems"][0]["family"] == "ipv6"
    assert [rule["name"] for rule in told["rules"]] == ["dns"]
    answer = run_module(lvs_service, kernel, services=[BOTH])
    assert answer["failed"] and "did not print it all" in answer["msg"]


def test_legacy_tables_that_cannot_be_read_are_not_taken_for_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """iptables-legacy fails when the kernel has no memory for a copy of a table."""
    kernel = FakeKernel(backend="legacy")
    answered = kernel._answer

    def answer(argv: list[str], text: str) -> Any:
        done = answered(argv, text)
        return SimpleNamespace(returncode=4, stdout="", stderr="no memory") if argv == ["iptables-save"] else done

    monkeypatch.setattr(kernel, "_answer", answer)
    told = run_module(lvs_info, kernel)
    assert (told["failed"], told["msg"]) == (True, "iptables-save: exit status 4: no memory")


@given(states())
def test_info_tells_about_any_router(state: Any) -> None:
    kernel = kernel_with(state)
    told = info(kernel)
    assert len(told["ipvs_services"]) == len(told["counters"]) == len(state.pools)
    servers = sum(len(pool.real_servers) for pool in state.pools.values())
    assert len(told["pools"]) == servers and len({frozenset(entry) for entry in told["pools"]}) <= 1
    shown = status(["router1"], {"router1": {"lvs_found": told}})
    assert (shown["routers"][0]["message"], shown["totals"]["servers"]) == ("", servers)
    assert run_module(ipvs_service, kernel, services=told["ipvs_services"], purge=True)["operations"] == []
    for module, options in ((lvs_service, {"services": told["services"]}), (iptables_mark, {"rules": told["rules"]})):
        assert "failed" not in run_module(module, kernel, check=True, **options)


# -- ftp ----------------------------------------------------------------------------------------------------------

FTP = {
    "name": "ftp",
    "fwmark": 21,
    "traffic": [{"destination": ["192.0.2.11"], "protocol": ["tcp"], "ports": [20, 21, "10000:10100"]}],
    "scheduler": "wlc",
    "persistence_timeout": 300,
    "real_servers": [{"address": "10.0.0.21", "weight": 1, "forward_method": "masquerade"}],
    "helper": "ftp",
}
TWO = [{"address": f"10.0.0.{number}", "weight": 1, "forward_method": "masquerade"} for number in (21, 22)]


def snat(address: str) -> str:
    match = f'-s {address}/32 -p tcp -m tcp --sport 20 -m comment --comment "lvs:ftp"'
    return f"LVS-SNAT {match} -j SNAT --to-source 192.0.2.11"


def test_masqueraded_ftp_from_nothing_and_back() -> None:
    kernel = FakeKernel()
    nothing = kernel.snapshot()
    operations = quartet(lvs_service, kernel, services=[FTP])["operations"]
    nat = ["-N LVS-SNAT", f"-A {snat('10.0.0.21')}", "-A POSTROUTING -j LVS-SNAT"]
    assert [line for line in operations if "-t nat" in line] == [f"iptables -t nat {line}" for line in nat]
    assert info(kernel)["services"] == [FTP]
    quartet(lvs_service, kernel, services=[{**FTP, "real_servers": TWO}])
    assert info(kernel)["services"] == [{**FTP, "real_servers": TWO[::-1]}]
    assert not run_module(lvs_service, kernel, services=info(kernel)["services"])["changed"]
    quartet(lvs_service, kernel, services=[FTP])
    other = {**FTP, "real_servers": [{"address": "10.0.0.22", "forward_method": "masquerade"}]}
    operations = quartet(lvs_service, kernel, services=[other])["operations"]
    nat = [f"-D {snat('10.0.0.21')}", f"-A {snat('10.0.0.22')}"]
    assert [line for line in operations if "-t nat" in line] == [f"iptables -t nat {line}" for line in nat]
    direct = {**FTP, "real_servers": [{"address": "10.0.0.22"}]}
    assert "iptables -t nat -X LVS-SNAT" in quartet(lvs_service, kernel, services=[direct])["operations"]
    quartet(lvs_service, kernel, services=[FTP])
    quartet(lvs_service, kernel, services=[FTP], state="absent")
    assert kernel.snapshot() == nothing


def test_a_foreign_rule_in_the_chain_of_ftp_is_told() -> None:
    kernel = FakeKernel()
    run_module(lvs_service, kernel, services=[FTP])
    kernel.nat["ipv4"].chains["LVS-SNAT"].append(Rule("-j RETURN"))
    message = "a rule in our ipv4 chain LVS-SNAT that is not ours: -j RETURN"
    assert {"kind": "foreign_rule", "family": "ipv4", "message": message} in info(kernel)["problems"]


def test_only_ftp_needs_a_readable_table_nat(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = FakeKernel()
    monkeypatch.setattr(kernel.nat["ipv4"], "save", lambda: "# Table `nat' is incompatible, use 'nft' tool.\n")
    quartet(lvs_service, kernel, services=[WEB])
    assert [service["name"] for service in info(kernel)["services"]] == ["web"]
    answer = run_module(lvs_service, kernel, services=[WEB, FTP])
    assert answer["failed"] and "iptables-save -t nat did not print it all" in answer["msg"]


# -- what the kernel takes, and no option does ----------------------------------------------------------------------

FWM = ServiceId("ipv4", 80)
TCP = ServiceId("ipv4", protocol="tcp", address="192.0.2.10", port=80)
BEYOND = [
    (VirtualService(FWM, persistence_netmask=32), RealServer("10.0.0.1", weight=65536),
     {"fwmark": 80, "family": "ipv4"}, "real_servers[0].weight: 65536 is not a weight (0-65535)"),
    (VirtualService(ServiceId("ipv4", 2**31), persistence_netmask=32), None, {"fwmark": 2**31, "family": "ipv4"},
     "fwmark: 2147483648 is not a firewall mark (1-2147483647)"),
    (VirtualService(FWM, persistence_timeout=60, persistence_netmask=0), None, {"fwmark": 80, "family": "ipv4"},
     "persistence_netmask: 0 is not a prefix length (1-32)"),
    (VirtualService(FWM, persistence_timeout=60, persistence_netmask="0.255.255.255"), None,
     {"fwmark": 80, "family": "ipv4"}, "persistence_netmask: '0.255.255.255' is not a netmask"),
    (VirtualService(TCP, persistence_netmask=32, one_packet=True), None,
     {"protocol": "tcp", "address": "192.0.2.10", "port": 80}, "one_packet: is for udp, not tcp"),
]  # fmt: skip


@pytest.mark.parametrize("service, server, identity, why", BEYOND)
def test_what_cannot_be_fed_back_is_a_problem(
    service: VirtualService, server: RealServer | None, identity: dict[str, Any], why: str
) -> None:
    fine = Pool(VirtualService(ServiceId("ipv4", 81), persistence_netmask=32), {})
    pool = Pool(service, {server.id: server} if server else {})
    state = RouterState({}, {fine.service.id: fine, service.id: pool})
    what = " ".join(f"{key} {value}" for key, value in identity.items())
    message = f"IPVS service {what}: ipvs_service refuses to declare it: {why}"
    assert report.refused(state) == [{"kind": "not_declarable", "message": message, **identity}]
    told = run_module(lvs_info, kernel_with(state))
    assert message in [problem["message"] for problem in told["problems"]]
    answer = run_module(ipvs_service, kernel_with(state), services=told["ipvs_services"])
    assert answer["failed"] and why in answer["msg"]


def test_of_services_that_are_alike_one_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(report, "parse_ipvs_services", lambda given, _path: asked.append(given))
    server = RealServer("10.0.0.1")
    pools = [
        Pool(VirtualService(ServiceId("ipv4", mark), persistence_netmask=32), {server.id: server})
        for mark in range(1, 100)
    ]
    assert report.refused(RouterState({}, {pool.service.id: pool for pool in pools})) == []
    assert len(asked) == 1
