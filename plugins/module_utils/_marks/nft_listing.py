# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Our table of nftables as nft prints it in JSON. PRIVATE to the collection. Pure."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any, Callable, Mapping, Sequence

from .._errors import MISSHAPEN, not_understood
from .._model import EVERYWHERE, FULL_NETMASK, Chain, ChainRule, MarkRule, PortRange, family_of
from .iptables import COMMENT, merge_ports, retired
from .markmap import EVERY_PORT, as_entries, canonical, entry_order, is_conditional, is_exact
from .nftables import (
    ADDRESS_TYPE,
    DECLARED,
    MAPS,
    MOVING,
    NFT_FAMILY,
    PRIORITY,
    PROTOCOLS,
    STAGES,
    TABLE,
    entry,
    plain,
    table_words,
)

# The kernel takes other names as well; there are no words for all of them.
_INTERFACE = re.compile(r"[\w.:@-]*\+?", re.ASCII)
_MAC: dict[str, Any] = {"payload": {"protocol": "ether", "field": "saddr"}}
_MAC_ADDRESS = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
# Where a rule leaves machines out by their MAC addresses, one for each match.
_NOT_MAC = "not ether saddr"
# An object of the listing, and all of one by kind and name.
_Object = Mapping[str, Any]
_Named = Mapping["tuple[str, str]", _Object]


def parse_listing(listed: str, family: str) -> Chain:
    """Our table in the output of nft -j list table; an empty text is no table.

    The rules are those that were declared: what the chain declared says, or else our entries, which tell the same where
    there is no such chain. Then all else that is in our maps and our chains. The chain counts as entered if the base
    chain is as we make it. References are all other things in the table.
    Raises ParseError.
    """
    return read_table(listed, table_words(family), lambda objects: _chain(objects, family))


def read_table(listed: str, words: str, chain_of: Callable[[Sequence[tuple[str, _Object]]], Chain]) -> Chain:
    """What the objects of a table are, each with its kind; an empty text is no table. words: the table as nft names it.

    Raises ParseError.
    """
    if not listed:
        return Chain()
    try:
        return chain_of([(kind, found) for item in json.loads(listed)["nftables"] for kind, found in item.items()])
    except MISSHAPEN as error:
        raise not_understood(f"nft -j list table {words}", error) from None


def _chain(objects: Sequence[tuple[str, _Object]], family: str) -> Chain:
    named = {(kind, found["name"]): found for kind, found in objects if "name" in found}
    rules = [found for kind, found in objects if kind == "rule"]
    stages = [rule for rule in rules if rule["chain"] == "prerouting" and rule.get("comment") in STAGES]
    expected, moving = _objects(family), [key for key in (("chain", MOVING), ("map", MOVING)) if key in named]
    misshapen = [key for key, wanted in expected.items() if key in named and not _fits(named[key], wanted)]
    others = len(named.keys() - expected.keys() - {("chain", DECLARED), *moving})
    others += sum(1 for rule in rules if rule["chain"] not in ("conditional", DECLARED, MOVING)) - len(stages)
    entered = (
        not misshapen
        and not moving
        and expected.keys() <= named.keys()
        and _is_at_work(named)
        and [rule["expr"] for rule in stages] == _expressions(family)
    )
    in_the_way = [
        *(f"delete rule {table_words(family)} prerouting handle {rule['handle']}" for rule in stages),
        *(f"flush {kind} {table_words(family)} {name}" for kind, name in moving if kind == "chain"),
        *(f"delete {kind} {table_words(family)} {name}" for kind, name in (*moving, *misshapen)),
    ]
    found = _content({key: value for key, value in named.items() if key not in misshapen}, rules, family)
    entries, own = _entries(found), _declared(found)
    return Chain(
        True,
        own,
        int(entered and bool(own)),
        others,
        entries=entries,
        jump_places=(1,) if entered else (),
        in_the_way=() if entered else tuple(in_the_way),
    )


def _fits(found: _Object, wanted: _Object) -> bool:
    return wanted.items() <= found.items()


