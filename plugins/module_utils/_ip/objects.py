# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Objects of ip(8) as values, and the way from what is there to what is wanted. PRIVATE to the collection. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Iterable, Sequence, Tuple

from .._errors import ValidationError
from .._model import IPV4, IPV6

# What tells an object from all others, as the kernel sees it.
Identity = Tuple[Any, ...]

MAIN_TABLE = 254


@dataclass(frozen=True)
class IpObject:
    """One object, by the commands that add and delete it.

    settings is what it has besides its identity; claims are what no two objects can have at once.
    """

    identity: Identity
    add: str = field(compare=False)
    delete: str = field(compare=False)
    claims: frozenset[Identity] = field(compare=False)
    settings: tuple[Any, ...] = ()
    device: str = field(default="", compare=False)

    @property
    def kind(self) -> str:
        return str(self.identity[0])

    @property
    def name(self) -> str:
        return self.delete.replace(" delete", "", 1)

    @property
    def family(self) -> str:
        """The family by which ip has to be asked for it."""
        return IPV6 if self.add.startswith("-6 ") else IPV4


# -- the five kinds, from their values ----------------------------------------------------------------------------


def address(address: str, length: int, device: str, nodad: bool = False, deprecated: bool = False) -> IpObject:
    name = f"{address}/{length} dev {device}"
    return IpObject(
        identity=("address", address, length, device),
        add=f"address add {name}{' nodad' if nodad else ''}{' preferred_lft 0' if deprecated else ''}",
        delete=f"address delete {name}",
        # With another prefix length it is the same address to everybody but the kernel.
        claims=frozenset({("address", address, device)}),
        settings=(deprecated,),
        device=device,
    )


def link(name: str, kind: str, local: str, checksum: bool = False, up: bool = True) -> IpObject:
    mode = " mode ip6ip6" if kind == "ip6tnl" else ""
    return IpObject(
        identity=("link", name, kind),
        add=f"link add {name} up type {kind}{mode} local {local}{' icsum' if checksum else ''}",
        delete=f"link delete {name}",
        claims=frozenset({("link", name), ("tunnel", kind, local)}),
        settings=(local, checksum, up),
    )


def fou(family: str, number: int) -> IpObject:
    return _paired(f"fou {{}} port {number} gue", family, ("fou", family, number))


def rule(family: str, source: str, destination: str, mark: int, table: int, suppress: bool, priority: int) -> IpObject:
    words = [f"from {source}"] * bool(source) + [f"to {destination}"] * bool(destination)
    words += [f"fwmark {mark}"] * bool(mark)
    words += [f"lookup {'main' if table == MAIN_TABLE else table}"]
    words += ["suppress_prefixlength 0"] * suppress + [f"priority {priority}"]
    identity = ("rule", family, source, destination, mark, table, suppress, priority)
    return _paired(f"rule {{}} {' '.join(words)}", family, identity)


def route(family: str, table: int, gateway: str) -> IpObject:
    """The default route of a table: through a gateway, or into the machine itself."""
    way = f"default via {gateway}" if gateway else "local default dev lo"
    only_one = ("route", family, table)
    return _paired(f"route {{}} {way} table {table}", family, (*only_one, gateway), only_one)


def _paired(command: str, family: str, identity: Identity, claim: Identity = ()) -> IpObject:
    """An object whose two commands differ by a word, and that ip has to be told the family of."""
    words = f"{'-6 ' if family == IPV6 else ''}{command}"
    return IpObject(identity, words.format("add"), words.format("delete"), frozenset({claim or identity}))


# -- the way ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """An object that comes or goes."""

    adds: bool
    object: IpObject

    @property
    def command(self) -> str:
        return self.object.add if self.adds else self.object.delete

    def back(self) -> Step:
        return Step(not self.adds, self.object)


@dataclass(frozen=True)
class Plan:
    """The way from what is there to what is wanted, in its order; and what is on record before, meanwhile and after."""

    before: tuple[IpObject, ...]
    meanwhile: tuple[IpObject, ...]
    after: tuple[IpObject, ...]
    steps: tuple[Step, ...]


def plan(wanted: Sequence[IpObject], recorded: Sequence[IpObject], live: Iterable[IpObject]) -> Plan:
    """Ours is what is on record. What is wanted and there without being on record is somebody else's, and stays so.

    Raises ValidationError where somebody else's object is in the way of a wanted one.
    """
    there = list(live)
    order = {known.identity: place for place, known in enumerate(recorded)}
    own = sorted((found for found in there if found.identity in order), key=lambda found: order[found.identity])
    foreign = [found for found in there if found.identity not in order]
    # A device that is made anew loses its addresses.
    doomed = {found.identity[1] for found in own if found.kind == "link" and found not in wanted}
    kept = [found for found in own if found in wanted and found.device not in doomed]
    missing = [item for item in wanted if item not in kept]
    _check_the_way(wanted, missing, there, foreign)
    taken = _claims(foreign)
    additions = [item for item in missing if not item.claims & taken]
    removals = [found for found in reversed(own) if found not in kept]
    # Add before remove, but for what cannot be there twice.
    claimed = _claims(additions)
    first = [found for found in removals if found.claims & claimed]
    last = [found for found in removals if not found.claims & claimed]
    return Plan(
        before=tuple(own),
        meanwhile=tuple(dict.fromkeys((*recorded, *additions))),
        after=tuple(item for item in wanted if item in kept or item in additions),
        steps=(
            *(Step(False, found) for found in first),
            *(Step(True, item) for item in additions),
            *(Step(False, found) for found in last),
        ),
    )


def _check_the_way(
    wanted: Sequence[IpObject], missing: Sequence[IpObject], there: Sequence[IpObject], foreign: Sequence[IpObject]
) -> None:
    """Somebody else's address is as good as ours, whatever its prefix length. All else must be exactly what we want."""
    devices = {item.identity[1] for item in (*there, *wanted) if item.kind == "link"}
    problems = []
    for item in missing:
        line = f"commands[{wanted.index(item)}]: {item.add}: "
        if item.device and item.device not in devices:
            problems.append(f"{line}there is no device {item.device}")
        rivals = [other for other in foreign if item.kind != "address" and item.claims & other.claims and item != other]
        problems += [f"{line}somebody else's {other.name} is in the way" for other in rivals]
    if problems:
        raise ValidationError(problems)


def _claims(objects: Iterable[IpObject]) -> frozenset[Identity]:
    return frozenset(chain.from_iterable(item.claims for item in objects))


def text_of(objects: Iterable[IpObject]) -> str:
    """The record: the commands that make the objects, one on each line."""
    return "".join(f"{item.add}\n" for item in objects)
