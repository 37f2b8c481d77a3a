# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Ask each service of the scenario several times, and expect the answers of exactly these servers.

Usage, on the client: ask.py SERVER...
"""

from __future__ import annotations

import socket
import sys

CLIENTS = {socket.AF_INET: "198.51.100.10", socket.AF_INET6: "2001:db8:0:2::10"}
SERVICES = {socket.AF_INET: "192.0.2.{}", socket.AF_INET6: "2001:db8:0:10::{}"}
MARKS = range(20, 25)
PORTS = {socket.SOCK_STREAM: 80, socket.SOCK_DGRAM: 53}


def ask(family: int, kind: int, virtual_address: str) -> list[str]:
    """The words of the one line that a server answers with."""
    with socket.socket(family, kind) as asking:
        asking.settimeout(5)
        asking.bind((CLIENTS[family], 0))
        asking.connect((virtual_address, PORTS[kind]))
        asking.sendall(b"GET / HTTP/1.0\r\n\r\n")
        answer = asking.recv(4096)
        while kind == socket.SOCK_STREAM and (more := asking.recv(4096)):
            answer += more
    return answer.decode().splitlines()[-1].split()


def main(servers: set[str]) -> str:
    problems = []
    for family, pattern in SERVICES.items():
        for kind, port in PORTS.items():
            for virtual_address in map(pattern.format, MARKS):
                try:
                    answers = [ask(family, kind, virtual_address) for _number in range(4)]
                except OSError as error:
                    problems.append(f"{virtual_address} {port}: {error}")
                    continue
                if any(words[1:] != [str(port), CLIENTS[family]] for words in answers):
                    problems.append(f"{virtual_address} {port}: {answers}")
                if {words[0] for words in answers} != servers:
                    problems.append(f"{virtual_address} {port}: answers of {sorted({words[0] for words in answers})}")
    return "\n".join(problems)


if __name__ == "__main__":
    sys.exit(main(set(sys.argv[1:])) or None)
