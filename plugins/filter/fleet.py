# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the roles derive from lvs_services, on the controller. Each filter is documented in a file of its name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from ipaddress import ip_network
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible.module_utils.parsing.convert_bool import boolean

from ansible_collections.lvs.fleet.plugins.module_utils._boot import router as boot
from ansible_collections.lvs.fleet.plugins.module_utils._boot.router import UNIT
from ansible_collections.lvs.fleet.plugins.module_utils._declared.params import services_of, virtual_services
from ansible_collections.lvs.fleet.plugins.module_utils._declared.role import variable_problems
from ansible_collections.lvs.fleet.plugins.module_utils._declared.suggestions import did_you_mean
from ansible_collections.lvs.fleet.plugins.module_utils._errors import LvsError, ValidationError
from ansible_collections.lvs.fleet.plugins.module_utils._ipvs import ipvsadm
from ansible_collections.lvs.fleet.plugins.module_utils._marks.iptables import (
    mark_chains,
    record_chains,
    save_lines,
    snat_chains,
    transaction,
)
from ansible_collections.lvs.fleet.plugins.module_utils._marks.nft_records import boot_record_lines
from ansible_collections.lvs.fleet.plugins.module_utils._marks.nftables import boot_lines
from ansible_collections.lvs.fleet.plugins.module_utils._model import (
    FAMILIES,
    IPTABLES,
    IPV4,
    IPV6,
    NFTABLES,
    Declaration,
    family_of,
)
from ansible_collections.lvs.fleet.plugins.module_utils._plan import declared_chain
from ansible_collections.lvs.fleet.plugins.module_utils._real_server.mss import mss_text, segments
from ansible_collections.lvs.fleet.plugins.module_utils._real_server.needs import machine, needs

# The names of a role's variables begin all in the same way, so they have to be more alike than other words.
ALIKE_NAMES = 0.85
# ip knows the family of a rule or a route only where it is told, or where there is an address in it.
IP_FAMILY = {IPV4: "", IPV6: "-6 "}


def problems(services: Any, path: str = "lvs_services", variables: Mapping[str, Any] | None = None) -> list[str]:
    """Everything that is wrong with the services, in the variables that they are joined of."""
    joined = [item for value in (variables or {}).values() if isinstance(value, list) for item in value]
    try:
        services_of(variables if variables and joined == services else {path: services})
    except ValidationError as error:
        return list(error.problems)
    return []


def unknown_variables(names: Iterable[str], known: Sequence[str]) -> list[str]:
    """What is wrong with variables that are named like those of a role, and are none of them."""
    unknown = [str(name) for name in names if name not in known]
    return [
        f"{name}: is not a variable of the role{did_you_mean(name, known, alike=ALIKE_NAMES)}"
        for name in sorted(unknown)
    ]


def marks(services: Any, family: str) -> str:
    """The rules of one family for iptables-restore --noflush: MARK rules, and those that active FTP needs."""
    if family not in FAMILIES:
        raise AnsibleFilterError(f"lvs.fleet.marks: {family!r} is not one of {', '.join(FAMILIES)}")
    return _marks(_declared(services), family)


def ipvs_rules(services: Any) -> str:
    """The IPVS services for ipvsadm -R."""
    return _ipvs_rules(_declared(services))


def kernel_modules(services: Any) -> list[str]:
    """The kernel modules of IPVS that the services need."""
    return _kernel_modules(_declared(services))


def masqueraded(services: Any) -> list[str]:
    """The families in which a real server is reached through masquerading."""
    return _masqueraded(_declared(services))


def vips(services: Any) -> list[str]:
    """The single addresses among the destinations, each once, with its prefix."""
    return _vips(_declared(services))


def vip_commands(services: Any, interface: str = "", table: int = 0) -> list[str]:
    """What lets the packets of the services in, as commands of ip: addresses, rules that deliver by mark, or both."""
    return _vip_commands(_declared(services), interface, table)


def router(
    services: Any,
    vip_interface: Any = "",
    vip_table: Any = 0,
    path: str = "lvs_services",
    marking: str = IPTABLES,
    persistence: str = UNIT,
    max_removals: Any = 50,
    conntrack: Any = False,
    conn_reuse_mode: Any = 1,
    expire_nodest_conn: Any = False,
    expire_quiescent_template: Any = False,
) -> dict[str, Any]:
    """All of the above at once, and what the settings of the role make of it.

    The services are read from the inventory and checked only once, which takes longest.
    """
    wrong = variable_problems(
        {
            "vip_interface": vip_interface,
            "vip_table": vip_table,
            "marking": marking,
            "persistence": persistence,
            "max_removals": max_removals,
            "conn_reuse_mode": conn_reuse_mode,
        }
    )
    try:
        declared = replace(virtual_services(services, path), marking=marking)
    except ValidationError as error:
        return {"problems": list(error.problems), "variable_problems": wrong}
    of_ipvs = {
        "conntrack": int(boolean(conntrack)),
        "conn_reuse_mode": conn_reuse_mode,
        "expire_nodest_conn": int(boolean(expire_nodest_conn)),
        "expire_quiescent_template": int(boolean(expire_quiescent_template)),
    }
    masqueraded = _masqueraded(declared)
    return {
        "problems": [],
        "variable_problems": wrong,
        "marking": marking,
        "persistence": persistence,
        "commands": boot.commands(marking),
        "sysctls": {} if wrong else boot.sysctls(masqueraded, vip_interface, of_ipvs),
        "paths": list(boot.PATHS),
        "kernel_modules": _kernel_modules(declared),
        "masqueraded": masqueraded,
        "marks": {family: _marks(declared, family) for family in FAMILIES},
        "nftables_marks": _nftables_marks(declared),
        "ipvs_rules": _ipvs_rules(declared),
        "vip_commands": [] if wrong else _vip_commands(declared, vip_interface, int(vip_table)),
    }


