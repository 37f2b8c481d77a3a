# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: lvs.fleet contributors
"""Debian as a tree of files: what machines and roots of the lab are made from."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from common import run

RELEASES = ("bookworm", "trixie")


def make_tree(release: str, packages: Sequence[str], tree: Path, *options: str) -> None:
    """Install the smallest Debian that has these packages into a new folder."""
    run("mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(packages)}", *options, release, tree)


def download(packages: Sequence[str], metapackage: str, folder: Path) -> str:
    """Return the option of `make_tree` that downloads packages of the release into a folder, without installing them.

    In place of the metapackage comes what it stands for at present.
    """
    newest = f"apt-cache depends --important {metapackage} | sed -n 's/^  Depends: //p'"
    return (
        f"--customize-hook=cd {shlex.quote(str(folder))} && export APT_CONFIG=$MMDEBSTRAP_APT_CONFIG"
        f" && apt-get -qq download {shlex.join(packages)} $({newest})"
    )


def unpack(package: Path, tree: Path) -> None:
    """Unpack a package file without installing it, and remove the file."""
    run("dpkg-deb", "--extract", package, tree)
    package.unlink()
