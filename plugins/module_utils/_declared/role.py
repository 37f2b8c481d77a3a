# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is wrong with the variables of the role lvs_router, apart from the services. PRIVATE to the collection. Pure."""

from __future__ import annotations

import json
import re
from typing import Any, Mapping

from .._model import NFTABLES

_INTERFACE = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.@-]{0,14})?")
_NUMBER = re.compile(r"[0-9]{1,9}", re.ASCII)


def variable_problems(values: Mapping[str, Any]) -> list[str]:
    """values: those of the variables, by their names without lvs_router_."""
    problems = []
    for name, is_right, what in (
        ("vip_interface", _is_interface, "an interface"),
        ("vip_table", lambda value: _number(value) in range(253), "a routing table (1-252, or 0 for none)"),
        ("max_removals", lambda value: _number(value) in range(101), "a percentage (0-100)"),
        ("conn_reuse_mode", lambda value: str(value) in ("0", "1", "2", "3"), "a mode (0-3)"),
    ):
        if not is_right(values[name]):
            problems.append(f"lvs_router_{name}: {json.dumps(values[name], default=str)} is not {what}")
    if values["marking"] == NFTABLES and values["persistence"] == "distribution":
        together = "nftables does not go together with lvs_router_persistence distribution"
        problems.append(f"lvs_router_marking: {together}; take 'unit' or 'none'")
    return problems


def _is_interface(value: Any) -> bool:
    return isinstance(value, str) and bool(_INTERFACE.fullmatch(value))


def _number(value: Any) -> int:
    """A number, or the text of one; -1 for all else."""
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return int(value)
    return value if isinstance(value, int) else -1
