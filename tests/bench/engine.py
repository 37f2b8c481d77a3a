# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What lvs_service does, without Ansible around it: converge to the services in a file, and say where the time went.

Prints seconds as JSON: "total" from the services as a user gives them to the result; of these, "outside" in the kernel
and in other processes, and "planning" in Python functions that only turn values into values.
"""

from __future__ import annotations

import gc
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible_collections.lvs.fleet.plugins.module_utils import _engine, _plan, _router
from ansible_collections.lvs.fleet.plugins.module_utils._declared import params as _params
from ansible_collections.lvs.fleet.plugins.module_utils._ipvs import machine as ipvs_machine
from ansible_collections.lvs.fleet.plugins.module_utils._marks import iptables as _iptables
from ansible_collections.lvs.fleet.plugins.module_utils._marks import machine as marks_machine


class Stopwatch:
    """The time spent inside of the functions it was put around, without what another watch took meanwhile."""

    def __init__(self, without: Stopwatch | None = None) -> None:
        self.seconds = 0.0
        self.without = without

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            begin, excluded = time.perf_counter(), self._excluded()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds += time.perf_counter() - begin - (self._excluded() - excluded)

        return timed

    def _excluded(self) -> float:
        return self.without.seconds if self.without else 0.0


OUTSIDE = Stopwatch()
PLANNING = Stopwatch(without=OUTSIDE)


class TimedSocket(socket.socket):
    """A socket on which the time is taken."""

    send = OUTSIDE.around(socket.socket.send)
    recv = OUTSIDE.around(socket.socket.recv)
    recv_into = OUTSIDE.around(socket.socket.recv_into)


def watch() -> None:
    """Put the watches around what leaves Python, and around the pure core's part from options to operations."""
    socket.socket = TimedSocket
    subprocess.run = OUTSIDE.around(subprocess.run)
    for module, name in (
        (_params, "virtual_services"),
        (_plan, "virtual_services_target"),
        (_engine, "plan"),
        (_engine, "apply"),
        (marks_machine, "parse_chain"),
        (ipvs_machine, "pools_of"),
    ):
        setattr(module, name, PLANNING.around(getattr(module, name)))


def converge(given: list[dict[str, Any]]) -> bool:
    """As the module's main() does; whether anything was changed."""
    declared = _params.virtual_services(given)

    def target(current: Any) -> Any:
        return _plan.virtual_services_target(current, declared, "owned")

    chains, nat = _iptables.mark_chains(), _iptables.snat_chains()
    with _router.Router(chains, ipvs=True, if_readable=nat, nftables=True) as router:
        result = _engine.converge(router, target, check_mode=False, lock_timeout=30).result(with_diff=False)
    return bool(result["changed"])


def main() -> None:
    # As in the module's main().
    gc.disable()
    given = json.loads(Path(sys.argv[1]).read_text())
    watch()
    begin = time.perf_counter()
    changed = converge(given)
    total = time.perf_counter() - begin
    print(json.dumps({"total": total, "outside": OUTSIDE.seconds, "planning": PLANNING.seconds, "changed": changed}))


if __name__ == "__main__":
    main()
