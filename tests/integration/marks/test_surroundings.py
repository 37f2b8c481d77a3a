# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What else is on a router, or is missing there: other rule sets, other tools, no IPVS."""

from __future__ import annotations

import fcntl
import os
import re
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TextIO
from unittest.mock import patch

import pytest

from ansible_collections.lvs.fleet.plugins.module_utils import _router
from ansible_collections.lvs.fleet.plugins.module_utils._declared.params import virtual_services
from ansible_collections.lvs.fleet.plugins.module_utils._engine import converge
from ansible_collections.lvs.fleet.plugins.module_utils._marks import machine as marks_machine
from ansible_collections.lvs.fleet.plugins.module_utils._marks.iptables import snat_chains
from ansible_collections.lvs.fleet.plugins.module_utils._plan import virtual_services_target
from ansible_collections.lvs.fleet.tests.integration import foreign
from ansible_collections.lvs.fleet.tests.integration.harness import CHAIN, FAMILIES, IPTABLES, Router, Snapshot
from ansible_collections.lvs.fleet.tests.integration.shapes import HEAD, WEB, mark_rule, service

RULES = [{"name": "web", "mark": 80, "destination": ["192.0.2.10", "2001:db8::10"], "protocol": "tcp", "ports": [80]}]
RULE = mark_rule("web", 80, "-d 192.0.2.10/32 -p tcp -m multiport --dports 80")
SERVICE = service("web", 80, WEB, real_servers=[{"address": "10.0.0.11"}])


def test_second_family_refused(router: Router) -> None:
    """IPv4 rules are written first; where the IPv6 rules are refused, they are undone."""
    foreign.settle_rules(router)
    before = router.snapshot()
    router.shadow("ip6tables-restore", "echo 'ip6tables-restore: nothing doing' >&2; exit 4")
    assert router.fail("iptables_mark", rules=RULES) == (
        "ip6tables-restore --noflush --wait 10: exit status 4: ip6tables-restore: nothing doing\n"
        "The 1 operations done until then were undone; the router is as it was before."
    )
    assert router.snapshot() == before


def test_changed_meanwhile(router: Router) -> None:
    """Somebody deletes a rule between our reading and our writing: the transaction fails whole, and deletes nothing."""
    router.run("iptables_mark", rules=[{**RULES[0], "name": name} for name in ("web", "old")])
    router.shadow("iptables-restore", f'iptables -t mangle -D {CHAIN} 2; exec "$real" "$@"')
    message = router.fail("iptables_mark", rules=RULES, purge=True)
    assert message.startswith("iptables-restore --noflush --wait 10: exit status 1: ")
    router.unshadow()
    assert router.snapshot().own_rules("ipv4")[:3] == [*HEAD, RULE]
    router.run("iptables_mark", rules=RULES, purge=True)
    assert router.snapshot().own_rules("ipv4") == [*HEAD, RULE]


