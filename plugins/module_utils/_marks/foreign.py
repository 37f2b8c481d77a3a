# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rules that are not ours: which of them declared ones can replace, and which get in their way. PRIVATE. Pure."""

from __future__ import annotations

from typing import Iterable, Mapping, Sequence

from .._model import ChainId, MarkRule, Stray, TableRule
from .._packets.conditions import DESTINATION, IN_INTERFACE, NO, PORTS, PROTOCOL, SOURCE, answer, packets_of
from .._packets.match import covered, disjoint
from .._packets.overlaps import Overlaps
from .iptables import split_words
from .matches import conditions_of

# Targets after which a packet goes on through the chain as it was, as far as marks and routing are concerned.
_PASSIVE = ("", "AUDIT", "CHECKSUM", "DSCP", "ECN", "HL", "LOG", "NFLOG", "RATEEST", "TCPMSS", "TOS", "TRACE", "TTL")
# What tells packets apart for good, unlike the state of a connection.
_TRAFFIC = (DESTINATION, SOURCE, PROTOCOL, PORTS, IN_INTERFACE)


def foreign_rules(rules: Iterable[TableRule], chain_id: ChainId) -> list[TableRule]:
    """All rules of a table but those of our chain and our jump."""
    return [rule for rule in rules if rule.chain != chain_id.name and not _is_jump(rule, chain_id)]


def _is_jump(rule: TableRule, chain_id: ChainId) -> bool:
    return rule.chain == chain_id.hook and rule.text == f"-j {chain_id.name}"


# -- adoption -----------------------------------------------------------------------------------------------------


def strays(rules: Iterable[TableRule], chain_id: ChainId, declared: Iterable[MarkRule]) -> tuple[Stray, ...]:
    """The MARK rules in the hook that do nothing but what declared ones do."""
    hook = [rule for rule in rules if rule.chain == chain_id.hook]
    own = overlaps_by_mark(rule for rule in declared if rule.family == chain_id.family)
    jumps = [rule.position for rule in hook if _is_jump(rule, chain_id)]
    taken = [rule for rule in hook if is_covered(rule, own)]
    # Where our jump is, or where it will be.
    place = jumps[-1] if jumps else max((rule.position for rule in taken), default=0)
    places = {rule.position for rule in taken}
    between = [rule for rule in hook if rule.position not in places and not _is_jump(rule, chain_id)]
    near = Overlaps([rule.seen for rule in between])
    return tuple(
        Stray(rule.text, rule.seen, rule.position, rule.position > place, _obstacle(rule, place, between, near))
        for rule in taken
    )


def by_mark(rules: Iterable[MarkRule]) -> dict[tuple[int, int], list[MarkRule]]:
    """MARK rules by what they give, mark and mask."""
    found: dict[tuple[int, int], list[MarkRule]] = {}
    for rule in rules:
        found.setdefault((rule.mark, rule.mask), []).append(rule)
    return found


def overlaps_by_mark(rules: Iterable[MarkRule]) -> dict[tuple[int, int], Overlaps]:
    """The same, to look up the rules of a mark that may see a packet of another rule."""
    return {gives: Overlaps(alike) for gives, alike in by_mark(rules).items()}


def is_covered(rule: TableRule, declared: Mapping[tuple[int, int], Overlaps]) -> bool:
    """Whether declared rules, by what they give, give each packet of a rule the same mark."""
    same = declared.get((rule.seen.mark, rule.seen.mask)) if rule.marks and rule.exact else None
    return same is not None and covered(rule.seen, same.rules(rule.seen))


def _same_mark(one: MarkRule, other: MarkRule) -> bool:
    return (one.mark, one.mask) == (other.mark, other.mask)


def _obstacle(stray: TableRule, place: int, hook: Sequence[TableRule], near: Overlaps) -> str:
    """The first of the rules in the hook that keeps a stray from its new place."""
    low, high = sorted((stray.position, place))
    seeing = (hook[index] for index in near.places(stray.seen))
    return next((rule.text for rule in seeing if low < rule.position < high and matters(rule, stray.seen)), "")


def matters(rule: TableRule, to: MarkRule) -> bool:
    """Whether it may make a difference if packets get their mark before a rule or after it."""
    if (rule.marks and _same_mark(rule.seen, to)) or disjoint(rule.seen, to) or _excludes(rule, to):
        return False
    return rule.target not in _PASSIVE or bool(rule.asks[1])


def obstacle_in_chain(stray: Stray, rules: Sequence[TableRule], near: Overlaps) -> TableRule | None:
    """A rule of our own chain that keeps packets of a stray from the mark that it gives them now.

    near: the traffic of the same rules.

    A rule that ends the chain must not come before ours. Another mark that comes after ours makes no difference to a
    rule before the jump, where it comes after that one, too.
    """
    seeing = [rules[index] for index in near.places(stray.rule)]
    own = [rule.position for rule in seeing if _same_mark(rule.seen, stray.rule)]
    for rule in seeing:
        ends = not rule.marks and rule.position < max(own)
        overrides = stray.behind and rule.position > min(own)
        if (ends or overrides) and matters(rule, stray.rule):
            return rule
    return None


def _excludes(rule: TableRule, packets: MarkRule) -> bool:
    """Whether what a rule says of its traffic, with a negation perhaps, leaves all of these packets out."""
    words = conditions_of(split_words(rule.text.partition(" -j ")[0]))
    return answer((one for one in words if one.kind in _TRAFFIC and (one.inverted or one.kind != IN_INTERFACE)),
                  packets_of(packets)) == NO  # fmt: skip
