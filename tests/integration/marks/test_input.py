# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Odd input and the real tools: what is taken is printed back to the letter, and what is not taken reaches no tool."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.lvs.fleet.tests.fuzz.hostile import HOSTILE, PLAIN
from ansible_collections.lvs.fleet.tests.integration.harness import CHAIN, PROGRAMS, Router
from ansible_collections.lvs.fleet.tests.integration.shapes import HEAD, ODD_INTERFACES, ODD_NAMES, mark_rule

VIP = "192.0.2.10"


def mark(**changes: Any) -> dict[str, Any]:
    return {"name": "web", "mark": 80, "destination": VIP, "protocol": "tcp", **changes}


def service(**changes: Any) -> dict[str, Any]:
    traffic = {
        key: changes.pop(key)
        for key in ("destination", "source", "in_interface", "exclude_mac", "ports")
        if key in changes
    }
    return {
        "name": "web",
        "fwmark": 80,
        "traffic": [{"destination": VIP, "protocol": changes.pop("protocol", "tcp"), **traffic}],
        "real_servers": [{"address": changes.pop("address", "10.0.0.1"), "weight": changes.pop("weight", 1)}],
        **changes,
    }


def by_address(**changes: Any) -> dict[str, Any]:
    return {"protocol": "tcp", "address": VIP, "port": 80, **changes}


def test_odd_values_are_printed_back_to_the_letter(router: Router) -> None:
    rules = [mark(name=name) for name in ODD_NAMES] + [mark(in_interface=name) for name in ODD_INTERFACES]
    router.converge("iptables_mark", rules=rules)
    assert router.snapshot().own_rules("ipv4") == [
        *HEAD,
        *(mark_rule(name, 80, f"-d {VIP}/32 -p tcp") for name in ODD_NAMES),
        *(mark_rule("web", 80, f"-d {VIP}/32 -i {name} -p tcp") for name in ODD_INTERFACES),
    ]


def test_numbers_at_their_bounds_are_printed_back(router: Router) -> None:
    pairs = [(1, 1), (1, 2**32 - 1), (2**31 - 1, 2**31 - 1), (2**31 - 1, 2**32 - 1)]
    ranges = [[1], [65535], ["1:65535"], [f"{low}:{low + 5}" for low in range(10, 90, 10)]]
    rules = [mark(name="marks", mark=value, mask=mask) for value, mask in pairs]
    router.converge("iptables_mark", rules=rules + [mark(ports=ports) for ports in ranges])
    printed = ["1", "65535", "1:65535", "10:15,20:25,30:35,40:45,50:55,60:65,70:75", "80:85"]
    assert router.snapshot().own_rules("ipv4") == [
        *HEAD,
        *(
            mark_rule("marks", value, f"-d {VIP}/32 -p tcp").replace("0xffffffff", f"{mask:#x}")
            for value, mask in pairs
        ),
        *(mark_rule("web", 80, f"-d {VIP}/32 -p tcp -m multiport --dports {ports}") for ports in printed),
    ]


# -- what is refused ----------------------------------------------------------------------------------------------

# A lone surrogate does not come as far as a module: Ansible itself refuses it.
TEXTS = [value for value in HOSTILE if isinstance(value, str) and value != "\ud800"]
TOOLS = (*PROGRAMS, "nft", "ip", "ipvsadm", "modprobe", "sysctl")
# Module, option, what makes an item that has a value, and the name of the value.
PLACES: list[tuple[str, str, Callable[..., Any], str]] = [
    *(("iptables_mark", "rules", mark, key)
      for key in ("name", "mark", "mask", "destination", "protocol", "ports", "source", "in_interface", "exclude_mac")),
    *(("lvs_service", "services", service, key)
      for key in ("name", "fwmark", "destination", "protocol", "ports", "source", "in_interface", "exclude_mac",
                  "scheduler", "scheduler_flags", "persistence_timeout", "persistence_netmask", "persistence_netmask6",
                  "persistence_engine", "helper", "one_packet", "forward_method", "address", "weight")),
    *(("ipvs_service", "services", by_address, key) for key in ("family", "protocol", "address", "port", "scheduler")),
]  # fmt: skip


@pytest.fixture
def watched(router: Router, tmp_path: Path) -> Router:
    """One whose tools leave a trace when they are called."""
    router.iptables("-A PREROUTING -s 198.51.100.0/24 -j RETURN")
    for tool in TOOLS:
        router.shadow(tool, f'echo "{tool} $*" >>{tmp_path}/called; exec $real "$@"')
    return router


