# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The hooks of netfilter as nft prints native tables, in JSON. PRIVATE to the collection. Pure."""

from __future__ import annotations

import json
import re
from ipaddress import ip_network
from typing import Any, Iterable, Iterator, Mapping, Sequence

from .._errors import MISSHAPEN, not_understood
from .._marks.nftables import TABLE
from .._model import FULL_MASK, IPV4, IPV6
from .._packets.conditions import (
    DESTINATION,
    DESTINATION_TYPE,
    IN_INTERFACE,
    MARK,
    NOT_UNDERSTOOD,
    NOTHING,
    OUT_INTERFACE,
    PORTS,
    PROTOCOL,
    SOURCE,
    SOURCE_PORTS,
    STATE,
    Condition,
    interval,
    merged,
)
from . import walk as way

_FAMILIES = {"ip": (IPV4,), "ip6": (IPV6,), "inet": (IPV4, IPV6)}
_PROTOCOL_FAMILY = {"ip": IPV4, "ip6": IPV6, "ipv4": IPV4, "ipv6": IPV6}
_VERDICTS = {
    "accept": way.ACCEPTS,
    "return": way.RETURNS,
    "drop": way.DROPS,
    "reject": way.DROPS,
    "dnat": way.TRANSLATES,
    "redirect": way.TRANSLATES,
    "tproxy": way.TRANSLATES,
    "notrack": way.UNTRACKS,
    "masquerade": way.SOURCE_NAT,
    "snat": way.SOURCE_NAT,
    "jump": way.JUMPS,
    "goto": way.GOES,
}
# Statements that neither match nor decide.
_PASSIVE = ("counter", "log", "comment", "last", "ct timeout", "ct helper", "flow", "dup")
_PAYLOADS = {"saddr": SOURCE, "daddr": DESTINATION, "dport": PORTS, "sport": SOURCE_PORTS}
_METAS = {"iifname": IN_INTERFACE, "iif": IN_INTERFACE, "oifname": OUT_INTERFACE, "oif": OUT_INTERFACE}
_META_MARK: dict[str, Any] = {"meta": {"key": "mark"}}
_CT_MARK: dict[str, Any] = {"ct": {"key": "mark"}}
_HANDLE = re.compile(r"^\s*(.*?) # handle (\d+)$")
# Statements and expressions that have the kernel track connections.
_TRACKS = re.compile(r'"(ct|dnat|snat|masquerade|redirect|ct helper|ct timeout)":')
_Object = Mapping[str, Any]


def native_tables(listed: str, printed: Mapping[str, Iterable[str]]) -> list[tuple[str, str]]:
    """Family and name of the tables that are called by hooks, in the output of nft -j list chains.

    printed are the tables that iptables prints, by nft's family: they are left to it, and so is our own. Raises
    ParseError.
    """
    try:
        chains = [found["chain"] for found in json.loads(listed)["nftables"] if "chain" in found]
        tables = {(chain["family"], chain["table"]): None for chain in chains if "hook" in chain}
        return [key for key in tables if key[0] in _FAMILIES and key[1] not in (TABLE, *printed.get(key[0], ()))]
    except MISSHAPEN as error:
        raise not_understood("nft -j list chains", error) from None


def hooks(listed: str, texts: str) -> dict[str, list[way.Hook]]:
    """The hooks of one table, by family, from nft -j list table; texts is what nft -a list table prints.

    Raises ParseError.
    """
    try:
        objects = [(kind, found) for item in json.loads(listed)["nftables"] for kind, found in item.items()]
        table = next(found for kind, found in objects if kind == "table")
        reader = _Reader(objects, _texts(texts), bool(_TRACKS.search(listed)))
        return {family: list(reader.hooks(family)) for family in _FAMILIES[table["family"]]}
    except (*MISSHAPEN, StopIteration) as error:
        raise not_understood("nft -j list table", error) from None


def _texts(printed: str) -> dict[int, str]:
    """The rules' own words by their handles. Handles of a table are its own, whatever they are of."""
    found = (_HANDLE.match(line) for line in printed.splitlines())
    return {int(one[2]): one[1] for one in found if one and not one[1].endswith("{")}


