# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a user may have meant, to be added to a message. PRIVATE to the collection. Pure.

Each function gives the end of a sentence, with what to write instead; empty text where nothing suggests itself.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from ipaddress import ip_address, ip_network
from typing import Any, Callable, Collection, Iterable, Mapping

# How alike two words have to be: "wcl" is taken for "wlc", and "dh" not for "sh".
_ALIKE = 0.65
# No longer text is looked at: what it takes to compare grows with the product of the lengths.
_LONGEST = 80
_EVERY_ADDRESS = ("any", "all", "*", "everywhere")
_SECONDS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}

# All schedulers that come with Linux; a kernel may have others.
_SCHEDULERS = ("rr", "wrr", "lc", "wlc", "fo", "ovf", "lblc", "lblcr", "dh", "sh", "mh", "sed", "nq", "twos", "none")
# Words that other tools and people have for the same, with '_' for every blank and hyphen.
SCHEDULERS = {
    "round_robin": "rr", "roundrobin": "rr", "weighted_round_robin": "wrr", "weighted_roundrobin": "wrr",
    "least_connection": "lc", "least_connections": "lc", "least_conn": "lc", "leastconn": "lc",
    "weighted_least_connection": "wlc", "weighted_least_connections": "wlc", "weighted_leastconn": "wlc",
    "source_hashing": "sh", "source_hash": "sh", "source": "sh", "destination_hashing": "dh", "destination_hash": "dh",
    "maglev": "mh", "failover": "fo", "weighted_failover": "fo", "overflow": "ovf", "never_queue": "nq",
    "shortest_expected_delay": "sed",
}  # fmt: skip
FORWARD_METHODS = {
    **dict.fromkeys(("nat", "masq", "masquerading", "m"), "masquerade"),
    **dict.fromkeys(("dr", "droute", "direct_routing", "direct_route", "route", "gate", "gatewaying", "g"), "direct"),
    **dict.fromkeys(("tun", "ipip", "ipip_tunnel", "tunneling", "gue", "gre", "i"), "tunnel"),
}
PROTOCOLS = {**dict.fromkeys(("6", "t", "http", "https"), "tcp"), "17": "udp", "u": "udp", "132": "sctp"}
FAMILIES = {**dict.fromkeys(("4", "inet", "ip", "v4"), "ipv4"), **dict.fromkeys(("6", "inet6", "ip6", "v6"), "ipv6")}
_OPTIONS = {
    **dict.fromkeys(("mark", "fw_mark", "firewall_mark", "nfmark"), ("fwmark", "mark")),
    **dict.fromkeys(("servers", "backends", "members", "nodes", "targets", "pool", "rs"), ("real_servers",)),
    **dict.fromkeys(("vip", "vips", "virtual_ip", "virtual_address", "dest", "dst", "address", "addresses", "listen"),
                    ("destination", "address")),
    **dict.fromkeys(("ip", "host", "hostname", "server", "real_ip"), ("address", "destination")),
    **dict.fromkeys(("port", "dport", "dports"), ("ports", "port")),
    **dict.fromkeys(("iface", "interface", "device"), ("in_interface",)),
    **dict.fromkeys(("mac", "mac_source", "not_mac", "source_mac"), ("exclude_mac",)),
    **dict.fromkeys(("algorithm", "algo", "lb_algo", "lvs_sched", "balance"), ("scheduler",)),
    **dict.fromkeys(("method", "forward", "forwarding", "lb_kind", "lvs_method"), ("forward_method",)),
    **dict.fromkeys(("persistent", "persistence", "sticky", "affinity", "timeout"), ("persistence_timeout",)),
    **dict.fromkeys(("netmask", "granularity"), ("persistence_netmask",)),
    **dict.fromkeys(("flags", "sched_flags"), ("scheduler_flags",)),
    **dict.fromkeys(("maxconn", "max_connections", "u_threshold"), ("upper_threshold",)),
    **dict.fromkeys(("minconn", "min_connections", "l_threshold"), ("lower_threshold",)),
    **dict.fromkeys(("prot", "proto"), ("protocol",)),
    "ops": ("one_packet",), "pe": ("persistence_engine",), "src": ("source",), "label": ("name",),
}  # fmt: skip
# Where the options of a virtual service are, for those that stand in another place. An address may be meant for either.
_SERVER = ("weight", "upper_threshold", "lower_threshold", "tunnel_type", "tunnel_port", "tunnel_checksum")
_TRAFFIC = ("destination", "protocol", "ports", "source", "in_interface", "exclude_mac")
_INSIDE = {"traffic": _TRAFFIC, "real_servers": _SERVER}
_OF_SERVICES = (
    "name", "fwmark", "scheduler", "scheduler_flags", "persistence_timeout", "persistence_netmask",
    "persistence_netmask6", "persistence_engine", "one_packet", "helper", "traffic", "real_servers",
)  # fmt: skip


# What to write instead of a value that was refused.
Hint = Callable[[Any], str]


def no_hint(_given: Any) -> str:
    return ""


