# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Generated declarations and router states, from few names, marks and addresses, so that they often meet."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from ansible_collections.lvs.fleet.plugins.module_utils._declared.params import ipvs_services, marks, virtual_services
from ansible_collections.lvs.fleet.plugins.module_utils._marks import nftables
from ansible_collections.lvs.fleet.plugins.module_utils._marks.iptables import (
    chain_rule,
    mark_chains,
    parse_rule,
    record_chains,
    retired,
    snat_chains,
)
from ansible_collections.lvs.fleet.plugins.module_utils._marks.nft_records import in_order, nft_record_chains
from ansible_collections.lvs.fleet.plugins.module_utils._marks.nftables import nftables_chains
from ansible_collections.lvs.fleet.plugins.module_utils._model import (
    FAMILIES,
    MARKINGS,
    NFTABLES,
    Chain,
    ChainRule,
    RouterState,
    ServiceId,
)
from ansible_collections.lvs.fleet.plugins.module_utils._plan import declared_rules
from ansible_collections.lvs.fleet.tests.unit.fake_kernel import FakeKernel, Rule

NAMES = ("web", "ftp", "dns", "x" * 63)
# Ports of services by address, by name. This one may have every port.
EVERY_PORT = "x" * 63
PORTS_OF = {"web": (80, 443), "ftp": (21,), "dns": (53, 5353), EVERY_PORT: (1, 65535)}
MARKS = (1, 2, 80, 2**31 - 1)
MACS = ["52:54:00:00:00:01", "52:54:00:00:00:02"]
NETWORKS = {
    "ipv4": ("192.0.2.10", "192.0.2.11", "192.0.2.0/24", "0.0.0.0/0"),
    "ipv6": ("2001:db8::10", "2001:db8::/32"),
}
SERVERS = {"ipv4": ("10.0.0.1", "10.0.0.2", "10.0.0.3"), "ipv6": ("2001:db8:1::1", "2001:db8:1::2")}
SCHEDULERS = (("wlc", []), ("rr", []), ("rr", ["flag-2"]), ("sh", ["sh-port"]), ("mh", ["mh-fallback", "flag-3"]))
PORTS = st.lists(
    st.sampled_from([20, 21, 80, "443", "10000:20000", "15000:30000", *range(1, 33, 2)]), min_size=1, max_size=20
)


def some(items: Any, least: int = 1, most: int = 3) -> Any:
    return st.lists(st.sampled_from(items), min_size=least, max_size=most, unique=True)


@st.composite
def traffic(draw: Any, families: tuple[str, ...]) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "destination": draw(some([network for family in families for network in NETWORKS[family]])),
        "protocol": draw(some(("tcp", "udp", "sctp"), most=2)),
    }
    if draw(st.booleans()):
        entry["ports"] = draw(PORTS)
    elif draw(st.integers(0, 3)) == 0:
        del entry["protocol"]
    if draw(st.integers(0, 3)) == 0:
        entry["source"] = [draw(st.sampled_from(NETWORKS[family])) for family in families]
    if draw(st.integers(0, 3)) == 0:
        entry["in_interface"] = draw(st.sampled_from(["eth0", "bond0.12", "veth+"]))
    if draw(st.integers(0, 3)) == 0:
        entry["exclude_mac"] = draw(some(MACS, most=2))
    return entry


@st.composite
def settings(draw: Any) -> dict[str, Any]:
    scheduler, flags = draw(st.sampled_from(SCHEDULERS))
    found: dict[str, Any] = {"scheduler": scheduler, "scheduler_flags": flags}
    if draw(st.booleans()):
        found["persistence_timeout"] = draw(st.sampled_from([1, 300, 2678400]))
        found["persistence_netmask"] = draw(st.sampled_from([1, 24, 32, "255.255.0.0"]))
        found["persistence_netmask6"] = draw(st.sampled_from([1, 64, 128]))
    found["one_packet"] = draw(st.booleans())
    if draw(st.integers(0, 4)) == 0:
        found["persistence_engine"] = "sip"
    return found


