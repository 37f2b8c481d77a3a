# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Virtual services in the words of ipvsadm. PRIVATE to the collection. Pure.

A real server has two forms because it has two there: people type "-r 10.0.0.11", ipvsadm -S prints "-r 10.0.0.11:0".
Unlike those of ipvsadm -S the lines here are complete: it leaves thresholds out, though ipvsadm -R takes them.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Iterable, Mapping

from .._model import FULL_NETMASK, IPV4, IPV6, IpvsOperation, Pool, RealServer, ServiceId, VirtualService, family_of

_FORWARD = {"direct": "-g", "masquerade": "-m", "tunnel": "-i"}
_PROTOCOL = {"tcp": "-t", "udp": "-u", "sctp": "--sctp-service"}


def endpoint(address: str, port: int) -> str:
    """ADDRESS:PORT, IPv6 in brackets."""
    return f"[{address}]:{port}" if family_of(address) == IPV6 else f"{address}:{port}"


def service_words(service_id: ServiceId) -> str:
    """What names a service. -6 comes straight after -f: anywhere else ipvsadm refuses it or drops the netmask."""
    if not service_id.fwmark:
        return f"{_PROTOCOL[service_id.protocol]} {endpoint(service_id.address, service_id.port)}"
    return f"-f {service_id.fwmark}{' -6' if service_id.family == IPV6 else ''}"


def netmask_words(prefix: int | str, family: str) -> str:
    """A persistence netmask as ipvsadm writes it: dotted for IPv4, a prefix length for IPv6."""
    return str(prefix) if family == IPV6 or isinstance(prefix, str) else str(ip_network(f"0.0.0.0/{prefix}").netmask)


def settings_words(service: VirtualService) -> str:
    words = [f"-s {service.scheduler}"]
    if service.persistence_timeout:
        words.append(f"-p {service.persistence_timeout}")
        if service.persistence_netmask != FULL_NETMASK[service.id.family]:
            words.append(f"-M {netmask_words(service.persistence_netmask, service.id.family)}")
    if service.persistence_engine:
        words.append(f"--pe {service.persistence_engine}")
    if service.one_packet:
        words.append("-o")
    if service.scheduler_flags:
        words.append(f"-b {','.join(service.scheduler_flags)}")
    return " ".join(words)


def real_server_words(server: RealServer) -> str:
    words = [_FORWARD.get(server.forward_method, f"({server.forward_method})"), f"-w {server.weight}"]
    if server.upper_threshold:
        words.append(f"-x {server.upper_threshold}")
    if server.lower_threshold:
        words.append(f"-y {server.lower_threshold}")
    if server.tunnel_type:
        words.append(f"--tun-type {server.tunnel_type}")
    if server.tunnel_port:
        words.append(f"--tun-port {server.tunnel_port}")
    if server.tunnel_checksum:
        words.append(f"--tun-{server.tunnel_checksum}")
    return " ".join(words)


def command_line(operation: IpvsOperation) -> str:
    """One operation as the ipvsadm command that does the same."""
    words = f"ipvsadm -{operation.command} {service_words(operation.service.id)}"
    server = operation.real_server
    if server is None:
        return words if operation.command == "D" else f"{words} {settings_words(operation.service)}"
    words += f" -r {endpoint(server.address, server.port) if server.port else server.address}"
    return words if operation.command == "d" else f"{words} {real_server_words(server)}"


def save_lines(pools: Mapping[ServiceId, Pool]) -> list[str]:
    """The table as ipvsadm -S -n prints it, thresholds added; ordered by what identifies an entry."""
    lines: list[str] = []
    for service_id in sorted(pools, key=_service_order):
        pool = pools[service_id]
        words = service_words(service_id)
        lines.append(f"-A {words} {settings_words(pool.service)}")
        lines += [f"-a {words} {_saved(server)}" for server in _in_order(pool.real_servers.values())]
    return lines


def _saved(server: RealServer) -> str:
    return f"-r {endpoint(server.address, server.port)} {real_server_words(server)}"


def _in_order(servers: Iterable[RealServer]) -> list[RealServer]:
    return sorted(servers, key=lambda server: (*_address_order(server.address), server.port))


def _service_order(service_id: ServiceId) -> tuple[bool, int, bool, int, str, int]:
    marked = bool(service_id.fwmark)
    address = _address_order(service_id.address)[1] if service_id.address else 0
    return (marked, service_id.fwmark, service_id.family != IPV4, address, service_id.protocol, service_id.port)


def _address_order(address: str) -> tuple[int, int]:
    parsed = ip_address(address)
    return (parsed.version, int(parsed))
