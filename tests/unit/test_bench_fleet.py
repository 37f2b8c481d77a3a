# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the bench reads from the output of ansible-playbook: a run that did something else must not become a figure."""

from __future__ import annotations

import pytest

from ansible_collections.lvs.fleet.tests.bench import fleet

OUTPUT = """
PLAY [Deploy] ******************************************************************

TASK [lvs.fleet.lvs_router : Validating arguments against arg spec 'main' - Make] ***
ok: [router1]
ok: [router2]

TASK [lvs.fleet.lvs_router : Look at the router] *******************************
skipping: [router1]
ok: [router2]

TASK [lvs.fleet.lvs_router : Compare the files] ********************************
included: /collections/lvs/fleet/roles/lvs_router/tasks/persist.yml for router1, router2

TASK [Report what does not fit together] ***************************************
skipping: [router1]
skipping: [router2]

PLAY RECAP *********************************************************************
router1                    : ok=1    changed=0    unreachable=0    failed=0    skipped=2    rescued=0    ignored=0
router2                    : ok=2    changed=1    unreachable=0    failed=0    skipped=1    rescued=0    ignored=0
"""


def test_done_tasks_are_those_that_were_not_skipped_everywhere() -> None:
    assert fleet.done_tasks(OUTPUT) == {
        "Validating arguments against arg spec",
        "Look at the router",
        "Compare the files",
    }


def test_recap() -> None:
    assert fleet.recap(OUTPUT, 2) == [(1, 0), (2, 1)]


@pytest.mark.parametrize(
    ("output", "routers"),
    [(OUTPUT, 3), (OUTPUT.replace("failed=0", "failed=1"), 2), (OUTPUT.replace("unreachable=0", "unreachable=1"), 2)],
)
def test_a_router_that_failed_or_is_missing_is_no_figure(output: str, routers: int) -> None:
    with pytest.raises(AssertionError):
        fleet.recap(output, routers)


def test_more_names_come_after_all_machines() -> None:
    hosts = {"router1": {"ansible_host": "10.0.0.1"}, "router2": {"ansible_host": "10.0.0.2"}}
    inventory = fleet.with_more_names({"all": {"children": {"lvs_routers": {"hosts": hosts}}}})
    found = inventory["all"]["children"]["lvs_routers"]["hosts"]
    assert len(found) == 2 * fleet.NAMES
    assert list(found)[:2] == ["router1", "router2"]
    assert {name.partition("-")[0]: host for name, host in found.items()} == hosts
