# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: lvs.fleet contributors
"""The fleet's network: every address of it, and the namespaces that it lives in."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from common import CHECKOUT, LabError, run

PREFIX = f"lvs-{hashlib.sha256(str(CHECKOUT).encode()).hexdigest()[:6]}"
ROUTERS = tuple(f"router{number}" for number in range(1, 51))
SERVERS = ("server1", "server2", "server3")
LAN = "lan"

# Addresses come in pairs, IPv4 and IPv6.
LAN_NET = ("10.0.0.{}/24", "2001:db8:0:1::{}/64")
LAN_HOSTS = {
    # The tenth and all after it leave room for the real servers.
    **{router: number if number < 10 else 100 + number for number, router in enumerate(ROUTERS, start=1)},
    **{server: number for number, server in enumerate(SERVERS, start=11)},
    "controller": 200,
}
CLIENT_NET = ("198.51.100.{}/24", "2001:db8:0:2::{}/64")
CLIENT_HOSTS = range(10, 20)
GATEWAY = ("10.0.0.254", "2001:db8:0:1::fe")
CLIENT_GATEWAY = ("198.51.100.1", "2001:db8:0:2::1")
VIP_NETS = ("192.0.2.0/24", "2001:db8:0:10::/64")
DIRECT_VIPS = ("192.0.2.10", "2001:db8:0:10::10")
DIRECT_TABLE = "100"

# No waiting for duplicate address detection, and no source address filter: answers of direct routing come
# from an address that the gateway expects behind a router.
COMMON_SETTINGS = {
    "net.ipv6.conf.all.accept_dad": 0,
    "net.ipv6.conf.default.accept_dad": 0,
    "net.ipv6.conf.default.accept_ra": 0,
    "net.ipv4.conf.all.rp_filter": 0,
    "net.ipv4.conf.default.rp_filter": 0,
}
GATEWAY_SETTINGS = {
    "net.ipv4.ip_forward": 1,
    "net.ipv6.conf.all.forwarding": 1,
    "net.ipv4.conf.all.send_redirects": 0,
    "net.ipv4.conf.default.send_redirects": 0,
}
# A real server has the virtual addresses on lo, and must leave answering for them on the LAN to the routers.
SERVER_SETTINGS = {
    "net.ipv4.conf.all.arp_ignore": 1,
    "net.ipv4.conf.all.arp_announce": 2,
    "net.ipv4.conf.default.arp_ignore": 1,
    "net.ipv4.conf.default.arp_announce": 2,
    # A router with one interface sends IPv6 redirects, which nothing can keep it from; they lead past the NAT.
    "net.ipv6.conf.all.accept_redirects": 0,
    "net.ipv6.conf.default.accept_redirects": 0,
}


def lan_addresses(host: str) -> list[str]:
    """Return both LAN addresses of a host, with prefix lengths."""
    return [net.format(LAN_HOSTS[host]) for net in LAN_NET]


def bare(address: str) -> str:
    """Return an address without its prefix length."""
    return address.partition("/")[0]


def namespace(part: str) -> str:
    """Return the full name of one of the fleet's namespaces."""
    return f"{PREFIX}-{part}"


def inside(part: str, *command: str | Path) -> list[str]:
    """Return the command line that runs a command in one of the fleet's namespaces."""
    return ["ip", "netns", "exec", namespace(part), *map(str, command)]


def make_network(machines: Sequence[str], servers: Sequence[str]) -> None:
    """Make all namespaces, those of real servers included, with a tap device for each machine on the LAN's bridge."""
    _make_lan(machines)
    _attach("gateway", GATEWAY_SETTINGS)
    _ip("gateway", *_address_lines("eth0", [f"{GATEWAY[0]}/24", f"{GATEWAY[1]}/64"]))
    _make_client()
    for server in servers:
        _make_server(server)
    route_to(ROUTERS[0], servers)


