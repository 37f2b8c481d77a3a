# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Why packets with our marks do not come to IPVS, in words. PRIVATE to the collection. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Collection, Iterable, Mapping, NamedTuple, Sequence

from .._marks.iptables import COMMAND, render_ports, render_rule
from .._marks.nftables import PRIORITY, table_words
from .._model import FULL_NETMASK, IPV4, IPV6, NFTABLES, Chain, ChainId, MarkRule, Pool, ServiceId
from .._packets.conditions import ESTABLISHED, EVERY_PORT, INVALID, NEW, STATE, Packets, interval, packets_of
from . import walk as way
from .tc import MarkFilter

# What a rule does, whether it does so or only may, and what to do about it.
_WORDS = {
    way.BYPASSED: ("end|ends", "the way to our jump: packets of the service get no mark"),
    way.OVERRIDDEN: ("make|makes", "the mark {own} of the same packets {new}"),
    way.CONNMARK: ("replace|replaces", "the mark {own} by that of the connection"),
    way.DROPPED: ("drop|drops", "packets of the service before IPVS sees them"),
    way.TRANSLATED: ("give|gives", "packets of the service another destination before IPVS sees them"),
}
_REMEDIES = {
    way.BYPASSED: "put our jump before it, or except these packets from it",
    way.OVERRIDDEN: "put it before our jump, or except these packets from it",
    way.CONNMARK: "put it before our jump, or except these packets from it",
    way.DROPPED: "accept them before it",
    way.TRANSLATED: "except these packets from it",
}
_TC_PROTOCOLS = {IPV4: "ip", IPV6: "ipv6"}
# Of a list of rules in a message.
_SHOWN = 2


def up_to_ipvs(
    hooks: Collection[way.Hook], chains: Mapping[ChainId, Chain], family: str
) -> tuple[list[way.Hook], way.Hook]:
    """The hooks that packets pass before IPVS takes them, in order, and the one where ours get their marks.

    Where our jump is missing, it is taken for the last rule of its hook: that it is missing is another problem.
    """
    found = [hook for hook in hooks if hook.name in (way.PREROUTING, way.INPUT) and hook.priority < way.IPVS_PRIORITY]
    by_nft = [key for key, chain in chains.items() if key.tool == NFTABLES and key.family == family and chain.rules]
    own = next((hook for hook in found if _has_ours(hook)), None)
    if by_nft or own is None:
        table = table_words(family) if by_nft else "mangle"
        name = by_nft[0].hook if by_nft else "PREROUTING"
        own = way.Hook(way.PREROUTING, PRIORITY, table, name, {name: way.RuleIndex([way.Rule(name, 1, "", way.OURS)])})
        found.append(own)
    tracked = any(hook.tracks for hook in hooks)
    known = [replace(hook, doubtful=True) if _is_doubtful(hook, own, tracked) else hook for hook in found]
    return sorted(known, key=lambda hook: (hook.name == way.INPUT, hook.priority, hook is not own)), own


def _has_ours(hook: way.Hook) -> bool:
    return hook.name == way.PREROUTING and any(rule.action == way.OURS for rule in hook.chains[hook.chain].rules)


def _is_doubtful(hook: way.Hook, own: way.Hook, tracked: bool) -> bool:
    """Of two tables with the same priority nobody can tell which comes first; nat is passed by tracked packets only."""
    same_place = (hook.name, hook.priority) == (own.name, own.priority)
    return hook is not own and (same_place or (hook.nat and not tracked))


class Given(NamedTuple):
    """The marks that rules give, each with the first of them; and what may give any mark, or was not looked at."""

    places: Mapping[int, str]
    unknown: Sequence[str] = ()

    def denial(self, mark: int) -> str:
        """That no rule gives a mark, as far as it is known."""
        if not self.unknown:
            return f"no rule gives the mark {mark}"
        unknown = ", ".join(self.unknown[:_SHOWN]) + (" and others" if len(self.unknown) > _SHOWN else "")
        return f"no rule that lvs_info understands gives the mark {mark} (not known: {unknown})"


def marks_given(hooks: Iterable[way.Hook], own: Iterable[int], unread: Iterable[str]) -> Given:
    """The marks that the rules of all tables give; own are those of ours."""
    places = dict.fromkeys(own, "a rule of ours")
    unknown = list(unread)
    tables = {id(hook.chains): hook for hook in hooks}
    for hook in tables.values():
        for rule in (rule for chain in hook.chains.values() for rule in chain.rules):
            if rule.action == way.SETS_MARK:
                places.setdefault(rule.value, where(hook.table, rule))
            elif rule.action in (way.RESTORES_MARK, way.SETS_SOME_MARK):
                unknown.append(where(hook.table, rule))
    return Given(places, unknown)


