# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What services need of a real server, and the rules that keep segments small."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.lvs.fleet.plugins.filter.fleet import FilterModule
from ansible_collections.lvs.fleet.plugins.module_utils._ip.words import ip_objects
from ansible_collections.lvs.fleet.plugins.modules import iptables_mss
from ansible_collections.lvs.fleet.tests.unit.fake_kernel import FakeKernel, Rule
from ansible_collections.lvs.fleet.tests.unit.running import run_module

FILTERS = FilterModule().filters()
LINKS = [
    {"ifname": "lo", "addr_info": [{"local": "127.0.0.1", "prefixlen": 8}, {"local": "::1", "prefixlen": 128}]},
    {"ifname": "eth0", "addr_info": [{"local": "10.0.0.11", "prefixlen": 24}, {}]},
    {"ifname": "eth0.5", "addr_info": [{"local": "2001:db8:0:1::11", "prefixlen": 64}]},
    {"ifname": "eth2", "addr_info": [{"local": "10.0.2.11", "prefixlen": 24}]},
]
OWN, OWN6, OTHER, SECOND = "10.0.0.11", "2001:db8:0:1::11", "10.0.0.12", "10.0.2.11"
NOTHING = {"commands": [], "sysctls": {}, "device_sysctls": {}, "segments": {}}
ARP = {"net/ipv4/conf/all/arp_ignore": 1, "net/ipv4/conf/all/arp_announce": 2}


def service(mark: int, *servers: Any, **settings: Any) -> dict[str, Any]:
    """A service with an address of each family, and a network, on two protocols."""
    destinations = [f"192.0.2.{mark}", f"2001:db8:0:10::{mark}", "203.0.113.0/24"]
    return {
        "name": f"service{mark}",
        "fwmark": mark,
        "traffic": [{"destination": destinations, "protocol": ["tcp", "udp"], "ports": [80]}],
        "real_servers": [server if isinstance(server, dict) else {"address": server} for server in servers],
        **settings,
    }


def tunnel(kind: str, address: str, **options: Any) -> dict[str, Any]:
    return {"address": address, "forward_method": "tunnel", "tunnel_type": kind, **options}


def needs(*services: dict[str, Any], **settings: Any) -> dict[str, Any]:
    found: dict[str, Any] = FILTERS["real_server"](list(services), LINKS, **settings)
    # What comes out is what ip_objects takes.
    assert [wanted.add for wanted in ip_objects(found["commands"])] == found["commands"]
    return found


def test_a_machine_in_no_pool_needs_nothing() -> None:
    assert needs() == needs(service(80, OTHER)) == NOTHING


def test_direct_routing() -> None:
    found = needs(service(80, OWN, OTHER, OWN6), service(9, OWN), service(81, OTHER))
    assert found == {
        **NOTHING,
        "commands": [
            "address add 192.0.2.9/32 dev lo",
            "address add 192.0.2.80/32 dev lo",
            "address add 2001:db8:0:10::80/128 dev lo nodad preferred_lft 0",
        ],
        "sysctls": ARP,
    }
    assert needs(service(80, OWN), vip_interface="dummy0")["commands"] == ["address add 192.0.2.80/32 dev dummy0"]


def test_ipv6_needs_no_setting() -> None:
    assert needs(service(80, OTHER, OWN6))["sysctls"] == {}


