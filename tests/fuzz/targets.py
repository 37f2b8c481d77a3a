# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is tried with any bytes at all: each target ends without a word, or with what is wrong with the product.

Readers of what users write take plausible input, spoiled here and there; their answer is a declaration of which nothing
but harmless text reaches a tool, or a list of problems with paths. Readers of what tools and the kernel say start from
recorded answers; theirs is a value that can be written again, or an LvsError.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any
from unittest.mock import patch

from ansible.errors import AnsibleFilterError

from ansible_collections.lvs.fleet.plugins.filter.fleet import FilterModule
from ansible_collections.lvs.fleet.plugins.module_utils import _host
from ansible_collections.lvs.fleet.plugins.module_utils._boot import files as _files
from ansible_collections.lvs.fleet.plugins.module_utils._boot import parts as _parts
from ansible_collections.lvs.fleet.plugins.module_utils._declared import params as _params
from ansible_collections.lvs.fleet.plugins.module_utils._declared.options import show
from ansible_collections.lvs.fleet.plugins.module_utils._errors import LvsError, ParseError, ValidationError
from ansible_collections.lvs.fleet.plugins.module_utils._ip.objects import plan
from ansible_collections.lvs.fleet.plugins.module_utils._ip.words import ip_object, ip_objects, queries
from ansible_collections.lvs.fleet.plugins.module_utils._ipvs import wire
from ansible_collections.lvs.fleet.plugins.module_utils._ipvs.ipvsadm import save_lines
from ansible_collections.lvs.fleet.plugins.module_utils._marks import iptables as _iptables
from ansible_collections.lvs.fleet.plugins.module_utils._marks import nftables as _nftables
from ansible_collections.lvs.fleet.plugins.module_utils._marks.foreign import strays
from ansible_collections.lvs.fleet.plugins.module_utils._marks.markmap import arranged
from ansible_collections.lvs.fleet.plugins.module_utils._marks.nft_listing import parse_listing
from ansible_collections.lvs.fleet.plugins.module_utils._model import (
    FAMILIES,
    MARKINGS,
    Chain,
    ChainId,
    MarkRule,
    Pool,
)
from ansible_collections.lvs.fleet.plugins.module_utils._netlink import machine as sockets
from ansible_collections.lvs.fleet.plugins.module_utils._netlink import messages
from ansible_collections.lvs.fleet.plugins.module_utils._real_server.mss import mss_text, segments
from ansible_collections.lvs.fleet.plugins.module_utils._report import conflicts as _conflicts
from ansible_collections.lvs.fleet.plugins.module_utils._report import report as _report
from ansible_collections.lvs.fleet.plugins.module_utils._router import Router
from ansible_collections.lvs.fleet.plugins.module_utils._way import machine as _on_way
from ansible_collections.lvs.fleet.plugins.module_utils._way import troubles as _troubles
from ansible_collections.lvs.fleet.plugins.module_utils._way.iptables import hooks, saved_rules
from ansible_collections.lvs.fleet.plugins.module_utils._way.walk import Follower
from ansible_collections.lvs.fleet.tests.fuzz.hostile import Choices
from ansible_collections.lvs.fleet.tests.fuzz.texts import check_ipvsadm, check_nft, check_problems, rules_in
from ansible_collections.lvs.fleet.tests.unit.fake_nft import Nft
from ansible_collections.lvs.fleet.tests.unit.recording import FIXTURES, RECORDED

FILTERS = FilterModule().filters()
CHAINS = (*_iptables.mark_chains(), *_iptables.snat_chains())
IP_ANSWERS: dict[str, Any] = json.loads((FIXTURES / "ip.json").read_text(encoding="ascii"))


@dataclass(frozen=True)
class Target:
    """Something to try, and bytes to start from."""

    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]


# -- what users write ---------------------------------------------------------------------------------------------

