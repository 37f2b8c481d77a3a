# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Commands, files and the lock of the real machine."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from ansible_collections.lvs.fleet.plugins.module_utils import _host as host
from ansible_collections.lvs.fleet.plugins.module_utils._errors import LockError, LvsError, ToolError

# As it is before conftest replaces it for all tests.
EXPECT_ROOT = host.expect_root


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


@pytest.mark.parametrize("path", ["", ":", "tools", "./tools:/usr/bin", "tools:"])
def test_tools_are_not_looked_for_below_the_current_folder(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tools").mkdir()
    for planted in (tmp_path / "no-such-tool", tmp_path / "tools" / "no-such-tool"):
        planted.write_text("#!/bin/sh\n")
        planted.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", path)
    assert host.installed("no-such-tool") == ""
    with pytest.raises(ToolError, match="no-such-tool is not installed"):
        host.run(["no-such-tool"])


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
import signal, sys
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_DFL)  # nohup and the like have them ignored
from ansible_collections.lvs.fleet.plugins.module_utils import _host
sys.argv[0] = "/payload.zip/lvs_service.py"
with _host.lock(0, sys.argv[1]):
    print("held", flush=True)
    sys.stdin.readline()
    {then}
print("left", flush=True)
"""
SINCE = r"\(lvs_service since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d \S+\)"


def hold(path: Path, then: str = "pass") -> subprocess.Popen[str]:
    """A process that holds the lock until it is sent a line, and then does something before it lets go."""
    command = [sys.executable, "-c", HOLDER.format(then=then), str(path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert holder.stdout and holder.stdout.readline() == "held\n"
    return holder


def let_go(holder: subprocess.Popen[str]) -> str:
    """Send the line; what the holder says then."""
    said, _error = holder.communicate("\n", timeout=30)
    return said


def test_only_one_writer_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "lock"
    with hold(path) as holder:
        started = time.monotonic()
        with pytest.raises(LockError) as caught, host.lock(1, str(path)):
            pytest.fail("two writers at once")
        assert time.monotonic() - started >= 1
        said = rf"{path}: still held by process {holder.pid} {SINCE} after waiting for 1 s"
        assert re.fullmatch(said, str(caught.value))
        holder.kill()
    with host.lock(0, str(path), warn=pytest.fail):  # a killed holder holds nothing
        assert path.read_text().startswith(f"{os.getpid()} (")
    with host.lock(0, str(path)):
        assert path.stat().st_mode & 0o777 == 0o600


def test_who_had_to_wait_knows_for_whom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hold(tmp_path / "lock") as holder:
        clock = SimpleNamespace(monotonic=time.monotonic, strftime=time.strftime, sleep=lambda _seconds: let_go(holder))
        monkeypatch.setattr(host, "time", clock)
        said: list[str] = []
        with host.lock(30, str(tmp_path / "lock"), said.append):
            pass
    assert len(said) == 1
    assert re.fullmatch(rf"waited \d+ s for process {holder.pid} {SINCE}", said[0])


def test_a_command_of_a_killed_writer_keeps_the_lock(tmp_path: Path) -> None:
    """It may still write: iptables-restore that waits for another lock, for instance."""
    go_on = tmp_path / "go on"
    os.mkfifo(go_on)
    with hold(tmp_path / "lock", then=f"_host.run(['cat', {str(go_on)!r}])") as holder:
        assert holder.stdin
        holder.stdin.write("\n")
        holder.stdin.flush()
        with go_on.open("w"):  # by now the command runs
            holder.kill()
            holder.wait()
            with pytest.raises(LockError), host.lock(0, str(tmp_path / "lock")):
                pytest.fail("two writers at once")
    with host.lock(30, str(tmp_path / "lock")):
        pass


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_a_writer_ends_what_it_has_begun(number: signal.Signals, tmp_path: Path) -> None:
    done = tmp_path / "done"
    with hold(tmp_path / "lock", then=f"open({str(done)!r}, 'w').close()") as holder:
        holder.send_signal(number)
        assert let_go(holder) == "", "it should have ended after it let go of the lock"
    assert done.exists()
    assert holder.returncode != 0


def test_the_lock_is_given_back_after_an_error(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    with pytest.raises(ZeroDivisionError), host.lock(0, path):
        raise ZeroDivisionError
    with host.lock(0, path):
        pass


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("precious")
    (tmp_path / "lock").symlink_to(tmp_path / "target")
    with (
        pytest.raises(LockError, match="lock: Too many levels of symbolic links"),
        host.lock(0, str(tmp_path / "lock")),
    ):
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


# -- files --------------------------------------------------------------------------------------------------------


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_options: str) -> None:
        raise OSError(30, "Read-only file system", "a temporary file")

    monkeypatch.setattr(host.tempfile, "mkstemp", refuse)
    with pytest.raises(OSError) as caught:
        host.write_file(f"{tmp_path}/marks.v4", "text", 0o600)
    assert str(caught.value) == f"[Errno 30] Read-only file system: '{tmp_path}/marks.v4'"


def test_whoever_is_not_root_is_told_what_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    with pytest.raises(LvsError, match=r"^this takes root: write become: true$"):
        EXPECT_ROOT()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    EXPECT_ROOT()
