# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Commands, files and the lock of the real machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ansible_collections.lvs.fleet.plugins.module_utils import _host as host
from ansible_collections.lvs.fleet.plugins.module_utils._errors import LockError, ToolError


@pytest.mark.parametrize(
    "argv, stdin, answer",
    [
        (["sh", "-c", "cat; echo no >&2; exit 3"], "in\n", (3, "in\n", "no\n")),
        (["sh", "-c", "echo $LC_ALL"], "", (0, "C\n", "")),
        (["printf", r"\377"], "", (0, "\ufffd", "")),
        (["echo", "$(id); *"], "", (0, "$(id); *\n", "")),
    ],
)
def test_attempt(argv: list[str], stdin: str, answer: tuple[int, str, str]) -> None:
    assert host.attempt(argv, stdin) == answer


def test_a_command_gets_nothing_of_our_environment_but_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IPTABLES_SECRET", "x")
    monkeypatch.setenv("PATH", "/usr/bin")
    given = host.run(["env"]).splitlines()
    assert [line.partition("=")[0] for line in given if not line.startswith(("_=", "PWD=", "SHLVL="))] == [
        "PATH",
        "LC_ALL",
    ]
    assert "/usr/sbin" in given[0].split(":")


@pytest.mark.parametrize(
    "argv, message",
    [
        (["sh", "-c", "echo oops >&2; exit 7"], "sh -c echo oops >&2; exit 7: exit status 7: oops"),
        (["sh", "-c", "echo out; exit 7"], "sh -c echo out; exit 7: exit status 7: out"),
        (["false"], "false: exit status 1: it said nothing"),
        (["no-such-tool", "-x"], "no-such-tool -x: exit status 127: no-such-tool is not installed"),
        (["/etc/passwd"], "/etc/passwd: exit status 126: [Errno 13] Permission denied: '/etc/passwd'"),
    ],
)
def test_run_fails(argv: list[str], message: str) -> None:
    with pytest.raises(ToolError) as caught:
        host.run(argv)
    assert str(caught.value) == message


def test_run_gives_the_output() -> None:
    assert host.run(["echo", "good"]) == "good\n"


def test_a_command_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_COMMAND_SECONDS", 0.05)
    with pytest.raises(ToolError, match=r"^sleep 60: exit status 124: it did not end within 0.05 s$"):
        host.run(["sleep", "60"])


def test_installed_follows_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "xtables-nft-multi"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    (tmp_path / "iptables-save-x").symlink_to(tool)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert host.installed("iptables-save-x") == str(tool)
    assert host.installed("no-such-tool") == ""
    host.find("iptables-save-x")
    with pytest.raises(ToolError, match=r"^no-such-tool: exit status 127: it is not installed$"):
        host.find("no-such-tool")


def test_read_text(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("mangle\n")
    assert host.read_text(str(tmp_path / "there")) == "mangle\n"
    assert host.read_text(str(tmp_path / "not-there")) == ""


# -- the lock -----------------------------------------------------------------------------------------------------

HOLDER = """
import sys, time
from ansible_collections.lvs.fleet.plugins.module_utils import _host
with _host.lock(0, sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_only_one_writer_at_a_time(tmp_path: Path) -> None:
    path = str(tmp_path / "deep" / "lock")
    command = [sys.executable, "-c", HOLDER, path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        started = time.monotonic()
        with pytest.raises(LockError) as caught, host.lock(1, path):
            pytest.fail("two writers at once")
        assert 1 <= time.monotonic() - started < 3
        assert str(caught.value) == f"{path}: still held by process {holder.pid} after waiting for 1 s"
        holder.kill()
        holder.wait()
    with host.lock(0, path):  # a killed holder holds nothing
        assert Path(path).read_text() == f"{os.getpid()}\n"
    with host.lock(0, path):
        assert os.stat(path).st_mode & 0o777 == 0o600


def test_the_lock_is_given_back_after_an_error(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    with pytest.raises(ZeroDivisionError), host.lock(0, path):
        raise ZeroDivisionError
    with host.lock(0, path):
        pass


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("precious")
    (tmp_path / "lock").symlink_to(tmp_path / "target")
    with pytest.raises(OSError), host.lock(0, str(tmp_path / "lock")):
        pytest.fail("it followed the link")
    assert (tmp_path / "target").read_text() == "precious"


def test_processes_of_our_network_namespace_are_found_by_name() -> None:
    with subprocess.Popen(["cat", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as echoing:
        assert echoing.stdin and echoing.stdout
        echoing.stdin.write(b"\n")
        echoing.stdin.flush()
        echoing.stdout.read(1)  # by now it has its name
        found = [process for process in host.processes(("cat",)) if process[0] == echoing.pid]
    assert found == [(echoing.pid, "cat", ["cat", "-"])]
    assert host.processes(("no-such-name",)) == []
