# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Objects of ip(8): the commands, the answers of a real ip (recorded with iproute2 6.1), and the way between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.lvs.fleet.plugins.module_utils._errors import ParseError, ValidationError
from ansible_collections.lvs.fleet.plugins.module_utils._ip.objects import IpObject, plan, text_of
from ansible_collections.lvs.fleet.plugins.module_utils._ip.words import ip_object, ip_objects, queries

RECORDED: dict[str, Any] = json.loads((Path(__file__).parents[1] / "fixtures/ip.json").read_text())
# All that was made by these commands before the recording, next to much that these are not.
OURS = """\
address add 192.0.2.10/32 dev eth0
address add 192.0.2.11/32 dev lo
address add 2001:db8:0:10::10/128 dev eth0 nodad
address add 2001:db8:0:10::11/128 dev lo nodad preferred_lft 0
link add lvs-ipip up type ipip local 10.0.0.11
link add lvs-gre up type gre local 10.0.0.11 icsum
link add lvs-ip6ip6 up type ip6tnl mode ip6ip6 local 2001:db8:0:1::11
link add lvs-ip6gre up type ip6gre local 2001:db8:0:1::11
fou add port 6080 gue
-6 fou add port 6080 gue
rule add from 10.0.0.11 lookup main suppress_prefixlength 0 priority 100
rule add from 10.0.0.11 lookup 200 priority 101
rule add fwmark 80 lookup 201 priority 102
-6 rule add from 2001:db8:0:1::11 lookup main suppress_prefixlength 0 priority 100
-6 rule add fwmark 80 lookup 201 priority 102
route add local default dev lo table 201
-6 route add local default dev lo table 201
route add default via 10.0.0.254 table 200
-6 route add default via 2001:db8:0:1::fe table 200
""".splitlines()


def live(*commands: str) -> list[IpObject]:
    """What the recorded machine has of the kinds, families and tables of these."""
    asked = queries(ip_objects(commands))
    return [found for query in asked for found in query.read(RECORDED[" ".join(query.words)])]


# -- commands -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", OURS)
def test_a_command_is_what_its_object_prints(command: str) -> None:
    assert ip_object(command).add == command


@pytest.mark.parametrize(
    ("command", "canonical"),
    [
        ("address add 2001:DB8:0::10/128 dev eth0", "address add 2001:db8::10/128 dev eth0"),
        ("-4 fou add port 6080 gue", "fou add port 6080 gue"),
        ("rule add from 2001:db8::1 lookup 200 priority 5", "-6 rule add from 2001:db8::1 lookup 200 priority 5"),
        ("rule add fwmark 0x50 lookup 200 priority 5", "rule add fwmark 80 lookup 200 priority 5"),
        ("route add default via 2001:db8::1 table 200", "-6 route add default via 2001:db8::1 table 200"),
    ],
)
def test_other_words_for_the_same(command: str, canonical: str) -> None:
    assert ip_object(command).add == canonical
    assert ip_object(command) == ip_object(canonical)


@pytest.mark.parametrize(
    ("command", "delete"),
    [
        (OURS[3], "address delete 2001:db8:0:10::11/128 dev lo"),
        (OURS[6], "link delete lvs-ip6ip6"),
        (OURS[9], "-6 fou delete port 6080 gue"),
        (OURS[10], "rule delete from 10.0.0.11 lookup main suppress_prefixlength 0 priority 100"),
        (OURS[16], "-6 route delete local default dev lo table 201"),
    ],
)
def test_what_deletes_it(command: str, delete: str) -> None:
    assert ip_object(command).delete == delete


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("address add 192.0.2.10/33 dev eth0", "'33' is not a prefix length (1-32)"),
        ("address add 192.0.2/32 dev eth0", "'192.0.2' is not an IP address"),
        ("address add 192.0.2.10/32 dev eth0 nodad", "nodad is for IPv6 addresses"),
        ("-6 address add 192.0.2.10/32 dev eth0", "192.0.2.10 is of the other family"),
        ("address add 192.0.2.10/32 dev ../x", "'../x' is not an interface"),
        ("link add lvs-tunnel-to-far-away up type ipip local 10.0.0.1", "'lvs-tunnel-to-far-away' is not an interface"),
        ("link add x up type ipip local 2001:db8::1", "2001:db8::1 is of the other family than type ipip"),
        ("link add x up type ip6gre local 10.0.0.1", "10.0.0.1 is of the other family than type ip6gre"),
        ("fou add port 0 gue", "'0' is not a port (1-65535)"),
        ("rule add lookup 200 priority 5", "needs from, to or fwmark; without them it is a rule for every packet"),
        ("rule add fwmark 80 lookup 200 priority 32766", "'32766' is not a priority before table main (1-32765)"),
        ("-4 rule add from 2001:db8::1 lookup 200 priority 5", "2001:db8::1 is of the other family"),
        ("rule add fwmark 80 lookup 255 priority 5", "table 255 belongs to the kernel, not to us"),
        ("route add default via 10.0.0.1 table 254", "table 254 belongs to the kernel, not to us"),
        ("route add local default dev lo table main", "'main' is not a routing table (1-4294967295)"),
    ],
)
def test_bad_values(command: str, why: str) -> None:
    with pytest.raises(ValueError) as error:
        ip_object(command)
    assert str(error.value) == f"'{command}': {why}"


