# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A service as a person would write it down. PRIVATE to the collection. Pure."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any, Dict, Iterable, Iterator, Mapping, Sequence

from .._declared.params import virtual_services
from .._marks.iptables import merge_ports, port_items
from .._model import FAMILIES, Declaration, MarkRule, PortRange, Traffic, family_of
from .report import shown, virtual_service

Service = Dict[str, Any]
_SERVER_DEFAULTS = {"weight": 1, "tunnel_type": "ipip"}


def shorthand(service: Service) -> Service:
    """The same service in the fewest words: no default, and one traffic entry where the options have room for it.

    Raises ValidationError if it is none.
    """
    declared = virtual_services([service])
    long = virtual_service(declared.names[0], declared.traffic, list(declared.pools.values()))
    servers = long.pop("real_servers")
    methods = {server["forward_method"] for server in servers}
    method = methods.pop() if len(methods) == 1 else "direct"
    settings = {
        **long,
        "traffic": [_plain_protocol(entry) for entry in _traffic(long, declared)],
        "forward_method": method,
        "helper": service.get("helper"),
    }
    defaults = {"scheduler": "wlc", "forward_method": "direct", "helper": None}
    ordered = sorted(servers, key=server_order)
    return {
        **_without(settings, defaults),
        "real_servers": [_without(server, {**_SERVER_DEFAULTS, "forward_method": method}) for server in ordered],
    }


def server_order(server: Mapping[str, Any]) -> tuple[Any, ...]:
    """What real servers are ordered by."""
    return (family_of(server["address"]), ip_address(server["address"]), server.get("port", 0))


def _without(settings: Service, defaults: Service) -> Service:
    return {key: value for key, value in settings.items() if key not in defaults or defaults[key] != value}


def _plain_protocol(entry: Service) -> Service:
    protocols = entry.get("protocol", ())
    return {**entry, "protocol": protocols[0]} if len(protocols) == 1 else entry


def _traffic(service: Service, declared: Declaration) -> list[Service]:
    """The fewest traffic entries that make the rules in their own order, so that deploying them moves none."""
    rules = [one if isinstance(one, MarkRule) else one.as_rule() for one in declared.traffic]
    for traffic in _shorter(rules):
        if _orders(virtual_services([{**service, "traffic": traffic}])) == _orders(declared):
            return traffic
    return list(service["traffic"])


def _orders(declared: Declaration) -> list[list[Traffic]]:
    """The rules in their order, which is one for each family: the other family's stand in another chain."""
    return [[one for one in declared.traffic if one.family == family] for family in FAMILIES]


def _shorter(rules: Sequence[MarkRule]) -> Iterator[list[Service]]:
    """Traffic entries for the rules of one mark, the shortest first; the order of their rules may be another."""
    ports: dict[MarkRule, Sequence[PortRange]] = {}
    for rule in rules:
        same = replace(rule, ports=())
        ports[same] = merge_ports((*ports.get(same, ()), *rule.ports))
    entries = [_entry(rule, found) for rule, found in ports.items()]
    by_source = _joined(entries, "source")
    by_destination = _joined(by_source, "destination")
    yield _joined(by_destination, "protocol")
    yield by_destination


def _entry(rule: MarkRule, ports: Sequence[PortRange]) -> Service:
    entry: Service = {"destination": [shown(rule.destination)]}
    entry.update({"protocol": [rule.protocol]} if rule.protocol else {})
    entry.update({"ports": port_items(ports)} if ports else {})
    entry.update({"source": [shown(rule.source)]} if rule.source else {})
    entry.update({"in_interface": rule.in_interface} if rule.in_interface else {})
    entry.update({"exclude_mac": list(rule.exclude_mac)} if rule.exclude_mac else {})
    return entry


def _joined(entries: Iterable[Service], key: str) -> list[Service]:
    """Entries that differ in nothing but the values of one key are one."""
    found: dict[str, Service] = {}
    for entry in entries:
        rest = repr({**entry, key: key in entry})
        there = found.get(rest) if key in entry else None
        found[rest] = {**entry, key: list(dict.fromkeys([*there[key], *entry[key]]))} if there else entry
    return list(found.values())
