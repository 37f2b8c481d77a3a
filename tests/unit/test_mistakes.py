# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Mistakes that people make in an inventory, one at a time, and every line that they are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.lvs.fleet.plugins.filter.fleet import problems

FIXTURE = Path(__file__).parent / "fixtures" / "mistakes.txt"
WEB = {
    "name": "web",
    "fwmark": 80,
    "traffic": [{"destination": "192.0.2.10", "protocol": "tcp", "ports": [80, 443]}],
    "persistence_timeout": 300,
    "real_servers": [{"address": "10.0.0.11"}],
}


def cases() -> list[tuple[str, list[str]]]:
    """Each mistake with its lines."""
    found: list[tuple[str, list[str]]] = []
    for line in FIXTURE.read_text(encoding="utf-8").splitlines():
        if line.startswith("    "):
            found[-1][1].append(line.strip())
        elif line and not line.startswith("#"):
            found.append((line, []))
    return found


def inventory(text: str) -> Any:
    """lvs_services with the mistake."""
    given = yaml.safe_load(text)
    return given.get("lvs_services", [{**WEB, **given}])


@pytest.mark.parametrize("text, lines", cases())
def test_the_lines_of_a_mistake(text: str, lines: list[str]) -> None:
    assert problems(inventory(text)) == lines != []


def test_without_a_mistake_there_is_no_line() -> None:
    assert problems([WEB]) == []


def test_there_are_many_mistakes_and_each_line_shows_its_place() -> None:
    assert len(cases()) > 150
    assert all(line.startswith("lvs_services") for _text, lines in cases() for line in lines)
