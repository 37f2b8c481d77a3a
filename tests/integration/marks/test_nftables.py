# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Marks by nftables on a real kernel: the same as by iptables, told by packets, and no gap on the way between them."""

from __future__ import annotations

import json
import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest

from ansible_collections.lvs.fleet.plugins.module_utils._declared.params import virtual_services
from ansible_collections.lvs.fleet.plugins.module_utils._engine import Outcome, converge
from ansible_collections.lvs.fleet.plugins.module_utils._errors import LvsError
from ansible_collections.lvs.fleet.plugins.module_utils._marks.iptables import mark_chains
from ansible_collections.lvs.fleet.plugins.module_utils._marks.nftables import boot_lines
from ansible_collections.lvs.fleet.plugins.module_utils._model import FAMILIES, IPTABLES, NFTABLES, RouterState
from ansible_collections.lvs.fleet.plugins.module_utils._plan import marks_target
from ansible_collections.lvs.fleet.plugins.module_utils._router import Router as Machine
from ansible_collections.lvs.fleet.tests.integration import foreign
from ansible_collections.lvs.fleet.tests.integration.harness import Router
from ansible_collections.lvs.fleet.tests.integration.shapes import ODD_INTERFACES, ODD_NAMES, service
from ansible_collections.lvs.fleet.tests.unit.fake_kernel import FakeKernel

VIPS = ("192.0.2.10", "192.0.2.11", "192.0.2.130", "2001:db8::10", "2001:db8::99")
PORTS = (53, 80, 81, 443, 5060, 10000, 15000, 20000, 20001)
EVERYWHERE = ["192.0.2.10", "192.0.2.11", "2001:db8::10"]

# Services that overlap in every way that counts.
SERVICES = [
    service("net", 1, {"destination": ["192.0.2.0/24", "2001:db8::/32"], "protocol": ["tcp", "udp"]}),
    service("web", 80, {"destination": EVERYWHERE, "protocol": ["tcp", "udp"], "ports": [80, 443]}),
    service("range", 3, {"destination": EVERYWHERE, "protocol": "udp", "ports": ["10000:20000"]}),
    service("inside", 4, {"destination": ["192.0.2.10"], "protocol": "udp", "ports": ["14999:15001", 443]}),
    service("near", 5, {"destination": EVERYWHERE, "protocol": "udp", "ports": [53, "80:81"], "in_interface": "l+"}),
    service("from", 6, {"destination": ["192.0.2.0/25"], "protocol": "udp", "source": ["192.0.2.11"]}),
    service("all", 8, {"destination": ["192.0.2.130"], "exclude_mac": ["52:54:00:00:00:01"]}),
    service("whole", 9, {"destination": ["192.0.2.128/25", "2001:db8::99"]}),
    service("last", 7, {"destination": ["192.0.2.11", "2001:db8::99"], "protocol": "udp", "ports": [5060]}),
]
OTHERS = [
    service("range", 9, {"destination": EVERYWHERE, "protocol": "udp", "ports": ["10000:19999"]}),
    service("near", 5, {"destination": EVERYWHERE, "protocol": "udp", "in_interface": "eth0"}),
    service("web", 80, {"destination": EVERYWHERE, "protocol": ["udp"], "ports": [80, 5060]}),
]
WITNESS = """
table FAMILY witness {
    set seen { type ADDRESS . inet_service . mark; flags dynamic; }
    chain input { type filter hook input priority 0; add @seen { FAMILY daddr . udp dport . meta mark }; }
}
"""

Marks = dict[tuple[str, int], set[int]]


# -- helpers ------------------------------------------------------------------------------------------------------


def mark(router: Router, services: list[dict[str, Any]], marking: str, check: bool = False) -> Outcome:
    """The marks of the services by one tool, without IPVS; what else is ours goes."""
    declared = replace(virtual_services(services), marking=marking)

    def target(current: RouterState) -> RouterState:
        return marks_target(current, declared, purge=True)

    with patch.dict(os.environ, PATH=router.path), Machine(mark_chains(), ipvs=False, nftables=True) as machine:
        return converge(machine, target, check, 30)


