# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Problems that lvs_info tells are those of clients: who meets one is refused, and who meets none is served."""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ansible_collections.lvs.fleet.tests.integration.harness import Router
from ansible_collections.lvs.fleet.tests.integration.shapes import service
from ansible_collections.lvs.fleet.tests.integration.traffic import CLIENT, PORTS, SERVER, VIRTUAL, Site

VIP, FAMILY = VIRTUAL[socket.AF_INET], socket.AF_INET
# Within one machine an answer takes milliseconds; a second later TCP asks again.
PATIENCE_SECONDS = 0.9
TO_9 = "-j MARK --set-mark 9"
# Without a rule that has connections tracked no packet passes table nat.
TRACKING = "-A POSTROUTING -s 10.9.0.0/16 -j MASQUERADE"
RESTORE = "-j CONNMARK --restore-mark"
# As kube-proxy does.
MASQUERADING = """\
:KUBE - [0:0]
-A POSTROUTING -j KUBE
-A KUBE -m mark ! --mark {0}/{0} -j RETURN
-A KUBE -j MASQUERADE --random-fully"""


@dataclass(frozen=True)
class Row:
    """What somebody does to a good router, the problems then told, by kind and chain, and whether clients are served.

    Who is masqueraded on the way counts as not served: the real server does not know who asks. rules are commands of
    iptables by their table; the next four are commands of ip and tc; settings are files in /proc/sys/net/ipv4, set to
    1 for the row.
    """

    problems: list[str]
    served: bool
    rules: dict[str, str] = field(default_factory=dict)
    ip: str = ""
    undo: str = ""
    tc: str = ""
    undo_tc: str = ""
    settings: tuple[str, ...] = ()


# What iptables-restore makes of tables that the saved ones do not name.
EMPTY = "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n"
EMPTY += "".join(f"*{table}\nCOMMIT\n" for table in ("raw", "nat", "security"))
# The address is no more the router's own; packets with our mark are delivered to it all the same.
GONE, BACK = f"addr del {VIP}/32 dev lo\n", f"addr add {VIP}/32 dev lo\n"
CLASSIFIED, UNCLASSIFIED = "qdisc add dev server1 clsact\n", "qdisc del dev server1 clsact\n"
DELIVER, NOT_DELIVER = "route add local default dev lo table 100\n", "route del local default dev lo table 100\n"


