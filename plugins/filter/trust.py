# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a router says, as text to show and to keep. Each filter is documented in a file of its name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml
from ansible.errors import AnsibleFilterError

from ansible_collections.lvs.fleet.plugins.module_utils._declared.params import services_of
from ansible_collections.lvs.fleet.plugins.module_utils._errors import ValidationError
from ansible_collections.lvs.fleet.plugins.module_utils._report.shorthand import shorthand
from ansible_collections.lvs.fleet.plugins.module_utils._text import plain

HEAD = """\
# What {} did when lvs.fleet.adopt read it. Names and order are yours to change, the marks are not.
# Look at ansible-playbook lvs.fleet.deploy --check --diff before you deploy it.
"""


def adopted(answers: Mapping[str, Mapping[str, Any]], group: str = "") -> dict[str, str]:
    """The answers of lvs_info, by router, as files of the inventory by their folders.

    One for the group, if there is one and all routers say the same, or one for each router.
    """
    services = {router: _services(info) for router, info in answers.items()}
    found = list(services.values())
    if group and found and all(one == found[0] for one in found):
        variable = "lvs_services" if group == "all" else _variable(group)
        return {f"group_vars/{group}": _file(answers, variable, found[0])}
    return {
        f"host_vars/{router}": _file({router: answers[router]}, _variable(router), one)
        for router, one in services.items()
    }


def _variable(place: str) -> str:
    """The variable by which a host or a group adds its services to those of other groups."""
    return f"lvs_services_{re.sub(r'[^A-Za-z0-9_]', '_', place)}"


def _file(answers: Mapping[str, Mapping[str, Any]], variable: str, services: list[Any]) -> str:
    reasons = {router: [plain(reason) for reason in _reasons(info)] for router, info in answers.items()}
    comments = [f"# Not here, of {plain(router)}: {reason}\n" for router, found in reasons.items() for reason in found]
    # Not to_yaml, whose output depends on how much Ansible trusts a text.
    variables = yaml.safe_dump(
        {"lvs_router_adopt": True, variable: services}, sort_keys=False, width=140, default_flow_style=None
    )
    return f"{HEAD.format(', '.join(map(plain, answers)))}{''.join(comments)}---\n{variables}"


def _reasons(info: Mapping[str, Any]) -> Sequence[Any]:
    reasons = info["not_adoptable"]
    if not isinstance(reasons, Sequence) or isinstance(reasons, str):
        raise AnsibleFilterError(f"lvs.fleet.adopted: not_adoptable: {plain(reasons)} is not a list")
    return reasons


def _services(info: Mapping[str, Any]) -> list[Any]:
    """The services in words of our own: nothing is kept of what was said but what our own parser made of it."""
    by_hand = info["adoptable"] if isinstance(info["adoptable"], Mapping) else {}
    lists = {
        "adoptable.before": by_hand.get("before"),
        "services": info["services"],
        "adoptable.behind": by_hand.get("behind"),
    }
    try:
        services_of(lists)
        services = [shorthand(service) for told in lists.values() for service in told]
    except ValidationError as error:
        raise AnsibleFilterError(f"lvs.fleet.adopted: {error}") from error
    # JSON drops the types by which Ansible knows how much it trusts a text.
    plain_services: list[Any] = json.loads(json.dumps(services))
    return plain_services


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"adopted": adopted, "plain": plain}
