# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Virtual services in ipvsadm's words: those people type, and those ipvsadm -S prints."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.lvs.fleet.plugins.module_utils._ipvs import ipvsadm
from ansible_collections.lvs.fleet.plugins.module_utils._model import IpvsOperation, RealServer, ServiceId
from ansible_collections.lvs.fleet.plugins.module_utils._model import VirtualService as Service
from ansible_collections.lvs.fleet.tests.unit.recording import RECORDED, parse_saved

MARK4, MARK6 = ServiceId("ipv4", 80), ServiceId("ipv6", 80)
TCP4, UDP6 = ServiceId("ipv4", 0, "tcp", "192.0.2.10", 80), ServiceId("ipv6", 0, "udp", "2001:db8::10", 53)
SCTP = ServiceId("ipv4", 0, "sctp", "192.0.2.10", 9)
PLAIN = Service(MARK4, persistence_netmask=32)


def server(address: str = "10.0.0.11", **changes: Any) -> RealServer:
    return RealServer(address, **changes)


@pytest.mark.parametrize(
    "operation, words",
    [
        (IpvsOperation("A", PLAIN), "ipvsadm -A -f 80 -s wlc"),
        (IpvsOperation("E", PLAIN._replace(scheduler="rr")), "ipvsadm -E -f 80 -s rr"),
        (IpvsOperation("D", PLAIN), "ipvsadm -D -f 80"),
        (IpvsOperation("A", Service(MARK6, "wrr", (), 1800, 64)), "ipvsadm -A -f 80 -6 -s wrr -p 1800 -M 64"),
        (IpvsOperation("A", Service(MARK6, "wrr", (), 1800, 128)), "ipvsadm -A -f 80 -6 -s wrr -p 1800"),
        (IpvsOperation("A", Service(MARK4, "wrr", (), 300, 24)), "ipvsadm -A -f 80 -s wrr -p 300 -M 255.255.255.0"),
        (IpvsOperation("A", Service(MARK4, "wrr", (), 300, 32, "sip", True)),
         "ipvsadm -A -f 80 -s wrr -p 300 --pe sip -o"),
        (IpvsOperation("A", Service(MARK4, "sh", ("sh-fallback", "sh-port"))),
         "ipvsadm -A -f 80 -s sh -b sh-fallback,sh-port"),
        (IpvsOperation("A", Service(TCP4, "rr")), "ipvsadm -A -t 192.0.2.10:80 -s rr"),
        (IpvsOperation("A", Service(UDP6, "rr", one_packet=True)), "ipvsadm -A -u [2001:db8::10]:53 -s rr -o"),
        (IpvsOperation("D", Service(SCTP)), "ipvsadm -D --sctp-service 192.0.2.10:9"),
        (IpvsOperation("a", PLAIN, server(weight=10)), "ipvsadm -a -f 80 -r 10.0.0.11 -g -w 10"),
        (IpvsOperation("e", PLAIN, server(forward_method="masquerade", weight=0)),
         "ipvsadm -e -f 80 -r 10.0.0.11 -m -w 0"),
        (IpvsOperation("d", PLAIN, server()), "ipvsadm -d -f 80 -r 10.0.0.11"),
        (IpvsOperation("d", PLAIN, server(port=80)), "ipvsadm -d -f 80 -r 10.0.0.11:80"),
        (IpvsOperation("a", Service(MARK6), server("2001:db8::1")), "ipvsadm -a -f 80 -6 -r 2001:db8::1 -g -w 1"),
        (IpvsOperation("a", Service(UDP6), server("2001:db8::1", port=53)),
         "ipvsadm -a -u [2001:db8::10]:53 -r [2001:db8::1]:53 -g -w 1"),
        (IpvsOperation("a", PLAIN, server(upper_threshold=100, lower_threshold=50)),
         "ipvsadm -a -f 80 -r 10.0.0.11 -g -w 1 -x 100 -y 50"),
        (IpvsOperation("a", PLAIN, server(forward_method="tunnel", tunnel_type="gue", tunnel_port=6080,
                                          tunnel_checksum="csum")),
         "ipvsadm -a -f 80 -r 10.0.0.11 -i -w 1 --tun-type gue --tun-port 6080 --tun-csum"),
        (IpvsOperation("a", PLAIN, server(forward_method="tunnel", tunnel_type="ipip")),
         "ipvsadm -a -f 80 -r 10.0.0.11 -i -w 1 --tun-type ipip"),
        (IpvsOperation("d", PLAIN, server(forward_method="local")), "ipvsadm -d -f 80 -r 10.0.0.11"),
        (IpvsOperation("e", PLAIN, server(forward_method="bypass")), "ipvsadm -e -f 80 -r 10.0.0.11 (bypass) -w 1"),
    ],
)  # fmt: skip
def test_operations_as_people_know_them(operation: IpvsOperation, words: str) -> None:
    assert ipvsadm.command_line(operation) == words


@pytest.mark.parametrize("texts", ["texts", "texts_after_changes"])
def test_what_ipvsadm_saved_there_and_back(texts: str) -> None:
    """Word for word, but for the thresholds, which ipvsadm leaves out, the marks that it prints negative, and order."""
    printed = RECORDED[texts]["save"]
    pools = parse_saved(printed)
    positive = printed.replace("-f -1 ", "-f 4294967295 ").replace("-f -2147483648 ", "-f 2147483648 ")
    lines = ipvsadm.save_lines(pools)
    assert sorted(lines) == sorted(positive.splitlines())
    assert parse_saved("\n".join(lines)) == pools


def test_saved_lines_have_the_thresholds_and_read_back() -> None:
    pools = parse_saved(RECORDED["texts"]["save"], RECORDED["texts"]["thresholds"])
    lines = ipvsadm.save_lines(pools)
    assert "-a -f 80 -r 10.0.0.1:0 -g -w 10 -x 100 -y 50" in lines
    assert parse_saved("\n".join(lines)) == pools


def test_saved_lines_are_in_an_order_that_does_not_depend_on_the_kernel() -> None:
    pools = parse_saved(RECORDED["texts"]["save"])
    assert ipvsadm.save_lines(dict(reversed(pools.items()))) == ipvsadm.save_lines(pools)
    names = [line.split(" -s ")[0] for line in ipvsadm.save_lines(pools) if line.startswith("-A")]
    assert names[:5] == [
        "-A --sctp-service 192.0.2.10:9",
        "-A -t 192.0.2.10:0",
        "-A -t 192.0.2.10:80",
        "-A -u 192.0.2.10:53",
        "-A -t [2001:db8::10]:443",
    ]
    assert names[5:7] == ["-A -f 80", "-A -f 80 -6"]
    servers = [line.split()[4] for line in ipvsadm.save_lines(pools) if line.startswith("-a -f 80 -r 10.0.0.8")]
    assert servers == ["10.0.0.8:0", "10.0.0.8:8080"]
