# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the documentation of several modules has in common."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
attributes:
  check_mode:
    description: Can run in check mode and report what the run would do, without changing anything.
    support: full
  diff_mode:
    description: Will return what changed, or would change, when in diff mode.
    support: full
  platform:
    description: The systems that the module manages.
    platforms: linux
    support: full
  action_group:
    description: Use C(group/lvs.fleet.all) in C(module_defaults) to set defaults for this module.
    membership:
      - lvs.fleet.all
    support: full
options:
  lock_timeout:
    description:
      - How many seconds to wait for another writer on the same router to finish.
      - Writers of this collection take turns by C(/run/lock/lvs-fleet.lock). Check mode takes no lock.
    type: int
    default: 30
notes:
  - Needs root, and on the router nothing but Python 3.8 or later, C(iptables) and a kernel with IPVS.
  - After a failure the module goes back to the state from before the run, and its message says whether that worked.
"""
