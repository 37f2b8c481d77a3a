# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: lvs.fleet contributors
"""The bench: one command, as root, in a kernel that has IPVS and iptables."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import BinaryIO

import packages
from common import CONTAINED, LAB, LabError, last_lines, new_state, on_one_processor, say

EXIT_TIMEOUT = 124
EXIT_NO_BENCH = 125
EXIT_BROKEN_PIPE = 141


def run_bench(command: list[str], memory: str, timeout: float | None, kernel: str) -> int:
    """Run the command and return its exit status."""
    packages.ensure(packages.BENCH)
    state = new_state("bench")
    try:
        _write_command(state / "command", command)
        if kernel == "own" or (kernel == "auto" and _own_kernel_has_ipvs()):
            return _run_on_own_kernel(state, timeout)
        return _run_on_uml(state, memory, timeout)
    finally:
        shutil.rmtree(state, ignore_errors=True)


def _write_command(script: Path, command: list[str]) -> None:
    """Write a script that runs the command with the caller's directory and environment."""
    words = ["env", "-i", *(f"{name}={value}" for name, value in os.environ.items()), *command]
    script.write_text(
        f"#!/bin/sh\ncd {shlex.quote(os.getcwd())} || exit\nexec {shlex.join(words)}\n", errors="surrogateescape"
    )
    script.chmod(0o700)


def _own_kernel_has_ipvs() -> bool:
    """Say whether the machine's own kernel has IPVS, after an attempt to load it."""
    subprocess.run(["modprobe", "--quiet", "ip_vs"], stderr=subprocess.DEVNULL, check=False)
    return Path("/proc/net/ip_vs").exists()


def _run_on_own_kernel(state: Path, timeout: float | None) -> int:
    """Run the command in new namespaces of the machine's own kernel."""
    words = [*CONTAINED, "--net", "--mount", "--mount-proc", str(LAB / "bench-own.sh"), str(state / "command")]
    return _supervise(subprocess.Popen(words, start_new_session=True), [], timeout)


def _run_on_uml(state: Path, memory: str, timeout: float | None) -> int:
    """Run the command in a user-mode-linux kernel whose root is the machine's own file system."""
    _copy_alternatives(state / "alternatives")
    streams: list[tuple[BinaryIO, BinaryIO]] = []
    for name, target in (("stdout", sys.stdout.buffer), ("stderr", sys.stderr.buffer)):
        (state / name).touch()
        streams.append(((state / name).open("rb"), target))
    console = state / "console"
    words = [
        # Another one than that of router1, the machine with most to do in a fleet beside it.
        *(*on_one_processor(0), *CONTAINED, "linux.uml", f"mem={memory}", "umid=bench", f"uml_dir={state}/"),
        *("root=/dev/root", "rootfstype=hostfs", "rootflags=/", "rw", "quiet", "random.trust_cpu=on"),
        *("con=null", "con0=null,fd:1", "ssl=null", f"init={LAB}/bench-uml.sh", "--", str(state)),
    ]
    with console.open("wb") as log:
        # TMPDIR must not reach the kernel: its memory would be a file there, instead of in /dev/shm.
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={"PATH": os.environ["PATH"], "HOME": str(state)},
        )
    if _supervise(process, streams, timeout) == EXIT_TIMEOUT:
        return EXIT_TIMEOUT
    try:
        return int((state / "status").read_text())
    except (FileNotFoundError, ValueError):
        raise LabError(f"the kernel of the bench ended early; its console:\n{last_lines(console)}") from None


def _copy_alternatives(target: Path) -> None:
    """Copy /etc/alternatives with the legacy variants of iptables chosen: UML has no nf_tables."""
    shutil.copytree("/etc/alternatives", target, symlinks=True)
    for family in ("iptables", "ip6tables"):
        for program in ("", "-save", "-restore"):
            link = target / f"{family}{program}"
            link.unlink(missing_ok=True)
            link.symlink_to(f"/usr/sbin/{family}-legacy{program}")


def _supervise(
    process: subprocess.Popen[bytes], streams: list[tuple[BinaryIO, BinaryIO]], timeout: float | None
) -> int:
    """Wait for the process, passing on what it writes to the files of the streams meanwhile."""
    deadline = time.monotonic() + timeout if timeout else None
    try:
        while process.poll() is None:
            if deadline and time.monotonic() > deadline:
                say(f"the command was ended after {timeout:g} s")
                return EXIT_TIMEOUT
            _pass_on(streams)
            time.sleep(0.02)
        return process.returncode
    finally:
        process.kill()
        process.wait()
        _pass_on(streams)


def _pass_on(streams: list[tuple[BinaryIO, BinaryIO]]) -> None:
    for source, target in streams:
        while chunk := source.read(65536):
            target.write(chunk)
            target.flush()
