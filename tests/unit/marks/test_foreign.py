# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What lvs_info tells of all that is not ours: what it is, what gets in our way, and what could be adopted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from ansible_collections.lvs.fleet.plugins.module_utils._declared.params import virtual_services
from ansible_collections.lvs.fleet.plugins.modules import ipvs_service, lvs_info, lvs_service
from ansible_collections.lvs.fleet.tests.unit.fake_kernel import FakeKernel, Rule, Table
from ansible_collections.lvs.fleet.tests.unit.packets import mark, packets
from ansible_collections.lvs.fleet.tests.unit.running import CHAIN, quartet, read, run_module, to_adopt
from ansible_collections.lvs.fleet.tests.unit.strategies import declared_services, hooks

FULL = 2**32 - 1
SERVER = {"address": "10.0.0.11", "weight": 1, "forward_method": "direct"}
WEB = {
    "name": "web",
    "fwmark": 80,
    "traffic": [{"destination": ["192.0.2.10"], "protocol": ["tcp"], "ports": [80, 443]}],
    "scheduler": "wlc",
    "real_servers": [SERVER],
}
VIP = "-d 192.0.2.10/32 -p tcp -m tcp"
TO_9 = "-j MARK --set-xmark 0x9/0xffffffff"
TO_80 = "-j MARK --set-xmark 0x50/0xffffffff"
RESTORE = "-j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff"


def info(kernel: FakeKernel) -> dict[str, Any]:
    before = kernel.snapshot()
    answer = run_module(lvs_info, kernel, check=True)
    assert kernel.snapshot() == before
    assert "failed" not in answer, answer
    return answer


def add(kernel: FakeKernel, chain: str, *texts: str, family: str = "ipv4", first: bool = False) -> None:
    rules = kernel.mangle[family].chains.setdefault(chain, [])
    rules[slice(0, 0) if first else slice(len(rules), None)] = [Rule(text) for text in texts]


@pytest.fixture
def kernel() -> FakeKernel:
    """A router with our service web, and nothing wrong with it."""
    kernel = FakeKernel()
    run_module(lvs_service, kernel, services=[WEB])
    kernel.local = {"192.0.2.10"}
    assert info(kernel)["problems"] == []
    return kernel


# -- what is there ------------------------------------------------------------------------------------------------


def test_every_rule_of_others_is_told(kernel: FakeKernel) -> None:
    add(kernel, "PREROUTING", "-p tcp -j CONNMARK --save-mark", first=True)
    add(kernel, "PREROUTING", f"-s 10.0.0.0/8 -i eth0 {VIP} --dport 8080 {TO_9}", f"{VIP} --sport 1 {TO_9}")
    add(kernel, "OWN", f'-d 192.0.2.9/32 -m comment --comment "a -j b" {TO_9}', "-j RETURN", "")
    add(kernel, CHAIN, "-j RETURN")
    told = info(kernel)["foreign_rules"]
    mark_9 = {"target": "MARK", "mark": 9, "mask": FULL}
    shape = {"destination": ["192.0.2.10"], "protocol": ["tcp"], "ports": [8080], "source": ["10.0.0.0/8"],
             "in_interface": "eth0"}  # fmt: skip
    assert [(rule["chain"], rule["position"], rule["target"]) for rule in told] == [
        ("PREROUTING", 1, "CONNMARK"),
        ("PREROUTING", 3, "MARK"),
        ("PREROUTING", 4, "MARK"),
        ("OWN", 1, "MARK"),
        ("OWN", 2, "RETURN"),
        ("OWN", 3, ""),
    ]
    words = f"-s 10.0.0.0/8 -i eth0 {VIP} --dport 8080 {TO_9}"
    assert told[1] == {"family": "ipv4", "chain": "PREROUTING", "position": 3, "rule": words, **mark_9, **shape}
    assert "destination" not in told[2] and told[2]["mark"] == 9
    assert told[3].keys() == {"family", "chain", "position", "rule", "target", "mark", "mask", "destination"}


