# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Datagrams without end, fast enough to meet a tenth of a millisecond, and the marks that all of them had."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import socket
import struct
import time
from bisect import bisect_left
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

from ansible_collections.lvs.fleet.tests.integration.harness import Router

# An address and a port.
Place = tuple[str, int]
# How many packets had which mark.
Marks = dict[Place, dict[int, int]]

# Counts every packet on its way to a local address, once all of PREROUTING is behind it.
_COUNTERS = """
table FAMILY watched {
    set seen { type ADDRESS . inet_service . mark; flags dynamic; counter; }
    chain input { type filter hook input priority 0; add @seen { FAMILY daddr . udp dport . meta mark } drop; }
}
"""
_ADDRESS_TYPES = {"ip": "ipv4_addr", "ip6": "ipv6_addr"}
_AT_ONCE = 16
# Seconds that a packet may take in the half of all batches. A gap of a tenth of a millisecond then meets five of them.
_FAST_ENOUGH = 20e-6
# Of batches, by the tenths of a microsecond that each packet took; the last is for all that took longer.
_BUCKETS = 10_000
_LIBC = ctypes.CDLL(None, use_errno=True)


class _Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_char_p), ("length", ctypes.c_size_t)]


class _Message(ctypes.Structure):
    """What sendmmsg takes: a struct mmsghdr."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("name_length", ctypes.c_uint32),
        ("vectors", ctypes.POINTER(_Vector)),
        ("vector_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_long),
        ("sent", ctypes.c_ulong),
    ]


def _sockaddr(place: Place) -> bytes:
    address, port = place
    if ":" in address:
        return struct.pack("=H", socket.AF_INET6) + struct.pack("!HI16sI", port, 0, socket.inet_pton(10, address), 0)
    return struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", port, socket.inet_aton(address))


def _send_without_end(places: Collection[Place], took: Any) -> None:
    """To all of them in turns, some with each system call, whoever listens there; took has a place for each bucket."""
    batches = []
    for family in (socket.AF_INET, socket.AF_INET6):
        names = [_sockaddr(place) for place in places if (":" in place[0]) == (family == socket.AF_INET6)]
        if names:
            names *= _AT_ONCE // len(names) or 1
            vector = _Vector(b"x", 1)
            messages = [_Message(name, len(name), ctypes.pointer(vector), 1, None, 0, 0, 0) for name in names]
            sender = socket.socket(family, socket.SOCK_DGRAM)
            batches.append((sender, (_Message * len(messages))(*messages), len(messages)))
    while True:
        for sender, messages_, count in batches:
            begin = time.perf_counter_ns()
            _LIBC.sendmmsg(sender.fileno(), messages_, count, 0)
            took[min((time.perf_counter_ns() - begin) // (100 * count), _BUCKETS - 1)] += 1


class Flow:
    """Datagrams from this router to places of its own, and the counters of their marks."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._took = multiprocessing.RawArray(ctypes.c_ulong, _BUCKETS)
        for family, address in _ADDRESS_TYPES.items():
            router.tool("nft", "-f", "-", stdin=_COUNTERS.replace("FAMILY", family).replace("ADDRESS", address))

    @contextmanager
    def running(self, places: Collection[Place]) -> Iterator[None]:
        """All the while packets are under way; what came before is forgotten."""
        self.marks()
        ctypes.memset(self._took, 0, ctypes.sizeof(self._took))
        process = multiprocessing.get_context("fork").Process(
            target=_send_without_end, args=(places, self._took), daemon=True
        )
        process.start()
        try:
            self.wait(places)
            yield
            self.wait(places)
        finally:
            process.kill()
            process.join()

    def is_fast(self) -> None:
        """The time between two packets, of the half of them at least, is short enough for what is to be seen."""
        batches = list(accumulate(self._took))
        median = bisect_left(batches, batches[-1] / 2) * 1e-7
        assert median <= _FAST_ENOUGH, f"{median * 1e6:.1f} µs from one packet to the next"

    def wait(self, places: Collection[Place]) -> None:
        """Until another packet has come to each of the places."""
        before = {place: sum(found.values()) for place, found in self.so_far().items()}
        end = time.monotonic() + 60
        while time.monotonic() < end:
            now = self.so_far()
            if all(sum(now.get(place, {}).values()) > before.get(place, 0) for place in places):
                return
            time.sleep(0.01)
        raise TimeoutError(f"no packet came to each of {places}")

    def so_far(self) -> Marks:
        """How many packets had which mark."""
        found: Marks = {}
        for family in _ADDRESS_TYPES:
            listed = json.loads(self._router.tool("nft", "-j", "list", "set", family, "watched", "seen"))
            for item in listed["nftables"][1]["set"].get("elem", []):
                address, port, mark = item["elem"]["val"]["concat"]
                found.setdefault((address, port), {})[mark] = item["elem"]["counter"]["packets"]
        return found

    def marks(self) -> Marks:
        """The same; then all is forgotten."""
        found = self.so_far()
        for family in _ADDRESS_TYPES:
            self._router.tool("nft", "flush", "set", family, "watched", "seen")
        return found
