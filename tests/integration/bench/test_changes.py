# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""lvs_service: from what is there to what is wanted, and no step more."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.lvs.fleet.tests.integration import foreign
from ansible_collections.lvs.fleet.tests.integration.harness import CHAIN, FAMILIES, Router
from ansible_collections.lvs.fleet.tests.integration.shapes import HEAD, WEB, rule, service

SERVERS = [{"address": "10.0.0.11"}, {"address": "10.0.0.12"}]
DNS = service("dns", 53, {"destination": ["192.0.2.53", "2001:db8::53"], "protocol": "udp", "ports": [53]})
ADD = f"iptables -t mangle -A {CHAIN}"
DROP = f"iptables -t mangle -D {CHAIN}"


def web(fwmark: int = 80, **settings: Any) -> dict[str, Any]:
    return service("web", fwmark, WEB, **{"real_servers": SERVERS, **settings})


# -- one change at a time -----------------------------------------------------------------------------------------

WEB_MATCH = "-d 192.0.2.10/32 -p tcp -m multiport --dports 80,443"
WEB_RULE = rule("web", 80, WEB_MATCH).removeprefix(f"-A {CHAIN} ")
DNS_MATCH = "-p udp -m multiport --dports 53"

# What is declared after [web(), DNS]; the operations, exactly and in their order.
EDITS: dict[str, tuple[list[dict[str, Any]], list[str]]] = {
    "another mark": (
        [web(8080), DNS],
        [
            "ipvsadm -A -f 8080 -s wlc",
            "ipvsadm -a -f 8080 -r 10.0.0.11 -g -w 1",
            "ipvsadm -a -f 8080 -r 10.0.0.12 -g -w 1",
            f"{DROP} {WEB_RULE}",
            f"iptables -t mangle -I {CHAIN} 1 {rule('web', 8080, WEB_MATCH).removeprefix(f'-A {CHAIN} ')}",
            f'{ADD} -s 255.255.255.255/32 -m comment --comment "lvs:web" -j MARK --set-xmark 0x50/0xffffffff',
            "ipvsadm -D -f 80",
            f'{DROP} -s 255.255.255.255/32 -m comment --comment "lvs:web" -j MARK --set-xmark 0x50/0xffffffff',
        ],
    ),
    "a server comes, one goes, one changes": (
        [web(real_servers=[{"address": "10.0.0.12", "weight": 2}, {"address": "10.0.0.13"}]), DNS],
        [
            "ipvsadm -a -f 80 -r 10.0.0.13 -g -w 1",
            "ipvsadm -e -f 80 -r 10.0.0.12 -g -w 2",
            "ipvsadm -d -f 80 -r 10.0.0.11",
        ],
    ),
    "IPv6 goes": (
        [web(), service("dns", 53, {"destination": "192.0.2.53", "protocol": "udp", "ports": [53]})],
        [
            f"ip6tables -t mangle -D {CHAIN} {rule('dns', 53, f'-d 2001:db8::53/128 {DNS_MATCH}').split(' ', 2)[2]}",
            f"ip6tables -t mangle -A {CHAIN} -s ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128"
            ' -m comment --comment "lvs:dns" -j MARK --set-xmark 0x35/0xffffffff',
            "ipvsadm -D -f 53 -6",
            f"ip6tables -t mangle -D {CHAIN} -s ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128"
            ' -m comment --comment "lvs:dns" -j MARK --set-xmark 0x35/0xffffffff',
            f"ip6tables -t mangle -D PREROUTING -j {CHAIN}",
            f"ip6tables -t mangle -X {CHAIN}",
        ],
    ),
    "another name": (
        [service("www", 80, WEB, real_servers=SERVERS), DNS],
        [
            f"{DROP} {WEB_RULE}",
            f"iptables -t mangle -I {CHAIN} 1 {WEB_RULE.replace('lvs:web', 'lvs:www')}",
        ],
    ),
    "persistence": (
        [web(persistence_timeout=300, persistence_netmask=24), DNS],
        ["ipvsadm -E -f 80 -s wlc -p 300 -M 255.255.255.0"],
    ),
}


