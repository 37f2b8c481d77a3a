# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The kernel's IPVS interface as bytes: generic netlink, linux/ip_vs.h. PRIVATE to the collection. Pure.

Netlink is in the byte order of the machine; addresses, ports and the IPv4 netmask are in network order inside it.
"""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address
from typing import Any, List, Tuple

from .._errors import ParseError
from .._model import FULL_NETMASK, IPV4, IPV6, RealServer, ServiceId, VirtualService, family_of, flag_names
from .._netlink.messages import Attributes, attribute, attributes, integer

# A virtual service and its real servers as the kernel reports them.
Entry = Tuple[Attributes, List[Attributes]]

IPVS_GENL_NAME, IPVS_GENL_VERSION = "IPVS", 1

CMD_NEW_SERVICE, CMD_SET_SERVICE, CMD_DEL_SERVICE, CMD_GET_SERVICE = 1, 2, 3, 4
CMD_NEW_DEST, CMD_SET_DEST, CMD_DEL_DEST, CMD_GET_DEST = 5, 6, 7, 8
CMD_GET_DAEMON, CMD_GET_CONFIG = 11, 13
# ipvsadm's letters, which the plan speaks, to the kernel's commands.
COMMANDS = {
    "A": CMD_NEW_SERVICE,
    "E": CMD_SET_SERVICE,
    "D": CMD_DEL_SERVICE,
    "a": CMD_NEW_DEST,
    "e": CMD_SET_DEST,
    "d": CMD_DEL_DEST,
}

ATTR_SERVICE, ATTR_DEST, ATTR_DAEMON = 1, 2, 3
ATTR_TIMEOUT_TCP, ATTR_TIMEOUT_TCP_FIN, ATTR_TIMEOUT_UDP = 4, 5, 6
SVC_AF, SVC_PROTOCOL, SVC_ADDR, SVC_PORT, SVC_FWMARK, SVC_SCHED, SVC_FLAGS = 1, 2, 3, 4, 5, 6, 7
SVC_TIMEOUT, SVC_NETMASK, SVC_STATS, SVC_PE, SVC_STATS64 = 8, 9, 10, 11, 12
DEST_ADDR, DEST_PORT, DEST_METHOD, DEST_WEIGHT, DEST_UPPER, DEST_LOWER = 1, 2, 3, 4, 5, 6
DEST_ACTIVE, DEST_INACTIVE, DEST_PERSISTENT, DEST_STATS, DEST_AF, DEST_STATS64 = 7, 8, 9, 10, 11, 12
DEST_TUN_TYPE, DEST_TUN_PORT, DEST_TUN_FLAGS = 13, 14, 15
DAEMON_STATE, DAEMON_IFN, DAEMON_SYNC_ID, DAEMON_MAXLEN, DAEMON_GROUP, DAEMON_GROUP6 = 1, 2, 3, 4, 5, 6
DAEMON_PORT, DAEMON_TTL = 7, 8

F_PERSISTENT, F_ONE_PACKET, F_SCHEDULER = 0x1, 0x4, (0x8, 0x10, 0x20)
# The kernel ORs flags of its own into what it reports (0x2: hashed); only these are settings.
F_SETTINGS = F_PERSISTENT | F_ONE_PACKET | sum(F_SCHEDULER)
FORWARD_METHODS = ("masquerade", "local", "tunnel", "direct", "bypass")
FORWARD_MASK = 0x7
TUNNEL_TYPES = ("ipip", "gue", "gre")
TUNNEL_CHECKSUMS = ("nocsum", "csum", "remcsum")
PROTOCOLS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP, "sctp": 132}
PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}
AF = {IPV4: int(socket.AF_INET), IPV6: int(socket.AF_INET6)}
FAMILY = {number: name for name, number in AF.items()}

_U8, _U16, _U32, _U64 = struct.Struct("=B"), struct.Struct("=H"), struct.Struct("=I"), struct.Struct("=Q")
_BE16 = struct.Struct("!H")


# -- addresses ----------------------------------------------------------------------------------------------------


def _text(value: str) -> bytes:
    return value.encode("ascii") + b"\0"


def _string(payload: bytes) -> str:
    return payload.split(b"\0", 1)[0].decode("ascii", "replace")


def _packed(address: str) -> bytes:
    """The kernel's address union: always 16 bytes, IPv4 in the first four."""
    return socket.inet_pton(AF[family_of(address)], address).ljust(16, b"\0")


def _address(family: str, packed: bytes) -> str:
    size = 4 if family == IPV4 else 16
    if len(packed) < size:
        raise ParseError(f"netlink: an {family} address of {len(packed)} bytes")
    return _canonical(socket.inet_ntop(AF[family], packed[:size]))


def _canonical(address: str) -> str:
    """inet_ntop prints ::ffff:192.0.2.1 where ipaddress prints hexadecimal; all else is the same."""
    if ":" not in address or "." not in address:
        return address
    return str(ip_address(address))


