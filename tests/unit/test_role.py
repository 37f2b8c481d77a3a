# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the roles say of themselves in two places must be the same in both."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

from ansible_collections.lvs.fleet.plugins.filter.fleet import unknown_variables

TOP = Path(__file__).parents[2]
ROLE = TOP / "roles" / "lvs_router"


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


ROLES = sorted((TOP / "roles").iterdir())


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_argument_specs_equal_the_defaults(role: Path) -> None:
    options = load(role / "meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    assert {name: option["default"] for name, option in options.items()} == load(role / "defaults/main.yml")


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_the_role_uses_every_variable_and_no_other(role: Path) -> None:
    used: set[str] = set()
    for path in [*role.glob("tasks/*"), *role.glob("vars/*"), *role.glob("handlers/*")]:
        used |= set(re.findall(rf"(?<!_)\b{role.name}_\w+", path.read_text()))
    assert used == set(load(role / "defaults/main.yml"))


def test_the_real_servers_files_are_all_removed_again() -> None:
    """A file that is written, and not among those that are removed, would stay when the machine leaves the pool."""
    variables = (TOP / "roles/lvs_real_server/vars/main.yml").read_text()
    written = set(re.findall(r"path: (/etc/\S+)", variables))
    assert written | {"/etc/lvs/real-server"} == set(re.findall(r"^  - (/etc/\S+)$", variables, re.MULTILINE))
    units = {path.name for path in (TOP / "roles/lvs_real_server/files").iterdir()}
    assert {Path(path).name for path in written if path.endswith(".service")} == units


# -- variables of the user ----------------------------------------------------------------------------------------


def worked_out(variable: str, **given: Any) -> Any:
    """A variable of the role lvs_router with these of the user."""
    return worked_out_text(f"{{{{ {variable} }}}}", **given)


def worked_out_text(text: str, **given: Any) -> Any:
    """A text of the role with these variables of the user. Filters of the collection are not to be had here."""
    loader = DataLoader()
    files = (ROLE / "defaults/main.yml", ROLE / "vars/main.yml")
    own = {name: value for path in files
           for name, value in loader.load_from_file(str(path), trusted_as_template=True).items()}  # fmt: skip
    needs = {"problems": [], "masqueraded": ["ipv4"], "kernel_modules": ["ip_vs"]}
    variables = {**own, "lvs_services": [], "__lvs_router_needs": needs, "__lvs_router_unknown": [], **given}
    return Templar(loader, variables=variables).template(trust_as_template(text))


HOSTILE_VARIABLES = [
    *(("lvs_router_vip_interface", value)
      for value in ("eth0\n", "eth0 nodad", "-x", "../all", "a" * 16, "eth0;id", "é", "{{ x }}", "eth0\0", ["eth0"])),
    *(("lvs_router_vip_table", value) for value in (-1, 253, "1\n2", "x", "0x10", 2**64, "", None, [1])),
    *(("lvs_router_max_removals", value) for value in (-1, 101, "50%", "", None, [50])),
    *(("lvs_router_conn_reuse_mode", value)
      for value in (-1, 4, "1\nkernel.panic = 1", "1\n", " 1", "\u0661", "0_1", True, None, "", [1], "1=1", "yes")),
]  # fmt: skip


@pytest.mark.parametrize(("variable", "value"), HOSTILE_VARIABLES)
def test_hostile_variables_are_named(variable: str, value: Any) -> None:
    (problem,) = worked_out("__lvs_router_problems", **{variable: value})
    assert problem.startswith(f"{variable}: ") and problem.isprintable()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        *(("lvs_router_vip_interface", value) for value in ("", "lo", "a" * 15, "br-0.12", "if@x")),
        *(("lvs_router_vip_table", value) for value in (0, 1, 252, "252")),
        *(("lvs_router_max_removals", value) for value in (0, 50, 100, "100")),
        *(("lvs_router_conn_reuse_mode", value) for value in (0, 1, 3, "1")),
    ],
)
def test_variables_at_their_bounds(variable: str, value: Any) -> None:
    assert worked_out("__lvs_router_problems", **{variable: value}) == []


@pytest.mark.parametrize("name", ["conntrack", "expire_nodest_conn", "expire_quiescent_template"])
def test_every_word_for_true_and_false_is_a_setting(name: str) -> None:
    for words, setting in ((("yes", "true", "on", "1", 1, True), 1), (("no", "False", "off", "0", 0, False), 0)):
        for word in words:
            found = worked_out("__lvs_router_sysctls", **{f"lvs_router_{name}": word})
            assert found[f"net.ipv4.vs.{name}"] == setting, word


