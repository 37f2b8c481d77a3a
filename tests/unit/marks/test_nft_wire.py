# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the kernel tells of rules in nf_tables: those that iptables has written, and native ones.

tests/integration/marks has both from the real tools.
"""

from __future__ import annotations

import struct
from typing import Any

import pytest

from ansible_collections.lvs.fleet.plugins.module_utils._errors import KernelError, ParseError
from ansible_collections.lvs.fleet.plugins.module_utils._marks import machine as marks_machine
from ansible_collections.lvs.fleet.plugins.module_utils._marks import nft_wire as _nft_wire
from ansible_collections.lvs.fleet.plugins.module_utils._netlink import machine as sockets
from ansible_collections.lvs.fleet.plugins.module_utils._netlink import messages
from ansible_collections.lvs.fleet.tests.unit.fake_kernel import FakeKernel
from ansible_collections.lvs.fleet.tests.unit.ipvs.test_wire import DONE, Scripted, answer, error


def expression(name: str, **numbers: int) -> bytes:
    """An expression with the attributes of these numbers: a2=16 is attribute 2."""
    data = b"".join(messages.attribute(int(key[1:]), struct.pack("!I", number)) for key, number in numbers.items())
    return messages.attribute(1, name.encode() + b"\0") + messages.attribute(2, data)


def bitwise(xor: int) -> bytes:
    value = messages.attribute(5, messages.attribute(1, struct.pack("=I", xor)))
    return messages.attribute(1, b"bitwise\0") + messages.attribute(2, messages.attribute(6, bytes(4)) + value)


def load(base: int, offset: int, length: int) -> bytes:
    return expression("payload", a1=1, a2=base, a3=offset, a4=length)


def compared(operation: int) -> bytes:
    return expression("cmp", a1=1, a2=operation)


def rule(*expressions: bytes) -> bytes:
    return messages.attribute(4, b"".join(messages.attribute(1, part) for part in expressions))


DESTINATION, PROTOCOL, PORT, FLAGS = load(1, 16, 4), load(1, 9, 1), load(2, 2, 2), load(2, 13, 1)
IS, IS_NOT, LESS, MOST = compared(0), compared(1), compared(2), compared(3)
MASK, MARK = bitwise(0), expression("meta", a1=1, a2=3)
COUNTER = messages.attribute(1, b"counter\0") + messages.attribute(2, messages.attribute(1, bytes(8)))
VERDICT, DATA = expression("immediate", a1=0), expression("immediate", a1=1)
TARGET, MATCH, LOOKUP = expression("target"), expression("match"), expression("lookup")
TRACE, SET_MARK = expression("meta", a2=12, a3=1), expression("meta", a2=3, a3=1)

OWN = {
    "-j MARK": [DESTINATION, IS, PROTOCOL, IS, MATCH, COUNTER, TARGET],
    "-d NETWORK": [DESTINATION, MASK, IS_NOT, COUNTER, VERDICT],
    "--dport": [PROTOCOL, IS, FLAGS, MASK, IS, PORT, IS, COUNTER, VERDICT],
    "--dport :80": [PROTOCOL, IS, PORT, MOST, COUNTER, VERDICT],
    "--dport 1:2": [PROTOCOL, IS, PORT, expression("range", a2=0), COUNTER],
    "--mark twice": [MARK, IS, MARK, MASK, IS_NOT, COUNTER, TARGET],
    "-j TRACE": [COUNTER, DATA, TRACE],
    "nothing": [COUNTER],
}
NATIVE = {
    "a set": [DESTINATION, LOOKUP, COUNTER, VERDICT],
    "no counter": [DESTINATION, IS, VERDICT],
    "no expressions": [],
    "meta mark set": [DESTINATION, IS, COUNTER, DATA, SET_MARK],
    "twice the destination": [DESTINATION, IS, DESTINATION, IS_NOT, COUNTER, VERDICT],
    "not compared": [DESTINATION, COUNTER, VERDICT],
    "a range of addresses": [DESTINATION, expression("range", a2=0), COUNTER, VERDICT],
    "less": [PROTOCOL, IS, PORT, LESS, COUNTER, VERDICT],
    "other bits": [MARK, bitwise(1), IS, COUNTER, VERDICT],
    "a shift": [MARK, expression("bitwise", a6=1), IS, COUNTER, VERDICT],
    "payload set": [DESTINATION, MASK, expression("payload", a2=1, a3=16, a4=4, a5=1), COUNTER],
    "link header": [load(0, 0, 6), IS, COUNTER, VERDICT],
    "inner header": [load(3, 0, 6), IS, COUNTER, VERDICT],
    "another field": [load(1, 1, 1), IS, COUNTER, VERDICT],
    "both ports are not": [PROTOCOL, IS, load(2, 0, 4), IS_NOT, COUNTER, VERDICT],
    "another comparison": [DESTINATION, compared(9), COUNTER, VERDICT],
    "two actions": [COUNTER, TARGET, VERDICT],
    "unknown": [expression("fib", a1=1), IS, COUNTER, VERDICT],
}


@pytest.mark.parametrize("name", OWN)
def test_rules_of_iptables(name: str) -> None:
    assert not _nft_wire.is_native(messages.attributes(rule(*OWN[name])), "ipv4")


@pytest.mark.parametrize("name", NATIVE)
def test_native_rules(name: str) -> None:
    assert _nft_wire.is_native(messages.attributes(rule(*NATIVE[name])), "ipv4")


def test_headers_differ_by_family() -> None:
    """What is the TTL of the one is the source address of the other."""
    for offset, family in ((16, "ipv4"), (24, "ipv6")):
        found = messages.attributes(rule(load(1, offset, 4), IS, COUNTER))
        assert [_nft_wire.is_native(found, other) for other in ("ipv4", "ipv6")] == [family != "ipv4", family != "ipv6"]


def test_a_table_with_a_native_rule_is_not_read() -> None:
    kernel = FakeKernel()
    with kernel.running():
        assert marks_machine.saved_table("ipv4", "mangle").count("*mangle\n") == 1
        kernel.nft_rules = [rule(*OWN["-j MARK"]), rule(*NATIVE["a set"])]
        with pytest.raises(ParseError) as caught:
            marks_machine.saved_table("ipv6", "mangle")
    assert str(caught.value) == (
        "ip6tables-save -t mangle: the table holds rules that iptables cannot express (see: nft list table ip6 mangle)"
    )
    assert all(socket.closed for socket in kernel.sockets)


# The same header as above, with the flag that says: what you read has changed meanwhile.
INTERRUPTED = struct.pack("=IHHII", 20, messages.NLMSG_DONE, 0x10, 1, 1) + bytes(4)
FOUND = answer(0x0A06, 1, bytes(4) + rule(COUNTER))


def test_the_rules_of_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list that changed while it was given out is asked for again."""
    asked = Scripted(FOUND, INTERRUPTED, FOUND + FOUND, DONE)
    monkeypatch.setattr(sockets.socket, "socket", asked)
    assert marks_machine.nft_rules("ipv4", "mangle") == [messages.attributes(rule(COUNTER))] * 2
    request = struct.pack("=IHHIIBBH", 32, 0x0A07, 0x301, 1, 0, 2, 0, 0) + struct.pack("=HH7sx", 11, 1, b"mangle\0")
    assert asked.sent == [request] * 2


@pytest.mark.parametrize(
    "replies, kind, said",
    [
        ([INTERRUPTED] * 20, ParseError, "nf_tables: the rules of table nat changed 20 times while they were read"),
        ([error(1, 1)], KernelError, "reading nf_tables (command 10): the kernel says: Operation not permitted"),
    ],
)  # fmt: skip
def test_rules_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, replies: list[bytes], kind: Any, said: str) -> None:
    monkeypatch.setattr(sockets.socket, "socket", Scripted(*replies))
    with pytest.raises(kind) as caught:
        marks_machine.nft_rules("ipv6", "nat")
    assert str(caught.value) == said