def route_to(router: str, servers: Sequence[str]) -> None:
    """Lead the traffic for virtual addresses, and what these real servers send by default, to this router."""
    nexthops = [bare(address) for address in lan_addresses(router)]
    _ip("gateway", *(f"route replace {net} via {hop}" for net, hop in zip(VIP_NETS, nexthops, strict=True)))
    for server in servers:
        _ip(server, *(f"route replace default via {hop}" for hop in nexthops))


def remove_network() -> None:
    """End every process in the fleet's namespaces, whatever run they are left from, and remove the namespaces."""
    found = [line.split()[0] for line in run("ip", "netns", "list").splitlines() if line.startswith(f"{PREFIX}-")]
    _end_processes(found)
    for name in found:
        run("ip", "netns", "delete", name)


def _end_processes(namespaces: list[str]) -> None:
    # The namespaces were made for the fleet alone, so nothing in them is anybody else's.
    deadline = time.monotonic() + 20
    while pids := {int(pid) for name in namespaces for pid in run("ip", "netns", "pids", name).split()}:
        if time.monotonic() > deadline:
            raise LabError(f"processes that do not end: {sorted(pids)}")
        for pid in pids - {os.getpid()}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def _make_lan(machines: Sequence[str]) -> None:
    _make_namespace(LAN, {})
    # Nobody asks for multicast memberships here: with snooping, IPv6 neighbours would be found by luck.
    _ip(LAN, "link add lan type bridge stp_state 0 forward_delay 0 mcast_snooping 0", "link set lan up")
    _ip(LAN, *_address_lines("lan", lan_addresses("controller")))
    for name in machines:
        _ip(LAN, f"tuntap add {name} mode tap", f"link set {name} master lan up")


def _make_client() -> None:
    _make_namespace("client", {})
    _ip("gateway", f"link add outside type veth peer name eth0 netns {namespace('client')}", "link set outside up")
    _ip("gateway", *_address_lines("outside", [f"{CLIENT_GATEWAY[0]}/24", f"{CLIENT_GATEWAY[1]}/64"]))
    _ip("client", "link set eth0 up")
    _ip("client", *_address_lines("eth0", [net.format(host) for net in CLIENT_NET for host in CLIENT_HOSTS]))
    _ip("client", *(f"route add default via {gateway}" for gateway in CLIENT_GATEWAY))


def _make_server(name: str) -> None:
    _attach(name, SERVER_SETTINGS)
    _ip(name, *_address_lines("eth0", lan_addresses(name)))
    _ip(name, f"address add {DIRECT_VIPS[0]}/32 dev lo", f"address add {DIRECT_VIPS[1]}/128 dev lo nodad")
    # What the server sends as a virtual address goes straight back; the rest goes to the router, for NAT.
    _ip(name, *(f"route add default via {gateway} table {DIRECT_TABLE}" for gateway in GATEWAY))
    for family, vip in zip(("-4", "-6"), DIRECT_VIPS, strict=True):
        run("ip", "-n", namespace(name), family, "rule", "add", "from", vip, "lookup", DIRECT_TABLE)


def _attach(name: str, settings: dict[str, int]) -> None:
    """Make a namespace whose eth0 is on the LAN."""
    _make_namespace(name, settings)
    _ip(LAN, f"link add {name} type veth peer name eth0 netns {namespace(name)}", f"link set {name} master lan up")
    _ip(name, "link set eth0 up")


def _make_namespace(name: str, settings: dict[str, int]) -> None:
    run("ip", "netns", "add", namespace(name))
    assignments = [f"{key}={value}" for key, value in (COMMON_SETTINGS | settings).items()]
    run(*inside(name, "sysctl", "--quiet", "--write", *assignments))
    _ip(name, "link set lo up")


def _address_lines(device: str, addresses: list[str]) -> list[str]:
    return [f"address add {address} dev {device}" for address in addresses]


def _ip(name: str, *lines: str) -> None:
    """Have one ip process execute several commands in a namespace."""
    run("ip", "-n", namespace(name), "-batch", "-", stdin="\n".join(lines) + "\n")
