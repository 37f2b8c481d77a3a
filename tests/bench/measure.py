# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Ways to the same result, measured side by side in one run.

A figure by itself says more about the machine than about the program. So every figure stands beside that of a peer,
taken in turns with it (A B A B), and what is read is the ratio of their medians.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

# Does the thing once, makes sure that it was done, and returns the figure.
Way = Callable[[], float]


@dataclass(frozen=True)
class Comparison:
    """What several ways to the same result cost.

    reference is the way that the others are compared with; note says what a reader has to know of the figures.
    """

    title: str
    unit: str
    reference: str
    samples: Mapping[str, Sequence[float]]
    note: str = ""

    def __post_init__(self) -> None:
        if self.reference not in self.samples:
            raise ValueError(f"{self.title}: no figures of the reference, {self.reference}")
        for way, figures in self.samples.items():
            if not figures or min(figures) <= 0:
                raise ValueError(f"{self.title}: these are no figures of {way}: {list(figures)}")

    def ratio(self, way: str) -> float:
        """The median of a way in medians of the reference."""
        return median(self.samples[way]) / median(self.samples[self.reference])

    def as_json(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "unit": self.unit,
            "reference": self.reference,
            "note": self.note,
            "ways": {
                way: {"median": median(figures), "ratio": self.ratio(way), "samples": list(figures)}
                for way, figures in self.samples.items()
            },
        }


def in_turns(ways: Mapping[str, Way], repetitions: int) -> dict[str, list[float]]:
    """The figures of each way, taken in turns: what else the machine does in the meantime hits all of them."""
    samples: dict[str, list[float]] = {name: [] for name in ways}
    for _repetition in range(repetitions):
        for name, way in ways.items():
            samples[name].append(way())
    return samples


def compared(
    title: str, unit: str, reference: str, ways: Mapping[str, Way], repetitions: int, note: str = ""
) -> Comparison:
    """Measure the ways in turns."""
    return Comparison(title, unit, reference, in_turns(ways, repetitions), note)


def seconds(action: Callable[[], object]) -> float:
    """How long an action takes."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def tool(*words: str | Path, stdin: str = "") -> str:
    """What a command prints; it has to succeed."""
    return subprocess.run(words, input=stdin, capture_output=True, text=True, check=True).stdout


def printed(command: Sequence[str | Path]) -> Iterator[Comparison]:
    """The comparisons that a program prints, one as JSON on each line. Raises RuntimeError if it fails."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout
        try:
            for line in program.stdout:
                yield Comparison(**json.loads(line))
        except BaseException:
            program.terminate()
            raise
    if program.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: exit status {program.returncode}")


def show(comparison: Comparison) -> None:
    """Print a comparison for printed()."""
    print(json.dumps(asdict(comparison)), flush=True)
