# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A router that anything happens to, step after step, and after each the stock tools must agree with a model.

The model is in oracle.py and shares no code with the product. What a step does is drawn by hypothesis, which prints the
whole sequence when something is wrong, and makes it shorter if it is given the time.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from hypothesis import assume
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ansible_collections.lvs.fleet.plugins.filter.fleet import ipvs_rules, marks
from ansible_collections.lvs.fleet.plugins.module_utils._ipvs.machine import IpvsTable
from ansible_collections.lvs.fleet.plugins.module_utils._marks import machine as marks_machine
from ansible_collections.lvs.fleet.tests.integration import foreign, oracle
from ansible_collections.lvs.fleet.tests.integration.child import Child, at_step, die
from ansible_collections.lvs.fleet.tests.integration.harness import (
    CHAIN,
    FAMILIES,
    IPTABLES,
    Namespace,
    Result,
    Router,
    Snapshot,
    diff_form,
)
from ansible_collections.lvs.fleet.tests.unit.strategies import (
    MARKS,
    NAMES,
    SCHEDULERS,
    address_service,
    declared_ipvs,
    declared_marks,
    declared_services,
    virtual_service,
)

Service = dict[str, Any]

CHAIN_OF_OTHERS = "SOAK-MARK"
ANY_SERVICE = st.one_of(
    st.tuples(st.sampled_from(NAMES), st.sampled_from(MARKS)).flatmap(lambda pair: virtual_service(*pair)),
    st.sampled_from(NAMES).flatmap(address_service),
)
PURGES = st.sampled_from(["owned", "owned", "none"])
PLACES = st.integers(0, 9)
WRITES = {marks_machine.write.__code__, IpvsTable.write.__code__}

# What somebody does by hand to our rules; {rule} is one of them.
RULE_DAMAGE = (
    "-D {chain} {rule}",
    "-A {chain} {rule}",
    "-I {chain} 1 {rule}",
    "-F {chain}",
    "-D PREROUTING -j {chain}",
    "-I PREROUTING -j {chain}",
    '-A {chain} -d {host} -m comment --comment "lvs:web" -j MARK --set-xmark 0x1f/0xffffffff',
    '-A {chain} -m comment --comment "lvs:ghost" -j MARK --set-xmark 0x1f/0xffffffff',
    '-I {chain} 1 -m comment --comment "lvs:ghost" -j RETURN',
)
# And to our services; {service} and {server} are their words.
SERVICE_DAMAGE = (
    "-D {service}",
    "-E {service} -s nq -p 77",
    "-E {service} -s wlc -b flag-3",
    "-a {service} -r {host}:0 -g -w 3",
    "-a {service} -r {host}:8080 -m -w 3",
    "-d {service} -r {server}",
    "-e {service} -r {server} -g -w 77",
    "-e {service} -r {server} -m -w 1 -x 9 -y 3",
)
# ipvsadm refuses or changes them for a service by address: all ports without persistence, a port that is not its own.
OF_MARKS = tuple(damage for damage in SERVICE_DAMAGE if " -g " in damage or "-b flag-3" in damage)
# What somebody does by hand to the records of services by address.
RECORD_DAMAGE = (
    "-F LVS-SERVICE",
    "-F LVS-SERVICE\n-X LVS-SERVICE",
    "-D LVS-SERVICE {rule}",
    "-A LVS-SERVICE {rule}",
    '-A LVS-SERVICE -d {host} -p tcp -m multiport --dports 9 -m comment --comment "lvs:ghost"',
    "-A LVS-SERVICE -d {host} -p udp -j RETURN",
)
HOSTS = {"ipv4": "203.0.113.200", "ipv6": "2001:db8:9::200"}
# What others do for themselves: how it comes and how it goes.
OTHERS = (
    ("-I PREROUTING 1 -s {host} -j ACCEPT", "-D PREROUTING -s {host} -j ACCEPT"),
    ("-A PREROUTING -d {host} -j MARK --set-mark 0x1f", "-D PREROUTING -d {host} -j MARK --set-mark 0x1f"),
    (":OTHERS - [0:0]\n-A INPUT -j OTHERS\n-A OTHERS -s {host} -j RETURN", "-D INPUT -j OTHERS\n-F OTHERS\n-X OTHERS"),
)
OTHER_SERVICES = (
    ("-A -f 32 -s rr\n-a -f 32 -r 10.9.1.1:0 -g -w 1", "-D -f 32"),
    ("-A -t 203.0.113.201:81 -s sh -p 7\n-a -t 203.0.113.201:81 -r 10.9.1.2:81 -m -w 2", "-D -t 203.0.113.201:81"),
)


