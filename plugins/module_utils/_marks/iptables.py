# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Chains and rules as text: the language of iptables-save and iptables-restore. PRIVATE to the collection. Pure."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from dataclasses import replace
from ipaddress import ip_network
from itertools import zip_longest
from typing import Any, Iterable, Iterator, Mapping, Optional, Sequence, Tuple

from .._errors import LvsError, ParseError
from .._model import (
    EVERYWHERE,
    FAMILIES,
    FULL_MASK,
    FULL_NETMASK,
    IPTABLES_MARK,
    IPV4,
    IPV6,
    LVS_SERVICE,
    Chain,
    ChainEdit,
    ChainId,
    ChainRule,
    MarkRule,
    PortRange,
    ServiceId,
    ServiceRecord,
    SnatRule,
    TableRule,
)
from .._text import printable

DEFAULT_CHAIN = "LVS-MARK"
SNAT_CHAIN = "LVS-SNAT"
RECORD_CHAIN = "LVS-SERVICE"
COMMENT = "lvs:"
COMMAND = {IPV4: "iptables", IPV6: "ip6tables"}
# The kernel's multiport match has 15 slots; a range takes two of them.
PORT_SLOTS = 15
# A source address no packet can have. A rule with it never matches: it only keeps the mark's owner on record in the
# kernel between the moment the mark is no longer given and the moment its service is gone.
NOWHERE = {IPV4: "255.255.255.255/32", IPV6: "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128"}

PROTOCOL_NUMBERS = {"6": "tcp", "17": "udp", "132": "sctp"}
_WORD = re.compile(r'"((?:[^"\\]|\\.)*)"|(\S+)')
_ESCAPED = re.compile(r"\\(.)")
_TO_ESCAPE = re.compile(r"""(["'\\])""")
# No value of ours is like that, but for what is in a comment.
_NEEDS_QUOTES = re.compile(r"""[\s"'\\]""")
# With some native rules iptables-nft-save prints this in place of the table, and exits with 0.
_INCOMPATIBLE = re.compile(r"^# Table `\w+' is incompatible", re.MULTILINE)
_APPENDED = re.compile(r"-A (\S+)(?: (.*))?", re.DOTALL)
# The value of an option as iptables-save quotes it, to its end if there is one. It never quotes the names of sets and
# interfaces, so a quote in them is a character of theirs.
_QUOTED = re.compile(r' --(?!match-set |physdev-)[\w-]+ "(?:[^"\\]|\\.)*("?)', re.DOTALL)
# More than any quoted value has. What is longer was no beginning of one.
_LONGEST_QUOTED = 1024
_ASKED_MARK = re.compile(r"-m mark (! )?--mark 0x([0-9a-f]+)(?:/0x([0-9a-f]+))?")
# What a rule asks for that leaves a machine of the same network out.
_NOT_MAC = "! --mac-source"
# The single-port match that -p PROTOCOL brings along; its words mean nothing by themselves.
_PORT_MATCHES = frozenset(PROTOCOL_NUMBERS.values())
# Pairs of places: the first one, and the series of those behind it.
_Series = Optional[Tuple[int, int, Any]]


def mark_chains(name: str = DEFAULT_CHAIN) -> tuple[ChainId, ...]:
    """The chains of the MARK rules, one for each family."""
    return tuple(ChainId(family, "mangle", "PREROUTING", name) for family in FAMILIES)


def snat_chains() -> tuple[ChainId, ...]:
    """The chains of the rules that active FTP needs behind masquerading, one for each family."""
    return tuple(ChainId(family, "nat", "POSTROUTING", SNAT_CHAIN) for family in FAMILIES)


def record_chains() -> tuple[ChainId, ...]:
    """The chains of the records of services by address, one for each family; nothing leads into them."""
    return tuple(ChainId(family, "mangle", "", RECORD_CHAIN) for family in FAMILIES)


# -- reading ------------------------------------------------------------------------------------------------------