@st.composite
def real_server(draw: Any, address: str, method: str = "") -> dict[str, Any]:
    upper = draw(st.sampled_from([0, 0, 1, 100, 2**31 - 1]))
    method = method or draw(st.sampled_from(["direct", "masquerade", "tunnel"]))
    found = {
        "address": address,
        "weight": draw(st.sampled_from([0, 1, 10, 65535])),
        "forward_method": method,
        "upper_threshold": upper,
        "lower_threshold": draw(st.sampled_from([0, upper])),
    }
    if method == "tunnel":
        kind = draw(st.sampled_from(["ipip", "gue", "gre"]))
        found["tunnel_type"] = kind
        if kind == "gue":
            found["tunnel_port"] = draw(st.sampled_from([1, 6080, 65535]))
        if kind != "ipip":
            found["tunnel_checksum"] = draw(st.sampled_from(["nocsum", "csum", *["remcsum"] * (kind == "gue")]))
    return found


@st.composite
def real_server_list(draw: Any, families: tuple[str, ...]) -> list[dict[str, Any]]:
    addresses = draw(some([address for family in families for address in SERVERS[family]], least=0))
    return [draw(real_server(address)) for address in addresses]


@st.composite
def virtual_service(draw: Any, name: str, fwmark: int) -> dict[str, Any]:
    families = draw(st.sampled_from([("ipv4",), ("ipv6",), FAMILIES]))
    first = draw(traffic(families))
    entries = [first, draw(traffic(families))] if draw(st.booleans()) else [first]
    there = {"ipv6" if ":" in item else "ipv4" for entry in entries for item in entry["destination"]}
    for entry in entries:
        if "source" in entry:  # each family of the destinations needs a source
            entry["source"] = [draw(st.sampled_from(NETWORKS[family])) for family in sorted(there)]
    servers = draw(real_server_list(tuple(sorted(there))))
    service = {"name": name, "fwmark": fwmark, "traffic": entries, **draw(settings()), "real_servers": servers}
    return draw(ftp(service)) if draw(st.integers(0, 2)) == 0 else service


@st.composite
def ftp(draw: Any, service: dict[str, Any]) -> dict[str, Any]:
    """The service as one for FTP: one address in each family, the port, persistence."""
    there = sorted({"ipv6" if ":" in item else "ipv4" for entry in service["traffic"] for item in entry["destination"]})
    vips = [NETWORKS[family][0] for family in there]
    ports = [20, 21, *draw(st.sampled_from([[], ["10000:20000"]]))]
    traffic = [{"destination": vips, "protocol": "tcp", "ports": ports}]
    return {**service, "traffic": traffic, "helper": "ftp", "persistence_timeout": 300}


@st.composite
def declared_services(draw: Any) -> list[dict[str, Any]]:
    """The option services of lvs_service."""
    names = draw(some(NAMES, least=0))
    fwmarks = draw(some(MARKS, least=len(names), most=len(names)))
    return [
        draw(address_service(name) if draw(st.integers(0, 2)) == 0 else virtual_service(name, fwmark))
        for name, fwmark in zip(names, fwmarks, strict=True)
    ]


@st.composite
def address_service(draw: Any, name: str) -> dict[str, Any]:
    """A service by address; each name has ports of its own, so that no two of them want the same."""
    families = draw(st.sampled_from([("ipv4",), ("ipv6",), FAMILIES]))
    chosen = draw(settings())
    ports = draw(some(PORTS_OF[name], most=1 if "persistence_timeout" in chosen else 2))
    entry = {
        "destination": [NETWORKS[family][0] for family in families],
        "protocol": draw(some(["udp"] if chosen["one_packet"] else ["tcp", "udp", "sctp"], most=2)),
    }
    if name != EVERY_PORT or "persistence_timeout" not in chosen:
        entry["ports"] = ports
    servers = draw(real_server_list(families))
    for server in servers:
        if server["forward_method"] == "masquerade" and entry.get("ports") == ports[:1] and draw(st.booleans()):
            server["port"] = draw(st.sampled_from([1, 8080, 65535]))
    return {"name": name, "traffic": [entry], **chosen, "real_servers": servers}


