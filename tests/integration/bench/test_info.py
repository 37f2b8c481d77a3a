# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""lvs_info: reads everything, changes nothing, and what it returns is what the other modules take."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.lvs.fleet.plugins.filter.status import status
from ansible_collections.lvs.fleet.tests.integration import foreign
from ansible_collections.lvs.fleet.tests.integration.harness import CHAIN, Router
from ansible_collections.lvs.fleet.tests.integration.shapes import WEB, service

FULL = 0xFFFFFFFF


def test_a_router_made_by_hand(router: Router) -> None:
    """Rules and services that somebody typed are told in the modules' own shape, and fed back change nothing."""
    router.iptables(
        f"""
        :{CHAIN} - [0:0]
        -A PREROUTING -j {CHAIN}
        -A {CHAIN} -p tcp --dport 80 -d 192.0.2.10 -m comment --comment lvs:web -j MARK --set-mark 80
        -A {CHAIN} -p tcp -m multiport --dports 844,443 -d 192.0.2.10 -m comment --comment lvs:web -j MARK --set-mark 80
        -A {CHAIN} -i eth0 -s 10.1.0.0/24 -d 192.0.2.0/24 -p udp -m comment --comment lvs:low -j MARK --set-mark 5/15
        """
    )
    router.ipvsadm(
        """
        -A -f 80 -s wrr -p 360 -M 255.255.255.0
        -a -f 80 -r 10.0.0.11 -m -w 3 -x 9 -y 2
        -a -f 80 -r 10.0.0.12 -i --tun-type gue --tun-port 6080 --tun-remcsum
        -A -f 80 -6 -s sh -b sh-port
        -a -f 80 -6 -r 2001:db8:1::1 -g
        -A -u 192.0.2.10:0 -p 60
        -a -u 192.0.2.10:0 -r 10.0.0.11 -g
        -A -t [2001:db8::10]:443 -s mh -b mh-fallback,mh-port
        -a -t [2001:db8::10]:443 -r [2001:db8:1::1]:8443 -m -w 0
        -A --sctp-service 192.0.2.10:9 -s rr
        -A -u 192.0.2.10:53 -s rr -o
        """
    )
    before = router.snapshot()
    told = router.run("lvs_info")
    assert (told["changed"], router.snapshot()) == (False, before)
    shown = status(["router1"], {"router1": {"lvs_found": told}})
    assert (shown["routers"][0]["state"], shown["totals"]["servers"]) == ("read", 5)
    web = {"name": "web", "mark": 80, "mask": FULL, "destination": ["192.0.2.10"], "protocol": ["tcp"]}
    low = {"name": "low", "mark": 5, "mask": 15, "destination": ["192.0.2.0/24"], "protocol": ["udp"]}
    assert told["rules"] == [
        {**web, "ports": [80]},
        {**web, "ports": [443, 844]},
        {**low, "source": ["10.1.0.0/24"], "in_interface": "eth0"},
    ]
    router.is_settled("iptables_mark", before, rules=told["rules"], purge=True)
    router.is_settled("ipvs_service", before, services=told["ipvs_services"], purge=True)
    # The IPv6 half has no rules, so as one declared service web is only this.
    assert [(found["name"], found["fwmark"]) for found in told["services"]] == [("web", 80)]
    router.is_settled("lvs_service", before, services=told["services"], purge="none")