@pytest.mark.parametrize(
    ("server", "commands", "segment"),
    [
        (tunnel("ipip", OWN), ["link add lvs-ipip up type ipip local 10.0.0.11"], 1440),
        (tunnel("gre", OWN), ["link add lvs-gre up type gre local 10.0.0.11"], 1436),
        (tunnel("gre", OWN, tunnel_checksum="csum"), ["link add lvs-gre up type gre local 10.0.0.11 icsum"], 1432),
        (tunnel("gue", OWN, tunnel_port=6080),
         ["fou add port 6080 gue", "link add lvs-ipip up type ipip local 10.0.0.11"], 1428),
        (tunnel("gue", OWN, tunnel_port=6080, tunnel_checksum="remcsum"),
         ["fou add port 6080 gue", "link add lvs-ipip up type ipip local 10.0.0.11"], 1420),
        (tunnel("ipip", OWN6), ["link add lvs-ip6ip6 up type ip6tnl mode ip6ip6 local 2001:db8:0:1::11"], 1400),
        (tunnel("gre", OWN6), ["link add lvs-ip6gre up type ip6gre local 2001:db8:0:1::11"], 1396),
        (tunnel("gue", OWN6, tunnel_port=6080),
         ["-6 fou add port 6080 gue", "link add lvs-ip6ip6 up type ip6tnl mode ip6ip6 local 2001:db8:0:1::11"], 1388),
    ],
)  # fmt: skip
def test_tunnels(server: dict[str, Any], commands: list[str], segment: int) -> None:
    found = needs(service(80, server))
    name = commands[-1].split()[2]
    ipv6 = ":" in server["address"]
    vip = "2001:db8:0:10::80" if ipv6 else "192.0.2.80"
    ending = "/128 dev {} nodad preferred_lft 0" if ipv6 else "/32 dev {}"
    assert found == {
        "commands": [*commands, f"address add {vip}{ending.format(name)}"],
        "sysctls": {} if ipv6 else ARP,
        "device_sysctls": {} if ipv6 else {f"net/ipv4/conf/{name}/rp_filter": 2},
        "segments": {vip: segment},
    }


def test_services_share_devices_and_ports() -> None:
    gue, ipip = tunnel("gue", OWN, tunnel_port=6080), tunnel("ipip", OWN)
    found = needs(service(80, gue), service(81, gue), service(82, ipip), service(83, OWN))
    assert found["commands"] == [
        "fou add port 6080 gue",
        "link add lvs-ipip up type ipip local 10.0.0.11",
        "address add 192.0.2.80/32 dev lvs-ipip",
        "address add 192.0.2.81/32 dev lvs-ipip",
        "address add 192.0.2.82/32 dev lvs-ipip",
        "address add 192.0.2.83/32 dev lo",
    ]
    assert found["segments"] == {"192.0.2.80": 1428, "192.0.2.81": 1428, "192.0.2.82": 1440}


def test_an_address_that_two_tunnels_lead_to() -> None:
    gre = {**service(81, tunnel("gre", OWN)), "traffic": service(80)["traffic"]}
    found = needs(service(80, tunnel("ipip", OWN)), gre, mtu=1400)
    assert found["commands"][-2:] == ["address add 192.0.2.80/32 dev lvs-gre", "address add 192.0.2.80/32 dev lvs-ipip"]
    assert found["segments"] == {"192.0.2.80": 1336}


def test_a_machine_with_two_addresses_has_two_devices() -> None:
    found = needs(service(80, tunnel("ipip", OWN), tunnel("ipip", SECOND)))
    assert found["commands"][:2] == [
        "link add lvs-ipip up type ipip local 10.0.0.11",
        "link add lvs-ipip2 up type ipip local 10.0.2.11",
    ]
    only = needs(service(80, tunnel("ipip", OWN), tunnel("ipip", SECOND)), addresses=[SECOND])
    assert only["commands"][0] == "link add lvs-ipip up type ipip local 10.0.2.11"


def test_masquerading_needs_nothing_without_a_gateway() -> None:
    masqueraded = service(80, OWN, OWN6, forward_method="masquerade")
    assert needs(masqueraded) == NOTHING
    assert needs(masqueraded, gateways=["2001:db8:0:1::1"])["commands"] == [
        "-6 route add default via 2001:db8:0:1::1 table 110",
        "-6 rule add from 2001:db8:0:1::11 lookup main suppress_prefixlength 0 priority 110",
        "-6 rule add from 2001:db8:0:1::11 lookup 110 priority 111",
    ]


