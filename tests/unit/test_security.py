# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""SECURITY.md says what the code does."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.lvs.fleet.plugins.module_utils import _host
from ansible_collections.lvs.fleet.plugins.module_utils._ip import machine as ip_machine
from ansible_collections.lvs.fleet.plugins.modules import boot_files
from ansible_collections.lvs.fleet.tests.unit.test_role import FAMILIES, kept

TOP = Path(__file__).parents[2]
PLUGINS = sorted((TOP / "plugins").rglob("*.py"))
TEXT = (TOP / "SECURITY.md").read_text()
UNITS = {path.name: path.read_text() for path in (TOP / "roles").glob("*/files/*.service")}
DEFAULT_MODE = yaml.safe_load(boot_files.DOCUMENTATION)["options"]["files"]["suboptions"]["mode"]["default"]


# -- files --------------------------------------------------------------------------------------------------------


def documented(header: str) -> dict[str, str]:
    """The modes in a table, by path."""
    [table] = re.findall(rf"^\| file \| mode \|{re.escape(header)}\n\|---.*\n((?:\|.*\n)+)", TEXT, re.MULTILINE)
    rows = re.findall(r"^\| `(\S+)` \| (\d{4}) \|", table, re.MULTILINE)
    assert len(rows) == len(table.splitlines())
    return dict(rows)


def files_in(value: Any) -> Iterator[dict[str, str]]:
    """What is given to boot_files, anywhere in the variables."""
    if isinstance(value, dict) and {"path", "content"} <= value.keys():
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from files_in(inner)


def files_of_routers() -> Iterator[dict[str, str]]:
    """Those of every family of distributions, by every way in which services come back."""
    for family, way in product(FAMILIES, ({}, {"marking": "nftables"}, {"persistence": "distribution"})):
        yield from kept(family, vip_interface="lo", **way)["files"]


def written(shared: bool) -> dict[str, str]:
    """The modes of files of the roles, by path: those in which only a part is ours, or the others."""
    variables = yaml.safe_load((TOP / "roles/lvs_real_server/vars/main.yml").read_text())
    files = [file for file in (*files_in(variables), *files_of_routers()) if ("part" in file) is shared]
    return {file["path"]: file.get("mode", DEFAULT_MODE) for file in files}


def test_the_table_has_every_file_with_its_mode() -> None:
    record = f"{ip_machine.MODE:04o}"
    others = {"/etc/lvs": "0700", "/etc/lvs/vips": record, "/etc/lvs/real-server": record, _host.LOCK_FILE: "0600"}
    assert documented(" what it tells |") == {**written(shared=False), **others}


def test_the_table_has_every_file_of_the_distribution() -> None:
    assert documented("") == written(shared=True)


def test_what_tells_of_the_setup_is_for_root_alone() -> None:
    telling = {path for path, mode in written(shared=False).items() if not int(mode, 8) & 0o077}
    assert {path for path in written(shared=False) if path.startswith("/etc/lvs/")} == telling


def test_folders_are_for_root_alone(tmp_path: Path) -> None:
    _host.write_file(f"{tmp_path}/lvs/marks.v4", "", 0o644)
    assert (_host.mode_of(f"{tmp_path}/lvs"), _host.mode_of(f"{tmp_path}/lvs/marks.v4")) == (0o700, 0o644)


# -- the code -----------------------------------------------------------------------------------------------------


def calls(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Every call in a file: what is called, as in "os.path.join", and the names of its arguments."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), [keyword.arg or "" for keyword in node.keywords]


@pytest.mark.parametrize("path", PLUGINS, ids=lambda path: path.stem)
def test_no_shell(path: Path) -> None:
    shells = re.compile(r"os\.(system|popen|exec\w*|spawn\w*)|subprocess\.get\w*output|pty\.spawn|eval|exec")
    found = list(calls(path))
    assert [name for name, _keywords in found if shells.fullmatch(name)] == []
    assert [name for name, keywords in found if "shell" in keywords] == []
    words = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
    # "sh" alone is a scheduler.
    assert not words & {"/bin/sh", "bash", "/bin/bash", "env", "-c"}


def test_temporary_names_cannot_be_foretold() -> None:
    """They are made by mkstemp, which takes no file that is there, and in the folder of what they become."""
    makers = re.compile(r"tempfile\.\w+|os\.(tmpnam|tempnam)|mktemp")
    found = [(path.stem, *call) for path in PLUGINS for call in calls(path) if makers.fullmatch(call[0])]
    assert found == [("_host", "tempfile.mkstemp", ["dir", "prefix"])]
    assert not re.search(r'"/(var/)?tmp', "".join(path.read_text() for path in PLUGINS))


# -- units --------------------------------------------------------------------------------------------------------

# What the job of a unit lets it do without, and then all of this.
SANDBOX = {
    "CapabilityBoundingSet", "IPAddressDeny", "LockPersonality", "MemoryDenyWriteExecute", "NoNewPrivileges",
    "PrivateDevices", "PrivateMounts", "PrivateTmp", "ProcSubset", "ProtectClock", "ProtectControlGroups",
    "ProtectHome", "ProtectHostname", "ProtectKernelLogs", "ProtectKernelModules", "ProtectKernelTunables",
    "ProtectProc", "ProtectSystem", "RestrictAddressFamilies", "RestrictNamespaces", "RestrictRealtime",
    "RestrictSUIDSGID", "SystemCallArchitectures", "SystemCallErrorNumber", "SystemCallFilter", "UMask",
}  # fmt: skip
# iptables finds modprobe, and modprobe what is loaded, in parts of /proc that are not about processes.
LOADING = {"ProcSubset", "ProtectKernelModules"}
WITHOUT = {
    "lvs-restore.service": LOADING,
    "lvs-real-server-mss.service": LOADING,
    "lvs-real-server.service": {"ProcSubset", "ProtectKernelTunables"},
}


@pytest.mark.parametrize("unit", sorted(UNITS))
def test_the_sandboxes(unit: str) -> None:
    keys = {line.partition("=")[0] for line in UNITS[unit].splitlines() if not line.startswith("#") and "=" in line}
    assert SANDBOX - keys == WITHOUT.get(unit, set())


def test_the_capabilities_of_the_units() -> None:
    rows = re.findall(r"^\| `(lvs-\S+\.service)` \| \d\.\d \| (.*?) \|", TEXT, re.MULTILINE)
    bounds = {unit: re.findall(r"^CapabilityBoundingSet=(.*)$", text, re.MULTILINE) for unit, text in UNITS.items()}
    assert {unit: [found.replace("`", "").replace(",", "")] for unit, found in rows} == bounds
