# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What stands in the way of packets on the machine we run on: all rules, and routes. PRIVATE to the collection."""

from __future__ import annotations

import json
import re
from functools import partial
from ipaddress import ip_network
from typing import Any, Callable, Iterable, Mapping, Sequence, TypeVar

from .. import _host as host
from .._errors import MISSHAPEN, LvsError, not_understood
from .._marks.machine import has_nf_tables
from .._model import FAMILIES, FULL_MASK, IPV4
from . import tc
from .nft import hooks as native_table_hooks
from .nft import native_tables
from .walk import Hook

_LISTING = ["nft", "-j", "list"]
_IP = {IPV4: "-4"}

T = TypeVar("T")


def native_hooks(printed: Mapping[str, Iterable[str]]) -> tuple[dict[str, list[Hook]], list[str]]:
    """The hooks of native nftables tables by family, and what of them could not be read.

    printed are the tables that iptables prints, by nft's family.
    """
    found: dict[str, list[Hook]] = {family: [] for family in FAMILIES}
    if not host.installed("nft"):
        return found, ["native nftables rules (nft is not installed)"] if host.is_loaded("nf_tables") else []
    unread = []
    try:
        tables = native_tables(host.run([*_LISTING, "chains"]), printed) if has_nf_tables() else []
    except LvsError as error:
        return found, [f"native nftables rules ({error})"]
    for family, name in tables:
        table = ["table", family, name]
        try:
            hooks = native_table_hooks(host.run([*_LISTING, *table]), host.run(["nft", "-a", "list", *table]))
            for key, more in hooks.items():
                found[key] += more
        except LvsError as error:
            unread.append(f"nftables table {family} {name} ({error})")
    return found, unread


def ways_to(destinations: Iterable[tuple[str, int]]) -> dict[tuple[str, int], str]:
    """Where this machine sends packets for addresses, each with a mark: "local", or the table that has their route.

    The router's own answer counts: it owns the address, or a route (perhaps one for the mark) says local. What it has
    no route for is left out.
    """
    asked = list(destinations)
    answers = _routes(f"route get {address} mark {fwmark}\n" for address, fwmark in asked)
    return {key: _way(words) for key, words in zip(asked, answers) if words}


def devices_to(addresses: Iterable[str]) -> dict[str, str]:
    """The interface by which this machine reaches each address that it has a route to."""
    asked = list(addresses)
    answers = zip(asked, _routes(f"route get {address}\n" for address in asked))
    return {address: words[words.index("dev") + 1] for address, words in answers if "dev" in words[:-1]}


def _routes(lines: Iterable[str]) -> list[list[str]]:
    """For each request the first line of ip's answer, in words; none where there is no route."""
    asked = list(lines)
    if not asked:
        return []
    # An address without any route makes ip fail; -force has it go on with the next one.
    _status, output, said = host.attempt(["ip", "-force", "-batch", "-"], "".join(asked))
    failed = {int(number) for number in re.findall(r"^Command failed -:(\d+)$", said, re.MULTILINE)}
    answers = iter([line.split() for line in output.splitlines() if line[:1].strip()])
    return [[] if number in failed else next(answers, []) for number in range(1, len(asked) + 1)]


def _way(words: Sequence[str]) -> str:
    """Of "local 192.0.2.10 dev lo src 192.0.2.10" or "192.0.2.10 via 10.0.0.1 dev eth0 table 100 src 10.0.0.2"."""
    if words[0] == "local":
        return "local"
    return words[words.index("table") + 1] if "table" in words[:-1] else "main"


# -- routing ------------------------------------------------------------------------------------------------------


def routing_rules() -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The routing rules that look at a packet's mark; and the place of the local table, by family."""
    found: list[dict[str, Any]] = []
    places: dict[str, int] = {}
    for family in FAMILIES:
        rules, local = _asked(family, ["rule", "show"], partial(_routing_rules, family)) or ([], [])
        found += rules
        places.update({family: min(local)} if local else {})
    return found, places


def _routing_rules(family: str, answer: Any) -> list[list[Any]]:
    """Rules by mark; priorities of the rules that lead all packets to the local table."""
    local = [rule.get("priority", 0) for rule in answer if rule.get("table") == "local" and "fwmark" not in rule]
    return [[_policy_rule(family, rule) for rule in answer if "fwmark" in rule], local]


def _policy_rule(family: str, rule: Mapping[str, Any]) -> dict[str, Any]:
    found = {
        "family": family,
        "priority": rule.get("priority", 0),
        "fwmark": int(rule["fwmark"], 0),
        "mask": int(rule.get("fwmask", hex(FULL_MASK)), 0),
        "table": str(rule.get("table", "")),
    }
    more = {word: str(rule[word]) for word in ("iif", "oif", "action") if word in rule}
    more.update(
        {word: _network(rule, key) for word, key in (("from", "src"), ("to", "dst")) if rule.get(key, "all") != "all"}
    )
    return {**found, **more, "inverted": True} if "not" in rule else {**found, **more}


def _network(rule: Mapping[str, Any], key: str) -> str:
    address = ip_network(rule[key])
    return str(ip_network(f"{rule[key]}/{rule.get(f'{key}len', address.prefixlen)}"))


def local_routes(tables: Iterable[tuple[str, str]]) -> dict[tuple[str, str], list[str]]:
    """The destinations that routing tables, each with its family, deliver to the router itself."""
    return {
        (family, table): _asked(family, ["route", "show", "table", table, "type", "local"], _destinations)
        for family, table in tables
    }


def _destinations(answer: Any) -> list[str]:
    printed = [route["dst"] for route in answer]
    return [words if words == "default" else str(ip_network(words)) for words in printed]


def _asked(family: str, words: Sequence[str], read: Callable[[Any], list[T]]) -> list[T]:
    """What is read from an answer of ip; nothing where it is not installed, or says that there is no such table.

    Raises ParseError.
    """
    if not host.installed("ip"):
        return []
    asking = ["ip", "-json", _IP.get(family, "-6"), *words]
    status, output, _said = host.attempt(asking)
    try:
        return [] if status else read(json.loads(output or "[]"))
    except MISSHAPEN as error:
        raise not_understood(" ".join(asking), error) from None


def mark_filters() -> dict[str, list[tc.MarkFilter]]:
    """The filters of traffic control that ask for a mark on the way out, by device.

    Where tc cannot print a filter, as one that was made without a handle, its answer ends there.
    """
    if not host.installed("tc"):
        return {}
    found = {}
    _status, listing, _said = host.attempt(["tc", "qdisc", "show"])
    for device, places in tc.places(listing).items():
        asked = "".join(f"filter show dev {device} {place}\n" for place in places)
        _status, answer, _said = host.attempt(["tc", "-force", "-batch", "-"], asked)
        found[device] = tc.mark_filters(answer)
    return found


def sources_by_mark() -> list[str]:
    """The interfaces, or all, whose packets have the route to their source looked up by their mark."""
    setting = "/proc/sys/net/ipv4/conf/{}/src_valid_mark"
    return [name for name in ("all", *host.interfaces()) if host.read_text(setting.format(name)).strip() == "1"]


def tracks_ipvs() -> bool:
    """Whether the connections of IPVS are tracked by the kernel."""
    return host.read_text("/proc/sys/net/ipv4/vs/conntrack").strip() == "1"