@st.composite
def declared_marks(draw: Any) -> list[dict[str, Any]]:
    """The option rules of iptables_mark."""
    found = []
    for name in draw(st.lists(st.sampled_from(NAMES), max_size=4)):
        item = draw(traffic(draw(st.sampled_from([("ipv4",), ("ipv6",)]))))
        mark, mask = draw(st.sampled_from([(1, 2**32 - 1), (80, 2**32 - 1), (80, 0xFF), (2**31 - 1, 2**31 - 1)]))
        found.append({"name": name, "mark": mark, "mask": mask, **item})
    return found


@st.composite
def declared_ipvs(draw: Any) -> list[dict[str, Any]]:
    """The option services of ipvs_service."""
    ids = draw(
        some(
            [(family, mark, "", "", 0) for family in FAMILIES for mark in MARKS]
            + [("ipv4", 0, protocol, "192.0.2.10", port) for protocol in ("tcp", "udp", "sctp") for port in (0, 80)]
            + [("ipv6", 0, "tcp", "2001:db8::10", 443)],
            least=0,
            most=4,
        )
    )
    found = []
    for family, mark, protocol, address, port in ids:
        item = draw(settings())
        if mark:
            item.update(fwmark=mark, family=family)
        else:
            item.update(protocol=protocol, address=address, port=port)
            item["one_packet"] = item["one_packet"] and protocol == "udp"
            if not port:
                item["persistence_timeout"] = 360
        item["real_servers"] = draw(real_server_list((family,)))
        if draw(st.integers(0, 4)) == 0:
            other = SERVERS["ipv4" if family == "ipv6" else "ipv6"][0]
            item["real_servers"].append(draw(real_server(other, "tunnel")))
        found.append(item)
    return found


FOREIGN = {
    "ipv4": (
        "-s 198.51.100.0/24 -j RETURN",
        "-d 192.0.2.10/32 -p tcp -m tcp --dport 80 -j MARK --set-xmark 0x50/0xffffffff",
        '-p tcp -m comment --comment "somebody else\'s" -j ACCEPT',
        "! -d 192.0.2.10/32 -j MARK --set-xmark 0x1/0xffffffff",
    ),
    "ipv6": ("-s 2001:db8:ff::/48 -j RETURN", "-j MARK --set-xmark 0x50/0xffffffff"),
}
DRIFTED = {
    "ipv4": (
        '-d 192.0.2.10/32 -p tcp -m tcp --dport 80 -m comment --comment "lvs:web" -j MARK --set-xmark 0x50/0xffffffff',
        '-d 192.0.2.10/32 -p tcp -m comment --comment "lvs:web" -m multiport --dports 443,80 -j MARK'
        " --set-xmark 0x50/0xffffffff",
        '-m comment --comment "lvs:gone" -j RETURN',
        '-m conntrack --ctstate NEW -m comment --comment "lvs:ftp" -j MARK --set-xmark 0x2/0xffffffff',
    ),
    "ipv6": ('-p udp -m udp --dport 53 -m comment --comment "lvs:dns" -j MARK --set-xmark 0x1/0xffffffff',),
}


@st.composite
def chains(draw: Any, family: str, own: tuple[ChainRule, ...]) -> Chain:
    if draw(st.integers(0, 5)) == 0:
        return Chain()
    texts = draw(st.lists(st.sampled_from(FOREIGN[family] + DRIFTED[family]), max_size=4))
    rules = [*own, *(parse_rule(text, family) for text in texts)]
    first = [rule for rule in own[:1] if rule.mark and draw(st.booleans())]
    rules += [chain_rule(retired(rule.name, rule.mark, family)) for rule in first]
    rules = draw(st.permutations(rules)) if draw(st.booleans()) else rules
    if rules and draw(st.integers(0, 3)) == 0:
        rules = [*rules, rules[0]]
    return Chain(True, tuple(rules), draw(st.integers(0, 2)), draw(st.integers(0, 1)))


