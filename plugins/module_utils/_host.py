# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The router's commands, files and lock. PRIVATE to the collection: the only place that runs commands."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import glob
import os
import re
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from typing import Callable, Iterator, Sequence

from ._errors import LockError, LvsError, ToolError

LOCK_FILE = "/run/lock/lvs-fleet.lock"
# Ansible's ssh session has a user's PATH, which on Debian lacks the sbin folders.
_SBIN_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
_COMMAND_SECONDS = 120
_POLL_SECONDS = 0.1
# What asks a process to end and can wait: a closed ssh session, Ctrl-C, a shutdown.
_POLITE_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
_TEMPORARY = ".lvs-"
# What has a unit start at boot, made by systemctl or from an init script; and what is there while it is active.
UNIT_LINKS = (
    *("/etc/systemd/system/*.wants/", "/etc/systemd/system/*.requires/", "/run/systemd/generator.late/*.wants/"),
    "/run/systemd/units/invocation:",
)

# The lock while we hold it. The commands we run hold it, too: if we are killed, one that is still at work, or waits for
# a lock of its own, may write for a while yet.
_held: list[int] = []


def expect_root() -> None:
    """Raises LvsError unless we are root. What fails for want of that says so in other words, each in its own."""
    if os.geteuid():
        raise LvsError("this takes root: write become: true")


def installed(tool: str) -> str:
    """The real path of a command, behind links as those of update-alternatives; empty if it is not installed."""
    found = shutil.which(tool, path=_search_path())
    return os.path.realpath(found) if found else ""


def find(tool: str) -> None:
    """Raises ToolError if a command is not installed."""
    if not installed(tool):
        raise ToolError([tool], 127, "it is not installed")


def run(argv: Sequence[str], stdin: str = "") -> str:
    """Run a command without a shell; its standard output. Raises ToolError unless it exits with 0."""
    status, output, said = attempt(argv, stdin)
    if status:
        raise ToolError(argv, status, said or output)
    return output


def attempt(argv: Sequence[str], stdin: str = "") -> tuple[int, str, str]:
    """Exit status, output and error output of a command; messages are English, whatever the router's locale."""
    try:
        # Not the run_command of Ansible's class for modules, which what is here does not know.
        done = subprocess.run(  # pylint: disable=ansible-bad-function
            argv,
            input=stdin.encode("utf-8", "replace"),
            capture_output=True,
            env={"PATH": _search_path(), "LC_ALL": "C"},
            timeout=_COMMAND_SECONDS,
            check=False,
            pass_fds=_held,
        )
    except FileNotFoundError:
        raise ToolError(argv, 127, f"{argv[0]} is not installed") from None
    except PermissionError as error:
        raise ToolError(argv, 126, str(error)) from None
    except subprocess.TimeoutExpired:
        raise ToolError(argv, 124, f"it did not end within {_COMMAND_SECONDS} s") from None
    # Not in text mode, which takes a carriage return in somebody's comment for the end of a line.
    return done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")


def _search_path() -> str:
    """Without folders below the current one, which an empty name is as well: in those anybody might have put tools."""
    given = [folder for folder in os.environ.get("PATH", "").split(":") if os.path.isabs(folder)]
    return ":".join([*given, _SBIN_PATH])


def is_loaded(module: str) -> bool:
    """Whether a kernel module is loaded; most of those that are built in are not seen here."""
    return os.path.isdir(f"/sys/module/{module}")


def is_loadable(module: str) -> bool:
    """Whether the kernel has a module, or finds it when it is asked for."""
    return is_loaded(module) or not attempt(["modprobe", "--show-depends", module])[0]


def in_use(unit: str) -> bool:
    """Whether a unit of systemd starts at boot, or is active."""
    return any(glob.glob(link + unit) for link in UNIT_LINKS)


def read_text(path: str) -> str:
    """The text of a small file, empty if there is none; bytes that are no UTF-8 come through write_file unchanged."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def processes(names: Sequence[str]) -> list[tuple[int, str, list[str]]]:
    """Process id, name and arguments of the programs of these names that run in our network namespace."""
    found = []
    for pid in sorted(int(entry) for entry in os.listdir("/proc") if entry.isdigit()):
        # A process may be gone by now, and a kernel thread has no command line.
        with contextlib.suppress(OSError):
            name = read_text(f"/proc/{pid}/comm").partition(" ")[0].strip()
            if name in names and os.readlink(f"/proc/{pid}/ns/net") == os.readlink("/proc/self/ns/net"):
                found.append((pid, name, read_text(f"/proc/{pid}/cmdline").split("\0")[:-1]))
    return found


def interfaces() -> list[str]:
    """The network interfaces of the router."""
    lines = read_text("/proc/self/net/dev").splitlines()
    return [line.partition(":")[0].strip() for line in lines if ":" in line]


def is_own(path: str) -> bool:
    """Whether what is there, be it a link, belongs to root or to us, and is no link."""
    found = os.lstat(path)
    return found.st_uid in (0, os.geteuid()) and not stat.S_ISLNK(found.st_mode)


def is_own_file(path: str) -> bool:
    """The same, and whether it has root's group or ours, as the files have that we make."""
    return is_own(path) and os.lstat(path).st_gid in (0, os.getegid())


def folder_problem(folder: str) -> str:
    """Why root's own files are not safe in a folder; empty if they are, or if it is still to be made.

    The group of /usr/local is a choice of the distribution: on the Debian family it may be staff.
    """
    if not os.path.lexists(folder):
        return ""
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode):
        return f"{folder} is a link, or no folder; remove it"
    by_group = found.st_mode & stat.S_IWGRP and found.st_gid and not folder.startswith("/usr/local/")
    if not is_own(folder) or by_group or found.st_mode & stat.S_IWOTH:
        owner = f"user {found.st_uid}, group {found.st_gid}, mode {stat.S_IMODE(found.st_mode):04o}"
        return f"others can write to {folder} ({owner}); look at what is in it, then give it to root alone"
    return ""