@pytest.mark.parametrize("rule", [{"fwmark": "x"}, {"fwmark": None}, {"fwmark": "1", "fwmask": []}])
def test_policy_rules_that_cannot_be(kernel: FakeKernel, rule: dict[str, Any]) -> None:
    kernel.policy_rules["-4"] = [rule]
    assert "ip -json -4 rule show: it is not understood: " in run_module(lvs_info, kernel)["msg"]


def test_policy_rules_are_told(kernel: FakeKernel) -> None:
    kernel.policy_rules["-4"] = [
        {"priority": 76, "not": None, "src": "all", "fwmark": "0xca6c", "table": "51820"},
        {"priority": 77, "src": "10.0.0.0", "srclen": 8, "dst": "192.0.2.7", "fwmark": "0x51", "fwmask": "0xff",
         "iif": "eth0", "iif_detached": None, "action": "prohibit"},
    ]  # fmt: skip
    told = info(kernel)
    assert told["policy_rules"] == [
        {"family": "ipv4", "priority": 76, "fwmark": 0xCA6C, "mask": FULL, "table": "51820", "inverted": True},
        {"family": "ipv4", "priority": 77, "fwmark": 81, "mask": 255, "table": "", "iif": "eth0", "action": "prohibit",
         "from": "10.0.0.0/8", "to": "192.0.2.7/32"},
    ]  # fmt: skip
    assert told["problems"] == []


def test_firewalls_are_told_by_their_chains_and_processes(kernel: FakeKernel) -> None:
    for family, table, chain in (
        ("ipv4", kernel.nat, "DOCKER"),
        ("ipv4", kernel.nat, "DOCKER-USER"),
        ("ipv6", kernel.nat, "KUBE-SERVICES"),
        ("ipv4", kernel.mangle, "cali-PREROUTING"),
        ("ipv4", kernel.mangle, "f2b-sshd"),
        ("ipv4", kernel.mangle, "MY-DOCKER"),
    ):
        table[family].chains[chain] = []
    kernel.processes = [(612, "firewalld", ["/usr/bin/python3", "/usr/sbin/firewalld"])]
    assert sorted(info(kernel)["firewalls"], key=str) == [
        {"name": "calico", "evidence": "chain cali-PREROUTING of ipv4 table mangle"},
        {"name": "docker", "evidence": "chain DOCKER of ipv4 table nat"},
        {"name": "fail2ban", "evidence": "chain f2b-sshd of ipv4 table mangle"},
        {"name": "firewalld", "evidence": "process 612"},
        {"name": "kubernetes", "evidence": "chain KUBE-SERVICES of ipv6 table nat"},
    ]


@pytest.mark.parametrize("marking, told", [("iptables", ["firewalld.service", "shorewall.service"]), ("nftables", [])])
def test_a_firewall_that_will_remove_our_rules_is_a_problem(kernel: FakeKernel, marking: str, told: list[str]) -> None:
    """The router was deployed before it. nftables.service is followed by ours, and others remove nothing."""
    kernel.units = ["shorewall.service", "nftables.service", "firewalld.service", "ufw.service"]
    run_module(lvs_service, kernel, services=[WEB], marking=marking)
    problems = [problem for problem in info(kernel)["problems"] if problem["kind"] == "firewall"]
    assert [problem["unit"] for problem in problems] == told
    assert all("LVS-MARK" in problem["message"] for problem in problems)


