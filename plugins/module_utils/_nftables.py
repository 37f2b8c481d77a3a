# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""MARK rules as a table of nftables, in the commands that nft takes. PRIVATE to the collection. Pure.

There is one table for each family, and nobody else writes to it:

    map exact            marks of single addresses and ports: a hash
    map ranges           marks of networks and of ranges of ports: intervals
    set retired          marks that no packet gets, for as long as their services are there
    chain conditional    rules that look at the source or the interface as well
    chain prerouting     looks into exact, or else into ranges, and then goes to conditional

Every element and every rule of ours has a comment, lvs:NAME for what belongs to a service.
"""

from __future__ import annotations

from typing import Iterable, Sequence

from ._errors import LvsError
from ._iptables import COMMENT
from ._markmap import EVERY_PORT, arranged, is_conditional, is_exact, is_record
from ._model import (
    EVERYWHERE,
    FAMILIES,
    FULL_NETMASK,
    IPV4,
    IPV6,
    NFTABLES,
    Chain,
    ChainEdit,
    ChainId,
    ChainRule,
    MarkRule,
    PortRange,
)

TABLE = "lvs-mark"
NFT_FAMILY = {IPV4: "ip", IPV6: "ip6"}
ADDRESS_TYPE = {IPV4: "ipv4_addr", IPV6: "ipv6_addr"}
# Right behind table mangle of iptables: a rule there does not override ours, and where both give a mark while a router
# is on its way from one to the other, it is this one that counts.
PRIORITY = -149
MAPS = ("exact", "ranges")
# The rules of the base chain, by their comments. A packet that finds its mark in the hash need not be looked up among
# the intervals, which takes longer.
STAGES = ("lvs exact", "lvs ranges", "lvs conditional")
# The kernel looks through all ranges for each one that it removes. From this many on a new table takes less time.
_MANY_RANGES = 100


def nftables_chains() -> tuple[ChainId, ...]:
    """Our tables, one for each family, as chains among the others."""
    return tuple(ChainId(family, TABLE, "prerouting", "conditional", NFTABLES) for family in FAMILIES)


def table_words(family: str) -> str:
    """Our table as nft names it."""
    return f"{NFT_FAMILY[family]} {TABLE}"


# -- words --------------------------------------------------------------------------------------------------------


def entries(rules: Sequence[MarkRule]) -> tuple[ChainRule, ...]:
    """What a table holds so that each packet gets the mark that it would get from these rules in a chain."""
    return tuple(ChainRule(words(rule), rule, rule.name, rule.mark) for rule in arranged(rules))


def words(rule: MarkRule) -> str:
    """What nft adds for an entry: an element, or a rule."""
    if is_conditional(rule):
        return f"rule {table_words(rule.family)} conditional {_rule_words(rule)}"
    data = "" if is_record(rule) else f" : {rule.mark:#x}"
    return f"element {_place(rule)} {{ {_key(rule)} comment {_comment(rule)}{data} }}"


def _place(rule: MarkRule) -> str:
    """The map or set of an element."""
    name = "retired" if is_record(rule) else "exact" if is_exact(rule) else "ranges"
    return f"{table_words(rule.family)} {name}"


def _key(rule: MarkRule) -> str:
    if is_record(rule):
        return f"{rule.mark:#x}"
    return f"{_address(rule)} . {rule.protocol} . {_port_words(rule.ports[0] if rule.ports else EVERY_PORT)}"


def _address(rule: MarkRule) -> str:
    """The destination as nft prints it: a single address has no prefix length."""
    address, _slash, length = rule.destination.partition("/")
    return address if int(length) == FULL_NETMASK[rule.family] else rule.destination


def _rule_words(rule: MarkRule) -> str:
    family = NFT_FAMILY[rule.family]
    found = []
    if rule.in_interface:
        # What ends in + for iptables ends in * for nft.
        found.append(f'iifname "{rule.in_interface.replace("+", "*")}"')
    if rule.source:
        found.append(f"{family} saddr {rule.source}")
    if rule.destination != EVERYWHERE[rule.family]:
        found.append(f"{family} daddr {rule.destination}")
    found.append(f"meta l4proto {rule.protocol}")
    if rule.ports:
        found.append(f"th dport {{ {', '.join(map(_port_words, rule.ports))} }}")
    return " ".join([*found, f"meta mark set {rule.mark:#x} comment {_comment(rule)}"])


def _port_words(ports: PortRange) -> str:
    low, high = ports
    return str(low) if low == high else f"{low}-{high}"


def _comment(rule: MarkRule) -> str:
    return f'"{COMMENT}{rule.name}"'


# -- commands -----------------------------------------------------------------------------------------------------


def table_lines(family: str, rules: Iterable[ChainRule]) -> list[str]:
    """The commands that make our table from nothing."""
    table = table_words(family)
    key = f"type {ADDRESS_TYPE[family]} . inet_proto . inet_service : mark;"
    exact, ranges = (f"meta mark set {NFT_FAMILY[family]} daddr . meta l4proto . th dport map @{name}" for name in MAPS)
    stages = (f"{exact} goto conditional", ranges, "jump conditional")
    return [
        f"add table {table}",
        f"add map {table} exact {{ {key} }}",
        f"add map {table} ranges {{ {key} flags interval; }}",
        f"add set {table} retired {{ type mark; }}",
        f"add chain {table} conditional",
        f"add chain {table} prerouting {{ type filter hook prerouting priority {PRIORITY}; policy accept; }}",
        *(f'add rule {table} prerouting {stage} comment "{comment}"' for stage, comment in zip(stages, STAGES)),
        *_added(rules),
    ]


def boot_lines(family: str, rules: Sequence[MarkRule]) -> list[str]:
    """The commands that make our table what it is to be, whatever it was: nft takes a file as one transaction."""
    table = table_words(family)
    return [f"add table {table}", f"delete table {table}", *(table_lines(family, entries(rules)) if rules else [])]


def edit_table(chain_id: ChainId, before: Chain, after: Chain) -> ChainEdit | None:
    """The transaction that leads from one content of our table to another, None if there is nothing to do.

    Only what differs is named. A table that is not as we make it, say because somebody flushed its rules, is made anew,
    and so is one that loses many ranges. Raises LvsError where that would take something of somebody else along.
    """
    lines = _edit_lines(chain_id.family, before, after)
    return ChainEdit(chain_id, tuple(lines), after) if lines else None


def _edit_lines(family: str, before: Chain, after: Chain) -> list[str]:
    if not before.exists:
        return table_lines(family, after.rules) if after.exists else []
    if not after.exists:
        return [f"delete table {table_words(family)}"]
    gone, come = _differences(before.rules, after.rules)
    shared = before.references or any(not rule.name for rule in before.rules)
    broken = after.jumps > before.jumps and not before.jump_places
    if broken and shared:
        what = f"the nftables table {table_words(family)} is not as lvs.fleet makes it"
        raise LvsError(f"{what}, and holds something of somebody else, which making it anew would destroy")
    if broken or (sum(1 for rule in gone if _is_range(rule)) >= _MANY_RANGES and not shared):
        return [f"delete table {table_words(family)}", *table_lines(family, after.rules)]
    return [*(f"delete {_deleted(rule)}" for rule in gone), *_added(come)]


def _differences(before: Iterable[ChainRule], after: Iterable[ChainRule]) -> tuple[list[ChainRule], list[ChainRule]]:
    """What goes and what comes. Conditional rules stay up to the first that differs, because their order counts."""
    old_rules, old = _by_order(before)
    new_rules, new = _by_order(after)
    pairs = enumerate(zip(old_rules, new_rules))
    same = next((place for place, (one, other) in pairs if one != other), min(len(old_rules), len(new_rules)))
    there, wanted = frozenset(old), frozenset(new)
    gone = [*(rule for rule in old if rule not in wanted), *old_rules[same:]]
    come = [*(rule for rule in new if rule not in there), *new_rules[same:]]
    return gone, come


def _by_order(rules: Iterable[ChainRule]) -> tuple[list[ChainRule], list[ChainRule]]:
    """Those whose order counts, and the others."""
    ordered: list[ChainRule] = []
    others: list[ChainRule] = []
    for rule in rules:
        counts = isinstance(rule.meaning, MarkRule) and is_conditional(rule.meaning)
        (ordered if counts else others).append(rule)
    return ordered, others


def _is_range(rule: ChainRule) -> bool:
    meaning = rule.meaning
    return isinstance(meaning, MarkRule) and not is_conditional(meaning) and _place(meaning).endswith(" ranges")


def _added(rules: Iterable[ChainRule]) -> list[str]:
    texts = (words(rule.meaning) if isinstance(rule.meaning, MarkRule) else rule.text for rule in rules)
    return [f"add {text}" for text in texts]


def irrevocable(rules: Iterable[ChainRule]) -> tuple[ChainRule, ...]:
    """Rules of others in our chain: we know them by their handles only, and could not put them back."""
    return tuple(rule for rule in rules if not rule.name and rule.text.startswith("rule "))


def _deleted(rule: ChainRule) -> str:
    """What nft deletes: an element by its key; a rule by its handle, which is in the text of one that was read."""
    if isinstance(rule.meaning, MarkRule) and not is_conditional(rule.meaning):
        return f"element {_place(rule.meaning)} {{ {_key(rule.meaning)} }}"
    return rule.text


def save_lines(chain: Chain) -> list[str]:
    """The content of our table for the diff: entries as we add them, others as they are."""
    return [words(rule.meaning) if isinstance(rule.meaning, MarkRule) else rule.text for rule in chain.rules]
