# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""MARK rules as text. The transcripts are what real tools printed (Debian 12 and 13, iptables 1.8.9)."""

from __future__ import annotations

import shlex
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.lvs.fleet.plugins.module_utils._errors import LvsError, ParseError
from ansible_collections.lvs.fleet.plugins.module_utils._marks import iptables
from ansible_collections.lvs.fleet.plugins.module_utils._model import Chain, ChainRule, MarkRule, SnatRule
from ansible_collections.lvs.fleet.tests.unit.recording import FIXTURES
from ansible_collections.lvs.fleet.tests.unit.strategies import states

CHAIN = "LVS-MARK"
MARKS, MARKS6 = iptables.mark_chains()
CHAIN_IDS = {"ipv4": MARKS, "ipv6": MARKS6}
FULL = 0xFFFFFFFF
END = "-j MARK --set-xmark 0x50/0xffffffff"
WEB = '-m comment --comment "lvs:web"'


def saved(name: str) -> str:
    return (FIXTURES / name).read_text(encoding="utf-8")


# As iptables-save printed them back, and what they are.
OURS = [
    (f"-d 192.0.2.10/32 -p tcp -m multiport --dports 80,443 {WEB} {END}",
     MarkRule("web", 80, "192.0.2.10/32", "tcp", ((80, 80), (443, 443)))),
    (f"-d 192.0.2.10/32 -p tcp -m multiport --dports 20,21,10000:20000 {WEB} {END}",
     MarkRule("web", 80, "192.0.2.10/32", "tcp", ((20, 20), (21, 21), (10000, 20000)))),
    (f"-s 10.0.0.0/8 -d 192.0.2.0/24 -i eth0 -p udp -m multiport --dports 53 {WEB} {END}",
     MarkRule("web", 80, "192.0.2.0/24", "udp", ((53, 53),), "10.0.0.0/8", "eth0")),
    (f"-d 2001:db8::10/128 -p sctp {WEB} {END}", MarkRule("web", 80, "2001:db8::10/128", "sctp")),
    (f"-p tcp {WEB} -j MARK --set-xmark 0x7fffffff/0xffffffff",
     MarkRule("web", 2**31 - 1, "0.0.0.0/0", "tcp")),
    (f"-d 192.0.2.10/32 -p tcp {WEB} -j MARK --set-xmark 0x50/0xff",
     MarkRule("web", 80, "192.0.2.10/32", "tcp", mask=0xFF)),
]  # fmt: skip


@pytest.mark.parametrize("text, rule", OURS)
def test_our_rules_there_and_back(text: str, rule: MarkRule) -> None:
    assert iptables.parse_rule(text, rule.family) == ChainRule(text, rule, rule.name, rule.mark)
    assert iptables.render_rule(rule) == text


@pytest.mark.parametrize(
    "drifted",
    [
        f"-d 192.0.2.10/32 -p tcp -m tcp --dport 80 {WEB} {END}",
        f"-d 192.0.2.10/32 -p tcp {WEB} -m multiport --dports 80 {END}",
        f"-d 192.0.2.10/32 -p 6 -m multiport --dports 80:80 {WEB} {END}",
        f"{WEB} -d 192.0.2.10/32 -p tcp -m tcp -m multiport --dports 80,80 {END}",
    ],
)
def test_other_words_for_the_same_rule(drifted: str) -> None:
    same = iptables.parse_rule(drifted, "ipv4")
    assert same.meaning == MarkRule("web", 80, "192.0.2.10/32", "tcp", ((80, 80),))
    assert same.text == drifted