def _family(number: int) -> str:
    if number not in FAMILY:
        raise ParseError(f"netlink: unknown address family {number}")
    return FAMILY[number]


def _protocol(number: int) -> str:
    if number not in PROTOCOL_NAMES:
        raise ParseError(f"netlink: unknown protocol {number}")
    return PROTOCOL_NAMES[number]


# -- services -----------------------------------------------------------------------------------------------------


def encode_id(service_id: ServiceId) -> bytes:
    """The nested attribute that names a service."""
    return attribute(ATTR_SERVICE, _id(service_id))


def _id(service_id: ServiceId) -> bytes:
    family = attribute(SVC_AF, _U16.pack(AF[service_id.family]))
    if service_id.fwmark:
        return family + attribute(SVC_FWMARK, _U32.pack(service_id.fwmark))
    return b"".join(
        (
            family,
            attribute(SVC_PROTOCOL, _U16.pack(PROTOCOLS[service_id.protocol])),
            attribute(SVC_ADDR, _packed(service_id.address)),
            attribute(SVC_PORT, _BE16.pack(service_id.port)),
        )
    )


def encode_service(service: VirtualService) -> bytes:
    """The nested attribute with every setting: the kernel resets what an edit does not mention."""
    settings = [
        _id(service.id),
        attribute(SVC_SCHED, _text(service.scheduler)),
        attribute(SVC_FLAGS, _U32.pack(_flags(service)) + _U32.pack(0xFFFFFFFF)),
        attribute(SVC_TIMEOUT, _U32.pack(service.persistence_timeout)),
        attribute(SVC_NETMASK, _netmask(service)),
    ]
    if service.persistence_engine:
        settings.append(attribute(SVC_PE, _text(service.persistence_engine)))
    return attribute(ATTR_SERVICE, b"".join(settings))


def _flags(service: VirtualService) -> int:
    names = flag_names(service.scheduler)
    flags = sum(bit for bit, name in zip(F_SCHEDULER, names) if name in service.scheduler_flags)
    flags |= F_PERSISTENT if service.persistence_timeout else 0
    return flags | (F_ONE_PACKET if service.one_packet else 0)


def _netmask(service: VirtualService) -> bytes:
    """A prefix length for IPv6, a mask in network order for IPv4."""
    prefix = service.persistence_netmask
    if isinstance(prefix, str):
        return _packed(prefix)[:4]
    return _U32.pack(prefix) if service.id.family == IPV6 else _mask(prefix)


def _mask(prefix: int) -> bytes:
    return struct.pack("!I", (0xFFFFFFFF << (32 - prefix)) & 0xFFFFFFFF)


def decode_service(found: Attributes) -> VirtualService:
    """A virtual service from the attributes inside ATTR_SERVICE."""
    service_id = decode_id(found)
    flags = struct.unpack("=I", found[SVC_FLAGS][:4])[0] & F_SETTINGS if len(found.get(SVC_FLAGS, b"")) >= 4 else 0
    scheduler = _string(found.get(SVC_SCHED, b""))
    timeout = integer(_U32, found, SVC_TIMEOUT) if flags & F_PERSISTENT else 0
    names = flag_names(scheduler)
    return VirtualService(
        id=service_id,
        scheduler=scheduler,
        scheduler_flags=tuple(name for bit, name in zip(F_SCHEDULER, names) if flags & bit),
        persistence_timeout=timeout,
        persistence_netmask=_prefix(service_id.family, found) if timeout else FULL_NETMASK[service_id.family],
        persistence_engine=_string(found.get(SVC_PE, b"")),
        one_packet=bool(flags & F_ONE_PACKET),
    )


def decode_id(found: Attributes) -> ServiceId:
    family = _family(integer(_U16, found, SVC_AF))
    fwmark = integer(_U32, found, SVC_FWMARK)
    if fwmark:
        return ServiceId(family, fwmark)
    return ServiceId(
        family,
        protocol=_protocol(integer(_U16, found, SVC_PROTOCOL)),
        address=_address(family, found.get(SVC_ADDR, b"")),
        port=integer(_BE16, found, SVC_PORT),
    )


def _prefix(family: str, found: Attributes) -> int | str:
    """A prefix length; of an IPv4 mask that is none, such as 0.255.255.255, the mask itself."""
    number = integer(_U32, found, SVC_NETMASK)
    if family == IPV6:
        return number
    prefix = bin(number).count("1")
    mask = _U32.pack(number)
    return prefix if mask == _mask(prefix) else _address(IPV4, mask)


# -- real servers -------------------------------------------------------------------------------------------------