SERVICES: list[dict[str, Any]] = [
    {
        "name": "web",
        "fwmark": 80,
        "traffic": [
            {"destination": ["192.0.2.10", "2001:db8::10"], "protocol": ["tcp", "udp"], "ports": [80, "8000:8010"]},
            {"destination": "203.0.113.0/24", "protocol": "sctp", "source": ["10.0.0.0/8"], "in_interface": "eth+",
             "exclude_mac": ["52:54:00:00:00:01"]},
        ],
        "scheduler": "sh",
        "scheduler_flags": ["sh-port"],
        "persistence_timeout": 300,
        "persistence_netmask": 24,
        "persistence_netmask6": 64,
        "persistence_engine": "sip",
        "one_packet": False,
        "real_servers": [
            {"address": "10.0.0.11", "weight": 5, "upper_threshold": 9, "lower_threshold": 5},
            {"address": "2001:db8:1::11", "forward_method": "tunnel", "tunnel_type": "gue", "tunnel_port": 6080,
             "tunnel_checksum": "remcsum"},
        ],
    },
    {
        "name": "ftp",
        "fwmark": "0x15",
        "traffic": [{"destination": "192.0.2.11", "protocol": "tcp", "ports": [20, 21, "10000:20000"]}],
        "persistence_timeout": 60,
        "helper": "ftp",
        "forward_method": "masquerade",
        "real_servers": [{"address": "10.0.0.21"}],
    },
]  # fmt: skip
RULES: list[dict[str, Any]] = [
    {"name": entry["name"], "mark": 80, "mask": 0xFF, **traffic} for entry in SERVICES for traffic in entry["traffic"]
]
IPVS: list[dict[str, Any]] = [
    {"fwmark": 80, "family": "ipv6", "scheduler": "mh", "real_servers": [{"address": "2001:db8:1::1", "weight": 0}]},
    {"protocol": "tcp", "address": "192.0.2.10", "port": 80, "persistence_timeout": 300, "persistence_netmask": 24,
     "real_servers": [{"address": "10.0.0.1", "port": 8080, "forward_method": "masquerade"},
                      {"address": "2001:db8:1::1", "forward_method": "tunnel", "tunnel_type": "gre"}]},
    {"protocol": "udp", "address": "2001:db8::10", "port": 0, "persistence_timeout": 1, "one_packet": True},
]  # fmt: skip


def taken(read: Callable[[], Any], path: str) -> Any:
    """What a reader makes of its input; None if it was refused, as it should be."""
    try:
        return read()
    except ValidationError as error:
        check_problems(error.problems, path)
        return None


def virtual_services(data: bytes) -> None:
    choices = Choices(data)
    absent, marking = bool(choices.number(4) == 3), choices.one(MARKINGS)
    given = choices.spoiled(SERVICES)
    declared = taken(lambda: _params.virtual_services(given, absent=absent), "services")
    needs = FILTERS["router"](given, "eth0", 100, "services", marking)
    if needs["problems"]:
        check_problems(needs["problems"], "services")
        assert declared is None or absent
        return
    assert declared is not None
    check_pools(declared.pools)
    check_ipvsadm(needs["ipvs_rules"].splitlines())
    check_nft(needs["nftables_marks"].splitlines())
    own = _params.virtual_services(given)
    for family in FAMILIES:
        rules = [rule for rule in (*own.rules, *own.snat_rules) if rule.family == family]
        by_iptables = [rule for rule in rules if marking == "iptables" or not isinstance(rule, MarkRule)]
        assert rules_in(needs["marks"][family]) == len(by_iptables)
    assert [ip_object(command).add for command in needs["vip_commands"]] == needs["vip_commands"]
    assert all(module.replace("_", "").isalnum() and module.isascii() for module in needs["kernel_modules"])
    single = {rule.destination for rule in own.rules if ip_network(rule.destination).num_addresses == 1}
    addresses = [command for command in needs["vip_commands"] if command.startswith("address ")]
    assert {ip_object(command).identity[1] for command in addresses} == {vip.partition("/")[0] for vip in single}


