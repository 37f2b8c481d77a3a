# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""iptables_mark, with every variant of iptables that the kernel allows."""

from __future__ import annotations

import re
import socket
from typing import Any

import pytest

from ansible_collections.lvs.fleet.tests.integration import foreign
from ansible_collections.lvs.fleet.tests.integration.harness import CHAIN, FAMILIES, Router
from ansible_collections.lvs.fleet.tests.integration.shapes import HEAD, mark_rule

WEB = {"name": "web", "mark": 80, "destination": "192.0.2.10", "protocol": "tcp", "ports": [80, 443]}
DNS = {"name": "dns", "mark": 53, "destination": ["192.0.2.53", "2001:db8::53"], "protocol": "udp", "ports": [53]}
OLD = {"name": "old", "mark": 9, "destination": "192.0.2.9", "protocol": "tcp"}
WEB_RULE = mark_rule("web", 80, "-d 192.0.2.10/32 -p tcp -m multiport --dports 80,443")
DNS_RULE = mark_rule("dns", 53, "-d 192.0.2.53/32 -p udp -m multiport --dports 53")
DNS_RULE6 = mark_rule("dns", 53, "-d 2001:db8::53/128 -p udp -m multiport --dports 53")
OLD_RULE = mark_rule("old", 9, "-d 192.0.2.9/32 -p tcp")

