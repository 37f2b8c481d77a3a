# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What declared services have to look like to the stock tools, worked out without the product's code.

Rules are compared by the packets they see, because one declared entry may be any number of rules; services by the
lines of ipvsadm.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_network
from itertools import groupby, pairwise, product
from typing import Any

from ansible_collections.lvs.fleet.tests.integration.harness import CHAIN, FAMILIES, Snapshot

Service = dict[str, Any]
Ports = list[tuple[int, int]]
# Source, destination, interface, protocol and the MAC addresses left out; and for each of them its ports.
Traffic = dict[tuple[str, str, str, str, str], Ports]
# Name, mark, mask and the traffic that gets it.
Block = tuple[str, int, int, Traffic]
# A service in the words of ipvsadm: -f 80 -6, or -t 192.0.2.10:25.
Key = str

ANY_PORT = [(0, 65535)]
FULL = 0xFFFFFFFF
# Here the modules note whose a mark was while its service goes; no packet comes from there.
NOWHERE = ("255.255.255.255/32", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128")
METHOD = {"direct": "-g", "masquerade": "-m", "tunnel": "-i"}


def family_of(address: str) -> str:
    return "ipv6" if ":" in address else "ipv4"


def families_of(service: Service) -> list[str]:
    """The families that a service exists in."""
    found = {family_of(address) for entry in service["traffic"] for address in entry["destination"]}
    return [family for family in FAMILIES if family in found]


# -- declared -----------------------------------------------------------------------------------------------------


def traffic_of(entries: Iterable[dict[str, Any]], family: str) -> Traffic:
    found: Traffic = {}
    for entry in entries:
        ports = [_range(str(item)) for item in entry["ports"]] if "ports" in entry else ANY_PORT
        told = entry.get("protocol", "")
        protocols = [told] if isinstance(told, str) else told
        ends = product(entry.get("source", [""]), entry["destination"], protocols)
        for source, destination, protocol in ends:
            if {family_of(destination), family_of(source or destination)} == {family}:
                excluded = " ".join(sorted(entry.get("exclude_mac", [])))
                key = (_network(source), _network(destination), entry.get("in_interface", ""), protocol, excluded)
                found[key] = _joined([*found.get(key, []), *ports])
    return found


def declared_blocks(rules: Iterable[dict[str, Any]], family: str) -> list[Block]:
    """The rules of one family that iptables_mark makes of its option."""
    there = [(item["name"], item["mark"], item["mask"], traffic_of([item], family)) for item in rules]
    return [block for block in there if block[3]]


def _range(item: str) -> tuple[int, int]:
    low, _colon, high = item.partition(":")
    return int(low), int(high or low)


def _joined(ports: Ports) -> Ports:
    """In order, and as one where they touch: to packets that is the same."""
    found: Ports = []
    for low, high in sorted(ports):
        if found and low <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(high, found[-1][1]))
        else:
            found.append((low, high))
    return found


def _network(text: str) -> str:
    """As iptables-save prints it: everywhere is no condition."""
    return str(ip_network(text)) if text and ip_network(text).prefixlen else ""


def active_ftp(service: Service, family: str) -> set[str]:
    """The rules that masqueraded FTP needs, as iptables-save prints them."""
    if service.get("helper") != "ftp" or family not in families_of(service):
        return set()
    [vip] = [address for address in service["traffic"][0]["destination"] if family_of(address) == family]
    comment = f'-m comment --comment "lvs:{service["name"]}"'
    return {
        f"-A LVS-SNAT -s {_network(server['address'])} -p tcp -m tcp --sport 20 {comment} -j SNAT --to-source {vip}"
        for server in service["real_servers"]
        if server["forward_method"] == "masquerade" and family_of(server["address"]) == family
    }


def marked_pools(service: Service) -> dict[Key, list[str]]:
    """The lines of ipvsadm -Sn of an item of lvs_service, thresholds included, for each IPVS service that it has."""
    own = {
        family: [server for server in service["real_servers"] if family_of(server["address"]) == family]
        for family in FAMILIES
    }
    if "fwmark" not in service:
        return {
            address_words(*end): pool_lines(
                address_words(*end), family_of(end[1]), service, own[family_of(end[1])], end[2]
            )
            for end in ends(service)
        }
    return {
        words(family, service["fwmark"]): pool_lines(words(family, service["fwmark"]), family, service, own[family])
        for family in families_of(service)
    }


def ends(service: Service) -> list[tuple[str, str, int]]:
    """Protocol, address and port of what an item without fwmark is balanced by."""
    [entry] = service["traffic"]
    return list(product(entry["protocol"], entry["destination"], entry.get("ports", [0])))