def check_pools(pools: Mapping[Any, Pool]) -> None:
    """All that the kernel is told is what it would report, and what ipvsadm -R would be told is harmless."""
    check_ipvsadm(save_lines(pools))
    for pool in pools.values():
        service = messages.nested(messages.attributes(wire.encode_service(pool.service)), wire.ATTR_SERVICE)
        assert wire.decode_service(service) == pool.service
        for server in pool.real_servers.values():
            told = messages.nested(messages.attributes(wire.encode_real_server(server)), wire.ATTR_DEST)
            assert wire.decode_real_server(told, "ipv4") == server


def mark_rules(data: bytes) -> None:
    choices = Choices(data)
    absent, chain_name = bool(choices.number(4) == 3), choices.spoiled("LVS-MARK")
    given = choices.spoiled(RULES)
    declared = taken(lambda: _params.marks(given, absent=absent), "rules")
    name = taken(lambda: _params.chain_of(chain_name), "chain")
    assert name is None or (name.isascii() and len(name) <= 28 and name.replace("-", "_").isidentifier())
    for chain_id in _iptables.mark_chains() if declared else ():
        own = tuple(_iptables.chain_rule(rule) for rule in declared.rules if rule.family == chain_id.family)
        edit = _iptables.edit_chain(chain_id, Chain(), Chain().with_rules(own))
        assert not own or (edit and rules_in(_iptables.transaction("mangle", edit.lines)) == len(own))


def ipvs_services(data: bytes) -> None:
    choices = Choices(data)
    absent = bool(choices.number(4) == 3)
    given = choices.spoiled(IPVS)
    declared = taken(lambda: _params.ipvs_services(given, absent=absent), "services")
    if declared:
        check_pools(declared.pools)


def mss_segments(data: bytes) -> None:
    given = Choices(data).spoiled({"192.0.2.10": 1440, "2001:db8::10": "1400"})
    sizes = taken(lambda: segments(given), "segments")
    assert not sizes or sum(rules_in(mss_text(sizes, family)) for family in FAMILIES) == len(sizes)


LINKS = IP_ANSWERS["address show"]
SETTINGS = {
    "addresses": ["10.0.0.11", "2001:db8:1::11", "10.0.0.21"],
    "vip_interface": "dummy0",
    "gateways": ["10.0.0.1", "2001:db8:0:1::1"],
    "gateway_table": 110,
    "mtu": 1500,
}


def real_server(data: bytes) -> None:
    choices = Choices(data)
    settings = choices.spoiled(SETTINGS)
    settings = {str(key): value for key, value in settings.items()} if isinstance(settings, dict) else {}
    services = choices.spoiled(SERVICES)
    links = choices.spoiled(LINKS) if choices.number(3) == 2 else LINKS
    try:
        needs = FILTERS["real_server"](services, links, **settings)
    except AnsibleFilterError as error:
        assert str(error), "a refusal without a word"
        return
    except TypeError as error:
        assert "multiple values for argument" in str(error), error
        return
    assert [ip_object(command).add for command in needs["commands"]] == needs["commands"]
    for family in FAMILIES:
        rules_in(FILTERS["mss_rules"](needs["segments"], family))
    if links is LINKS:
        names = [*needs["sysctls"], *needs["device_sysctls"]]
        assert all(name.replace("/", "").replace("_", "").replace("-", "").isalnum() for name in names), names


FILES = [
    {"path": "/etc/lvs/x", "content": "text\n", "mode": "0600"},
    {"path": "/etc/default/ipvsadm", "content": 'AUTO="true"\n', "mode": "0644"},
]


def text_of(choices: Choices, plausible: str) -> str:
    value = choices.spoiled(plausible)
    return value if isinstance(value, str) else show(value)


