# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The layers, and the documentation: both as the code has them."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.basic import AnsibleModule

from ansible_collections.lvs.fleet.plugins.doc_fragments.writer import ModuleDocFragment
from ansible_collections.lvs.fleet.plugins.module_utils._declared import options as _options
from ansible_collections.lvs.fleet.plugins.module_utils._declared import params as _params
from ansible_collections.lvs.fleet.plugins.modules import (
    ip_objects,
    iptables_mark,
    iptables_mss,
    ipvs_service,
    lvs_info,
    lvs_service,
    machine_info,
    report_file,
)

PLUGINS = Path(__file__).parents[2] / "plugins"
UTILS = PLUGINS / "module_utils"
DESIGN = (PLUGINS.parent / "docs" / "design.md").read_text(encoding="utf-8")
# By their dotted names, as in _marks.iptables.
MODULE_UTILS = {
    ".".join(path.relative_to(UTILS).with_suffix("").parts): path
    for path in sorted(UTILS.rglob("*.py"))
    if path.name != "__init__.py"
}
# The file of a room that touches the machine; and what joins the rooms, with the commands and files of the machine, and
# Ansible.
EDGE = "machine"
JOINING = {"_engine", "_host", "_module", "_report_file", "_router", "_survey"}
PURE = {name for name in MODULE_UTILS if name not in JOINING and not name.endswith(f".{EDGE}")}
# What all speak of.
WORDS = {"_errors", "_model", "_text"}
# Standard library that does no I/O. socket is in only two of them, for constants and inet_pton.
PURE_LIBRARY = {
    "__future__", "bisect", "collections", "collections.abc", "dataclasses", "functools", "ipaddress", "itertools",
    "difflib", "html", "json", "math", "posixpath", "re", "struct", "typing",
}  # fmt: skip
SOCKET_CONSTANTS = {"AF_INET", "AF_INET6", "IPPROTO_TCP", "IPPROTO_UDP", "inet_ntop", "inet_pton"}


def imported(path: Path) -> set[str]:
    """Modules that a file imports; those of module_utils by their dotted names there."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= imported_from(path, node)
    return found


def imported_from(path: Path, node: ast.ImportFrom) -> set[str]:
    if not node.level:
        start = (node.module or "").removeprefix("ansible_collections.lvs.fleet.plugins.module_utils").lstrip(".")
    else:
        folder = path.relative_to(UTILS).parts[:-1]
        start = ".".join((*folder[: len(folder) + 1 - node.level], *filter(None, [node.module])))
    beside = {f"{start}.{alias.name}".lstrip(".") for alias in node.names} & set(MODULE_UTILS)
    return beside or {start}


def used(path: Path, module: str) -> set[str]:
    """What a file takes out of a module, as in socket.AF_INET."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == module
    }


def room(name: str) -> str:
    return name.partition(".")[0]


def arrows() -> dict[str, set[str]]:
    """Which room, or file beside the rooms, knows which others."""
    found: dict[str, set[str]] = {}
    for name, path in MODULE_UTILS.items():
        known = {room(other) for other in imported(path) & set(MODULE_UTILS)} - WORDS - {room(name)}
        found.setdefault(room(name), set()).update(known)
    return {name: known for name, known in found.items() if name not in WORDS}


def drawn() -> dict[str, set[str]]:
    """The same as docs/design.md has it, in rows such as "| `_marks/` | how ...? | `_packets`, `_host` |"."""
    rows = re.findall(r"^\| `(_\w+)/?` \|[^|]*\|([^|]*)\|$", DESIGN, re.MULTILINE)
    return {name: set(re.findall(r"`(_\w+)`", known)) for name, known in rows}


def test_the_house_is_as_it_is_drawn() -> None:
    assert drawn() == arrows()


def test_no_room_is_known_by_those_that_it_knows() -> None:
    """Every row knows only rows above it."""
    above = set[str]()
    for name, known in drawn().items():
        assert known <= above, name
        above.add(name)


def test_each_room_has_at_most_one_edge() -> None:
    assert {name for name in MODULE_UTILS if "." not in name} - PURE == JOINING
    assert [path for path in UTILS.rglob("*") if path.is_dir() and path.parent != UTILS and "__" not in path.name] == []


