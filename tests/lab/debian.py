# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: lvs.fleet contributors
"""Debian as a tree of files: what machines and roots of the lab are made from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common import run

RELEASES = ("bookworm", "trixie")


def make_tree(release: str, packages: Sequence[str], tree: Path, *options: str) -> None:
    """Install the smallest Debian that has these packages into a new folder."""
    run("mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(packages)}", *options, release, tree)
