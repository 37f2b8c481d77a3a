# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Record what ipvsadm and a real kernel say to each other, as fixtures/ipvs.json. Again, from the top folder:

    tests/lab/lab bench -- env PYTHONPATH=.build .build/venv/bin/python tests/unit/record.py

A rich table is made with ipvsadm, under strace (to be installed), which shows every byte of the conversation. Then the
same table is made by this collection, and ipvsadm says what it finds. Bytes are in hexadecimal; a request has the
datagrams that answer it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from ansible_collections.lvs.fleet.plugins.module_utils._errors import KernelError
from ansible_collections.lvs.fleet.plugins.module_utils._ipvs.ipvsadm import command_line
from ansible_collections.lvs.fleet.plugins.module_utils._model import IpvsOperation, RouterState
from ansible_collections.lvs.fleet.plugins.module_utils._netlink import machine as sockets
from ansible_collections.lvs.fleet.plugins.module_utils._plan import plan
from ansible_collections.lvs.fleet.plugins.module_utils._router import Router

TABLE = """
-A -f 80 -s wlc -p 360
-a -f 80 -r 10.0.0.1 -g -w 10 -x 100 -y 50
-a -f 80 -r 10.0.0.2 -i -w 0
-a -f 80 -r 10.0.0.3 -i --tun-type gue --tun-port 6080 --tun-csum -x 2147483647
-a -f 80 -r 10.0.0.4 -i --tun-type gue --tun-port 65535 --tun-remcsum
-a -f 80 -r 10.0.0.5 -i --tun-type gue --tun-port 1
-a -f 80 -r 10.0.0.6 -i --tun-type gre --tun-csum
-a -f 80 -r 10.0.0.7 -i --tun-type gre
-a -f 80 -r 10.0.0.8 -m -w 65535
-a -f 80 -r 10.0.0.8:8080 -m
-a -f 80 -r 2001:db8:1::9 -i
-A -f 80 -6 -s wrr -p 1800 -M 64
-a -f 80 -6 -r 2001:db8:1::1 -g -w 7
-a -f 80 -6 -r [2001:db8:1::2]:443 -m
-a -f 80 -6 -r 2001:db8:1::3 -i --tun-type gre --tun-csum -x 9
-a -f 80 -6 -r 10.0.0.9 -i --tun-type gue --tun-port 6080
-A -f 81 -s sh -b sh-port,sh-fallback
-A -f 82 -s mh -b mh-port
-A -f 83 -s rr -b flag-1,flag-3
-A -f 84 -s wrr -p 1800 -M 255.255.255.0
-A -f 85 -s rr -p 2678400 -M 128.0.0.0
-A -f 86 -6 -s lc -p 1 -M 1
-A -f 87 -s rr -o
-A -f 88 -s wlc -p 300 --pe sip
-A -f 90 -s none
-A -f 2147483647
-A -f 2147483648 -s rr
-A -f 4294967295 -6 -s rr
-A -t 192.0.2.10:0 -p 60
-A -t 192.0.2.10:80 -s rr
-a -t 192.0.2.10:80 -r 10.0.0.1:8080 -m
-a -t 192.0.2.10:80 -r 10.0.0.2:80 -g
-A -u 192.0.2.10:53 -s rr -o
-A --sctp-service 192.0.2.10:9 -s rr
-A -t [2001:db8::10]:443 -s rr -p 100 -M 48
-a -t [2001:db8::10]:443 -r [2001:db8:1::1]:443 -g
"""

# One after the other, on the table above: what the kernel takes, and what it refuses.
CHANGES = """
-E -f 84 -s rr
-E -f 88 -s rr -p 600
-e -f 80 -r 10.0.0.1 -m -w 0
-e -f 80 -6 -r 10.0.0.9 -i
-d -f 80 -r 10.0.0.8:8080
-D -f 80 -6
-A -f 80
-A -f 500 -s nosuch
-E -f 81 -s nosuch
-A -f 501 --pe nosuch -p
-E -f 999
-D -f 999
-a -f 999 -r 10.0.0.1
-d -f 999 -r 10.0.0.1
-a -f 80 -r 10.0.0.1
-a -f 80 -r 10.0.0.99 -x 4 -y 5
-e -f 80 -r 10.0.0.2 -i -x 4 -y 5
-e -f 80 -r 10.0.0.99
-d -f 80 -r 10.0.0.99
-d -f 80 -r 10.0.0.1:80
-a -f 80 -r 224.0.0.1
-a -f 80 -r 10.0.0.99 -w 2147483647
"""

LINE = re.compile(r"^ \| [0-9a-f]+ ((?: {1,2}[0-9a-f]{2}){1,16})")
FAMILY_LIST = 0x10
GET_INFO = 15


