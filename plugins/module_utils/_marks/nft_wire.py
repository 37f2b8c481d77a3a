# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rules of nf_tables as bytes: nfnetlink, linux/netfilter/nf_tables.h. PRIVATE to the collection. Pure.

iptables-nft keeps its rules in tables of nf_tables, where anybody can add native rules. It prints many of those without
what it does not know, and exits with 0: "ip daddr { 192.0.2.1, 192.0.2.2 } accept" comes out as "-j ACCEPT", and since
1.8.10 "meta mark set 80" as the target MARK. So the kernel is asked what a rule consists of.
"""

from __future__ import annotations

import re
import struct
from functools import lru_cache

from .._model import IPV4, IPV6
from .._netlink import messages

# NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETRULE
GET_RULE = 10 << 8 | 7
VERSION = 0
# Of linux/netfilter.h, which has numbers of its own for families.
NFPROTO = {IPV4: 2, IPV6: 10}

_RULE_TABLE, _RULE_EXPRESSIONS = 1, 4
_EXPRESSION_NAME, _EXPRESSION_DATA = 1, 2
_PAYLOAD_TO, _PAYLOAD_BASE, _PAYLOAD_OFFSET, _PAYLOAD_LENGTH = 1, 2, 3, 4
_META_TO, _META_KEY, _META_FROM = 1, 2, 3
_BITWISE_XOR, _BITWISE_OPERATION = 5, 6
_CMP_OPERATION = 2
_IMMEDIATE_TO, _VERDICT = 1, 0
_DATA_VALUE = 1
_BASES = ("link", "network", "transport")
_COMPARISONS = ("eq", "neq", "lt", "lte", "gt", "gte")
_U32 = struct.Struct("!I")

# What the words of _word have to be in a rule that iptables has written, in every version of it so far. In the header
# of the packet it looks at addresses, protocol and fragment; else at marks (3), names of interfaces (6, 7), the
# protocol (16), the flags of TCP, and ports.
_HEADER = {IPV4: r"network:(?:12:[1-4]|16:[1-4]|9:1|6:2)", IPV6: r"network:(?:8|24):(?:\d|1[0-6])"}
_MATCH = (
    r"(?:{header}|meta:(?:3|6|7|16)|transport:13:1)(?: mask)? n?eq"
    r"|transport:[02]:2 (?:n?eq|lte|gt|range)|transport:0:4 eq|match|limit"
)
# TRACE is the one target of its own that it writes in the language of nf_tables: nftrace (12) is set.
_ACTION = "target|verdict|log|data set:12"
# The counter stands before the action: behind it would count what the action has let go.
_OWN = {
    family: re.compile(rf"(?:(?:{_MATCH.format(header=header)}) )*counter(?: (?:{_ACTION}))?")
    for family, header in _HEADER.items()
}
# Of two of the same iptables prints the last one alone, but for marks.
_TWICE = re.compile(r"\b((?!meta:3\b)(?:network|meta|transport):\d+)\b.*\b\1\b")


def rules_of(table: str) -> bytes:
    """What names the table whose rules are wanted."""
    return messages.attribute(_RULE_TABLE, table.encode("ascii") + b"\0")


def is_native(rule: messages.Attributes, family: str) -> bool:
    """Whether iptables may have printed something else: the rule is not certainly one that it has written."""
    words = " ".join(map(_expression, messages.elements(rule.get(_RULE_EXPRESSIONS, b""))))
    return not _OWN[family].fullmatch(words) or bool(_TWICE.search(words))


def _expression(expression: bytes) -> str:
    # Nearly every rule has other numbers in its counter, which is no use to remember.
    return "counter" if expression[4:12] == b"counter\0" else _word(expression)


@lru_cache(maxsize=4096)
def _word(expression: bytes) -> str:
    """What an expression does, as far as it tells iptables' rules from others; "?" if iptables has no use for it."""
    found = messages.attributes(expression)
    name = found.get(_EXPRESSION_NAME, b"").rstrip(b"\0").decode("ascii", "replace")
    data = messages.attributes(found.get(_EXPRESSION_DATA, b""))
    numbers = {kind: _U32.unpack(value)[0] for kind, value in data.items() if len(value) == _U32.size}
    if name in ("match", "target", "counter", "limit", "log", "range"):
        return name
    if name == "payload" and _PAYLOAD_TO in numbers and numbers.get(_PAYLOAD_BASE, 9) < len(_BASES):
        base = _BASES[numbers[_PAYLOAD_BASE]]
        return f"{base}:{numbers.get(_PAYLOAD_OFFSET)}:{numbers.get(_PAYLOAD_LENGTH)}"
    if name == "meta":
        return f"{'set' if _META_FROM in numbers else 'meta'}:{numbers.get(_META_KEY)}"
    if name == "bitwise" and not numbers.get(_BITWISE_OPERATION) and not any(_value(data.get(_BITWISE_XOR, b""))):
        return "mask"
    if name == "cmp" and numbers.get(_CMP_OPERATION, 9) < len(_COMPARISONS):
        return _COMPARISONS[numbers[_CMP_OPERATION]]
    if name == "immediate":
        return "verdict" if numbers.get(_IMMEDIATE_TO) == _VERDICT else "data"
    return "?"


def _value(data: bytes) -> bytes:
    return messages.attributes(data).get(_DATA_VALUE, b"")
