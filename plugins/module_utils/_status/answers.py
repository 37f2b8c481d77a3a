# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What lvs_info answered on one router, as values of known types. PRIVATE to the collection. Pure.

A router may answer anything. Its text becomes plain lines, its numbers are numbers, and all else is not understood.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from math import isfinite
from typing import Any, Dict, Iterator, Mapping, Tuple

from .._errors import MISSHAPEN
from .._text import plain

READ, FAILED, UNREACHABLE = "read", "failed", "unreachable"
# Longer than any name or address. What a person looks up has to stay on its line.
LONGEST_NAME = 64

_NUMBERS = (
    "fwmark", "virtual_port", "port", "weight", "upper_threshold", "lower_threshold", "active_connections",
    "inactive_connections", "persistent_connections", "connections", "in_packets", "out_packets", "in_bytes",
    "out_bytes",
)  # fmt: skip
_NUMBERS_OR_NULL = ("declared_weight", "connections_per_second", "in_packets_per_second")
_NAMES = ("family", "address", "forward_method")
_NAMES_OR_NULL = ("name", "protocol", "virtual_address")
_REASON = ("reason", "by", "since", "until")
_IDENTITY = ("fwmark", "family", "protocol", "address", "port", "real_servers")

# A service or real server, or a rule, of a table: the service, its family or "rule", and the real server or the rule.
Item = Tuple[str, str, str]
Table = Dict[Item, Dict[str, str]]


@dataclass(frozen=True, eq=False)
class Router:
    """A router: state is read, failed or unreachable; in all but the first there is a message, and nothing else."""

    name: str
    state: str
    message: str = ""
    pools: list[dict[str, Any]] = field(default_factory=list)
    services: dict[str, dict[str, Any]] = field(default_factory=dict)
    table: Table = field(default_factory=dict)
    elsewhere: frozenset[str] = frozenset()
    problems: list[tuple[str, str]] = field(default_factory=list)


def router(name: str, answer: Any) -> Router:
    """What one router answered. Whatever that is, it must not keep the others from being shown."""
    try:
        return _router(plain(name), answer)
    except MISSHAPEN as error:
        return Router(plain(name), FAILED, short(f"its answers are not understood: {error!r}", 300))


def _router(name: str, answer: Any) -> Router:
    if answer.get("unreachable"):
        return Router(name, UNREACHABLE, short(answer.get("msg", "no message"), 300))
    if answer.get("failed") or "pools" not in answer:
        return Router(name, FAILED, short(answer.get("msg", "nothing was read"), 300))
    problems = _list(answer["problems"])
    pools, services = [_pool(entry) for entry in _list(answer["pools"])], _services(answer)
    if not {key_of(entry, "virtual_address", "virtual_port") for entry in pools} <= services.keys():
        raise ValueError("pools has a service that ipvs_services has not")
    return Router(
        name=name,
        state=READ,
        pools=pools,
        services=services,
        table=dict(_table(answer)),
        elsewhere=frozenset(short(one["address"]) for one in problems if one["kind"] == "vip_not_local"),
        problems=[
            (short(one["kind"]), short(one["message"], 500)) for one in problems if one["kind"] != "vip_not_local"
        ],
    )


def short(value: object, longest: int = LONGEST_NAME) -> str:
    """A text of a router on one line, and not longer than its place."""
    return _short(str(value), longest)


# Many routers say the same.
@lru_cache(maxsize=100_000)
def _short(value: str, longest: int) -> str:
    text = plain(value)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def key_of(service: Mapping[str, Any], address: str = "address", port: str = "port") -> str:
    """What a service without a name is called; both families of a mark are one service."""
    if service.get("fwmark"):
        return f"mark {_number(service['fwmark'])}"
    return short(f"{service['protocol']} {service[address]} port {service[port]}")


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError("no list")
    return value


def _number(value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value):
        raise TypeError("no number")
    if not 0 <= value < 2**64:
        raise ValueError("a number out of range")
    return value


def _pool(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of pools, with the same keys."""
    return {
        **{key: None if entry[key] is None else short(entry[key]) for key in _NAMES_OR_NULL},
        **{key: short(entry[key]) for key in _NAMES},
        **{key: _number(entry[key]) for key in _NUMBERS},
        **{key: None if entry[key] is None else _number(entry[key]) for key in _NUMBERS_OR_NULL},
        "maintenance": _reasons(entry["maintenance"]),
    }


def _reasons(told: Any) -> list[dict[str, str | None]] | None:
    if told is None:
        return None
    return [{key: None if one.get(key) is None else short(one[key], 200) for key in _REASON} for one in _list(told)]


def _services(answer: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The services by what they are called: their settings, and the traffic that gets their mark."""
    found: dict[str, dict[str, Any]] = {}
    for service in _list(answer["ipvs_services"]):
        settings = {
            "name": None,
            "fwmark": _number(service.get("fwmark", 0)),
            "scheduler": short(service["scheduler"]),
            "persistence_timeout": _number(service.get("persistence_timeout", 0)),
            "addresses": [] if service.get("fwmark") else [short(service["address"])],
            "traffic": [],
        }
        found.setdefault(key_of(service), settings)
    for rule in _list(answer["rules"]):
        service = found.get(key_of({"fwmark": rule["mark"]}))
        if service is not None:
            service["name"] = service["name"] or short(rule["name"])
            service["addresses"] += [one for one in map(short, rule["destination"]) if one not in service["addresses"]]
            service["traffic"] += [one for one in [_traffic(rule)] if one not in service["traffic"]]
    # A service by address has no rule that gives a mark, but its real servers have its name.
    for entry in _list(answer["pools"]):
        service = found.get(key_of(entry, "virtual_address", "virtual_port"))
        if service is not None and entry["name"] is not None:
            service["name"] = service["name"] or short(entry["name"])
    return found


def _traffic(rule: Mapping[str, Any]) -> str:
    """As in "tcp 80,443"."""
    ports = ",".join(str(port) for port in _list(rule.get("ports", [])))
    protocols = ",".join(map(str, _list(rule.get("protocol", ["all protocols"]))))
    return short(f"{protocols} {ports or 'all ports'}")


def _table(answer: Mapping[str, Any]) -> Iterator[tuple[Item, dict[str, str]]]:
    """All that routers with the same inventory have in common, for a comparison."""
    for service in _list(answer["ipvs_services"]):
        key, family = key_of(service), short(service.get("family", ""))
        yield (key, family, ""), _settings(service)
        for server in _list(service["real_servers"]):
            where = f"{server['address']} port {server['port']}" if server.get("port") else server["address"]
            yield (key, family, short(where)), _settings(server)
    for rule in _list(answer["rules"]):
        places = ", ".join(map(str, [*_list(rule["destination"]), *_list(rule.get("source", []))]))
        narrowed = " ".join(map(str, [rule.get("in_interface", ""), *_list(rule.get("exclude_mac", []))]))
        words = f"{_traffic(rule)} to {places} {narrowed}".strip()
        yield (key_of({"fwmark": rule["mark"]}), "rule", short(words, 200)), {}


def _settings(one: Mapping[str, Any]) -> dict[str, str]:
    return {short(key): short(value) for key, value in one.items() if key not in _IDENTITY}