@pytest.mark.parametrize(
    "command",
    ["", "link delete eth0", "address add 192.0.2.10/32 dev eth0\nlink delete eth0", "address flush dev eth0",
     "address add 192.0.2.10/32 dev eth0 label x", "link add x type ipip local 10.0.0.1", "-6 -4 fou add port 1 gue",
     "route add default via 10.0.0.1", "fou add port 6080 ipproto 4", "rule add fwmark 80/0xff lookup main priority 5x",
     80, None],
)  # fmt: skip
def test_anything_else_is_refused(command: Any) -> None:
    with pytest.raises(ValueError, match="is not "):
        ip_object(command)


def test_all_problems_at_once() -> None:
    with pytest.raises(ValidationError) as error:
        ip_objects(
            ["x", OURS[0], OURS[0], OURS[17], "route add local default dev lo table 200", OURS[4].replace("s-", "")]
        )
    assert error.value.problems == (
        "commands[0]: 'x' is not one of the commands that are managed",
        f"commands[2]: {OURS[0]}: does not go together with commands[1]",
        "commands[4]: route add local default dev lo table 200: does not go together with commands[3]",
    )


# -- answers ------------------------------------------------------------------------------------------------------


def test_what_ip_prints_is_what_it_was_told() -> None:
    assert [command for command in OURS if ip_object(command) not in live(*OURS)] == []
    way = plan(ip_objects(OURS), ip_objects(OURS), live(*OURS))
    assert (way.steps, text_of(way.before), way.before) == ((), text_of(way.after), tuple(ip_objects(OURS)))


@pytest.mark.parametrize(
    "theirs",
    [
        "address add 10.0.0.11/32 dev lo",
        "link add lvs-down up type ipip local 10.0.0.12",
        "link add far up type ipip local 10.0.0.11",
        "link add lvs-gre up type gre local 10.0.0.11",
        "fou add port 6081 gue",
        "rule add fwmark 81 lookup 200 priority 5",
        "rule add fwmark 82 lookup 200 priority 5",
        "rule add from 10.0.0.0 lookup 200 priority 6",
        "rule add from 10.0.0.12 lookup main suppress_prefixlength 0 priority 6",
        "rule add from 10.0.0.12 lookup main priority 6",
        "route add default via 10.0.0.253 table 202",
        "-6 route add local default dev lo table 202",
    ],
)
def test_what_is_nearly_the_same_is_not(theirs: str) -> None:
    assert ip_object(theirs) not in live(theirs)


def test_only_what_is_concerned_is_asked() -> None:
    asked = [" ".join(query.words) for query in queries(ip_objects(OURS[:2] + OURS[12:14] + OURS[17:]))]
    assert asked == [
        "-details link show",
        "address show",
        "-4 -Numeric rule show",
        "-6 -Numeric rule show",
        "-4 -Numeric route show table 200",
        "-6 -Numeric route show table 200",
    ]
    assert queries([]) == []


def test_addresses_are_compared_as_values() -> None:
    [query] = [query for query in queries([ip_object(OURS[0])]) if query.words == ("address", "show")]
    answer = [{"ifname": "eth0", "addr_info": [{"local": "2001:DB8::192.0.2.1", "prefixlen": 128}, {}]}]
    assert query.read(answer) == [ip_object("address add 2001:db8::c000:201/128 dev eth0")]