def main(target: Path) -> None:
    tell("modprobe", "ip_vs")
    tell("ip", "link", "add", "d0", "up", "type", "dummy")
    tell("ip", "address", "add", "10.9.0.1/24", "dev", "d0")
    recorded: dict[str, Any] = {
        "kernel": os.uname().release,
        "ipvsadm": tell("ipvsadm", "--version").strip(),
        "timeouts": timeouts(),
        "daemons": daemons(),
        "table": [record(line) for line in TABLE.split("\n") if line],
        "listing": record("-S -n"),
        "texts": texts(),
    }
    recorded.update(ours())
    recorded["changes"] = [record(line) for line in CHANGES.split("\n") if line]
    recorded["listing_after_changes"] = record("-S -n")
    recorded["texts_after_changes"] = texts()
    target.write_text(json.dumps(recorded, indent=1) + "\n", encoding="ascii")


def timeouts() -> dict[str, Any]:
    record("--set 100 20 50")
    return {**record("-L --timeout -n"), "text": say("-L --timeout -n")}


def daemons() -> dict[str, Any]:
    """Two sync daemons, which a real server of another family would keep from starting."""
    record("--start-daemon master --mcast-interface d0 --syncid 10")
    record(
        "--start-daemon backup --mcast-interface d0 --syncid 11 --mcast-group ff05::51 --mcast-ttl 3 --mcast-port 99"
    )
    found = {**record("-L --daemon -n"), "text": say("-L --daemon -n")}
    record("--stop-daemon master")
    record("--stop-daemon backup")
    return found


def texts() -> dict[str, str]:
    return {"save": say("-S -n"), "thresholds": say("-L -n --thresholds")}


def tell(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, check=True, text=True).stdout


def say(words: str) -> str:
    return tell("ipvsadm", *words.split())


def record(words: str) -> dict[str, Any]:
    """One ipvsadm command: what it said, and its conversation with the family IPVS."""
    trace = "/tmp/ipvsadm.strace"
    strace = ["strace", "-o", trace, "-e", "trace=sendmsg,recvmsg", "-e", "write=all", "-e", "read=all"]
    done = subprocess.run([*strace, "ipvsadm", *words.split()], capture_output=True, check=False, text=True)
    return {
        "command": f"ipvsadm {words}",
        "status": done.returncode,
        "said": done.stderr.strip(),
        "exchanges": conversation(Path(trace).read_text()),
    }


def conversation(trace: str) -> list[dict[str, Any]]:
    exchanges: list[dict[str, Any]] = []
    for call in re.split(r"^(?=\w+\()", trace, flags=re.M)[1:]:
        lines = call.split("\n")
        data = "".join(found[1].replace(" ", "") for line in lines if (found := LINE.match(line)))
        if lines[0].startswith("sendmsg("):
            exchanges.append({"request": data, "replies": []})
        elif "MSG_PEEK" not in lines[0]:
            exchanges[-1]["replies"].append(data)
    return [one for one in exchanges if not preliminary(bytes.fromhex(one["request"]))]


def preliminary(request: bytes) -> bool:
    """The look-up of the family, and the version, which ipvsadm asks for each time."""
    return int.from_bytes(request[4:6], sys.byteorder) == FAMILY_LIST or request[16] == GET_INFO


def ours() -> dict[str, Any]:
    """The table is read and made anew by this collection; what the kernel answered, and what ipvsadm finds."""
    exchanges: list[dict[str, Any]] = []

    class Recorder(sockets.socket.socket):  # type: ignore[misc,name-defined]
        def send(self, data: bytes) -> int:  # type: ignore[override]
            exchanges.append({"request": data.hex(), "replies": []})
            return super().send(data)

        def recv_into(self, buffer: memoryview) -> int:  # type: ignore[override]
            size = super().recv_into(buffer)
            exchanges[-1]["replies"].append(buffer[:size].hex())
            return size

    original, sockets.socket.socket = sockets.socket.socket, Recorder  # type: ignore[misc]
    try:
        with Router((), ipvs=True) as router:
            found = list(exchanges)
            state = router.read()
            operations = plan(RouterState(), state)
            tell("ipvsadm", "-C")
            del exchanges[:]
            words = []
            for operation in operations:
                assert isinstance(operation, IpvsOperation)
                words.append(command_line(operation))
                try:
                    sum(router.write([operation]))
                except KernelError as error:
                    sys.exit(f"the kernel refused what it had: {error}")
            requests = [{"command": command, **one} for command, one in zip(words, exchanges, strict=True)]
    finally:
        sockets.socket.socket = original  # type: ignore[misc]
    return {"families": found, "ours": requests, "texts_of_ours": texts()}


if __name__ == "__main__":
    main(Path(__file__).parent / "fixtures" / "ipvs.json")
