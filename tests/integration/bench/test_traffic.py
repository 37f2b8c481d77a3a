# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Packets of real clients through the router to real servers."""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.lvs.fleet.plugins.module_utils import _host
from ansible_collections.lvs.fleet.tests.integration.harness import Router
from ansible_collections.lvs.fleet.tests.integration.shapes import service
from ansible_collections.lvs.fleet.tests.integration.traffic import CLIENT, CLIENTS, PORTS, SERVER, VIRTUAL, Site

SERVERS = (1, 2)


class Quiet(Site):
    """Two real servers that answer with their number on two ports.

    Nobody runs: the kernel completes connections by itself, so one process can be client and all the servers.
    """

    def __init__(self, router: Router) -> None:
        super().__init__(router, SERVERS)
        self.listeners: dict[socket.socket, int] = {}
        for number, namespace in self.servers.items():
            with namespace.inside():
                for port in PORTS:
                    listener = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
                    self.listeners[listener] = number

    def connect(self, family: int, host: int, port: int) -> tuple[socket.socket, socket.socket, int]:
        """A connection of a client to the virtual address: both its ends, and the number of the real server."""
        source = (CLIENT[family].format(host), 0)
        with self.client.inside():
            near = socket.create_connection((VIRTUAL[family], port), timeout=5, source_address=source)
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

    def receivers(self, port: int) -> dict[socket.socket, int]:
        """A socket for datagrams on each real server, with its number."""
        found = {}
        for number, namespace in self.servers.items():
            with namespace.inside():
                receiver = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
                receiver.bind(("", port))
                found[receiver] = number
        return found

    def caller(self, family: int, port: int) -> tuple[str, int]:
        """Who a client thinks has called it when the first real server did, from this port."""
        client = CLIENT[family].format(11)
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
        for listener in self.listeners:
            listener.close()
        super().close()


@pytest.fixture
def site(router: Router) -> Iterator[Quiet]:
    found = Quiet(router)
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
        real_servers=[{"address": address.format(number)} for address in SERVER.values() for number in SERVERS],
        **settings,
    )


def test_every_protocol(site: Quiet) -> None:
    """One rule without a protocol: a client meets the same server by TCP and by UDP."""
    traffic = {"destination": list(VIRTUAL.values())}
    site.router.run("lvs_service", services=[{**web(300), "traffic": [traffic]}])
    assert all("-p" not in line.split() for line in site.router.snapshot().own_rules("ipv4"))
    told = site.router.run("lvs_info")["services"]
    assert [service["traffic"] for service in told] == [[{"destination": [vip]} for vip in VIRTUAL.values()]]
    with contextlib.ExitStack() as stack:
        bound = {stack.enter_context(receiver): number for receiver, number in site.receivers(53).items()}
        for family, host in itertools.product(VIRTUAL, CLIENTS):
            number = site.serve(family, host, PORTS[0])
            with site.client.inside(), socket.socket(family, socket.SOCK_DGRAM) as sending:
                sending.bind((CLIENT[family].format(host), 0))
                sending.sendto(b"?", (VIRTUAL[family], 53))
            (there,) = select.select(bound, [], [], 5)[0]
            assert there.recv(9) == b"?" and bound[there] == number


@pytest.mark.parametrize("family", VIRTUAL, ids=lambda family: family.name)
def test_masquerade(site: Quiet, family: int) -> None:
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
        service = counted(router, family, connections)
        servers = service["real_servers"]
        assert in_pools(router, service["family"]) == servers
        assert sum(server["connections"] for server in servers) == connections
        assert all(server["connections"] and server["in_packets"] for server in servers)
        assert [server["active_connections"] for server in servers if server["active_connections"]] == [1]
    assert not router.run("lvs_service", services=[web(0)])["changed"]


def test_weight_0_keeps_persistent_clients(site: Quiet) -> None:
    """As the docs of weight say: only a setting of the kernel takes them away from a real server with weight 0."""
    router, client, new = site.router, *CLIENTS[:2]
    router.run("lvs_service", services=[web(300)])
    met = site.serve(socket.AF_INET, client, 80)
    declared = web(300)
    for server in declared["real_servers"]:
        server["weight"] = int(server["address"] != SERVER[socket.AF_INET].format(met))
    router.run("lvs_service", services=[declared])
    assert [site.serve(socket.AF_INET, client, port) for port in PORTS] == [met, met]
    assert site.serve(socket.AF_INET, new, 80) != met
    Path("/proc/sys/net/ipv4/vs/expire_quiescent_template").write_text("1")
    assert site.serve(socket.AF_INET, client, 80) != met


@pytest.mark.parametrize("family", VIRTUAL, ids=lambda family: family.name)
def test_active_ftp_without_the_helper(site: Quiet, family: int) -> None:
    """What a real server opens from its data port comes from the virtual address; what it opens otherwise does not."""
    traffic = {"destination": list(VIRTUAL.values()), "protocol": "tcp", "ports": [20, 21]}
    servers = web(300)["real_servers"]
    declared = [service("ftp", 21, traffic, persistence_timeout=300, helper="ftp", real_servers=servers)]
    declared[0]["forward_method"] = "masquerade"
    assert site.router.run("lvs_service", services=declared)["changed"]
    assert not site.router.run("lvs_service", services=declared)["changed"]
    own = SERVER[family].format(1)
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


def in_pools(router: Router, family: str) -> list[dict[str, Any]]:
    """The same numbers as the flat list has them."""
    told = [entry for entry in router.run("lvs_info")["pools"] if entry["family"] == family]
    assert {(entry["name"], entry["fwmark"]) for entry in told} == {("web", 80)}
    [first, *_rest] = router.run("lvs_info")["counters"]
    return [{key: entry[key] for key in first["real_servers"][0]} for entry in told]


def test_rates(site: Quiet, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connections between two looks, for each of the seconds between them."""
    router = site.router
    router.run("lvs_service", services=[web(0)])
    assert {entry["connections_per_second"] for entry in router.run("lvs_info")["pools"]} == {None}
    site.serve(socket.AF_INET, CLIENTS[1], PORTS[0])
    counted(router, socket.AF_INET, 1)

    def wait(seconds: float) -> float:
        if seconds:
            for port in PORTS:
                site.serve(socket.AF_INET, CLIENTS[0], port)
            counted(router, socket.AF_INET, 1 + len(PORTS))
        return seconds

    monkeypatch.setattr(_host, "wait", wait)
    told = [entry for entry in router.run("lvs_info", rate_interval=10)["pools"] if entry["family"] == "ipv4"]
    assert sum(entry["connections_per_second"] for entry in told) == pytest.approx(len(PORTS) / 10)
    assert sum(entry["in_packets_per_second"] for entry in told) >= 3 * len(PORTS) / 10


def test_counters_of_rules(site: Quiet) -> None:
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
