# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Changes under traffic: clients that ask without end and connections that stay open notice none of them.

Both ports of a mark are asked, over both families, masqueraded and by direct routing. What would be HTTPS says no TLS:
IPVS does not look inside. In the second round each run stops after each of its steps until every client has asked again
and every open connection has been used, so no state between two steps is too short to be met.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from ansible_collections.lvs.fleet.plugins.filter.fleet import ipvs_rules, marks
from ansible_collections.lvs.fleet.plugins.module_utils import _router
from ansible_collections.lvs.fleet.plugins.module_utils._model import Operation
from ansible_collections.lvs.fleet.tests.integration.harness import FAMILIES, Router
from ansible_collections.lvs.fleet.tests.integration.load import Load, Place, Request
from ansible_collections.lvs.fleet.tests.integration.shapes import service
from ansible_collections.lvs.fleet.tests.integration.traffic import PORTS, SERVER, VIRTUAL, Site

Services = list[dict[str, Any]]

RESTORE = Path(__file__).parents[3] / "roles/lvs_router/files/lvs-restore"
# By direct routing all the time; by the one method or the other.
STRAIGHT = {socket.AF_INET: "192.0.2.20", socket.AF_INET6: "2001:db8::20"}
TURNING = {socket.AF_INET: "192.0.2.40", socket.AF_INET6: "2001:db8::40"}
WEB_PLACES = [Place(family, VIRTUAL[family], port) for family in VIRTUAL for port in PORTS]
OPEN_PLACES = [*WEB_PLACES, *(Place(family, STRAIGHT[family], 80) for family in VIRTUAL)]
PLACES = [*OPEN_PLACES, *(Place(family, TURNING[family], 443) for family in VIRTUAL)]
# The real server that comes and goes.
GUEST = 3


def traffic(vips: dict[int, str], *ports: int) -> dict[str, Any]:
    return {"destination": list(vips.values()), "protocol": "tcp", "ports": list(ports)}


def real_servers(*numbers: int, **weights: int) -> Services:
    """The real servers of these numbers in both families; "server3=0" is the weight of one of them."""
    return [
        {"address": address.format(number), "weight": weights.get(f"server{number}", 1)}
        for address in SERVER.values()
        for number in numbers
    ]


def web(*ports: int, **settings: Any) -> dict[str, Any]:
    usual = {"scheduler": "rr", "forward_method": "masquerade", "real_servers": real_servers(1, 2)}
    return service("web", 80, traffic(VIRTUAL, *(ports or PORTS)), **{**usual, **settings})


def bulk(network: str) -> dict[str, Any]:
    """A service with a thousand rules."""
    hosts = [f"{network}.{number // 250}.{number % 250 + 1}" for number in range(1000)]
    return service("bulk", 92, {"destination": hosts, "protocol": "tcp", "ports": list(PORTS)})


def turning(first: dict[str, Any]) -> dict[str, Any]:
    """A service whose first real server has a method and a weight of its own."""
    servers = [{**server, **first} for server in real_servers(1)] + real_servers(2)
    return service("turning", 93, traffic(TURNING, *PORTS), scheduler="rr", real_servers=servers)


STRAIGHT_ON = service("straight", 90, traffic(STRAIGHT, *PORTS), scheduler="rr", real_servers=real_servers(1, 2))
OTHER = service("other", 91, {"destination": "192.0.2.30", "protocol": "tcp"}, real_servers=[{"address": "10.0.1.2"}])
TLS = {**web(443), "name": "tls", "fwmark": 443}


def with_web(*ports: int, **settings: Any) -> Services:
    """The usual services, with web as it is declared here."""
    return [web(*ports, **settings), STRAIGHT_ON, turning({})]


def with_turning(method: str, weight: int) -> Services:
    return [web(), STRAIGHT_ON, turning({"forward_method": method, "weight": weight})]


BASE = with_web()
WITH_GUEST = with_web(real_servers=real_servers(1, 2, GUEST))
DRAINED = with_web(real_servers=real_servers(1, 2, GUEST, server3=0))

