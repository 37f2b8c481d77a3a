# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A router's state as the modules' own options, and what is wrong with it. PRIVATE to the collection. Pure."""

from __future__ import annotations

from collections import Counter
from ipaddress import ip_network
from itertools import groupby
from typing import Any, Collection, Iterable, Iterator, Mapping, Sequence

from .._declared.options import FWMARK_MAX
from .._declared.params import ipvs_services as parse_ipvs_services
from .._declared.params import marks, virtual_services
from .._errors import ValidationError
from .._ipvs import wire
from .._ipvs.ipvsadm import endpoint
from .._marks.iptables import port_items, render_rule
from .._marks.markmap import arranged, joined, with_neighbours
from .._marks.nftables import ledger
from .._model import (
    FAMILIES,
    FULL_MASK,
    FULL_NETMASK,
    IPTABLES,
    IPV4,
    IPV6,
    LVS_SERVICE,
    NFTABLES,
    Chain,
    ChainId,
    MarkRule,
    Pool,
    RealServer,
    RouterState,
    ServiceId,
    ServiceRecord,
    TableRule,
    Traffic,
    VirtualService,
    family_of,
)
from .._netlink import messages
from .._packets.match import covered
from .._packets.overlaps import Overlaps
from .._way.troubles import Given

# -- shapes -------------------------------------------------------------------------------------------------------


def rules(state: RouterState) -> list[dict[str, Any]]:
    """The MARK rules of ours as options of iptables_mark; without records of retired marks, which it refuses."""
    shapes = (
        {"name": rule.name, "mark": rule.mark, "mask": rule.mask, **traffic}
        for rule, traffic in _traffic(own_rules(state))
    )
    return [shape for shape in shapes if _is_accepted(shape)]


def foreign_rule(rule: TableRule, family: str) -> dict[str, Any]:
    """A rule of somebody else; of a MARK rule also what it gives, and the traffic where we have words for it."""
    shown = {"family": family, "chain": rule.chain, "position": rule.position, "rule": rule.text, "target": rule.target}
    if not rule.marks:
        return shown
    traffic = _shape(rule.seen) if expressible(rule) else {}
    return {**shown, "mark": rule.seen.mark, "mask": rule.seen.mask, **traffic}


def expressible(rule: TableRule) -> bool:
    """Whether the options of this collection can say which packets a rule sees."""
    return rule.exact and _is_accepted({"name": "any", "mark": 1, **_shape(rule.seen)})


def _shape(rule: MarkRule) -> dict[str, Any]:
    return next(traffic for _rule, traffic in _traffic([rule]))


def _is_accepted(rule: dict[str, Any]) -> bool:
    try:
        marks([rule])
    except ValidationError:
        return False
    return True


def ipvs_services(state: RouterState) -> list[dict[str, Any]]:
    """The whole IPVS table, as ipvs_service takes it, but for what it refuses."""
    return [_ipvs_service(pool) for pool in state.pools.values()]


def _ipvs_service(pool: Pool) -> dict[str, Any]:
    return {
        **identity(pool.service.id),
        **_settings([pool.service]),
        "real_servers": [_real_server(server, with_port=True) for server in pool.real_servers.values()],
    }


def refused(state: RouterState) -> list[dict[str, Any]]:
    """A problem for each IPVS service that ipvs_service would refuse: the kernel takes more than ipvsadm restores.

    Thousands are alike. So only a service with settings that no accepted one before it had is read as options.
    """
    accepted: set[tuple[Any, ...]] = set()
    found = []
    for pool in state.pools.values():
        kinds = _kinds(pool)
        why = [] if kinds <= accepted else _refusal(pool)
        if why:
            what = " ".join(f"{key} {value}" for key, value in identity(pool.service.id).items())
            message = f"IPVS service {what}: ipvs_service refuses to declare it: {'; '.join(why)}"
            found.append(_problem("not_declarable", message, **identity(pool.service.id)))
        else:
            accepted |= kinds
    return found


def _kinds(pool: Pool) -> set[tuple[Any, ...]]:
    """All that decides whether a service is accepted: its settings, those of its servers, and of what kind both are."""
    key = pool.service.id
    own = (*pool.service[1:], key.family, key.fwmark > FWMARK_MAX, bool(key.fwmark), key.protocol, bool(key.port))
    servers = pool.real_servers.values()
    return {
        own,
        *((*server[2:], family_of(server.address) == key.family, server.port == key.port) for server in servers),
    }


def _refusal(pool: Pool) -> list[str]:
    try:
        parse_ipvs_services([_ipvs_service(pool)], "service")
    except ValidationError as error:
        return [problem[len("service[0]") :].lstrip(".: ") for problem in error.problems]
    return []


