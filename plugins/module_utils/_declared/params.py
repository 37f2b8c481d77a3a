# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""From what a user wrote to what it declares. PRIVATE to the collection. Pure.

Everything that is wrong is found in one go, each problem with the path of its item: services[1].traffic[0].ports[2].
The modules' argument specs do not name the options of items: Ansible would fill absent ones with None, and then nobody
could tell them from those that are null.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any, Callable, Iterable, Mapping, Sequence

from .._errors import ValidationError
from .._marks.iptables import NOWHERE, merge_ports, split_ports
from .._model import (
    FAMILIES,
    FAMILY_WORDS,
    FULL_MASK,
    FULL_NETMASK,
    GENERIC_FLAGS,
    IPTABLES_MARK,
    IPV4,
    IPV6,
    LVS_SERVICE,
    NAMED_FLAGS,
    Declaration,
    MarkRule,
    Pool,
    RealServer,
    ServiceId,
    ServiceRecord,
    SnatRule,
    Traffic,
    VirtualService,
    family_of,
    flag_names,
)
from . import suggestions
from .options import (
    Options,
    any_port,
    boolean,
    chain_name,
    choice,
    fwmark,
    integer,
    interface,
    mac_address,
    mappings,
    matching,
    name,
    netmask,
    network,
    port,
    port_range,
    show,
    threshold,
    unicast_address,
    weight,
)

# 31 days; ipvsadm and the kernel take no more.
PERSISTENCE_MAX = 2678400
PROTOCOLS = ("tcp", "udp", "sctp")
FORWARD_METHODS = ("masquerade", "direct", "tunnel")
PERSISTENCE_ENGINES = ("sip",)
HELPERS = ("ftp",)
FTP_CONTROL_PORT = 21
FTP_DATA_PORT = 20
TUNNEL_TYPES = ("ipip", "gue", "gre")
TUNNEL_CHECKSUMS = ("nocsum", "csum", "remcsum")
BUILTIN_CHAINS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
SCHEDULER_FLAGS = tuple(dict.fromkeys((*NAMED_FLAGS["sh"], *NAMED_FLAGS["mh"], *GENERIC_FLAGS)))
_NEEDS_MARK = "give the service a fwmark"
TUNNEL_OPTIONS = ("tunnel_type", "tunnel_port", "tunnel_checksum")

family_name = choice(FAMILIES, suggestions.FAMILIES)
protocol_name = choice(PROTOCOLS, suggestions.PROTOCOLS)
scheduler_flag = choice(SCHEDULER_FLAGS)
persistence_timeout = integer(0, PERSISTENCE_MAX, "a persistence timeout in seconds", suggestions.as_seconds)
persistence_netmask = {family: netmask(family) for family in FAMILIES}
persistence_engine = choice(PERSISTENCE_ENGINES)
scheduler_name = matching(
    r"[a-z][a-z0-9_]{0,14}",
    "the name of a scheduler",
    suggestions.other_scheduler,
)
forward_method = choice(FORWARD_METHODS, suggestions.FORWARD_METHODS)
tunnel_type = choice(TUNNEL_TYPES)
tunnel_checksum = choice(TUNNEL_CHECKSUMS)
helper_name = choice(HELPERS)


def scheduler(value: Any) -> str:
    """The name of a scheduler, Linux's own or another one, but no other word for one of its own."""
    if isinstance(value, str) and value in suggestions.SCHEDULERS:
        raise ValueError(f"{show(value)} is not the name of a scheduler{suggestions.other_scheduler(value)}")
    return scheduler_name(value)


def real_server_address(value: Any) -> str:
    """The address of a real server. The kernel refuses one that does not say by which interface it is reached."""
    address = unicast_address(value)
    if address.startswith("fe") and ip_address(address).is_link_local:
        raise ValueError(f"{address} is link-local, which IPVS refuses; write a global or unique local address")
    return address


# -- parts --------------------------------------------------------------------------------------------------------


