# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a fleet does now, from the answers of lvs_info. Each filter is documented in a file of its name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.lvs.fleet.plugins.module_utils._status import fleet
from ansible_collections.lvs.fleet.plugins.module_utils._status.answers import Router, router
from ansible_collections.lvs.fleet.plugins.module_utils._status.lines import lines
from ansible_collections.lvs.fleet.plugins.module_utils._status.page import page
from ansible_collections.lvs.fleet.plugins.module_utils._text import plain

# What the playbook registers.
INFO = "lvs_found"


def status(
    routers: Iterable[str], variables: Mapping[str, Mapping[str, Any]], now: str = "", interval: int = 0
) -> dict[str, Any]:
    """The fleet of these routers, by the variables of all hosts."""
    return fleet.fleet(_routers(routers, variables), plain(now), interval)


def status_lines(found: Mapping[str, Any]) -> list[str]:
    """The fleet as lines for people."""
    return lines(found)


def status_page(found: Mapping[str, Any]) -> str:
    """The fleet as a page."""
    return page(found)


def status_query(
    routers: Iterable[str],
    variables: Mapping[str, Mapping[str, Any]],
    query: str,
    now: str = "",
    interval: int = 0,
) -> Any:
    """What an expression of JMESPath finds in the fleet, and in the flat lists of all its routers as one, pools."""
    try:
        import jmespath
    except ImportError:
        raise AnsibleFilterError(
            "lvs.fleet.status_query: a query needs the Python library jmespath on the controller: pip install jmespath"
        ) from None
    read = _routers(routers, variables)
    whole = {**fleet.fleet(read, plain(now), interval), "pools": fleet.all_pools(read)}
    try:
        # An answer of plain types: Ansible has its own for texts, which jmespath does not know.
        return jmespath.search(str(query), json.loads(json.dumps(whole)))
    except jmespath.exceptions.JMESPathError as error:
        raise AnsibleFilterError(f"lvs.fleet.status_query: {plain(query)}: {plain(error)}") from error


def _routers(routers: Iterable[str], variables: Mapping[str, Mapping[str, Any]]) -> list[Router]:
    """In the order of their names."""
    return [router(str(name), variables[name].get(INFO, {})) for name in sorted(routers)]


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "status": status,
            "status_lines": status_lines,
            "status_page": status_page,
            "status_query": status_query,
        }
