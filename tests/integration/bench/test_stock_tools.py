# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The texts that restore a router at boot, fed to the stock tools: they make what the modules made."""

from __future__ import annotations

from ansible_collections.lvs.fleet.plugins.filter.fleet import marks
from ansible_collections.lvs.fleet.plugins.module_utils._declared.params import ipvs_services, virtual_services
from ansible_collections.lvs.fleet.plugins.module_utils._ipvs import ipvsadm as _ipvsadm
from ansible_collections.lvs.fleet.tests.integration.bench import test_ipvs_service, test_services
from ansible_collections.lvs.fleet.tests.integration.harness import FAMILIES, IPTABLES, Namespace, Router

SERVICES = [case[0] for name, case in test_services.CASES.items() if name != "exactly 15 port slots"]
FLAGGED = [
    {"fwmark": 1000 + place, "scheduler": scheduler, "scheduler_flags": list(flags)}
    for place, (scheduler, flags) in enumerate(test_services.FLAGS)
]
BY_ADDRESS = [service for services, _printed in test_ipvs_service.CASES.values() for service in services]


def test_ipvsadm_restore(router: Router) -> None:
    """ipvsadm -R takes every line that we print, and they mean the same to it: thresholds, flags, tunnels and all."""
    by_mark = [service for service in BY_ADDRESS if service.get("fwmark")]
    everything = [*by_mark, *(service for service in BY_ADDRESS if not service.get("fwmark")), *FLAGGED]
    router.run("ipvs_service", services=everything)
    router.run("lvs_service", services=SERVICES)
    made = router.snapshot()
    pools = {**ipvs_services(everything).pools, **virtual_services(SERVICES).pools}
    lines = _ipvsadm.save_lines(pools)
    assert len(lines) == len(made.services()) > 40
    fresh = Namespace()
    try:
        with fresh.inside():
            router.ipvsadm("\n".join(lines))
            restored = router.snapshot()
            # In netlink's own words too: ipvsadm does not print every flag.
            assert not router.run("ipvs_service", services=everything)["changed"]
    finally:
        fresh.close()
    assert (restored.services(), sorted(restored.ipvsadm)) == (made.services(), sorted(made.ipvsadm))
    assert sorted(restored.thresholds) == sorted(made.thresholds)


def test_iptables_restore(router: Router) -> None:
    """iptables-restore --noflush takes chain, rules and jump as we print them, and prints back the same."""
    router.run("lvs_service", services=SERVICES)
    made = router.snapshot()
    fresh = Namespace()
    try:
        with fresh.inside():
            for family in FAMILIES:
                router.tool(f"{IPTABLES[family]}-restore", "--noflush", stdin=marks(SERVICES, family))
            restored = router.snapshot()
    finally:
        fresh.close()
    assert [restored.own_rules(family) for family in FAMILIES] == [made.own_rules(family) for family in FAMILIES]
    assert all(len(made.own_rules(family)) > 4 for family in FAMILIES)
