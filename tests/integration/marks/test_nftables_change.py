# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Both ways of marking compared, packet by packet: at rest, and while declarations change under traffic.

The third to say what mark a packet should have is a model of a few lines here, which knows neither tool.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.lvs.fleet.plugins.filter.fleet import FilterModule
from ansible_collections.lvs.fleet.plugins.module_utils._model import IPTABLES, NFTABLES
from ansible_collections.lvs.fleet.tests.integration.harness import Router
from ansible_collections.lvs.fleet.tests.integration.marks.flow import Flow, Place
from ansible_collections.lvs.fleet.tests.integration.marks.test_nftables import mark
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
PORT_ITEMS = (53, 80, 81, 82, "80:81", "81:82", "1:80", "10000:20000", "15000:15001")
SEED = 13


def model(services: Services, place: Place) -> int:
    """The mark of the last service that sees a datagram to this place, which comes from lo."""
    found = 0
    for one in services:
        for entry in one["traffic"]:
            sees = any(ip_address(place[0]) in ip_network(network) for network in entry["destination"])
            ports = [str(item).partition(":") for item in entry.get("ports", ["0:65535"])]
            sees = sees and any(int(low) <= place[1] <= int(high or low) for low, _colon, high in ports)
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
        "protocol": choice.choice((["udp"], ["tcp", "udp"])),
    }
    if choice.random() < 0.8:
        entry["ports"] = choice.sample(PORT_ITEMS, choice.randint(1, 3))
    if choice.random() < 0.3:
        entry["in_interface"] = choice.choice(("lo", "l+", "eth0"))
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
        for _declaration in range(5):
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
                    assert set(found) == {model(services, place)}, (marking, place, found, services)
    assert packets > 1000


# -- changes that once lost marks ---------------------------------------------------------------------------------

WATCHED = "192.0.2.10"


def many(count: int, width: int) -> dict[str, Any]:
    """A service with many ranges beside the watched one."""
    ports = [f"{10000 + 10 * number}:{10000 + 10 * number + width}" for number in range(count)]
    return service("many", 8, {"destination": ["192.0.2.11"], "protocol": "udp", "ports": ports})


def web(*ports: int | str, **traffic: Any) -> dict[str, Any]:
    return service("web", 7, {"destination": [WATCHED], "protocol": "udp", "ports": list(ports), **traffic})


NEAR = web(53, "80:81", "82:90", in_interface="lo")
CHANGES: dict[str, tuple[Services, ...]] = {
    "a rebuild": ([web("80:81"), many(300, 5)], [web("80:81"), many(150, 6)]),
    "from a port to a range and back": ([web(80)], [web("80:81")], [web(80), many(200, 5)], [web("80:81")]),
    "a range grows, is split, and is one again": ([web("80:81")], [web("80:90")], [web("79:80", "82:90")]),
    "a conditional rule is added again": (
        [service("all", 6, {"destination": ["192.0.2.0/24"], "protocol": "udp"}), NEAR],
        [service("all", 6, {"destination": ["192.0.2.0/24"], "protocol": "udp"}), web(53, "80:84", in_interface="lo")],
    ),
    "from a rule to a map and back": ([web("80:81", in_interface="lo")], [web("80:81")]),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_no_change_loses_a_mark(router: Router, flow: Flow, what: str) -> None:
    places = [(WATCHED, 80)]
    mark(router, CHANGES[what][-1], NFTABLES)
    with flow.running(places):
        for _turn in range(3):
            for services in CHANGES[what]:
                mark(router, services, NFTABLES)
    (found,) = flow.marks().values()
    assert set(found) == {7}, found


@pytest.mark.parametrize("changed", [False, True], ids=["as it is", "something else there"])
def test_restoring_loses_no_mark(router: Router, flow: Flow, tmp_path: Path, changed: bool) -> None:
    """Tables that are there and what the file says are not made again."""
    services = [web("80:81"), many(300, 5)]
    (tmp_path / "marks.nft").write_text(
        FilterModule().filters()["router"](services, marking=NFTABLES)["nftables_marks"]
    )
    for name in ("ipvs.rules", "marks.v4", "marks.v6"):
        (tmp_path / name).write_text("")
    script = tmp_path / "lvs-restore"
    script.write_text(RESTORE.read_text().replace("/etc/lvs/", f"{tmp_path}/"))
    mark(router, services, NFTABLES)
    there = router.tool("nft", "-a", "list", "table", "ip", "lvs-mark")
    restore: Callable[[], Any] = lambda: router.attempt("sh", str(script))  # noqa: E731
    with flow.running([(WATCHED, 80)]):
        for _turn in range(2):
            if changed:
                mark(router, [services[0], many(200, 6)], NFTABLES)
            restore()
    assert (router.tool("nft", "-a", "list", "table", "ip", "lvs-mark") == there) is not changed
    assert not mark(router, services, NFTABLES).operations
    assert "lvs-mark-new" not in router.tool("nft", "list", "tables")
    (found,) = flow.marks().values()
    assert set(found) == {7}, found
