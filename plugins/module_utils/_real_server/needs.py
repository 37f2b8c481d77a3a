# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What virtual services need of a machine that is a real server of them. PRIVATE to the collection. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any, Iterable, Mapping, Sequence, Tuple

from .._declared.options import Options, integer, unicast_address
from .._errors import MISSHAPEN, ValidationError, not_understood
from .._ip.words import device
from .._model import FULL_NETMASK, IPV4, IPV6, Declaration, RealServer, ServiceId, family_of

# The device that takes a tunnel's packets, by type and family of the tunnel: what we call it, and its type for ip.
# GUE is IPIP in UDP: the kernel's port takes off the UDP, and leaves the rest to a device for IPIP.
_DEVICES = {
    ("ipip", IPV4): ("lvs-ipip", "ipip"),
    ("gue", IPV4): ("lvs-ipip", "ipip"),
    ("gre", IPV4): ("lvs-gre", "gre"),
    ("ipip", IPV6): ("lvs-ip6ip6", "ip6tnl mode ip6ip6"),
    ("gue", IPV6): ("lvs-ip6ip6", "ip6tnl mode ip6ip6"),
    ("gre", IPV6): ("lvs-ip6gre", "ip6gre"),
}
_IP_HEADER = {IPV4: 20, IPV6: 40}
_TCP_HEADER = 20
# What comes between the two IP headers, and what a checksum of that kind adds to it.
_TUNNEL_HEADER = {"ipip": 0, "gre": 4, "gue": 12}
_CHECKSUM_FIELD = {("gre", "csum"): 4, ("gue", "remcsum"): 8}
# ip knows the family of a rule or a port only where it is told.
_FAMILY_OPTION = {IPV4: "", IPV6: "-6 "}

# A real server that this machine is, and the service it is one of.
Member = Tuple[ServiceId, RealServer]


@dataclass(frozen=True)
class Needs:
    """Commands of ip; settings that come before the addresses, and settings of devices that the commands make first.

    segments: the largest TCP segment that fits through the tunnels, by virtual address.
    """

    commands: list[str]
    sysctls: Mapping[str, int]
    device_sysctls: Mapping[str, int]
    segments: Mapping[str, int]


@dataclass(frozen=True)
class Machine:
    """A machine's addresses, each with its device, and how it is to be a real server."""

    devices: Mapping[str, str]
    vip_interface: str
    gateways: Mapping[str, str]
    gateway_table: int
    mtu: int


def machine(links: Any, settings: Any) -> Machine:
    """The machine of which this is what "ip -json address show" prints.

    Raises ValidationError with every problem, or ParseError.
    """
    problems: list[str] = []
    options = Options(settings, "lvs_real_server", problems)
    there = _devices(links)
    chosen = options.many("addresses", unicast_address, may_be_empty=True) or there
    gateways = options.many("gateways", unicast_address, may_be_empty=True)
    if len({family_of(gateway) for gateway in gateways}) < len(gateways):
        options.problem("gateways", "takes one address of each family")
    found = Machine(
        devices={address: there.get(address, "") for address in chosen},
        vip_interface=options.one("vip_interface", device, "lo"),
        gateways={family_of(gateway): gateway for gateway in gateways},
        # Two priorities are made of it, both in front of table main.
        gateway_table=options.one("gateway_table", integer(1, 252, "a routing table"), 110),
        mtu=options.one("mtu", integer(1280, 65535, "an MTU"), 1500),
    )
    options.done()
    if problems:
        raise ValidationError(problems)
    return found


def _devices(links: Any) -> dict[str, str]:
    """The addresses, each with its device. Raises ParseError."""
    try:
        return {
            str(ip_address(entry["local"])): link["ifname"]
            for link in links
            for entry in link.get("addr_info", [])
            if "local" in entry
        }
    except MISSHAPEN as error:
        raise not_understood("ip -json address show", error) from None


def needs(declared: Declaration, own: Machine) -> Needs:
    """What this machine needs as a real server; nothing if it is none."""
    members = [
        (key, server)
        for key, pool in declared.pools.items()
        for server in pool.real_servers.values()
        if server.address in own.devices
    ]
    tunnels = [(key, server) for key, server in members if server.forward_method == "tunnel"]
    links = _links(tunnels)
    vips = [(own.vip_interface, vip) for vip in _vips(declared, members, "direct")]
    vips += [(links[_end(member)].name, vip) for member in tunnels for vip in _vips(declared, [member], "tunnel")]
    routed = _routed(members, own.gateways)
    return Needs(
        commands=[
            *_ports(tunnels),
            *(link.command for link in links.values()),
            *_routes(routed, own.gateway_table),
            *_addresses(vips),
        ],
        sysctls={**_arp_sysctls(vips), **_redirect_sysctls(routed, own.devices)},
        device_sysctls={f"net/ipv4/conf/{link.name}/rp_filter": 2 for link in links.values() if link.family == IPV4},
        segments=_segments(declared, tunnels, own.mtu),
    )


def _vips(declared: Declaration, members: Iterable[Member], method: str) -> list[str]:
    """The single addresses among the destinations of the services that have a member by this forwarding method."""
    services = {key for key, server in members if server.forward_method == method}
    networks = (ip_network(one.destination) for one in declared.traffic if one.service in services)
    return [str(network.network_address) for network in networks if network.num_addresses == 1]


