# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The way of packets through the hooks of netfilter, and what happens to them there. PRIVATE to the collection. Pure.

IPVS takes packets in LOCAL_IN, with the mark that they have by then. So everything counts that stands before it, in
every table, of both variants of iptables and of nftables: they are all called in the order of hooks and priorities.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Collection, Iterable, Iterator, Mapping, NamedTuple, Sequence

from .._model import FULL_MASK
from .._packets.conditions import (
    ALL,
    DESTINATION,
    IN_INTERFACE,
    LOOPBACK,
    MARK,
    NO,
    NOTHING,
    OUT_INTERFACE,
    PORTS,
    PROTOCOL,
    SOME,
    SOURCE,
    SOURCE_PORTS,
    STATE,
    UNKNOWN,
    UNTRACKED,
    Condition,
    Intervals,
    Packets,
    answer,
    common,
    covers_interface,
    merged,
    one_answer,
    without,
)
from .._packets.overlaps import EVERY_ADDRESS, EVERY_PORT, Block, Index, is_network, network_block, port_blocks

PREROUTING, INPUT, FORWARD, OUTPUT, POSTROUTING = "prerouting", "input", "forward", "output", "postrouting"
# IPVS is called right before NAT of sources (priority 100), in LOCAL_IN for requests and in FORWARD for replies.
IPVS_PRIORITY = 98

# What a rule does. Those that do nothing to marks, nor to where a packet goes, are left out of a chain.
ACCEPTS, RETURNS, DROPS, TRANSLATES, JUMPS, GOES = "accept", "return", "drop", "translate", "jump", "goto"
SETS_MARK, SETS_CT_MARK, SAVES_MARK, RESTORES_MARK, UNTRACKS = "mark", "ct mark", "save", "restore", "untrack"
SETS_SOME_MARK, OURS, SOURCE_NAT, PASSES = "some mark", "ours", "source nat", "pass"

# Troubles.
BYPASSED, OVERRIDDEN, CONNMARK, DROPPED, TRANSLATED = "bypassed", "overridden", "connmark", "dropped", "translated"


class Rule(NamedTuple):
    """One rule of a chain. It stands at its position, from 1; the policy of a chain is its rule 0.

    target is the chain of a jump. A new mark is (old & ~mask) ^ value, as xt_mark has it; to restore, mask is that of
    the packet's mark and value that of the connection's, to save the other way round.
    """

    chain: str
    position: int
    text: str
    action: str
    conditions: tuple[Condition, ...] = ()
    target: str = ""
    value: int = 0
    mask: int = 0


@dataclass(frozen=True)
class Hook:
    """One table at one hook: the chain that is called there, all chains of the table, and the table's words."""

    name: str
    priority: int
    table: str
    chain: str
    chains: Mapping[str, RuleIndex]
    drops: bool = False
    nat: bool = False
    # Whether the table has the kernel track connections: it does so for rules that ask for it, and without it no packet
    # passes a table of kind nat.
    tracks: bool = False
    # Whether packets with our mark pass it is not known.
    doubtful: bool = False

    @property
    def policy(self) -> Rule:
        return Rule(self.chain, 0, "policy DROP", DROPS)


class Trouble(NamedTuple):
    """What a rule does to packets. may says that it is not certain; mark is the one that they have afterwards."""

    kind: str
    table: str
    rule: Rule
    may: bool = False
    mark: int | None = None


# -- chains -------------------------------------------------------------------------------------------------------


