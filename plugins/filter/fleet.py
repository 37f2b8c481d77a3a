# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the roles derive from lvs_services, once on the controller. Each filter is documented in a file of its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.lvs.fleet.plugins.module_utils import _ipvsadm as ipvsadm
from ansible_collections.lvs.fleet.plugins.module_utils._errors import ValidationError
from ansible_collections.lvs.fleet.plugins.module_utils._iptables import (
    mark_chains,
    save_lines,
    snat_chains,
    transaction,
)
from ansible_collections.lvs.fleet.plugins.module_utils._model import (
    FAMILIES,
    IPV4,
    IPV6,
    Chain,
    Declaration,
    family_of,
)
from ansible_collections.lvs.fleet.plugins.module_utils._mss import mss_text, segments
from ansible_collections.lvs.fleet.plugins.module_utils._params import virtual_services
from ansible_collections.lvs.fleet.plugins.module_utils._plan import declared_rules
from ansible_collections.lvs.fleet.plugins.module_utils._real_server import machine, needs

# Every destination of every traffic entry, be it a list or a single one.
_DESTINATIONS = "[].traffic[].[destination][][]"
# ip knows the family of a rule or a route only where it is told, or where there is an address in it.
IP_FAMILY = {IPV4: "", IPV6: "-6 "}


def problems(services: Any, path: str = "lvs_services") -> list[str]:
    """Everything that is wrong with the services."""
    try:
        virtual_services(services, path)
    except ValidationError as error:
        return list(error.problems)
    return []


def marks(services: Any, family: str) -> str:
    """The rules of one family for iptables-restore --noflush: MARK rules, and those that active FTP needs."""
    if family not in FAMILIES:
        raise AnsibleFilterError(f"lvs.fleet.marks: {family!r} is not one of {', '.join(FAMILIES)}")
    declared = _declared(services)
    own = (chain_id for chain_id in (*snat_chains(), *mark_chains()) if chain_id.family == family)
    wanted = ((chain_id, Chain().with_rules(declared_rules(declared, chain_id))) for chain_id in own)
    return "".join(
        transaction(chain_id.table, save_lines(chain_id, chain)) for chain_id, chain in wanted if chain.exists
    )


def ipvs_rules(services: Any) -> str:
    """The IPVS services for ipvsadm -R."""
    return "".join(f"{line}\n" for line in ipvsadm.save_lines(_declared(services).pools))


def kernel_modules(services: Any) -> list[str]:
    """The kernel modules of IPVS that the services need."""
    declared = _declared(services)
    pools = declared.pools.values()
    schedulers = {pool.service.scheduler for pool in pools} - {"none"}
    engines = {f"pe_{pool.service.persistence_engine}" for pool in pools if pool.service.persistence_engine}
    helpers = {"ftp"} if declared.snat_rules else set()
    return ["ip_vs", *(f"ip_vs_{name}" for name in sorted(schedulers | engines | helpers))]


def masqueraded(services: Any) -> list[str]:
    """The families in which a real server is reached through masquerading."""
    servers = (server for pool in _declared(services).pools.values() for server in pool.real_servers.values())
    return sorted({family_of(server.address) for server in servers if server.forward_method == "masquerade"})


def vips(services: Any) -> list[str]:
    """The single addresses among the destinations, each once, with its prefix."""
    try:
        import jmespath
        from netaddr import IPNetwork
    except ImportError as error:
        raise AnsibleFilterError(f"lvs.fleet.vips needs jmespath and netaddr on the controller: {error}") from error
    _declared(services)
    networks = {IPNetwork(destination) for destination in jmespath.search(_DESTINATIONS, services) or []}
    return [str(network) for network in sorted(networks) if network.size == 1]


def vip_commands(services: Any, interface: str = "", table: int = 0) -> list[str]:
    """What lets the packets of the services in, as commands of ip: addresses, rules that deliver by mark, or both."""
    declared = _declared(services)
    pools = sorted(declared.pools, key=lambda key: (key.family, key.fwmark)) if table else []
    families = sorted({key.family for key in pools})
    addresses = vips(services) if interface else []
    # A deprecated address is never the source of what the router sends by itself, such as the packets of a tunnel: a
    # real server that has the address, too, would drop them. For IPv4 a /32 is no candidate anyway.
    ending = {IPV4: "", IPV6: " nodad preferred_lft 0"}
    return [
        *(f"{IP_FAMILY[family]}route add local default dev lo table {table}" for family in families),
        *(f"{IP_FAMILY[key.family]}rule add fwmark {key.fwmark} lookup {table} priority {table}" for key in pools),
        *(f"address add {vip} dev {interface}{ending[family_of(vip)]}" for vip in addresses),
    ]


def real_server(services: Any, links: Any, **settings: Any) -> dict[str, Any]:
    """What the services need of the machine with these links, if it is one of their real servers."""
    try:
        return asdict(needs(_declared(services), machine(links, settings)))
    except ValidationError as error:
        raise AnsibleFilterError(str(error)) from error


def mss_rules(sizes: Any, family: str) -> str:
    """The rules of one family for iptables-restore --noflush that keep TCP segments small."""
    if family not in FAMILIES:
        raise AnsibleFilterError(f"lvs.fleet.mss_rules: {family!r} is not one of {', '.join(FAMILIES)}")
    try:
        return mss_text(segments(sizes), family)
    except ValidationError as error:
        raise AnsibleFilterError(str(error)) from error


def _declared(services: Any) -> Declaration:
    try:
        return virtual_services(services, "lvs_services")
    except ValidationError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "problems": problems,
            "marks": marks,
            "ipvs_rules": ipvs_rules,
            "kernel_modules": kernel_modules,
            "masqueraded": masqueraded,
            "vips": vips,
            "vip_commands": vip_commands,
            "real_server": real_server,
            "mss_rules": mss_rules,
        }
