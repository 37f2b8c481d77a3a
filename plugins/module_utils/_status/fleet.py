# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The answers of all routers as one picture of the fleet. PRIVATE to the collection. Pure.

A sync daemon gives a standby the connections of the active router. So open connections are counted only on routers that
have an address of the service, or on all if none has. New connections are counted where they were scheduled.
"""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from typing import Any, Iterable, Mapping, Sequence

from .answers import READ, Item, Router, key_of

# How many differences of one router are told.
SHOWN = 30

ACTIVE, STANDBY = "active", "standby"
_OPEN = ("active_connections", "inactive_connections", "persistent_connections")
_RATES = ("connections_per_second", "in_packets_per_second")
_KEPT = ("family", "address", "port", "weight", "declared_weight", "maintenance", "forward_method", "upper_threshold")


def fleet(routers: Sequence[Router], now: str = "", interval: int = 0) -> dict[str, Any]:
    """The whole fleet. now: the time in UTC as in 2026-12-01T09:32:07Z; interval: the seconds of the rates."""
    groups = _groups(routers)
    reference = groups[0][0] if groups else None
    ordered = [one for group in groups for one in group]
    services = _services(ordered)
    shown_routers = [_router(one, reference, groups, services) for one in routers]
    out = _out(services, now)
    return {
        "now": now,
        "rate_interval": interval,
        "totals": _totals(shown_routers, services, out),
        "routers": shown_routers,
        "groups": [[one.name for one in group] for group in groups],
        "addresses": _addresses(ordered),
        "services": services,
        "out": out,
        "problems": _problems(ordered),
    }


# -- routers ------------------------------------------------------------------------------------------------------


def _groups(routers: Iterable[Router]) -> list[list[Router]]:
    """The routers that were read, by equal tables; the largest group first."""
    found: list[list[Router]] = []
    for one in routers:
        if one.state == READ:
            equal = next((group for group in found if group[0].table == one.table), None)
            if equal is None:
                found.append([one])
            else:
                equal.append(one)
    return sorted(found, key=lambda group: -len(group))


def _router(
    one: Router, reference: Router | None, groups: Sequence[Sequence[Router]], services: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    differences = _differences(reference, one) if reference and one.state == READ else []
    own = _declared(one) - one.elsewhere
    return {
        "name": one.name,
        "state": one.state,
        "message": one.message,
        "role": "" if one.state != READ else ACTIVE if own or not one.elsewhere else STANDBY,
        "addresses": sorted(own),
        "services": len(one.services),
        "group": next((number for number, group in enumerate(groups) if one in group), None),
        "different": len(differences),
        "differences": differences[:SHOWN],
        "problems": len(one.problems),
        **{rate: _sum(entry[rate] for entry in one.pools) for rate in _RATES},
    }


def _differences(reference: Router, one: Router) -> list[str]:
    """In words, what this router has instead of what the others have."""
    if reference.table == one.table:
        return []
    names = {key: service["name"] for other in (one, reference) for key, service in other.services.items()}
    found = []
    for item in sorted({*reference.table, *one.table}):
        words = _words(item, names.get(item[0]) or item[0])
        theirs, own = reference.table.get(item), one.table.get(item)
        if own is None:
            found.append(f"{words} is missing")
        elif theirs is None:
            found.append(f"{words} is only here")
        else:
            found += _changed(words, theirs, own)
    return found


def _words(item: Item, name: str) -> str:
    _service, family, what = item
    if family == "rule":
        return f"{name}: the mark for {what}"
    return f"{name}: {what}" if what else f"{name}: the {family} service".replace("  ", " ")


def _changed(words: str, theirs: Mapping[str, str], own: Mapping[str, str]) -> list[str]:
    return [
        f"{words} has {setting} {own.get(setting, 'at its default')} instead of {theirs.get(setting, 'its default')}"
        for setting in sorted({*theirs, *own})
        if theirs.get(setting) != own.get(setting)
    ]


def _addresses(routers: Sequence[Router]) -> list[dict[str, Any]]:
    """Who has the single addresses of services: those on the same routers together."""
    has: dict[str, list[str]] = {}
    for one in routers:
        for address in _declared(one):
            names = has.setdefault(address, [])
            if address not in one.elsewhere:
                names.append(one.name)
    ordered = sorted((sorted(names), address) for address, names in has.items() if "/" not in address)
    return [
        {"routers": names, "addresses": [address for _names, address in group]}
        for names, group in groupby(ordered, key=lambda entry: entry[0])
    ]


def _declared(one: Router) -> set[str]:
    return {address for service in one.services.values() for address in service["addresses"]}


def _problems(routers: Sequence[Router]) -> list[dict[str, Any]]:
    """What lvs_info found wrong, and on which routers."""
    found: dict[tuple[str, str], list[str]] = {}
    for one in routers:
        for problem in dict.fromkeys(one.problems):
            found.setdefault(problem, []).append(one.name)
    nowhere = {address for entry in _addresses(routers) if not entry["routers"] for address in entry["addresses"]}
    lost = [
        {"kind": "vip_not_local", "message": f"no router has the address {address}", "routers": []}
        for address in sorted(nowhere)
    ]
    told = ({"kind": kind, "message": message, "routers": names} for (kind, message), names in found.items())
    return [*lost, *told]


# -- services -----------------------------------------------------------------------------------------------------


def _services(routers: Sequence[Router]) -> list[dict[str, Any]]:
    """The services of all routers. Settings are those of the first router that has them, numbers are sums."""
    found: dict[str, dict[str, Any]] = {}
    for one in routers:
        for key, service in one.services.items():
            there = found.setdefault(key, {"key": key, **service, "routers": []})
            if _is_active(one, service):
                there["routers"].append(one.name)
    servers: dict[str, dict[tuple[str, str, int], dict[str, Any]]] = {key: {} for key in found}
    for one in routers:
        for entry in one.pools:
            key = key_of(entry, "virtual_address", "virtual_port")
            active = found[key]["routers"]
            _add(servers[key], entry, counts=not active or one.name in active)
    return [_service(service, list(servers[key].values())) for key, service in found.items()]


def _is_active(one: Router, service: Mapping[str, Any]) -> bool:
    """Whether packets of clients come to this router: it has an address of the service, or none can be single."""
    addresses = service["addresses"]
    return not addresses or any(address not in one.elsewhere for address in addresses)


def _add(servers: dict[tuple[str, str, int], dict[str, Any]], entry: Mapping[str, Any], *, counts: bool) -> None:
    place = (entry["family"], entry["address"], entry["port"])
    zero = {**{key: entry[key] for key in _KEPT}, **dict.fromkeys(_OPEN, 0), **dict.fromkeys(_RATES), "full": False}
    server = servers.setdefault(place, zero)
    taken = entry["active_connections"] + entry["inactive_connections"]
    server["full"] = server["full"] or 0 < entry["upper_threshold"] <= taken
    for key in _OPEN:
        server[key] += entry[key] if counts else 0
    for key in _RATES:
        server[key] = _sum([server[key], entry[key]])


def _service(service: dict[str, Any], servers: list[dict[str, Any]]) -> dict[str, Any]:
    in_service = [one for one in servers if one["weight"]]
    known = [one for one in servers if one["declared_weight"] is not None]
    declared = sum(one["declared_weight"] for one in known)
    return {
        **service,
        "name": service["name"] or service["key"],
        "servers": len(servers),
        "servers_in_service": len(in_service),
        "weight_percent": round(100 * sum(one["weight"] for one in known) / declared) if declared else None,
        "state": _state(servers),
        "full": [one["address"] for one in servers if one["full"]],
        **{kind: sum(one[kind] for one in servers) for kind in _OPEN},
        **{rate: _sum(one[rate] for one in servers) for rate in _RATES},
        "real_servers": servers,
    }


def _state(servers: Sequence[Mapping[str, Any]]) -> str:
    """The worse of both families: no_server, one_left where there are more, full, reduced, or all."""
    usable = Counter(one["family"] for one in servers if one["weight"])
    there = Counter(one["family"] for one in servers)
    if not servers or any(not usable[family] for family in there):
        return "no_server"
    if any(usable[family] == 1 < there[family] for family in there):
        return "one_left"
    if any(one["full"] for one in servers):
        return "full"
    return "all" if usable == there else "reduced"


def _out(services: Sequence[Mapping[str, Any]], now: str) -> list[dict[str, Any]]:
    """The real servers with weight 0, or for which the routers have a reason."""
    found: dict[str, dict[str, Any]] = {}
    for service in services:
        for server in service["real_servers"]:
            if server["weight"] and not server["maintenance"]:
                continue
            empty = {"address": server["address"], "services": [], "active_connections": 0, "reasons": []}
            one = found.setdefault(server["address"], empty)
            one["services"].append(service["name"])
            one["active_connections"] += server["active_connections"]
            one["reasons"] += [reason for reason in server["maintenance"] or [] if reason not in one["reasons"]]
    for one in found.values():
        # Both are in the form of ISO 8601, in UTC, which sorts as time does.
        one["overdue"] = any(bool(now and reason["until"] and reason["until"] < now) for reason in one["reasons"])
    return list(found.values())


def _totals(
    routers: Sequence[Mapping[str, Any]], services: Sequence[Mapping[str, Any]], out: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    return {
        "routers": len(routers),
        "routers_read": sum(one["state"] == READ for one in routers),
        "services": len(services),
        "servers": sum(one["servers"] for one in services),
        "servers_in_service": sum(one["servers_in_service"] for one in services),
        "out": len(out),
        "overdue": sum(one["overdue"] for one in out),
        **{kind: sum(one[kind] for one in services) for kind in _OPEN},
        **{rate: _sum(one[rate] for one in services) for rate in _RATES},
    }


def _sum(rates: Iterable[float | None]) -> float | None:
    """The sum of what is known; none if nothing is."""
    known = [rate for rate in rates if rate is not None]
    return round(sum(known), 1) if known else None


def all_pools(routers: Sequence[Router]) -> list[dict[str, Any]]:
    """The flat lists of all routers as one, with the name of the router in each entry."""
    return [{"router": one.name, **entry} for one in routers for entry in one.pools]
