# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rules arranged as a map give every packet the mark that they give it in a chain."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.lvs.fleet.plugins.module_utils._marks import markmap
from ansible_collections.lvs.fleet.plugins.module_utils._model import MarkRule

NETWORKS = {
    "ipv4": ("192.0.2.10/32", "192.0.2.11/32", "192.0.2.8/29", "192.0.2.0/24", "0.0.0.0/0"),
    "ipv6": ("2001:db8::a/128", "2001:db8::/125", "2001:db8::/32", "::/0"),
}
ADDRESSES = {
    "ipv4": ("192.0.2.10", "192.0.2.11", "192.0.2.9", "192.0.2.99", "198.51.100.1"),
    "ipv6": ("2001:db8::a", "2001:db8::1", "2001:db8:9::1", "2001:4::1"),
}
PORTS = ((), ((80, 80),), ((80, 80), (443, 443)), ((70, 90),), ((85, 100), (443, 500)), ((90, 90), (91, 91)))
TRIED_PORTS = (1, 69, 70, 80, 84, 85, 90, 91, 100, 443, 444, 500, 65535)
SOURCES = {"ipv4": "10.0.0.0/8", "ipv6": "2001:db8:f::/48"}
FAMILIES = st.sampled_from(["ipv4", "ipv6"])


@st.composite
def rules(draw: st.DrawFn) -> tuple[str, list[MarkRule]]:
    """A family and rules of a few services in any order, each service with a mark of its own."""
    family = draw(FAMILIES)
    found = []
    for number in draw(st.lists(st.integers(1, 4), min_size=1, max_size=7)):
        rule = MarkRule(
            name=f"s{number}",
            mark=number,
            destination=draw(st.sampled_from(NETWORKS[family])),
            protocol=draw(st.sampled_from(["tcp", "udp"])),
            ports=draw(st.sampled_from(PORTS)),
            source=draw(st.sampled_from(["", "", SOURCES[family]])),
            in_interface=draw(st.sampled_from(["", "", "eth+", "eth0"])),
            exclude_mac=draw(st.sampled_from([(), (), ("52:54:00:00:00:01",)])),
        )
        found.append(rule)
    return family, found


def sees(rule: MarkRule, address: str, protocol: str, port: int, near: bool) -> bool:
    """Whether a packet fits a rule; near ones come from the source network by eth0, others from what is left out."""
    return (
        ip_address(address) in ip_network(rule.destination)
        and rule.protocol == protocol
        and (not rule.ports or any(low <= port <= high for low, high in rule.ports))
        and (near or not (rule.source or rule.in_interface or rule.exclude_mac))
    )


def in_chain(rules_: list[MarkRule], *packet: object) -> int:
    return next((rule.mark for rule in reversed(rules_) if sees(rule, *packet)), 0)  # type: ignore[arg-type]


def in_map(entries: list[MarkRule], *packet: object) -> int:
    """One lookup among the exact ones, or else one among the wider ones; then rule by rule."""
    plain = [rule for rule in entries if not markmap.is_conditional(rule) and not markmap.is_record(rule)]
    mark = 0
    for single in (True, False):
        hits = [rule for rule in plain if markmap.is_exact(rule) is single and sees(rule, *packet)]  # type: ignore[arg-type]
        assert len(hits) <= 1, hits
        if hits:
            mark = hits[0].mark
            break
    conditional = [rule for rule in entries if markmap.is_conditional(rule)]
    return in_chain(conditional, *packet) or mark


@given(rules())
def test_every_packet_gets_the_mark_of_the_last_rule_that_sees_it(given_: tuple[str, list[MarkRule]]) -> None:
    family, chain = given_
    entries = markmap.arranged(chain)
    for packet in product(ADDRESSES[family], ("tcp", "udp"), TRIED_PORTS, (False, True)):
        assert in_map(entries, *packet) == in_chain(chain, *packet), packet