KUBE, SWARM = ("lo", "kube-ipvs0"), ("lo", "docker_gwbridge")
VRRP = {"/run/keepalived/vrrp.pid": "9\n"}
CONTROLLERS = {
    # Name and arguments of processes 7 and 9, interfaces, files; and the name of the controller, if it is one.
    "keepalived": (["keepalived", "--dont-fork"], (), {}, "keepalived"),
    "checkers, too": (["keepalived"], (), {"/run/vrrp.pid": "8\n", "/run/checkers.pid": "9\n"}, "keepalived"),
    "VRRP by its configuration": (["keepalived"], (), VRRP, ""),
    "VRRP by a word": (["keepalived", "--vrrp"], (), {}, ""),
    "VRRP by a letter": (["keepalived", "-P"], (), {}, ""),
    "VRRP by a letter among others": (["keepalived", "-DP"], (), {}, ""),
    "a file whose name has the letter": (["keepalived", "-f", "P.conf", "-fP.conf"], (), {}, "keepalived"),
    "a process by the name of its task": (["keepalived_ipvs"], (), VRRP, "keepalived"),
    "ldirectord": (["ldirectord", "/etc/ha.d/ldirectord.cf"], (), {}, "ldirectord"),
    "kube-proxy": (["kube-proxy", "--proxy-mode=ipvs"], (), {}, "kube-proxy"),
    "kube-proxy, two words": (["kube-proxy", "--proxy-mode", "ipvs"], (), {}, "kube-proxy"),
    "kube-proxy by iptables": (["kube-proxy", "--config=/etc/kube-proxy.yml"], (), {}, ""),
    "kube-proxy by its interface": (["kube-proxy"], KUBE, {}, "kube-proxy"),
    "k3s": (["k3s-server", "server"], (), {}, ""),
    "k3s by IPVS": (["k3s-server", "server", "--kube-proxy-arg=proxy-mode=ipvs"], (), {}, "k3s"),
    "k3s by its interface": (["k3s-agent"], KUBE, {}, "k3s"),
    "kube-router": (["kube-router"], (), {}, "kube-router"),
    "kube-router without services": (["kube-router", "--run-service-proxy=false"], (), {}, ""),
    "kube-vip": (["kube-vip", "manager"], (), {"/proc/7/environ": "a=b\0lb_enable=true\0"}, "kube-vip"),
    "kube-vip without IPVS": (["kube-vip", "manager"], (), {"/proc/7/environ": "lb_enable=false\0"}, ""),
    "a swarm": (["dockerd"], SWARM, {}, "dockerd (swarm)"),
    "no swarm": (["dockerd"], ("lo", "docker0"), {}, ""),
    "piranha": (["lvsd"], (), {}, "lvsd"),
    "its checks": (["nanny"], (), {}, "nanny"),
    "seesaw": (["seesaw_ncc"], (), {}, "seesaw_ncc"),
    "a web server": (["nginx"], (), {}, ""),
}


@pytest.mark.parametrize("case", CONTROLLERS)
def test_other_controllers_of_ipvs(kernel: FakeKernel, case: str) -> None:
    (name, *arguments), devices, files, found = CONTROLLERS[case]
    kernel.processes = [(7, name, [f"/usr/sbin/{name}", *arguments]), (9, name, [name, *arguments])]
    kernel.devices = devices or kernel.devices
    kernel.files = files
    told = info(kernel)
    assert told["controllers"] == ([{"name": found, "pid": 7}] if found else [])
    message = f"{found} (process 7) manages IPVS, too: it must have services of its own"
    problem = {"kind": "controller", "message": message, "name": found, "pid": 7}
    assert told["problems"] == ([problem] if found else [])


def test_keepalived_without_a_child_has_no_checkers(kernel: FakeKernel) -> None:
    kernel.processes = [(7, "keepalived", ["keepalived"])]
    assert info(kernel)["controllers"] == []


@pytest.mark.parametrize("name, route, rule, found", [
    ("all", "default", {}, True), ("eth0", "default", {}, True), ("eth9", "default", {}, False),
    ("all", "192.0.2.0/24", {}, False), ("all", "default", {"iif": "eth0"}, False),
])  # fmt: skip
def test_sources_by_mark(kernel: FakeKernel, name: str, route: str, rule: dict[str, Any], found: bool) -> None:
    kernel.files = {f"/proc/sys/net/ipv4/conf/{name}/src_valid_mark": "1\n"}
    kernel.policy_rules["-4"] = [{"priority": 100, "src": "all", "table": "200", "fwmark": "0x50", **rule}]
    kernel.local_routes["-4", "200"] = [route]
    problems = info(kernel)["problems"]
    assert [problem["kind"] for problem in problems] == ["src_valid_mark"] * found
    assert not found or problems[0]["message"].startswith(f"web: net.ipv4.conf.{name}.src_valid_mark is 1, so ")


