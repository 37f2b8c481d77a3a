# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What every module promises."""

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
"""