@pytest.mark.parametrize("name", sorted(PURE))
def test_the_core_is_pure(name: str) -> None:
    allowed = PURE_LIBRARY | PURE
    extra = {"_ipvs.wire": {"socket"}, "_declared.options": {"socket"}, "_errors": {"os"}}.get(name, set())
    assert imported(MODULE_UTILS[name]) - allowed == extra
    calls = {node.func.id for node in ast.walk(ast.parse(MODULE_UTILS[name].read_text()))
             if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}  # fmt: skip
    assert calls & {"open", "exec", "eval", "print", "input", "__import__", "compile"} == set()


def test_of_socket_and_os_the_core_takes_no_io() -> None:
    for name in ("_ipvs.wire", "_declared.options"):
        assert used(MODULE_UTILS[name], "socket") <= SOCKET_CONSTANTS
    assert used(MODULE_UTILS["_errors"], "os") == {"strerror"}


@pytest.mark.parametrize(
    "library, only", [("subprocess", {"_host"}), ("fcntl", {"_host"}), ("shutil", {"_host"}), ("time", {"_host"})]
)
def test_only_one_place_does_it(library: str, only: set[str]) -> None:
    assert {name for name, path in MODULE_UTILS.items() if library in imported(path)} == only


def test_only_one_place_opens_a_socket() -> None:
    assert {name for name, path in MODULE_UTILS.items() if "socket" in used(path, "socket")} == {"_netlink.machine"}
    users = {name for name, path in MODULE_UTILS.items() if "_netlink.machine" in imported(path)}
    assert users == {"_ipvs.machine", "_marks.machine"}


