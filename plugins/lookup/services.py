# Copyright: lvs.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The virtual services of a host, joined from its variables."""

DOCUMENTATION = r"""
name: services
short_description: Join the virtual services of a host from its variables
version_added: 0.1.0
author:
  - lvs.fleet contributors (@lvs-fleet)
description:
  - Ansible does not merge lists. Of C(lvs_services) in a group and C(lvs_services) in a host only that of the host
    counts.
  - So this joins C(lvs_services) and every variable C(lvs_services_NAME) of the host, in the order of their names.
    Each group and each host adds a list of its own.
  - Lists may hold templates and vaulted values.
  - Fails if one of the variables is not a list, or if the host has none of them. C(lvs_services) with an empty list
    says that there are no services.
options:
  _terms:
    description: None are taken.
  by_variable:
    description: Whether to return the lists as they are, by the names of their variables, instead of one list.
    type: bool
    default: false
seealso:
  - plugin: lvs.fleet.problems
    plugin_type: filter
"""

EXAMPLES = r"""
- name: Make the virtual services of all groups of the router what they are declared to be
  lvs.fleet.lvs_service:
    services: "{{ lookup('lvs.fleet.services') }}"

- name: Show how many services each variable adds
  ansible.builtin.debug:
    msg: "{{ item.key }}: {{ item.value | length }}"
  loop: "{{ lookup('lvs.fleet.services', by_variable=true) | dict2items }}"
"""

RETURN = r"""
_value:
  description:
    - The virtual services, one list in the only item.
    - With O(by_variable) a dictionary of lists; empty if the host has none of the variables.
  type: list
  elements: raw
  sample: [[{name: web, fwmark: 80}]]
"""

import re
from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase

from ansible_collections.lvs.fleet.plugins.module_utils._declared.options import mappings

NAMES = re.compile(r"lvs_services(_\w+)?")


class LookupModule(LookupBase):  # type: ignore[misc]
    def run(self, terms: Any, variables: Mapping[str, Any], **options: Any) -> list[Any]:
        self.set_options(var_options=variables, direct=options)
        if terms:
            raise AnsibleLookupError("no terms are taken")
        # lvs_services is the first of its kind in the order of the alphabet.
        names = sorted(name for name in variables if NAMES.fullmatch(name))
        lists = {name: self._templar.template(variables[name]) for name in names}
        return [lists if self.get_option("by_variable") else joined(lists)]


def joined(lists: Mapping[str, Any]) -> list[Any]:
    """The items of all variables."""
    problems: list[str] = []
    for name, value in lists.items():
        if not isinstance(value, list):
            mappings(value, name, problems)
    if not lists:
        problems.append("there is no lvs_services and no lvs_services_NAME; write lvs_services: [] for no services")
    if problems:
        raise AnsibleLookupError("\n".join(problems))
    return [item for value in lists.values() for item in value]
