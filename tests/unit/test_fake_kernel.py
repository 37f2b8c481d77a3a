# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The fake kernel answers as the real one did, and its iptables-restore as the real one does."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given

from ansible_collections.lvs.fleet.plugins.module_utils._model import RouterState
from ansible_collections.lvs.fleet.tests.unit.fake_kernel import GENERIC, HEADER, FakeKernel, Refused, Table, unpack
from ansible_collections.lvs.fleet.tests.unit.recording import RECORDED, bodies, reply_error
from ansible_collections.lvs.fleet.tests.unit.running import kernel_with, read
from ansible_collections.lvs.fleet.tests.unit.strategies import states

COUNTERS = {10, 12}


def replayed(kernel: FakeKernel, recorded: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """What the fake kernel answers to ipvsadm's own requests."""
    answers = []
    for one in recorded:
        for exchange in one["exchanges"]:
            request = bytes.fromhex(exchange["request"])
            command, body = request[HEADER.size], request[HEADER.size + GENERIC.size :]
            answers.append((one["command"], kernel.ipvs.request(command, body)))
    return answers


def entries(exchanges: list[dict[str, Any]], answers: Any) -> list[list[dict[int, bytes]]]:
    """The attributes of each dumped entry but its counters, sorted: the kernel has them in a hash table."""
    found = []
    for exchange in exchanges:
        dumped = [unpack(next(iter(unpack(body).values()))) for body in answers(exchange)]
        found.append(sorted([{k: one[k] for k in sorted(one) if k not in COUNTERS} for one in dumped], key=repr))
    return found


@pytest.mark.parametrize("part, listing", [("table", "listing"), ("changes", "listing_after_changes")])
def test_it_answers_ipvsadm_as_the_real_kernel_did(part: str, listing: str) -> None:
    kernel = FakeKernel()
    recorded = [*RECORDED["table"], *(RECORDED["changes"] if part == "changes" else [])]
    expected = [(one["command"], reply_error(exchange)) for one in recorded for exchange in one["exchanges"]]
    assert replayed(kernel, recorded) == expected

    def fake(exchange: dict[str, Any]) -> list[bytes]:
        request = bytes.fromhex(exchange["request"])
        return kernel.ipvs.dump(request[HEADER.size], request[HEADER.size + GENERIC.size :])

    real = entries(RECORDED[listing]["exchanges"], lambda exchange: [body[GENERIC.size :] for body in bodies(exchange)])
    ours = entries(RECORDED[listing]["exchanges"], fake)
    assert ours == real


OWN = ":LVS-MARK - [0:0]"
RULE = "-d 192.0.2.10/32 -j MARK --set-xmark 0x50/0xffffffff"


def transaction(*lines: str) -> str:
    return "\n".join(["*mangle", *lines, "COMMIT", ""])


@pytest.mark.parametrize(
    "lines, chain",
    [
        ([f"-A LVS-MARK {RULE}"], ["-j RETURN", "-j ACCEPT", RULE]),
        ([f"-I LVS-MARK 1 {RULE}"], [RULE, "-j RETURN", "-j ACCEPT"]),
        ([f"-I LVS-MARK 3 {RULE}"], ["-j RETURN", "-j ACCEPT", RULE]),
        (["-D LVS-MARK -j RETURN"], ["-j ACCEPT"]),
        ([OWN], []),
        (["-D LVS-MARK -j RETURN", "-D LVS-MARK -j ACCEPT", "-X LVS-MARK"], None),
        ([OWN, "-X LVS-MARK"], None),
    ],
)
def test_restore(lines: list[str], chain: list[str] | None) -> None:
    mangle = Table("ipv4", "mangle")
    mangle.restore(transaction(OWN, "-A LVS-MARK -j RETURN", "-A LVS-MARK -j ACCEPT"))
    mangle.restore(transaction(*lines))
    found = mangle.chains.get("LVS-MARK")
    assert (found and [rule.text for rule in found]) == chain


@pytest.mark.parametrize(
    "line, said",
    [
        ("-X LVS-MARK", "not empty"),
        ("-X PREROUTING", "Invalid"),
        ("-X NONE", "No chain"),
        ("-D LVS-MARK -j ACCEPT", "Bad rule"),
        ("-I LVS-MARK 3 -j ACCEPT", "too big"),
        ("-A LVS-MARK -j NONE", "bad option: -j NONE"),
        ("-A LVS-MARK --nonsense 1 -j ACCEPT", "bad option: --nonsense"),
        ("-A LVS-MARK -d 2001:db8::1/128 -j ACCEPT", "bad option: -d"),
        ("-A LVS-MARK -m multiport --dports 80 -j ACCEPT", "bad option: --dports"),
        (f"-A LVS-MARK -p tcp -m multiport --dports {','.join('12345')},1:2,{','.join('123456789')} -j ACCEPT", "--dp"),
        (f":{'A' * 29} - [0:0]", "too long"),
        ("-R LVS-MARK 1 -j ACCEPT", "unknown line"),
    ],
)
def test_restore_refuses_and_then_changes_nothing(line: str, said: str) -> None:
    mangle = Table("ipv4", "mangle")
    mangle.restore(transaction(OWN, "-A LVS-MARK -j RETURN"))
    before = mangle.save()
    with pytest.raises(Refused, match=said):
        mangle.restore(transaction("-A PREROUTING -j LVS-MARK", line))
    assert mangle.save() == before


def test_restore_keeps_a_chain_that_others_lead_to() -> None:
    mangle = Table("ipv4", "mangle")
    mangle.restore(transaction(OWN, "-A PREROUTING -j LVS-MARK"))
    with pytest.raises(Refused, match="Too many links"):
        mangle.restore(transaction("-X LVS-MARK"))
    with pytest.raises(Refused, match="COMMIT expected"):
        mangle.restore("*mangle\n")


@given(states())
def test_every_state_reads_back(state: RouterState) -> None:
    assert read(kernel_with(state)) == state
