# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A run in a process of its own, for what a run may suffer: kill -9 at any step, and the want of anything."""

from __future__ import annotations

import _posixsubprocess
import ctypes
import itertools
import json
import os
import signal
import sys
from collections.abc import Callable, Collection
from types import CodeType, FrameType
from typing import Any

from ansible_collections.lvs.fleet.tests.integration.harness import Result

# What writes to the kernel, to a command or to a file.
_CALLS = frozenset(
    {_posixsubprocess.fork_exec, os.write, os.fsync, os.replace, os.unlink, os.rmdir, os.symlink, os.chmod, os.mkdir}
)
_PR_SET_CHILD_SUBREAPER = 36


def _reaches_out(called: Any) -> bool:
    return called in _CALLS or called.__name__ == "send"


def _is_within(frame: FrameType | None, codes: Collection[CodeType]) -> bool:
    while frame is not None:
        if frame.f_code in codes:
            return True
        frame = frame.f_back
    return not codes


def at_step(number: int, action: Callable[[], object], within: Collection[CodeType] = ()) -> None:
    """Have something happen when this process enters or leaves a call that writes, at that step of all of these.

    within: only calls from inside of these functions count.
    """
    steps = itertools.count()

    def look(frame: FrameType, event: str, called: Any) -> None:
        counts = event in ("c_call", "c_return") and _reaches_out(called) and _is_within(frame, within)
        if counts and next(steps) == number:
            action()

    sys.setprofile(look)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Child:
    """A function at work in a process of its own; the commands it starts are looked after, even when it is dead."""

    def __init__(self, run: Callable[[], Result]) -> None:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
        self._answer, answer = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            _run_and_exit(run, answer)
        os.close(answer)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> Result | None:
        """What the function returned, or nothing if the process was killed."""
        with os.fdopen(self._answer) as answer:
            text = answer.read()
        os.waitpid(self.pid, 0)
        return json.loads(text) if text else None

    def wait_for_commands(self) -> None:
        """Until the commands that a dead process has left at work have ended."""
        while True:
            try:
                os.waitpid(-self.pid, 0)
            except ChildProcessError:
                return


def _run_and_exit(run: Callable[[], Result], answer: int) -> None:
    """Never come back into the test that called us."""
    try:
        os.setpgid(0, 0)
        result = run()
        sys.setprofile(None)
        os.write(answer, json.dumps(result).encode())
    except BaseException as error:
        os.write(answer, json.dumps({"failed": True, "msg": f"Traceback: {error!r}"}).encode())
    finally:
        os._exit(0)
