# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""All targets in turn: run.py RUNS SEED, RUNS inputs for each of them. Exits with 1 if one has found anything.

An input that was found is kept in .build/fuzz/, and can be tried again by the command that is printed with it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

TOP = Path(__file__).parents[2]
FOLDER = TOP / ".build/fuzz"
# Whoever needs longer or more for a few kilobytes hangs, or would.
LIMITS = ("-timeout=20", "-rss_limit_mb=1024", "-len_control=0", "-print_final_stats=1")
# The order of a set decides what libFuzzer sees first: with one order the same seed makes the same inputs.
ENVIRONMENT = {**os.environ, "PYTHONHASHSEED": "0"}
ROW = "{:18}{:>10}{:>7}{:>7}  {}"


def fuzz(name: str, seeds: Sequence[bytes], runs: int, seed: int) -> int:
    """Tell what came of one target; the number of its inputs, or a negative number after a finding."""
    corpus, log = FOLDER / f"corpus/{name}", FOLDER / f"{name}.log"
    corpus.mkdir(parents=True)
    for number, data in enumerate(seeds):
        (corpus / f"seed{number:03}").write_bytes(data)
    longest = max(512, *(len(data) * 5 // 4 for data in seeds))
    options = [f"-runs={runs}", f"-seed={seed}", f"-max_len={longest}", f"-artifact_prefix={FOLDER}/{name}-", *LIMITS]
    begin = time.monotonic()
    with log.open("wb") as output:
        command = [sys.executable, "tests/fuzz/one.py", name, *options, str(corpus)]
        status = subprocess.run(command, cwd=TOP, env=ENVIRONMENT, stdout=output, stderr=output, check=False).returncode
    said = log.read_text(errors="replace")
    inputs, memory = (int(re.findall(rf"^stat::{word}: +(\d+)", said, re.MULTILINE)[0]) if not status else 0
                      for word in ("number_of_executed_units", "peak_rss_mb"))  # fmt: skip
    seconds = round(time.monotonic() - begin)
    print(ROW.format(name, inputs, seconds, memory, "nothing found" if not status else "FINDING"), flush=True)
    if status:
        print("".join(f"    {line}\n" for line in said.splitlines()[-40:]))
        for found in sorted(FOLDER.glob(f"{name}-*")):
            print(f"    once more: .build/venv/bin/python tests/fuzz/one.py {name} {found.relative_to(TOP)}")
        return -1
    return inputs


def main() -> None:
    sys.path.insert(0, str(TOP / ".build"))
    from ansible_collections.lvs.fleet.tests.fuzz.targets import TARGETS

    runs, seed = map(int, sys.argv[1:])
    shutil.rmtree(FOLDER, ignore_errors=True)
    print(ROW.format("target", "inputs", "s", "MB", ""), flush=True)
    done = {name: fuzz(name, target.seeds, runs, seed) for name, target in TARGETS.items()}
    found = [name for name, inputs in done.items() if inputs < 0]
    total = sum(inputs for inputs in done.values() if inputs > 0)
    print(ROW.format("total", total, "", "", f"findings: {', '.join(found) or 'none'}"))
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
