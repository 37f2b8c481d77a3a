# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What native nftables rules do to a client's first packet, from what nft 1.0.6 prints for them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ansible_collections.lvs.fleet.plugins.module_utils._errors import ParseError
from ansible_collections.lvs.fleet.plugins.module_utils._way.nft import hooks, native_tables
from ansible_collections.lvs.fleet.plugins.module_utils._way.troubles import marks_given
from ansible_collections.lvs.fleet.tests.unit.way.test_way import short, told

MARK, CT_MARK = {"meta": {"key": "mark"}}, {"ct": {"key": "mark"}}
TO_9 = {"mangle": {"key": MARK, "value": 9}}
DROP: dict[str, Any] = {"drop": None}
ACCEPT: dict[str, Any] = {"accept": None}


def match(left: Any, right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


def meta(key: str, right: Any, op: str = "==") -> dict[str, Any]:
    return match({"meta": {"key": key}}, right, op)


def field(protocol: str, name: str, right: Any, op: str = "==") -> dict[str, Any]:
    return match({"payload": {"protocol": protocol, "field": name}}, right, op)


def state(right: Any, op: str = "in") -> dict[str, Any]:
    return match({"ct": {"key": "state"}}, right, op)


def change(key: Any, value: Any) -> dict[str, Any]:
    return {"mangle": {"key": key, "value": value}}


def listing(
    *rules: list[dict[str, Any]], hook: str = "input", priority: int = 0, policy: str = "accept", kind: str = "filter"
) -> str:
    table = {"family": "inet", "table": "fw"}
    base = {"chain": {**table, "name": "base", "type": kind, "hook": hook, "prio": priority, "policy": policy}}
    objects: list[Any] = [{"metainfo": {}}, {"table": {"family": "inet", "name": "fw", "handle": 1}}]
    objects += [{"set": {**table, "name": "web", "elem": [80, {"elem": {"val": 443, "timeout": 9}}]}}]
    objects += [base, {"chain": {**table, "name": "other"}}]
    objects += [{"rule": {**table, "chain": "base", "handle": 10 + n, "expr": one}} for n, one in enumerate(rules)]
    objects += [{"rule": {**table, "chain": "other", "handle": 99, "expr": [DROP]}}]
    return json.dumps({"nftables": objects})


# Statements of rules in a chain at the input hook, and what comes of them.
RULES: dict[str, tuple[list[list[dict[str, Any]]], list[str]]] = {
    "another mark": ([[TO_9]], ["overridden base 1"]),
    "for our address": ([[field("ip", "daddr", "192.0.2.10"), TO_9]], ["overridden base 1"]),
    "for a network": (
        [[field("ip", "daddr", {"prefix": {"addr": "192.0.2.0", "len": 24}}), TO_9]], ["overridden base 1"],
    ),
    "for a range": ([[field("ip", "daddr", {"range": ["192.0.2.1", "192.0.2.9"]}), TO_9]], []),
    "for other addresses": ([[field("ip", "daddr", "192.0.2.10", "!="), TO_9]], []),
    "for the other family": (
        [[field("ip6", "daddr", "2001:db8::1"), TO_9], [field("ip6", "daddr", "2001:db8::1", "!="), TO_9],
         [meta("nfproto", "ipv6"), TO_9]], [],
    ),
    "for another protocol": (
        [[meta("l4proto", "udp"), TO_9], [field("udp", "dport", 80), TO_9], [field("ip", "protocol", "icmp"), TO_9]],
        [],
    ),
    "for one of our ports": ([[field("tcp", "dport", {"set": [22, 443]}), TO_9]], ["overridden base 1"]),
    "for other ports": ([[field("tcp", "dport", {"set": [80, 443]}, "!="), TO_9]], []),
    "for ports of any protocol": ([[field("th", "dport", {"range": [1, 100]}), TO_9]], ["overridden base 1"]),
    "for the ports of a set": ([[field("tcp", "dport", "@web"), DROP]], ["dropped base 1"]),
    "from the loopback": ([[meta("iif", "lo"), TO_9], [meta("iifname", {"set": ["lo"]}), TO_9]], []),
    "for our mark": ([[meta("mark", 80), TO_9]], ["overridden base 1"]),
    "for bits of our mark": ([[match({"&": [MARK, 0xF]}, 0), DROP]], ["dropped base 1"]),
    "for another mark": ([[meta("mark", 81), DROP], [match({"&": [MARK, 0xF]}, 1), DROP]], []),
    "what is not understood": ([[{"limit": {"rate": 5}}, TO_9], [{"xt": {}}, DROP]], ["overridden? base 1"]),
    "a comparison": ([[field("tcp", "dport", 80, "<"), TO_9]], ["overridden? base 1"]),
    "what only counts": ([[{"counter": {"packets": 1}}, {"log": None}, TO_9]], ["overridden base 1"]),
    "other bits of the mark cleared": ([[change(MARK, {"&": [MARK, 0xFFFF]})]], []),
    "our bits of the mark cleared": ([[change(MARK, {"&": [MARK, 0xFFFF0000]})]], ["overridden base 1"]),
    "bits set": ([[change(MARK, {"|": [{"&": [MARK, 0xFFFFFFFF]}, 0x4000]})]], ["overridden base 1"]),
    "bits set and cleared again": (
        [[change(MARK, {"|": [MARK, 0x4000]})], [change(MARK, {"&": [MARK, 0xFFFFBFFF]})]], [],
    ),
    "turned over twice": ([[change(MARK, {"^": [MARK, 7]})], [change(MARK, {"^": [MARK, 7]})]], []),
    "a mark out of a map": ([[change(MARK, {"map": {"key": {}, "data": "@marks"}})]], ["overridden? base 1"]),
    "the mark of the connection": ([[change(MARK, CT_MARK)]], ["connmark base 1"]),
    "saved, and then restored": ([[change(CT_MARK, MARK)], [change(MARK, CT_MARK)]], []),
    "another mark for the connection": ([[change(CT_MARK, 80)], [change(MARK, CT_MARK)]], []),
    "a mark and a verdict": ([[meta("mark", 80), TO_9, ACCEPT]], ["overridden base 1"]),
    "dropped": ([[DROP]], ["dropped base 1"]),
    "accepted before": ([[field("tcp", "dport", {"set": [80, 443]}), ACCEPT], [{"reject": {}}]], []),
    "a part accepted before": ([[field("tcp", "dport", 80), ACCEPT], [{"reject": {}}]], ["dropped base 2"]),
    "connections that are there": (
        [[state(["established", "related"]), TO_9], [state("invalid", "=="), DROP], [state("new", "!="), DROP]], [],
    ),
    "new connections": ([[state({"set": ["new", "established"]}, "=="), DROP]], ["dropped base 1"]),
    "first packets of TCP": (
        [[match({"&": [{"payload": {"protocol": "tcp", "field": "flags"}}, ["fin", "syn", "rst", "ack"]]}, "syn", "!="),
          DROP]], [],
    ),
    "a chain": ([[{"jump": {"target": "other"}}]], ["dropped other 1"]),
    "a map of verdicts": (
        [[{"vmap": {"key": {"payload": {"protocol": "tcp", "field": "dport"}},
                    "data": {"set": [[80, ACCEPT], [443, {"goto": {"target": "other"}}]]}}}]], ["dropped other 1"],
    ),
    "a map of interfaces, as firewalld has it": (
        [[{"vmap": {"key": {"meta": {"key": "iifname"}}, "data": {"set": [["lo", DROP], ["eth*", ACCEPT]]}}}], [DROP]],
        ["dropped? base 2"],
    ),
    "a local address": ([[match({"fib": {"result": "type", "flags": ["daddr"]}}, "local", "!="), DROP]], []),
    "to everybody": ([[meta("pkttype", {"set": ["broadcast", "multicast"]}), DROP]], []),
    "no way back": ([[match({"fib": {"result": "oif", "flags": ["saddr"]}}, False), DROP]], []),
}  # fmt: skip


@pytest.mark.parametrize("case", RULES)
def test_rules(case: str) -> None:
    rules, expected = RULES[case]
    found = short(told({}, native=hooks(listing(*rules), "")["ipv4"], devices=("lo", "eth0", "wlan0")))
    assert found == [line.replace(" ", " nftables table inet fw ", 1) for line in expected]


@pytest.mark.parametrize(
    "where, expected",
    [
        ({"hook": "prerouting", "priority": -151}, []),
        ({"hook": "prerouting", "priority": -140}, ["overridden nftables table inet fw base 1"]),
        ({"hook": "input", "priority": 97}, ["overridden nftables table inet fw base 1"]),
        ({"hook": "input", "priority": 99}, []),
        ({"hook": "forward"}, []),
        ({"hook": "prerouting", "priority": -100, "kind": "nat"}, ["overridden? nftables table inet fw base 1"]),
    ],
)
def test_hooks_and_priorities(where: Any, expected: list[str]) -> None:
    assert short(told({}, native=hooks(listing([TO_9], **where), "")["ipv4"])) == expected


def test_a_policy() -> None:
    found = told({}, native=hooks(listing(policy="drop"), "")["ipv4"])
    assert short(found) == ["dropped nftables table inet fw base 0"]


def test_the_message_has_the_words_of_nft() -> None:
    printed = "table inet fw { # handle 1\n\tchain base { # handle 2\n\t\ttcp dport { 80 } drop # handle 10\n"
    [found] = told({}, native=hooks(listing([field("tcp", "dport", {"set": [80]}), DROP]), printed)["ipv4"])
    assert found["message"].startswith("web: nftables table inet fw base rule 1 (tcp dport { 80 } drop) drops packets ")


def test_marks_that_are_given() -> None:
    unknown = change(MARK, {"map": {}})
    found = marks_given(
        hooks(listing([TO_9], [unknown]), "\t meta mark set ip daddr map @x # handle 11\n")["ipv4"], [80], []
    )
    assert found.places == {80: "a rule of ours", 9: "nftables table inet fw base rule 1 (handle 10)"}
    place = "nftables table inet fw base rule 2 (meta mark set ip daddr map @x)"
    assert found.denial(7) == f"no rule that lvs_info understands gives the mark 7 (not known: {place})"


def test_tables_of_iptables_and_ours_are_left_out() -> None:
    tables = [("ip", "mangle"), ("ip", "own"), ("ip6", "mangle"), ("ip", "lvs-mark"), ("bridge", "b"), ("inet", "fw")]
    chains = [{"chain": {"family": family, "table": name, "name": "x", "hook": "input"}} for family, name in tables]
    chains += [{"chain": {"family": "ip", "table": "no-hook", "name": "x"}}]
    found = native_tables(json.dumps({"nftables": chains}), {"ip": ["mangle"], "ip6": []})
    assert found == [("ip", "own"), ("ip6", "mangle"), ("inet", "fw")]


@pytest.mark.parametrize("listed", ["", "{}", '{"nftables": [{"chain": 1}]}', '{"nftables": [{"table": {}}]}'])
def test_what_cannot_be(listed: str) -> None:
    with pytest.raises(ParseError, match="it is not understood"):
        hooks(listed, "")
    if listed != '{"nftables": [{"table": {}}]}':
        with pytest.raises(ParseError, match="it is not understood"):
            native_tables(listed, {})