@pytest.mark.parametrize("edit", EDITS)
def test_edit(router: Router, edit: str) -> None:
    wanted, operations = EDITS[edit]
    router.run("lvs_service", services=[web(), DNS])
    assert router.converge("lvs_service", services=wanted)["operations"] == operations


PURGE = {
    # purge: services by mark that are left, and rules of ours and others that are left
    "none": ({"80", "53", "90", "100"}, {"web", "dns", "hand", "mail"}),
    "owned": ({"80", "90", "100"}, {"web", "hand", "mail"}),
    "all": ({"80"}, {"web"}),
}


MAIL = {"name": "mail", "mark": 100, "destination": "192.0.2.25", "protocol": "tcp", "ports": [25]}


@pytest.mark.parametrize("purge", PURGE)
def test_purge(router: Router, purge: str) -> None:
    """dns is ours and no longer declared; service 90 and a rule in our chain are somebody else's.

    So is mail, which keepalived would balance; its mark comes from iptables_mark.
    """
    marks, names = PURGE[purge]
    router.run("iptables_mark", rules=[MAIL])
    router.run("lvs_service", services=[web(), DNS])
    router.ipvsadm("-A -f 90 -s rr\n-A -f 100 -s rr\n-a -f 100 -r 10.0.0.25 -g")
    router.iptables(f"-A {CHAIN} -d 192.0.2.90/32 -m comment --comment hand -j MARK --set-mark 90")
    if purge == "none":
        router.is_settled("lvs_service", services=[web()], purge=purge)
    else:
        router.converge("lvs_service", services=[web()], purge=purge)
    left = router.snapshot()
    assert {line.split()[2] for line in left.services()} == marks
    shown = "\n".join(left.own_rules("ipv4"))
    assert {name for name in ("web", "dns", "hand", "mail") if name in shown} == names
    assert bool(left.own_rules("ipv6")) == ("dns" in names)
    if purge != "all":
        absent = [{"name": name, "fwmark": mark} for name, mark in (("web", 80), ("dns", 53), ("mail", 100))]
        router.converge("lvs_service", services=absent, state="absent")
        assert router.converged.services() == ["-A -f 100 -s rr", "-A -f 90 -s rr", "-a -f 100 -r 10.0.0.25:0 -g -w 1"]
        assert len(router.converged.own_rules("ipv4")) == len(HEAD) + 2
        router.converge("iptables_mark", rules=[MAIL], state="absent")
        assert "lvs:" not in "\n".join(router.converged.own_rules("ipv4"))


def test_absent(router: Router) -> None:
    """One service goes with both halves in both families; the last one takes the chain and the jump along."""
    router.run("lvs_service", services=[web(), DNS])
    router.converge("lvs_service", services=[{"name": "dns", "fwmark": 53}], state="absent")
    left = router.converged
    assert left.own_rules("ipv4") == [*HEAD, rule("web", 80, WEB_MATCH)]
    assert left.own_rules("ipv6") == []
    assert left.services() == ["-A -f 80 -s wlc", *(f"-a -f 80 -r 10.0.0.1{n}:0 -g -w 1" for n in (1, 2))]
    router.converge("lvs_service", services=[web()], state="absent")
    left = router.converged
    assert (left.own_rules("ipv4"), left.services()) == ([], [])


# -- what others have ---------------------------------------------------------------------------------------------


