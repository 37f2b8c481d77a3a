# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Our table of nftables as nft prints it in JSON. PRIVATE to the collection. Pure."""

from __future__ import annotations

import json
import re
from typing import Any, Mapping, Sequence

from ._errors import MISSHAPEN, not_understood
from ._iptables import COMMENT, merge_ports, retired
from ._markmap import EVERY_PORT, entry_order, extent, is_conditional, is_exact, is_record
from ._model import EVERYWHERE, FULL_NETMASK, Chain, ChainRule, MarkRule, PortRange, family_of
from ._nftables import ADDRESS_TYPE, MAPS, NFT_FAMILY, PRIORITY, STAGES, TABLE, table_words

# The kernel takes other names as well; there are no words for all of them.
_INTERFACE = re.compile(r"[\w.:@-]*\+?", re.ASCII)
_PROTOCOLS = ("tcp", "udp", "sctp")
# An object of the listing, and all of one by kind and name.
_Object = Mapping[str, Any]
_Named = Mapping["tuple[str, str]", _Object]


def parse_listing(listed: str, family: str) -> Chain:
    """Our table in the output of nft -j list table; an empty text is no table.

    The rules are our entries in the order of arranged(), then all else that is in our maps and our chain. The chain
    counts as entered if the base chain is as we make it. References are all other things in the table.
    Raises ParseError.
    """
    if not listed:
        return Chain()
    try:
        objects = [(kind, found) for item in json.loads(listed)["nftables"] for kind, found in item.items()]
        return _chain(objects, family)
    except MISSHAPEN as error:
        raise not_understood(f"nft -j list table {table_words(family)}", error) from None


def _chain(objects: Sequence[tuple[str, _Object]], family: str) -> Chain:
    named = {(kind, found["name"]): found for kind, found in objects if "name" in found}
    rules = [found for kind, found in objects if kind == "rule"]
    stages = [rule for rule in rules if rule["chain"] == "prerouting" and rule.get("comment") in STAGES]
    expected = _objects(family)
    others = len(named.keys() - expected.keys()) + sum(1 for rule in rules if rule["chain"] != "conditional")
    entered = [rule["expr"] for rule in stages] == _expressions(family) and all(
        wanted.items() <= named.get(key, {}).items() for key, wanted in expected.items()
    )
    own = _ordered(_content(named, rules, family))
    places = (1,) if entered else ()
    return Chain(True, own, int(entered and bool(own)), others - len(stages), jump_places=places)


def _objects(family: str) -> dict[tuple[str, str], _Object]:
    """What we make in a table, by kind and name, as far as it matters."""
    marks = {"type": [ADDRESS_TYPE[family], "inet_proto", "inet_service"], "map": "mark"}
    return {
        ("table", TABLE): {},
        ("map", "exact"): marks,
        ("map", "ranges"): {**marks, "flags": ["interval"]},
        ("set", "retired"): {"type": "mark"},
        ("chain", "conditional"): {},
        ("chain", "prerouting"): {"type": "filter", "hook": "prerouting", "prio": PRIORITY, "policy": "accept"},
    }


def _expressions(family: str) -> list[Any]:
    """The rules of the base chain."""
    parts = [
        {"payload": {"protocol": NFT_FAMILY[family], "field": "daddr"}},
        {"meta": {"key": "l4proto"}},
        {"payload": {"protocol": "th", "field": "dport"}},
    ]
    exact, ranges = (
        {"mangle": {"key": {"meta": {"key": "mark"}}, "value": {"map": {"key": {"concat": parts}, "data": f"@{name}"}}}}
        for name in MAPS
    )
    return [[exact, {"goto": {"target": "conditional"}}], [ranges], [{"jump": {"target": "conditional"}}]]


# -- entries ------------------------------------------------------------------------------------------------------


def _content(named: _Named, rules: Sequence[_Object], family: str) -> list[ChainRule]:
    """Everything that is in our maps and in our chain, in the order in which it was printed."""
    place = table_words(family)
    return [
        *(_element(found, f"{place} {name}", family) for name in MAPS for found in _in(named, "map", name)),
        *(_rule(rule, f"{place} conditional", family) for rule in rules if rule["chain"] == "conditional"),
        *(_record(found, f"{place} retired", family) for found in _in(named, "set", "retired")),
    ]


def _in(named: _Named, kind: str, name: str) -> Sequence[Any]:
    elements: Sequence[Any] = named.get((kind, name), {}).get("elem", ())
    return elements


def _ordered(rules: Sequence[ChainRule]) -> tuple[ChainRule, ...]:
    own = [(rule, rule.meaning) for rule in rules if isinstance(rule.meaning, MarkRule)]
    entries = [(rule, meaning) for rule, meaning in own if not is_conditional(meaning) and not is_record(meaning)]
    return (
        *(rule for rule, _meaning in sorted(entries, key=lambda pair: entry_order(pair[1]))),
        *(rule for rule, meaning in own if is_conditional(meaning)),
        *sorted((rule for rule, meaning in own if is_record(meaning)), key=lambda rule: rule.mark),
        *(rule for rule in rules if isinstance(rule.meaning, str)),
    )


