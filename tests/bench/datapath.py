# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The data path: packets per second through a router that gives them their marks, by several ways to do so.

Everything happens on the machine's own kernel, in network namespaces that go when this process does: a client, a router
that forwards, and a sink behind it that drops. Without IPVS and without connection tracking a packet costs little
besides its mark, so the figures show differences larger than those on a router at work.
"""

from __future__ import annotations

import re
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ansible_collections.lvs.fleet.plugins.module_utils._declared.params import marks
from ansible_collections.lvs.fleet.plugins.module_utils._marks.nftables import boot_lines
from ansible_collections.lvs.fleet.plugins.module_utils._model import IPV4
from ansible_collections.lvs.fleet.tests.bench import shapes
from ansible_collections.lvs.fleet.tests.bench.facts import NEEDED
from ansible_collections.lvs.fleet.tests.bench.measure import Comparison, compared, printed, show, tool
from ansible_collections.lvs.fleet.tests.integration.conftest import VARIANTS, kernel_allows
from ansible_collections.lvs.fleet.tests.integration.harness import Namespace, Router, hide_run

SIZES = (1, 100, 1000, 4000)
REPETITIONS = 25
SECONDS = 0.1
PORTS: tuple[int | str, ...] = (80, 443)
RANGES: tuple[int | str, ...] = ("80:89", "443:452")
# A destination of no service.
STRANGER = "10.200.0.1"
# What the client hands over at a time: packets of so many bytes, which its device takes apart.
BYTES, PACKETS = 18, 60
UDP_SEGMENT = 103
UNIT = "packets per second of processor time"

# Puts the marks of so many services into the network namespace that we are in.
Marking = Callable[[], None]


def comparisons() -> Iterator[Comparison]:
    tool(NEEDED, "ethtool", "iproute2")
    yield from printed([sys.executable, "-m", __name__])


class Route:
    """Client, router and sink in a row, with so many services on the router."""

    def __init__(self, marking: Marking, services: int) -> None:
        self.client, self.router, self.sink = (Namespace() for _place in range(3))
        connect(self.client, self.router, "client", "198.51.100")
        connect(self.router, self.sink, "sink", "203.0.113")
        with self.client.inside():
            tool("ip", "route", "add", "default", "via", "198.51.100.2")
            tool("ethtool", "-K", "client0", "tx-udp-segmentation", "off")
            self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.socket.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, BYTES)
        with self.router.inside():
            tool("ip", "route", "add", "10.0.0.0/8", "via", "203.0.113.2")
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
            marking()
        self.last = shapes.address(10, max(services, 1))
        self.check_marks({self.last: services, STRANGER: 0})

    def rate(self, destination: str) -> float:
        """Packets per second of this process, in whose time the kernel leads them through all three."""
        self.socket.connect((destination, 443))
        batch = bytes(BYTES * PACKETS)
        before, sent = self.arrived(), 0
        end, begin = time.perf_counter() + SECONDS, time.process_time()
        while time.perf_counter() < end:
            self.socket.send(batch)
            sent += PACKETS
        took = time.process_time() - begin
        arrived = self.arrived() - before
        assert arrived == sent, f"{arrived} packets arrived of {sent}"
        return arrived / took

    def arrived(self) -> int:
        """How many packets the sink has seen."""
        with self.sink.inside():
            names, values = re.findall(r"^Ip: (.*)$", Path("/proc/self/net/snmp").read_text(), re.MULTILINE)
        return int(dict(zip(names.split(), values.split(), strict=True))["InReceives"])

    def check_marks(self, expected: Mapping[str, int]) -> None:
        """What is sent to a destination must have its mark behind the router's PREROUTING, and be cut into packets."""
        with self.router.inside():
            tool("nft", "add table ip check { chain c { type filter hook forward priority 0; }; }")
            for destination, mark in expected.items():
                tool("nft", f"add rule ip check c ip daddr {destination} meta mark {mark} counter")
                self.socket.sendto(bytes(BYTES * PACKETS), (destination, 443))
            counted = re.findall(r"counter packets (\d+)", tool("nft", "list table ip check"))
            tool("nft", "delete table ip check")
        assert counted == [str(PACKETS)] * len(expected), f"not every packet has its mark: {counted}"


def connect(left: Namespace, right: Namespace, name: str, network: str) -> None:
    """Two devices, NAME0 in the one and NAME1 in the other."""
    with left.inside():
        tool("ip", "link", "add", f"{name}0", "type", "veth", "peer", "name", f"{name}1", "netns", right.path)
    for number, namespace in enumerate((left, right)):
        with namespace.inside():
            tool("ip", "address", "add", f"{network}.{number + 1}/24", "dev", f"{name}{number}")
            tool("ip", "link", "set", f"{name}{number}", "up")


# -- ways to give marks -------------------------------------------------------------------------------------------


def rules(services: int, ports: tuple[int | str, ...], **conditions: str) -> list[dict[str, Any]]:
    """As iptables_mark takes them."""
    return [
        {
            "name": f"service{number}",
            "mark": number,
            "destination": [shapes.address(10, number)],
            "protocol": "udp",
            "ports": list(ports),
            **conditions,
        }
        for number in range(1, services + 1)
    ]


def mark_by_iptables(variant: str, services: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Router(variant, Path(folder)).run("iptables_mark", rules=rules(services, PORTS))


def mark_by_nftables(services: int, ports: tuple[int | str, ...], **conditions: str) -> None:
    """The table that lvs_service makes with marking: nftables."""
    declared = marks(rules(services, ports, **conditions)).rules
    tool("nft", "-f", "-", stdin="".join(f"{line}\n" for line in boot_lines(IPV4, declared)))


def routes() -> dict[str, Route]:
    """By the words of the table."""
    ways: dict[str, Callable[[int], None]] = {
        f"iptables-{variant}": partial(mark_by_iptables, variant) for variant in VARIANTS if kernel_allows(variant)
    }
    ways["map of nftables"] = partial(mark_by_nftables, ports=PORTS)
    ways["map of nftables, ranges of ports"] = partial(mark_by_nftables, ports=RANGES)
    ways["rules of nftables, with an interface"] = partial(mark_by_nftables, ports=PORTS, in_interface="client1")
    found = {
        f"{name}, {size:,} service{'s' * (size > 1)}": Route(partial(way, size), size)
        for name, way in ways.items()
        for size in SIZES
    }
    return {**found, "no marks": Route(lambda: None, 0)}


def main() -> None:
    hide_run()
    ways = routes()
    reference = next(iter(ways))
    to_last = {name: partial(route.rate, route.last) for name, route in ways.items()}
    to_none = {name: partial(route.rate, STRANGER) for name, route in ways.items()}
    for title, measured in (("packets to the last service", to_last), ("packets to no service", to_none)):
        show(compared(title, UNIT, reference, measured, REPETITIONS))


if __name__ == "__main__":
    main()
