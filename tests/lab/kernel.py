# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: lvs.fleet contributors
"""Debian's kernel for emulated machines: unpacked from its package into the cache, never installed."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

import packages
from cache import cached
from common import make_disk, run, step

METAPACKAGE = "linux-image-cloud-amd64"
DISK_SIZE = "200M"


@dataclass(frozen=True)
class Kernel:
    """A kernel in the cache. It has the drivers of NVMe disks and of ext4 built in, so it needs no initrd."""

    folder: Path

    @property
    def program(self) -> Path:
        """The kernel itself."""
        return self.folder / "vmlinuz"

    @property
    def modules(self) -> Path:
        """The read-only disk with its modules."""
        return self.folder / "modules.ext4"


def get_kernel() -> Kernel:
    """Return the newest kernel that the package lists know, downloading it when the cache has none."""
    return packages.with_lists(_get_kernel)


def _get_kernel() -> Kernel:
    package = packages.dependency(METAPACKAGE)
    key = hashlib.sha256(package.encode() + Path(__file__).read_bytes()).hexdigest()[:12]
    return Kernel(cached(f"kernel-{key}", lambda folder: _build(Kernel(folder), package)))


def _build(kernel: Kernel, package: str) -> None:
    tree = kernel.folder / "tree"
    with step(f"fetched {package}"):
        packages.unpack(package, tree)
        (program,) = tree.glob("boot/vmlinuz-*")
        program.rename(kernel.program)
        run("depmod", "--basedir", tree, program.name.removeprefix("vmlinuz-"))
        make_disk(tree / "lib/modules", kernel.modules, DISK_SIZE)
        shutil.rmtree(tree)