def saved_lines(saved: str) -> list[str]:
    """The lines of iptables-save, each rule one of them: a line break in somebody's comment is no end of a line.

    What stands behind it in the comment may look like a rule of ours.
    """
    # Not splitlines(), which breaks at a dozen characters that may stand in a comment as well.
    lines = saved.split("\n")
    found: list[str] = []
    place = 0
    while place < len(lines):
        end = _end_of_rule(lines, place) if lines[place].startswith("-A ") and _is_open(lines[place]) else place + 1
        found.append("\n".join(lines[place:end]))
        place = end
    return found


def _is_open(line: str) -> bool:
    """Whether a quoted value begins in a line, and does not end there."""
    return '"' in line and any(not closed for closed in _QUOTED.findall(line))


def _end_of_rule(lines: Sequence[str], start: int) -> int:
    """Behind the line that ends the quoted value which a line leaves open; behind the line itself if none does."""
    text = lines[start]
    for end in range(start + 1, len(lines)):
        text = f"{text}\n{lines[end]}"
        if not _is_open(text):
            return end + 1
        if len(text) - len(lines[start]) > _LONGEST_QUOTED:
            break
    return start + 1


def parse_chain(saved: str, chain_id: ChainId) -> Chain:
    """Our chain in the output of iptables-save -t TABLE. An empty text is an empty table.

    Raises ParseError where the output stops before COMMIT, or is a remark instead of a table: iptables-nft does either
    when it meets a native nft rule it cannot express, and what it printed must not be taken for the whole.
    """
    family, table, name = chain_id.family, chain_id.table, chain_id.name
    lines = saved_lines(saved)
    if _INCOMPATIBLE.search(saved) or (any(line.startswith("*") for line in lines) and "COMMIT" not in lines):
        raise ParseError(f"{COMMAND[family]}-save -t {table} did not print it all: {unreadable(family, table)}")
    own = f"-A {name} "
    # The chain of MARK rules under another name is one that only iptables_mark has.
    owner = IPTABLES_MARK if chain_id.hook == "PREROUTING" and name != DEFAULT_CHAIN else LVS_SERVICE
    parse = parse_record if chain_id.has_records else parse_rule
    rules = tuple(parse(line[len(own) :], family, owner) for line in lines if line.startswith(own))
    jump = f"-A {chain_id.hook} -j {name}"
    leads_in = re.compile(rf" -[jg] {re.escape(name)}$")
    hook = [line for line in lines if line.startswith(f"-A {chain_id.hook} ")]
    jumps = tuple(place for place, line in enumerate(hook, start=1) if line == jump)
    references = sum(1 for line in lines if leads_in.search(line)) - len(jumps)
    exists = any(line.startswith(f":{name} ") for line in lines)
    return Chain(exists, rules, len(jumps), references, jump_places=jumps, hook_length=len(hook))


def marks_given(saved: str) -> set[int]:
    """The marks that the rules of a whole table set, ours and others'."""
    given = (re.search(r" -j MARK --set-xmark 0x([0-9a-f]{1,8})/0x[0-9a-f]+$", line) for line in saved_lines(saved))
    return {int(found[1], 16) for found in given if found}


def unreadable(family: str, table: str) -> str:
    """Why iptables cannot read a table, and where to look."""
    nft_family = "ip" if family == IPV4 else "ip6"
    return f"the table holds rules that iptables cannot express (see: nft list table {nft_family} {table})"


def parse_rule(text: str, family: str, owner: str = LVS_SERVICE) -> ChainRule:
    """One rule as iptables-save prints it, without "-A CHAIN ".  A rule that is not ours stays as text.

    owner is whose it is if it does not say so itself.
    """
    words = split_words(text)
    comments = [comment for word, comment in zip(words, words[1:]) if word == "--comment"]
    name = next((comment for comment in comments if comment != IPTABLES_MARK), "")
    # A rule with a line break is none that we wrote, or could delete.
    name = name[len(COMMENT) :] if name.startswith(COMMENT) and "\n" not in text else ""
    owner = IPTABLES_MARK if IPTABLES_MARK in comments else owner
    mark, mask = _mark(_option(words, "--set-xmark"))
    rule = MarkRule(name, mark, EVERYWHERE[family], mask=mask, owner=owner)
    meaning = _mark_rule(words, rule) if name and mark else None
    return ChainRule(text, meaning or text, name, mark, owner)


