# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The control plane, in the bench's kernel: so many services loaded and changed in several ways.

python -m ...router FOLDER SIZE REPETITIONS prints a Comparison on each line, as JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from ansible_collections.lvs.fleet.tests.bench import shapes
from ansible_collections.lvs.fleet.tests.bench.measure import Comparison, Way, compared, seconds, show, tool
from ansible_collections.lvs.fleet.tests.bench.netlink import BATCH, Ipvs
from ansible_collections.lvs.fleet.tests.integration.harness import Namespace

PYTHON = "/usr/bin/python3"
STOCK = "ipvsadm -R, iptables-restore"
KERNEL = "netlink messages one by one, iptables-restore"
BATCHES = "netlink messages in batches, iptables-restore"
ENGINE = "lvs_service without Ansible"
MODULE = "lvs_service"
KEEPALIVED = "keepalived, without marks"
STOCK_READ = "ipvsadm -Sn, iptables-save, ip6tables-save"
LONGEST = 600


class Router:
    """The kernel we run on, with what to load into it."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder = folder
        self.size = size
        self.messages = (folder / "messages").read_bytes()
        self.expected = shapes.table(size)
        self.rules = shapes.mark_rules(size)
        # The most memory that each run of a module took, in MB, and where each run of the engine spent its time.
        self.peaks: dict[str, list[float]] = {}
        self.spent: list[dict[str, float]] = []

    # -- the state

    def check(self, marks: bool = True) -> None:
        """All services with all of their servers are there, and all rules; otherwise the figure is worth nothing."""
        assert table_now() == self.expected, "the IPVS table is not what was to be loaded"
        saved = tool("iptables-save", "-t", "mangle").splitlines()
        rules = [line for line in saved if line.startswith("-A") and not line.startswith("-A PREROUTING")]
        assert rules == (self.rules if marks else []), "the rules are not what was to be loaded"
        assert (f"-A PREROUTING -j {shapes.CHAIN}" in saved) is marks

    # -- ways to load it all

    def load_with_stock_tools(self) -> float:
        return seconds(lambda: self._feed("ipvsadm", "-R")) + seconds(self._restore_rules)

    def load_with_messages(self, batch: int) -> float:
        ipvs = Ipvs()
        batches = ipvs.batches(self.messages, batch)
        return seconds(lambda: [ipvs.send(messages) for messages in batches]) + seconds(self._restore_rules)

    def load_with_engine(self) -> float:
        self.spent.append(self.engine(changed=True))
        return self.spent[-1]["total"]

    def load_with_module(self) -> float:
        return self.module("load", changed=True)

    def load_with_keepalived(self) -> float:
        """Its services come in the order of its configuration, so the last real server tells the end."""
        ipvs = Ipvs()
        deadline = time.monotonic() + LONGEST
        begin = time.perf_counter()
        with keepalived(self.folder):
            while ipvs.count_servers(self.size) < shapes.REAL_SERVERS:
                assert time.monotonic() < deadline, "keepalived did not load it all"
                time.sleep(0.05)
            return time.perf_counter() - begin

    def _feed(self, name: str, *options: str) -> None:
        with (self.folder / name.partition("-")[0]).open() as file:
            done = subprocess.run([name, *options], stdin=file, capture_output=True, text=True, check=True)
        # ipvsadm -R exits with 0 after most failures.
        assert not done.stderr, done.stderr

    def _restore_rules(self) -> None:
        self._feed("iptables-restore", "--noflush")

    # -- ways to look and to change

    def read_with_stock_tools(self) -> float:
        def read() -> list[str]:
            return [
                tool("ipvsadm", "-Sn"),
                *(tool(f"{name}-save", "-t", "mangle") for name in ("iptables", "ip6tables")),
            ]

        return seconds(read)

    def find_nothing_to_do(self) -> float:
        return self.module("load", changed=False)

    def find_nothing_to_do_with_engine(self) -> float:
        return self.engine(changed=False)["total"]

    def change_a_weight(self) -> float:
        took = self.module("weigh", changed=True)
        server = next(shapes.servers(self.size))
        listed = tool("ipvsadm", "-Ln", "-f", str(self.size)).split(f"{server}:0", 1)[1].split()
        assert listed[:2] == ["Route", "2"], listed[:2]
        tool("ipvsadm", "-e", "-f", str(self.size), "-r", server, "-g", "-w", "1")
        return took

    def add_a_service(self) -> float:
        took = self.module("add", changed=True)
        added = self.size + 1
        assert tool("ipvsadm", "-Ln", "-f", str(added)).count("Route") == shapes.REAL_SERVERS
        rule = shapes.mark_rules(added)[-1]
        assert rule in tool("iptables-save", "-t", "mangle").splitlines()
        tool("ipvsadm", "-D", "-f", str(added))
        tool("iptables", "-t", "mangle", "-D", shapes.CHAIN, str(added))
        return took

    # -- the product

    def module(self, name: str, changed: bool) -> float:
        """Run a module as Ansible does; what it says must be true."""
        child = Path(__file__).with_name("child.py")
        found = json.loads(tool(PYTHON, child, PYTHON, self.folder / name))
        result = json.loads(found["output"])
        assert result.get("changed", False) is changed, found["output"][:2000]
        self.peaks.setdefault(name, []).append(found["peak"] / 1024)
        return float(found["seconds"])

    def engine(self, changed: bool) -> dict[str, float]:
        """Run what is inside of lvs_service; where its time went."""
        program = Path(__file__).with_name("engine.py")
        spent = json.loads(tool(PYTHON, program, self.folder / "services.json"))
        assert spent.pop("changed") is changed
        return {name: float(figure) for name, figure in spent.items()}


def table_now() -> dict[str, list[str]]:
    """The kernel's own listing: each service with its real servers, counters left out."""
    found: dict[str, list[str]] = {}
    service = ""
    for line in Path("/proc/net/ip_vs").read_text().splitlines()[3:]:
        words = line.split()
        if words[0] == "->":
            found[service].append(" ".join(words[1:4]))
        else:
            service = " ".join(words)
            found[service] = []
    return {service: sorted(servers) for service, servers in found.items()}


