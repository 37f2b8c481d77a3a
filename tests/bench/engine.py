# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What lvs_service does, without Ansible around it: converge to the services in a file, and say where the time went.

Prints seconds as JSON: "total" from the services as a user gives them to the result; of these "outside" in the kernel
and in other processes. The rest is Python.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible_collections.lvs.fleet.plugins.module_utils import _engine, _iptables, _params, _plan, _router


class Stopwatch:
    """The time spent inside of the functions it was put around."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds += time.perf_counter() - begin

        return timed


def watch_outside() -> Stopwatch:
    """Time what leaves Python: messages to the kernel, and commands."""
    watch = Stopwatch()

    class TimedSocket(socket.socket):
        send = watch.around(socket.socket.send)
        recv = watch.around(socket.socket.recv)
        recv_into = watch.around(socket.socket.recv_into)
        sendmsg = watch.around(socket.socket.sendmsg)
        recvmsg = watch.around(socket.socket.recvmsg)

    socket.socket = TimedSocket  # type: ignore[misc]
    subprocess.run = watch.around(subprocess.run)
    return watch


def converge(given: list[dict[str, Any]]) -> dict[str, Any]:
    """As the module's main() does."""
    declared = _params.virtual_services(given)
    chains = _iptables.mark_chains()
    with _router.Router(chains, ipvs=True, if_readable=_iptables.snat_chains()) as router:
        outcome = _engine.converge(
            router, lambda current: _plan.virtual_services_target(current, declared, "owned"), False, 30
        )
    return outcome.result(with_diff=False)


def main() -> None:
    given = json.loads(Path(sys.argv[1]).read_text())
    watch = watch_outside()
    begin = time.perf_counter()
    result = converge(given)
    total = time.perf_counter() - begin
    print(json.dumps({"total": total, "outside": watch.seconds, "changed": result["changed"]}))


if __name__ == "__main__":
    main()