def mark_troubles(
    follower: way.Follower, own: Iterable[MarkRule], local: Collection[str], asked: Collection[str]
) -> list[dict[str, Any]]:
    """What happens to packets of ours on their way: each trouble once, with the first service that has it.

    asked are the addresses of which it is known whether they are local.
    """
    alike: dict[int, tuple[list[way.Trouble], dict[str, MarkRule]]] = {}
    for mine in own:
        address = mine.destination.partition("/")[0]
        packets = packets_of(mine, address in local if address in asked else None)
        found = follower.follow(packets, mine.mark)
        if found:
            alike.setdefault(id(found), (found, {}))[1].setdefault(mine.name, mine)
    told: dict[tuple[Any, ...], tuple[way.Trouble, dict[str, MarkRule]]] = {}
    for troubles, services in alike.values():
        for trouble in troubles:
            key = (trouble.kind, trouble.may, trouble.table, trouble.rule)
            of_all = told.setdefault(key, (trouble, {}))[1]
            of_all.update((name, mine) for name, mine in services.items() if name not in of_all)
    return [_problem(trouble, list(services.values())) for trouble, services in told.values()]


def _problem(trouble: way.Trouble, services: Sequence[MarkRule]) -> dict[str, Any]:
    rule, mine = trouble.rule, services[0]
    others = f" and {len(services) - 1} more" if len(services) > 1 else ""
    subject = {"name": mine.name, "fwmark": mine.mark, "family": mine.family}
    place = {"table": trouble.table, "chain": rule.chain, "position": rule.position}
    found = {"kind": trouble.kind, "message": f"{mine.name}{others}: {_message(trouble, mine)}", **subject, **place}
    return {**found, "mark": trouble.mark} if trouble.kind == way.OVERRIDDEN else found


def _message(trouble: way.Trouble, mine: MarkRule) -> str:
    verb, what = _WORDS[trouble.kind]
    may, does = verb.split("|")
    new = "another one" if trouble.mark is None else trouble.mark
    done = f"{f'may {may}' if trouble.may else does} {what.format(own=mine.mark, new=new)}"
    remedy = _REMEDIES[trouble.kind]
    if trouble.kind == way.DROPPED and trouble.table == "filter":
        remedy += f", as with {COMMAND[mine.family]} -I {trouble.rule.chain} {_matches(mine)} -j ACCEPT"
    return f"{where(trouble.table, trouble.rule)} {done}; {remedy}"


def replies(
    hooks: Iterable[way.Hook],
    own: Iterable[MarkRule],
    pools: Mapping[ServiceId, Pool],
    device_of: Mapping[str, str],
    conntrack: bool,
) -> list[dict[str, Any]]:
    """Rules that drop what masqueraded real servers answer, on its way through FORWARD to IPVS.

    device_of: the interface to each real server. conntrack: whether IPVS has its connections tracked
    (net.ipv4.vs.conntrack); else the first answer of TCP, a SYN and ACK, is invalid to the kernel, and others are new,
    unless a rule in PREROUTING takes them out of the tracking.
    """
    on_the_way = _to_forward(hooks)
    told: dict[tuple[str, way.Rule], dict[str, Any]] = {}
    for mine in own if any(hook.name == way.FORWARD for hook in on_the_way) else ():
        pool = pools.get(ServiceId(mine.family, mine.mark))
        servers = pool.real_servers.values() if pool else ()
        for address in sorted({one.address for one in servers if one.forward_method == "masquerade"}):
            packets = _answers(mine, address, device_of.get(address, ""), conntrack)
            for trouble in way.answers_dropped(on_the_way, packets):
                told.setdefault((trouble.table, trouble.rule), _reply_problem(trouble, mine, address, conntrack))
    return list(told.values())


def _to_forward(hooks: Iterable[way.Hook]) -> list[way.Hook]:
    """The hooks that decide about answers: they take them out of the tracking, or drop some in FORWARD before IPVS."""
    found = [
        hook
        for hook in hooks
        if (hook.name == way.PREROUTING and _does(hook, way.UNTRACKS))
        or (hook.name == way.FORWARD and hook.priority < way.IPVS_PRIORITY and (hook.drops or _does(hook, way.DROPS)))
    ]
    return sorted(found, key=lambda hook: (hook.name == way.FORWARD, hook.priority))


