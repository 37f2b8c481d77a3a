# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the README and the other pages show works as it is written there."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.lvs.fleet.plugins.filter import fleet

TOP = Path(__file__).parents[2]
README = (TOP / "README.md").read_text()
PAGES = [TOP / "README.md", *sorted(TOP.glob("docs/*.md")), *sorted(TOP.glob("roles/*/README.md"))]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def files(text: str) -> dict[str, str]:
    """The files that a page shows: blocks whose first line is a path."""
    found = (re.match(r"# (\S+/\S+|requirements\.yml)\n", block) for block in blocks(text, "yaml"))
    return {match[1]: match.string[match.end() :] for match in found if match}


def services(value: Any) -> Iterator[dict[str, Any]]:
    """Every virtual service in a value, at any depth."""
    if isinstance(value, dict) and "fwmark" in value:
        yield value
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from services(item)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the files that the README shows."""
    for name, content in files(README).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    return tmp_path


def attempt(project: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(TOP / ".build"), "ANSIBLE_HOME": str(project / "home")}
    return subprocess.run(command, cwd=project, env=environment, text=True, capture_output=True, check=False)


def run(project: Path, *command: str) -> str:
    done = attempt(project, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_inventory_of_the_readme_is_whole(project: Path) -> None:
    assert sorted(files(README)) == ["inventory/group_vars/all.yml", "inventory/hosts.yml", "requirements.yml"]
    inventory = json.loads(run(project, "ansible-inventory", "--inventory", "inventory", "--list"))
    hosts = [host for group in ("lvs_routers", "lvs_real_servers") for host in inventory[group]["hosts"]]
    variables = inventory["_meta"]["hostvars"]
    assert len(hosts) == 5
    for host in hosts:
        needs = fleet.router(variables[host]["lvs_services"], variables[host]["lvs_router_vip_interface"])
        assert needs["problems"] == [] and len(needs["vip_commands"]) == 2


def test_the_commands_of_the_readme_can_be_run(project: Path) -> None:
    lines = [line for block in blocks(README, "console") for line in block.splitlines()]
    commands = {
        line.removeprefix("$ ").partition(" --check")[0] for line in lines if line.startswith("$ ansible-playbook")
    }
    assert commands == {
        f"ansible-playbook --inventory inventory lvs.fleet.{name}" for name in ("deploy", "real_servers")
    }
    for command in sorted(commands):
        run(project, *command.split(), "--syntax-check")


@pytest.mark.parametrize(
    ("playbook", "role", "wrong", "right"),
    [
        ("deploy", "router", "vip_interfaces", "vip_interface"),
        ("real_servers", "real_server", "gateway", "gateways"),
    ],
)
def test_a_role_names_each_mistake_on_a_line_before_it_connects(
    project: Path, playbook: str, role: str, wrong: str, right: str
) -> None:
    """A misspelt variable, which Ansible would ignore, among them."""
    inventory = project / "inventory/group_vars/all.yml"
    inventory.write_text(inventory.read_text().replace("scheduler: wlc", "scheduler: WLC"))
    inventory.with_name("lvs_routers.yml").write_text("lvs_services_mail: [{name: web, fwmark: 25}]\n")
    inventory.with_name("lvs_real_servers.yml").write_text("lvs_services_mail: [{name: web, fwmark: 25}]\n")
    command = ["ansible-playbook", "--inventory", "inventory", f"lvs.fleet.{playbook}", "-e", f"lvs_{role}_{wrong}=x"]
    done = attempt(project, *command)
    said = [line.strip().strip('",') for line in (done.stdout + done.stderr).splitlines()]
    begin = "[ERROR]: Task failed: Action failed: "
    assert done.returncode == 2 and "UNREACHABLE" not in done.stdout
    assert {line.removeprefix(begin) for line in said} >= {
        "lvs_services[0] (web).scheduler: 'WLC' is not the name of a scheduler; did you mean wlc?",
        "lvs_services_mail[0] (web).name: web is taken by lvs_services[0] (web)",
        f"lvs_{role}_{wrong}: is not a variable of the role; did you mean lvs_{role}_{right}?",
    }


def test_the_requirements_of_the_readme_name_this_collection() -> None:
    (wanted,) = yaml.safe_load(files(README)["requirements.yml"])["collections"]
    galaxy = yaml.safe_load((TOP / "galaxy.yml").read_text())
    assert wanted == {"name": f"{galaxy['namespace']}.{galaxy['name']}", "version": f">={galaxy['version']}"}


def test_the_demo_runs_what_the_readme_shows() -> None:
    demo = (TOP / "tests/demo/inventory/group_vars/all.yml").read_text()
    assert files(README)["inventory/group_vars/all.yml"] == demo.partition("---\n")[2]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
def test_every_service_that_a_page_shows_can_be_declared(page: Path) -> None:
    for block in blocks(page.read_text(), "yaml"):
        assert fleet.problems(list(services(yaml.safe_load(block)))) == []
