# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The least that speaks to the kernel's IPVS: what it takes is the kernel's own time."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

from ansible_collections.lvs.fleet.plugins.module_utils._ipvs import wire
from ansible_collections.lvs.fleet.plugins.module_utils._model import IPV4, ServiceId
from ansible_collections.lvs.fleet.plugins.module_utils._netlink import messages

NETLINK_GENERIC = 16
BACKLOG = 1 << 20
# The kernel's answers come in pieces of at most this size.
PIECE = 1 << 15
# The kernel answers each message of a batch while it works on it: the answers have to fit into the buffer.
BATCH = 200
_HEADER = struct.Struct("=IHHII")


class Ipvs:
    """A socket, and the number of the family IPVS; asking for that by its name loads ip_vs."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_GENERIC)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BACKLOG)
        self.socket.bind((0, 0))
        # Room for all answers in turn: to get new room for each takes longer than the answer itself.
        self.piece = memoryview(bytearray(PIECE))
        name = messages.attribute(messages.CTRL_ATTR_FAMILY_NAME, wire.IPVS_GENL_NAME.encode() + b"\0")
        self.socket.send(messages.message(messages.GENL_ID_CTRL, 0, 0, messages.CTRL_CMD_GETFAMILY, name))
        ((_kind, _sequence, body),) = self.receive()
        self.family = messages.family_id(messages.generic_attributes(body))

    def receive(self) -> Iterator[messages.Message]:
        return messages.messages(bytes(self.piece[: self.socket.recv_into(self.piece)]))

    def count_servers(self, fwmark: int) -> int:
        """How many real servers a service has; none while it is not there."""
        service = wire.encode_id(ServiceId(IPV4, fwmark))
        self.socket.send(messages.message(self.family, messages.NLM_F_DUMP, 0, wire.CMD_GET_DEST, service))
        count = 0
        while True:
            for kind, _sequence, _body in self.receive():
                if kind in (messages.NLMSG_DONE, messages.NLMSG_ERROR):
                    return count
                count += 1

    def batches(self, recorded: bytes, size: int) -> list[list[bytes]]:
        """Recorded messages, addressed to the family as it is numbered here, so many at a time."""
        found = [self._addressed(message) for message in _cut(recorded)]
        return [found[start : start + size] for start in range(0, len(found), size)]

    def _addressed(self, message: bytes) -> bytes:
        length, _kind, flags, sequence, port = _HEADER.unpack_from(message)
        return _HEADER.pack(length, self.family, flags, sequence, port) + message[_HEADER.size :]

    def send(self, batch: list[bytes]) -> None:
        """Have all of them carried out; the first error is raised."""
        self.socket.send(b"".join(batch))
        answered = 0
        while answered < len(batch):
            for _kind, _sequence, body in self.receive():
                if code := messages.error_code(body):
                    raise OSError(code, f"message {answered} of the batch")
                answered += 1


def _cut(recorded: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(recorded):
        length = _HEADER.unpack_from(recorded, start)[0]
        yield recorded[start : start + length]
        start += length
