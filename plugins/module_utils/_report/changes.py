# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What operations change, as one sentence for each thing that changes. PRIVATE to the collection. Pure.

Operations themselves are told in the words of the tools. A sentence begins with the name of the service that changes.
"""

from __future__ import annotations

from typing import Any, Container, Dict, Iterable, Iterator, Mapping, NamedTuple, Sequence, Tuple

from .._ipvs.ipvsadm import endpoint
from .._marks.iptables import merge_ports, port_items
from .._model import (
    IPV4,
    IPV6,
    Chain,
    ChainEdit,
    ChainId,
    IpvsOperation,
    MarkRule,
    Operation,
    Pool,
    PortRange,
    RealServer,
    RouterState,
    ServiceId,
)
from .report import own_rules

# The settings of a service and of a real server that can change in place, and what a sentence calls them.
_SERVICE_SETTINGS = (
    "scheduler", "scheduler_flags", "persistence_timeout", "persistence_netmask", "persistence_engine", "one_packet",
)  # fmt: skip
_SERVER_SETTINGS = (
    "weight", "forward_method", "upper_threshold", "lower_threshold", "tunnel_type", "tunnel_port", "tunnel_checksum",
)  # fmt: skip


class Traffic(NamedTuple):
    """What rules of one mark have in common that may differ in their ports."""

    mark: int
    mask: int
    destination: str
    protocol: str
    source: str
    in_interface: str
    exclude_mac: tuple[str, ...]


def sentences(before: RouterState, after: RouterState, operations: Sequence[Operation]) -> list[str]:
    """What the operations that lead from one state to the other change. Both families of a service share a sentence."""
    if not operations:
        return []
    old, new = _names(before), _names(after)
    touched = {one.service.id: _label(one.service.id, {**old, **new}) for one in operations
               if isinstance(one, IpvsOperation)}  # fmt: skip
    edited = [one.id for one in operations if isinstance(one, ChainEdit)]
    left = set(new.values())
    renamed = {old[key]: name for key, name in new.items() if old.get(key, name) not in left}
    whole = {label for key, label in touched.items() if (key in before.pools) != (key in after.pools)}
    told = [
        *(f"{name}: was {former} until now" for former, name in renamed.items()),
        *(
            f"{name}: {_words(key)}, made by hand, taken over"
            for key, name in new.items()
            if not key.fwmark and key not in old and key in before.pools
        ),
        *_services(touched, before, after),
        *_rules(_marked(edited, before, renamed), _marked(edited, after, {}), whole),
        *(line for key in edited for line in _chain(key, before.chains.get(key, Chain()), after.chains[key])),
    ]
    return list(dict.fromkeys(told)) or [f"{key.family}: rules in {key.name}" for key in edited]


def _names(state: RouterState) -> dict[ServiceId, str]:
    """The name of each mark, whatever the family, and of each service by address."""
    rules = ((rule, rule.service_id(IPV4)) for chain in state.chains.values() for rule in chain.rules)
    return {key: rule.name for rule, key in rules if rule.name and key}


def _label(key: ServiceId, names: Mapping[ServiceId, str]) -> str:
    return names.get(ServiceId(IPV4, key.fwmark) if key.fwmark else key, _words(key))


def _words(key: ServiceId) -> str:
    return f"mark {key.fwmark}" if key.fwmark else f"{key.protocol} {endpoint(key.address, key.port)}"


# -- services -----------------------------------------------------------------------------------------------------


def _services(labels: Mapping[ServiceId, str], before: RouterState, after: RouterState) -> Iterator[str]:
    left = {label: key for key, label in labels.items() if key not in after.pools}
    come = {label: key for key, label in labels.items() if key not in before.pools}
    for key, label in labels.items():
        there, then = before.pools.get(key), after.pools.get(key)
        if there and then:
            yield from _edited(label, there, then)
        elif then and _is_other(left.get(label, key), key):
            new = str(key.fwmark) if key.fwmark and left[label].fwmark else _kind(key)
            yield f"{label}: {_kind(left[label])} -> {new}, which is another service to IPVS"
        elif then:
            yield f"{label}: {_both_or_one('new', key, before)}, {_servers(key, after)}"
        elif there and not _is_other(come.get(label, key), key):
            yield f"{label}: {_both_or_one('removed', key, after)}, {_servers(key, before)}"


def _is_other(one: ServiceId, other: ServiceId) -> bool:
    """Whether a service has another mark, or a mark in place of its addresses."""
    return one.fwmark != other.fwmark


def _kind(key: ServiceId) -> str:
    return f"mark {key.fwmark}" if key.fwmark else "by address"


def _twin(key: ServiceId) -> ServiceId:
    """The service of the same mark in the other family."""
    return key._replace(family=IPV6 if key.family == IPV4 else IPV4)


def _both_or_one(word: str, key: ServiceId, state: RouterState) -> str:
    """The word for a whole service, or for the part of it that comes or goes: a family, or an address."""
    if not key.fwmark:
        return f"{word} at {_words(key)}"
    return f"{word} in {key.family}" if _twin(key) in state.pools else word


def _servers(key: ServiceId, state: RouterState) -> str:
    halves = {key, _twin(key)} if key.fwmark else {key}
    count = sum(len(state.pools[half].real_servers) for half in halves if half in state.pools)
    return f"with {count} real server{'' if count == 1 else 's'}"


def _edited(label: str, before: Pool, after: Pool) -> Iterator[str]:
    for setting, old, new in _differences(before.service, after.service, _SERVICE_SETTINGS):
        yield f"{label}: {setting} {old} -> {new}"
    for key, server in after.real_servers.items():
        there = before.real_servers.get(key)
        if there is None:
            yield f"{label}: real server {_server(server)} added, weight {server.weight}"
            continue
        for setting, old, new in _differences(there, server, _SERVER_SETTINGS):
            yield f"{label}: {setting} of {_server(server)} {old} -> {new}"
    for key, server in before.real_servers.items():
        if key not in after.real_servers:
            yield f"{label}: real server {_server(server)} removed"


def _server(server: RealServer) -> str:
    return endpoint(server.address, server.port) if server.port else server.address


def _differences(before: Any, after: Any, settings: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    for setting in settings:
        old, new = getattr(before, setting), getattr(after, setting)
        if old != new:
            yield setting, _shown(old), _shown(new)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(value) or "none"
    return "none" if value == "" else str(value).lower()


# -- rules --------------------------------------------------------------------------------------------------------


Marked = Dict[str, Dict[Traffic, Tuple[PortRange, ...]]]


def _marked(edited: Iterable[ChainId], state: RouterState, renamed: Mapping[str, str]) -> Marked:
    """The ports that get a mark, by the name of the service and what else the rules ask for; none is every port."""
    chains = {key: state.chains[key] for key in edited if key in state.chains}
    found: Marked = {}
    for rule in own_rules(RouterState(chains)):
        traffic = _traffic_of(rule)
        ports = found.setdefault(renamed.get(rule.name, rule.name), {})
        every = not rule.ports or ports.get(traffic) == ()
        ports[traffic] = () if every else merge_ports((*ports.get(traffic, ()), *rule.ports))
    return found


def _rules(old: Marked, new: Marked, whole: Container[str]) -> Iterator[str]:
    """What becomes of packets; those of a service that comes or goes as a whole go without saying."""
    for name in dict.fromkeys((*new, *old)):
        if name not in whole:
            yield from _traffic(name, old.get(name, {}), new.get(name, {}))


def _traffic_of(rule: MarkRule) -> Traffic:
    narrowed = (rule.source, rule.in_interface, rule.exclude_mac)
    return Traffic(rule.mark, rule.mask, rule.destination, rule.protocol, *narrowed)


Ports = Mapping[Traffic, Sequence[PortRange]]


def _traffic(name: str, old: Ports, new: Ports) -> Iterator[str]:
    for traffic in dict.fromkeys((*new, *old)):
        where = _where(traffic)
        if traffic not in old:
            yield f"{name}: packets to {where}{_port_words(new[traffic])} get mark {traffic.mark}"
        elif traffic not in new:
            yield f"{name}: packets to {where}{_port_words(old[traffic])} get mark {traffic.mark} no more"
        elif old[traffic] != new[traffic]:
            yield f"{name}: ports of {where} {_ports(old[traffic])} -> {_ports(new[traffic])}"


def _where(traffic: Traffic) -> str:
    address, _slash, prefix = traffic.destination.partition("/")
    single = prefix == ("128" if ":" in address else "32")
    words = [address if single else traffic.destination, traffic.protocol]
    words += [f"from {traffic.source}"] if traffic.source else []
    words += [f"at {traffic.in_interface}"] if traffic.in_interface else []
    words += [f"not from {', '.join(traffic.exclude_mac)}"] if traffic.exclude_mac else []
    return " ".join(filter(None, words))


def _port_words(ports: Sequence[PortRange]) -> str:
    return f" {_ports(ports)}" if ports else ""


def _ports(ports: Sequence[PortRange]) -> str:
    return ",".join(map(str, port_items(ports))) or "all"


def _chain(key: ChainId, before: Chain, after: Chain) -> Iterator[str]:
    """What changes of a chain beside the rules that give marks."""
    taken = len(before.strays) - len(after.strays)
    if taken > 0:
        yield f"{key.family}: {taken} rule{'' if taken == 1 else 's'} made by hand taken over"
    if before.exists and after.rules and before.jumps != after.jumps:
        yield f"{key.family}: {key.hook} leads into {key.name} once, not {before.jumps} times"
    if key.table == "nat":
        old, new = ({rule.name for rule in chain.rules if rule.name} for chain in (before, after))
        yield from (f"{name}: rules for active FTP" for name in sorted(old ^ new))
