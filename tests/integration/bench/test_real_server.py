# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Real servers set up as the role does it, and packets through IPVS to them by every forwarding method."""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.lvs.fleet.plugins.filter.fleet import real_server, vip_commands
from ansible_collections.lvs.fleet.tests.integration.harness import Namespace, Router
from ansible_collections.lvs.fleet.tests.integration.shapes import service

FAMILIES = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}
# Everything is on one LAN, the virtual addresses too: whoever answers ARP for them gets the packets.
NET = {"ipv4": "10.0.0.{}", "ipv6": "2001:db8:0:1::{}"}
LENGTH = {"ipv4": 24, "ipv6": 64}
ROUTER, VIP, SERVER, CLIENT = 1, 10, 11, 100
METHODS: dict[str, dict[str, Any]] = {
    "direct": {},
    "ipip": {"forward_method": "tunnel"},
    "gre": {"forward_method": "tunnel", "tunnel_type": "gre"},
    "gre with checksums": {"forward_method": "tunnel", "tunnel_type": "gre", "tunnel_checksum": "csum"},
    "gue": {"forward_method": "tunnel", "tunnel_type": "gue", "tunnel_port": 6080},
    "gue with checksums": {
        "forward_method": "tunnel", "tunnel_type": "gue", "tunnel_port": 6080, "tunnel_checksum": "csum",
    },
    "gue with remote checksums": {
        "forward_method": "tunnel", "tunnel_type": "gue", "tunnel_port": 6080, "tunnel_checksum": "remcsum",
    },
}  # fmt: skip


def write_sysctls(settings: dict[str, int]) -> None:
    for key, value in settings.items():
        Path("/proc/sys", key).write_text(str(value))


def links(router: Router) -> Any:
    return json.loads(router.tool("ip", "-json", "address", "show"))


class Lan:
    """A client, the router and a real server on one bridge; the server listens on port 80."""

    def __init__(self, router: Router) -> None:
        self.router = router
        self.server, self.client = Namespace(), Namespace()
        router.tool("ip", "link", "add", "lan", "type", "bridge", "mcast_snooping", "0")
        router.tool("ip", "link", "set", "lan", "up")
        self._addresses("lan", ROUTER)
        for name, namespace, host in (("server", self.server, SERVER), ("client", self.client, CLIENT)):
            cable = f"link add {name} type veth peer name eth0 netns {namespace.path}\nlink set {name} master lan up\n"
            router.tool("ip", "-batch", "-", stdin=cable)
            with namespace.inside():
                router.tool("ip", "link", "set", "eth0", "up")
                self._addresses("eth0", host)
        with self.server.inside():
            # The strictest filter of sources there is.
            write_sysctls({"net/ipv4/conf/all/rp_filter": 1})
            self.listener = socket.create_server(("", 80), family=socket.AF_INET6, dualstack_ipv6=True)

    def _addresses(self, device: str, host: int) -> None:
        for family, net in NET.items():
            words = ["nodad"] if family == "ipv6" else []
            self.router.tool("ip", "address", "add", f"{net.format(host)}/{LENGTH[family]}", "dev", device, *words)

    def set_up(self, path: Path, services: list[dict[str, Any]], **settings: Any) -> dict[str, Any]:
        """Do on the server what the role does there; what it needed."""
        with self.server.inside():
            needs = real_server(services, links(self.router), **settings)
            write_sysctls(needs["sysctls"])
            self.router.run("ip_objects", path=str(path), commands=needs["commands"])
            write_sysctls(needs["device_sysctls"])
            self.router.run("iptables_mss", segments=needs["segments"])
            assert not self.router.run("ip_objects", path=str(path), commands=needs["commands"])["changed"]
        return needs

    def connect(self, family: str) -> tuple[str, str, int]:
        """Exchange some bytes with the virtual address; which ends the server saw, and the client's segments."""
        with self.client.inside():
            near = socket.create_connection((NET[family].format(VIP), 80), timeout=5)
        # Before a packet was too large for the tunnel: the router's answer to it would make the segments small as well.
        segment = near.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
        assert select.select([self.listener], [], [], 5)[0]
        far, peer = self.listener.accept()
        with near, far:
            near.sendall(b"x" * 4000)
            received = b""
            while len(received) < 4000:
                received += far.recv(4000)
            far.sendall(b"y" * 4000)
            assert near.recv(4000)[:1] == b"y"
            ends = (end.removeprefix("::ffff:") for end in (far.getsockname()[0], peer[0]))
            return (*ends, segment)

    def close(self) -> None:
        for closing in (self.listener, self.server, self.client):
            closing.close()


@pytest.fixture
def lan(router: Router) -> Iterator[Lan]:
    found = Lan(router)
    try:
        yield found
    finally:
        found.close()


def web(**method: Any) -> list[dict[str, Any]]:
    traffic = {"destination": [net.format(VIP) for net in NET.values()], "protocol": "tcp", "ports": [80]}
    servers = [{"address": net.format(SERVER), **method} for net in NET.values()]
    return [service("web", 80, traffic, real_servers=servers)]


def test_traffic(lan: Lan, tmp_path: Path) -> None:
    """From method to method, the way an inventory changes: each time the packets arrive, and nothing else is left."""
    for method, settings in METHODS.items():
        services = web(**settings)
        needs = lan.set_up(tmp_path / "record", services)
        lan.router.run("lvs_service", services=services)
        lan.router.run("ip_objects", path=str(tmp_path / "vips"), commands=vip_commands(services, "lan"))
        for family, net in NET.items():
            here, there, segment = lan.connect(family)
            assert (here, there) == (net.format(VIP), net.format(CLIENT)), f"{method}, {family}"
            assert segment <= needs["segments"].get(here, segment), f"{method}, {family}"
    with lan.server.inside():
        before = lan.router.tool("ip", "-brief", "address", "show")
        assert "lvs-" in before
        lan.router.run("ip_objects", path=str(tmp_path / "record"), commands=[])
        after = lan.router.tool("ip", "-brief", "address", "show")
        assert "lvs-" not in after and NET["ipv4"].format(VIP) not in after and NET["ipv6"].format(VIP) not in after
        assert lan.router.tool("ip", "fou", "show") == ""


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_router_is_found_by_the_virtual_address(lan: Lan, tmp_path: Path, family: str) -> None:
    """arp_ignore for IPv4; for IPv6 nothing, because the kernel does so by itself."""
    lan.set_up(tmp_path / "record", web())
    assert neighbour(lan, family) == "FAILED"
    if family == "ipv4":
        with lan.server.inside():
            write_sysctls({"net/ipv4/conf/all/arp_ignore": 0})
        assert neighbour(lan, family) == "REACHABLE"


def neighbour(lan: Lan, family: str) -> str:
    """What becomes of the client's search for the virtual address."""
    vip = NET[family].format(VIP)
    with lan.client.inside():
        lan.router.tool("ip", "neighbour", "flush", "all")
        with socket.socket(FAMILIES[family], socket.SOCK_DGRAM) as anything:
            anything.sendto(b"", (vip, 9))
        for _attempt in range(50):
            [found] = json.loads(lan.router.tool("ip", "-json", "neighbour", "show", vip))
            if found["state"] != ["INCOMPLETE"]:
                return str(found["state"][0])
            time.sleep(0.1)
    return "INCOMPLETE"
