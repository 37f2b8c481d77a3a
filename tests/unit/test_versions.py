# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the README says of versions is what `make versions` ran."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
RAN = json.loads((ROOT / "tests/versions.json").read_text())


def test_the_table_of_the_readme_is_what_ran() -> None:
    rows = [f"| {version} | {found['python']} | {', '.join(found['ran'])} |" for version, found in RAN.items()]
    told = re.findall(r"^ *(\| 2\.\d+\.\d+ .*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert told == rows


def test_what_ran_is_each_version_that_is_supported() -> None:
    """From the one that the collection asks for, without a gap, and the pinned one among them."""
    releases = [tuple(map(int, version.split("."))) for version in RAN]
    asked = yaml.safe_load((ROOT / "meta/runtime.yml").read_text())["requires_ansible"]
    assert asked == f">={releases[0][0]}.{releases[0][1]}.0"
    assert [minor for _major, minor, _patch in releases] == [*range(releases[0][1], releases[-1][1] + 1)]
    assert re.findall(r"^ansible-core==(.*)$", (ROOT / "tests/requirements.in").read_text(), re.MULTILINE)[0] in RAN


def test_what_is_tried_is_what_ran() -> None:
    """The record is of the versions that the tool tries now."""
    tool = ast.parse((ROOT / "tests/tools/versions.py").read_text())
    [versions] = [node.value for node in tool.body if isinstance(node, ast.Assign)
                  and ast.unparse(node.targets[0]) == "VERSIONS"]  # fmt: skip
    tried = ast.literal_eval(versions)
    assert [*tried] == [*RAN]
    assert all(RAN[version]["python"] in pythons for version, pythons in tried.items())