def parse_record(text: str, family: str, owner: str = LVS_SERVICE) -> ChainRule:
    """One rule of the chain of records. One that is no record of ours stays as text."""
    rule = parse_rule(text, family, owner)
    fields = _fields(split_words(text))
    try:
        seen = _with_traffic(MarkRule(rule.name, 0, EVERYWHERE[family]), fields)
    except ValueError:
        return rule
    record = record_of(seen)
    return replace(rule, meaning=record) if record and render_record(record) == text else rule


def record_of(rule: MarkRule) -> ServiceRecord | None:
    """The record that a rule with this traffic is, None if it is none."""
    address, _slash, length = rule.destination.partition("/")
    single = int(length) == FULL_NETMASK[rule.family] and rule.ports in ((), rule.ports[:1])
    if not single or not rule.name or rule.protocol not in PROTOCOL_NUMBERS.values():
        return None
    low, high = rule.ports[0] if rule.ports else (0, 0)
    service = ServiceId(rule.family, protocol=rule.protocol, address=address, port=low)
    return ServiceRecord(rule.name, service) if low == high else None


def split_words(text: str) -> list[str]:
    return [_ESCAPED.sub(r"\1", quoted) if quoted else word for quoted, word in _WORD.findall(text)]


def _option(words: Sequence[str], option: str) -> str:
    """The value of an option; a comment may be a word that looks like one."""
    for before, word, value in zip(("", *words), words, words[1:]):
        if word == option and before != "--comment":
            return value
    return ""


def _mark(value: str) -> tuple[int, int]:
    """VALUE/MASK as iptables-save prints it; (0, 0) for a rule that sets no mark."""
    found = re.fullmatch(r"0x([0-9a-f]{1,8})/0x([0-9a-f]{1,8})", value)
    return (int(found[1], 16), int(found[2], 16)) if found else (0, 0)


def _mark_rule(words: Sequence[str], rule: MarkRule) -> MarkRule | None:
    """The rule with its traffic, or None if a word of it is not one that this collection writes."""
    fields = _fields(words)
    if not fields or fields.get("-j") != "MARK":
        return None
    try:
        return _with_traffic(rule, fields)
    except ValueError:
        return None


def _fields(words: Sequence[str]) -> dict[str, str]:
    """The options of a rule; none if one of them is not among those that this collection writes.

    Of MAC addresses that are left out there may be several, each in a match of its own.
    """
    fields: dict[str, str] = {}
    joined = _with_negations(words)
    for word, value in zip_longest(joined[::2], joined[1::2], fillvalue=""):
        if (word, value) == ("--comment", IPTABLES_MARK):
            continue
        if word == _NOT_MAC and word in fields:
            value = f"{fields.pop(word)} {value}"
        if word in fields or not _expected(word, value):
            return {}
        if word != "-m":
            fields[word] = value
    return {} if {"--dport", "--dports"} <= fields.keys() else fields


def _with_negations(words: Sequence[str]) -> list[str]:
    """The words with each "!" as the beginning of the option that it negates; a comment may be a "!" as well."""
    found: list[str] = []
    for word in words:
        if found[-1:] == ["!"] and found[-2:-1] != ["--comment"]:
            found[-1] = f"! {word}"
        else:
            found.append(word)
    return found


def _with_traffic(rule: MarkRule, fields: Mapping[str, str]) -> MarkRule:
    """The rule with the traffic that options say. Raises ValueError for a mask with gaps, which is no network."""
    protocol = fields.get("-p", "")
    ports = fields.get("--dports") or fields.get("--dport") or ""
    return replace(
        rule,
        destination=str(ip_network(fields.get("-d", rule.destination))),
        protocol=PROTOCOL_NUMBERS.get(protocol, protocol),
        ports=merge_ports(_port_range(item) for item in ports.split(",") if item),
        source=str(ip_network(fields["-s"])) if "-s" in fields else "",
        in_interface=fields.get("-i", ""),
        exclude_mac=tuple(sorted(set(fields.get(_NOT_MAC, "").lower().split()))),
    )


