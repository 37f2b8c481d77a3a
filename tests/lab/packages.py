# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: lvs.fleet contributors
"""Debian packages that the lab needs on the machine it runs on."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from typing import TypeVar

from common import LabError, run, step

BENCH = ("user-mode-linux", "kmod", "iptables", "ipvsadm", "iproute2", "procps", "curl")
FLEET = ("mmdebstrap", "e2fsprogs", "kmod", "iproute2", "procps", "openssh-client", "openssl", "curl")
EMULATOR = ("qemu-system-x86",)
ROOT = ("mmdebstrap",)

Result = TypeVar("Result")


def ensure(names: tuple[str, ...]) -> None:
    """Install those of the packages that are missing; say nothing when there are none."""
    if not shutil.which("dpkg-query"):
        raise LabError(f"the lab needs Debian packages, and this is no Debian: {' '.join(names)}")
    missing = [name for name in names if not version(name)]
    if not missing:
        return
    with step(f"installed {' '.join(missing)}"):
        with_lists(lambda: _install(missing))


def with_lists(action: Callable[[], Result]) -> Result:
    """Do what needs package lists: a fresh machine may have none, or ones that name files no longer there."""
    try:
        return action()
    except LabError:
        run("apt-get", "-qq", "update")
        return action()


def version(name: str) -> str:
    """Return the installed version of a package, or an empty string."""
    query = ["dpkg-query", "--show", "--showformat", "${db:Status-Status} ${Version}", name]
    answer = subprocess.run(query, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False).stdout
    status, _space, installed = answer.partition(" ")
    return installed if status == "installed" else ""


def _install(names: list[str]) -> None:
    run(
        *("apt-get", "-qq", "install", "--yes", "--no-install-recommends", *names),
        env={"DEBIAN_FRONTEND": "noninteractive"},
    )
