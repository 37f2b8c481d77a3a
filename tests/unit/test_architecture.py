# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The layers, and the documentation: both as the code has them."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.basic import AnsibleModule

from ansible_collections.lvs.fleet.plugins.doc_fragments.writer import ModuleDocFragment
from ansible_collections.lvs.fleet.plugins.module_utils import _options, _params
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
MODULE_UTILS = {path.stem: path for path in sorted((PLUGINS / "module_utils").glob("*.py"))}
# Standard library that does no I/O. socket is in only two of them, for constants and inet_pton.
PURE_LIBRARY = {
    "__future__", "bisect", "collections", "collections.abc", "dataclasses", "functools", "ipaddress", "itertools",
    "difflib", "json", "re", "struct", "typing",
}  # fmt: skip
PURE = {
    "_adopt", "_changes", "_conditions", "_conflicts", "_doubts", "_errors", "_foreign", "_guard", "_ip",
    "_ip_words", "_iptables", "_ipvsadm", "_markmap", "_match", "_model", "_mss", "_nft_listing", "_nft_wire",
    "_nftables", "_options", "_overlaps", "_ownership", "_params", "_parts", "_plan", "_real_server", "_report",
    "_shorthand", "_suggestions", "_tc", "_text", "_troubles", "_way", "_way_iptables", "_way_nft", "_wire",
}  # fmt: skip
SOCKET_CONSTANTS = {"AF_INET", "AF_INET6", "IPPROTO_TCP", "IPPROTO_UDP", "inet_ntop", "inet_pton"}


def imported(path: Path) -> set[str]:
    """Modules that a file imports; those beside it with a dot."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            beside = {f".{alias.name}" for alias in node.names}
            found |= beside if node.level and not node.module else {"." * node.level + (node.module or "")}
    return found


def used(path: Path, module: str) -> set[str]:
    """What a file takes out of a module, as in socket.AF_INET."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == module
    }


def test_every_module_has_its_layer() -> None:
    assert set(MODULE_UTILS) - PURE == {"_engine", "_host", "_module", "_netlink", "_router", "_surroundings"}


@pytest.mark.parametrize("name", sorted(PURE))
def test_the_core_is_pure(name: str) -> None:
    allowed = PURE_LIBRARY | {f".{other}" for other in PURE}
    extra = {"_wire": {"socket"}, "_options": {"socket"}, "_errors": {"os"}}.get(name, set())
    assert imported(MODULE_UTILS[name]) - allowed == extra
    calls = {node.func.id for node in ast.walk(ast.parse(MODULE_UTILS[name].read_text()))
             if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}  # fmt: skip
    assert calls & {"open", "exec", "eval", "print", "input", "__import__", "compile"} == set()


def test_of_socket_and_os_the_core_takes_no_io() -> None:
    for name in ("_wire", "_options"):
        assert used(MODULE_UTILS[name], "socket") <= SOCKET_CONSTANTS
    assert used(MODULE_UTILS["_errors"], "os") == {"strerror"}


@pytest.mark.parametrize(
    "library, only", [("subprocess", {"_host"}), ("fcntl", {"_host"}), ("shutil", {"_host"}), ("time", {"_host"})]
)
def test_only_one_place_does_it(library: str, only: set[str]) -> None:
    assert {name for name, path in MODULE_UTILS.items() if library in imported(path)} == only


def test_only_one_place_opens_a_socket() -> None:
    assert {name for name, path in MODULE_UTILS.items() if "socket" in used(path, "socket")} == {"_netlink"}
    users = {path.stem for path in PLUGINS.rglob("*.py") if "._netlink" in imported(path)}
    assert users == {"_router"}


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
    # Ansible cannot be without yaml.
    assert libraries - sys.stdlib_module_names - {"ansible", "ansible_collections", "yaml"} == set()


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
