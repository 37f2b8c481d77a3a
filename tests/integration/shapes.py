# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What several tests declare, and what the stock tools print for it."""

from __future__ import annotations

from typing import Any

from ansible_collections.lvs.fleet.tests.integration.harness import CHAIN

HEAD = [f":{CHAIN} - [0:0]", f"-A PREROUTING -j {CHAIN}"]


def rule(name: str, mark: int, match: str) -> str:
    """One of our rules as iptables-save prints it."""
    return f'-A {CHAIN} {match} -m comment --comment "lvs:{name}" -j MARK --set-xmark {mark:#x}/0xffffffff'


def service(name: str, fwmark: int, *traffic: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return {"name": name, "fwmark": fwmark, "traffic": list(traffic), **settings}


WEB = {"destination": "192.0.2.10", "protocol": "tcp", "ports": [80, 443]}
ANY = {"destination": "192.0.2.10", "protocol": "tcp"}
