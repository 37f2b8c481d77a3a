# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A fleet as lines for people: on one screen, whatever its size. PRIVATE to the collection. Pure."""

from __future__ import annotations

from collections import Counter
from typing import Any, Iterator, Mapping, Sequence

# Up to so many services each gets a line; above, only those with something to tell.
FEW_SERVICES = 12
# So many of a kind are named. A page has them all.
SHOWN = 8

STATES = {"no_server": "no server left", "one_left": "one server left", "full": "full", "reduced": "reduced", "all": ""}


def lines(fleet: Mapping[str, Any]) -> list[str]:
    """What differs first, then what is out, and sums."""
    return [
        _sums(fleet["totals"]),
        *_addresses(fleet["addresses"]),
        *_tables(fleet),
        *_unread(fleet["routers"]),
        *_weak(fleet["services"]),
        *_out(fleet["out"]),
        *_problems(fleet["problems"]),
        *(_all_services if len(fleet["services"]) <= FEW_SERVICES else _busiest)(fleet["services"]),
    ]


def count(number: float, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def rate(number: float | None) -> str:
    return "-" if number is None else f"{number:,.0f}" if number >= 10 else f"{number:,g}"


def named(names: Sequence[str], shown: int = SHOWN) -> str:
    """The first of them, and how many more there are."""
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more:,} more" if more > 0 else "")


def _sums(totals: Mapping[str, Any]) -> str:
    told = [
        count(totals["routers"], "router"),
        count(totals["services"], "service"),
        f"{totals['servers_in_service']:,} of {count(totals['servers'], 'server place')} in service",
        count(totals["active_connections"], "active connection"),
    ]
    if totals["connections_per_second"] is not None:
        told.append(f"{rate(totals['connections_per_second'])} new/s")
        told.append(f"{rate(totals['in_packets_per_second'])} packets/s")
    return ", ".join(told)


def _addresses(addresses: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for entry in addresses[:SHOWN]:
        who = named(entry["routers"]) or "no router"
        yield f"addresses on {who}: {named(entry['addresses'])}"
    if len(addresses) > SHOWN:
        yield f"addresses on {len(addresses) - SHOWN:,} other sets of routers"


def _tables(fleet: Mapping[str, Any]) -> Iterator[str]:
    groups = fleet["groups"]
    differing = [one for one in fleet["routers"] if one["different"]]
    if not groups:
        return
    equal = f"tables: equal on {named(groups[0])}" if len(groups[0]) <= SHOWN else f"tables: {len(groups[0])} equal"
    yield equal + (f", {len(differing)} differ" if differing else "")
    for one in differing[:SHOWN]:
        more = one["different"] - 1
        yield f"    {one['name']}: {one['differences'][0]}" + (f", and {more:,} more" if more else "")
    if len(differing) > SHOWN:
        yield f"    and {len(differing) - SHOWN} more: {named([one['name'] for one in differing[SHOWN:]])}"


def _unread(routers: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    unread = [one for one in routers if one["state"] != "read"]
    for one in unread[:SHOWN]:
        yield f"{one['state']}: {one['name']}: {one['message']}"
    if len(unread) > SHOWN:
        yield f"and {len(unread) - SHOWN} more routers were not read"


def _weak(services: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for state in ("no_server", "one_left"):
        weak = [f"{one['name']} ({_servers(one)})" for one in services if one["state"] == state]
        if weak:
            yield f"{STATES[state]}: {named(weak)}"
    full = [f"{one['name']} {address}" for one in services for address in one["full"]]
    if full:
        yield f"full: {named(full)}"


def _servers(service: Mapping[str, Any]) -> str:
    return f"{service['servers_in_service']} of {service['servers']}"


def _out(out: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for one in sorted(out, key=lambda one: not one["overdue"])[:SHOWN]:
        told = f"out: {one['address']} in {named(one['services'])}, {one['active_connections']:,} active"
        yield told + "".join(f"; {reason_words(reason)}" for reason in one["reasons"]) + ", overdue" * one["overdue"]
    if len(out) > SHOWN:
        yield f"out: {len(out) - SHOWN:,} more servers"


def reason_words(reason: Mapping[str, Any]) -> str:
    """As in "disk swap (alice, since 2026-11-25T09:14:00Z)"."""
    known = [f"{word} {reason[key]}".strip() for key, word in (("by", ""), ("since", "since"), ("until", "until"))
             if reason[key]]  # fmt: skip
    return (reason["reason"] or "no reason given") + (f" ({', '.join(known)})" if known else "")


def _problems(problems: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if problems:
        kinds = Counter(problem["kind"] for problem in problems)
        yield f"problems: {named([f'{kind} {number}' for kind, number in kinds.most_common()])}"
    for problem in problems[:SHOWN]:
        where = f" ({named(problem['routers'], 3)})" if problem["routers"] else ""
        yield f"    {problem['message']}{where}"


def _all_services(services: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    width = max((len(one["name"]) for one in services), default=0)
    for one in services:
        told = [f"{_servers(one)} servers", f"{one['active_connections']:,} active"]
        told += [f"{rate(one['connections_per_second'])} new/s"] if one["connections_per_second"] is not None else []
        told += [STATES[one["state"]]] if STATES[one["state"]] else []
        yield f"{one['name']:{width}}  {'; '.join(one['traffic']) or one['key']}, {one['scheduler']}: {', '.join(told)}"


def _busiest(services: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    by_rate = sorted(services, key=load, reverse=True)[:SHOWN]
    if by_rate and by_rate[0]["connections_per_second"] is not None:
        told = [f"{one['name']} {rate(one['connections_per_second'])}/s" for one in by_rate]
        yield f"busiest: {', '.join(told)}"


def load(service: Mapping[str, Any]) -> tuple[float, float]:
    """By what services and servers are ordered: new connections, then open ones."""
    return (service["connections_per_second"] or 0, service["active_connections"])