def refused(router: Router, tmp_path: Path, module: str, **options: Any) -> list[str]:
    """The problems that a module tells, having called nothing."""
    told = router.fail(module, **options).split("\n")
    assert not (tmp_path / "called").exists(), (tmp_path / "called").read_text()
    assert all(problem.isprintable() for problem in told)
    return told


@pytest.mark.parametrize("variant", ["nft"])
def test_hostile_values_reach_no_tool(watched: Router, tmp_path: Path, subtests: pytest.Subtests) -> None:
    for module, option, having, key in PLACES:
        bad = [text for text in TEXTS if key not in ("name", "in_interface") or text not in PLAIN]
        with subtests.test(f"{module}: {key}"):
            told = refused(watched, tmp_path, module, **{option: [having(**{key: text}) for text in bad]})
            named = {int(problem.partition("[")[2].partition("]")[0]) for problem in told if key in problem}
            assert [text for place, text in enumerate(bad) if place not in named] == []
    watched.unshadow()
    assert watched.snapshot().foreign_rules("ipv4").count("\n-A ") == 1
    assert [watched.snapshot().own_rules(family) for family in ("ipv4", "ipv6")] == [[], []]


@pytest.mark.parametrize("variant", ["nft"])
def test_hostile_text_elsewhere_reaches_no_tool(watched: Router, tmp_path: Path) -> None:
    """Where one value is the whole option, and in the commands of ip."""
    for text in TEXTS:
        assert refused(watched, tmp_path, "iptables_mark", rules=[mark()], chain=text)[0].startswith("chain: ")
    told = refused(watched, tmp_path, "iptables_mss", segments=dict.fromkeys(TEXTS, 1400))
    assert len(told) == len(TEXTS) and all(problem.startswith("segments[") for problem in told)
    told = refused(watched, tmp_path, "iptables_mss", segments={f"192.0.2.{n}": text for n, text in enumerate(TEXTS)})
    assert len(told) == len(TEXTS)
    for form in ("{}", "address add 192.0.2.1/32 dev {}", "rule add fwmark {} lookup 5 priority 5", "{} table 5"):
        commands = [form.format(text) for text in TEXTS if text not in PLAIN]
        told = refused(watched, tmp_path, "ip_objects", path=f"{tmp_path}/record", commands=commands)
        assert len(told) == len(commands) and all(problem.startswith("commands[") for problem in told)
    refused(watched, tmp_path, "ip_objects", path="/record\0", commands=[])
    assert not (tmp_path / "record").exists()


# -- what somebody else wrote -------------------------------------------------------------------------------------


def saved(router: Router) -> list[str]:
    """The lines of table mangle, as iptables-save ends them."""
    printed = subprocess.check_output(["iptables-save", "-t", "mangle"], env={"PATH": router.path})
    return [line for line in printed.decode().split("\n") if not line.startswith("#")]


@pytest.mark.parametrize("end", ["\x0b", "\x0c", "\r", "\x1c", "\x85", "\u2028"])
def test_a_rule_in_a_comment_is_no_rule(router: Router, end: str) -> None:
    """Whatever ends a line for somebody, in a comment it ends none."""
    router.run("iptables_mark", rules=[mark()])
    comment = f"x{end}-A {CHAIN} -p udp -m comment --comment lvs:old -j MARK --set-xmark 0x9/0xffffffff"
    for chain in (CHAIN, "PREROUTING"):
        router.tool("iptables", "-t", "mangle", "-A", chain, "-m", "comment", "--comment", comment, "-j", "RETURN")
    before = saved(router)
    assert sum(comment in line for line in before) == 2
    assert not router.run("iptables_mark", rules=[mark()], purge=True)["changed"]
    assert saved(router) == before


@pytest.mark.parametrize("name", ['a" -j ACCEPT "', "it's", "back\\", '"', "two words", "$(id)", "é"])
def test_a_name_in_our_chain_that_we_would_not_give(router: Router, name: str) -> None:
    """It is ours by its comment, and goes with purge; nothing else happens."""
    router.run("iptables_mark", rules=[mark()])
    before = router.snapshot()
    comments = [word for text in (f"lvs:{name}", "iptables_mark") for word in ("-m", "comment", "--comment", text)]
    words = [*comments, "-j", "MARK", "--set-mark", "9"]
    router.tool("iptables", "-t", "mangle", "-A", CHAIN, *words)
    assert not router.run("iptables_mark", rules=[mark()])["changed"]
    assert len(router.run("iptables_mark", rules=[mark()], purge=True)["operations"]) == 1
    assert router.snapshot() == before
