# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Packets of real clients through the router to real servers."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.lvs.fleet.tests.integration.harness import Namespace, Router
from ansible_collections.lvs.fleet.tests.integration.shapes import service

VIRTUAL = {socket.AF_INET: "192.0.2.10", socket.AF_INET6: "2001:db8::10"}
PORTS = (80, 443)
CLIENTS = (11, 12, 13, 14)
SERVERS = (1, 2)


class Site:
    """A client side, the router, and two real servers behind it that answer with their number on two ports.

    Nobody runs: the kernel completes connections by itself, so one process can be client and all the servers.
    """

    def __init__(self, router: Router) -> None:
        self.router = router
        self.client = Namespace()
        self.servers = {number: Namespace() for number in SERVERS}
        self.listeners: dict[socket.socket, int] = {}
        self._wire(self.client, "client", "198.51.100", "2001:db8:c", [*CLIENTS])
        for number, namespace in self.servers.items():
            self._wire(namespace, f"server{number}", f"10.0.{number}", f"2001:db8:{number}", [2])
            with namespace.inside():
                for port in PORTS:
                    listener = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
                    self.listeners[listener] = number
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
        batch = "".join(f"{line}\n" for line in here).format(device, namespace.path, net, net6)
        self.router.tool("ip", "-batch", "-", stdin=batch)
        with namespace.inside():
            self.router.tool("ip", "-batch", "-", stdin="".join(f"{line}\n" for line in there))

    def connect(self, family: int, host: int, port: int) -> tuple[socket.socket, socket.socket, int]:
        """A connection of a client to the virtual address: both its ends, and the number of the real server."""
        source = {socket.AF_INET: f"198.51.100.{host}", socket.AF_INET6: f"2001:db8:c::{host}"}[family]
        with self.client.inside():
            near = socket.create_connection((VIRTUAL[family], port), timeout=5, source_address=(source, 0))
        (listener,) = select.select(self.listeners, [], [], 5)[0]
        assert listener.getsockname()[1] == port, "the port was translated"
        far, _peer = listener.accept()
        return near, far, self.listeners[listener]

    def serve(self, family: int, host: int, port: int) -> int:
        """A whole connection; which real server it came to."""
        near, far, number = self.connect(family, host, port)
        with near, far:
            near.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert far.recv(64) == b"GET / HTTP/1.0\r\n\r\n"
            far.sendall(b"HTTP/1.0 200 OK\r\n\r\n%d" % number)
            assert near.recv(64).endswith(b"\r\n\r\n%d" % number)
        return number

    def caller(self, family: int, port: int) -> tuple[str, int]:
        """Who a client thinks has called it when the first real server did, from this port."""
        client = {socket.AF_INET: "198.51.100.11", socket.AF_INET6: "2001:db8:c::11"}[family]
        with self.client.inside():
            listener = socket.create_server((client, 0), family=family)
        with self.servers[SERVERS[0]].inside():
            # The same port again, while the connection before still lingers.
            calling = socket.socket(family)
            calling.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            calling.settimeout(5)
            calling.bind(("", port))
        with listener, calling:
            calling.connect((client, listener.getsockname()[1]))
            near, peer = listener.accept()
            near.close()
        return peer[0], peer[1]

    def close(self) -> None:
        for closing in (*self.listeners, *self.servers.values(), self.client):
            closing.close()


@pytest.fixture
def site(router: Router) -> Iterator[Site]:
    found = Site(router)
    try:
        yield found
    finally:
        found.close()


def web(timeout: int, **settings: Any) -> dict[str, Any]:
    return service(
        "web",
        80,
        {"destination": list(VIRTUAL.values()), "protocol": "tcp", "ports": list(PORTS)},
        scheduler="rr",
        persistence_timeout=timeout,
        forward_method="masquerade",
        **{"real_servers": [{"address": f"{net}2"} for net in ("10.0.1.", "10.0.2.", "2001:db8:1::", "2001:db8:2::")]},
        **settings,
    )