class Budget:
    """How long it goes on: so many steps, or until then."""

    def __init__(self, steps: float = float("inf"), seconds: float = float("inf")) -> None:
        self._steps, self._until = steps, time.monotonic() + seconds
        self.done: Counter[str] = Counter()

    def spend(self, kind: str) -> None:
        self.done[kind] += 1
        if self.done.total() > self._steps or time.monotonic() > self._until:
            self.done[kind] -= 1
            raise TimeIsUp


class TimeIsUp(BaseException):
    """Ends all: hypothesis goes on after anything less."""


def without_our_chain(rules: str) -> str:
    """All tables without what others have in our chain, which purge does not leave there if it has to take all."""
    head, mangle, tail = re.split(r"^(\*mangle\n.*?^COMMIT\n)", rules, maxsplit=1, flags=re.MULTILINE | re.DOTALL)
    return head + re.sub(rf"^-A {CHAIN} .*\n", "", mangle, flags=re.MULTILINE) + tail


def changed(service: Service, change: str, by: int) -> Service:
    """The service with another setting."""
    servers = service["real_servers"]
    if change == "scheduler":
        scheduler, flags = SCHEDULERS[by % len(SCHEDULERS)]
        return {**service, "scheduler": scheduler, "scheduler_flags": flags}
    if change == "weights":
        return {**service, "real_servers": [{**server, "weight": by} for server in servers]}
    if change == "servers":
        return {**service, "real_servers": servers[1:] if by % 2 else servers[::-1]}
    if "fwmark" not in service and len(service["traffic"][0].get("ports", [0])) > 1:
        return service
    return {**service, "persistence_timeout": 60 + by}