@pytest.mark.parametrize("variant", ["legacy"])
def test_another_program_holds_the_tables(router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    """iptables-legacy has a lock of its own: we wait for it, but not for ever."""
    with open("/run/xtables.lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with monkeypatch.context() as patience:
            patience.setattr(marks_machine, "_XTABLES_WAIT", "1")
            message = router.fail("iptables_mark", rules=RULES)
        assert "-restore --noflush --wait 1: exit status 4: " in message
        assert "Another app is currently holding the xtables lock. Stopped waiting after 1s." in message
        assert message.endswith("Nothing had been changed.")
        letting_go = threading.Thread(target=let_go_once_wanted, args=(held,), daemon=True)
        letting_go.start()
        assert router.run("iptables_mark", rules=RULES)["changed"]
        letting_go.join(60)
        assert not letting_go.is_alive()


def let_go_once_wanted(held: TextIO) -> None:
    """The kernel lists who waits for a lock behind an arrow, below who has it."""
    inode = os.fstat(held.fileno()).st_ino
    while not re.search(rf"-> FLOCK .*:{inode} ", Path("/proc/locks").read_text()):
        time.sleep(0.01)
    fcntl.flock(held, fcntl.LOCK_UN)


def test_rules_of_the_other_variant(router: Router) -> None:
    """Both variants can have rules at once. Those of the one that is not installed as iptables are not ours."""
    other = {"nft": "iptables-legacy", "legacy": "iptables-nft"}[router.variant]
    if router.attempt(other, "-t", "mangle", "-N", CHAIN).returncode:
        pytest.skip(f"this kernel has no {other}")
    router.tool(other, "-t", "mangle", "-A", CHAIN, "-m", "comment", "--comment", "lvs:old", "-j", "RETURN")
    before = router.tool(f"{other}-save", "-t", "mangle").splitlines()[1:-1]
    router.converge("iptables_mark", rules=RULES, purge=True)
    assert router.snapshot().own_rules("ipv4") == [*HEAD, RULE]
    assert router.tool(f"{other}-save", "-t", "mangle").splitlines()[1:-1] == before


# Native rules. iptables 1.8.9 or 1.8.11, or both, print a rule that lacks something for the most part of them; for the
# rest they have no words.
NATIVE = (
    "ip daddr 192.0.2.80 tcp dport { 80, 443 } meta mark set 0x50",
    "ip daddr 192.0.2.80 tcp dport { 80, 443 } counter meta mark set 0x50",
    "ip daddr 192.0.2.80 tcp dport 80 counter meta mark set 0x50",
    "ip daddr { 192.0.2.80, 192.0.2.81 } counter accept",
    "ip daddr 10.0.0.1-10.0.0.9 counter accept",
    "ip daddr 10.0.0.0/8 ip daddr != 10.1.0.0/16 counter accept",
    "ip dscp set 8 counter",
    "tcp sequence 5 counter accept",
    "tcp dport vmap { 80 : accept, 81 : drop }",
    "udp length 5 counter accept",
    "iif lo counter accept",
    "ip daddr 192.0.2.80 accept",
    "ct state established counter accept",
    "counter meta mark set meta mark | 0x50",
)
UNREADABLE = "the table holds rules that iptables cannot express (see: nft list table ip mangle)"


@pytest.mark.parametrize("variant", ["nft"])
def test_native_nft_rules(router: Router) -> None:
    """At a native rule in its table iptables-nft stops, or prints another one: nothing is made of what it printed."""
    router.run("iptables_mark", rules=RULES)
    router.tool("nft", f"add rule ip mangle PREROUTING {NATIVE[0]}")
    native = router.tool("nft", "list", "ruleset")
    by_hand = [{"name": "by-hand", "mark": 80, "destination": ["192.0.2.80"], "protocol": "tcp"}]
    changes = ({"rules": RULES}, {"rules": [{**RULES[0], "mark": 81}]}, {"rules": RULES, "state": "absent"})
    for check in (True, False):
        for options in (*changes, {"rules": by_hand, "adopt": True}):
            assert UNREADABLE in router.fail("iptables_mark", check=check, **options)
        assert UNREADABLE in router.fail("lvs_service", check=check, services=[SERVICE])
    told = router.run("lvs_info")
    [problem] = [found for found in told["problems"] if found["kind"] == "unreadable"]
    assert UNREADABLE in problem.pop("message")
    assert problem == {"kind": "unreadable", "family": "ipv4"}
    assert told["adoptable"] == {"before": [], "behind": []}
    # The other family is told nevertheless.
    assert [found["destination"] for found in told["rules"]] == [["2001:db8::10"]]
    assert router.tool("nft", "list", "ruleset") == native
    # Elsewhere a native rule does no harm.
    router.tool("nft", "flush chain ip mangle PREROUTING")
    router.tool("nft", "add table ip own")
    router.tool("nft", "add chain ip own mangle { type filter hook prerouting priority 0; }")
    router.tool("nft", "add rule ip own mangle meta mark set 0x50")
    assert router.run("iptables_mark", rules=RULES)["operations"] == [f"iptables -t mangle -A PREROUTING -j {CHAIN}"]


@pytest.mark.parametrize("variant", ["nft"])
def test_each_native_nft_rule(router: Router) -> None:
    router.iptables("-A PREROUTING -j ACCEPT")
    for native in NATIVE:
        router.tool("nft", f"add rule ip mangle PREROUTING {native}")
        assert UNREADABLE in router.fail("iptables_mark", rules=RULES), native
        router.tool("nft", "flush chain ip mangle PREROUTING")
    router.iptables("-A PREROUTING -j ACCEPT", "ipv6")
    router.tool("nft", "add rule ip6 mangle PREROUTING ip6 daddr { 2001:db8::1, 2001:db8::2 } counter accept")
    assert "(see: nft list table ip6 mangle)" in router.fail("iptables_mark", rules=RULES)


# All that iptables writes in the language of nf_tables instead of calling its extensions, in one version or another.
ITS_OWN = """
:ELSEWHERE - [0:0]
-A PREROUTING
-A PREROUTING -p tcp
-A PREROUTING ! -p tcp -j ACCEPT
-A PREROUTING -i eth+ -j ACCEPT
-A PREROUTING ! -i eth0 -g ELSEWHERE
-A FORWARD ! -i + -o eth1 -j RETURN
-A PREROUTING -p tcp -m tcp ! --sport 1:9 --dport :80 -j DROP
-A PREROUTING -p udp -m udp --sport 53 --dport 53 -j ACCEPT
-A PREROUTING -p udp -m udp --sport 53 ! --dport :80 -j ACCEPT
-A PREROUTING -p tcp -m tcp --dport 80: ! --tcp-flags SYN,RST SYN -m comment --comment "text" -j ACCEPT
-A PREROUTING -p tcp -m tcp --syn --dport 80 -j ELSEWHERE
-A PREROUTING -p tcp -m tcp --tcp-option 8 -j ACCEPT
-A PREROUTING -p icmp -j ACCEPT
-A PREROUTING -m mark --mark 1 -m mark ! --mark 0x2/0xf -m limit --limit 5/hour -j NFLOG --nflog-group 3
-A PREROUTING -m limit --limit 1/day --limit-burst 3 -j TRACE
-A PREROUTING -m pkttype --pkt-type broadcast -j LOG --log-prefix "x "
"""
# What only one of the families has, and addresses with every kind of mask.
ITS_OWN_BY_FAMILY = {
    "ipv4": """
-A PREROUTING -f -j DROP
-A PREROUTING -s 10.0.0.0/8 ! -d 10.1.0.0/16 ! -f -j ACCEPT
-A PREROUTING ! -s 10.0.0.0/24 -d 10.1.0.1/255.0.255.255 -p icmp -m icmp --icmp-type 8 -m ttl --ttl-gt 3
-A PREROUTING -s 10.0.0.0/30 -d 192.0.2.1 -p 50 -j ACCEPT
""",
    "ipv6": """
-A PREROUTING -s 2001:db8::/32 ! -d 2001:db8:1::/49 -j ACCEPT
-A PREROUTING ! -s ::1/::ffff -d 2001:db8::1 -p ipv6-icmp -m icmp6 --icmpv6-type 128 -m hl --hl-gt 3
-A PREROUTING -m frag --fragid 1 -j DROP
""",
}


@pytest.mark.parametrize("variant", ["nft"])
def test_what_iptables_writes_is_not_native(router: Router) -> None:
    for family, more in ITS_OWN_BY_FAMILY.items():
        router.iptables(ITS_OWN + more, family)
    for family, command in IPTABLES.items():
        assert router.tool(f"{command}-save", "-t", "mangle").count("\n-A ") > 18, family
    before = router.snapshot()
    router.converge("iptables_mark", rules=RULES)
    router.run("iptables_mark", rules=RULES, state="absent")
    assert (router.snapshot().ipv4, router.snapshot().ipv6) == (before.ipv4, before.ipv6)


def test_a_kernel_without_ipvs(router: Router) -> None:
    """Where the kernel has no IPVS check mode says so, and the run fails before it does anything; reading goes on."""
    if Path("/proc/net/ip_vs").exists() or not router.attempt("modprobe", "--dry-run", "ip_vs").returncode:
        pytest.skip("this kernel has IPVS")
    foreign.settle_rules(router)
    before = router.snapshot()
    said = f"exit status 1: modprobe: FATAL: Module ip_vs not found in directory /lib/modules/{os.uname().release}"
    for check, asked in ((True, "modprobe --show-depends ip_vs"), (False, "modprobe ip_vs")):
        for module, services in (("lvs_service", [SERVICE]), ("ipvs_service", [{"fwmark": 80}])):
            message = router.fail(module, check=check, services=services)
            assert message == f"this kernel has no IPVS: {asked}: {said}"
            assert router.snapshot() == before
    told = router.run("lvs_info")
    assert (told["services"], told["ipvs_services"], told["timeouts"], told["daemons"]) == ([], [], {}, [])
    assert not router.run("lvs_service", services=[{"name": "web", "fwmark": 80}], state="absent")["changed"]
    assert not router.run("ipvs_service", services=[], purge=True)["changed"]
    assert router.snapshot() == before


# Rules for one virtual address by hand, in words of their own, between those of others.
BY_HAND = """
-A PREROUTING -j CONNMARK --restore-mark
-A PREROUTING -d 192.0.2.10 -p tcp --dport http -j MARK --set-mark 80
-A PREROUTING -s 198.51.100.0/24 -d 203.0.113.1 -j DROP
-A PREROUTING -p tcp -d 192.0.2.10/32 -m multiport --dports 443,8443 -m comment --comment "by hand" -j MARK --set-xmark 0x50
-A PREROUTING -p udp -j ACCEPT
"""  # noqa: E501
WIDE = [{"name": "web", "mark": 80, "destination": "192.0.2.10", "protocol": "tcp", "ports": [80, 443, 8443]}]


def in_prerouting(router: Router) -> list[str]:
    return [line for line in router.snapshot().ipv4.splitlines() if line.startswith("-A PREROUTING")]


def test_adopt(router: Router) -> None:
    """Rules made by hand go in the transaction that makes ours, and the jump comes to their place."""
    router.iptables(BY_HAND)
    before = in_prerouting(router)
    done = router.run("iptables_mark", check=True, rules=WIDE, adopt=True)
    assert in_prerouting(router) == before
    assert done == router.run("iptables_mark", rules=WIDE, adopt=True)
    assert in_prerouting(router) == [before[0], before[2], f"-A PREROUTING -j {CHAIN}", before[4]]
    gone = [line.replace("-A ", "iptables -t mangle -D ", 1) for line in (before[1], before[3])]
    assert [line for line in done["operations"] if " -D " in line] == gone
    assert done["diff"]["before"].splitlines()[1:] == [before[1], before[3]]
    router.is_settled("iptables_mark", rules=WIDE, adopt=True)
    assert router.run("lvs_info")["problems"] == [] or not Path("/proc/net/ip_vs").exists()


def test_adopt_is_undone(router: Router) -> None:
    """The other family is refused after the rules were taken over: each is where it was again."""
    router.iptables(BY_HAND)
    before = router.snapshot()
    router.shadow("ip6tables-restore", "exit 4")
    both = [{**WIDE[0], "destination": ["192.0.2.10", "2001:db8::10"]}]
    assert "were undone; the router is as it was before" in router.fail("iptables_mark", rules=both, adopt=True)
    assert router.snapshot() == before


def test_adopt_refuses(router: Router) -> None:
    """A rule that counts stands in between: nothing is touched, and both rules are named."""
    router.iptables(BY_HAND.replace("-d 203.0.113.1 -j DROP", "-j DROP"))
    before = router.snapshot()
    rule = "-d 192.0.2.10/32 -p tcp -m tcp --dport 80 -j MARK --set-xmark 0x50/0xffffffff"
    for check in (True, False):
        assert router.fail("iptables_mark", check=check, rules=WIDE, adopt=True) == (
            f"iptables -t mangle: PREROUTING {rule} cannot be adopted: PREROUTING -s 198.51.100.0/24 -j DROP may see "
            "the same packets, and the order counts"
        )
    assert router.snapshot() == before


FTP = service(
    "ftp",
    21,
    {"destination": "192.0.2.10", "protocol": "tcp", "ports": [20, 21]},
    persistence_timeout=300,
    helper="ftp",
    real_servers=[{"address": "10.0.0.21", "forward_method": "masquerade"}],
)


def test_thousands_of_rules_stay_as_they_are(router: Router) -> None:
    """Beside ours in two tables, and with adoption, every rule of others stays as it is, byte for byte and in order."""
    for family, command in IPTABLES.items():
        router.tool(f"{command}-restore", "--noflush", stdin=foreign.large_rules(family))
    before = router.snapshot()
    assert before.ipv4.count("\n-A ") > 3500 and before.ipv6.count("\n-A ") > 3500
    by_hand = "-d 192.0.2.10/32 -p tcp -m tcp --dport 80 -j MARK --set-xmark 0x50/0xffffffff"
    router.iptables(f"-I PREROUTING 500 {by_hand}")

    def others() -> Snapshot:
        """All but what is ours now, and the rule made by hand."""
        now = router.snapshot()
        own = re.compile(rf"(:|-A |-A POSTROUTING -j |-A PREROUTING -j )LVS-(MARK|SNAT)( .*|)|-A PREROUTING {by_hand}")
        kept = {key: [line for line in getattr(now, key).splitlines() if not own.fullmatch(line)] for key in FAMILIES}
        return replace(now, **{key: "".join(f"{line}\n" for line in lines) for key, lines in kept.items()})

    nat = replace(virtual_services([FTP]), pools={})
    with patch.dict(os.environ, PATH=router.path), _router.Router(snat_chains(), ipvs=False) as both:
        assert converge(both, lambda now: virtual_services_target(now, nat, "owned"), False, 5).operations
    for options in (
        {"rules": WIDE, "adopt": True},
        {"rules": [{**WIDE[0], "mark": 81, "destination": ["192.0.2.10", "2001:db8::10"]}], "adopt": True},
        {"rules": WIDE, "state": "absent"},
    ):
        assert router.run("iptables_mark", **options)["changed"]
        assert others() == before
    assert by_hand not in router.snapshot().ipv4
    began = time.process_time()
    assert router.run("lvs_info")["foreign_rules"]
    assert time.process_time() - began < 15


def test_what_gets_in_the_way(router: Router) -> None:
    """lvs_info reads what the real tools print: later marks, routing rules, chains of others; and changes nothing."""
    foreign.settle_rules(router)
    router.run("iptables_mark", rules=RULES)
    router.iptables("-A INPUT -d 192.0.2.0/24 -j MARK --set-mark 9\n-A PREROUTING -j CONNMARK --restore-mark")
    router.iptables("-A PREROUTING -d 192.0.2.10 -p tcp --dport 80 -j MARK --set-mark 80")
    router.tool("ip", "rule", "add", "fwmark", "0x50/0xff", "priority", "7", "lookup", "200")
    router.tool("ip", "-6", "rule", "add", "fwmark", "80", "priority", "8", "lookup", "200")
    router.tool("ip", "-6", "route", "add", "local", "default", "dev", "lo", "table", "200")
    before = router.snapshot()
    told = router.run("lvs_info")
    assert router.snapshot() == before
    kinds = {(found["kind"], found.get("chain"), found.get("family")) for found in told["problems"]}
    assert kinds >= {
        ("overridden", "INPUT", "ipv4"),
        ("connmark", "PREROUTING", "ipv4"),
        ("duplicate", "PREROUTING", "ipv4"),
        ("policy_rule", None, "ipv4"),
    }
    assert ("policy_rule", None, "ipv6") not in kinds
    assert told["policy_rules"] == [
        {"family": "ipv4", "priority": 7, "fwmark": 80, "mask": 255, "table": "200"},
        {"family": "ipv6", "priority": 8, "fwmark": 80, "mask": 2**32 - 1, "table": "200"},
    ]
    assert {found["name"] for found in told["firewalls"]} >= {"docker", "fail2ban", "calico"}
    listed = [f"-A {rule['chain']} {rule['rule']}" for rule in told["foreign_rules"] if rule["family"] == "ipv4"]
    saved = router.tool("iptables-save", "-t", "mangle").splitlines()
    assert [line for line in listed if line not in saved] == []


def test_no_iptables(router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    """A router without iptables is told so before anything is written."""
    empty = Path(router.path.partition(":")[0])
    router.path = str(empty)
    monkeypatch.setattr("ansible_collections.lvs.fleet.plugins.module_utils._host._SBIN_PATH", os.devnull)
    assert router.run("iptables_mark", check=True, rules=RULES)["changed"]
    assert router.fail("iptables_mark", rules=RULES) in (
        "iptables-restore: exit status 127: it is not installed",
        "ip6tables-restore: exit status 127: it is not installed",
    )
    assert router.run("lvs_info")["rules"] == []
