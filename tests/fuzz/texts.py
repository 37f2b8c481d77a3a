# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What may reach a tool, a file or the kernel as text, said without the collection's own code."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}"
_ADDRESS = r"[0-9a-f.:]{2,45}"
_INTERFACE = r"[\w.:@-]{1,15}|[\w.:@-]{1,14}\+"
_PORTS = r"[0-9]{1,5}(:[0-9]{1,5})?(,[0-9]{1,5}(:[0-9]{1,5})?){0,14}"

_FRAME = re.compile(
    r"\*(mangle|nat)|COMMIT|:LVS-(MARK|SERVICE|SNAT|MSS) - \[0:0\]"
    r"|-A (PREROUTING|POSTROUTING|OUTPUT) -j LVS-(MARK|SNAT|MSS)"
)
_RULE_OPTIONS = {
    "-s": rf"{_ADDRESS}/[0-9]{{1,3}}",
    "-d": rf"{_ADDRESS}/[0-9]{{1,3}}",
    "-i": _INTERFACE,
    "-p": "tcp|udp|sctp",
    "-m": "comment|multiport|tcp",
    "--dports": _PORTS,
    "--sport": "20",
    "--comment": f"lvs:{_NAME}",
    "-j": "MARK|SNAT|TCPMSS",
    "--set-xmark": "0x[0-9a-f]{1,8}/0x[0-9a-f]{1,8}",
    "--to-source": _ADDRESS,
    "--set-mss": "[0-9]{3,5}",
}
_MAC = "[0-9a-f]{2}(:[0-9a-f]{2}){5}"
_EXCLUDED = re.compile(rf"-m mac ! --mac-source {_MAC} ")
_NFT_EXCLUDED = re.compile(rf" ether saddr != {_MAC}(?= )")
_NFT = re.compile(
    r"(add|delete) (table|map|set|chain|rule|element) ip6? "
    r"(lvs-mark( (exact|ranges|retired|conditional|prerouting|declared)( [\w .:/{},;@*-]*)?)?"
    r"|lvs-service( services( [\w .:{},;]*)?)?)", re.ASCII
)  # fmt: skip
_NFT_QUOTED = re.compile(
    rf' (comment "lvs(:{_NAME}| exact| ranges| conditional)"|iifname "[\w.:@*-]{{1,15}}")', re.ASCII
)
_IPVSADM_OPTIONS = {
    "-A", "-a", "-f", "-6", "-t", "-u", "--sctp-service", "-s", "-p", "-M", "--pe", "-o", "-b", "-r", "-g", "-m", "-i",
    "-w", "-x", "-y", "--tun-type", "--tun-port", "--tun-nocsum", "--tun-csum", "--tun-remcsum",
}  # fmt: skip
_IPVSADM_VALUE = re.compile(r"[a-z0-9][\w.:,-]*|\[[0-9a-f:.]+\]:[0-9]+", re.ASCII)
_PROBLEM_LENGTH = 600


def rules_in(transaction: str) -> int:
    """The number of rules in a text for iptables-restore, of which each is one of ours on a line of its own."""
    lines = transaction.split("\n")
    assert lines.pop() == "", transaction
    rules = [line for line in lines if not _FRAME.fullmatch(line)]
    for line in rules:
        check_rule(line)
    return len(rules)


def check_rule(line: str) -> None:
    plain = line.replace("--tcp-flags SYN,RST SYN ", "").replace("-m comment --comment iptables_mark ", "", 1)
    words = shlex.split(_EXCLUDED.sub("", plain))
    assert words[0] == "-A" and re.fullmatch("LVS-(MARK|SERVICE|SNAT|MSS)", words[1]), line
    options, values = words[2::2], words[3::2]
    # A record of a service by address does nothing.
    assert len(options) == len(values) and options.count("-j") == (words[1] != "LVS-SERVICE"), line
    assert len(set(zip(options, values, strict=True))) == len(options), line
    for option, value in zip(options, values, strict=True):
        assert re.fullmatch(_RULE_OPTIONS.get(option, "none"), value, re.ASCII), line
        numbers = re.findall("[0-9]+", value) if option == "--dports" else []
        assert len(numbers) <= 15 and all(1 <= int(number) <= 65535 for number in numbers), line


def check_nft(lines: Iterable[str]) -> None:
    """Commands for nft: one on each line, and nothing in quotes but names and interfaces."""
    for line in lines:
        assert _NFT.fullmatch(_NFT_EXCLUDED.sub("", _NFT_QUOTED.sub("", line))), line
        assert ";" not in line or line.split()[1] in ("map", "set", "chain"), line


def check_ipvsadm(lines: Iterable[str]) -> None:
    """Lines for ipvsadm -R."""
    for line in lines:
        options = [word for word in line.split(" ") if word.startswith("-")]
        assert set(options) <= _IPVSADM_OPTIONS and len(set(options)) == len(options), line
        assert all(_IPVSADM_VALUE.fullmatch(word) for word in line.split(" ") if not word.startswith("-")), line


def check_problems(problems: Iterable[str], path: str) -> None:
    """Each says where it is, on one line that can be read."""
    told = list(problems)
    assert told
    for problem in told:
        assert re.match(rf"{re.escape(path)}(\[[^\n]*\])?( \([\w.-]+\))?(\.[^\n]*)?: [^\n]", problem), problem
        assert problem.isprintable() and len(problem) < _PROBLEM_LENGTH, problem