@pytest.mark.parametrize(
    "text, name, mark",
    [
        (f"-d 192.0.2.10/32 {END}", "", 80),
        (f"-d 192.0.2.10/32 -m comment --comment web {END}", "", 80),
        (f"! -d 192.0.2.10/32 {WEB} {END}", "web", 80),
        (f"-d 192.0.2.10/32 -p tcp -m tcp ! --dport 80 {WEB} {END}", "web", 80),
        (f"-p tcp -m tcp --dport 80 -m multiport --dports 80,443 {WEB} {END}", "web", 80),
        (f"-p tcp -m tcp --sport 80 {WEB} {END}", "web", 80),
        (f"-p tcp -m multiport --dports 80 -m multiport --dports 81 {WEB} {END}", "web", 80),
        (f"-m mark --mark 0x5 {WEB} {END}", "web", 80),
        (f"-o eth0 {WEB} {END}", "web", 80),
        (f'-i "eth0 -j ACCEPT" {WEB} {END}', "web", 80),
        (f'-p "tcp\\\\" {WEB} {END}', "web", 80),
        (f"{WEB} -j MARK --set-xmark 0x0/0xffffff00", "web", 0),
        (f"{WEB} -j RETURN", "web", 0),
        (f"{WEB} -j CONNMARK --set-xmark 0x50/0xffffffff", "web", 80),
        (f"{WEB} -j MARK --set-xmark", "web", 0),
        ('-m comment --comment "ipvs \\"web\\" a b" -j MARK --set-xmark 0x50/0xff', "", 80),
        ('-m comment --comment "lvs:a \\"b\\"" -m mark --mark 0x1 -j ACCEPT', 'a "b"', 0),
    ],
)
def test_what_we_would_not_write_stays_text(text: str, name: str, mark: int) -> None:
    assert iptables.parse_rule(text, "ipv4") == ChainRule(text, text, name, mark)


# -- whole tables -------------------------------------------------------------------------------------------------


def test_a_table_without_our_chain() -> None:
    text = saved("mangle-foreign.txt")
    assert iptables.parse_chain(text, MARKS) == Chain()
    assert iptables.marks_given(text) == {0x0, 0x1, 0x35, 0x50, 0xFFFFFFFF}


def test_each_rule_of_a_table_is_carried_along_word_for_word() -> None:
    text = saved("mangle-foreign.txt")
    lines = [line for line in text.splitlines() if line.startswith("-A PREROUTING")]
    chain = iptables.parse_chain(text.replace("PREROUTING", CHAIN), MARKS)
    assert [f"-A PREROUTING {rule.text}" for rule in chain.rules] == lines
    assert {rule.name for rule in chain.rules} == {""}
    assert len(lines) == 11


def test_our_chain_in_a_table() -> None:
    text = saved("mangle-own.txt")
    chain = iptables.parse_chain(text, MARKS)
    assert (chain.exists, chain.jumps, chain.references) == (True, 1, 0)
    assert [(rule.name, rule.mark) for rule in chain.rules] == [("web", 80), ("ftp", 21), ("", 5)]
    own = [line for line in text.splitlines() if CHAIN in line]
    assert iptables.save_lines(MARKS, chain) == own
    other = iptables.parse_chain(text, iptables.mark_chains("OTHER")[0])
    assert (other.exists, other.rules, other.jumps, other.references) == (False, (), 0, 0)


# As iptables-save 1.8.9 printed them, of either variant.
FORGED = f'-A LVS-MARK -d 192.0.2.10/32 -p tcp -m comment --comment "lvs:web" {END}'
ESCAPED = FORGED.replace('"', '\\"')
BROKEN = f'-A PREROUTING -p tcp -m comment --comment "x\n{ESCAPED}\n:LVS-MARK - [0:0]\nCOMMIT\n" -j ACCEPT'


def table(*rules: str) -> str:
    return "\n".join(["*mangle", ":PREROUTING ACCEPT [0:0]", *rules, "COMMIT", ""])


def test_a_line_break_in_a_comment_forges_no_rule() -> None:
    """What stands behind it is no rule of ours, no chain, and no end of the table."""
    assert iptables.parse_chain(table(BROKEN), MARKS) == Chain(exists=False, hook_length=1)
    (rule,) = iptables.parse_table(table(BROKEN), "ipv4")
    assert (rule.chain, rule.target, rule.exact) == ("PREROUTING", "ACCEPT", False)
    marks = f'-A PREROUTING -m comment --comment "x\n-A X -j MARK --set-xmark 0x7/0xffffffff\n" {END}'
    assert iptables.marks_given(table(marks)) == {80}
    with pytest.raises(ParseError, match="did not print it all"):
        iptables.parse_chain(table(BROKEN).removesuffix("COMMIT\n"), MARKS)


