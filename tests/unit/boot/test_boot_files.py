# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.lvs.fleet.plugins.module_utils import _host as host
from ansible_collections.lvs.fleet.plugins.module_utils._boot import files as boot_paths
from ansible_collections.lvs.fleet.plugins.module_utils._boot import machine as boot_machine
from ansible_collections.lvs.fleet.plugins.module_utils._errors import LvsError, ValidationError
from ansible_collections.lvs.fleet.plugins.modules import boot_files
from ansible_collections.lvs.fleet.tests.unit.fake_kernel import FakeKernel
from ansible_collections.lvs.fleet.tests.unit.running import run_module


@pytest.fixture(autouse=True)
def units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(boot_machine, "UNITS", f"{tmp_path}/system")
    for module in (boot_machine, boot_paths):
        monkeypatch.setattr(module, "WANTS", f"{tmp_path}/system/wants")
    monkeypatch.setattr(boot_machine, "OWN_FOLDER", f"{tmp_path}/lvs")
    return tmp_path / "system"


@pytest.fixture(autouse=True)
def lock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How long each run that may write would have waited for the others."""
    taken: list[int] = []
    WARNINGS.clear()

    @contextmanager
    def take(timeout: int, warn: Callable[[str], None]) -> Iterator[None]:
        taken.append(timeout)
        if timeout == 99:
            warn("waited")
        yield

    monkeypatch.setattr(host, "lock", take)
    return taken


def snapshot(folder: Path) -> dict[str, tuple[int, str]]:
    """Every path below a folder with its mode, and its text or where it leads."""
    return {
        str(path): (
            path.lstat().st_mode,
            os.readlink(path) if path.is_symlink() else path.read_text() if path.is_file() else "",
        )
        for path in sorted(folder.rglob("*"))
    }


WARNINGS: list[str] = []


def file(path: Path, content: str = "text\n", mode: str = "0600", part: str | None = None) -> dict[str, Any]:
    return {"path": str(path), "content": content, "mode": mode, "part": part}


def converge(files: list[dict[str, Any]], *units: str, check_mode: bool = False, **options: Any) -> dict[str, Any]:
    rest = {"enabled_units": list(units), "disabled_units": [], "absent": [], "lock_timeout": 30, **options}
    return boot_machine.converge({"files": files, **rest}, check_mode, WARNINGS.append)


def test_check_run_check_run(tmp_path: Path) -> None:
    files = [file(tmp_path / "etc/lvs/marks"), file(tmp_path / "unit", mode="0644")]
    expected = [f"write {tmp_path}/etc/lvs/marks", f"write {tmp_path}/unit", "systemctl enable a.service"]
    predicted = converge(files, "a.service", check_mode=True)
    assert snapshot(tmp_path) == {}
    done = converge(files, "a.service")
    assert done == predicted
    assert (done["changed"], done["operations"]) == (True, expected)
    after = snapshot(tmp_path)
    assert after[f"{tmp_path}/etc/lvs"][0] & 0o777 == 0o700
    assert after[f"{tmp_path}/etc/lvs/marks"] == (0o100600, "text\n")
    assert after[f"{tmp_path}/unit"] == (0o100644, "text\n")
    assert after[f"{tmp_path}/system/wants/a.service"][1] == f"{tmp_path}/system/a.service"
    for check_mode in (True, False):
        again = converge(files, "a.service", check_mode=check_mode)
        assert (again["changed"], again["operations"], again["diff"]) == (False, [], [])
    assert snapshot(tmp_path) == after


def test_exactly_what_differs_is_repaired(tmp_path: Path) -> None:
    texts = [tmp_path / name for name in ("content", "mode", "same")]
    files = [file(path) for path in texts]
    converge(files, "a.service")
    texts[0].write_text("somebody's\n")
    texts[1].chmod(0o666)
    (tmp_path / "system/wants/a.service").unlink()
    (tmp_path / "system/wants/a.service").symlink_to("/dev/null")
    result = converge(files, "a.service")
    assert result["operations"] == [f"write {texts[0]}", f"chmod 0600 {texts[1]}", "systemctl enable a.service"]
    assert [diff["before"] for diff in result["diff"]] == ["somebody's\n", "text\n"]
    assert not converge(files, "a.service")["changed"]


def test_an_empty_file_is_not_an_absent_one(tmp_path: Path) -> None:
    assert converge([file(tmp_path / "empty", "")])["changed"]
    assert (tmp_path / "empty").read_text() == ""


def test_all_problems_at_once() -> None:
    files = [
        file(Path("etc/x"), mode="rw"),
        file(Path("/x"), mode="4755"),
        file(Path("/y"), "# END lvs.fleet\n", part="settings"),
        file(Path("/z"), "-A PREROUTING -j ACCEPT\n", part="iptables"),
        file(Path("/etc/\0"), "\ud800"),
    ]
    with pytest.raises(ValidationError) as error:
        converge(files, "../x.service", disabled_units=["y"], absent=["etc", "/\ud800"])
    assert error.value.problems == (
        "files[0].path: 'etc/x' does not start at the root",
        "files[0].mode: 'rw' is not an octal mode such as '0600'",
        "files[1].mode: '4755' is not an octal mode such as '0600'",
        "files[2].content: '# END lvs.fleet' is a line that this module writes",
        "files[3].content: not one table with chains, their rules and the jumps to them: '-A PREROUTING -j ACCEPT\\n'",
        "files[4].path: '/etc/\\x00' is not a path",
        "files[4].content: has characters that no file can hold",
        "absent[0]: 'etc' does not start at the root",
        "absent[1]: '/\\ud800' is not a path",
        "enabled_units[0]: '../x.service' is not the name of a unit",
        "disabled_units[0]: 'y' is not the name of a unit",
    )


@pytest.mark.parametrize("part", [{}, {"part": "iptables"}])
def test_no_content_is_not_an_empty_one(part: dict[str, str]) -> None:
    """A template that comes out as null would empty the file, or take our part out of it."""
    answer = run_module(boot_files, FakeKernel(), files=[{"path": "/etc/lvs/marks.v4", "content": None, **part}])
    assert answer["failed"] and answer["msg"] == "files[0].content: None is not a text"


def test_files_that_cannot_take_our_part(tmp_path: Path) -> None:
    """All of them are told, and nothing is written."""
    for name in ("a", "b"):
        (tmp_path / name).write_text("*mangle\n-A INPUT -j ACCEPT\n")
    before = snapshot(tmp_path)
    files = [file(tmp_path / "first"), *(file(tmp_path / name, RULES, part="iptables") for name in ("a", "b"))]
    with pytest.raises(ValidationError) as error:
        converge(files)
    message = "table mangle has no COMMIT, so iptables-restore would load nothing of it"
    assert error.value.problems == tuple(f"{tmp_path}/{name}: {message}" for name in ("a", "b"))
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("kind", ["link", "owner", "group"])
def test_a_file_of_right_content_that_is_not_roots_is_made_anew(tmp_path: Path, kind: str) -> None:
    """What root runs at boot is root's own, and what a link led to stays as it is, and unread."""
    path, theirs = tmp_path / "lvs-restore", tmp_path / "theirs"
    theirs.write_text("text\n")
    if kind == "link":
        path.symlink_to(theirs)
    elif os.geteuid():
        pytest.skip("takes root")
    else:
        # A folder may give its group to what is made in it.
        os.chown(tmp_path, -1, 1000)
        tmp_path.chmod(0o2700)
        path.write_text("text\n")
        path.chmod(0o600)
        os.chown(path, 1000 if kind == "owner" else 0, 1000)
    inode = path.lstat().st_ino
    predicted = converge([file(path)], check_mode=True)
    assert converge([file(path)]) == predicted
    assert predicted["operations"] == [f"write {path}"]
    assert (path.is_symlink(), path.lstat().st_uid, path.read_text()) == (False, os.geteuid(), "text\n")
    assert path.lstat().st_gid == os.getegid()
    assert path.lstat().st_ino != inode and theirs.read_text() == "text\n"
    assert not converge([file(path)])["changed"]


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o2700, 0o500])
def test_our_own_folder_is_for_root_alone(tmp_path: Path, mode: int) -> None:
    """And others are the distribution's, with their modes."""
    for name in ("lvs", "sysctl.d"):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(mode)
    files = [file(tmp_path / "lvs/marks.v4"), file(tmp_path / "sysctl.d/90-lvs-fleet.conf")]
    predicted = converge(files, check_mode=True)
    assert converge(files) == predicted
    assert predicted["operations"][0] == f"chmod 0700 {tmp_path}/lvs" and len(predicted["operations"]) == 3
    assert [host.mode_of(f"{tmp_path}/{name}") for name in ("lvs", "sysctl.d")] == [0o700, mode]
    assert not converge(files)["changed"]