def test_masquerading_through_a_gateway() -> None:
    masqueraded = service(80, OWN, SECOND, forward_method="masquerade")
    found = needs(masqueraded, service(81, OWN), gateways=["10.0.0.1"], gateway_table=7)
    assert found["commands"] == [
        "route add default via 10.0.0.1 table 7",
        "rule add from 10.0.0.11 lookup main suppress_prefixlength 0 priority 7",
        "rule add from 10.0.0.11 lookup 7 priority 8",
        "rule add from 10.0.2.11 lookup main suppress_prefixlength 0 priority 7",
        "rule add from 10.0.2.11 lookup 7 priority 8",
        "address add 192.0.2.81/32 dev lo",
    ]
    redirects = [f"net/ipv4/conf/{scope}/accept_redirects" for scope in ("all", "eth0", "eth2")]
    assert found["sysctls"] == {**ARP, **dict.fromkeys(redirects, 0)}
    assert needs(service(81, OWN), gateways=["10.0.0.1"])["commands"] == ["address add 192.0.2.81/32 dev lo"]


def test_an_address_that_the_machine_does_not_have_has_no_device() -> None:
    masqueraded = service(80, OTHER, forward_method="masquerade")
    found = needs(masqueraded, addresses=[OTHER], gateways=["10.0.0.1"])
    assert found["sysctls"] == {"net/ipv4/conf/all/accept_redirects": 0}


def test_all_problems_at_once() -> None:
    with pytest.raises(AnsibleFilterError) as error:
        needs(addresses=["x"], vip_interface="a b", gateways=["10.0.0.1", "10.0.0.2"], gateway_table=253, mtu=9, more=1)
    assert str(error.value).splitlines() == [
        "lvs_real_server.addresses[0]: 'x' is not an IP address; names are not looked up",
        "lvs_real_server.gateways: takes one address of each family",
        "lvs_real_server.vip_interface: 'a b' is not an interface",
        "lvs_real_server.gateway_table: 253 is not a routing table (1-252)",
        "lvs_real_server.mtu: 9 is not an MTU (1280-65535)",
        "lvs_real_server.more: is not an option",
    ]


def test_one_device_cannot_take_two_kinds_of_gre() -> None:
    with pytest.raises(AnsibleFilterError) as error:
        needs(service(80, tunnel("gre", OWN)), service(81, tunnel("gre", OWN, tunnel_checksum="csum")))
    assert str(error.value) == "10.0.0.11: tunnel_checksum: its device takes GRE either with a checksum or without"


# -- segments -----------------------------------------------------------------------------------------------------

SEGMENTS = {"192.0.2.21": 1440, "2001:db8::21": "1400", "192.0.2.20": 1436}
RULE = '-s {} -p tcp -m tcp --tcp-flags SYN,RST SYN -m comment --comment "lvs:mss" -j TCPMSS --set-mss {}'
RULES = [RULE.format("192.0.2.20/32", 1436), RULE.format("192.0.2.21/32", 1440)]


def test_segments_check_run_check_run() -> None:
    kernel = FakeKernel()
    kernel.mangle["ipv4"].chains["LVS-MSS"] = [
        Rule("-s 10.0.0.1/32 -j RETURN"),
        Rule(RULE.format("192.0.2.20/32", 9000)),
    ]
    told = run_module(iptables_mss, kernel, check=True, segments=SEGMENTS)
    done = run_module(iptables_mss, kernel, segments=SEGMENTS)
    assert told == done and done["changed"]
    own = kernel.mangle["ipv4"].chains
    assert [rule.text for rule in own["LVS-MSS"]] == ["-s 10.0.0.1/32 -j RETURN", *RULES]
    assert [rule.text for rule in own["OUTPUT"]] == ["-j LVS-MSS"]
    assert len(kernel.mangle["ipv6"].chains["LVS-MSS"]) == 1
    assert not run_module(iptables_mss, kernel, segments=SEGMENTS)["changed"]
    assert run_module(iptables_mss, kernel, segments={})["changed"]
    assert "LVS-MSS" not in kernel.mangle["ipv6"].chains
    assert [rule.text for rule in kernel.mangle["ipv4"].chains["LVS-MSS"]] == ["-s 10.0.0.1/32 -j RETURN"]