def address_words(protocol: str, address: str, port: int) -> Key:
    option = {"tcp": "-t", "udp": "-u", "sctp": "--sctp-service"}[protocol]
    return f"{option} {endpoint(address, port)}"


def records(service: Service, family: str) -> set[str]:
    """The lines of iptables-save that say whose the services by address of an item are."""
    return {
        f"-A LVS-SERVICE -d {_network(address)} -p {protocol}{f' -m multiport --dports {port}' if port else ''}"
        f' -m comment --comment "lvs:{service["name"]}"'
        for protocol, address, port in (ends(service) if "fwmark" not in service else ())
        if family_of(address) == family
    }


def unrecorded(snapshot: Snapshot) -> set[Key]:
    """The services by address that nothing says the owner of."""
    found = {line.split(" -s ")[0][3:] for line in snapshot.services() if re.match("-A -(t|u|-sctp)", line)}
    for family in FAMILIES:
        for line in snapshot.own_rules(family):
            said = shlex.split(line)
            option = dict(pairwise(said))
            if said[:2] == ["-A", "LVS-SERVICE"] and option.get("--comment", "").startswith("lvs:"):
                end = (option["-p"], option["-d"].partition("/")[0], int(option.get("--dports", 0)))
                found.discard(address_words(*end))
    return found


def address_pool(service: Service) -> list[str]:
    """The lines of a service by address, as ipvs_service takes it."""
    address, port = service["address"], service["port"]
    head = address_words(service["protocol"], address, port)
    return pool_lines(head, family_of(address), service, service["real_servers"], port)


def pool_lines(head: str, family: str, service: Service, servers: Sequence[dict[str, Any]], port: int = 0) -> list[str]:
    return [
        f"-A {head} -s {service['scheduler']}{_settings(service, family)}",
        *(
            f"-a {head} -r {endpoint(server['address'], server.get('port', port))} {_server(server)}"
            for server in servers
        ),
    ]


