# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: lvs.fleet contributors
"""What takes long to make and serves many runs: folders that are whole as soon as they have their name."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

UNUSED_AFTER = 24 * 3600


def cached(name: str, build: Callable[[Path], None]) -> Path:
    """Return the folder of this name, having it built when the cache has none."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lvs-fleet"
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / name
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            _build(folder, build)
        os.utime(folder)
        _remove_unused(cache)
    return folder


def _build(folder: Path, build: Callable[[Path], None]) -> None:
    # Only the holder of the lock comes here, so what is there already is left from a killed run.
    partial = folder.with_name("building")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700)
    build(partial)
    partial.rename(folder)


def _remove_unused(cache: Path) -> None:
    """Remove folders that no run has asked for lately; a newer one may be in use by another checkout's fleet."""
    for folder in cache.glob("*-*"):
        if time.time() - folder.stat().st_mtime > UNUSED_AFTER:
            shutil.rmtree(folder)
