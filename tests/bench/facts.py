# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the figures were taken on."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

# What prints its version how; some do so on the error output.
TOOLS = {
    "iptables": ["iptables", "--version"],
    "nft": ["nft", "--version"],
    "ipvsadm": ["ipvsadm", "--version"],
    "keepalived": ["keepalived", "--version"],
    "kernel of the bench with IPVS": ["linux.uml", "--version"],
}


def facts() -> dict[str, str]:
    """The machine and the versions of what is measured."""
    return {
        "processor": f"{_field('/proc/cpuinfo', 'model name')}, {os.cpu_count()} cores",
        "memory": _field("/proc/meminfo", "MemTotal"),
        "kernel": platform.release(),
        "Python": f"{platform.python_version()}; modules run on {_version(['/usr/bin/python3', '--version'])}",
        "ansible-core": version("ansible-core"),
        **{name: _version(command) for name, command in TOOLS.items()},
    }


def _field(path: str, name: str) -> str:
    """The first value of a name in a file of /proc."""
    found = re.search(rf"^{name}\s*: *(.*)$", Path(path).read_text(), re.MULTILINE)
    return found[1] if found else "unknown"


def _version(command: list[str]) -> str:
    """The first number with points in what a tool prints about itself."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "not installed"
    found = re.search(r"\d+(\.\d+)+\S*", done.stdout + done.stderr)
    return found[0].rstrip(",") if found else "unknown"
