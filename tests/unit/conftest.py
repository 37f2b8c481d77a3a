# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Hypothesis tries the same examples in every run: a test that fails here fails everywhere.

Many other ones, over a cup of coffee: pytest --hypothesis-profile=thorough tests/unit
"""

from hypothesis import HealthCheck, Phase, settings

COMMON = settings(database=None, deadline=None, suppress_health_check=list(HealthCheck))

settings.register_profile("fixed", COMMON, derandomize=True, max_examples=50)
settings.register_profile("thorough", COMMON, max_examples=2000, phases=[Phase.generate, Phase.shrink])
settings.load_profile("fixed")