def test_nothing_of_others_is_touched(router: Router) -> None:
    """Through a whole life of our services, everything that others made stays as it is, byte for byte."""
    foreign.settle_rules(router)
    foreign.settle_services(router)
    before = router.snapshot()
    theirs = [before.foreign_rules(family) for family in FAMILIES], before.services()
    assert all(text.count("\n-A ") > 25 for text in theirs[0]), "the foreign rules are not there"
    for options in (
        {"services": [web(), DNS]},
        {"services": [web(81, scheduler="sh", real_servers=SERVERS[1:]), DNS]},
        {"services": [DNS], "purge": "none"},
        {"services": [DNS, web()]},
        {"services": [DNS]},
        {"services": [DNS, web(82)], "state": "absent"},
    ):
        assert router.run("lvs_service", **options)["changed"] is (options.get("purge") != "none"), options
        now = router.snapshot()
        assert ([now.foreign_rules(family) for family in FAMILIES], now.services_without(53, 80, 81)) == theirs
    assert now.services() == before.services()
    assert [now.own_rules(family) for family in FAMILIES] == [before.own_rules(family) for family in FAMILIES]


# -- drift --------------------------------------------------------------------------------------------------------

FARM = [
    service(
        "farm",
        80,
        WEB,
        {"destination": "192.0.2.10", "protocol": "udp", "ports": [443]},
        scheduler="sh",
        scheduler_flags=["sh-port"],
        persistence_timeout=300,
        persistence_netmask=24,
        persistence_engine="sip",
        real_servers=[
            {
                "address": "10.0.0.11",
                "weight": 10,
                "upper_threshold": 100,
                "lower_threshold": 50,
                "forward_method": "masquerade",
            },
            {
                "address": "10.0.0.12",
                "forward_method": "tunnel",
                "tunnel_type": "gue",
                "tunnel_port": 6080,
                "tunnel_checksum": "csum",
            },
        ],
    ),
    DNS,
]
TCP = rule("farm", 80, WEB_MATCH).split(" ", 2)[2]
UDP = rule("farm", 80, "-d 192.0.2.10/32 -p udp -m multiport --dports 443").split(" ", 2)[2]
DNS4 = rule("dns", 53, f"-d 192.0.2.53/32 {DNS_MATCH}").split(" ", 2)[2]
DNS6 = rule("dns", 53, f"-d 2001:db8::53/128 {DNS_MATCH}").split(" ", 2)[2]
SERVICE = "-f 80 -s sh -p 300 -M 255.255.255.0 --pe sip -b sh-port"
SERVER = "-f 80 -r 10.0.0.11 -m -w 10 -x 100 -y 50"
TUNNEL = "-f 80 -r 10.0.0.12 -i -w 1 --tun-type gue --tun-port 6080 --tun-csum"

# What somebody does by hand in our chain, and what repairs it.
RULE_DRIFT = {
    "jump removed": (f"-D PREROUTING -j {CHAIN}", [f"iptables -t mangle -A PREROUTING -j {CHAIN}"]),
    "jump doubled": (f"-I PREROUTING -j {CHAIN}", [f"iptables -t mangle -D PREROUTING -j {CHAIN}"]),
    "jump tripled": (
        f"-A PREROUTING -j {CHAIN}\n-A PREROUTING -j {CHAIN}",
        [f"iptables -t mangle -D PREROUTING -j {CHAIN}"] * 2,
    ),
    "chain flushed": (f"-F {CHAIN}", [f"{ADD} {TCP}", f"{ADD} {UDP}", f"{ADD} {DNS4}"]),
    "chain removed": (
        f"-D PREROUTING -j {CHAIN}\n-F {CHAIN}\n-X {CHAIN}",
        [
            f"iptables -t mangle -N {CHAIN}",
            f"{ADD} {TCP}",
            f"{ADD} {UDP}",
            f"{ADD} {DNS4}",
            f"iptables -t mangle -A PREROUTING -j {CHAIN}",
        ],
    ),
    "rule deleted": (f"-D {CHAIN} {UDP}", [f"iptables -t mangle -I {CHAIN} 2 {UDP}"]),
    "last rule first": (
        f"-D {CHAIN} {DNS4}\n-I {CHAIN} {DNS4}",
        [f"{DROP} {DNS4}", f"{ADD} {DNS4}"],
    ),
    "rule doubled": (f"-A {CHAIN} {DNS4}", [f"{DROP} {DNS4}", f"{DROP} {DNS4}", f"{ADD} {DNS4}"]),
    "another mark": (
        f"-R {CHAIN} 2 {UDP.replace('0x50', '0x51')}",
        [f"{DROP} {UDP.replace('0x50', '0x51')}", f"iptables -t mangle -I {CHAIN} 2 {UDP}"],
    ),
    "another mask": (
        f"-R {CHAIN} 2 {UDP.replace('0xffffffff', '0xff')}",
        [f"{DROP} {UDP.replace('0xffffffff', '0xff')}", f"iptables -t mangle -I {CHAIN} 2 {UDP}"],
    ),
    "narrowed by something we never write": (
        f"-R {CHAIN} 2 -m length --length 100 {UDP}",
        [
            f"{DROP} {UDP.replace(' -m multiport', ' -m length --length 100 -m multiport')}",
            f"iptables -t mangle -I {CHAIN} 2 {UDP}",
        ],
    ),
    "inverted": (
        f"-R {CHAIN} 2 ! {UDP}",
        [f"{DROP} ! {UDP}", f"iptables -t mangle -I {CHAIN} 2 {UDP}"],
    ),
    "a name nobody declared": (
        f"-A {CHAIN} {DNS4.replace('lvs:dns', 'lvs:old')}",
        [f"{DROP} {DNS4.replace('lvs:dns', 'lvs:old')}"],
    ),
}