@st.composite
def tables(draw: Any, family: str, own: tuple[ChainRule, ...]) -> Chain:
    """Our table of nftables, perhaps with an element or with other things of somebody else."""
    others = draw(st.lists(st.sampled_from(ELEMENTS[family]), max_size=1))
    references = draw(st.integers(0, 1))
    rules = (*own, *(ChainRule(text, text, "", 9) for text in others))
    if not rules and not references:
        return Chain()
    listed, entries = nftables.content(rules)
    return Chain(True, listed, int(bool(rules)), references, entries=entries, jump_places=(1,))


ELEMENTS = {
    "ipv4": ("element ip lvs-mark exact { 203.0.113.77 . tcp . 9 : 0x9 }",),
    "ipv6": ('element ip6 lvs-mark ranges { 2001:db8:ff::/64 . udp . 1-9 comment "x" : 0x9 }',),
}


@st.composite
def states(draw: Any) -> RouterState:
    """A router as it may be found: our rules and services, complete or not, and those of others."""
    declared = replace(virtual_services(draw(declared_services())), marking=draw(st.sampled_from(MARKINGS)))
    extra = marks(draw(declared_marks()))
    pools = {**dict(declared.pools), **dict(ipvs_services(draw(declared_ipvs())).pools)}
    for key in draw(some(list(pools), least=0)) if pools else []:
        del pools[key]
    content = {}
    for key in (*snat_chains(), *mark_chains()):
        own = [rule for one in (declared, extra) for rule in declared_rules(one, key)]
        content[key] = draw(chains(key.family, tuple(own)))
    for key in nftables_chains():
        content[key] = draw(tables(key.family, declared_rules(declared, key)))
    for key in (*record_chains(), *nft_record_chains()):
        own = draw(some(declared_rules(declared, key), least=0, most=9)) if declared_rules(declared, key) else []
        content[key] = Chain().with_records(in_order(own) if key.tool == NFTABLES else tuple(own))
    return RouterState(content, pools)


@st.composite
def hooks(draw: Any, kernel: FakeKernel, services: list[dict[str, Any]]) -> None:
    """Puts rules into PREROUTING by hand: what the services would give, in whole or in part, and others in between."""
    for key in mark_chains():
        hook = kernel.mangle[key.family].chains[key.hook]
        own = [rule.text for rule in declared_rules(virtual_services(services), key)]
        by_hand = [re.sub(' -m comment --comment "[^"]*"', draw(st.sampled_from(["", " -m comment --comment x"])), text)
                   for text in draw(st.lists(st.sampled_from(own), max_size=4)) if own] if own else []  # fmt: skip
        others = draw(st.lists(st.sampled_from(FOREIGN[key.family] + IN_HOOK[key.family]), max_size=2))
        for text in draw(st.permutations([_narrowed(draw, text) for text in by_hand] + others)):
            hook.insert(draw(st.integers(0, len(hook))), Rule(text))


IN_HOOK = {
    "ipv4": ("-d 203.0.113.0/24 -j DROP", "-m mark --mark 0x50 -j ACCEPT", "-p udp -j LOG"),
    "ipv6": ("-d 2001:db8:ffff::/48 -j DROP", "-m mark ! --mark 0x0 -j RETURN", "-p udp -j LOG"),
}


def _narrowed(draw: Any, text: str) -> str:
    """The rule, or only its first port, in the other words that a single port has."""
    ports = re.search(r"-p (\S+) -m multiport --dports ([^ ,]+)\S*", text)
    if not ports or draw(st.booleans()):
        return text
    return text.replace(ports[0], f"-p {ports[1]} -m {ports[1]} --dport {ports[2]}")


def lone_marks(state: RouterState) -> set[tuple[str, int]]:
    """Marks that rules of ours give to packets while there is no service for them."""
    nowhere = {"255.255.255.255/32", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128"}
    return {
        (key.family, rule.mark)
        for key, chain in state.chains.items()
        for rule in chain.rules
        if rule.name and rule.mark and getattr(rule.meaning, "source", "") not in nowhere
        if ServiceId(key.family, rule.mark) not in state.pools
    }