def _expected(word: str, value: str) -> bool:
    if word == _NOT_MAC:
        # iptables prints nothing but MAC addresses there.
        return True
    if word != "--comment" and _NEEDS_QUOTES.search(value):
        return False
    if word == "-m":
        return value in ("multiport", "comment", "mac") or value in _PORT_MATCHES
    return word in ("-s", "-d", "-i", "-p", "--dports", "--dport", "--comment", "-j", "--set-xmark")


def parse_table(saved: str, family: str) -> tuple[TableRule, ...]:
    """Every rule of a table in the output of iptables-save -t TABLE, whoever wrote it."""
    positions: Counter[str] = Counter()
    found = []
    for appended in map(_APPENDED.fullmatch, saved_lines(saved)):
        if appended:
            chain, text = appended[1], appended[2] or ""
            positions[chain] += 1
            found.append(_table_rule(chain, positions[chain], text, family))
    return tuple(found)


def _table_rule(chain: str, position: int, text: str, family: str) -> TableRule:
    words = split_words(text)
    target = _option(words, "-j") or _option(words, "-g")
    mark, mask = _mark(_option(words, "--set-xmark")) if target == "MARK" else (0, 0)
    asked = _ASKED_MARK.search(_QUOTED.sub("", text))
    asks = (int(asked[2], 16), int(asked[3] or "ffffffff", 16), bool(asked[1])) if asked else (0, 0, False)
    rule = MarkRule("", mark, EVERYWHERE[family], mask=mask)
    try:
        # No transaction of ours could delete a rule with a line break, so we have no words for it.
        fields = _fields(words) if "\n" not in text else {}
        return TableRule(chain, position, text, target, _with_traffic(rule, fields or _seen(words)), bool(fields), asks)
    except ValueError:
        return TableRule(chain, position, text, target, rule, False, asks)


def _seen(words: Sequence[str]) -> dict[str, str]:
    """What a rule may see: matches that are negated or unknown to us are left out, as they can only narrow it."""
    fields: dict[str, str] = {}
    for before, word, value in zip(("", *words), words, words[1:]):
        if before not in ("!", "--comment") and word in ("-s", "-d", "-i", "-p", "--dport", "--dports"):
            fields.setdefault(word, value)
    if fields.get("-p") not in _PORT_MATCHES:
        fields.pop("--dport", "")
    return fields


def _port_range(text: str) -> PortRange:
    low, _colon, high = text.partition(":")
    return (int(low), int(high or low))


def merge_ports(ranges: Iterable[PortRange]) -> tuple[PortRange, ...]:
    """Sorted, and joined where they overlap: the order of ports means nothing to the kernel."""
    merged: list[PortRange] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def split_ports(ports: Sequence[PortRange]) -> list[tuple[PortRange, ...]]:
    """As many groups as the 15 slots of one rule demand; one empty group for "every port"."""
    groups: list[list[PortRange]] = [[]]
    used = 0
    for low, high in ports:
        slots = 1 if low == high else 2
        if used + slots > PORT_SLOTS:
            groups.append([])
            used = 0
        groups[-1].append((low, high))
        used += slots
    return [tuple(group) for group in groups]


# -- writing ------------------------------------------------------------------------------------------------------


def render_rule(rule: MarkRule | SnatRule) -> str:
    """The rule word for word as iptables-save prints it back, without "-A CHAIN "."""
    return " ".join(_snat_words(rule) if isinstance(rule, SnatRule) else _mark_words(rule))


def render_record(record: ServiceRecord) -> str:
    """The same of a record: a rule without a target."""
    words = ["-d", record.destination, "-p", record.service.protocol]
    if record.ports:
        words += ["-m", "multiport", "--dports", render_ports(record.ports)]
    return " ".join([*words, "-m", "comment", "--comment", _comment(record.name)])


def _snat_words(rule: SnatRule) -> list[str]:
    source = f"{rule.source}/{FULL_NETMASK[rule.family]}"
    words = ["-s", source, "-p", "tcp", "-m", "tcp", "--sport", str(rule.port)]
    return [*words, "-m", "comment", "--comment", _comment(rule.name), "-j", "SNAT", "--to-source", rule.address]


