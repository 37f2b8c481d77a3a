# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Fleets of any size: what lvs_info answers on their routers."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

NOW = "2026-11-25T09:32:07Z"
ZERO = {"in_packets": 0, "out_packets": 0, "in_bytes": 0, "out_bytes": 0}
DISK_SWAP = [{"reason": "disk swap", "by": "alice", "since": "2026-11-25T09:14:00Z", "until": "2026-11-25T09:30:00Z"}]


def server(address: str, active: int, rate: float | None, weight: int = 10, **more: Any) -> dict[str, Any]:
    return {"address": address, "active": active, "rate": rate, "weight": weight, **more}


def entry(service: dict[str, Any], one: dict[str, Any]) -> dict[str, Any]:
    """An entry of pools."""
    return {
        "name": service["name"], "fwmark": service["fwmark"], "protocol": None, "virtual_address": None,
        "virtual_port": 0, "family": "ipv6" if ":" in one["address"] else "ipv4", "address": one["address"], "port": 0,
        "weight": one["weight"], "declared_weight": one.get("declared_weight"),
        "maintenance": one.get("maintenance"), "forward_method": "direct",
        "upper_threshold": one.get("upper_threshold", 0), "lower_threshold": 0, "active_connections": one["active"],
        "inactive_connections": one["active"] // 4, "persistent_connections": one["active"] // 2,
        "connections": 1000 * one["active"], **ZERO, "connections_per_second": one["rate"],
        "in_packets_per_second": None if one["rate"] is None else 8 * one["rate"],
    }  # fmt: skip


def answer(services: Sequence[dict[str, Any]], problems: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """What lvs_info answers, as far as a status asks for it."""
    return {
        "changed": False,
        "pools": [entry(service, one) for service in services for one in service["servers"]],
        "ipvs_services": [half for service in services for half in halves(service)],
        "rules": [
            {
                "name": service["name"],
                "mark": service["fwmark"],
                "mask": 2**32 - 1,
                "destination": service["destination"],
                "protocol": [protocol],
                "ports": ports,
            }
            for service in services
            for protocol, ports in service["traffic"]
        ],
        "problems": list(problems),
    }


def halves(service: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The IPVS services of a mark: one for IPv4, and one for IPv6 if it has real servers."""
    for family in ("ipv4", "ipv6"):
        servers = [
            {"address": one["address"], "port": 0, "weight": one["weight"], "forward_method": "direct"}
            for one in service["servers"]
            if (":" in one["address"]) == (family == "ipv6")
        ]
        if servers or family == "ipv4":
            timeout = service.get("persistence_timeout", 0)
            yield {
                "fwmark": service["fwmark"], "family": family, "scheduler": service["scheduler"],
                "persistence_timeout": timeout, "real_servers": servers,
            }  # fmt: skip


def not_local(services: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    addresses = dict.fromkeys(address for service in services for address in service["destination"])
    return [{"kind": "vip_not_local", "message": "x", "address": address, "fwmark": 1} for address in addresses]


def quiet(services: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same services on a router that gets no connections."""
    copied = copy.deepcopy(list(services))
    for service in copied:
        for one in service["servers"]:
            one.update(active=0, rate=0)
    return copied


SMALL: list[dict[str, Any]] = [
    {"name": "web", "fwmark": 80, "destination": ["192.0.2.10", "2001:db8:0:10::10"], "scheduler": "wlc",
     "persistence_timeout": 300, "traffic": [("tcp", [80, 443])],
     "servers": [server("10.0.0.11", 812, 96), server("10.0.0.12", 798, 94),
                 server("10.0.0.13", 41, 0, weight=0, declared_weight=10, maintenance=DISK_SWAP),
                 server("10.0.0.14", 805, 97), server("2001:db8:1:ffff:ffff:ffff:ffff:11", 12, 2.5)]},
    {"name": "api", "fwmark": 81, "destination": ["192.0.2.11"], "scheduler": "mh", "traffic": [("tcp", [8443])],
     "servers": [server("10.0.0.21", 402, 51), server("10.0.0.13", 0, 0, weight=0, declared_weight=20,
                                                      maintenance=DISK_SWAP)]},
    {"name": "ftp", "fwmark": 21, "destination": ["192.0.2.10"], "scheduler": "wlc", "persistence_timeout": 300,
     "traffic": [("tcp", [20, 21, "10000:10100"])],
     "servers": [server("10.0.0.31", 12, 1), server("10.0.0.32", 14, 1)]},
    {"name": "dns", "fwmark": 53, "destination": ["192.0.2.12"], "scheduler": "rr",
     "traffic": [("udp", [53]), ("tcp", [53])], "servers": [server("10.0.0.41", 0, 610), server("10.0.0.42", 0, 604)]},
    {"name": "smtp", "fwmark": 25, "destination": ["192.0.2.13"], "scheduler": "wlc", "traffic": [("tcp", [25, 587])],
     "servers": [server("10.0.0.51", 100, 8, upper_threshold=100), server("10.0.0.52", 61, 7)]},
]  # fmt: skip
OVERRIDDEN = {"kind": "overridden", "message": "smtp: rule 3 of PREROUTING gives its packets another mark"}


def small() -> dict[str, dict[str, Any]]:
    """An active router and a standby with one weight that differs."""
    other = quiet(SMALL)
    other[0]["servers"][1]["weight"] = 20
    return {
        "router1": answer(SMALL, [OVERRIDDEN]),
        "router2": answer(other, not_local(SMALL)),
    }


def large(routers: int = 50, services: int = 1000, servers: int = 4) -> dict[str, dict[str, Any]]:
    """Routers that all get connections, one with other weights, one with a service less, one that is not reached."""
    declared = [
        {"name": f"service-{number:04}", "fwmark": 1000 + number,
         "destination": [f"198.18.{number // 250}.{number % 250}"], "scheduler": "wlc",
         "traffic": [("tcp", [80, 443])],
         "servers": [server(f"10.{number // 250}.{number % 250}.{place + 1}", 3 * place, (number * 7 + place) % 97)
                     for place in range(servers)]}
        for number in range(services)
    ]  # fmt: skip
    for number in (7, 8, 9):
        for one in declared[number]["servers"][: number - 6]:
            one.update(weight=0, maintenance=DISK_SWAP, declared_weight=10)
    found = {f"router{number}": answer(declared) for number in range(1, routers + 1)}
    changed = copy.deepcopy(declared)
    for service in changed[:12]:
        service["servers"][-1]["weight"] = 3
    found["router7"] = answer(changed)
    found["router31"] = answer(declared[:-1])
    found[f"router{routers}"] = {"unreachable": True, "msg": "Failed to connect to the host via ssh: timed out"}
    return found
