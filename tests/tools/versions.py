# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The collection with versions of ansible-core that it supports, as users have it.

versions.py all|ends: with all of them, or with the oldest and the newest. Each has a virtual environment of its own,
the collection from its archive, and a router that somebody made by hand. A run of all of them writes
tests/versions.json anew, of which the README's table is made.
versions.py with COMMAND...: run the command with the oldest and with the newest.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from build import NAME, make_archive, show_documentation

ROOT = Path(__file__).resolve().parents[2]
LAB = ROOT / "tests/lab/lab"
HERE = ROOT / ".build/versions"
RECORD = ROOT / "tests/versions.json"
# Not those of tests/requirements.txt, which take no Python 3.10.
FOR_UNITS = ("hypothesis", "jmespath", "pytest")
BY_HAND = ROOT / "extensions/molecule/adopt/files/by-hand"
# Each with the Pythons that it runs on as a controller, in the order in which they are looked for.
VERSIONS = {
    "2.17.14": ("3.10", "3.11", "3.12"),
    "2.18.19": ("3.11", "3.12", "3.13"),
    "2.19.14": ("3.11", "3.12", "3.13"),
    "2.20.10": ("3.12", "3.13"),
    "2.21.5": ("3.13", "3.12"),
}
# What Ansible says only if something is not as it should be.
REMARK = re.compile(r"^.*(?:\[(?:DEPRECATION )?WARNING\]|\[DEPRECATED\]|\[ERROR\]|Traceback).*$", re.MULTILINE)
# Version 2.20 says it of a collection inside of itself, when it lists the roles of all collections.
OF_ITS_OWN = "ansible/_protomatter' does not have a MANIFEST.json file"


@dataclass
class Controller:
    """One version, with a folder of its own; ran has the names of what was tried with it."""

    version: str
    python: str
    ran: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return HERE / self.version

    @property
    def inventory(self) -> Path:
        return self.folder / "inventory/hosts.yml"

    def run(self, *command: str | Path) -> str:
        """What a command says that has to succeed, and to have nothing to remark."""
        environment = {
            **os.environ,
            "PATH": f"{self.environment}/bin:{os.environ['PATH']}",
            "ANSIBLE_COLLECTIONS_PATH": str(self.folder / "collections"),
            "ANSIBLE_HOME": str(self.folder / "home"),
            "ANSIBLE_NOCOLOR": "1",
        }
        result = subprocess.run(
            command, cwd=self.folder, env=environment, text=True, check=False,
            stdin=subprocess.DEVNULL, capture_output=True,
        )  # fmt: skip
        said = result.stdout + result.stderr
        remarks = [line for line in REMARK.findall(said) if OF_ITS_OWN not in line]
        if result.returncode or remarks:
            why = remarks[0] if remarks else f"status {result.returncode}"
            self.fail(f"{' '.join(map(str, command))}: {why}\n{said}")
        return result.stdout

    def fail(self, why: str) -> NoReturn:
        sys.exit(f"ansible-core {self.version} on Python {self.python}: {why}")

    @property
    def environment(self) -> Path:
        return self.folder / "venv"

    def make_environment(self) -> None:
        """The version itself, and what the unit tests need beside it. Targets that run side by side take turns."""
        ready = self.environment / "ready"
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            if not ready.exists():
                uv("venv", "--clear", "--python", find_python(self.python), self.environment)
                uv("pip", "install", "--python", self.environment, f"ansible-core=={self.version}", *FOR_UNITS)
                ready.touch()

    def install(self, archive: Path) -> None:
        self.make_environment()
        for folder in (self.inventory.parent, self.folder / "collections"):
            if folder.exists():
                shutil.rmtree(folder)
        self.inventory.parent.mkdir()
        self.run("ansible-galaxy", "collection", "install", "--offline", "-p", self.folder / "collections", archive)
        self.ran.append("install")

    def document(self) -> None:
        show_documentation(self.run)
        self.ran.append("ansible-doc")

    def take_over(self) -> None:
        """From a router made by hand to one of which an audit has nothing to say."""
        lab("up", "--routers", "1", "--inventory", self.inventory)
        lab("exec", "router1", "sh", stdin=BY_HAND.read_text())
        self.play("adopt")
        if not self.play("deploy"):
            self.fail("the first deploy changed nothing")
        if self.play("deploy", "deploy again"):
            self.fail("the second deploy changed something")
        self.play("audit")

    def play(self, playbook: str, name: str = "") -> int:
        """How many tasks changed the router."""
        said = self.run("ansible-playbook", "--inventory", self.inventory, f"{NAME}.{playbook}")
        [changed] = re.findall(r"^router1 +: ok=\d+ +changed=(\d+) ", said, re.MULTILINE)
        self.ran.append(name or playbook)
        return int(changed)