def encode_real_server(server: RealServer) -> bytes:
    """The nested attribute with every setting of a real server."""
    settings = [
        _real_server_id(server),
        attribute(DEST_METHOD, _U32.pack(FORWARD_METHODS.index(server.forward_method))),
        attribute(DEST_WEIGHT, _U32.pack(server.weight)),
        attribute(DEST_UPPER, _U32.pack(server.upper_threshold)),
        attribute(DEST_LOWER, _U32.pack(server.lower_threshold)),
    ]
    if server.tunnel_type not in ("", "ipip"):
        settings += [
            attribute(DEST_TUN_TYPE, bytes([TUNNEL_TYPES.index(server.tunnel_type)])),
            attribute(DEST_TUN_PORT, _BE16.pack(server.tunnel_port)),
            attribute(DEST_TUN_FLAGS, _U16.pack(TUNNEL_CHECKSUMS.index(server.tunnel_checksum))),
        ]
    return attribute(ATTR_DEST, b"".join(settings))


def encode_real_server_id(server: RealServer) -> bytes:
    return attribute(ATTR_DEST, _real_server_id(server))


def _real_server_id(server: RealServer) -> bytes:
    return b"".join(
        (
            attribute(DEST_AF, _U16.pack(AF[family_of(server.address)])),
            attribute(DEST_ADDR, _packed(server.address)),
            attribute(DEST_PORT, _BE16.pack(server.port)),
        )
    )


def decode_real_server(found: Attributes, service_family: str) -> RealServer:
    """A real server from the attributes inside ATTR_DEST. Kernels before 3.18 leave its family to the service's."""
    family = _family(integer(_U16, found, DEST_AF)) if DEST_AF in found else service_family
    method = FORWARD_METHODS[min(integer(_U32, found, DEST_METHOD) & FORWARD_MASK, len(FORWARD_METHODS) - 1)]
    tunnel_type = TUNNEL_TYPES[integer(_U8, found, DEST_TUN_TYPE) % len(TUNNEL_TYPES)] if method == "tunnel" else ""
    encapsulated = tunnel_type not in ("", "ipip")
    checksum = TUNNEL_CHECKSUMS[integer(_U16, found, DEST_TUN_FLAGS) % len(TUNNEL_CHECKSUMS)]
    return RealServer(
        address=_address(family, found.get(DEST_ADDR, b"")),
        port=integer(_BE16, found, DEST_PORT),
        weight=integer(_U32, found, DEST_WEIGHT),
        forward_method=method,
        upper_threshold=integer(_U32, found, DEST_UPPER),
        lower_threshold=integer(_U32, found, DEST_LOWER),
        tunnel_type=tunnel_type,
        tunnel_port=integer(_BE16, found, DEST_TUN_PORT) if tunnel_type == "gue" else 0,
        tunnel_checksum=checksum if encapsulated else "",
    )


# -- counters, timeouts, daemons ----------------------------------------------------------------------------------


def decode_counters(found: Attributes, stats64: int, stats: int) -> dict[str, int]:
    """Connections, packets and bytes since the entry was made; 64 bits wide since kernel 4.1."""
    wide = stats64 in found
    inside = attributes(found[stats64 if wide else stats]) if wide or stats in found else {}
    names = ("connections", "in_packets", "out_packets", "in_bytes", "out_bytes")
    return {
        name: integer(_U64 if wide or name.endswith("bytes") else _U32, inside, kind)
        for kind, name in enumerate(names, start=1)
    }


def decode_connections(found: Attributes) -> dict[str, int]:
    return {
        "active_connections": integer(_U32, found, DEST_ACTIVE),
        "inactive_connections": integer(_U32, found, DEST_INACTIVE),
        "persistent_connections": integer(_U32, found, DEST_PERSISTENT),
    }


def decode_timeouts(found: Attributes) -> dict[str, int]:
    """Seconds an idle connection is remembered."""
    return {
        "tcp": integer(_U32, found, ATTR_TIMEOUT_TCP),
        "tcp_fin": integer(_U32, found, ATTR_TIMEOUT_TCP_FIN),
        "udp": integer(_U32, found, ATTR_TIMEOUT_UDP),
    }


def decode_daemon(found: Attributes) -> dict[str, Any]:
    """A sync daemon; what an older kernel does not report is left out."""
    daemon: dict[str, Any] = {
        "state": {1: "master", 2: "backup"}.get(integer(_U32, found, DAEMON_STATE), "none"),
        "interface": _string(found.get(DAEMON_IFN, b"")),
        "sync_id": integer(_U32, found, DAEMON_SYNC_ID),
    }
    if DAEMON_MAXLEN in found:
        daemon["sync_maxlen"] = integer(_U16, found, DAEMON_MAXLEN)
    if DAEMON_GROUP in found:
        daemon["group"] = _address(IPV4, found[DAEMON_GROUP])
    if DAEMON_GROUP6 in found:
        daemon["group"] = _address(IPV6, found[DAEMON_GROUP6])
    if DAEMON_PORT in found:
        daemon["port"] = integer(_U16, found, DAEMON_PORT)
    if DAEMON_TTL in found:
        daemon["ttl"] = integer(_U8, found, DAEMON_TTL)
    return daemon
