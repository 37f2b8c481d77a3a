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
      - Who had to wait says for whom, in a warning; who gives up says so in the message of the failure.
    type: int
    default: 30
notes:
  - After a failure the module goes back to the state from before the run, and its message says whether that worked.
  - What asks a process to end, such as a closed ssh session, is heard when the module has done what it had begun.
"""