class _Reader:
    """One table."""

    def __init__(self, objects: Sequence[tuple[str, _Object]], texts: Mapping[int, str], tracks: bool) -> None:
        self._tracks = tracks
        self._texts = texts
        self._chains = [found for kind, found in objects if kind == "chain"]
        self._rules = [found for kind, found in objects if kind == "rule"]
        self._elements = {found["name"]: found.get("elem", []) for kind, found in objects if kind in ("set", "map")}

    def hooks(self, family: str) -> Iterator[way.Hook]:
        rules: dict[str, list[way.Rule]] = {chain["name"]: [] for chain in self._chains}
        positions = dict.fromkeys(rules, 0)
        for rule in self._rules:
            name = rule["chain"]
            positions[name] += 1
            text = self._texts.get(rule["handle"], f"handle {rule['handle']}")
            plain = way.Rule(name, positions[name], text, way.PASSES)
            rules[name] += self._parts(rule["expr"], plain, family)
        indexed = {name: way.RuleIndex(found) for name, found in rules.items()}
        for chain in self._chains:
            if "hook" in chain:
                table = f"nftables table {chain['family']} {chain['table']}"
                drops, nat = chain.get("policy") == "drop", chain["type"] == "nat"
                yield way.Hook(chain["hook"], chain["prio"], table, chain["name"], indexed, drops, nat, self._tracks)

    def _parts(self, statements: Sequence[_Object], plain: way.Rule, family: str) -> Iterator[way.Rule]:
        """A rule may do several things one after the other, each if all matches before it fit."""
        conditions: list[Condition] = []
        for statement in statements:
            ((kind, value),) = statement.items()
            rule = plain._replace(conditions=tuple(conditions))
            if kind == "match":
                conditions += self._match(value, family)
            elif kind == "vmap":
                yield from self._by_verdict(value, rule, family)
            elif kind == "mangle":
                yield _marking(value, rule)
                # What is asked of the mark was asked before it changed.
                conditions = [one for one in conditions if one.kind != MARK]
            elif kind in _VERDICTS:
                yield _verdict(kind, value, rule)
            elif kind not in _PASSIVE:
                conditions.append(Condition(NOT_UNDERSTOOD))

    def _by_verdict(self, value: _Object, rule: way.Rule, family: str) -> Iterator[way.Rule]:
        """A map of verdicts is as good as a rule for each of its elements."""
        for key, verdict in self._members(value["data"]):
            ((kind, target),) = verdict.items()
            match = self._match({"op": "==", "left": value["key"], "right": key}, family)
            if kind in _VERDICTS:
                yield _verdict(kind, target, rule._replace(conditions=(*rule.conditions, *match)))

    def _members(self, right: Any) -> list[Any]:
        """The elements of a set, which may have a name; what is no set is its only element."""
        if isinstance(right, str) and right.startswith("@"):
            members = self._elements[right[1:]]
        elif isinstance(right, Mapping) and "set" in right:
            members = right["set"]
        else:
            members = right if isinstance(right, list) else [right]
        return [one["elem"]["val"] if isinstance(one, Mapping) and "elem" in one else one for one in members]

    # -- matches

    def _match(self, match: _Object, family: str) -> list[Condition]:
        """Raises no error for what it does not understand: that may fit any packet."""
        if match["op"] not in ("==", "!=", "in"):
            return [Condition(NOT_UNDERSTOOD)]
        try:
            before, condition = self._understood(match["left"], self._members(match["right"]), family)
        except (KeyError, TypeError, ValueError, AttributeError):
            return [Condition(NOT_UNDERSTOOD)]
        return [*before, condition._replace(inverted=condition.inverted != (match["op"] == "!="))]

    def _understood(self, left: _Object, values: Sequence[Any], family: str) -> tuple[list[Condition], Condition]:
        """What has to fit for a match to be made at all, and the match itself."""
        ((kind, asked),) = left.items()
        if kind == "payload":
            return _payload(asked["protocol"], asked["field"], values, family)
        if kind == "meta":
            return [], _meta(asked["key"], values, family)
        if kind == "ct" and asked["key"] == "state":
            return [], Condition(STATE, tuple(str(value).upper() for value in values))
        if kind == "fib" and asked["result"] == "type" and asked["flags"] in ("daddr", ["daddr"]):
            return [], Condition(DESTINATION_TYPE, tuple(str(value).upper() for value in values))
        if kind == "&" and asked[0] == _META_MARK:
            return [], Condition(MARK, tuple((int(value), int(asked[1])) for value in values))
        if kind == "&" and asked[0] == {"payload": {"protocol": "tcp", "field": "flags"}}:
            return [Condition(PROTOCOL, ("tcp",))], _flags(asked[1], values)
        return [], Condition(NOT_UNDERSTOOD)