def _does(hook: way.Hook, action: str) -> bool:
    return any(rule.action == action for chain in hook.chains.values() for rule in chain.rules)


def _answers(mine: MarkRule, address: str, device: str, conntrack: bool) -> Packets:
    """The first packets that a real server answers to those of a rule of ours."""
    asked = packets_of(mine)
    server = interval(f"{address}/{FULL_NETMASK[mine.family]}")
    state = ESTABLISHED if conntrack else INVALID if mine.protocol in ("tcp", "") else NEW
    return asked._replace(
        destination=asked.source,
        source=server,
        ports=EVERY_PORT,
        source_ports=asked.ports,
        in_interface=device,
        state=state,
        local=False,
    )


def _reply_problem(trouble: way.Trouble, mine: MarkRule, address: str, conntrack: bool) -> dict[str, Any]:
    found = _problem(trouble, [mine])
    does = "may drop" if trouble.may else "drops"
    what = f"what the masqueraded real server {address} answers"
    remedy = _reply_remedy(trouble, mine, address, conntrack)
    return {**found, "message": f"{mine.name}: {where(trouble.table, trouble.rule)} {does} {what}; {remedy}"}


def _reply_remedy(trouble: way.Trouble, mine: MarkRule, address: str, conntrack: bool) -> str:
    """What ends the trouble. A packet that one table of nftables accepts may still be dropped by another table."""
    command = COMMAND[mine.family]
    ports = f" -m multiport --sports {render_ports(mine.ports)}" if mine.ports else ""
    answers = f"-s {address}{f' -p {mine.protocol}' if mine.protocol else ''}{ports}"
    if not conntrack and any(one.kind == STATE for one in trouble.rule.conditions):
        return f"take it out of the tracking, as with {command} -t raw -A PREROUTING {answers} -j CT --notrack"
    if trouble.table == "filter":
        return f"accept it before, as with {command} -I FORWARD {answers} -j ACCEPT"
    return "accept it before"


def mark_readers(hooks: Collection[way.Hook], own: Sequence[MarkRule], conntrack: bool) -> list[dict[str, Any]]:
    """Rules that packets pass after IPVS and that single out those with our marks, as Kubernetes does to masquerade.

    conntrack: as for replies; else no packet of IPVS passes table nat.
    """
    behind = [hook for hook in hooks if hook.name in (way.OUTPUT, way.POSTROUTING) and (conntrack or not hook.nat)]
    found = []
    for hook, rule in way.readers(behind):
        met = [mine for mine in own if way.singled_out(rule, packets_of(mine), mine.mark)]
        if met:
            place = {"table": hook.table, "chain": rule.chain, "position": rule.position}
            found.append({**_read_problem(where(hook.table, rule), met), **place})
    return found


def filter_readers(filters: Mapping[str, Iterable[MarkFilter]], own: Sequence[MarkRule]) -> list[dict[str, Any]]:
    """Filters of traffic control, by device, that single out packets with our marks when these leave the router."""
    masks = {mask for of_device in filters.values() for one in of_device for _value, mask in one.marks}
    given: dict[tuple[int, int], list[MarkRule]] = {}
    for mine in own:
        for mask in masks:
            given.setdefault((mine.mark & mask, mask), []).append(mine)
    found = []
    for device, of_device in filters.items():
        for one in of_device:
            # Of 0 under a mask, packets without a mark are asked for: those of others.
            asked = (mine for value, mask in one.marks if value for mine in given.get((value, mask), ()))
            met = [mine for mine in asked if one.protocol in ("all", _TC_PROTOCOLS[mine.family])]
            if met:
                found.append({**_read_problem(f"tc on device {device} ({one.text})", met), "device": device})
    return found


def _read_problem(reader: str, met: Sequence[MarkRule]) -> dict[str, Any]:
    mine, names = met[0], {one.name for one in met}
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    does = f"singles out packets with the mark {mine.mark} behind IPVS; take a mark that it does not ask for"
    subject = {"name": mine.name, "fwmark": mine.mark, "family": mine.family}
    return {"kind": "mark_read", "message": f"{mine.name}{others}: {reader} {does}", **subject}


def where(table: str, rule: way.Rule) -> str:
    """A rule by its table, its chain, its position and its text; a policy has no position."""
    place = f" rule {rule.position}" if rule.position else ""
    return f"{table} {rule.chain}{place} ({rule.text})"


def _matches(mine: MarkRule) -> str:
    return render_rule(mine).partition(" -m comment ")[0]
