# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What goes wrong on a real kernel: the message, and that everything is as it was before."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.lvs.fleet.plugins.module_utils import _host
from ansible_collections.lvs.fleet.tests.integration import foreign
from ansible_collections.lvs.fleet.tests.integration.harness import CHAIN, Router, Snapshot
from ansible_collections.lvs.fleet.tests.integration.shapes import WEB, service

ONE, TWO, THREE = (
    service(
        name,
        fwmark,
        {"destination": [f"192.0.2.{fwmark}", f"2001:db8::{fwmark}"], "protocol": "tcp", "ports": [80]},
        real_servers=[{"address": f"10.0.0.{fwmark}"}],
    )
    for fwmark, name in enumerate(("one", "two", "three"), start=1)
)


def state(router: Router) -> Snapshot:
    """The state apart from what is loaded: a failed run may have loaded a module."""
    return Snapshot(**{**router.snapshot().__dict__, "modules": frozenset()})


@pytest.fixture
def busy(router: Router) -> Router:
    """A router with a service of ours and with rules and services of others."""
    foreign.settle_rules(router)
    foreign.settle_services(router)
    router.run("lvs_service", services=[{**ONE, "scheduler": "rr"}])
    return router


def test_unknown_scheduler(busy: Router) -> None:
    """The second of three services has a scheduler that the kernel lacks: the others leave no trace."""
    before = state(busy)
    edited = {**ONE, "real_servers": [{"address": "10.0.0.9"}]}
    message = busy.fail("lvs_service", services=[edited, {**TWO, "scheduler": "nosuch"}, THREE])
    assert message.startswith(
        "ipvsadm -A -f 2 -s nosuch: the kernel says: No such file or directory (it has no scheduler nosuch)\n"
    )
    assert state(busy) == before


def test_unknown_scheduler_in_an_edit(busy: Router) -> None:
    """By then services and real servers were added; they are taken away again."""
    before = state(busy)
    edited = {**ONE, "traffic": [WEB], "scheduler": "nosuch"}
    message = busy.fail("lvs_service", services=[edited, TWO, THREE])
    assert message == (
        "ipvsadm -E -f 1 -s nosuch: the kernel says: No such file or directory (it has no scheduler nosuch)\n"
        "The 6 operations done until then were undone; the router is as it was before."
    )
    assert state(busy) == before


def test_rules_refused(busy: Router) -> None:
    """IPv6 rules come after IPVS and the IPv4 rules; where they are refused, both are undone."""
    before = state(busy)
    busy.shadow("ip6tables-restore", "echo 'ip6tables-restore: nothing doing' >&2; exit 4")
    message = busy.fail("lvs_service", services=[{**ONE, "scheduler": "sh"}, TWO, THREE])
    assert message.startswith(
        "ip6tables-restore --noflush --wait 10: exit status 4: ip6tables-restore: nothing doing\nThe "
    )
    assert message.endswith(" were undone; the router is as it was before.")
    assert state(busy) == before


def test_no_way_back(router: Router) -> None:
    """Where even going back fails, the message says so and what is left; the next run heals the router."""
    router.shadow("ip6tables-restore", "exit 4")
    router.shadow("iptables-restore", '[ ! -e "$0.once" ] || exit 5; : >"$0.once"; exec "$real" "$@"')
    refusal, failure, left = router.fail("lvs_service", services=[ONE]).split("\n")
    assert refusal == "ip6tables-restore --noflush --wait 10: exit status 4: it said nothing"
    assert failure == (
        "Going back failed as well, so the router is half changed (4 operations were done): "
        "iptables-restore --noflush --wait 10: exit status 5: it said nothing"
    )
    assert left.startswith(f"Left to undo: iptables -t mangle -D {CHAIN} ")
    assert "ipvsadm -D -f 1 -6; ipvsadm -D -f 1; " in left
    assert all(line in router.snapshot().services() for line in ("-A -f 1 -s wlc", "-A -f 1 -6 -s wlc"))
    router.unshadow()
    assert router.run("lvs_service", services=[ONE])["changed"]
    router.is_settled("lvs_service", services=[ONE])


def test_nothing_was_written(router: Router) -> None:
    """A tool that claims success and does nothing does not go unnoticed."""
    before = state(router)
    router.shadow("iptables-restore", "cat >/dev/null; exit 0")
    message = router.fail("lvs_service", services=[{**ONE, "traffic": [WEB]}])
    assert message.startswith(
        f"the router is not as it was told to be; missing afterwards: iptables -t mangle -N {CHAIN}"
    )
    assert message.endswith("were undone; the router is as it was before.")
    assert state(router).services() == before.services() == []


