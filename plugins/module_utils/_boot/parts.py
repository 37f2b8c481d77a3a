# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Our part of a file that others write, too: what the distribution restores at boot. PRIVATE to the collection. Pure.

Lines that are not ours stay as they are, to the byte, and in their order. Nothing remembers what was there before us:
our part is known by what is in it, or by the lines around it, so that the file without it is the one from before.
"""

from __future__ import annotations

import re
from typing import Iterable, List, Tuple

from .._declared.options import show
from .._errors import ParseError
from .._marks.iptables import DEFAULT_CHAIN, RECORD_CHAIN, SNAT_CHAIN
from .._model import IPTABLES_MARK

KINDS = IPTABLES, IPVSADM, SETTINGS = ("iptables", "ipvsadm", "settings")
# The first line of a file that is there because of us: to a unit that insists on its file, an empty one is not none.
# Whatever reads these files passes over lines that begin with "#".
CREATED = "# Created by lvs.fleet\n"
BEGIN, END = "# BEGIN lvs.fleet\n", "# END lvs.fleet\n"

_OWN_CHAINS = {"mangle": {DEFAULT_CHAIN, RECORD_CHAIN}, "nat": {SNAT_CHAIN}}
_HOOKS = {"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}
_JUMPS = {"-j", "--jump", "-g", "--goto"}
_LINE = re.compile(r"[^\n]*\n|[^\n]+")
# What can stand in an iptables rule and look like something else: a comment's words, and the counters before the rule.
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*(?:"|$)')
# What names a service to ipvsadm.
_KINDS = {
    **dict.fromkeys(("-f", "--fwmark-service"), "mark"),
    **dict.fromkeys(("-t", "--tcp-service"), "tcp"),
    **dict.fromkeys(("-u", "--udp-service"), "udp"),
    "--sctp-service": "sctp",
}
_COUNTERS = re.compile(r"^\[\d+:\d+\] ")

# A table's name with its lines from "*table" to "COMMIT"; no name for lines outside of all tables.
Section = Tuple[str, List[str]]


def merge(kind: str, text: str | None, part: str) -> str | None:
    """The file with this as our part, or without any if the part is empty. None stands for no file."""
    lines = _lines(text or "")
    created = text is None or lines[:1] == [CREATED]
    foreign = [line for line in lines if line != CREATED]
    merge_lines = {IPTABLES: _merge_rules, IPVSADM: _merge_services, SETTINGS: _merge_block}[kind]
    merged = "".join(merge_lines(foreign, _terminated(_lines(part))))
    if part:
        return CREATED + merged if created else merged
    return None if created and not merged else merged


def check(kind: str, part: str) -> None:
    """Raises ParseError for a part that could not be told from what is not ours later."""
    lines = _terminated(_lines(part))
    for line in lines:
        if line in (CREATED, BEGIN, END):
            raise ParseError(f"{line.strip()!r} is a line that this module writes")
    if kind == IPTABLES:
        _our_rules(lines)


def _lines(text: str) -> list[str]:
    """Not splitlines(), which breaks at a dozen characters where the tools do not."""
    return _LINE.findall(text)


def _terminated(lines: list[str]) -> list[str]:
    """The same lines, and the last one ends where another begins."""
    return [*lines[:-1], *(line if line.endswith("\n") else f"{line}\n" for line in lines[-1:])]


# -- a block at the end, where it wins ----------------------------------------------------------------------------


def _merge_block(lines: list[str], part: list[str]) -> list[str]:
    foreign = _outside_of_block(lines)
    return [*_terminated(foreign), BEGIN, *part, END] if part else foreign


def _outside_of_block(lines: list[str]) -> list[str]:
    """The lines but for our block, or blocks. A beginning without an end is none, and what follows it is not ours."""
    outside: list[str] = []
    block: list[str] = []
    for line in lines:
        if line == BEGIN:
            outside += block
            block = []
        (block if block or line == BEGIN else outside).append(line)
        if block and line in (END, END[:-1]):
            block = []
    return outside + block


def _merge_services(lines: list[str], part: list[str]) -> list[str]:
    """A service of ours outside of the block is there because somebody saved the table, and must not be there twice."""
    ours = {_service(line) for line in part} - {None}
    foreign = [line for line in _outside_of_block(lines) if _service(line) not in ours]
    return _merge_block(foreign, part)


def _service(line: str) -> tuple[str, str, bool] | None:
    """The service that a line makes, or makes a real server of: its kind, its mark or address, and its family."""
    words = line.split()
    named = [(_KINDS[option], value) for option, value in zip(words, words[1:]) if option in _KINDS]
    if not named or not {"-A", "-a", "--add-service", "--add-server"} & set(words):
        return None
    return (*named[0], bool({"-6", "--ipv6"} & set(words)))


# -- rules of iptables --------------------------------------------------------------------------------------------


def _merge_rules(lines: list[str], part: list[str]) -> list[str]:
    """Each table has one section: without --noflush, iptables-restore empties the table at every "*table" line."""
    ours = _our_rules(part)
    sections = _sections(lines)
    for table in {**_OWN_CHAINS, **ours}:
        declared, rules = ours.get(table, ([], []))
        own = _OWN_CHAINS.get(table, set()) | {_declared(line) for line in declared}
        sections = [_without(section, own) if section[0] == table else section for section in sections]
        left = [_words(line) for name, lines in sections if name == table for line in lines]
        declared = declared + _still_needed(left, own - {_declared(line) for line in declared})
        jump = f"-A PREROUTING -j {DEFAULT_CHAIN}\n"
        if jump not in rules and any(map(_of_iptables_mark, left)):
            rules = [*rules, jump]
        if declared or rules:
            sections = _fill(sections, table, declared, rules)
    return [line for _table, section in sections for line in section]


def _our_rules(part: list[str]) -> dict[str, tuple[list[str], list[str]]]:
    """For each table the declarations of our chains, and the rules in them with the jumps to them last."""
    found: dict[str, tuple[list[str], list[str]]] = {}
    for table, section in _sections(part):
        inside = section[1:-1]
        declared = [line for line in inside if _declared(line) and _declared(line) not in _HOOKS]
        chains = {_declared(line) for line in declared}
        rules = [line for line in inside if _stands_in(_words(line), chains)]
        jumps = [line for line in inside if _jumps_to(_words(line), chains)]
        whole = table and table not in found and section[-1] == "COMMIT\n"
        if not whole or len(declared) + len(rules) + len(jumps) != len(inside):
            raise ParseError(f"not one table with chains, their rules and the jumps to them: {show(''.join(section))}")
        found[table] = (declared, rules + jumps)
    return found


def _sections(lines: Iterable[str]) -> list[Section]:
    sections: list[Section] = []
    inside = False
    for line in lines:
        opens = line.startswith("*")
        if opens or not sections or not (inside or sections[-1][0] == ""):
            sections.append((line[1:].strip() if opens else "", []))
        sections[-1][1].append(line)
        inside = opens or (inside and line.rstrip() != "COMMIT")
    return sections


def _without(section: Section, own: set[str]) -> Section:
    """A section without our chains; nothing is left of one that holds nothing else."""
    table, lines = section
    foreign = [line for line in lines if not _is_ours(line, own)]
    return (table, [] if len(foreign) < len(lines) and foreign[1:] in (["COMMIT\n"], ["COMMIT"]) else foreign)


def _is_ours(line: str, own: set[str]) -> bool:
    words = _words(line)
    return _declared(line) in own or (_stands_in(words, own) and not _of_iptables_mark(words)) or _jumps_to(words, own)


def _of_iptables_mark(words: list[str]) -> bool:
    """Whether it is a rule of iptables_mark, which shares our chain, and which whoever saved the file took along."""
    return _stands_in(words, {DEFAULT_CHAIN}) and ("--comment", IPTABLES_MARK) in zip(words, words[1:])


def _still_needed(rules: list[list[str]], own: set[str]) -> list[str]:
    """Without the chain that a rule of somebody leads to or stands in, iptables-restore refuses the whole table."""
    led_to = {target for words in rules for option, target in zip(words, words[1:]) if option in _JUMPS}
    needed = (chain for chain in own if chain in led_to or any(_stands_in(words, {chain}) for words in rules))
    return [f":{chain} - [0:0]\n" for chain in sorted(needed)]


def _fill(sections: list[Section], table: str, declared: list[str], rules: list[str]) -> list[Section]:
    """Our lines in the last section of the table, the one that lasts; in a new one if nothing is in any, or none is."""
    places = [place for place, (name, lines) in enumerate(sections) if name == table and lines]
    if not places:
        emptied = [place for place, (name, _lines) in enumerate(sections) if name == table]
        place = emptied[-1] if emptied else len(sections)
        before = [(name, _terminated(lines)) for name, lines in sections[:place]]
        return [*before, (table, [f"*{table}\n", *declared, *rules, "COMMIT\n"]), *sections[place + 1 :]]
    lines = sections[places[-1]][1]
    if lines[-1].rstrip() != "COMMIT":
        raise ParseError(f"table {table} has no COMMIT, so iptables-restore would load nothing of it")
    head = 1 + max(place for place, line in enumerate(lines) if place == 0 or line.startswith(":"))
    filled = [*lines[:head], *declared, *lines[head:-1], *rules, lines[-1]]
    return [*sections[: places[-1]], (table, filled), *sections[places[-1] + 1 :]]


def _words(line: str) -> list[str]:
    return _QUOTED.sub('""', _COUNTERS.sub("", line)).split()


def _declared(line: str) -> str:
    return line[1:].split()[0] if line.startswith(":") and line[1:].strip() else ""


def _stands_in(words: list[str], chains: set[str]) -> bool:
    return len(words) > 1 and words[0].startswith("-") and words[1] in chains


def _jumps_to(words: list[str], chains: set[str]) -> bool:
    """Whether that is the jump as we make it, for all packets. One with conditions is somebody else's."""
    hook, jump = words[1:2], [word for word in words[2:] if not word.isdigit()]
    return set(hook) <= _HOOKS and len(jump) == 2 and jump[0] in _JUMPS and jump[1] in chains
