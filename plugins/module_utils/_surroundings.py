# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What else is at work on the router: policy routing, other programs. PRIVATE to the collection; reads, best effort."""

from __future__ import annotations

import json
from functools import partial
from ipaddress import ip_network
from typing import Any, Callable, Iterable, Mapping, Sequence, TypeVar

from . import _host as host
from ._errors import MISSHAPEN, not_understood
from ._model import FAMILIES, FULL_MASK, IPV4

T = TypeVar("T")

_IP = {IPV4: "-4"}
_CONTROLLERS = ("keepalived", "ldirectord", "kube-proxy")
_FIREWALLD = "firewalld"
# The interface on which kube-proxy has the addresses of its services, only in IPVS mode.
_KUBE_INTERFACE = "kube-ipvs0:"

# Firewalls that remove all rules of iptables. Each was seen to do so. firewalld 2 and later needs a direct rule for it,
# which somebody may add at any time. ferm and firehol do so in the legacy variant of iptables, which they prefer.
_FLUSHING_UNITS = (
    *("arno-iptables-firewall.service", "ferm.service", "firehol.service", "firewalld.service", "nftables.service"),
    *("shorewall.service", "shorewall-lite.service", "shorewall6.service", "shorewall6-lite.service"),
)


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


def programs() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The other controllers of IPVS in our network namespace; and a firewall that shows by its process alone."""
    processes = host.processes((*_CONTROLLERS, _FIREWALLD))
    kube_interface = _KUBE_INTERFACE in host.read_text("/proc/self/net/dev").split()
    first: dict[str, int] = {}
    for pid, name, arguments in processes:
        if name == _FIREWALLD or _manages_ipvs(name, arguments, kube_interface):
            first.setdefault(name, pid)
    controllers = [{"name": name, "pid": pid} for name, pid in first.items() if name != _FIREWALLD]
    firewalls = [
        {"name": _FIREWALLD, "evidence": f"process {pid}"} for name, pid in first.items() if name == _FIREWALLD
    ]
    return controllers, firewalls


def flushing_units() -> list[str]:
    """The units in use that remove all rules of iptables when they start, reload or stop."""
    return [unit for unit in _FLUSHING_UNITS if host.in_use(unit)]


def devices() -> list[str]:
    """The network interfaces of the router."""
    lines = host.read_text("/proc/self/net/dev").splitlines()
    return [line.partition(":")[0].strip() for line in lines if ":" in line]


def _manages_ipvs(name: str, arguments: list[str], kube_interface: bool) -> bool:
    if name == "kube-proxy":
        return kube_interface or "--proxy-mode ipvs" in " ".join(arguments).replace("=", " ")
    return name != "keepalived" or not {"-P", "--vrrp"} & set(arguments)
