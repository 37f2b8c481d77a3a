# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a router says, as text to show and to keep. Each filter is documented in a file of its name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml
from ansible.errors import AnsibleFilterError

from ansible_collections.lvs.fleet.plugins.module_utils._errors import ValidationError
from ansible_collections.lvs.fleet.plugins.module_utils._params import virtual_services
from ansible_collections.lvs.fleet.plugins.module_utils._report import virtual_service
from ansible_collections.lvs.fleet.plugins.module_utils._text import plain

HEAD = """\
# What {} did when lvs.fleet.adopt read it. Names and order are yours to change, the marks are not.
# Look at ansible-playbook lvs.fleet.deploy --check --diff before you deploy it.
"""


def adopted(info: Mapping[str, Any], router: str) -> str:
    """The answer of lvs_info as a file of the inventory."""
    reasons = info["not_adoptable"]
    if not isinstance(reasons, Sequence) or isinstance(reasons, str):
        raise AnsibleFilterError(f"lvs.fleet.adopted: not_adoptable: {plain(reasons)} is not a list")
    variables = {"lvs_router_adopt": True, "lvs_services": _services(info["adoptable"])}
    # Not to_yaml, whose output depends on how much Ansible trusts a text. JSON drops the types by which it knows that.
    told = yaml.safe_dump(json.loads(json.dumps(variables)), sort_keys=False, width=140, default_flow_style=None)
    comments = "".join(f"# Not here: {plain(reason)}\n" for reason in reasons)
    return f"{HEAD.format(plain(router))}{comments}---\n{told}"


def _services(said: Any) -> list[dict[str, Any]]:
    """The services in words of our own: nothing is kept of what was said but what our own parser made of it."""
    try:
        virtual_services(said, "adoptable")
        return [_service(service) for service in said]
    except ValidationError as error:
        raise AnsibleFilterError(f"lvs.fleet.adopted: {error}") from error


def _service(said: Mapping[str, Any]) -> dict[str, Any]:
    declared = virtual_services([said])
    service = virtual_service(declared.names[0], declared.rules, list(declared.pools.values()))
    return {**service, "helper": "ftp"} if said.get("helper") else service


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"adopted": adopted, "plain": plain}
