# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What table mangle makes of single packets: the judge of whether moving a rule made a difference.

It reads the rules of the fake kernel itself, and shares no code with the collection.
"""

from __future__ import annotations

import itertools
import shlex
from dataclasses import dataclass
from functools import cache
from ipaddress import ip_address, ip_network

from ansible_collections.lvs.fleet.tests.unit.fake_kernel import Table

# What CONNMARK brings back from the connection.
CONNECTION_MARK = 0x900


@dataclass(frozen=True)
class Packet:
    source: str
    destination: str
    interface: str
    protocol: str
    port: int


def packets(family: str) -> list[Packet]:
    """Packets on both sides of every border that the generated rules have."""
    addresses = {
        "ipv4": (("198.51.100.7", "192.0.2.10", "203.0.113.9"), ("192.0.2.10", "192.0.2.11", "192.0.2.99", "10.9.9.9")),
        "ipv6": (("2001:db8:ff::7", "2001:db8::10", "2001:4::4"), ("2001:db8::10", "2001:db8:7::7", "2001:4::1")),
    }
    sources, destinations = addresses[family]
    rest = itertools.product(("eth0", "veth3", "lo"), ("tcp", "udp"), (1, 21, 22, 80, 443, 10000))
    return [Packet(*ends, *others) for others in rest for ends in itertools.product(sources, destinations)]


def mark(table: Table, packet: Packet) -> int:
    """The mark that a packet comes out of PREROUTING with, 0 if it is dropped there."""
    state = {"mark": 0}
    return 0 if _walk(table, "PREROUTING", packet, state) == "DROP" else state["mark"]


def _walk(table: Table, chain: str, packet: Packet, state: dict[str, int]) -> str:
    """The verdict that ends all, if there is one."""
    for rule in table.chains[chain]:
        words = _split(rule.text)
        if not _matches(words, packet, state["mark"]):
            continue
        target = words[words.index("-j") + 1]
        if target in ("ACCEPT", "DROP"):
            return target
        if target == "RETURN":
            return ""
        if target == "MARK":
            value, mask = (int(number, 16) for number in words[-1].split("/"))
            state["mark"] = (state["mark"] & ~mask) ^ value
        elif target == "CONNMARK":
            state["mark"] = CONNECTION_MARK
        elif target in table.chains and (verdict := _walk(table, target, packet, state)):
            return verdict
    return ""


@cache
def _split(text: str) -> list[str]:
    return shlex.split(text)


@cache
def _holds(network: str, address: str) -> bool:
    return ip_address(address) in ip_network(network)


def _matches(words: list[str], packet: Packet, mark: int) -> bool:
    for place, word in enumerate(words):
        if word == "-j":
            break
        value = words[place + 1] if place + 1 < len(words) else ""
        found = _found(word, value, packet, mark)
        if found is not None and found == (words[place - 1] == "!" and place > 0):
            return False
    return True


def _found(option: str, value: str, packet: Packet, mark: int) -> bool | None:
    """Whether the packet is what one option asks for; None for what is no such option."""
    if option == "-s":
        return _holds(value, packet.source)
    if option == "-d":
        return _holds(value, packet.destination)
    if option == "-i":
        return packet.interface.startswith(value[:-1]) if value.endswith("+") else packet.interface == value
    if option == "-p":
        return packet.protocol == value
    if option in ("--dport", "--dports"):
        ranges = [(item.split(":") * 2)[:2] for item in value.split(",")]
        return any(int(low) <= packet.port <= int(high) for low, high in ranges)
    if option == "--mark":
        return mark == int(value, 16)
    return False if option == "--ctstate" else None
