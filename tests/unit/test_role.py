# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the roles say of themselves in two places must be the same in both."""

from __future__ import annotations

import re
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar

from ansible_collections.lvs.fleet.plugins.filter.fleet import router, unknown_variables
from ansible_collections.lvs.fleet.plugins.module_utils._boot import router as boot

try:
    from ansible.template import trust_as_template
except ImportError:
    # Before 2.19 every text may be a template.
    trust_as_template = str
trusting = {"trusted_as_template": True}
FROM_USER = trusting if trusting.keys() <= signature(DataLoader.load_from_file).parameters.keys() else {}

TOP = Path(__file__).parents[2]
ROLE = TOP / "roles" / "lvs_router"
WEB = {
    "name": "web",
    "fwmark": 80,
    "traffic": [{"destination": ["192.0.2.10", "2001:db8::10"], "protocol": "tcp", "ports": [80, 443]}],
    "forward_method": "masquerade",
    "real_servers": [{"address": "10.0.0.11"}, {"address": "2001:db8:1::11"}],
}


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


FAMILIES = load(ROLE / "vars/main.yml")["__lvs_router_families"]
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


def needs_with(**given: Any) -> dict[str, Any]:
    """What the role works out for one masqueraded service, with these of its variables."""
    return router([WEB], **given)


def worked_out_text(text: str, **given: Any) -> Any:
    """A text of the role lvs_router with these variables. Filters of the collection are not to be had here."""
    loader = DataLoader()
    files = (ROLE / "defaults/main.yml", ROLE / "vars/main.yml")
    own = {name: value for path in files for name, value in loader.load_from_file(str(path), **FROM_USER).items()}
    variables = {**own, "lvs_services": [], "__lvs_router_unknown": [], **given}
    return Templar(loader, variables=variables).template(trust_as_template(text))


HOSTILE_VARIABLES = [
    *(("vip_interface", value)
      for value in ("eth0\n", "eth0 nodad", "-x", "../all", "a" * 16, "eth0;id", "é", "{{ x }}", "eth0\0", ["eth0"])),
    *(("vip_table", value) for value in (-1, 253, "1\n2", "x", "0x10", 2**64, "", None, [1])),
    *(("max_removals", value) for value in (-1, 101, "50%", "", None, [50])),
    *(("conn_reuse_mode", value)
      for value in (-1, 4, "1\nkernel.panic = 1", "1\n", " 1", "\u0661", "0_1", True, None, "", [1], "1=1", "yes")),
]  # fmt: skip


@pytest.mark.parametrize(("variable", "value"), HOSTILE_VARIABLES)
def test_hostile_variables_are_named(variable: str, value: Any) -> None:
    (problem,) = needs_with(**{variable: value})["variable_problems"]
    assert problem.startswith(f"lvs_router_{variable}: ") and problem.isprintable()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        *(("vip_interface", value) for value in ("", "lo", "a" * 15, "br-0.12", "if@x")),
        *(("vip_table", value) for value in (0, 1, 252, "252")),
        *(("max_removals", value) for value in (0, 50, 100, "100")),
        *(("conn_reuse_mode", value) for value in (0, 1, 3, "1")),
    ],
)
def test_variables_at_their_bounds(variable: str, value: Any) -> None:
    assert needs_with(**{variable: value})["variable_problems"] == []


@pytest.mark.parametrize("name", ["conntrack", "expire_nodest_conn", "expire_quiescent_template"])
def test_every_word_for_true_and_false_is_a_setting(name: str) -> None:
    for words, setting in ((("yes", "true", "on", "1", 1, True), 1), (("no", "False", "off", "0", 0, False), 0)):
        for word in words:
            found = needs_with(**{name: word})["sysctls"]
            assert found[f"net.ipv4.vs.{name}"] == setting, word


# -- firewalls on the router --------------------------------------------------------------------------------------

FIREWALLD = ("firewalld.service",)
MARKS = '-A LVS-MARK -d 192.0.2.10/32 -m comment --comment "lvs:web" -j MARK\n'
FTP = '-A LVS-SNAT -s 10.0.0.11/32 -m comment --comment "lvs:ftp" -j SNAT\n'


def obstacles(
    rules: str, *units: str, paths: tuple[str, ...] = (), marking: str = "iptables", persistence: str = "unit",
    family: str = "Debian",
) -> list[str]:  # fmt: skip
    needs = {"marks": {"ipv4": rules, "ipv6": rules}, "marking": marking, "persistence": persistence}
    machine = {"os_family": family, "flushing_units": list(units), "paths": list(paths)}
    return boot.obstacles(needs, machine, FAMILIES)


