# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.lvs.fleet.plugins.module_utils import _host
from ansible_collections.lvs.fleet.plugins.module_utils._report import machine as found_machine
from ansible_collections.lvs.fleet.plugins.modules import machine_info
from ansible_collections.lvs.fleet.tests.unit.fake_kernel import FakeKernel
from ansible_collections.lvs.fleet.tests.unit.running import run_module

ROCKY = 'NAME="Rocky Linux"\nVERSION_ID="9.4"\nID="rocky"\nID_LIKE="rhel centos fedora"\n'


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for path, text in (("net/ipv4/ip_forward", "1\n"), ("net/ipv4/conf/eth0.5/send_redirects", "0\n")):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(text)
    (tmp_path / "os-release").write_text(ROCKY)
    monkeypatch.setattr(found_machine, "SETTINGS", str(tmp_path))
    monkeypatch.setattr(_host, "UNIT_LINKS", [f"{tmp_path}{link}" for link in _host.UNIT_LINKS])
    monkeypatch.setattr(found_machine, "OS_RELEASE", f"{tmp_path}/os-release")
    monkeypatch.setattr(found_machine.host, "installed", lambda command: "/sbin/ip" if command == "ip" else "")
    return tmp_path


def test_the_answer(machine: Path) -> None:
    (machine / "broken").symlink_to("/nowhere")
    there = [str(machine), f"{machine}/broken"]
    forwarding, redirects = "net.ipv4.ip_forward", "net/ipv4/conf/eth0.5/send_redirects"
    assert found_machine.facts(
        ["ip", "ipvsadm"], [forwarding, redirects, "net.ipv4.vs.conntrack", "net.ipv4"], [*there, "/nowhere"]
    ) == {
        "os_family": "RedHat",
        "os_version": "9.4",
        "missing_commands": ["ipvsadm"],
        "settings": {forwarding: "1", redirects: "0"},
        "paths": there,
        "flushing_units": [],
    }


def test_firewalls_that_empty_tables(machine: Path) -> None:
    """Those that start at boot, by systemctl or by an init script, and those that are active."""
    for link in (
        "etc/systemd/system/multi-user.target.wants/firewalld.service",
        "etc/systemd/system/sysinit.target.requires/nftables.service",
        "run/systemd/generator.late/graphical.target.wants/shorewall.service",
        "run/systemd/units/invocation:ferm.service",
        "etc/systemd/system/shorewall6.service",
        "etc/systemd/system/multi-user.target.wants/firehol.service.disabled",
        "run/systemd/units/invocation:sshd.service",
    ):
        (machine / link).parent.mkdir(parents=True, exist_ok=True)
        (machine / link).symlink_to("/nowhere")
    found = found_machine.facts([], [], [])["flushing_units"]
    assert found == ["ferm.service", "firewalld.service", "nftables.service", "shorewall.service"]


@pytest.mark.parametrize(
    ("text", "family"),
    [
        ("ID=debian\n", "Debian"),
        ("ID_LIKE='ubuntu debian'\nID=linuxmint\n", "Debian"),
        ("ID=fedora\n", "RedHat"),
        ('ID="ol"\nID_LIKE="fedora"\n', "RedHat"),
        ('ID="sles"\nID_LIKE="suse"\n', "other"),
        ("ID=../../group_vars/secret\n", "other"),
        ("", "other"),
    ],
)
def test_the_family(machine: Path, text: str, family: str) -> None:
    (machine / "os-release").write_text(text)
    assert found_machine.os_family(found_machine.os_release()) == family


@pytest.mark.parametrize(
    ("text", "version"),
    [("12", "12"), ("8.10", "8.10"), ("9.4-beta", "9.4"), ("", ""), ("rolling", ""), ("{{ x }}", ""), ("\u0661", "")],
)
def test_the_version_is_a_number(machine: Path, text: str, version: str) -> None:
    (machine / "os-release").write_text(f'VERSION_ID="{text}"\n')
    assert found_machine.os_version(found_machine.os_release()) == version


def test_what_cannot_be_read_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"commands": ["ip"], "settings": ["net.ipv4.route.flush"], "paths": ["/etc"]}

    def refuse(*arguments: list[str]) -> None:
        assert list(arguments) == list(given.values())
        raise PermissionError("not for you")

    monkeypatch.setattr(machine_info, "facts", refuse)
    assert run_module(machine_info, FakeKernel(), check=True, **given)["msg"] == "not for you"
