# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The picture of a fleet, as lines and as answers to questions."""

from __future__ import annotations

import copy
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible.parsing.splitter import parse_kv

from ansible_collections.lvs.fleet.plugins.filter.status import status, status_lines, status_query
from ansible_collections.lvs.fleet.tests.unit.fleets import (
    NOW,
    SMALL,
    answer,
    large,
    not_local,
    quiet,
    server,
    small,
)

DOCUMENTED = (Path(__file__).parents[3] / "docs/status.md").read_text(encoding="utf-8")


def variables(answers: Mapping[str, Any]) -> dict[str, Any]:
    return {name: {"lvs_found": told} for name, told in answers.items()}


def of(answers: Mapping[str, Any], now: str = NOW) -> dict[str, Any]:
    return status(answers, variables(answers), now, 10)


def service(servers: list[dict[str, Any]]) -> dict[str, Any]:
    return {**SMALL[3], "servers": servers}


def state_of(*servers: dict[str, Any]) -> str:
    [told] = of({"router1": answer([service(list(servers))])})["services"]
    return str(told["state"])


def test_sums_count_a_connection_once() -> None:
    """The standby has the connections of the active router from its sync daemon; new ones it has none."""
    answers = small()
    answers["router2"] = answer(SMALL, not_local(SMALL))
    for entry in answers["router2"]["pools"]:
        entry.update(connections_per_second=0, in_packets_per_second=0)
    totals, alone = of(answers)["totals"], of({"router1": answers["router1"]})["totals"]
    assert totals == {**alone, "routers": 2, "routers_read": 2}
    assert totals["active_connections"] == sum(one["active"] for web in SMALL for one in web["servers"])
    assert totals["connections_per_second"] == sum(one["rate"] for web in SMALL for one in web["servers"])


def test_no_router_has_the_addresses() -> None:
    """Then nobody is left out, and it is a problem of each address rather than of each router."""
    told = of({name: answer(SMALL, not_local(SMALL)) for name in ("router1", "router2")})
    assert told["totals"]["active_connections"] == 2 * sum(one["active"] for web in SMALL for one in web["servers"])
    assert {one["message"] for one in told["problems"]} >= {"no router has the address 192.0.2.10"}
    assert [one["role"] for one in told["routers"]] == ["standby", "standby"]


def test_who_has_the_addresses() -> None:
    told = of(small())
    assert told["addresses"] == [
        {"routers": ["router1"],
         "addresses": ["192.0.2.10", "192.0.2.11", "192.0.2.12", "192.0.2.13", "2001:db8:0:10::10"]},
    ]  # fmt: skip
    assert [(one["role"], len(one["addresses"])) for one in told["routers"]] == [("active", 5), ("standby", 0)]


def test_states() -> None:
    one, two = server("10.0.0.1", 1, 1), server("10.0.0.2", 1, 1)
    out, full = {**two, "weight": 0}, {**two, "upper_threshold": 1}
    six = server("2001:db8::1", 1, 1)
    assert state_of(one, two) == state_of(one) == state_of(one, six) == "all"
    assert state_of(one, two, {**out, "address": "10.0.0.3"}) == "reduced"
    assert state_of(one, out) == "one_left"
    assert state_of() == state_of(out) == state_of(one, {**six, "weight": 0}) == "no_server"
    assert state_of(one, full) == "full"


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda web: web["servers"].pop(), "web: 2001:db8:1:ffff:ffff:ffff:ffff:11 is missing"),
        (lambda web: web["servers"].append(server("10.0.0.15", 0, 0)), "web: 10.0.0.15 is only here"),
        (lambda web: web.update(scheduler="rr"), "web: the ipv4 service has scheduler rr instead of wlc"),
        (lambda web: web["traffic"].append(("udp", [443])),
         "web: the mark for udp 443 to 192.0.2.10, 2001:db8:0:10::10 is only here"),
    ],
)  # fmt: skip
def test_differences(change: Any, told: str) -> None:
    other = copy.deepcopy(SMALL)
    change(other[0])
    found = of({"router1": answer(SMALL), "router2": answer(SMALL), "router3": answer(other)})
    assert found["groups"] == [["router1", "router2"], ["router3"]]
    assert told in found["routers"][2]["differences"]
    assert [one["different"] for one in found["routers"][:2]] == [0, 0]


