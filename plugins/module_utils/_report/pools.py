# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""All real servers of a router as one flat list, which needs no joining. PRIVATE to the collection. Pure."""

from __future__ import annotations

from typing import Any, Iterable, Mapping

from .._model import Pool, RealServer, RouterState, Traffic
from .report import identity, own_rules, service_records

# What the kernel counts for a real server, and what it counts at this moment.
_COUNTED = ("connections", "in_packets", "out_packets", "in_bytes", "out_bytes")
_OPEN = ("active_connections", "inactive_connections", "persistent_connections")
_RATES = ("connections", "in_packets")

Counters = Iterable[Mapping[str, Any]]


def pools(state: RouterState, counters: Counters, before: Counters = (), seconds: float = 0) -> list[dict[str, Any]]:
    """An entry for each real server of each virtual service, with the same keys in all of them.

    before: the counters as they were so many seconds ago; without them the rates are not known.
    """
    known: list[Traffic] = [*own_rules(state), *service_records(state)]
    names = {traffic.service: traffic.name for traffic in reversed(known)}
    now, then = _by_server(counters), _by_server(before)
    found = []
    for pool in state.pools.values():
        name = names.get(pool.service.id)
        whose = tuple(identity(pool.service.id).values())
        for server in pool.real_servers.values():
            counted = now.get((*whose, *server.id), {})
            rates = _rates(counted, then.get((*whose, *server.id)), seconds)
            found.append({"name": name, **_entry(pool, server), **_numbers(counted), **rates})
    return found


def _by_server(counters: Counters) -> dict[tuple[Any, ...], Mapping[str, Any]]:
    found: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for service in counters:
        keys = ("fwmark", "family") if "fwmark" in service else ("protocol", "address", "port")
        whose = tuple(service[key] for key in keys)
        for server in service["real_servers"]:
            place = (*whose, server["address"], server["port"])
            found[place] = server
    return found


def _entry(pool: Pool, server: RealServer) -> dict[str, Any]:
    key = pool.service.id
    return {
        "fwmark": key.fwmark,
        "protocol": key.protocol or None,
        "virtual_address": key.address or None,
        "virtual_port": key.port,
        "family": key.family,
        "address": server.address,
        "port": server.port,
        "weight": server.weight,
        "declared_weight": None,
        "maintenance": None,
        "forward_method": server.forward_method,
        "upper_threshold": server.upper_threshold,
        "lower_threshold": server.lower_threshold,
    }


def _numbers(counted: Mapping[str, Any]) -> dict[str, int]:
    return {key: counted.get(key, 0) for key in (*_OPEN, *_COUNTED)}


def _rates(now: Mapping[str, Any], then: Mapping[str, Any] | None, seconds: float) -> dict[str, float | None]:
    """A server that is new since the look before, or was made anew, has counted from 0 on."""
    if not seconds or not now:
        return {f"{key}_per_second": None for key in _RATES}
    grown = {key: now[key] - (then or {}).get(key, 0) for key in _RATES}
    return {f"{key}_per_second": round(max(more, 0) / seconds, 1) for key, more in grown.items()}
