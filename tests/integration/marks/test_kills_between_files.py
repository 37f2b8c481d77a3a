# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""kill -9 on the modules that keep files, at every step that writes: each file is the old one or the new one."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from ansible_collections.lvs.fleet.plugins.module_utils._boot import files as boot_paths
from ansible_collections.lvs.fleet.plugins.module_utils._boot import machine as boot_machine
from ansible_collections.lvs.fleet.plugins.module_utils._ip import machine as ip_machine
from ansible_collections.lvs.fleet.tests.integration.child import Child, at_step, die
from ansible_collections.lvs.fleet.tests.integration.harness import Result, Router
from ansible_collections.lvs.fleet.tests.integration.marks.test_ip_objects import OTHERS, state, with_network

pytestmark = pytest.mark.parametrize("variant", ["legacy"])


def killed(step: int, run: Callable[[], Result], *within: Any) -> bool:
    """Whether the run got as far as that step, where it was killed."""

    def go() -> Result:
        at_step(step, die, [function.__code__ for function in within])
        return run()

    child = Child(go)
    answer = child.wait()
    child.wait_for_commands()
    assert answer is None or not answer.get("failed"), answer
    return answer is None


def tell(what: str, outcomes: Counter[str], capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\nkill -9 at every step of {what}: ", end="")
        print(", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items())))


# -- boot_files ---------------------------------------------------------------------------------------------------

THEIRS = "# somebody else's\n-A -t 203.0.113.80:80 -s rr\n"
MARKS = "".join(f"-A LVS-MARK -d 192.0.2.{n} -j MARK --set-mark {n}\n" for n in range(1, 200))


def inventories(folder: Path) -> list[dict[str, Any]]:
    """Between these two every kind of operation happens."""
    path = {name: f"{folder}/lvs/{name}" for name in ("marks.v4", "marks.v6", "ipvs.rules")}
    shared = {"path": f"{folder}/ipvsadm.rules", "part": "ipvsadm"}
    return [
        {
            "files": [
                {"path": path["marks.v4"], "content": MARKS},
                {"path": path["ipvs.rules"], "content": "-A -f 80\n", "mode": "0600"},
                {**shared, "content": ""},
            ],
            "enabled_units": ["lvs-restore.service"],
            "absent": [path["marks.v6"]],
        },
        {
            "files": [
                {"path": path["marks.v4"], "content": MARKS.replace("192.0.2", "198.51.100")},
                {"path": path["marks.v6"], "content": "-A LVS-MARK -d 2001:db8::1 -j MARK --set-mark 1\n"},
                {"path": path["ipvs.rules"], "content": "-A -f 80\n", "mode": "0640"},
                {**shared, "content": "-A -f 80 -s wlc\n-a -f 80 -r 10.0.0.1 -g -w 1\n"},
            ],
            "disabled_units": ["lvs-restore.service"],
        },
    ]


def tree(folder: Path) -> dict[str, tuple[int, str]]:
    """Every file and link with its mode and what it holds."""
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mode,
            os.readlink(path) if path.is_symlink() else path.read_text(),
        )
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def whole(there: dict[str, tuple[int, str]], states: Sequence[dict[str, tuple[int, str]]]) -> bool:
    """Whether each file is one of those that there should be, or a temporary that nobody reads."""
    texts = {(path, text) for state in states for path, (_mode, text) in state.items()}
    named = [(path, text) for path, (_mode, text) in there.items() if not Path(path).name.startswith(".lvs-")]
    return texts.issuperset(named)


def test_boot_files(router: Router, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "etc"
    (folder / "system").mkdir(parents=True)
    (folder / "ipvsadm.rules").write_text(THEIRS)
    runs = [partial(router.run, "boot_files", **options) for options in inventories(folder)]
    outcomes: Counter[str] = Counter()
    with (
        patch.object(boot_machine, "UNITS", f"{folder}/system"),
        patch.object(boot_machine, "WANTS", f"{folder}/system/wants"),
        patch.object(boot_paths, "WANTS", f"{folder}/system/wants"),
    ):
        states = []
        for run in (*runs, runs[0]):
            run()
            states.append(tree(folder))
        assert states.pop() == states[0] != states[1]
        step, alive = 0, 0
        while alive < 2:
            alive = 0
            for side in (1, 0):
                alive += not killed(step, runs[side])
                there = tree(folder)
                assert whole(there, states)
                outcomes["done" if there == states[side] else "as before" if there == states[1 - side] else "half"] += 1
                runs[side](lock_timeout=0)
                assert tree(folder) == states[side]
                assert not runs[side]()["changed"]
            step += 1
    tell("boot_files", outcomes, capsys)
    assert outcomes["half"] > 20


# -- ip_objects ---------------------------------------------------------------------------------------------------

COMMANDS = (
    [
        "route add local default dev lo table 100",
        "rule add fwmark 80 lookup 100 priority 100",
        "-6 rule add fwmark 80 lookup 100 priority 100",
        "address add 192.0.2.10/32 dev eth0",
    ],
    [
        "route add local default dev lo table 100",
        "rule add fwmark 81 lookup 100 priority 101",
        "address add 192.0.2.10/32 dev lo",
        "address add 2001:db8:0:10::10/128 dev eth0 nodad preferred_lft 0",
    ],
)


def test_ip_objects(router: Router, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_network(router, *OTHERS)
    record = tmp_path / "record"
    runs = [partial(router.run, "ip_objects", path=str(record), commands=commands) for commands in COMMANDS]
    states, outcomes = [], Counter[str]()
    for run in (*runs, runs[0]):
        run()
        states.append((state(router), record.read_text()))
    assert states.pop() == states[0] != states[1]
    texts = {text for _state, text in states}
    step, alive = 0, 0
    while alive < 2:
        alive = 0
        for side in (1, 0):
            alive += not killed(step, runs[side], ip_machine.execute, ip_machine.Record.write)
            there = (state(router), record.read_text())
            assert set(there[1].splitlines()) <= {line for text in texts for line in text.splitlines()}
            outcomes["done" if there == states[side] else "as before" if there == states[1 - side] else "half"] += 1
            runs[side](lock_timeout=0)
            assert (state(router), record.read_text()) == states[side]
            assert not runs[side]()["changed"]
        step += 1
    tell("ip_objects", outcomes, capsys)
    assert outcomes["half"] > 20