def _element(found: Any, place: str, family: str) -> ChainRule:
    """An element of a map: [key, mark]. One that we would not put there stays as its text."""
    key, mark = found
    comment, value = _commented(key)
    parts, name = value["concat"], _name(comment)
    text = f"element {place} {{ {' . '.join(map(_key_words, parts))}{_comment_words(comment)} : {mark:#x} }}"
    return _entry(text, name, mark, _mark_rule(name, mark, parts, place, family))


def _mark_rule(name: str, mark: int, parts: Sequence[Any], place: str, family: str) -> MarkRule | None:
    destination, protocol, ports = _network(parts[0], family), parts[1], _port_range(parts[2])
    if not name or not destination or protocol not in _PROTOCOLS:
        return None
    rule = MarkRule(name, mark, destination, protocol, () if ports == EVERY_PORT else (ports,))
    return rule if place.endswith(" exact") == is_exact(rule) else None


def _record(found: Any, place: str, family: str) -> ChainRule:
    comment, mark = _commented(found)
    name, text = _name(comment), f"element {place} {{ {mark:#x}{_comment_words(comment)} }}"
    return _entry(text, name, mark, retired(name, mark, family) if name else None)


def _rule(found: _Object, place: str, family: str) -> ChainRule:
    """A rule of the chain conditional; nft deletes it by its handle."""
    name = _name(found.get("comment", ""))
    fields = _fields(found["expr"])
    mark = fields.get("mark", 0)
    rule = _conditional(name, mark, fields, family) if name and isinstance(mark, int) and mark else None
    return _entry(f"rule {place} handle {found['handle']}", name, mark if rule else 0, rule)


def _entry(text: str, name: str, mark: int, rule: MarkRule | None) -> ChainRule:
    return ChainRule(text, rule or text, name, mark)


def _conditional(name: str, mark: int, fields: Mapping[str, Any], family: str) -> MarkRule | None:
    """The rule as a value; None if it has something that we do not write."""
    known = {"mark", "iifname", "saddr", "daddr", "l4proto", "dport"}
    source = _network(fields["saddr"], family) if "saddr" in fields else ""
    destination = _network(fields["daddr"], family) if "daddr" in fields else EVERYWHERE[family]
    if not fields.keys() <= known or not destination or fields.get("l4proto") not in _PROTOCOLS:
        return None
    given = fields.get("dport", {"set": []})
    ports = merge_ports(map(_port_range, given["set"] if isinstance(given, dict) and "set" in given else [given]))
    # What ends in * for nft ends in + for iptables.
    interface = fields.get("iifname", "")
    interface = f"{interface[:-1]}+" if interface.endswith("*") else interface
    if not _INTERFACE.fullmatch(interface):
        return None
    rule = MarkRule(name, mark, destination, fields["l4proto"], ports, source, interface)
    return rule if is_conditional(rule) else None


def _fields(statements: Sequence[_Object]) -> dict[str, Any]:
    """What a rule asks for and does, by field; what we do not write is under its own name."""
    fields: dict[str, Any] = {}
    for statement in statements:
        ((kind, body),) = statement.items()
        if kind == "mangle" and body["key"] == {"meta": {"key": "mark"}}:
            fields["mark"] = body["value"]
        elif kind == "match" and body["op"] == "==" and "meta" in body["left"]:
            fields[body["left"]["meta"]["key"]] = body["right"]
        elif kind == "match" and body["op"] == "==" and "payload" in body["left"]:
            fields.update(_payload(body["left"]["payload"], body["right"]))
        else:
            fields[kind] = body
    return fields


def _payload(left: _Object, right: Any) -> dict[str, Any]:
    """A header field; with a port nft prints the protocol that we ask for separately."""
    protocol, name = left["protocol"], left["field"]
    return {name: right, "l4proto": protocol} if protocol in _PROTOCOLS else {name: right}


# -- values -------------------------------------------------------------------------------------------------------


def _commented(value: Any) -> tuple[str, Any]:
    """The comment of an element and its value, which stands alone where there is no comment."""
    if not isinstance(value, dict) or "elem" not in value:
        return "", value
    return value["elem"].get("comment", ""), value["elem"]["val"]


def _comment_words(comment: str) -> str:
    """A comment, unless it is one that would end the quotes or the line."""
    return f' comment "{comment}"' if comment and comment.isprintable() and '"' not in comment else ""


def _name(comment: str) -> str:
    """The name in a comment of ours; nft has no way to write one that would end the quotes."""
    return comment[len(COMMENT) :] if comment.startswith(COMMENT) and _comment_words(comment) else ""


def _network(value: Any, family: str) -> str:
    """An address or a prefix as a network; empty for a range that is none."""
    if isinstance(value, str):
        return _checked(f"{value}/{FULL_NETMASK[family]}", family)
    return _checked(f"{value['prefix']['addr']}/{value['prefix']['len']}", family) if "prefix" in value else ""


def _checked(network: str, family: str) -> str:
    """Its extent is needed later in any case, and remembered."""
    extent(network)
    if family_of(network) != family:
        raise ValueError(f"{network} is of the other family")
    return network


def _port_range(value: Any) -> PortRange:
    low, high = value["range"] if isinstance(value, dict) else (value, value)
    return (int(low), int(high))


def _key_words(part: Any) -> str:
    """A part of a key, as nft takes it."""
    if not isinstance(part, dict):
        return str(part)
    if "prefix" in part:
        return f"{part['prefix']['addr']}/{part['prefix']['len']}"
    low, high = part["range"]
    return f"{low}-{high}"
