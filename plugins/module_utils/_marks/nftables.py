# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""MARK rules as a table of nftables, in the commands that nft takes. PRIVATE to the collection. Pure.

There is one table for each family, and nobody else writes to it:

    map exact            marks of single addresses and ports: a hash
    map ranges           marks of networks and of ranges of ports: intervals
    set retired          marks that no packet gets, for as long as their services are there
    chain conditional    rules that look at the source or the interface as well
    chain prerouting     looks into exact, or else into ranges, and then goes to conditional

A map has no order, so of rules that see the same packets only what is left of them is in it. Where that is so, the
table has the rules as they were declared as well, in a chain that no packet enters:

    chain declared       all rules in their order, one range of ports each

Every element and every rule of ours has a comment, lvs:NAME for what belongs to a service.
"""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Iterable, Iterator, Sequence, Tuple

from .._errors import LvsError
from .._model import (
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
from .iptables import COMMENT, alike
from .markmap import EVERY_PORT, arranged, as_entries, is_conditional, is_exact, is_record

TABLE = "lvs-mark"
NFT_FAMILY = {IPV4: "ip", IPV6: "ip6"}
ADDRESS_TYPE = {IPV4: "ipv4_addr", IPV6: "ipv6_addr"}
# Right behind table mangle of iptables: a rule there does not override ours, and where both give a mark while a router
# is on its way from one to the other, it is this one that counts.
PRIORITY = -149
_HOOK = f"{{ type filter hook prerouting priority {PRIORITY}; policy accept; }}"
MAPS = ("exact", "ranges")
PROTOCOLS = ("tcp", "udp", "sctp")
# The rules of the base chain, by their comments. A packet that finds its mark in the hash need not be looked up among
# the intervals, which takes longer.
STAGES = ("lvs exact", "lvs ranges", "lvs conditional")
# The kernel looks through all ranges for each one that it removes: 17 ms among 5,000. From this many on a new map takes
# less time.
_MANY_RANGES = 100
# What stands in for ranges while they change: a map, and a base chain of the same name that looks into it.
MOVING = "moving"
DECLARED = "declared"
_ELEMENT = re.compile(r"element \S+ \S+ (exact|ranges) { (\S+) \. (\S+) \. (\S+) ")
_DATA = re.compile(r'( comment "[^"]*")?( : 0x[0-9a-f]+)? }$')
_HANDLE = re.compile(r"rule \S+ \S+ \S+ handle \d+")

# Of an element: its map, its first and last address as numbers, its protocol, its ports.
_Extent = Tuple[str, int, int, str, PortRange]


def nftables_chains() -> tuple[ChainId, ...]:
    """Our tables, one for each family, as chains among the others."""
    return tuple(ChainId(family, TABLE, "prerouting", "conditional", NFTABLES) for family in FAMILIES)


def table_words(family: str) -> str:
    """Our table as nft names it."""
    return f"{NFT_FAMILY[family]} {TABLE}"


# -- content ------------------------------------------------------------------------------------------------------


def declared_entries(rules: Iterable[MarkRule]) -> tuple[ChainRule, ...]:
    """What is declared, in the pieces that our tables speak of.

    Where none of the rules takes a packet from another one, in the order of the table: there it has none of its own.
    """
    own = as_entries(_of_each_protocol(rules))
    placed = arranged(own)
    return tuple(map(entry, own if _is_cut(own, placed) else placed))


def _of_each_protocol(rules: Iterable[MarkRule]) -> Iterator[MarkRule]:
    """A map looks a packet up by its protocol, so a rule for all of them is one for each that IPVS balances."""
    for rule in rules:
        yield from [rule] if rule.protocol else (replace(rule, protocol=protocol) for protocol in PROTOCOLS)


def content(rules: Sequence[ChainRule]) -> tuple[tuple[ChainRule, ...], tuple[ChainRule, ...]]:
    """From the rules of a table, ours and what others put there, to the same in canonical order, and to our entries."""
    others = tuple(rule for rule in rules if not _is_own(rule))
    own = [rule.meaning for rule in rules if isinstance(rule.meaning, MarkRule) and _is_own(rule)]
    placed = arranged(own)
    listed = own if _is_cut(own, placed) else placed
    return (*map(entry, listed), *others), tuple(map(entry, _beside(placed, others)))


def _is_cut(own: Iterable[MarkRule], placed: Iterable[MarkRule]) -> bool:
    """Whether the entries in their places do not tell what the rules were."""
    return frozenset(own) != frozenset(placed)


def _is_own(rule: ChainRule) -> bool:
    return isinstance(rule.meaning, MarkRule) and not is_record(rule.meaning)


def entry(rule: MarkRule) -> ChainRule:
    return ChainRule(words(rule), rule, rule.name, rule.mark)


def _beside(placed: Sequence[MarkRule], others: Iterable[ChainRule]) -> Iterator[MarkRule]:
    """The entries, but those that an element of somebody else leaves no room for as rules, which override it.

    That is what a rule of ours behind that of somebody else would do in a chain.
    """
    taken = [extent for rule in others for extent in _extents(rule.text)]
    plain = [rule for rule in placed if not is_conditional(rule)]
    blocked = frozenset(rule for rule in plain if taken and _collides(rule, taken))
    yield from (rule for rule in plain if rule not in blocked)
    yield from (replace(rule, source=EVERYWHERE[rule.family]) for rule in plain if rule in blocked)
    yield from (rule for rule in placed if is_conditional(rule))


def _collides(rule: MarkRule, taken: Iterable[_Extent]) -> bool:
    place, first, last, protocol, ports = next(_extents(words(rule)))
    return any(
        place == other[0]
        and first <= other[2]
        and other[1] <= last
        # A protocol that is not one of ours may be a range of them.
        and (protocol == other[3] or other[3] not in PROTOCOLS)
        and ports[0] <= other[4][1]
        and other[4][0] <= ports[1]
        for other in taken
    )


def _extents(element: str) -> Iterator[_Extent]:
    found = _ELEMENT.match(element)
    if found:
        place, address, protocol, ports = found.groups()
        low, _dash, high = ports.partition("-")
        first, _dash, last = address.partition("-")
        network = ip_network(first)
        end = ip_address(last) if last else network[-1]
        yield place, int(network[0]), int(end), protocol, (int(low), int(high or low))


# -- words --------------------------------------------------------------------------------------------------------


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
    found += [f"ether saddr != {address}" for address in rule.exclude_mac]
    if rule.source not in ("", EVERYWHERE[rule.family]):
        found.append(f"{family} saddr {rule.source}")
    if rule.destination != EVERYWHERE[rule.family]:
        found.append(f"{family} daddr {rule.destination}")
    found.append(f"meta l4proto {rule.protocol}")
    if rule.ports:
        # Never a set of ports: the kernel shows what is in a set of ranges later than the rule that has it.
        found.append(f"th dport {_port_words(rule.ports[0])}")
    return " ".join([*found, f"meta mark set {rule.mark:#x} comment {_comment(rule)}"])


def _port_words(ports: PortRange) -> str:
    low, high = ports
    return str(low) if low == high else f"{low}-{high}"


def _comment(rule: MarkRule) -> str:
    return f'"{COMMENT}{rule.name}"'


# -- commands -----------------------------------------------------------------------------------------------------


def table_lines(family: str, after: Chain) -> list[str]:
    """The commands that make our table from nothing."""
    listed = ledger(after)
    others = (rule for rule in after.rules if not _is_own(rule))
    return [
        *_frame(family),
        *_stages(family),
        *_added((*after.entries, *others)),
        *([f"add chain {table_words(family)} {DECLARED}"] if listed else []),
        *_rule_edits(family, DECLARED, (), listed)[0],
    ]


def _frame(family: str) -> list[str]:
    """The commands for all but rules and elements; they change nothing where all is as it should be."""
    table = table_words(family)
    return [
        f"add table {table}",
        *(f"add map {table} {name} {{ {_map_type(family, name)} }}" for name in MAPS),
        f"add set {table} retired {{ type mark; }}",
        f"add chain {table} conditional",
        f"add chain {table} prerouting {_HOOK}",
    ]


def _map_type(family: str, name: str) -> str:
    intervals = "" if name == "exact" else " flags interval;"
    return f"type {ADDRESS_TYPE[family]} . inet_proto . inet_service : mark;{intervals}"


def _stages(family: str) -> list[str]:
    """The commands for the rules of the base chain."""
    stages = (f"{_look_up(family, 'exact')} goto conditional", _look_up(family, "ranges"), "jump conditional")
    return [
        f'add rule {table_words(family)} prerouting {stage} comment "{comment}"'
        for stage, comment in zip(stages, STAGES)
    ]


def _look_up(family: str, name: str) -> str:
    return f"meta mark set {NFT_FAMILY[family]} daddr . meta l4proto . th dport map @{name}"


def boot_lines(family: str, rules: Sequence[MarkRule]) -> list[str]:
    """The commands that make our table what it is to be, whatever it was: nft takes a file as one transaction."""
    table = table_words(family)
    made = table_lines(family, Chain().with_rules(*content(declared_entries(rules)))) if rules else []
    return [f"add table {table}", f"delete table {table}", *made]


# -- the way from one content to another --------------------------------------------------------------------------


def edit_table(chain_id: ChainId, before: Chain, after: Chain) -> list[ChainEdit]:
    """The transactions that lead from one content of our table to another, in their order; none if there is nothing
    to do.

    Only what differs is named. A table that is not as we make it, say because somebody flushed its rules, is repaired.
    Raises LvsError where that would take something of somebody else along.
    """
    return [
        ChainEdit(chain_id, tuple(lines), after) for lines in _transactions(chain_id.family, before, after) if lines
    ]


def _transactions(family: str, before: Chain, after: Chain) -> list[list[str]]:
    """At most three, so that no packet is without its mark between what goes and what comes.

    At the end of a transaction rules and hashes change at once, and a moment later sets of intervals: what comes into
    ranges has to be there before what goes from elsewhere, and what overrides it no later than it. While ranges
    themselves change, what comes is looked up in a map of its own, for packets that ranges has nothing for.
    """
    if not before.exists:
        return [table_lines(family, after)] if after.exists else []
    if not after.exists:
        return [[f"delete table {table_words(family)}"]]
    there, wanted = _elements(before), _elements(after)
    gone, come = ([rule for rule in one if rule not in other] for one, other in ((there, wanted), (wanted, there)))
    new_map = sum(map(_is_range, gone)) >= _MANY_RANGES and not _is_shared(before, " ranges ")
    shown_late = [rule for rule in (wanted if new_map else come) if _is_range(rule)]
    covered = shown_late if any(map(_is_range, gone)) else []
    added, deleted = _rule_edits(family, "conditional", _conditional(before), _conditional(after))
    taking_places = {_head(rule) for rule in come}
    leaving = [rule for rule in gone if shown_late and not _is_range(rule) and _head(rule) not in taking_places]
    at_once = [
        *(f"delete {_head(rule)} }}" for rule in gone if not _is_range(rule) and rule not in leaving),
        *([] if shown_late else deleted),
        *_added(rule for rule in come if not _is_range(rule)),
        *added,
    ]
    change = [
        *(_new_map(family) if new_map else [f"delete {_head(rule)} }}" for rule in gone if _is_range(rule)]),
        *_added(shown_late),
        *_ledger_lines(family, before, after),
    ]
    last = [*(f"delete {_head(rule)} }}" for rule in leaving), *(deleted if shown_late else [])]
    first = [*_repair(family, before, after), *at_once]
    if not covered:
        return [[*first, *change], last]
    return [[*first, *_moving(family, covered)], change, [*_moved(family), *last]]


def _elements(chain: Chain) -> dict[ChainRule, None]:
    """All that is in our maps, in its order; a dictionary for being found at once."""
    found = (*chain.entries, *(rule for rule in chain.rules if not _is_own(rule)))
    return dict.fromkeys(rule for rule in found if _text(rule).startswith("element "))


def _conditional(chain: Chain) -> list[ChainRule]:
    """The rules of ours for packets, and those with a name of ours that we would not write."""
    others = (rule for rule in chain.rules if not _is_own(rule) and rule.name)
    return [rule for rule in (*chain.entries, *others) if _text(rule).split()[0::3][:2] == ["rule", "conditional"]]


def ledger(chain: Chain) -> list[ChainRule]:
    """The rules that the chain declared has, or is to have; none where the entries tell the same."""
    own = [rule for rule in chain.rules if _is_own(rule)]
    # An earlier version wrote one rule with a set of ports where there is a rule for each range now.
    given = as_entries(plain(rule.meaning) for rule in chain.entries if isinstance(rule.meaning, MarkRule))
    return [] if frozenset(given) == frozenset(rule.meaning for rule in own) else own


def plain(rule: MarkRule) -> MarkRule:
    """A rule without the source that only says that it has no place in a map."""
    return replace(rule, source="") if rule.source == EVERYWHERE[rule.family] else rule


def _ledger_lines(family: str, before: Chain, after: Chain) -> list[str]:
    chain = f"{table_words(family)} {DECLARED}"
    # What was read has its place in its text; what is only planned is as it will be.
    read = [rule for rule in before.rules if rule.name and rule.text.startswith(f"rule {chain} ")]
    old, new = read or ledger(before), ledger(after)
    if old and not new and not _is_shared(before, f" {DECLARED} "):
        return [f"flush chain {chain}", f"delete chain {chain}"]
    added, deleted = _rule_edits(family, DECLARED, old, new)
    return [*([f"add chain {chain}"] if new and not old else []), *deleted, *added]


def _rule_edits(
    family: str, chain: str, before: Sequence[ChainRule], after: Sequence[ChainRule]
) -> tuple[list[str], list[str]]:
    """The commands that add rules to a chain, each in its place, and those that delete others.

    Whatever was read has its handle in its text.
    """
    kept = dict(alike(before, after))
    stays = {place: before[old].text.split()[-2:] for old, place in kept.items()}
    added: list[str] = []
    behind: list[str] = []
    for place in reversed(range(len(after))):
        behind = stays.get(place, behind)
        if place not in stays:
            where = " ".join([f"{table_words(family)} {chain}", *behind])
            meaning = after[place].meaning
            if isinstance(meaning, MarkRule):
                added.append(f"{'insert' if behind else 'add'} rule {where} {_rule_words(meaning)}")
    return added[::-1], [f"delete {rule.text}" for old, rule in enumerate(before) if old not in kept]


def _new_map(family: str) -> list[str]:
    """The commands for an empty map of ranges in place of the one that is there: looked up at once, by new rules."""
    table = table_words(family)
    map_ = f"add map {table} ranges {{ {_map_type(family, 'ranges')} }}"
    return [f"flush chain {table} prerouting", f"delete map {table} ranges", map_, *_stages(family)]


def _moving(family: str, rules: Iterable[ChainRule]) -> list[str]:
    """The commands for what stands in for ranges.

    Of base chains with one priority the kernel enters the youngest first, so all that the table still knows overrides.
    """
    table = f"{table_words(family)} {MOVING}"
    return [
        f"add map {table} {{ {_map_type(family, MOVING)} }}",
        f"add chain {table} {_HOOK}",
        f"add rule {table} {_look_up(family, MOVING)}",
        *(line.replace(" ranges ", f" {MOVING} ", 1) for line in _added(rules)),
    ]


def _moved(family: str) -> list[str]:
    table = f"{table_words(family)} {MOVING}"
    return [f"flush chain {table}", f"delete chain {table}", f"delete map {table}"]


def _repair(family: str, before: Chain, after: Chain) -> list[str]:
    incomplete = after.jumps > before.jumps and not before.jump_places
    if not (incomplete or before.in_the_way) or not any(rule.name for rule in (*before.rules, *after.rules)):
        return []
    table = table_words(family)
    misshapen = [line for line in before.in_the_way if line.startswith(("delete map", "delete set", "delete chain"))]
    if set(misshapen) - set(_moved(family)) and _is_shared(before):
        what = f"the nftables table {table} is not as lvs.fleet makes it"
        raise LvsError(f"{what}, and holds something of somebody else, which making it anew would destroy")
    return [*before.in_the_way, *_frame(family), *_stages(family)]


def _is_shared(chain: Chain, where: str = "") -> bool:
    """Whether somebody else has something in the table; in one of our places or out of them if a place is given."""
    return chain.references > 0 or any(not rule.name and where in rule.text for rule in chain.rules)


def _is_range(rule: ChainRule) -> bool:
    return _text(rule).startswith(("element ip lvs-mark ranges ", "element ip6 lvs-mark ranges "))


def _text(rule: ChainRule) -> str:
    return words(rule.meaning) if isinstance(rule.meaning, MarkRule) else rule.text


def _head(rule: ChainRule) -> str:
    """An element without its comment and its mark, and without the end: all that deletes it."""
    return _DATA.sub("", _text(rule))


def _added(rules: Iterable[ChainRule]) -> list[str]:
    """What is to be added. A rule that is known by its handle only cannot be."""
    texts = (_text(rule) for rule in rules)
    return [f"add {text}" for text in texts if not _HANDLE.fullmatch(text)]


def irrevocable(rules: Iterable[ChainRule]) -> tuple[ChainRule, ...]:
    """Rules of others in our chain: we know them by their handles only, and could not put them back."""
    return tuple(rule for rule in rules if not rule.name and rule.text.startswith("rule "))


def save_lines(chain: Chain) -> list[str]:
    """The content of our table for the diff: what packets meet and what others have there, then what was declared."""
    others = (rule for rule in chain.rules if not _is_own(rule))
    declared = (rule.meaning for rule in ledger(chain) if isinstance(rule.meaning, MarkRule))
    return [
        *map(_text, (*chain.entries, *others)),
        *(f"rule {table_words(rule.family)} {DECLARED} {_rule_words(rule)}" for rule in declared),
    ]
