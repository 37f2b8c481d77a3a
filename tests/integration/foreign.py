# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What other people may have on a router: rules of every table, rules in our chain, virtual services of every kind."""

from __future__ import annotations

from ansible_collections.lvs.fleet.tests.integration.harness import IPTABLES, Router

# The first three chains have names that begin like ours; one rule outside of our chain has a comment like ours.
_RULES = r"""
*raw
:RAW-OWN - [0:0]
-A PREROUTING -p udp -m udp --dport 53 -j CT --notrack
-A PREROUTING -j RAW-OWN
-A RAW-OWN -m {hops}-gt 5 -j RETURN
COMMIT
*mangle
:LVS-MARK-2 - [0:0]
:LVS-MARKS - [0:0]
:XLVS-MARK - [0:0]
:cali-PREROUTING - [0:0]
-A PREROUTING -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff
-A PREROUTING -d {host}/{full} -p tcp -m multiport --dports 80,443 -m comment --comment "lvs:web" -j MARK --set-xmark 0x50/0xffffffff
-A PREROUTING -i eth+ -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A PREROUTING ! -d {net} -p tcp -m tcp ! --dport 1:1023 -j MARK --set-xmark 0x1/0x1
-A PREROUTING -m comment --comment "a \"quoted\" word, it's \\ odd -j LVS-MARK" -j LVS-MARK-2
-A PREROUTING -s {net} -g LVS-MARKS
-A PREROUTING -m mark --mark 0x4000/0xc000 -j cali-PREROUTING
-A INPUT -m limit --limit 5/min --limit-burst 7 -j LOG --log-prefix "seen: " --log-level 6
-A FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
-A OUTPUT -m owner --uid-owner 33 -j DSCP --set-dscp 0x10
-A LVS-MARK-2 -d {host}/{full} -p udp -m udp --sport 5060 --dport 5060:5061 -j MARK --set-xmark 0x50/0xff
-A LVS-MARKS -m statistic --mode nth --every 2 --packet 0 -j MARK --set-xmark 0x7/0xffffffff
-A LVS-MARKS -p tcp -m tcp --dport 80 -j XLVS-MARK
-A XLVS-MARK -m length --length 64:1500 -j CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff
-A cali-PREROUTING -m comment --comment plain -j MARK --set-xmark 0x0/0xffff0000
COMMIT
*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s {net} ! -o docker0 -j MASQUERADE
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j REDIRECT --to-ports 80
COMMIT
*filter
:f2b-sshd - [0:0]
:LVS-MARK - [0:0]
-A INPUT -p tcp -m multiport --dports 22 -j f2b-sshd
-A INPUT -p sctp -m sctp --dport 3868 -j ACCEPT
-A FORWARD -m iprange --dst-range {low}-{high} -j DROP
-A f2b-sshd -s {host}/{full} -j REJECT
-A f2b-sshd -j RETURN
-A LVS-MARK -m comment --comment "lvs:web" -j RETURN
COMMIT
"""  # noqa: E501

# Made by hand in our chain, without our comment.
_CHAIN = """
*mangle
:LVS-MARK - [0:0]
-A PREROUTING -j LVS-MARK
-A LVS-MARK -s {host}/{full} -j RETURN
-A LVS-MARK -d {host}/{full} -p tcp -m tcp --dport 8080 -j MARK --set-xmark 0x2329/0xffffffff
-A LVS-MARK -d {net} -p udp -m multiport --dports 500,4500 -m comment --comment "vpn:web" -j MARK --set-xmark 0x2329/0xffffffff
COMMIT
"""  # noqa: E501

_ADDRESSES = {
    "ipv4": {
        "host": "203.0.113.9",
        "full": "32",
        "net": "198.51.100.0/24",
        "hops": "ttl --ttl",
        "low": "203.0.113.20",
        "high": "203.0.113.30",
    },
    "ipv6": {
        "host": "2001:db8:9::9",
        "full": "128",
        "net": "2001:db8:7::/64",
        "hops": "hl --hl",
        "low": "2001:db8:9::20",
        "high": "2001:db8:9::30",
    },
}

