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
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import network
import packages
from common import BUILD, LAB, LabError, last_lines, run, step
from image import Image, get_image
from network import LAN, SERVERS, bare, inside, lan_addresses, router_name

STATE = BUILD / "fleet"
# Sockets have their place under /run: the names of sockets must be short, and the checkout's may be long.
SOCKETS = Path("/run") / network.PREFIX
SSH = STATE / "ssh"
BOOT_SECONDS = 180
BOOT_ID = "/proc/sys/kernel/random/boot_id"


@dataclass(frozen=True)
class Router:
    """One LVS router: a user-mode-linux machine with a disk of its own."""

    number: int

    @property
    def name(self) -> str:
        """Its host name."""
        return router_name(self.number)

    @property
    def address(self) -> str:
        """Its IPv4 address on the LAN."""
        return bare(lan_addresses(self.number)[0])

    @property
    def folder(self) -> Path:
        """Where its disk and its console log are."""
        return STATE / self.name

    @property
    def console(self) -> Path:
        """What its kernel and its services wrote to the console."""
        return self.folder / "console"

    def start(self, image: Image, memory: str) -> subprocess.Popen[bytes]:
        """Start the machine; it keeps running when this tool ends."""
        self.folder.mkdir()
        addresses = lan_addresses(self.number)
        words = [
            *(f"mem={memory}", f"umid={self.name}", f"uml_dir={SOCKETS}/"),
            *(f"ubd0={self.folder}/disk.cow,{image.disk}", "root=/dev/ubda", "rootfstype=ext4", "rw"),
            f"vec0:transport=tap,ifname={self.name},depth=64,gro=1,mac=02:00:00:00:00:{self.number:02x}",
            *(f"lab.address={address}" for address in addresses),
            *(f"lab.gateway={gateway}" for gateway in network.GATEWAY),
            *(f"systemd.hostname={self.name}", f"systemd.machine_id={self.number:032x}"),
            *("con=null", "con0=null,fd:1", "ssl=null", "quiet", "random.trust_cpu=on", "net.ifnames=0"),
        ]
        with self.console.open("ab") as log:
            return subprocess.Popen(
                inside(LAN, LAB / "machine.sh", *words),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={"PATH": os.environ["PATH"], "HOME": str(SOCKETS)},
            )

    def boot_id(self) -> str:
        """Return the identity of the present boot, or an empty string when ssh does not answer."""
        try:
            answer = subprocess.run(
                [SSH, self.name, "cat", BOOT_ID],
                stdin=subprocess.DEVNULL,
                check=False,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                timeout=15,
            )
        except subprocess.TimeoutExpired:
            return ""
        return answer.stdout.strip() if answer.returncode == 0 else ""

    def wait_for_boot(self, old: str = "", machine: subprocess.Popen[bytes] | None = None) -> None:
        """Wait until ssh answers in another boot than the old one."""
        deadline = time.monotonic() + BOOT_SECONDS
        while self.boot_id() in ("", old):
            if machine and machine.poll() is not None:
                raise LabError(f"{self.name} ended; its console:\n{last_lines(self.console)}")
            if time.monotonic() > deadline:
                raise LabError(f"no ssh to {self.name} in {BOOT_SECONDS} s; its console:\n{last_lines(self.console)}")
            time.sleep(0.2)


def up(routers: int, memory: str, inventory_file: Path | None) -> int:
    """Start a fleet with fresh disks, in place of any that this checkout has running."""
    packages.ensure(packages.FLEET)
    image = get_image()
    with _locked(), step(f"fleet of {routers} routers and {len(SERVERS)} real servers is up"):
        _clean()
        try:
            _start([Router(number) for number in range(1, routers + 1)], image, memory)
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
    """Print what is running; the exit status is 0 when all routers answer."""
    routers = _routers()
    if not routers:
        print("no fleet")
        return 1
    answers = {router.name: bool(router.boot_id()) for router in routers}
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
    if host in ("gateway", "client", *SERVERS):
        words = inside(host, *command)
    else:
        terminal = ["-t"] if sys.stdin.isatty() and sys.stdout.isatty() else []
        words = [str(SSH), *terminal, _router(host).name, shlex.join(command)]
    os.execvp(words[0], words)


def console(host: str) -> int:
    """Print the end of a router's console."""
    print(last_lines(_router(host).console))
    return 0


