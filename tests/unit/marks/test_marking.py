# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""lvs_service and lvs_info with marks by nftables, on the fake kernel."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.lvs.fleet.plugins.module_utils._errors import ParseError
from ansible_collections.lvs.fleet.plugins.module_utils._marks.nft_listing import parse_listing
from ansible_collections.lvs.fleet.plugins.module_utils._model import Chain
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
    'rule ip lvs-mark conditional iifname "eth*" ip daddr 192.0.2.10/32 meta l4proto tcp th dport 8000-8010 '
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
def test_a_map_that_loses_many_ranges_is_made_anew(gone: int, anew: bool) -> None:
    """The kernel would look through all ranges for each of them. What stays is in another map meanwhile."""
    kernel = FakeKernel()
    ports = [f"{10 * number}:{10 * number + 5}" for number in range(1, gone + 2)]
    many = {"name": "many", "fwmark": 9, "traffic": [{"destination": ["192.0.2.9"], "protocol": "udp", "ports": ports}]}
    run_module(lvs_service, kernel, services=[many], marking="nftables")
    few = {**many, "traffic": [{**many["traffic"][0], "ports": ports[:1]}]}
    operations = quartet(lvs_service, kernel, services=[few], marking="nftables")["operations"]
    assert ("nft delete map ip lvs-mark ranges" in operations) == anew
    assert len([line for line in operations if line.startswith("nft delete element")]) == (0 if anew else gone)
    stays = '{ 192.0.2.9 . udp . 10-15 comment "lvs:many" : 0x9 }'
    assert (f"nft add element ip lvs-mark moving {stays}" in operations) == anew


def test_the_rules_of_ftp_stay_with_iptables() -> None:
    kernel = FakeKernel()
    quartet(lvs_service, kernel, services=[FTP], marking="nftables")
    assert "LVS-MARK" not in kernel.mangle["ipv4"].chains
    assert len(kernel.nat["ipv4"].chains["LVS-SNAT"]) == 1
    assert run_module(lvs_info, kernel)["services"] == [FTP]


def test_rules_of_both_families_are_told_in_their_order() -> None:
    """The first one of IPv6 is not behind the last one of IPv4."""
    kernel = FakeKernel()
    near = {"protocol": "tcp", "in_interface": "eth0"}
    services = [
        {"name": "web", "fwmark": 1, "traffic": [{"destination": ["192.0.2.10", "2001:db8::10"], **near}]},
        {"name": "dns", "fwmark": 2, "traffic": [{"destination": ["192.0.2.10"], **near, "source": ["10.0.0.0/8"]}]},
    ]
    run_module(lvs_service, kernel, services=services, marking="nftables")
    told = run_module(lvs_info, kernel)["services"]
    assert [service["name"] for service in told] == ["web", "dns"]


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
        assert problem["kind"] in ("vip_not_local", "not_declarable", "hidden"), problem
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


# -- services that see the same packets ---------------------------------------------------------------------------


def seeing(name: str, mark: int, destination: str, **traffic: Any) -> dict[str, Any]:
    return {"name": name, "fwmark": mark, "traffic": [{"destination": destination, "protocol": "tcp", **traffic}]}


NET = seeing("net", 1, "192.0.2.0/24")
PAIRS = {
    "a network in another": (NET, seeing("part", 2, "192.0.2.0/28")),
    "a range of ports": (NET, seeing("part", 2, "192.0.2.0/24", ports=["80:90"])),
    "the same key": (seeing("net", 1, "192.0.2.1", ports=[80]), seeing("part", 2, "192.0.2.1", ports=[80])),
    "all that the other has": (seeing("net", 1, "192.0.2.1", ports=[80]), seeing("part", 2, "192.0.2.0/24")),
    "a conditional one below": (seeing("net", 1, "192.0.2.0/24", in_interface="eth0"), seeing("part", 2, "192.0.2.1")),
    "an IPv6 address that nft prints with dots": (seeing("net", 1, "::/0"), seeing("part", 2, "::1")),
}


