# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a run of a role has found and done on each machine, from the results that its tasks register.

The results come from the machines: they may be of any shape, and their text is only repeated as plain lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.lvs.fleet.plugins.module_utils._errors import MISSHAPEN
from ansible_collections.lvs.fleet.plugins.module_utils._text import plain

# What the tasks of a role register, in the order in which it comes to them, and what they change.
SERVICES = "services"
BOOT_FILES = "boot files"
ADDRESSES = "addresses"
ROUTER = {
    "__lvs_router_machine": "",
    "__lvs_router_installed": "packages",
    "__lvs_router_loaded": "kernel modules",
    "__lvs_router_helped": "kernel modules",
    "__lvs_router_set": "settings",
    "__lvs_router_restorer": "packages",
    "__lvs_router_services": SERVICES,
    "__lvs_router_kept": BOOT_FILES,
    "__lvs_router_let_in": ADDRESSES,
}
REAL_SERVER = {
    "__lvs_real_server_links": "",
    "__lvs_real_server_found": "",
    "__lvs_real_server_machine": "",
    "__lvs_real_server_announced": "settings",
    "__lvs_real_server_objects": ADDRESSES,
    "__lvs_real_server_let_in": "settings",
    "__lvs_real_server_installed": "packages",
    "__lvs_real_server_segments": "segments",
    "__lvs_real_server_back": "settings",
    "__lvs_real_server_kept": BOOT_FILES,
    "__lvs_real_server_others": "settings",
}
RESULTS = (*ROUTER, *REAL_SERVER)
# Those that every audit has to come to are the proof that nothing differs.
PROOF = ("__lvs_router_services", "__lvs_router_kept")
# What the playbooks keep besides: the answer of lvs_info, the last comparison, and what went wrong.
INFO = "lvs_found"
COMPARED = "lvs_compared"
FAILURE = "lvs_failure"

WORDS = {
    "as_declared": "as declared", "differs": "differs", "failed": "failed", "unreachable": "unreachable",
    "not_begun": "not begun",
}  # fmt: skip
# How many lines of one kind a machine gets. A report as JSON has them all.
SHOWN = 30


