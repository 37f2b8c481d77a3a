# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where packets go: clients, the router, and real servers behind it, each in a network namespace of its own."""

from __future__ import annotations

import socket
from collections.abc import Collection
from pathlib import Path

from ansible_collections.lvs.fleet.tests.integration.harness import Namespace, Router

VIRTUAL = {socket.AF_INET: "192.0.2.10", socket.AF_INET6: "2001:db8::10"}
PORTS = (80, 443)
CLIENTS = (11, 12, 13, 14)
# Each with the number of a client.
CLIENT = {socket.AF_INET: "198.51.100.{}", socket.AF_INET6: "2001:db8:c::{}"}
# Each with the number of a real server.
SERVER = {socket.AF_INET: "10.0.{}.2", socket.AF_INET6: "2001:db8:{}::2"}


class Site:
    """A client side with several addresses, the router that the test is in, and real servers that nobody runs yet."""

    def __init__(self, router: Router, servers: Collection[int] = (1, 2)) -> None:
        self.router = router
        self.client = Namespace()
        self.servers = {number: Namespace() for number in servers}
        self._wire(self.client, "client", "198.51.100", "2001:db8:c", [*CLIENTS])
        for number, namespace in self.servers.items():
            self._wire(namespace, f"server{number}", f"10.0.{number}", f"2001:db8:{number}", [2])
        for address in VIRTUAL.values():
            router.tool("ip", "addr", "add", address, "dev", "lo")
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1")

    def _wire(self, namespace: Namespace, device: str, net: str, net6: str, hosts: list[int]) -> None:
        """A cable from the router to a namespace, whose default route leads back over it."""
        here = ["link add {0} type veth peer name eth0 netns {1}", "addr add {2}.1/24 dev {0}"]
        here += ["addr add {3}::1/64 dev {0} nodad", "link set {0} up"]
        there = [f"addr add {net}.{host}/24 dev eth0" for host in hosts]
        there += [f"addr add {net6}::{host}/64 dev eth0 nodad" for host in hosts]
        there += ["link set eth0 up", f"route add default via {net}.1", f"route add default via {net6}::1"]
        self._ip(*(line.format(device, namespace.path, net, net6) for line in here))
        with namespace.inside():
            self._ip(*there)

    def answer_directly(self, *addresses: str) -> None:
        """Give the real servers these virtual addresses, and a cable to the clients for what they send from them."""
        for number, namespace in self.servers.items():
            net, net6 = f"10.1.{number}", f"2001:db8:d{number}"
            with namespace.inside():
                self._ip(
                    f"link add direct type veth peer name server{number} netns {self.client.path}",
                    f"addr add {net}.2/24 dev direct",
                    f"addr add {net6}::2/64 dev direct nodad",
                    *(f"addr add {address} dev lo" for address in addresses),
                    "link set direct up",
                )
                # Who has the address on the network of the real servers is the router alone.
                Path("/proc/sys/net/ipv4/conf/all/arp_ignore").write_text("1")
            with self.client.inside():
                self._ip(
                    f"addr add {net}.1/24 dev server{number}",
                    f"addr add {net6}::1/64 dev server{number} nodad",
                    f"link set server{number} up",
                )
            with namespace.inside():
                for family, gateway in (("inet", f"{net}.1"), ("inet6", f"{net6}::1")):
                    sources = [address for address in addresses if (":" in address) is (family == "inet6")]
                    rules = [f"rule add from {source} lookup 100" for source in sources]
                    self._ip(f"route add default via {gateway} table 100", *rules, family=family)

    def _ip(self, *lines: str, family: str = "") -> None:
        """Commands of ip, which knows the family of most by their addresses."""
        batch = "".join(f"{line}\n" for line in lines)
        self.router.tool("ip", *(["-f", family] if family else []), "-batch", "-", stdin=batch)

    def close(self) -> None:
        for closing in (*self.servers.values(), self.client):
            closing.close()
