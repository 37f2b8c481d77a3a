# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What else is on a router, or is missing there: other rule sets, other tools, no IPVS."""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from ansible_collections.lvs.fleet.plugins.module_utils import _router
from ansible_collections.lvs.fleet.tests.integration import foreign
from ansible_collections.lvs.fleet.tests.integration.harness import CHAIN, Router
from ansible_collections.lvs.fleet.tests.integration.shapes import HEAD, WEB, rule, service

RULES = [{"name": "web", "mark": 80, "destination": ["192.0.2.10", "2001:db8::10"], "protocol": "tcp", "ports": [80]}]
RULE = rule("web", 80, "-d 192.0.2.10/32 -p tcp -m multiport --dports 80")
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
        letting_go = threading.Timer(3, fcntl.flock, (held, fcntl.LOCK_UN))
        letting_go.start()
        with monkeypatch.context() as patience:
            patience.setattr(_router, "_XTABLES_WAIT", "1")
            message = router.fail("iptables_mark", rules=RULES)
        assert "-restore --noflush --wait 1: exit status 4: " in message
        assert "Another app is currently holding the xtables lock. Stopped waiting after 1s." in message
        assert message.endswith("Nothing had been changed.")
        began = time.monotonic()
        assert router.run("iptables_mark", rules=RULES)["changed"]
        assert time.monotonic() - began > 0.5
        letting_go.join()


def test_rules_of_the_other_variant(router: Router) -> None:
    """Both variants can have rules at once. Those of the one that is not installed as iptables are not ours."""
    other = f"iptables-{ {'nft': 'legacy', 'legacy': 'nft'}[router.variant] }"
    if router.attempt(f"{other}", "-t", "mangle", "-N", CHAIN).returncode:
        pytest.skip(f"this kernel has no {other}")
    router.tool(other, "-t", "mangle", "-A", CHAIN, "-m", "comment", "--comment", "lvs:old", "-j", "RETURN")
    before = router.tool(f"{other}-save", "-t", "mangle").splitlines()[1:-1]
    router.converge("iptables_mark", rules=RULES, purge=True)
    assert router.snapshot().own_rules("ipv4") == [*HEAD, RULE]
    assert router.tool(f"{other}-save", "-t", "mangle").splitlines()[1:-1] == before


@pytest.mark.parametrize("variant", ["nft"])
def test_native_nft_rules(router: Router) -> None:
    """iptables-nft cannot print a native rule in its table, and stops there: nothing may be made of the rest."""
    assert shutil.which("nft"), "nftables is not installed"
    router.run("iptables_mark", rules=RULES)
    router.tool("nft", "add rule ip mangle PREROUTING ip daddr 192.0.2.80 tcp dport { 80, 443 } meta mark set 0x50")
    if router.attempt("iptables-save", "-t", "mangle").returncode == 0:
        pytest.skip("this iptables prints native rules, as something else")
    native = router.tool("nft", "list", "ruleset")
    seen = "the table holds rules that iptables cannot express (see: nft list table ip mangle)"
    for check in (True, False):
        for options in ({"rules": RULES}, {"rules": [{**RULES[0], "mark": 81}]}, {"rules": RULES, "state": "absent"}):
            assert seen in router.fail("iptables_mark", check=check, **options)
        assert seen in router.fail("lvs_service", check=check, services=[SERVICE])
    told = router.run("lvs_info")
    [problem] = [found for found in told["problems"] if found["kind"] == "unreadable"]
    assert seen in problem.pop("message")
    assert problem == {"kind": "unreadable", "family": "ipv4"}
    # The other family is told nevertheless.
    assert [found["destination"] for found in told["rules"]] == [["2001:db8::10"]]
    assert router.tool("nft", "list", "ruleset") == native
    # Elsewhere a native rule does no harm.
    router.tool("nft", "flush chain ip mangle PREROUTING")
    router.tool("nft", "add table ip own")
    router.tool("nft", "add chain ip own mangle { type filter hook prerouting priority 0; }")
    router.tool("nft", "add rule ip own mangle meta mark set 0x50")
    assert router.run("iptables_mark", rules=RULES)["operations"] == [f"iptables -t mangle -A PREROUTING -j {CHAIN}"]


def test_check_mode_without_ipvs(router: Router) -> None:
    """Where the kernel has no IPVS, check mode tells all that would be done, and the run fails before it does it."""
    if Path("/proc/net/ip_vs").exists() or not router.attempt("modprobe", "--dry-run", "ip_vs").returncode:
        pytest.skip("this kernel has IPVS")
    foreign.settle_rules(router)
    before = router.snapshot()
    foretold = router.run("lvs_service", check=True, services=[SERVICE])
    match = "-d 192.0.2.10/32 -p tcp -m multiport --dports 80,443"
    assert foretold["operations"] == [
        "ipvsadm -A -f 80 -s wlc",
        "ipvsadm -a -f 80 -r 10.0.0.11 -g -w 1",
        f"iptables -t mangle {rule('web', 80, match)}",
    ]
    assert foretold["diff"]["after"].endswith("# IPVS\n-A -f 80 -s wlc\n-a -f 80 -r 10.0.0.11:0 -g -w 1\n")
    for module, services in (("lvs_service", [SERVICE]), ("ipvs_service", [{"fwmark": 80}])):
        message = router.fail(module, services=services)
        assert message.startswith("this kernel has no IPVS: modprobe ip_vs: exit status 1: ")
    assert not router.run("lvs_service", services=[{"name": "web", "fwmark": 80}], state="absent")["changed"]
    assert not router.run("ipvs_service", services=[], purge=True)["changed"]
    assert router.snapshot() == before


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
