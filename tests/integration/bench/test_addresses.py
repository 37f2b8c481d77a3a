# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Services by address beside those by mark, on one address, with packets of real clients through the router."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from ansible_collections.lvs.fleet.tests.integration.harness import Router
from ansible_collections.lvs.fleet.tests.integration.shapes import service
from ansible_collections.lvs.fleet.tests.integration.traffic import CLIENT, CLIENTS, SERVER, VIRTUAL, Site

SERVERS = (1, 2)
# What real servers listen on: the port of the mark, that by address, and the one that it is translated to.
BY_MARK, BY_ADDRESS, TRANSLATED = 80, 25, 2525
TUNNELS = {
    socket.AF_INET: "link add tunnel type ipip local {}",
    socket.AF_INET6: "link add tunnel6 type ip6tnl local {}",
}
Ends = tuple[socket.socket, socket.socket, int, int]


class Quiet(Site):
    """Two real servers with the virtual addresses, for every forwarding method; the kernel completes connections."""

    def __init__(self, router: Router) -> None:
        super().__init__(router, SERVERS)
        self.answer_directly(*VIRTUAL.values())
        self.listeners: dict[socket.socket, int] = {}
        for number, namespace in self.servers.items():
            with namespace.inside():
                for family, words in TUNNELS.items():
                    device = words.split()[2]
                    router.tool("ip", *words.format(SERVER[family].format(number)).split())
                    router.tool("ip", "link", "set", device, "up")
                router.tool("sysctl", "-qw", "net.ipv4.conf.tunnel.rp_filter=0", "net.ipv4.conf.all.rp_filter=0")
                for port in (BY_MARK, BY_ADDRESS, TRANSLATED):
                    listener = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
                    self.listeners[listener] = number

    def connect(self, family: int, port: int, host: int = CLIENTS[0]) -> Ends:
        """A connection to the virtual address: both ends, the number of the real server, and the port it came to."""
        with self.client.inside():
            source = (CLIENT[family].format(host), 0)
            near = socket.create_connection((VIRTUAL[family], port), timeout=5, source_address=source)
        (listener,) = select.select(self.listeners, [], [], 5)[0]
        far, _peer = listener.accept()
        return near, far, self.listeners[listener], listener.getsockname()[1]

    def met(self, family: int, port: int) -> tuple[set[int], set[int]]:
        """The real servers and the ports that several connections come to; each says something both ways."""
        numbers, ports = set(), set()
        for host in CLIENTS:
            near, far, number, there = self.connect(family, port, host)
            with near, far:
                talk(near, far)
            numbers.add(number)
            ports.add(there)
        return numbers, ports

    def is_refused(self, family: int, port: int) -> bool:
        with self.client.inside(), socket.socket(family) as calling:
            calling.settimeout(5)
            try:
                calling.connect((VIRTUAL[family], port))
            except ConnectionRefusedError:
                return True
        return False

    def close(self) -> None:
        for listener in self.listeners:
            listener.close()
        super().close()


def talk(near: socket.socket, far: socket.socket) -> None:
    near.sendall(b"HELO")
    far.settimeout(5)
    assert far.recv(64) == b"HELO"
    far.sendall(b"250 OK")
    assert near.recv(64) == b"250 OK"


@pytest.fixture
def site(router: Router) -> Iterator[Quiet]:
    found = Quiet(router)
    try:
        yield found
    finally:
        found.close()


def traffic(port: int) -> dict[str, Any]:
    return {"destination": list(VIRTUAL.values()), "protocol": "tcp", "ports": [port]}


def real_servers(**settings: Any) -> list[dict[str, Any]]:
    return [{"address": address.format(number), **settings} for address in SERVER.values() for number in SERVERS]


def web(method: str) -> dict[str, Any]:
    return service("web", 80, traffic(BY_MARK), scheduler="rr", forward_method=method, real_servers=real_servers())