class SoakedRouter(RuleBasedStateMachine):
    budget: ClassVar[Budget]

    def __init__(self) -> None:
        super().__init__()
        self._stack = ExitStack()

    @initialize(wanted=st.booleans())
    def a_router_with_much_of_others(self, wanted: bool) -> None:
        """Hypothesis begins with the simplest of all sequences, which is the same step again and again."""
        assume(wanted)
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="lvs-soak-"))
        self._enter_namespace()
        self.router = Router("legacy", Path(folder))
        self.model = oracle.Model()
        self.services: list[Service] = []
        self.guests: set[tuple[Any, ...]] = set()
        foreign.settle_rules(self.router)
        foreign.settle_services(self.router)
        self.look()
        self.others_are_as_they_are()

    def _enter_namespace(self) -> None:
        namespace = Namespace()
        self._stack.callback(namespace.close)
        self._stack.enter_context(namespace.inside())

    def teardown(self) -> None:
        self._stack.close()

    # -- witnesses

    def look(self) -> Snapshot:
        """The state by the stock tools. A run may have loaded a module, and a failed one as well."""
        self.there = Snapshot(**{**self.router.snapshot().__dict__, "modules": frozenset(), "table": ""})
        return self.there

    def others_are_as_they_are(self) -> None:
        """What is not ours was changed on purpose: from now on this is what has to stay."""
        self.foreign_rules = {family: self.there.foreign_rules(family) for family in FAMILIES}
        self.foreign_services = self._services_of_others()

    def _services_of_others(self) -> list[str]:
        return oracle.services_of(self.there, list(self.model.pools), others=True)

    @invariant()
    def the_router_is_as_the_model_says(self) -> None:
        self.model.agrees_with(self.there)
        assert {family: self.there.foreign_rules(family) for family in FAMILIES} == self.foreign_rules
        assert self._services_of_others() == self.foreign_services

    # -- runs

    def converge(self, services: list[Service], purge: str = "owned") -> None:
        """Check, run, check: each against the witnesses, and against each other."""
        run = partial(self.router.run, "lvs_service", services=services, purge=purge, lock_timeout=0)
        before = self.there
        foretold, done = run(check=True), run()
        self.declare(services, purge)
        # Had check mode changed something, the run would not have begun where the witnesses say.
        self.is_as_it_was_told(done, before, self.look())
        assert {**foretold, "invocation": None} == {**done, "invocation": None}
        again = run(check=True)
        assert (again["changed"], again["operations"]) == (False, []), "a second run would change something"

    def declare(self, services: list[Service], purge: str) -> None:
        """A run has succeeded: what that means for the model, and for what is not ours."""
        self.services = services
        self.model.present(services, purge)
        if purge == "all":
            self.foreign_services = []
            self.foreign_rules = {family: without_our_chain(text) for family, text in self.foreign_rules.items()}

    @staticmethod
    def is_as_it_was_told(done: Result, before: Snapshot, after: Snapshot) -> None:
        assert done["changed"] == bool(done["operations"]) == (before != after)
        for side, snapshot in (("before", before), ("after", after)):
            lines = map(oracle.without_third_flag, done["diff"][side].splitlines())
            shown = [line for line in lines if not line.startswith("#")]
            assert sorted(shown) == diff_form(snapshot, ("marks", "ipvs"), CHAIN)

    # -- what is declared

    @rule(services=declared_services(), purge=st.sampled_from(["owned", "none", "all"]))
    def everything_anew(self, services: list[Service], purge: str) -> None:
        self.budget.spend(f"everything anew, purge {purge}")
        self.converge(services, purge)

    @rule(new=ANY_SERVICE, place=PLACES, purge=PURGES)
    def a_service_comes_or_is_replaced(self, new: Service, place: int, purge: str) -> None:
        self.budget.spend("a service comes or is replaced")
        self.converge(self.with_service(new, place), purge)

    def with_service(self, new: Service, place: int) -> list[Service]:
        mark = new.get("fwmark", 0)
        left = [old for old in self.services if old["name"] != new["name"] and old.get("fwmark") != mark]
        return [*left[:place], new, *left[place:]]

    @precondition(lambda self: self.services)
    @rule(place=PLACES, purge=PURGES)
    def a_service_goes(self, place: int, purge: str) -> None:
        self.budget.spend("a service goes")
        gone = self.services[place % len(self.services)]
        self.converge([service for service in self.services if service is not gone], purge)

    @precondition(lambda self: self.services)
    @rule(place=PLACES, change=st.sampled_from(["scheduler", "weights", "servers", "persistence"]), by=PLACES)
    def a_setting_changes(self, place: int, change: str, by: int) -> None:
        self.budget.spend("a setting changes")
        place %= len(self.services)
        altered = changed(self.services[place], change, by)
        self.converge([*self.services[:place], altered, *self.services[place + 1 :]])

    @precondition(lambda self: len(self.services) > 1)
    @rule(place=PLACES)
    def the_order_changes(self, place: int) -> None:
        self.budget.spend("the order changes")
        place %= len(self.services)
        self.converge([*self.services[place:], *self.services[:place]])

    @precondition(lambda self: self.services)
    @rule(place=PLACES)
    def a_service_is_absent(self, place: int) -> None:
        self.budget.spend("state absent")
        service = self.services[place % len(self.services)]
        gone = [{key: service[key] for key in ("name", "fwmark") if key in service}]
        run = partial(self.router.run, "lvs_service", services=gone, state="absent", lock_timeout=0)
        before = self.there
        foretold, done = run(check=True), run()
        self.model.absent(gone)
        self.services = [service for service in self.services if service["name"] != gone[0]["name"]]
        self.is_as_it_was_told(done, before, self.look())
        assert foretold["operations"] == done["operations"]
        assert not run()["changed"]

    # -- what happens to it

    def undeclared(self) -> set[str]:
        """Services of ours that purge left. If their rules go by hand, nobody knows whose the rest of them is."""
        return self.model.services.keys() - self.model.declared

    @precondition(lambda self: self.services and not self.undeclared())
    @rule(damage=st.sampled_from(RULE_DAMAGE), family=st.sampled_from(FAMILIES), place=PLACES)
    def somebody_changes_our_rules(self, damage: str, family: str, place: int) -> None:
        own = [line.removeprefix(f"-A {CHAIN} ") for line in self.there.own_rules(family) if '"lvs:' in line]
        own = [line for line in own if not line.startswith("-A ")]
        if not own:
            return
        self.budget.spend("drift of rules")
        text = damage.format(chain=CHAIN, rule=own[place % len(own)], host=HOSTS[family])
        self.router.iptables(text, family)
        self.look()
        if damage.startswith("-F"):
            self.others_are_as_they_are()
        self.converge(self.services)

    @precondition(lambda self: self.services and not self.undeclared())
    @rule(damage=st.sampled_from(RECORD_DAMAGE), family=st.sampled_from(FAMILIES), place=PLACES)
    def somebody_changes_our_records(self, damage: str, family: str, place: int) -> None:
        own = [line.removeprefix("-A LVS-SERVICE ") for line in self.there.own_rules(family) if "lvs:" in line]
        own = [line for line in own if not line.startswith("-A ")]
        if not own:
            return
        self.budget.spend("drift of records")
        self.router.iptables(damage.format(rule=own[place % len(own)], host=HOSTS[family]), family)
        self.look()
        self.converge(self.services)
        if "-j RETURN" in damage:
            self.router.iptables(damage.replace("-A", "-D", 1).format(host=HOSTS[family]), family)
            self.look()

    @precondition(lambda self: self.model.pools)
    @rule(damage=st.sampled_from(SERVICE_DAMAGE), place=PLACES)
    def somebody_changes_our_services(self, damage: str, place: int) -> None:
        declared = [key for service in self.services for key in oracle.marked_pools(service)]
        if not declared:
            return
        self.budget.spend("drift of services")
        key = declared[place % len(declared)]
        servers = [line.split()[line.split().index("-r") + 1] for line in self.model.pools[key][1:]]
        if ("{server}" in damage and not servers) or (damage in OF_MARKS and not key.startswith("-f ")):
            return
        host = oracle.endpoint(HOSTS["ipv6" if "[" in key or "-6" in key else "ipv4"], 0).removesuffix(":0")
        server = servers[place % len(servers)] if servers else ""
        self.router.ipvsadm(damage.format(service=key, host=host, server=server))
        self.look()
        self.converge(self.services)

    @rule(guest=st.sampled_from(OTHERS), family=st.sampled_from(FAMILIES))
    def others_come_and_go(self, guest: tuple[str, str], family: str) -> None:
        self.budget.spend("rules of others come and go")
        self.router.iptables(guest[self.toggle(guest, family)].format(host=HOSTS[family]), family)
        self.look()
        self.others_are_as_they_are()
        assert not self.router.run("lvs_service", services=self.services, purge="none")["changed"]

    @rule(guest=st.sampled_from(OTHER_SERVICES))
    def services_of_others_come_and_go(self, guest: tuple[str, str]) -> None:
        self.budget.spend("services of others come and go")
        self.router.ipvsadm(guest[any(line in self.foreign_services for line in self._lines(guest[0]))])
        self.look()
        self.others_are_as_they_are()
        assert not self.router.run("lvs_service", services=self.services, purge="none")["changed"]

    @staticmethod
    def _lines(commands: str) -> list[str]:
        return [line for line in commands.splitlines() if line.startswith("-a ")]

    def toggle(self, *what: Any) -> bool:
        """Whether it was there already."""
        there = what in self.guests
        self.guests.symmetric_difference_update({what})
        return there

    @rule(rules=declared_marks(), services=declared_ipvs())
    def other_modules(self, rules: list[dict[str, Any]], services: list[dict[str, Any]]) -> None:
        """iptables_mark in a chain of its own and ipvs_service by address: somebody else's to lvs_service."""
        self.budget.spend("iptables_mark and ipvs_service")
        by_address = [
            service
            for service in services
            if "address" in service
            if oracle.address_words(service["protocol"], service["address"], service["port"]) not in self.model.pools
        ]
        runs = [
            partial(self.router.run, "iptables_mark", chain=CHAIN_OF_OTHERS, rules=rules, purge=True, lock_timeout=0),
            partial(self.router.run, "ipvs_service", services=by_address, lock_timeout=0),
        ]
        for run in runs:
            foretold, done = run(check=True), run()
            assert foretold["operations"] == done["operations"]
            assert not run()["changed"]
        self.look()
        for family in FAMILIES:
            there = oracle.merged(oracle.blocks(self.there, family, CHAIN_OF_OTHERS))
            assert there == oracle.merged(oracle.declared_blocks(rules, family))
        wanted = [line for service in by_address for line in oracle.address_pool(service)]
        assert [line for line in wanted if line not in self.there.services()] == []
        self.others_are_as_they_are()
        assert not self.router.run("lvs_service", services=self.services, purge="none")["changed"]
        gone = [{key: service[key] for key in ("address", "protocol", "port")} for service in by_address]
        assert self.router.run("ipvs_service", services=gone, state="absent")["changed"] == bool(gone)
        self.look()
        self.others_are_as_they_are()

    # -- what goes wrong

    @rule(new=ANY_SERVICE, place=PLACES, tool=st.sampled_from(["iptables-restore", "ip6tables-restore"]))
    def a_tool_fails_once(self, new: Service, place: int, tool: str) -> None:
        self.router.shadow(tool, '[ -e "$0.once" ] && exec "$real" "$@"; : >"$0.once"; echo "no luck" >&2; exit 4')
        self.may_fail("a tool fails once", self.with_service(new, place), f"{tool} --noflush --wait 10: exit status 4")

    @rule(new=ANY_SERVICE, place=PLACES)
    def the_kernel_refuses(self, new: Service, place: int) -> None:
        services = self.with_service({**new, "scheduler": "nosuch", "scheduler_flags": []}, place)
        self.may_fail("the kernel refuses", services, "ipvsadm -")

    def may_fail(self, kind: str, services: list[Service], message: str) -> None:
        """A run that fails, if it comes to that; then all is as it was, and the message says so."""
        self.budget.spend(kind)
        before = self.there
        result = self.router.call("lvs_service", services=services, lock_timeout=0)
        self.router.unshadow()
        self.look()
        if not result.get("failed"):
            self.declare(services, "owned")
            return
        assert self.there == before
        first, last = result["msg"].split("\n")
        assert first.startswith(message)
        assert last == "Nothing had been changed." or last.endswith("undone; the router is as it was before.")

    @rule(new=ANY_SERVICE, place=PLACES, step=st.integers(0, 15))
    def a_run_is_killed(self, new: Service, place: int, step: int) -> None:
        """Then no packet has a mark without a service, and the next run converges."""
        services = self.with_service(new, place)

        def run() -> Result:
            at_step(step, die, WRITES)
            return self.router.run("lvs_service", services=services, lock_timeout=0)

        child = Child(run)
        answer = child.wait()
        child.wait_for_commands()
        killed = answer is None
        assert killed or not answer.get("failed"), answer
        self.budget.spend("kill -9" if killed else "kill -9, too late")
        lone, unrecorded = oracle.lone_marks(self.there), oracle.unrecorded(self.there)
        assert oracle.lone_marks(self.look()) <= lone
        assert oracle.unrecorded(self.there) <= unrecorded
        self.converge(services)

    @rule()
    def the_router_boots(self) -> None:
        """What the roles keep for boot makes the same router from nothing."""
        self.budget.spend("a reboot")
        self.converge(self.services)
        with self._empty_namespace():
            for family in FAMILIES:
                self.router.tool(f"{IPTABLES[family]}-restore", "--noflush", stdin=marks(self.services, family))
            if lines := ipvs_rules(self.services):
                self.router.ipvsadm(lines)
            booted = self.look()
            self.model.agrees_with(booted)
            again = self.router.run("lvs_service", services=self.services)
            assert (again["changed"], self.look()) == (False, booted)
        self.look()

    @staticmethod
    def _empty_namespace() -> ExitStack:
        stack = ExitStack()
        namespace = Namespace()
        stack.callback(namespace.close)
        stack.enter_context(namespace.inside())
        return stack

    @rule()
    def told_and_declared(self) -> None:
        """What lvs_info tells, declared again, changes nothing."""
        self.budget.spend("lvs_info declared again")
        before = self.there
        told = self.router.run("lvs_info")["services"]
        assert not self.router.run("lvs_service", services=told, purge="none", lock_timeout=0)["changed"]
        assert self.look() == before
