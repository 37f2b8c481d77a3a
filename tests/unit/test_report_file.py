# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ansible_collections.lvs.fleet.plugins.module_utils._errors import ValidationError
from ansible_collections.lvs.fleet.plugins.module_utils._report_file import write_report


def test_check_run_check_run(tmp_path: Path) -> None:
    path = tmp_path / "audit.json"
    assert not write_report(str(path), None, check_mode=False)
    assert write_report(str(path), "first\n", check_mode=True) and not path.exists()
    assert write_report(str(path), "first\n", check_mode=False)
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("first\n", 0o600)
    assert write_report(str(path), None, check_mode=True) and path.exists()
    assert write_report(str(path), None, check_mode=False) and not path.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_replaced_and_not_written_to(tmp_path: Path) -> None:
    """Its other name keeps what it had, and nobody who has it open, or may read it, gets the new one."""
    path, other = tmp_path / "audit.json", tmp_path / "other"
    other.write_text("somebody's\n")
    other.chmod(0o666)
    os.link(other, path)
    write_report(str(path), "new\n", check_mode=False)
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("new\n", 0o600)
    assert (other.read_text(), other.stat().st_mode & 0o777) == ("somebody's\n", 0o666)


@pytest.mark.parametrize("content", [None, "new\n"], ids=["remove", "write"])
@pytest.mark.parametrize("check_mode", [False, True])
def test_nothing_but_a_regular_file_is_touched(tmp_path: Path, content: str | None, check_mode: bool) -> None:
    target, folder = tmp_path / "target", tmp_path / "folder"
    target.write_text("kept\n")
    folder.mkdir()
    (folder / "kept").write_text("kept\n")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, leads_to in (("link", target), ("to-folder", folder), ("dangling", tmp_path / "nothing")):
        (tmp_path / name).symlink_to(leads_to)
    before = sorted(path for path in tmp_path.rglob("*"))
    for name in ("folder", "empty", "pipe", "link", "to-folder", "dangling"):
        with pytest.raises(ValidationError, match="is no regular file; it was left alone, take another path"):
            write_report(str(tmp_path / name), content, check_mode)
    assert sorted(path for path in tmp_path.rglob("*")) == before
    assert (target.read_text(), (folder / "kept").read_text()) == ("kept\n", "kept\n")


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("", "'' does not start at the root"),
        ("audit.json", "'audit.json' does not start at the root"),
        ("{0}/", "'{0}/' names a folder, not a file"),
        ("{0}/..", "'{0}/..' names a folder, not a file"),
        ("{0}/.", "'{0}/.' names a folder, not a file"),
        ("{0}/none/audit.json", "there is no folder '{0}/none'"),
        ("{0}/a\0", r"'{0}/a\x00' is not a path"),
    ],
)
def test_what_names_no_file(tmp_path: Path, path: str, why: str) -> None:
    with pytest.raises(ValidationError) as error:
        write_report(path.format(tmp_path), None, check_mode=False)
    assert error.value.problems == (f"path: {why.format(tmp_path)}",)
    assert tmp_path.is_dir()