def mail(method: str, port: int = 0) -> dict[str, Any]:
    servers = real_servers(**({"port": port} if port else {}))
    settings = {"scheduler": "rr", "forward_method": method, "real_servers": servers}
    return {"name": "mail", "traffic": [traffic(BY_ADDRESS)], **settings}


@pytest.mark.parametrize("method, port", [("masquerade", TRANSLATED), ("direct", 0), ("tunnel", 0)])
def test_check_run_check_run(router: Router, method: str, port: int) -> None:
    """Each step against the words of ipvsadm; from one to several addresses and away."""
    router.converge("lvs_service", services=[mail(method, port)])
    vip, vip6 = VIRTUAL.values()
    heads = {" ".join(line.split()[:3]) for line in router.converged.services()}
    assert heads == {f"-{letter} -t {end}:25" for letter in "Aa" for end in (vip, f"[{vip6}]")}
    router.converge("lvs_service", services=[{**mail(method), "traffic": [traffic(BY_ADDRESS), traffic(587)]}])
    router.converge("lvs_service", services=[{"name": "mail"}], state="absent")
    assert router.converged.services() == router.converged.own_rules("ipv4") == []


WAYS = [("masquerade", 0), ("masquerade", TRANSLATED), ("direct", 0), ("tunnel", 0)]


@pytest.mark.parametrize("method, port", WAYS)
def test_beside_a_service_by_mark(site: Quiet, method: str, port: int) -> None:
    """Each forwarding method and family, the port translated or not; then only one of the two goes."""
    router = site.router
    assert router.run("lvs_service", services=[web(method), mail(method, port)])["changed"]
    for family in VIRTUAL:
        assert site.met(family, BY_MARK) == (set(SERVERS), {BY_MARK})
        assert site.met(family, BY_ADDRESS) == (set(SERVERS), {port or BY_ADDRESS})
    told = router.run("lvs_info")
    assert [one["name"] for one in told["services"]] == ["web", "mail"] and told["problems"] == []
    assert not router.run("lvs_service", services=told["services"])["changed"]
    assert router.run("lvs_service", services=[web(method)])["changed"]
    for family in VIRTUAL:
        assert site.met(family, BY_MARK) == (set(SERVERS), {BY_MARK})
        assert site.is_refused(family, BY_ADDRESS)
    assert router.run("lvs_service", services=[{"name": "web"}], state="absent")["changed"]
    left = router.snapshot()
    assert left.services() == left.own_rules("ipv4") == left.own_rules("ipv6") == []


def test_the_kernel_prefers_the_mark(site: Quiet) -> None:
    """Of a service by mark and one by address for the same packets; lvs_info says so."""
    router = site.router
    marked = {**web("masquerade"), "traffic": [traffic(BY_ADDRESS)], "real_servers": real_servers()[::2]}
    router.run("lvs_service", services=[marked, mail("masquerade", TRANSLATED)])
    for family in VIRTUAL:
        assert site.met(family, BY_ADDRESS) == ({1}, {BY_ADDRESS})
    assert {one["kind"] for one in router.run("lvs_info")["problems"]} == {"hidden"}
    router.run("lvs_service", services=[mail("masquerade", TRANSLATED)])
    for family in VIRTUAL:
        assert site.met(family, BY_ADDRESS) == (set(SERVERS), {TRANSLATED})


@pytest.mark.parametrize("family", VIRTUAL, ids=lambda family: family.name)
def test_every_port_of_an_address(site: Quiet, family: int) -> None:
    """Port 0 with persistence: a client is on one real server with all its ports, but for a port of another service."""
    router = site.router
    every = {"destination": list(VIRTUAL.values()), "protocol": "tcp"}
    settings = {"persistence_timeout": 300, "forward_method": "masquerade", "real_servers": real_servers()}
    router.run("lvs_service", services=[{"name": "all", "traffic": [every], **settings}, mail("masquerade", 2525)])
    for host in CLIENTS:
        near, far, number, port = site.connect(family, BY_MARK, host)
        near2, far2, number2, port2 = site.connect(family, TRANSLATED, host)
        with near, far, near2, far2:
            assert (number, port, port2) == (number2, BY_MARK, TRANSLATED)
    assert site.met(family, BY_ADDRESS) == (set(SERVERS), {TRANSLATED})
    assert not router.run("lvs_service", services=router.run("lvs_info")["services"])["changed"]