# -- firewalls on the router --------------------------------------------------------------------------------------

FIREWALLD = ("firewalld.service",)
WEB = '-A LVS-MARK -d 192.0.2.10/32 -m comment --comment "lvs:web" -j MARK\n'
FTP = '-A LVS-SNAT -s 10.0.0.11/32 -m comment --comment "lvs:ftp" -j SNAT\n'


def firewall_problems(rules: str, *units: str, paths: tuple[str, ...] = (), **given: Any) -> Any:
    needs = {"marks": {"ipv4": rules, "ipv6": rules}}
    machine = {"flushing_units": list(units), "paths": list(paths)}
    own = {"__lvs_router_needs": needs, "__lvs_router_machine": machine}
    return worked_out("__lvs_router_firewall_problems", **own, **given)


@pytest.mark.parametrize(
    ("rules", "units", "given", "told"),
    [
        (WEB, FIREWALLD, {}, "lvs_router_marking: iptables does not go together with firewalld.service: this firewall"),
        (
            WEB,
            ("ferm.service", "shorewall.service"),
            {},
            "lvs_router_marking: iptables does not go together with ferm.service, shorewall.service: ",
        ),
        (WEB + FTP, FIREWALLD, {}, "lvs_router_marking: iptables does not"),
        (
            FTP,
            FIREWALLD,
            {"marking": "nftables"},
            "lvs_router_services (ftp).helper: ftp does not go together with fire",
        ),
        (
            WEB,
            ("nftables.service",),
            {"persistence": "distribution"},
            "lvs_router_persistence: distribution does not go",
        ),
        (
            "",
            FIREWALLD,
            {"persistence": "distribution"},
            "lvs_router_persistence: distribution does not go together with ",
        ),
    ],
)
def test_a_firewall_that_would_remove_the_rules_is_named(
    rules: str, units: tuple[str, ...], given: dict[str, str], told: str
) -> None:
    variables = {f"lvs_router_{name}": value for name, value in given.items()}
    (problem,) = firewall_problems(rules, *units, **variables)
    assert problem.startswith(told) and units[0] in problem and "; write " in problem


@pytest.mark.parametrize(
    ("rules", "units", "marking"),
    [
        (WEB, (), "iptables"),
        ("", FIREWALLD, "iptables"),
        ("", FIREWALLD, "nftables"),
        (WEB, ("nftables.service",), "iptables"),
        (FTP, ("nftables.service",), "nftables"),
    ],
)
def test_a_firewall_that_leaves_the_rules_is_none_of_our_business(
    rules: str, units: tuple[str, ...], marking: str
) -> None:
    assert firewall_problems(rules, *units, paths=("/usr/sbin/ufw",), lvs_router_marking=marking) == []


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_the_role_knows_its_variables(role: Path) -> None:
    assert load(role / "vars/main.yml")[f"__{role.name}_variables"] == list(load(role / "defaults/main.yml"))


@pytest.mark.parametrize(
    ("role", "name", "hint"),
    [
        ("lvs_router", "lvs_router_vip_interfaces", "; did you mean lvs_router_vip_interface?"),
        ("lvs_router", "lvs_routers_marking", "; did you mean lvs_router_marking?"),
        ("lvs_router", "lvs_router_presistence", "; did you mean lvs_router_persistence?"),
        ("lvs_router", "lvs_router_x", ""),
        ("lvs_real_server", "lvs_real_server_gateway", "; did you mean lvs_real_server_gateways?"),
        ("lvs_real_server", "lvs_real_servers_mtu", "; did you mean lvs_real_server_mtu?"),
        ("lvs_real_server", "lvs_realserver_mtu", "; did you mean lvs_real_server_mtu?"),
    ],
)
def test_a_misspelt_variable_is_named(role: str, name: str, hint: str) -> None:
    assert unknown(TOP / "roles" / role, name) == [f"{name}: is not a variable of the role{hint}"]


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_variables_of_others_are_none_of_the_roles_business(role: Path) -> None:
    others = ["lvs_services", "lvs_services_web", "lvs_audit", "lvs_rs_x", "my_lvs_router_x", "lvs_maintenance"]
    assert unknown(role, *others, *load(role / "defaults/main.yml")) == []


def unknown(role: Path, *names: str) -> list[str]:
    """What the role says of variables with these names, by the pattern that it has for its own."""
    variables = load(role / "vars/main.yml")
    (pattern,) = re.findall(r"varnames', '(.*?)'", variables[f"__{role.name}_unknown"])
    return unknown_variables(
        [name for name in names if re.search(pattern, name)], variables[f"__{role.name}_variables"]
    )


