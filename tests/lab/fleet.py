# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: lvs.fleet contributors
"""The fleet: LVS routers as machines of their own, and around them gateway, client and real servers."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import network
import packages
from common import BUILD, LAB, LabError, last_lines, run, step
from image import Image, get_image
from machine import FOLDERS, SOCKETS, SSH, STATE, Machine
from network import LAN, ROUTERS, SERVERS, bare, inside, lan_addresses


def up(names: list[str], releases: list[str], memory: str, emulate_routers: bool, inventory_file: Path | None) -> int:
    """Start a fleet of these machines with fresh disks, in place of any that this checkout has running.

    The routers are of these Debian releases in turn, and so are the real servers.
    """
    packages.ensure(packages.FLEET + (packages.EMULATOR if emulate_routers else ()))
    images = [get_image(release) for release in releases]
    with _locked(), step(f"the fleet is up, its machines: {' '.join(names)}"):
        _clean()
        try:
            _start({Machine(name): _image(name, images) for name in names}, memory, emulate_routers)
        except BaseException:
            _clean()
            raise
        text = _inventory()
        (STATE / "inventory.yml").write_text(text)
        if inventory_file:
            inventory_file.parent.mkdir(parents=True, exist_ok=True)
            inventory_file.write_text(text)
    return 0


def down() -> int:
    """Stop the fleet, and remove whatever is left of it or of a killed run."""
    with _locked():
        _clean()
    return 0


def status() -> int:
    """Print what is running; the exit status is 0 when all machines answer."""
    machines = _machines()
    if not machines:
        print("no fleet")
        return 1
    answers = {machine.name: bool(machine.boot_id()) for machine in machines}
    for name, answer in answers.items():
        print(f"{name}: {'up' if answer else 'does not answer'}")
    return 0 if all(answers.values()) else 1


def inventory() -> int:
    """Print the Ansible inventory."""
    _require_fleet()
    print(_inventory(), end="")
    return 0


def execute(host: str, command: list[str]) -> int:
    """Become the command, on the host."""
    _require_fleet()
    if host in ("gateway", "client", *_namespace_servers()):
        words = inside(host, *command)
    else:
        terminal = ["-t"] if sys.stdin.isatty() and sys.stdout.isatty() else []
        words = [str(SSH), *terminal, _machine(host).name, shlex.join(command)]
    os.execvp(words[0], words)


def console(host: str) -> int:
    """Print the end of a machine's console."""
    print(last_lines(_machine(host).console))
    return 0


def route(host: str) -> int:
    """Lead all traffic for virtual addresses to this router."""
    if _machine(host).name not in ROUTERS:
        raise LabError(f"{host} is no router")
    network.route_to(host, _namespace_servers())
    return 0


