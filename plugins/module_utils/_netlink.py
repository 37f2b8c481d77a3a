# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one socket that speaks to the kernel's IPVS. PRIVATE to the collection."""

from __future__ import annotations

import socket
from typing import Iterator

from . import _wire as wire
from ._errors import KernelError, ParseError

# Of linux/netlink.h; Python has no name for it.
_NETLINK_GENERIC = 16
_BUFFER = 1 << 17
# A dump that never ends would hang the run with the lock held.
_TIMEOUT_SECONDS = 30


class NetlinkSocket:
    """Requests to the generic netlink family IPVS, one at a time.

    Opening it loads nothing. The kernel loads a module when asked for a family by name, so the family is looked up in
    the list of those that are there; family is 0 while ip_vs is not loaded.
    """

    def __init__(self) -> None:
        self._sequence = 0
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_GENERIC)
        self._socket.settimeout(_TIMEOUT_SECONDS)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 * _BUFFER)
        self._socket.bind((0, 0))
        self.family = 0
        self.find_family()

    def close(self) -> None:
        self._socket.close()

    def find_family(self) -> int:
        """Look the IPVS family up again, say after the module was loaded; 0 if it is not there."""
        for found in self._dump(wire.GENL_ID_CTRL, wire.CTRL_CMD_GETFAMILY, b""):
            if found.get(wire.CTRL_ATTR_FAMILY_NAME) == wire.IPVS_GENL_NAME.encode() + b"\0":
                self.family = wire.family_id(found)
        return self.family

    def dump(self, command: int, payload: bytes = b"") -> list[wire.Attributes]:
        """All entries of a kind, each as its attributes. A list: the socket holds one conversation at a time."""
        return self._dump(self.family, command, payload)

    def get(self, command: int) -> wire.Attributes:
        """The one answer to a request without arguments."""
        replies = list(self._replies(self.family, wire.NLM_F_ACK, command, b"", f"reading IPVS (command {command})"))
        return wire.generic_attributes(replies[0]) if replies else {}

    def request(self, command: int, payload: bytes, operation: str) -> None:
        """One change. Raises KernelError, naming the operation, if the kernel refuses it."""
        for _body in self._replies(self.family, wire.NLM_F_ACK, command, payload, operation):
            pass

    def _dump(self, family: int, command: int, payload: bytes) -> list[wire.Attributes]:
        replies = self._replies(family, wire.NLM_F_DUMP, command, payload, f"reading IPVS (command {command})")
        return [wire.generic_attributes(body) for body in replies]

    def _replies(self, family: int, flags: int, command: int, payload: bytes, operation: str) -> Iterator[bytes]:
        """What the kernel answers, up to its acknowledgement, error, or the end of the dump."""
        self._sequence += 1
        self._socket.send(wire.message(family, flags, self._sequence, command, payload))
        while True:
            for kind, sequence, body in wire.messages(self._receive()):
                if sequence != self._sequence:
                    raise ParseError(f"netlink: an answer to request {sequence} instead of {self._sequence}")
                if kind in (wire.NLMSG_DONE, wire.NLMSG_ERROR):
                    code = wire.error_code(body)
                    if code:
                        raise KernelError(operation, code)
                    return
                yield body

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(_BUFFER)
        except socket.timeout:
            raise ParseError(f"netlink: the kernel did not answer within {_TIMEOUT_SECONDS} s") from None
