# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Services as a person would write them down."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given

from ansible_collections.lvs.fleet.plugins.module_utils._declared.params import virtual_services
from ansible_collections.lvs.fleet.plugins.module_utils._model import FAMILIES
from ansible_collections.lvs.fleet.plugins.module_utils._report.report import virtual_service
from ansible_collections.lvs.fleet.plugins.module_utils._report.shorthand import shorthand
from ansible_collections.lvs.fleet.tests.unit.strategies import declared_services

A4, B4, A6 = "192.0.2.10", "192.0.2.11", "2001:db8::10"


def traffic(destination: list[str], protocol: Any = "tcp", **more: Any) -> dict[str, Any]:
    return {"destination": destination, "protocol": protocol, "ports": [80, 443], **more}


def longhand(service: dict[str, Any]) -> dict[str, Any]:
    """The service as lvs_info returns it."""
    declared = virtual_services([service])
    told = virtual_service(declared.names[0], declared.traffic, list(declared.pools.values()))
    return {**told, **({"helper": "ftp"} if service.get("helper") else {})}


# What a person writes. The servers come in the order of their addresses.
WRITTEN: dict[str, dict[str, Any]] = {
    "nothing said": {"traffic": [traffic([A4])], "real_servers": [{"address": "10.0.0.11"}]},
    "both families": {
        "traffic": [traffic([A4, A6])],
        "real_servers": [{"address": "10.0.0.9"}, {"address": "10.0.0.11"}, {"address": "2001:db8::11"}],
    },
    "both protocols": {"traffic": [traffic([A4, A6], ["tcp", "udp"])], "real_servers": []},
    "two addresses, both protocols": {"traffic": [traffic([A4, B4, A6], ["tcp", "udp"])], "real_servers": []},
    "sources": {
        "traffic": [traffic([A4, B4], source=["10.0.0.0/8", "10.9.9.9"], in_interface="eth0")],
        "real_servers": [],
    },
    "every protocol": {
        "traffic": [{"destination": [A4, A6]}, {"destination": [B4], "source": ["10.0.0.0/8"]}],
        "real_servers": [],
    },
    "machines that are left out": {
        "traffic": [traffic([A4, A6], exclude_mac=["52:54:00:00:00:01", "52:54:00:00:00:02"])],
        "real_servers": [],
    },
    "what differs stays apart": {
        "traffic": [traffic([A4]), {"destination": [A6], "protocol": "tcp", "ports": [80]}],
        "real_servers": [],
    },
    "every port": {"traffic": [{"destination": [A4], "protocol": ["tcp", "udp"]}], "real_servers": []},
    "more ports than a rule has slots": {
        "traffic": [{"destination": [A4, A6], "protocol": "tcp", "ports": list(range(1, 41, 2))}],
        "real_servers": [],
    },
    "all by one method": {
        "traffic": [traffic([A4])],
        "scheduler": "rr",
        "persistence_timeout": 300,
        "forward_method": "masquerade",
        "real_servers": [{"address": "10.0.0.11", "weight": 0}, {"address": "10.0.0.12"}],
    },
    "by several methods": {
        "traffic": [traffic([A4])],
        "real_servers": [{"address": "10.0.0.11"}, {"address": "10.0.0.12", "forward_method": "tunnel"}],
    },
    "FTP": {
        "traffic": [{"destination": [A4], "protocol": "tcp", "ports": [20, 21]}],
        "persistence_timeout": 300,
        "helper": "ftp",
        "real_servers": [{"address": "10.0.0.11"}],
    },
}  # fmt: skip


@pytest.mark.parametrize("case", WRITTEN)
def test_what_a_person_writes(case: str) -> None:
    service = {"name": "web", "fwmark": 80, **WRITTEN[case]}
    written = shorthand({**longhand(service), "real_servers": longhand(service)["real_servers"][::-1]})
    assert written == service
    assert list(written)[:3] == ["name", "fwmark", "traffic"] and list(written)[-1] == "real_servers"


@given(declared_services())
def test_it_says_the_same(services: list[dict[str, Any]]) -> None:
    """The same services, and the same rules in the same order, so that a deploy finds nothing to do."""
    short = [shorthand(service) for service in services]
    before, after = virtual_services(services), virtual_services(short)
    assert dict(after.pools) == dict(before.pools) and after.snat_rules == before.snat_rules
    for family in FAMILIES:
        assert [one for one in after.traffic if one.family == family] == [
            one for one in before.traffic if one.family == family
        ]
    assert sum(len(service["traffic"]) for service in short) <= sum(
        len(longhand(service)["traffic"]) for service in services
    )