# -- what gets in the way -----------------------------------------------------------------------------------------


def conflicts(kernel: FakeKernel) -> list[tuple[Any, ...]]:
    keys = ("kind", "chain", "position", "mark")
    return [tuple(problem.get(key) for key in keys if key in problem) for problem in info(kernel)["problems"]]


LATER = {
    # Rules by chain; what they do to the mark of web.
    "another mark": ({"PREROUTING": [f"-d 192.0.2.0/24 {TO_9}"]}, [("overridden", "PREROUTING", 2, 9)]),
    "bits of the mark": (
        {"PREROUTING": ["-j MARK --set-xmark 0x100/0xf00"]},
        [("overridden", "PREROUTING", 2, 0x150)],
    ),
    "no mark": ({"PREROUTING": ["-j MARK --set-xmark 0x0/0xffffffff"]}, [("overridden", "PREROUTING", 2, 0)]),
    "in the input hook": ({"INPUT": [f"-p tcp {TO_9}"]}, [("overridden", "INPUT", 1, 9)]),
    "in a chain of somebody": (
        {"PREROUTING": ["-p tcp -g OWN"], "OWN": ["-j DEEPER"], "DEEPER": [TO_9]},
        [("overridden", "DEEPER", 1, 9)],
    ),
    "for our mark": ({"PREROUTING": [f"-m mark --mark 0x50/0xff {TO_9}"]}, [("overridden", "PREROUTING", 2, 9)]),
    "the connection's mark": ({"PREROUTING": [RESTORE]}, [("connmark", "PREROUTING", 2)]),
    "after the end for others": (
        {"PREROUTING": ["-d 192.0.2.11/32 -j ACCEPT", TO_9]},
        [("overridden", "PREROUTING", 3, 9)],
    ),
    # What does no harm.
    "the same mark": ({"PREROUTING": [f"-p tcp {TO_80}"]}, []),
    "other addresses": ({"PREROUTING": [f"-d 192.0.2.11/32 {TO_9}", f"-d 192.0.3.0/24 {RESTORE}"]}, []),
    "other ports": ({"PREROUTING": [f"{VIP} --dport 81:442 {TO_9}"]}, []),
    "another protocol": ({"PREROUTING": [f"-p udp {TO_9}", f"-p icmp {TO_9}"]}, []),
    "a chain for others": ({"PREROUTING": ["-d 192.0.2.11/32 -j OWN"], "OWN": [TO_9]}, []),
    "a chain that nobody enters": ({"OWN": [TO_9]}, []),
    "another hook": ({"FORWARD": [TO_9], "OUTPUT": [TO_9]}, []),
    "for packets without a mark": ({"PREROUTING": [f"-m mark --mark 0x0 {TO_9}", f"-m mark ! --mark 0x50 {TO_9}"]}, []),
    "kept for the connection": ({"PREROUTING": ["-j CONNMARK --save-mark --nfmask 0xff --ctmask 0xff"]}, []),
    "after the end for ours": ({"PREROUTING": ["-d 192.0.2.10/32 -p tcp -j ACCEPT", TO_9]}, []),
}


@pytest.mark.parametrize("case", LATER)
def test_what_later_rules_do(kernel: FakeKernel, case: str) -> None:
    by_chain, expected = LATER[case]
    for chain, texts in by_chain.items():
        add(kernel, chain, *texts)
    assert conflicts(kernel) == expected


def test_what_comes_before_ours_does_no_harm(kernel: FakeKernel) -> None:
    add(kernel, "PREROUTING", RESTORE, TO_9, first=True)
    assert conflicts(kernel) == []