def test_adopt_what_lvs_info_says(router: Router) -> None:
    """A service made by hand in both families becomes ours: its rules move, its services are not even edited."""
    foreign.settle_services(router)
    router.ipvsadm(
        """
        -A -f 90 -s wrr -p 360 -M 255.255.255.0
        -a -f 90 -r 10.0.0.11 -m -w 3 -x 9 -y 2
        -A -f 90 -6 -s wrr -p 360
        -a -f 90 -6 -r 2001:db8:1::1 -g
        """
    )
    for family, address in (("ipv4", "192.0.2.90"), ("ipv6", "2001:db8::90")):
        rules = (f"-A PREROUTING -d {address} -p tcp --dport {port} -j MARK --set-mark 90" for port in (80, 443))
        router.iptables("\n".join(["-A PREROUTING -p udp -j ACCEPT", *rules]), family=family)
    before = router.snapshot()
    told = router.run("lvs_info")["adoptable"]["before"]
    by_hand = [item for item in told if "fwmark" in item]
    by_address = [item for item in told if "fwmark" not in item]
    assert [(item["name"], item["fwmark"], len(item["traffic"])) for item in by_hand] == [("fwmark-90", 90, 2)]
    assert router.snapshot() == before
    done = router.run("lvs_service", services=by_hand, adopt=True)
    assert not [line for line in done["operations"] if line.startswith("ipvsadm")]
    after = router.snapshot()
    assert (after.ipvsadm, after.thresholds) == (before.ipvsadm, before.thresholds)
    for family in ("ipv4", "ipv6"):
        left = [line for line in after.foreign_rules(family).splitlines() if line.startswith("-A PREROUTING")]
        assert left == ["-A PREROUTING -p udp -j ACCEPT"]
    router.is_settled("lvs_service", services=by_hand, adopt=True)
    again = router.run("lvs_info")
    assert (again["services"], again["adoptable"]) == (by_hand, {"before": by_address, "behind": []})
    others = {"service_without_mark", "vip_not_local", "not_declarable"}
    assert {problem["kind"] for problem in again["problems"]} <= others