def _payload(protocol: str, field: str, values: Sequence[Any], family: str) -> tuple[list[Condition], Condition]:
    if protocol in ("ip", "ip6"):
        if _PROTOCOL_FAMILY[protocol] != family:
            # Packets of the other family do not even come to the match, be it inverted or not.
            return [Condition(NOTHING)], Condition(NOTHING)
        if field in ("protocol", "nexthdr"):
            return [], Condition(PROTOCOL, tuple(map(str, values)))
        return [], Condition(_PAYLOADS[field], merged(_addresses(value) for value in values))
    before = [] if protocol == "th" else [Condition(PROTOCOL, (protocol,))]
    if field == "flags":
        return before, Condition(NOT_UNDERSTOOD)
    return before, Condition(_PAYLOADS[field], merged(_numbers(value) for value in values))


def _meta(key: str, values: Sequence[Any], family: str) -> Condition:
    if key in _METAS:
        return Condition(_METAS[key], tuple(_interface(value) for value in values))
    if key == "l4proto":
        return Condition(PROTOCOL, tuple(map(str, values)))
    if key == "mark":
        return Condition(MARK, tuple((int(value), FULL_MASK) for value in values))
    if key == "nfproto":
        return Condition(NOTHING, inverted=any(_PROTOCOL_FAMILY.get(value) == family for value in values))
    if key == "pkttype":
        # A client's packet to a virtual address is sent to this machine alone.
        return Condition(NOTHING, inverted=bool({"host", "unicast"} & set(values)))
    return Condition(NOT_UNDERSTOOD)


def _flags(looked_at: Any, values: Sequence[Any]) -> Condition:
    """The first packet of a TCP connection has SYN set and nothing else."""
    mask = set(looked_at if isinstance(looked_at, list) else [looked_at])
    return Condition(NOTHING, inverted={"syn"} & mask == set(values))


def _addresses(value: Any) -> tuple[int, int]:
    if isinstance(value, str):
        return interval(value)
    if "prefix" in value:
        return interval(str(ip_network((value["prefix"]["addr"], value["prefix"]["len"]), strict=False)))
    low, high = value["range"]
    return (interval(low)[0], interval(high)[1])


def _numbers(value: Any) -> tuple[int, int]:
    low, high = value["range"] if isinstance(value, Mapping) else (value, value)
    return (int(low), int(high))


def _interface(value: str) -> str:
    """What ends in * for nft ends in + for iptables."""
    return f"{value[:-1]}+" if value.endswith("*") else value


# -- what rules do ------------------------------------------------------------------------------------------------


def _verdict(kind: str, value: Any, rule: way.Rule) -> way.Rule:
    action = _VERDICTS[kind]
    if action in (way.JUMPS, way.GOES):
        return rule._replace(action=action, target=value["target"])
    return rule._replace(action=action)


def _marking(mangle: _Object, rule: way.Rule) -> way.Rule:
    """A rule that changes the mark of packets, or that of their connection."""
    key, value = mangle["key"], mangle["value"]
    if key == _META_MARK and value == _CT_MARK:
        return rule._replace(action=way.RESTORES_MARK, value=FULL_MASK, mask=FULL_MASK)
    if key == _CT_MARK and value == _META_MARK:
        return rule._replace(action=way.SAVES_MARK, value=FULL_MASK, mask=FULL_MASK)
    change = _change(value, key) if key in (_META_MARK, _CT_MARK) else None
    if key == _META_MARK and change is None:
        return rule._replace(action=way.SETS_SOME_MARK)
    if change is None:
        return rule
    action = way.SETS_MARK if key == _META_MARK else way.SETS_CT_MARK
    return rule._replace(action=action, value=change[0], mask=change[1])


def _change(value: Any, own: _Object) -> tuple[int, int] | None:
    """Value and mask of a change of bits, as (old & ~mask) ^ value; None if it is none of those."""
    if isinstance(value, int):
        return value, FULL_MASK
    if value == own:
        return 0, 0
    if not isinstance(value, Mapping):
        return None
    ((operator, operands),) = value.items()
    before = _change(operands[0], own) if operator in ("&", "|", "^") and isinstance(operands[1], int) else None
    if before is None:
        return None
    (known, mask), number = before, operands[1]
    if operator == "&":
        return known & number, mask | (~number & FULL_MASK)
    if operator == "|":
        return (known & ~number) | number, mask | number
    return known ^ number, mask
