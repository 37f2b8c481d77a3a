# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A change in words: what a person reads of a deploy."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given

from ansible_collections.lvs.fleet.plugins.modules import iptables_mark, iptables_mss, ipvs_service, lvs_service
from ansible_collections.lvs.fleet.tests.unit.fake_kernel import FakeKernel, Rule
from ansible_collections.lvs.fleet.tests.unit.running import CHAIN, kernel_with, run_module
from ansible_collections.lvs.fleet.tests.unit.strategies import declared_services, states

HTTP = {"destination": ["192.0.2.10"], "protocol": "tcp", "ports": [80, 443]}
HTTP6 = {**HTTP, "destination": ["2001:db8::10"]}
SERVERS = [{"address": "10.0.0.11", "weight": 10}, {"address": "10.0.0.12"}]
WEB = {"name": "web", "fwmark": 80, "traffic": [HTTP], "real_servers": SERVERS}
SHOP = {"name": "shop", "fwmark": 81, "traffic": [{**HTTP, "destination": ["192.0.2.11"]}]}
SMTP = {"destination": ["192.0.2.11"], "protocol": "tcp", "ports": [25, 587]}
MAIL = {"name": "mail", "traffic": [SMTP], "real_servers": [{"address": "10.0.0.21"}]}
BOTH = {**WEB, "traffic": [HTTP, HTTP6], "real_servers": [*SERVERS, {"address": "2001:db8::11"}]}


def web(**other: Any) -> dict[str, Any]:
    return {**WEB, **other}


def server(**other: Any) -> dict[str, Any]:
    return web(real_servers=[{**SERVERS[0], **other}, SERVERS[1]])


# What is declared first, what then, and the words for the way between.
CASES: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]], list[str]]] = {
    "new": ([], [WEB], ["web: new, with 2 real servers"]),
    "new in both families": ([], [BOTH], ["web: new, with 3 real servers"]),
    "removed": ([WEB, SHOP], [SHOP], ["web: removed, with 2 real servers"]),
    "the last one, in both families": ([BOTH], [], ["web: removed, with 3 real servers"]),
    "one more family": ([WEB], [BOTH], ["web: new in ipv6, with 3 real servers"]),
    "one family less": ([BOTH], [WEB], ["web: removed in ipv6, with 3 real servers"]),
    "weight": ([WEB], [server(weight=20)], ["web: weight of 10.0.0.11 10 -> 20"]),
    "method": ([WEB], [server(forward_method="masquerade")], ["web: forward_method of 10.0.0.11 direct -> masquerade"]),
    "thresholds": (
        [WEB],
        [server(upper_threshold=9, lower_threshold=5)],
        ["web: upper_threshold of 10.0.0.11 0 -> 9", "web: lower_threshold of 10.0.0.11 0 -> 5"],
    ),
    "one server comes, one goes": (
        [WEB],
        [web(real_servers=[SERVERS[0], {"address": "10.0.0.13", "weight": 3}])],
        ["web: real server 10.0.0.13 added, weight 3", "web: real server 10.0.0.12 removed"],
    ),
    "scheduler": (
        [WEB],
        [web(scheduler="sh", scheduler_flags=["sh-port"])],
        ["web: scheduler wlc -> sh", "web: scheduler_flags none -> sh-port"],
    ),
    "persistence, in both families": (
        [BOTH],
        [{**BOTH, "persistence_timeout": 300}],
        ["web: persistence_timeout 0 -> 300"],
    ),
    "ports": (
        [WEB],
        [web(traffic=[{**HTTP, "ports": [80, "8000:8010"]}])],
        ["web: ports of 192.0.2.10 tcp 80,443 -> 80,8000:8010"],
    ),
    "every port": (
        [WEB],
        [web(traffic=[{"destination": ["192.0.2.10"], "protocol": "tcp"}])],
        ["web: ports of 192.0.2.10 tcp 80,443 -> all"],
    ),
    "more ports than a rule has slots": (
        [WEB],
        [web(traffic=[{**HTTP, "ports": list(range(1, 41, 2))}])],
        ["web: ports of 192.0.2.10 tcp 80,443 -> " + ",".join(map(str, range(1, 41, 2)))],
    ),
    "another address": (
        [WEB],
        [web(traffic=[{**HTTP, "destination": ["192.0.2.0/24"], "source": ["10.0.0.0/8"], "in_interface": "eth1"}])],
        [
            "web: packets to 192.0.2.0/24 tcp from 10.0.0.0/8 at eth1 80,443 get mark 80",
            "web: packets to 192.0.2.10 tcp 80,443 get mark 80 no more",
        ],
    ),
    "every protocol": (
        [WEB],
        [web(traffic=[{"destination": ["192.0.2.10"]}])],
        [
            "web: packets to 192.0.2.10 get mark 80",
            "web: packets to 192.0.2.10 tcp 80,443 get mark 80 no more",
        ],
    ),
    "not from another router": (
        [WEB],
        [web(traffic=[{**HTTP, "exclude_mac": ["52:54:00:00:00:02", "52-54-00-00-00-0A"]}])],
        [
            "web: packets to 192.0.2.10 tcp not from 52:54:00:00:00:02, 52:54:00:00:00:0a 80,443 get mark 80",
            "web: packets to 192.0.2.10 tcp 80,443 get mark 80 no more",
        ],
    ),
    "another mark": ([WEB], [web(fwmark=90)], ["web: mark 80 -> 90, which is another service to IPVS"]),
    "another name": ([WEB], [web(name="www")], ["www: was web until now"]),
    "another name and other ports": (
        [WEB],
        [web(name="www", traffic=[{**HTTP, "ports": [80]}])],
        ["www: was web until now", "www: ports of 192.0.2.10 tcp 80,443 -> 80"],
    ),
    "another order": ([WEB, SHOP], [SHOP, WEB], ["ipv4: rules in LVS-MARK"]),
    "active FTP": (
        [web(traffic=[{**HTTP, "ports": [20, 21]}], persistence_timeout=9, forward_method="masquerade")],
        [web(traffic=[{**HTTP, "ports": [20, 21]}], persistence_timeout=9, forward_method="masquerade", helper="ftp")],
        ["web: rules for active FTP"],
    ),
    "new by address": (
        [],
        [MAIL],
        [f"mail: new at tcp 192.0.2.11:{port}, with 1 real server" for port in (25, 587)],
    ),
    "an address less": (
        [MAIL],
        [{**MAIL, "traffic": [{**SMTP, "ports": [25]}]}],
        ["mail: removed at tcp 192.0.2.11:587, with 1 real server"],
    ),
    "another name by address": ([MAIL], [{**MAIL, "name": "post"}], ["post: was mail until now"]),
    "weight by address": (
        [MAIL],
        [{**MAIL, "real_servers": [{"address": "10.0.0.21", "weight": 5}]}],
        [f"mail: weight of 10.0.0.21:{port} 1 -> 5" for port in (25, 587)],
    ),
    "from address to mark": (
        [MAIL],
        [{**MAIL, "fwmark": 25}],
        ["mail: by address -> mark 25, which is another service to IPVS"],
    ),
    "from mark to address": (
        [{**MAIL, "fwmark": 25}],
        [MAIL],
        ["mail: mark 25 -> by address, which is another service to IPVS"],
    ),
    "nothing": ([WEB, SHOP], [WEB, SHOP], []),
}