ROWS = {
    "nothing": Row([], True),
    # Other people's marks.
    "Kubernetes' mark": Row(
        ["overridden PREROUTING"],
        False,
        {"nat": f"-A PREROUTING -d {VIP} -p tcp --dport 80 -j MARK --set-xmark 0x4000/0x4000\n{TRACKING}"},
    ),
    "Calico clears bits": Row(["overridden INPUT"], False, {"filter": "-A INPUT -j MARK --set-xmark 0x0/0xffff"}),
    "Calico clears other bits": Row([], True, {"filter": "-A INPUT -j MARK --set-xmark 0x0/0xffff0000"}),
    "table security": Row(["overridden INPUT"], False, {"security": f"-A INPUT {TO_9}"}),
    "table raw, before ours": Row([], True, {"raw": f"-A PREROUTING {TO_9}"}),
    "nat INPUT, behind IPVS": Row([], True, {"nat": f"-A INPUT {TO_9}"}),
    "another protocol": Row([], True, {"filter": f"-A INPUT ! -p tcp {TO_9}"}),
    "another address": Row([], True, {"filter": f"-A INPUT ! -d {VIP} {TO_9}"}),
    "other ports": Row([], True, {"filter": f"-A INPUT -p tcp -m multiport ! --dports 80,443 {TO_9}"}),
    "the loopback": Row([], True, {"filter": f"-A INPUT -i lo {TO_9}"}),
    "made good": Row(
        [], True, {"nat": f"-A PREROUTING {TO_9}\n{TRACKING}", "filter": "-A INPUT -j MARK --set-mark 80"}
    ),
    "connections that are there": Row(
        [], True, {"filter": f"-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED {TO_9}"}
    ),
    "not the first packet": Row([], True, {"filter": f"-A INPUT -p tcp ! --syn {TO_9}"}),
    # The connection's mark.
    "restored": Row(["connmark INPUT"], False, {"mangle": f"-A INPUT {RESTORE}"}),
    "restored under other bits": Row([], True, {"mangle": f"-A INPUT {RESTORE} --nfmask 0xff0000 --ctmask 0xff0000"}),
    "saved and restored": Row([], True, {"mangle": f"-A INPUT -j CONNMARK --save-mark\n-A INPUT {RESTORE}"}),
    "restored without conntrack": Row(
        [], True, {"raw": "-A PREROUTING -p tcp -j CT --notrack", "mangle": f"-A INPUT {RESTORE}"}
    ),
    # Our jump is not reached.
    "accepted before our jump": Row(
        ["bypassed PREROUTING"], False, {"mangle": f"-I PREROUTING -d {VIP} -p tcp -j ACCEPT"}
    ),
    "returned before our jump": Row(["bypassed PREROUTING"], False, {"mangle": "-I PREROUTING -i client -j RETURN"}),
    "a chain with goto before our jump": Row(
        ["bypassed PREROUTING"], False, {"mangle": ":OWN - [0:0]\n-I PREROUTING -p tcp -g OWN\n-A OWN -p udp -j DROP"}
    ),
    "established before our jump": Row(
        [], True, {"mangle": "-I PREROUTING -m conntrack --ctstate ESTABLISHED -j ACCEPT"}
    ),
    # Dropped.
    "dropped in raw": Row(["dropped PREROUTING"], False, {"raw": f"-A PREROUTING -d {VIP} -j DROP"}),
    "dropped in a chain": Row(
        ["dropped OWN"], False, {"filter": ":OWN - [0:0]\n-A INPUT -p tcp -j OWN\n-A OWN -p tcp --dport 443 -j REJECT"}
    ),
    "dropped by the policy": Row(
        ["dropped INPUT"],
        False,
        {"filter": ":INPUT DROP [0:0]\n-A INPUT -i lo -j ACCEPT\n-A INPUT -p tcp --dport 80 -j ACCEPT"},
    ),
    "let in": Row(
        [],
        True,
        {"filter": ":INPUT DROP [0:0]\n-A INPUT -p tcp --dport 80 -j ACCEPT\n-A INPUT -p tcp --dport 443 -j ACCEPT"},
    ),
    "let in by the mark": Row([], True, {"filter": ":INPUT DROP [0:0]\n-A INPUT -m mark --mark 80 -j ACCEPT"}),
    "let in for an interface": Row(
        [], True, {"filter": ":INPUT DROP [0:0]\n-A INPUT -i client -p tcp -m multiport --dports 80,443 -j ACCEPT"}
    ),
    "kept out by every interface": Row(
        ["dropped INPUT"] * 3,
        False,
        {"filter": "-A INPUT -i client -j DROP\n-A INPUT -i server1 -j DROP\n-A INPUT -i server2 -j DROP"},
    ),
    "what no first packet is": Row(
        [],
        True,
        {
            "filter": "-A INPUT -m conntrack --ctstate INVALID -j DROP\n"
            "-A INPUT -p tcp ! --syn -m conntrack --ctstate NEW -j DROP\n-A INPUT -p icmp -j DROP"
        },
        # Without it all packets of a connection of IPVS are new.
        settings=("vs/conntrack",),
    ),
    "new, but not tracked": Row(
        ["dropped INPUT"],
        False,
        {
            "raw": "-A PREROUTING -p tcp -j CT --notrack",
            "filter": ":INPUT DROP [0:0]\n-A INPUT -m conntrack --ctstate NEW,ESTABLISHED -j ACCEPT",
        },
    ),
    # What real servers answer.
    "forwards nothing": Row(["dropped FORWARD"], False, {"filter": ":FORWARD DROP [0:0]"}),
    "forwards what is established": Row(
        ["dropped FORWARD"],
        False,
        {"filter": ":FORWARD DROP [0:0]\n-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"},
    ),
    "forwards what is established, also to IPVS": Row(
        [],
        True,
        {"filter": ":FORWARD DROP [0:0]\n-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"},
        settings=("vs/conntrack",),
    ),
    "forwards from real servers": Row(
        [],
        True,
        {
            "filter": ":FORWARD DROP [0:0]\n-A FORWARD -i server1 -o client -j ACCEPT\n"
            "-A FORWARD -s 10.0.2.2 -p tcp -m multiport --sports 80,443 -j ACCEPT"
        },
    ),
    "as Docker": Row(
        ["dropped FORWARD"],
        False,
        {"filter": ":FORWARD DROP [0:0]\n-A FORWARD -i docker0 ! -o docker0 -j ACCEPT"},
    ),
    # Taken elsewhere.
    "DNAT": Row(
        ["translated PREROUTING"],
        False,
        {"nat": f"-A PREROUTING -d {VIP} -p tcp --dport 80 -j DNAT --to-destination 10.0.1.2:81"},
    ),
    "Docker": Row(
        ["translated DOCKER"],
        False,
        {
            "nat": ":DOCKER - [0:0]\n-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n"
            "-A DOCKER ! -i docker0 -p tcp --dport 443 -j DNAT --to-destination 10.0.1.2:81"
        },
    ),
    "DNAT without conntrack": Row(
        [],
        True,
        {
            "raw": "-A PREROUTING -p tcp -j CT --notrack",
            "nat": f"-A PREROUTING -d {VIP} -p tcp --dport 80 -j DNAT --to-destination 10.0.1.2:81",
        },
    ),
    # Routing.
    "by mark, behind the local table": Row(
        [], True, ip="rule add fwmark 80 priority 9 prohibit", undo="rule del priority 9"
    ),
    "no address of the router": Row(["vip_not_local"], False, ip=GONE, undo=BACK),
    "delivered by mark": Row(
        [],
        True,
        ip=f"{GONE}{DELIVER}rule add fwmark 80 lookup 100 priority 9",
        undo=f"{BACK}{NOT_DELIVER}rule del priority 9",
    ),
    "delivered by mark from an interface": Row(
        [],
        True,
        ip=f"{GONE}{DELIVER}rule add fwmark 80 iif client lookup 100 priority 9",
        undo=f"{BACK}{NOT_DELIVER}rule del priority 9",
    ),
    "sources are looked up by mark": Row(
        ["src_valid_mark"],
        False,
        ip=f"{GONE}{DELIVER}rule add fwmark 80 lookup 100 priority 9",
        undo=f"{BACK}{NOT_DELIVER}rule del priority 9",
        settings=("conf/all/src_valid_mark",),
    ),
    "sources are looked up by mark, for an interface": Row(
        [],
        True,
        ip=f"{GONE}{DELIVER}rule add fwmark 80 iif client lookup 100 priority 9",
        undo=f"{BACK}{NOT_DELIVER}rule del priority 9",
        settings=("conf/client/src_valid_mark",),
    ),
    "prohibited by mark": Row(
        ["vip_not_local", "policy_rule"],
        False,
        ip=f"{GONE}rule add fwmark 80 priority 9 prohibit",
        undo=f"{BACK}rule del priority 9",
    ),
    "prohibited before the local table": Row(
        ["vip_not_local", "policy_rule"],
        False,
        ip="rule add lookup local priority 100\nrule del priority 0\nrule add fwmark 80 priority 9 prohibit",
        undo="rule add lookup local priority 0\nrule del priority 100\nrule del priority 9",
    ),
    "from another source, before the local table": Row(
        [],
        True,
        ip="rule add lookup local priority 100\nrule del priority 0\n"
        "rule add from 203.0.113.0/24 fwmark 80 priority 9 prohibit",
        undo="rule add lookup local priority 0\nrule del priority 100\nrule del priority 9",
    ),
    # Readers of our mark behind IPVS. It keeps connection tracking out, and with it table nat, unless told otherwise.
    "Kubernetes masquerades by a bit of our mark": Row(
        ["mark_read KUBE"], False, {"nat": MASQUERADING.format("0x40")}, settings=("vs/conntrack",)
    ),
    "Kubernetes masquerades by another bit": Row(
        [], True, {"nat": MASQUERADING.format("0x4000")}, settings=("vs/conntrack",)
    ),
    "masquerades by a bit of our mark, without conntrack": Row([], True, {"nat": MASQUERADING.format("0x40")}),
    "drops by our mark": Row(["mark_read OUTPUT"], False, {"filter": "-A OUTPUT -m mark --mark 80 -j DROP"}),
    "drops by a bit of our mark": Row(
        ["mark_read POSTROUTING"], False, {"mangle": "-A POSTROUTING -p tcp -m mark --mark 0x10/0x10 -j DROP"}
    ),
    "drops by another mark": Row([], True, {"mangle": "-A POSTROUTING -m mark --mark 81 -j DROP"}),
    # Traffic control behind IPVS, and before netfilter.
    "tc drops by the mark": Row(
        ["mark_read"],
        False,
        tc=f"{CLASSIFIED}filter add dev server1 egress protocol ip handle 0x50/0xff fw action drop",
        undo_tc=UNCLASSIFIED,
    ),
    "tc drops by the mark in a u32": Row(
        ["mark_read"],
        False,
        tc=f"{CLASSIFIED}filter add dev server1 egress protocol ip u32 match mark 80 0xffffffff action drop",
        undo_tc=UNCLASSIFIED,
    ),
    "tc drops by an expression": Row(
        ["mark_read"],
        False,
        tc="qdisc add dev server1 root handle 1: prio\n"
        "filter add dev server1 parent 1: protocol ip basic match 'meta(nf_mark eq 80)' action drop",
        undo_tc="qdisc del dev server1 root",
    ),
    "tc leaves our mark alone, or comes before it": Row(
        [],
        True,
        tc=f"{CLASSIFIED}filter add dev server1 egress protocol ip prio 1 handle 81 fw action drop\n"
        "filter add dev server1 egress protocol ip prio 2 matchall action skbedit mark 9\n"
        "qdisc add dev client clsact\n"
        "filter add dev client ingress protocol ip prio 1 handle 80 fw action drop\n"
        "filter add dev client ingress protocol ip prio 2 matchall action skbedit mark 9",
        undo_tc=f"{UNCLASSIFIED}qdisc del dev client clsact",
    ),
}


