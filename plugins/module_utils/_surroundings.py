# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What else is at work on the router: policy routing, other programs. PRIVATE to the collection; reads, best effort."""

from __future__ import annotations

import json
import re
from functools import partial
from ipaddress import ip_network
from typing import Any, Callable, Iterable, Mapping, Sequence, TypeVar

from . import _host as host
from . import _tc as tc
from ._errors import MISSHAPEN, not_understood
from ._model import FAMILIES, FULL_MASK, IPV4

T = TypeVar("T")

_IP = {IPV4: "-4"}
# Names of processes, and what we call their program.
_CONTROLLERS = {
    "keepalived": "keepalived",
    "keepalived_ipvs": "keepalived",
    "keepalived_lvs": "keepalived",
    "ldirectord": "ldirectord",
    "kube-proxy": "kube-proxy",
    "kube-router": "kube-router",
    "kube-vip": "kube-vip",
    "k3s-server": "k3s",
    "k3s-agent": "k3s",
    "dockerd": "dockerd (swarm)",
    "lvsd": "lvsd",
    "nanny": "nanny",
    "seesaw_ncc": "seesaw_ncc",
}
# The options of keepalived without a value, and among them that for VRRP alone.
_VRRP_ALONE = re.compile(r"--vrrp|-[DlndRCVIBXxmM]*P.*")
# Where keepalived writes the numbers of the processes that have nothing to do with IPVS.
_NO_CHECKERS = [f"/run/{folder}{name}.pid" for folder in ("", "keepalived/") for name in ("vrrp", "bfd")]
_FIREWALLD = "firewalld"
# The interface on which kube-proxy has the addresses of its services, only in IPVS mode.
_KUBE_INTERFACE = "kube-ipvs0"
# The interface of every node of a swarm.
_SWARM_INTERFACE = "docker_gwbridge"

# Firewalls that remove all rules of iptables, as docs/router.md tells of each. firewalld 2 and later needs a direct
# rule for it, which somebody may add at any time. ferm and firehol do so in the legacy variant of iptables, which they
# prefer.
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
    there = devices()
    others = {int(pid) for path in _NO_CHECKERS for pid in host.read_text(path).split() if pid.isdigit()}
    keepalived = [pid for pid, name, _arguments in processes if name == "keepalived"]
    # The first one is the parent of the others, each of which has a task of its own.
    checkers = set(keepalived[1:]) - others
    first: dict[str, int] = {}
    for pid, name, arguments in processes:
        if name == _FIREWALLD or _manages_ipvs(pid, name, arguments, there, bool(checkers)):
            first.setdefault(_CONTROLLERS.get(name, name), pid)
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


def _manages_ipvs(pid: int, name: str, arguments: list[str], there: Sequence[str], checkers: bool) -> bool:
    options = " ".join(arguments).replace("=", " ")
    if name in ("kube-proxy", "k3s-server", "k3s-agent"):
        return _KUBE_INTERFACE in there or "proxy-mode ipvs" in options
    if name == "kube-router":
        return "--run-service-proxy false" not in options
    if name == "kube-vip":
        enabled = "lb_enable=true" in host.read_text(f"/proc/{pid}/environ").split("\0")
        return enabled or "--enableLoadBalancer" in options
    if name == "dockerd":
        return _SWARM_INTERFACE in there
    if name == "keepalived":
        return checkers and not any(map(_VRRP_ALONE.fullmatch, arguments))
    return True


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
    return [name for name in ("all", *devices()) if host.read_text(setting.format(name)).strip() == "1"]


def tracks_ipvs() -> bool:
    """Whether the connections of IPVS are tracked by the kernel."""
    return host.read_text("/proc/sys/net/ipv4/vs/conntrack").strip() == "1"
