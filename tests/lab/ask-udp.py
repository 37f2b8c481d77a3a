# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: lvs.fleet contributors
"""Send one datagram from an address of this host, and print what that very address and port answer.

Usage: ask-udp.py SOURCE ADDRESS PORT. The exit status is 1 when there is no answer within 3 seconds.
"""

from __future__ import annotations

import socket
import sys

SECONDS = 3


def main(source: str, address: str, port: str) -> None:
    """Ask once."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as asker:
        asker.settimeout(SECONDS)
        asker.bind((source, 0))
        # A connected socket takes no answer from any other address.
        asker.connect((address, int(port)))
        asker.send(b"?\n")
        try:
            print(asker.recv(512).decode(), end="")
        except OSError as error:
            sys.exit(f"{address} port {port}: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