def reboot(host: str) -> int:
    """Reboot a machine and wait until it is back."""
    machine = _machine(host)
    old = machine.boot_id()
    if not old:
        raise LabError(f"{host} does not answer")
    with step(f"{host} has rebooted"):
        subprocess.run(
            [SSH, host, "systemctl", "reboot"], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
        )
        # A shared connection would hang on until it finds out that the other end is gone.
        subprocess.run([SSH, "-O", "exit", host], stderr=subprocess.DEVNULL, check=False)
        machine.wait_for_boot(old)
        if host in SERVERS:
            _wait_for_server(host)
    return 0


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    """Let one run of this checkout at a time start or stop the fleet."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "fleet.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _clean() -> None:
    network.remove_network()
    for folder in (STATE, SOCKETS):
        shutil.rmtree(folder, ignore_errors=True)


def _image(name: str, images: list[Image]) -> Image:
    """Return the image that the machine of this name has its turn with."""
    return images[(ROUTERS if name in ROUTERS else SERVERS).index(name) % len(images)]


def _start(images: dict[Machine, Image], memory: str, emulate_routers: bool) -> None:
    STATE.mkdir()
    SOCKETS.mkdir(mode=0o700)
    _write_ssh_files(images)
    names = [machine.name for machine in images]
    servers = [server for server in SERVERS if server not in names]
    network.make_network(names, servers)
    emulated = [machine for machine in images if emulate_routers and machine.name in ROUTERS]
    processes = {machine: machine.start(image, memory, machine in emulated) for machine, image in images.items()}
    for server in servers:
        _start_server(server, next(iter(images.values())))
    for machine, process in processes.items():
        machine.wait_for_boot(process=process)
        if machine in emulated:
            machine.choose_nft()
    for server in SERVERS:
        _wait_for_server(server)


def _machines() -> list[Machine]:
    """Return the machines of the running fleet."""
    return [Machine(folder.name) for folder in sorted(FOLDERS.glob("*"))]


def _machine(name: str) -> Machine:
    _require_fleet()
    for machine in _machines():
        if machine.name == name:
            return machine
    raise LabError(f"no such machine: {name}")


def _namespace_servers() -> list[str]:
    """Return the real servers that are no machines."""
    return [server for server in SERVERS if Machine(server) not in _machines()]


def _require_fleet() -> None:
    if not STATE.exists():
        raise LabError("there is no fleet; start one with: lab fleet up")


def _write_ssh_files(images: dict[Machine, Image]) -> None:
    """Write a program that stands in for ssh, in the namespace from which it reaches the machines."""
    config = STATE / "ssh_config"
    config.write_text(
        "".join(
            # People use the name, and Ansible the address.
            f"Host {machine.name} {machine.address}\n    HostName {machine.address}\n    IdentityFile {image.ssh_key}\n"
            for machine, image in images.items()
        )
        # %C is a hash of the connection's ends: short, and different for every machine.
        + f"""\
Host router* server*
    ControlMaster auto
    ControlPath {SOCKETS}/%C
    ControlPersist 60
Host *
    User root
    IdentitiesOnly yes
    StrictHostKeyChecking no
    UserKnownHostsFile /dev/null
    LogLevel ERROR
    ConnectTimeout 5
    ServerAliveInterval 5
    ServerAliveCountMax 2
"""
    )
    _write_wrapper(SSH, inside(LAN, "ssh", "-F", config))


def _write_wrapper(path: Path, words: list[str]) -> None:
    path.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    path.chmod(0o755)


def _start_server(server: str, image: Image) -> None:
    """Start a real server in its namespace, and write a program that stands in for its python3."""
    _write_wrapper(_python(server), inside(server, "/usr/bin/python3"))
    with _log(server).open("wb") as log:
        subprocess.Popen(
            inside(server, "/usr/bin/python3", LAB / "server.py", server, image.certificate),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _wait_for_server(server: str) -> None:
    address = bare(lan_addresses(server)[0])
    # A server that has no socket yet refuses the connection.
    retry = ("--retry", "20", "--retry-connrefused", "--retry-delay", "1")
    try:
        run(*inside(LAN, "curl", "--silent", "--show-error", "--fail", *retry, f"http://{address}/"))
    except LabError as error:
        raise LabError(f"{error}\n{last_lines(_log(server))}") from None


def _python(server: str) -> Path:
    return STATE / f"python-{server}"


def _log(server: str) -> Path:
    return STATE / f"{server}.log"


def _inventory() -> str:
    """Return the Ansible inventory, for a controller on the machine itself, outside of all namespaces."""
    machines = {machine.name: machine for machine in _machines()}
    lines = [
        "all:",
        "  vars:",
        "    ansible_user: root",
        "    ansible_python_interpreter: /usr/bin/python3",
        f"    ansible_ssh_executable: {SSH}",
        f"    ansible_control_path_dir: {SOCKETS}",
        "    ansible_ssh_transfer_method: piped",
        "    ansible_ssh_pipelining: true",
        "  children:",
    ]
    routers = [name for name in ROUTERS if name in machines]
    for group, hosts in (("lvs_routers", routers), ("lvs_real_servers", SERVERS)):
        lines += [f"    {group}:", "      hosts:"]
        for host in hosts:
            lines += [f"        {host}:"]
            if host in machines:
                lines += [f"          ansible_host: {machines[host].address}"]
            else:
                lines += ["          ansible_connection: local"]
                lines += [f"          ansible_python_interpreter: {_python(host)}"]
    return "\n".join(lines) + "\n"
