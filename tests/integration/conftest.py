# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The modules on a real kernel, each test in a network namespace of its own.

The folder bench/ needs a kernel with IPVS (tests/lab/lab bench); marks/ needs only iptables, and runs on any kernel
with every variant of iptables that the kernel allows.
"""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.lvs.fleet.tests.integration.harness import Namespace, Router, hide_run

VARIANTS = ("legacy", "nft")
# So that what does not agree there is shown.
pytest.register_assert_rewrite(
    *(f"ansible_collections.lvs.fleet.tests.integration.{name}" for name in ("oracle", "soak"))
)


def pytest_sessionstart() -> None:
    if os.geteuid():
        pytest.exit("these tests need root", returncode=2)
    hide_run()


@functools.cache
def kernel_allows(variant: str) -> bool:
    """Whether a MARK rule can be added at all; merely listing works even where the kernel has no such tables."""
    rule = "-t mangle -A PREROUTING -p tcp -m multiport --dports 1 -m comment --comment x -j MARK --set-mark 1"
    namespace = Namespace()
    try:
        with namespace.inside():
            done = subprocess.run([f"iptables-{variant}", *rule.split()], stderr=subprocess.DEVNULL, check=False)
            return done.returncode == 0
    finally:
        namespace.close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    chosen = any("variant" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize"))
    if "variant" in metafunc.fixturenames and not chosen:
        allowed = [variant for variant in VARIANTS if kernel_allows(variant)]
        assert allowed, "this kernel takes MARK rules from no variant of iptables"
        metafunc.parametrize("variant", allowed)


@pytest.fixture
def router(variant: str, tmp_path: Path) -> Iterator[Router]:
    """A router with an empty IPVS table and no rules."""
    if not kernel_allows(variant):
        pytest.skip(f"this kernel has no iptables-{variant}")
    namespace = Namespace()
    try:
        with namespace.inside():
            yield Router(variant, tmp_path)
    finally:
        namespace.close()
