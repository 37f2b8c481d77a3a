#!/usr/bin/env python
# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""One request after the other, over HTTP and HTTPS, until a file appears; then how many there were and what failed.

Usage: asking.py FOLDER PATIENCE ADDRESS..., PATIENCE in seconds for each request
"""

from __future__ import annotations

import http.client
import itertools
import json
import ssl
import sys
import time
from pathlib import Path

# So many clients ask in turns.
CLIENTS = {False: "198.51.100.{}", True: "2001:db8:0:2::{}"}
HOSTS = range(10, 20)
PAUSE = 0.01
LONGEST = 300


def ask(address: str, port: int, host: int, patience: float) -> None:
    """Raises OSError or HTTPException unless the answer is that of a real server to this client on this port."""
    source = CLIENTS[":" in address].format(host)
    if port == 443:
        trusting = ssl._create_unverified_context()
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            address, port, timeout=patience, source_address=(source, 0), context=trusting
        )
    else:
        connection = http.client.HTTPConnection(address, port, timeout=patience, source_address=(source, 0))
    try:
        connection.request("GET", "/")
        answer = connection.getresponse().read().decode().split()
    finally:
        connection.close()
    if answer[1:] != [str(port), source]:
        raise OSError(f"the answer was {answer}")


def main(folder: Path, patience: float, addresses: list[str]) -> None:
    asked, failed = 0, []
    end = time.monotonic() + LONGEST
    turns = zip(itertools.cycle(itertools.product(addresses, (80, 443))), itertools.cycle(HOSTS))
    for (address, port), host in turns:
        if (folder / "enough").exists():
            break
        if time.monotonic() > end:
            failed.append(f"nobody wanted it to stop within {LONGEST} s")
            break
        try:
            ask(address, port, host, patience)
        except (OSError, http.client.HTTPException) as error:
            failed.append(f"{address} port {port}: {error}")
        asked += 1
        (folder / "begun").touch()
        time.sleep(PAUSE)
    (folder / "asked.new").write_text(json.dumps({"asked": asked, "failed": failed}))
    (folder / "asked.new").rename(folder / "asked")


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3:])