def _mark_words(rule: MarkRule) -> list[str]:
    words = []
    if rule.source:
        words += ["-s", rule.source]
    if rule.destination != EVERYWHERE[rule.family]:
        words += ["-d", rule.destination]
    if rule.in_interface:
        words += ["-i", rule.in_interface]
    if rule.protocol:
        words += ["-p", rule.protocol]
    if rule.ports:
        words += ["-m", "multiport", "--dports", render_ports(rule.ports)]
    for address in rule.exclude_mac:
        words += ["-m", "mac", "!", "--mac-source", address]
    if rule.owner == IPTABLES_MARK:
        words += ["-m", "comment", "--comment", IPTABLES_MARK]
    words += ["-m", "comment", "--comment", _comment(rule.name)]
    return [*words, "-j", "MARK", "--set-xmark", f"{rule.mark:#x}/{rule.mask:#x}"]


def _comment(name: str) -> str:
    """Names that are declared need no escaping, but those that somebody wrote into our chain by hand may."""
    escaped = _TO_ESCAPE.sub(r"\\\1", name)
    return f'"{COMMENT}{escaped}"'


def render_ports(ports: Iterable[PortRange]) -> str:
    return ",".join(str(port) for port in port_items(ports))


def port_items(ports: Iterable[PortRange]) -> list[int | str]:
    """Ports the way the options take them: 80 or "10000:20000"."""
    return [low if low == high else f"{low}:{high}" for low, high in ports]


def chain_rule(rule: MarkRule | SnatRule) -> ChainRule:
    text = render_rule(rule)
    if isinstance(rule, SnatRule):
        return ChainRule(text, text, rule.name)
    return ChainRule(text, rule, rule.name, rule.mark, rule.owner)


def record_rule(record: ServiceRecord) -> ChainRule:
    return ChainRule(render_record(record), record, record.name)


def retired(name: str, mark: int, family: str) -> MarkRule:
    """A rule that gives its mark to nothing, and says whose mark it was."""
    return MarkRule(name, mark, EVERYWHERE[family], source=NOWHERE[family], mask=FULL_MASK)


def edit_chain(chain_id: ChainId, before: Chain, after: Chain) -> ChainEdit | None:
    """The transaction that leads from one content of our chain to another, None if there is nothing to do.

    Only rules that differ are named, so the others keep their place and counters, and a rule that is not ours is never
    written again. Rules are deleted by what they say, not by number: if somebody changed the chain since it was read,
    the transaction fails as a whole instead of deleting the wrong one.
    """
    chain, lines = chain_id.name, []
    if after.exists and not before.exists:
        lines.append(f":{chain} - [0:0]")
    kept = _kept(before.rules, after.rules)
    lines += [f"-D {chain} {rule.text}" for place, rule in enumerate(before.rules) if place not in kept]
    lines += _insertions(chain, after.rules, set(kept.values()))
    lines += _hook_lines(chain_id, before, after)
    if before.exists and not after.exists:
        lines.append(f"-X {chain}")
    _check_lines(chain_id, lines)
    return ChainEdit(chain_id, tuple(lines), after) if lines else None


def _check_lines(chain_id: ChainId, lines: Iterable[str]) -> None:
    """Raises LvsError for a line that iptables-restore would take for two: it knows no line break in a comment."""
    for line in lines:
        if "\n" in line:
            command = f"{COMMAND[chain_id.family]} -t {chain_id.table} {printable(line)}"
            raise LvsError(f"{command}: a line break in a comment; delete this rule by its number in the chain")


def _hook_lines(chain_id: ChainId, before: Chain, after: Chain) -> list[str]:
    """What changes in the hook: strays that go or come back, and the jump, which comes last if it has no place.

    Of several jumps the kernel deletes the first. Insertions are in the order of their places, each counted with those
    before it. A place that is not there any more is the end: whoever took rules away meanwhile must not stop us.
    """
    hook, jump = chain_id.hook, f"-j {chain_id.name}"
    removed = [stray.text for stray in before.strays if stray not in after.strays]
    removed += [jump] * (before.jumps - after.jumps)
    missing = max(after.jumps - before.jumps, 0)
    inserted = [(stray.place, stray.text) for stray in after.strays if stray not in before.strays]
    inserted += [(place, jump) for place in after.jump_places[:missing]]
    end = before.hook_length - len(removed) + 1
    return [
        *(f"-D {hook} {text}" for text in removed),
        *(f"-I {hook} {min(place, end + n)} {text}" for n, (place, text) in enumerate(sorted(inserted))),
        *[f"-A {hook} {jump}"] * (missing - len(after.jump_places[:missing])),
    ]