# Each case: rules as declared, and as iptables-save and ip6tables-save have to print them.
CASES: dict[str, tuple[list[dict[str, Any]], list[str], list[str]]] = {
    "both families": ([WEB, DNS], [WEB_RULE, DNS_RULE], [DNS_RULE6]),
    "only IPv6": (
        [{"name": "six", "mark": "0x7fffffff", "destination": "2001:DB8:0::/48", "protocol": "sctp"}],
        [],
        [mark_rule("six", 0x7FFFFFFF, "-d 2001:db8::/48 -p sctp")],
    ),
    "masks": (
        [
            {**OLD, "name": "a", "mask": 0xFF, "mark": 0x50},
            {**OLD, "name": "b", "mask": 0xFFFFFFFF, "mark": 0x50},
            {**OLD, "name": "c", "mask": 0x50, "mark": 0x50},
        ],
        [
            mark_rule(name, 0x50, "-d 192.0.2.9/32 -p tcp").replace("0xffffffff", mask)
            for name, mask in (("a", "0xff"), ("b", "0xffffffff"), ("c", "0x50"))
        ],
        [],
    ),
    "several items of a name, in their order": (
        [
            {**WEB, "ports": [8080], "source": ["10.0.0.0/8", "192.0.2.1"]},
            OLD,
            {**WEB, "ports": ["1:2"], "in_interface": "eth+", "protocol": ["udp", "tcp"]},
        ],
        [
            mark_rule("web", 80, "-s 10.0.0.0/8 -d 192.0.2.10/32 -p tcp -m multiport --dports 8080"),
            mark_rule("web", 80, "-s 192.0.2.1/32 -d 192.0.2.10/32 -p tcp -m multiport --dports 8080"),
            OLD_RULE,
            mark_rule("web", 80, "-d 192.0.2.10/32 -i eth+ -p udp -m multiport --dports 1:2"),
            mark_rule("web", 80, "-d 192.0.2.10/32 -i eth+ -p tcp -m multiport --dports 1:2"),
        ],
        [],
    ),
    "machines that are left out": (
        [
            {**WEB, "exclude_mac": ["52:54:00:00:00:0A", "52-54-00-00-00-01"]},
            {**DNS, "exclude_mac": "52:54:00:00:00:01"},
        ],
        [
            mark_rule(
                "web",
                80,
                "-d 192.0.2.10/32 -p tcp -m multiport --dports 80,443"
                " -m mac ! --mac-source 52:54:00:00:00:01 -m mac ! --mac-source 52:54:00:00:00:0a",
            ),
            DNS_RULE.replace(" -m comment", " -m mac ! --mac-source 52:54:00:00:00:01 -m comment", 1),
        ],
        [DNS_RULE6.replace(" -m comment", " -m mac ! --mac-source 52:54:00:00:00:01 -m comment", 1)],
    ),
    "every protocol": (
        [{"name": "all", "mark": 1, "destination": ["192.0.2.10", "2001:db8::/64"], "source": ["::/0", "10.0.0.0/8"]}],
        [mark_rule("all", 1, "-s 10.0.0.0/8 -d 192.0.2.10/32")],
        [mark_rule("all", 1, "-d 2001:db8::/64")],
    ),
    "twenty ports": (
        [{**WEB, "ports": list(range(2, 42, 2))}],
        [
            mark_rule("web", 80, f"-d 192.0.2.10/32 -p tcp -m multiport --dports {','.join(map(str, ports))}")
            for ports in (range(2, 32, 2), range(32, 42, 2))
        ],
        [],
    ),
    "everywhere": (
        [{"name": "all", "mark": 1, "destination": ["0.0.0.0/0", "::/0"], "protocol": "tcp"}],
        [mark_rule("all", 1, "-p tcp")],
        [mark_rule("all", 1, "-p tcp")],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_rules(router: Router, case: str) -> None:
    """What is declared is what iptables-save prints; lvs_info gives it back; absent leaves nothing of it."""
    rules, printed4, printed6 = CASES[case]
    router.converge("iptables_mark", rules=rules)
    there = router.snapshot()
    assert there.own_rules("ipv4") == (HEAD + printed4 if printed4 else [])
    assert there.own_rules("ipv6") == (HEAD + printed6 if printed6 else [])
    router.is_settled("iptables_mark", there, rules=router.run("lvs_info")["rules"], purge=True)
    names = [{"name": name} for name in {item["name"] for item in rules}]
    router.converge("iptables_mark", rules=names, state="absent")
    left = router.snapshot()
    assert [left.own_rules(family) for family in FAMILIES] == [[], []]


def test_another_chain(router: Router) -> None:
    """Two chains know nothing of each other."""
    router.run("iptables_mark", rules=[WEB])
    router.converge("iptables_mark", rules=[OLD], chain="OTHER_chain-28-letters-long_", purge=True)
    there = router.snapshot()
    assert there.own_rules("ipv4") == [*HEAD, WEB_RULE]
    other = [line.replace(CHAIN, "OTHER_chain-28-letters-long_") for line in (*HEAD, OLD_RULE)]
    assert there.own_rules("ipv4", "OTHER_chain-28-letters-long_") == other
    router.run("iptables_mark", rules=[WEB], state="absent")
    assert router.snapshot().own_rules("ipv4", "OTHER_chain-28-letters-long_") == other


def test_names_are_left_alone_without_purge(router: Router) -> None:
    """A name that is not declared stays, and its rules stay in their places; purge takes it away."""
    router.run("iptables_mark", rules=[WEB, OLD, DNS])
    router.converge("iptables_mark", rules=[{**OLD, "mark": 10}])
    changed = OLD_RULE.replace("0x9/", "0xa/")
    assert router.snapshot().own_rules("ipv4") == [*HEAD, WEB_RULE, changed, DNS_RULE]
    router.converge("iptables_mark", rules=[DNS, WEB])
    assert sorted(router.snapshot().own_rules("ipv4")) == sorted([*HEAD, WEB_RULE, changed, DNS_RULE])
    router.converge("iptables_mark", rules=[DNS], purge=True)
    assert router.snapshot().own_rules("ipv4") == [*HEAD, DNS_RULE]


def test_nothing_of_others_is_touched(router: Router) -> None:
    """Through a whole life of our rules, every rule of others stays as it is, byte for byte, also in our chain."""
    foreign.settle_rules(router)
    before = router.snapshot()
    theirs = [before.foreign_rules(family) for family in FAMILIES]
    assert all(text.count("\n-A ") > 25 for text in theirs), "the foreign rules are not there"
    for options in (
        {"rules": [WEB, DNS, OLD]},
        {"rules": [DNS, {**WEB, "ports": [80]}], "purge": True},
        {"rules": [OLD, WEB]},
        {"rules": [WEB], "state": "absent"},
        {"rules": [], "purge": True},
    ):
        router.converge("iptables_mark", **options)
        now = router.snapshot()
        assert [now.foreign_rules(family) for family in FAMILIES] == theirs
    for family in FAMILIES:
        assert now.own_rules(family) == before.own_rules(family)


def test_a_chain_that_others_lead_into(router: Router) -> None:
    """While somebody else's rule leads into the chain, it cannot be removed; it is left empty."""
    router.run("iptables_mark", rules=[WEB])
    router.iptables(f"-A INPUT -i eth9 -j {CHAIN}")
    router.converge("iptables_mark", rules=[WEB], state="absent")
    left = router.snapshot()
    assert left.own_rules("ipv4") == HEAD[:1]
    assert f"-A INPUT -i eth9 -j {CHAIN}\n" in left.ipv4


# What somebody does by hand in our chain, where WEB, DNS and OLD are; and what repairs it.
DRIFT = {
    "jump removed": (f"-D PREROUTING -j {CHAIN}", [f"-A PREROUTING -j {CHAIN}"]),
    "jump doubled": (f"-A PREROUTING -j {CHAIN}", [f"-D PREROUTING -j {CHAIN}"]),
    "jump under a condition": (
        f"-D PREROUTING -j {CHAIN}\n-A PREROUTING -i lo -j {CHAIN}",
        [f"-A PREROUTING -j {CHAIN}"],
    ),
    "chain flushed": (f"-F {CHAIN}", [WEB_RULE, DNS_RULE, OLD_RULE]),
    "rule deleted": (f"-D {CHAIN} 2", [DNS_RULE.replace(f"-A {CHAIN}", f"-I {CHAIN} 2")]),
    "rule moved": (f"-D {CHAIN} 3\n{OLD_RULE.replace('-A', '-I')}", [OLD_RULE.replace("-A", "-D"), OLD_RULE]),
    "rule doubled": (OLD_RULE, [OLD_RULE.replace("-A", "-D"), OLD_RULE.replace("-A", "-D"), OLD_RULE]),
    "mark changed": (
        WEB_RULE.replace(f"-A {CHAIN}", f"-R {CHAIN} 1").replace("0x50/", "0x51/"),
        [WEB_RULE.replace("-A", "-D").replace("0x50/", "0x51/"), WEB_RULE.replace(f"-A {CHAIN}", f"-I {CHAIN} 1")],
    ),
    "match added": (
        WEB_RULE.replace(f"-A {CHAIN}", f"-R {CHAIN} 1 ! -s 10.0.0.1/32"),
        [
            WEB_RULE.replace(f"-A {CHAIN}", f"-D {CHAIN} ! -s 10.0.0.1/32"),
            WEB_RULE.replace(f"-A {CHAIN}", f"-I {CHAIN} 1"),
        ],
    ),
}


def test_drift(router: Router, subtests: pytest.Subtests) -> None:
    """Whatever somebody does to our rules by hand, the next run undoes exactly that."""
    rules = [WEB, DNS, OLD]
    router.run("iptables_mark", rules=rules)
    good = router.snapshot().own_rules("ipv4")
    for what, (hand, expected) in DRIFT.items():
        with subtests.test(what):
            router.iptables(hand)
            for check in (True, False):
                result = router.run("iptables_mark", check=check, rules=rules)
                assert result["operations"] == [f"iptables -t mangle {line}" for line in expected]
            assert router.snapshot().own_rules("ipv4") == good


# The same to the kernel as WEB, for the ports 80 and 443, or 80 alone.
SAME = {
    "--dports 443,80": [80, 443],
    "--dports http,https": [80, 443],
    "--dports 80,80,443": [80, 443],
    "--dport 80": [80],
    "--dport 80:80": [80],
    "--dports 80:90": ["80:90"],
    "--dport 80:90": ["80:90"],
    "--dports 85:90,80:86": ["80:90"],
    "--dports 80:65535": ["80:65535"],
    "--dport 80:": ["80:65535"],
}


def test_written_differently_is_the_same(router: Router, subtests: pytest.Subtests) -> None:
    """A rule that somebody typed differently is neither changed nor reported, and can be taken away as it stands."""
    for ports, declared in SAME.items():
        multiport = "-m multiport " if ports.startswith("--dports") else ""
        comments = "-m comment --comment iptables_mark -m comment --comment lvs:web"
        text = f"{comments} -p tcp {multiport}{ports} -d 192.0.2.10 -j MARK --set-mark 80"
        with subtests.test(ports):
            router.iptables(f":{CHAIN} - [0:0]\n-A PREROUTING -j {CHAIN}\n-A {CHAIN} {text}")
            before = router.snapshot()
            assert not router.run("iptables_mark", rules=[{**WEB, "ports": declared}])["changed"]
            assert router.snapshot() == before
            assert router.run("iptables_mark", rules=[{"name": "web"}], state="absent")["changed"]
            assert router.snapshot().own_rules("ipv4") == []


def test_a_rule_that_comes_twice_counts_where_it_comes_last(router: Router) -> None:
    """Of a, b, a the third overrides b, and the first gives its mark to nothing that the third does not."""
    one, other = ({**WEB, "name": name, "mark": mark} for name, mark in (("one", 1), ("other", 2)))
    router.converge("iptables_mark", rules=[one, other, one])
    assert re.findall(r"lvs:(\w+)", "".join(router.snapshot().own_rules("ipv4"))) == ["other", "one"]


def test_counters_and_places(router: Router) -> None:
    """Rules that stay keep their counters, and those of others also their places between ours."""
    ours = [
        {"name": name, "mark": 1, "destination": f"127.0.0.{place}", "protocol": "udp"}
        for place, name in enumerate(("first", "second", "third"), start=1)
    ]
    router.run("iptables_mark", rules=ours)
    router.iptables(f"-I {CHAIN} 2 -d 127.0.0.9/32 -j MARK --set-mark 9\n-I {CHAIN} 2 -d 127.0.0.8/32 -j RETURN")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for last, packets in {1: 1, 2: 2, 3: 3, 8: 8, 9: 9}.items():
            for _packet in range(packets):
                sender.sendto(b"", (f"127.0.0.{last}", 9))
    assert counters(router) == {1: 1, 8: 8, 9: 9, 2: 2, 3: 3}

    ours[0]["mark"] = 5
    router.converge("iptables_mark", rules=ours)
    assert counters(router) == {1: 0, 8: 8, 9: 9, 2: 2, 3: 3}

    new = {**ours[0], "name": "new", "destination": "127.0.0.4"}
    router.converge("iptables_mark", rules=[ours[0], ours[1], new, ours[2]])
    assert counters(router) == {1: 0, 8: 8, 9: 9, 2: 2, 4: 0, 3: 3}

    router.converge("iptables_mark", rules=[{"name": "second"}, {"name": "first"}], state="absent")
    assert counters(router) == {8: 8, 9: 9, 4: 0, 3: 3}


class Ordered(dict[int, int]):
    """A dictionary whose order counts."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, dict) and list(self.items()) == list(other.items())


def counters(router: Router) -> Ordered:
    """The rules of our chain in their order, by the last number of their destination, with their packets."""
    saved = router.tool("iptables-save", "-c", "-t", "mangle")
    found = re.findall(rf"^\[(\d+):\d+\] -A {CHAIN} -d 127\.0\.0\.(\d+)/32 ", saved, re.MULTILINE)
    return Ordered((int(last), int(packets)) for packets, last in found)
