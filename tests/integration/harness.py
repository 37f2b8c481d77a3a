# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A router for one test: a network namespace of its own, the modules run in it, and witnesses that are not ours.

A namespace costs next to nothing, but a process costs a lot in the bench's kernel. So the test process itself moves
into the namespace and calls the module's main() with everything imported already.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import importlib
import json
import os
import re
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest
from ansible.module_utils.testing import patch_module_args

CHAIN = "LVS-MARK"
RECORDS = "(:LVS-SERVICE .*|-A LVS-SERVICE .*)"
SNAT = "(:LVS-SNAT .*|-A LVS-SNAT .*|-A POSTROUTING -j LVS-SNAT)"
FAMILIES = ("ipv4", "ipv6")
IPTABLES = {"ipv4": "iptables", "ipv6": "ip6tables"}
PROGRAMS = tuple(f"{command}{suffix}" for command in IPTABLES.values() for suffix in ("", "-save", "-restore"))
PARTS = {"lvs_service": ("marks", "ipvs"), "iptables_mark": ("marks",), "ipvs_service": ("ipvs",)}
MODULES: dict[str, ModuleType] = {
    name: importlib.import_module(f"ansible_collections.lvs.fleet.plugins.modules.{name}")
    for name in (*PARTS, "boot_files", "ip_objects", "iptables_mss", "lvs_info", "machine_info")
}

Result = dict[str, Any]

_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNS, _CLONE_NEWNET = 0x20000, 0x40000000
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 0x1


# -- namespaces ---------------------------------------------------------------------------------------------------


def _checked(status: int) -> None:
    if status:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def hide_run() -> None:
    """Give this process a /run of its own: the locks in it belong to the machine."""
    _checked(_LIBC.unshare(_CLONE_NEWNS))
    for words in (["--make-rprivate", "/"], ["-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"]):
        subprocess.run(["mount", *words], check=True)
    Path("/run/lock").mkdir(mode=0o1777)


class Namespace:
    """A network namespace; it is gone when it is closed and no process is left in it."""

    def __init__(self) -> None:
        with _staying():
            _checked(_LIBC.unshare(_CLONE_NEWNET))
            self.descriptor = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            _loopback_up()

    @property
    def path(self) -> str:
        """For "ip link set DEVICE netns PATH"."""
        return f"/proc/{os.getpid()}/fd/{self.descriptor}"

    @contextmanager
    def inside(self) -> Iterator[None]:
        with _staying():
            _checked(_LIBC.setns(self.descriptor, _CLONE_NEWNET))
            yield

    def close(self) -> None:
        os.close(self.descriptor)


def _loopback_up() -> None:
    """Before its first address a namespace has no routing table, and the kernel takes no address there for unicast."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as anything:
        fcntl.ioctl(anything, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))


@contextmanager
def _staying() -> Iterator[None]:
    """Come back to the namespace of now."""
    here = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield
    finally:
        _checked(_LIBC.setns(here, _CLONE_NEWNET))
        os.close(here)


# -- witnesses ----------------------------------------------------------------------------------------------------


def loaded_modules() -> frozenset[str]:
    """Names of the kernel's loaded modules; none on a kernel that has everything built in."""
    path = Path("/proc/modules")
    return frozenset(line.split()[0] for line in path.read_text().splitlines()) if path.exists() else frozenset()