def files(data: bytes) -> None:
    """With the types that Ansible sees to."""
    choices = Choices(data)
    options: dict[str, Any] = {
        "files": [
            {**{key: text_of(choices, text) for key, text in file.items()}, "part": choices.one([None, *_parts.KINDS])}
            for file in FILES
        ],
        "enabled_units": [text_of(choices, "lvs-restore.service")],
        "disabled_units": [],
        "absent": [text_of(choices, "/etc/lvs")],
    }
    try:
        _files.check(options)
    except ValidationError as error:
        for problem in error.problems:
            assert problem.startswith(("files[", "enabled_units[", "absent[")) and problem.isprintable(), problem
        return
    for file in options["files"]:
        assert 0 <= int(file["mode"], 8) <= 0o777
        assert b"\0" not in os.fsencode(file["path"])
        file["content"].encode("utf-8", "surrogateescape")
    _files.wanted(options["files"], {file["path"]: "" for file in options["files"]})
    assert all("/" not in unit and unit.isascii() and unit.isprintable() for unit in options["enabled_units"])


COMMANDS = [
    *FILTERS["vip_commands"](SERVICES, "eth0", 100),
    *FILTERS["real_server"](SERVICES, LINKS, **SETTINGS)["commands"],
]


def ip_commands(data: bytes) -> None:
    given = data.decode("utf-8", "replace").split("\n") if data[:1].isalnum() else Choices(data).spoiled(COMMANDS)
    found = taken(lambda: ip_objects(given if isinstance(given, list) else [given]), "commands")
    for each in found or ():
        assert each.add.isascii() and each.add.isprintable() and '"' not in each.add
        assert ip_object(each.add) == each and ip_object(each.add).add == each.add


# -- what tools and the kernel say --------------------------------------------------------------------------------


def as_json(value: Any) -> str:
    try:
        return json.dumps(value, skipkeys=True, default=str)
    except (ValueError, RecursionError):
        return "[" * 3000


def saved_table(data: bytes) -> None:
    """The output of iptables-save. Rules of ours can be written again as they were read, whatever is in their names."""
    saved = data.decode("utf-8", "replace")
    _conflicts.firewalls(dict.fromkeys(FAMILIES, saved))
    _iptables.marks_given(saved)
    family = FAMILIES[len(data) % 2]
    table = _iptables.parse_table(saved, family)
    for chain_id in [chain_id for chain_id in CHAINS if chain_id.family == family]:
        with suppress(ParseError):
            chain = _iptables.parse_chain(saved, chain_id)
            own = [line for line in saved.split("\n") if line.startswith(f"-A {chain_id.name} ")]
            assert [f"-A {chain_id.name} {rule.text}" for rule in chain.rules] == own
            check_rereadable(chain, family)
            meant = [rule.meaning for rule in chain.rules if isinstance(rule.meaning, MarkRule)]
            strays(table, chain_id, meant)
            list(_conflicts.duplicates(table, chain_id, meant))
            check_way(saved, chain_id, chain, meant)
            edit = _iptables.edit_chain(chain_id, chain, Chain())
            assert not edit or not any("\n" in line for line in edit.lines)


def check_way(saved: str, chain_id: ChainId, chain: Chain, own: list[MarkRule]) -> None:
    found = hooks(saved_rules(saved), chain_id.family, own=[chain_id])
    up_to_ipvs, ours = _troubles.up_to_ipvs(found, {chain_id: chain}, chain_id.family)
    _troubles.mark_troubles(Follower(up_to_ipvs, ours), own, set(), set())


def check_rereadable(chain: Chain, family: str) -> None:
    for rule in chain.rules:
        if isinstance(rule.meaning, MarkRule) and rule.meaning.family == family:
            written = _iptables.chain_rule(rule.meaning)
            assert _iptables.parse_rule(written.text, family) == written == rule, rule
        if rule.name and rule.mark:
            record = _iptables.chain_rule(_iptables.retired(rule.name, rule.mark, family))
            assert _iptables.parse_rule(record.text, family) == record, rule


PARTS = {
    _parts.IPTABLES: FILTERS["marks"](SERVICES, "ipv4"),
    _parts.IPVSADM: FILTERS["ipvs_rules"](SERVICES),
    _parts.SETTINGS: 'AUTO="true"\n',
}


