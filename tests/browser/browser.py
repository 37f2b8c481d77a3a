# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A page in a real browser, without a window: what does not fit, and pictures.

The page is in a frame as wide as the screen to be tried: a browser's own window cannot be as narrow as a telephone. It
is not changed, so its own policy holds. The script that measures it belongs to the page around the frame.
"""

from __future__ import annotations

import json
import re
import subprocess
from html import escape, unescape
from pathlib import Path

HERE = Path(__file__).parent
NARROWEST_WINDOW = 500
TALL = 1200


def framed(page: str, width: int, tall: int, script: str = "") -> str:
    return f"""<!DOCTYPE html><meta charset="utf-8"><body style="margin:0">
<iframe srcdoc="{escape(page)}" style="display:block;border:0;width:{width}px;height:{tall}px"></iframe>
<pre id="found" hidden></pre><script>{script}</script>"""


def run(folder: Path, document: str, width: int, *words: str) -> str:
    """Show a document; what the browser prints."""
    shown = folder / "shown.html"
    shown.write_text(document, encoding="utf-8")
    size = f"--window-size={max(width, NARROWEST_WINDOW)},{TALL}"
    # Root is refused a sandbox, and a container has a small /dev/shm.
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", size)
    done = subprocess.run(
        ["chromium", *flags, f"--user-data-dir={folder}/profile", *words, f"file://{shown}"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout


def misfits(folder: Path, page: str, width: int) -> list[str]:
    """What overlaps, runs out of its place, or cannot be reached by keyboard, on a screen of this width."""
    script = (HERE / "misfits.js").read_text(encoding="utf-8")
    # What is below the screen is measured as well.
    dom = run(folder, framed(page, width, 900, script), width, "--dump-dom", "--virtual-time-budget=20000")
    found = re.search(r'<pre id="found"[^>]*>(.*?)</pre>', dom, re.DOTALL)
    assert found and found[1], f"the page was not measured: {dom[-500:]}"
    told: list[str] = json.loads(unescape(found[1]))
    return told


def picture(folder: Path, page: str, width: int, file: Path) -> None:
    run(folder, framed(page, width, TALL), width, f"--screenshot={file}")