def route(host: str) -> int:
    """Lead all traffic for virtual addresses to this router."""
    network.route_to(_router(host).number)
    return 0


def reboot(host: str) -> int:
    """Reboot a router and wait until it is back."""
    router = _router(host)
    old = router.boot_id()
    if not old:
        raise LabError(f"{host} does not answer")
    with step(f"{host} has rebooted"):
        subprocess.run(
            [SSH, host, "systemctl", "reboot"], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
        )
        # A shared connection would hang on until it finds out that the other end is gone.
        subprocess.run([SSH, "-O", "exit", host], stderr=subprocess.DEVNULL, check=False)
        router.wait_for_boot(old)
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


def _start(routers: list[Router], image: Image, memory: str) -> None:
    STATE.mkdir()
    SOCKETS.mkdir(mode=0o700)
    _write_ssh_files(routers, image)
    network.make_network(len(routers))
    machines = [router.start(image, memory) for router in routers]
    _start_servers()
    for router, machine in zip(routers, machines, strict=True):
        router.wait_for_boot(machine=machine)
    _wait_for_servers()


def _routers() -> list[Router]:
    """Return the routers of the running fleet."""
    numbers = sorted(int(folder.name.removeprefix("router")) for folder in STATE.glob("router*"))
    return [Router(number) for number in numbers]


def _router(name: str) -> Router:
    _require_fleet()
    for router in _routers():
        if router.name == name:
            return router
    raise LabError(f"no such host: {name}")


def _require_fleet() -> None:
    if not STATE.exists():
        raise LabError("there is no fleet; start one with: lab fleet up")


def _write_ssh_files(routers: list[Router], image: Image) -> None:
    """Write programs that stand in for ssh and, for the real servers, python3, each in the right namespace."""
    config = STATE / "ssh_config"
    config.write_text(
        "".join(f"Host {router.name}\n    HostName {router.address}\n" for router in routers)
        # %C is a hash of the connection's ends: short, and different for every router.
        + f"""\
Host router*
    ControlMaster auto
    ControlPath {SOCKETS}/%C
    ControlPersist 60
Host *
    User root
    IdentityFile {image.ssh_key}
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
    for server in SERVERS:
        _write_wrapper(STATE / f"python-{server}", inside(server, "/usr/bin/python3"))


def _write_wrapper(path: Path, words: list[str]) -> None:
    path.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    path.chmod(0o755)


def _start_servers() -> None:
    certificate = STATE / "certificate.pem"
    run(
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc"),
        *("-days", "30", "-subj", "/CN=lvs.fleet lab", "-keyout", certificate, "-out", STATE / "public.pem"),
    )
    with certificate.open("a") as whole:
        whole.write((STATE / "public.pem").read_text())
    for server in SERVERS:
        with (STATE / f"{server}.log").open("wb") as log:
            subprocess.Popen(
                inside(server, "/usr/bin/python3", LAB / "server.py", server, certificate),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


def _wait_for_servers() -> None:
    for number, server in enumerate(SERVERS, start=1):
        address = bare(lan_addresses(10 + number)[0])
        # A server that has no socket yet refuses the connection.
        retry = ("--retry", "20", "--retry-connrefused", "--retry-delay", "1")
        try:
            run(*inside(LAN, "curl", "--silent", "--show-error", "--fail", *retry, f"http://{address}/"))
        except LabError as error:
            raise LabError(f"{error}\n{last_lines(STATE / f'{server}.log')}") from None


def _inventory() -> str:
    """Return the Ansible inventory, for a controller on the machine itself, outside of all namespaces."""
    lines = ["all:", "  children:", "    lvs_routers:", "      hosts:"]
    for router in _routers():
        lines += [f"        {router.name}:", f"          ansible_host: {router.address}"]
    lines += [
        "      vars:",
        "        ansible_user: root",
        "        ansible_python_interpreter: /usr/bin/python3",
        f"        ansible_ssh_executable: {SSH}",
        f"        ansible_control_path_dir: {SOCKETS}",
        "        ansible_ssh_transfer_method: piped",
        "        ansible_ssh_pipelining: true",
        "    lvs_real_servers:",
        "      hosts:",
    ]
    for server in SERVERS:
        lines += [f"        {server}:", f"          ansible_python_interpreter: {STATE}/python-{server}"]
    lines += ["      vars:", "        ansible_connection: local"]
    return "\n".join(lines) + "\n"
