# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Every module, as Ansible sends it to a router, on the Pythons of routers as far as they are here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.lvs.fleet.tests.integration.harness import MODULES, Namespace
from ansible_collections.lvs.fleet.tests.integration.shapes import WEB, service

OLDEST = (3, 8)
# What RHEL has as its platform Python: 9 and 10. That of RHEL 8 is 3.6, which Ansible has given up as well.
RHEL = ((3, 9), (3, 12))
ASK = "import sys; print(*sys.version_info[:3])"
TOP = Path(__file__).parents[3]

DUAL = {**WEB, "destination": ["192.0.2.10", "2001:db8::10"]}
# Where the kernel has no IPVS, all but the last step is done, and the answer is a message.
SERVICES = [service("web", 80, DUAL, real_servers=[{"address": "10.0.0.11"}, {"address": "2001:db8:0:1::11"}])]
# So what is said to that kernel is tried by itself, there and back.
WIRE = f"""
from ansible_collections.lvs.fleet.plugins.module_utils._netlink import messages
from ansible_collections.lvs.fleet.plugins.module_utils._ipvs import wire
from ansible_collections.lvs.fleet.plugins.module_utils._declared.params import virtual_services
for pool in virtual_services({SERVICES}).pools.values():
    sent = messages.attributes(messages.attributes(wire.encode_service(pool.service))[wire.ATTR_SERVICE])
    assert wire.decode_service(sent) == pool.service
    for server in pool.real_servers.values():
        sent = messages.attributes(messages.attributes(wire.encode_real_server(server))[wire.ATTR_DEST])
        assert wire.decode_real_server(sent, pool.service.id.family) == server
"""

Version = tuple[int, ...]


def interpreters() -> dict[Version, str]:
    """Every Python from the oldest on that runs, by its version: those on PATH, and those of pyenv."""
    names = [f"python3.{minor}" for minor in range(OLDEST[1], 20)]
    found = [path for name in ("/usr/bin/python3", *names) if (path := shutil.which(name))]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found += map(str, pyenv.glob("versions/3.*/bin/python3"))
    # A name on PATH proves nothing: a version manager's shim may lead nowhere.
    asked = [(path, subprocess.run([path, "-c", ASK], capture_output=True, text=True, check=False)) for path in found]
    versions = {tuple(map(int, done.stdout.split())): path for path, done in asked if done.returncode == 0}
    return {version: path for version, path in sorted(versions.items()) if version >= OLDEST}


def calls(folder: Path) -> dict[str, dict[str, Any]]:
    return {
        "iptables_mark": {"rules": [{**DUAL, "name": "web", "mark": 80}]},
        "iptables_mss": {"segments": {"192.0.2.10": 1400}},
        "ip_objects": {"path": f"{folder}/vips", "commands": ["address add 192.0.2.10/32 dev lo"]},
        "boot_files": {"files": [{"path": f"{folder}/rules", "part": "iptables", "content": "*mangle\nCOMMIT\n"}]},
        "ipvs_service": {"services": [{"fwmark": 80, "real_servers": [{"address": "10.0.0.11"}]}]},
        "lvs_service": {"services": SERVICES},
        "machine_info": {"commands": ["ip", "no-such-tool"], "settings": ["net.ipv4.ip_forward"]},
        "lvs_info": {},
    }


def build(options: dict[str, dict[str, Any]], folder: Path) -> list[Path]:
    """The files that Ansible would send."""
    files = [folder / module for module in options]
    wanted = [(f"lvs.fleet.{file.name}", options[file.name], str(file)) for file in files]
    subprocess.run([sys.executable, TOP / "tests/bench/payload.py"], input=json.dumps(wanted), text=True, check=True)
    return files


def answers(interpreter: str, files: list[Path]) -> dict[str, dict[str, Any]]:
    """What each module says in a fresh namespace, without its options."""
    said = {}
    namespace = Namespace()
    try:
        with namespace.inside():
            for file in files:
                done = subprocess.run([interpreter, file], capture_output=True, text=True, check=False)
                assert done.stdout and not done.stderr, done.stderr
                said[file.name] = json.loads(done.stdout)
                del said[file.name]["invocation"]
    finally:
        namespace.close()
    return said


def test_every_module(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = interpreters()
    assert found, "there is no Python to try"
    tried = sorted({min(found), max(found), *(version for version in found if version[:2] in RHEL)})
    with capsys.disabled():
        print(f"\nmodules on Python {', '.join('.'.join(map(str, version)) for version in tried)}")
    folder = tmp_path / "lvs"
    files = build(calls(folder), tmp_path)
    assert {file.name for file in files} == MODULES.keys()
    said = []
    for version in tried:
        said.append(answers(found[version], files))
        shutil.rmtree(folder)
    assert said == [said[0]] * len(tried)
    failed = {module for module, answer in said[0].items() if answer.get("failed")}
    assert all(said[0][module]["msg"].startswith("this kernel has no IPVS: ") for module in failed)
    assert failed in (set(), {"ipvs_service", "lvs_service"})
    changed = {module for module, answer in said[0].items() if answer.get("changed")}
    assert changed == MODULES.keys() - failed - {"machine_info", "lvs_info"}


def test_the_words_for_the_kernel() -> None:
    environment = {"PYTHONPATH": str(TOP / ".build"), "PYTHONDONTWRITEBYTECODE": "1"}
    for interpreter in interpreters().values():
        subprocess.run([interpreter, "-c", WIRE], env=environment, check=True)