def test_segments_for_boot() -> None:
    lines = ["*mangle", ":LVS-MSS - [0:0]", "-A OUTPUT -j LVS-MSS", *(f"-A LVS-MSS {rule}" for rule in RULES), "COMMIT"]
    assert FILTERS["mss_rules"](SEGMENTS, "ipv4").splitlines() == lines
    assert FILTERS["mss_rules"]({"192.0.2.21": 1440}, "ipv6") == ""
    with pytest.raises(AnsibleFilterError, match="'inet' is not one of ipv4, ipv6"):
        FILTERS["mss_rules"]({}, "inet")


@pytest.mark.parametrize("size", [536, 65495, "1400"])
def test_segments_at_their_bounds(size: Any) -> None:
    assert f"--set-mss {size}\n" in FILTERS["mss_rules"]({"192.0.2.1": size}, "ipv4")


@pytest.mark.parametrize("size", [535, 65496, 0, -1, 2**32, True, 1400.0, "", "1400\n-F", None])
def test_segments_beyond_their_bounds(size: Any) -> None:
    with pytest.raises(AnsibleFilterError, match=r"^segments\['192.0.2.1'\]: .* is not the size of a TCP segment"):
        FILTERS["mss_rules"]({"192.0.2.1": size}, "ipv4")


@pytest.mark.parametrize("given", [None, [], "192.0.2.1", 5])
def test_segments_of_another_shape(given: Any) -> None:
    with pytest.raises(AnsibleFilterError, match=r"^segments: .* is not a mapping of addresses to sizes$"):
        FILTERS["mss_rules"](given, "ipv4")


@pytest.mark.parametrize(
    ("setting", "taken", "refused"),
    [
        ("gateway_table", [1, 252, "110"], [0, 253, -1, 2**32, "x", "1\n2", True, 1.5]),
        ("mtu", [1280, 65535, "1500"], [1279, 65536, -1, "", True, 1500.0]),
        ("vip_interface", ["a" * 15, "br-0.12"], ["a" * 16, "", "lo nodad", "lo\n", "-x", "../all", "lo;id", "é", 7]),
        ("addresses", [[OWN], OWN, []], [["x"], ["10.0.0.11/24"], ["10.0.0.11\n"], ["0.0.0.0"], [7], "lo", {"a": 1}]),
        ("gateways", [["10.0.0.1"], ["10.0.0.1", "fe80::1"], []],
         [["x"], ["10.0.0.1", "10.0.0.2"], ["fe80::1%eth0"], ["10.0.0.1 table 5"], "eth0", [None]]),
    ],
)  # fmt: skip
def test_settings_at_and_beyond_their_bounds(setting: str, taken: list[Any], refused: list[Any]) -> None:
    for value in taken:
        needs(service(80, {"address": OWN, "forward_method": "masquerade"}), **{setting: value})
    for value in refused:
        with pytest.raises(AnsibleFilterError, match=rf"^lvs_real_server\.{setting}[^\n]*: [^\n]+$"):
            FILTERS["real_server"]([service(80, OWN)], LINKS, **{setting: value})


@pytest.mark.parametrize("links", [None, 5, [5], [{"addr_info": 5}], [{"addr_info": [{"local": "10.0.0.11"}]}],
                                   [{"ifname": "lo", "addr_info": [{"local": "x"}]}]])  # fmt: skip
def test_links_of_another_shape(links: Any) -> None:
    with pytest.raises(AnsibleFilterError, match=r"^ip -json address show: it is not understood: "):
        FILTERS["real_server"]([service(80, OWN)], links)


def test_bad_segments_touch_nothing() -> None:
    message = (
        "segments['x']: 'x' is not an IP address; names are not looked up\n"
        "segments['192.0.2.1']: 1 is not the size of a TCP segment (536-65495)"
    )
    bad = {"x": 1400, "192.0.2.1": 1}
    assert run_module(iptables_mss, FakeKernel(), segments=bad)["msg"] == message
    with pytest.raises(AnsibleFilterError) as error:
        FILTERS["mss_rules"](bad, "ipv4")
    assert str(error.value) == message
