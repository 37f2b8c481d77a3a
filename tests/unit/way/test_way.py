# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What happens to a client's first packet between the rule that marks it and IPVS."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from ansible_collections.lvs.fleet.plugins.module_utils._marks.iptables import mark_chains
from ansible_collections.lvs.fleet.plugins.module_utils._model import (
    MarkRule,
    Pool,
    RealServer,
    ServiceId,
    VirtualService,
)
from ansible_collections.lvs.fleet.plugins.module_utils._packets.conditions import answer
from ansible_collections.lvs.fleet.plugins.module_utils._way import walk as _way
from ansible_collections.lvs.fleet.plugins.module_utils._way.iptables import hooks, saved_rules
from ansible_collections.lvs.fleet.plugins.module_utils._way.nft import hooks as nft_hooks
from ansible_collections.lvs.fleet.plugins.module_utils._way.tc import mark_filters, places
from ansible_collections.lvs.fleet.plugins.module_utils._way.troubles import (
    filter_readers,
    mark_readers,
    mark_troubles,
    replies,
    up_to_ipvs,
)
from ansible_collections.lvs.fleet.plugins.module_utils._way.walk import Follower

WEB = MarkRule("web", 80, "192.0.2.10/32", "tcp", ((80, 80), (443, 443)))
CHAINS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
JUMP = "-A PREROUTING -j LVS-MARK"
TO_9 = "-j MARK --set-xmark 0x9/0xffffffff"
TO_80 = "-j MARK --set-xmark 0x50/0xffffffff"


def saved(tables: dict[str, str]) -> str:
    """What iptables-save prints for tables, by their rules; "-P CHAIN DROP" is a policy, any other chain is made."""
    texts = []
    for table, text in tables.items():
        lines = [line.strip() for line in text.strip().splitlines()]
        dropping = {line.split()[1] for line in lines if line.startswith("-P ")}
        rules = [line for line in lines if line.startswith("-A ")]
        made = dict.fromkeys(line.split()[1] for line in rules if line.split()[1] not in CHAINS)
        heads = [f":{name} {'DROP' if name in dropping else 'ACCEPT'} [0:0]" for name in CHAINS]
        heads += [f":{name} - [0:0]" for name in (*made, *(["LVS-MARK"] if table == "mangle" else []))]
        texts += [f"*{table}", *heads, *rules, "COMMIT"]
    return "\n".join([*texts, ""])


def told(
    tables: dict[str, str],
    own: Sequence[MarkRule] = (WEB,),
    devices: Sequence[str] = ("lo", "eth0", "eth1"),
    legacy: dict[str, str] | None = None,
    local: Sequence[str] = ("192.0.2.10",),
    native: Sequence[_way.Hook] = (),
) -> list[dict[str, Any]]:
    found = [*hooks(saved_rules(saved({"mangle": JUMP, **tables})), "ipv4", own=mark_chains())]
    found += hooks(saved_rules(saved(legacy or {})), "ipv4", " of iptables-legacy")
    way, ours = up_to_ipvs([*found, *native], {}, "ipv4")
    return mark_troubles(Follower(way, ours, devices), own, set(local), {"192.0.2.10"})


def short(problems: Sequence[dict[str, Any]]) -> list[str]:
    """Kind, table, chain and position; with a question mark where it is not certain."""
    form = "{kind}{may} {table} {chain} {position}"
    return [form.format(**found, may="?" if " may " in found["message"] else "") for found in problems]


