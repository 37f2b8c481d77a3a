# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""ipvs_service: services by mark and by address, and nothing but the IPVS table."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.lvs.fleet.tests.integration import foreign
from ansible_collections.lvs.fleet.tests.integration.harness import FAMILIES, Router

HTTP = {"protocol": "tcp", "address": "192.0.2.10", "port": 80}

# Each case: services, and what ipvsadm has to print for them.
CASES: dict[str, tuple[list[dict[str, Any]], list[str]]] = {
    "by address, every protocol": (
        [
            {**HTTP, "real_servers": [{"address": "10.0.0.11"}, {"address": "10.0.0.12", "forward_method": "tunnel"}]},
            {
                **HTTP,
                "port": 443,
                "forward_method": "masquerade",
                "real_servers": [
                    {"address": "10.0.0.11", "port": 8443, "weight": 65535},
                    {"address": "10.0.0.11", "port": 8444, "weight": 0},
                    {"address": "10.0.0.11"},
                ],
            },
            {"protocol": "udp", "address": "192.0.2.10", "port": 80, "scheduler": "rr", "one_packet": True},
            {"protocol": "sctp", "address": "192.0.2.10", "port": 65535, "scheduler": "sh"},
        ],
        [
            "-A -t 192.0.2.10:80 -s wlc",
            "-a -t 192.0.2.10:80 -r 10.0.0.11:80 -g -w 1",
            "-a -t 192.0.2.10:80 -r 10.0.0.12:80 -i -w 1 --tun-type ipip",
            "-A -t 192.0.2.10:443 -s wlc",
            "-a -t 192.0.2.10:443 -r 10.0.0.11:443 -m -w 1",
            "-a -t 192.0.2.10:443 -r 10.0.0.11:8443 -m -w 65535",
            "-a -t 192.0.2.10:443 -r 10.0.0.11:8444 -m -w 0",
            "-A -u 192.0.2.10:80 -s rr -o",
            "-A --sctp-service 192.0.2.10:65535 -s sh",
        ],
    ),
    "every port of an address": (
        [
            {**HTTP, "port": 0, "persistence_timeout": 60, "real_servers": [{"address": "10.0.0.11"}]},
            {"protocol": "udp", "address": "2001:db8::10", "port": 0, "persistence_timeout": 60},
        ],
        [
            "-A -t 192.0.2.10:0 -s wlc -p 60",
            "-a -t 192.0.2.10:0 -r 10.0.0.11:0 -g -w 1",
            "-A -u [2001:db8::10]:0 -s wlc -p 60",
        ],
    ),
    "IPv6": (
        [
            {
                "protocol": "tcp",
                "address": "2001:DB8:0::10",
                "port": 80,
                "persistence_timeout": 90,
                "persistence_netmask6": 64,
                "persistence_netmask": 8,
                "real_servers": [{"address": "2001:db8:1::1", "upper_threshold": 9, "lower_threshold": 9}],
            },
            {"fwmark": 90, "family": "ipv6", "real_servers": [{"address": "2001:db8:1::1"}]},
        ],
        [
            "-A -t [2001:db8::10]:80 -s wlc -p 90 -M 64",
            "-a -t [2001:db8::10]:80 -r [2001:db8:1::1]:80 -g -w 1 -x 9 -y 9",
            "-A -f 90 -6 -s wlc",
            "-a -f 90 -6 -r [2001:db8:1::1]:0 -g -w 1",
        ],
    ),
    "by mark, and the other family through a tunnel": (
        [
            {
                "fwmark": 90,
                "scheduler": "mh",
                "scheduler_flags": ["mh-port"],
                "persistence_timeout": 300,
                "persistence_netmask": "255.255.0.0",
                "real_servers": [
                    {"address": "2001:db8:1::1", "forward_method": "tunnel"},
                    {"address": "10.0.0.11", "port": 8080, "forward_method": "masquerade"},
                ],
            }
        ],
        [
            "-A -f 90 -s mh -p 300 -M 255.255.0.0 -b mh-port",
            "-a -f 90 -r [2001:db8:1::1]:0 -i -w 1 --tun-type ipip",
            "-a -f 90 -r 10.0.0.11:8080 -m -w 1",
        ],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_services(router: Router, case: str) -> None:
    """What is declared is what ipvsadm prints; lvs_info gives it back; absent removes it; iptables is never touched."""
    services, printed = CASES[case]
    before = router.snapshot()
    router.converge("ipvs_service", services=services)
    there = router.converged
    assert there.services() == sorted(printed)
    router.is_settled("ipvs_service", there, services=router.run("lvs_info")["ipvs_services"], purge=True)
    identities = [
        {key: service[key] for key in ("fwmark", "family", "protocol", "address", "port") if key in service}
        for service in services
    ]
    assert router.run("ipvs_service", services=identities, state="absent")["changed"]
    left = router.snapshot()
    assert (left.services(), left.ipv4, left.ipv6) == ([], before.ipv4, before.ipv6)


def test_others_and_purge(router: Router) -> None:
    """Services of others stay as they are until purge is asked for; the rules stay even then."""
    foreign.settle_rules(router)
    foreign.settle_services(router)
    before = router.snapshot()
    router.run("ipvs_service", services=[{"fwmark": 80, "real_servers": [{"address": "10.0.0.11"}]}, HTTP])
    router.run("ipvs_service", services=[{"fwmark": 80, "scheduler": "rr"}, HTTP])
    assert router.snapshot().services() == sorted([*before.services(), "-A -f 80 -s rr", "-A -t 192.0.2.10:80 -s wlc"])
    router.run("ipvs_service", services=[{"fwmark": 80}, HTTP], state="absent")
    assert router.snapshot().services() == before.services()
    router.converge("ipvs_service", services=[HTTP], purge=True)
    after = router.converged
    assert after.services() == ["-A -t 192.0.2.10:80 -s wlc"]
    assert [getattr(after, family) for family in FAMILIES] == [getattr(before, family) for family in FAMILIES]


def test_edit_in_place(router: Router) -> None:
    """An edit is an edit, not a removal and an addition, and names only what differs."""
    router.run(
        "ipvs_service", services=[{**HTTP, "real_servers": [{"address": "10.0.0.11"}, {"address": "10.0.0.12"}]}]
    )
    wanted = {**HTTP, "scheduler": "wrr", "real_servers": [{"address": "10.0.0.12", "weight": 5, "upper_threshold": 8}]}
    assert router.converge("ipvs_service", services=[wanted])["operations"] == [
        "ipvsadm -E -t 192.0.2.10:80 -s wrr",
        "ipvsadm -e -t 192.0.2.10:80 -r 10.0.0.12:80 -g -w 5 -x 8",
        "ipvsadm -d -t 192.0.2.10:80 -r 10.0.0.11:80",
    ]
