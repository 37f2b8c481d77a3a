# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Netlink as bytes: its messages, and the attributes in them. PRIVATE to the collection. Pure.

Netlink is in the byte order of the machine.
"""

from __future__ import annotations

import struct
from typing import Dict, Iterator, NamedTuple, Tuple

from .._errors import ParseError

# An attribute's type and its payload.
Attributes = Dict[int, bytes]
# One message: its type, its sequence number, what follows the netlink header.
Message = Tuple[int, int, bytes]

NLMSG_ERROR, NLMSG_DONE = 2, 3
# Of linux/err.h: no error of the kernel has a larger number.
_MAX_ERRNO = 4095
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
# Of an answer: what was dumped has changed meanwhile.
_NLM_F_DUMP_INTR = 0x10
GENL_ID_CTRL, CTRL_CMD_GETFAMILY = 0x10, 3
CTRL_ATTR_FAMILY_ID, CTRL_ATTR_FAMILY_NAME = 1, 2

_NLMSGHDR = struct.Struct("=IHHII")
_GENLMSGHDR = struct.Struct("=BBH")
_NLATTR = struct.Struct("=HH")
_U16 = struct.Struct("=H")


def message(kind: int, flags: int, sequence: int, command: int, payload: bytes, version: int = 1) -> bytes:
    """A request. The port id stays 0: the kernel knows whose socket it is.

    Of generic netlink, where the families needed here are at version 1; nfnetlink has a header of the same form, with a
    family in place of the command.
    """
    body = _GENLMSGHDR.pack(command, version, 0) + payload
    return _NLMSGHDR.pack(_NLMSGHDR.size + len(body), kind, NLM_F_REQUEST | flags, sequence, 0) + body


class DumpInterrupted(ParseError):
    """What was being dumped has changed meanwhile."""


def messages(data: bytes) -> Iterator[Message]:
    """The messages of one datagram. Raises ParseError where a length cannot be true, and DumpInterrupted."""
    offset = 0
    while offset < len(data):
        if len(data) - offset < _NLMSGHDR.size:
            raise ParseError("netlink: a message is shorter than its header")
        length, kind, flags, sequence, _port = _NLMSGHDR.unpack_from(data, offset)
        if not _NLMSGHDR.size <= length <= len(data) - offset:
            raise ParseError(f"netlink: a message of {length} bytes where {len(data) - offset} are left")
        if flags & _NLM_F_DUMP_INTR:
            raise DumpInterrupted("netlink: what was read has changed meanwhile")
        yield kind, sequence, data[offset + _NLMSGHDR.size : offset + length]
        offset += _aligned(length)


def error_code(body: bytes) -> int:
    """The errno of an NLMSG_ERROR message, 0 for an acknowledgement."""
    if len(body) < 4:
        raise ParseError("netlink: an error message without an error")
    code = -int(struct.unpack_from("=i", body)[0])
    if not 0 <= code <= _MAX_ERRNO:
        raise ParseError(f"netlink: {code} is not the number of an error")
    return code


def generic_attributes(body: bytes) -> Attributes:
    """The attributes behind the header of generic netlink or nfnetlink."""
    return attributes(body[_GENLMSGHDR.size :])


def attributes(data: bytes) -> Attributes:
    """The attributes of a message, or inside a nested attribute."""
    layout, payloads = _unpacked(data)
    return dict(zip(layout.kinds, payloads))


def elements(data: bytes) -> tuple[bytes, ...]:
    """The payloads inside a nested attribute that is a list: all are of one type."""
    return _unpacked(data)[1]


def _unpacked(data: bytes) -> tuple[_Layout, tuple[bytes, ...]]:
    """Thousands of entries differ only in the payloads, so the layout of the last one of this size is tried first."""
    layout = _LAYOUTS.get(len(data))
    fields = layout.fields.unpack(data) if layout else ()
    if not layout or fields[::2] != layout.headers:
        layout = _LAYOUTS[len(data)] = _layout(data)
        fields = layout.fields.unpack(data)
    return layout, fields[1::2]


class _Layout(NamedTuple):
    """What stands where in a message: header and payload of each attribute in turn; their headers, and their types."""

    fields: struct.Struct
    headers: tuple[bytes, ...]
    kinds: tuple[int, ...]


_LAYOUTS: dict[int, _Layout] = {}


def _layout(data: bytes) -> _Layout:
    """Raises ParseError where a length cannot be true."""
    fields, headers, kinds = [], [], []
    offset, end = 0, len(data)
    while offset < end:
        if end - offset < _NLATTR.size:
            raise ParseError("netlink: an attribute is shorter than its header")
        length, kind = _NLATTR.unpack_from(data, offset)
        if not _NLATTR.size <= length <= end - offset:
            raise ParseError(f"netlink: an attribute of {length} bytes where {end - offset} are left")
        size = min(_aligned(length), end - offset)
        fields.append(f"{_NLATTR.size}s{length - _NLATTR.size}s{size - length}x")
        headers.append(data[offset : offset + _NLATTR.size])
        kinds.append(kind & 0x3FFF)
        offset += size
    return _Layout(struct.Struct("".join(fields)), tuple(headers), tuple(kinds))


def nested(found: Attributes, kind: int) -> Attributes:
    """The attributes inside one that every answer of its kind has."""
    if kind not in found:
        raise ParseError(f"netlink: attribute {kind} is missing")
    return attributes(found[kind])


def family_id(found: Attributes) -> int:
    """The number under which a generic netlink family takes messages, from CTRL_CMD_GETFAMILY."""
    return integer(_U16, found, CTRL_ATTR_FAMILY_ID)


def attribute(kind: int, payload: bytes) -> bytes:
    padding = b"\0" * (-len(payload) % 4)
    return _NLATTR.pack(_NLATTR.size + len(payload), kind) + payload + padding


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def integer(layout: struct.Struct, found: Attributes, kind: int) -> int:
    """A number; 0 where an older kernel does not report it. Raises ParseError for another size."""
    payload = found.get(kind)
    if payload is None:
        return 0
    if len(payload) != layout.size:
        raise ParseError(f"netlink: attribute {kind} has {len(payload)} bytes instead of {layout.size}")
    return int(layout.unpack(payload)[0])