class RuleIndex:
    """The rules of a chain, such that thousands for other addresses and ports cost nothing."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules = [rule for rule in rules if rule.action != PASSES]
        named: list[tuple[int, Block, Iterable[Block]]] = []
        by_source: list[tuple[int, Block, Iterable[Block]]] = []
        self._others: list[int] = []
        for place, rule in enumerate(self.rules):
            narrow = {one.kind: one.values for one in rule.conditions if not one.inverted}
            destination, source = (_network(narrow.get(kind, ())) for kind in (DESTINATION, SOURCE))
            if destination or narrow.get(PORTS):
                named.append((place, destination or EVERY_ADDRESS, port_blocks(narrow.get(PORTS, ()))))
            elif source and rule.action in (ACCEPTS, DROPS):
                by_source.append((place, source, [EVERY_PORT]))
            else:
                self._others.append(place)
        self._by_name, self._by_source = Index(named), Index(by_source)
        self._admission = [place for place, _source, _ports in by_source if self.rules[place].action == ACCEPTS][:1]

    def candidates(self, packets: Packets) -> list[Rule]:
        """The rules that packets may meet, in order.

        A list of sources that are let in or kept out says which clients may come, and nothing about all of them: of
        such a list one rule is as good as all.
        """
        every_source = packets.source == packets.everywhere
        source = network_block(*packets.source)
        by_source = self._admission if every_source else self._by_source.meeting(source, [EVERY_PORT])
        places = {*self._others, *by_source, *self._named(packets)}
        return [self.rules[place] for place in sorted(places)]

    def _named(self, packets: Packets) -> set[int]:
        """Places of the rules that name an address or a port of packets."""
        return self._by_name.meeting(network_block(*packets.destination), port_blocks(packets.ports))

    @cached_property
    def _odd(self) -> list[Condition]:
        """Conditions on addresses and ports of the rules that are looked at for all packets."""
        found = (one for place in self._others for one in self.rules[place].conditions)
        return list(dict.fromkeys(one for one in found if one.kind in (DESTINATION, PORTS)))

    def likeness(self, packets: Packets) -> object:
        """Packets with the same likeness fit the same rules, apart from what these ask of marks; None is like no other.

        Nor is told apart what packets consist of that only parts of rules fit.
        """
        places = sorted(self._named(packets))
        named = [one for place in places for one in self.rules[place].conditions if one.kind in (DESTINATION, PORTS)]
        answers = tuple(one_answer(one, packets) for one in (*self._odd, *named))
        if SOME in answers:
            return None
        return (*places, answers, packets.protocol, packets.source, packets.in_interface, packets.local)


def _network(intervals: Intervals) -> Block | None:
    """Addresses that are one network."""
    return network_block(*intervals[0]) if len(intervals) == 1 and is_network(*intervals[0]) else None


# -- the way ------------------------------------------------------------------------------------------------------


class _Crowd(NamedTuple):
    """Packets in a chain: how many of all that came have these ports, and what is known of the others.

    share is less than ALL in a chain that not all of them enter. doubt says that some may have been accepted before;
    by_interface, that they are here because of their interface alone.
    """

    ports: Intervals
    share: int = ALL
    doubt: bool = False
    by_interface: bool = False


class _Part(NamedTuple):
    """Those of a crowd that fit a rule: their ports, how certain that is, and in what the rule is narrower."""

    ports: Intervals
    level: int
    narrower: frozenset[str]


@dataclass
class _Walk:
    """Packets on their way. own is the mark that they are to have at the end, at the hook where they get it.

    service: where they name the service, DESTINATION in requests, SOURCE in answers; at the other end are its clients.
    """

    packets: Packets
    own: Hook | None = None
    own_mark: int = 0
    marked: bool = True
    service: str = DESTINATION
    found: list[Trouble] = field(default_factory=list)
    # Those of them that change the mark of all packets: they do no harm if another rule makes it good.
    changes: list[Trouble] = field(default_factory=list)
    lost: Intervals = ()
    # What asked for our mark or changed it, apart from its place: conditions, and how the mark changed.
    asked: dict[Any, None] = field(default_factory=dict)
    # Accepted for nothing but their interface, and perhaps dropped because of it.
    trusted: bool = False
    kept_out: bool = False
    _behind: dict[Any, _Crowd | None] = field(default_factory=dict)

    def through(self, hooks: Iterable[Hook]) -> list[Trouble]:
        for hook in hooks:
            rest = without(self.packets.ports, self.lost)
            if rest and not (hook.nat and self.packets.state == UNTRACKED):
                self._through(hook, rest)
        made_good = self.changes if self.packets.mark == self.own_mark else ()
        return [trouble for trouble in self.found if trouble not in made_good]

    def _through(self, hook: Hook, ports: Intervals) -> None:
        self.packets = self.packets._replace(ports=ports)
        self.hook = hook
        rest = self._chain(hook.chain, _Crowd(ports))
        if rest and hook.drops:
            self._drop(hook.policy, _Part(rest.ports, ALL, frozenset()), rest)

    def _chain(self, name: str, crowd: _Crowd) -> _Crowd | None:
        """What is left of a crowd behind a chain."""
        returned: Intervals = ()
        for rule in self.hook.chains[name].candidates(self.packets._replace(ports=crowd.ports)):
            part = self._part(rule, crowd)
            if part is None:
                continue
            base = name == self.hook.chain
            if rule.action in (JUMPS, GOES) and rule.target in self.hook.chains:
                crowd, gone = self._jump(rule, part, crowd)
                if gone and base:
                    self._bypass(rule, part)
                returned = merged((*returned, *gone))
            elif rule.action == RETURNS:
                returned = merged((*returned, *(part.ports if part.level == ALL else ())))
                crowd = self._ended(part, crowd)
                if base:
                    self._bypass(rule, part)
            else:
                crowd = self._do(rule, part, crowd)
            if not crowd.ports:
                break
        left = merged((*crowd.ports, *returned))
        return crowd._replace(ports=left) if left else None

    def _part(self, rule: Rule, crowd: _Crowd) -> _Part | None:
        packets = self.packets._replace(ports=crowd.ports)
        met = answer(rule.conditions, packets)
        if self.marked:
            self.asked.update((one, None) for one in rule.conditions if one.kind == MARK)
        if met == NO:
            return None
        narrower = frozenset(one.kind for one in rule.conditions if one_answer(one, packets) == SOME)
        ports = crowd.ports
        for one in rule.conditions:
            if one.kind == PORTS:
                ports = without(ports, one.values) if one.inverted else common(ports, one.values)
        level = ALL if met == SOME and narrower == {PORTS} else met
        return _Part(ports, max(level, crowd.share), narrower - {PORTS})

    def _jump(self, rule: Rule, part: _Part, crowd: _Crowd) -> tuple[_Crowd, Intervals]:
        """The crowd behind a jump, and the ports of those that come back to the chain before."""
        by_interface = crowd.by_interface or _is_about_interfaces(rule)
        back = self._entered(rule.target, _Crowd(part.ports, part.level, crowd.doubt, by_interface))
        ports = back.ports if back else ()
        if part.level != ALL:
            doubt = ports != part.ports or (back is not None and back.doubt)
            return crowd._replace(doubt=crowd.doubt or doubt), ()
        doubt = crowd.doubt or (back is not None and back.doubt)
        others = without(crowd.ports, part.ports)
        if rule.action == GOES:
            return crowd._replace(ports=others, doubt=doubt), ports
        return crowd._replace(ports=merged((*others, *ports)), doubt=doubt), ()

    def _entered(self, name: str, crowd: _Crowd) -> _Crowd | None:
        """What is left behind a chain. If it did nothing to the packets themselves, it does the same a second time.

        Without that, chains that lead to each other several times over would take more and more time.
        """
        key = (id(self.hook), name, crowd, self.packets)
        if key not in self._behind:
            before = self.packets
            back = self._chain(name, crowd)
            if self.packets != before:
                return back
            self._behind[key] = back
        return self._behind[key]

    def _do(self, rule: Rule, part: _Part, crowd: _Crowd) -> _Crowd:
        if rule.action == ACCEPTS:
            return self._accept(rule, part, crowd)
        if rule.action == DROPS:
            return self._drop(rule, part, crowd)
        if rule.action == TRANSLATES:
            self._tell(TRANSLATED, rule, part)
            return self._ended(part, crowd, lost=True)
        whole = part.level == ALL and part.ports == self.packets.ports
        if rule.action == SOURCE_NAT:
            return crowd
        if rule.action == OURS:
            self.packets = self.packets._replace(mark=self.own_mark)
            self.marked = True
        elif rule.action == UNTRACKS:
            self.packets = self.packets._replace(state=UNTRACKED if whole else "")
        elif rule.action in (SETS_CT_MARK, SAVES_MARK):
            self._keep_mark(rule, whole)
        else:
            self._change_mark(rule, part, whole)
        return crowd

    def _accept(self, rule: Rule, part: _Part, crowd: _Crowd) -> _Crowd:
        """A rule for some clients that names the service says who may use it, so it is for all who may."""
        self._bypass(rule, part)
        ports = PORTS if self.service == DESTINATION else SOURCE_PORTS
        named = {self.service, ports} & {one.kind for one in rule.conditions if not one.inverted}
        if crowd.share == ALL and ((named and part.level == SOME) or self._names_the_way(rule, crowd)):
            part = part._replace(level=ALL)
        if part.level == ALL and (_is_about_interfaces(rule) or (crowd.by_interface and not rule.conditions)):
            self.trusted = True
        return self._ended(part, crowd)

    def _names_the_way(self, rule: Rule, crowd: _Crowd) -> bool:
        """Whether a rule is for where packets come from, and, where they go to, for an interface that is not known."""
        unsure = {one.kind for one in rule.conditions if one_answer(one, self.packets) != ALL}
        whence = crowd.by_interface or {one.kind for one in rule.conditions} & {IN_INTERFACE, SOURCE}
        return unsure == {OUT_INTERFACE} and bool(whence)

    def _drop(self, rule: Rule, part: _Part, crowd: _Crowd) -> _Crowd:
        """What keeps out some clients, or is not understood, is taken for wanted."""
        if part.narrower & {IN_INTERFACE} or (crowd.by_interface and part.level == SOME):
            self.kept_out = True
        if crowd.share != ALL or part.level == UNKNOWN or part.narrower - {self.service}:
            return crowd
        self.found.append(Trouble(DROPPED, self.hook.table, rule, crowd.doubt))
        return self._ended(part, crowd, lost=not crowd.doubt)

    def _ended(self, part: _Part, crowd: _Crowd, lost: bool = False) -> _Crowd:
        if part.level != ALL:
            return crowd._replace(doubt=True)
        if lost:
            self.lost = merged((*self.lost, *part.ports))
        return crowd._replace(ports=without(crowd.ports, part.ports))

    def _bypass(self, rule: Rule, part: _Part) -> None:
        if self.hook is self.own and not self.marked:
            self._tell(BYPASSED, rule, part)
            if part.level == ALL:
                self.lost = merged((*self.lost, *part.ports))

    def _tell(self, kind: str, rule: Rule, part: _Part, mark: int | None = None) -> None:
        self.found.append(Trouble(kind, self.hook.table, rule, part.level == UNKNOWN, mark))

    def _keep_mark(self, rule: Rule, whole: bool) -> None:
        """The connection's mark, where there is a connection."""
        old, mark = self.packets.ct_mark, rule.value
        if rule.action == SAVES_MARK:
            mark = self.packets.mark & rule.value if self.packets.mark is not None else -1
        known = whole and old is not None and mark >= 0
        self.packets = self.packets._replace(ct_mark=(old & ~rule.mask) ^ mark if known and old is not None else None)

    def _change_mark(self, rule: Rule, part: _Part, whole: bool) -> None:
        if rule.action == RESTORES_MARK and self.packets.state == UNTRACKED:
            return
        new = self._new_mark(rule, self.packets.mark)
        may = part.level == UNKNOWN or self.hook.doubtful
        if not self.marked or (whole and not self.hook.doubtful):
            self.packets = self.packets._replace(mark=new if whole else None)
        if not self.marked or self.own is None:
            return
        self.asked[rule._replace(chain="", position=0, text="", conditions=())] = None
        made = self._new_mark(rule, self.own_mark)
        if made == self.own_mark:
            return
        kind = CONNMARK if rule.action == RESTORES_MARK else OVERRIDDEN
        trouble = Trouble(kind, self.hook.table, rule, may or made is None, made)
        self.found.append(trouble)
        if whole and not may:
            self.changes.append(trouble)

    def _new_mark(self, rule: Rule, old: int | None) -> int | None:
        """The mark after a rule, None where nobody can tell."""
        if rule.action == SETS_MARK:
            return rule.value if rule.mask == FULL_MASK else None if old is None else (old & ~rule.mask) ^ rule.value
        restored = self.packets.ct_mark
        if rule.action == SETS_SOME_MARK or old is None or restored is None:
            return None
        return (old & ~rule.mask) ^ (restored & rule.value)