def settled(router: Router, services: list[dict[str, Any]], marking: str) -> Outcome:
    """Check, run, check, run."""
    foretold, done = (mark(router, services, marking, check) for check in (True, False))
    assert foretold == done
    assert [list(mark(router, services, marking, check).operations) for check in (True, False)] == [[], []]
    return done


def own_rules(router: Router) -> list[list[str]]:
    """What iptables has of ours."""
    snapshot = router.snapshot()
    return [snapshot.own_rules(family) for family in FAMILIES]


def own_tables(router: Router) -> dict[str, Any]:
    """Our tables as nft lists them, without what only tells when something was made."""
    return {family: comparable(found) for family, found in listings(router).items()}


def listings(router: Router) -> dict[str, Any]:
    asked = {family: router.attempt("nft", "-j", "list", "table", family, "lvs-mark") for family in ("ip", "ip6")}
    return {family: json.loads(done.stdout) for family, done in asked.items() if done.returncode == 0}


def comparable(listing: dict[str, Any]) -> list[Any]:
    """The objects without handles, and elements in one order."""
    found = []
    for item in listing["nftables"]:
        ((kind, value),) = item.items()
        value = {key: inner for key, inner in value.items() if key != "handle"}
        if "elem" in value:
            value["elem"] = sorted(value["elem"], key=json.dumps)
        found += [(kind, value)] if kind != "metainfo" else []
    return sorted(found, key=json.dumps)


@pytest.fixture
def watched(router: Router) -> Router:
    """A router that owns the addresses and writes down which packets came in with which mark."""
    for vip in VIPS:
        router.tool("ip", "address", "add", vip, "dev", "lo")
    for family, address in (("ip", "ipv4_addr"), ("ip6", "ipv6_addr")):
        router.tool("nft", "-f", "-", stdin=WITNESS.replace("FAMILY", family).replace("ADDRESS", address))
    return router


def send(source: str) -> None:
    """One datagram to every address and port, from one address where the family is the same."""
    for vip in VIPS:
        family = socket.AF_INET6 if ":" in vip else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as sender:
            if family == socket.AF_INET:
                sender.bind((source, 0))
            for port in PORTS:
                sender.sendto(b"", (vip, port))


def seen(router: Router) -> Marks:
    """The marks that packets had, by address and port; then all is forgotten."""
    found: Marks = {}
    for family in ("ip", "ip6"):
        listed = json.loads(router.tool("nft", "-j", "list", "set", family, "witness", "seen"))
        for item in listed["nftables"][1]["set"].get("elem", []):
            address, port, given = item["concat"]
            found.setdefault((address, port), set()).add(given)
        router.tool("nft", "flush", "set", family, "witness", "seen")
    return found


def marks_of_packets(router: Router) -> list[Marks]:
    found = []
    for source in ("192.0.2.10", "192.0.2.11"):
        send(source)
        found.append(seen(router))
    return found


# -- tests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("services", [SERVICES, SERVICES[:0:-1], OTHERS], ids=["in order", "reversed", "others"])
def test_packets_get_the_same_marks_as_by_iptables(watched: Router, services: list[dict[str, Any]]) -> None:
    """For every address and port, whatever overlaps; and each tool leaves nothing of itself to the other."""
    settled(watched, services, IPTABLES)
    by_iptables = marks_of_packets(watched)
    assert len({mark for marks in by_iptables for found in marks.values() for mark in found}) >= 3
    there = own_rules(watched)
    settled(watched, services, NFTABLES)
    assert own_rules(watched) == [[], []]
    assert marks_of_packets(watched) == by_iptables
    settled(watched, services, IPTABLES)
    assert (own_tables(watched), own_rules(watched)) == ({}, there)
    assert marks_of_packets(watched) == by_iptables


def test_a_table_is_what_the_fake_one_says(router: Router) -> None:
    """From one declaration to the next, nft's own listing and the fake's are the same."""
    kernel = FakeKernel()
    for services in (SERVICES, OTHERS, SERVICES[::-1], SERVICES[:3], OTHERS, []):
        settled(router, services, NFTABLES)
        with kernel.running(), Machine(mark_chains(), ipvs=False, nftables=True) as machine:
            declared = replace(virtual_services(services), marking=NFTABLES)
            converge(machine, lambda state, wanted=declared: marks_target(state, wanted, True), False, 30)
        fake = {family: comparable(kernel.nft.listing(family, table)) for family, table in kernel.nft.tables}
        assert own_tables(router) == fake