@dataclass(frozen=True)
class Snapshot:
    """The whole state in the words of iptables-save, ip6tables-save, ipvsadm and the kernel."""

    ipv4: str
    ipv6: str
    ipvsadm: str
    thresholds: str
    table: str
    modules: frozenset[str]

    def own_rules(self, family: str, chain: str = CHAIN) -> list[str]:
        """The chains in table mangle and that in table nat, the jumps to them, and all rules in them."""
        mark = rf":{chain} .*|-A {chain} .*|-A PREROUTING -j {chain}"
        records = [rf"|\*mangle {RECORDS}"] if chain == CHAIN else []
        mine = re.compile(rf"\*mangle ({mark})|\*nat {SNAT}{''.join(records)}")
        return [line for table, line in self._lines(family) if mine.fullmatch(f"{table} {line}")]

    def foreign_rules(self, family: str) -> str:
        """All tables without our chains and the jumps to them; rules in LVS-MARK stay if they are not ours."""
        mark = rf':{CHAIN} .*|-A PREROUTING -j {CHAIN}|-A {CHAIN} .*--comment "lvs:.*'
        own = re.compile(rf"\*mangle ({mark}|{RECORDS})|\*nat {SNAT}")
        return "\n".join(line for table, line in self._lines(family) if not own.fullmatch(f"{table} {line}"))

    def _lines(self, family: str) -> Iterator[tuple[str, str]]:
        """Every line with the table it is in."""
        table = ""
        for line in getattr(self, family).splitlines():
            table = line if line.startswith("*") else table
            yield table, line

    def services(self) -> list[str]:
        """What ipvsadm -Sn prints, thresholds added in the place where ipvsadm takes them."""
        limits = _limits(self.thresholds)
        return sorted(_unsigned(_with_limits(line, limits)) for line in self.ipvsadm.splitlines())

    def services_without(self, *marks: int) -> list[str]:
        """The services by another mark, and those by address."""
        own = re.compile(rf"-[Aa] -f ({'|'.join(map(str, marks))})( .*|)")
        return [line for line in self.services() if not own.fullmatch(line)]


def _limits(listing: str) -> dict[tuple[str, str], str]:
    """Service and real server, in the words of ipvsadm -S, to "-x UPPER -y LOWER", from ipvsadm -Ln --thresholds."""
    option = {"TCP": "-t", "UDP": "-u", "SCTP": "--sctp-service", "FWM": "-f"}
    limits, service = {}, ""
    for words in map(str.split, listing.splitlines()[3:]):
        if words[0] in option:
            service = f"{option[words[0]]} {words[1]}{' -6' if words[2] == 'IPv6' else ''}"
        else:
            upper, lower = words[2:4]
            limits[service, words[1]] = (f" -x {upper}" if upper != "0" else "") + (
                f" -y {lower}" if lower != "0" else ""
            )
    return limits


def _with_limits(line: str, limits: dict[tuple[str, str], str]) -> str:
    """The line as it is for a service; with its thresholds for a real server."""
    found = re.fullmatch(r"-a (.*) -r (\S+) (-\S+ -w \d+)(.*)", line)
    return f"-a {found[1]} -r {found[2]} {found[3]}{limits[found[1], found[2]]}{found[4]}" if found else line


def _unsigned(line: str) -> str:
    """ipvsadm prints marks from 2^31 on as negative numbers."""
    return re.sub(r"(?<= -f )-\d+", lambda found: str(int(found[0]) + 2**32), line)


def diff_form(snapshot: Snapshot, parts: tuple[str, ...], chain: str) -> list[str]:
    """What a diff has to show of a snapshot, ordered by itself."""
    lines: list[str] = []
    if "marks" in parts:
        lines += [line for family in FAMILIES for line in snapshot.own_rules(family, chain)]
    return sorted(lines + snapshot.services() if "ipvs" in parts else lines)


# -- the router ---------------------------------------------------------------------------------------------------