def services(state: RouterState) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The virtual services that lvs_service could have made, as it takes them; and problems with the others of its own.

    A service whose mark iptables_mark gives is somebody else's.
    """
    by_name: dict[str, list[Traffic]] = {}
    own_traffic: Sequence[Traffic] = (*service_rules(state), *service_records(state))
    for one in own_traffic:
        by_name.setdefault(one.name, []).append(one)
    users = Counter(key for _owner, _name, key in {(rule.owner, rule.name, rule.service) for rule in own_rules(state)})
    users.update(key for _name, key in {(record.name, record.service) for record in service_records(state)})
    snat_texts = _snat_texts(state)
    found, problems = [], []
    for name in dict.fromkeys((*_names(service_rules(state)), *_names(service_records(state)))):
        own = by_name[name]
        pools = [state.pools[key] for key in _ids(own) if key in state.pools]
        snat_rules = snat_texts.get(name, [])
        service = virtual_service(name, own, pools)
        if snat_rules:
            service["helper"] = "ftp"
        if users[own[0].service] == 1 and _reproduces(service, own, snat_rules, pools, _marking(state)):
            found.append(service)
        elif len(pools) == len(_ids(own)):
            why = f"{name}: its rules and IPVS services are not what one declared service makes"
            problems.append(_problem("not_declarable", why, name=name, **_subject(own[0].service)))
    return found, problems


def _subject(service_id: ServiceId) -> dict[str, Any]:
    """What a problem is about, if it is about a service by mark."""
    return {"fwmark": service_id.fwmark} if service_id.fwmark else {}


def _names(own: Collection[Traffic]) -> list[str]:
    """The names in one order that is that of both chains: a service of one family stands between those of both."""
    found: list[str] = []
    for family in FAMILIES:
        before, found, start = found, [], 0
        places = {name: place for place, name in enumerate(before)}
        for name in dict.fromkeys(rule.name for rule in own if rule.family == family):
            end = places.get(name, -1) + 1
            found += before[start:end] if end else [name]
            start = max(start, end)
        found += before[start:]
    return found


def _ids(own: Iterable[Traffic]) -> list[ServiceId]:
    return list(dict.fromkeys(one.service for one in own))


def _marking(state: RouterState) -> str:
    """The tool that has the MARK rules; while a router is on its way from one to the other, the new one."""
    found = [key.tool for key, chain in state.chains.items() if chain.rules and key.table != "nat"]
    return NFTABLES if NFTABLES in found else IPTABLES


def _reproduces(
    service: dict[str, Any], own: Sequence[Traffic], snat_rules: Sequence[str], pools: Sequence[Pool], marking: str
) -> bool:
    """Whether declaring the service would leave everything as it is."""
    try:
        declared = virtual_services([service])
    except ValidationError:
        return False
    wanted = {pool.service.id: pool for pool in pools}
    snat_declared = [render_rule(rule) for family in FAMILIES for rule in declared.snat_rules if rule.family == family]
    own_marks = [rule for rule in own if isinstance(rule, MarkRule)]
    own_records = {one for one in own if isinstance(one, ServiceRecord)}
    return (
        _as_kept(declared.rules, marking) == _as_kept(own_marks, marking)
        and set(declared.records) == own_records
        and snat_declared == snat_rules
        and dict(declared.pools) == wanted
    )


def _as_kept(rules: Sequence[MarkRule], marking: str) -> Sequence[MarkRule]:
    """Rules in the form in which the tool keeps them."""
    if marking == IPTABLES:
        return list(rules)
    return [entry for family in FAMILIES for entry in arranged(rule for rule in rules if rule.family == family)]


def own_rules(state: RouterState) -> list[MarkRule]:
    """The MARK rules of ours, without those that this collection would not write."""
    in_order: list[MarkRule] = []
    placed: list[MarkRule] = []
    for key, chain in state.chains.items():
        own = [rule.meaning for rule in chain.rules if isinstance(rule.meaning, MarkRule)]
        if key.tool == IPTABLES:
            in_order += own
        elif ledger(chain):
            in_order += with_neighbours(own)
        else:
            placed += own
    return [*in_order, *joined(placed)]


def service_rules(state: RouterState) -> list[MarkRule]:
    """Those of lvs_service alone."""
    return [rule for rule in own_rules(state) if rule.owner == LVS_SERVICE]


def service_records(state: RouterState) -> list[ServiceRecord]:
    """What is on record of the services by address."""
    found = (rule.meaning for chain in state.chains.values() for rule in chain.rules)
    return list(dict.fromkeys(record for record in found if isinstance(record, ServiceRecord)))


def _snat_texts(state: RouterState) -> dict[str, list[str]]:
    """What services have in table nat, by their names."""
    found: dict[str, list[str]] = {}
    for key, chain in state.chains.items():
        for rule in chain.rules if key.table == "nat" else ():
            found.setdefault(rule.name, []).append(rule.text)
    return found


def virtual_service(name: str, own: Sequence[Traffic], pools: Sequence[Pool]) -> dict[str, Any]:
    """Rules of one mark, or records of addresses, and their IPVS services as one item of lvs_service."""
    mark = own[0].service.fwmark
    rules = [one if isinstance(one, MarkRule) else one.as_rule() for one in own]
    return {
        "name": name,
        **({"fwmark": mark} if mark else {}),
        "traffic": [traffic for _rule, traffic in _traffic(rules if mark else with_neighbours(rules))],
        **_settings([pool.service for pool in pools]),
        "real_servers": _real_servers(pools),
    }


def _real_servers(pools: Iterable[Pool]) -> list[dict[str, Any]]:
    """The real servers, each once: by address all services of an item have the same, each at its own port."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for pool in pools:
        for server in pool.real_servers.values():
            translated = not pool.service.id.fwmark and server.port != pool.service.id.port
            alike = server if translated else server._replace(port=0)
            found.setdefault(alike, _real_server(server, with_port=translated))
    return list(found.values())


