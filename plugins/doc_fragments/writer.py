# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the modules that write to the kernel have in common."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
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
