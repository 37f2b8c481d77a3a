# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The recorded conversation of ipvsadm with a real kernel (record.py), and what ipvsadm printed, as values."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from ansible_collections.lvs.fleet.plugins.module_utils._model import Pool, RealServer, ServiceId, VirtualService

FIXTURES = Path(__file__).parent / "fixtures"
RECORDED: dict[str, Any] = json.loads((FIXTURES / "ipvs.json").read_text(encoding="ascii"))


def messages(exchange: dict[str, Any]) -> Iterator[tuple[int, bytes]]:
    """Type and body of each message of an answer."""
    for reply in exchange["replies"]:
        data = bytes.fromhex(reply)
        while data:
            length, kind = struct.unpack_from("=IH", data)
            yield kind, data[16:length]
            data = data[length + -length % 4 :]


def bodies(exchange: dict[str, Any]) -> list[bytes]:
    """The entries of an answer, from the generic netlink header on."""
    return [body for kind, body in messages(exchange) if kind > 3]


def reply_error(exchange: dict[str, Any]) -> int:
    """The errno of an answer."""
    ((_kind, body),) = messages(exchange)
    return -int(struct.unpack_from("=i", body)[0])


# -- ipvsadm's own words ------------------------------------------------------------------------------------------

METHODS = {"-g": "direct", "-m": "masquerade", "-i": "tunnel"}
PROTOCOLS = {"-t": "tcp", "-u": "udp", "--sctp-service": "sctp"}


def endpoint(text: str) -> tuple[str, int]:
    address, _colon, port = text.rpartition(":")
    return address.strip("[]"), int(port)


def parse_saved(saved: str, listed: str = "") -> dict[ServiceId, Pool]:
    """The table that ipvsadm -S -n prints, with the thresholds that only ipvsadm -L -n --thresholds shows."""
    thresholds = dict(parse_thresholds(listed))
    services: dict[ServiceId, tuple[VirtualService, dict[tuple[str, int], RealServer]]] = {}
    for line in saved.splitlines():
        words = line.split()
        command = words.pop(0)
        service_id = parse_id(words)
        if command == "-A":
            services[service_id] = (parse_settings(service_id, words), {})
        else:
            assert words.pop(0) == "-r"
            at = endpoint(words.pop(0))
            server = parse_server(at, words, thresholds.get((service_id, at), (0, 0)))
            services[service_id][1][at] = server
    return {key: Pool(service, servers) for key, (service, servers) in services.items()}


def parse_id(words: list[str]) -> ServiceId:
    option, value = words.pop(0), words.pop(0)
    if option == "-f":
        family = "ipv6" if words[:1] == ["-6"] else "ipv4"
        del words[: family == "ipv6"]
        return ServiceId(family, fwmark=int(value) % 2**32)  # ipvsadm prints the upper half as negative numbers
    address, port = endpoint(value)
    family = "ipv6" if ":" in address else "ipv4"
    return ServiceId(family, protocol=PROTOCOLS[option], address=address, port=port)


def parse_settings(service_id: ServiceId, words: list[str]) -> VirtualService:
    one_packet = "-o" in words
    words = [word for word in words if word != "-o"]
    options = dict(zip(words[::2], words[1::2], strict=True))
    mask = options.get("-M", "128" if service_id.family == "ipv6" else "32")
    return VirtualService(
        service_id,
        scheduler=options.pop("-s"),
        scheduler_flags=tuple(options["-b"].split(",")) if "-b" in options else (),
        persistence_timeout=int(options.get("-p", 0)),
        persistence_netmask=ip_network(f"0.0.0.0/{mask}").prefixlen if "." in mask else int(mask),
        persistence_engine=options.get("--pe", ""),
        one_packet=one_packet,
    )


def parse_server(at: tuple[str, int], words: list[str], thresholds: tuple[int, int]) -> RealServer:
    method = METHODS[words.pop(0)]
    checksum = "".join(word.removeprefix("--tun-") for word in words if word.endswith("csum"))
    words = [word for word in words if not word.endswith("csum")]
    options = dict(zip(words[::2], words[1::2], strict=True))
    upper, lower = (int(options.get("-x", thresholds[0])), int(options.get("-y", thresholds[1])))
    return RealServer(
        *at,
        weight=int(options["-w"]),
        forward_method=method,
        upper_threshold=upper,
        lower_threshold=lower,
        tunnel_type=options.get("--tun-type", ""),
        tunnel_port=int(options.get("--tun-port", 0)),
        tunnel_checksum=checksum,
    )


def parse_thresholds(listed: str) -> Iterator[tuple[tuple[ServiceId, tuple[str, int]], tuple[int, int]]]:
    service_id = None
    for line in listed.splitlines()[3:]:
        words = line.split()
        if words[0] == "->":
            assert service_id
            yield (service_id, endpoint(words[1])), (int(words[2]), int(words[3]))
        elif words[0] == "FWM":
            service_id = ServiceId("ipv6" if words[2] == "IPv6" else "ipv4", int(words[1]) % 2**32)
        else:
            address, port = endpoint(words[1])
            family = "ipv6" if ":" in address else "ipv4"
            service_id = ServiceId(family, protocol=words[0].lower(), address=address, port=port)