def tables(kernel: FakeKernel) -> Any:
    """Our tables without what tells when something was made."""
    return {
        key: (table.maps, {name: [rule[1:] for rule in rules] for name, rules in table.chains.items()})
        for key, table in kernel.nft.tables.items()
    }


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_what_a_service_took_from_another_is_given_back(pair: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Whoever takes it away, or moves it, knows nothing of the other one but what is in the kernel."""
    below, above = pair
    kernel = FakeKernel()
    quartet(lvs_service, kernel, services=[below], marking="nftables")
    alone = tables(kernel)
    quartet(lvs_service, kernel, services=[above], marking="nftables", purge="none")
    assert tables(kernel) != alone
    quartet(lvs_service, kernel, services=[{"name": "part", "fwmark": 2}], state="absent", marking="nftables")
    assert tables(kernel) == alone
    quartet(lvs_service, kernel, services=[above], marking="nftables", purge="none")
    moved = {**above, "traffic": [{"destination": "203.0.113.9", "protocol": "udp"}]}
    quartet(lvs_service, kernel, services=[moved], marking="nftables", purge="none")
    quartet(lvs_service, kernel, services=[{"name": "part", "fwmark": 2}], state="absent", marking="nftables")
    assert tables(kernel)[next(iter(alone))] == next(iter(alone.values()))


@given(declared_services(), declared_services())
def test_two_callers_come_to_rest(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> None:
    """Each with services of its own, which may see the packets of the other's."""
    second = [
        {**one, "name": f"{one['name'][:60]}-2", "fwmark": 1000 + n} for n, one in enumerate(second) if "fwmark" in one
    ]
    kernel = FakeKernel()
    for services in (first, second):
        run_module(lvs_service, kernel, services=services, marking="nftables", purge="none")
    there = kernel.snapshot()
    for services in (first, second, first):
        assert run_module(lvs_service, kernel, services=services, marking="nftables", purge="none")["operations"] == []
    assert kernel.snapshot() == there


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_info_tells_all_that_was_declared(pair: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Not what is left of it: a service that lost all its packets to others is told, too."""
    kernel = FakeKernel()
    run_module(lvs_service, kernel, services=list(pair), marking="nftables")
    told = run_module(lvs_info, kernel)["services"]
    assert [one["traffic"][0]["destination"] for one in told] == [[one["traffic"][0]["destination"]] for one in pair]


# -- what is in the way -------------------------------------------------------------------------------------------


def test_a_table_of_the_version_before() -> None:
    """Its rules had sets of ports, and nothing said what was declared: what is there counts until the owner comes."""
    kernel = FakeKernel()
    services = [NET, seeing("part", 2, "192.0.2.0/25"), seeing("near", 3, "192.0.2.9", ports=[53], in_interface="eth0")]
    run_module(lvs_service, kernel, services=services, marking="nftables")
    wanted = tables(kernel)
    kernel.nft.run("flush chain ip lvs-mark declared\ndelete chain ip lvs-mark declared")
    other = seeing("other", 4, "203.0.113.1")
    quartet(lvs_service, kernel, services=[other], marking="nftables", purge="none")
    assert "declared" not in tables(kernel)["ip", "lvs-mark"][1]
    quartet(lvs_service, kernel, services=[{"name": "other", "fwmark": 4}], state="absent", marking="nftables")
    done = quartet(lvs_service, kernel, services=services, marking="nftables")
    assert all(" declared" in line for line in done["operations"])
    assert tables(kernel) == wanted


@pytest.mark.parametrize("element", ["exact { 192.0.2.1 . tcp . 80", "ranges { 192.0.2.0/29 . tcp . 85-99"])
def test_an_element_of_somebody_else_in_a_place_of_ours(element: str) -> None:
    """Ours becomes a rule, which overrides it as it would in a chain; once it is gone ours takes the place."""
    kernel = FakeKernel()
    services = [seeing("web", 1, "192.0.2.1", ports=[80]), seeing("more", 2, "192.0.2.1", ports=["81:90"])]
    run_module(lvs_service, kernel, services=services, marking="nftables")
    alone = tables(kernel)
    quartet(lvs_service, kernel, services=[], marking="nftables", purge="owned")
    kernel.nft.run(
        "\n".join([line.removeprefix("nft ") for line in MAKE] + [f"add element ip lvs-mark {element} : 0x9 }}"])
    )
    quartet(lvs_service, kernel, services=services, marking="nftables")
    (rule,) = kernel.nft.tables["ip", "lvs-mark"].chains["conditional"]
    assert rule[1] == ("lvs:web" if "exact" in element else "lvs:more")
    assert len(run_module(lvs_info, kernel)["services"]) == 2
    kernel.nft.run(f"delete element ip lvs-mark {element} }}")
    quartet(lvs_service, kernel, services=services, marking="nftables")
    assert tables(kernel) == alone


# -- the order of changes -----------------------------------------------------------------------------------------


def edits(kernel: FakeKernel, *services: dict[str, Any]) -> list[list[str]]:
    """The transactions of a run, without the table's name."""
    written: list[list[str]] = []
    run = kernel.nft.run

    def note(text: str) -> None:
        written.append(text.replace(" ip lvs-mark", "").splitlines())
        run(text)

    kernel.nft.run = note  # type: ignore[method-assign]
    quartet(lvs_service, kernel, services=list(services), marking="nftables")
    kernel.nft.run = run  # type: ignore[method-assign]
    return written


def test_what_moves_between_the_maps_is_added_before_it_is_removed() -> None:
    """A set of intervals shows its content later than a hash does that it changed."""
    kernel = FakeKernel()
    exact, wide = seeing("web", 1, "192.0.2.1", ports=[80]), seeing("web", 1, "192.0.2.1", ports=["80:81"])
    edits(kernel, exact)
    assert edits(kernel, wide) == [
        ['add element ranges { 192.0.2.1 . tcp . 80-81 comment "lvs:web" : 0x1 }'],
        ["delete element exact { 192.0.2.1 . tcp . 80 }"],
    ]
    assert len(edits(kernel, exact)) == 1


def test_what_changes_in_ranges_is_in_another_map_meanwhile() -> None:
    kernel = FakeKernel()
    edits(kernel, seeing("web", 1, "192.0.2.1", ports=["80:81"]))
    first, second, third = edits(kernel, seeing("web", 1, "192.0.2.1", ports=["80:82"]))
    element = '{ 192.0.2.1 . tcp . 80-82 comment "lvs:web" : 0x1 }'
    assert first[-1] == f"add element moving {element}"
    assert second == ["delete element ranges { 192.0.2.1 . tcp . 80-81 }", f"add element ranges {element}"]
    assert third == ["flush chain moving", "delete chain moving", "delete map moving"]


def test_what_a_killed_run_left_is_cleared_away() -> None:
    kernel = FakeKernel()
    edits(kernel, WEB)
    there = tables(kernel)
    kernel.nft.run(
        "add map ip lvs-mark moving { type ipv4_addr . inet_proto . inet_service : mark; flags interval; }\n"
        "add chain ip lvs-mark moving { type filter hook prerouting priority -149; policy accept; }\n"
        "add rule ip lvs-mark moving meta mark set ip daddr . meta l4proto . th dport map @moving"
    )
    assert "jump" in [problem["kind"] for problem in run_module(lvs_info, kernel)["problems"]]
    assert edits(kernel, WEB)
    assert tables(kernel) == there