# Each goes on from the one before it, and the last leads back to where the first one began.
CHANGES: list[tuple[str, Services]] = [
    ("nothing", BASE),
    ("weight", with_web(real_servers=real_servers(1, 2, server1=5))),
    ("weight", BASE),
    ("scheduler", with_web(scheduler="wlc")),
    ("scheduler", BASE),
    ("persistence", with_web(persistence_timeout=300)),
    ("persistence", BASE),
    ("server added", WITH_GUEST),
    ("server removed", BASE),
    ("server added", WITH_GUEST),
    ("server drained", DRAINED),
    ("drained server removed", BASE),
    ("service added", [*BASE, OTHER]),
    ("service removed", BASE),
    ("ports", with_web(*PORTS, 8080)),
    ("ports", BASE),
    ("server drained", with_turning("direct", 0)),
    ("drained server to masquerade", with_turning("masquerade", 1)),
    ("server drained", with_turning("masquerade", 0)),
    ("drained server to direct", BASE),
    ("1,000 rules added", [bulk("10.201"), *BASE]),
    ("1,000 rules for 1,000 others", [bulk("10.202"), *BASE]),
    ("1,000 rules removed", BASE),
]
# At full speed a request may be on its way through the service that goes.
SLOW_CHANGES = [("port to a service of its own", [*with_web(80), TLS]), ("port back from there", BASE)]
# Whether runs stop after each of their steps.
SPEEDS = (False, True)


@dataclass
class Row:
    """What happened during all changes of a kind."""

    times: int = 0
    requests: int = 0
    failed: int = 0
    gone: int = 0
    used: int = 0
    broken: int = 0
    cut: int = 0


class Trial:
    """A site under load, with a record of what happened during which change."""

    def __init__(self, site: Site, load: Load) -> None:
        self.router = site.router
        self.load = load
        self.held = [load.hold(place, server) for place in OPEN_PLACES for server in (1, 2)]
        self.rows: dict[str, Row] = {}
        self.windows: list[tuple[str, float, float]] = []
        # Clients, by address and port, whose connection was with the guest when it was removed.
        self.gone: set[tuple[str, int]] = set()
        self.failures: list[str] = []

    def change(self, what: str, make: Callable[[], None]) -> None:
        """Make a change and see what the open connections think of it, during it and afterwards."""
        row = self.rows.setdefault(what, Row())
        lost = [held for held in self.held if what.endswith("server removed") and held.server == GUEST]
        self.held = [held for held in self.held if held not in lost]
        begin = time.monotonic()
        make()
        self.windows.append((what, begin, time.monotonic()))
        row.times += 1
        self.use(row)
        if what == "server added":
            self.held += [self.load.hold(place, GUEST) for place in WEB_PLACES]
        row.cut += sum(not held.is_alive(patience=0.1) for held in lost)
        if lost:
            self.gone |= connections_with(self.router, GUEST)
        self.load.wait()

    def use(self, row: Row) -> None:
        """Say something on every connection; one that is broken is not asked again."""
        alive = [held for held in self.held if held.is_alive()]
        row.used += len(alive)
        row.broken += len(self.held) - len(alive)
        self.held = alive

    @contextmanager
    def slowly(self, what: str) -> Iterator[None]:
        """Runs stop after each of their steps."""
        write = _router.Router.write
        row = self.rows.setdefault(what, Row())

        def stop_after_each(router: _router.Router, operations: Sequence[Operation]) -> Iterator[int]:
            for done in write(router, operations):
                self.load.wait()
                self.use(row)
                yield done

        with patch.object(_router.Router, "write", stop_after_each):
            yield

    def account(self, requests: list[Request]) -> None:
        """Sort the requests into the changes that they met; a failure counts for the first of them."""
        for request in requests:
            met = [what for what, begin, end in self.windows if request.begin < end and begin < request.end]
            for what in met:
                self.rows[what].requests += 1
            if request.wrong:
                row = self.rows.setdefault(met[0] if met else "(between changes)", Row())
                row.gone += request.source in self.gone
                row.failed += request.source not in self.gone
                said = f"{request.place} after {request.end - request.begin:.1f} s: {request.wrong}"
                self.failures += [] if request.source in self.gone else [f"{', '.join(met)}: {said}"]

    def table(self) -> str:
        columns = ("change", "times", "requests", "failed", "gone", "used", "broken", "cut")
        line = "{:<30}" + "{:>9}" * 7
        rows = [line.format(what, *(f"{value:,}" for value in vars(row).values())) for what, row in self.rows.items()]
        return "\n".join(["", line.format(*columns), *rows, LEGEND])