# -- the way ------------------------------------------------------------------------------------------------------

LINKS = ip_objects(["link add eth0 up type gre local 10.0.0.1", "link add lo up type gre local 10.0.0.2"])
VIP, VIP2, LO = (ip_object(f"address add {words}") for words in
                 ("192.0.2.10/32 dev eth0", "192.0.2.11/32 dev eth0", "192.0.2.10/32 dev lo"))  # fmt: skip


def way(wanted: list[IpObject], recorded: list[IpObject], there: list[IpObject]) -> tuple[list[str], str, str]:
    found = plan(wanted, recorded, [*LINKS, *there])
    return [step.command for step in found.steps], text_of(found.meanwhile), text_of(found.after)


@pytest.mark.parametrize(
    "answer",
    [
        5,
        None,
        [5],
        [{}],
        [{"ifname": []}],
        [{"dst": "default", "gateway": []}],
        [{"ifname": "lo", "addr_info": [{"local": "::1", "prefixlen": []}]}],
    ],
)
def test_answers_of_another_shape(answer: Any) -> None:
    """It is an empty list of links, perhaps, or not understood; but never an exception that nobody expects."""
    for query in queries(ip_objects(OURS)):
        try:
            hash(tuple(found.identity for found in query.read(answer)))
        except ParseError as error:
            assert str(error).startswith(f"ip -json {' '.join(query.words)}: it is not understood: ")


@pytest.mark.parametrize(
    ("command", "taken", "refused"),
    [
        ("address add 192.0.2.10/{} dev eth0", [1, 32], [0, 33, -1, "", "32 nodad", "\u0663"]),
        ("address add 2001:db8::1/{} dev eth0", [1, 128], [0, 129]),
        ("address add 192.0.2.10/32 dev {}", ["a" * 15], ["a" * 16, "", "eth0+", "eth0:1", "é", "eth0\n", "a b"]),
        ("link add {} up type ipip local 10.0.0.1", ["a" * 15], ["a" * 16, "-x", "a/b", 'a"b']),
        ("fou add port {} gue", [1, 65535], [0, 65536, -1, "0x50", "6080 local 10.0.0.1"]),
        ("rule add fwmark {} lookup 5 priority 5", [1, 2**31 - 1, "0x50"], [0, 2**31, 2**32, -1, "1/0xff"]),
        ("rule add fwmark 1 lookup {} priority 5", [1, 252, 256, 2**32 - 1, "main"], [0, 253, 255, 2**32, -1, "x"]),
        ("rule add fwmark 1 lookup 5 priority {}", [1, 32765], [0, 32766, -1, "1\n"]),
        ("route add default via 10.0.0.1 table {}", [1, 252, 2**32 - 1], [0, 253, 254, 255, 2**32]),
    ],
)
def test_bounds(command: str, taken: list[Any], refused: list[Any]) -> None:
    for value in taken:
        assert ip_object(command.format(value)) == ip_object(ip_object(command.format(value)).add)
    for value in refused:
        with pytest.raises(ValidationError, match=r"^commands\[0\]: [^\n]+$"):
            ip_objects([command.format(value)])


def test_wanted_and_not_there() -> None:
    assert way([VIP], [], []) == ([VIP.add], f"{VIP.add}\n", f"{VIP.add}\n")
    assert way([VIP], [VIP], []) == ([VIP.add], f"{VIP.add}\n", f"{VIP.add}\n")


def test_wanted_there_and_on_record() -> None:
    assert way([VIP], [VIP], [VIP]) == ([], f"{VIP.add}\n", f"{VIP.add}\n")


@pytest.mark.parametrize("theirs", ["address add 192.0.2.10/32 dev eth0", "address add 192.0.2.10/24 dev eth0"])
def test_wanted_and_somebody_elses(theirs: str) -> None:
    assert way([VIP], [], [ip_object(theirs)]) == ([], "", "")
    assert way([], [], [ip_object(theirs)]) == ([], "", "")


def test_ours_stays_beside_somebody_elses() -> None:
    assert way([VIP], [VIP], [VIP, ip_object("address add 192.0.2.10/24 dev eth0")])[0] == []


