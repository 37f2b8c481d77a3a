# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""At how many places of a run tests kill it, refuse what it asks for, or flush what it made."""

from __future__ import annotations

import os

# Each so many-th. EVERY=1 tries all of them, in some ten minutes more: for changes of the engine and of the planner.
EVERY = int(os.environ.get("EVERY") or 3)