# Kinds of problems: what is done by hand to a good router, then each problem without its message.
LATER = {"name": "web", "fwmark": 80, "family": "ipv4"}
PROBLEMS: dict[str, tuple[dict[str, str], list[dict[str, Any]]]] = {
    "none": ({}, []),
    "mark without service": (
        {"ipvsadm": "-D -f 80"},
        [{"kind": "mark_without_service", "name": "web", "fwmark": 80, "family": "ipv4"}],
    ),
    "service without mark": (
        {"ipvsadm": "-A -f 90\n-A -f 80 -6\n-A -f 4294967295\n-A -t 192.0.2.10:80"},
        [
            {"kind": "service_without_mark", "fwmark": 80, "family": "ipv6"},
            {"kind": "service_without_mark", "fwmark": 90, "family": "ipv4"},
            {"kind": "service_without_mark", "fwmark": 4294967295, "family": "ipv4"},
            {"kind": "not_declarable", "fwmark": 4294967295, "family": "ipv4"},
        ],
    ),
    "a mark that somebody else gives": (
        {"ipvsadm": "-A -f 90", "iptables": "-A PREROUTING -d 192.0.2.90 -j MARK --set-mark 90"},
        [],
    ),
    "virtual address not local": (
        {"ip": "addr del 192.0.2.10/32 dev lo"},
        [{"kind": "vip_not_local", "address": "192.0.2.10", "fwmark": 80}],
    ),
    "virtual address local by a route for the mark": (
        {
            "ip": "addr del 192.0.2.10/32 dev lo\nrule add fwmark 80 lookup 100\n"
            "route add local 0.0.0.0/0 dev lo table 100"
        },
        [],
    ),
    "no jump": ({"iptables": f"-D PREROUTING -j {CHAIN}"}, [{"kind": "jump", "family": "ipv4"}]),
    "two jumps": ({"iptables": f"-A PREROUTING -j {CHAIN}"}, [{"kind": "jump", "family": "ipv4"}]),
    "somebody else's rule in our chain": (
        {"iptables": f"-A {CHAIN} -d 192.0.2.99 -j RETURN"},
        [{"kind": "foreign_rule", "family": "ipv4"}],
    ),
    "a mask, so no declared service": (
        {"iptables": f"-A {CHAIN} -d 192.0.2.10 -m comment --comment lvs:web -j MARK --set-mark 80/0xff"},
        [{"kind": "not_declarable", "name": "web", "fwmark": 80}],
    ),
    "a later mark of somebody else": (
        {"iptables": "-A INPUT -d 192.0.2.0/24 -j MARK --set-mark 9"},
        [
            {
                "kind": "overridden",
                "name": "web",
                "fwmark": 80,
                "family": "ipv4",
                "table": "mangle",
                "chain": "INPUT",
                "position": 1,
                "mark": 9,
            }
        ],
    ),
    "the mark of the connection": (
        {"iptables": "-I PREROUTING -j CONNMARK --restore-mark\n-A PREROUTING -p tcp -j CONNMARK --restore-mark"},
        [{"kind": "connmark", **LATER, "table": "mangle", "chain": "PREROUTING", "position": 3}],
    ),
    "the same rule by hand": (
        {"iptables": "-A PREROUTING -d 192.0.2.10 -p tcp --dport 443 -j MARK --set-mark 80"},
        [{"kind": "duplicate", "fwmark": 80, "family": "ipv4", "chain": "PREROUTING", "position": 2}],
    ),
    "routing by our mark, behind the local table": ({"ip": "rule add fwmark 80 lookup 100 priority 9"}, []),
    "routing by our mark": (
        {"ip": "addr del 192.0.2.10/32 dev lo\nrule add fwmark 80 prohibit priority 9"},
        [
            {"kind": "vip_not_local", "address": "192.0.2.10", "fwmark": 80},
            {"kind": "policy_rule", "name": "web", "fwmark": 80, "family": "ipv4", "priority": 9},
        ],
    ),
    "a real server with a port, so no declared service": (
        {"ipvsadm": "-a -f 80 -r 10.0.0.11:80"},
        [{"kind": "not_declarable", "name": "web", "fwmark": 80}],
    ),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_problems(router: Router, problem: str) -> None:
    by_hand, expected = PROBLEMS[problem]
    router.tool("ip", "addr", "add", "192.0.2.10/32", "dev", "lo")
    router.run("lvs_service", services=[service("web", 80, WEB, real_servers=[{"address": "10.0.0.11"}])])
    if "ipvsadm" in by_hand:
        router.ipvsadm(by_hand["ipvsadm"])
    if "iptables" in by_hand:
        router.iptables(by_hand["iptables"])
    if "ip" in by_hand:
        router.tool("ip", "-batch", "-", stdin=f"{by_hand['ip']}\n")
    told = router.run("lvs_info")["problems"]
    assert all(found.pop("message") for found in told)
    assert sorted(told, key=repr) == sorted(expected, key=repr)


def test_timeouts_and_daemons(router: Router) -> None:
    """What ipvsadm sets, lvs_info tells, and what lvs_info tells, ipvsadm lists."""
    router.tool("ip", "-batch", "-", stdin="link add sync0 type dummy\nlink set sync0 up multicast on\n")
    router.tool("ip", "addr", "add", "10.77.0.1/24", "dev", "sync0")
    assert router.run("lvs_info")["daemons"] == []
    router.ipvsadm(
        """
        --set 901 121 301
        --start-daemon master --mcast-interface sync0 --syncid 10 --mcast-group 224.0.0.9 --mcast-port 884 --mcast-ttl 3
        --start-daemon backup --mcast-interface sync0 --syncid 11
        """
    )
    try:
        told = router.run("lvs_info")
        assert told["timeouts"] == {"tcp": 901, "tcp_fin": 121, "udp": 301}
        assert router.tool("ipvsadm", "-L", "--timeout") == "Timeout (tcp tcpfin udp): 901 121 301\n"
        form = "{state} sync daemon (mcast={interface}, syncid={sync_id}, maxlen={sync_maxlen}, group={group}, "
        form += "port={port}, ttl={ttl})"
        assert [form.format_map(daemon) for daemon in told["daemons"]] == router.tool(
            "ipvsadm", "-L", "--daemon"
        ).splitlines()
        assert [daemon["group"] for daemon in told["daemons"]] == ["224.0.0.9", "224.0.0.81"]
    finally:
        # Each is a thread of the kernel that holds on to the namespace.
        router.ipvsadm("--stop-daemon master\n--stop-daemon backup")
