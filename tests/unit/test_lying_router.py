# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Routers that lie: nothing of what their modules answer is a path, a template, or text that leaves its place."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.vars.manager import VariableManager

from ansible_collections.lvs.fleet.plugins.filter.report import audit, audit_lines
from ansible_collections.lvs.fleet.plugins.filter.status import status, status_lines, status_page, status_query
from ansible_collections.lvs.fleet.plugins.filter.trust import adopted
from ansible_collections.lvs.fleet.plugins.module_utils._declared.params import virtual_services
from ansible_collections.lvs.fleet.plugins.module_utils._report.shorthand import shorthand
from ansible_collections.lvs.fleet.tests.unit.fleets import NOW, SMALL, answer, small

TOP = Path(__file__).parents[2]
# What runs if anything that a router says is ever a template. The word is a path, and is put in by each test.
RUN = "lookup('pipe', 'touch CANARY')"
LIES: dict[str, Any] = {
    "expression": f"{{{{ {RUN} }}}}",
    "statement": f"{{% if {RUN} %}}x{{% endif %}}",
    "another-template": f"#jinja2:variable_start_string:'[%',variable_end_string:'%]'\n[% {RUN} %]",
    "line-break": "x\nlvs_router_marking: nftables",
    "next-line": "x\x85lvs_router_marking: nftables",
    "line-separator": "x\u2028lvs_router_marking: nftables",
    "carriage-return": "x\rlvs_router_marking: nftables",
    "escape": "x\x1b]0;title\x07\x1b[2J\x9b31m",
    "backwards": "x\u202e\ufeffy",
    "surrogate": "x\ud800y",
    "nul": "x\0y",
    "path": "../../../../../../../../etc/passwd",
    "root": "/etc/passwd",
    "huge": "x" * 100_000,
    "nothing": None,
    "number": -1,
    "fraction": 0.5,
    "truth": True,
    "list": [],
    "deep": [[[[{"x": [[]]}]]]],
    "mapping": {"x": "y"},
    "no-text": "",
}

