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
from common import BUILD, LAB, LabError, last_lines, on_one_processor, run
from image import Image
from network import LAN, LAN_HOSTS, bare, inside, lan_addresses

STATE = BUILD / "fleet"
FOLDERS = STATE / "machines"
# Sockets have their place under /run: the names of sockets must be short, and the checkout's may be long.
SOCKETS = Path("/run") / network.PREFIX
SSH = STATE / "ssh"
# Even an emulated machine on a busy processor needs less.
BOOT_SECONDS = 600
BOOT_ID = "/proc/sys/kernel/random/boot_id"


@dataclass(frozen=True)
class Machine:
    """A machine with a disk of its own, on user-mode-linux or on Debian's kernel in an emulator."""

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

    def start(self, image: Image, memory: str, emulated: bool) -> subprocess.Popen[bytes]:
        """Start the machine, which keeps running when this tool ends."""
        self.folder.mkdir(parents=True)
        words = self._emulator(image, memory) if emulated else self._user_mode(image, memory)
        with self.console.open("ab") as log:
            return subprocess.Popen(
                inside(LAN, *words),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={"PATH": os.environ["PATH"], "HOME": str(SOCKETS)},
            )

    def _user_mode(self, image: Image, memory: str) -> list[str]:
        """Return the command line of a user-mode-linux machine."""
        return [
            *on_one_processor(LAN_HOSTS[self.name]),
            *(str(LAB / "machine.sh"), str(image.libraries), str(image.user_mode_kernel)),
            *(f"mem={memory}", f"umid={self.name}", f"uml_dir={SOCKETS}/"),
            f"ubd0={self.folder}/disk.cow,{image.disk}",
            f"vec0:transport=tap,ifname={self.name},depth=64,gro=1,mac={self._mac}",
            *("con=null", "con0=null,fd:1", "ssl=null", "root=/dev/ubda"),
            *self._kernel_words(),
        ]

    def _emulator(self, image: Image, memory: str) -> list[str]:
        """Return the command line of an emulated machine."""
        append = ["console=ttyS0", "mitigations=off", "root=/dev/nvme0n1", *self._kernel_words()]
        # A snapshot writes to a nameless file, and lives through reboots. User-mode-linux locks the base of its disks.
        drive = "if=none,format=raw,snapshot=on,file.locking=off"
        return [
            # The translated code would take a gigabyte if it could.
            *("qemu-system-x86_64", "-accel", "tcg,tb-size=128", "-m", memory),
            *("-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"),
            *("-kernel", str(image.debian_kernel), "-append", " ".join(append)),
            # The only disk: Linux 6.12 looks for disks in parallel, and numbers them as they are found.
            *("-drive", f"id=root,file={image.disk},{drive}", "-device", "nvme,drive=root,serial=lab"),
            *("-netdev", f"tap,id=lan,ifname={self.name},script=no,downscript=no"),
            *("-device", f"virtio-net-pci,netdev=lan,mac={self._mac},romfile="),
        ]

    def _kernel_words(self) -> list[str]:
        """Return what every kernel is told, and through it the machine's own lab-network and systemd."""
        return [
            *("rootfstype=ext4", "rw", "quiet", "random.trust_cpu=on", "net.ifnames=0"),
            *(f"lab.address={address}" for address in lan_addresses(self.name)),
            *(f"lab.gateway={gateway}" for gateway in network.GATEWAY),
            *(f"systemd.hostname={self.name}", f"systemd.machine_id={LAN_HOSTS[self.name]:032x}"),
        ]

    @property
    def _mac(self) -> str:
        return f"02:00:00:00:00:{LAN_HOSTS[self.name]:02x}"

    def choose_nft(self) -> None:
        """Have iptables as Debian has it: the image's choice is made for user-mode-linux, which has no nf_tables."""
        run(SSH, self.name, "for name in iptables ip6tables; do update-alternatives --quiet --auto $name || exit; done")

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

    def wait_for_boot(self, old: str = "", process: subprocess.Popen[bytes] | None = None) -> None:
        """Wait until ssh answers in another boot than the old one."""
        deadline = time.monotonic() + BOOT_SECONDS
        while self.boot_id() in ("", old):
            if process and process.poll() is not None:
                raise LabError(f"{self.name} ended; its console:\n{last_lines(self.console)}")
            if time.monotonic() > deadline:
                raise LabError(f"no ssh to {self.name} in {BOOT_SECONDS} s; its console:\n{last_lines(self.console)}")
            time.sleep(0.2)