def shared_files(data: bytes) -> None:
    """Files that others write, too: our part is put in once, and taken out again."""
    text = data.decode("utf-8", "replace")
    for kind, part in PARTS.items():
        with suppress(ParseError):
            _parts.merge(kind, text, "")
            merged = _parts.merge(kind, text, part)
            assert merged and _parts.merge(kind, merged, part) == merged
        with suppress(ParseError):
            _parts.check(kind, text)
            _parts.merge(kind, None, text)


def _listings() -> list[Any]:
    nft = Nft()
    nft.run(FILTERS["router"](SERVICES, marking="nftables")["nftables_marks"])
    return [nft.listing(family, "lvs-mark") for family in ("ip", "ip6")]


LISTINGS = _listings()


def nft_listing(data: bytes) -> None:
    """The output of nft -j. What is ours can be arranged and written again."""
    choices = Choices(data)
    text = data[:1] in (b"", b"{", b"[")
    listed = data.decode("utf-8", "replace") if text else as_json(choices.spoiled(choices.one(LISTINGS)))
    for chain_id in _nftables.nftables_chains():
        with suppress(LvsError):
            chain = parse_listing(listed, chain_id.family)
            own = [rule.meaning for rule in chain.rules if isinstance(rule.meaning, MarkRule)]
            for rule in own:
                assert _nftables.words(rule).count('"') % 2 == 0 and "\n" not in _nftables.words(rule), rule
            arranged(own)
            _nftables.edit_table(chain_id, chain, Chain())


POLICY_RULES = [{"priority": 1, "fwmark": "0x50", "fwmask": "0xff", "table": "100", "dst": "192.0.2.10"}]


def ip_answers(data: bytes) -> None:
    """What ip says in JSON, recorded and spoiled."""
    choices = Choices(data)
    wanted = ip_objects(COMMANDS[: choices.number(len(COMMANDS))])
    with suppress(LvsError):
        there = []
        for query in queries(wanted):
            answer = choices.spoiled(IP_ANSWERS.get(" ".join(query.words), LINKS))
            there += query.read(answer)
        plan(wanted, [], there)
    said = data.decode("utf-8", "replace") if choices.number(2) else as_json(choices.spoiled(POLICY_RULES))
    with (
        patch.object(_host, "installed", lambda _tool: "/sbin/ip"),
        patch.object(_host, "attempt", lambda _argv: (0, said, "")),
    ):
        with suppress(LvsError):
            _on_way.routing_rules()
        with suppress(LvsError):
            local = _on_way.local_routes([("ipv4", "100")])
            caught = [({"family": "ipv4", "table": "100", "priority": 1}, MarkRule("web", 80, "192.0.2.10/32"))]
            _conflicts.policy_problems(caught, local, {}, {})


