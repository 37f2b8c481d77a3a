# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Our part of the rules files that the distributions restore at boot, loaded the way they do it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ansible_collections.lvs.fleet.plugins.filter.fleet import marks
from ansible_collections.lvs.fleet.plugins.module_utils._boot.parts import merge
from ansible_collections.lvs.fleet.tests.integration import foreign
from ansible_collections.lvs.fleet.tests.integration.harness import FAMILIES, IPTABLES, Namespace, Router
from ansible_collections.lvs.fleet.tests.integration.shapes import WEB, service

TOP = Path(__file__).parents[3]
SERVICES = [
    service("web", 80, {**WEB, "destination": ["192.0.2.10", "2001:db8::10"]}),
    service(
        "ftp",
        21,
        {"destination": ["192.0.2.11", "2001:db8::11"], "protocol": "tcp", "ports": [20, 21]},
        helper="ftp",
        persistence_timeout=300,
        forward_method="masquerade",
        real_servers=[{"address": "10.0.0.21"}],
    ),
]
OURS = (":LVS-MARK ", "-A LVS-MARK ", "-A PREROUTING -j LVS-MARK", ":LVS-SNAT ", "-A LVS-SNAT ")


@contextmanager
def empty_namespace() -> Iterator[None]:
    namespace = Namespace()
    try:
        with namespace.inside():
            yield
    finally:
        namespace.close()


def rules(saved: str) -> list[str]:
    """Chains and rules of a dump, each with its table; the order of tables differs between dumps and means nothing."""
    table, found = "", []
    for line in saved.splitlines():
        table = line if line.startswith("*") else table
        if line.startswith("-A ") or (line.startswith(":") and " - " in line):
            found.append(f"{table} {line.partition(' [')[0]}")
    return sorted(found, key=lambda rule: rule.split()[0])


def ours(found: list[str]) -> list[str]:
    own = [f"*mangle {start}" for start in OURS] + [f"*nat {start}" for start in (*OURS, "-A POSTROUTING -j LVS-SNAT")]
    return [rule for rule in found if f"{rule} ".startswith(tuple(own))]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_rule_set_with_our_part(router: Router, family: str) -> None:
    """What somebody has saved, our chain and foreign rules in it included: theirs comes back as it was, ours once."""
    save, restore = f"{IPTABLES[family]}-save", f"{IPTABLES[family]}-restore"
    foreign.settle_rules(router)
    saved = router.tool(save)
    theirs = [rule for rule in rules(saved) if rule not in ours(rules(saved))]
    part = marks(SERVICES, family)
    merged = merge("iptables", saved, part)
    assert merged and merge("iptables", merged, part) == merged
    with empty_namespace():
        for _time in range(2):
            router.tool(restore, stdin=merged)
            loaded = rules(router.tool(save))
            assert sorted(ours(loaded)) == sorted(ours(rules(part))) != []
            assert [rule for rule in loaded if rule not in ours(loaded)] == theirs
            hooks = [rule for rule in loaded if rule.startswith("*mangle -A PREROUTING ")]
            assert hooks[-1] == "*mangle -A PREROUTING -j LVS-MARK"
    without = merge("iptables", merged, "")
    with empty_namespace():
        router.tool(restore, stdin=without or "")
        assert rules(router.tool(save)) == theirs
    assert merge("iptables", without, part) == merged


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_file(router: Router, family: str) -> None:
    part = marks(SERVICES, family)
    made = merge("iptables", None, part)
    router.tool(f"{IPTABLES[family]}-restore", stdin=made or "")
    assert sorted(rules(router.tool(f"{IPTABLES[family]}-save"))) == sorted(rules(part)) != []
    assert merge("iptables", made, "") is None


def mangle(router: Router) -> str:
    return "\n".join(line for line in router.tool("iptables-save", "-t", "mangle").split("\n") if line[:1] != "#")


def restoring(router: Router, folder: Path) -> str:
    """What our unit runs, for files in a folder."""
    router.shadow("ipvsadm", "exit 0")
    (folder / "ipvs.rules").touch()
    for name, family in (("marks.v4", "ipv4"), ("marks.v6", "ipv6")):
        (folder / name).write_text(marks(SERVICES, family))
    return (TOP / "roles/lvs_router/files/lvs-restore").read_text().replace("/etc/lvs", str(folder))


def test_our_unit_restores_what_is_missing(router: Router, tmp_path: Path) -> None:
    """On an empty router, on one at work, and on one where a table was emptied; jumps are never there twice."""
    script = restoring(router, tmp_path)
    for emptied in ("nat", "", "mangle"):
        router.tool("sh", "-c", script)
        for family in FAMILIES:
            assert sorted(rules(router.tool(f"{IPTABLES[family]}-save"))) == sorted(rules(marks(SERVICES, family)))
            if emptied:
                router.tool(f"{IPTABLES[family]}-restore", stdin=f"*{emptied}\nCOMMIT\n")
    router.tool("sh", "-c", script)
    assert router.tool("iptables-save").count("-j LVS-") == 2


def test_our_unit_leaves_what_others_have_in_our_chain(router: Router, tmp_path: Path) -> None:
    """Restarted at work: rules of iptables_mark and of people stay in their places, and ours are those of the file."""
    script = restoring(router, tmp_path)
    router.iptables(":LVS-MARK - [0:0]\n-A LVS-MARK -s 198.51.100.9/32 -j RETURN")
    router.run("iptables_mark", rules=[{**WEB, "name": "first", "mark": 1}])
    router.tool("sh", "-c", script)
    router.run("iptables_mark", rules=[{**WEB, "name": "last", "mark": 2, "source": "198.51.100.0/24"}])
    there = mangle(router)
    assert there.index("RETURN") < there.index("lvs:first") < there.index("lvs:web") < there.index("lvs:last")
    router.shadow("iptables-restore", f'cat >{tmp_path}/told; $real "$@" <{tmp_path}/told')
    router.tool("sh", "-c", script)
    router.shadow("iptables-restore", 'exec $real "$@"')
    assert (tmp_path / "told").read_text().split() == ["*nat", "COMMIT", "*mangle", "COMMIT"]
    assert mangle(router) == there
    router.tool("iptables", "-t", "mangle", "-D", "LVS-MARK", "3")
    router.tool("sh", "-c", script)
    now = mangle(router)
    assert sorted(rules(now)) == sorted(rules(there))
    assert now.index("RETURN") < now.index("lvs:first") < now.index("lvs:last")
