# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The virtual services of a host, joined from its variables by Ansible itself."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.lvs.fleet.plugins.filter.fleet import problems

TOP = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
# What the roles take, and what they hand to modules.
PLAYBOOK = """\
- hosts: all
  connection: local
  gather_facts: false
  vars:
    services: "{{ lookup('lvs.fleet.services') }}"
    lists: "{{ lookup('lvs.fleet.services', by_variable=true) }}"
  tasks:
    - debug: {msg: "got={{ {inventory_hostname: [services, services | length]} | to_json }}"}
      ignore_errors: true
    - debug: {msg: "got={{ {inventory_hostname: lists.keys() | list} | to_json }}"}
      when: inventory_hostname in ['joined', 'none']
"""
# Each host with its variables, and the names of its services or the words of the error.
HOSTS: dict[str, tuple[dict[str, Any], list[str] | str]] = {
    "one": ({"lvs_services": [{"name": "web"}]}, ["web"]),
    "empty": ({"lvs_services": []}, []),
    "joined": (
        {"lvs_services_b": [{"name": "b"}], "lvs_services": [{"name": "last"}, {"name": "a"}],
         "lvs_services_a": [{"name": "first"}], "my_lvs_services": 7, "lvs_servicesx": 7, "lvs_service_x": 7},
        ["last", "a", "first", "b"],
    ),
    "added": ({"lvs_services_mail": [{"name": "mail"}]}, ["mail"]),
    "templates": (
        {"lvs_services_a": [{"name": "{{ own }}"}], "lvs_services_b": "{{ [{'name': inventory_hostname}] + more }}",
         "own": "a", "more": [{"name": "{{ own * 2 }}"}]},
        ["a", "templates", "aa"],
    ),
    "broken": ({"lvs_services": [], "lvs_services_a": "{{ nothing }}"}, "'nothing' is undefined"),
    "text": ({"lvs_services": [], "lvs_services_a": "web"}, "lvs_services_a: 'web' is not a list"),
    "mapping": ({"lvs_services_a": {"web": 1}}, "{'web': 1} is not a list; write a '-' before each item"),
    "null": ({"lvs_services": None}, "lvs_services: None is not a list"),
    "none": ({}, "there is no lvs_services and no lvs_services_NAME; write lvs_services: [] for no services"),
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """One run, with all hosts, and one whose list is vaulted."""
    folder = tmp_path_factory.mktemp("services")
    (folder / "play.yml").write_text(PLAYBOOK)
    (folder / "password").write_text("secret\n")
    hosts = {name: variables for name, (variables, _wanted) in HOSTS.items()}
    (folder / "hosts.yml").write_text(json.dumps({"all": {"hosts": {**hosts, "vaulted": {}}}}))
    vaulted = folder / "host_vars/vaulted.yml"
    vaulted.parent.mkdir()
    command = ["ansible-vault", "encrypt_string", "--vault-password-file", "password", "hidden"]
    environment = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": f"{TOP}/.build", "ANSIBLE_HOME": f"{folder}/home"}
    secret = subprocess.run(
        [BIN / command[0], *command[1:]], cwd=folder, env=environment, text=True, capture_output=True, check=True
    ).stdout
    vaulted.write_text(f"lvs_services_a:\n  - name: {secret}")
    return subprocess.run(
        [BIN / "ansible-playbook", "-i", "hosts.yml", "--vault-password-file", "password", "play.yml"],
        cwd=folder, env=environment, text=True, capture_output=True, check=False,
    )  # fmt: skip


def answers(run: subprocess.CompletedProcess[str]) -> dict[str, list[Any]]:
    """What each host said, one after the other."""
    found: dict[str, list[Any]] = {}
    for text in re.findall(r'"msg": ("got=.*")$', run.stdout, re.MULTILINE):
        for name, value in json.loads(json.loads(text).removeprefix("got=")).items():
            found.setdefault(name, []).append(value)
    return found


def test_the_services_of_each_host_are_joined_from_its_own_variables(run: subprocess.CompletedProcess[str]) -> None:
    joined = {name: [item["name"] for item in value[0][0]] for name, value in answers(run).items() if name != "none"}
    wanted = {name: wanted for name, (_variables, wanted) in HOSTS.items() if isinstance(wanted, list)}
    assert joined == {**wanted, "vaulted": ["hidden"]}, run.stdout + run.stderr


@pytest.mark.parametrize("name", [name for name, (_variables, wanted) in HOSTS.items() if isinstance(wanted, str)])
def test_what_cannot_be_joined_is_said(name: str, run: subprocess.CompletedProcess[str]) -> None:
    words = HOSTS[name][1]
    (said,) = re.findall(rf"^fatal: \[{name}\]: .*?^\.\.\.ignoring", run.stdout, re.MULTILINE | re.DOTALL)
    assert words in said


def test_the_lists_by_their_variables(run: subprocess.CompletedProcess[str]) -> None:
    found = answers(run)
    assert found["joined"][1] == ["lvs_services", "lvs_services_a", "lvs_services_b"]
    assert found["none"] == [[]]


def service(name: str, fwmark: int) -> dict[str, Any]:
    return {"name": name, "fwmark": fwmark, "traffic": [{"destination": "192.0.2.10", "protocol": "tcp"}]}


def test_problems_name_the_variables() -> None:
    lists = {
        "lvs_services": [service("web", 80)],
        "lvs_services_mail": [service("a", 25), service("web", 80)],
        "lvs_x": [],
    }
    services = [*lists["lvs_services"], *lists["lvs_services_mail"]]
    assert problems(services, variables=lists) == [
        "lvs_services_mail[1] (web).name: web is taken by lvs_services[0] (web)",
        "lvs_services_mail[1] (web).fwmark: 80 is taken by lvs_services[0] (web)",
    ]
    others = [*services[1:], {"name": "web"}]
    assert problems(others, "mine", lists) == problems(others, "mine")
    assert problems("web", variables={}) == ["lvs_services: 'web' is not a list"]