@pytest.mark.parametrize(
    "rule",
    [
        '-A PREROUTING -i "x -j ACCEPT',
        '-A PREROUTING -m set --match-set "x src -j ACCEPT',
        '-A PREROUTING -j "x',
        '-A "x -j ACCEPT',
    ],
)
def test_a_quote_that_opens_nothing_takes_no_line(rule: str) -> None:
    ours = f"-A LVS-MARK {OURS[0][0]}"
    chain = iptables.parse_chain(table(":LVS-MARK - [0:0]", rule, *[ours] * 20), MARKS)
    assert len(chain.rules) == 20 and chain.exists


def test_a_comment_is_no_option() -> None:
    texts = [f"-m comment --comment -j {END}", f"-m comment --comment --set-xmark {END}"]
    texts.append(f'-m comment --comment "-m mark --mark 0x7" {END}')
    for text in texts:
        (rule,) = iptables.parse_table(table(f"-A PREROUTING {text}"), "ipv4")
        assert (rule.target, rule.seen.mark, rule.asks) == ("MARK", 80, (0, 0, False))


def test_a_rule_with_a_line_break_is_not_deleted_by_what_it_says() -> None:
    """iptables-restore would read the text behind the line break as a command of its own."""
    text = f'-p tcp -m comment --comment "lvs:web\n-F" {END}'
    before = iptables.parse_chain(table(":LVS-MARK - [0:0]", f"-A LVS-MARK {text}"), MARKS)
    assert [(rule.name, rule.text) for rule in before.rules] == [("", text)]
    with pytest.raises(LvsError, match=r'-D LVS-MARK .*"lvs:web\\n-F".*delete this rule by its number in the chain'):
        iptables.edit_chain(MARKS, before, before.with_rules(()))


@pytest.mark.parametrize("end", ["\x0b", "\x0c", "\r", "\x1c", "\x85", "\u2028", "\u2029"])
def test_only_a_newline_ends_a_rule(end: str) -> None:
    """What Python takes for the end of a line as well may stand in the comment of somebody's rule."""
    comment = f'-m comment --comment "x{end}-A {CHAIN} {WEB} {END}" -j RETURN'.replace('"lvs:web"', "lvs:web")
    text = f"*mangle\n:{CHAIN} - [0:0]\n-A PREROUTING {comment}\n-A {CHAIN} {comment}\nCOMMIT\n"
    assert [rule.text for rule in iptables.parse_chain(text, MARKS).rules] == [comment]


@pytest.mark.parametrize(
    "lines, jumps, references",
    [
        ([], 0, 0),
        ([f"-A PREROUTING -j {CHAIN}"] * 2, 2, 0),
        ([f"-A PREROUTING -p tcp -j {CHAIN}"], 0, 1),
        ([f"-A OUTPUT -j {CHAIN}", f"-A OTHER -g {CHAIN}"], 0, 2),
        ([f"-A PREROUTING -j {CHAIN}-2", f'-A INPUT -m comment --comment "-j {CHAIN}" -j ACCEPT'], 0, 0),
    ],
)
def test_what_leads_into_the_chain(lines: list[str], jumps: int, references: int) -> None:
    text = "\n".join(["*mangle", f":{CHAIN} - [0:0]", *lines, "COMMIT", ""])
    chain = iptables.parse_chain(text, MARKS)
    assert (chain.jumps, chain.references) == (jumps, references)


def test_an_empty_text_is_an_empty_table() -> None:
    assert iptables.parse_chain("", MARKS) == Chain()


@pytest.mark.parametrize("family, table", [("ipv4", "ip"), ("ipv6", "ip6")])
def test_a_table_that_stops_half_way_is_not_the_whole(family: str, table: str) -> None:
    with pytest.raises(ParseError, match=f"did not print it all: .*nft list table {table} mangle"):
        iptables.parse_chain(saved("mangle-truncated.txt"), CHAIN_IDS[family])