def endpoint(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _settings(service: Service, family: str) -> str:
    text = ""
    if seconds := service.get("persistence_timeout"):
        text += f" -p {seconds}"
        if family == "ipv6" and (length := service.get("persistence_netmask6", 128)) != 128:
            text += f" -M {length}"
        mask = ip_network(f"0.0.0.0/{service.get('persistence_netmask', 32)}")
        if family == "ipv4" and mask.prefixlen != 32:
            text += f" -M {mask.netmask}"
    text += f" --pe {engine}" if (engine := service.get("persistence_engine")) else ""
    text += " -o" if service.get("one_packet") else ""
    flags = ",".join(service.get("scheduler_flags", []))
    return without_third_flag(f"{text} -b {flags}" if flags else text)


def without_third_flag(line: str) -> str:
    """ipvsadm has no word for the third flag of mh, and leaves it out."""
    return line.replace("mh-fallback,flag-3", "mh-fallback")


def _server(server: dict[str, Any]) -> str:
    text = f"{METHOD[server['forward_method']]} -w {server['weight']}"
    text += f" -x {server['upper_threshold']}" if server["upper_threshold"] else ""
    text += f" -y {server['lower_threshold']}" if server["lower_threshold"] else ""
    if server["forward_method"] == "tunnel":
        kind = server.get("tunnel_type", "ipip")
        text += f" --tun-type {kind}" + (f" --tun-port {server['tunnel_port']}" if kind == "gue" else "")
        text += f" --tun-{server.get('tunnel_checksum', 'nocsum')}" if kind != "ipip" else ""
    return text


# -- observed -----------------------------------------------------------------------------------------------------


def blocks(snapshot: Snapshot, family: str, chain: str = CHAIN) -> list[Block]:
    """Our rules in their order, those of one name and mark together, from the words of iptables-save."""
    found: list[Block] = []
    for line in snapshot.own_rules(family, chain):
        said = shlex.split(line)
        option = dict(pairwise(said))
        name = option.get("--comment", "")
        if not line.startswith(f"-A {chain} ") or not name.startswith("lvs:"):
            continue
        mark, mask = (int(number, 16) for number in option.get("--set-xmark", "0/0").split("/"))
        head = (name.removeprefix("lvs:"), mark, mask)
        if not found or found[-1][:3] != head:
            found.append((*head, {}))
        excluded = " ".join(address for word, address in pairwise(said) if word == "--mac-source")
        key = (*(option.get(word, "") for word in ("-s", "-d", "-i", "-p")), excluded)
        ports = option.get("--dports") or option.get("--dport")
        more = list(map(_range, ports.split(","))) if ports else ANY_PORT
        found[-1][3][key] = _joined([*found[-1][3].get(key, []), *more])
    return found


def lone_marks(snapshot: Snapshot) -> set[Key]:
    """Marks that our rules give to packets while there is no service for them."""
    lines = snapshot.services()
    return {
        words(family, mark)
        for family in FAMILIES
        for _name, mark, _mask, traffic in blocks(snapshot, family)
        if any(source not in NOWHERE for source, *_rest in traffic)
        if not any(f"{line} ".startswith(f"-A {words(family, mark)} -s") for line in lines)
    }


def words(family: str, mark: int) -> str:
    """A service by its mark, to ipvsadm."""
    return f"-f {mark}{' -6' if family == 'ipv6' else ''}"


# -- the model ----------------------------------------------------------------------------------------------------


@dataclass
class Model:
    """What lvs_service has to have made of a router, run after run."""

    services: dict[str, Service] = field(default_factory=dict)
    pools: dict[Key, list[str]] = field(default_factory=dict)
    declared: list[str] = field(default_factory=list)

    def present(self, services: Sequence[Service], purge: str) -> None:
        names = [service["name"] for service in services]
        managed = set(names) if purge == "none" else set(self.services)
        before = self._given(managed)
        left = {name: service for name, service in self.services.items() if name not in {*managed, *names}}
        self.services = {**left, **{service["name"]: service for service in services}}
        self.declared = names
        gone = set(self.pools) if purge == "all" else before - self._given(self.services)
        self._drop(gone)
        for service in services:
            self.pools.update(marked_pools(service))

    def absent(self, services: Sequence[Service]) -> None:
        names = {service["name"] for service in services}
        marks = {words(family, service["fwmark"]) for service in services if "fwmark" in service for family in FAMILIES}
        self._drop(marks | self._given(names))
        self.services = {name: service for name, service in self.services.items() if name not in names}
        self.declared = [name for name in self.declared if name in self.services]

    def _given(self, names: Iterable[str]) -> set[Key]:
        known = [self.services[name] for name in names if name in self.services]
        return {key for service in known for key in marked_pools(service)}

    def _drop(self, gone: set[Key]) -> None:
        self.pools = {key: lines for key, lines in self.pools.items() if key not in gone}

    def lone_marks(self) -> set[Key]:
        """A service that was removed by its mark, while another name gives that as well: so it was asked for."""
        return {key for key in self._given(self.services) - self.pools.keys() if key.startswith("-f ")}

    def agrees_with(self, snapshot: Snapshot) -> None:
        """Our half of the router, in both tools, is what it should be; what is not ours is for others to compare."""
        for family in FAMILIES:
            found, wanted = blocks(snapshot, family), self._blocks(family)
            assert merged(found) == merged(wanted)
            names, declared = ([block[0] for block in some if block[0] in self.declared] for some in (found, wanted))
            assert [name for name, _same in groupby(names)] == sorted(declared, key=self.declared.index)
            lines = snapshot.own_rules(family)
            ftp = {line for service in self.services.values() for line in active_ftp(service, family)}
            assert {line for line in lines if line.startswith("-A LVS-SNAT ")} == ftp
            recorded = {line for service in self.services.values() for line in records(service, family)}
            assert {line for line in lines if line.startswith("-A LVS-SERVICE ")} == recorded
            assert lines.count(f"-A PREROUTING -j {CHAIN}") == any(line.startswith(f"-A {CHAIN} ") for line in lines)
        assert services_of(snapshot, list(self.pools)) == sorted(
            line for lines in self.pools.values() for line in lines
        )
        assert lone_marks(snapshot) == self.lone_marks()

    def _blocks(self, family: str) -> list[Block]:
        marked = (service for service in self.services.values() if "fwmark" in service)
        there = ((service, traffic_of(service["traffic"], family)) for service in marked)
        return [(service["name"], service["fwmark"], FULL, traffic) for service, traffic in there if traffic]


def merged(found: Iterable[Block]) -> dict[tuple[str, int, int], Traffic]:
    """Blocks without their order."""
    total: dict[tuple[str, int, int], Traffic] = {}
    for *head, traffic in found:
        there = total.setdefault(tuple(head), {})
        for key, ports in traffic.items():
            there[key] = _joined([*there.get(key, []), *ports])
    return total


def services_of(snapshot: Snapshot, own: Sequence[str], others: bool = False) -> list[str]:
    """Those lines of ipvsadm that are about one of these services; or all the others."""
    heads = tuple(start for head in own for start in (f"-A {head} -s ", f"-a {head} -r "))
    return [line for line in snapshot.services() if line.startswith(heads) is not others]
