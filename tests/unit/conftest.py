# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Hypothesis tries the same examples in every run: a test that fails here fails everywhere.

Many other ones, over a cup of coffee: pytest --hypothesis-profile=thorough tests/unit
"""

from collections.abc import Iterator

import pytest
from ansible.module_utils import basic
from hypothesis import HealthCheck, Phase, settings

from ansible_collections.lvs.fleet.plugins.module_utils import _host

COMMON = settings(database=None, deadline=None, suppress_health_check=list(HealthCheck))

settings.register_profile("fixed", COMMON, derandomize=True, max_examples=50)
settings.register_profile("thorough", COMMON, max_examples=2000, phases=[Phase.generate, Phase.shrink])
settings.register_profile("few", COMMON, derandomize=True, max_examples=5)
settings.load_profile("fixed")


@pytest.fixture(autouse=True, scope="session")
def whoever_runs_the_tests() -> Iterator[None]:
    """The modules ask for root, which no unit test takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_host, "expect_root", lambda: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def syslog_of_every_python() -> Iterator[None]:
    """Newer ones take no NUL."""

    def syslog(_priority: int, message: str) -> None:
        if "\0" in message:
            raise ValueError("embedded null character")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(basic.syslog, "syslog", syslog)
        yield
