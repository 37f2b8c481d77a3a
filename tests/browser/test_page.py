# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The page of lvs.fleet.status in a real browser, on screens of three widths; and its pictures."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.lvs.fleet.plugins.filter.status import status, status_page
from ansible_collections.lvs.fleet.tests.browser.browser import misfits, picture
from ansible_collections.lvs.fleet.tests.unit.fleets import NOW, SMALL, answer, large, small

WIDTHS = (360, 820, 1400)


def page_of(answers: dict[str, Any]) -> str:
    return status_page(status(answers, {name: {"lvs_found": told} for name, told in answers.items()}, NOW, 10))


def odd() -> dict[str, Any]:
    """Names without a space, as long and as wide as they may be."""
    services = copy.deepcopy(SMALL)
    for service in services:
        service.update(
            name="W" * 63, destination=[f"2001:db8:ffff:ffff:ffff:ffff:ffff:{number:x}" for number in range(9)]
        )
        for number, one in enumerate(service["servers"]):
            one.update(address=f"2001:db8:1:ffff:ffff:ffff:ffff:{number:x}", active=10**12, rate=10**8)
    problem = {"kind": "<script>alert(1)</script>", "message": "漢" * 100 + "<script>" + "x" * 300}
    return {"router" + "W" * 57: answer(services, [problem]), "router2": {"unreachable": True, "msg": "x" * 300}}


PAGES = {"small": small, "large": lambda: large(routers=9, services=300), "odd": odd}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_everything_fits(tmp_path: Path, name: str, width: int) -> None:
    assert misfits(tmp_path, page_of(PAGES[name]()), width) == []


def test_a_misfit_is_seen(tmp_path: Path) -> None:
    """What the measure is for: a page too wide, boxes over each other, words out of their box."""
    page = page_of(small())
    broken = {
        "the page can be scrolled sideways": page.replace("<h1>", '<h1 style="width:3000px">'),
        "overlap: ": page.replace("<main>", '<main style="margin-top:-90px">'),
        "out of its box: ": page.replace(".topology .name{font-size:13px", ".topology .name{font-size:90px"),
        "no focus: ": page.replace('tabindex="0"', ""),
    }
    for words, changed in broken.items():
        assert changed != page
        assert [line for line in misfits(tmp_path, changed, 820) if line.startswith(words)], words


@pytest.mark.parametrize("width", (360, 1400))
def test_pictures(tmp_path: Path, width: int) -> None:
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path)
    file = folder / f"status-{width}.png"
    picture(tmp_path, page_of(small()), width, file)
    assert file.read_bytes().startswith(b"\x89PNG") and file.stat().st_size > 20_000
