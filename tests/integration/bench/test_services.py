# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""lvs_service: every option of a virtual service, and what the kernel makes of it."""

from __future__ import annotations

import pytest

from ansible_collections.lvs.fleet.tests.integration.harness import Router
from ansible_collections.lvs.fleet.tests.integration.shapes import ANY, HEAD, WEB, rule, service

# Each case: a service, then in the words of the stock tools what there has to be of it.
CASES = {
    "the guide's web": (
        service("web", 80, WEB, persistence_timeout=300, real_servers=[{"address": "10.0.0.11", "weight": 10}]),
        [rule("web", 80, "-d 192.0.2.10/32 -p tcp -m multiport --dports 80,443")],
        [],
        ["-A -f 80 -s wlc -p 300", "-a -f 80 -r 10.0.0.11:0 -g -w 10"],
    ),
    "the guide's ftp": (
        service(
            "ftp",
            21,
            {"destination": ["192.0.2.10"], "protocol": ["tcp"], "ports": [20, 21, "10000:20000"]},
            scheduler="rr",
            persistence_timeout=2678400,
            persistence_netmask="255.255.255.0",
            forward_method="masquerade",
            real_servers=[{"address": "10.0.0.21"}, {"address": "10.0.0.22", "weight": 0}],
        ),
        [rule("ftp", 21, "-d 192.0.2.10/32 -p tcp -m multiport --dports 20,21,10000:20000")],
        [],
        [
            "-A -f 21 -s rr -p 2678400 -M 255.255.255.0",
            "-a -f 21 -r 10.0.0.21:0 -m -w 1",
            "-a -f 21 -r 10.0.0.22:0 -m -w 0",
        ],
    ),
    "both families": (
        service(
            "Dual.Stack_63-" + "x" * 49,
            0x7FFFFFFF,
            {"destination": ["192.0.2.10", "2001:DB8::10", "2001:db8:0::/64"], "protocol": "tcp", "ports": ["0x50"]},
            persistence_timeout=1,
            persistence_netmask=8,
            persistence_netmask6=48,
            real_servers=[
                {"address": "10.0.0.11", "weight": 65535, "upper_threshold": 2147483647, "lower_threshold": 1},
                {"address": "2001:db8:ffff:eeee:dddd:cccc:bbbb:aaaa", "upper_threshold": 5},
            ],
        ),
        [rule("Dual.Stack_63-" + "x" * 49, 0x7FFFFFFF, "-d 192.0.2.10/32 -p tcp -m multiport --dports 80")],
        [
            rule("Dual.Stack_63-" + "x" * 49, 0x7FFFFFFF, f"-d {network} -p tcp -m multiport --dports 80")
            for network in ("2001:db8::10/128", "2001:db8::/64")
        ],
        [
            "-A -f 2147483647 -s wlc -p 1 -M 255.0.0.0",
            "-a -f 2147483647 -r 10.0.0.11:0 -g -w 65535 -x 2147483647 -y 1",
            "-A -f 2147483647 -6 -s wlc -p 1 -M 48",
            "-a -f 2147483647 -6 -r [2001:db8:ffff:eeee:dddd:cccc:bbbb:aaaa]:0 -g -w 1 -x 5",
        ],
    ),
    "every way to narrow the traffic": (
        service(
            "narrow",
            1,
            {
                "destination": ["192.0.2.10", "192.0.2.128/25"],
                "protocol": ["tcp", "udp", "sctp"],
                "ports": [53],
                "source": ["198.51.100.0/24", "203.0.113.7"],
                "in_interface": "eth+",
            },
            {"destination": "0.0.0.0/0", "protocol": "udp", "ports": ["1:65535"], "source": "0.0.0.0/0"},
            {"destination": "::/0", "protocol": "sctp", "in_interface": "bond0.100"},
        ),
        [
            rule("narrow", 1, f"-s {source} -d {destination} -i eth+ -p {protocol} -m multiport --dports 53")
            for destination in ("192.0.2.10/32", "192.0.2.128/25")
            for protocol in ("tcp", "udp", "sctp")
            for source in ("198.51.100.0/24", "203.0.113.7/32")
        ]
        + [rule("narrow", 1, "-p udp -m multiport --dports 1:65535")],
        [rule("narrow", 1, "-i bond0.100 -p sctp")],
        ["-A -f 1 -s wlc", "-A -f 1 -6 -s wlc"],
    ),
    "more than 15 port slots": (
        # 14 single ports and a range take 16 slots; ports that touch or repeat are one.
        service("many", 2, {**ANY, "ports": ["100:200", *range(1, 29, 2), 150, "190:210", 27]}),
        [
            rule("many", 2, f"-d 192.0.2.10/32 -p tcp -m multiport --dports {ports}")
            for ports in ("1,3,5,7,9,11,13,15,17,19,21,23,25,27", "100:210")
        ],
        [],
        ["-A -f 2 -s wlc"],
    ),
    "exactly 15 port slots": (
        service("full", 2, {**ANY, "ports": ["1000:2000", *range(1, 27, 2)]}),
        [rule("full", 2, "-d 192.0.2.10/32 -p tcp -m multiport --dports 1,3,5,7,9,11,13,15,17,19,21,23,25,1000:2000")],
        [],
        ["-A -f 2 -s wlc"],
    ),
    "tunnels": (
        service(
            "tunnels",
            3,
            ANY,
            forward_method="tunnel",
            real_servers=[
                {"address": "10.0.0.1"},
                {"address": "10.0.0.2", "tunnel_type": "gue", "tunnel_port": 6080},
                {"address": "10.0.0.3", "tunnel_type": "gue", "tunnel_port": 65535, "tunnel_checksum": "csum"},
                {"address": "10.0.0.4", "tunnel_type": "gue", "tunnel_port": 1, "tunnel_checksum": "remcsum"},
                {"address": "10.0.0.5", "tunnel_type": "gre"},
                {"address": "10.0.0.6", "tunnel_type": "gre", "tunnel_checksum": "csum", "upper_threshold": 7},
                {"address": "10.0.0.7", "forward_method": "direct"},
                {"address": "10.0.0.8", "forward_method": "masquerade"},
            ],
        ),
        [rule("tunnels", 3, "-d 192.0.2.10/32 -p tcp")],
        [],
        [
            "-A -f 3 -s wlc",
            "-a -f 3 -r 10.0.0.1:0 -i -w 1 --tun-type ipip",
            "-a -f 3 -r 10.0.0.2:0 -i -w 1 --tun-type gue --tun-port 6080 --tun-nocsum",
            "-a -f 3 -r 10.0.0.3:0 -i -w 1 --tun-type gue --tun-port 65535 --tun-csum",
            "-a -f 3 -r 10.0.0.4:0 -i -w 1 --tun-type gue --tun-port 1 --tun-remcsum",
            "-a -f 3 -r 10.0.0.5:0 -i -w 1 --tun-type gre --tun-nocsum",
            "-a -f 3 -r 10.0.0.6:0 -i -w 1 -x 7 --tun-type gre --tun-csum",
            "-a -f 3 -r 10.0.0.7:0 -g -w 1",
            "-a -f 3 -r 10.0.0.8:0 -m -w 1",
        ],
    ),
    "sip": (
        service("sip", 5060, ANY, persistence_timeout=60, persistence_engine="sip"),
        [rule("sip", 5060, "-d 192.0.2.10/32 -p tcp")],
        [],
        ["-A -f 5060 -s wlc -p 60 --pe sip"],
    ),
    "one packet": (
        service("dns", 53, {"destination": "192.0.2.10", "protocol": "udp", "ports": [53]}, one_packet=True),
        [rule("dns", 53, "-d 192.0.2.10/32 -p udp -m multiport --dports 53")],
        [],
        ["-A -f 53 -s wlc -o"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_service(router: Router, case: str) -> None:
    """What is declared is what the stock tools print; lvs_info gives it back; absent leaves nothing of it."""
    declared, rules4, rules6, services = CASES[case]
    router.converge("lvs_service", services=[declared])
    there = router.converged
    assert there.own_rules("ipv4") == (HEAD + rules4 if rules4 else [])
    assert there.own_rules("ipv6") == (HEAD + rules6 if rules6 else [])
    assert there.services() == sorted(services)
    assert f"FWM  {declared['fwmark']:08X} {services[0].split(' -s ')[1].split()[0]}" in there.table

    [told] = router.run("lvs_info")["services"]
    router.is_settled("lvs_service", there, services=[told])

    gone = router.run("lvs_service", services=[{"name": declared["name"], "fwmark": 1234}], state="absent")
    assert gone["changed"]
    left = router.snapshot()
    assert (left.own_rules("ipv4"), left.own_rules("ipv6"), left.services()) == ([], [], [])


def test_all_at_once(router: Router) -> None:
    """All the services together, then in reverse: only the order of the rules changes, and no service is touched."""
    declared = [case[0] for name, case in CASES.items() if name != "exactly 15 port slots"]
    router.converge("lvs_service", services=declared)
    before = router.converged
    result = router.converge("lvs_service", services=declared[::-1])
    assert [line for line in result["operations"] if "tables -t mangle " not in line] == []
    after = router.converged
    assert sorted(after.own_rules("ipv4")) == sorted(before.own_rules("ipv4")) != after.own_rules("ipv4")
    assert after.services() == before.services()
    told = router.run("lvs_info")["services"]
    router.is_settled("lvs_service", after, services=told)


# What Linux 6.1 has; twos came later. A module for each must be loaded by the kernel itself when it is named.
SCHEDULERS = ("rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "mh", "sed", "nq", "fo", "ovf", "none")


def test_schedulers(router: Router) -> None:
    """Every scheduler is taken and can be changed into every next one in place."""
    servers = [{"address": "10.0.0.11", "weight": 3}]
    for place, scheduler in enumerate(SCHEDULERS):
        wanted = service("web", 80, WEB, scheduler=scheduler, real_servers=servers)
        result = router.run("lvs_service", services=[wanted])
        assert router.tool("ipvsadm", "-Sn") == f"-A -f 80 -s {scheduler}\n-a -f 80 -r 10.0.0.11:0 -g -w 3\n"
        assert place == 0 or result["operations"] == [f"ipvsadm -E -f 80 -s {scheduler}"]


# In the words of ipvsadm, which has no word for the third flag of sh and mh and leaves it out.
FLAGS = {
    ("sh", ("sh-fallback",)): "sh-fallback",
    ("sh", ("sh-port", "sh-fallback")): "sh-fallback,sh-port",
    ("sh", ("flag-1", "flag-2", "flag-3")): "sh-fallback,sh-port",
    ("mh", ("mh-port",)): "mh-port",
    ("mh", ("mh-fallback", "flag-2")): "mh-fallback,mh-port",
    ("rr", ("flag-2",)): "flag-2",
    ("wlc", ("flag-3", "flag-1", "flag-2")): "flag-1,flag-2,flag-3",
}


def test_scheduler_flags(router: Router) -> None:
    """Flags are set, changed and, when no longer named, cleared; under either of their names they are the same."""
    for (scheduler, flags), printed in FLAGS.items():
        wanted = service("web", 80, WEB, scheduler=scheduler, scheduler_flags=list(flags))
        assert router.run("lvs_service", services=[wanted])["changed"]
        assert router.tool("ipvsadm", "-Sn") == f"-A -f 80 -s {scheduler} -b {printed}\n"
        assert not router.run("lvs_service", services=[wanted])["changed"]
        [told] = router.run("lvs_info")["services"]
        assert len(told["scheduler_flags"]) == len(flags)
    assert router.run("lvs_service", services=[service("web", 80, WEB)])["changed"]
    assert router.tool("ipvsadm", "-Sn") == "-A -f 80 -s wlc\n"


def test_masqueraded_ftp(router: Router) -> None:
    """Besides its marks it has a rule in table nat for each masqueraded real server, and with it all of them go."""
    traffic = {"destination": ["192.0.2.10", "2001:db8::10"], "protocol": "tcp", "ports": [20, 21, "10000:10100"]}
    servers = [{"address": address} for address in ("10.0.0.22", "10.0.0.21", "2001:db8:1::21")]
    ftp = service("ftp", 21, traffic, persistence_timeout=300, helper="ftp", forward_method="masquerade")
    router.converge("lvs_service", services=[{**ftp, "real_servers": servers}])
    rule_of = '-A LVS-SNAT -s {} -p tcp -m tcp --sport 20 -m comment --comment "lvs:ftp" -j SNAT --to-source {}'
    chain = [":LVS-SNAT - [0:0]", "-A POSTROUTING -j LVS-SNAT"]
    ipv4 = [*chain, *(rule_of.format(f"{address}/32", "192.0.2.10") for address in ("10.0.0.21", "10.0.0.22"))]
    ipv6 = [*chain, rule_of.format("2001:db8:1::21/128", "2001:db8::10")]
    assert [line for line in router.converged.own_rules("ipv4") if "LVS-SNAT" in line] == ipv4
    assert [line for line in router.converged.own_rules("ipv6") if "LVS-SNAT" in line] == ipv6
    # The kernel lists real servers in an order of its own; feeding that back changes nothing.
    router.is_settled("lvs_service", services=router.run("lvs_info")["services"])
    router.converge("lvs_service", services=[{"name": "ftp", "fwmark": 21}], state="absent")
    assert router.converged.own_rules("ipv4") == router.converged.own_rules("ipv6") == []