def test_no_packet_is_without_a_mark_on_the_way_from_one_to_the_other(watched: Router) -> None:
    """Nor when services change, or when hundreds of ranges go and the table is made anew."""
    always = service("always", 7, {"destination": ["192.0.2.10"], "protocol": "udp", "ports": [5060]})
    many = service("many", 8, {"destination": ["192.0.2.10"], "protocol": "udp", "ports": ports_in_ranges(150)})
    mark(watched, [always], IPTABLES)
    with sending(("192.0.2.10", 5060)) as sent:
        for marking in (NFTABLES, IPTABLES) * 5:
            for services in ([always, many], [*OTHERS, always], [always]):
                mark(watched, services, marking)
    assert sent() > 1000
    assert seen(watched)["192.0.2.10", 5060] == {7}


def ports_in_ranges(count: int) -> list[str]:
    return [f"{10000 + 10 * number}:{10005 + 10 * number}" for number in range(count)]


@contextmanager
def sending(address: tuple[str, int]) -> Iterator[Any]:
    """Datagrams as fast as they go, all the while; tells how many there were."""
    stop, counts = threading.Event(), [0]

    def send_on(sender: socket.socket) -> None:
        while not stop.is_set():
            sender.sendto(b"", address)
            counts[0] += 1

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        thread = threading.Thread(target=send_on, args=(sender,))
        thread.start()
        try:
            yield lambda: counts[0]
        finally:
            stop.set()
            thread.join()


def test_nothing_of_others_is_touched(router: Router) -> None:
    """Their rules, their tables and what they put into ours; only what is ours goes, and with it a table left empty."""
    foreign.settle_rules(router)
    router.tool("nft", "-f", "-", stdin="table ip theirs { set s { type mark; elements = { 0x1 }; }; }\n")
    before = router.snapshot()
    settled(router, SERVICES, NFTABLES)
    theirs = """
        add element ip lvs-mark exact { 203.0.113.1 . tcp . 80 comment "x" : 0x9 }
        add element ip lvs-mark ranges { 203.0.113.0/24 . udp . 1-9 : 0x9 }
        add rule ip lvs-mark conditional ip saddr 203.0.113.1 counter
        add set ip lvs-mark other { type mark; }
    """
    router.tool("nft", "-f", "-", stdin=theirs)
    for services in (OTHERS, [], SERVICES, []):
        settled(router, services, NFTABLES)
        listed = router.tool("nft", "list", "table", "ip", "lvs-mark")
        assert listed.count("203.0.113.") == 3 and "set other" in listed
    assert "lvs:" not in listed
    router.tool("nft", "delete", "table", "ip", "lvs-mark")
    assert (own_tables(router), router.snapshot()) == ({}, before)
    assert "table ip theirs" in router.tool("nft", "list", "tables")