SERVICE: dict[str, Any] = {
    "name": "fwmark-80",
    "fwmark": 80,
    "traffic": [
        {"destination": ["192.0.2.10"], "protocol": ["tcp"], "ports": [80, "443:444"], "source": ["10.0.0.0/8"],
         "in_interface": "eth0", "exclude_mac": ["52:54:00:00:00:01"]},
    ],
    "scheduler": "mh",
    "scheduler_flags": ["mh-port"],
    "persistence_timeout": 300,
    "persistence_netmask": 24,
    "persistence_engine": "sip",
    "one_packet": True,
    "real_servers": [
        {"address": "10.0.0.11", "weight": 1, "forward_method": "tunnel", "upper_threshold": 9, "lower_threshold": 5,
         "tunnel_type": "gue", "tunnel_port": 5555, "tunnel_checksum": "csum"},
    ],
}  # fmt: skip
OURS = {"name": "web", "fwmark": 81, "traffic": SERVICE["traffic"]}
WRITTEN = [shorthand(SERVICE), shorthand(OURS)]
INFO: dict[str, Any] = {
    "changed": False,
    "services": [OURS],
    "adoptable": {"before": [SERVICE], "behind": []},
    "not_adoptable": ["mark 7: there is no ipv4 service for it; its rules stay as they are"],
    "problems": [{"kind": "jump", "message": "the ipv4 chain LVS-MARK is not entered", "family": "ipv4"}],
}
DONE = {"changed": True, "operations": ["write /etc/lvs/ipvs.rules"], "diff": {"before": "", "after": ""}}
ANSWERS: dict[str, Any] = {
    "lvs_info": INFO,
    "machine_info": {"changed": False, "os_family": "Debian", "os_version": "12", "missing_commands": [],
                     "flushing_units": [], "settings": {"net.ipv4.vs.conntrack": "0"}, "paths": ["/etc/lvs/vips"]},
    "lvs_service": DONE,
    "boot_files": DONE,
    "ip_objects": DONE,
    "iptables_mss": DONE,
    "command": {"changed": True, "cmd": ["sysctl", "--write"], "stdout": "[]", "rc": 0, "stderr": ""},
    "systemd_service": {"changed": False},
}  # fmt: skip


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to every value inside of one, and to itself."""
    yield above
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*above, key))


def with_lie(value: Any, place: tuple[Any, ...], lie: Any) -> Any:
    """The same with something else in one place."""
    if not place:
        return copy.deepcopy(lie)
    changed = copy.copy(value)
    changed[place[0]] = with_lie(value[place[0]], place[1:], lie)
    return changed


def named(name: object) -> dict[str, Any]:
    """What is told of a service by hand of this name."""
    return {"adoptable": {"before": [{**SERVICE, "name": name}], "behind": []}}


def is_plain(text: str) -> bool:
    return text.isprintable() and not re.search(r"\{[{%#]|#jinja2:", text)


# -- what the filters make of it ----------------------------------------------------------------------------------


class Text(str):
    """As a text that Ansible marks, by a type of its own."""


def test_adopting_the_truth() -> None:
    marked = {**INFO, **named(Text("fwmark-80"))}
    (text,) = adopted({"router1": INFO}).values()
    assert adopted({"router1": marked}) == {"host_vars/router1": text}
    assert yaml.safe_load(text)["lvs_services_router1"] == WRITTEN
    for group, variable in {"all": "lvs_services", "site-1.berlin": "lvs_services_site_1_berlin"}.items():
        written = adopted({"router1": INFO}, group)[f"group_vars/{group}"]
        assert yaml.safe_load(written) == {"lvs_router_adopt": True, variable: WRITTEN}


@pytest.mark.parametrize("lie", LIES)
def test_adopting_lies(lie: str) -> None:
    """Refused, or a file that says no more than a service and comments."""
    told = 0
    for place in (place for key in ("services", "adoptable", "not_adoptable") for place in places(INFO[key], (key,))):
        try:
            (text,) = adopted({"router1": with_lie(INFO, place, LIES[lie])}).values()
        except AnsibleFilterError as error:
            assert all(line.isprintable() for line in str(error).split("\n"))
            continue
        told += 1
        comments, _mark, body = text.partition("---\n")
        assert all(line.startswith("# ") and len(line) < 3000 for line in comments.splitlines())
        assert all(map(is_plain, text.splitlines()))
        assert yaml.safe_load(text) == yaml.safe_load(body)
        assert yaml.safe_load(text).keys() == {"lvs_router_adopt", "lvs_services_router1"}
        virtual_services(yaml.safe_load(text)["lvs_services_router1"])
    assert told or lie not in ("expression", "escape")


RESULTS = {
    "lvs_found": INFO,
    "__lvs_router_machine": {"changed": False, "missing_commands": ["nft"]},
    "__lvs_router_installed": {"changed": True},
    "__lvs_router_set": {"changed": True, "cmd": ["sysctl", "--write", "net.ipv4.vs.conntrack=1"]},
    "__lvs_router_services": DONE,
    "__lvs_router_kept": {**DONE, "msg": "what it said", "failed": False},
    "lvs_failure": {"task": "a task", "message": "what went wrong"},
}


@pytest.mark.parametrize("lie", LIES)
def test_reporting_lies(lie: str) -> None:
    """The report is one, the honest router's entry is its own, and a lie does not make a router "as declared"."""
    honest = audit(["router2"], {"router2": RESULTS})["routers"]["router2"]
    for place in places(RESULTS):
        if place:
            found = with_lie(RESULTS, place, LIES[lie])
            report = audit(["router1", "router2"], {"router1": found, "router2": RESULTS})
            assert report["routers"]["router2"] == honest
            assert not report["as_declared"]
            lines = audit_lines(json.loads(json.dumps(report)))
            assert all(map(is_plain, lines)) and all(len(line) < 3000 for line in lines), place
            assert [line for line in lines if line[0] != " "] == [
                line for line in lines if re.fullmatch(r"router[12]: (differs|failed|unreachable)", line)
            ]


def test_a_change_that_nothing_tells_of_is_no_silence() -> None:
    for operations in ([], None, "x", 7):
        results = {**RESULTS, "__lvs_router_services": {"changed": True, "operations": operations}}
        del results["lvs_failure"]
        found = audit(["router1"], {"router1": results})["routers"]["router1"]
        assert found["status"] == "failed" and found["message"].startswith("its answers are not understood")