# Also what lvs.fleet itself does not accept: a mark above 2^31, a weight above 65535.
SERVICES = """
-A -f 9001 -s wlc -p 600 -M 255.255.255.0
-a -f 9001 -r 10.9.0.1:0 -m -w 3 -x 1000 -y 10
-a -f 9001 -r 10.9.0.2:8080 -g -w 70000
-A -f 9001 -6 -s sh -b sh-fallback,sh-port
-a -f 9001 -6 -r [2001:db8:90::1]:0 -i -w 2 --tun-type gue --tun-port 6080 --tun-csum
-A -f 4294967295 -s rr -o
-a -f 4294967295 -r 10.9.0.3:0 -g -w 1 -x 5
-A -t 203.0.113.80:80 -s wrr
-a -t 203.0.113.80:80 -r 10.9.0.4:8080 -m -w 0
-A -t 203.0.113.80:0 -s lc -p 60
-a -t 203.0.113.80:0 -r 10.9.0.4:0 -g -w 1
-A -u [2001:db8:9::53]:53 -s mh -b mh-port
-a -u [2001:db8:9::53]:53 -r [2001:db8:90::2]:53 -g -w 1
-A --sctp-service 203.0.113.80:3868 -s rr
-a --sctp-service 203.0.113.80:3868 -r 10.9.0.5:3868 -i -w 1 --tun-type gre --tun-nocsum
"""


def large_rules(family: str) -> str:
    """Some thousand rules in four tables, as container platforms and intrusion prevention make them."""
    address = "203.0.{}.{}" if family == "ipv4" else "2001:db8:f:{}::{}"
    hosts = [address.format(number // 200, number % 200 + 1) for number in range(1000)]
    services = [f"KUBE-SVC-{number:04X}" for number in range(200)]
    back = '-m comment --comment "ns/app:http \\"x\\"" -m statistic --mode random --probability 0.50000000000'
    lines = ["*raw", *(f"-A PREROUTING -d {host} -p udp -m udp --dport 53 -j CT --notrack" for host in hosts[:300])]
    lines += ["COMMIT", "*mangle", ":cali-fh - [0:0]", "-A PREROUTING -j CONNMARK --restore-mark --nfmask 0xff0000"]
    lines += [
        f"-A PREROUTING -d {host} -p tcp --dport 80 -j MARK --set-xmark 0x{n + 1:x}" for n, host in enumerate(hosts)
    ]
    lines += [f"-A cali-fh -s {host} -j MARK --set-xmark 0x10000/0xff0000" for host in hosts[:300]]
    lines += ["COMMIT", "*nat", ":DOCKER - [0:0]", ":KUBE-SERVICES - [0:0]", *(f":{name} - [0:0]" for name in services)]
    lines += [f"-A KUBE-SERVICES -d {host} -p tcp -j {name}" for host, name in zip(hosts, services, strict=False)]
    lines += [f"-A {name} {back} -j MARK --set-xmark 0x4000/0x4000" for name in services]
    lines += [f"-A DOCKER ! -i docker0 -d {host} -p tcp --dport 80 -j REDIRECT --to-ports 8080" for host in hosts]
    lines += ["COMMIT", "*filter", ":f2b-sshd - [0:0]", ":DOCKER-USER - [0:0]", "-A FORWARD -j DOCKER-USER"]
    lines += [f"-A f2b-sshd -s {host} -j REJECT" for host in hosts]
    return "\n".join([*lines, "COMMIT", ""])


def settle_rules(router: Router) -> None:
    """Other people's rules in every table of both families, and in our chain."""
    for family, command in IPTABLES.items():
        text = (_RULES + _CHAIN).format(**_ADDRESSES[family])
        router.tool(f"{command}-restore", "--noflush", stdin=text)


def settle_services(router: Router) -> None:
    router.ipvsadm(SERVICES)
