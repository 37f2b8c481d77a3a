# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Both ways of marking compared, packet by packet: at rest, and while declarations change under traffic.
DECLARATIONS says how many of them, and SEED with which sequence to begin.

The third to say what mark a packet should have is a model of a few lines here, which knows neither tool.
"""

from __future__ import annotations

import os
import random
import socket
import struct
from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.lvs.fleet.plugins.filter.fleet import FilterModule
from ansible_collections.lvs.fleet.plugins.module_utils._model import IPTABLES, NFTABLES
from ansible_collections.lvs.fleet.tests.integration.harness import Router
from ansible_collections.lvs.fleet.tests.integration.marks.flow import Flow, Place
from ansible_collections.lvs.fleet.tests.integration.marks.test_nftables import mark, own_tables
from ansible_collections.lvs.fleet.tests.integration.shapes import service

Services = list[dict[str, Any]]

RESTORE = Path(__file__).parents[3] / "roles/lvs_router/files/lvs-restore"
ADDRESSES = ("192.0.2.10", "192.0.2.11", "192.0.2.130", "2001:db8::10")
PORTS = (53, 80, 81, 82, 15000)
PLACES: tuple[Place, ...] = tuple((address, port) for address in ADDRESSES for port in PORTS)
DESTINATIONS = (
    "192.0.2.10", "192.0.2.11", "192.0.2.0/24", "192.0.2.0/25", "192.0.2.10/31", "0.0.0.0/0",
    "2001:db8::10", "2001:db8::/32", "::/0", "::ffff:c000:20a", "::1",
)  # fmt: skip
EVERYWHERE = ("0.0.0.0/0", "::/0")
SOURCES = (["192.0.2.10/31", "2001:db8::/32"], ["192.0.2.0/24", "::/0"], ["192.0.2.11", "192.0.2.128/25", "::1"])
PORT_ITEMS = (53, 80, 81, 82, "80:81", "81:82", "1:80", "10000:20000", "15000:15001")
SEED = int(os.environ.get("SEED") or 13)
DECLARATIONS = int(os.environ.get("DECLARATIONS") or 6)


def model(services: Services, place: Place) -> int:
    """The mark of the last service that sees a datagram to this place, which comes from lo."""
    found = 0
    for one in services:
        for entry in one["traffic"]:
            sees = any(ip_address(place[0]) in ip_network(network) for network in entry["destination"])
            ports = [str(item).partition(":") for item in entry.get("ports", ["0:65535"])]
            sees = sees and any(int(low) <= place[1] <= int(high or low) for low, _colon, high in ports)
            # What comes from lo to an address of its own comes from this address.
            sees = sees and any(
                ip_address(place[0]) in ip_network(network) for network in entry.get("source", EVERYWHERE)
            )
            if sees and "udp" in entry["protocol"] and entry.get("in_interface", "lo") in ("lo", "l+"):
                found = one["fwmark"]
    return found


def any_services(choice: random.Random) -> Services:
    """Services that overlap in many ways."""
    return [
        service(f"s{number}", number, *(any_traffic(choice) for _entry in range(choice.randint(1, 2))))
        for number in range(1, choice.randint(2, 6))
    ]


def any_traffic(choice: random.Random) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "destination": choice.sample(DESTINATIONS, choice.randint(1, 3)),
        "protocol": choice.choice((["udp"], ["tcp", "udp"], ["sctp", "udp"], ["tcp"])),
    }
    if choice.random() < 0.8:
        entry["ports"] = choice.sample(PORT_ITEMS, choice.randint(1, 3))
    if choice.random() < 0.3:
        entry["in_interface"] = choice.choice(("lo", "l+", "eth0"))
    if choice.random() < 0.3:
        entry["source"] = choice.choice(SOURCES)
    return entry


@pytest.fixture
def flow(router: Router) -> Flow:
    for address in ADDRESSES:
        router.tool("ip", "address", "add", address, "dev", "lo")
    return Flow(router)


def test_both_ways_of_marking_agree_at_rest_and_under_change(router: Router, flow: Flow) -> None:
    """At rest each packet has the mark of the model; during a change by nftables that from before or that to come."""
    choice = random.Random(SEED)
    before: Services = []
    packets = 0
    with flow.running(PLACES):
        for _declaration in range(DECLARATIONS):
            services = any_services(choice)
            flow.marks()
            mark(router, services, NFTABLES)
            flow.wait(PLACES)
            for place, found in flow.marks().items():
                packets += sum(found.values())
                assert set(found) <= {model(before, place), model(services, place)}, (place, found, before, services)
            before = services
            for marking in (NFTABLES, IPTABLES, NFTABLES):
                mark(router, services, marking)
                flow.marks()
                flow.wait(PLACES)
                for place, found in flow.marks().items():
                    packets += sum(found.values())
                    assert set(found) == {model(services, place)}, (marking, place, found, services)
    print(f"{packets} packets, {DECLARATIONS} declarations from {SEED} on")
    assert packets > 1000


# -- changes that once lost marks ---------------------------------------------------------------------------------

WATCHED = "192.0.2.10"
# How often a gap that is made has to be met, within how many turns at the most; how many turns then follow without one.
SEEN, MOST_TURNS, TURNS = 2, 200, 6


def many(count: int, width: int) -> dict[str, Any]:
    """A service with many ranges beside the watched one."""
    ports = [f"{10000 + 10 * number}:{10000 + 10 * number + width}" for number in range(count)]
    return service("many", 8, {"destination": ["192.0.2.11"], "protocol": "udp", "ports": ports})


def beside(mark_: int) -> dict[str, Any]:
    """A service whose 300 entries change as well: so long the kernel is busy between rules and maps."""
    ports = list(range(20000, 20600, 2))
    return service("beside", mark_, {"destination": ["192.0.2.130"], "protocol": "udp", "ports": ports})


def web(*ports: int | str, **traffic: Any) -> dict[str, Any]:
    return service("web", 7, {"destination": [WATCHED], "protocol": "udp", "ports": list(ports), **traffic})


ALL = service("all", 6, {"destination": ["192.0.2.0/24"], "protocol": "udp"})
# Those that lose marks if what a run hands to nft for each of them is one transaction.
LOSING: dict[str, tuple[Services, ...]] = {
    "a rebuild": ([web("80:81"), many(120, 5), beside(9)], [web("80:81"), many(120, 6), beside(10)]),
    "from a port to a range and back": ([web(80), beside(9)], [web("80:81"), beside(10)]),
}
CHANGES: dict[str, tuple[Services, ...]] = {
    "a range grows, is split, and is one again": ([web("80:81")], [web("80:90")], [web("79:80", "82:90")]),
    "from a rule to a map and back": ([web("80:81", in_interface="lo")], [web("80:81")]),
}
CONDITIONAL = [[ALL, web(53, ports, in_interface="lo")] for ports in ("80:81", "80:84")]
# The rules as an earlier version wrote them, with a set of ports.
WITH_SETS = [
    "flush chain ip lvs-mark conditional\nadd rule ip lvs-mark conditional "
    f'iifname "lo" ip daddr {WATCHED} udp dport {{ 53, {ports} }} meta mark set 7 comment "lvs:web"\n'
    for ports in ("80-81", "80-84")
]


class Turns:
    """Changes that are made again and again while packets to the watched address are under way."""

    def __init__(self, router: Router, flow: Flow) -> None:
        self._router, self._flow = router, flow

    def lossy(self, transactions: Sequence[str]) -> int:
        """Make them until packets without the mark 7 were met in some of the turns; how many turns that took."""
        met = 0
        for turn in range(1, MOST_TURNS + 1):
            self._load(transactions)
            met += any(set(found) != {7} for found in self._flow.marks().values())
            if met == SEEN:
                return turn
        raise AssertionError(f"a gap that is there was met {met} times in {MOST_TURNS} turns")

    def lossless(self, transactions: Sequence[str], turns: int) -> None:
        for _turn in range(turns):
            self._load(transactions)
        self.has_lost_none()

    def has_lost_none(self) -> None:
        self._flow.wait([(WATCHED, 80)])
        (found,) = self._flow.marks().values()
        assert set(found) == {7}, found
        self._flow.is_fast()

    def _load(self, transactions: Sequence[str]) -> None:
        for transaction in transactions:
            self._router.tool("nft", "-f", "-", stdin=transaction)


def handed_over(router: Router, folder: Path, changes: Sequence[Services]) -> list[list[str]]:
    """What the runs from each of the declarations to the next one hand to nft, as one list of transactions each."""
    mark(router, changes[-1], NFTABLES)
    router.shadow("nft", f'[ "$1" = -f ] || exec $real "$@"\ntee {folder}/$(ls {folder} | wc -l) | $real -f -')
    found = []
    for services in changes:
        mark(router, services, NFTABLES)
        files = sorted(folder.iterdir(), key=lambda path: int(path.name))
        found.append([path.read_text() for path in files])
        for path in files:
            path.unlink()
    router.unshadow()
    return found


@pytest.mark.parametrize("variant", ["nft"])
@pytest.mark.parametrize("what", LOSING)
def test_transactions_lose_no_mark_where_one_would(router: Router, flow: Flow, tmp_path: Path, what: str) -> None:
    """What a run hands to nft, as it is and in one: so the sender was there when there was something to see."""
    folder = tmp_path / "transactions"
    folder.mkdir()
    runs = handed_over(router, folder, LOSING[what])
    turns = Turns(router, flow)
    with flow.running([(WATCHED, 80)]):
        met = turns.lossy(["".join(transactions) for transactions in runs])
        turns.lossless([transaction for transactions in runs for transaction in transactions], 2 * met + TURNS)


@pytest.mark.parametrize("variant", ["nft"])
@pytest.mark.parametrize("what", CHANGES)
def test_no_change_loses_a_mark(router: Router, flow: Flow, what: str) -> None:
    mark(router, CHANGES[what][-1], NFTABLES)
    turns = Turns(router, flow)
    with flow.running([(WATCHED, 80)]):
        for _turn in range(TURNS):
            for services in CHANGES[what]:
                mark(router, services, NFTABLES)
        turns.has_lost_none()


@pytest.mark.parametrize("variant", ["nft"])
def test_a_conditional_rule_loses_no_mark_where_one_with_a_set_of_ports_would(router: Router, flow: Flow) -> None:
    """And a run takes over what an earlier version wrote."""
    mark(router, CONDITIONAL[-1], NFTABLES)
    there = own_tables(router)
    turns = Turns(router, flow)
    with flow.running([(WATCHED, 80)]):
        met = turns.lossy(WITH_SETS)
        assert mark(router, CONDITIONAL[-1], NFTABLES).operations
        assert own_tables(router) == there
        for _turn in range(met + TURNS):
            for services in CONDITIONAL:
                mark(router, services, NFTABLES)
        turns.has_lost_none()


@pytest.mark.parametrize("variant", ["nft"])
@pytest.mark.parametrize("changed", [False, True], ids=["as it is", "something else there"])
def test_restoring_loses_no_mark(router: Router, flow: Flow, tmp_path: Path, changed: bool) -> None:
    """Tables that are there and what the file says are not made again; what the file alone would lose was met."""
    services = [web("80:81"), many(120, 5)]
    tables = FilterModule().filters()["router"](services, marking=NFTABLES)["nftables_marks"]
    (tmp_path / "marks.nft").write_text(tables)
    for name in ("ipvs.rules", "marks.v4", "marks.v6"):
        (tmp_path / name).write_text("")
    script = tmp_path / "lvs-restore"
    script.write_text(RESTORE.read_text().replace("/etc/lvs/", f"{tmp_path}/"))
    mark(router, services, NFTABLES)
    turns = Turns(router, flow)
    with flow.running([(WATCHED, 80)]):
        met = turns.lossy([tables])
        there = router.tool("nft", "-a", "list", "table", "ip", "lvs-mark")
        for _turn in range(met):
            if changed:
                router.tool("nft", "add element ip lvs-mark exact { 192.0.2.11 . udp . 7 : 0x9 }")
            router.attempt("sh", str(script))
        turns.has_lost_none()
    assert (router.tool("nft", "-a", "list", "table", "ip", "lvs-mark") == there) is not changed
    assert not mark(router, services, NFTABLES).operations
    assert "lvs-mark-new" not in router.tool("nft", "list", "tables")


# -- beside others, and in pieces ---------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["nft"])
def test_an_element_of_somebody_else_on_a_key_stays_and_the_service_has_its_packets(router: Router, flow: Flow) -> None:
    """In either map; and when it is gone the service is in the map like any other."""
    other = {**web(53), "name": "other", "fwmark": 6}
    mark(router, [other], NFTABLES)
    theirs = [f"exact {{ {WATCHED} . udp . 80 : 0x9 }}", f"ranges {{ {WATCHED} . udp . 70-85 : 0x9 }}"]
    for element in theirs:
        router.tool("nft", f"add element ip lvs-mark {element}")
    services = [other, web(80, "81:82")]
    assert mark(router, services, NFTABLES, check=True) == mark(router, services, NFTABLES)
    assert not mark(router, services, NFTABLES).operations
    marks_are(flow, {80: 7, 81: 7, 82: 7, 75: 9, 53: 6})
    for element in theirs:
        router.tool("nft", f"delete element ip lvs-mark {element.partition(' : ')[0]} }}")
    assert mark(router, services, NFTABLES).operations
    assert "lvs:web" not in router.tool("nft", "list", "chain", "ip", "lvs-mark", "conditional")
    marks_are(flow, {80: 7, 81: 7, 82: 7, 75: 0, 53: 6})


def marks_are(flow: Flow, expected: dict[int, int]) -> None:
    places = [(WATCHED, port) for port in expected]
    with flow.running(places):
        pass
    assert {port: set(found) for (_address, port), found in flow.marks().items()} == {
        port: {wanted} for port, wanted in expected.items()
    }


@pytest.mark.parametrize("marking", [NFTABLES, IPTABLES])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["in order", "the last first"])
@pytest.mark.parametrize("traffic", [{}, {"in_interface": "lo"}], ids=["map", "rule"])
def test_a_packet_in_pieces_has_the_mark_of_its_first(
    router: Router, flow: Flow, marking: str, order: tuple[int, int], traffic: dict[str, str]
) -> None:
    """Whatever stands where a port would be in the second one: here another service's."""
    mark(router, [web("80:81", **traffic), {**web(53, **traffic), "name": "other", "fwmark": 8}], marking)
    data = struct.pack("!HH", 9, 53) * 6
    datagram = struct.pack("!HHHH", 9, 80, 32, 0) + data
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sender:
        for piece in order:
            sender.sendto(fragment(datagram, piece * 16, 16), (WATCHED, 0))
    assert flow.marks() == {(WATCHED, 80): {7: 1}}


def fragment(datagram: bytes, offset: int, length: int) -> bytes:
    """A piece of a datagram of the watched address to itself, as an IPv4 packet; the kernel writes the checksum."""
    more = offset + length < len(datagram)
    address = socket.inet_aton(WATCHED)
    header = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + length, 13, more << 13 | offset // 8, 64, 17, 0, address, address
    )
    return header + datagram[offset : offset + length]