class Kernel:
    """A netlink socket whose every answer is the fuzzer's, with the number that was asked for, and then an end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._answers: list[bytes] = []

    def __call__(self, *_arguments: Any) -> Kernel:
        return self

    def _ignored(self, *_arguments: Any) -> None:
        """What needs no answer."""

    settimeout = setsockopt = bind = close = _ignored

    def send(self, data: bytes) -> None:
        sequence = data[8:12]
        answer = bytearray(self._data)
        place = 0
        while place + 16 <= len(answer):
            answer[place + 8 : place + 12] = sequence
            place += max(16, (struct.unpack_from("=I", answer, place)[0] + 3) & ~3)
        done = struct.pack("=IHH4sIi", 20, messages.NLMSG_DONE, 0, sequence, 0, 0)
        self._answers = [bytes(answer), done]

    def recv_into(self, buffer: memoryview) -> int:
        if not self._answers:
            raise TimeoutError
        answer = self._answers.pop(0)[: len(buffer)]
        buffer[: len(answer)] = answer
        return len(answer)


def netlink(data: bytes) -> None:
    """Answers of the kernel, as messages and as what a router makes of them."""
    for decode in (wire.decode_service, wire.decode_daemon, wire.decode_timeouts, wire.decode_connections):
        with suppress(ParseError):
            decode(messages.attributes(data))
    with suppress(ParseError):
        wire.decode_real_server(messages.attributes(data), "ipv4")
    with patch.object(sockets.socket, "socket", Kernel(data)), suppress(LvsError):
        router = Router((), ipvs=True)
        router.ipvs._socket.family = router.ipvs._socket.family or 28
        for ask in (
            router.read,
            lambda: _report.counters_of(router.ipvs.entries()),
            router.ipvs.timeouts,
            router.ipvs.daemons,
        ):
            with suppress(LvsError):
                ask()
        router.ipvs._socket.request([(wire.CMD_NEW_SERVICE, b"")])


# -- all of them --------------------------------------------------------------------------------------------------


# Bytes that choose much and little.
_CHOICES = (b"", bytes(range(256)), bytes(range(255, -1, -1)), b"\3\0\1\2" * 64, b"\0\1\3\7\5\1\1\2" * 32)


def _fixtures(*names: str) -> tuple[bytes, ...]:
    return tuple((FIXTURES / name).read_bytes() for name in names)


def _shared_seeds() -> tuple[bytes, ...]:
    merged = (_parts.merge(kind, "", part) or "" for kind, part in PARTS.items())
    return (*_fixtures("mangle-foreign.txt", "mangle-own.txt"), *(text.encode() for text in merged))


def _saved_seeds() -> tuple[bytes, ...]:
    odd = '*mangle\n:LVS-MARK - [0:0]\n-A LVS-MARK -d 192.0.2.1/32 -i "a b" -m comment --comment "lvs:a \\"b\\"\x0c'
    texts = (f'{odd}-A LVS-MARK -j X" -j MARK --set-xmark 0x5/0xffffffff\nCOMMIT\n', *PARTS.values())
    return (*_fixtures("mangle-foreign.txt", "mangle-own.txt", "mangle-truncated.txt"), *map(str.encode, texts))


def _listing_seeds() -> tuple[bytes, ...]:
    port = {"concat": ["192.0.2.1", "tcp", float("inf")]}
    infinite = {"nftables": [{"map": {"name": "exact", "elem": [[port, 1]]}}]}
    texts = [as_json(listing) for listing in (*LISTINGS, infinite)]
    odd_interface = texts[0].replace('"eth*"', '"eth\\n0"')
    return (*map(str.encode, (*texts, odd_interface)), b"[" * 3000, *_CHOICES)


def _netlink_seeds() -> tuple[bytes, ...]:
    """Each message of what was recorded by itself, and the entries in them without their headers."""
    exchanges = [
        *RECORDED["families"],
        *(one for kind in ("listing", "timeouts", "daemons") for one in RECORDED[kind]["exchanges"]),
    ]
    seeds = {}
    for reply in [bytes.fromhex(reply) for exchange in exchanges for reply in exchange["replies"]]:
        (size,) = struct.unpack_from("=I", reply)
        seeds.update(dict.fromkeys((reply[:size], reply[24:size])))
    empty = messages.attribute(wire.DEST_TUN_TYPE, b"") + messages.attribute(wire.DAEMON_TTL, b"")
    return (*seeds, messages.attribute(wire.DEST_METHOD, struct.pack("=I", 2)) + empty)


TARGETS = {
    "virtual_services": Target(virtual_services, _CHOICES),
    "mark_rules": Target(mark_rules, _CHOICES),
    "ipvs_services": Target(ipvs_services, _CHOICES),
    "mss_segments": Target(mss_segments, _CHOICES),
    "real_server": Target(real_server, _CHOICES),
    "files": Target(files, _CHOICES),
    "ip_commands": Target(ip_commands, (*_CHOICES, "\n".join(COMMANDS).encode())),
    "saved_table": Target(saved_table, _saved_seeds()),
    "shared_files": Target(shared_files, _shared_seeds()),
    "nft_listing": Target(nft_listing, _listing_seeds()),
    "ip_answers": Target(ip_answers, (*_CHOICES, json.dumps(LINKS).encode())),
    "netlink": Target(netlink, _netlink_seeds()),
}