def test_a_remark_in_place_of_a_table_is_not_an_empty_table() -> None:
    (nat, _nat6) = iptables.snat_chains()
    with pytest.raises(ParseError, match=r"ptables-save -t nat did not print it all: .*nft list table ip nat"):
        iptables.parse_chain("# Table `nat' is incompatible, use 'nft' tool.\n", nat)
    extra = "# Table `nat' contains incompatible base-chains, use 'nft' tool to list them.\n*nat\nCOMMIT\n"
    assert iptables.parse_chain(extra, nat) == Chain()


def test_snat_rules_as_iptables_prints_them() -> None:
    text = '-s 10.0.0.21/32 -p tcp -m tcp --sport 20 -m comment --comment "lvs:ftp" -j SNAT --to-source 192.0.2.11'
    rule = iptables.chain_rule(SnatRule("ftp", "10.0.0.21", 20, "192.0.2.11"))
    assert (rule.text, rule.name, rule.mark) == (text, "ftp", 0)
    assert iptables.parse_rule(text, "ipv4") == rule
    six = iptables.chain_rule(SnatRule("ftp", "2001:db8:1::1", 20, "2001:db8::11"))
    assert six.text.startswith("-s 2001:db8:1::1/128 ") and six.text.endswith(" --to-source 2001:db8::11")


@given(states())
def test_what_is_saved_reads_back(state: Any) -> None:
    for key in (*iptables.snat_chains(), *iptables.mark_chains()):
        chain = state.chains[key]
        text = iptables.transaction(key.table, iptables.save_lines(key, chain))
        assert iptables.parse_chain(text, key) == Chain(chain.exists, chain.rules, chain.jumps if chain.exists else 0)


# -- the transaction ----------------------------------------------------------------------------------------------


def chain_of(*texts: str, **how: Any) -> Chain:
    rules = tuple(iptables.parse_rule(text, "ipv4") for text in texts)
    return Chain(**{"exists": bool(texts), "rules": rules, "jumps": int(bool(texts)), **how})


A, B, C, D = (f'-d 192.0.2.{n}/32 -m comment --comment "lvs:{n}" {END}' for n in range(1, 5))
F, G = "-s 10.0.0.1/32 -j RETURN", "-s 10.0.0.2/32 -j RETURN"
NEW, JUMP = f":{CHAIN} - [0:0]", f"PREROUTING -j {CHAIN}"


@pytest.mark.parametrize(
    "before, after, lines",
    [
        (chain_of(), chain_of(A, B), [NEW, f"-A {CHAIN} {A}", f"-A {CHAIN} {B}", f"-A {JUMP}"]),
        (chain_of(A), chain_of(), [f"-D {CHAIN} {A}", f"-D {JUMP}", f"-X {CHAIN}"]),
        (chain_of(A), chain_of(exists=True), [f"-D {CHAIN} {A}", f"-D {JUMP}"]),
        (chain_of(A, B), chain_of(A, C, B), [f"-I {CHAIN} 2 {C}"]),
        (chain_of(A, B), chain_of(B, A), [f"-D {CHAIN} {B}", f"-I {CHAIN} 1 {B}"]),
        (chain_of(A, B, C), chain_of(A, D, C), [f"-D {CHAIN} {B}", f"-I {CHAIN} 2 {D}"]),
        (chain_of(A, A, B), chain_of(A, B), [f"-D {CHAIN} {A}", f"-D {CHAIN} {A}", f"-I {CHAIN} 1 {A}"]),
        (chain_of(A, jumps=0), chain_of(A), [f"-A {JUMP}"]),
        (chain_of(A, jumps=3), chain_of(A), [f"-D {JUMP}"] * 2),
        # The rules of others stay where they are, however many of ours move around them.
        (chain_of(F, A, B, C), chain_of(A, B, C, F),
         [f"-D {CHAIN} {A}", f"-D {CHAIN} {B}", f"-D {CHAIN} {C}",
          f"-I {CHAIN} 1 {A}", f"-I {CHAIN} 2 {B}", f"-I {CHAIN} 3 {C}"]),
        (chain_of(F, A, F, B), chain_of(F, B, F, A),
         [f"-D {CHAIN} {A}", f"-D {CHAIN} {B}", f"-I {CHAIN} 2 {B}", f"-A {CHAIN} {A}"]),
        (chain_of(F, A, G), chain_of(A), [f"-D {CHAIN} {F}", f"-D {CHAIN} {G}"]),
    ],
)  # fmt: skip
def test_edit(before: Chain, after: Chain, lines: list[str]) -> None:
    edit = iptables.edit_chain(MARKS, before, after)
    assert edit and list(edit.lines) == lines
    assert edit.after == after