def test_interfaces_and_sources_keep_rules_apart() -> None:
    kernel = FakeKernel()
    traffic = [{**WEB["traffic"][0], "source": ["10.0.0.0/8"], "in_interface": "eth+"}]
    run_module(lvs_service, kernel, services=[{**WEB, "traffic": traffic}])
    kernel.local = {"192.0.2.10"}
    add(kernel, "PREROUTING", f"-i wlan0 {TO_9}", f"-i wl+ {TO_9}", f"-s 11.0.0.0/8 {TO_9}")
    assert conflicts(kernel) == []
    add(kernel, "PREROUTING", f"-i e+ {TO_9}", f"-i eth1 {TO_9}", f"-s 10.1.0.0/16 {TO_9}")
    assert [position for _kind, _chain, position, _mark in conflicts(kernel)] == [5, 6, 7]


def test_a_rule_that_does_the_same_is_told(kernel: FakeKernel) -> None:
    add(kernel, "PREROUTING", f"{VIP} --dport 80 {TO_80}")
    add(kernel, "PREROUTING", f"{VIP} --dport 81 {TO_80}")
    words = f"PREROUTING rule 2 ({VIP} --dport 80 {TO_80})"
    assert info(kernel)["problems"] == [
        {"kind": "duplicate", "message": f"{words} does what rules of ours do; adopt takes it over", "fwmark": 80,
         "family": "ipv4", "chain": "PREROUTING", "position": 2}
    ]  # fmt: skip
    run_module(lvs_service, kernel, services=[WEB], adopt=True)
    assert conflicts(kernel) == []


def test_the_message_names_service_and_rule(kernel: FakeKernel) -> None:
    add(kernel, "PREROUTING", TO_9, RESTORE)
    remedy = "put it before our jump, or except these packets from it"
    assert [problem["message"] for problem in info(kernel)["problems"]] == [
        f"web: mangle PREROUTING rule 2 ({TO_9}) makes the mark 80 of the same packets 9; {remedy}",
        f"web: mangle PREROUTING rule 3 ({RESTORE}) replaces the mark 80 by that of the connection; {remedy}",
    ]


ANY = {"priority": 100, "src": "all", "table": "200"}
ROUTING = {
    # A rule of ip; what table 200 delivers to the router itself; whether the address is the router's; the problems.
    "elsewhere": ({"fwmark": "0x50"}, [], False, ["vip_not_local", "policy_rule"]),
    "elsewhere by bits": ({"fwmark": "0x10", "fwmask": "0x10"}, [], False, ["vip_not_local", "policy_rule"]),
    "another address": ({"fwmark": "0x50"}, ["192.0.2.11"], False, ["vip_not_local", "policy_rule"]),
    "delivered by a default": ({"fwmark": "0x50"}, ["default"], False, []),
    "delivered by a network": ({"fwmark": "0x50"}, ["192.0.2.0/24"], False, []),
    "delivered": ({"fwmark": "0x50"}, ["192.0.2.10"], False, []),
    "delivered from an interface": ({"fwmark": "0x50", "iif": "eth0"}, ["default"], False, []),
    "behind the local table": ({"fwmark": "0x50"}, [], True, []),
    "behind the local table, refused": ({"fwmark": "0x50", "action": "prohibit", "table": ""}, [], True, []),
    "refused": ({"fwmark": "0x50", "action": "prohibit", "table": ""}, [], False, ["vip_not_local", "policy_rule"]),
    "from an interface": ({"fwmark": "0x50", "iif": "eth0"}, [], False, ["vip_not_local", "policy_rule"]),
    "another interface": ({"fwmark": "0x50", "iif": "eth9"}, [], False, ["vip_not_local"]),
    "sent by the router": ({"fwmark": "0x50", "iif": "lo"}, [], False, ["vip_not_local"]),
    "sent by an interface": ({"fwmark": "0x50", "oif": "eth0"}, [], False, ["vip_not_local"]),
    "from a source": ({"fwmark": "0x50", "src": "10.9.0.0", "srclen": 16}, [], False, ["vip_not_local"]),
    "from more sources": ({"fwmark": "0x50", "src": "8.0.0.0", "srclen": 6}, [], False,
                          ["vip_not_local", "policy_rule"]),
    "to others": ({"fwmark": "0x50", "dst": "192.0.3.0", "dstlen": 24}, [], False, ["vip_not_local"]),
    "another mark": ({"fwmark": "0x51"}, [], False, ["vip_not_local"]),
    "other bits": ({"fwmark": "0x0", "fwmask": "0x10"}, [], False, ["vip_not_local"]),
    "all other marks": ({"fwmark": "0x51", "not": None}, [], False, ["vip_not_local"]),
}  # fmt: skip