def did_you_mean(
    given: Any, choices: Iterable[str], meanings: Mapping[str, str] | None = None, alike: float = _ALIKE
) -> str:
    """The choice that a wrong word is nearest to, by what it means elsewhere or by its letters."""
    word = _plain(given)
    found = (meanings or {}).get(word) or _alike(word, choices, alike)
    return "" if found in ("", given) else f"; did you mean {found}?"


def other_scheduler(given: Any) -> str:
    """The one of Linux's own schedulers that was meant."""
    return did_you_mean(given, _SCHEDULERS, SCHEDULERS)


def unknown_option(given: Any, known: Collection[str]) -> str:
    """Of an option that does not exist where others do: the one that was meant, perhaps one of another place."""
    word = _plain(given)
    if word in known:
        return f"; did you mean {word}?"
    for place, options in _INSIDE.items():
        if place in known and word in options:
            return f" here; it belongs to the entries of {place}"
    if word in _OF_SERVICES and "scheduler" not in known and "mark" not in known:
        return " here; it belongs to the service"
    return _meant_or_alike(word, known)


def _meant_or_alike(word: str, known: Collection[str]) -> str:
    meant = _OPTIONS.get(word, ())
    here = next((option for option in meant if option in known), "") or _alike(word, known)
    if here:
        return f"; did you mean {here}?"
    for place, options in _INSIDE.items():
        there = next((option for option in meant if option in options), "") or _alike(word, options)
        if place in known and there:
            return f"; did you mean {there}, in the entries of {place}?"
    return ""


def _plain(given: Any) -> str:
    """A word without what people write in different ways. No option, and nothing that is meant, is longer."""
    word = str(given) if isinstance(given, int) and 0 <= given < 256 else given
    return re.sub(r"[\s-]+", "_", word[:_LONGEST].strip().lower()) if isinstance(word, str) else ""


def _alike(word: str, choices: Iterable[str], alike: float = _ALIKE) -> str:
    words = list(choices)
    if word in words:
        return word
    return next(iter(get_close_matches(word, words, 1, alike)), "")


def as_list(given: Any, parse: Callable[[Any], Any]) -> str:
    """Several values in one text, as in "80,443"."""
    text = given.strip() if isinstance(given, str) else ""
    parts = re.split(r"\s*[,;+]\s*|\s+|(?<=[a-z])/(?=[a-z])", text)
    if len(parts) < 2 or len(text) > _LONGEST:
        return ""
    try:
        for part in parts:
            parse(part)
    except ValueError:
        return ""
    return f"; write [{', '.join(_quoted(part) for part in parts)}]"


def _quoted(part: str) -> str:
    return f'"{part}"' if ":" in part else part


def as_port(given: Any) -> str:
    """A range of ports with a hyphen, as in "80-443", a port with its protocol, or the name of a port."""
    text = given[:_LONGEST].strip() if isinstance(given, str) else ""
    hyphened = re.fullmatch(r"(\d{1,5})\s*-\s*(\d{1,5})", text, re.ASCII)
    if hyphened:
        return f'; write "{hyphened[1]}:{hyphened[2]}"'
    with_protocol = re.fullmatch(r"(\d{1,5})/[a-z]+", text, re.ASCII)
    if with_protocol:
        return f"; write {with_protocol[1]}"
    return "; write its number" if re.fullmatch(r"[A-Za-z][A-Za-z-]*", text, re.ASCII) else ""


def as_text(given: Any) -> str:
    """A number where text is meant."""
    return f'; write "{given}"' if isinstance(given, int) and not isinstance(given, bool) and 0 <= given < 10**9 else ""


def as_seconds(given: Any) -> str:
    """A time with a unit, as in "5m"."""
    found = re.fullmatch(r"(\d{1,9})\s*([a-z]+)", given.strip(), re.ASCII) if isinstance(given, str) else None
    unit = _SECONDS.get(found[2], 0) if found else 0
    return f"; write {int(found[1]) * unit}" if found and unit else ""


def as_prefix_length(given: Any) -> str:
    """A prefix length with its slash."""
    found = re.fullmatch(r"/(\d{1,3})", given.strip(), re.ASCII) if isinstance(given, str) else None
    return f"; write {found[1]}" if found else ""


def as_address(given: Any) -> str:
    """Something around an address (blanks, brackets, a port, a zone, a prefix), or something else in its place."""
    text = given[:_LONGEST].strip() if isinstance(given, str) else ""
    alone = re.sub(r"\[(.*)\](:\d+)?|([0-9.]+):\d+", r"\1\3", text).partition("%")[0]
    if text.lower() in _EVERY_ADDRESS:
        return '; write [0.0.0.0/0, "::/0"], or one of them'
    host, slash, _length = alone.partition("/")
    if not _is_address(host):
        is_name = re.fullmatch(r"(?=[0-9.]*[A-Za-z])[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", text, re.ASCII)
        return "; names are not looked up" if is_name else ""
    if text.count("%") and ip_address(host).is_link_local:
        return "; write a global or unique local address"
    if not slash:
        return f"; write {host}"
    try:
        network = ip_network(alone, strict=False)
    except ValueError:
        return ""
    is_one = network.num_addresses == 1 or ip_address(host) != network.network_address
    return f"; write {host}" if is_one else "; write the address of each machine, not their network"


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