def mark_rules(
    options: Options, label: str, mark: int, mask: int = FULL_MASK, owner: str = LVS_SERVICE
) -> list[MarkRule]:
    """The MARK rules of one traffic entry: one per destination, protocol, source, and 15 slots of ports."""
    destinations = options.many("destination", network, required=True)
    protocols = options.many("protocol", protocol_name) or [""]
    ports = split_ports(merge_ports(options.many("ports", port_range)))
    if options.has("ports") and not options.has("protocol"):
        options.problem("protocol", "is required where there are ports; write tcp, udp or sctp, or several of them")
    sources = options.many("source", source_network) or [""]
    in_interface = options.one("in_interface", interface, "")
    exclude_mac = tuple(sorted(set(options.many("exclude_mac", mac_address))))
    for family in sorted({family_of(destination) for destination in destinations}):
        if sources != [""] and not any(family_of(source) == family for source in sources):
            options.problem(
                "source", f"has no {FAMILY_WORDS[family]} network, but a destination is {FAMILY_WORDS[family]}"
            )
    return [
        MarkRule(label, mark, destination, protocol, group, _narrowed(source), in_interface, mask, owner, exclude_mac)
        for destination in destinations
        for protocol in protocols
        for source in sources
        if not source or family_of(source) == family_of(destination)
        for group in ports
    ]


def source_network(value: Any) -> str:
    """Where packets come from. None comes from the address that a retired mark has for a source."""
    source = network(value)
    if source in NOWHERE.values():
        raise ValueError(f"{show(value)} is an address that no packet comes from")
    return source


def _narrowed(source: str) -> str:
    """A source of everywhere is no condition; iptables does not even print it."""
    return "" if source in ("0.0.0.0/0", "::/0") else source


def addressed(options: Options, persistent: bool) -> list[ServiceId]:
    """The IPVS services of one traffic entry by address: one per destination, protocol and port."""
    destinations = options.many("destination", network, required=True)
    protocols = options.many("protocol", protocol_name, required=True)
    ports = merge_ports(options.many("ports", port_range))
    for key in ("source", "in_interface", "exclude_mac"):
        if options.value(key) is not None:
            options.problem(key, f"is not seen by IPVS by address; {_NEEDS_MARK}")
    for low, high in ports:
        if low != high:
            options.problem("ports", f"{low}:{high} is a range, which IPVS does not see by address; {_NEEDS_MARK}")
    if not persistent and not options.has("ports"):
        options.problem("ports", f"every port of an address needs persistence_timeout; name them, or {_NEEDS_MARK}")
    return [
        ServiceId(family_of(address), protocol=protocol, address=address, port=number)
        for address in _single(options, destinations)
        for protocol in protocols
        for number in ([low for low, _high in ports] or [0])
    ]


def _single(options: Options, destinations: Sequence[str]) -> list[str]:
    """The destinations that are the address of one machine."""
    found = []
    for destination in destinations:
        address, _slash, length = destination.partition("/")
        try:
            if int(length) != FULL_NETMASK[family_of(address)]:
                raise ValueError(f"{destination} is a network, which IPVS does not see by address; {_NEEDS_MARK}")
            found.append(unicast_address(address))
        except ValueError as error:
            options.problem("destination", str(error))
    return found


def service_settings(options: Options) -> Callable[[ServiceId], VirtualService]:
    """The settings of a virtual service, to be given to its IPv4 and its IPv6 half."""
    algorithm = options.one("scheduler", scheduler, "wlc")
    flags = _scheduler_flags(options, algorithm)
    timeout = options.one("persistence_timeout", persistence_timeout, 0)
    masks = {
        IPV4: options.one("persistence_netmask", persistence_netmask[IPV4], FULL_NETMASK[IPV4]),
        IPV6: options.one("persistence_netmask6", persistence_netmask[IPV6], FULL_NETMASK[IPV6]),
    }
    engine = options.one("persistence_engine", persistence_engine, "")
    one_packet = options.one("one_packet", boolean, False)

    def service(service_id: ServiceId) -> VirtualService:
        # Without persistence the kernel keeps a netmask that has no effect: the full one stands for all of them.
        mask = (masks if timeout else FULL_NETMASK)[service_id.family]
        return VirtualService(service_id, algorithm, flags, timeout, mask, engine, one_packet)

    return service