@pytest.mark.parametrize("path", sorted((PLUGINS / "modules").glob("*.py")), ids=lambda path: path.stem)
def test_modules_only_wire(path: Path) -> None:
    """What they do with values, and with the machine, is in the rooms."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    assert imported(path) & {"os", "re", "json", "subprocess", "socket"} == set()


def test_only_one_place_knows_ansible() -> None:
    known = imported(MODULE_UTILS["_module"])
    assert [found for found in known if found.startswith("ansible")] == ["ansible.module_utils.basic"]
    modules = {path.stem: imported(path) for path in (PLUGINS / "modules").glob("*.py")}
    assert [name for name, found in modules.items() if "ansible.module_utils.basic" in found] == []


@pytest.mark.parametrize("name", sorted(set(MODULE_UTILS) - {"_module"}))
def test_nothing_but_the_standard_library(name: str) -> None:
    assert [found for found in imported(MODULE_UTILS[name]) if found.startswith("ansible")] == []


def test_the_controller_needs_nothing_but_ansible() -> None:
    files = [path for kind in ("filter", "lookup", "doc_fragments") for path in (PLUGINS / kind).glob("*.py")]
    libraries = {found.partition(".")[0] for path in files for found in imported(path)}
    own = {room(name) for name in MODULE_UTILS}
    # Ansible cannot be without yaml. Only who asks a question needs jmespath, and is told so.
    known = {"ansible", "ansible_collections", "yaml", "jmespath"}
    assert libraries - own - sys.stdlib_module_names - known == set()


# -- the documentation --------------------------------------------------------------------------------------------

MODULES = {"lvs_service": lvs_service, "iptables_mark": iptables_mark, "ipvs_service": ipvs_service}
OTHERS = {
    "ip_objects": ip_objects, "iptables_mss": iptables_mss, "lvs_info": lvs_info, "machine_info": machine_info,
    "report_file": report_file,
}  # fmt: skip
ITEMS = {
    "lvs_service": (
        "services",
        _params.virtual_services,
        {"name": "web", "fwmark": 80, "traffic": [{"destination": "192.0.2.10", "protocol": "tcp"}],
         "real_servers": [{"address": "10.0.0.1", "forward_method": "tunnel"}]},
    ),
    "iptables_mark": (
        "rules", _params.marks, {"name": "web", "mark": 80, "destination": "192.0.2.10", "protocol": "tcp"},
    ),
    "ipvs_service": (
        "services",
        _params.ipvs_services,
        {"protocol": "tcp", "address": "192.0.2.10", "port": 80,
         "real_servers": [{"address": "10.0.0.1", "port": 80, "forward_method": "tunnel"}]},
    ),
}  # fmt: skip


def documented(name: str) -> dict[str, Any]:
    options: dict[str, Any] = yaml.safe_load(MODULES[name].DOCUMENTATION)["options"]
    return options


def taken(read: Any, item: dict[str, Any]) -> set[tuple[str, ...]]:
    """Each option that the parser asks for, as a path, as in ("traffic", "ports")."""
    asked: set[tuple[str, ...]] = set()

    class Recorder(_options.Options):
        def value(self, key: str) -> Any:
            words = self.path.split(".")
            asked.add((*(word.partition("[")[0] for word in words[1:]), key))
            return super().value(key)

    patch = pytest.MonkeyPatch()
    with patch.context() as context:
        context.setattr(_options, "Options", Recorder)
        read([item])
    return asked


def paths(suboptions: dict[str, Any], above: tuple[str, ...] = ()) -> dict[tuple[str, ...], dict[str, Any]]:
    found = {}
    for key, option in suboptions.items():
        found[(*above, key)] = option
        found.update(paths(option.get("suboptions", {}), (*above, key)))
    return found


@pytest.mark.parametrize("name", sorted(ITEMS))
def test_the_documented_options_are_those_that_are_taken(name: str) -> None:
    option, read, item = ITEMS[name]
    assert set(paths(documented(name)[option]["suboptions"])) == taken(read, item)


def with_value(item: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """The item with an option set, at any depth; without it if the value is None."""
    if len(path) > 1:
        first = with_value(item[path[0]][0], path[1:], value)
        return {**item, path[0]: [first]}
    return {**{key: old for key, old in item.items() if key != path[0]}, **({} if value is None else {path[0]: value})}


def cases(kind: str) -> list[Any]:
    return [
        pytest.param(name, path, suboption, id=f"{name}-{'.'.join(path)}")
        for name, (option, _read, _item) in ITEMS.items()
        for path, suboption in paths(documented(name)[option]["suboptions"]).items()
        if kind in suboption
    ]


@pytest.mark.parametrize("name, path, suboption", cases("default"))
def test_a_documented_default_is_what_absence_means(name: str, path: tuple[str, ...], suboption: Any) -> None:
    _option, read, item = ITEMS[name]
    assert read([with_value(item, path, suboption["default"])]) == read([with_value(item, path, None)])


@pytest.mark.parametrize("name, path, suboption", cases("choices"))
def test_the_documented_choices_are_the_parsers(name: str, path: tuple[str, ...], suboption: Any) -> None:
    _option, read, item = ITEMS[name]
    with pytest.raises(_params.ValidationError) as caught:
        read([with_value(item, path, "no such choice")])
    assert caught.value.problems[0].endswith(f"'no such choice' is not one of {', '.join(suboption['choices'])}")


@pytest.mark.parametrize("name, path, suboption", cases("required"))
def test_what_is_documented_as_required_is(name: str, path: tuple[str, ...], suboption: Any) -> None:
    _option, read, item = ITEMS[name]
    with pytest.raises(_params.ValidationError, match=rf"\.{path[-1]}: is required"):
        read([with_value(item, path, None)])


@pytest.mark.parametrize("name", [*MODULES, *OTHERS])
def test_the_argument_spec_is_the_documentation(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Down to the items, which the parser checks itself, to tell all that is wrong with them at once."""
    module = {**MODULES, **OTHERS}[name]
    seen: dict[str, Any] = {}

    def record(_self: Any, argument_spec: dict[str, Any], supports_check_mode: bool) -> None:
        seen.update(argument_spec)
        assert supports_check_mode
        raise KeyboardInterrupt

    monkeypatch.setattr(AnsibleModule, "__init__", record)
    with pytest.raises(KeyboardInterrupt):
        module.main()
    documentation = yaml.safe_load(module.DOCUMENTATION)
    options = documentation["options"]
    if "lvs.fleet.writer" in documentation["extends_documentation_fragment"]:
        options.update(yaml.safe_load(ModuleDocFragment.DOCUMENTATION)["options"])
    plain = {"type": "str", "default": None, "choices": None, "elements": None, "required": False}
    assert {key: {**plain, **spec} for key, spec in seen.items()} == {
        key: {**plain, **{part: option[part] for part in plain if part in option}} for key, option in options.items()
    }