def test_no_edit_where_nothing_differs_in_meaning() -> None:
    drifted = f'-d 192.0.2.1/32 -p tcp -m tcp --dport 80 -m comment --comment "lvs:1" {END}'
    plain = iptables.render_rule(iptables.parse_rule(drifted, "ipv4").meaning)  # type: ignore[arg-type]
    assert drifted != plain
    assert iptables.edit_chain(MARKS, chain_of(drifted), chain_of(plain)) is None


def test_a_drifted_rule_is_deleted_in_its_own_words() -> None:
    drifted = f'-d 192.0.2.1/32 -p tcp -m tcp --dport 80 -m comment --comment "lvs:1" {END}'
    edit = iptables.edit_chain(MARKS, chain_of(drifted, B), chain_of(B))
    assert edit and edit.lines == (f"-D {CHAIN} {drifted}",)


def test_the_transaction_and_its_commands() -> None:
    edit = iptables.edit_chain(MARKS6, chain_of(), chain_of(A))
    assert edit
    assert iptables.transaction("mangle", edit.lines) == f"*mangle\n{NEW}\n-A {CHAIN} {A}\n-A {JUMP}\nCOMMIT\n"
    assert iptables.command_lines(edit) == [
        "ip6tables -t mangle -N LVS-MARK",
        f"ip6tables -t mangle -A LVS-MARK {A}",
        "ip6tables -t mangle -A PREROUTING -j LVS-MARK",
    ]


@pytest.mark.parametrize("family, source", [("ipv4", "255.255.255.255/32"), ("ipv6", ":".join(["ffff"] * 8) + "/128")])
def test_a_retired_rule_keeps_name_and_mark_and_reads_back(family: str, source: str) -> None:
    rule = iptables.parse_rule(f'-p tcp -m comment --comment "lvs:web" {END}', family)
    retired = iptables.chain_rule(iptables.retired(rule.name, rule.mark, family))
    assert retired.text == f'-s {source} -m comment --comment "lvs:web" {END}'
    assert iptables.parse_rule(retired.text, family) == retired


@pytest.mark.parametrize("name", ['a" -j ACCEPT "', "back\\", "a\\\\b", "two words", "é", '"'])
def test_a_name_written_by_hand_stays_a_name(name: str) -> None:
    """Ours need no quoting, but somebody may have put another one into our chain."""
    retired = iptables.chain_rule(iptables.retired(name, 80, "ipv4"))
    assert iptables.parse_rule(retired.text, "ipv4") == retired
    assert shlex.split(retired.text)[4:6] == ["--comment", f"lvs:{name}"]


rules_of_a_chain = st.lists(st.sampled_from([iptables.parse_rule(text, "ipv4") for text in (A, B, C, D, F, G)]))


def longest(before: list[Any], after: list[Any]) -> int:
    """The length of the longest series that both have, by the book."""
    lengths = [0] * (len(after) + 1)
    for rule in before:
        row = [0]
        for place, other in enumerate(after):
            row.append(lengths[place] + 1 if rule == other else max(row[-1], lengths[place + 1]))
        lengths = row
    return lengths[-1]


@given(rules_of_a_chain, rules_of_a_chain)
def test_as_many_rules_as_can_be_stay(before: list[Any], after: list[Any]) -> None:
    pairs = iptables.alike(before, after)
    assert all(before[place] == after[found] for place, found in pairs)
    assert all(one[0] < other[0] and one[1] < other[1] for one, other in pairwise(pairs))
    assert len(pairs) == longest(before, after)