def _scheduler_flags(options: Options, algorithm: str) -> tuple[str, ...]:
    """The flags in the order of their bits, under the names they have with this scheduler."""
    names = flag_names(algorithm)
    given = options.many("scheduler_flags", scheduler_flag, may_be_empty=True)
    for flag in given:
        if flag not in names and flag not in GENERIC_FLAGS:
            options.problem("scheduler_flags", f"{flag} is not a flag of scheduler {algorithm}")
    return tuple(named for named, generic in zip(names, GENERIC_FLAGS) if named in given or generic in given)


def real_server(
    options: Options, default_method: str, default_port: int = 0, parse_port: Callable[[Any], int] = any_port
) -> RealServer | None:
    """A real server. None without a valid address."""
    before = len(options.problems)
    address = options.one("address", real_server_address, "", required=True)
    method = options.one("forward_method", forward_method, default_method)
    server = RealServer(
        address=address,
        port=options.one("port", parse_port, default_port),
        weight=options.one("weight", weight, 1),
        forward_method=method,
        upper_threshold=options.one("upper_threshold", threshold, 0),
        lower_threshold=options.one("lower_threshold", threshold, 0),
        **_tunnel(options, method),
    )
    if server.lower_threshold > server.upper_threshold:
        above = (
            f"is above upper_threshold ({server.upper_threshold})"
            if server.upper_threshold
            else "needs an upper_threshold"
        )
        options.problem("lower_threshold", f"{server.lower_threshold} {above}")
    options.done()
    return server if len(options.problems) == before else None


def _tunnel(options: Options, method: str) -> dict[str, Any]:
    """The tunnel options, with what the kernel assumes where they are absent."""
    if method != "tunnel":
        for key in TUNNEL_OPTIONS:
            if options.value(key) is not None:
                options.problem(key, f"needs forward_method tunnel, not {method}")
        return {}
    kind = options.one("tunnel_type", tunnel_type, "ipip")
    tunnel_port = options.one("tunnel_port", port, 0)
    checksum = options.one("tunnel_checksum", tunnel_checksum, "")
    if kind == "gue" and not tunnel_port:
        options.problem("tunnel_port", "is required for tunnel_type gue")
    if kind != "gue" and tunnel_port:
        options.problem("tunnel_port", f"is for tunnel_type gue, not {kind}")
    if checksum and kind == "ipip":
        options.problem("tunnel_checksum", "is for tunnel_type gue or gre, not ipip")
    if checksum == "remcsum" and kind == "gre":
        options.problem("tunnel_checksum", "remcsum is for tunnel_type gue, not gre")
    checksum = "" if kind == "ipip" else checksum or "nocsum"
    return {"tunnel_type": kind, "tunnel_port": tunnel_port, "tunnel_checksum": checksum}


def real_servers(
    options: Options, default_port: int = 0, parse_port: Callable[[Any], int] = any_port
) -> list[tuple[Options, RealServer]]:
    """The valid real servers of a service, each once, each with its options for problems found later."""
    default_method = options.one("forward_method", forward_method, "direct")
    found: list[tuple[Options, RealServer]] = []
    seen: set[tuple[str, int]] = set()
    for item in options.mappings("real_servers", "address"):
        server = real_server(item, default_method, default_port, parse_port)
        if server is None:
            continue
        if server.id in seen:
            item.problem("address", f"{server.address} is there twice")
        seen.add(server.id)
        found.append((item, server))
    return found


# -- whole inputs: one declaration, or ValidationError with every problem -----------------------------------------


def virtual_services(given: Any, path: str = "services", absent: bool = False) -> Declaration:
    """The virtual services of lvs_service and of lvs_services in the inventory.

    For absent ones the name is enough.
    """
    return services_of({path: given}, absent)


def services_of(lists: Mapping[str, Any], absent: bool = False) -> Declaration:
    """The virtual services of several lists, by their paths."""
    problems: list[str] = []
    items = [item for path, given in lists.items() for item in mappings(given, path, problems)]
    parts = [virtual_service(options, absent) for options in items]
    _unique(items, "name", [part.names[0] if part.names else "" for part in parts])
    _unique(items, "fwmark", [part.ids[0].fwmark if part.ids else 0 for part in parts])
    _unique_addresses(items, parts)
    return _joined(parts, problems)