@pytest.mark.parametrize(
    ("rules", "units", "given", "told"),
    [
        (
            MARKS,
            FIREWALLD,
            {},
            "lvs_router_marking: iptables does not go together with firewalld.service: this firewall",
        ),
        (
            MARKS,
            ("ferm.service", "shorewall.service"),
            {},
            "lvs_router_marking: iptables does not go together with ferm.service, shorewall.service: ",
        ),
        (MARKS + FTP, FIREWALLD, {}, "lvs_router_marking: iptables does not"),
        (
            FTP,
            FIREWALLD,
            {"marking": "nftables"},
            "lvs_router_services (ftp).helper: ftp does not go together with fire",
        ),
        (
            MARKS,
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
    (problem,) = obstacles(rules, *units, **given)
    assert problem.startswith(told) and units[0] in problem and "; write " in problem


@pytest.mark.parametrize(
    ("rules", "units", "marking"),
    [
        (MARKS, (), "iptables"),
        ("", FIREWALLD, "iptables"),
        ("", FIREWALLD, "nftables"),
        (MARKS, ("nftables.service",), "iptables"),
        (FTP, ("nftables.service",), "nftables"),
    ],
)
def test_a_firewall_that_leaves_the_rules_is_none_of_our_business(
    rules: str, units: tuple[str, ...], marking: str
) -> None:
    assert obstacles(rules, *units, paths=("/usr/sbin/ufw",), marking=marking) == []


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
    found = obstacles(MARKS, *FIREWALLD, family=family)
    assert found == [*([begin + named] if named else []), *obstacles(MARKS, *FIREWALLD)]


def test_a_machine_that_was_lost() -> None:
    lost = {"unreachable": True, "msg": "No route to host"}
    assert boot.obstacles(needs_with(), lost, FAMILIES) == ["the machine cannot be reached: No route to host"]


def test_a_package_index_is_fetched_where_it_is_missing_and_check_mode_says_so() -> None:
    (install,) = (task for task in load(ROLE / "tasks/prepare.yml") if "rescue" in task)
    (first,) = install["block"]
    say, again = install["rescue"]
    wanted = {"name": "{{ __lvs_router_setup.packages }}", "state": "present"}
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


@pytest.mark.parametrize(
    ("family", "reloading"), [("Debian", {"nftables"}), ("RedHat", {"nftables", "iptables", "ip6tables"})]
)
def test_rules_come_back_after_what_removes_them(family: str, reloading: set[str]) -> None:
    """Each such unit has lvs-restore run again, after all that it can do and no more; and comes before it at boot."""
    again = "-/bin/systemctl --no-block restart lvs-restore.service\n"
    once = f"[Service]\nExecStartPost={again}ExecStopPost={again}"
    drop_ins = {path: text for path, text in files(family).items() if path.endswith(".service.d/lvs-fleet.conf")}
    found = {Path(path).parts[-2]: text for path, text in drop_ins.items()}
    others = {"netfilter-persistent"} if family == "Debian" else set()
    assert found == {
        f"{name}.service.d": f"{once}ExecReload={again}" if name in reloading else once for name in reloading | others
    }
    after = re.findall(r"[\w-]+[.]service", (ROLE / "files/lvs-restore.service").read_text())
    assert {name.removesuffix(".d") for name in found} <= set(after)


def test_every_family_defines_the_same() -> None:
    assert FAMILIES["Debian"].keys() == FAMILIES["RedHat"].keys()
    kinds = [[file["part"] for file in family["shared_files"]][:3] for family in FAMILIES.values()]
    assert kinds == [["iptables", "iptables", "ipvsadm"]] * 2
    assert all((ROLE / f"tasks/restorer-{family}.yml").exists() for family in FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_package_names_are_known(family: str) -> None:
    packages = FAMILIES[family]["packages"]
    assert "ipvsadm" in packages and any(name.startswith("iptables") for name in packages)


def test_what_is_said_of_the_rhel_family() -> None:
    """The page names each package, and tests that are there."""
    page = (TOP / "docs/rhel.md").read_text()
    assert [name for name in FAMILIES["RedHat"]["packages"] if f"`{name}`" not in page] == []
    tests = re.findall("`((?:tests|extensions|roles)/[^`]*)`", page)
    assert len(tests) >= 7 and [path for path in tests if not (TOP / path).exists()] == []


# -- boot files ---------------------------------------------------------------------------------------------------

TEXTS = {path.name: path.read_text() for path in (ROLE / "files").iterdir()}
KERNEL = {"/etc/modules-load.d/lvs-fleet.conf", "/etc/sysctl.d/90-lvs-fleet.conf"}
BY_UNIT = {
    *("/etc/lvs/ipvs.rules", "/etc/lvs/marks.v4", "/etc/lvs/marks.v6", "/usr/local/sbin/lvs-restore"),
    "/etc/systemd/system/lvs-restore.service",
}
VIPS_ORDER = "/etc/systemd/system/lvs-vips.service.d/lvs-fleet.conf"
WANTED = "/etc/systemd/system/multi-user.target.d/lvs-fleet.conf"


def kept(family: str, **given: Any) -> dict[str, Any]:
    return boot.kept(needs_with(**given), FAMILIES[family], TEXTS)


def files(family: str, **given: Any) -> dict[str, str]:
    """What is in the files, by their paths; without those of the distribution from which our part goes."""
    found = kept(family, **given)["files"]
    return {file["path"]: file["content"] for file in found if file["content"] or "part" not in file}


def shared(family: str) -> set[str]:
    return {file["path"] for file in FAMILIES[family]["shared_files"]}


def drop_ins(family: str) -> set[str]:
    return {f"/etc/systemd/system/{unit}.d/lvs-fleet.conf" for unit in FAMILIES[family]["removing_units"]}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("given", "own", "of_the_family"),
    [
        ({}, BY_UNIT, drop_ins),
        ({"marking": "nftables"}, {*BY_UNIT, "/etc/lvs/marks.nft"}, drop_ins),
        ({"persistence": "none"}, {VIPS_ORDER}, lambda _family: set()),
        ({"persistence": "none", "marking": "nftables"}, {VIPS_ORDER}, lambda _family: set()),
        (
            {"persistence": "distribution"},
            {VIPS_ORDER, WANTED},
            lambda family: shared(family) | {file["path"] for file in FAMILIES[family]["drop_ins"]},
        ),
    ],
)
def test_one_way_without_the_others(family: str, given: dict[str, str], own: set[str], of_the_family: Any) -> None:
    """A file that another way has left would bring back at boot what was declared then."""
    way = kept(family, **given)
    wanted = {file["path"] for file in way["files"]}
    assert set(files(family, **given)) == KERNEL | own | of_the_family(family)
    assert wanted - set(files(family, **given)) == (
        set() if given.get("persistence") == "distribution" else shared(family)
    )
    everything = {
        path
        for one in ({}, {"marking": "nftables"}, {"persistence": "none"}, {"persistence": "distribution"})
        for path in files(family, **one)
    }
    assert everything <= wanted | set(way["absent"])
    assert not wanted & set(way["absent"]) and way["absent"][-1] == "/etc/lvs"
    by_unit = given.get("persistence", "unit") == "unit"
    assert (way["enabled_units"], way["disabled_units"]) == (
        (["lvs-restore.service"], []) if by_unit else ([], ["lvs-restore.service"])
    )


def test_the_unit_for_addresses_is_there_with_addresses() -> None:
    way = kept("Debian", vip_interface="eth0")
    assert "/etc/systemd/system/lvs-vips.service" in {file["path"] for file in way["files"]}
    assert way["enabled_units"] == ["lvs-restore.service", "lvs-vips.service"]
    assert "/etc/systemd/system/lvs-vips.service" not in files("Debian")


def test_addresses_wait_for_services_or_do_not_come() -> None:
    assert (
        "After=netfilter-persistent.service ipvsadm.service\n"
        in files("Debian", persistence="distribution")[VIPS_ORDER]
    )
    assert "ConditionPathExists=!/\n" in files("Debian", persistence="none")[VIPS_ORDER]


def test_what_the_kernel_gets_at_boot() -> None:
    found = files("Debian", vip_interface="eth0.5", conntrack=True)
    assert found["/etc/modules-load.d/lvs-fleet.conf"] == "ip_vs\nip_vs_wlc\n"
    assert found["/etc/sysctl.d/90-lvs-fleet.conf"].splitlines() == [
        "-net.ipv4.vs.conntrack = 1",
        "-net.ipv4.vs.conn_reuse_mode = 1",
        "-net.ipv4.vs.expire_nodest_conn = 0",
        "-net.ipv4.vs.expire_quiescent_template = 0",
        "-net.ipv4.ip_forward = 1",
        "-net.ipv4.conf.all.send_redirects = 0",
        "-net/ipv4/conf/eth0.5/send_redirects = 0",
        "-net.ipv6.conf.all.forwarding = 1",
    ]


def test_what_a_machine_lacks() -> None:
    settings = {name: str(value) for name, value in needs_with()["sysctls"].items()}
    good = {"settings": settings, "paths": []}
    assert boot.missing(needs_with(), good) == {"sysctls": [], "ftp_helper": False, "restorer": False}
    lacking = {"settings": {**settings, "net.ipv4.ip_forward": "0"}, "paths": []}
    found = boot.missing(needs_with(persistence="distribution"), lacking)
    assert found == {"sysctls": ["net.ipv4.ip_forward=1"], "ftp_helper": False, "restorer": True}
    with_ftp = {**needs_with(), "kernel_modules": ["ip_vs", "ip_vs_ftp"]}
    assert boot.missing(with_ftp, good)["ftp_helper"]
    assert not boot.missing(with_ftp, {**good, "paths": ["/sys/module/ip_vs_ftp"]})["ftp_helper"]


def test_the_action_group_holds_every_module() -> None:
    modules = {path.stem for path in (TOP / "plugins/modules").glob("*.py")}
    assert set(load(TOP / "meta/runtime.yml")["action_groups"]["all"]) == modules
