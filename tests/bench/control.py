# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The control plane: services put into a kernel with IPVS, and changed there.

This part prepares what is loaded; router.py measures, in the lab's bench.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.lvs.fleet.tests.bench import shapes
from ansible_collections.lvs.fleet.tests.bench.measure import Comparison, printed

TESTS = Path(__file__).resolve().parent.parent
FOLDER = TESTS.parent / ".build/bench"
SIZES = (100, 1000, 4000)
REPETITIONS = {100: 3, 1000: 3, 4000: 2}
MEMORY = "2G"
MODULE = "lvs.fleet.lvs_service"


def comparisons() -> Iterator[Comparison]:
    shutil.rmtree(FOLDER, ignore_errors=True)
    for size in SIZES:
        prepare(FOLDER / str(size), size)
    yield sizes_of_payloads()
    found: list[Comparison] = []
    for size in SIZES:
        for comparison in measured_on_router(size):
            found.append(comparison)
            yield comparison
    yield growth(found)


def prepare(folder: Path, size: int) -> None:
    """What each way loads, ready-made."""
    folder.mkdir(parents=True)
    given = shapes.services(size)
    (folder / "services.json").write_text(json.dumps(given))
    (folder / "ipvsadm").write_text(shapes.ipvsadm(size))
    (folder / "iptables").write_text(shapes.iptables(size))
    (folder / "keepalived.conf").write_text(shapes.keepalived(size))
    (folder / "messages").write_bytes(shapes.messages(size))
    heavier = copy.deepcopy(given)
    heavier[-1]["real_servers"][0]["weight"] = 2
    write_modules(
        folder,
        {
            "ping": ("ansible.builtin.ping", {}),
            "load": (MODULE, {"services": given}),
            "add": (MODULE, {"services": shapes.services(size + 1)}),
            "weigh": (MODULE, {"services": heavier}),
        },
    )


def write_modules(folder: Path, modules: dict[str, tuple[str, dict[str, Any]]]) -> None:
    """Each as a file of its name that an interpreter runs."""
    wanted = [(module, options, str(folder / name)) for name, (module, options) in modules.items()]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    program = [sys.executable, Path(__file__).with_name("payload.py")]
    subprocess.run(program, input=json.dumps(wanted), text=True, env=environment, check=True)


def measured_on_router(size: int) -> Iterator[Comparison]:
    """Run the other part in a kernel with IPVS."""
    program = "ansible_collections.lvs.fleet.tests.bench.router"
    command = [TESTS / "lab/lab", "bench", "--mem", MEMORY, "--", sys.executable, "-m", program, FOLDER / str(size)]
    yield from printed([*command, str(size), str(REPETITIONS[size])])


def sizes_of_payloads() -> Comparison:
    """What each task ships to each router, its arguments aside."""
    names = ("ansible.builtin.ping", MODULE, "lvs.fleet.boot_files", "lvs.fleet.lvs_info")
    folder = FOLDER / "modules"
    folder.mkdir()
    write_modules(folder, {name: (name, {}) for name in names})
    return Comparison(
        "what a task ships", "bytes", names[0], {name: [(folder / name).stat().st_size] for name in names}
    )


def growth(found: Sequence[Comparison]) -> Comparison:
    """Milliseconds per service, at each size."""
    samples = {}
    for size, comparison in zip(SIZES, (one for one in found if one.title.endswith("from empty")), strict=True):
        for way in (comparison.reference, "lvs_service"):
            samples[f"{way}, {size:,} services"] = [1000 * figure / size for figure in comparison.samples[way]]
    return Comparison(
        "growth, from empty", "ms per service", next(iter(samples)), samples, "linear where it does not rise"
    )
