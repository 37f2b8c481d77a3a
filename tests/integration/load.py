# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Traffic that does not stop: real servers that answer and clients that keep asking, in processes beside the test."""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import mmap
import multiprocessing
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection

from ansible_collections.lvs.fleet.tests.integration.traffic import CLIENT, CLIENTS, PORTS, Site

FORK = multiprocessing.get_context("fork")
# At each place; so that one whose request never comes back does not leave the place alone.
CLIENTS_EACH = 2
# After so many seconds without an answer a client gives up.
PATIENCE = 20
# Between two requests of a client, so that there is processor time for what they are to meet.
PAUSE_SECONDS = 0.2
LONGEST = 60


@dataclass(frozen=True)
class Place:
    """Where clients ask."""

    family: int
    address: str
    port: int

    def connect(self, host: int) -> socket.socket:
        source = (CLIENT[self.family].format(host), 0)
        return socket.create_connection((self.address, self.port), timeout=PATIENCE, source_address=source)


@dataclass(frozen=True)
class Request:
    """One that was made: by whom, when, and what was wrong with it if anything."""

    place: Place
    source: tuple[str, int]
    begin: float
    end: float
    wrong: str


class Held:
    """A connection that stays open, and the real server at its other end."""

    def __init__(self, place: Place, connection: socket.socket) -> None:
        self.place = place
        self._connection = connection
        self.server = int(self._exchange().split()[0])

    def _exchange(self) -> bytes:
        self._connection.sendall(b"still there?\n")
        return self._connection.recv(64)

    def is_alive(self, patience: float = PATIENCE) -> bool:
        """Whether the same server still answers."""
        self._connection.settimeout(patience)
        with suppress(OSError):
            return self._exchange() == b"%d %d still there?\n" % (self.server, self.place.port)
        return False

    def close(self) -> None:
        self._connection.close()


class Load:
    """All real servers of a site at work, and at each of the places clients that ask one thing after another."""

    def __init__(self, site: Site, places: Sequence[Place]) -> None:
        self._site = site
        self._places = places
        # How often each place was asked, and whether that is to stop.
        self._shared = (ctypes.c_ulong * (len(places) + 1)).from_buffer(mmap.mmap(-1, mmap.PAGESIZE))
        self._processes = [self._start_server(number) for number in site.servers]

    def _start_server(self, number: int) -> multiprocessing.process.BaseProcess:
        with self._site.servers[number].inside():
            listeners = [
                socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128)
                for port in PORTS
            ]
            process = FORK.Process(target=_serve, args=(number, listeners), daemon=True)
            process.start()
        for listener in listeners:
            listener.close()
        return process

    def begin(self) -> None:
        self._results, results = FORK.Pipe(duplex=False)
        with self._site.client.inside():
            process = FORK.Process(target=_ask, args=(self._places, self._shared, results), daemon=True)
            process.start()
        results.close()
        self._processes.append(process)

    def wait(self) -> None:
        """Until every place was asked so often that one of the requests began after now, and is done."""
        wanted = [asked + CLIENTS_EACH + 1 for asked in self._shared]
        deadline = time.monotonic() + LONGEST
        while any(asked < enough for asked, enough in zip(self._shared[:-1], wanted, strict=False)):
            assert time.monotonic() < deadline, "the clients do not ask"
            time.sleep(PAUSE_SECONDS / 20)

    def hold(self, place: Place, server: int) -> Held:
        """A connection to this one of the real servers."""
        for host in itertools.islice(itertools.cycle(CLIENTS), 100):
            with self._site.client.inside():
                held = Held(place, place.connect(host))
            if held.server == server:
                return held
            held.close()
        raise AssertionError(f"no connection from {place} came to real server {server}")

    def end(self) -> list[Request]:
        """Every request there was."""
        self._shared[-1] = 1
        requests: list[Request] = self._results.recv()
        return requests

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()


def _serve(number: int, listeners: Sequence[socket.socket]) -> None:
    asyncio.run(_answer_all(number, listeners))


async def _answer_all(number: int, listeners: Sequence[socket.socket]) -> None:
    """Each line comes back with the number of the server and the port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        port = writer.get_extra_info("sockname")[1]
        with suppress(OSError):
            while line := await reader.readline():
                writer.write(b"%d %d %s" % (number, port, line))
        writer.close()

    for listener in listeners:
        await asyncio.start_server(answer, sock=listener)
    await asyncio.Event().wait()


def _ask(places: Sequence[Place], shared: ctypes.Array[ctypes.c_ulong], results: Connection) -> None:
    results.send(asyncio.run(_ask_all(places, shared)))


async def _ask_all(places: Sequence[Place], shared: ctypes.Array[ctypes.c_ulong]) -> list[Request]:
    requests: list[Request] = []

    async def keep_asking(number: int, place: Place) -> None:
        hosts = itertools.cycle(CLIENTS)
        while not shared[-1]:
            requests.append(await _request(place, next(hosts)))
            shared[number] += 1
            await asyncio.sleep(PAUSE_SECONDS)

    clients = [keep_asking(number, place) for number, place in enumerate(places) for _client in range(CLIENTS_EACH)]
    await asyncio.gather(*clients)
    return requests


async def _request(place: Place, host: int) -> Request:
    """A connection for one question and its answer."""
    begin, wrong = time.monotonic(), ""
    with socket.socket(place.family) as connection:
        connection.setblocking(False)
        connection.bind((CLIENT[place.family].format(host), 0))
        address, port = connection.getsockname()[:2]
        try:
            async with asyncio.timeout(PATIENCE):
                answer = await _question(connection, place)
        except OSError as error:
            wrong = str(error) or type(error).__name__
        else:
            if not answer.endswith(b" %d who?\n" % place.port):
                wrong = f"the answer was {answer!r}"
    return Request(place, (address, port), begin, time.monotonic(), wrong)


async def _question(connection: socket.socket, place: Place) -> bytes:
    loop = asyncio.get_running_loop()
    await loop.sock_connect(connection, (place.address, place.port))
    await loop.sock_sendall(connection, b"who?\n")
    return await loop.sock_recv(connection, 64)
