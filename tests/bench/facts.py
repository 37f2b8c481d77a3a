# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the figures were taken on."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import version
from pathlib import Path

from ansible_collections.lvs.fleet.tests.bench.measure import tool

# Of Debian, where the lab's machines come from, too.
PACKAGES = ("iptables", "nftables", "ipvsadm", "keepalived", "user-mode-linux")
NEEDED = Path(__file__).parents[1] / "tools/need"


def facts() -> dict[str, str]:
    """The machine and the versions of what is measured; packages that are missing get installed."""
    tool(NEEDED, *PACKAGES)
    return {
        "processor": f"{_field('/proc/cpuinfo', 'model name')}, {os.cpu_count()} cores",
        "memory": _field("/proc/meminfo", "MemTotal"),
        "kernel": platform.release(),
        "Python": f"{platform.python_version()}; modules run on {tool('/usr/bin/python3', '--version').strip()}",
        "ansible-core": version("ansible-core"),
        **{name: tool("dpkg-query", "--show", "--showformat=${Version}", name) for name in PACKAGES},
    }


def _field(path: str, name: str) -> str:
    """The first value of a name in a file of /proc."""
    found = re.search(rf"^{name}\s*: *(.*)$", Path(path).read_text(), re.MULTILINE)
    return found[1] if found else "unknown"