def _traffic(own: Iterable[MarkRule]) -> Iterator[tuple[MarkRule, dict[str, Any]]]:
    """Traffic entries: neighbours that differ in nothing but the destination are one."""

    def others(rule: MarkRule) -> tuple[Any, ...]:
        narrowed = (rule.protocol, rule.ports, rule.source, rule.in_interface, rule.exclude_mac)
        return (rule.name, rule.mark, rule.mask, rule.family, *narrowed)

    for _key, group in groupby(own, key=others):
        alike = list(group)
        rule = alike[0]
        destinations = [shown(item.destination) for item in alike]
        entry: dict[str, Any] = {"destination": destinations}
        if rule.protocol:
            entry["protocol"] = [rule.protocol]
        if rule.ports:
            entry["ports"] = port_items(rule.ports)
        if rule.source:
            entry["source"] = [shown(rule.source)]
        if rule.in_interface:
            entry["in_interface"] = rule.in_interface
        if rule.exclude_mac:
            entry["exclude_mac"] = list(rule.exclude_mac)
        yield rule, entry


def shown(destination: str) -> str:
    """A single address without its prefix, the way people write it."""
    parsed = ip_network(destination)
    return str(parsed.network_address) if parsed.num_addresses == 1 else destination


def identity(service_id: ServiceId) -> dict[str, Any]:
    """What identifies an IPVS service, as options."""
    if service_id.fwmark:
        return {"fwmark": service_id.fwmark, "family": service_id.family}
    return {"protocol": service_id.protocol, "address": service_id.address, "port": service_id.port}


def _settings(halves: Sequence[VirtualService]) -> dict[str, Any]:
    """The settings of a service, netmasks from the half that has them; what is at its default is left out."""
    if not halves:
        return {}
    first = halves[0]
    masks = {half.id.family: half.persistence_netmask for half in halves}
    settings: dict[str, Any] = {"scheduler": first.scheduler}
    if first.scheduler_flags:
        settings["scheduler_flags"] = list(first.scheduler_flags)
    if first.persistence_timeout:
        settings["persistence_timeout"] = first.persistence_timeout
    for family, key in ((IPV4, "persistence_netmask"), (IPV6, "persistence_netmask6")):
        if masks.get(family, FULL_NETMASK[family]) != FULL_NETMASK[family]:
            settings[key] = masks[family]
    if first.persistence_engine:
        settings["persistence_engine"] = first.persistence_engine
    if first.one_packet:
        settings["one_packet"] = True
    return settings


def _real_server(server: RealServer, with_port: bool) -> dict[str, Any]:
    shape: dict[str, Any] = {"address": server.address}
    if with_port:
        shape["port"] = server.port
    shape.update(weight=server.weight, forward_method=server.forward_method)
    for key in ("upper_threshold", "lower_threshold", "tunnel_type", "tunnel_port", "tunnel_checksum"):
        value = getattr(server, key)
        if value:
            shape[key] = value
    return shape


# -- counters -----------------------------------------------------------------------------------------------------


def counters_of(entries: Iterable[wire.Entry]) -> list[dict[str, Any]]:
    """What the kernel counted for each virtual service and each of its real servers."""
    return [
        {
            **identity(wire.decode_id(service)),
            **wire.decode_counters(service, wire.SVC_STATS64, wire.SVC_STATS),
            "real_servers": [_real_server_counters(service, real_server) for real_server in real_servers],
        }
        for service, real_servers in entries
    ]


def _real_server_counters(service: messages.Attributes, found: messages.Attributes) -> dict[str, Any]:
    server = wire.decode_real_server(found, wire.decode_id(service).family)
    return {
        "address": server.address,
        "port": server.port,
        **wire.decode_counters(found, wire.DEST_STATS64, wire.DEST_STATS),
        **wire.decode_connections(found),
    }


