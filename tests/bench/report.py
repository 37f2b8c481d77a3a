# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Figures as a table on the screen, in a Markdown file, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from ansible_collections.lvs.fleet.tests.bench.measure import Comparison

HEAD = ("median", "from", "to", "ratio")
BEGIN, END = "<!-- figures: made by make bench -->", "<!-- end of the figures -->"


def figure(value: float) -> str:
    """Three digits, or all of them before the point."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - magnitude(value))}f}"


def magnitude(value: float) -> int:
    """The power of ten of the first digit, after rounding to three."""
    return int(f"{value:.2e}".partition("e")[2])


def rows(comparison: Comparison) -> Iterator[tuple[str, ...]]:
    """A way, its median, its smallest and largest figure, and how it compares with the reference."""
    for way, figures in comparison.samples.items():
        ratio = "reference" if way == comparison.reference else f"{figure(comparison.ratio(way))} x"
        yield (way, *map(figure, (median(figures), min(figures), max(figures))), ratio)


def text(comparison: Comparison) -> str:
    """A comparison for the screen."""
    table = [(f"{comparison.title} ({comparison.unit})", *HEAD), *rows(comparison)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join([cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])]).rstrip() for cells in table]
    return "\n".join([*lines, *([f"({comparison.note})"] if comparison.note else []), ""])


def markdown(facts: Mapping[str, str], sections: Mapping[str, Sequence[Comparison]]) -> str:
    """All figures with what they were taken on."""
    lines = ["", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())]
    for name, comparisons in sections.items():
        lines += ["", f"### {name.capitalize()}"]
        for comparison in comparisons:
            lines += ["", *_markdown_table(comparison)]
    return "\n".join([*lines, "", ""])


def _markdown_table(comparison: Comparison) -> Iterator[str]:
    yield f"| {comparison.title} ({comparison.unit}) | {' | '.join(HEAD)} |"
    yield "|---|--:|--:|--:|--:|"
    yield from (f"| {' | '.join(row)} |" for row in rows(comparison))
    if comparison.note:
        yield ""
        yield f"{comparison.note[0].upper()}{comparison.note[1:]}."


def between_marks(page: str, content: str) -> str:
    """The page with new content between its two marks."""
    head, begin, rest = page.partition(BEGIN)
    _old, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError("the page has no place for figures")
    return f"{head}{BEGIN}\n{content}{END}{tail}"
