# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The records of services by address, by the real tools: written, read back, changed and taken away."""

from __future__ import annotations

import os
from unittest.mock import patch

import pytest

from ansible_collections.lvs.fleet.plugins.filter.fleet import marks
from ansible_collections.lvs.fleet.plugins.filter.fleet import router as router_filter
from ansible_collections.lvs.fleet.plugins.module_utils._declared.params import virtual_services
from ansible_collections.lvs.fleet.plugins.module_utils._marks import machine
from ansible_collections.lvs.fleet.plugins.module_utils._marks.iptables import record_chains
from ansible_collections.lvs.fleet.plugins.module_utils._marks.nft_records import nft_record_chains
from ansible_collections.lvs.fleet.plugins.module_utils._model import (
    IPTABLES,
    MARKINGS,
    NFTABLES,
    Chain,
    ChainId,
    Declaration,
    RouterState,
)
from ansible_collections.lvs.fleet.plugins.module_utils._plan import declared_chain, plan
from ansible_collections.lvs.fleet.tests.integration.harness import Router

KEYS = {IPTABLES: record_chains(), NFTABLES: nft_record_chains()}
MAIL = {
    "name": "mail",
    "traffic": [{"destination": ["192.0.2.11", "2001:db8::11"], "protocol": ["tcp", "udp"], "ports": [25, 587]}],
}
ALL = {
    "name": "x" * 63,
    "persistence_timeout": 60,
    "traffic": [{"destination": ["192.0.2.9", "2001:db8::ffff"], "protocol": "sctp"}],
}


def read(marking: str) -> dict[ChainId, Chain]:
    found = machine.read_chains(KEYS[IPTABLES]) if marking == IPTABLES else machine.read_nftables()
    return {key: found[key] for key in KEYS[marking]}


def wanted(marking: str, *services: dict[str, object]) -> dict[ChainId, Chain]:
    declared: Declaration = virtual_services(list(services))
    declared = Declaration(**{**vars(declared), "marking": marking})
    return {key: declared_chain(declared, key) for key in KEYS[marking]}


@pytest.mark.parametrize("marking", MARKINGS)
def test_what_is_written_reads_back(router: Router, marking: str) -> None:
    with patch.dict(os.environ, PATH=router.path):
        for services in ([MAIL], [ALL, MAIL], [ALL], [{**MAIL, "name": "post"}], []):
            for edit in plan(RouterState(read(marking)), RouterState(wanted(marking, *services))):
                machine.write(edit)
            there = read(marking)
            assert there == wanted(marking, *services)
            assert plan(RouterState(there), RouterState(wanted(marking, *services))) == []
    assert "LVS" not in router.tool("iptables-save") and "lvs" not in router.tool("nft", "list", "ruleset")


@pytest.mark.parametrize("marking", MARKINGS)
def test_what_boots_is_what_is_declared(router: Router, marking: str) -> None:
    for _again in range(2):
        if marking == IPTABLES:
            for family, tool in (("ipv4", "iptables"), ("ipv6", "ip6tables")):
                router.tool(f"{tool}-restore", "--noflush", stdin=marks([MAIL, ALL], family))
        else:
            router.tool("nft", "-f", "-", stdin=router_filter([MAIL, ALL], marking=NFTABLES)["nftables_marks"])
    with patch.dict(os.environ, PATH=router.path):
        assert read(marking) == wanted(marking, MAIL, ALL)


@pytest.mark.parametrize("variant", ["nft"])
def test_things_of_others_stay_in_the_table(router: Router) -> None:
    """An element without our comment and a set beside ours are neither taken for records nor removed."""
    with patch.dict(os.environ, PATH=router.path):
        for edit in plan(RouterState(read(NFTABLES)), RouterState(wanted(NFTABLES, MAIL))):
            machine.write(edit)
        router.tool("nft", "add", "element", "ip", "lvs-service", "services", "{ 203.0.113.1 . tcp . 9 }")
        router.tool("nft", "add", "set", "ip", "lvs-service", "other", "{ type mark; }")
        [chain, _chain6] = read(NFTABLES).values()
        assert [rule.name for rule in chain.rules] == ["mail"] * 4 + [""]
        assert chain.references == 1
