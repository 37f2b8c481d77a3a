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


def mark_rule(name: str, mark: int, match: str) -> str:
    """One that iptables_mark wrote."""
    return rule(name, mark, f"{match} -m comment --comment iptables_mark")


def service(name: str, fwmark: int, *traffic: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return {"name": name, "fwmark": fwmark, "traffic": list(traffic), **settings}


WEB = {"destination": "192.0.2.10", "protocol": "tcp", "ports": [80, 443]}
ANY = {"destination": "192.0.2.10", "protocol": "tcp"}
# Odd, but legal.
ODD_NAMES = ["a", "0", "7_.-", "A.b-c_d", "x" * 63, "v1.2-rc_3", "PREROUTING", "lvs"]
ODD_INTERFACES = ["a", "eth0.100", "eth0:1", "if@x", "br-0_1", "_x", "7", "a" * 15, "eth+", "a" * 14 + "+", "a.:@-+"]