@pytest.mark.parametrize("case", ROUTING)
def test_routing_by_our_mark(case: str) -> None:
    rule, routes, local, expected = ROUTING[case]
    kernel = FakeKernel()
    traffic = [{**WEB["traffic"][0], "source": ["10.0.0.0/8"], "in_interface": "eth0"}]
    run_module(lvs_service, kernel, services=[{**WEB, "traffic": traffic}])
    kernel.local = {"192.0.2.10"} if local else set()
    kernel.table_of = {} if local or "action" in rule else {"192.0.2.10": "table 200"}
    kernel.policy_rules["-4"] = [{**ANY, **rule}]
    kernel.policy_rules["-6"] = [{**ANY, "fwmark": "0x50"}]
    kernel.local_routes["-4", "200"] = routes
    assert [problem["kind"] for problem in info(kernel)["problems"]] == expected


def test_routing_to_a_table_that_has_no_route_is_not_the_reason(kernel: FakeKernel) -> None:
    kernel.local, kernel.table_of = set(), {"192.0.2.10": ""}
    kernel.policy_rules["-4"] = [{**ANY, "fwmark": "0x50"}]
    assert [problem["kind"] for problem in info(kernel)["problems"]] == ["vip_not_local"]


def test_a_rule_before_the_local_table_is_asked_for_its_interface(kernel: FakeKernel) -> None:
    kernel.local_priority = 200
    kernel.policy_rules["-4"] = [{**ANY, "fwmark": "0x50", "iif": "eth0", "action": "prohibit", "table": ""}]
    [problem] = info(kernel)["problems"]
    why = "packets with the mark 80 that come in by eth0 are refused (prohibit) by the ip rule with priority 100"
    assert problem.pop("message").startswith(f"web: {why}: IPVS does not see them; ")
    assert problem == {"kind": "policy_rule", "name": "web", "fwmark": 80, "family": "ipv4", "priority": 100}


# -- what could be adopted ----------------------------------------------------------------------------------------

BY_HAND = ({"fwmark": 80, "real_servers": [{"address": "10.0.0.11"}]},)
FWMARK_80 = {**WEB, "name": "fwmark-80"}
NOTHING: dict[str, Any] = {"before": [], "behind": []}
BEFORE = {**NOTHING, "before": [FWMARK_80]}


def by_hand(*texts: str, services: Sequence[dict[str, Any]] = BY_HAND) -> FakeKernel:
    kernel = FakeKernel()
    run_module(ipvs_service, kernel, services=list(services))
    add(kernel, "PREROUTING", *texts)
    return kernel


def test_a_service_made_by_hand_is_adoptable() -> None:
    kernel = by_hand(f"{VIP} --dport 80 {TO_80}", "-p udp -j ACCEPT", f"{VIP} --dport 443 {TO_80}")
    told = info(kernel)
    assert (told["adoptable"], told["not_adoptable"], told["services"]) == (BEFORE, [], [])
    operations = quartet(lvs_service, kernel, services=to_adopt(told), adopt=True)["operations"]
    assert [line for line in operations if "ipvsadm" in line] == []
    assert [rule.text for rule in kernel.mangle["ipv4"].chains["PREROUTING"]] == ["-p udp -j ACCEPT", f"-j {CHAIN}"]
    again = info(kernel)
    assert (again["adoptable"], again["services"]) == (NOTHING, [FWMARK_80])


