# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What `make fresh` tries on a machine that has nothing: every target that could miss something there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Those that do no work of their own, and with the reason those whose work is done by others that are tried.
LEFT_OUT = {
    *("help", "venv", "pins", "clean", "test", "fresh"),
    "demo",  # the fleet and playbooks, as molecule
    "soak",  # a test of integration, for longer
    "versions",  # installs by uv alone, and the fleet, as molecule
    "bench",  # installs its packages by tests/tools/need as integration does, and takes 20 minutes
}


def test_every_target_is_tried_on_a_fresh_machine() -> None:
    targets = set(re.findall(r"^([a-z]+):.* ## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    tried = re.findall(r"^make ([a-z]+)", (ROOT / "tests/tools/fresh").read_text(), re.MULTILINE)
    assert targets - LEFT_OUT == set(tried)


def test_make_test_includes_it() -> None:
    [lanes] = re.findall(r"tests/tools/lanes (.*)", (ROOT / "Makefile").read_text())
    assert "fresh" in re.findall(r"[a-z]+", lanes)
