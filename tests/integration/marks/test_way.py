# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Native nftables rules, and the other variant of iptables: what lvs_info tells of them is what becomes of packets.

The kernel needs no IPVS for it: a rule where IPVS would be called counts the packets that come there with our mark.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from unittest.mock import patch

import pytest

from ansible_collections.lvs.fleet.plugins.module_utils._way import machine as on_way
from ansible_collections.lvs.fleet.tests.integration.conftest import VARIANTS, kernel_allows
from ansible_collections.lvs.fleet.tests.integration.harness import Router
from ansible_collections.lvs.fleet.tests.integration.traffic import CLIENT, PORTS, SERVER, VIRTUAL, Site

FAMILY = socket.AF_INET
VIP = VIRTUAL[FAMILY]
RULES = [{"name": "web", "mark": 80, "destination": [VIP], "protocol": ["tcp"], "ports": list(PORTS)}]
WITNESS = "table inet witness { chain input { type filter hook input priority 98; meta mark 80 counter; }; }"
PROBLEMS = ("bypassed", "overridden", "connmark", "dropped", "translated")
BASE = "table inet fw {{ chain other {{ {2}; }}; chain base {{ type {0}; {1}; }}; }}"


def at(hook: str, rules: str, other: str = "return") -> str:
    return BASE.format(hook, rules, other)


PREROUTING, INPUT = "filter hook prerouting priority mangle + 10", "filter hook input priority filter"
# A native table, the problems that are told, and how many of the packets to two ports come to IPVS with our mark.
NATIVE: dict[str, tuple[str, list[str], int]] = {
    "nothing": (at(INPUT, "counter"), [], 2),
    "another mark": (at(PREROUTING, "meta mark set 9"), ["overridden"], 0),
    "another mark before ours": (at("filter hook prerouting priority raw", "meta mark set 9"), [], 2),
    "another mark behind IPVS": (at("filter hook input priority 99", "meta mark set 9"), [], 2),
    "bits of the mark": (at(INPUT, "meta mark set meta mark & 0xffff0000"), ["overridden"], 0),
    "other bits": (at(INPUT, "meta mark set meta mark & 0x0000ffff"), [], 2),
    "the connection's mark": (at(INPUT, "meta mark set ct mark"), ["connmark"], 0),
    "saved before": (at(INPUT, "ct mark set meta mark; meta mark set ct mark"), [], 2),
    "for one port": (at(INPUT, "tcp dport { 22, 443 } meta mark set 9"), ["overridden"], 1),
    "for other ports": (at(INPUT, "tcp dport != { 80, 443 } meta mark set 9"), [], 2),
    "for the other family": (at(INPUT, "meta nfproto ipv6 meta mark set 9"), [], 2),
    "by the mark": (at(INPUT, "meta mark & 0xf0 == 0x50 drop"), ["dropped"], 0),
    "by another mark": (at(INPUT, "meta mark & 0xf0 == 0x40 drop"), [], 2),
    "as firewalld": (
        at(INPUT, 'ct state established,related accept; iifname "lo" accept; ct state invalid drop; '
                  'iifname "client" goto other; reject', "tcp dport 443 accept; drop"), ["dropped"], 1,
    ),
    "the zone lets them in": (
        at(INPUT, 'iifname vmap { "lo" : accept, "client" : jump other }; reject', "tcp dport { 80, 443 } accept"),
        [], 2,
    ),
    "DNAT": (
        at("nat hook prerouting priority dstnat", f"ip daddr {VIP} tcp dport 80 dnat ip to 203.0.113.9"),
        ["translated"], 1,
    ),
    "what no first packet is": (at(INPUT, "tcp flags & (fin|syn|rst|ack) != syn drop; ct state != new drop"), [], 2),
}  # fmt: skip
# The same of a rule of the other variant of iptables.
OTHER_VARIANT: dict[str, tuple[str, str, list[str], int]] = {
    "another mark": ("filter", "-A INPUT -j MARK --set-mark 9", ["overridden"], 0),
    "other ports": ("filter", "-A INPUT -p tcp -m multiport ! --dports 80,443 -j MARK --set-mark 9", [], 2),
    "dropped": ("raw", f"-A PREROUTING -d {VIP} -p tcp --dport 443 -j DROP", ["dropped"], 1),
    "DNAT": ("nat", "-A PREROUTING -p tcp --dport 80 -j DNAT --to-destination 203.0.113.9", ["translated"], 1),
}