class Router:
    """The network namespace that the test process is in, with one variant of iptables first on PATH."""

    def __init__(self, variant: str, folder: Path) -> None:
        self.variant = variant
        self._shadows, tools = folder / "shadows", folder / "tools"
        self._shadows.mkdir()
        tools.mkdir()
        for program in PROGRAMS:
            command, dash, suffix = program.partition("-")
            target = shutil.which(f"{command}-{variant}{dash}{suffix}")
            assert target, f"{program} of iptables-{variant} is not installed"
            (tools / program).symlink_to(target)
        # The state after the last converge().
        self.converged: Snapshot
        self._unshadowed = f"{tools}:{os.environ['PATH']}"
        self.path = f"{self._shadows}:{self._unshadowed}"

    def shadow(self, program: str, script: str) -> None:
        """Put a shell script in the place of a program; "$real" in it is the program itself."""
        shadow = self._shadows / program
        shadow.write_text(f"#!/bin/sh\nreal={shutil.which(program, path=self._unshadowed)}\n{script}\n")
        shadow.chmod(0o755)

    def unshadow(self) -> None:
        for shadow in self._shadows.iterdir():
            shadow.unlink()

    # -- running modules

    def call(self, module: str, /, *, check: bool = False, diff: bool = True, **options: Any) -> Result:
        """Run a module; what it returned, be it success or failure."""
        arguments = {**options, "_ansible_check_mode": check, "_ansible_diff": diff}
        output = StringIO()
        with (
            patch_module_args(arguments),
            patch.dict(os.environ, PATH=self.path),
            redirect_stdout(output),
            pytest.raises(SystemExit),
        ):
            MODULES[module].main()
        gc.enable()
        return json.loads(output.getvalue())

    def run(self, module: str, /, **options: Any) -> Result:
        """Run a module that has to succeed."""
        result = self.call(module, **options)
        assert not result.get("failed"), result["msg"]
        return result

    def fail(self, module: str, /, **options: Any) -> str:
        """Run a module that has to fail, in a way that a user can read; its message."""
        result = self.call(module, **options)
        assert result.get("failed"), f"{module} should have failed: {result}"
        assert "Traceback" not in result["msg"] and "exception" not in result, result
        return result["msg"]

    def converge(self, module: str, /, **options: Any) -> Result:
        """Check, run, check, run: what every writing module promises, each time against the witnesses."""
        before = self.snapshot()
        foretold = self.run(module, check=True, **options)
        assert self.snapshot() == before, "check mode changed something"
        done = self.run(module, **options)
        after = self.snapshot()
        assert foretold["changed"] is done["changed"] is True
        assert foretold["operations"] == done["operations"] != []
        assert foretold["diff"] == done["diff"]
        parts, chain = PARTS[module], options.get("chain", CHAIN)
        for side, snapshot in (("before", before), ("after", after)):
            shown = [line for line in done["diff"][side].splitlines() if not line.startswith("#")]
            assert sorted(shown) == diff_form(snapshot, parts, chain), f"the diff's {side} is not what is there"
        self.is_settled(module, after, **options)
        self.converged = after
        return done

    def is_settled(self, module: str, state: Snapshot | None = None, /, **options: Any) -> None:
        """Neither check mode nor a run finds anything to do, and nothing is touched."""
        before = state or self.snapshot()
        for check in (True, False):
            again = self.run(module, check=check, **options)
            assert (again["changed"], again["operations"]) == (False, [])
            assert again["diff"]["before"] == again["diff"]["after"]
        assert self.snapshot() == before

    # -- running tools

    def attempt(self, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        environment = {"PATH": self.path, "LC_ALL": "C"}
        return subprocess.run(words, input=stdin, capture_output=True, text=True, env=environment, check=False)

    def tool(self, *words: str, stdin: str = "") -> str:
        """Run a command that has to succeed; what it printed."""
        done = self.attempt(*words, stdin=stdin)
        assert done.returncode == 0, f"{' '.join(words)}: {done.returncode}: {done.stderr}{done.stdout}"
        return done.stdout

    def ipvsadm(self, commands: str) -> None:
        """Commands of ipvsadm, one on each line, by hand. ipvsadm -R exits with 0 after most failures."""
        done = self.attempt("ipvsadm", "-R", stdin="\n".join(map(str.strip, commands.strip().splitlines())) + "\n")
        assert (done.returncode, done.stderr) == (0, ""), done.stderr

    def iptables(self, commands: str, family: str = "ipv4", table: str = "mangle") -> None:
        """Commands of iptables for one table, one on each line, by hand."""
        lines = [line.strip() for line in commands.strip().splitlines()]
        self.tool(f"{IPTABLES[family]}-restore", "--noflush", stdin="\n".join([f"*{table}", *lines, "COMMIT", ""]))

    def snapshot(self, rules: bool = True, services: bool = True) -> Snapshot:
        """The state, or half of it. Taking it loads no module: ipvsadm would, so it is asked only where IPVS is."""
        table = Path("/proc/self/net/ip_vs")
        ipvs = services and table.exists()
        return Snapshot(
            ipv4=_comparable(self.tool("iptables-save")) if rules else "",
            ipv6=_comparable(self.tool("ip6tables-save")) if rules else "",
            ipvsadm=self.tool("ipvsadm", "-Sn") if ipvs else "",
            thresholds=self.tool("ipvsadm", "-Ln", "--thresholds") if ipvs else "",
            table=table.read_text() if ipvs else "",
            modules=loaded_modules(),
        )


def _comparable(saved: str) -> str:
    """iptables-save's output without the date."""
    return "".join(f"{line}\n" for line in saved.splitlines() if not line.startswith("#"))
