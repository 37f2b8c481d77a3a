# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What machine this is, and which programs are at work on it. PRIVATE to the collection; reads, best effort."""

from __future__ import annotations

import os
import re
from typing import Any, Sequence

from .. import _host as host

OS_RELEASE = "/etc/os-release"
SETTINGS = "/proc/sys"
FAMILIES = {"debian": "Debian", "rhel": "RedHat", "fedora": "RedHat", "centos": "RedHat"}
# A role makes the name of a file of this word, so it is never one of the machine's own.
OTHER = "other"
# Names of processes, and what we call their program.
_CONTROLLERS = {
    "keepalived": "keepalived",
    "keepalived_ipvs": "keepalived",
    "keepalived_lvs": "keepalived",
    "ldirectord": "ldirectord",
    "kube-proxy": "kube-proxy",
    "kube-router": "kube-router",
    "kube-vip": "kube-vip",
    "k3s-server": "k3s",
    "k3s-agent": "k3s",
    "dockerd": "dockerd (swarm)",
    "lvsd": "lvsd",
    "nanny": "nanny",
    "seesaw_ncc": "seesaw_ncc",
}
# The options of keepalived without a value, and among them that for VRRP alone.
_VRRP_ALONE = re.compile(r"--vrrp|-[DlndRCVIBXxmM]*P.*")
# Where keepalived writes the numbers of the processes that have nothing to do with IPVS.
_NO_CHECKERS = [f"/run/{folder}{name}.pid" for folder in ("", "keepalived/") for name in ("vrrp", "bfd")]
_FIREWALLD = "firewalld"
# The interface on which kube-proxy has the addresses of its services, only in IPVS mode.
_KUBE_INTERFACE = "kube-ipvs0"
# The interface of every node of a swarm.
_SWARM_INTERFACE = "docker_gwbridge"

# Firewalls that remove all rules of iptables, as docs/router.md tells of each. firewalld 2 and later needs a direct
# rule for it, which somebody may add at any time. ferm and firehol do so in the legacy variant of iptables, which they
# prefer.
_FLUSHING_UNITS = (
    *("arno-iptables-firewall.service", "ferm.service", "firehol.service", "firewalld.service", "nftables.service"),
    *("shorewall.service", "shorewall-lite.service", "shorewall6.service", "shorewall6-lite.service"),
)


def facts(commands: list[str], names: list[str], paths: list[str]) -> dict[str, Any]:
    release = os_release()
    return {
        "os_family": os_family(release),
        "os_version": os_version(release),
        "missing_commands": [command for command in commands if not host.installed(command)],
        "settings": settings(names),
        "paths": [path for path in paths if os.path.lexists(path)],
        "flushing_units": flushing_units(),
    }


def os_release() -> dict[str, str]:
    """The distribution's words on itself, each with or without quotes."""
    words = re.findall(r"""^(\w+)=(["']?)(.*)\2$""", host.read_text(OS_RELEASE), re.MULTILINE)
    return {name: value for name, _quote, value in words}


def os_family(release: dict[str, str]) -> str:
    names = [release.get("ID", ""), *release.get("ID_LIKE", "").split()]
    return next((FAMILIES[name] for name in names if name in FAMILIES), OTHER)


def os_version(release: dict[str, str]) -> str:
    found = re.match(r"[0-9]{1,9}(\.[0-9]{1,9}){0,3}", release.get("VERSION_ID", ""), re.ASCII)
    return found[0] if found else ""


def settings(names: list[str]) -> dict[str, str]:
    """What the kernel has of them. As sysctl does it, dots separate only where no slash does."""
    paths = {name: f"{SETTINGS}/{name if '/' in name else name.replace('.', '/')}" for name in names}
    return {name: host.read_text(path).strip() for name, path in paths.items() if os.path.isfile(path)}


def programs() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The other controllers of IPVS in our network namespace; and a firewall that shows by its process alone."""
    processes = host.processes((*_CONTROLLERS, _FIREWALLD))
    there = host.interfaces()
    others = {int(pid) for path in _NO_CHECKERS for pid in host.read_text(path).split() if pid.isdigit()}
    keepalived = [pid for pid, name, _arguments in processes if name == "keepalived"]
    # The first one is the parent of the others, each of which has a task of its own.
    checkers = set(keepalived[1:]) - others
    first: dict[str, int] = {}
    for pid, name, arguments in processes:
        if name == _FIREWALLD or _manages_ipvs(pid, name, arguments, there, bool(checkers)):
            first.setdefault(_CONTROLLERS.get(name, name), pid)
    controllers = [{"name": name, "pid": pid} for name, pid in first.items() if name != _FIREWALLD]
    firewalls = [
        {"name": _FIREWALLD, "evidence": f"process {pid}"} for name, pid in first.items() if name == _FIREWALLD
    ]
    return controllers, firewalls


def flushing_units() -> list[str]:
    """The units in use that remove all rules of iptables when they start, reload or stop."""
    return [unit for unit in _FLUSHING_UNITS if host.in_use(unit)]


def _manages_ipvs(pid: int, name: str, arguments: list[str], there: Sequence[str], checkers: bool) -> bool:
    options = " ".join(arguments).replace("=", " ")
    if name in ("kube-proxy", "k3s-server", "k3s-agent"):
        return _KUBE_INTERFACE in there or "proxy-mode ipvs" in options
    if name == "kube-router":
        return "--run-service-proxy false" not in options
    if name == "kube-vip":
        enabled = "lb_enable=true" in host.read_text(f"/proc/{pid}/environ").split("\0")
        return enabled or "--enableLoadBalancer" in options
    if name == "dockerd":
        return _SWARM_INTERFACE in there
    if name == "keepalived":
        return checkers and not any(map(_VRRP_ALONE.fullmatch, arguments))
    return True