# Behind IPVS: a native table, the problems that are told, and the addresses by which a server sees the client.
CLIENT_ADDRESS, ROUTER_ADDRESS = CLIENT[FAMILY].format(11), "10.0.1.1"
NAT, POSTROUTING = "nat hook postrouting priority srcnat", "filter hook postrouting priority mangle"
READERS: dict[str, tuple[str, list[str], list[str]]] = {
    "masqueraded by a bit": (at(NAT, "meta mark & 0x40 == 0x40 masquerade"), ["mark_read"], [ROUTER_ADDRESS]),
    "masqueraded as by Kubernetes": (
        at(NAT, "jump other", "meta mark & 0x40 != 0x40 return; meta mark set meta mark ^ 0x40; masquerade"),
        ["mark_read"], [ROUTER_ADDRESS],
    ),
    "masqueraded by Kubernetes' own bit": (
        at(NAT, "jump other", "meta mark & 0x4000 != 0x4000 return; masquerade"), [], [CLIENT_ADDRESS],
    ),
    "dropped by the mark": (at(POSTROUTING, "meta mark 80 drop"), ["mark_read"], []),
    "dropped by a set of marks": (at(POSTROUTING, "meta mark { 7, 80 } drop"), ["mark_read"], []),
    "dropped by another mark": (at(POSTROUTING, "meta mark { 7, 81 } drop"), [], [CLIENT_ADDRESS]),
    "let out by the mark": (at(POSTROUTING, "meta mark 80 accept"), [], [CLIENT_ADDRESS]),
}  # fmt: skip


@pytest.fixture
def site(router: Router) -> Iterator[Site]:
    found = Site(router, servers=())
    router.tool("nft", "-f", "-", stdin=WITNESS)
    router.run("iptables_mark", rules=RULES)
    try:
        yield found
    finally:
        found.close()


def met(site: Site) -> tuple[list[str], int]:
    """The problems on the way, and how many of a client's packets to two ports come to IPVS with our mark."""
    told = [problem["kind"] for problem in site.router.run("lvs_info")["problems"]]
    for port in PORTS:
        with site.client.inside(), suppress(OSError):
            # Nobody listens: the router refuses, if the packet comes that far.
            socket.create_connection((VIP, port), 0.2, (CLIENT[FAMILY].format(11), 0)).close()
    [counted] = re.findall(r"counter packets (\d+)", site.router.tool("nft", "list", "table", "inet", "witness"))
    return [kind for kind in told if kind in PROBLEMS], int(counted)


@pytest.mark.parametrize("case", NATIVE)
def test_native_rules(site: Site, case: str) -> None:
    table, problems, marked = NATIVE[case]
    site.router.tool("nft", "-f", "-", stdin=table)
    assert met(site) == (problems, marked)


@pytest.mark.parametrize("case", OTHER_VARIANT)
def test_the_other_variant_of_iptables(site: Site, case: str) -> None:
    table, rule, problems, marked = OTHER_VARIANT[case]
    [other] = set(VARIANTS) - {site.router.variant}
    if not kernel_allows(other):
        pytest.skip(f"this kernel has no iptables-{other}")
    site.router.tool(f"iptables-{other}-restore", "--noflush", stdin=f"*{table}\n{rule}\nCOMMIT\n")
    assert met(site) == (problems, marked)


@pytest.fixture
def forwarding(router: Router) -> Iterator[Site]:
    """The router hands packets with our mark to a server, where IPVS would: the same hooks are behind."""
    found = Site(router, servers=(1,))
    router.tool("ip", "addr", "del", VIP, "dev", "lo")
    router.tool("ip", "route", "add", VIP, "via", SERVER[FAMILY].format(1))
    with found.servers[1].inside():
        router.tool("ip", "addr", "add", VIP, "dev", "lo")
    router.run("iptables_mark", rules=RULES)
    # As with IPVS in Kubernetes; else table nat is none of its packets' business.
    with patch.object(on_way, "tracks_ipvs", lambda: True):
        yield found
    found.close()


@pytest.mark.parametrize("case", READERS)
def test_readers_of_our_mark(forwarding: Site, case: str) -> None:
    table, problems, seen = READERS[case]
    forwarding.router.tool("nft", "-f", "-", stdin=table)
    told = [problem["kind"] for problem in forwarding.router.run("lvs_info")["problems"]]
    assert ([kind for kind in told if kind == "mark_read"], clients_seen(forwarding)) == (problems, seen)


def clients_seen(site: Site) -> list[str]:
    """The address of a client as the server sees it, if it does."""
    with site.servers[1].inside():
        listener = socket.create_server((VIP, PORTS[0]))
    with listener, site.client.inside(), suppress(OSError):
        socket.create_connection((VIP, PORTS[0]), 0.5, (CLIENT_ADDRESS, 0)).close()
        connection, (address, _port) = listener.accept()
        connection.close()
        return [address]
    return []
