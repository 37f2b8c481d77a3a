# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the machine of an LVS router lacks, and the files from which its services come back after a reboot.

PRIVATE to the collection. Pure. A file is a mapping with path and content, and perhaps mode and part, as the module
boot_files takes it.
"""

from __future__ import annotations

import re
from posixpath import dirname
from typing import Any, Dict, Iterable, Mapping, Sequence

from .._model import IPTABLES, IPV4, IPV6, NFTABLES

File = Dict[str, Any]

# The ways in which services and rules come back.
UNIT, DISTRIBUTION, NONE = "unit", "distribution", "none"
_READABLE = "0644"
_SYSTEM = "/etc/systemd/system"
_OWN_FOLDER = "/etc/lvs"
_RESTORE, _VIPS = "lvs-restore.service", "lvs-vips.service"
# What ip_objects has on record, and lvs-vips.service sets at boot.
VIPS_RECORD = f"{_OWN_FOLDER}/vips"
FTP_HELPER = "/sys/module/ip_vs_ftp"
# apt removes ufw for the sake of the package that restores rules.
_RIVALS = ("/usr/sbin/ufw",)
# What shows that the distribution's package that restores rules is installed.
_RESTORERS = ("/usr/share/netfilter-persistent/plugins.d/15-ip4tables", "/usr/libexec/iptables/iptables.init")
# The paths of which the role has to know whether they are there.
PATHS = (*_RIVALS, *_RESTORERS, FTP_HELPER, VIPS_RECORD)
# After this firewall a unit of ours brings the rules back.
_FOLLOWED = "nftables.service"
# lvs-restore once more, after a unit has removed its rules; it need not have run since the boot. While the router
# boots, this is the same as its own start, which waits for the unit; while it shuts down, systemd refuses it.
_AGAIN = f"-/bin/systemctl --no-block restart {_RESTORE}"


# -- the kernel's settings ----------------------------------------------------------------------------------------


def sysctls(masqueraded: Iterable[str], interface: str, of_ipvs: Mapping[str, int]) -> dict[str, int]:
    """The kernel's settings, by their names. of_ipvs: those of net.ipv4.vs.

    Forwarding is only ever switched on: the router may forward for reasons of its own. A router that reaches clients
    and real servers through one interface would tell the servers, by ICMP redirects, of a shorter way to the client:
    past the router, which has to undo the masquerading. The kernel sends them if either "all" or the interface allows
    it. With slashes, because the name of an interface may hold dots.
    """
    found = {f"net.ipv4.vs.{name}": value for name, value in of_ipvs.items()}
    families = set(masqueraded)
    if IPV4 in families:
        found.update({"net.ipv4.ip_forward": 1, "net.ipv4.conf.all.send_redirects": 0})
        found.update({f"net/ipv4/conf/{interface}/send_redirects": 0} if interface else {})
    if IPV6 in families:
        found["net.ipv6.conf.all.forwarding"] = 1
    return found


def commands(marking: str) -> list[str]:
    return ["ip", "ip6tables", "iptables", "ipvsadm", "modprobe", "sysctl", *(["nft"] if marking == NFTABLES else [])]


# -- what the machine lacks ---------------------------------------------------------------------------------------


def obstacles(needs: Mapping[str, Any], machine: Mapping[str, Any], families: Iterable[str]) -> list[str]:
    """What keeps the role from its work on a machine, as machine_info has found it.

    Nothing was found where Ansible goes on although the machine was lost (ignore_unreachable).
    """
    if machine.get("unreachable"):
        return [f"the machine cannot be reached: {machine.get('msg', '')}"]
    family = machine["os_family"]
    known = "the role knows the packages and files of the Debian and RHEL families"
    unknown = [] if family in families else [f"{known}; /etc/os-release names another one: {family or 'none'}"]
    return [*unknown, *_firewall_problems(needs, machine)]


def _firewall_problems(needs: Mapping[str, Any], machine: Mapping[str, Any]) -> list[str]:
    """Firewalls that remove all rules of iptables, and with them the marks, or what FTP needs behind masquerading."""
    firewalls = [unit for unit in machine["flushing_units"] if unit != _FOLLOWED]
    rivals = [*(path for path in _RIVALS if path in machine["paths"]), *machine["flushing_units"]]
    names = list(dict.fromkeys(re.findall(r'--comment "lvs:([^"]+)"', "".join(needs["marks"].values()))))
    removes = f"{', '.join(firewalls)}: this firewall removes all rules of iptables when it starts, reloads or stops"
    problems = []
    if firewalls and names and needs["marking"] == IPTABLES:
        problems.append(
            f"lvs_router_marking: iptables does not go together with {removes}; write nftables, or stop and disable "
            "the firewall"
        )
    elif firewalls and names:
        problems.append(
            f"lvs_router_services ({', '.join(names)}).helper: ftp does not go together with {removes}; write "
            "forward_method direct or tunnel and no helper, or stop and disable the firewall"
        )
    if rivals and needs["persistence"] == DISTRIBUTION:
        problems.append(
            f"lvs_router_persistence: distribution does not go together with {', '.join(rivals)}: this firewall "
            "excludes what restores rules at boot, or removes them; write unit, or remove the firewall"
        )
    return problems


def missing(needs: Mapping[str, Any], machine: Mapping[str, Any]) -> dict[str, Any]:
    """What the machine lacks before it can have services; commands are in its own answer."""
    there = {f"{name}={value}" for name, value in machine["settings"].items()}
    wanted = (f"{name}={value}" for name, value in needs["sysctls"].items())
    restored = any(path in machine["paths"] for path in _RESTORERS)
    return {
        "sysctls": sorted(setting for setting in wanted if setting not in there),
        "ftp_helper": "ip_vs_ftp" in needs["kernel_modules"] and FTP_HELPER not in machine["paths"],
        "restorer": needs["persistence"] == DISTRIBUTION and not restored,
    }


# -- files --------------------------------------------------------------------------------------------------------


def kept(needs: Mapping[str, Any], family: Mapping[str, Any], texts: Mapping[str, str]) -> dict[str, Any]:
    """The options of boot_files: one way, without the others.

    Of the others go the files, our parts of files that are shared, and folders that may be empty then.
    needs: what the filter router returns. family: words of the distribution, as in the role's vars. texts: those of the
    files that are the same on every router, by their names.
    """
    ways = {
        UNIT: [*_unit_files(needs, texts), *_followers(family)],
        DISTRIBUTION: [*shared_files(needs, family), *family["drop_ins"], _wanted_at_boot(family)],
        NONE: [],
    }
    drop_in = [_vips_drop_in(needs["persistence"], family)]
    after = {UNIT: [], DISTRIBUTION: drop_in, NONE: drop_in}
    way = needs["persistence"]
    files = [*_kernel_files(needs), *ways[way], *after[way]]
    if way == UNIT and needs["marking"] == NFTABLES:
        files += _nftables_files(needs)
    if needs["vip_commands"]:
        files.append(_file(f"{_SYSTEM}/{_VIPS}", texts[_VIPS], _READABLE))
    if way != DISTRIBUTION:
        files += [{**file, "content": ""} for file in shared_files(needs, family)]
    of_all_ways = [*(file for one in ways.values() for file in one), *drop_in, *_nftables_files(needs)]
    return {
        "files": files,
        "enabled_units": [*([_RESTORE] if way == UNIT else []), *([_VIPS] if needs["vip_commands"] else [])],
        "disabled_units": [] if way == UNIT else [_RESTORE],
        "absent": _absent(files, of_all_ways),
    }


def _absent(files: Sequence[File], of_all_ways: Sequence[File]) -> list[str]:
    wanted = {file["path"] for file in files}
    paths = list(dict.fromkeys(file["path"] for file in of_all_ways if "part" not in file))
    folders = [dirname(path) for path in paths if ".d/" in path]
    return [*(path for path in paths if path not in wanted), *folders, _OWN_FOLDER]


def _file(path: str, content: str, mode: str = "") -> File:
    return {"path": path, "content": content, **({"mode": mode} if mode else {})}


def _kernel_files(needs: Mapping[str, Any]) -> list[File]:
    """What the kernel needs at the next boot, whatever restores the services.

    The dash has systemd-sysctl go on where a key does not exist.
    """
    modules = "".join(f"{module}\n" for module in needs["kernel_modules"])
    settings = "".join(f"-{name} = {value}\n" for name, value in needs["sysctls"].items())
    return [
        _file("/etc/modules-load.d/lvs-fleet.conf", modules, _READABLE),
        _file("/etc/sysctl.d/90-lvs-fleet.conf", settings, _READABLE),
    ]


def _unit_files(needs: Mapping[str, Any], texts: Mapping[str, str]) -> list[File]:
    return [
        _file(f"{_OWN_FOLDER}/ipvs.rules", needs["ipvs_rules"]),
        _file(f"{_OWN_FOLDER}/marks.v4", needs["marks"][IPV4]),
        _file(f"{_OWN_FOLDER}/marks.v6", needs["marks"][IPV6]),
        _file("/usr/local/sbin/lvs-restore", texts["lvs-restore"], "0755"),
        _file(f"{_SYSTEM}/{_RESTORE}", texts[_RESTORE], _READABLE),
    ]


def _nftables_files(needs: Mapping[str, Any]) -> list[File]:
    """Restored as well, where it exists."""
    return [_file(f"{_OWN_FOLDER}/marks.nft", needs["nftables_marks"])]


def _followers(family: Mapping[str, Any]) -> list[File]:
    """Drop-ins of the units that remove rules when they are started, stopped or reloaded, while the router is at work.

    A unit without a reload of its own must not seem to have one.
    """
    return [
        _file(
            f"{_SYSTEM}/{unit}.d/lvs-fleet.conf",
            "[Service]\n" + "".join(f"{setting}={_AGAIN}\n" for setting in settings),
            _READABLE,
        )
        for unit, settings in family["removing_units"].items()
    ]


def _wanted_at_boot(family: Mapping[str, Any]) -> File:
    """By a file of ours, and not enabled: so it is known, when the file goes, what was enabled before it."""
    wants = f"[Unit]\nWants={' '.join(family['restoring_units'])}\n"
    return _file(f"{_SYSTEM}/multi-user.target.d/lvs-fleet.conf", wants, _READABLE)


def _vips_drop_in(way: str, family: Mapping[str, Any]) -> File:
    """The addresses come last, or not at all."""
    if way == NONE:
        order = "# Nothing restores their services: lvs_router_persistence is none.\nConditionPathExists=!/\n"
    else:
        order = f"After={' '.join(family['restoring_units'])}\n"
    return _file(f"{_SYSTEM}/{_VIPS}.d/lvs-fleet.conf", f"[Unit]\n{order}", _READABLE)


def shared_files(needs: Mapping[str, Any], family: Mapping[str, Any]) -> list[File]:
    """The distribution's own files, with a part of ours in each."""
    contents = {
        "marks of IPv4": needs["marks"][IPV4],
        "marks of IPv6": needs["marks"][IPV6],
        # With a line of its own, because the unit of the RHEL family insists on a file, even if there are no services.
        "services": f"# Services of the inventory\n{needs['ipvs_rules']}",
    }
    return [
        {**{key: file[key] for key in file if key != "holds"}, "content": contents[file["holds"]]}
        if "holds" in file
        else dict(file)
        for file in family["shared_files"]
    ]