# Where a map says it in another way: it has no order, and looks each packet up by its protocol.
BY_NFTABLES: dict[str, list[str]] = {
    "another order": [],
    "every protocol": [
        "web: packets to 192.0.2.10 sctp get mark 80",
        "web: ports of 192.0.2.10 tcp 80,443 -> all",
        "web: packets to 192.0.2.10 udp get mark 80",
    ],
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("marking", ["iptables", "nftables"])
def test_a_change_of_the_declaration(case: str, marking: str) -> None:
    before, after, words = CASES[case]
    words = BY_NFTABLES.get(case, words) if marking == "nftables" else words
    kernel = FakeKernel()
    run_module(lvs_service, kernel, services=before, marking=marking)
    told = run_module(lvs_service, kernel, check=True, services=after, marking=marking)
    done = run_module(lvs_service, kernel, services=after, marking=marking)
    assert told["changes"] == done["changes"] == words


def test_damage_by_hand() -> None:
    kernel = FakeKernel()
    run_module(lvs_service, kernel, services=[WEB])
    chains = kernel.mangle["ipv4"].chains
    chains["PREROUTING"] = [Rule(f"-j {CHAIN}")] * 2
    chains[CHAIN] = []
    assert run_module(lvs_service, kernel, services=[WEB])["changes"] == [
        "web: packets to 192.0.2.10 tcp 80,443 get mark 80",
        "ipv4: PREROUTING leads into LVS-MARK once, not 2 times",
    ]


def test_rules_made_by_hand() -> None:
    kernel = FakeKernel()
    by_hand = "-d 192.0.2.10/32 -p tcp -m tcp --dport 80 -j MARK --set-xmark 0x50/0xffffffff"
    kernel.mangle["ipv4"].chains["PREROUTING"] = [Rule(by_hand)]
    assert run_module(lvs_service, kernel, services=[WEB], adopt=True)["changes"] == [
        "web: new, with 2 real servers",
        "ipv4: 1 rule made by hand taken over",
    ]


def test_services_without_a_name() -> None:
    kernel = FakeKernel()
    by_mark = {"fwmark": 80, "real_servers": [{"address": "10.0.0.11"}]}
    by_address = {
        "protocol": "tcp", "address": "2001:db8::10", "port": 80,
        "real_servers": [{"address": "2001:db8::11", "port": 8080, "forward_method": "masquerade"}],
    }  # fmt: skip
    run_module(ipvs_service, kernel, services=[by_mark, {**by_address, "real_servers": []}])
    done = run_module(ipvs_service, kernel, services=[{**by_mark, "scheduler": "rr"}, by_address])
    assert done["changes"] == [
        "tcp [2001:db8::10]:80: real server [2001:db8::11]:8080 added, weight 1",
        "mark 80: scheduler wlc -> rr",
    ]
    mail = {"name": "mail", "mark": 25, "destination": ["192.0.2.12"], "protocol": "tcp", "ports": [25]}
    assert run_module(iptables_mark, kernel, rules=[mail])["changes"] == [
        "mail: packets to 192.0.2.12 tcp 25 get mark 25"
    ]


def test_rules_that_belong_to_no_service() -> None:
    done = run_module(iptables_mss, FakeKernel(), segments={"192.0.2.10": 1440})
    assert done["changes"] == ["ipv4: rules in LVS-MSS"]


@given(states(), declared_services())
def test_whatever_changes_has_words(state: Any, services: list[dict[str, Any]]) -> None:
    """And words without a change there are none; each stands on a line of its own."""
    done = run_module(lvs_service, kernel_with(state), services=services)
    assert bool(done["changes"]) == bool(done["operations"])
    assert all(sentence.isprintable() for sentence in done["changes"])
    assert len(set(done["changes"])) == len(done["changes"])
