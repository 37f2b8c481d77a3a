#!/usr/bin/python
# Copyright: lvs.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: iptables_mss
short_description: Keep TCP segments small enough for the tunnel to a real server
version_added: 0.1.0
description:
  - Has a real server tell its clients how large a segment may be so that it fits through the tunnel from the LVS
    router. Only the server can do that, because its answers do not pass the router.
  - The rules are in the chain C(LVS-MSS) of table C(mangle), entered by one jump from C(OUTPUT). Every rule has the
    comment C(lvs:mss). No other rule is touched.
  - Without segments the chain goes, and the jump with it.
extends_documentation_fragment:
  - lvs.fleet.attributes
  - lvs.fleet.writer
options:
  segments:
    description: The largest segment for each virtual address, 536 to 65495 bytes. Other addresses have no rule.
    type: dict
    required: true
notes:
  - Needs root, and on the machine nothing but Python 3.8 or later and C(iptables).
author:
  - lvs.fleet contributors (@lvs-fleet)
seealso:
  - module: lvs.fleet.ip_objects
"""

EXAMPLES = r"""
- name: Leave room for the outer header of IPIP
  lvs.fleet.iptables_mss:
    segments:
      192.0.2.10: 1440
      2001:db8:0:10::10: 1400

- name: Leave segments as they are
  lvs.fleet.iptables_mss:
    segments: {}
"""

RETURN = r"""
operations:
  description: What was done, or would be done in check mode, in order and in the words of iptables.
  returned: success
  type: list
  elements: str
  sample:
    - iptables -t mangle -N LVS-MSS
    - iptables -t mangle -A OUTPUT -j LVS-MSS
changes:
  description: The same in words.
  returned: success
  type: list
  elements: str
  sample:
    - "ipv4: rules in LVS-MSS"
"""

from ansible_collections.lvs.fleet.plugins.module_utils._engine import converge
from ansible_collections.lvs.fleet.plugins.module_utils._errors import LvsError
from ansible_collections.lvs.fleet.plugins.module_utils._model import RouterState
from ansible_collections.lvs.fleet.plugins.module_utils._module import Module
from ansible_collections.lvs.fleet.plugins.module_utils._real_server.mss import mss_chains, mss_target, segments
from ansible_collections.lvs.fleet.plugins.module_utils._router import Router


def main() -> None:
    module = Module(
        argument_spec={
            "segments": {"type": "dict", "required": True},
            "lock_timeout": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )

    def target(current: RouterState) -> RouterState:
        return mss_target(current, wanted)

    try:
        wanted = segments(module.params["segments"])
        with Router(mss_chains(), ipvs=False) as router:
            outcome = converge(router, target, module.check_mode, module.params["lock_timeout"], module.warn)
    except (LvsError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**outcome.result(module._diff))


if __name__ == "__main__":
    main()