def _unique_addresses(items: Sequence[Options], parts: Sequence[Declaration]) -> None:
    """Note each service by address that an item before has as well."""
    first: dict[ServiceId, Options] = {}
    for item, part in zip(items, parts):
        for record in part.records:
            key = record.service
            if first.setdefault(key, item) is not item:
                words = " ".join([key.address, key.protocol, str(key.port or "on every port")])
                item.problem("traffic", f"{words} is taken by {first[key].path}")


def virtual_service(options: Options, absent: bool) -> Declaration:
    """One item: a service by mark, or without fwmark one by address."""
    label = options.one("name", name, "", required=True)
    mark = options.one("fwmark", fwmark, 0)
    service = service_settings(options)
    if options.has("fwmark") or absent:
        declared = _by_mark(options, label, mark, service, absent)
    else:
        declared = _by_address(options, label, service)
    options.done()
    return declared


ServiceOf = Callable[[ServiceId], VirtualService]


def _by_mark(options: Options, label: str, mark: int, service: ServiceOf, absent: bool) -> Declaration:
    rules: list[MarkRule] = []
    for entry in options.mappings("traffic", "destination", required=not absent):
        rules += mark_rules(entry, label, mark)
        entry.done()
    families = sorted({rule.family for rule in rules})
    servers = real_servers(options, parse_port=_server_port if absent else _no_port)
    _check_families(servers, families)
    snat_rules = _helper_rules(options, label, rules, servers, service, absent)
    ids = tuple(ServiceId(family, mark) for family in (FAMILIES if absent else families) if mark)
    return Declaration(
        names=(label,) if label else (),
        rules=tuple(dict.fromkeys(rules)),
        snat_rules=tuple(snat_rules),
        pools={key: _pool(service(key), (server for _item, server in servers)) for key in ids},
        ids=ids or (ServiceId(IPV4, mark),) if mark else (),
    )


def _no_port(value: Any) -> int:
    """By mark the kernel either ignores the port of a real server, or sends all ports of the service to it."""
    raise ValueError(
        f"{show(value)} cannot be had with a fwmark: IPVS would send every port of the service to it, or none; "
        "leave fwmark out, or have the real server listen on the ports of traffic"
    )


_server_port = port


def _by_address(options: Options, label: str, service: ServiceOf) -> Declaration:
    persistent = bool(service(ServiceId(IPV4)).persistence_timeout)
    found: list[ServiceId] = []
    for entry in options.mappings("traffic", "destination", required=True):
        found += addressed(entry, persistent)
        entry.done()
    ids = tuple(dict.fromkeys(found))
    ports = sorted({key.port for key in ids})
    if persistent and len(ports) > 1:
        listed = ", ".join(map(str, ports))
        options.problem(
            "persistence_timeout",
            f"does not hold a client across the ports {listed} by address; {_NEEDS_MARK}, or make an item of each port",
        )
    others = sorted({key.protocol for key in ids} - {"udp"})
    if service(ServiceId(IPV4)).one_packet and others:
        options.problem("one_packet", f"is for udp, not {', '.join(others)}; make an item of each protocol")
    servers = real_servers(options, parse_port=_server_port)
    _check_families(servers, sorted({key.family for key in ids}))
    _check_ports(servers, ports)
    records = tuple(ServiceRecord(label, key) for key in ids)
    return Declaration(
        names=(label,) if label else (),
        snat_rules=tuple(_helper_rules(options, label, records, servers, service)),
        pools={key: _pool(service(key), (server for _item, server in servers)) for key in ids},
        ids=ids,
        records=records,
    )


def _check_ports(servers: Iterable[tuple[Options, RealServer]], ports: Sequence[int]) -> None:
    """The port of a real server is another one than that of its service: only masquerade rewrites it."""
    for item, server in servers:
        if server.port and server.forward_method != "masquerade" and list(ports) != [server.port]:
            item.problem("port", f"only masquerade can translate to port {server.port}, not {server.forward_method}")
        elif server.port and (len(ports) > 1 or 0 in ports):
            several = "every port" if 0 in ports else f"the ports {', '.join(map(str, ports))}"
            item.problem("port", f"{server.port} needs traffic with one port, not {several}; make an item of each port")


