#!/usr/bin/env python
# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A connection that stays open while a router is changed.

Usage: held_connection.py ADDRESS FILE
Connects to port 80, waits for FILE to appear, then sends a request over that same connection and prints the answer.
"""

from __future__ import annotations

import http.client
import sys
import time
from pathlib import Path

PATIENCE = 300


def main(address: str, file: str) -> None:
    connection = http.client.HTTPConnection(address, timeout=10)
    connection.connect()
    # Another one would be opened instead of this one otherwise.
    connection.auto_open = 0
    Path(f"{file}.open").touch()
    deadline = time.monotonic() + PATIENCE
    while not Path(file).exists():
        if time.monotonic() > deadline:
            sys.exit(f"no {file} within {PATIENCE} s")
        time.sleep(0.1)
    connection.request("GET", "/")
    print(connection.getresponse().read().decode().strip())


if __name__ == "__main__":
    main(*sys.argv[1:])
