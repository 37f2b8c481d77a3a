# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Machines whose packets get no mark, told by packets over a cable."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from ansible_collections.lvs.fleet.plugins.module_utils._model import MARKINGS
from ansible_collections.lvs.fleet.tests.integration.harness import IPTABLES, Namespace, Router
from ansible_collections.lvs.fleet.tests.integration.marks.test_nftables import mark
from ansible_collections.lvs.fleet.tests.integration.shapes import service

ROUTERS = ["52:54:00:00:00:01", "52:54:00:00:00:0a"]
CLIENT = "52:54:00:00:00:02"
VIP = {"ipv4": "10.9.0.1", "ipv6": "2001:db8:9::1"}
TRAFFIC = {"destination": list(VIP.values()), "protocol": "udp", "ports": [53]}


@pytest.fixture
def neighbour(router: Router) -> Iterator[Namespace]:
    """A machine at the other end of a cable; the rules of the router count what comes with the mark."""
    found = Namespace()
    here = [
        f"link add eth0 type veth peer name eth0 netns {found.path}",
        "addr add 10.9.0.1/24 dev eth0",
        "addr add 2001:db8:9::1/64 dev eth0 nodad",
        "link set eth0 up",
    ]
    there = ["addr add 10.9.0.2/24 dev eth0", "addr add 2001:db8:9::2/64 dev eth0 nodad", "link set eth0 up"]
    router.tool("ip", "-batch", "-", stdin="\n".join(here))
    with found.inside():
        router.tool("ip", "-batch", "-", stdin="\n".join(there))
    for family in VIP:
        router.iptables("-A INPUT -m mark --mark 80", family)
    try:
        yield found
    finally:
        found.close()


def marked(router: Router, neighbour: Namespace, sender: str) -> dict[str, int]:
    """How many of one datagram for each family, sent from a MAC address, come with the mark."""
    for command in IPTABLES.values():
        router.tool(command, "-t", "mangle", "-Z", "INPUT")
    with neighbour.inside():
        router.tool("ip", "link", "set", "eth0", "address", sender)
        for address in VIP.values():
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            with socket.socket(family, socket.SOCK_DGRAM) as sending:
                # The router's answer that nobody listens says that the datagram has come.
                sending.connect((address, 53))
                sending.settimeout(5)
                sending.send(b"?")
                with pytest.raises(ConnectionRefusedError):
                    sending.recv(1)
    found = {}
    for family, command in IPTABLES.items():
        saved = router.tool(f"{command}-save", "-c", "-t", "mangle")
        found[family] = int(re.findall(r"^\[(\d+):\d+\] -A INPUT -m mark", saved, re.MULTILINE)[0])
    return found


@pytest.mark.parametrize("marking", MARKINGS)
def test_what_comes_from_a_router_gets_no_mark(router: Router, neighbour: Namespace, marking: str) -> None:
    each, none = dict.fromkeys(VIP, 1), dict.fromkeys(VIP, 0)
    assert [mark_all(router, neighbour, marking, **told) for told in ({}, {"exclude_mac": ROUTERS[::-1]})] == [
        [each, each, each],
        [none, none, each],
    ]


def mark_all(router: Router, neighbour: Namespace, marking: str, **told: Any) -> list[dict[str, int]]:
    """Both routers and a client send; a second run finds nothing to do."""
    services = [service("dns", 80, {**TRAFFIC, **told})]
    mark(router, services, marking)
    assert mark(router, services, marking).operations == []
    return [marked(router, neighbour, sender) for sender in (*ROUTERS, CLIENT)]
