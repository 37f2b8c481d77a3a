# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""lvs_service and lvs_info with marks by nftables, on the fake kernel."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.lvs.fleet.plugins.module_utils._errors import ParseError
from ansible_collections.lvs.fleet.plugins.module_utils._model import Chain
from ansible_collections.lvs.fleet.plugins.module_utils._nft_listing import parse_listing
from ansible_collections.lvs.fleet.plugins.modules import lvs_info, lvs_service
from ansible_collections.lvs.fleet.tests.unit.fake_kernel import FakeKernel
from ansible_collections.lvs.fleet.tests.unit.running import kernel_with, quartet, run_module
from ansible_collections.lvs.fleet.tests.unit.strategies import declared_services, states

WEB = {
    "name": "web",
    "fwmark": 80,
    "traffic": [
        {"destination": ["192.0.2.10"], "protocol": ["tcp"], "ports": [80, 443]},
        {"destination": ["192.0.2.10"], "protocol": ["tcp"], "ports": ["8000:8010"], "in_interface": "eth+"},
    ],
    "scheduler": "wlc",
    "real_servers": [{"address": "10.0.0.11", "weight": 1, "forward_method": "direct"}],
}
FTP = {
    "name": "ftp",
    "fwmark": 21,
    "traffic": [{"destination": ["192.0.2.11"], "protocol": ["tcp"], "ports": [20, 21, "10000:10100"]}],
    "scheduler": "wlc",
    "persistence_timeout": 300,
    "real_servers": [{"address": "10.0.0.21", "weight": 1, "forward_method": "masquerade"}],
    "helper": "ftp",
}
MAKE = [
    "nft add table ip lvs-mark",
    "nft add map ip lvs-mark exact { type ipv4_addr . inet_proto . inet_service : mark; }",
    "nft add map ip lvs-mark ranges { type ipv4_addr . inet_proto . inet_service : mark; flags interval; }",
    "nft add set ip lvs-mark retired { type mark; }",
    "nft add chain ip lvs-mark conditional",
    "nft add chain ip lvs-mark prerouting { type filter hook prerouting priority -149; policy accept; }",
    "nft add rule ip lvs-mark prerouting meta mark set ip daddr . meta l4proto . th dport map @exact "
    'goto conditional comment "lvs exact"',
    "nft add rule ip lvs-mark prerouting meta mark set ip daddr . meta l4proto . th dport map @ranges "
    'comment "lvs ranges"',
    'nft add rule ip lvs-mark prerouting jump conditional comment "lvs conditional"',
]
ENTRIES = [
    'element ip lvs-mark exact { 192.0.2.10 . tcp . 80 comment "lvs:web" : 0x50 }',
    'element ip lvs-mark exact { 192.0.2.10 . tcp . 443 comment "lvs:web" : 0x50 }',
    'rule ip lvs-mark conditional iifname "eth*" ip daddr 192.0.2.10/32 meta l4proto tcp th dport { 8000-8010 } '
    'meta mark set 0x50 comment "lvs:web"',
]


def test_from_nothing_and_back() -> None:
    kernel = FakeKernel()
    nothing = kernel.snapshot()
    done = quartet(lvs_service, kernel, services=[WEB], marking="nftables")
    ipvs = ["ipvsadm -A -f 80 -s wlc", "ipvsadm -a -f 80 -r 10.0.0.11 -g -w 1"]
    assert done["operations"] == [*ipvs, *MAKE, *(f"nft add {entry}" for entry in ENTRIES)]
    assert done["diff"]["after"].splitlines()[:4] == ["# ipv4, nftables", *ENTRIES]
    quartet(lvs_service, kernel, services=[{"name": "web", "fwmark": 80}], state="absent", marking="nftables")
    assert kernel.snapshot() == nothing


def test_what_goes_is_on_record_until_its_service_is_gone() -> None:
    kernel = FakeKernel()
    run_module(lvs_service, kernel, services=[WEB, FTP], marking="nftables")
    done = quartet(lvs_service, kernel, services=[FTP], marking="nftables")
    forgotten = "nft delete element ip lvs-mark retired { 0x50 }"
    assert done["operations"][-2:] == ["ipvsadm -D -f 80", forgotten]
    assert 'nft add element ip lvs-mark retired { 0x50 comment "lvs:web" }' in done["operations"]


