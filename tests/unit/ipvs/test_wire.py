# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Netlink as bytes, against what ipvsadm and a real kernel said to each other."""

from __future__ import annotations

import errno
import ipaddress
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.lvs.fleet.plugins.module_utils._errors import KernelError, ParseError
from ansible_collections.lvs.fleet.plugins.module_utils._ipvs import wire
from ansible_collections.lvs.fleet.plugins.module_utils._ipvs.ipvsadm import command_line
from ansible_collections.lvs.fleet.plugins.module_utils._ipvs.machine import _payload, pools_of
from ansible_collections.lvs.fleet.plugins.module_utils._model import Pool, RouterState, ServiceId
from ansible_collections.lvs.fleet.plugins.module_utils._netlink import machine as sockets
from ansible_collections.lvs.fleet.plugins.module_utils._netlink import messages
from ansible_collections.lvs.fleet.plugins.module_utils._plan import plan
from ansible_collections.lvs.fleet.plugins.module_utils._report.report import counters_of
from ansible_collections.lvs.fleet.tests.unit.recording import RECORDED, bodies, parse_saved, reply_error

FIRST_BODY = 20  # behind the netlink and the generic netlink header
TABLE = parse_saved(RECORDED["texts"]["save"], RECORDED["texts"]["thresholds"])


def inside(body: bytes) -> messages.Attributes:
    """The attributes of the one entry of an answer."""
    [entry] = list(messages.generic_attributes(body).values())
    return messages.attributes(entry)


def requested(exchange: dict[str, Any]) -> messages.Attributes:
    return messages.attributes(bytes.fromhex(exchange["request"])[FIRST_BODY:])


def recorded_entries(listing: str) -> list[wire.Entry]:
    """What the kernel answered when ipvsadm listed the table: first the services, then the servers of each."""
    first, *others = RECORDED[listing]["exchanges"]
    servers = {
        wire.decode_service(messages.attributes(requested(one)[wire.ATTR_SERVICE])).id: [inside(b) for b in bodies(one)]
        for one in others
    }
    services = [inside(body) for body in bodies(first)]
    return [(service, servers[wire.decode_service(service).id]) for service in services]


# -- what the kernel says -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("listing, texts", [("listing", "texts"), ("listing_after_changes", "texts_after_changes")])
def test_we_read_what_ipvsadm_printed(listing: str, texts: str) -> None:
    expected = parse_saved(RECORDED[texts]["save"], RECORDED[texts]["thresholds"])
    assert pools_of(recorded_entries(listing)) == expected
    assert len(expected) > 15


def test_timeouts_and_daemons() -> None:
    (exchange,) = RECORDED["timeouts"]["exchanges"]
    assert RECORDED["timeouts"]["text"] == "Timeout (tcp tcpfin udp): 100 20 50\n"
    timeouts = wire.decode_timeouts(messages.generic_attributes(bodies(exchange)[0]))
    assert timeouts == {"tcp": 100, "tcp_fin": 20, "udp": 50}
    (exchange,) = RECORDED["daemons"]["exchanges"]
    daemons = [wire.decode_daemon(inside(body)) for body in bodies(exchange)]
    assert [
        f"{one['state']} sync daemon (mcast={one['interface']}, syncid={one['sync_id']}, maxlen={one['sync_maxlen']},"
        f" group={one['group']}, port={one['port']}, ttl={one['ttl']})"
        for one in daemons
    ] == [line.strip() for line in RECORDED["daemons"]["text"].splitlines()]


def test_a_daemon_of_an_old_kernel() -> None:
    found = {wire.DAEMON_STATE: struct.pack("=I", 1), wire.DAEMON_IFN: b"eth0\0"}
    assert wire.decode_daemon(found) == {"state": "master", "interface": "eth0", "sync_id": 0}


def test_counters() -> None:
    nothing = dict.fromkeys(("connections", "in_packets", "out_packets", "in_bytes", "out_bytes"), 0)
    counters = counters_of(recorded_entries("listing"))
    assert all(one.items() >= nothing.items() for one in counters)
    http = next(one for one in counters if one.get("port") == 80)
    no_connections = {"active_connections": 0, "inactive_connections": 0, "persistent_connections": 0}
    assert sorted(http["real_servers"], key=lambda one: one["address"]) == [
        {"address": "10.0.0.1", "port": 8080, **nothing, **no_connections},
        {"address": "10.0.0.2", "port": 80, **nothing, **no_connections},
    ]