class Clients(Site):
    """Real servers that nobody runs: the kernel completes connections by itself."""

    def __init__(self, router: Router) -> None:
        super().__init__(router)
        self.listeners: dict[int, list[socket.socket]] = {port: [] for port in PORTS}
        for namespace in self.servers.values():
            with namespace.inside():
                for port, listeners in self.listeners.items():
                    listeners.append(socket.create_server(("", port), backlog=500))

    def served(self) -> bool:
        """Whether a client is connected on every port, by its own address."""
        return all(self._connects(port) for port in PORTS)

    def _connects(self, port: int) -> bool:
        source = CLIENT[FAMILY].format(11)
        with self.client.inside(), contextlib.suppress(OSError):
            socket.create_connection((VIP, port), PATIENCE_SECONDS, (source, 0)).close()
            for asked in select.select(self.listeners[port], [], [], PATIENCE_SECONDS)[0]:
                connection, (address, _port) = asked.accept()
                connection.close()
                return bool(address == source)
        return False

    def close(self) -> None:
        for listener in itertools.chain(*self.listeners.values()):
            listener.close()
        super().close()


@pytest.fixture
def clients(router: Router) -> Iterator[Clients]:
    found = Clients(router)
    try:
        yield found
    finally:
        found.close()


def test_what_is_told_is_what_clients_meet(clients: Clients) -> None:
    """Row by row, each on the same router as it was before: all of them are compared before any is complained about."""
    router = clients.router
    servers = [{"address": SERVER[FAMILY].format(number)} for number in clients.servers]
    traffic = {"destination": VIP, "protocol": "tcp", "ports": list(PORTS)}
    declared = service("web", 80, traffic, scheduler="rr", forward_method="masquerade", real_servers=servers)
    router.run("lvs_service", services=[declared])
    saved = router.tool("iptables-save")
    wrong = {
        name: (found, router.tool("ip", "-brief", "link"))
        for name, row in ROWS.items()
        if (found := compared(clients, row, saved)) != (row.problems, row.served)
    }
    assert wrong == {}


def compared(clients: Clients, row: Row, saved: str) -> tuple[list[str], bool]:
    router = clients.router
    for table, commands in row.rules.items():
        router.iptables(commands, table=table)
    router.tool("ip", "-batch", "-", stdin=f"{row.ip}\n")
    router.tool("tc", "-batch", "-", stdin=f"{row.tc}\n")
    with set_to_1(row.settings):
        told = [f"{one['kind']} {one.get('chain', '')}".strip() for one in router.run("lvs_info")["problems"]]
        served = clients.served()
    router.tool("iptables-restore", stdin=f"{EMPTY}{saved}")
    router.tool("ip", "-batch", "-", stdin=f"{row.undo}\n")
    router.tool("tc", "-batch", "-", stdin=f"{row.undo_tc}\n")
    return told, served


@contextlib.contextmanager
def set_to_1(settings: tuple[str, ...]) -> Iterator[None]:
    paths = [Path("/proc/sys/net/ipv4", name) for name in settings]
    before = [path.read_text() for path in paths]
    try:
        for path in paths:
            path.write_text("1")
        yield
    finally:
        for path, value in zip(paths, before, strict=True):
            path.write_text(value)
