# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""nft as far as the collection uses it: it carries out a file as one transaction, and lists a table in JSON.

It shares no code with the collection. tests/integration/marks/test_nftables.py compares it with the real one.
"""

from __future__ import annotations

import re
import socket
from copy import deepcopy
from dataclasses import dataclass, field
from ipaddress import ip_network
from itertools import count
from typing import Any

PROTOCOLS = ("tcp", "udp", "sctp")


class NftError(Exception):
    """What nft says when it refuses."""


@dataclass
class NftTable:
    """Maps and sets by name: key to (comment, mark). Rules of chains: (handle, comment, text)."""

    maps: dict[str, dict[str, tuple[str, int]]] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    chains: dict[str, list[tuple[int, str, str]]] = field(default_factory=dict)
    hooks: dict[str, str] = field(default_factory=dict)


class Nft:
    """The tables of one machine, by family and name."""

    def __init__(self) -> None:
        self.tables: dict[tuple[str, str], NftTable] = {}
        self._handles = count(2)

    # -- nft -f -

    def run(self, text: str) -> None:
        """All of it or nothing. Raises NftError."""
        tables = deepcopy(self.tables)
        for number, line in enumerate(text.splitlines(), start=1):
            try:
                self._carry_out(tables, line)
            except NftError as error:
                raise NftError(f"/dev/stdin:{number}:1: Error: {error}\n{line}") from None
        self.tables = tables

    def _carry_out(self, tables: dict[tuple[str, str], NftTable], line: str) -> None:
        found = re.fullmatch(
            r"(add|insert|delete|flush) (table|map|set|chain|rule|element) (ip6?) ([\w-]+)(?: (\w+)(?: (.*))?)?", line
        )
        if not found:
            raise NftError("syntax error")
        command, kind, family, name, inner, rest = found.groups()
        key = (family, name)
        if kind == "table":
            self._table(tables, command, key)
            return
        if key not in tables:
            raise NftError("No such file or directory")
        getattr(self, f"_{command}_{kind}")(tables[key], inner, rest or "", family)

    @staticmethod
    def _table(tables: dict[tuple[str, str], NftTable], command: str, key: tuple[str, str]) -> None:
        if command == "add":
            tables.setdefault(key, NftTable())
        elif key in tables:
            del tables[key]
        else:
            raise NftError("No such file or directory")

    def _add_map(self, table: NftTable, name: str, rest: str, family: str) -> None:
        address = "ipv4_addr" if family == "ip" else "ipv6_addr"
        if not re.fullmatch(rf"{{ type {address} \. inet_proto \. inet_service : mark;( flags interval;)? }}", rest):
            raise NftError("syntax error")
        table.maps.setdefault(name, {})
        table.types[name] = rest

    def _add_set(self, table: NftTable, name: str, rest: str, family: str) -> None:
        address = "ipv4_addr" if family == "ip" else "ipv6_addr"
        if rest not in ("{ type mark; }", f"{{ type {address} . inet_proto . inet_service; }}"):
            raise NftError("syntax error")
        table.maps.setdefault(name, {})
        table.types[name] = rest

    def _add_chain(self, table: NftTable, name: str, rest: str, _family: str) -> None:
        table.chains.setdefault(name, [])
        table.hooks[name] = rest or table.hooks.get(name, "")

    @staticmethod
    def _flush_chain(table: NftTable, chain: str, _rest: str, _family: str) -> None:
        table.chains[chain].clear()

    def _delete_chain(self, table: NftTable, chain: str, _rest: str, _family: str) -> None:
        self._check_unused(table, chain)
        if table.chains.pop(chain):
            raise NftError("Could not process rule: Device or resource busy")

    def _delete_map(self, table: NftTable, name: str, _rest: str, _family: str) -> None:
        self._check_unused(table, f"@{name}")
        del table.maps[name], table.types[name]

    @staticmethod
    def _check_unused(table: NftTable, word: str) -> None:
        if any(word in text.split() for rules in table.chains.values() for _handle, _comment, text in rules):
            raise NftError("Could not process rule: Device or resource busy")

    def _insert_rule(self, table: NftTable, chain: str, rest: str, family: str) -> None:
        _handle, number, rest = rest.split(" ", 2)
        places = [handle for handle, _comment, _text in table.chains.get(chain, [])]
        if int(number) not in places:
            raise NftError("Could not process rule: No such file or directory")
        self._add_rule(table, chain, rest, family)
        table.chains[chain].insert(places.index(int(number)), table.chains[chain].pop())

    def _add_rule(self, table: NftTable, chain: str, rest: str, _family: str) -> None:
        if chain not in table.chains:
            raise NftError("No such file or directory")
        text, comment = re.fullmatch(r'(.*?)(?: comment "([^"]{1,128})")?', rest).groups()  # type: ignore[union-attr]
        for used in re.findall(r"@(\w+)|(?:jump|goto) (\w+)", text):
            if not set(used) & (set(table.maps) | set(table.chains)):
                raise NftError("No such file or directory")
        table.chains[chain].append((next(self._handles), comment or "", text))

    def _delete_rule(self, table: NftTable, chain: str, rest: str, _family: str) -> None:
        found = re.fullmatch(r"handle (\d+)", rest)
        kept = [rule for rule in table.chains.get(chain, []) if not found or rule[0] != int(found[1])]
        if kept == table.chains.get(chain, []):
            raise NftError("No such file or directory")
        table.chains[chain] = kept

    def _add_element(self, table: NftTable, name: str, rest: str, family: str) -> None:
        found = re.fullmatch(r'{ (.*?)(?: comment "([^"]{1,128})")?(?: : (0x[0-9a-f]+))? }', rest)
        if not found or name not in table.maps:
            raise NftError("syntax error")
        elements, (key, comment, mark) = table.maps[name], found.groups()
        if (mark is None) == (" : mark;" in table.types[name]):
            raise NftError("syntax error")
        self._check_key(table.types[name], key, family)
        if "interval" in table.types[name] and any(other != key and _overlap(other, key) for other in elements):
            raise NftError("Could not process rule: File exists")
        value = (comment or "", int(mark or (key if " . " not in key else "0"), 16))
        if elements.setdefault(key, value)[1] != value[1]:
            raise NftError("Could not process rule: File exists")

    @staticmethod
    def _check_key(kind: str, key: str, family: str) -> None:
        if kind == "{ type mark; }":
            return
        address, protocol, ports = key.split(" . ")
        network = ip_network(address)
        single = "interval" not in kind
        if network.version != (4 if family == "ip" else 6) or protocol not in PROTOCOLS or (single and "-" in ports):
            raise NftError("syntax error")
        if single and (network.num_addresses > 1 or "/" in address):
            raise NftError("You must add 'flags interval' to your map declaration")

    def _delete_element(self, table: NftTable, name: str, rest: str, _family: str) -> None:
        key = re.fullmatch(r"{ (.*?)(?: comment .*| : 0x.*)? }", rest)[1]  # type: ignore[index]
        if key not in table.maps.get(name, {}):
            raise NftError("Could not process rule: No such file or directory")
        del table.maps[name][key]

    # -- nft -j list table

    def listing(self, family: str, name: str) -> dict[str, Any]:
        """Raises NftError if there is no such table."""
        if (family, name) not in self.tables:
            raise NftError("Error: No such file or directory")
        table = self.tables[family, name]
        place = {"family": family, "table": name}
        found: list[dict[str, Any]] = [
            {"metainfo": {"json_schema_version": 1}},
            {"table": {"family": family, "name": name}},
        ]
        found += [self._map(place, key, table) for key in table.maps]
        found += [{"chain": {**place, "name": key, **_hook(table.hooks[key])}} for key in table.chains]
        found += [
            {
                "rule": {
                    **place,
                    "chain": chain,
                    "handle": handle,
                    **_comment(comment),
                    "expr": _expression(text, family),
                }
            }
            for chain, rules in table.chains.items()
            for handle, comment, text in rules
        ]
        return {"nftables": found}

    @staticmethod
    def _map(place: dict[str, str], name: str, table: NftTable) -> dict[str, Any]:
        elements = table.maps[name].items()
        if table.types[name] == "{ type mark; }":
            listed = [_element(mark, comment) for _key, (comment, mark) in elements]
            return {"set": {**place, "name": name, "type": "mark", **({"elem": listed} if listed else {})}}
        address = "ipv4_addr" if place["family"] == "ip" else "ipv6_addr"
        if " : mark;" not in table.types[name]:
            keys = [_element(_concatenation(key), comment) for key, (comment, _mark) in elements]
            kind = [address, "inet_proto", "inet_service"]
            return {"set": {**place, "name": name, "type": kind, **({"elem": keys} if keys else {})}}
        shown: dict[str, Any] = {**place, "name": name, "type": [address, "inet_proto", "inet_service"], "map": "mark"}
        if "interval" in table.types[name]:
            shown["flags"] = ["interval"]
        if elements:
            shown["elem"] = [[_element(_concatenation(key), comment), mark] for key, (comment, mark) in elements]
        return {"map": shown}


def _comment(comment: str) -> dict[str, str]:
    return {"comment": comment} if comment else {}


def _element(value: Any, comment: str) -> Any:
    return {"elem": {"val": value, "comment": comment}} if comment else value


def _hook(words: str) -> dict[str, Any]:
    found = re.fullmatch(r"{ type (\w+) hook (\w+) priority (-?\d+); policy (\w+); }", words)
    return {"type": found[1], "hook": found[2], "prio": int(found[3]), "policy": found[4]} if found else {}


def _concatenation(key: str) -> dict[str, Any]:
    address, protocol, ports = key.split(" . ")
    return {"concat": [_network(address), protocol, _ports(ports)]}


def _overlap(one: str, other: str) -> bool:
    (network, protocol, ports), (network_, protocol_, ports_) = (key.split(" . ") for key in (one, other))
    (low, high), (low_, high_) = ([int(port) for port in (*text.split("-"), text)[:2]] for text in (ports, ports_))
    return (
        protocol == protocol_ and ip_network(network).overlaps(ip_network(network_)) and low <= high_ and low_ <= high
    )


def _network(text: str) -> Any:
    """An address as the C library prints it: IPv4-mapped and IPv4-compatible ones have dots."""
    network = ip_network(text)
    family = socket.AF_INET if network.version == 4 else socket.AF_INET6
    address = socket.inet_ntop(family, network.network_address.packed)
    single = network.num_addresses == 1
    return address if single else {"prefix": {"addr": address, "len": network.prefixlen}}


def _ports(text: str) -> Any:
    low, dash, high = text.partition("-")
    return {"range": [int(low), int(high)]} if dash else int(low)


def _expression(text: str, family: str) -> list[dict[str, Any]]:
    """The words of a rule, one statement after the other."""
    look_up = re.fullmatch(
        rf"meta mark set {family} daddr \. meta l4proto \. th dport map @(\w+)(?: goto (\w+))?", text
    )
    if look_up:
        key = [_payload(family, "daddr"), {"meta": {"key": "l4proto"}}, _payload("th", "dport")]
        value = {"map": {"key": {"concat": key}, "data": f"@{look_up[1]}"}}
        return [_mark(value), *([{"goto": {"target": look_up[2]}}] if look_up[2] else [])]
    words, found, protocol = re.findall(r"{[^}]*}|\"[^\"]*\"|\S+", text), [], ""
    while words:
        first = words.pop(0)
        if first in ("jump", "goto"):
            found.append({first: {"target": words.pop(0)}})
        elif first in ("accept", "counter"):
            found.append({first: None})
        elif first == "iifname":
            found.append(_match({"meta": {"key": "iifname"}}, words.pop(0).strip('"')))
        elif first == "ether":
            assert words[:2] == ["saddr", "!="], text
            found.append(_match(_payload("ether", "saddr"), words[2], "!="))
            words = words[3:]
        elif first == family:
            found.append(_match(_payload(family, words.pop(0)), _network(words.pop(0))))
        elif first == "th":
            found.append(_match(_payload(protocol, words.pop(0)), _ports(words.pop(0))))
        elif words[0] == "l4proto":
            protocol = words[1]
            words = words[2:]
            # With a port nft leaves this out, since the port is that of the protocol.
            found += [] if words[:1] == ["th"] else [_match({"meta": {"key": "l4proto"}}, protocol)]
        else:
            assert words[:2] == ["mark", "set"], text
            found.append(_mark(int(words[2], 16)))
            words = words[3:]
    return found


def _match(left: dict[str, Any], right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


def _payload(protocol: str, name: str) -> dict[str, Any]:
    return {"payload": {"protocol": protocol, "field": name}}


def _mark(value: Any) -> dict[str, Any]:
    return {"mangle": {"key": {"meta": {"key": "mark"}}, "value": value}}