def _kept(before: Sequence[ChainRule], after: Sequence[ChainRule]) -> dict[int, int]:
    """Places in before whose rule stays, each with its place in after.

    The rules of others are matched first, so that it is ours that move around them. Of rules that occur twice the
    kernel deletes the first, whichever was meant; where one copy has to go all of them go, and what is wanted is
    inserted anew.
    """
    others = [[place for place, rule in enumerate(rules) if not rule.name] for rules in (before, after)]
    pairs = alike([before[place] for place in others[0]], [after[place] for place in others[1]])
    anchors = [(others[0][a], others[1][b]) for a, b in pairs]
    kept = dict(anchors)
    start_a = start_b = 0
    for a, b in [*anchors, (len(before), len(after))]:
        kept.update((start_a + i, start_b + j) for i, j in alike(before[start_a:a], after[start_b:b]))
        start_a, start_b = a + 1, b + 1
    doomed = {rule for place, rule in enumerate(before) if place not in kept}
    return {place: target for place, target in kept.items() if before[place] not in doomed}


def alike(before: Sequence[ChainRule], after: Sequence[ChainRule]) -> list[tuple[int, int]]:
    """Pairs of places with equal rules, in the order of both; as many as there can be.

    By Hunt and Szymanski, as hardly a rule occurs twice: n log n steps even where every other rule is another one.
    From the end on, so that of two that changed places the first stays.
    """
    places: dict[ChainRule, list[int]] = {}
    for place, rule in enumerate(after):
        places.setdefault(rule, []).append(place)
    # Of all series of so many pairs that were found, the one that begins last in after; and minus where that is.
    series: list[_Series] = [None]
    begins = [-len(after)]
    for place in reversed(range(len(before))):
        for found in places.get(before[place], ()):
            length = bisect_left(begins, -found)
            begins[length : length + 1] = [-found]
            series[length : length + 1] = [(place, found, series[length - 1])]
    return list(_pairs(series[-1]))


def _pairs(series: _Series) -> Iterator[tuple[int, int]]:
    while series:
        place, found, series = series
        yield place, found


def _insertions(chain: str, after: Sequence[ChainRule], kept: set[int]) -> list[str]:
    last = max(kept, default=-1)
    return [
        f"-A {chain} {rule.text}" if place > last else f"-I {chain} {place + 1} {rule.text}"
        for place, rule in enumerate(after)
        if place not in kept
    ]


def transaction(table: str, lines: Iterable[str]) -> str:
    """The lines as one transaction for iptables-restore --noflush."""
    return "\n".join([f"*{table}", *lines, "COMMIT"]) + "\n"


def command_lines(edit: ChainEdit) -> list[str]:
    """The same as commands that people know."""
    return [f"{COMMAND[edit.id.family]} -t {edit.id.table} {_new_chain(line) or line}" for line in edit.lines]


def _new_chain(line: str) -> str:
    declared = re.match(r":(\S+) ", line)
    return f"-N {declared[1]}" if declared else ""


def save_lines(chain_id: ChainId, content: Chain) -> list[str]:
    """Our part of the table in iptables-save form: rules as we would write them, others as they are."""
    strays = [f"-A {chain_id.hook} {stray.text}" for stray in content.strays]
    if not content.exists:
        return strays
    name = chain_id.name
    rules = [render_rule(rule.meaning) if isinstance(rule.meaning, MarkRule) else rule.text for rule in content.rules]
    jumps = [f"-A {chain_id.hook} -j {name}"] * content.jumps
    return [f":{name} - [0:0]", *strays, *jumps, *(f"-A {name} {rule}" for rule in rules)]