INVALID: dict[str, tuple[dict[str, Any], str]] = {
    "thresholds": (
        {"real_servers": [{"address": "10.0.0.1", "upper_threshold": 5, "lower_threshold": 6}]},
        "services[1] (two).real_servers[0].lower_threshold: 6 is above upper_threshold (5)",
    ),
    "port": (
        {"traffic": [{**WEB, "ports": [80, 65536]}]},
        "services[1] (two).traffic[0].ports[1]: 65536 is not a port (1-65535)",
    ),
    "mark": ({"fwmark": 1}, "services[1] (two).fwmark: 1 is taken by services[0] (one)"),
}


@pytest.mark.parametrize("case", INVALID)
def test_refused_by_validation(router: Router, case: str) -> None:
    """Bad input is named by its path, in check mode as well, and nothing is even read."""
    wrong, message = INVALID[case]
    router.shadow("iptables-restore", "exit 9")
    before = router.snapshot()
    for check in (True, False):
        assert router.fail("lvs_service", check=check, services=[ONE, {**TWO, **wrong}]) == message
    assert router.snapshot() == before


def test_refused_because_ipvsadm_would_not_restore_it(router: Router) -> None:
    """The kernel takes a one-packet service for TCP, but at boot ipvsadm -R would stop at its line."""
    service = {"protocol": "tcp", "address": "192.0.2.10", "port": 80, "one_packet": True}
    assert router.attempt("ipvsadm", "-R", stdin="-A -t 192.0.2.10:80 -s rr -o\n").returncode == 2
    assert router.fail("ipvs_service", services=[service]) == "services[0].one_packet: is for udp, not tcp"


def test_the_kernel_refuses_what_validation_lets_through(router: Router) -> None:
    """An errno of the kernel comes out in words, with the operation that it refused."""
    services = [{"fwmark": 1, "persistence_engine": "sip", "scheduler": "nosuch"}]
    assert router.fail("ipvs_service", services=services) == (
        "ipvsadm -A -f 1 -s nosuch --pe sip: the kernel says: No such file or directory"
        " (it has no scheduler nosuch or no persistence engine sip)\nNothing had been changed."
    )
    foretold = router.fail("ipvs_service", check=True, services=services)
    assert "ipvsadm -A -f 1 -s nosuch --pe sip: this kernel has no scheduler nosuch" in foretold.splitlines()


def test_real_servers_of_the_other_family_beside_a_sync_daemon(router: Router) -> None:
    """The kernel says EINVAL of them for as long as the daemon runs, and takes them then."""
    services = [{"fwmark": 1, "real_servers": [{"address": "2001:db8:1::1", "forward_method": "tunnel"}]}]
    router.tool("ip", "-batch", "-", stdin="link add sync0 type dummy\nlink set sync0 up multicast on\n")
    router.tool("ip", "addr", "add", "10.77.0.1/24", "dev", "sync0")
    router.ipvsadm("-A -f 1 -s wlc\n--start-daemon master --mcast-interface sync0 --syncid 10")
    try:
        assert router.attempt("ipvsadm", "-a", "-f", "1", "-r", "[2001:db8:1::1]", "-i").returncode
        before = router.snapshot()
        for check in (True, False):
            assert router.fail("ipvs_service", check=check, services=services) == (
                "ipvsadm -a -f 1 -r 2001:db8:1::1 -i -w 1 --tun-type ipip: no real server may be of the other family "
                "than its service while a sync daemon runs (master on sync0); stop the daemon first"
            )
        assert router.snapshot() == before
    finally:
        router.ipvsadm("--stop-daemon master")
    assert router.run("ipvs_service", services=services)["changed"]


def test_a_hand_made_mask_that_is_no_prefix(router: Router) -> None:
    """It has as many bits as /24, and is not /24."""
    router.ipvsadm("-A -f 1 -s wlc -p 60 -M 0.255.255.255")
    services = [{"fwmark": 1, "persistence_timeout": 60, "persistence_netmask": 24}]
    done = router.run("ipvs_service", services=services)
    assert done["operations"] == ["ipvsadm -E -f 1 -s wlc -p 60 -M 255.255.255.0"]
    assert not router.run("ipvs_service", services=services)["changed"]


def test_lock(router: Router) -> None:
    """A second writer waits as long as it is told to, and then says who holds the lock; a reader does not wait."""
    before = router.snapshot()
    with _host.lock(0):
        began = time.monotonic()
        message = router.fail("lvs_service", services=[ONE], lock_timeout=1)
        assert time.monotonic() - began >= 1
        holder = Path("/run/lock/lvs-fleet.lock").read_text().strip()
        assert holder.startswith(f"{os.getpid()} (")
        assert message == f"/run/lock/lvs-fleet.lock: still held by process {holder} after waiting for 1 s"
        assert router.run("lvs_service", check=True, services=[ONE], lock_timeout=0)["changed"]
    assert router.snapshot() == before
    assert router.run("lvs_service", services=[ONE], lock_timeout=0)["changed"]