def audit(routers: Iterable[str], variables: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The report on these routers, by the variables of all hosts."""
    found = {str(router): _entry(variables[router], PROOF) for router in sorted(routers)}
    return {"as_declared": all(entry["status"] == "as_declared" for entry in found.values()), "routers": found}


def audit_lines(report: Mapping[str, Any]) -> list[str]:
    """The report as lines for people."""
    return [line for router, entry in report["routers"].items() for line in _lines(router, entry, WORDS)]


def summary(
    machines: Sequence[str], variables: Mapping[str, Mapping[str, Any]], check_mode: bool = False
) -> dict[str, Any]:
    """What became of the machines of a run, by the variables of all hosts: those that failed, and lines for people."""
    found = {str(machine): _entry(variables[machine]) for machine in machines}
    failed = [machine for machine, entry in found.items() if entry["status"] in ("failed", "unreachable")]
    words = {**WORDS, "differs": "would change" if check_mode else "changed"}
    lines = []
    for machine, entry in found.items():
        lines += _lines(machine, entry, words)
        if machine in failed and not check_mode:
            lines.append(f"    state: {_state(variables[machine])}")
    return {"failed": failed, "lines": [*lines, *_next(found, failed, check_mode)]}


def _next(found: Mapping[str, Mapping[str, Any]], failed: Sequence[str], check_mode: bool) -> list[str]:
    """What to do now."""
    if failed:
        names = ", ".join(map(plain, failed))
        return [
            f"Next: mend what is said of {names}, and run the same command again. It goes on where this run stopped."
        ]
    if check_mode and any(entry["status"] == "differs" for entry in found.values()):
        return ["Next: run the same command without --check."]
    return []


def _entry(variables: Mapping[str, Any], proof: Sequence[str] = ()) -> dict[str, Any]:
    """What is known of one machine. What it answers must not keep the others from being told of."""
    try:
        return _understood(variables, proof)
    except MISSHAPEN as error:
        message = plain(f"its answers are not understood: {error!r}")
        return {"status": "failed", "message": message, "operations": [], "changes": [], "problems": []}


def _understood(variables: Mapping[str, Any], proof: Sequence[str]) -> dict[str, Any]:
    results = {name: variables[name] for name in (INFO, *RESULTS, COMPARED) if name in variables}
    changed = [name for name in RESULTS if _has_changed(results.get(name, {}))]
    status, message = _status(results, _failure(variables), proof)
    return {
        "status": "differs" if status == "as_declared" and changed else status,
        "message": message,
        "operations": [line for name in changed for line in _operations(name, results)],
        "changes": [line for name in changed for line in _changes(name, results)],
        "problems": _problems(results.get(INFO, {})),
    }


def _has_changed(result: Mapping[str, Any]) -> bool:
    return bool(result.get("changed")) and not result.get("failed") and not result.get("unreachable")


def _failure(variables: Mapping[str, Any]) -> str:
    """What a task said that failed, with its name; empty if none did."""
    if FAILURE not in variables:
        return ""
    failure = variables[FAILURE]
    missing = variables[COMPARED].get("operations", []) if COMPARED in variables else []
    said = f"still missing: {'; '.join(_plain_list(missing))}" if missing else failure["message"]
    return f"{plain(failure['task'])}: {_plain_lines(said)}"


def _status(results: Mapping[str, Any], failure: str, proof: Sequence[str]) -> tuple[str, str]:
    """How far the role came, and what stopped it."""
    for result in results.values():
        if result.get("unreachable"):
            return "unreachable", _message(result)
    failed = [_message(result) for name, result in results.items() if name != INFO and result.get("failed")]
    if failure or failed:
        return "failed", failure or failed[0]
    if not all(name in results for name in proof):
        return "failed", "the role did not come to its end"
    return ("as_declared" if results else "not_begun"), ""


def _message(result: Mapping[str, Any]) -> str:
    return _plain_lines(result.get("msg", "no message"))


def _plain_lines(said: Any) -> str:
    """A text, or a list with an item for each line, as text without anything but words."""
    lines = said if isinstance(said, list) else str(said).strip().split("\n")
    return "\n".join(plain(line) for line in lines)


def _state(variables: Mapping[str, Any]) -> str:
    """In which state a machine is whose run has failed: a module that fails leaves all as it was."""
    role = REAL_SERVER if any(name in variables for name in REAL_SERVER) else ROUTER
    parts = {part: variables.get(name) for name, part in role.items() if part in (SERVICES, ADDRESSES, BOOT_FILES)}
    return ", ".join(f"{part} {_state_of(result)}" for part, result in parts.items())


def _state_of(result: Any) -> str:
    if result is None:
        return "as before"
    if not isinstance(result, Mapping) or result.get("unreachable"):
        return "not known"
    if not result.get("failed"):
        return "as declared"
    return "half changed" if "half changed" in str(result.get("msg")) else "as before"


def _operations(name: str, results: Mapping[str, Any]) -> list[str]:
    """What a task did or would do: in the words of the tools, as its command, or as what it installs."""
    result = results[name]
    if "operations" in result:
        return _plain_list(result["operations"])
    if "cmd" in result:
        return [" ".join(_plain_list(result["cmd"]))]
    if name == "__lvs_router_restorer":
        return ["install what restores rules at boot"]
    if name == "__lvs_real_server_installed":
        return ["install iptables"]
    return [f"install what brings {', '.join(_plain_list(results['__lvs_router_machine']['missing_commands']))}"]


def _changes(name: str, results: Mapping[str, Any]) -> list[str]:
    """The same for people: in words where the module has some, and with what it is that changes before each line."""
    if "changes" in results[name]:
        return _plain_list(results[name]["changes"])
    part = ROUTER.get(name) or REAL_SERVER[name]
    return [f"{part}: {operation}" for operation in _operations(name, results)]


def _plain_list(said: Any) -> list[str]:
    """What a machine lists where something changed. Raises TypeError or ValueError if that is no list, or nothing."""
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


def _lines(machine: str, entry: Mapping[str, Any], words: Mapping[str, str]) -> list[str]:
    message = list(filter(None, entry["message"].split("\n")))
    problems = [f"problem: {problem['message']}" for problem in entry["problems"]]
    # Where the whole way is not done, what is done has to be told from what went wrong.
    done = f"{words['differs']}: " if entry["status"] in ("failed", "unreachable") else ""
    changes = [f"{done}{change}" for change in entry["changes"]]
    told = [line for lines in (message, changes, problems) for line in _shortened(lines)]
    return [f"{plain(machine)}: {words[entry['status']]}", *(f"    {line}" for line in told)]


def _shortened(lines: Sequence[str]) -> list[str]:
    more = len(lines) - SHOWN
    return [*lines[:SHOWN], *([f"and {more} more"] if more > 0 else [])]


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"audit": audit, "audit_lines": audit_lines, "summary": summary}