@pytest.mark.parametrize(("family", "named"), [("Debian", ""), ("RedHat", ""), ("alpine", "alpine"), ("", "none")])
def test_an_operating_system_that_the_role_does_not_know(family: str, named: str) -> None:
    begin = "the role knows the packages and files of the Debian and RHEL families; /etc/os-release names another one: "
    machine = {"os_family": family}
    given = {"__lvs_router_machine": machine, "__lvs_router_firewall_problems": ["a firewall"]}
    assert worked_out("__lvs_router_obstacles", **given) == [*([begin + named] if named else []), "a firewall"]


def test_a_package_index_is_fetched_where_it_is_missing_and_check_mode_says_so() -> None:
    (install,) = (task for task in load(ROLE / "tasks/prepare.yml") if "rescue" in task)
    (first,) = install["block"]
    say, again = install["rescue"]
    wanted = {"name": "{{ __lvs_router_tools }}", "state": "present"}
    assert first["ansible.builtin.package"] == wanted
    assert again["ansible.builtin.apt"] == {**wanted, "update_cache": True}
    assert first["register"] == again["register"] == "__lvs_router_installed"
    for family, check, said in (
        ("Debian", True, "No package; if its package index is missing or old: "),
        ("RedHat", True, "No package"),
        ("RedHat", False, "No package"),
        ("Debian", False, ""),
    ):
        given = {
            "__lvs_router_machine": {"os_family": family},
            "ansible_check_mode": check,
            "ansible_failed_result": {"msg": "No package"},
        }
        assert worked_out_text(f"{{{{ {say['when']} }}}}", **given) is bool(said)
        if said:
            assert worked_out_text(say["ansible.builtin.fail"]["msg"], **given).startswith(said)


FAMILIES = ["Debian", "RedHat"]


@pytest.mark.parametrize(
    ("family", "reloading"), [("Debian", {"nftables"}), ("RedHat", {"nftables", "iptables", "ip6tables"})]
)
def test_rules_come_back_after_what_removes_them(family: str, reloading: set[str]) -> None:
    """Each such unit has lvs-restore run again, after all that it can do and no more; and comes before it at boot."""
    again = "-/bin/systemctl --no-block restart lvs-restore.service\n"
    once = f"[Service]\nExecStartPost={again}ExecStopPost={again}"
    contents = {"__lvs_router_follow": once, "__lvs_router_follow_reloads": f"{once}ExecReload={again}"}
    drop_ins = load(ROLE / f"vars/{family}.yml")["__lvs_router_follow_drop_ins"]
    found = {Path(file["path"]).parts[-2]: worked_out_text(file["content"]) for file in drop_ins}
    others = {"netfilter-persistent"} if family == "Debian" else set()
    assert found == {
        f"{name}.service.d": contents["__lvs_router_follow_reloads" if name in reloading else "__lvs_router_follow"]
        for name in reloading | others
    }
    after = re.findall(r"[\w-]+[.]service", (ROLE / "files/lvs-restore.service").read_text())
    assert {name.removesuffix(".d") for name in found} <= set(after)


def test_every_family_defines_the_same() -> None:
    families = [load(ROLE / f"vars/{family}.yml") for family in FAMILIES]
    assert families[0].keys() == families[1].keys()
    kinds = [[file["part"] for file in family["__lvs_router_shared_files"]][:3] for family in families]
    assert kinds == [["iptables", "iptables", "ipvsadm"]] * 2
    assert all((ROLE / f"tasks/restorer-{family}.yml").exists() for family in FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_package_names_are_known(family: str) -> None:
    packages = load(ROLE / f"vars/{family}.yml")["__lvs_router_packages"]
    assert "ipvsadm" in packages and any(name.startswith("iptables") for name in packages)


def test_what_is_said_of_the_rhel_family() -> None:
    """The page names each package, and tests that are there."""
    page = (TOP / "docs/rhel.md").read_text()
    packages = load(ROLE / "vars/RedHat.yml")["__lvs_router_packages"]
    assert [name for name in packages if f"`{name}`" not in page] == []
    tests = re.findall("`((?:tests|extensions|roles)/[^`]*)`", page)
    assert len(tests) >= 7 and [path for path in tests if not (TOP / path).exists()] == []


def test_the_action_group_holds_every_module() -> None:
    modules = {path.stem for path in (TOP / "plugins/modules").glob("*.py")}
    assert set(load(TOP / "meta/runtime.yml")["action_groups"]["all"]) == modules
