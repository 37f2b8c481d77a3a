# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the roles and the README say of themselves in two places must be the same in both."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

TOP = Path(__file__).parents[2]
ROLE = TOP / "roles" / "lvs_router"


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


ROLES = sorted((TOP / "roles").iterdir())


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_argument_specs_equal_the_defaults(role: Path) -> None:
    options = load(role / "meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    assert {name: option["default"] for name, option in options.items()} == load(role / "defaults/main.yml")


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_the_role_uses_every_variable_and_no_other(role: Path) -> None:
    used: set[str] = set()
    for path in [*role.glob("tasks/*"), *role.glob("vars/*"), *role.glob("handlers/*")]:
        used |= set(re.findall(rf"(?<!_)\b{role.name}_\w+", path.read_text()))
    assert used == set(load(role / "defaults/main.yml"))


def test_the_real_servers_files_are_all_removed_again() -> None:
    """A file that is written, and not among those that are removed, would stay when the machine leaves the pool."""
    variables = (TOP / "roles/lvs_real_server/vars/main.yml").read_text()
    written = set(re.findall(r"path: (/etc/\S+)", variables))
    assert written | {"/etc/lvs/real-server"} == set(re.findall(r"^  - (/etc/\S+)$", variables, re.MULTILINE))
    units = {path.name for path in (TOP / "roles/lvs_real_server/files").iterdir()}
    assert {Path(path).name for path in written if path.endswith(".service")} == units


FAMILIES = ["Debian", "RedHat"]


def test_every_family_defines_the_same() -> None:
    families = [load(ROLE / f"vars/{family}.yml") for family in FAMILIES]
    assert families[0].keys() == families[1].keys()
    kinds = [[file["part"] for file in family["__lvs_router_shared_files"]][:3] for family in families]
    assert kinds == [["iptables", "iptables", "ipvsadm"]] * 2
    assert all((ROLE / f"tasks/restorer-{family}.yml").exists() for family in FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_package_names_are_known(family: str) -> None:
    packages = load(ROLE / f"vars/{family}.yml")["__lvs_router_packages"]
    assert "ipvsadm" in packages and any(name.startswith("iptables") for name in packages)


def test_the_readme_shows_what_the_demo_runs() -> None:
    shown = re.search(r"```yaml\n(.*?)```", (TOP / "README.md").read_text(), re.DOTALL)
    assert shown
    demo = (TOP / "tests/demo/inventory/group_vars/lvs_routers.yml").read_text()
    assert shown[1] == demo.partition("---\n")[2]


def test_the_action_group_holds_every_module() -> None:
    modules = {path.stem for path in (TOP / "plugins/modules").glob("*.py")}
    assert set(load(TOP / "meta/runtime.yml")["action_groups"]["all"]) == modules