TRACKING = "-A POSTROUTING -s 10.9.0.0/16 -j MASQUERADE"
VIP = "-d 192.0.2.10/32 -p tcp -m tcp --dport"
TROUBLES: dict[str, tuple[dict[str, str], list[str]]] = {
    # Marks of others, in every table.
    "Kubernetes marks for masquerading": (
        {"nat": f"-A PREROUTING {VIP} 80 -j MARK --set-xmark 0x4000/0x4000\n{TRACKING}"},
        ["overridden nat PREROUTING 1"],
    ),
    "table nat while no rule has connections tracked": (
        {"nat": f"-A PREROUTING {VIP} 80 -j MARK --set-xmark 0x4000/0x4000"}, ["overridden? nat PREROUTING 1"],
    ),
    "Calico clears its bits": ({"filter": "-A INPUT -j MARK --set-xmark 0x0/0xffff"}, ["overridden filter INPUT 1"]),
    "Calico's own bits do no harm": ({"filter": "-A INPUT -j MARK --set-xmark 0x0/0xffff0000"}, []),
    "table security": ({"security": f"-A INPUT {TO_9}"}, ["overridden security INPUT 1"]),
    "IPVS comes before nat INPUT": ({"nat": f"-A INPUT {TO_9}"}, []),
    "table raw comes before ours": ({"raw": f"-A PREROUTING {TO_9}"}, []),
    "made good by a later rule": ({"nat": f"{TRACKING}\n-A PREROUTING {TO_9}\n-A PREROUTING {TO_80}"}, []),
    "made good in another hook": ({"nat": f"-A PREROUTING {TO_9}\n{TRACKING}", "filter": f"-A INPUT {TO_80}"}, []),
    "negations leave ours out": (
        {"filter": f"-A INPUT ! -p tcp {TO_9}\n-A INPUT ! -d 192.0.2.10/32 {TO_9}\n"
                   f"-A INPUT -p tcp -m multiport ! --dports 80,443 {TO_9}\n-A INPUT -i lo {TO_9}"}, [],
    ),
    "negations that leave some in": (
        {"filter": f"-A INPUT ! -p udp {TO_9}\n-A INPUT -p tcp -m multiport ! --dports 80 {TO_9}"},
        ["overridden filter INPUT 1", "overridden filter INPUT 2"],
    ),
    "a match that is not understood": (
        {"filter": f"-A INPUT -m set --match-set some dst {TO_9}"}, ["overridden? filter INPUT 1"],
    ),
    "what is known leaves ours out, whatever else": (
        {"filter": f"-A INPUT -d 192.0.2.11/32 -m set --match-set some dst {TO_9}"}, [],
    ),
    # The mark of the connection.
    "restored under other bits": (
        {"mangle": f"{JUMP}\n-A PREROUTING -j CONNMARK --restore-mark --nfmask 0xff0000 --ctmask 0xff0000"}, [],
    ),
    "restored": (
        {"mangle": f"{JUMP}\n-A PREROUTING -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff"},
        ["connmark mangle PREROUTING 2"],
    ),
    "saved before it is restored": (
        {"mangle": f"{JUMP}\n-A PREROUTING -j CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff",
         "filter": "-A INPUT -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff"}, [],
    ),
    "restored for connections that are there": (
        {"mangle": f"{JUMP}\n-A PREROUTING -m conntrack --ctstate ESTABLISHED -j CONNMARK --restore-mark"}, [],
    ),
    "nothing to restore without conntrack": (
        {"raw": "-A PREROUTING -p tcp -j CT --notrack",
         "mangle": f"{JUMP}\n-A PREROUTING -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff"}, [],
    ),
    # Our jump is not reached.
    "accepted before our jump": (
        {"mangle": f"-A PREROUTING -d 192.0.2.10/32 -p tcp -j ACCEPT\n{JUMP}"}, ["bypassed mangle PREROUTING 1"],
    ),
    "returned for an interface": (
        {"mangle": f"-A PREROUTING -i eth1 -j RETURN\n{JUMP}"}, ["bypassed mangle PREROUTING 1"],
    ),
    "accepted in a chain before our jump": (
        {"mangle": f"-A PREROUTING -p tcp -j OWN\n-A OWN -j ACCEPT\n{JUMP}"}, ["bypassed mangle OWN 1"],
    ),
    "gone to a chain that comes back to nowhere": (
        {"mangle": f"-A PREROUTING -p tcp -g OWN\n-A OWN -p udp -j ACCEPT\n{JUMP}"}, ["bypassed mangle PREROUTING 1"],
    ),
    "returned from a chain comes back": ({"mangle": f"-A PREROUTING -j OWN\n-A OWN -j RETURN\n{JUMP}"}, []),
    "established ones are accepted before our jump": (
        {"mangle": f"-A PREROUTING -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n{JUMP}"}, [],
    ),
    "others are accepted before our jump": (
        {"mangle": f"-A PREROUTING -p tcp -m tcp --dport 22 -j ACCEPT\n-A PREROUTING ! -p tcp -j RETURN\n{JUMP}"}, [],
    ),
    "a match that is not understood before our jump": (
        {"mangle": f"-A PREROUTING -m set --match-set some src -j ACCEPT\n{JUMP}"}, ["bypassed? mangle PREROUTING 1"],
    ),
    "by their mark": (
        {"mangle": f"-A PREROUTING {TO_9}\n-A PREROUTING -m mark --mark 0x9 -j ACCEPT\n{JUMP}"},
        ["bypassed mangle PREROUTING 2"],
    ),
    # Dropped.
    "dropped by a rule": ({"filter": f"-A INPUT {VIP} 80 -j DROP"}, ["dropped filter INPUT 1"]),
    "dropped in table raw": ({"raw": "-A PREROUTING -d 192.0.2.0/24 -j DROP"}, ["dropped raw PREROUTING 1"]),
    "dropped in a chain": (
        {"filter": "-A INPUT -p tcp -j OWN\n-A OWN -j REJECT --reject-with tcp-reset"}, ["dropped filter OWN 1"],
    ),
    "dropped by the policy": (
        {"filter": "-P INPUT DROP\n-A INPUT -i lo -j ACCEPT\n-A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT\n"
                   "-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT"}, ["dropped filter INPUT 0"],
    ),
    "one of two ports dropped by the policy": (
        {"filter": "-P INPUT DROP\n-A INPUT -p tcp -m tcp --dport 80 -j ACCEPT"}, ["dropped filter INPUT 0"],
    ),
    "both ports let in": (
        {"filter": "-P INPUT DROP\n-A INPUT -p tcp -m tcp --dport 80 -j ACCEPT\n"
                   "-A INPUT -p tcp -m tcp --dport 443 -j ACCEPT"}, [],
    ),
    "let in by a chain": (
        {"filter": "-P INPUT DROP\n-A INPUT -p tcp -j OWN\n-A OWN -p tcp -m multiport --dports 80,443 -j ACCEPT"}, [],
    ),
    "let in by their mark": ({"filter": "-P INPUT DROP\n-A INPUT -m mark --mark 0x50 -j ACCEPT"}, []),
    "let in for an interface": (
        {"filter": "-P INPUT DROP\n-A INPUT -i eth0 -p tcp -m multiport --dports 80,443 -j ACCEPT"}, [],
    ),
    "let in for some sources": (
        {"filter": "-P INPUT DROP\n-A INPUT -s 10.0.0.0/8 -p tcp -m multiport --dports 80,443 -j ACCEPT"}, [],
    ),
    "let in because of the interface alone": (
        {"filter": "-P INPUT DROP\n-A INPUT -i eth1 -j ACCEPT"}, ["dropped? filter INPUT 0"],
    ),
    "let in by what is not understood": (
        {"filter": "-P INPUT DROP\n-A INPUT -m set --match-set some src -j ACCEPT"}, ["dropped? filter INPUT 0"],
    ),
    "a zone of its own for each interface": (
        {"filter": "-A INPUT -i eth0 -g PUBLIC\n-A INPUT -i eth1 -g INNER\n"
                   "-A PUBLIC -p tcp -m tcp --dport 80 -j ACCEPT\n"
                   "-A PUBLIC -p tcp -m tcp --dport 443 -j ACCEPT\n-A PUBLIC -j DROP\n-A INNER -j DROP"}, [],
    ),
    "no zone lets them in": (
        {"filter": "-A INPUT -i eth0 -g PUBLIC\n-A INPUT -i eth1 -g INNER\n"
                   "-A PUBLIC -p tcp -m tcp --dport 80 -j ACCEPT\n-A PUBLIC -j DROP\n-A INNER -j DROP"},
        ["dropped filter PUBLIC 2", "dropped filter INNER 1"],
    ),
    "one interface kept out": ({"filter": "-A INPUT -i eth1 -j DROP"}, []),
    "every interface kept out": (
        {"filter": "-A INPUT -i eth0 -j DROP\n-A INPUT -i eth1 -j DROP"},
        ["dropped filter INPUT 1", "dropped filter INPUT 2"],
    ),
    "lists of sources": (
        {"filter": "-A INPUT -s 203.0.113.9/32 -j DROP\n-A INPUT -m set --match-set blocked src -j DROP\n"
                   "-A INPUT -p tcp -m multiport --dports 80,443 -m connlimit --connlimit-above 9 -j REJECT"}, [],
    ),
    "what no first packet is": (
        {"filter": "-A INPUT -m conntrack --ctstate INVALID -j DROP\n"
                   "-A INPUT -p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -m conntrack --ctstate NEW -j DROP\n"
                   "-A INPUT -p tcp -m tcp --tcp-flags FIN,SYN,RST,PSH,ACK,URG NONE -j DROP\n"
                   "-A INPUT -m addrtype --dst-type BROADCAST -j DROP\n-A INPUT -p icmp -j DROP"}, [],
    ),
    "only what was seen before is let in": (
        {"raw": "-A PREROUTING -p tcp -j CT --notrack",
         "filter": "-P INPUT DROP\n-A INPUT -p tcp -m conntrack --ctstate NEW,ESTABLISHED -j ACCEPT"},
        ["dropped filter INPUT 0"],
    ),
    "Kubernetes drops by a bit": (
        {"filter": "-A INPUT -j KUBE-FIREWALL\n-A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP"}, [],
    ),
    # Taken elsewhere.
    "DNAT": (
        {"nat": f"-A PREROUTING {VIP} 80 -j DNAT --to-destination 10.0.0.9:80"}, ["translated nat PREROUTING 1"],
    ),
    "Docker": (
        {"nat": "-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n"
                "-A DOCKER ! -i docker0 -p tcp -m tcp --dport 80 -j DNAT --to-destination 172.17.0.2:80"},
        ["translated nat DOCKER 1"],
    ),
    "Docker with another port": (
        {"nat": "-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n"
                "-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80"}, [],
    ),
    "no translation without conntrack": (
        {"raw": "-A PREROUTING -p tcp -j CT --notrack", "nat": f"-A PREROUTING {VIP} 80 -j REDIRECT --to-ports 8080"},
        [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TROUBLES)
def test_troubles(case: str) -> None:
    tables, expected = TROUBLES[case]
    assert short(told(tables)) == expected


def test_both_variants_of_iptables_count() -> None:
    legacy = {"nat": f"-A PREROUTING {TO_9}\n{TRACKING}", "mangle": f"-A INPUT {TO_9}"}
    where = ["nat of iptables-legacy PREROUTING 1", "mangle of iptables-legacy INPUT 1"]
    assert short(told({}, legacy=legacy)) == [f"overridden {place}" for place in where]


def test_which_of_two_tables_of_a_priority_comes_first_is_not_known() -> None:
    found = told({}, legacy={"mangle": f"-A PREROUTING {TO_9}"})
    assert short(found) == ["overridden? mangle of iptables-legacy PREROUTING 1"]


def test_without_our_jump_nothing_is_bypassed() -> None:
    assert told({"mangle": "-A PREROUTING -p tcp -j ACCEPT"}) == []


def test_the_message_names_table_chain_and_rule_and_what_to_do() -> None:
    rule = '-m comment --comment "a {b}" -m set --match-set x dst -j MARK --set-xmark 0x0/0xff'
    tables = {"filter": f"-P INPUT DROP\n-A INPUT {rule}"}
    assert [problem["message"] for problem in told(tables)] == [
        f"web: filter INPUT rule 1 ({rule}) "
        "may make the mark 80 of the same packets 0; put it before our jump, or except these packets from it",
        "web: filter INPUT (policy DROP) drops packets of the service before IPVS sees them; accept them before it, as "
        "with iptables -I INPUT -d 192.0.2.10/32 -p tcp -m multiport --dports 80,443 -j ACCEPT",
    ]


WEBS = ServiceId("ipv4", 80)
SERVERS = [RealServer("10.0.0.11", forward_method="masquerade"), RealServer("10.0.0.12", forward_method="direct")]
POOLS = {WEBS: Pool(VirtualService(WEBS), {server.id: server for server in SERVERS})}
FORWARD: dict[str, tuple[str, bool, list[str]]] = {
    # Rules of table filter, whether IPVS has its connections tracked, and what is told.
    "nothing": ("-P FORWARD DROP", False, ["dropped filter FORWARD 0"]),
    "all": ("-A FORWARD -p udp -j DROP", False, []),
    "what is established": ("-P FORWARD DROP\n-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT", False,
                            ["dropped filter FORWARD 0"]),
    "what is tracked": ("-P FORWARD DROP\n-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT", True, []),
    "nothing that is invalid": ("-A FORWARD -m conntrack --ctstate INVALID -j DROP", False,
                                ["dropped filter FORWARD 1"]),
    "from the interface": ("-P FORWARD DROP\n-A FORWARD -i eth1 -o eth0 -j ACCEPT", False, []),
    "from another": ("-P FORWARD DROP\n-A FORWARD -i docker0 ! -o docker0 -j ACCEPT", False,
                     ["dropped filter FORWARD 0"]),
    "to some interface": ("-P FORWARD DROP\n-A FORWARD -o eth0 -j ACCEPT", False, ["dropped? filter FORWARD 0"]),
    "from the server": ("-P FORWARD DROP\n-A FORWARD -s 10.0.0.0/24 -j ACCEPT", False, []),
    "to some clients": ("-A FORWARD -d 203.0.113.0/24 -j DROP", False, []),
    "only to some clients": ("-P FORWARD DROP\n-A FORWARD -s 10.0.0.0/24 -d 198.51.100.0/24 -j ACCEPT", False, []),
    "inside of a zone": ("-A FORWARD -i eth1 -g ZONE\n-A ZONE -o eth1 -j ACCEPT\n-A ZONE -j REJECT", False, []),
    "from its ports": ("-P FORWARD DROP\n-A FORWARD -p tcp -m multiport --sports 80,443 -j ACCEPT", False, []),
}  # fmt: skip
ANSWERS = "-s 10.0.0.11 -p tcp -m multiport --sports 80,443"


@pytest.mark.parametrize("case", FORWARD)
def test_what_masqueraded_real_servers_answer(case: str) -> None:
    rules, conntrack, expected = FORWARD[case]
    found = list(hooks(saved_rules(saved({"filter": rules})), "ipv4"))
    told = replies(found, [WEB], POOLS, {"10.0.0.11": "eth1"}, conntrack)
    assert short(told) == expected
    remedy = f"iptables -t raw -A PREROUTING {ANSWERS} -j CT --notrack"
    if case != "nothing that is invalid":
        remedy = f"iptables -I FORWARD {ANSWERS} -j ACCEPT"
    assert all(problem["message"].endswith(f", as with {remedy}") for problem in told)


@pytest.mark.parametrize(("untracked", "expected"), [("-s 10.0.0.0/24", 0), ("-s 10.0.0.12", 1)])
def test_answers_that_are_not_tracked_are_not_invalid(untracked: str, expected: int) -> None:
    rules = {
        "filter": "-A FORWARD -m conntrack --ctstate INVALID -j DROP",
        "raw": f"-A PREROUTING {untracked} -p tcp -m multiport --sports 80,443 -j CT --notrack",
    }
    found = list(hooks(saved_rules(saved(rules)), "ipv4"))
    assert len(replies(found, [WEB], POOLS, {"10.0.0.11": "eth1"}, conntrack=False)) == expected


def test_what_one_table_of_nftables_accepts_is_not_accepted_by_another() -> None:
    place = {"family": "inet", "table": "fw", "hook": "forward", "prio": 0}
    chain = {**place, "name": "forward", "policy": "drop", "type": "filter", "handle": 1}
    listed = json.dumps({"nftables": [{"table": {"family": "inet", "name": "fw", "handle": 1}}, {"chain": chain}]})
    told = replies(nft_hooks(listed, "")["ipv4"], [WEB], POOLS, {"10.0.0.11": "eth1"}, conntrack=False)
    assert [problem["message"].endswith("answers; accept it before") for problem in told] == [True]


READERS: dict[str, tuple[int, str, bool]] = {
    "Kubernetes masquerades": (
        0x4000,
        "-A POSTROUTING -j KUBE\n-A KUBE -m mark ! --mark 0x4000/0x4000 -j RETURN",
        True,
    ),
    "Kubernetes leaves others alone": (
        80,
        "-A POSTROUTING -j KUBE\n-A KUBE -m mark ! --mark 0x4000/0x4000 -j RETURN",
        False,
    ),
    "masqueraded by the mark": (80, "-A POSTROUTING -m mark --mark 0x50 -j MASQUERADE", True),
    "dropped by the mark": (80, "-A OUTPUT -p tcp -m mark --mark 0x50/0xff -j DROP", True),
    "another protocol": (80, "-A OUTPUT -p udp -m mark --mark 0x50/0xff -j DROP", False),
    "accepted by the mark": (80, "-A OUTPUT -m mark --mark 0x50 -j ACCEPT", False),
    "counted by the mark": (80, "-A OUTPUT -m mark --mark 0x50 -j LOG", False),
    "a chain that nobody enters": (80, "-A KUBE -m mark --mark 0x50 -j DROP", False),
    "another hook": (80, "-A PREROUTING -m mark --mark 0x50 -j DROP", False),
}


@pytest.mark.parametrize("case", READERS)
def test_readers_of_our_mark_behind_ipvs(case: str) -> None:
    mark, rules, found = READERS[case]
    for table, conntrack, passed in (("nat", True, True), ("nat", False, False), ("mangle", False, True)):
        behind = list(hooks(saved_rules(saved({table: rules})), "ipv4"))
        told = mark_readers(behind, [replace(WEB, mark=mark)], conntrack)
        assert [problem["kind"] for problem in told] == ["mark_read"] * (found and passed)
        assert not told or f"singles out packets with the mark {mark} behind IPVS" in told[0]["message"]


# What tc 6.1 prints, without the spaces at the ends of lines.
FW = "filter protocol {} pref 1 fw chain 0 \nfilter protocol {} pref 1 fw chain 0 handle {}classid 1:20 \n"
U32 = """filter parent 1: protocol ip pref 3 u32 chain 0
filter parent 1: protocol ip pref 3 u32 chain 0 fh 800: ht divisor 1
filter parent 1: protocol ip pref 3 u32 chain 0 fh 800::800 order 2048 key ht 800 bkt 0 *flowid 1:20 not_in_hw
  mark 0x0050 {} (success 0)
  match 00000050/0000ffff at 20
"""
BASIC = """filter protocol ip pref 4 basic chain 0
filter protocol ip pref 4 basic chain 0 handle 0x1 flowid 1:20
  meta(nf_mark {}eq {})
  AND meta(nf_mark gt 7)

"""
SKBEDIT = """filter protocol ip pref 2 matchall chain 0
filter protocol ip pref 2 matchall chain 0 handle 0x1
  not_in_hw
\taction order 1: skbedit  mark 80 pipe
\t index 3 ref 1 bind 1

"""
# What is printed of a filter, a mark of ours, and whether the filter is told.
FILTERS: dict[str, tuple[str, int, bool]] = {
    "by the mark": (FW.format("ip", "ip", "0x50 "), 80, True),
    "as an older tc prints it": ("filter parent 1: protocol ip pref 1 fw handle 0x50 classid 1:20", 80, True),
    "every protocol": (FW.format("all", "all", "0x50 "), 80, True),
    "IPv6 alone": (FW.format("ipv6", "ipv6", "0x50 "), 80, False),
    "another mark": (FW.format("ip", "ip", "0x51 "), 80, False),
    "by a bit": (FW.format("ip", "ip", "0x4000/0x4000 "), 0x4001, True),
    "by a bit that we leave alone": (FW.format("ip", "ip", "0x4000/0x4000 "), 80, False),
    "without a handle": ("filter protocol ip pref 6 fw chain 0 \n", 80, False),
    "u32": (U32.format("0xffffffff"), 80, True),
    "u32 under a mask": (U32.format("0x00ff"), 0x150, True),
    "u32, another mark": (U32.format("0x00ff"), 81, False),
    "an expression": (BASIC.format("", 80), 80, True),
    "an expression under a mask": (BASIC.format("mask 0x000000ff ", 80), 0x150, True),
    "an expression, another mark": (BASIC.format("", 81), 80, False),
    "a large mark": (BASIC.format("", -1294967296), 3000000000, True),
    "who sets a mark": (SKBEDIT, 80, False),
    "nothing": ("", 80, False),
}  # fmt: skip


@pytest.mark.parametrize("case", FILTERS)
def test_filters_of_traffic_control_that_read_our_mark(case: str) -> None:
    printed, mark, found = FILTERS[case]
    told = filter_readers({"eth0": mark_filters(printed)}, [replace(WEB, mark=mark)])
    assert [(problem["kind"], problem["device"]) for problem in told] == [("mark_read", "eth0")] * found
    assert not found or f"singles out packets with the mark {mark} behind IPVS" in told[0]["message"]


def test_a_filter_is_told_once() -> None:
    own = [replace(WEB, mark=mark, name=f"s{mark}") for mark in (80, 336)]
    [found] = filter_readers({"eth0": mark_filters(U32.format("0x00ff"))}, own)
    filter_line = "filter parent 1: protocol ip pref 3 u32 chain 0 fh 800::800 order 2048 key ht 800 bkt 0"
    assert found["message"].startswith(f"s80 and 1 more: tc on device eth0 ({filter_line}")


def test_filters_are_looked_for_where_packets_leave() -> None:
    printed = """qdisc noqueue 0: dev lo root refcnt 2
qdisc mq 0: dev eth0 root
qdisc fq_codel 0: dev eth0 parent :1 limit 10240p flows 1024 quantum 1514
qdisc ingress ffff: dev eth0 parent ffff:fff1 ----------------
qdisc htb 1: dev eth1 root refcnt 2 r2q 10 default 0x10 direct_packets_stat 0 direct_qlen 1000
qdisc tbf 30: dev eth1 parent 1:30 rate 1Mbit burst 32Kb lat 50ms
qdisc clsact ffff: dev eth1 parent ffff:fff1
qdisc fq 8001: dev bond0.7 root refcnt 2 limit 10000p
"""
    assert places(printed) == {"eth1": ["parent 1:", "parent 30:", "egress"], "bond0.7": ["parent 8001:"]}


def services(number: int) -> list[MarkRule]:
    return [replace(WEB, name=f"s{n}", mark=n + 1, destination=f"192.0.{n // 250}.{n % 250}/32") for n in range(number)]


def test_a_trouble_of_many_services_is_told_once() -> None:
    [found] = told({"filter": f"-A INPUT -d 192.0.0.0/16 {TO_9}"}, services(300))
    assert found["message"].startswith("s0 and 298 more: filter INPUT rule 1 ")


def test_services_that_are_alike_are_told_apart_where_it_counts() -> None:
    rules = {"filter": "-A INPUT -m mark --mark 0x2/0xf -j DROP\n-A INPUT -d 192.0.0.7/32 -j DROP"}
    found = told(rules, services(20))
    assert [(one["name"], one["position"], " more: " in one["message"]) for one in found] == [
        ("s1", 1, True),
        ("s7", 2, False),
    ]


@pytest.mark.parametrize("own, foreign", [(200, 200), (2000, 200), (200, 2000)])
def test_the_steps_grow_with_the_number_of_rules(monkeypatch: pytest.MonkeyPatch, own: int, foreign: int) -> None:
    """Not with its product: what a rule asks is answered for few services, whatever kind of rule there are many of."""
    steps = 0

    def counting(*arguments: Any) -> int:
        nonlocal steps
        steps += 1
        return answer(*arguments)

    monkeypatch.setattr(_way, "answer", counting)
    others = [f"203.0.{n // 250}.{n % 250}/32" for n in range(foreign)]
    tables = {
        "nat": "\n".join(f"-A PREROUTING -d {one} -p tcp -m tcp --dport 80 -j DNAT --to 10.0.0.1" for one in others),
        "mangle": "\n".join([JUMP, *(f"-A PREROUTING -s {one} -j MARK --set-xmark 0x0/0xff0000" for one in others)]),
        "filter": "\n".join(
            ["-P INPUT DROP", *(f"-A INPUT -s {one} -j DROP" for one in others), "-A INPUT -p tcp -j ACCEPT"]
        ),
        "security": "\n".join(f"-A INPUT -p tcp -m tcp --dport {1000 + n} -j DROP" for n in range(foreign)),
    }
    assert told(tables, services(own)) == []
    assert steps < 10 * (own + foreign)