BROKEN = {
    "rules flushed": "flush chain ip lvs-mark prerouting",
    "a rule more": "insert rule ip lvs-mark prerouting jump conditional comment \"lvs conditional\"",
    "another policy": "add chain ip lvs-mark prerouting { policy drop; }",
    "everything flushed": "flush table ip lvs-mark\nflush map ip lvs-mark exact\nflush map ip lvs-mark ranges",
    "an element more": 'add element ip lvs-mark exact { 192.0.2.10 . tcp . 9 comment "lvs:web" : 0x50 }',
    "an element in the wrong map": 'add element ip lvs-mark ranges { 203.0.113.9 . tcp . 9 comment "lvs:web" : 0x50 }',
    "another mark": 'delete element ip lvs-mark exact { 192.0.2.10 . udp . 80 }\n'
    'add element ip lvs-mark exact { 192.0.2.10 . udp . 80 comment "lvs:web" : 0x51 }',
    "a rule of ours more": 'add rule ip lvs-mark conditional ip saddr 192.0.2.1 meta mark set 5 comment "lvs:near"',
    "a rule of ours first": 'insert rule ip lvs-mark conditional ip ttl 3 meta mark set 5 comment "lvs:near"',
    "no conditional rules": "flush chain ip lvs-mark conditional",
    "nothing that was declared": "flush chain ip lvs-mark declared",
    "a dormant table": "add table ip lvs-mark { flags dormant; }",
    "another priority": "flush chain ip lvs-mark prerouting\ndelete chain ip lvs-mark prerouting\n"
    "add chain ip lvs-mark prerouting { type filter hook prerouting priority -100; }",
    "a source as a range": "add rule ip lvs-mark conditional ip saddr 10.0.0.1-10.0.0.9 meta l4proto tcp "
    'meta mark set 5 comment "lvs:near"',
    "interfaces as a set": "add rule ip lvs-mark conditional iifname { eth0, eth1 } meta l4proto tcp "
    'meta mark set 5 comment "lvs:near"',
    "a source twice": "add rule ip lvs-mark conditional ip saddr 10.0.0.0/8 ip saddr 192.0.2.11 meta l4proto udp "
    'meta mark set 6 comment "lvs:from"',
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_what_somebody_changed_is_repaired(router: Router, what: str) -> None:
    mark(router, SERVICES, NFTABLES)
    there = own_tables(router)
    router.tool("nft", "-f", "-", stdin=f"{BROKEN[what]}\n")
    assert own_tables(router) != there
    assert settled(router, SERVICES, NFTABLES).operations
    assert own_tables(router) == there


def test_a_broken_table_is_not_made_anew_over_something_of_others(router: Router) -> None:
    mark(router, SERVICES, NFTABLES)
    router.tool(
        "nft",
        "-f",
        "-",
        stdin="flush chain ip lvs-mark prerouting\ndelete chain ip lvs-mark prerouting\n"
        "add chain ip lvs-mark prerouting { type filter hook prerouting priority -100; }\n"
        "add set ip lvs-mark other { type mark; }\n",
    )
    there = own_tables(router)
    with pytest.raises(LvsError, match=r"table ip lvs-mark is not as lvs\.fleet makes it, and holds something"):
        mark(router, SERVICES, NFTABLES)
    assert own_tables(router) == there


def test_what_boot_loads_is_what_a_run_makes(router: Router) -> None:
    """Into an empty kernel, and once more over a table that is there, whatever became of it."""
    rules = virtual_services(SERVICES).rules
    lines = [
        line for family in FAMILIES for line in boot_lines(family, [rule for rule in rules if rule.family == family])
    ]
    mark(router, SERVICES, NFTABLES)
    there = own_tables(router)
    for commands in ("", "flush table ip lvs-mark", "delete table ip lvs-mark"):
        router.tool("nft", "-f", "-", stdin=f"{commands}\n")
        router.tool("nft", "-f", "-", stdin="\n".join([*lines, ""]))
        assert own_tables(router) == there
        assert not mark(router, SERVICES, NFTABLES).operations


def test_odd_values_are_listed_to_the_letter(router: Router) -> None:
    odd = [*((name, "lo") for name in ODD_NAMES), *((f"on{n}", name) for n, name in enumerate(ODD_INTERFACES))]
    traffic = {"destination": "192.0.2.10", "protocol": "tcp"}
    settled(router, [service(name, 1 + n, {**traffic, "in_interface": device}) for n, (name, device) in enumerate(odd)],
            NFTABLES)  # fmt: skip
    listed = re.findall(
        r'iifname "(.*?)" .* comment "lvs:(.*?)"', router.tool("nft", "list", "table", "ip", "lvs-mark")
    )
    assert listed == [(device.replace("+", "*"), name) for name, device in odd]


def test_without_nft_nothing_is_done(router: Router) -> None:
    """The message names the command, and what the other tool does stays as it is."""
    mark(router, SERVICES, IPTABLES)
    before = router.snapshot()
    hidden = ":".join(f for f in router.path.split(":") if not os.path.exists(f"{f}/nft"))
    with (
        patch("ansible_collections.lvs.fleet.plugins.module_utils._host._SBIN_PATH", "/nonexistent"),
        patch.object(router, "path", hidden),
        pytest.raises(LvsError, match="nft: exit status 127"),
    ):
        mark(router, SERVICES, NFTABLES)
    assert router.snapshot() == before
