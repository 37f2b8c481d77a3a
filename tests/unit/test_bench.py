# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the bench makes of its figures."""

from __future__ import annotations

import json
import sys

import pytest

from ansible_collections.lvs.fleet.plugins.module_utils._declared.params import virtual_services
from ansible_collections.lvs.fleet.plugins.module_utils._ipvs.ipvsadm import save_lines as ipvsadm_lines
from ansible_collections.lvs.fleet.plugins.module_utils._marks.iptables import render_rule
from ansible_collections.lvs.fleet.tests.bench import report, shapes
from ansible_collections.lvs.fleet.tests.bench.measure import Comparison, compared, in_turns, printed, show

LOADING = Comparison("load", "s", "stock", {"stock": [2.0, 4.0, 30.0], "ours": [1.0, 3.0]}, "of 10 servers")


def test_ways_take_turns() -> None:
    """A slow minute of the machine must not hit one way only."""
    order: list[str] = []
    figures = iter(range(1, 7))

    def way(name: str) -> float:
        order.append(name)
        return next(figures)

    samples = in_turns({"A": lambda: way("A"), "B": lambda: way("B")}, 3)
    assert order == ["A", "B"] * 3
    assert samples == {"A": [1, 3, 5], "B": [2, 4, 6]}


def test_ratio_of_medians() -> None:
    """One outlier among three figures changes nothing."""
    assert LOADING.ratio("ours") == 0.5
    assert LOADING.ratio("stock") == 1


@pytest.mark.parametrize("samples", [{"stock": []}, {"stock": [1.0, 0.0]}, {"ours": [1.0]}])
def test_missing_figures_are_an_error(samples: dict[str, list[float]]) -> None:
    with pytest.raises(ValueError, match="load: "):
        Comparison("load", "s", "stock", samples)


def test_compared() -> None:
    done = compared("load", "s", "stock", {"stock": lambda: 2.0, "ours": lambda: 1.0}, 2, "a note")
    assert done == Comparison("load", "s", "stock", {"stock": [2.0, 2.0], "ours": [1.0, 1.0]}, "a note")


def test_json() -> None:
    found = json.loads(json.dumps(LOADING.as_json()))
    assert found["ways"]["ours"] == {"median": 2.0, "ratio": 0.5, "samples": [1.0, 3.0]}
    assert (found["title"], found["unit"], found["reference"]) == ("load", "s", "stock")


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.01234, "0.0123"), (0.5, "0.500"), (1, "1.00"), (9.999, "10.0"), (12.34, "12.3"), (99.96, "100"),
     (123.4, "123"), (40000, "40,000")],
)  # fmt: skip
def test_figure(value: float, shown: str) -> None:
    assert report.figure(value) == shown


def test_text() -> None:
    assert report.text(LOADING).splitlines() == [
        "load (s)  median  from    to      ratio",
        "stock       4.00  2.00  30.0  reference",
        "ours        2.00  1.00  3.00    0.500 x",
        "(of 10 servers)",
    ]


def test_page() -> None:
    """New figures take the place of the old ones, and nothing else changes."""
    page = f"# Title\n\n{report.BEGIN}\nold\n{report.END}\n\nMore.\n"
    done = report.between_marks(page, report.markdown({"kernel": "6.1"}, {"converge": [LOADING]}))
    assert done.startswith(f"# Title\n\n{report.BEGIN}\n")
    assert done.endswith(f"\n{report.END}\n\nMore.\n")
    assert "old" not in done
    for line in ("| kernel | 6.1 |", "### Converge", "| ours | 2.00 | 1.00 | 3.00 | 0.500 x |", "Of 10 servers."):
        assert line in done.splitlines()
    assert report.between_marks(done, "") == report.between_marks(page, "")


def test_page_without_a_place() -> None:
    with pytest.raises(ValueError, match="no place"):
        report.between_marks(report.END + report.BEGIN, "")


def test_a_program_prints_comparisons(capsys: pytest.CaptureFixture[str]) -> None:
    show(LOADING)
    line = capsys.readouterr().out
    assert list(printed([sys.executable, "-c", f"print({line!r}, end='')"])) == [LOADING]


def test_a_program_that_fails_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="exit status 3"):
        list(printed([sys.executable, "-c", "raise SystemExit(3)"]))


def test_peers_load_what_the_product_declares() -> None:
    """The bench compares like with like: its files for others say what the product would say."""
    declared = virtual_services(shapes.services(3))
    assert shapes.ipvsadm(3).splitlines() == ipvsadm_lines(declared.pools)
    assert shapes.mark_rules(3) == [f"-A {shapes.CHAIN} {render_rule(rule)}" for rule in declared.rules]
    assert set(shapes.mark_rules(3)) < set(shapes.iptables(3).splitlines())
    assert shapes.messages(3).count(b"wlc\0") == 3


def test_services_share_no_address() -> None:
    given = shapes.services(4001)
    servers = [server["address"] for service in given for server in service["real_servers"]]
    destinations = [service["traffic"][0]["destination"][0] for service in given]
    assert len(set(servers + destinations)) == 4001 * 11


def test_the_expected_table() -> None:
    table = shapes.table(2)
    assert list(table) == ["FWM 00000001 wlc", "FWM 00000002 wlc"]
    assert table["FWM 00000001 wlc"][0] == "AC00000B:0000 Route 1"
