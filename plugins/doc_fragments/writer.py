# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the modules that change a running machine have in common."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  lock_timeout:
    description:
      - How many seconds to wait for another writer on the same machine to finish.
      - Writers of this collection take turns by C(/run/lock/lvs-fleet.lock). Check mode takes no lock.
    type: int
    default: 30
notes:
  - After a failure the module goes back to the state from before the run, and its message says whether that worked.
"""
