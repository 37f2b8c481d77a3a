# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the options take, what they make of it, and every word they say about what they do not take."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.lvs.fleet.plugins.module_utils._declared import options as _options
from ansible_collections.lvs.fleet.plugins.module_utils._declared import params as _params
from ansible_collections.lvs.fleet.plugins.module_utils._declared import suggestions as _suggestions
from ansible_collections.lvs.fleet.plugins.module_utils._errors import ValidationError
from ansible_collections.lvs.fleet.plugins.module_utils._marks.iptables import chain_rule, parse_rule
from ansible_collections.lvs.fleet.plugins.module_utils._model import FAMILIES, Declaration, ServiceId
from ansible_collections.lvs.fleet.plugins.modules import iptables_mark, ipvs_service, lvs_service
from ansible_collections.lvs.fleet.tests.fuzz.hostile import DEEP, HOSTILE, PLAIN

GIVEN = {"services": _params.virtual_services, "rules": _params.marks, "ipvs": _params.ipvs_services}


def having(given: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The options with some changed; None takes one away."""
    return {key: value for key, value in {**given, **changes}.items() if value is not None}


def web(**changes: Any) -> dict[str, Any]:
    """A virtual service."""
    given = {
        "name": "web",
        "fwmark": 80,
        "traffic": [{"destination": ["192.0.2.10"], "protocol": "tcp", "ports": [80, 443]}],
        "real_servers": [{"address": "10.0.0.1"}],
    }
    return having(given, **changes)


def addressed(**changes: Any) -> dict[str, Any]:
    """A service by address; the changes are those of its traffic."""
    return {"name": "app", "traffic": [{"destination": "192.0.2.12", "protocol": "tcp", "ports": [80], **changes}]}


def to(**changes: Any) -> dict[str, Any]:
    """A virtual service with other traffic."""
    return web(traffic=[having({"destination": "192.0.2.10", "protocol": "tcp"}, **changes)])


def alone(**changes: Any) -> dict[str, Any]:
    """The same without real servers."""
    return {**to(**changes), "real_servers": []}


def server(**changes: Any) -> dict[str, Any]:
    return web(real_servers=[having({"address": "10.0.0.1"}, **changes)])


def rule(**changes: Any) -> dict[str, Any]:
    return having({"name": "web", "mark": 80, "destination": "192.0.2.10", "protocol": "tcp"}, **changes)


def by_address(**changes: Any) -> dict[str, Any]:
    return having({"protocol": "tcp", "address": "192.0.2.10", "port": 80}, **changes)


def ftp(persistence_timeout: Any = 300, **traffic: Any) -> dict[str, Any]:
    """FTP with a real server that is masqueraded, and one that is not."""
    servers = [{"address": "10.0.0.1", "forward_method": "masquerade"}, {"address": "10.0.0.2"}]
    service = to(**{"ports": ["20:21"], **traffic})
    return {**service, "helper": "ftp", "persistence_timeout": persistence_timeout, "real_servers": servers}


def tunnel(**changes: Any) -> dict[str, Any]:
    return server(forward_method="tunnel", **changes)


def problems(kind: str, given: Any, absent: bool = False) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        GIVEN[kind](given, absent=absent)
    assert str(caught.value) == "\n".join(caught.value.problems)
    # Paths show the names of services, too, which the tables leave out: test_mistakes has them.
    return [re.sub(r"(\w\[\d\]) \([\w.-]+\)", r"\1", problem) for problem in caught.value.problems]


NAME = "a name (a letter or digit, then at most 62 letters, digits, '_', '.' or '-')"
SERVICES = [
    # The shape of things.
    ("web", "services: 'web' is not a list"),
    ({"name": "web"}, "services: {'name': 'web'} is not a list; write a '-' before each item"),
    (["web"], "services[0]: 'web' is not a mapping of options"),
    ([web(traffic=DEEP)], "services[0].traffic[0]: something too large to show (list) is not a mapping of options"),
    ({"a": 10**5000}, "services: something too large to show (dict) is not a list; write a '-' before each item"),
    ([web(fwmark=10**5000)],
     "services[0].fwmark: something too large to show (int) is not a firewall mark (1-2147483647)"),
    ([{**web(), 10**5000: 1}], "services[0].something too large to show (int): is not an option"),
    ([web(fwmrak=1)], "services[0].fwmrak: is not an option; did you mean fwmark?"),
    ([{**web(), "helper": None}], "services[0].helper: is null; give it a value or leave the key out"),
    ([{**web(), 7: 1}], "services[0].7: is not an option"),
    ([{**web(), "a\nb": 1}], r"services[0].'a\nb': is not an option"),
    ([web(real_servers="10.0.0.1")],
     "services[0].real_servers: '10.0.0.1' is not a list; write [{address: '10.0.0.1'}]"),
    ([web(real_servers=["10.0.0.1"])], "services[0].real_servers[0]: '10.0.0.1' is not a mapping of options; "
                                       "write {address: '10.0.0.1'}"),
    # name and fwmark
    ([web(name=None)], "services[0].name: is required"),
    ([web(name="")], f"services[0].name: '' is not {NAME}"),
    ([web(name="a b")], f"services[0].name: 'a b' is not {NAME}"),
    ([web(name="x" * 64)], f"services[0].name: '{'x' * 64}' is not {NAME}"),
    ([web(name="x" * 99)], f"services[0].name: '{'x' * 79}… is not {NAME}"),
    ([web(name=7)], f'services[0].name: 7 is not {NAME}; write "7"'),
    ([web(), web(fwmark=81)], "services[1].name: web is taken by services[0]"),
    ([web(), web(name="b", fwmark="0x50")], "services[1].fwmark: 80 is taken by services[0]"),
    ([{**web(), "fwmark": None}], "services[0].fwmark: is null; give it a value or leave the key out"),
    # by address
    ([addressed(destination="192.0.2.0/24")],
     "services[0].traffic[0].destination: 192.0.2.0/24 is a network, which IPVS does not see by address; "
     "give the service a fwmark"),
    ([addressed(ports=["80:81"])],
     "services[0].traffic[0].ports: 80:81 is a range, which IPVS does not see by address; give the service a fwmark"),
    ([addressed(source="198.51.100.0/24")],
     "services[0].traffic[0].source: is not seen by IPVS by address; give the service a fwmark"),
    ([{"name": "app", "traffic": [{"destination": "192.0.2.12", "protocol": "tcp"}]}],
     "services[0].traffic[0].ports: every port of an address needs persistence_timeout; name them, or "
     "give the service a fwmark"),
    ([{**addressed(ports=[80, 443]), "persistence_timeout": 300}],
     "services[0].persistence_timeout: does not hold a client across the ports 80, 443 by address; "
     "give the service a fwmark, or make an item of each port"),
    ([{**addressed(), "one_packet": True}],
     "services[0].one_packet: is for udp, not tcp; make an item of each protocol"),
    ([addressed(), {**addressed(), "name": "b"}],
     "services[1].traffic: 192.0.2.12 tcp 80 is taken by services[0]"),
    ([{**addressed(), "real_servers": [{"address": "10.0.0.31", "port": 8080}]}],
     "services[0].real_servers[0].port: only masquerade can translate to port 8080, not direct"),
    ([{**addressed(ports=[80, 81]), "forward_method": "masquerade",
       "real_servers": [{"address": "10.0.0.31", "port": 8080}]}],
     "services[0].real_servers[0].port: 8080 needs traffic with one port, not the ports 80, 81; "
     "make an item of each port"),
    ([{"name": "app", "traffic": [{"destination": "192.0.2.12", "protocol": "tcp"}], "persistence_timeout": 300,
       "forward_method": "masquerade", "real_servers": [{"address": "10.0.0.31", "port": 8080}]}],
     "services[0].real_servers[0].port: 8080 needs traffic with one port, not every port; make an item of each port"),
    ([{"name": "all", "traffic": [{"destination": "192.0.2.12", "protocol": "tcp"}], "persistence_timeout": 300},
      {"name": "b", "traffic": [{"destination": "192.0.2.12", "protocol": "tcp"}], "persistence_timeout": 300}],
     "services[1].traffic: 192.0.2.12 tcp on every port is taken by services[0]"),
    ([web(fwmark=0)], "services[0].fwmark: 0 is not a firewall mark (1-2147483647)"),
    ([web(fwmark=2**31)], "services[0].fwmark: 2147483648 is not a firewall mark (1-2147483647)"),
    ([web(fwmark=2**32)], "services[0].fwmark: 4294967296 is not a firewall mark (1-2147483647)"),
    ([web(fwmark="-1")], "services[0].fwmark: '-1' is not a firewall mark (1-2147483647)"),
    ([web(fwmark=True)], "services[0].fwmark: True is not a firewall mark (1-2147483647)"),
    ([web(fwmark=1.5)], "services[0].fwmark: 1.5 is not a firewall mark (1-2147483647)"),
    ([web(fwmark="0x1/0xff")], "services[0].fwmark: '0x1/0xff' is not a firewall mark (1-2147483647)"),
    # traffic
    ([web(traffic=None)], "services[0].traffic: needs at least one entry"),
    ([web(traffic=[])], "services[0].traffic: needs at least one entry"),
    ([to(prots=80)], "services[0].traffic[0].prots: is not an option; did you mean ports?"),
    ([to(destination=None)], "services[0].traffic[0].destination: is required"),
    ([to(destination=[])], "services[0].traffic[0].destination: needs at least one item"),
    ([to(destination="")], "services[0].traffic[0].destination: needs at least one item"),
    ([to(destination="web.example")], "services[0].traffic[0].destination: 'web.example' is not an address or network; "
                                      "names are not looked up"),
    ([to(destination=["192.0.2.1", 7])], "services[0].traffic[0].destination[1]: 7 is not an address or network"),
    ([to(destination="192.0.2.0/0.0.0.255")],
     "services[0].traffic[0].destination: '192.0.2.0/0.0.0.255' is not an address or network; write the address of "
     "each machine, not their network"),
    ([to(ports=[])], "services[0].traffic[0].ports: needs at least one item"),
    ([to(ports=())], "services[0].traffic[0].ports: needs at least one item"),
    ([to(source=[])], "services[0].traffic[0].source: needs at least one item"),
    ([to(destination="fe80::1%eth0")],
     "services[0].traffic[0].destination: 'fe80::1%eth0' is not an address or network; write a global or unique "
     "local address"),
    ([to(destination="192.0.2.10/24")], "services[0].traffic[0].destination: '192.0.2.10/24' is no network; write "
                                        "192.0.2.10 for the one address, or 192.0.2.0/24 for the network"),
    ([to(protocol=None, ports=80)],
     "services[0].traffic[0].protocol: is required where there are ports; write tcp, udp or sctp, or several of them"),
    ([to(source=["255.255.255.255", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "192.0.2.0/24"])],
     "services[0].traffic[0].source[0]: '255.255.255.255' is an address that no packet comes from\n"
     "services[0].traffic[0].source[1]: 'ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff' is an address that no packet "
     "comes from"),
    ([to(protocol=["tcp", "icmp"])], "services[0].traffic[0].protocol[1]: 'icmp' is not one of tcp, udp, sctp"),
    ([to(protocol="TCP")], "services[0].traffic[0].protocol: 'TCP' is not one of tcp, udp, sctp; did you mean tcp?"),
    ([to(ports=[80, 0])], "services[0].traffic[0].ports[1]: 0 is not a port (1-65535)"),
    ([to(ports=65536)], "services[0].traffic[0].ports: 65536 is not a port (1-65535)"),
    ([to(ports="http")], "services[0].traffic[0].ports: 'http' is not a port (1-65535); write its number"),
    ([to(ports="80:")], "services[0].traffic[0].ports: '80:' is not a range of ports: '' is not a port (1-65535)"),
    ([to(ports="1:65536")],
     "services[0].traffic[0].ports: '1:65536' is not a range of ports: '65536' is not a port "
     "(1-65535)"),
    ([to(ports="90:80")],
     "services[0].traffic[0].ports: '90:80' is not a range of ports: 90 is above 80; "
     'write "80:90"'),
    ([to(source="10.0.0.1/8")], "services[0].traffic[0].source: '10.0.0.1/8' is no network; write 10.0.0.1 for the "
                                "one address, or 10.0.0.0/8 for the network"),
    ([to(source="2001:db8::/32")], "services[0].traffic[0].source: has no IPv4 network, but a destination is IPv4"),
    ([to(destination=["192.0.2.10", "2001:db8::1"], source="10.0.0.0/8")],
     "services[0].traffic[0].source: has no IPv6 network, but a destination is IPv6"),
    ([to(in_interface="a" * 16)], f"services[0].traffic[0].in_interface: '{'a' * 16}' is not an interface"),
    ([to(in_interface="-i")], "services[0].traffic[0].in_interface: '-i' is not an interface"),
    ([to(exclude_mac=["52:54:00:12:34:56", 5])],
     "services[0].traffic[0].exclude_mac[1]: 5 is not a MAC address, such as 52:54:00:12:34:56"),
    ([to(exclude_mac="52:54:00:00:00:01 -j ACCEPT")],
     "services[0].traffic[0].exclude_mac: '52:54:00:00:00:01 -j ACCEPT' is not a MAC address, such as "
     "52:54:00:12:34:56"),
    ([to(exclude_mac="01:00:5e:00:00:01")],
     "services[0].traffic[0].exclude_mac: '01:00:5e:00:00:01' is the MAC address of a group, from which no packet "
     "comes"),
    ([to(mac_source="52:54:00:00:00:01")],
     "services[0].traffic[0].mac_source: is not an option; did you mean exclude_mac?"),
    # settings
    ([web(scheduler="Wlc")], "services[0].scheduler: 'Wlc' is not the name of a scheduler; did you mean wlc?"),
    ([web(scheduler="a" * 16)], f"services[0].scheduler: '{'a' * 16}' is not the name of a scheduler"),
    ([web(scheduler_flags="sh-port")], "services[0].scheduler_flags: sh-port is not a flag of scheduler wlc"),
    ([web(scheduler="sh", scheduler_flags=["mh-port"])],
     "services[0].scheduler_flags: mh-port is not a flag of scheduler sh"),
    ([web(scheduler_flags=["x"])], "services[0].scheduler_flags[0]: 'x' is not one of sh-fallback, sh-port, flag-3, "
                                   "mh-fallback, mh-port, flag-1, flag-2"),
    ([web(persistence_timeout=2678401)],
     "services[0].persistence_timeout: 2678401 is not a persistence timeout in seconds (0-2678400)"),
    ([web(persistence_timeout=-1)],
     "services[0].persistence_timeout: -1 is not a persistence timeout in seconds (0-2678400)"),
    ([web(persistence_netmask=0)], "services[0].persistence_netmask: 0 is not a prefix length (1-32)"),
    ([web(persistence_netmask=33)], "services[0].persistence_netmask: 33 is not a prefix length (1-32)"),
    ([web(persistence_netmask="255.0.255.0")], "services[0].persistence_netmask: '255.0.255.0' is not a netmask"),
    ([web(persistence_netmask="0.0.0.255")], "services[0].persistence_netmask: '0.0.0.255' is not a netmask"),
    ([web(persistence_netmask="0.0.0.0")], "services[0].persistence_netmask: '0.0.0.0' is not a netmask"),
    ([web(persistence_netmask6=129)], "services[0].persistence_netmask6: 129 is not a prefix length (1-128)"),
    ([web(persistence_netmask6="255.255.0.0")],
     "services[0].persistence_netmask6: '255.255.0.0' is not a prefix length (1-128)"),
    ([web(persistence_engine="x")], "services[0].persistence_engine: 'x' is not one of sip"),
    ([web(one_packet="maybe")], "services[0].one_packet: 'maybe' is neither true nor false"),
    ([web(one_packet=2)], "services[0].one_packet: 2 is neither true nor false"),
    ([web(forward_method="nat")],
     "services[0].forward_method: 'nat' is not one of masquerade, direct, tunnel; did you "
     "mean masquerade?"),
    ([web(scheduler="round_robin")],
     "services[0].scheduler: 'round_robin' is not the name of a scheduler; did you mean rr?"),
    # real servers
    ([server(address="::ffff:10.0.0.1")],
     "services[0].real_servers[0].address: '::ffff:10.0.0.1' is an IPv4 address in "
     "the form of an IPv6 one; write 10.0.0.1"),
    ([server(address="FE80::1")],
     "services[0].real_servers[0].address: fe80::1 is link-local, which IPVS refuses; write "
     "a global or unique local address"),
    ([server(address=None)], "services[0].real_servers[0].address: is required"),
    ([server(address="10.0.0.0/8")],
     "services[0].real_servers[0].address: '10.0.0.0/8' is not an IP address; write "
     "the address of each machine, not their network"),
    ([server(address="fe80::1%eth0")],
     "services[0].real_servers[0].address: 'fe80::1%eth0' is not an IP address; write a "
     "global or unique local address"),
    ([server(address="224.0.0.1")],
     "services[0].real_servers[0].address: '224.0.0.1' is not the address of one machine"),
    ([server(address="0.0.0.0")], "services[0].real_servers[0].address: '0.0.0.0' is not the address of one machine"),
    ([server(address="255.255.255.255")],
     "services[0].real_servers[0].address: '255.255.255.255' is not the address of one machine"),
    ([server(address="2001:db8::1")],
     "services[0].real_servers[0].address: 2001:db8::1 is IPv6, but no destination of the service is"),
    ([web(real_servers=[{"address": "10.0.0.1"}] * 2)],
     "services[0].real_servers[1].address: 10.0.0.1 is there twice"),
    ([server(port=80)],
     "services[0].real_servers[0].port: 80 cannot be had with a fwmark: IPVS would send every port of the service to "
     "it, or none; leave fwmark out, or have the real server listen on the ports of traffic"),
    ([server(weight=65536)], "services[0].real_servers[0].weight: 65536 is not a weight (0-65535)"),
    ([server(weight=-1)], "services[0].real_servers[0].weight: -1 is not a weight (0-65535)"),
    ([server(upper_threshold=2**31)], "services[0].real_servers[0].upper_threshold: 2147483648 is not a connection "
                                      "threshold (0-2147483647)"),
    ([server(upper_threshold=4, lower_threshold=5)],
     "services[0].real_servers[0].lower_threshold: 5 is above upper_threshold (4)"),
    ([server(lower_threshold=5)], "services[0].real_servers[0].lower_threshold: 5 needs an upper_threshold"),
    ([server(tunnel_type="ipip")],
     "services[0].real_servers[0].tunnel_type: needs forward_method tunnel, not direct"),
    ([server(tunnel_port=6080, tunnel_checksum="csum")],
     "services[0].real_servers[0].tunnel_port: needs forward_method tunnel, not direct\n"
     "services[0].real_servers[0].tunnel_checksum: needs forward_method tunnel, not direct"),
    ([tunnel(tunnel_type="vxlan")], "services[0].real_servers[0].tunnel_type: 'vxlan' is not one of ipip, gue, gre"),
    ([tunnel(tunnel_type="gue")], "services[0].real_servers[0].tunnel_port: is required for tunnel_type gue"),
    ([tunnel(tunnel_port=1)], "services[0].real_servers[0].tunnel_port: is for tunnel_type gue, not ipip"),
    ([tunnel(tunnel_type="gre", tunnel_port=0)],
     "services[0].real_servers[0].tunnel_port: 0 is not a port (1-65535)"),
    ([tunnel(tunnel_checksum="csum")],
     "services[0].real_servers[0].tunnel_checksum: is for tunnel_type gue or gre, not ipip"),
    ([tunnel(tunnel_type="gre", tunnel_checksum="remcsum")],
     "services[0].real_servers[0].tunnel_checksum: remcsum is for tunnel_type gue, not gre"),
]  # fmt: skip
RULES = [
    ([{"mark": 1}], "rules[0].name: is required\nrules[0].destination: is required"),
    ([rule(mark=None)], "rules[0].mark: is required"),
    ([rule(mark=2**31)], "rules[0].mark: 2147483648 is not a firewall mark (1-2147483647)"),
    ([rule(mask=0)], "rules[0].mask: 0 is not a mask (1-4294967295)"),
    ([rule(mark=0x150, mask=0xFF)], "rules[0].mark: 0x150 has bits outside the mask 0xff"),
    ([rule(prots=[80])], "rules[0].prots: is not an option; did you mean ports?"),
]
IPVS = [
    ([{}], "services[0]: needs fwmark, or protocol, address and port"),
    ([by_address(port=None)], "services[0]: needs fwmark, or protocol, address and port"),
    ([by_address(fwmark=1)], "services[0].protocol: does not go together with fwmark\nservices[0].address: does not go "
                             "together with fwmark\nservices[0].port: does not go together with fwmark"),
    ([{"fwmark": 0}], "services[0].fwmark: 0 is not a firewall mark (1-2147483647)"),
    ([{"fwmark": 1, "family": "inet"}], "services[0].family: 'inet' is not one of ipv4, ipv6; did you mean ipv4?"),
    ([{"fwmark": 1}, {"fwmark": "0x1", "family": "ipv4"}], "services[1]: is the same service as an item before it"),
    ([by_address(family="ipv6")], "services[0].family: ipv6 does not fit the address 192.0.2.10"),
    ([by_address(port=65536)], "services[0].port: 65536 is not a port or 0 (0-65535)"),
    ([by_address(port=0)], "services[0].port: 0 stands for every port, and needs persistence_timeout"),
    ([by_address(one_packet=True)], "services[0].one_packet: is for udp, not tcp"),
    ([by_address(protocol="icmp")], "services[0].protocol: 'icmp' is not one of tcp, udp, sctp"),
    ([by_address(address="::")], "services[0].address: '::' is not the address of one machine"),
    ([by_address(address="ff02::1")], "services[0].address: 'ff02::1' is not the address of one machine"),
    ([by_address(real_servers=[{"address": "2001:db8::1"}])],
     "services[0].real_servers[0].address: 2001:db8::1 is of the other family, which only a tunnel allows"),
    ([by_address(real_servers=[{"address": "10.0.0.1", "port": 8080}])],
     "services[0].real_servers[0].port: 8080 is not the port of the service; only masquerade can translate it"),
    ([by_address(real_servers=[{"address": "10.0.0.1", "port": -1}])],
     "services[0].real_servers[0].port: -1 is not a port or 0 (0-65535)"),
    ([by_address(prot=1)], "services[0].prot: is not an option; did you mean protocol?"),
]  # fmt: skip
SERVICES += [
    # helper
    ([web(helper="sip")], "services[0].helper: 'sip' is not one of ftp"),
    ([web(helper="ftp")],
     "services[0].persistence_timeout: is needed for ftp: its two connections must meet the same real server\n"
     "services[0].traffic: has no tcp port 21, which ftp needs for the control connection\n"
     "services[0].traffic: has no tcp port 20, which ftp needs for active data connections"),
    ([ftp(persistence_timeout="0")],
     "services[0].persistence_timeout: is needed for ftp: its two connections must meet the same real server"),
    ([ftp(protocol="udp", ports=None)],
     "services[0].traffic: has no tcp port 21, which ftp needs for the control connection\n"
     "services[0].traffic: has no tcp port 20, which ftp needs for active data connections"),
    ([ftp(ports=[21])], "services[0].traffic: has no tcp port 20, which ftp needs for active data connections"),
    ([ftp(destination="192.0.2.0/24")],
     "services[0].helper: ftp with masquerading needs one IPv4 address as destination"),
    ([ftp(destination=["192.0.2.10", "192.0.2.11"])],
     "services[0].helper: ftp with masquerading needs one IPv4 address as destination"),
]  # fmt: skip
TABLE = [(kind, *case) for kind, cases in (("services", SERVICES), ("rules", RULES), ("ipvs", IPVS)) for case in cases]
CHAIN_NAME = "a chain name (a letter or '_', then at most 27 letters, digits, '_' or '-')"
CHAINS = [
    ("PREROUTING", "chain: PREROUTING belongs to the kernel, not to us"),
    ("A" * 29, f"chain: '{'A' * 29}' is not {CHAIN_NAME}"),
    ("-j", f"chain: '-j' is not {CHAIN_NAME}"),
    ("a b", f"chain: 'a b' is not {CHAIN_NAME}"),
    ("", f"chain: '' is not {CHAIN_NAME}"),
]


@pytest.mark.parametrize("kind, given, message", TABLE)
def test_messages(kind: str, given: Any, message: str) -> None:
    assert "\n".join(problems(kind, given)) == message


@pytest.mark.parametrize("given, message", CHAINS)
def test_messages_about_chains(given: Any, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        _params.chain_of(given)
    assert str(caught.value) == message


def test_no_message_is_missing_in_the_tables() -> None:
    said = "\n".join([*(case[-1] for case in TABLE), *(message for _given, message in CHAINS)])
    fragments = set()
    for module in (_options, _params, _suggestions):
        for call in ast.walk(ast.parse(inspect.getsource(module))):
            if not isinstance(call, ast.Call):
                continue
            name = getattr(call.func, "attr", getattr(call.func, "id", ""))
            if name in ("ValueError", "problem", "append", "integer", "matching"):
                texts = [part.value for argument in call.args for part in ast.walk(argument)
                         if isinstance(part, ast.Constant) and isinstance(part.value, str)]  # fmt: skip
                fragments |= {text.strip() for text in texts if " " in text.strip()}
    assert len(fragments) > 30
    assert {fragment for fragment in fragments if fragment not in said} == set()


def test_all_problems_are_told_at_once() -> None:
    first = web(name="a b", fwmark=0, one_packet="x", real_servers=[{"address": "x", "weight": -1}])
    second = to(ports=[0, 80, 70000], destination=["x", "y"])
    assert [problem.partition(": ")[0] for problem in problems("services", [first, second])] == [
        "services[0].name",
        "services[0].fwmark",
        "services[0].one_packet",
        "services[0].real_servers[0].address",
        "services[0].real_servers[0].weight",
        "services[1].traffic[0].destination[0]",
        "services[1].traffic[0].destination[1]",
        "services[1].traffic[0].ports[0]",
        "services[1].traffic[0].ports[2]",
    ]


# -- what is taken ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lenient, plain",
    [
        (web(fwmark="80"), web()),
        (web(fwmark="0x50"), web()),
        (web(fwmark=" 80 "), web()),
        (web(fwmark="0X50"), web()),
        (to(destination=["192.0.2.10"], protocol=["tcp"]), to()),
        (to(destination="192.0.2.10/32"), to()),
        (to(destination="192.0.2.0/255.255.255.0"), to(destination="192.0.2.0/24")),
        (alone(destination="2001:DB8:0::10"), alone(destination="2001:db8::10")),
        (to(protocol=["tcp", "tcp"]), to()),
        (to(ports="80"), to(ports=[80])),
        (to(ports="80:80"), to(ports=[80])),
        (to(ports=[443, 80, 80]), to(ports=[80, 443])),
        (to(ports=["1:10", "5:20"]), to(ports="1:20")),
        (to(source="0.0.0.0/0"), to()),
        (web(one_packet="yes"), web(one_packet=True)),
        (web(one_packet="Off"), web()),
        (web(one_packet=1), web(one_packet=True)),
        (web(scheduler="sh", scheduler_flags="flag-2"), web(scheduler="sh", scheduler_flags=["sh-port"])),
        (web(scheduler="mh", scheduler_flags=["mh-port", "mh-fallback"]),
         web(scheduler="mh", scheduler_flags=["mh-fallback", "mh-port"])),
        (web(persistence_timeout="300", persistence_netmask="255.255.255.0"),
         web(persistence_timeout=300, persistence_netmask=24)),
        (web(persistence_netmask=24, persistence_netmask6=64), web()),
        (web(forward_method="tunnel"), web(real_servers=[{"address": "10.0.0.1", "forward_method": "tunnel"}])),
        (tunnel(tunnel_type="ipip"), tunnel()),
        (tunnel(tunnel_type="gre"), tunnel(tunnel_type="gre", tunnel_checksum="nocsum")),
        (server(weight="1", upper_threshold="0", lower_threshold=0, forward_method="direct"), server()),
    ],
)  # fmt: skip
def test_leniency(lenient: Any, plain: Any) -> None:
    assert _params.virtual_services([lenient]) == _params.virtual_services([plain])


@pytest.mark.parametrize(
    "kind, given",
    [
        ("services", web(fwmark=1)),
        ("services", web(fwmark=2**31 - 1)),
        ("services", web(name="x" * 63)),
        ("services", web(name="7_.-")),
        ("services", to(ports=["1:65535"])),
        ("services", to(in_interface="a" * 15)),
        ("services", to(in_interface="a" * 14 + "+")),
        ("services", web(persistence_timeout=2678400, persistence_netmask=1, persistence_netmask6=1)),
        ("services", server(weight=65535, upper_threshold=2**31 - 1, lower_threshold=2**31 - 1)),
        ("services", server(weight=0)),
        ("services", web(real_servers=[])),
        ("services", web(real_servers=None)),
        ("rules", rule(mask=2**32 - 1)),
        ("rules", rule(mark=0x50, mask=0x50)),
        ("ipvs", by_address(port=0, persistence_timeout=1)),
        ("ipvs", by_address(port=65535)),
        ("ipvs", by_address(real_servers=[{"address": "10.0.0.1", "port": 1, "forward_method": "masquerade"}])),
        ("ipvs", by_address(real_servers=[{"address": "2001:db8::1", "forward_method": "tunnel"}])),
    ],
)
def test_boundaries(kind: str, given: Any) -> None:
    assert GIVEN[kind]([given]) != Declaration()


def source(network: str) -> dict[str, Any]:
    return to(destination=["192.0.2.10", "2001:db8::10"], source=[network, "0.0.0.0/0", "::/0"])


def port_8080(**changes: Any) -> dict[str, Any]:
    return by_address(real_servers=[{"address": "10.0.0.1", "forward_method": "masquerade", **changes}])


def gue(**changes: Any) -> dict[str, Any]:
    return tunnel(tunnel_type="gue", **changes)


# What no number is, whatever its bounds; 1 is within all of them.
NO_NUMBERS = [
    True, False, 1.0, 1.5, float("nan"), "", "1.0", "+1", "1_0", "1e3", "0b1", "0o1", "0x", "x1", "1 0", "\u00b2",
    "\u0661", "\uff11", "1\0", "1;", "9" * 21, "0x" + "f" * 17, 2**64, -(2**64), 10**5000, [[1]], {"a": 1}, b"1",
]  # fmt: skip
# Each option that is a number, or text of a certain length: its path, what has it, values at and beyond its bounds.
BOUNDS: list[tuple[str, str, Any, list[Any], list[Any]]] = [
    ("services", "fwmark", lambda it: web(fwmark=it), [1, 2**31 - 1, "0x7fffffff"], [0, -1, 2**31, 2**32]),
    ("rules", "mark", lambda it: rule(mark=it), [1, 2**31 - 1, "0x50", "080"], [0, -1, 2**31, 2**32]),
    ("rules", "mask", lambda it: rule(mask=it, mark=1), [1, 2**32 - 1, "0xffffffff"], [0, -1, 2**32, "0x100000000"]),
    ("ipvs", "fwmark", lambda it: {"fwmark": it}, [1, 2**31 - 1], [0, -1, 2**31, 2**32]),
    ("ipvs", "port", lambda it: by_address(port=it, persistence_timeout=1), [0, 1, 65535], [-1, 65536]),
    ("ipvs", "real_servers[0].port", lambda it: port_8080(port=it), [0, 1, 65535], [-1, 65536]),
    ("services", "traffic[0].ports", lambda it: to(ports=it),
     [1, 65535, "1:1", "1:65535", "65535:65535", "080:0x51"],
     [0, -1, 65536, "0:1", "1:65536", "2:1", "1:", ":1", "1:2:3", "1-2", "1,2", "-1:1"]),
    ("services", "persistence_timeout", lambda it: web(persistence_timeout=it), [0, 1, 2678400], [-1, 2678401, 2**32]),
    ("services", "persistence_netmask", lambda it: web(persistence_netmask=it), [1, 32, "128.0.0.0"], [0, -1, 33]),
    ("services", "persistence_netmask6", lambda it: web(persistence_netmask6=it), [1, 128], [0, -1, 129]),
    ("services", "real_servers[0].weight", lambda it: server(weight=it), [0, 1, 65535], [-1, 65536]),
    ("services", "real_servers[0].upper_threshold", lambda it: server(upper_threshold=it), [0, 2**31 - 1], [-1, 2**31]),
    ("services", "real_servers[0].lower_threshold",
     lambda it: server(lower_threshold=it, upper_threshold=2**31 - 1), [0, 2**31 - 1], [-1, 2**31]),
    ("services", "real_servers[0].tunnel_port", lambda it: gue(tunnel_port=it), [1, 65535], [0, -1, 65536]),
]  # fmt: skip
LENGTHS: list[tuple[str, str, Any, list[Any], list[Any]]] = [
    ("services", "name", lambda it: web(name=it), ["a", "x" * 63, "0" * 63], ["", "x" * 64, "_", ".", "-"]),
    ("rules", "name", lambda it: rule(name=it), ["a", "x" * 63], ["", "x" * 64]),
    ("services", "traffic[0].in_interface", lambda it: to(in_interface=it),
     ["a", "a" * 15, "a" * 14 + "+"], ["", "a" * 16, "a" * 15 + "+", "+", "a++"]),
    ("services", "scheduler", lambda it: web(scheduler=it), ["a", "a" * 15], ["", "a" * 16, "0", "-a"]),
    ("services", "traffic[0].destination", lambda it: alone(destination=it),
     ["0.0.0.0/0", "192.0.2.10/32", "::/0", "::1/128", "255.255.255.255"],
     ["192.0.2.10/33", "192.0.2.10/-1", "::1/129", "256.0.0.1", "1.2.3", "1.2.3.4.5", "::1::", "::10000"]),
    ("services", "traffic[0].source[0]", source, ["0.0.0.0/0", "::/0", "10.0.0.0/8"], ["10.0.0.0/33", "::/129"]),
    ("services", "real_servers[0].address", lambda it: server(address=it), ["1.0.0.1", "223.255.255.255"],
     ["0.0.0.0", "224.0.0.0", "239.255.255.255", "255.255.255.255", "10.0.0.1/32", "10.0.0.256"]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "path", "having", "taken", "refused"), [*BOUNDS, *LENGTHS])
def test_bounds(kind: str, path: str, having: Any, taken: list[Any], refused: list[Any]) -> None:
    """What is at a bound is taken; what is one beyond it is refused, and nothing else is."""
    for value in taken:
        assert GIVEN[kind]([having(value)]) != Declaration(), value
    for value in refused:
        assert_refused(kind, path, having(value))


@pytest.mark.parametrize(("kind", "path", "having"), [case[:3] for case in BOUNDS])
def test_what_is_no_number(kind: str, path: str, having: Any) -> None:
    for value in NO_NUMBERS:
        assert_refused(kind, path, having(value))


def assert_refused(kind: str, path: str, given: Any) -> None:
    listed = "rules" if kind == "rules" else "services"
    for problem in problems(kind, [given]):
        assert problem.startswith(f"{listed}[0].{path}"), given


@pytest.mark.parametrize("chain", ["A", "_", "A" * 28, "LVS-MARK"])
def test_chains(chain: str) -> None:
    assert _params.chain_of(chain) == chain


def ports_of(*ports: Any) -> list[str]:
    rules = _params.virtual_services([to(ports=list(ports))]).rules
    return [chain_rule(rule).text.split("--dports ")[1].split()[0] for rule in rules]


@pytest.mark.parametrize(
    "ports, groups",
    [
        (range(1, 30, 2), ["1,3,5,7,9,11,13,15,17,19,21,23,25,27,29"]),
        (range(1, 32, 2), ["1,3,5,7,9,11,13,15,17,19,21,23,25,27,29", "31"]),
        ([*range(1, 14), "100:200"], ["1,2,3,4,5,6,7,8,9,10,11,12,13,100:200"]),
        ([*range(1, 15), "100:200"], ["1,2,3,4,5,6,7,8,9,10,11,12,13,14", "100:200"]),
        ([20, 21, "10000:20000"], ["20,21,10000:20000"]),
        ([*(f"{low}:{low + 5}" for low in range(10, 80, 10)), 99],
         ["10:15,20:25,30:35,40:45,50:55,60:65,70:75,99"]),
        ([f"{low}:{low + 5}" for low in range(10, 90, 10)], ["10:15,20:25,30:35,40:45,50:55,60:65,70:75", "80:85"]),
    ],
)  # fmt: skip
def test_fifteen_slots_of_ports(ports: Any, groups: list[str]) -> None:
    assert ports_of(*ports) == groups


def test_a_service_in_two_families() -> None:
    given = web(
        traffic=[{"destination": ["2001:db8::10", "192.0.2.10"], "protocol": ["tcp", "udp"]}],
        real_servers=[{"address": "10.0.0.1"}, {"address": "2001:db8:1::1"}],
        persistence_timeout=60,
        persistence_netmask=24,
        persistence_netmask6=64,
    )
    declared = _params.virtual_services([given])
    assert [(rule.destination, rule.protocol) for rule in declared.rules] == [
        ("2001:db8::10/128", "tcp"),
        ("2001:db8::10/128", "udp"),
        ("192.0.2.10/32", "tcp"),
        ("192.0.2.10/32", "udp"),
    ]
    halves = {key.family: pool for key, pool in declared.pools.items()}
    assert {family: list(pool.real_servers) for family, pool in halves.items()} == {
        "ipv4": [("10.0.0.1", 0)],
        "ipv6": [("2001:db8:1::1", 0)],
    }
    assert {family: pool.service.persistence_netmask for family, pool in halves.items()} == {"ipv4": 24, "ipv6": 64}


@pytest.mark.parametrize(
    "kind, given, expected",
    [
        ("services", {"name": "web", "fwmark": 80}, (("web",), tuple(ServiceId(family, 80) for family in FAMILIES))),
        ("rules", {"name": "web"}, (("web",), ())),
        ("rules", {"name": "web", "ports": [80], "source": "x"}, (("web",), ())),
        ("ipvs", {"fwmark": 80, "family": "ipv6"}, ((), (ServiceId("ipv6", 80),))),
        ("ipvs", by_address(port=0), ((), (ServiceId("ipv4", 0, "tcp", "192.0.2.10", 0),))),
    ],
)
def test_little_is_enough_for_absent(kind: str, given: Any, expected: Any) -> None:
    declared = GIVEN[kind]([given], absent=True)
    assert (declared.names, declared.ids) == expected


@pytest.mark.parametrize("kind, given", [("services", web(x=1)), ("rules", {"name": "a", "x": 1})])
def test_absent_takes_no_unknown_option_either(kind: str, given: Any) -> None:
    assert [problem.split(": ")[1] for problem in problems(kind, [given], absent=True)] == ["is not an option"]


# -- hostile input ------------------------------------------------------------------------------------------------

PLACES = [
    ("name",), ("fwmark",), ("traffic", 0, "destination"), ("traffic", 0, "protocol"),
    ("traffic", 0, "ports"), ("traffic", 0, "ports", 0), ("traffic", 0, "source"),
    ("traffic", 0, "in_interface"), ("traffic", 0, "exclude_mac"),
    ("scheduler",), ("scheduler_flags",), ("persistence_timeout",),
    ("persistence_netmask",), ("persistence_netmask6",), ("persistence_engine",), ("one_packet",),
    ("forward_method",), ("real_servers", 0, "address"), ("real_servers", 0, "weight"),
    ("real_servers", 0, "upper_threshold"), ("real_servers", 0, "tunnel_port"),
]  # fmt: skip
NOTHING = ([], ())


def placed(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    given = web()
    inside: Any = given
    for step in path[:-1]:
        inside = inside[step]
    inside[path[-1]] = value
    return given


@pytest.mark.parametrize("path", PLACES, ids=lambda path: ".".join(map(str, path)))
def test_hostile_values_never_pass(path: tuple[Any, ...]) -> None:
    for value in HOSTILE:
        if value in NOTHING or (value in PLAIN and path[-1] in ("name", "in_interface")):
            continue
        for message in problems("services", [placed(path, value)]):
            assert len(message) < 400 and "\n" not in message and "\0" not in message, value


@given(st.sampled_from(PLACES), st.text(max_size=8) | st.integers() | st.from_regex(r"[0-9a-fx:./]+\s?"))
def test_what_passes_is_plain(path: tuple[Any, ...], value: Any) -> None:
    """Whatever gets through makes rules that read back as one rule with the same meaning."""
    try:
        declared = _params.virtual_services([placed(path, value)])
    except ValidationError:
        return
    for found in declared.rules:
        written = chain_rule(found)
        assert written.text.isascii() and written.text.isprintable()
        assert parse_rule(written.text, found.family) == written


# -- null ---------------------------------------------------------------------------------------------------------

DOCUMENTED = {
    "services": (lvs_service, "services"),
    "rules": (iptables_mark, "rules"),
    "ipvs": (ipvs_service, "services"),
}
NULL = "is null; give it a value or leave the key out"


def documented(suboptions: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The keys of an item that a module documents, each with the keys of the lists that it is in."""
    for key, told in suboptions.items():
        yield (*above, key)
        yield from documented(told.get("suboptions", {}), (*above, key))


@pytest.mark.parametrize("absent", [False, True])
@pytest.mark.parametrize("kind", GIVEN)
def test_null_means_not_said_nowhere(kind: str, absent: bool) -> None:
    """ports: without a value would be every port, ssh of the virtual address included."""
    module, option = DOCUMENTED[kind]
    keys = list(documented(yaml.safe_load(module.DOCUMENTATION)["options"][option]["suboptions"]))
    assert len(keys) >= 8
    for above, key in ((key[:-1], key[-1]) for key in keys):
        item = inside = {"services": web, "rules": rule, "ipvs": by_address}[kind]()
        for step in above:
            [inside] = inside.setdefault(step, [{"address": "10.0.0.1"}])
        inside[key] = None
        path = "".join(f".{step}[0]" for step in above) + f".{key}"
        assert problems(kind, [item], absent).count(f"{option}[0]{path}: {NULL}") == 1, (above, key)


@pytest.mark.parametrize(
    "given, what", [(None, "services"), ([None], "services[0]"), ([to(ports=[80, None])], "ports[1]")]
)
def test_null_is_no_list_no_item_and_no_port(given: Any, what: str) -> None:
    assert f"{what}: None is not" in problems("services", given)[0]