@pytest.mark.parametrize("family", VIRTUAL, ids=lambda family: family.name)
def test_masquerade(site: Site, family: int) -> None:
    """Two ports of one mark: with persistence a client meets the same server on both, without it meets both servers."""
    router = site.router
    router.run("lvs_service", services=[web(300)])
    met = {host: {site.serve(family, host, port) for port in PORTS} for host in CLIENTS}
    assert all(len(numbers) == 1 for numbers in met.values()), met
    assert set.union(*met.values()) == set(SERVERS)

    near, far, number = site.connect(family, CLIENTS[0], 443)
    with near, far:
        router.run("lvs_service", services=[web(0)])
        alone = [site.serve(family, CLIENTS[0], port) for port in PORTS]
        assert sorted(alone) == list(SERVERS)
        # The edit left the connection from before it alone.
        near.sendall(b"still there")
        assert far.recv(64) == b"still there"
        assert {number} == met[CLIENTS[0]]

        connections = len(CLIENTS) * len(PORTS) + 1 + len(PORTS)
        servers = counted(router, family, connections)["real_servers"]
        assert sum(server["connections"] for server in servers) == connections
        assert all(server["connections"] and server["in_packets"] for server in servers)
        assert [server["active_connections"] for server in servers if server["active_connections"]] == [1]
    assert not router.run("lvs_service", services=[web(0)])["changed"]


@pytest.mark.parametrize("family", VIRTUAL, ids=lambda family: family.name)
def test_active_ftp_without_the_helper(site: Site, family: int) -> None:
    """What a real server opens from its data port comes from the virtual address; what it opens otherwise does not."""
    traffic = {"destination": list(VIRTUAL.values()), "protocol": "tcp", "ports": [20, 21]}
    servers = web(300)["real_servers"]
    declared = [service("ftp", 21, traffic, persistence_timeout=300, helper="ftp", real_servers=servers)]
    declared[0]["forward_method"] = "masquerade"
    assert site.router.run("lvs_service", services=declared)["changed"]
    assert not site.router.run("lvs_service", services=declared)["changed"]
    own = {socket.AF_INET: "10.0.1.2", socket.AF_INET6: "2001:db8:1::2"}[family]
    assert site.caller(family, 20) == (VIRTUAL[family], 20)
    assert site.caller(family, 2021) == (own, 2021)
    assert site.router.run("lvs_info")["services"][0]["helper"] == "ftp"
    site.router.run("lvs_service", services=[])
    assert site.caller(family, 20) == (own, 20)
    for command in ("iptables-save", "ip6tables-save"):
        assert "LVS" not in site.router.tool(command)


def counted(router: Router, family: int, connections: int) -> dict[str, Any]:
    """What lvs_info tells of the service, once the kernel has brought its numbers up to date; ipvsadm agrees."""
    spoken = "ipv6" if family == socket.AF_INET6 else "ipv4"
    columns = ("connections", "in_packets", "out_packets", "in_bytes", "out_bytes")
    words = ["-f", "80"] + ["-6"] * (family == socket.AF_INET6)
    for _attempt in range(50):
        listed = router.tool("ipvsadm", "-Ln", "--stats", "--exact", *words).splitlines()
        [told] = [entry for entry in router.run("lvs_info")["counters"] if entry["family"] == spoken]
        numbers = [int(word) for word in next(line for line in listed if line.startswith("FWM")).split()[-5:]]
        if numbers == [told[column] for column in columns] and numbers[0] == connections:
            return told
        time.sleep(0.2)
    pytest.fail(f"not {connections} connections: {told}, {numbers}")


def test_counters_of_rules(site: Site) -> None:
    """An edit of some rules leaves the packet counters of the others alone, ours and those that are not ours."""
    router = site.router
    theirs = "-d 192.0.2.10/32 -p tcp -m tcp --dport 443 -j MARK --set-xmark 0x50/0xffffffff"
    router.iptables(f":LVS-MARK - [0:0]\n-A LVS-MARK {theirs}")
    before = service("old", 81, {"destination": "192.0.2.81", "protocol": "tcp"})
    after = service("new", 82, {"destination": "192.0.2.82", "protocol": "tcp"})
    router.run("lvs_service", services=[before, web(0)])
    for port in PORTS:
        site.serve(socket.AF_INET, CLIENTS[0], port)
    assert len(marked(router)) == 2
    counters = marked(router)
    assert router.run("lvs_service", services=[web(0), after])["changed"]
    assert marked(router) == counters


def marked(router: Router) -> dict[str, str]:
    """The rules of our chain that have seen packets, each with its counters."""
    lines = router.tool("iptables-save", "-c", "-t", "mangle").splitlines()
    rules = (line.partition(" -A LVS-MARK ") for line in lines)
    return {rule: counter for counter, found, rule in rules if found and counter != "[0:0]"}