@pytest.mark.parametrize("wide", [True, False])
def test_counters_of_new_and_old_kernels(wide: bool) -> None:
    numbers = struct.Struct("=Q") if wide else struct.Struct("=I")
    stats = b"".join(
        messages.attribute(kind, (struct.Struct("=Q") if kind in (4, 5) else numbers).pack(100 + kind))
        for kind in range(1, 6)
    )
    found = {wire.SVC_STATS64 if wide else wire.SVC_STATS: stats}
    assert wire.decode_counters(found, wire.SVC_STATS64, wire.SVC_STATS) == {
        "connections": 101,
        "in_packets": 102,
        "out_packets": 103,
        "in_bytes": 104,
        "out_bytes": 105,
    }


def test_a_real_server_of_an_old_kernel_has_the_family_of_its_service() -> None:
    found = {wire.DEST_ADDR: bytes(15) + b"\1", wire.DEST_PORT: bytes(2)}
    assert wire.decode_real_server(found, "ipv6").address == "::1"


@pytest.mark.parametrize(
    "address, canonical",
    [
        ("::ffff:192.0.2.1", "::ffff:c000:201"),
        ("::1.2.3.4", "::102:304"),
        ("2001:db8:0:0:1:0:0:1", "2001:db8::1:0:0:1"),
    ],
)
def test_addresses_are_as_python_prints_them(address: str, canonical: str) -> None:
    found = {wire.DEST_ADDR: ipaddress.ip_address(address).packed}
    assert wire.decode_real_server(found, "ipv6").address == str(ipaddress.ip_address(canonical))


# -- what we say --------------------------------------------------------------------------------------------------


def test_our_requests_are_ipvsadms() -> None:
    """For each entry that ipvsadm added, our own request has the same attributes with the same bytes."""
    servers = services = 0
    for recorded in RECORDED["table"]:
        (exchange,) = recorded["exchanges"]
        theirs = requested(exchange)
        service = wire.decode_service(messages.attributes(theirs[wire.ATTR_SERVICE]))
        assert service == TABLE[service.id].service if wire.ATTR_DEST not in theirs else service.id in TABLE
        if wire.ATTR_DEST not in theirs:
            services += 1
            ours = messages.attributes(messages.attributes(wire.encode_service(service))[wire.ATTR_SERVICE])
            assert ours == messages.attributes(theirs[wire.ATTR_SERVICE])
            continue
        servers += 1
        server = wire.decode_real_server(messages.attributes(theirs[wire.ATTR_DEST]), service.id.family)
        assert server == TABLE[service.id].real_servers[server.id]
        ours = messages.attributes(messages.attributes(wire.encode_real_server(server))[wire.ATTR_DEST])
        no_tunnel = {wire.DEST_TUN_TYPE: b"\0", wire.DEST_TUN_PORT: b"\0\0", wire.DEST_TUN_FLAGS: b"\0\0"}
        assert {**no_tunnel, **ours} == messages.attributes(theirs[wire.ATTR_DEST])
    assert (services, servers) == (19, 17)


def test_the_kernel_took_our_requests_and_ipvsadm_found_the_same_table() -> None:
    operations = plan(RouterState(), RouterState({}, dict(TABLE)))
    ours = {one["command"]: one for one in RECORDED["ours"]}
    assert sorted(map(command_line, operations)) == sorted(ours)
    for operation in operations:
        recorded = ours[command_line(operation)]
        request = bytes.fromhex(recorded["request"])
        _length, kind, _flags, sequence, _port = struct.unpack_from("=IHHII", request)
        command = wire.COMMANDS[operation.command]
        assert messages.message(kind, messages.NLM_F_ACK, sequence, command, _payload(operation)) == request
        assert reply_error(recorded) == 0
    for text in ("save", "thresholds"):
        assert sorted(RECORDED["texts_of_ours"][text].split("\n")) == sorted(RECORDED["texts"][text].split("\n"))


