# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What every way has to bring about: so many services, in the words of each tool.

The product is given the services as its users write them. What the peers load, and what has to be there afterwards, is
put together here without the product's help, but for the netlink messages: they are its own, sent by somebody else.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

from ansible_collections.lvs.fleet.plugins.module_utils._declared.params import virtual_services
from ansible_collections.lvs.fleet.plugins.module_utils._ipvs import wire
from ansible_collections.lvs.fleet.plugins.module_utils._netlink.messages import NLM_F_ACK, message

REAL_SERVERS = 10
PORTS = (80, 443)
CHAIN = "LVS-MARK"


def services(count: int) -> list[dict[str, Any]]:
    """Services of two ports, each with an address and real servers of its own."""
    return [
        {
            "name": f"service{number}",
            "fwmark": number,
            "traffic": [{"destination": [address(10, number)], "protocol": "tcp", "ports": list(PORTS)}],
            "scheduler": "wlc",
            "real_servers": [{"address": server, "weight": 1} for server in servers(number)],
        }
        for number in range(1, count + 1)
    ]


def address(first: int, number: int) -> str:
    return f"{first}.{number // 40000}.{number // 200 % 200}.{number % 200 + 1}"


def servers(number: int) -> Iterator[str]:
    """The real servers of a service."""
    return (address(172, number * REAL_SERVERS + server) for server in range(REAL_SERVERS))


# -- what the peers load ------------------------------------------------------------------------------------------


def ipvsadm(count: int) -> str:
    """For ipvsadm -R."""
    lines = []
    for number in range(1, count + 1):
        lines.append(f"-A -f {number} -s wlc\n")
        lines += [f"-a -f {number} -r {server}:0 -g -w 1\n" for server in servers(number)]
    return "".join(lines)


def iptables(count: int) -> str:
    """For iptables-restore --noflush."""
    return "\n".join(["*mangle", f":{CHAIN} - [0:0]", *mark_rules(count), f"-A PREROUTING -j {CHAIN}", "COMMIT", ""])


def keepalived(count: int) -> str:
    """Services and real servers without health checkers. keepalived has no marks: something else gives them."""
    lines = []
    for number in range(1, count + 1):
        pool = "".join(f"  real_server {server} 0 {{\n    weight 1\n  }}\n" for server in servers(number))
        lines.append(f"virtual_server fwmark {number} {{\n  lb_algo wlc\n  lb_kind DR\n  protocol TCP\n{pool}}}\n")
    return "".join(lines)


def messages(count: int) -> bytes:
    """Netlink messages, one behind the other, with 0 in place of the family's number and of sequence numbers."""
    found = []
    for pool in virtual_services(services(count)).pools.values():
        found.append(_message(wire.CMD_NEW_SERVICE, wire.encode_service(pool.service)))
        service_id = wire.encode_id(pool.service.id)
        for server in pool.real_servers.values():
            found.append(_message(wire.CMD_NEW_DEST, service_id + wire.encode_real_server(server)))
    return b"".join(found)


def _message(command: int, payload: bytes) -> bytes:
    return message(0, NLM_F_ACK, 0, command, payload)


# -- what has to be there -----------------------------------------------------------------------------------------


def mark_rules(count: int) -> list[str]:
    """The rules of the chain as iptables-save prints them."""
    ports = ",".join(map(str, PORTS))
    return [
        f"-A {CHAIN} -d {address(10, number)}/32 -p tcp -m multiport --dports {ports}"
        f' -m comment --comment "lvs:service{number}" -j MARK --set-xmark {number:#x}/0xffffffff'
        for number in range(1, count + 1)
    ]


def table(count: int) -> dict[str, list[str]]:
    """Each service with its real servers, in the words of /proc/net/ip_vs: address, forwarding method and weight."""
    return {
        f"FWM {number:08X} wlc": sorted(
            f"{socket.inet_aton(server).hex().upper()}:0000 Route 1" for server in servers(number)
        )
        for number in range(1, count + 1)
    }
