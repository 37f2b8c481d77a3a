# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The language of ip(8): from commands and from its JSON answers to values. PRIVATE to the collection. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from ipaddress import ip_address
from itertools import chain
from typing import Any, Callable, Iterable, Mapping, Sequence

from .._declared.options import fwmark, integer, matching, port, show, unicast_address
from .._errors import MISSHAPEN, ValidationError, not_understood
from .._model import FULL_NETMASK, IPV4, IPV6, family_of
from . import objects as ip
from .objects import MAIN_TABLE, Identity, IpObject

# default, main and local: the kernel and everybody else put routes there.
_OTHERS_TABLES = (253, MAIN_TABLE, 255)
# Rules behind the one that asks table main never see a packet that has a route.
_PRIORITY_MAX = 32765
_ALL_BITS = "0xffffffff"

device = matching(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,14}", "an interface")
_table_number = integer(1, 2**32 - 1, "a routing table")
_priority = integer(1, _PRIORITY_MAX, "a priority before table main")


# -- from a command -----------------------------------------------------------------------------------------------


def _address_of(family: str, given: Mapping[str, str]) -> IpObject:
    address = unicast_address(given["address"])
    family = _agreed(family, address)
    length = integer(1, FULL_NETMASK[family], "a prefix length")(given["length"])
    if given["nodad"] and family == IPV4:
        raise ValueError("nodad is for IPv6 addresses")
    return ip.address(address, length, device(given["device"]), bool(given["nodad"]), bool(given["deprecated"]))


def _link_of(family: str, given: Mapping[str, str]) -> IpObject:
    kind, local = given["kind"].partition(" ")[0], unicast_address(given["local"])
    if (_agreed(family, local) == IPV6) != kind.startswith("ip6"):
        raise ValueError(f"{local} is of the other family than type {kind}")
    return ip.link(device(given["name"]), kind, local, bool(given["checksum"]))


def _port_of(family: str, given: Mapping[str, str]) -> IpObject:
    return ip.fou(family or IPV4, port(given["port"]))


def _rule_of(family: str, given: Mapping[str, str]) -> IpObject:
    source = unicast_address(given["source"]) if given["source"] else ""
    destination = unicast_address(given["destination"]) if given["destination"] else ""
    mark = fwmark(given["mark"]) if given["mark"] else 0
    if not source and not destination and not mark:
        raise ValueError("needs from, to or fwmark; without them it is a rule for every packet")
    if source and destination and family_of(source) != family_of(destination):
        raise ValueError(f"{destination} is of the other family than {source}")
    table = MAIN_TABLE if given["table"] == "main" else _table(given["table"])
    suppress, priority = bool(given["suppress"]), _priority(given["priority"])
    return ip.rule(_agreed(family, source or destination), source, destination, mark, table, suppress, priority)


def _local_route_of(family: str, given: Mapping[str, str]) -> IpObject:
    return ip.route(family or IPV4, _table(given["table"]), "")


def _gateway_route_of(family: str, given: Mapping[str, str]) -> IpObject:
    gateway = unicast_address(given["gateway"])
    return ip.route(_agreed(family, gateway), _table(given["table"]), gateway)


def _table(value: str) -> int:
    number = _table_number(value)
    if number in _OTHERS_TABLES:
        raise ValueError(f"table {number} belongs to the kernel, not to us")
    return number


def _agreed(family: str, address: str) -> str:
    """The family that -4 or -6 says, or else the address."""
    if family and address and family != family_of(address):
        raise ValueError(f"{address} is of the other family")
    return family or (family_of(address) if address else IPV4)


_GRAMMAR: tuple[tuple[str, Callable[[str, Mapping[str, str]], IpObject]], ...] = (
    (r"address add (?P<address>\S+)/(?P<length>\d+) dev (?P<device>\S+)"
     r"(?P<nodad> nodad)?(?P<deprecated> preferred_lft 0)?", _address_of),
    (r"link add (?P<name>\S+) up type (?P<kind>ipip|gre|ip6tnl mode ip6ip6|ip6gre) local (?P<local>\S+)"
     r"(?P<checksum> icsum)?", _link_of),
    (r"fou add port (?P<port>\d+) gue", _port_of),
    (r"rule add(?: from (?P<source>\S+))?(?: to (?P<destination>\S+))?(?: fwmark (?P<mark>\S+))? lookup (?P<table>\S+)"
     r"(?P<suppress> suppress_prefixlength 0)? priority (?P<priority>\d+)", _rule_of),
    (r"route add local default dev lo table (?P<table>\S+)", _local_route_of),
    (r"route add default via (?P<gateway>\S+) table (?P<table>\S+)", _gateway_route_of),
)  # fmt: skip
_FAMILY_OPTIONS = {"-4 ": IPV4, "-6 ": IPV6, None: ""}


def ip_object(command: Any) -> IpObject:
    """The object that a command adds. Raises ValueError for anything but the commands that are documented."""
    for pattern, build in _GRAMMAR:
        found = re.fullmatch(rf"(?P<family>-[46] )?{pattern}", command if isinstance(command, str) else "", re.ASCII)
        if found:
            try:
                return build(_FAMILY_OPTIONS[found["family"]], found.groupdict())
            except ValueError as error:
                raise ValueError(f"{show(command)}: {error}") from None
    raise ValueError(f"{show(command)} is not one of the commands that are managed")


