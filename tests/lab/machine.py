# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: lvs.fleet contributors
"""A machine of the fleet: how it is started, and how one sees that it is up."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import network
from common import BUILD, LAB, LabError, last_lines
from image import Image
from network import LAN, bare, inside, lan_addresses

STATE = BUILD / "fleet"
FOLDERS = STATE / "machines"
# Sockets have their place under /run: the names of sockets must be short, and the checkout's may be long.
SOCKETS = Path("/run") / network.PREFIX
SSH = STATE / "ssh"
BOOT_SECONDS = 180
BOOT_ID = "/proc/sys/kernel/random/boot_id"


@dataclass(frozen=True)
class Machine:
    """A user-mode-linux machine with a disk of its own."""

    name: str

    @property
    def address(self) -> str:
        """Its IPv4 address on the LAN."""
        return bare(lan_addresses(self.name)[0])

    @property
    def folder(self) -> Path:
        """Where its disk and its console log are."""
        return FOLDERS / self.name

    @property
    def console(self) -> Path:
        """What its kernel and its services wrote to the console."""
        return self.folder / "console"

    def start(self, image: Image, memory: str) -> subprocess.Popen[bytes]:
        """Start the machine; it keeps running when this tool ends."""
        self.folder.mkdir(parents=True)
        number = network.LAN_HOSTS[self.name]
        words = [
            *(f"mem={memory}", f"umid={self.name}", f"uml_dir={SOCKETS}/"),
            *(f"ubd0={self.folder}/disk.cow,{image.disk}", "root=/dev/ubda", "rootfstype=ext4", "rw"),
            f"vec0:transport=tap,ifname={self.name},depth=64,gro=1,mac=02:00:00:00:00:{number:02x}",
            *(f"lab.address={address}" for address in lan_addresses(self.name)),
            *(f"lab.gateway={gateway}" for gateway in network.GATEWAY),
            *(f"systemd.hostname={self.name}", f"systemd.machine_id={number:032x}"),
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

    def wait_for_boot(self, old: str = "", kernel: subprocess.Popen[bytes] | None = None) -> None:
        """Wait until ssh answers in another boot than the old one."""
        deadline = time.monotonic() + BOOT_SECONDS
        while self.boot_id() in ("", old):
            if kernel and kernel.poll() is not None:
                raise LabError(f"{self.name} ended; its console:\n{last_lines(self.console)}")
            if time.monotonic() > deadline:
                raise LabError(f"no ssh to {self.name} in {BOOT_SECONDS} s; its console:\n{last_lines(self.console)}")
            time.sleep(0.2)