def test_from_address_to_mark_and_back(site: Quiet) -> None:
    """No client is refused on the way, and nothing is left of what was there before.

    A connection of the service that goes hangs: the kernel keeps its entry, and drops its packets. It goes on when the
    service is there again with the same real server.
    """
    router, family = site.router, socket.AF_INET
    by_mark = {**mail("masquerade"), "fwmark": 25}
    router.run("lvs_service", services=[mail("masquerade")])
    near, far, _number, _port = site.connect(family, BY_ADDRESS)
    for declared, words in ((by_mark, "-f"), (mail("masquerade"), "-t")):
        assert router.run("lvs_service", services=[declared])["changed"]
        assert {line.split()[1] for line in router.snapshot().services()} == {words}
        assert site.met(family, BY_ADDRESS) == (set(SERVERS), {BY_ADDRESS})
        assert router.run("lvs_info")["problems"] == []
        assert not router.run("lvs_service", services=router.run("lvs_info")["services"])["changed"]
    with near, far:
        talk(near, far)
    router.run("lvs_service", services=[])
    assert router.snapshot().services() == []
    assert "LVS" not in router.tool("iptables-save")


def test_made_by_hand(site: Quiet) -> None:
    """A director's table becomes declared without a difference to ipvsadm, under an open connection."""
    router, family = site.router, socket.AF_INET
    vip, vip6, (first, second) = *VIRTUAL.values(), (SERVER[family].format(number) for number in SERVERS)
    first6 = SERVER[socket.AF_INET6].format(1)
    router.ipvsadm(f"""
        -A -t {vip}:25 -s rr
        -a -t {vip}:25 -r {first}:2525 -m -w 1
        -a -t {vip}:25 -r {second}:25 -m -w 2
        -A -t [{vip6}]:25 -s wlc -p 300 -M 64
        -a -t [{vip6}]:25 -r [{first6}]:25 -g -w 1
        -A -u {vip}:53 -s rr -o
        -a -u {vip}:53 -r {second}:53 -i -w 1
        -A -t {vip}:0 -s wlc -p 60
        -a -t {vip}:0 -r {second}:0 -g -w 1
        -A -f 80 -s rr
        -a -f 80 -r {first}:0 -m -w 1
        -A -t {vip}:8080 -s rr
        -a -t {vip}:8080 -r {first}:0 -m -w 1""")
    router.iptables(f"-A PREROUTING -d {vip} -p tcp -m multiport --dports 80,443 -j MARK --set-mark 80")
    near, far, _number, port = site.connect(family, BY_ADDRESS)
    before = router.snapshot().services()
    told = router.run("lvs_info")
    why = f"service[0] (tcp-{vip}-8080).real_servers[0].port: 0 is not a port (1-65535)"
    assert told["not_adoptable"] == [f"tcp {vip}:8080: {why}"]
    declared = [*told["adoptable"]["before"], *told["services"], *told["adoptable"]["behind"]]
    done = router.run("lvs_service", services=declared, adopt=True)
    assert done["changed"] and not router.run("lvs_service", services=declared, adopt=True)["changed"]
    assert router.snapshot().services() == before
    assert not [line for line in done["operations"] if line.startswith("ipvsadm")]
    with near, far:
        talk(near, far)
    assert port in (2525, 25)
    told = router.run("lvs_info")
    assert len(told["services"]) == 5 and told["adoptable"] == {"before": [], "behind": []}
    # What was not declared is somebody else's, and stays.
    router.run("lvs_service", services=[])
    assert router.snapshot().services() == [line for line in before if f"{vip}:8080" in line]