def texts(value: Any) -> Iterator[str]:
    """All texts in a value, keys as well."""
    if isinstance(value, str):
        yield value
    for item in (*value, *value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from texts(item)


ONE = answer(SMALL[:1], [{"kind": "jump", "message": "the ipv4 chain LVS-MARK is not entered"}])


@pytest.mark.parametrize("lie", LIES)
def test_showing_lies(lie: str) -> None:
    """An honest router is shown as it is, and a lie stays a text, in lines, in answers and in the page."""
    honest = status(["router2"], {"router2": {"lvs_found": ONE}}, NOW, 10)["routers"][0]
    for place in places(ONE):
        told = {"router1": {"lvs_found": with_lie(ONE, place, LIES[lie])}, "router2": {"lvs_found": ONE}}
        found = status(told, told, NOW, 10)
        shown = found["routers"][1]
        assert {key: shown[key] for key in ("name", "state", "role", "addresses")} == {
            key: honest[key] for key in ("name", "state", "role", "addresses")
        }
        assert all(map(is_plain, texts(found))), place
        lines = status_lines(json.loads(json.dumps(found)))
        assert all(map(is_plain, lines)) and all(len(line) < 3000 for line in lines), place
        asked = status_query(told, told, "pools[].[router,name,address]")
        assert all(map(is_plain, texts(asked))) and ["router2", "web", "10.0.0.11"] in asked
    assert not re.search(r"\{[{%#]|#jinja2:", status_page(found))


# -- what the playbooks make of it --------------------------------------------------------------------------------

# In place of Python on the router. It answers every module in words that were laid down for it, and runs none.
LIAR = """\
#!/bin/sh
module=${1##*/}
module=${module#AnsiballZ_}
cat "$(dirname "$0")/${module%.py}.json"
"""


# In place of a module that no router runs. To pack the true ones, with all that they import, takes two fifths of a run.
STUB = "#!/usr/bin/python\n# WANT_JSON\n"
RUN_BY_THE_CONTROLLER = "report_file.py"


def without_modules(folder: Path) -> Path:
    """The collection with stubs for its modules; what it returns is a path of collections."""
    top = folder / "ansible_collections/lvs/fleet"
    modules = top / "plugins/modules"
    modules.mkdir(parents=True)
    for place in (*TOP.glob("*"), *TOP.glob("plugins/*")):
        if not (top / place.relative_to(TOP)).exists():
            (top / place.relative_to(TOP)).symlink_to(place)
    for module in TOP.glob("plugins/modules/*.py"):
        (modules / module.name).write_text(STUB)
    (modules / RUN_BY_THE_CONTROLLER).unlink()
    (modules / RUN_BY_THE_CONTROLLER).symlink_to(TOP / "plugins/modules" / RUN_BY_THE_CONTROLLER)
    return folder


class Fleet:
    """Routers that lie, each in its own way, and a controller that must not mind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.canary = folder / "canary"
        self.hosts: list[str] = []
        (folder / "inventory").mkdir()
        self.collections = without_modules(folder / "tmp/collections")

    def add(self, name: str, answers: Mapping[str, Any]) -> None:
        """A router with these answers."""
        home = self.folder / "routers" / name
        home.mkdir(parents=True)
        (home / "python").write_text(LIAR)
        (home / "python").chmod(0o755)
        for module, told in {**ANSWERS, **answers}.items():
            text = json.dumps(told).replace("CANARY", str(self.canary))
            (home / f"{module}.json").write_text(text)
        self.hosts.append(name)

    def play(
        self, playbook: str, *words: str, services: Sequence[Any] = (), inventory: str = "inventory"
    ) -> subprocess.CompletedProcess[str]:
        here = {"ansible_connection": "local", "ansible_become": False}
        routers = {name: {"ansible_python_interpreter": f"{self.folder}/routers/{name}/python"} for name in self.hosts}
        group = {"hosts": routers, "vars": {"lvs_services": [*services]}}
        groups = {"lvs_routers": group, "lvs_real_servers": group,
                  "ungrouped": {"hosts": {"localhost": {"ansible_python_interpreter": sys.executable}}}}  # fmt: skip
        text = yaml.safe_dump({"all": {"vars": here, "children": groups}})
        (self.folder / "inventory/hosts.yml").write_text(text)
        program = Path(sys.executable).parent / "ansible-playbook"
        return subprocess.run(
            [program, "-i", inventory, playbook, *words],
            cwd=self.folder,
            env={**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_FORKS": "10",
                 "ANSIBLE_COLLECTIONS_PATH": str(self.collections),
                 "ANSIBLE_LOCAL_TEMP": f"{self.folder}/tmp", "ANSIBLE_REMOTE_TEMP": f"{self.folder}/tmp"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    def files(self) -> set[str]:
        """The files of the controller, but for those that Ansible makes for itself."""
        found = (path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if not path.is_dir())
        return {name for name in found if not name.startswith(("routers/", "tmp/"))}

    def variables(self) -> dict[str, Any]:
        """The inventory as the next playbook gets it."""
        loader = DataLoader()
        inventory = InventoryManager(loader, [f"{self.folder}/inventory"])
        manager = VariableManager(loader, inventory)
        return {name: manager.get_vars(host=inventory.get_host(name)) for name in self.hosts}


@pytest.fixture(name="fleet")
def lying_fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


# Facts with names that the playbooks ask for. Ansible makes variables of them, above those of the inventory.
FACTS = {
    "ansible_facts": {
        "adopt_dir": "CANARY", "adopt_overwrite": True, "inventory_dir": "CANARY", "audit_report": "CANARY",
        "lvs_adopt_folder": "CANARY", "lvs_audit_file": "CANARY", "role_path": "CANARY", "playbook_dir": "CANARY",
        "target": "CANARY", "inventory_hostname": "../CANARY", "status_page": "CANARY", "query": "lvs_found",
        "lvs_status_file": "CANARY", "lvs_status_query": "CANARY",
    },
}  # fmt: skip


def test_adopt(fleet: Fleet) -> None:
    """Lies in what is written, by a router that would write elsewhere, or again; and the inventory afterwards."""
    for lie in ("expression", "another-template", "line-separator"):
        fleet.add(f"name-{lie}", {"lvs_info": {**INFO, **named(LIES[lie])}})
    # Ansible itself refuses a surrogate.
    reasons = [value for lie, value in LIES.items() if lie != "surrogate"]
    fleet.add("reasons", {"lvs_info": {**INFO, **FACTS, "not_adoptable": reasons}})
    fleet.add("again", {"lvs_info": {**INFO, **FACTS}})
    kept = fleet.folder / "inventory/host_vars/again"
    kept.mkdir(parents=True)
    (kept / "lvs_services.yml").write_text("lvs_services_again: []\n")
    run = fleet.play("lvs.fleet.adopt")
    written = {f"inventory/host_vars/{name}/lvs_services.yml" for name in ("reasons", "again")}
    assert fleet.files() == {"inventory/hosts.yml", *written}, run.stdout + run.stderr
    assert all(char.isprintable() or char == "\n" for char in run.stdout + run.stderr)
    variables = fleet.variables()
    added = {name: found.get(f"lvs_services_{name}") for name, found in variables.items()}
    assert {name: services for name, services in added.items() if services} == {"reasons": WRITTEN}
    assert not any("lvs_router_marking" in found for found in variables.values())


def test_adopt_keeps_modes(fleet: Fleet) -> None:
    modes = {"router1": 0o700, "router2": 0o2775}
    for name, mode in modes.items():
        fleet.add(name, {})
        folder = fleet.folder / "inventory/host_vars" / name
        folder.mkdir(parents=True)
        folder.chmod(mode)
        (folder / "lvs_services.yml").touch()
        (folder / "lvs_services.yml").chmod(mode & 0o660)
    fleet.add("router3", {})
    run = fleet.play("lvs.fleet.adopt", "-e", "adopt_overwrite=true", "-e", "target=router1:router2:router3")
    assert run.returncode == 0, run.stdout + run.stderr
    found = {path.name: path.stat().st_mode & 0o7777 for path in (fleet.folder / "inventory/host_vars").iterdir()}
    assert found == {**modes, "router3": 0o755}
    files = sorted((fleet.folder / "inventory/host_vars").glob("*/lvs_services.yml"))
    assert [path.stat().st_mode & 0o777 for path in files] == [0o600, 0o660, 0o644]


def test_adopt_of_names_that_are_paths(fleet: Fleet) -> None:
    fleet.hosts = ["../up", str(fleet.canary), ".hidden", "..", "a/../../b"]
    run = fleet.play("lvs.fleet.adopt")
    assert fleet.files() == {"inventory/hosts.yml"}
    for name in fleet.hosts:
        assert f"{name}: no folder of this name is made." in run.stdout + run.stderr


def test_audit(fleet: Fleet) -> None:
    """Each lie in all places at once from which the playbook takes words, by routers that come to different ends."""
    for lie in ("expression", "escape", "mapping"):
        value = LIES[lie]
        said = {**INFO, "problems": [{"kind": value, "message": value}]}
        operations = {"changed": True, "operations": [value]}
        fleet.add(f"differs-{lie}", {"lvs_info": said, "lvs_service": operations, "boot_files": operations})
        fleet.add(f"fails-{lie}", {"lvs_service": {"failed": True, "msg": value}, "lvs_info": {**INFO, **FACTS}})
        fleet.add(f"family-{lie}", {"machine_info": {**ANSWERS["machine_info"], "os_family": value}})
    # A file of the controller that this router has no business with, which shows when it is loaded.
    secret = fleet.folder / "secret.yml"
    secret.write_text(f'lvs_router_persistence: "{{{{ {RUN} }}}}"\n'.replace("CANARY", str(fleet.canary)))
    way = "../" * 30 + str(fleet.folder / "secret")
    fleet.add("family-path", {"machine_info": {**ANSWERS["machine_info"], "os_family": way}})
    run = fleet.play("lvs.fleet.audit", "-e", "audit_report=audit.json")
    said = run.stdout + run.stderr
    assert run.returncode == 2 and fleet.files() == {"inventory/hosts.yml", "secret.yml", "audit.json"}, said
    report = json.loads((fleet.folder / "audit.json").read_text())
    assert sorted(report["routers"]) == sorted(fleet.hosts)
    for name, entry in report["routers"].items():
        wanted = "differs" if name.startswith("differs-") else "failed"
        assert entry["status"] == wanted, (name, entry)
    assert all(map(is_plain, audit_lines(report)))


def test_audit_report_at_places_that_are_no_files(fleet: Fleet) -> None:
    fleet.add("router1", {})
    (fleet.folder / "kept").write_text("kept\n")
    (fleet.folder / "link").symlink_to("kept")
    for value in ("", "link"):
        run = fleet.play("lvs.fleet.audit", "-e", f"audit_report={value}")
        assert run.returncode == 2, run.stdout
        assert fleet.files() == {"inventory/hosts.yml", "kept", "link"}
        assert (fleet.folder / "kept").read_text() == "kept\n"


# Each that a list of words can have. Ansible itself refuses a surrogate.
WORDS = [value for lie, value in LIES.items() if isinstance(value, str) and value and lie not in ("surrogate", "huge")]
TOLD = {"changed": True, "operations": WORDS, "changes": WORDS}
SAME = {"changed": False, "operations": [], "changes": []}
PROBLEMS = {**INFO, "problems": [{"kind": word, "message": word} for word in WORDS]}


def summary_of(run: subprocess.CompletedProcess[str], fleet: Fleet) -> dict[str, list[str]]:
    """The lines of the summary by their machine. Nothing was run or written, and no terminal minds the summary."""
    assert run.returncode == 2 and fleet.files() == {"inventory/hosts.yml"}, run.stdout + run.stderr
    # Before it Ansible shows answers of modules that failed, in its own way.
    _told, _play, said = run.stdout.partition("PLAY [Say what came of it]")
    assert said and all(char.isprintable() or char == "\n" for char in said)
    shown = re.search(r'^    "msg": (\[\n.*?\n    \])$', said, re.MULTILINE | re.DOTALL)
    assert shown, run.stdout
    *lines, last = json.loads(shown[1])
    assert last.startswith("Next: mend what is said of ")
    assert all(map(is_plain, lines)) and all(len(line) < 3000 for line in lines)
    found: dict[str, list[str]] = {}
    for line in lines:
        found.setdefault(line, []) if line[0] != " " else found[[*found][-1]].append(line.strip())
    return found


def test_deploy(fleet: Fleet) -> None:
    """The words of the summary are a router's, its lines and what becomes of the others are not."""
    fleet.add("changed", {"lvs_service": SAME, "boot_files": TOLD, "lvs_info": {**PROBLEMS, **FACTS}})
    fleet.add("missing", {"lvs_service": TOLD})
    fleet.add("fails", {"lvs_service": {"failed": True, "msg": "\n".join(WORDS)}})
    machine = {"flushing_units": WORDS, "settings": {word: word for word in WORDS}, "paths": WORDS}
    for name, lie in {"family": {"os_family": LIES["expression"]}, "machine": machine}.items():
        fleet.add(name, {"machine_info": {**ANSWERS["machine_info"], **lie}})
    fleet.add("types", {"lvs_service": SAME, "boot_files": {"changed": True, "operations": 7}})
    found = summary_of(fleet.play("lvs.fleet.deploy", "-e", "deploy_serial=100%"), fleet)
    assert [*found] == [
        "changed: changed", "fails: failed", "family: failed", "machine: failed", "missing: failed", "types: failed",
    ]  # fmt: skip
    assert len([line for line in found["changed: changed"] if line.startswith("problem: ")]) == len(WORDS)
    [missing] = [line for line in found["missing: failed"] if "still missing" in line]
    assert missing.count("; ") == len(WORDS) - 1


def test_real_servers(fleet: Fleet) -> None:
    """The same of machines that say which addresses and settings they have."""

    def answer(name: Any, lines: Any) -> dict[str, Any]:
        links = [{"ifname": name, "addr_info": [{"local": "10.0.0.11"}]}]
        return {"command": {"changed": False, "rc": 0, "stdout": json.dumps(links), "stdout_lines": lines}}

    fleet.add("link", {**answer(LIES["expression"], []), "boot_files": TOLD})
    fleet.add("lines", {**answer("eth0", WORDS), "ip_objects": TOLD})
    fleet.add("types", answer(LIES["mapping"], 7))
    fleet.add("fails", {**answer("eth0", []), "ip_objects": {"failed": True, "msg": "\n".join(WORDS)}})
    service = {"name": "web", "fwmark": 80, "traffic": SERVICE["traffic"],
               "real_servers": [{"address": "10.0.0.11", "forward_method": "masquerade"}]}  # fmt: skip
    words = json.dumps({"deploy_serial": "100%", "lvs_real_server_gateways": ["10.0.0.1"]})
    found = summary_of(fleet.play("lvs.fleet.real_servers", "-e", words, services=[service]), fleet)
    assert [*found] == ["fails: failed", "lines: changed", "link: changed", "types: failed"]
    assert len(found["lines: changed"]) == len(WORDS) + 1


def shown_by(run: subprocess.CompletedProcess[str]) -> Any:
    """What the last task of a playbook shows."""
    assert all(char.isprintable() or char == "\n" for char in run.stdout)
    said = re.findall(r'^    "msg": ((?:\[\n.*?\n    \]|\[\]|.*?))$', run.stdout, re.MULTILINE | re.DOTALL)
    assert said, run.stdout + run.stderr
    return json.loads(said[-1])


def add_liars(fleet: Fleet) -> None:
    for lie in ("expression", "another-template", "escape", "mapping"):
        services = [{**SMALL[0], "name": LIES[lie], "scheduler": LIES[lie]}]
        problems = [{"kind": LIES[lie], "message": LIES[lie]}]
        fleet.add(lie, {"lvs_info": {**answer(services, problems), **FACTS}})
    fleet.add("fails", {"lvs_info": {"failed": True, "msg": LIES["expression"]}})
    fleet.add("honest", {"lvs_info": small()["router1"]})


def test_status(fleet: Fleet) -> None:
    add_liars(fleet)
    run = fleet.play("lvs.fleet.status", "-e", "status_page=fleet.html", "-e", "rate_interval=0")
    assert run.returncode == 0 and fleet.files() == {"inventory/hosts.yml", "fleet.html"}, run.stdout + run.stderr
    lines = shown_by(run)
    assert lines[0].startswith("6 routers, 5 services, ") and all(map(is_plain, lines))
    assert "failed: fails: { { lookup('pipe', 'touch " in "\n".join(lines)
    page = (fleet.folder / "fleet.html").read_text()
    assert "honest" in page and not re.search(r"\{[{%#]|#jinja2:", page)
    assert (fleet.folder / "fleet.html").stat().st_mode & 0o777 == 0o600


def test_a_question_to_liars(fleet: Fleet) -> None:
    add_liars(fleet)
    run = fleet.play("lvs.fleet.status", "-e", "query=pools[?address=='10.0.0.11'].[router,name]")
    assert run.returncode == 0 and fleet.files() == {"inventory/hosts.yml"}, run.stdout + run.stderr
    answered = dict(shown_by(run))
    assert answered.keys() == {"another-template", "escape", "expression", "honest", "mapping"}
    assert answered["honest"] == "web" and all(map(is_plain, answered.values()))


def test_a_page_at_a_place_that_is_no_file(fleet: Fleet) -> None:
    fleet.add("router1", {"lvs_info": small()["router1"]})
    (fleet.folder / "kept").write_text("kept\n")
    (fleet.folder / "link").symlink_to("kept")
    run = fleet.play("lvs.fleet.status", "-e", "status_page=link")
    assert run.returncode == 2 and (fleet.folder / "kept").read_text() == "kept\n", run.stdout
