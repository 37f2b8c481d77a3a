# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The sockets that speak to the kernel. PRIVATE to the collection."""

from __future__ import annotations

import socket
from typing import Iterator, Sequence

from .._errors import KernelError, ParseError
from . import messages as netlink

# Of linux/netlink.h; Python has no names for them.
NETLINK_NETFILTER, _NETLINK_GENERIC = 12, 16
# The kernel's dumps come in pieces of at most 32 KiB.
_PIECE = 1 << 15
# What the kernel may have said before we listen.
_BACKLOG = 1 << 20
# A dump that never ends would hang the run with the lock held.
_TIMEOUT_SECONDS = 30


class Socket:
    """A socket of one protocol, with one conversation at a time. Opening it loads nothing."""

    def __init__(self, protocol: int, version: int, subject: str) -> None:
        self._version, self._subject = version, subject
        self._sequence = 0
        # One for all answers: making room for each costs more than the answer.
        self._piece = memoryview(bytearray(_PIECE))
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        self._socket.settimeout(_TIMEOUT_SECONDS)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BACKLOG)
        self._socket.bind((0, 0))

    def close(self) -> None:
        self._socket.close()

    def replies(self, family: int, flags: int, command: int, payload: bytes) -> Iterator[bytes]:
        """What the kernel answers, up to its acknowledgement, error, or the end of the dump."""
        self._sequence += 1
        self._socket.send(netlink.message(family, flags, self._sequence, command, payload, self._version))
        while True:
            for kind, sequence, body in netlink.messages(self._receive()):
                if sequence != self._sequence:
                    raise ParseError(f"netlink: an answer to request {sequence} instead of {self._sequence}")
                if kind in (netlink.NLMSG_DONE, netlink.NLMSG_ERROR):
                    code = netlink.error_code(body)
                    if code:
                        raise KernelError(f"reading {self._subject} (command {command})", code)
                    return
                yield body

    def _receive(self) -> bytes:
        try:
            return bytes(self._piece[: self._socket.recv_into(self._piece)])
        except socket.timeout:
            raise ParseError(f"netlink: the kernel did not answer within {_TIMEOUT_SECONDS} s") from None


class GenericSocket(Socket):
    """Questions to a family of generic netlink, one at a time, and changes, many at a time.

    The kernel loads a module when asked for a family by name, so the family is looked up in the list of those that are
    there; family is 0 while its module is not loaded.
    """

    def __init__(self, name: str, version: int) -> None:
        super().__init__(_NETLINK_GENERIC, version, name)
        self._name = name
        self.family = 0
        self.find_family()

    def find_family(self) -> int:
        """Look the family up again, say after the module was loaded; 0 if it is not there."""
        for found in self._dump(netlink.GENL_ID_CTRL, netlink.CTRL_CMD_GETFAMILY, b""):
            if found.get(netlink.CTRL_ATTR_FAMILY_NAME) == self._name.encode() + b"\0":
                self.family = netlink.family_id(found)
        return self.family

    def dump(self, command: int, payload: bytes = b"") -> list[netlink.Attributes]:
        """All entries of a kind, each as its attributes. A list: the socket holds one conversation at a time."""
        return self._dump(self.family, command, payload)

    def get(self, command: int) -> netlink.Attributes:
        """The one answer to a request without arguments."""
        replies = list(self.replies(self.family, netlink.NLM_F_ACK, command, b""))
        return netlink.generic_attributes(replies[0]) if replies else {}

    def request(self, changes: Sequence[tuple[int, bytes]]) -> dict[int, int]:
        """Changes, each a command with its payload, sent at once; of those that the kernel refuses the place and errno.

        It goes on after one that it refuses. Only the last one asks for an acknowledgement: refusals are told anyway,
        and all in order.
        """
        first, last = self._sequence + 1, self._sequence + len(changes)
        flags = [0] * (len(changes) - 1) + [netlink.NLM_F_ACK]
        numbered = zip(range(first, last + 1), flags, changes)
        self._socket.send(b"".join(netlink.message(self.family, flag, n, *change) for n, flag, change in numbered))
        self._sequence = last
        refused: dict[int, int] = {}
        while True:
            for _kind, sequence, body in netlink.messages(self._receive()):
                if not first <= sequence <= last:
                    raise ParseError(f"netlink: an answer to request {sequence} instead of {first} to {last}")
                code = netlink.error_code(body)
                if code:
                    refused[sequence - first] = code
                if sequence == last:
                    return refused

    def _dump(self, family: int, command: int, payload: bytes) -> list[netlink.Attributes]:
        return [netlink.generic_attributes(body) for body in self.replies(family, netlink.NLM_F_DUMP, command, payload)]