def _addresses(vips: Iterable[tuple[str, str]]) -> list[str]:
    """Each once; an IPv6 address only for answers (deprecated), and at once: nobody else on its device can have it."""
    found = sorted(set(vips), key=lambda pair: (family_of(pair[1]), ip_address(pair[1]), pair[0]))
    ending = {IPV4: "", IPV6: " nodad preferred_lft 0"}
    return [
        f"address add {vip}/{FULL_NETMASK[family_of(vip)]} dev {name}{ending[family_of(vip)]}" for name, vip in found
    ]


def _arp_sysctls(vips: Iterable[tuple[str, str]]) -> dict[str, int]:
    """Linux answers ARP for the addresses of all its interfaces, and asks with any of them as the sender.

    For IPv6 there is nothing to set: it answers a neighbour solicitation only for an address of the interface that the
    solicitation came in by.
    """
    if all(family_of(vip) == IPV6 for _name, vip in vips):
        return {}
    return {"net/ipv4/conf/all/arp_ignore": 1, "net/ipv4/conf/all/arp_announce": 2}


# -- tunnels ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Link:
    """A tunnel device for packets of any router, with the virtual addresses that they are for.

    What comes out of the tunnel is a client's packet whose answer goes elsewhere, so the strict filter of sources drops
    it; and the loose one does, too, on a device that has no address. A strict setting of "all" is no obstacle: the
    larger number counts, and the loose filter is 2.
    """

    name: str
    family: str
    command: str


def _ports(tunnels: Iterable[Member]) -> list[str]:
    ports = {(key.family, server.tunnel_port) for key, server in tunnels if server.tunnel_port}
    return [f"{_FAMILY_OPTION[family]}fou add port {port} gue" for family, port in sorted(ports)]


def _end(member: Member) -> tuple[str, str]:
    """What tunnels that share a device have in common: its kind, and the address of ours that they end at."""
    key, server = member
    return _DEVICES[server.tunnel_type, key.family][0], server.address


def _links(tunnels: Sequence[Member]) -> dict[tuple[str, str], Link]:
    """The devices by their ends. The first of a kind has its plain name, further ones a number."""
    links: dict[tuple[str, str], Link] = {}
    problems = []
    for base, address in sorted({_end(member) for member in tunnels}):
        sharing = [member for member in tunnels if _end(member) == (base, address)]
        key, server = sharing[0]
        if len({_checked(other) for _key, other in sharing}) > 1:
            problems.append(f"{address}: tunnel_checksum: its device takes GRE either with a checksum or without")
        number = 1 + sum(kind == base for kind, _address in links)
        name = base if number == 1 else f"{base}{number}"
        settings = f"type {_DEVICES[server.tunnel_type, key.family][1]} local {address}"
        command = f"link add {name} up {settings}{' icsum' if _checked(server) else ''}"
        links[base, address] = Link(name, key.family, command)
    if problems:
        raise ValidationError(problems)
    return links


def _checked(server: RealServer) -> bool:
    return server.tunnel_type == "gre" and server.tunnel_checksum == "csum"


def _segments(declared: Declaration, tunnels: Iterable[Member], mtu: int) -> dict[str, int]:
    """What both IP headers, the tunnel's own and the TCP header leave for a segment."""
    found: dict[str, int] = {}
    for key, server in tunnels:
        between = _TUNNEL_HEADER[server.tunnel_type]
        between += _CHECKSUM_FIELD.get((server.tunnel_type, server.tunnel_checksum), 0)
        for vip in _vips(declared, [(key, server)], "tunnel"):
            found[vip] = min(found.get(vip, mtu), mtu - 2 * _IP_HEADER[key.family] - between - _TCP_HEADER)
    return found


# -- masquerading -------------------------------------------------------------------------------------------------


def _routed(members: Iterable[Member], gateways: Mapping[str, str]) -> dict[str, str]:
    """The addresses of ours whose answers have to go back through a router, each with that router."""
    addresses = {server.address for _key, server in members if server.forward_method == "masquerade"}
    return {address: gateways[family_of(address)] for address in sorted(addresses) if family_of(address) in gateways}


def _routes(routed: Mapping[str, str], table: int) -> list[str]:
    """What leaves from these addresses goes to the router, but for what table main has a route of its own for."""
    ways = {family_of(address): gateway for address, gateway in routed.items()}
    commands = [
        f"{_FAMILY_OPTION[family]}route add default via {gateway} table {table}"
        for family, gateway in sorted(ways.items())
    ]
    for address in routed:
        rule = f"{_FAMILY_OPTION[family_of(address)]}rule add from {address}"
        commands += [
            f"{rule} lookup main suppress_prefixlength 0 priority {table}",
            f"{rule} lookup {table} priority {table + 1}",
        ]
    return commands


def _redirect_sysctls(routed: Mapping[str, str], devices: Mapping[str, str]) -> dict[str, int]:
    """A router with one interface tells of a shorter way to the client, past itself, and so past the masquerading.

    A machine that does not forward believes it if "all" or the device says so; for IPv6 the device alone counts.
    """
    scopes = {(family_of(address), scope) for address in routed for scope in ("all", devices[address]) if scope}
    return {f"net/{family}/conf/{scope}/accept_redirects": 0 for family, scope in sorted(scopes)}