def test_what_is_out_and_since_when() -> None:
    [told] = of(small())["out"]
    assert (told["address"], told["services"], told["active_connections"]) == ("10.0.0.13", ["web", "api"], 41)
    assert [one["by"] for one in told["reasons"]] == ["alice"] and told["overdue"] is True
    assert of(small(), "2026-11-25T09:29:59Z")["out"][0]["overdue"] is False


# What the page of the documentation shows.
[SHOWN] = re.findall(r"^```text\n(.*?)^```$", DOCUMENTED, re.MULTILINE | re.DOTALL)


def test_a_small_fleet_as_lines() -> None:
    assert status_lines(of(small())) == SHOWN.splitlines()


def test_a_large_fleet_is_one_screen() -> None:
    lines = status_lines(of(large(services=300)))
    assert len(lines) < 25 and max(map(len, lines)) < 250
    assert lines[0].startswith("50 routers, 300 services, 1,194 of 1,200 server places in service, ")
    assert "tables: 47 equal, 2 differ" in lines
    assert "    router7: service-0000: 10.0.0.4 has weight 3 instead of 10, and 11 more" in lines
    assert "unreachable: router50: Failed to connect to the host via ssh: timed out" in lines
    assert "one server left: service-0009 (1 of 4)" in lines


def test_without_rates_there_are_none() -> None:
    answers = {"router1": answer(quiet(SMALL))}
    for entry in answers["router1"]["pools"]:
        entry.update(connections_per_second=None, in_packets_per_second=None)
    assert not [line for line in status_lines(of(answers)) if "new/s" in line]


def test_no_router_answers() -> None:
    lines = status_lines(of({"router1": {}, "router2": {"failed": True, "msg": "needs root"}}))
    assert lines[1:] == ["failed: router1: nothing was read", "failed: router2: needs root"]


# -- questions ----------------------------------------------------------------------------------------------------

QUERIES: dict[str, Any] = {
    "pools[?weight==`0`].[router,name,address]": [
        ["router1", "web", "10.0.0.13"], ["router1", "api", "10.0.0.13"],
        ["router2", "web", "10.0.0.13"], ["router2", "api", "10.0.0.13"],
    ],
    "sum(pools[?address=='10.0.0.11'].active_connections)": 812,
    "services[?state=='one_left'].name": ["api"],
    "services[?real_servers[?address=='10.0.0.13']].name": ["web", "api"],
    "services[?full].[name,full]": [["smtp", ["10.0.0.51"]]],
    "reverse(sort_by(services,&connections_per_second))[:3].[name,connections_per_second]": [
        ["dns", 1214], ["web", 289.5], ["api", 51],
    ],
    "addresses[?contains(addresses,'192.0.2.10')].routers|[]": ["router1"],
    "routers[?different>`0`].[name,differences]": [["router2", ["web: 10.0.0.12 has weight 20 instead of 10"]]],
    "out[?overdue].[address,reasons[].by]": [["10.0.0.13", ["alice"]]],
    "problems[?kind=='overridden'].[routers,message]": [
        [["router1"], "smtp: rule 3 of PREROUTING gives its packets another mark"],
    ],
    "pools[?weight==`0`&&active_connections>`0`].[router,address,active_connections]": [["router1", "10.0.0.13", 41]],
}  # fmt: skip


def documented_queries() -> list[str]:
    """The expressions of the page, by way of a shell and of Ansible."""
    lines = re.findall(r"^\$ ansible-playbook lvs\.fleet\.status (-e .*query=.*)$", DOCUMENTED, re.MULTILINE)
    return [parse_kv(shlex.split(line.replace("\\`", "`"))[1])["query"] for line in lines]


def test_the_documented_queries_are_these() -> None:
    assert documented_queries() == list(QUERIES)


@pytest.mark.parametrize("query", QUERIES)
def test_queries(query: str) -> None:
    assert status_query(small(), variables(small()), query, NOW, 10) == QUERIES[query]


def test_an_expression_that_is_none() -> None:
    with pytest.raises(AnsibleFilterError, match=r"lvs.fleet.status_query: pools\[: "):
        status_query(small(), variables(small()), "pools[")


def test_a_controller_without_jmespath(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jmespath", None)
    with pytest.raises(AnsibleFilterError, match="pip install jmespath"):
        status_query(small(), variables(small()), "pools")
