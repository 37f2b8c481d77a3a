# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Our part of the file that the distributions' ipvsadm services restore at boot, loaded the way they do it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.lvs.fleet.plugins.filter.fleet import ipvs_rules
from ansible_collections.lvs.fleet.plugins.module_utils._boot.parts import merge
from ansible_collections.lvs.fleet.tests.integration import foreign
from ansible_collections.lvs.fleet.tests.integration.bench.test_stock_tools import SERVICES
from ansible_collections.lvs.fleet.tests.integration.harness import Namespace, Router

# How an init script of Debian does it, and the unit of the RHEL family.
LOADERS = {"Debian": 'ipvsadm -C; grep -v "^#" {} | ipvsadm -R', "EL": "ipvsadm-restore <{}"}


@pytest.mark.parametrize("loader", LOADERS.values(), ids=LOADERS)
def test_the_file_with_our_part(router: Router, tmp_path: Path, loader: str) -> None:
    """Saved by hand while ours were there, without thresholds: theirs come back as they were, ours as declared."""
    foreign.settle_services(router)
    router.ipvsadm("-D -f 4294967295")  # ipvsadm -S prints it as a negative number, which ipvsadm -R refuses
    theirs = router.tool("ipvsadm", "-Sn")
    router.run("lvs_service", services=SERVICES)
    made = router.snapshot()
    assert [line for line in made.services() if " -x " in line and " -f 90" not in line], "no threshold is declared"
    part = f"# Services of the inventory\n{ipvs_rules(SERVICES)}"
    merged = merge("ipvsadm", f"# ipvsadm.rules\n{router.tool('ipvsadm', '-Sn')}", part)
    assert merged == merge("ipvsadm", f"# ipvsadm.rules\n{theirs}", part)
    file = tmp_path / "ipvsadm.rules"
    file.write_text(merged or "")
    fresh = Namespace()
    try:
        with fresh.inside():
            said = router.attempt("sh", "-c", loader.format(file))
            assert (said.returncode, said.stderr) == (0, "")
            restored = router.snapshot()
    finally:
        fresh.close()
    assert sorted(restored.ipvsadm.splitlines()) == sorted(made.ipvsadm.splitlines())
    declared = ipvs_rules(SERVICES).splitlines()
    assert [line for line in declared if line not in restored.services()] == []
