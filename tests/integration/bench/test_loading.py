# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A kernel with nothing loaded: reading leaves it so, writing loads what is needed, and without a module it is said."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.lvs.fleet.tests.integration.harness import Router, loaded_modules
from ansible_collections.lvs.fleet.tests.integration.shapes import WEB, service

DUAL = service(
    "web", 80, {**WEB, "destination": ["192.0.2.10", "2001:db8::10"]}, real_servers=[{"address": "10.0.0.1"}]
)
NEEDED = {"ip_vs", "ip_vs_wlc", "ip_tables", "iptable_mangle", "ip6_tables", "ip6table_mangle"}


def unwanted() -> set[str]:
    return {name for name in loaded_modules() if name.startswith(("ip_vs", "ip_tables", "iptable_", "ip6table", "xt_"))}


@pytest.fixture
def bare(router: Router) -> Router:
    """A router whose kernel has neither IPVS nor a table loaded."""
    if "ip_vs" not in loaded_modules() and router.attempt("modprobe", "--dry-run", "--first-time", "ip_vs").returncode:
        pytest.skip("this kernel has IPVS built in")
    # The namespaces of the tests before go a moment after their last process, and hold on to the modules until then.
    for _attempt in range(50):
        for name in sorted(unwanted(), reverse=True):
            subprocess.run(["modprobe", "--remove", name], stderr=subprocess.DEVNULL, check=False)
        if not unwanted():
            return router
        time.sleep(0.1)
    pytest.skip(f"somebody else uses {', '.join(sorted(unwanted()))}")


def test_reading_loads_nothing(bare: Router) -> None:
    """Check mode of every module, and lvs_info; then the run loads the modules and does what was foretold."""
    before = loaded_modules()
    told = bare.run("lvs_info")
    assert (told["services"], told["rules"], told["ipvs_services"], told["counters"]) == ([], [], [], [])
    assert (told["timeouts"], told["daemons"], told["problems"]) == ({}, [], [])
    foretold = bare.run("lvs_service", check=True, services=[DUAL])
    assert bare.run("ipvs_service", check=True, services=[{"fwmark": 80}])["changed"]
    rules = [{"name": "web", "mark": 80, "destination": "192.0.2.10", "protocol": "tcp"}]
    assert bare.run("iptables_mark", check=True, rules=rules)["changed"]
    # Nothing to do is no reason to load anything either, not even outside of check mode.
    for options in ({"services": []}, {"services": [{"name": "web", "fwmark": 80}], "state": "absent"}):
        assert not bare.run("lvs_service", **options)["changed"]
    assert not bare.run("ipvs_service", services=[], purge=True)["changed"]
    assert loaded_modules() == before
    done = bare.run("lvs_service", services=[DUAL])
    assert (done["operations"], done["diff"]) == (foretold["operations"], foretold["diff"])
    assert loaded_modules() >= NEEDED


def test_a_kernel_without_ipvs(bare: Router) -> None:
    """The module is missing: a message that says so, and not even a rule is written."""
    bare.shadow("modprobe", "echo 'modprobe: FATAL: Module ip_vs not found.' >&2; exit 1")
    before = bare.snapshot()
    said = "exit status 1: modprobe: FATAL: Module ip_vs not found."
    for check, asked in ((True, "modprobe --show-depends ip_vs"), (False, "modprobe ip_vs")):
        message = f"this kernel has no IPVS: {asked}: {said}"
        assert bare.fail("lvs_service", check=check, services=[DUAL]) == message
        assert bare.fail("ipvs_service", check=check, services=[{"fwmark": 80}]) == message
    assert bare.snapshot() == before


@pytest.fixture
def incomplete(bare: Router, tmp_path: Path, module: str) -> Iterator[Router]:
    """A kernel for which there is one module less, by whatever name, and whoever asks for it."""
    asked = {"xt_mark": "MARK"}.get(module, module.removeprefix("xt_"))
    said = f"modprobe: FATAL: Module {module} not found."
    script = f'case "$*" in *_{asked} | *{module}) echo "{said}" >&2; exit 1 ;; esac; exec "$real" "$@"'
    kernels = Path("/proc/sys/kernel/modprobe")
    usual = kernels.read_text()
    bare.shadow("modprobe", script)
    kernels.write_text(f"{bare.path.partition(':')[0]}/modprobe")
    try:
        yield bare
    finally:
        kernels.write_text(usual)


# The version is that of iptables.
SAID = {
    "xt_mark": "exit status 2: Warning: Extension MARK revision 0 not supported, missing kernel module?\n"
    'iptables-restore v{}: unknown option "--set-xmark"\nError occurred at line: 3\n'
    "Try `iptables-restore -h' or 'iptables-restore --help' for more information.",
    "xt_multiport": "exit status 1: Warning: Extension multiport revision 0 not supported, missing kernel module?\n"
    "iptables-restore: line 5 failed",
}


@pytest.mark.parametrize("module", SAID)
def test_a_kernel_without_a_module_of_iptables(incomplete: Router, module: str) -> None:
    """What the legacy iptables-restore says of it helps nobody; the services are taken away again."""
    version = incomplete.tool("iptables", "--version").removeprefix("iptables v").strip()
    message = incomplete.fail("lvs_service", services=[DUAL])
    assert message == (
        f"iptables-restore --noflush --wait 10: {SAID[module].format(version)}\n"
        f"modprobe finds no {module} for this kernel; on RHEL 10 look into kernel-modules-extra\n"
        "The 3 operations done until then were undone; the router is as it was before."
    )
    after = incomplete.snapshot()
    assert (after.own_rules("ipv4"), after.own_rules("ipv6"), after.services()) == ([], [], [])


def test_a_kernel_without_nftables(router: Router) -> None:
    if not router.attempt("nft", "add", "table", "ip", "probe").returncode:
        pytest.skip("this kernel has nf_tables")
    router.run("lvs_service", services=[DUAL])
    before = router.snapshot()
    message = router.fail("lvs_service", services=[DUAL], marking="nftables")
    assert re.match(r"nft -f -: exit status 1: \S+ Error: Could not process rule: Operation not supported\n", message)
    assert message.endswith("\nNothing had been changed.")
    assert router.snapshot() == before