@given(rules())
def test_what_is_arranged_stays_as_it_is(given_: tuple[str, list[MarkRule]]) -> None:
    """So a table that was read compares with one that is declared."""
    entries = markmap.arranged(given_[1])
    assert markmap.arranged(entries) == entries


@given(rules())
def test_rules_in_pieces_give_the_same_marks(given_: tuple[str, list[MarkRule]]) -> None:
    """One range of ports each; what was declared twice is there once, in its last place."""
    family, chain = given_
    pieces = markmap.as_entries([*chain, *chain[:1]])
    assert len(set(pieces)) == len(pieces) and all(len(rule.ports) <= 1 for rule in pieces)
    for packet in product(ADDRESSES[family], ("tcp", "udp"), TRIED_PORTS, (False, True)):
        assert in_chain(pieces, *packet) == in_chain([*chain, *chain[:1]], *packet), packet


@given(rules())
def test_what_is_joined_can_be_declared_again(given_: tuple[str, list[MarkRule]]) -> None:
    """For lvs_info: in the order of its list the services make the same entries."""
    entries = markmap.arranged(sorted(given_[1], key=lambda rule: rule.name))
    assert markmap.arranged(markmap.joined(entries)) == entries


def test_only_what_lies_across_is_cut() -> None:
    """An exact entry overrides a wide one that came before; a wide one that comes later takes its place."""
    wide = MarkRule("all", 1, "192.0.2.10/32", "tcp")
    exact = MarkRule("web", 2, "192.0.2.10/32", "tcp", ((80, 80),))
    assert markmap.arranged([wide, exact]) == [wide, exact]
    assert markmap.arranged([exact, wide]) == [wide]


def test_of_two_exact_entries_the_later_one_counts() -> None:
    first, second = (MarkRule(name, mark, "192.0.2.10/32", "tcp", ((80, 80),)) for name, mark in (("a", 1), ("b", 2)))
    assert markmap.arranged([first, second]) == [second]
    network = MarkRule("net", 3, "192.0.2.10/31", "tcp", ((80, 80),))
    rest = MarkRule("net", 3, "192.0.2.11/32", "tcp", ((80, 80),))
    cut = [MarkRule("c", 4, "192.0.2.10/32", "tcp", ((80, 81),)), second]
    assert markmap.arranged([network, *cut]) == [cut[0], second, rest]


def test_an_exact_entry_stays_above_a_network_that_sorts_behind_it() -> None:
    network = MarkRule("net", 1, "192.0.2.8/29", "tcp", ((70, 90),))
    exact = MarkRule("web", 2, "192.0.2.10/32", "tcp", ((80, 80),))
    assert markmap.arranged(markmap.arranged([network, exact])) == [network, exact]


def test_a_network_is_cut_around_an_address() -> None:
    network = MarkRule("net", 1, "192.0.2.8/30", "tcp", ((1, 10),))
    inside = MarkRule("one", 2, "192.0.2.10/32", "tcp", ((5, 6),))
    cut = [(rule.destination, rule.ports) for rule in markmap.arranged([network, inside])]
    assert cut == [
        ("192.0.2.10/32", ((1, 4),)),
        ("192.0.2.10/32", ((5, 6),)),
        ("192.0.2.10/32", ((7, 10),)),
        ("192.0.2.11/32", ((1, 10),)),
        ("192.0.2.8/31", ((1, 10),)),
    ]


@pytest.mark.parametrize("count", [16, 40])
def test_joined_rules_have_fifteen_slots(count: int) -> None:
    """As the rules of a chain, which lvs_info shows."""
    ports = [((2 * number, 2 * number),) for number in range(1, count + 1)]
    entries = [MarkRule("web", 80, "192.0.2.10/32", "tcp", port) for port in ports]
    assert [len(rule.ports) for rule in markmap.joined(entries)] == [15] * (count // 15) + [count % 15]