def ip_objects(commands: Sequence[Any], path: str = "commands") -> list[IpObject]:
    """The objects of a list of commands. Raises ValidationError with every problem."""
    problems: list[str] = []
    found: list[IpObject] = []
    claimed: dict[Identity, str] = {}
    for place, command in enumerate(commands):
        item = f"{path}[{place}]"
        try:
            wanted = ip_object(command)
        except ValueError as error:
            problems.append(f"{item}: {error}")
            continue
        taken = sorted({claimed[claim] for claim in wanted.claims if claim in claimed})
        problems += [f"{item}: {wanted.add}: does not go together with {other}" for other in taken]
        claimed.update(dict.fromkeys(wanted.claims, item))
        found.append(wanted)
    if problems:
        raise ValidationError(problems)
    return found


# -- from what ip prints ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Query:
    """A question to ip, whose answer is JSON: its words, and what makes objects of the answer."""

    words: tuple[str, ...]
    objects: Callable[[Any], list[IpObject]] = field(compare=False)

    def read(self, answer: Any) -> list[IpObject]:
        """The objects of an answer. Raises ParseError."""
        try:
            found = self.objects(answer)
            # They are looked up by it, and JSON has values that cannot be.
            hash(tuple(each.identity for each in found))
            return found
        except MISSHAPEN as error:
            raise not_understood(f"ip -json {' '.join(self.words)}", error) from None


def queries(objects: Iterable[IpObject]) -> list[Query]:
    """What to ask to know all objects of the kinds, families and tables that these are of; each question once."""
    return list(dict.fromkeys(chain.from_iterable(map(_queries, objects))))


def _queries(wanted: IpObject) -> list[Query]:
    links = Query(("-details", "link", "show"), _links)
    # With numbers, because tables can have names.
    numbers = ("-6" if wanted.family == IPV6 else "-4", "-Numeric")
    if wanted.kind == "address":
        return [links, Query(("address", "show"), _addresses)]
    if wanted.kind == "link":
        return [links]
    if wanted.kind == "fou":
        return [Query(("fou", "show"), _fous)]
    if wanted.kind == "rule":
        return [Query((*numbers, "rule", "show"), lambda answer: _rules(wanted.family, answer))]
    table = wanted.identity[2]
    words = (*numbers, "route", "show", "table", str(table))
    return [Query(words, lambda answer: _routes(wanted.family, table, answer))]


def _addresses(answer: Any) -> list[IpObject]:
    return [
        ip.address(
            _canonical(entry["local"]),
            entry["prefixlen"],
            link["ifname"],
            nodad=entry.get("nodad", False),
            deprecated=entry.get("preferred_life_time") == 0,
        )
        for link in answer
        for entry in link.get("addr_info", [])
        if "local" in entry
    ]


def _links(answer: Any) -> list[IpObject]:
    found = []
    for link in answer:
        info = link.get("linkinfo", {})
        data = info.get("info_data", {})
        # A tunnel with a fixed other end receives nothing else: it is neither ours nor in the way of ours.
        local = _canonical(data.get("local", "any")) if data.get("remote") == "any" else "any"
        kind = info.get("info_kind", "") if data.get("proto", "ip6ip6") in ("ip6ip6", "any") else ""
        found.append(ip.link(link["ifname"], kind, local, data.get("icsum", False), "UP" in link["flags"]))
    return found


def _fous(answer: Any) -> list[IpObject]:
    return [
        ip.fou(IPV6 if entry["family"] == "inet6" else IPV4, entry["port"])
        for entry in answer
        if "gue" in entry and "local" not in entry
    ]


def _rules(family: str, answer: Any) -> list[IpObject]:
    """Those rules that have nothing but what ours can have."""
    known = {"priority", "src", "dst", "fwmark", "fwmask", "table", "suppress_prefixlen", "protocol"}
    return [
        ip.rule(
            family,
            "" if entry["src"] == "all" else _canonical(entry["src"]),
            _canonical(entry.get("dst", "")),
            int(entry.get("fwmark", "0"), 0),
            int(entry["table"]),
            entry.get("suppress_prefixlen") == 0,
            entry["priority"],
        )
        for entry in answer
        if "table" in entry
        and not set(entry) - known
        and entry.get("fwmask", _ALL_BITS) == _ALL_BITS
        and entry.get("suppress_prefixlen", 0) == 0
    ]


def _routes(family: str, table: int, answer: Any) -> list[IpObject]:
    """The default routes, those included that ours cannot be: through several gateways, or into a black hole."""
    found = []
    for entry in answer:
        if entry["dst"] == "default":
            into_itself = entry.get("type") in ("local", "2") and entry.get("dev") == "lo"
            gateway = _canonical(entry.get("gateway", "something else"))
            found.append(ip.route(family, table, "" if into_itself else gateway))
    return found


def _canonical(printed: str) -> str:
    """An address as Python prints it, which is not in all cases how ip does; other words as they are."""
    try:
        return str(ip_address(printed))
    except ValueError:
        return printed
