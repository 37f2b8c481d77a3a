# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What gets in the way of our rules: other rules, policy routing, other programs. PRIVATE to the collection. Pure."""

from __future__ import annotations

import re
from typing import Any, Iterable, Iterator, Mapping, Sequence

from ._foreign import by_mark, foreign_rules, is_covered, overlaps_by_mark
from ._match import covered
from ._model import EVERYWHERE, FULL_MASK, ChainId, MarkRule, TableRule

# Names of chains that tell who made them.
_FIREWALLS = {
    "calico": r"cali-.*",
    "cilium": r"(OLD_)?CILIUM_.*",
    "docker": r"DOCKER(-.*)?",
    "fail2ban": r"(f2b|fail2ban)-.*",
    "firewalld": r"(PREROUTING|INPUT|FORWARD|OUTPUT|POSTROUTING)_(direct|ZONES.*)",
    "kubernetes": r"KUBE-.*",
    "libvirt": r"LIBVIRT_.*",
    "podman": r"(NETAVARK|CNI)[-_].*",
    "tailscale": r"ts-.*",
    "ufw": r"ufw6?-.*",
}
_CHAIN = re.compile(r"^:(\S+) - |^\*(\S+)$", re.MULTILINE)


def duplicates(rules: Sequence[TableRule], chain_id: ChainId, own: Sequence[MarkRule]) -> Iterator[dict[str, Any]]:
    """Rules of others that do what ours do once more."""
    given = overlaps_by_mark(own)
    for rule in foreign_rules(rules, chain_id):
        if rule.chain == chain_id.hook and is_covered(rule, given):
            why = f"{rule.chain} rule {rule.position} ({rule.text}) does what rules of ours do; adopt takes it over"
            subject = {"fwmark": rule.seen.mark, "family": chain_id.family}
            place = {"chain": rule.chain, "position": rule.position}
            yield {"kind": "duplicate", "message": why, **subject, **place}


def catching(policy_rules: Iterable[Mapping[str, Any]], own: Iterable[MarkRule]) -> list[tuple[Any, MarkRule]]:
    """The routing rules that packets of ours follow because of their mark, each with the rule of ours.

    A rule for every mark but one is not about ours.
    """
    whole = [mine for mine in own if mine.mask == FULL_MASK]
    given = by_mark(whole)
    return [
        (policy, mine)
        for policy in policy_rules
        for mine in (given.get((policy["fwmark"], FULL_MASK), ()) if policy["mask"] == FULL_MASK else whole)
        if policy["family"] == mine.family and "inverted" not in policy
        if not (policy["fwmark"] ^ mine.mark) & policy["mask"]
    ]


def policy_problems(
    caught: Iterable[tuple[Any, MarkRule]], local: Mapping[tuple[str, str], Sequence[str]]
) -> list[dict[str, Any]]:
    """Packets that a routing table takes elsewhere; one that delivers them to the router itself is as good as a VIP."""
    found = {}
    for policy, mine in caught:
        routes = (MarkRule("", 0, _network(route, mine.family)) for route in local[mine.family, policy["table"]])
        if not covered(MarkRule("", 0, mine.destination), routes):
            rule = f"the ip rule with priority {policy['priority']}"
            why = f"packets with the mark {mine.mark} of {mine.name} follow {rule} to table {policy['table']}"
            subject = {"name": mine.name, "fwmark": mine.mark, "family": mine.family, "priority": policy["priority"]}
            found[mine.name, mine.family, policy["priority"]] = {"kind": "policy_rule", "message": why, **subject}
    return list(found.values())


def _network(route: str, family: str) -> str:
    return EVERYWHERE[family] if route == "default" else route


def controller_problems(controllers: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"kind": "controller", **found,
         "message": f"{found['name']} (process {found['pid']}) manages IPVS, too: it must have services of its own"}
        for found in controllers
    ]  # fmt: skip


def firewalls(saved: Mapping[str, str]) -> list[dict[str, str]]:
    """Who else has chains here, by the output of iptables-save for each family; each with the first of them."""
    found: dict[str, str] = {}
    for family, text in saved.items():
        table = ""
        for chain, new_table in _CHAIN.findall(text):
            table = new_table or table
            for name in (name for name, pattern in _FIREWALLS.items() if chain and re.fullmatch(pattern, chain)):
                found.setdefault(name, f"chain {chain} of {family} table {table}")
    return [{"name": name, "evidence": evidence} for name, evidence in found.items()]
