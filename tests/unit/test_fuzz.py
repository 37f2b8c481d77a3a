# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The targets of `make fuzz`, each with its seeds and with some bytes that Hypothesis finds."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.lvs.fleet.tests.fuzz.targets import TARGETS

NAMES = sorted(TARGETS)


@pytest.mark.parametrize("name", NAMES)
def test_seeds(name: str) -> None:
    for seed in TARGETS[name].seeds:
        TARGETS[name].run(seed)


@pytest.mark.parametrize("name", NAMES)
@given(data=st.binary(max_size=200))
def test_any_bytes(name: str, data: bytes) -> None:
    TARGETS[name].run(data)


@pytest.mark.parametrize("name", NAMES)
def test_damaged_seeds(name: str) -> None:
    """Recorded answers with a few bytes exchanged, cut out or doubled, which reaches deeper than bytes from nowhere."""
    chosen = random.Random(name)
    for _round in range(100):
        data = bytearray(chosen.choice(TARGETS[name].seeds))
        for _change in range(chosen.randint(1, 4)):
            place = chosen.randrange(len(data) + 1)
            piece = data[place : place + chosen.randrange(20)]
            data[place : place + chosen.randrange(3)] = chosen.choice([piece, b"", bytes([chosen.randrange(256)])])
        TARGETS[name].run(bytes(data))
