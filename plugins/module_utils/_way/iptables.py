# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The hooks of netfilter as iptables-save prints what stands there. PRIVATE to the collection. Pure."""

from __future__ import annotations

import re
from typing import Iterable, Iterator, NamedTuple, Sequence

from .._marks.iptables import saved_lines, split_words
from .._marks.matches import conditions_of, value_and_mask
from .._model import ChainId
from . import walk as way

# The built-in chains by table, with the priority of each hook.
_PRIORITIES = {
    "raw": {"PREROUTING": -300, "OUTPUT": -300},
    "mangle": {"PREROUTING": -150, "INPUT": -150, "FORWARD": -150, "OUTPUT": -150, "POSTROUTING": -150},
    "nat": {"PREROUTING": -100, "INPUT": 100, "OUTPUT": -100, "POSTROUTING": 100},
    "filter": {"INPUT": 0, "FORWARD": 0, "OUTPUT": 0},
    "security": {"INPUT": 50, "FORWARD": 50, "OUTPUT": 50},
}
_ACTIONS = {
    "ACCEPT": way.ACCEPTS,
    "RETURN": way.RETURNS,
    "DROP": way.DROPS,
    "REJECT": way.DROPS,
    "DNAT": way.TRANSLATES,
    "REDIRECT": way.TRANSLATES,
    "NETMAP": way.TRANSLATES,
    "TPROXY": way.TRANSLATES,
    "NOTRACK": way.UNTRACKS,
    "MASQUERADE": way.SOURCE_NAT,
    "SNAT": way.SOURCE_NAT,
}
_DECLARED = re.compile(r":(\S+) (\S+) \[")
# Rules that have the kernel track connections.
_TRACKS = re.compile(r"-m (conntrack|state|connmark) |-j (DNAT|SNAT|MASQUERADE|REDIRECT|NETMAP|CONNMARK|CT)\b")


class Saved(NamedTuple):
    """What iptables-save prints: the chains of each table with their policies, and each rule without "-A CHAIN "."""

    chains: dict[str, dict[str, str]]
    rules: dict[str, dict[str, list[str]]]


def saved_rules(text: str) -> Saved:
    """The tables that are printed to their end: iptables-nft stops where it meets a native rule."""
    found = Saved({}, {})
    table = ""
    chains: dict[str, str] = {}
    rules: dict[str, list[str]] = {}
    for line in saved_lines(text):
        if line.startswith("*"):
            table, chains, rules = line[1:].strip(), {}, {}
        elif declared := _DECLARED.match(line):
            chains[declared[1]] = declared[2]
        elif line.startswith("-A "):
            name, _space, rule = line[3:].partition(" ")
            rules.setdefault(name, []).append(rule)
        elif line.rstrip() == "COMMIT":
            found.chains[table], found.rules[table] = chains, rules
    return found


def hooks(saved: Saved, family: str, variant: str = "", own: Iterable[ChainId] = ()) -> Iterator[way.Hook]:
    """Every table at every hook. variant tells the tables of one from those of the other; own are chains of ours."""
    for table, chains in saved.chains.items():
        words = f"{table}{variant}"
        leads = {(key.hook, f"-j {key.name}") for key in own if (key.family, key.table) == (family, table)}
        indexed = {
            name: way.RuleIndex(_chain_rules(name, saved.rules[table].get(name, ()), chains, leads)) for name in chains
        }
        tracks = any(_TRACKS.search(text) for texts in saved.rules[table].values() for text in texts)
        for name, policy in chains.items():
            if name in _PRIORITIES.get(table, {}):
                priority = _PRIORITIES[table][name]
                drops, nat = policy == "DROP", table == "nat"
                yield way.Hook(name.lower(), priority, words, name, indexed, drops, nat, tracks)


def _chain_rules(
    name: str, texts: Sequence[str], chains: Iterable[str], leads: set[tuple[str, str]]
) -> Iterator[way.Rule]:
    for position, text in enumerate(texts, start=1):
        if (name, text) in leads:
            yield way.Rule(name, position, text, way.OURS)
        else:
            yield rule_of(name, position, text, chains)


def rule_of(chain: str, position: int, text: str, chains: Iterable[str]) -> way.Rule:
    """A rule as a value, from its text without "-A CHAIN "."""
    words = split_words(text)
    place = next((place for place, word in enumerate(words) if word in ("-j", "-g")), len(words))
    target = words[place + 1] if place + 1 < len(words) else ""
    options = words[place + 2 :]
    rule = way.Rule(chain, position, text, way.PASSES, conditions_of(words[:place]))
    if target in chains:
        return rule._replace(action=way.GOES if words[place] == "-g" else way.JUMPS, target=target)
    return _with_action(rule, target, options)


def _with_action(rule: way.Rule, target: str, options: Sequence[str]) -> way.Rule:
    if target == "MARK":
        value, mask = value_and_mask(_after(options, "--set-xmark"))
        return rule._replace(action=way.SETS_MARK, value=value, mask=mask)
    if target == "CONNMARK":
        return _connmark(rule, options)
    if target == "CT" and "--notrack" in options:
        return rule._replace(action=way.UNTRACKS)
    return rule._replace(action=_ACTIONS.get(target, way.PASSES))


def _connmark(rule: way.Rule, options: Sequence[str]) -> way.Rule:
    nfmask, ctmask = (value_and_mask(_after(options, name) or "0xffffffff")[0] for name in ("--nfmask", "--ctmask"))
    if "--restore-mark" in options:
        return rule._replace(action=way.RESTORES_MARK, value=ctmask, mask=nfmask)
    if "--save-mark" in options:
        return rule._replace(action=way.SAVES_MARK, value=nfmask, mask=ctmask)
    value, mask = value_and_mask(_after(options, "--set-xmark"))
    return rule._replace(action=way.SETS_CT_MARK, value=value, mask=mask)


def _after(words: Sequence[str], option: str) -> str:
    return words[words.index(option) + 1] if option in words[:-1] else ""
