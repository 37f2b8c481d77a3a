# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rules that keep what clients send small enough for a tunnel. PRIVATE to the collection. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Mapping

from .._declared.options import integer, show, unicast_address
from .._errors import ValidationError
from .._marks.iptables import COMMENT, save_lines, transaction
from .._model import FAMILIES, FULL_NETMASK, Chain, ChainId, ChainRule, RouterState, family_of

CHAIN = "LVS-MSS"
NAME = "mss"

_segment = integer(536, 65495, "the size of a TCP segment")


def mss_chains() -> tuple[ChainId, ...]:
    """In OUTPUT: it is our own SYN that tells a client how much to send at once."""
    return tuple(ChainId(family, "mangle", "OUTPUT", CHAIN) for family in FAMILIES)


def segments(given: Any, path: str = "segments") -> dict[str, int]:
    """Sizes of segments by virtual address. Raises ValidationError with every problem."""
    if not isinstance(given, Mapping):
        raise ValidationError([f"{path}: {show(given)} is not a mapping of addresses to sizes"])
    found, problems = {}, []
    for address, size in given.items():
        try:
            found[unicast_address(address)] = _segment(size)
        except ValueError as error:
            problems.append(f"{path}[{show(address)}]: {error}")
    if problems:
        raise ValidationError(problems)
    return found


def mss_rules(wanted: Mapping[str, int], family: str) -> tuple[ChainRule, ...]:
    return tuple(_rule(address, wanted[address]) for address in sorted(wanted) if family_of(address) == family)


def _rule(address: str, size: int) -> ChainRule:
    """The rule word for word as iptables-save prints it. The kernel never makes a segment larger than it is."""
    match = f"-s {address}/{FULL_NETMASK[family_of(address)]} -p tcp -m tcp --tcp-flags SYN,RST SYN"
    text = f'{match} -m comment --comment "{COMMENT}{NAME}" -j TCPMSS --set-mss {size}'
    return ChainRule(text, text, NAME)


def mss_target(current: RouterState, wanted: Mapping[str, int]) -> RouterState:
    """The wanted rules behind those that are not ours."""
    chains = {}
    for key, chain in current.chains.items():
        others = tuple(rule for rule in chain.rules if not rule.name)
        chains[key] = chain.with_rules((*others, *mss_rules(wanted, key.family)))
    return replace(current, chains=chains)


def mss_text(wanted: Mapping[str, int], family: str) -> str:
    """The rules of one family for iptables-restore --noflush, empty if there are none."""
    [own] = [chain_id for chain_id in mss_chains() if chain_id.family == family]
    rules = mss_rules(wanted, family)
    return transaction(own.table, save_lines(own, Chain().with_rules(rules))) if rules else ""