@pytest.mark.parametrize("key", sorted(TABLE, key=repr), ids=lambda key: f"{key.family}-{key.fwmark or key.port}")
def test_what_we_write_decodes_to_the_same(key: ServiceId) -> None:
    pool = TABLE[key]
    service = messages.attributes(messages.attributes(wire.encode_service(pool.service))[wire.ATTR_SERVICE])
    servers = [wire.encode_real_server(server) for server in pool.real_servers.values()]
    nested = [messages.attributes(messages.attributes(server)[wire.ATTR_DEST]) for server in servers]
    assert pools_of([(service, nested)]) == {key: Pool(pool.service, pool.real_servers)}
    identity = messages.attributes(messages.attributes(wire.encode_id(key))[wire.ATTR_SERVICE])
    assert wire.decode_service(identity).id == key


# -- damaged messages ---------------------------------------------------------------------------------------------

WHOLE = bytes.fromhex(RECORDED["listing"]["exchanges"][0]["replies"][0])


def test_an_answer_cut_anywhere_is_refused() -> None:
    length = struct.unpack_from("=I", WHOLE)[0]
    first = WHOLE[:length]
    assert len(list(messages.messages(first))) == 1
    for end in range(1, length):
        with pytest.raises(ParseError):
            list(messages.messages(first[:end]))


def test_messages_and_attributes_begin_at_multiples_of_four() -> None:
    two = struct.pack("=IHHII5s3x", 21, 28, 0, 1, 0, b"first") + struct.pack("=IHHII", 16, 3, 0, 1, 0)
    assert list(messages.messages(two)) == [(28, 1, b"first"), (3, 1, b"")]
    assert messages.attributes(messages.attribute(1, b"first") + messages.attribute(2, b"")) == {1: b"first", 2: b""}


@given(st.binary(max_size=64))
def test_attributes_of_any_bytes(data: bytes) -> None:
    try:
        found = messages.attributes(data)
    except ParseError:
        return
    assert sum(4 + len(payload) for payload in found.values()) <= len(data)


@pytest.mark.parametrize(
    "call",
    [
        lambda: messages.error_code(b"\0"),
        lambda: messages.error_code(struct.pack("=i", -(2**31))),
        lambda: messages.error_code(struct.pack("=i", 1)),
        lambda: messages.attributes(b"\x03\x00\x01\x00"),
        lambda: messages.attributes(b"\x08\x00\x01\x00"),
        lambda: messages.attributes(b"\x08\x00"),
        lambda: list(messages.messages(struct.pack("=IHHII", 15, 2, 0, 0, 0))),
        lambda: messages.nested({wire.ATTR_DEST: b""}, wire.ATTR_SERVICE),
        lambda: wire.decode_daemon({wire.DAEMON_TTL: b""}),
        lambda: wire.decode_real_server({wire.DEST_METHOD: struct.pack("=I", 2), wire.DEST_TUN_TYPE: b""}, "ipv4"),
        lambda: messages.family_id({messages.CTRL_ATTR_FAMILY_ID: b"\0"}),
        lambda: wire.decode_service({wire.SVC_AF: struct.pack("=H", 7)}),
        lambda: wire.decode_id({wire.SVC_AF: struct.pack("=H", 2), wire.SVC_PROTOCOL: struct.pack("=H", 51)}),
        lambda: wire.decode_real_server({wire.DEST_ADDR: b"\1\2\3"}, "ipv4"),
        lambda: wire.decode_real_server({wire.DEST_ADDR: bytes(4)}, "ipv6"),
    ],
)
def test_what_cannot_be_is_refused(call: Any) -> None:
    with pytest.raises(ParseError, match="netlink: "):
        call()


# -- the socket ---------------------------------------------------------------------------------------------------


class Scripted:
    """A socket with answers prepared; {sequence} of a request is put in by the caller."""

    def __init__(self, *answers: bytes | BaseException) -> None:
        self.answers = list(answers)
        self.sent: list[bytes] = []
        self.closed = False

    def __call__(self, *_arguments: Any) -> Scripted:
        return self

    def __getattr__(self, name: str) -> Any:
        assert name in ("settimeout", "setsockopt", "bind")
        return lambda *_arguments: None

    def send(self, data: bytes) -> int:
        self.sent.append(data)
        return len(data)

    def recv_into(self, buffer: memoryview) -> int:
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        buffer[: len(answer)] = answer
        return len(answer)

    def close(self) -> None:
        self.closed = True


