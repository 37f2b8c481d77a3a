# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The records of services by address as a set of nftables, which no rule looks into. PRIVATE to the collection. Pure.

There is one table for each family:

    set services         address, protocol and port of each service; its comment is lvs:NAME
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any, Iterable, Mapping, Sequence

from .._model import (
    FAMILIES,
    FULL_NETMASK,
    NFTABLES,
    Chain,
    ChainEdit,
    ChainId,
    ChainRule,
    MarkRule,
    ServiceId,
    ServiceRecord,
)
from .iptables import COMMENT, record_of
from .nft_listing import read_table
from .nftables import ADDRESS_TYPE, NFT_FAMILY

TABLE = "lvs-service"
SET = "services"
# Keys are (kind, name) in the listing of nft.
_OWN = {("table", TABLE), ("set", SET)}


def nft_record_chains() -> tuple[ChainId, ...]:
    """Our tables of records, one for each family, as chains among the others."""
    return tuple(ChainId(family, TABLE, "", SET, NFTABLES) for family in FAMILIES)


def record_table(family: str) -> str:
    """The table as nft names it."""
    return f"{NFT_FAMILY[family]} {TABLE}"


def record_element(record: ServiceRecord) -> ChainRule:
    key = f"{record.service.address} . {record.service.protocol} . {record.service.port}"
    return ChainRule(f'{{ {key} comment "{COMMENT}{record.name}" }}', record, record.name)


def in_order(elements: Iterable[ChainRule]) -> tuple[ChainRule, ...]:
    """As this collection shows them: a set has no order. Of two for one service the last one counts."""
    own: dict[ServiceId, ChainRule] = {}
    others: list[ChainRule] = []
    for rule in elements:
        if isinstance(rule.meaning, ServiceRecord):
            own[rule.meaning.service] = rule
        else:
            others.append(rule)
    return (*(own[key] for key in sorted(own, key=lambda key: (ip_address(key.address), *key))), *others)


# -- reading ------------------------------------------------------------------------------------------------------


def parse_records(listed: str, family: str) -> Chain:
    """The table in the output of nft -j list table; an empty text is no table. References are all other things in it.

    Raises ParseError.
    """
    return read_table(listed, record_table(family), lambda objects: _chain(objects, family))


def _chain(objects: Sequence[tuple[str, Mapping[str, Any]]], family: str) -> Chain:
    others = sum(1 for kind, found in objects if kind != "metainfo" and (kind, found.get("name")) not in _OWN)
    sets = [found for kind, found in objects if (kind, found.get("name")) == ("set", SET)]
    if not sets:
        return Chain(references=others)
    if sets[0]["type"] != [ADDRESS_TYPE[family], "inet_proto", "inet_service"]:
        raise ValueError(f"set {SET} is not as lvs.fleet makes it; delete the table {record_table(family)}")
    found = tuple(_element(element, family) for element in sets[0].get("elem", ()))
    return Chain(True, in_order(found), references=others)


def _element(found: Any, family: str) -> ChainRule:
    """An element; one that is no record of ours stays as its text."""
    inside = found.get("elem", {"val": found})
    address, protocol, port = inside["val"]["concat"]
    comment, key = inside.get("comment", ""), f"{address} . {protocol} . {port}"
    name = comment[len(COMMENT) :] if comment.startswith(COMMENT) else ""
    ports = ((int(port), int(port)),) if port else ()
    destination = f"{ip_address(address)}/{FULL_NETMASK[family]}"
    record = record_of(MarkRule(name, 0, destination, str(protocol), ports))
    return record_element(record) if record else ChainRule(f"{{ {key} }}", f"{{ {key} }}")


# -- writing ------------------------------------------------------------------------------------------------------


def edit_records(chain_id: ChainId, before: Chain, after: Chain) -> list[ChainEdit]:
    """The transaction that leads from one content of the set to another; none if there is nothing to do."""
    table = record_table(chain_id.family)
    if not after.exists:
        lines = [f"delete table {table}"] if before.exists else []
    else:
        there, wanted = frozenset(before.rules), frozenset(after.rules)
        gone = [rule.text for rule in before.rules if rule not in wanted]
        come = [rule.text for rule in after.rules if rule not in there]
        lines = [
            *([] if before.exists else _frame(chain_id.family)),
            *(f"delete element {table} {SET} {text}" for text in gone),
            *(f"add element {table} {SET} {text}" for text in come),
        ]
    return [ChainEdit(chain_id, tuple(lines), after)] if lines else []


def _frame(family: str) -> list[str]:
    table = record_table(family)
    kind = f"{ADDRESS_TYPE[family]} . inet_proto . inet_service"
    return [f"add table {table}", f"add set {table} {SET} {{ type {kind}; }}"]


def boot_record_lines(family: str, records: Sequence[ServiceRecord]) -> list[str]:
    """The commands that make our table what it is to be, whatever it was."""
    table = record_table(family)
    own = in_order(record_element(record) for record in records if record.family == family)
    made = [*_frame(family), *(f"add element {table} {SET} {element.text}" for element in own)] if own else []
    return [f"add table {table}", f"delete table {table}", *made]


def record_lines(chain_id: ChainId, chain: Chain) -> list[str]:
    """The content for the diff."""
    return [f"element {record_table(chain_id.family)} {SET} {rule.text}" for rule in chain.rules]