def repair(router: Router, expected: list[str]) -> None:
    """Check mode and the run name exactly these operations."""
    for check in (True, False):
        result = router.run("lvs_service", check=check, services=FARM)
        assert (result["changed"], result["operations"]) == (True, expected)


def test_drift_of_rules(router: Router, subtests: pytest.Subtests) -> None:
    """Whatever somebody does to our rules by hand, the next run undoes exactly that."""
    router.run("lvs_service", services=FARM)
    good = router.snapshot()
    for what, (hand, expected) in RULE_DRIFT.items():
        with subtests.test(what):
            router.iptables(hand)
            repair(router, expected)
            assert router.snapshot(services=False).own_rules("ipv4") == good.own_rules("ipv4")
    with subtests.test("IPv6"):
        router.iptables(f"-F {CHAIN}", family="ipv6")
        repair(router, [f"ip6tables -t mangle -A {CHAIN} {DNS6}"])
        assert router.snapshot() == good


SERVICE_DRIFT = {
    "scheduler": ("-E -f 80 -s rr -p 300 -M 255.255.255.0 --pe sip", [f"ipvsadm -E {SERVICE}"]),
    "flags": (f"-E {SERVICE},sh-fallback", [f"ipvsadm -E {SERVICE}"]),
    "persistence": (f"-E {SERVICE.replace('300', '301')}", [f"ipvsadm -E {SERVICE}"]),
    "no persistence": ("-E -f 80 -s sh -b sh-port", [f"ipvsadm -E {SERVICE}"]),
    "netmask": (f"-E {SERVICE.replace('255.0 ', '0.0 ')}", [f"ipvsadm -E {SERVICE}"]),
    "engine": ("-E -f 80 -s sh -p 300 -M 255.255.255.0 -b sh-port", [f"ipvsadm -E {SERVICE}"]),
    "one packet": (f"-E {SERVICE} -o", [f"ipvsadm -E {SERVICE}"]),
    "one packet in IPv6": ("-E -f 53 -6 -s wlc -o", ["ipvsadm -E -f 53 -6 -s wlc"]),
    "weight": (f"-e {SERVER.replace('-w 10', '-w 0')}", [f"ipvsadm -e {SERVER}"]),
    "method": (f"-e {SERVER.replace('-m', '-g')}", [f"ipvsadm -e {SERVER}"]),
    "upper threshold": (f"-e {SERVER.replace('100', '101')}", [f"ipvsadm -e {SERVER}"]),
    "lower threshold": (f"-e {SERVER.replace('50', '49')}", [f"ipvsadm -e {SERVER}"]),
    "no thresholds": ("-e -f 80 -r 10.0.0.11 -m -w 10", [f"ipvsadm -e {SERVER}"]),
    "tunnel type": ("-e -f 80 -r 10.0.0.12 -i --tun-type gre --tun-csum", [f"ipvsadm -e {TUNNEL}"]),
    "tunnel to ipip": ("-e -f 80 -r 10.0.0.12 -i", [f"ipvsadm -e {TUNNEL}"]),
    "tunnel port": (f"-e {TUNNEL.replace('6080', '6081')}", [f"ipvsadm -e {TUNNEL}"]),
    "tunnel checksum": (f"-e {TUNNEL.replace('--tun-csum', '--tun-nocsum')}", [f"ipvsadm -e {TUNNEL}"]),
    "no tunnel": ("-e -f 80 -r 10.0.0.12 -g", [f"ipvsadm -e {TUNNEL}"]),
    "server added": ("-a -f 80 -r 10.0.0.99 -m", ["ipvsadm -d -f 80 -r 10.0.0.99"]),
    "server with a port": ("-a -f 80 -r 10.0.0.11:80 -m", ["ipvsadm -d -f 80 -r 10.0.0.11:80"]),
    "server removed": ("-d -f 80 -r 10.0.0.12", [f"ipvsadm -a {TUNNEL}"]),
    "service removed": ("-D -f 80", [f"ipvsadm -A {SERVICE}", f"ipvsadm -a {SERVER}", f"ipvsadm -a {TUNNEL}"]),
    "both at once": (
        f"-D -f 53 -6\n-e {SERVER.replace('-w 10', '-w 11')}",
        ["ipvsadm -A -f 53 -6 -s wlc", f"ipvsadm -e {SERVER}"],
    ),
}