@contextlib.contextmanager
def keepalived(folder: Path) -> Iterator[None]:
    """keepalived with nothing but its health checking process, which loads the services."""
    files = [
        f"--use-file={folder}/keepalived.conf",
        f"--pid={folder}/main.pid",
        f"--checkers_pid={folder}/checkers.pid",
    ]
    process = subprocess.Popen(
        ["keepalived", "--dont-fork", "--no-syslog", "--check", *files],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        # Not asked to end, because it would take its services away one by one.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for leftover in folder.glob("*.pid"):
            leftover.unlink()


def on_fresh_router(way: Way, check: Callable[[], None]) -> float:
    """The figure of a way in a network namespace of its own.

    Emptying one would not do: the kernel keeps removed real servers for two minutes, and looks through all of them
    whenever one is added.
    """
    namespace = Namespace()
    try:
        with namespace.inside():
            figure = way()
            check()
            return figure
    finally:
        namespace.close()


def converging(router: Router, repetitions: int) -> Comparison:
    loading: dict[str, Way] = {
        STOCK: router.load_with_stock_tools,
        BATCHES: partial(router.load_with_messages, BATCH),
        KERNEL: partial(router.load_with_messages, 1),
        KEEPALIVED: router.load_with_keepalived,
        ENGINE: router.load_with_engine,
        MODULE: router.load_with_module,
    }
    ways: dict[str, Way] = {
        name: partial(on_fresh_router, way, partial(router.check, marks=name != KEEPALIVED))
        for name, way in loading.items()
    }
    note = "keepalived loads its services, and knows no marks; netlink messages are sent by one small loop"
    return compared(f"{router.size:,} services from empty", "s", STOCK, ways, repetitions, note)


def changing(router: Router, repetitions: int) -> Comparison:
    """With everything loaded, reading and small changes."""
    ways: dict[str, Way] = {
        STOCK_READ: router.read_with_stock_tools,
        "lvs_service without Ansible, no change": router.find_nothing_to_do_with_engine,
        "lvs_service, no change": router.find_nothing_to_do,
        "lvs_service, a weight changed": router.change_a_weight,
        "lvs_service, a service added": router.add_a_service,
        "ping, a module that does nothing": lambda: router.module("ping", changed=False),
    }
    namespace = Namespace()
    with namespace.inside():
        router.load_with_messages(BATCH)
        found = compared(f"{router.size:,} services there", "s", STOCK_READ, ways, repetitions)
        router.check()
    namespace.close()
    return found


def memory(router: Router) -> Comparison:
    """Of the runs that have been measured."""
    names = {"ping": "ping", "load": "lvs_service"}
    samples = {way: router.peaks[name] for name, way in names.items()}
    return Comparison(f"{router.size:,} services, memory of a module at its peak", "MB", "ping", samples)


def profile(router: Router) -> Comparison:
    """Where the engine's time went when it loaded them all."""
    names = {
        "total": "lvs_service without Ansible",
        "outside": "of that in the kernel and in iptables",
        "planning": "of that planning and parsing, in Python",
    }
    samples = {way: [spent[name] for spent in router.spent] for name, way in names.items()}
    note = "the rest is Python that encodes and decodes messages and shows what was done"
    return Comparison(f"{router.size:,} services from empty, what takes the time", "s", names["total"], samples, note)


def main() -> None:
    folder, size, repetitions = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    router = Router(folder, size)
    # The first of all loads kernel modules, which is no way's own time.
    on_fresh_router(partial(router.load_with_messages, BATCH), router.check)
    show(converging(router, repetitions))
    show(profile(router))
    show(changing(router, repetitions))
    show(memory(router))


if __name__ == "__main__":
    main()
