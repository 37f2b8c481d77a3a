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
from ansible_collections.lvs.fleet.plugins.module_utils._shorthand import shorthand
from ansible_collections.lvs.fleet.plugins.module_utils._text import plain

HEAD = """\
# What {} did when lvs.fleet.adopt read it. Names and order are yours to change, the marks are not.
# Look at ansible-playbook lvs.fleet.deploy --check --diff before you deploy it.
"""


def adopted(answers: Mapping[str, Mapping[str, Any]], group: str = "") -> dict[str, str]:
    """The answers of lvs_info, by router, as files of the inventory by their folders.

    One for the group, if there is one and all routers say the same, or one for each router.
    """
    variables = {router: _variables(info) for router, info in answers.items()}
    if group and len(set(variables.values())) == 1:
        return {f"group_vars/{group}": _file(answers, next(iter(variables.values())))}
    return {f"host_vars/{router}": _file({router: answers[router]}, text) for router, text in variables.items()}


def _file(answers: Mapping[str, Mapping[str, Any]], variables: str) -> str:
    reasons = {router: [plain(reason) for reason in _reasons(info)] for router, info in answers.items()}
    comments = [f"# Not here, of {plain(router)}: {reason}\n" for router, found in reasons.items() for reason in found]
    return f"{HEAD.format(', '.join(map(plain, answers)))}{''.join(comments)}---\n{variables}"


def _reasons(info: Mapping[str, Any]) -> Sequence[Any]:
    reasons = info["not_adoptable"]
    if not isinstance(reasons, Sequence) or isinstance(reasons, str):
        raise AnsibleFilterError(f"lvs.fleet.adopted: not_adoptable: {plain(reasons)} is not a list")
    return reasons


def _variables(info: Mapping[str, Any]) -> str:
    """The services in words of our own: nothing is kept of what was said but what our own parser made of it."""
    try:
        virtual_services(info["adoptable"], "adoptable")
        services = [shorthand(service) for service in info["adoptable"]]
    except ValidationError as error:
        raise AnsibleFilterError(f"lvs.fleet.adopted: {error}") from error
    # Not to_yaml, whose output depends on how much Ansible trusts a text. JSON drops the types by which it knows that.
    variables = json.loads(json.dumps({"lvs_router_adopt": True, "lvs_services": services}))
    return yaml.safe_dump(variables, sort_keys=False, width=140, default_flow_style=None)


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"adopted": adopted, "plain": plain}