def mode_of(path: str) -> int:
    """The permission bits of a file."""
    return stat.S_IMODE(os.stat(path).st_mode)


def write_file(path: str, content: str, mode: int) -> None:
    """Put a file in place as a whole: whoever reads it, even after a crash, finds the old text or the new one."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)

    def make_own(temporary: str) -> None:
        # A folder may give its group to new files: /usr/local/sbin on the Debian family, to staff.
        if not os.geteuid():
            os.chown(temporary, 0, 0)
        os.chmod(temporary, mode)

    _replace(path, content, make_own)


def rewrite_file(path: str, content: str) -> None:
    """The same for a file of somebody else: links to it, its owner, permissions and SELinux label stay."""
    path = os.path.realpath(path)
    owner = os.stat(path)

    def take_after(temporary: str) -> None:
        os.chown(temporary, owner.st_uid, owner.st_gid)
        shutil.copystat(path, temporary)
        os.utime(temporary)

    _replace(path, content, take_after)


def _replace(path: str, content: str, prepare: Callable[[str], None]) -> None:
    folder = os.path.dirname(path)
    with _naming(path):
        # In the same folder, so that the last step is one rename and SELinux gives it the folder's label.
        descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=_TEMPORARY)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
                file.write(content)
                file.flush()
                prepare(temporary)
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    _sync_folder(folder)


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    """Have errors of the system name the file that is to be written: a full disk names none, the others a temporary."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None


def leftovers(folder: str) -> list[str]:
    """Files that a writer which was killed did not live to put in place. Only who has the lock can tell."""
    if not os.path.isdir(folder):
        return []
    names = (name for name in sorted(os.listdir(folder)) if re.fullmatch(rf"{re.escape(_TEMPORARY)}\w{{8}}", name))
    return [f"{folder}/{name}" for name in names]


def way_back(path: str) -> Callable[[], None]:
    """What puts a path back to what it is now: a link, an empty folder, a file or nothing."""
    if os.path.islink(path):
        target = os.readlink(path)
        return lambda: link(path, target)
    if os.path.isdir(path):
        return functools.partial(_put_folder_back, path, mode_of(path))
    if not os.path.exists(path):
        return lambda: remove(path) if os.path.lexists(path) else None
    text, mode, owner = read_text(path), mode_of(path), os.stat(path)

    def put_back() -> None:
        if os.path.exists(path):
            os.chmod(path, mode)
            rewrite_file(path, text)
        else:
            write_file(path, text, mode)
        os.chown(path, owner.st_uid, owner.st_gid)

    return put_back


def _put_folder_back(path: str, mode: int) -> None:
    os.makedirs(path, exist_ok=True)
    os.chmod(path, mode)


def remove(path: str) -> None:
    """Remove a file, or a folder that is empty."""
    if os.path.isdir(path) and not os.path.islink(path):
        os.rmdir(path)
    else:
        os.unlink(path)
    _sync_folder(os.path.dirname(path))


def link(path: str, target: str) -> None:
    """Make path a symbolic link to target, in place of whatever link or file was there, in one step."""
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    with _naming(path):
        temporary = f"{folder}/{_TEMPORARY}{secrets.token_hex(4)}"
        os.symlink(target, temporary)
        os.replace(temporary, path)
    _sync_folder(folder)


def _sync_folder(folder: str) -> None:
    """A rename is on the disk once its folder is."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def lock(timeout: int, path: str = LOCK_FILE, warn: Callable[[str], None] = lambda waited: None) -> Iterator[None]:
    """Be the only writer on this router. If it takes waiting, warn is told for whom.

    Raises LockError, naming the holder, after timeout seconds of waiting. The kernel drops the lock with the last of
    the processes that hold it, however they end; the file stays. Who has the lock is not interrupted: what asks us to
    end is heard when the router is whole.
    """
    descriptor = _open_lock(path)
    try:
        waited = _wait_for(descriptor, timeout, path)
        if waited:
            warn(waited)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{_ourselves()}\n".encode(), 0)
        _held.append(descriptor)
        with _uninterrupted():
            yield
    finally:
        _held.clear()
        os.close(descriptor)


def _open_lock(path: str) -> int:
    """On the Debian family anybody may put a file or a link in our place beforehand, and hold its lock for ever."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        if os.lstat(path).st_uid not in (0, os.geteuid()):
            os.unlink(path)
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise LockError(f"{path}: {error.strerror}") from None


def _wait_for(descriptor: int, timeout: int, path: str) -> str:
    """For whom we had to wait, if for anybody."""
    begin = time.monotonic()
    holder = ""
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return f"waited {time.monotonic() - begin:.0f} s for process {holder}" if holder else ""
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
        holder = os.pread(descriptor, 200, 0).decode("ascii", "replace").strip() or "unknown"
        if time.monotonic() >= begin + timeout:
            raise LockError(f"{path}: still held by process {holder} after waiting for {timeout} s")
        time.sleep(_POLL_SECONDS)


def wait(seconds: float) -> float:
    """Wait; how long that was, by a clock that nobody sets."""
    begin = time.monotonic()
    time.sleep(seconds)
    return time.monotonic() - begin if seconds else 0


def _ourselves() -> str:
    """Process id, module, and when it began to write, for those who wait for us. Ansible sets argv to the module."""
    program = os.path.basename(sys.argv[0]).partition(".")[0] or "python"
    return f"{os.getpid()} ({program} since {time.strftime('%Y-%m-%d %H:%M:%S %Z')})"


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _POLITE_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