def test_drift_of_services(router: Router, subtests: pytest.Subtests) -> None:
    """Whatever somebody does to our services with ipvsadm, the next run undoes exactly that."""
    router.run("lvs_service", services=FARM)
    good = router.snapshot()
    for what, (hand, expected) in SERVICE_DRIFT.items():
        with subtests.test(what):
            router.ipvsadm(hand)
            repair(router, expected)
            assert router.snapshot(rules=False).services() == good.services()
    assert router.snapshot().own_rules("ipv4") == good.own_rules("ipv4")


# The web rule, written otherwise. Each means the same to the kernel, and prints back differently.
SAME = (
    "-d 192.0.2.10/32 -p tcp -m multiport --dports 443,80 -m comment --comment lvs:web -j MARK --set-mark 80",
    "-d 192.0.2.10/255.255.255.255 -p 6 -m comment --comment lvs:web -m multiport --dports http,https"
    " -j MARK --set-xmark 80",
    "-m comment --comment lvs:web -m tcp -p tcp -m multiport --dports 443,80,80 -d 192.0.2.10 -j MARK --set-mark 0x50",
)


def test_written_differently_is_the_same(router: Router) -> None:
    router.run("lvs_service", services=[web()])
    for text in SAME:
        router.iptables(f"-R {CHAIN} 1 {text}")
        before = router.snapshot()
        assert before.own_rules("ipv4") != [*HEAD, rule("web", 80, WEB_MATCH)]
        assert not router.run("lvs_service", services=[web()])["changed"]
        assert router.snapshot() == before
    single = service("web", 80, {**WEB, "ports": [80]}, real_servers=SERVERS)
    router.iptables(f"-R {CHAIN} 1 -d 192.0.2.10 -p tcp --dport 80 -m comment --comment lvs:web -j MARK --set-mark 80")
    router.is_settled("lvs_service", services=[single])
    # And it can be taken away again as it stands there.
    router.run("lvs_service", services=[single], state="absent")
    assert router.snapshot().own_rules("ipv4") == []