def answer(kind: int, sequence: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, sequence, 1) + body


DONE = answer(messages.NLMSG_DONE, 1, bytes(4))


def opened(monkeypatch: pytest.MonkeyPatch, *answers: bytes | BaseException) -> sockets.GenericSocket:
    monkeypatch.setattr(sockets.socket, "socket", Scripted(*answers))
    return sockets.GenericSocket("IPVS", 1)


def test_the_family_is_found_in_the_recorded_list(monkeypatch: pytest.MonkeyPatch) -> None:
    (exchange,) = RECORDED["families"]
    found = opened(monkeypatch, *(bytes.fromhex(reply) for reply in exchange["replies"]))
    assert found.family == struct.unpack_from("=H", bytes.fromhex(RECORDED["ours"][0]["request"]), 4)[0]
    assert found._socket.sent == [bytes.fromhex(exchange["request"])]  # type: ignore[attr-defined]


def test_no_family_without_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    assert opened(monkeypatch, DONE).family == 0


CHANGE = (wire.CMD_NEW_SERVICE, b"")


def error(sequence: int, code: int) -> bytes:
    return answer(messages.NLMSG_ERROR, sequence, struct.pack("=i", -code))


@pytest.mark.parametrize(
    "reply, kind, said",
    [
        (error(9, 0), ParseError, "netlink: an answer to request 9 instead of 2 to 3"),
        (error(1, 0), ParseError, "netlink: an answer to request 1 instead of 2 to 3"),
        (TimeoutError(), ParseError, "netlink: the kernel did not answer within 30 s"),
        (b"\1\2\3", ParseError, "netlink: a message is shorter than its header"),
    ],
)  # fmt: skip
def test_bad_answers_to_changes(monkeypatch: pytest.MonkeyPatch, reply: Any, kind: Any, said: str) -> None:
    found = opened(monkeypatch, DONE, reply)
    with pytest.raises(kind) as caught:
        found.request([CHANGE, CHANGE])
    assert str(caught.value) == said


@pytest.mark.parametrize(
    "reply, kind, said",
    [
        (error(2, errno.EPERM), KernelError, "reading IPVS (command 13): the kernel says: Operation not permitted"),
        (error(9, 0), ParseError, "netlink: an answer to request 9 instead of 2"),
    ],
)  # fmt: skip
def test_bad_answers_to_questions(monkeypatch: pytest.MonkeyPatch, reply: Any, kind: Any, said: str) -> None:
    found = opened(monkeypatch, DONE, reply)
    with pytest.raises(kind) as caught:
        found.get(wire.CMD_GET_CONFIG)
    assert str(caught.value) == said


@pytest.mark.parametrize(
    "answers, refused",
    [
        ([error(4, 0)], {}),
        ([error(4, errno.ESRCH)], {2: errno.ESRCH}),
        ([error(2, errno.EEXIST), error(3, errno.ESRCH), error(4, 0)], {0: errno.EEXIST, 1: errno.ESRCH}),
        ([error(2, errno.EEXIST) + error(4, 0)], {0: errno.EEXIST}),
    ],
)
def test_changes_are_sent_at_once_and_refusals_told_by_place(
    monkeypatch: pytest.MonkeyPatch, answers: list[bytes], refused: dict[int, int]
) -> None:
    found = opened(monkeypatch, DONE, *answers)
    assert found.request([CHANGE, CHANGE, CHANGE]) == refused
    sent = found._socket.sent[1:]  # type: ignore[attr-defined]
    header = struct.Struct("=IHHIIBBH")
    assert [[fields[2:4] for fields in header.iter_unpack(one)] for one in sent] == [[(1, 2), (1, 3), (5, 4)]]
    assert found._socket.answers == []  # type: ignore[attr-defined]


def test_questions_go_on_counting_where_changes_end(monkeypatch: pytest.MonkeyPatch) -> None:
    found = opened(monkeypatch, DONE, error(3, 0), error(4, 0))
    assert found.request([CHANGE, CHANGE]) == {}
    assert found.get(wire.CMD_GET_CONFIG) == {}
    found.close()
    assert found._socket.closed  # type: ignore[attr-defined]
