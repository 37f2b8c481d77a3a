# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Hosts that are not as one expects: each has a message that says so, and nothing is half done."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.lvs.fleet.plugins.module_utils import _host
from ansible_collections.lvs.fleet.tests.integration.harness import Router
from ansible_collections.lvs.fleet.tests.integration.shapes import HEAD, WEB, service

RULES = [{"name": "web", "mark": 80, "destination": ["192.0.2.10", "2001:db8::10"], "protocol": "tcp", "ports": [80]}]
SERVICE = service("web", 80, WEB, real_servers=[{"address": "10.0.0.11"}])
NOBODY = 65534
LOCK = Path(_host.LOCK_FILE)
NAMES = ("ipvs.rules", "marks.v4", "marks.v6")

_LIBC = ctypes.CDLL(None, use_errno=True)
# Of linux/capability.h: what lets root pass over the permissions of files.
_CAPABILITIES_VERSION_3 = 0x20080522
_DAC = 1 << 1 | 1 << 2


# -- oddities -----------------------------------------------------------------------------------------------------


@contextmanager
def disk(folder: Path, size: str) -> Iterator[None]:
    """A small file system of its own at a folder."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", folder], check=True)


@contextmanager
def forbidden(folder: Path) -> Iterator[None]:
    """Root may not write to a folder, as SELinux might have it."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()
    folder.chmod(0o555)
    assert _LIBC.capget(header, sets) == 0
    effective = sets[0]
    sets[0] = effective & ~_DAC
    assert _LIBC.capset(header, sets) == 0
    try:
        yield
    finally:
        sets[0] = effective
        assert _LIBC.capset(header, sets) == 0
        folder.chmod(0o755)


@contextmanager
def nobody(router: Router) -> Iterator[None]:
    """Not root, for this process and what it runs; the tools of the variant are where nobody finds them, too."""
    tools = Path("/run/tools")
    shutil.copytree(router.path.split(":")[1], tools, symlinks=True)
    path, router.path = router.path, f"{tools}:{os.environ['PATH']}"
    os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        router.path = path
        shutil.rmtree(tools)


def lock_is_free() -> bool:
    with LOCK.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return True


def contents(folder: Path) -> dict[str, tuple[int, str]]:
    """Mode and text of everything below a folder."""
    paths = sorted(folder.rglob("*"))
    return {
        str(path.relative_to(folder)): (path.lstat().st_mode, path.read_text() if path.is_file() else "")
        for path in paths
    }


# -- disks --------------------------------------------------------------------------------------------------------


def boot_files(folder: Path, text: str) -> dict[str, Any]:
    return {"files": [{"path": f"{folder}/{name}", "content": f"{name} {text}\n"} for name in NAMES]}


