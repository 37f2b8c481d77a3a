# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The flat list of real servers: same keys everywhere, names by mark, rates from two looks."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from ansible_collections.lvs.fleet.plugins.module_utils._declared.params import ipvs_services, virtual_services
from ansible_collections.lvs.fleet.plugins.module_utils._marks.iptables import mark_chains, record_chains
from ansible_collections.lvs.fleet.plugins.module_utils._model import Chain, RouterState
from ansible_collections.lvs.fleet.plugins.module_utils._plan import declared_chain, declared_rules
from ansible_collections.lvs.fleet.plugins.module_utils._report.pools import pools
from ansible_collections.lvs.fleet.plugins.modules import lvs_info
from ansible_collections.lvs.fleet.tests.unit.fake_kernel import FakeKernel
from ansible_collections.lvs.fleet.tests.unit.running import run_module

WEB = {
    "name": "web",
    "fwmark": 80,
    "traffic": [{"destination": ["192.0.2.10", "2001:db8::10"], "protocol": "tcp", "ports": [80]}],
    "real_servers": [{"address": "10.0.0.11", "upper_threshold": 9}, {"address": "2001:db8:1::1", "weight": 0}],
}
BY_ADDRESS = {
    "protocol": "udp", "address": "192.0.2.10", "port": 53,
    "real_servers": [{"address": "10.0.0.53", "port": 53, "forward_method": "masquerade"}],
}  # fmt: skip
ZERO = {"connections": 0, "in_packets": 0, "out_packets": 0, "in_bytes": 0, "out_bytes": 0,
        "active_connections": 0, "inactive_connections": 0, "persistent_connections": 0}  # fmt: skip


def state() -> RouterState:
    declared = virtual_services([WEB])
    chains = {key: Chain().with_rules(declared_rules(declared, key)) for key in mark_chains()}
    return RouterState(chains, {**declared.pools, **ipvs_services([BY_ADDRESS]).pools})


def counters(connections: int) -> list[dict[str, Any]]:
    server = {"address": "10.0.0.11", "port": 0, **ZERO, "connections": connections, "active_connections": 2}
    return [{"fwmark": 80, "family": "ipv4", "real_servers": [server]}]


def test_names_of_services_by_address() -> None:
    traffic = [{"destination": "192.0.2.10", "protocol": "udp", "ports": 53}]
    declared = virtual_services([{"name": "dns", "traffic": traffic, "real_servers": [{"address": "10.0.0.53"}]}])
    chains = {key: declared_chain(declared, key) for key in record_chains()}
    assert [one["name"] for one in pools(RouterState(chains, declared.pools), [])] == ["dns"]


def test_one_list() -> None:
    told = pools(state(), counters(7))
    assert [(one["name"], one["fwmark"], one["family"], one["address"], one["weight"]) for one in told] == [
        ("web", 80, "ipv4", "10.0.0.11", 1),
        ("web", 80, "ipv6", "2001:db8:1::1", 0),
        (None, 0, "ipv4", "10.0.0.53", 1),
    ]
    assert [(one["protocol"], one["virtual_address"], one["virtual_port"], one["port"]) for one in told[1:]] == [
        (None, None, 0, 0),
        ("udp", "192.0.2.10", 53, 53),
    ]
    assert [(one["connections"], one["active_connections"], one["upper_threshold"]) for one in told] == [
        (7, 2, 9), (0, 0, 0), (0, 0, 0),
    ]  # fmt: skip


@pytest.mark.parametrize("before, after, rate", [(7, 17, 2.0), (7, 7, 0.0), (7, 3, 0.0)])
def test_rates(before: int, after: int, rate: float) -> None:
    told = pools(state(), counters(after), counters(before), 5)
    assert [one["connections_per_second"] for one in told] == [rate, None, None]


def test_a_server_that_came_between_two_looks() -> None:
    assert pools(state(), counters(5), [], 5)[0]["connections_per_second"] == 1.0


def test_every_key_is_documented_and_always_there() -> None:
    documented = yaml.safe_load(lvs_info.RETURN)["pools"]["contains"]
    assert {tuple(one) for one in pools(state(), [])} == {tuple(documented)}


def test_an_interval_that_is_none() -> None:
    for interval in (-1, 301):
        told = run_module(lvs_info, FakeKernel(), rate_interval=interval)
        assert told["msg"] == f"rate_interval: {interval} is not between 0 and 300 seconds"
