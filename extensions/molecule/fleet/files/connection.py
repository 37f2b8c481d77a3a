#!/usr/bin/env python
# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""One connection that stays open and is in use until a file appears; then its answer, or what became of it, is written.

Usage: connection.py ADDRESS FOLDER
"""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path

# A server takes a hundred headers.
HEADERS = 90
PAUSE = 5


def main(address: str, folder: Path) -> None:
    with socket.create_connection((address, 80), timeout=10) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n")
        (folder / "open").touch()
        for number in range(HEADERS):
            if (folder / "finish").exists():
                break
            connection.sendall(f"X-Still: {number}\r\n".encode())
            time.sleep(PAUSE)
        else:
            raise TimeoutError(f"nobody wanted it to finish within {HEADERS * PAUSE} s")
        connection.sendall(b"\r\n")
        answer = connection.makefile("rb").read()
    (folder / "answer").write_bytes(answer)


if __name__ == "__main__":
    try:
        main(sys.argv[1], Path(sys.argv[2]))
    except OSError as error:
        (Path(sys.argv[2]) / "answer").write_text(f"{error}\n")