LEGEND = """\
requests: asked during these changes; failed: those of clients that had nothing to do with a removed server; gone: those
on their way to it. used: how often an open connection did its work during or after a change; broken: how many did not;
cut: those that were with the server that was removed."""


def connections_with(router: Router, server: int) -> set[tuple[str, int]]:
    """The clients that the kernel has connections for with a real server."""
    found = set()
    addresses = {address.format(server) for address in SERVER.values()}
    for words in map(str.split, router.tool("ipvsadm", "-Lnc").splitlines()[2:]):
        (client, port), (destination, _port) = (words[place].rsplit(":", 1) for place in (3, 5))
        if destination.strip("[]") in addresses:
            found.add((client.strip("[]"), int(port)))
    return found


@pytest.fixture
def trial(router: Router) -> Iterator[Trial]:
    site = Site(router, (1, 2, GUEST))
    direct = [*STRAIGHT.values(), *TURNING.values()]
    for address in direct:
        router.tool("ip", "addr", "add", address, "dev", "lo")
    site.answer_directly(*direct)
    router.run("lvs_service", services=BASE)
    load = Load(site, PLACES)
    try:
        found = Trial(site, load)
        load.begin()
        yield found
    finally:
        load.close()
        site.close()


def restore_unit(router: Router, folder: Path) -> Callable[[], None]:
    """What restarting lvs-restore.service does, with files elsewhere."""
    (folder / "ipvs.rules").write_text(ipvs_rules(BASE))
    for family, version in zip(FAMILIES, ("v4", "v6"), strict=True):
        (folder / f"marks.{version}").write_text(marks(BASE, family))
    script = folder / "lvs-restore"
    script.write_text(RESTORE.read_text().replace("/etc/lvs/", f"{folder}/"))

    def restart() -> None:
        assert router.tool("sh", str(script)) == ""

    return restart


def ours(router: Router) -> tuple[list[str], ...]:
    snapshot = router.snapshot()
    return (*(snapshot.own_rules(family) for family in FAMILIES), snapshot.services())


def test_hitless(trial: Trial, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every kind of change, in turns: no request fails but what was on its way to a server that went, no connection
    breaks but those with it."""
    router = trial.router
    restart = restore_unit(router, tmp_path)

    def run(services: Services, changed: bool) -> None:
        assert router.run("lvs_service", services=services, diff=False)["changed"] is changed

    for slow in SPEEDS:
        for what, services in [*CHANGES, *(SLOW_CHANGES if slow else [])]:
            with trial.slowly(what) if slow else nullcontext():
                trial.change(what, partial(run, services, what != "nothing"))
        before = ours(router)
        trial.change("restore unit restarted", restart)
        assert ours(router) == before
    trial.load.wait()
    trial.account(trial.load.end())
    with capsys.disabled():
        print(trial.table())
    rows = trial.rows
    assert trial.failures == []
    assert {what: row for what, row in rows.items() if row.failed or row.broken} == {}
    assert all(row.gone == 0 for what, row in rows.items() if what != "server removed")
    assert all(row.requests >= len(PLACES) and row.times for row in rows.values())
    assert len(trial.held) == 2 * len(OPEN_PLACES)
    assert rows["server removed"].cut == rows["drained server removed"].cut == len(SPEEDS) * len(WEB_PLACES)


def test_what_would_be_seen(trial: Trial) -> None:
    """The other test can fail: clients notice a table that is emptied and filled again, connections outlast it."""

    def flush_and_fill() -> None:
        trial.router.tool("ipvsadm", "-C")
        trial.load.wait()
        assert trial.router.run("lvs_service", services=BASE)["changed"]

    trial.change("flushed", flush_and_fill)
    trial.load.wait()
    trial.account(trial.load.end())
    assert trial.rows["flushed"].failed >= len(PLACES)
    assert trial.rows["flushed"].broken == 0
