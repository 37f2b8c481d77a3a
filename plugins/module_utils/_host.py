# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The router's commands, files and lock. PRIVATE to the collection: the only place that runs commands."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import subprocess
import tempfile
import time
from typing import Callable, Iterator, Sequence

from ._errors import LockError, ToolError

LOCK_FILE = "/run/lock/lvs-fleet.lock"
# Ansible's ssh session has a user's PATH, which on Debian lacks the sbin folders.
_SBIN_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
_COMMAND_SECONDS = 120
_POLL_SECONDS = 0.1


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
        done = subprocess.run(
            argv,
            input=stdin.encode("utf-8", "replace"),
            capture_output=True,
            env={"PATH": _search_path(), "LC_ALL": "C"},
            timeout=_COMMAND_SECONDS,
            check=False,
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
    return f"{os.environ.get('PATH', '')}:{_SBIN_PATH}"


def is_loaded(module: str) -> bool:
    """Whether a kernel module is loaded; most of those that are built in are not seen here."""
    return os.path.isdir(f"/sys/module/{module}")


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


def mode_of(path: str) -> int:
    """The permission bits of a file."""
    return stat.S_IMODE(os.stat(path).st_mode)


def write_file(path: str, content: str, mode: int) -> None:
    """Put a file in place as a whole: whoever reads it, even after a crash, finds the old text or the new one."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    _replace(path, content, lambda temporary: os.chmod(temporary, mode))


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
    # In the same folder, so that the last step is one rename and SELinux gives it the folder's label.
    descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".lvs-")
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


def remove(path: str) -> None:
    """Remove a file, or a folder that is empty."""
    if os.path.isdir(path) and not os.path.islink(path):
        os.rmdir(path)
    else:
        os.unlink(path)
    _sync_folder(os.path.dirname(path))


def link(path: str, target: str) -> None:
    """Make path a symbolic link to target, whatever link or file was there."""
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    os.symlink(target, path)
    _sync_folder(folder)


def _sync_folder(folder: str) -> None:
    """A rename is on the disk once its folder is."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def lock(timeout: int, path: str = LOCK_FILE) -> Iterator[None]:
    """Be the only writer on this router. Raises LockError, naming the holder, after timeout seconds of waiting.

    The kernel drops the lock with the process that holds it, however it ends; the file stays.
    """
    os.makedirs(os.path.dirname(path), exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        _wait_for(descriptor, timeout, path)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _wait_for(descriptor: int, timeout: int, path: str) -> None:
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
        if time.monotonic() >= deadline:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise LockError(f"{path}: still held by process {holder} after waiting for {timeout} s")
        time.sleep(_POLL_SECONDS)