@pytest.fixture
def etc(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of its own, with what an earlier run has left; the lock is elsewhere."""
    folder = tmp_path / "etc"
    with disk(folder, "64k"):
        yield folder


@pytest.mark.parametrize("variant", ["nft"])
def test_read_only(router: Router, etc: Path) -> None:
    lvs = etc / "lvs"
    router.run("boot_files", **boot_files(lvs, "old"))
    router.run("ip_objects", path=f"{lvs}/vips", commands=["address add 192.0.2.9/32 dev lo"])
    files, addresses = contents(etc), router.tool("ip", "address")
    with read_only(etc):
        assert router.fail("boot_files", **boot_files(lvs, "new")) == (
            f"[Errno 30] Read-only file system: '{lvs}/ipvs.rules'\nNothing had been changed."
        )
        assert router.fail("boot_files", **boot_files(etc / "other", "new")) == (
            f"[Errno 30] Read-only file system: '{etc}/other'\nNothing had been changed."
        )
        message = router.fail("ip_objects", path=f"{lvs}/vips", commands=["address add 192.0.2.10/32 dev lo"])
        assert message == f"[Errno 30] Read-only file system: '{lvs}/vips'\nNothing had been changed."
        assert not router.run("boot_files", **boot_files(lvs, "old"))["changed"]
    assert (contents(etc), router.tool("ip", "address")) == (files, addresses)
    assert lock_is_free()


@pytest.mark.parametrize("variant", ["nft"])
def test_forbidden(router: Router, etc: Path) -> None:
    """As where SELinux does not let root write: there is no such policy here, but the kernel's answer is the same."""
    lvs = etc / "lvs"
    router.run("boot_files", **boot_files(lvs, "old"))
    lvs.chmod(0o555)
    files = contents(etc)
    with forbidden(lvs):
        assert router.fail("boot_files", **boot_files(lvs, "new")) == (
            f"[Errno 13] Permission denied: '{lvs}/ipvs.rules'\nNothing had been changed."
        )
        message = router.fail("ip_objects", path=f"{lvs}/vips", commands=["address add 192.0.2.10/32 dev lo"])
        assert message == f"[Errno 13] Permission denied: '{lvs}/vips'\nNothing had been changed."
    lvs.chmod(0o555)
    assert contents(etc) == files
    assert "192.0.2.10" not in router.tool("ip", "address")
    assert lock_is_free()


@pytest.mark.parametrize("variant", ["nft"])
def test_full_disk(router: Router, etc: Path) -> None:
    """The second of three files does not fit: the first one is what it was, and there is no rest of a temporary one."""
    lvs = etc / "lvs"
    router.run("boot_files", **boot_files(lvs, "old"))
    router.run("ip_objects", path=f"{lvs}/vips", commands=["address add 192.0.2.9/32 dev lo"])
    files, addresses = contents(etc), router.tool("ip", "address")
    wanted = boot_files(lvs, "new")
    wanted["files"][1]["content"] = "x" * 100000
    assert router.fail("boot_files", **wanted) == (
        f"[Errno 28] No space left on device: '{lvs}/marks.v4'\n"
        "The 1 operations done until then were undone; the files are as they were before."
    )
    assert contents(etc) == files
    with (etc / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError, match="No space left"):
        while True:
            filler.write(bytes(4096))
    message = router.fail("ip_objects", path=f"{lvs}/vips", commands=["address add 192.0.2.10/32 dev lo"])
    assert message == f"[Errno 28] No space left on device: '{lvs}/vips'\nNothing had been changed."
    (etc / "filler").unlink()
    assert (contents(etc), router.tool("ip", "address")) == (files, addresses)
    assert lock_is_free()


# -- who runs it --------------------------------------------------------------------------------------------------

MODULES = {
    "iptables_mark": {"rules": RULES},
    "iptables_mss": {"segments": {"192.0.2.10": 1400}},
    "lvs_service": {"services": [SERVICE]},
    "boot_files": {"files": [{"path": "/etc/lvs/marks.v4", "content": ""}]},
    "ip_objects": {"path": "/etc/lvs/vips", "commands": ["address add 192.0.2.10/32 dev lo"]},
    "ipvs_service": {"services": [{"fwmark": 80}]},
    "lvs_info": {},
    "machine_info": {},
}


def test_not_root(router: Router) -> None:
    """Each module says the same, and what to write, in check mode as well, before it touches or waits for anything."""
    router.run("iptables_mark", rules=RULES)
    before = router.snapshot()
    for module, options in MODULES.items():
        router.call(module, check=True, **options)  # what it imports, it imports as root
        for check in (True, False):
            with nobody(router):
                assert router.fail(module, check=check, **options) == "this takes root: write become: true"
    assert router.snapshot() == before
    assert not router.run("iptables_mark", rules=RULES)["changed"]


# -- the lock -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["nft"])
def test_no_folder_for_the_lock(router: Router) -> None:
    """It is made. On a disk the file would outlive the reboot, and the lock would not: that is the kernel's."""
    shutil.rmtree(LOCK.parent)
    assert router.run("iptables_mark", rules=RULES)["changed"]
    assert stat.S_IMODE(LOCK.stat().st_mode) == 0o600
    LOCK.parent.chmod(0o1777)
    assert lock_is_free()


@pytest.mark.parametrize("variant", ["nft"])
def test_a_folder_that_takes_no_lock(router: Router) -> None:
    LOCK.unlink(missing_ok=True)
    before = router.snapshot()
    with read_only(Path("/run")):
        message = router.fail("iptables_mark", rules=RULES)
        assert router.run("iptables_mark", check=True, rules=RULES)["changed"]
    assert message == f"{LOCK}: Read-only file system"
    assert router.snapshot() == before


@pytest.mark.parametrize("variant", ["nft"])
@pytest.mark.parametrize("kind", ["file", "link", "dangling link"])
def test_somebody_was_there_before(router: Router, tmp_path: Path, kind: str) -> None:
    """Any user may write to /run/lock of the Debian family; what he puts there is neither followed nor waited for."""
    precious = tmp_path / "precious"
    precious.write_text("precious")
    LOCK.unlink(missing_ok=True)
    if kind == "file":
        LOCK.touch()
    else:
        LOCK.symlink_to(precious if kind == "link" else tmp_path / "nowhere")
    os.chown(LOCK, NOBODY, NOBODY, follow_symlinks=False)
    with open(LOCK if kind == "file" else precious) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert router.run("iptables_mark", rules=RULES, lock_timeout=0)["changed"]
    found = LOCK.lstat()
    assert (stat.S_IFMT(found.st_mode), stat.S_IMODE(found.st_mode), found.st_uid) == (stat.S_IFREG, 0o600, 0)
    assert precious.read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()


# -- tools --------------------------------------------------------------------------------------------------------


def without(router: Router, monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    """Leave only some tools to be found."""
    tools = Path("/run/few")
    shutil.rmtree(tools, ignore_errors=True)
    tools.mkdir()
    for name in ("iptables", "ip6tables"):
        for program in (f"{name}-save", f"{name}-restore"):
            if program not in missing:
                (tools / program).symlink_to(shutil.which(program, path=router.path) or "")
    router.path = str(tools)
    monkeypatch.setattr(_host, "_SBIN_PATH", os.devnull)


def test_no_ip6tables(router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules of the other family are not written either."""
    before, path = router.snapshot(), router.path
    without(router, monkeypatch, "ip6tables-save", "ip6tables-restore")
    message = router.fail("iptables_mark", rules=RULES)
    router.path = path
    assert message == "ip6tables-restore: exit status 127: it is not installed"
    assert router.snapshot() == before
    assert lock_is_free()


def test_no_nft(router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    path = router.path
    router.run("iptables_mark", rules=RULES)
    before = router.snapshot()
    without(router, monkeypatch)
    message = router.fail("lvs_service", services=[SERVICE], marking="nftables")
    router.path = path
    assert message == "nft: exit status 127: it is not installed"
    assert router.snapshot() == before
    assert before.own_rules("ipv4")[:2] == HEAD