def test_on_record_and_not_wanted_any_more() -> None:
    """Add before remove, in the opposite order; what is gone already is only forgotten."""
    old = ip_object("address add 192.0.2.9/32 dev eth0")
    gone = ip_object("address add 192.0.2.8/32 dev eth0")
    record = [old, gone, LO]
    assert way([VIP], record, [old, LO]) == (
        [VIP.add, LO.delete, old.delete],
        text_of([old, gone, LO, VIP]),
        f"{VIP.add}\n",
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (OURS[4], OURS[4].replace("10.0.0.11", "10.0.0.12")),
        (OURS[4], OURS[4].replace("lvs-ipip", "other")),
        (OURS[5], OURS[5].replace(" icsum", "")),
        (OURS[17], OURS[17].replace("10.0.0.254", "10.0.0.253")),
        (OURS[3], OURS[3].replace(" preferred_lft 0", "")),
    ],
)
def test_what_cannot_be_there_twice_is_removed_first(old: str, new: str) -> None:
    before, after = ip_object(old), ip_object(new)
    assert way([after], [before], [before])[0] == [before.delete, after.add]


def test_a_device_of_ours_that_is_down_is_made_anew() -> None:
    [down] = [found for found in live(OURS[4]) if found.identity[1] == "lvs-down"]
    wanted = ip_object("link add lvs-down up type ipip local 10.0.0.12")
    assert way([wanted], [wanted], [down])[0] == [wanted.delete, wanted.add]


@pytest.mark.parametrize(
    ("wanted", "theirs"),
    [
        ("link add eth0 up type ipip local 10.0.0.77", "link eth0"),
        ("link add x up type ipip local 10.0.0.12", "link lvs-down"),
        ("route add default via 10.0.0.253 table 200", "route default via 10.0.0.254 table 200"),
        ("route add default via 10.0.0.253 table 202", "route default via something else table 202"),
        ("-6 route add local default dev lo table 202", "-6 route default via something else table 202"),
    ],
)
def test_somebody_elses_in_the_way(wanted: str, theirs: str) -> None:
    with pytest.raises(ValidationError) as error:
        plan([VIP, ip_object(wanted)], [], live(OURS[0], wanted))
    assert error.value.problems == (f"commands[1]: {wanted}: somebody else's {theirs} is in the way",)


def test_no_such_device() -> None:
    away = ip_object("address add 192.0.2.10/32 dev eth9")
    with pytest.raises(
        ValidationError, match=r"^commands\[1\]: address add 192.0.2.10/32 dev eth9: there is no device"
    ):
        plan([VIP, away], [], LINKS)
    # A device that went with its addresses is no reason not to forget them, nor one of our own to come.
    assert plan([], [away], LINKS).after == ()
    own = ip_object("link add eth9 up type ipip local 10.0.0.9")
    assert [step.object for step in plan([own, away], [], LINKS).steps] == [own, away]


SOME = st.lists(st.sampled_from(ip_objects(OURS)), unique=True)


@given(SOME, SOME, SOME)
def test_any_way_leads_there_and_leaves_the_rest(
    wanted: list[IpObject], recorded: list[IpObject], there: list[IpObject]
) -> None:
    state = [*LINKS, *there]
    found = plan(wanted, recorded, state)
    done = list(state)
    for step in found.steps:
        # Whatever happens is on record while it does.
        assert step.object in found.meanwhile
        if step.adds:
            assert step.object not in done
            done.append(step.object)
        else:
            done.remove(step.object)
    assert set(wanted) <= set(done)
    assert set(done) - set(wanted) == set(state) - set(recorded) - set(wanted)
    assert set(found.after) == set(wanted) - (set(there) - set(recorded))
    again = plan(wanted, list(found.after), done)
    assert (again.steps, again.after) == ((), found.after)
    # Killed anywhere, the next run comes to the same.
    for killed in range(len(found.steps)):
        halfway = list(state)
        for step in found.steps[:killed]:
            (halfway.append if step.adds else halfway.remove)(step.object)
        healed = plan(wanted, list(found.meanwhile), halfway)
        assert [step for step in healed.steps if not step.adds] == [
            step for step in found.steps[killed:] if not step.adds
        ]
        assert healed.after == found.after