def find_python(version: str) -> str:
    """Where a Python is; nothing if it is not here. A version manager's shim may lead nowhere, so each has to run."""
    folders = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob(f"versions/{version}.*/bin")
    for command in (f"python{version}", *(f"{folder}/python3" for folder in sorted(folders))):
        found = shutil.which(command)
        if found and not subprocess.run([found, "-c", ""], check=False, stderr=subprocess.DEVNULL).returncode:
            return found
    return ""


def uv(*words: str | Path) -> None:
    subprocess.run(["uv", "--quiet", *words], env={**os.environ, "UV_COMPILE_BYTECODE": "1"}, check=True)


def lab(*words: str | Path, stdin: str = "") -> None:
    subprocess.run([LAB, "fleet", *words], input=stdin, text=True, check=True, stdout=subprocess.DEVNULL)


def those_here() -> list[Controller]:
    """From the oldest to the newest version that there is a Python for; says which others there are."""
    found = {version: next(filter(find_python, pythons), "") for version, pythons in VERSIONS.items()}
    missing = [f"{version} ({' or '.join(VERSIONS[version])})" for version, python in found.items() if not python]
    if missing:
        print(f"not tried, for want of a Python: ansible-core {', '.join(missing)}")
    return [Controller(version, python) for version, python in found.items() if python]


def ends(controllers: list[Controller]) -> list[Controller]:
    """The oldest and the newest."""
    return controllers[:: max(1, len(controllers) - 1)]


def try_all(controllers: list[Controller]) -> None:
    archive = make_archive(HERE / "dist", HERE / "source")
    try:
        for controller in controllers:
            print(f"ansible-core {controller.version} on Python {controller.python}", flush=True)
            controller.install(archive)
            controller.document()
            controller.take_over()
    finally:
        lab("down")


def run_with(controllers: list[Controller], command: list[str]) -> None:
    """Run a command with each version; it is told which one by CORE."""
    for controller in controllers:
        print(f"ansible-core {controller.version} on Python {controller.python}", flush=True)
        controller.make_environment()
        path = f"{controller.environment}/bin:{os.environ['PATH']}"
        status = subprocess.run(
            command, env={**os.environ, "PATH": path, "CORE": controller.version}, check=False
        ).returncode
        if status:
            sys.exit(status)


def main(words: list[str]) -> None:
    here = those_here()
    if not here or (words == ["all"] and len(here) < len(VERSIONS)):
        sys.exit(1)
    if words == ["all"]:
        try_all(here)
        tried = {one.version: {"python": one.python, "ran": one.ran} for one in here}
        RECORD.write_text(f"{json.dumps(tried, indent=2)}\n")
    elif words == ["ends"]:
        try_all(ends(here))
    else:
        run_with(ends(here), words[1:])


if __name__ == "__main__":
    if sys.argv[1:] not in (["all"], ["ends"]) and (sys.argv[1:2] != ["with"] or not sys.argv[2:]):
        sys.exit("usage: versions.py all | ends | with COMMAND...")
    main(sys.argv[1:])
