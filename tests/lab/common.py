# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: lvs.fleet contributors
"""Paths, messages and process helpers that every part of the lab uses."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

LAB = Path(__file__).resolve().parent
CHECKOUT = LAB.parent.parent
BUILD = CHECKOUT / ".build" / "lab"

# A process namespace of its own ends with its first process, and that one ends with this tool:
# however the tool dies, no kernel and none of its helper threads stay behind.
CONTAINED = ("setpriv", "--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child")


class LabError(Exception):
    """Something the lab cannot go on from; the text is what the user sees."""


def say(text: str) -> None:
    """Print one line of the lab's own, on stderr: stdout belongs to commands and inventories."""
    print(f"lab: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def step(text: str) -> Iterator[None]:
    """Announce a long step when it is done, with its seconds."""
    start = time.monotonic()
    yield
    say(f"{text} ({time.monotonic() - start:.1f} s)")


def run(*command: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None, stdin: str = "") -> str:
    """Run a helper program and return its output; its messages become the error when it fails."""
    result = subprocess.run(
        [str(word) for word in command],
        input=stdin,
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | (env or {}),
        cwd=cwd,
    )
    if result.returncode:
        words = " ".join(str(word) for word in command)
        raise LabError(f"{words}: exit status {result.returncode}\n{result.stdout}{result.stderr}".rstrip())
    return result.stdout


def on_one_processor(number: int) -> list[str]:
    """The words that go before a user-mode-linux kernel, and keep it on one of the processors, by its number.

    Such a kernel and the programs in it are processes that take turns, several for each system call and page fault.
    One that wakes up on another processor has to wait for that one: each turn takes five times as long.
    """
    processors = sorted(os.sched_getaffinity(0))
    return ["taskset", "--cpu-list", str(processors[number % len(processors)])]


def new_state(kind: str) -> Path:
    """Make a folder for this run, and remove those that killed runs of its kind have left."""
    BUILD.mkdir(parents=True, exist_ok=True)
    for old in BUILD.glob(f"{kind}-*"):
        if not Path("/proc", old.name.removeprefix(f"{kind}-")).exists():
            shutil.rmtree(old, ignore_errors=True)
    state = BUILD / f"{kind}-{os.getpid()}"
    state.mkdir()
    return state


def last_lines(path: Path, count: int = 40) -> str:
    """Return the end of a log file (empty when there is none)."""
    if not path.exists():
        return ""
    return "\n".join(path.read_text(errors="replace").splitlines()[-count:])


def exit_on_signals() -> None:
    """Make termination signals unwind the stack, so that clean-up code runs."""

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)


def become_root() -> None:
    """Run the same command again through sudo when the caller is not root; find root's programs in PATH."""
    folders = os.environ.get("PATH", os.defpath).split(":")
    os.environ["PATH"] = ":".join(folders + [new for new in ("/usr/sbin", "/sbin") if new not in folders])
    if os.geteuid() == 0:
        return
    # sudo replaces PATH even with --preserve-env, so it is handed over by env.
    os.execvp("sudo", ["sudo", "--preserve-env", "env", f"PATH={os.environ['PATH']}", sys.executable, *sys.argv])
