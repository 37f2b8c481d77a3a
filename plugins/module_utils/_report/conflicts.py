# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What gets in the way of our rules: other rules, policy routing, other programs. PRIVATE to the collection. Pure."""

from __future__ import annotations

import re
from typing import Any, Iterable, Iterator, Mapping, Sequence

from .._marks.foreign import by_mark, foreign_rules, is_covered, overlaps_by_mark
from .._marks.iptables import saved_lines
from .._model import EVERYWHERE, FULL_MASK, IPV4, NFTABLES, Chain, ChainId, MarkRule, TableRule
from .._packets.match import covered, disjoint

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
_CHAIN = re.compile(r":(\S+) - .*|\*(\S+)")


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
    """The routing rules that packets of ours may follow because of their mark, each with the rule of ours.

    A rule for every mark but one is not about ours, nor is one for some sources: who wrote it wants these elsewhere.
    """
    whole = [mine for mine in own if mine.mask == FULL_MASK]
    given = by_mark(whole)
    return [
        (policy, mine)
        for policy in policy_rules
        for mine in (given.get((policy["fwmark"], FULL_MASK), ()) if policy["mask"] == FULL_MASK else whole)
        if policy["family"] == mine.family and "inverted" not in policy
        if not (policy["fwmark"] ^ mine.mark) & policy["mask"]
        if _may_be_for(policy, mine)
    ]


def _may_be_for(policy: Mapping[str, Any], mine: MarkRule) -> bool:
    """Whether all else that a routing rule asks for lets packets of ours through.

    iif lo and any oif stand for packets that the router itself sends.
    """
    everywhere = EVERYWHERE[mine.family]
    sources, destinations = policy.get("from", everywhere), policy.get("to", everywhere)
    same_interface = policy.get("iif") in (None, mine.in_interface) or not mine.in_interface
    return (
        policy.get("iif") != "lo"
        and "oif" not in policy
        and same_interface
        and covered(MarkRule("", 0, mine.source or everywhere), [MarkRule("", 0, sources)])
        and not disjoint(MarkRule("", 0, destinations), MarkRule("", 0, mine.destination))
    )


def delivered_singles(
    caught: Iterable[tuple[Any, MarkRule]], local: Mapping[tuple[str, str], Sequence[str]]
) -> set[tuple[str, int]]:
    """The addresses, each with its mark, that some rule delivers to the router itself.

    One with an interface is not in the router's own answer, because that was not asked for one.
    """
    return {
        (mine.destination.partition("/")[0], mine.mark) for policy, mine in caught if _delivers(policy, mine, local)
    }


def _delivers(policy: Mapping[str, Any], mine: MarkRule, local: Mapping[tuple[str, str], Sequence[str]]) -> bool:
    routes = (MarkRule("", 0, _network(route, mine.family)) for route in local.get((mine.family, policy["table"]), ()))
    return covered(MarkRule("", 0, mine.destination), routes)


def policy_problems(
    caught: Iterable[tuple[Any, MarkRule]],
    local: Mapping[tuple[str, str], Sequence[str]],
    ways: Mapping[tuple[str, int], str],
    local_priority: Mapping[str, int],
) -> list[dict[str, Any]]:
    """Packets that a routing rule takes elsewhere. One that delivers them to the router itself is as good as a VIP.

    ways: the table from which the router itself takes its answer for an address and a mark, "local" if it is its own;
    it was not asked for an interface. local_priority: the place of the local table among the rules, by family.
    """
    found = {}
    for policy, mine in caught:
        way = ways.get((mine.destination.partition("/")[0], mine.mark))
        behind = way == "local" and policy["priority"] > local_priority.get(mine.family, 0)
        elsewhere = way is not None and "iif" not in policy and "action" not in policy and way != policy["table"]
        if not behind and not elsewhere and not _delivers(policy, mine, local):
            subject = {"name": mine.name, "fwmark": mine.mark, "family": mine.family, "priority": policy["priority"]}
            problem = {"kind": "policy_rule", "message": _policy_message(policy, mine), **subject}
            found[mine.name, mine.family, policy["priority"]] = problem
    return list(found.values())


def source_problems(
    caught: Iterable[tuple[Any, MarkRule]], local: Mapping[tuple[str, str], Sequence[str]], by_mark: Sequence[str]
) -> list[dict[str, Any]]:
    """Packets whose sources the kernel looks up by their mark, in a table that says that every address is local.

    It drops them, whatever rp_filter says: nobody but the router itself sends from its addresses. It asks for no
    interface and no destination of ours. by_mark: the interfaces with net.ipv4.conf.*.src_valid_mark, perhaps all.
    """
    found = {}
    for policy, mine in caught if by_mark else ():
        everything = "default" in local.get((mine.family, policy["table"]), ())
        if mine.family == IPV4 and everything and not {"iif", "to"} & policy.keys():
            setting = f"net.ipv4.conf.{by_mark[0]}.src_valid_mark"
            why = f"{setting} is 1, so the kernel looks for the sources of packets with the mark {mine.mark} in table "
            why += f"{policy['table']}, where every address is local, and drops them; set it to 0"
            subject = {"name": mine.name, "fwmark": mine.mark, "family": mine.family}
            found[mine.name] = {"kind": "src_valid_mark", "message": f"{mine.name}: {why}", **subject}
    return list(found.values())


def _policy_message(policy: Mapping[str, Any], mine: MarkRule) -> str:
    interface = f" that come in by {policy['iif']}" if "iif" in policy else ""
    where = f"are refused ({policy['action']}) by" if "action" in policy else f"go to table {policy['table']} by"
    rule = f"the ip rule with priority {policy['priority']}"
    remedy = "IPVS does not see them; except this mark from the rule, or take another mark"
    return f"{mine.name}: packets with the mark {mine.mark}{interface} {where} {rule}: {remedy}"


def _network(route: str, family: str) -> str:
    return EVERYWHERE[family] if route == "default" else route


def controller_problems(controllers: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"kind": "controller", **found,
         "message": f"{found['name']} (process {found['pid']}) manages IPVS, too: it must have services of its own"}
        for found in controllers
    ]  # fmt: skip


def firewall_problems(units: Iterable[str], chains: Mapping[ChainId, Chain]) -> list[dict[str, Any]]:
    """Firewalls that are going to remove rules of ours. After nftables.service they come back."""
    own = [key for key, chain in chains.items() if key.tool != NFTABLES and any(rule.name for rule in chain.rules)]
    return [
        {"kind": "firewall", "unit": unit,
         "message": f"{unit} removes all rules of iptables, and {own[0].name}, when it starts, reloads or stops;"
         " have marks by nftables, or stop and disable it"}
        for unit in units if own and unit != "nftables.service"
    ]  # fmt: skip


def firewalls(saved: Mapping[str, str]) -> list[dict[str, str]]:
    """Who else has chains here, by the output of iptables-save for each family; each with the first of them."""
    found: dict[str, str] = {}
    for family, text in saved.items():
        table = ""
        for line in filter(None, map(_CHAIN.fullmatch, saved_lines(text))):
            chain, table = line[1] or "", line[2] or table
            for name in (name for name, pattern in _FIREWALLS.items() if chain and re.fullmatch(pattern, chain)):
                found.setdefault(name, f"chain {chain} of {family} table {table}")
    return [{"name": name, "evidence": evidence} for name, evidence in found.items()]