def setup(
    needs: Mapping[str, Any], machine: Mapping[str, Any], families: Mapping[str, Any], texts: Mapping[str, str]
) -> dict[str, Any]:
    """What a machine lacks to be a router with these needs, and its boot files; or what keeps it from being one."""
    problems = boot.obstacles(needs, machine, families)
    if problems:
        return {"obstacles": problems}
    family = families[machine["os_family"]]
    lacking = boot.missing(needs, machine)
    return {
        "obstacles": [],
        "packages": [*family["packages"], *(["nftables"] if needs["marking"] == NFTABLES else [])],
        "missing": lacking,
        "lacks_something": bool(machine["missing_commands"]) or any(lacking.values()),
        "shared_files": boot.shared_files(needs, family),
        **boot.kept(needs, family, texts),
    }


def real_server(services: Any, links: Any, **settings: Any) -> dict[str, Any]:
    """What the services need of the machine with these links, if it is one of their real servers."""
    try:
        return asdict(needs(_declared(services), machine(links, settings)))
    except LvsError as error:
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


def _marks(declared: Declaration, family: str) -> str:
    own = (chain_id for chain_id in (*snat_chains(), *record_chains(), *mark_chains()) if chain_id.family == family)
    tables: dict[str, list[str]] = {}
    for chain_id in own:
        chain = declared_chain(declared, chain_id)
        if chain.exists:
            tables.setdefault(chain_id.table, []).extend(save_lines(chain_id, chain))
    return "".join(transaction(table, lines) for table, lines in tables.items())


def _nftables_marks(declared: Declaration) -> str:
    """The commands that make our tables of nftables from nothing, or none of them if it is iptables that marks."""
    rules = {family: [rule for rule in declared.rules if rule.family == family] for family in FAMILIES}
    lines = [line for family in FAMILIES for line in boot_lines(family, rules[family])]
    lines += [line for family in FAMILIES for line in boot_record_lines(family, declared.records)]
    return "".join(f"{line}\n" for line in lines) if declared.marking == NFTABLES else ""


def _ipvs_rules(declared: Declaration) -> str:
    return "".join(f"{line}\n" for line in ipvsadm.save_lines(declared.pools))


def _kernel_modules(declared: Declaration) -> list[str]:
    pools = declared.pools.values()
    schedulers = {pool.service.scheduler for pool in pools} - {"none"}
    engines = {f"pe_{pool.service.persistence_engine}" for pool in pools if pool.service.persistence_engine}
    helpers = {"ftp"} if declared.snat_rules else set()
    return ["ip_vs", *(f"ip_vs_{name}" for name in sorted(schedulers | engines | helpers))]


def _masqueraded(declared: Declaration) -> list[str]:
    servers = (server for pool in declared.pools.values() for server in pool.real_servers.values())
    return sorted({family_of(server.address) for server in servers if server.forward_method == "masquerade"})


def _vips(declared: Declaration) -> list[str]:
    networks = {ip_network(one.destination) for one in declared.traffic}
    single = [network for network in networks if network.num_addresses == 1]
    return [str(network) for network in sorted(single, key=lambda network: (network.version, network.network_address))]


def _vip_commands(declared: Declaration, interface: str, table: int) -> list[str]:
    addresses = _vips(declared) if interface else []
    # By address all packets to it are delivered, whatever the port: rules ask for the address alone.
    asked = {(key.family, f"fwmark {key.fwmark}" if key.fwmark else f"to {key.address}"): key for key in declared.pools}
    in_order = sorted(asked, key=lambda one: (asked[one].family, asked[one].fwmark, one)) if table else []
    families = sorted({family for family, _words in in_order})
    # A deprecated address is never the source of what the router sends by itself, such as the packets of a tunnel: a
    # real server that has the address, too, would drop them. For IPv4 a /32 is no candidate anyway.
    ending = {IPV4: "", IPV6: " nodad preferred_lft 0"}
    return [
        *(f"{IP_FAMILY[family]}route add local default dev lo table {table}" for family in families),
        *(f"{IP_FAMILY[family]}rule add {words} lookup {table} priority {table}" for family, words in in_order),
        *(f"address add {vip} dev {interface}{ending[family_of(vip)]}" for vip in addresses),
    ]


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "problems": problems,
            "unknown_variables": unknown_variables,
            "marks": marks,
            "ipvs_rules": ipvs_rules,
            "kernel_modules": kernel_modules,
            "masqueraded": masqueraded,
            "vips": vips,
            "vip_commands": vip_commands,
            "router": router,
            "setup": setup,
            "real_server": real_server,
            "mss_rules": mss_rules,
        }
