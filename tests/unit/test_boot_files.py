# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.lvs.fleet.plugins.module_utils import _host as host
from ansible_collections.lvs.fleet.plugins.module_utils._errors import ValidationError
from ansible_collections.lvs.fleet.plugins.modules import boot_files


@pytest.fixture(autouse=True)
def units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(boot_files, "UNITS", f"{tmp_path}/system")
    monkeypatch.setattr(boot_files, "WANTS", f"{tmp_path}/system/wants")
    return tmp_path / "system"


def snapshot(folder: Path) -> dict[str, tuple[int, str]]:
    """Every path below a folder with its mode, and its text or where it leads."""
    return {
        str(path): (
            path.lstat().st_mode,
            os.readlink(path) if path.is_symlink() else path.read_text() if path.is_file() else "",
        )
        for path in sorted(folder.rglob("*"))
    }


def file(path: Path, content: str = "text\n", mode: str = "0600") -> dict[str, Any]:
    return {"path": str(path), "content": content, "mode": mode}


def test_check_run_check_run(tmp_path: Path) -> None:
    files = [file(tmp_path / "etc/lvs/marks"), file(tmp_path / "unit", mode="0644")]
    expected = [f"write {tmp_path}/etc/lvs/marks", f"write {tmp_path}/unit", "systemctl enable a.service"]
    predicted = boot_files.converge(files, ["a.service"], check_mode=True)
    assert snapshot(tmp_path) == {}
    done = boot_files.converge(files, ["a.service"], check_mode=False)
    assert done == predicted
    assert (done["changed"], done["operations"]) == (True, expected)
    after = snapshot(tmp_path)
    assert after[f"{tmp_path}/etc/lvs"][0] & 0o777 == 0o700
    assert after[f"{tmp_path}/etc/lvs/marks"] == (0o100600, "text\n")
    assert after[f"{tmp_path}/unit"] == (0o100644, "text\n")
    assert after[f"{tmp_path}/system/wants/a.service"][1] == f"{tmp_path}/system/a.service"
    for check_mode in (True, False):
        again = boot_files.converge(files, ["a.service"], check_mode)
        assert (again["changed"], again["operations"], again["diff"]) == (False, [], [])
    assert snapshot(tmp_path) == after


def test_exactly_what_differs_is_repaired(tmp_path: Path) -> None:
    texts = [tmp_path / name for name in ("content", "mode", "same")]
    files = [file(path) for path in texts]
    boot_files.converge(files, ["a.service"], check_mode=False)
    texts[0].write_text("somebody's\n")
    texts[1].chmod(0o666)
    (tmp_path / "system/wants/a.service").unlink()
    (tmp_path / "system/wants/a.service").symlink_to("/dev/null")
    result = boot_files.converge(files, ["a.service"], check_mode=False)
    assert result["operations"] == [f"write {texts[0]}", f"chmod 0600 {texts[1]}", "systemctl enable a.service"]
    assert result["previous"] == {str(texts[0]): "somebody's\n", str(texts[1]): "text\n", str(texts[2]): "text\n"}
    assert [diff["before"] for diff in result["diff"]] == ["somebody's\n", "text\n"]
    assert not boot_files.converge(files, ["a.service"], check_mode=False)["changed"]


def test_an_empty_file_is_not_an_absent_one(tmp_path: Path) -> None:
    assert boot_files.converge([file(tmp_path / "empty", "")], [], check_mode=False)["changed"]
    assert (tmp_path / "empty").read_text() == ""


def test_all_problems_at_once() -> None:
    with pytest.raises(ValidationError) as error:
        boot_files.converge([file(Path("etc/x"), mode="rw"), file(Path("/x"), mode="4755")], ["../x.service"], False)
    assert error.value.problems == (
        "files[0].path: 'etc/x' does not start at the root",
        "files[0].mode: 'rw' is not an octal mode such as '0600'",
        "files[1].mode: '4755' is not an octal mode such as '0600'",
        "enabled_units[0]: '../x.service' is not the name of a unit",
    )


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boot_files.converge([file(tmp_path / "rules", "old")], [], check_mode=False)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(host.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        boot_files.converge([file(tmp_path / "rules", "new")], [], check_mode=False)
    assert snapshot(tmp_path) == {f"{tmp_path}/rules": (0o100600, "old")}
