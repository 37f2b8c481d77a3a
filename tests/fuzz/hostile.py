# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Values that no option takes, odd ones that some do, and ways to put them anywhere into plausible input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# Deeper than any Python prints; 3.13 prints 9,000 levels.
DEEP: list[Any] = []
for _level in range(50_000):
    DEEP = [DEEP]

# Text that must never become more than data, junk, and numbers that only some programs take for numbers.
HOSTILE: list[Any] = [
    "web\n-A PREROUTING -j ACCEPT", "web\n", "web\0", 'web" -j ACCEPT', "web'", "web\\", "$(id)", "-A", " ", "{{ x }}",
    "²", "80²", "\u0661\u0662", "\uff18\uff10", "\u0967.2.3.4", "é", "\x7f", "1_0", "0b1", "0o7", "1e3",
    "x" * 100_000, "9" * 5000, "0x" + "f" * 999, "1.2.3.4\n", "1.2.3.4/24\n", "1.2.3.4 -j X", "::1/", "1.2.3.4/", "/24",
    "web; flush ruleset", "web } ; add rule ip x y accept", "web\u2028-A INPUT -j ACCEPT", "web\r-F", "\x85", "\ud800",
    "-j ACCEPT", "80,443 -j ACCEPT", "lo\n", "eth0 nodad", "../../etc/shadow", "`id`",
    None, [], {}, [[]], {"a": 1}, 1e99, float("nan"), -0.0, b"80", object(), DEEP, 10**5000, -(10**5000), (), ("x",),
]  # fmt: skip
# Odd numbers, but good names.
PLAIN = ("1_0", "0b1", "0o7", "1e3")
# At and beyond the bounds of all that is a number.
NUMBERS = [
    0, 1, -1, 15, 16, 32, 33, 128, 129, 252, 253, 254, 536, 535, 65495, 65496, 65535, 65536, 2678400, 2678401,
    2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63, 2**64, True, False, 1.5, "0x50", "080", "-1", " 80 ", "80\t", "+80",
]  # fmt: skip
# What some option takes, so that it comes up where another one does not.
ODD = [
    "a", "x" * 63, "x" * 64, "7_.-", "eth+", "a" * 15, "a" * 14 + "+", "a" * 16, "br-0.12", "eth0:1", "if@x", "A" * 28,
    "A" * 29, "tcp", "udp", "sctp", "icmp", "1:65535", "90:80", "80:", ":80", "80:443:8080",
    "192.0.2.10", "192.0.2.0/24", "192.0.2.10/24", "::/0",
    "2001:DB8::10", "::ffff:192.0.2.1", "0.0.0.0/0", "255.255.255.0", "0.0.0.255", "fe80::1%lo", "224.0.0.1", "ff02::1",
    "wlc", "sh", "mh-port", "sip", "ftp", "tunnel", "masquerade", "direct", "gue", "gre", "csum", "remcsum", "ipv6",
    "yes", "no", [80, 443], ["192.0.2.10", "2001:db8::10"], list(range(1, 41, 2)), "PREROUTING", "x.service",
]  # fmt: skip
VALUES = [*HOSTILE, *NUMBERS, *ODD]


class Choices:
    """A fuzzer's bytes as a series of choices: its mutations change some, and keep the others. Then comes the first."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0

    def number(self, count: int) -> int:
        """A number below count, which is at most 65536."""
        size = 1 if count <= 256 else 2
        taken = self._data[self._place : self._place + size]
        self._place += size
        return int.from_bytes(taken, "big") % count

    def one(self, items: Sequence[Any]) -> Any:
        return items[self.number(len(items))]

    def text(self) -> str:
        size = self.number(256)
        taken = self._data[self._place : self._place + size]
        self._place += size
        return taken.decode("utf-8", "replace")

    def value(self, depth: int = 3) -> Any:
        """Anything at all."""
        kind = self.number(8)
        if kind == 0:
            return self.text()
        if kind == 1 and depth:
            return [self.value(depth - 1) for _item in range(self.number(4))]
        if kind == 2 and depth:
            return {self.key(): self.value(depth - 1) for _item in range(self.number(4))}
        return self.one(VALUES)

    def key(self) -> Any:
        return self.text() if self.number(2) else self.one([None, 7, -1.5, True, "a\nb", "x" * 999, b"", ("x",)])

    def spoiled(self, plausible: Any) -> Any:
        """The same with up to three values exchanged, options added or left out, wherever that may be."""
        for _change in range(self.number(4)):
            plausible = self._changed(plausible)
        return plausible

    def _changed(self, given: Any) -> Any:
        if not given or not isinstance(given, (Mapping, list)) or self.number(10) == 0:
            return self.value()
        if isinstance(given, list):
            place = self.number(len(given))
            return [*given[:place], self._changed(given[place]), *given[place + 1 :]]
        key = self.one(list(given))
        way = self.number(12)
        if way == 0:
            return {**given, self.key(): self.value()}
        if way == 1:
            return {other: value for other, value in given.items() if other != key}
        return {**given, key: self._changed(given[key])}