@pytest.mark.parametrize("kind", ["link", "mode", "owner", "file"])
def test_a_folder_in_which_others_write_is_refused(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "lvs"
    (tmp_path / "elsewhere").mkdir()
    if kind == "link":
        folder.symlink_to("elsewhere")
    elif kind == "file":
        folder.write_text("")
    else:
        folder.mkdir()
        folder.chmod(0o777 if kind == "mode" else 0o700)
    if kind == "owner":
        if os.geteuid():
            pytest.skip("takes root")
        os.chown(folder, 1000, 1000)
    before = snapshot(tmp_path)
    for check_mode in (True, False):
        with pytest.raises(ValidationError, match=f"{folder}"):
            converge([file(folder / "marks.v4")], check_mode=check_mode)
    assert snapshot(tmp_path) == before


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """A pipe would never come to its end."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValidationError) as error:
        converge([file(tmp_path / "pipe"), file(tmp_path / "folder")])
    assert len(error.value.problems) == 2


RULES = "*mangle\n:LVS-MARK - [0:0]\n-A PREROUTING -j LVS-MARK\nCOMMIT\n"


def test_one_way_takes_the_place_of_another(tmp_path: Path) -> None:
    """New files, links on, links off, our parts of old files, old files, their folders: each after the one before."""
    unit, rules, new, folder = (tmp_path / name for name in ("system/a.service", "rules", "new", "dropped.d"))
    rules.write_text("# somebody's\n")
    old = [file(rules, RULES, part="iptables"), file(tmp_path / "made", RULES, part="iptables"), file(unit)]
    converge([*old, file(folder / "x.conf")], "a.service")
    assert (tmp_path / "made").read_text() == f"# Created by lvs.fleet\n{RULES}"
    way: dict[str, Any] = {
        "files": [file(rules, "", part="iptables"), file(tmp_path / "made", "", part="iptables"), file(new)],
        "enabled_units": ["b.service"],
        "disabled_units": ["a.service"],
        "absent": [str(unit), str(folder / "x.conf"), str(folder)],
    }
    before = snapshot(tmp_path)
    predicted = converge(check_mode=True, **way)
    assert snapshot(tmp_path) == before
    assert converge(**way) == predicted
    assert predicted["operations"] == [
        f"write {new}",
        "systemctl enable b.service",
        "systemctl disable a.service",
        f"write {rules}",
        f"remove {tmp_path}/made",
        f"remove {unit}",
        f"remove {folder}/x.conf",
        f"remove {folder}",
    ]
    assert [diff["after_header"] for diff in predicted["diff"]] == [
        f"{new} (0600)",
        f"{rules} (our part)",
        f"{tmp_path}/made (absent)",
        f"{unit} (absent)",
        f"{folder}/x.conf (absent)",
    ]
    assert rules.read_text() == "# somebody's\n"
    assert {path.name for path in tmp_path.rglob("*")} == {"rules", "new", "system", "wants", "b.service"}
    assert not converge(**way)["changed"]


def test_what_a_terminal_would_act_on_is_an_escape_in_a_diff(tmp_path: Path) -> None:
    """Lines of other people, and what was in our place; the file itself keeps every byte."""
    theirs = tmp_path / "theirs"
    theirs.write_bytes(b"#\tx\x1b[2J\xc2\x85\xe2\x80\xa8\r\n")
    diffs = converge([file(theirs, "-C\n", part="ipvsadm")])["diff"] + converge([file(theirs)])["diff"]
    assert [diff["before"].split("\n")[0] for diff in diffs] == ["#\tx\\x1b[2J\\x85\\u2028\\r"] * 2


def test_a_folder_stays_for_what_somebody_keeps_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "x.service.d"
    converge([file(folder / "ours.conf"), file(folder / "own.conf")])
    for check_mode in (True, False):
        done = converge([], check_mode=check_mode, absent=[str(folder / "ours.conf"), str(folder)])
        assert done["operations"] == [f"remove {folder}/ours.conf"]
    assert [path.name for path in folder.iterdir()] == ["own.conf"]


def test_somebody_elses_file_keeps_what_is_his(tmp_path: Path) -> None:
    """Its link, owner, permissions and bytes, be they text or not."""
    theirs, linked = tmp_path / "theirs", tmp_path / "linked"
    theirs.write_bytes(b"# caf\xe9\r\n-A X\x0c\n")
    theirs.chmod(0o640)
    if not os.geteuid():
        os.chown(theirs, 7, 8)
    linked.symlink_to("theirs")
    owner = (theirs.stat().st_uid, theirs.stat().st_gid)
    done = converge([file(linked, "-C\n", part="ipvsadm")])
    assert done["operations"] == [f"write {linked}"]
    assert json.loads(json.dumps(done))["diff"][0]["before"] == "# caf\ufffd\\r\n-A X\\x0c\n"
    assert linked.is_symlink()
    assert theirs.read_bytes() == b"# caf\xe9\r\n-A X\x0c\n# BEGIN lvs.fleet\n-C\n# END lvs.fleet\n"
    assert (theirs.stat().st_mode & 0o777, theirs.stat().st_uid, theirs.stat().st_gid) == (0o640, *owner)
    assert not converge([file(linked, "-C\n", part="ipvsadm")])["changed"]
    converge([file(linked, "", part="ipvsadm")])
    assert theirs.read_bytes() == b"# caf\xe9\r\n-A X\x0c\n"


def fail_at(monkeypatch: pytest.MonkeyPatch, place: int, error: Exception | None = None) -> list[str]:
    """Have one operation of a run fail, or none; the list of all that were begun."""
    begun: list[str] = []
    do = boot_machine.Changes.do

    def failing(changes: boot_machine.Changes, operation: str, action: Any, path: str, *arguments: Any) -> None:
        begun.append(operation)
        do(changes, operation, fail if len(begun) - 1 == place else action, path, *arguments)

    def fail(*_arguments: Any) -> None:
        raise error or OSError(28, "No space left on device")

    monkeypatch.setattr(boot_machine.Changes, "do", failing)
    return begun


def settle_everything(tmp_path: Path) -> dict[str, Any]:
    """Something to change in every way there is; the options that change it."""
    system, folder = tmp_path / "system", tmp_path / "dropped.d"
    for ours in (folder, tmp_path / "lvs"):
        ours.mkdir()
        ours.chmod(0o750)
    (system / "wants").mkdir(parents=True)
    (system / "wants/off.service").symlink_to("/nowhere/off.service")
    (system / "wants/elsewhere.service").symlink_to("/dev/null")
    for name in ("theirs", "part", "dropped.d/x.conf", "mode", "both", "gone", ".lvs-abcdefgh"):
        (tmp_path / name).write_text(f"{name}\n")
        (tmp_path / name).chmod(0o640)
    (tmp_path / "part").write_text("# BEGIN lvs.fleet\n-C\n# END lvs.fleet\n")
    return {
        "files": [
            file(tmp_path / "deep/new"),
            file(tmp_path / "lvs/vips"),
            file(tmp_path / "mode", "mode\n"),
            file(tmp_path / "both"),
            file(tmp_path / "theirs", "-C\n", part="ipvsadm"),
            file(tmp_path / "part", "", part="ipvsadm"),
        ],
        "enabled_units": ["on.service", "elsewhere.service"],
        "disabled_units": ["off.service"],
        "absent": [str(tmp_path / "gone"), str(folder / "x.conf"), str(folder)],
    }


COUNT = 15


@pytest.mark.parametrize("place", range(COUNT))
def test_refused_at_any_operation_all_is_as_before(place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    way = settle_everything(tmp_path)
    before = snapshot(tmp_path)
    begun = fail_at(monkeypatch, place)
    with pytest.raises(LvsError) as caught:
        converge(**way)
    assert len(begun) == place + 1
    told = f"The {place} operations done until then were undone; the files are as they were before."
    last = told if place else "Nothing had been changed."
    assert str(caught.value) == f"[Errno 28] No space left on device\n{last}"
    left = {path: found for path, found in snapshot(tmp_path).items() if path not in before}
    assert set(left) <= {f"{tmp_path}/deep"}, "only a folder may stay"
    assert {path: found for path, found in snapshot(tmp_path).items() if path in before} == before


def test_undisturbed_it_is_as_many_operations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = fail_at(monkeypatch, -1)
    assert converge(**settle_everything(tmp_path))["operations"] == begun
    assert len(begun) == COUNT


def test_a_mistake_of_ours_is_undone_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    way = settle_everything(tmp_path)
    before = snapshot(tmp_path)
    fail_at(monkeypatch, 1, MemoryError())
    with pytest.raises(LvsError, match=r"^MemoryError: \nThe 1 operations done until then were undone"):
        converge(**way)
    assert snapshot(tmp_path) == before


def test_when_going_back_fails_as_well_the_message_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    way = settle_everything(tmp_path)
    fail_at(monkeypatch, 12)
    symlink = os.symlink
    monkeypatch.setattr(host.os, "symlink", lambda to, at: refuse(at) if "/off" in to else symlink(to, at))
    with pytest.raises(LvsError) as caught:
        converge(**way)
    assert str(caught.value) == (
        "[Errno 28] No space left on device\nGoing back failed as well, so the files are half changed "
        "(12 operations were done): [Errno 13] Permission denied: " + repr(f"{tmp_path}/system/wants/off.service")
    )


def refuse(path: str) -> None:
    raise PermissionError(13, "Permission denied", path)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converge([file(tmp_path / "rules", "old")])

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(host.os, "fsync", full)
    with pytest.raises(LvsError) as caught:
        converge([file(tmp_path / "rules", "new")])
    assert str(caught.value) == f"[Errno 28] No space left on device: '{tmp_path}/rules'\nNothing had been changed."
    assert snapshot(tmp_path) == {f"{tmp_path}/rules": (0o100600, "old")}


# -- other writers ------------------------------------------------------------------------------------------------


def test_writers_take_turns_and_check_mode_takes_no_lock(tmp_path: Path, lock: list[int]) -> None:
    converge([file(tmp_path / "x")], check_mode=True, lock_timeout=5)
    assert lock == []
    converge([file(tmp_path / "x")], lock_timeout=6)
    assert WARNINGS == []
    converge([file(tmp_path / "x")], lock_timeout=99)
    assert (lock, WARNINGS) == ([6, 99], ["waited"])


def test_what_a_killed_writer_left_goes_and_nothing_like_it(tmp_path: Path) -> None:
    for name in (".lvs-abc_1234", ".lvs-short", ".lvs-abcdefgh.conf", "x.lvs-abcdefgh"):
        (tmp_path / name).write_text("")
    for check_mode in (True, False):
        done = converge([file(tmp_path / "x")], check_mode=check_mode, absent=["/no/such/folder"])
        assert done["operations"] == [f"remove {tmp_path}/.lvs-abc_1234", f"write {tmp_path}/x"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".lvs-abcdefgh.conf", ".lvs-short", "x", "x.lvs-abcdefgh",
    ]  # fmt: skip
