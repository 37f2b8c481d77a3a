# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is valid, and surely not what somebody wants. PRIVATE to the collection. Pure.

Each doubt is one line for a warning, with the path of its item, as problems have it.
"""

from __future__ import annotations

from typing import Iterable, Iterator, Sequence

from .._model import (
    FAMILY_WORDS,
    FULL_NETMASK,
    Declaration,
    MarkRule,
    Pool,
    Traffic,
    VirtualService,
    family_of,
)
from .._packets.match import covered
from .._packets.overlaps import Overlaps
from .params import PROTOCOLS

# A warning for each of thousands of services would hide all others.
_SHOWN = 20
HTTP, HTTPS, FTP = 80, 443, 21
# Schedulers that give a client, or an address, always the same real server, unless these flags have them look at ports.
_BY_ADDRESS = {"sh": "sh-port", "mh": "mh-port", "dh": ""}


def service_doubts(declared: Declaration, path: str = "services") -> list[str]:
    """The doubts about the virtual services of lvs_service, in their order."""
    places = {label: f"{path}[{place}] ({label})" for place, label in enumerate(declared.names)}
    traffic: dict[str, list[Traffic]] = {label: [] for label in places}
    for one in declared.traffic:
        traffic[one.name].append(one)
    hidden = {**_hidden(declared.rules, places), **_hidden_by_marks(declared, places)}
    found: list[str] = []
    for label, place in places.items():
        found += [f"{place}.{doubt}" for doubt in _about_traffic(traffic[label])]
        found += [f"{place}.{doubt}" for doubt in hidden.get(label, [])]
        found += [f"{place}.{doubt}" for doubt in _about_pools(traffic[label], declared)]
    return shortened(found)


def ipvs_doubts(declared: Declaration, path: str = "services") -> list[str]:
    """The doubts about the virtual services of ipvs_service, in their order."""
    found: list[str] = []
    for place, (service_id, pool) in enumerate(declared.pools.items()):
        itself = {service_id.address} if service_id.address else set()
        protocols = {service_id.protocol} if service_id.protocol else set()
        doubts = [*_about_servers([pool], itself), *_about_engine(pool.service, protocols)]
        found += [f"{path}[{place}].{doubt}" for doubt in doubts]
    return shortened(found)


def mark_doubts(declared: Declaration, path: str = "rules") -> list[str]:
    """The doubts about the MARK rules of iptables_mark."""
    return shortened([f"{path} ({rule.name}).{doubt}" for rule in declared.rules for doubt in _about_traffic([rule])])


def shortened(doubts: Sequence[str]) -> list[str]:
    left = len(doubts) - _SHOWN
    return [*doubts[:_SHOWN], *([f"{left} more warnings are not shown"] if left > 0 else [])]


def _about_traffic(rules: Iterable[Traffic]) -> Iterator[str]:
    for destination in dict.fromkeys(rule.destination for rule in rules):
        kind = _never_sent(destination)
        if kind:
            yield f"traffic: destination {_plain(destination)} is {kind}, so no packet for IPVS has it"


def _never_sent(destination: str) -> str:
    """What a destination is if no client can send a packet to it that IPVS balances; empty if it can."""
    first = destination.partition(".")[0] if family_of(destination) == "ipv4" else ""
    if destination in ("0.0.0.0/32", "::/128"):
        return f"the address of nobody (every address is {_plain(destination)}/0)"
    if destination == "255.255.255.255/32":
        return "the broadcast address"
    if first == "127" or destination == "::1/128":
        return "the loopback address"
    if destination.startswith("ff") or (first and 224 <= int(first) <= 239):
        return "multicast"
    return ""


def _hidden(rules: Sequence[MarkRule], places: dict[str, str]) -> dict[str, list[str]]:
    """By service, that all packets of a rule get the mark of later services: the last rule that sees one counts."""
    shared = _shared(rules)
    overlaps = Overlaps(shared)
    found: dict[str, list[str]] = {}
    for place, rule in enumerate(shared):
        near = [shared[other] for other in overlaps.places(rule) if other > place]
        later = [other for other in near if other.name != rule.name]
        if later and rule.name not in found and covered(rule, later):
            by = ", ".join(dict.fromkeys(places[other.name] for other in later))
            found[rule.name] = [f"traffic: all packets to {_seen(rule)} get the mark of a later service: {by}"]
    return found


def _hidden_by_marks(declared: Declaration, places: dict[str, str]) -> dict[str, list[str]]:
    """By service, that all packets to an address of it get a mark, whose service the kernel prefers."""
    overlaps = Overlaps(declared.rules)
    found: dict[str, list[str]] = {}
    for record in declared.records:
        seen = record.as_rule()
        near = overlaps.rules(seen)
        if near and record.name not in found and covered(seen, near):
            by = ", ".join(dict.fromkeys(places[other.name] for other in near))
            why = f"all packets to {_seen(record)} get the mark of {by}, which the kernel prefers to an address"
            found[record.name] = [f"traffic: {why}"]
    return found


def _shared(rules: Sequence[MarkRule]) -> list[MarkRule]:
    """Without those that have their destination for themselves, which in most lists are all: no other can hide them."""
    names: dict[str, set[str]] = {}
    for rule in rules:
        names.setdefault(rule.destination, set()).add(rule.name)
    if any(_plain(destination) == destination for destination in names):
        return list(rules)
    return [rule for rule in rules if len(names[rule.destination]) > 1]


def _seen(rule: Traffic) -> str:
    ports = ", ".join(str(low) if low == high else f"{low}:{high}" for low, high in rule.ports)
    return " ".join(part for part in (_plain(rule.destination), rule.protocol, ports) if part)


def _plain(destination: str) -> str:
    """A single address without its prefix, the way people write it."""
    address, _slash, length = destination.partition("/")
    return address if int(length) == FULL_NETMASK[family_of(address)] else destination


def _about_pools(rules: Sequence[Traffic], declared: Declaration) -> Iterator[str]:
    """About the real servers and the settings of one service, in both families."""
    ids = {rule.service: rule.destination for rule in rules}
    pools = [declared.pools[service_id] for service_id in ids]
    alone = {rule.destination.partition("/")[0] for rule in rules if _plain(rule.destination) != rule.destination}
    yield from _about_servers(pools, alone)
    if any(pool.real_servers for pool in pools):
        for service_id, destination in {key.family: (key, to) for key, to in ids.items()}.values():
            if not declared.pools[service_id].real_servers:
                words = FAMILY_WORDS[service_id.family]
                yield f"real_servers: none is {words}, so IPVS refuses all connections to {_plain(destination)}"
    service = pools[0].service
    protocols = {protocol for rule in rules for protocol in ([rule.protocol] if rule.protocol else PROTOCOLS)}
    yield from _about_engine(service, protocols)
    if service.one_packet and "udp" not in protocols:
        yield "one_packet: has an effect on udp alone, and the traffic has none"
    if max(len(pool.real_servers) for pool in pools) > 1:
        yield from _about_ports(service, rules)


def _about_servers(pools: Sequence[Pool], itself: set[str]) -> Iterator[str]:
    addresses = dict.fromkeys(address for pool in pools for address, _port in pool.real_servers)
    if not addresses:
        yield "real_servers: there are none, so IPVS refuses all connections"
    for address in addresses:
        if address in itself:
            yield f"real_servers: {address} is an address of the service itself, so a router sends to itself"
        elif address.startswith("127.") or address == "::1":
            yield f"real_servers: {address} is the router itself, so a router sends to itself"


def _about_engine(service: VirtualService, protocols: set[str]) -> Iterator[str]:
    if service.persistence_engine and not service.persistence_timeout:
        yield "persistence_engine: has no effect without persistence_timeout"
    elif service.persistence_engine and protocols - {"udp"}:
        others = ", ".join(sorted(protocols - {"udp"}))
        yield f"persistence_engine: sip is for udp; IPVS drops every connection over {others} of this service"


def _about_ports(service: VirtualService, rules: Sequence[Traffic]) -> Iterator[str]:
    """HTTP with HTTPS, and FTP, which take several connections of a client to the same real server."""
    flag = _BY_ADDRESS.get(service.scheduler)
    if service.persistence_timeout or (flag is not None and flag not in service.scheduler_flags):
        return
    tcp = [rule for rule in rules if rule.protocol == "tcp" and rule.ports]
    ranges = {port_range for rule in tcp for port_range in rule.ports}
    web = all(any(low <= port <= high for low, high in ranges) for port in (HTTP, HTTPS))
    ftp = len(ranges) > 1 and any(low <= FTP <= high for low, high in ranges)
    if web or ftp:
        what = "to ports 80 and 443" if web else "for FTP"
        yield f"persistence_timeout: without it the connections of a client {what} may go to different real servers"