# -- problems -----------------------------------------------------------------------------------------------------


def problems(state: RouterState, given: Mapping[str, Given]) -> list[dict[str, Any]]:
    """What does not fit together. given: the marks that rules give, by family."""
    return [
        *_lone_marks(state),
        *_lone_records(state),
        *_hidden_by_marks(state),
        *_lone_services(state, given),
        *refused(state),
        *_chain_problems(state),
    ]


def single_destinations(state: RouterState) -> list[tuple[str, int]]:
    """The addresses that packets of ours go to, each with the mark it gets, or 0; networks are left out."""
    single = {
        (rule.destination.partition("/")[0], rule.mark)
        for rule in own_rules(state)
        if ip_network(rule.destination).num_addresses == 1
    }
    by_address = {(record.service.address, 0) for record in service_records(state)}
    return sorted(single | by_address)


def masqueraded(state: RouterState) -> list[str]:
    """The addresses of the real servers whose answers come back by way of the router."""
    servers = (server for pool in state.pools.values() for server in pool.real_servers.values())
    return sorted({server.address for server in servers if server.forward_method == "masquerade"})


def not_local(destinations: Iterable[tuple[str, int]], local: set[tuple[str, int]]) -> list[dict[str, Any]]:
    """IPVS takes packets on their way to a local process; those to an address that is not local pass it by."""
    return [
        _problem("vip_not_local", f"{address} is not local to this router: IPVS will not see its packets",
                 address=address, **({"fwmark": fwmark} if fwmark else {}))
        for address, fwmark in destinations
        if (address, fwmark) not in local
    ]  # fmt: skip


def unreadable(family: str, why: str) -> dict[str, Any]:
    return _problem("unreadable", why, family=family)


def _lone_marks(state: RouterState) -> list[dict[str, Any]]:
    owners = {ServiceId(rule.family, rule.mark): rule.name for rule in own_rules(state) if rule.mask == FULL_MASK}
    return [
        _problem("mark_without_service", f"{name}: mark {key.fwmark} has no IPVS service in {key.family}",
                 name=name, fwmark=key.fwmark, family=key.family)
        for key, name in owners.items()
        if key not in state.pools
    ]  # fmt: skip


def _lone_records(state: RouterState) -> list[dict[str, Any]]:
    return [
        _problem("record_without_service", f"{record.name}: there is no IPVS service {_words(record.service)}",
                 name=record.name, **identity(record.service))
        for record in service_records(state)
        if record.service not in state.pools
    ]  # fmt: skip


def _hidden_by_marks(state: RouterState) -> list[dict[str, Any]]:
    """Services by address whose packets all get a mark; the kernel prefers the service of a mark."""
    marked = Overlaps([rule for rule in own_rules(state) if rule.service in state.pools])
    found = []
    for record in service_records(state):
        rule = record.as_rule()
        near = marked.rules(rule)
        if near and covered(rule, near):
            why = f"{record.name}: all packets to {_words(record.service)} get the mark of {near[-1].name}, which the"
            why += " kernel prefers to an address"
            found.append(_problem("hidden", why, name=record.name, **identity(record.service)))
    return found


def _words(service_id: ServiceId) -> str:
    return f"{service_id.protocol} {endpoint(service_id.address, service_id.port)}"


def _lone_services(state: RouterState, given: Mapping[str, Given]) -> list[dict[str, Any]]:
    return [
        _problem("service_without_mark", f"{given[key.family].denial(key.fwmark)} of the {key.family} IPVS service",
                 fwmark=key.fwmark, family=key.family)
        for key in state.pools
        if key.fwmark and key.fwmark not in given[key.family].places
    ]  # fmt: skip


def _chain_problems(state: RouterState) -> Iterator[dict[str, Any]]:
    for key, chain in state.chains.items():
        if chain.rules and chain.jumps != 1 and not key.has_records:
            yield _problem("jump", _why_not_entered(key, chain), family=key.family)
        for rule in chain.rules:
            if not rule.name or (key.table != "nat" and isinstance(rule.meaning, str)):
                why = f"a rule in our {key.family} chain {key.name} that is not ours: {rule.text}"
                yield _problem("foreign_rule", why, family=key.family)


def _why_not_entered(chain_id: ChainId, chain: Chain) -> str:
    if chain_id.tool == NFTABLES:
        return (
            f"the {chain_id.family} nftables table {chain_id.table} lacks rules that look its entries up, or has others"
        )
    where = f"the {chain_id.family} chain {chain_id.name}"
    return f"{where} is entered from {chain_id.hook} {chain.jumps} times instead of once"


def _problem(kind: str, message: str, **subject: Any) -> dict[str, Any]:
    return {"kind": kind, "message": message, **subject}