HTTP = f"{VIP} --dport 80 {TO_80}"
NOT_ADOPTABLE = {
    "a real server with a port": (
        by_hand(HTTP, services=[{"fwmark": 80, "real_servers": [{"address": "10.0.0.11", "port": 8080}]}]),
        ["mark 80: real server 10.0.0.11 has the port 8080"],
    ),
    "a mark without a service": (
        by_hand(HTTP, services=[]),
        ["mark 80: there is no ipv4 service for it; its rules stay as they are"],
    ),
    "a service without a mark": (
        by_hand(), ["mark 80: no rule gives the mark 80 to a packet of its ipv4 service"],
    ),
    "a match that we have no words for": (
        by_hand(f"{VIP} --sport 1 {TO_80}"),
        [f"mark 80: ipv4 PREROUTING {VIP} --sport 1 {TO_80}: our options have no words for it; it stays"],
    ),
    "another protocol": (
        by_hand(f"-d 192.0.2.10/32 -p icmp {TO_80}"),
        [f"mark 80: ipv4 PREROUTING -d 192.0.2.10/32 -p icmp {TO_80}: our options have no words for it; it stays"],
    ),
    "a rule in between": (
        by_hand(HTTP, "-j ACCEPT", f"{VIP} --dport 443 {TO_80}"),
        ["mark 80: PREROUTING -j ACCEPT may see the same packets, and the order counts"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", NOT_ADOPTABLE)
def test_not_adoptable(case: str) -> None:
    kernel, reasons = NOT_ADOPTABLE[case]
    told = info(kernel)
    assert (told["adoptable"], told["not_adoptable"]) == (NOTHING, reasons)


def test_families_with_different_settings_are_not_adoptable() -> None:
    kernel = by_hand(HTTP, services=[*BY_HAND, {"fwmark": 80, "family": "ipv6", "scheduler": "rr"}])
    add(kernel, "PREROUTING", f"-d 2001:db8::10/128 -p tcp {TO_80}", family="ipv6")
    assert info(kernel)["not_adoptable"] == ["mark 80: its IPv4 and IPv6 services have different settings"]


def test_marks_that_cannot_keep_their_order_are_not_adoptable() -> None:
    kernel = by_hand(HTTP, f"{VIP} --dport 80 {TO_9}", HTTP, services=[*BY_HAND, {"fwmark": 9}])
    told = info(kernel)
    assert [service["fwmark"] for service in to_adopt(told)] == [9]
    why = "services in a row cannot keep the order of its rules to those of mark 9"
    assert told["not_adoptable"] == [f"mark 80: {why}"]


def test_ours_stay_between_what_stands_before_and_behind_the_jump() -> None:
    kernel = by_hand(services=[{"fwmark": 8}, {"fwmark": 9}])
    run_module(lvs_service, kernel, services=[WEB])
    add(kernel, "PREROUTING", f"-p tcp {TO_9.replace('0x9', '0x8')}", first=True)
    add(kernel, "PREROUTING", f"{VIP} --dport 443 {TO_9}")
    assert [service["fwmark"] for service in to_adopt(info(kernel))] == [8, 80, 9]


def test_each_service_is_told_once() -> None:
    kernel = by_hand(HTTP)
    run_module(lvs_service, kernel, services=[{**WEB, "fwmark": 81}], purge="none")
    told = info(kernel)
    answer = json.dumps(told)
    assert [answer.count(json.dumps(service)) for service in to_adopt(told)] == [1, 1]


def test_a_name_that_is_taken_is_not_taken_again() -> None:
    kernel = by_hand(HTTP)
    run_module(lvs_service, kernel, services=[{**WEB, "name": "fwmark-80", "fwmark": 81}], purge="none")
    assert [service["name"] for service in to_adopt(info(kernel))] == ["fwmark-80-by-hand", "fwmark-80"]


def test_rules_of_ours_without_a_service_are_named() -> None:
    kernel = by_hand(HTTP)
    run_module(lvs_service, kernel, services=[{**WEB, "name": "half", "fwmark": 81}], purge="none")
    run_module(ipvs_service, kernel, services=[{"fwmark": 81}], state="absent")
    told = info(kernel)
    assert told["not_adoptable"][0] == "half: is ours, but no service that can be declared; a deploy removes it"


@pytest.mark.parametrize(
    "table, chain, rule, place",
    [
        ("raw", "PREROUTING", TO_80, f"raw PREROUTING rule 1 ({TO_80})"),
        ("mangle", "OWN", TO_80, f"mangle OWN rule 1 ({TO_80})"),
        ("filter", "INPUT", TO_80, f"filter INPUT rule 1 ({TO_80})"),
    ],
)
def test_a_mark_that_is_given_elsewhere_is_not_denied(table: str, chain: str, rule: str, place: str) -> None:
    kernel = by_hand()
    tables = {"mangle": kernel.mangle}
    if table not in tables:
        tables[table] = kernel.others[table] = {"ipv4": Table("ipv4", table)}
    tables[table]["ipv4"].chains.setdefault(chain, []).append(Rule(rule))
    told = info(kernel)
    assert told["problems"] == []
    why = f"mark 80: {place} gives it; only rules in PREROUTING of table mangle are adopted"
    assert told["not_adoptable"] == [why]


def test_what_was_not_looked_at_is_not_denied() -> None:
    kernel = by_hand(RESTORE)
    kernel.installed.discard("nft")
    [problem] = info(kernel)["problems"]
    assert problem["message"] == (
        "no rule that lvs_info understands gives the mark 80 (not known: native nftables rules (nft is not installed), "
        f"mangle PREROUTING rule 1 ({RESTORE})) of the ipv4 IPVS service"
    )


def test_a_rule_that_clears_a_mark_is_about_no_service() -> None:
    told = info(by_hand("-j MARK --set-xmark 0x0/0xffffffff", HTTP))
    assert [reason for reason in told["not_adoptable"] if "mark 0" in reason] == []


def test_rules_that_leave_packets_out_are_no_obstacle() -> None:
    others = ("! -p tcp -j ACCEPT", "! -d 192.0.2.10/32 -j ACCEPT", "-p tcp -m multiport ! --dports 80,443 -j RETURN")
    told = info(by_hand(HTTP, *others, f"{VIP} --dport 443 {TO_80}"))
    assert (told["adoptable"], told["not_adoptable"]) == (BEFORE, [])


@given(declared_services(), st.integers(0, 3), st.data())
def test_deploying_what_is_adoptable_changes_nothing(services: list[dict[str, Any]], ours: int, data: Any) -> None:
    kernel = FakeKernel()
    run_module(lvs_service, kernel, services=services[:ours])
    ids = virtual_services(services[ours:]).ids
    by_hand = [{"fwmark": key.fwmark, "family": key.family} for key in ids if key.fwmark]
    by_hand += [
        {"protocol": key.protocol, "address": key.address, "port": key.port, "persistence_timeout": 60}
        for key in ids
        if not key.fwmark
    ]
    run_module(ipvs_service, kernel, services=by_hand)
    data.draw(hooks(kernel, services))
    told = info(kernel)
    before = read(kernel).pools
    marks = {family: [mark(table, packet) for packet in packets(family)] for family, table in kernel.mangle.items()}
    done = run_module(lvs_service, kernel, services=to_adopt(told), adopt=True)
    if "failed" in done:
        assert set(done["msg"].splitlines()) <= set(told["not_adoptable"]), "refused, and lvs_info did not tell"
        return
    event(f"taken over: {sum('-D PREROUTING' in line for line in done['operations'])}")
    assert read(kernel).pools == before
    for family, table in kernel.mangle.items():
        assert [mark(table, packet) for packet in packets(family)] == marks[family]