def _helper_rules(
    options: Options,
    label: str,
    traffic: Sequence[Traffic],
    servers: Iterable[tuple[Options, RealServer]],
    service: ServiceOf,
    absent: bool = False,
) -> list[SnatRule]:
    if not options.one("helper", helper_name, "") or absent:
        return []
    persistent = bool(service(ServiceId(IPV4)).persistence_timeout)
    return ftp_rules(options, label, traffic, [server for _item, server in servers], persistent)


def _check_families(servers: Iterable[tuple[Options, RealServer]], families: Sequence[str]) -> None:
    """A real server belongs to the half of the service that has its own family; without that half it is a mistake."""
    for item, server in servers:
        family = family_of(server.address)
        if families and family not in families:
            item.problem("address", f"{server.address} is {FAMILY_WORDS[family]}, but no destination of the service is")


def ftp_rules(
    options: Options,
    label: str,
    rules: Sequence[Traffic],
    servers: Sequence[RealServer],
    persistent: bool,
) -> list[SnatRule]:
    """What active FTP needs behind masquerading: data connections of the real servers come from the virtual address.

    The helper in the kernel does that where it can read the control connection; the rules do it for the others (TLS),
    and they make the kernel track connections, without which the helper lets PASV replies pass unchanged.
    """
    if not persistent:
        options.problem("persistence_timeout", "is needed for ftp: its two connections must meet the same real server")
    data = (FTP_DATA_PORT, "active data connections")
    # By address IPVS takes data connections for those of the service with port 21 without being told.
    by_mark = [rule for rule in rules if isinstance(rule, MarkRule)]
    for number, use in ((FTP_CONTROL_PORT, "the control connection"), *([data] if by_mark else [])):
        if not any(rule.protocol in ("tcp", "") and _has_port(rule, number) for rule in rules):
            options.problem("traffic", f"has no tcp port {number}, which ftp needs for {use}")
    masqueraded = [server for server in servers if server.forward_method == "masquerade"]
    found = []
    for family in sorted({family_of(server.address) for server in masqueraded}):
        vips = {rule.destination for rule in rules if rule.family == family}
        vip, _slash, length = min(vips, default="").partition("/")
        if len(vips) != 1 or int(length) != FULL_NETMASK[family]:
            options.problem("helper", f"ftp with masquerading needs one {FAMILY_WORDS[family]} address as destination")
        else:
            # In one order, whatever that of the real servers: the kernel does not keep theirs.
            own = sorted(server.address for server in masqueraded if family_of(server.address) == family)
            found += [SnatRule(label, address, FTP_DATA_PORT, vip) for address in own]
    return found


def _has_port(rule: Traffic, number: int) -> bool:
    return not rule.ports or any(low <= number <= high for low, high in rule.ports)


def _pool(service: VirtualService, servers: Iterable[RealServer]) -> Pool:
    """The service with those real servers that are of its own family; by address each has a port."""
    own = (
        server if server.port else server._replace(port=service.id.port)
        for server in servers
        if family_of(server.address) == service.id.family
    )
    return Pool(service, {server.id: server for server in own})


def marks(given: Any, path: str = "rules", absent: bool = False) -> Declaration:
    """The MARK rules of iptables_mark. For absent ones the name is enough."""
    problems: list[str] = []
    rules: list[MarkRule] = []
    names: list[str] = []
    for options in mappings(given, path, problems):
        label = options.one("name", name, "", required=True)
        mask = options.one("mask", integer(1, FULL_MASK, "a mask"), FULL_MASK)
        mark = options.one("mark", fwmark, 0, required=not absent)
        if mark & ~mask:
            options.problem("mark", f"{mark:#x} has bits outside the mask {mask:#x}")
        if not absent or options.value("destination") is not None:
            rules += mark_rules(options, label, mark, mask, IPTABLES_MARK)
        else:
            for key in ("protocol", "ports", "source", "in_interface", "exclude_mac"):
                options.value(key)
        options.done()
        names.append(label)
    # Of equal rules the last one counts: a rule between them overrides only the first.
    last = tuple(dict.fromkeys(reversed(rules)))[::-1]
    declared = _joined([Declaration(names=tuple(dict.fromkeys(names)), rules=last)], problems)
    return replace(declared, owner=IPTABLES_MARK)


