#!/usr/bin/env python
# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Several FTP clients at once, each in passive and in active mode.

Usage: ftp_clients.py ADDRESS CLIENT...
Prints which real server each client met; the exit status is 0 only if all of them got what they should.
"""

from __future__ import annotations

import ftplib
import io
import sys
from concurrent.futures import ThreadPoolExecutor


class Client(ftplib.FTP):
    """A client that believes what the server says, and looks at where data connections come from and go to."""

    # Old clients go to the address of the PASV reply; new ones ignore it, which would hide a wrong one.
    trust_server_pasv_ipv4_address = True

    def makepasv(self) -> tuple[str, int]:
        host, port = super().makepasv()
        assert host == self.host, f"the PASV reply names {host} instead of {self.host}"
        return host, port

    def ntransfercmd(self, cmd: str, rest: object = None) -> tuple[object, int | None]:
        connection, size = super().ntransfercmd(cmd, rest)
        peer = connection.getpeername()[0]
        assert peer == self.host, f"the data connection is with {peer} instead of {self.host}"
        return connection, size


def session(address: str, source: str, passive: bool) -> str:
    """Upload, list and fetch in one session; the name of the real server."""
    content = f"{source} {passive}".encode()
    file = f"{source.replace(':', '-')}-{'passive' if passive else 'active'}"
    with Client(timeout=10, source_address=(source, 0)) as ftp:
        ftp.connect(address)
        ftp.login("lab", "lab")
        ftp.set_pasv(passive)
        ftp.storbinary(f"STOR {file}", io.BytesIO(content))
        assert file in ftp.nlst(), "the uploaded file is not listed"
        assert fetched(ftp, file) == content, "the uploaded file is not what was sent"
        ftp.delete(file)
        return fetched(ftp, "whoami").decode().strip()


def fetched(ftp: Client, file: str) -> bytes:
    parts: list[bytes] = []
    ftp.retrbinary(f"RETR {file}", parts.append)
    return b"".join(parts)


def meet(address: str, source: str) -> str:
    """Both modes, twice; they must meet the same real server."""
    met = {session(address, source, passive) for passive in (True, False, True, False)}
    assert len(met) == 1, f"{source} met {met}"
    return met.pop()


def main(address: str, *sources: str) -> None:
    with ThreadPoolExecutor(len(sources)) as pool:
        met = list(pool.map(lambda source: meet(address, source), sources))
    print(*(f"{source}: {server}" for source, server in zip(sources, met)), sep="\n")
    assert len(set(met)) > 1, f"all clients met {met[0]}"


if __name__ == "__main__":
    main(*sys.argv[1:])
