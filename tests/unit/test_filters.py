# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.lvs.fleet.plugins.filter import fleet, report, status, trust
from ansible_collections.lvs.fleet.plugins.module_utils._ip.words import ip_objects

FILTERS = fleet.FilterModule().filters()
SERVICES = [
    {
        "name": "web",
        "fwmark": 80,
        "traffic": [
            {"destination": ["192.0.2.10", "2001:db8::10"], "protocol": "tcp", "ports": [80, 443]},
            {"destination": "192.0.2.9", "protocol": "udp"},
            {"destination": ["203.0.113.0/24"], "protocol": "udp"},
        ],
        "scheduler": "sh",
        "real_servers": [
            {"address": "10.0.0.11", "upper_threshold": 9, "lower_threshold": 5},
            {"address": "2001:db8::11", "forward_method": "masquerade"},
        ],
    },
    {
        "name": "sip",
        "fwmark": 5060,
        "traffic": [{"destination": ["192.0.2.10"], "protocol": ["udp"], "ports": [5060]}],
        "persistence_timeout": 60,
        "persistence_engine": "sip",
    },
]
RULE = '-A LVS-MARK -d {} -p {} {}-m comment --comment "lvs:{}" -j MARK --set-xmark {:#x}/0xffffffff'


def test_marks() -> None:
    web = "-m multiport --dports 80,443 "
    assert FILTERS["marks"](SERVICES, "ipv4").splitlines() == [
        "*mangle",
        ":LVS-MARK - [0:0]",
        "-A PREROUTING -j LVS-MARK",
        RULE.format("192.0.2.10/32", "tcp", web, "web", 80),
        RULE.format("192.0.2.9/32", "udp", "", "web", 80),
        RULE.format("203.0.113.0/24", "udp", "", "web", 80),
        RULE.format("192.0.2.10/32", "udp", "-m multiport --dports 5060 ", "sip", 5060),
        "COMMIT",
    ]
    assert RULE.format("2001:db8::10/128", "tcp", web, "web", 80) in FILTERS["marks"](SERVICES, "ipv6").splitlines()


FTP = [
    {
        "name": "ftp",
        "fwmark": 21,
        "traffic": [{"destination": ["192.0.2.11", "2001:db8::11"], "protocol": "tcp", "ports": [20, 21]}],
        "persistence_timeout": 300,
        "helper": "ftp",
        "forward_method": "masquerade",
        "real_servers": [{"address": "10.0.0.21"}, {"address": "10.0.0.22", "forward_method": "direct"}],
    }
]


def test_marks_of_masqueraded_ftp() -> None:
    assert FILTERS["marks"](FTP, "ipv4").splitlines() == [
        "*nat",
        ":LVS-SNAT - [0:0]",
        "-A POSTROUTING -j LVS-SNAT",
        "-A LVS-SNAT -s 10.0.0.21/32 -p tcp -m tcp --sport 20"
        ' -m comment --comment "lvs:ftp" -j SNAT --to-source 192.0.2.11',
        "COMMIT",
        "*mangle",
        ":LVS-MARK - [0:0]",
        "-A PREROUTING -j LVS-MARK",
        RULE.format("192.0.2.11/32", "tcp", "-m multiport --dports 20,21 ", "ftp", 21),
        "COMMIT",
    ]
    assert "*nat" not in FILTERS["marks"](FTP, "ipv6")
    assert FILTERS["kernel_modules"](FTP) == ["ip_vs", "ip_vs_ftp", "ip_vs_wlc"]


def test_marks_of_a_family_without_destinations() -> None:
    assert FILTERS["marks"](SERVICES[1:], "ipv6") == ""


def test_ipvs_rules() -> None:
    assert FILTERS["ipvs_rules"](SERVICES).splitlines() == [
        "-A -f 80 -s sh",
        "-a -f 80 -r 10.0.0.11:0 -g -w 1 -x 9 -y 5",
        "-A -f 80 -6 -s sh",
        "-a -f 80 -6 -r [2001:db8::11]:0 -m -w 1",
        "-A -f 5060 -s wlc -p 60 --pe sip",
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("kernel_modules", ["ip_vs", "ip_vs_pe_sip", "ip_vs_sh", "ip_vs_wlc"]),
        ("masqueraded", ["ipv6"]),
        ("vips", ["192.0.2.9/32", "192.0.2.10/32", "2001:db8::10/128"]),
        ("problems", []),
    ],
)
def test_what_services_need(name: str, expected: list[str]) -> None:
    assert FILTERS[name](SERVICES) == expected


@pytest.mark.parametrize(
    ("name", "expected"), [("kernel_modules", ["ip_vs"]), ("masqueraded", []), ("vips", []), ("ipvs_rules", "")]
)
def test_no_services_need_nothing(name: str, expected: Any) -> None:
    assert FILTERS[name]([]) == expected


BROKEN = [{"name": "web", "fwmark": 0, "traffic": [{"destination": ["x"], "protocol": "tcp"}]}]
PROBLEMS = [
    "{}[0] (web).fwmark: 0 is not a firewall mark (1-2147483647)",
    "{}[0] (web).traffic[0].destination[0]: 'x' is not an address or network; names are not looked up",
]


def test_problems() -> None:
    assert FILTERS["problems"](BROKEN, "mine") == [problem.format("mine") for problem in PROBLEMS]


