# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a run of the role lvs_router has found on each router, from the results that its tasks register.

The results come from the routers: they may be of any shape, and their text is only repeated as plain lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible_collections.lvs.fleet.plugins.module_utils._errors import MISSHAPEN
from ansible_collections.lvs.fleet.plugins.module_utils._text import plain

# In the order in which the role comes to them. Those that every run has to come to are the proof that nothing differs.
PROOF = ("__lvs_router_services", "__lvs_router_kept")
RESULTS = (
    "__lvs_router_machine",
    "__lvs_router_installed",
    "__lvs_router_loaded",
    "__lvs_router_helped",
    "__lvs_router_set",
    "__lvs_router_restorer",
    *PROOF,
    "__lvs_router_let_in",
)
INFO = "lvs_audit_info"
FAILURE = "lvs_audit_failure"

WORDS = {"as_declared": "as declared", "differs": "differs", "failed": "failed", "unreachable": "unreachable"}


def audit(routers: Iterable[str], variables: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The report on these routers, by the variables of all hosts."""
    found = {str(router): _router(variables[router]) for router in sorted(routers)}
    return {"as_declared": all(entry["status"] == "as_declared" for entry in found.values()), "routers": found}


def audit_lines(report: Mapping[str, Any]) -> list[str]:
    """The report as lines for people."""
    return [line for router, entry in report["routers"].items() for line in _lines(router, entry)]


def _router(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of one router. What one of them answers must not keep the others from being compared."""
    try:
        return _entry(variables)
    except MISSHAPEN as error:
        message = plain(f"its answers are not understood: {error!r}")
        return {"status": "failed", "message": message, "operations": [], "problems": []}


def _entry(variables: Mapping[str, Any]) -> dict[str, Any]:
    results = {name: variables[name] for name in (INFO, *RESULTS) if name in variables}
    operations = [line for name in RESULTS if name in results for line in _operations(name, results)]
    status, message = _status(results, _plain_lines(variables.get(FAILURE, "")))
    return {
        "status": "differs" if status == "as_declared" and operations else status,
        "message": message,
        "operations": operations,
        "problems": _problems(results.get(INFO, {})),
    }


def _status(results: Mapping[str, Any], failure: str) -> tuple[str, str]:
    """How far the role came, and what stopped it. Only the whole way is good for "as declared"."""
    for result in results.values():
        if result.get("unreachable"):
            return "unreachable", _message(result)
    failed = [_message(result) for name, result in results.items() if name != INFO and result.get("failed")]
    if failure or failed:
        return "failed", failure or failed[0]
    if not all(name in results for name in PROOF):
        return "failed", "the role did not come to its end"
    return "as_declared", ""


def _message(result: Mapping[str, Any]) -> str:
    return _plain_lines(result.get("msg", "no message"))


def _plain_lines(said: Any) -> str:
    """A text, or a list with an item for each line, as text without anything but words."""
    lines = said if isinstance(said, list) else str(said).strip().split("\n")
    return "\n".join(plain(line) for line in lines)


def _operations(name: str, results: Mapping[str, Any]) -> list[str]:
    """What a task did or would do: in its own words, as its command, or as what it installs."""
    result = results[name]
    if not result.get("changed"):
        return []
    if "operations" in result:
        return _plain_list(result["operations"])
    if "cmd" in result:
        return [" ".join(_plain_list(result["cmd"]))]
    if name == "__lvs_router_restorer":
        return ["install what restores rules at boot"]
    return [f"install what brings {', '.join(_plain_list(results['__lvs_router_machine']['missing_commands']))}"]


def _plain_list(said: Any) -> list[str]:
    """What a router lists where something changed. Raises TypeError or ValueError if that is no list, or nothing."""
    if isinstance(said, str):
        raise TypeError("a text in place of a list")
    if not said:
        raise ValueError("something changed, and nothing says what")
    return [plain(item) for item in said]


def _problems(info: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What lvs_info says, or why it could not."""
    if "problems" in info:
        return [{"kind": plain(found["kind"]), "message": plain(found["message"])} for found in info["problems"]]
    return [] if info.get("unreachable") or not info else [{"kind": "lvs_info", "message": _message(info)}]


def _lines(router: str, entry: Mapping[str, Any]) -> list[str]:
    said = [*filter(None, entry["message"].split("\n")), *entry["operations"]]
    problems = [f"problem: {problem['message']}" for problem in entry["problems"]]
    return [f"{plain(router)}: {WORDS[entry['status']]}", *(f"    {line}" for line in [*said, *problems])]


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"audit": audit, "audit_lines": audit_lines}
