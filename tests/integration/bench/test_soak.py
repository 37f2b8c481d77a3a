# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A router at work under random changes, accidents and failures, of which every step is checked by the stock tools.

MINUTES and SEED say for how long and with which sequence to begin; make soak is the way to give them. What is printed
of a failure is the whole sequence that led to it, and the last seed printed repeats it.
"""

from __future__ import annotations

import itertools
import os
import random

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from ansible_collections.lvs.fleet.tests.integration.soak import Budget, SoakedRouter, TimeIsUp

# Of the short run, which is the same every time.
STEPS, SEED = 40, 1
# With more examples hypothesis would make the first ones small, which is to say all of their steps alike.
SETTINGS = settings(
    max_examples=9,
    stateful_step_count=30,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def test_soak() -> None:
    minutes = float(os.environ.get("MINUTES") or 0)
    begin = int(os.environ.get("SEED") or (random.randrange(10**6) if minutes else SEED))
    budget = SoakedRouter.budget = Budget(seconds=60 * minutes) if minutes else Budget(steps=STEPS)
    try:
        for number in itertools.count(begin):
            print(f"seed {number}", flush=True)
            run_state_machine_as_test(seed(number)(SoakedRouter), settings=SETTINGS)
    except TimeIsUp:
        pass
    finally:
        for kind, count in sorted(budget.done.items()):
            print(f"{count:6} {kind}")
        print(f"{budget.done.total():6} steps, from seed {begin}")
    assert len(budget.done) > 5
