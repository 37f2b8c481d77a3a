# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whose a rule is: lvs_service and iptables_mark share a chain and nothing in it. PRIVATE to the collection. Pure.

The kernel keeps the record: beside the comment lvs:NAME, a rule of iptables_mark has a second one that says so. Earlier
versions did not write it, so what they wrote counts as written by lvs_service.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Callable, Iterator

from .._model import IPTABLES_MARK, LVS_SERVICE, ChainId, ChainRule, Declaration, MarkRule, RouterState, ServiceId
from .._text import printable

OwnRule = Callable[[ChainRule], bool]
_OTHER = {LVS_SERVICE: IPTABLES_MARK, IPTABLES_MARK: LVS_SERVICE}


def managed(declared: Declaration, names: frozenset[str] | None) -> OwnRule:
    """Which rules a declaration may change: its module's of these names (of any with None), and those that it adopts.

    What it adopts are rules of the other module that do just what declared ones do. Somebody else's rule has no name.
    """
    other = _OTHER[declared.owner]
    adopted = {replace(rule, owner=other) for rule in declared.rules} if declared.adopt else set()

    def is_managed(rule: ChainRule) -> bool:
        if rule.owner == other:
            return rule.meaning in adopted
        return bool(rule.name) and (names is None or rule.name in names)

    return is_managed


def not_there_yet(current: RouterState, declared: Declaration) -> Declaration:
    """The declaration without rules that the other module has already: it need not be there twice, unless it adopts."""
    if declared.adopt:
        return declared
    there = {replace(rule.meaning, owner=declared.owner) for _key, rule in _of_the_other(current, declared)
             if isinstance(rule.meaning, MarkRule)}  # fmt: skip
    return replace(declared, rules=tuple(rule for rule in declared.rules if rule not in there))


def shared(current: RouterState, declared: Declaration) -> list[str]:
    """Rules of the other module with a name or a mark of the declaration, for a warning."""
    names, ids = set(declared.names), {*declared.ids, *(ServiceId(rule.family, rule.mark) for rule in declared.rules)}
    found = dict.fromkeys(
        f"lvs:{printable(rule.name)} with mark {rule.mark} ({key.family})"
        for key, rule in _of_the_other(current, declared)
        if rule.name in names or ServiceId(key.family, rule.mark) in ids
    )
    other = _OTHER[declared.owner]
    return [f"{rules} belongs to {other}, and stays as it is; give each module names and marks of its own"
            for rules in found]  # fmt: skip


def given_by_the_other(current: RouterState, declared: Declaration) -> set[ServiceId]:
    """The services of marks that the other module's rules give."""
    return {ServiceId(key.family, rule.mark) for key, rule in _of_the_other(current, declared)}


def _of_the_other(current: RouterState, declared: Declaration) -> Iterator[tuple[ChainId, ChainRule]]:
    for key, chain in current.chains.items():
        for rule in chain.rules:
            if rule.name and rule.owner != declared.owner:
                yield key, rule