def ipvs_services(given: Any, path: str = "services", absent: bool = False) -> Declaration:
    """The virtual services of ipvs_service, by mark or by address. For absent ones what identifies them is enough."""
    problems: list[str] = []
    parts: list[Declaration] = []
    seen: set[ServiceId] = set()
    for options in mappings(given, path, problems):
        service_id = ipvs_service_id(options)
        service = service_settings(options)
        servers = real_servers(options, default_port=service_id.port if service_id else 0)
        if service_id:
            if service_id in seen:
                options.problem("", "is the same service as an item before it")
            seen.add(service_id)
            _check_ipvs_service(options, service(service_id), servers, absent)
            pool = Pool(service(service_id), {server.id: server for _item, server in servers})
            parts.append(Declaration(pools={service_id: pool}, ids=(service_id,)))
        options.done()
    return _joined(parts, problems)


def ipvs_service_id(options: Options) -> ServiceId | None:
    """Mark and family, or protocol, address and port."""
    mark = options.one("fwmark", fwmark, 0)
    family = options.one("family", family_name, "")
    protocol = options.one("protocol", protocol_name, "")
    address = options.one("address", unicast_address, "")
    by_address = [key for key in ("protocol", "address", "port") if options.value(key) is not None]
    if options.value("fwmark") is not None:
        for key in by_address:
            options.problem(key, "does not go together with fwmark")
        return ServiceId(family or IPV4, mark) if mark and not by_address else None
    if len(by_address) < 3:
        options.problem("", "needs fwmark, or protocol, address and port")
        return None
    virtual_port = options.one("port", any_port, -1)
    if address and family and family != family_of(address):
        options.problem("family", f"{family} does not fit the address {address}")
    if not address or not protocol or virtual_port < 0:
        return None
    return ServiceId(family_of(address), protocol=protocol, address=address, port=virtual_port)


def _check_ipvs_service(
    options: Options, service: VirtualService, servers: Iterable[tuple[Options, RealServer]], absent: bool
) -> None:
    """What the kernel refuses or silently makes something else of, or ipvsadm would not restore at boot."""
    service_id = service.id
    if service.one_packet and service_id.protocol not in ("", "udp"):
        options.problem("one_packet", f"is for udp, not {service_id.protocol}")
    if not service_id.fwmark and not service_id.port and not service.persistence_timeout and not absent:
        options.problem("port", "0 stands for every port, and needs persistence_timeout")
    for item, server in servers:
        if family_of(server.address) != service_id.family and server.forward_method != "tunnel":
            item.problem("address", f"{server.address} is of the other family, which only a tunnel allows")
        if not service_id.fwmark and server.forward_method != "masquerade" and server.port != service_id.port:
            item.problem("port", f"{server.port} is not the port of the service; only masquerade can translate it")


def chain_of(given: Any, path: str = "chain") -> str:
    """The name of a chain of our own."""
    try:
        if given in BUILTIN_CHAINS:
            raise ValueError(f"{given} belongs to the kernel, not to us")
        return chain_name(given)
    except ValueError as error:
        raise ValidationError([f"{path}: {error}"]) from None


def _unique(items: Sequence[Options], key: str, values: Sequence[Any]) -> None:
    """Note each item that has the same value as one before it."""
    first: dict[Any, Options] = {}
    for item, value in zip(items, values):
        if value and value in first:
            item.problem(key, f"{value} is taken by {first[value].path}")
        first.setdefault(value, item)


def _joined(parts: Sequence[Declaration], problems: Sequence[str]) -> Declaration:
    if problems:
        raise ValidationError(problems)
    return Declaration(
        names=tuple(label for part in parts for label in part.names),
        rules=tuple(rule for part in parts for rule in part.rules),
        snat_rules=tuple(rule for part in parts for rule in part.snat_rules),
        pools={key: pool for part in parts for key, pool in part.pools.items()},
        ids=tuple(key for part in parts for key in part.ids),
        records=tuple(record for part in parts for record in part.records),
    )