@pytest.mark.parametrize("name", ["ipvs_rules", "kernel_modules", "masqueraded", "vip_commands", "vips"])
def test_broken_services_are_refused_by_all_others(name: str) -> None:
    with pytest.raises(AnsibleFilterError) as error:
        FILTERS[name](BROKEN)
    assert str(error.value).splitlines() == [problem.format("lvs_services") for problem in PROBLEMS]


def test_vip_commands() -> None:
    addresses = [
        "address add 192.0.2.9/32 dev eth0",
        "address add 192.0.2.10/32 dev eth0",
        "address add 2001:db8::10/128 dev eth0 nodad preferred_lft 0",
    ]
    delivery = [
        "route add local default dev lo table 100",
        "-6 route add local default dev lo table 100",
        "rule add fwmark 80 lookup 100 priority 100",
        "rule add fwmark 5060 lookup 100 priority 100",
        "-6 rule add fwmark 80 lookup 100 priority 100",
    ]
    assert FILTERS["vip_commands"](SERVICES) == []
    assert FILTERS["vip_commands"](SERVICES, "eth0") == addresses
    assert FILTERS["vip_commands"](SERVICES, table=100) == delivery
    both = FILTERS["vip_commands"](SERVICES, "eth0", 100)
    assert both == delivery + addresses
    assert [found.add for found in ip_objects(both)] == both
    assert FILTERS["vip_commands"]([], "eth0", 100) == []


@pytest.mark.parametrize("services", [SERVICES, FTP, []])
def test_router_is_all_others_at_once(services: list[dict[str, Any]]) -> None:
    found = FILTERS["router"](services, "eth0", 100)
    alone = {
        **{name: FILTERS[name](services) for name in ("problems", "kernel_modules", "masqueraded", "ipvs_rules")},
        "marks": {family: FILTERS["marks"](services, family) for family in ("ipv4", "ipv6")},
        "vip_commands": FILTERS["vip_commands"](services, "eth0", 100),
        "nftables_marks": "",
    }
    assert found == {**found, **alone}
    assert FILTERS["router"](services)["vip_commands"] == []


def test_setup_joins_needs_and_machine() -> None:
    needs = FILTERS["router"](SERVICES, marking="nftables")
    families = {"Debian": {"packages": ["ipvsadm"], "restoring_units": [], "shared_files": [], "drop_ins": [],
                           "removing_units": {}}}  # fmt: skip
    texts = dict.fromkeys(("lvs-restore", "lvs-restore.service", "lvs-vips.service"), "text\n")
    settings = {name: str(value) for name, value in needs["sysctls"].items()}
    machine = {"os_family": "Debian", "missing_commands": [], "flushing_units": [], "paths": [], "settings": settings}
    found = FILTERS["setup"](needs, machine, families, texts)
    assert (found["obstacles"], found["packages"], found["lacks_something"]) == ([], ["ipvsadm", "nftables"], False)
    for lack in ({"missing_commands": ["nft"]}, {"settings": {}}):
        assert FILTERS["setup"](needs, {**machine, **lack}, families, texts)["lacks_something"]
    other = FILTERS["setup"](needs, {**machine, "os_family": "other"}, families, texts)
    assert list(other) == ["obstacles"] and "names another one: other" in other["obstacles"][0]


@pytest.mark.parametrize("services", [SERVICES, FTP, []])
def test_router_with_marks_by_nftables(services: list[dict[str, Any]]) -> None:
    """All else is the same; of the rules of iptables those for FTP are left; the tables are made anew or taken away."""
    needs = FILTERS["router"](services, "eth0", 100, marking="nftables")
    lines = needs.pop("nftables_marks").splitlines()
    marks = needs.pop("marks")
    by_iptables = FILTERS["router"](services, "eth0", 100)
    differing = {"marking": "nftables", "commands": [*by_iptables["commands"], "nft"]}
    assert {**needs, **differing} == needs
    assert {**by_iptables, **differing} == {**needs, "nftables_marks": "", "marks": by_iptables["marks"]}
    for family in ("ipv4", "ipv6"):
        assert "LVS-MARK" not in marks[family]
        assert ("LVS-SNAT" in marks[family]) == (services is FTP and family == "ipv4")
    assert lines[:2] == ["add table ip lvs-mark", "delete table ip lvs-mark"]
    assert ("add table ip6 lvs-mark" in lines, "delete table ip6 lvs-mark" in lines) == (True, True)
    elements = [line for line in lines if line.startswith("add element")]
    assert ('add element ip lvs-mark exact { 192.0.2.10 . tcp . 80 comment "lvs:web" : 0x50 }' in elements) == (
        services is SERVICES
    )
    assert bool(elements) == bool(services)


def test_of_broken_services_router_returns_the_problems() -> None:
    found = FILTERS["router"](BROKEN, path="mine", max_removals=101)
    assert found["problems"] == FILTERS["problems"](BROKEN, "mine") and len(found["variable_problems"]) == 1
    assert set(found) == {"problems", "variable_problems"}


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(AnsibleFilterError, match="'inet' is not one of ipv4, ipv6"):
        FILTERS["marks"](SERVICES, "inet")


def test_every_filter_is_documented_under_its_name() -> None:
    documented = {path.stem for path in (Path(__file__).parents[2] / "plugins/filter").glob("*.yml")}
    assert documented == {name for file in (fleet, report, status, trust) for name in file.FilterModule().filters()}