@pytest.mark.parametrize("gone, anew", [(99, False), (100, True)])
def test_a_table_that_loses_many_ranges_is_made_anew(gone: int, anew: bool) -> None:
    """The kernel would look through all ranges for each of them."""
    kernel = FakeKernel()
    ports = [f"{10 * number}:{10 * number + 5}" for number in range(1, gone + 2)]
    many = {"name": "many", "fwmark": 9, "traffic": [{"destination": ["192.0.2.9"], "protocol": "udp", "ports": ports}]}
    run_module(lvs_service, kernel, services=[many], marking="nftables")
    few = {**many, "traffic": [{**many["traffic"][0], "ports": ports[:1]}]}
    operations = quartet(lvs_service, kernel, services=[few], marking="nftables")["operations"]
    assert ("nft delete table ip lvs-mark" in operations) == anew
    assert len([line for line in operations if line.startswith("nft delete element")]) == (0 if anew else gone)


def test_the_rules_of_ftp_stay_with_iptables() -> None:
    kernel = FakeKernel()
    quartet(lvs_service, kernel, services=[FTP], marking="nftables")
    assert "LVS-MARK" not in kernel.mangle["ipv4"].chains
    assert len(kernel.nat["ipv4"].chains["LVS-SNAT"]) == 1
    assert run_module(lvs_info, kernel)["services"] == [FTP]


@given(states(), declared_services(), st.sampled_from(["none", "owned", "all"]))
def test_the_quartet_on_any_router(state: Any, services: list[dict[str, Any]], purge: str) -> None:
    quartet(lvs_service, kernel_with(state), services=services, purge=purge, marking="nftables")


@given(declared_services())
def test_what_info_tells_is_what_was_declared(services: list[dict[str, Any]]) -> None:
    """Fed back it changes nothing; a service that lost all its packets to others cannot be told."""
    kernel = FakeKernel()
    run_module(lvs_service, kernel, services=services, marking="nftables")
    told = run_module(lvs_info, kernel)
    for problem in told["problems"]:
        assert problem["kind"] in ("vip_not_local", "not_declarable"), problem
    if "not_declarable" not in {problem["kind"] for problem in told["problems"]}:
        again = run_module(lvs_service, kernel, services=told["services"], marking="nftables")
        assert again["operations"] == []


def test_a_table_that_does_not_look_up_its_entries_is_a_problem() -> None:
    kernel = FakeKernel()
    run_module(lvs_service, kernel, services=[WEB], marking="nftables")
    kernel.local = {"192.0.2.10"}
    assert run_module(lvs_info, kernel)["problems"] == []
    kernel.nft.tables["ip", "lvs-mark"].chains["prerouting"].pop()
    kernel.nft.run("add rule ip lvs-mark conditional ip saddr 10.0.0.1 counter")
    told = [problem["message"] for problem in run_module(lvs_info, kernel)["problems"]]
    assert told[0] == "the ipv4 nftables table lvs-mark lacks rules that look its entries up, or has others"
    assert told[1].startswith(
        "a rule in our ipv4 chain conditional that is not ours: rule ip lvs-mark conditional handle "
    )
    assert len(told) == 2


def test_a_mark_by_nftables_is_not_missed_by_its_service() -> None:
    kernel = FakeKernel()
    run_module(lvs_service, kernel, services=[WEB], marking="nftables")
    del kernel.nft.tables["ip", "lvs-mark"]
    assert [found["kind"] for found in run_module(lvs_info, kernel)["problems"]] == ["service_without_mark"]


def test_adoption_is_for_iptables() -> None:
    answer = run_module(lvs_service, FakeKernel(), services=[WEB], marking="nftables", adopt=True)
    assert answer["failed"]
    assert answer["msg"] == "adopt: is for marking iptables: take the rules over first, and change marking then"


def test_reading_does_not_load_nf_tables() -> None:
    """The fake nft refuses to be asked in check mode while asking would load it; the run itself may load it."""
    kernel = FakeKernel(backend="legacy")
    kernel.modules.clear()
    kernel.loadable_modules.add("nf_tables")
    told = run_module(lvs_service, kernel, check=True, services=[WEB], marking="nftables")
    assert told["operations"][2:3] == MAKE[:1]
    assert run_module(lvs_info, kernel)["problems"] == []


def test_a_router_without_nft() -> None:
    """With iptables it is not missed; with nftables it is named before anything is done."""
    kernel = FakeKernel()
    kernel.installed.remove("nft")
    quartet(lvs_service, kernel, services=[FTP])
    before = kernel.snapshot()
    answer = run_module(lvs_service, kernel, services=[WEB], marking="nftables")
    assert answer["msg"] == "nft: exit status 127: it is not installed"
    assert kernel.snapshot() == before


@pytest.mark.parametrize("text", ["{", "[]", '{"nftables": [{"map": {}}, {"rule": {}}]}', '{"nftables": [7]}'])
def test_a_listing_that_is_none(text: str) -> None:
    with pytest.raises(ParseError, match="nft -j list table ip lvs-mark: it is not understood"):
        parse_listing(text, "ipv4")


def test_no_listing_is_no_table() -> None:
    assert parse_listing("", "ipv4") == Chain()