def _is_at_work(named: _Named) -> bool:
    """Whether the table is not dormant, and the base chain has its policy.

    We give the table no flag, and what nft 1.0.6 calls its flags in JSON is not their names.
    """
    return "flags" not in named["table", TABLE] and named["chain", "prerouting"].get("policy") == "accept"


def _objects(family: str) -> dict[tuple[str, str], _Object]:
    """What we make in a table, by kind and name, as far as it matters."""
    marks = {"type": [ADDRESS_TYPE[family], "inet_proto", "inet_service"], "map": "mark"}
    return {
        ("table", TABLE): {},
        ("map", "exact"): marks,
        ("map", "ranges"): {**marks, "flags": ["interval"]},
        ("set", "retired"): {"type": "mark"},
        ("chain", "conditional"): {},
        ("chain", "prerouting"): {"type": "filter", "hook": "prerouting", "prio": PRIORITY},
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
    """Everything that is in our maps and in our chains, in the order in which it was printed."""
    place = table_words(family)
    return [
        *(_element(found, f"{place} {name}", family) for name in MAPS for found in _in(named, "map", name)),
        *(_rule(rule, f"{place} {name}", family) for name in ("conditional", DECLARED) for rule in rules
          if rule["chain"] == name),
        *(_record(found, f"{place} retired", family) for found in _in(named, "set", "retired")),
    ]  # fmt: skip


def _in(named: _Named, kind: str, name: str) -> Sequence[Any]:
    elements: Sequence[Any] = named.get((kind, name), {}).get("elem", ())
    return elements


def _entries(found: Sequence[ChainRule]) -> tuple[ChainRule, ...]:
    """Ours that packets meet, in the order of arranged()."""
    own = [(rule, rule.meaning) for rule in found if isinstance(rule.meaning, MarkRule) and not _is_aside(rule)]
    elements = [(rule, meaning) for rule, meaning in own if not is_conditional(meaning)]
    return (
        *(rule for rule, _meaning in sorted(elements, key=lambda pair: entry_order(pair[1]))),
        *(rule for rule, meaning in own if is_conditional(meaning)),
    )


def _declared(found: Sequence[ChainRule]) -> tuple[ChainRule, ...]:
    """The rules as they were declared, and all that is neither of them nor an entry."""
    own = [rule for rule in found if isinstance(rule.meaning, MarkRule) and _is_in(rule, DECLARED)]
    if not own:
        given = [plain(rule.meaning) for rule in _entries(found) if isinstance(rule.meaning, MarkRule)]
        elements = sorted((rule for rule in given if not is_conditional(rule)), key=entry_order)
        own = [*map(entry, as_entries([*elements, *filter(is_conditional, given)]))]
    records = (rule for rule in found if isinstance(rule.meaning, MarkRule) and _is_in(rule, "retired"))
    others = (rule for rule in found if isinstance(rule.meaning, str))
    return (*own, *sorted(records, key=lambda rule: rule.mark), *others)


def _is_aside(rule: ChainRule) -> bool:
    return _is_in(rule, DECLARED) or _is_in(rule, "retired")


def _is_in(rule: ChainRule, place: str) -> bool:
    return rule.text.split(" ", 4)[3] == place


def _element(found: Any, place: str, family: str) -> ChainRule:
    """An element of a map: [key, mark]. One that we would not put there stays as its text."""
    key, mark = found
    comment, value = _commented(key)
    parts, name = value["concat"], _name(comment)
    text = f"element {place} {{ {' . '.join(map(_key_words, parts))}{_comment_words(comment)} : {mark:#x} }}"
    return _entry(text, name, mark, _mark_rule(name, mark, parts, place, family))


def _mark_rule(name: str, mark: int, parts: Sequence[Any], place: str, family: str) -> MarkRule | None:
    destination, protocol, ports = _network(parts[0], family), parts[1], _port_range(parts[2])
    if not name or not destination or protocol not in PROTOCOLS:
        return None
    rule = MarkRule(name, mark, destination, protocol, () if ports == EVERY_PORT else (ports,))
    return rule if place.endswith(" exact") == is_exact(rule) else None


def _record(found: Any, place: str, family: str) -> ChainRule:
    comment, mark = _commented(found)
    name, text = _name(comment), f"element {place} {{ {mark:#x}{_comment_words(comment)} }}"
    return _entry(text, name, mark, retired(name, mark, family) if name else None)


def _rule(found: _Object, place: str, family: str) -> ChainRule:
    """A rule of a chain; nft deletes it by its handle. What is in it may be anything that nft knows."""
    name = _name(found.get("comment", ""))
    rule = _understood(name, found, family) if name else None
    if rule and place.endswith(f" {DECLARED}"):
        rule = rule if len(rule.ports) < 2 else None
    elif rule and not is_conditional(rule):
        # It is here because somebody else's element has its place in the map.
        rule = replace(rule, source=EVERYWHERE[family])
    return _entry(f"rule {place} handle {found['handle']}", name, rule.mark if rule else 0, rule)


def _understood(name: str, found: _Object, family: str) -> MarkRule | None:
    try:
        return _mark_rule_of(name, _fields(found["expr"]), family)
    except MISSHAPEN:
        return None


def _entry(text: str, name: str, mark: int, rule: MarkRule | None) -> ChainRule:
    return ChainRule(text, rule or text, name, mark)


def _mark_rule_of(name: str, fields: Mapping[str, Any], family: str) -> MarkRule | None:
    """The rule as a value; None if it has something that we do not write. Raises one of MISSHAPEN for other values."""
    known = {"mark", "iifname", "saddr", "daddr", "l4proto", "dport", _NOT_MAC}
    mark, protocol = fields.get("mark"), fields.get("l4proto")
    source = _network(fields["saddr"], family) if "saddr" in fields else ""
    destination = _network(fields["daddr"], family) if "daddr" in fields else EVERYWHERE[family]
    if not fields.keys() <= known or not isinstance(mark, int) or not mark or protocol not in PROTOCOLS:
        return None
    if not destination or ("saddr" in fields and not source):
        return None
    given = fields.get("dport", {"set": []})
    ports = merge_ports(map(_port_range, given["set"] if isinstance(given, dict) and "set" in given else [given]))
    # What ends in * for nft ends in + for iptables.
    interface = fields.get("iifname", "")
    interface = f"{interface[:-1]}+" if interface.endswith("*") else interface
    if not _INTERFACE.fullmatch(interface):
        return None
    excluded = tuple(sorted(set(fields.get(_NOT_MAC, ()))))
    if not all(_MAC_ADDRESS.fullmatch(address) for address in excluded):
        return None
    return MarkRule(name, mark, destination, protocol, ports, source, interface, exclude_mac=excluded)


def _fields(statements: Sequence[_Object]) -> dict[str, Any]:
    """What a rule asks for and does, by field; what we do not write, or write only once, is under a name of its own."""
    fields: dict[str, Any] = {}
    for statement in statements:
        ((kind, body),) = statement.items()
        found = {kind: body}
        if kind == "mangle" and body["key"] == {"meta": {"key": "mark"}}:
            found = {"mark": body["value"]}
        elif kind == "match" and body["op"] == "==" and "meta" in body["left"]:
            found = {body["left"]["meta"]["key"]: body["right"]}
        elif kind == "match" and body["op"] == "!=" and body["left"] == _MAC:
            fields[_NOT_MAC] = (*fields.get(_NOT_MAC, ()), body["right"])
            continue
        elif kind == "match" and body["op"] == "==" and "payload" in body["left"]:
            found = _payload(body["left"]["payload"], body["right"])
        fields.update({f"{key} again" if key in fields else key: value for key, value in found.items()})
    return fields


def _payload(left: _Object, right: Any) -> dict[str, Any]:
    """A header field; with a port nft prints the protocol that we ask for separately."""
    protocol, name = left["protocol"], left["field"]
    return {name: right, "l4proto": protocol} if protocol in PROTOCOLS else {name: right}


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
    """As Python prints it, which is not how nft prints it: there the last half of ::1 and ::ffff:c000:20a is dotted."""
    if family_of(network) != family:
        raise ValueError(f"{network} is of the other family")
    return canonical(network)


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