def _is_about_interfaces(rule: Rule) -> bool:
    kinds = {one.kind for one in rule.conditions if not one.inverted}
    return IN_INTERFACE in kinds and kinds <= {IN_INTERFACE, STATE}


@dataclass
class Follower:
    """The hooks up to IPVS, and what happens there to packets that get a mark at one of them, own.

    With thousands of services nearly all packets meet the same few rules, so those that are alike are followed once.
    """

    hooks: Sequence[Hook]
    own: Hook
    devices: Collection[str] = ()
    # By the likeness of packets: what was asked of their mark, the answers, and what happened.
    _known: dict[object, list[tuple[tuple[Any, ...], list[bool], list[Trouble]]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        chains = {id(chain): chain for hook in self.hooks for chain in hook.chains.values()}
        self._all = RuleIndex(rule for chain in chains.values() for rule in chain.rules)

    def follow(self, packets: Packets, mark: int) -> list[Trouble]:
        """What happens to packets that get this mark; the very same list for packets that are alike.

        That they are dropped is told if it is so by whatever interface they come: who may come in by which one is for
        the router's people to say.
        """
        likeness = self._all.likeness(packets)
        known = self._known.setdefault(likeness, []) if likeness else []
        for asked, answers, found in known:
            if answers == _answers(asked, mark):
                return found
        found, walks = self._followed(packets, mark)
        asked = tuple(one for walk in walks for one in walk.asked)
        if not any(walk.changes for walk in walks) and not any(_depends_on_way(one) for one in asked):
            known.append((asked, _answers(asked, mark), found))
        return found

    def _followed(self, packets: Packets, mark: int) -> tuple[list[Trouble], list[_Walk]]:
        walk = _Walk(packets, self.own, mark, marked=False)
        found = walk.through(self.hooks)
        dropped = [trouble for trouble in found if trouble.kind == DROPPED]
        if not dropped and not walk.kept_out:
            return found, [walk]
        others = [trouble for trouble in found if trouble.kind != DROPPED]
        walks = [_Walk(packets._replace(in_interface=name), self.own, mark, marked=False)
                 for name in _devices(packets.in_interface, self.devices)]  # fmt: skip
        dropped = _dropped_by_all(walks, self.hooks) if walks else dropped
        return [*others, *dropped], [walk, *walks]


def _answers(asked: Iterable[Condition | Rule], mark: int) -> list[bool]:
    """Whether a mark fits each condition, and whether each rule leaves it as it is."""
    return [
        any(mark & mask == value for value, mask in one.values)
        if isinstance(one, Condition)
        else (mark & ~one.mask) ^ one.value == mark
        for one in asked
    ]


def _depends_on_way(asked: Condition | Rule) -> bool:
    """Whether more than the mark itself says what a rule does to it."""
    return isinstance(asked, Rule) and asked.action != SETS_MARK


def answers_dropped(hooks: Sequence[Hook], packets: Packets) -> list[Trouble]:
    """What keeps answers of a real server, which nobody marks, from getting through some hooks."""
    return [trouble for trouble in _Walk(packets, service=SOURCE).through(hooks) if trouble.kind == DROPPED]


def _devices(wanted: str, devices: Iterable[str]) -> list[str]:
    named = [name for name in devices if name != LOOPBACK and (not wanted or covers_interface(wanted, name))]
    return named or ([wanted] if wanted and not wanted.endswith("+") else [])


def _dropped_by_all(walks: Iterable[_Walk], hooks: Sequence[Hook]) -> list[Trouble]:
    found: dict[Trouble, None] = {}
    trusted = False
    for walk in walks:
        dropped = [trouble for trouble in walk.through(hooks) if trouble.kind == DROPPED]
        if not dropped and not walk.trusted:
            return []
        trusted = trusted or not dropped
        found.update(dict.fromkeys(dropped))
    return [trouble._replace(may=trouble.may or trusted) for trouble in found]


def readers(hooks: Iterable[Hook]) -> Iterator[tuple[Hook, Rule]]:
    """The rules that packets come to by some hooks and that ask for a mark, but for those that only accept."""
    for hook in hooks:
        reached, todo = {hook.chain}, [hook.chain]
        while todo:
            for rule in hook.chains[todo.pop()].rules:
                if any(one.kind == MARK for one in rule.conditions) and rule.action != ACCEPTS:
                    yield hook, rule
                if rule.action in (JUMPS, GOES) and rule.target in hook.chains and rule.target not in reached:
                    reached.add(rule.target)
                    todo.append(rule.target)


def singled_out(rule: Rule, packets: Packets, mark: int) -> bool:
    """Whether a rule does with the packets of a mark what it would not do if they had none, or the other way round."""
    asked = [one for one in rule.conditions if one.kind in (MARK, PROTOCOL, PORTS, NOTHING)]
    with_it, without_it = (answer(asked, packets._replace(mark=one)) == NO for one in (mark, 0))
    return with_it != without_it
