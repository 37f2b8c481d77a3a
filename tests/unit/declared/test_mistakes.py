# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Mistakes that people make in an inventory, one at a time, and every line that they read: problems, or warnings."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from ansible.module_utils.basic import AnsibleModule

from ansible_collections.lvs.fleet.plugins.filter.fleet import problems
from ansible_collections.lvs.fleet.plugins.module_utils._declared.doubts import service_doubts
from ansible_collections.lvs.fleet.plugins.module_utils._declared.params import virtual_services
from ansible_collections.lvs.fleet.plugins.modules import (
    ip_objects,
    iptables_mark,
    ipvs_service,
    lvs_service,
    report_file,
)
from ansible_collections.lvs.fleet.tests.unit.fake_kernel import FakeKernel
from ansible_collections.lvs.fleet.tests.unit.running import run_module

TOP = Path(__file__).parents[3]
FIXTURES = Path(__file__).parents[1] / "fixtures"
WEB = {
    "name": "web",
    "fwmark": 80,
    "traffic": [{"destination": "192.0.2.10", "protocol": "tcp", "ports": [80, 443]}],
    "persistence_timeout": 300,
    "real_servers": [{"address": "10.0.0.11"}],
}


def cases(fixture: str) -> list[tuple[str, list[str]]]:
    """Each mistake with its lines."""
    found: list[tuple[str, list[str]]] = []
    for line in (FIXTURES / fixture).read_text(encoding="utf-8").splitlines():
        if line.startswith("    "):
            found[-1][1].append(line.strip())
        elif line and not line.startswith("#"):
            found.append((line, []))
    return found


def inventory(text: str) -> Any:
    """lvs_services with the mistake."""
    given = yaml.safe_load(text)
    return given.get("lvs_services", [{**WEB, **given}])


@pytest.mark.parametrize("text, lines", cases("mistakes.txt"))
def test_the_lines_of_a_mistake(text: str, lines: list[str]) -> None:
    assert problems(inventory(text)) == lines != []


def test_without_a_mistake_there_is_no_line() -> None:
    assert problems([WEB]) == []


def test_there_are_many_mistakes_and_each_line_shows_its_place() -> None:
    found = cases("mistakes.txt")
    assert len(found) > 150
    assert all(line.startswith("lvs_services") for _text, lines in found for line in lines)


@pytest.mark.parametrize("text, lines", cases("doubts.txt"))
def test_the_warnings(text: str, lines: list[str]) -> None:
    given = inventory(text)
    assert problems(given) == []
    assert service_doubts(virtual_services(given, "lvs_services"), "lvs_services") == lines


def test_half_of_these_cases_are_quiet() -> None:
    quiet = [text for text, lines in cases("doubts.txt") if not lines]
    assert 15 < len(quiet) < len(cases("doubts.txt")) - 15


def test_what_people_read_gives_no_warning() -> None:
    """The inventories and examples of README, docs and modules."""
    paths = [TOP / "README.md", *(TOP / "docs").glob("*.md")]
    texts = [text for path in paths for text in re.findall(r"```yaml\n(.*?)```", path.read_text(), re.DOTALL)]
    documents = [yaml.safe_load(text) for text in texts if "    fwmark: " in text]
    variables = [found if isinstance(found, dict) else {"lvs_services": found} for found in documents]
    listed = [value for found in variables for name, value in found.items() if name.startswith("lvs_services")]
    assert len(listed) >= 3
    for services in listed:
        assert service_doubts(virtual_services(services)) == []


IPVS = {"protocol": "tcp", "address": "192.0.2.10", "port": 80, "real_servers": [{"address": "10.0.0.11"}]}
MARK = {"name": "web", "mark": 80, "destination": "192.0.2.10", "protocol": "tcp"}


@pytest.mark.parametrize(
    "module, option, item, warning",
    [
        (lvs_service, "services", {**WEB, "real_servers": []},
         "services[0] (web).real_servers: there are none, so IPVS refuses all connections"),
        (ipvs_service, "services", {**IPVS, "real_servers": []},
         "services[0].real_servers: there are none, so IPVS refuses all connections"),
        (ipvs_service, "services", {"fwmark": 80, "real_servers": [{"address": "127.0.0.1"}]},
         "services[0].real_servers: 127.0.0.1 is the router itself, so a router sends to itself"),
        (ipvs_service, "services", {**IPVS, "real_servers": [{"address": "192.0.2.10"}]},
         "services[0].real_servers: 192.0.2.10 is an address of the service itself, so a router sends to itself"),
        (ipvs_service, "services", {**IPVS, "persistence_timeout": 60, "persistence_engine": "sip"},
         "services[0].persistence_engine: sip is for udp; IPVS drops every connection over tcp of this service"),
        (ipvs_service, "services", {**IPVS, "protocol": "udp", "persistence_engine": "sip"},
         "services[0].persistence_engine: has no effect without persistence_timeout"),
        (iptables_mark, "rules", {**MARK, "destination": "224.0.0.18"},
         "rules (web).traffic: destination 224.0.0.18 is multicast, so no packet for IPVS has it"),
        (lvs_service, "services", WEB, ""),
        (ipvs_service, "services", IPVS, ""),
        (iptables_mark, "rules", MARK, ""),
    ],
)  # fmt: skip
def test_modules_warn_in_check_mode_and_when_they_run(
    module: ModuleType, option: str, item: dict[str, Any], warning: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(AnsibleModule, "warn", lambda _module, text: said.append(text))
    for check in (True, False):
        assert not run_module(module, FakeKernel(), check=check, **{option: [item]}).get("failed")
    assert said == ([warning] * 2 if warning else [])
    run_module(module, FakeKernel(), **{option: [item], "state": "absent"})
    assert len(said) in (0, 2)


def test_thousands_of_warnings_are_not_shown() -> None:
    services = [{**WEB, "name": f"s{number}", "fwmark": number, "real_servers": []} for number in range(1, 41)]
    found = service_doubts(virtual_services(services))
    assert len(found) == 21 and found[-1] == "59 more warnings are not shown"


@pytest.mark.parametrize(
    ("module", "option", "others"),
    [(iptables_mark, "chain", {"rules": []}), (ip_objects, "path", {"commands": []}), (report_file, "path", {})],
)
def test_text_that_ansible_cannot_log(module: ModuleType, option: str, others: dict[str, Any]) -> None:
    """A module is told its options after Ansible has logged them."""
    message = run_module(module, FakeKernel(), **{option: "/a\0"}, **others)["msg"]
    assert message.startswith(f"{option}: '/a\\x00' is not a ")
