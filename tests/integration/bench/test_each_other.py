# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Two routers that are real servers of each other: a connection must not go to and fro between them."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.lvs.fleet.tests.integration.harness import Namespace, Router
from ansible_collections.lvs.fleet.tests.integration.shapes import service
from ansible_collections.lvs.fleet.tests.integration.traffic import VIRTUAL

MACS = {1: "52:54:00:00:00:01", 2: "52:54:00:00:00:02"}
# Each with the number of a machine; the client has 9.
NETWORK = {socket.AF_INET: "10.9.0.{}", socket.AF_INET6: "2001:db8:9::{}"}
CLIENT = 9


class Pair:
    """The router that the test is in and another one, with a client on the same network, which asks the first."""

    def __init__(self, router: Router) -> None:
        self.router = router
        self.other, self.client = Namespace(), Namespace()
        self.ip("link add lan type bridge", "link set lan up")
        self.join(2, self.other)
        self.join(CLIENT, self.client)
        self.ip(f"link set lan address {MACS[1]}", *self.addresses(1, "lan"))
        with self.client.inside():
            self.ip(*(f"route add {VIRTUAL[family]} via {NETWORK[family].format(1)}" for family in VIRTUAL))
        self.listeners = {number: self.listen(number) for number in MACS}

    def join(self, number: int, namespace: Namespace) -> None:
        self.ip(f"link add port{number} type veth peer name eth0 netns {namespace.path}")
        self.ip(f"link set port{number} master lan", f"link set port{number} up")
        with namespace.inside():
            address = [f"link set eth0 address {MACS[number]}"] if number in MACS else []
            self.ip(*address, "link set eth0 up", *self.addresses(number, "eth0"))

    def addresses(self, number: int, device: str) -> list[str]:
        own = [f"addr add {network.format(number)}/{24 if '.' in network else 64} dev {device}{nodad(network)}"
               for network in NETWORK.values()]  # fmt: skip
        return own + ([f"addr add {address} dev lo" for address in VIRTUAL.values()] if number in MACS else [])

    def listen(self, number: int) -> socket.socket:
        if number == 1:
            return socket.create_server(("", 80), family=socket.AF_INET6, dualstack_ipv6=True)
        with self.other.inside():
            Path("/proc/sys/net/ipv4/conf/all/rp_filter").write_text("0")
            return socket.create_server(("", 80), family=socket.AF_INET6, dualstack_ipv6=True)

    def ip(self, *lines: str) -> None:
        self.router.tool("ip", "-batch", "-", stdin="".join(f"{line}\n" for line in lines))

    def deploy(self, **told: Any) -> None:
        traffic = {"destination": list(VIRTUAL.values()), "protocol": "tcp", "ports": [80], **told}
        servers = [{"address": network.format(number)} for network in NETWORK.values() for number in MACS]
        services = [service("web", 80, traffic, scheduler="rr", real_servers=servers)]
        self.router.run("lvs_service", services=services)
        with self.other.inside():
            self.router.run("lvs_service", services=services)

    def ask(self, family: int) -> int:
        """The number of the router that a connection comes to, 0 if it comes to none."""
        with self.client.inside(), socket.socket(family) as calling:
            calling.settimeout(1)
            try:
                calling.connect((VIRTUAL[family], 80))
            except OSError:
                return 0
        found = select.select(list(self.listeners.values()), [], [], 5)[0]
        found[0].accept()[0].close()
        return next(number for number, listener in self.listeners.items() if listener is found[0])

    def close(self) -> None:
        for closing in (*self.listeners.values(), self.other, self.client):
            closing.close()


def nodad(network: str) -> str:
    return " nodad" if ":" in network else ""


@pytest.fixture
def pair(router: Router) -> Iterator[Pair]:
    found = Pair(router)
    try:
        yield found
    finally:
        found.close()


def test_a_router_does_not_balance_what_the_other_one_has_balanced(pair: Pair) -> None:
    pair.deploy()
    for family in VIRTUAL:
        assert 0 in [pair.ask(family) for _turn in range(4)]
    pair.deploy(exclude_mac=list(MACS.values()))
    for family in VIRTUAL:
        assert sorted(pair.ask(family) for _turn in range(6)) == [1, 1, 1, 2, 2, 2]
