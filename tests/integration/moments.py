# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The moments of a run: each time that a module is about to turn to the kernel, by a command or by netlink."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from ansible_collections.lvs.fleet.plugins.module_utils import _host
from ansible_collections.lvs.fleet.plugins.module_utils._netlink.machine import GenericSocket

_DOORS: tuple[tuple[Any, str], ...] = ((_host, "attempt"), (GenericSocket, "dump"), (GenericSocket, "request"))


@contextmanager
def at_each_moment(happens: Callable[[], object]) -> Iterator[None]:
    """Have something happen at each moment of the runs in here."""

    def with_that(door: Callable[..., Any]) -> Callable[..., Any]:
        def go_through(*arguments: Any) -> Any:
            happens()
            return door(*arguments)

        return go_through

    with ExitStack() as doors:
        for place, name in _DOORS:
            doors.enter_context(patch.object(place, name, with_that(getattr(place, name))))
        yield


class Interruption:
    """Something that happens once, at this moment of a run."""

    def __init__(self, moment: int, happens: Callable[[], object]) -> None:
        self._left = moment
        self._happens = happens
        self.happened = False

    def __call__(self) -> None:
        if not self.happened and not self._left:
            self.happened = True
            self._happens()
        self._left -= 1
