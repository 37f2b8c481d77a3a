# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Reading options one by one, with a path for everything that is wrong. PRIVATE to the collection. Pure."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from typing import Any, Callable, Sequence, TypeVar

from .._model import FULL_NETMASK, IPV4, PortRange
from .suggestions import (
    Hint,
    as_address,
    as_list,
    as_port,
    as_prefix_length,
    as_text,
    did_you_mean,
    no_hint,
    unknown_option,
)

T = TypeVar("T")

FWMARK_MAX = 2**31 - 1
THRESHOLD_MAX = 2**31 - 1
_TRUE = ("true", "yes", "on", "1", "y", "t")
_FALSE = ("false", "no", "off", "0", "n", "f")
_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}"
_SHOWN = 80
_MAC_BYTES = 6
# 0.0.0.0, 255.255.255.255 and ::
_NOT_ONE_MACHINE = (b"\x00" * 4, b"\xff" * 4, b"\x00" * 16)
# How ::ffff:192.0.2.1 begins. Sockets have such addresses, packets never, and IPVS refuses them.
_MAPPED = b"\x00" * 10 + b"\xff" * 2


class Options:
    """The options of one mapping, taken one by one. What is wrong with one is noted, and the reading goes on."""

    def __init__(self, given: Mapping[str, Any], path: str, problems: list[str]) -> None:
        self.path = path
        self.problems = problems
        self._given = given
        self._taken: set[str] = set()

    def problem(self, key: str, why: str) -> None:
        self.problems.append(f"{self.path}{'.' if key else ''}{key}: {why}")

    def value(self, key: str) -> Any:
        """The value as it was given, None where the key is absent.

        A key without a value is null in YAML. To take that for "not said" would make an empty list of ports every port.
        """
        value = self._given.get(key)
        if value is None and key in self._given and key not in self._taken:
            self.problem(key, "is null; give it a value or leave the key out")
        self._taken.add(key)
        return value

    def one(self, key: str, parse: Callable[[Any], T], default: T, required: bool = False) -> T:
        """A single value; the default where it is absent or wrong."""
        value = self.value(key)
        if value is None:
            if required and key not in self._given:
                self.problem(key, "is required")
            return default
        try:
            return parse(value)
        except ValueError as error:
            self.problem(key, str(error))
            return default

    def many(self, key: str, parse: Callable[[Any], T], required: bool = False, may_be_empty: bool = False) -> list[T]:
        """A list of values; a single value is a list of one.

        An empty list is a mistake by default: a template that comes out empty must not turn "these" into "all".
        """
        value = self.value(key)
        if value is None:
            if required and key not in self._given:
                self.problem(key, "is required")
            return []
        if value in ("", [], ()) and not may_be_empty:
            self.problem(key, "needs at least one item")
            return []
        items = value if isinstance(value, (list, tuple)) else [value]
        found = []
        for place, item in enumerate(items):
            try:
                found.append(parse(item))
            except ValueError as error:
                item_key = f"{key}[{place}]" if isinstance(value, (list, tuple)) else key
                several = as_list(item, parse)
                # In place of what the parser suggests for a single value.
                self.problem(item_key, f"{str(error).partition(';')[0]}{several}" if several else str(error))
        return found

    def mappings(self, key: str, first: str, required: bool = False) -> list[Options]:
        """A list of mappings, each to be read by itself. first: the option that a text in its place is meant for."""
        value = self.value(key)
        if required and (key not in self._given or value in ([], ())):
            self.problem(key, "needs at least one entry")
        if value is None:
            return []
        return mappings(value, f"{self.path}.{key}", self.problems, first)

    def has(self, key: str) -> bool:
        """Whether the option was given, with a valid value or not."""
        return key in self._given

    def done(self) -> None:
        """Note every option that nobody asked for. Call it when all others were taken."""
        for key in self._given:
            if key not in self._taken:
                plain = isinstance(key, str) and re.fullmatch(r"\w{1,64}", key, re.ASCII)
                self.problem(key if plain else show(key), f"is not an option{unknown_option(key, self._taken)}")


def mappings(value: Any, path: str, problems: list[str], first: str = "") -> list[Options]:
    """The items of a list that are mappings; their paths show their names. What is none is noted, and left out."""
    if not isinstance(value, (list, tuple)):
        hint = "; write a '-' before each item" if isinstance(value, Mapping) else ""
        if first and isinstance(value, str):
            hint = f"; write [{{{first}: {show(value)}}}]"
        problems.append(f"{path}: {show(value)} is not a list{hint}")
        return []
    found = []
    for place, item in enumerate(value):
        if isinstance(item, Mapping):
            found.append(Options(item, f"{path}[{place}]{_called(item)}", problems))
        else:
            hint = f"; write {{{first}: {show(item)}}}" if first and isinstance(item, str) else ""
            problems.append(f"{path}[{place}]: {show(item)} is not a mapping of options{hint}")
    return found


def _called(item: Mapping[str, Any]) -> str:
    """The name of an item, for its path; nothing if it has none that is valid."""
    given = item.get("name")
    return f" ({given})" if isinstance(given, str) and re.fullmatch(_NAME, given, re.ASCII) else ""


def show(value: Any) -> str:
    """A value for a message: on one line, and not longer than a message can bear."""
    try:
        shown = str(value) if isinstance(value, int) and not isinstance(value, bool) else repr(value)
    except (ValueError, RecursionError):
        # Python prints neither thousands of digits nor lists in lists in lists.
        shown = f"something too large to show ({type(value).__name__})"
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"


def path_problem(value: str) -> str:
    """What is wrong with a path; empty if nothing is."""
    if not value.startswith("/"):
        return f"{show(value)} does not start at the root"
    return "" if is_text(value) and "\0" not in value else f"{show(value)} is not a path"


def is_text(value: str) -> bool:
    """Whether a file can hold it, or be named so. Bytes that are no UTF-8 come as surrogates, and go as they came."""
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


# -- single values: canonical, or ValueError with the reason ------------------------------------------------------


def integer(low: int, high: int, what: str, hint: Hint = no_hint) -> Callable[[Any], int]:
    """A parser for whole numbers from low to high, called what in its message."""

    def parse(value: Any) -> int:
        number = _number(value)
        if number is None or not low <= number <= high:
            raise ValueError(f"{show(value)} is not {what} ({low}-{high}){hint(value)}")
        return number

    return parse


def _number(value: Any) -> int | None:
    """A whole number, also as text, decimal or 0x: templates make text of everything."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        return None
    if isinstance(value, int):
        return value
    text = value.strip()
    if re.fullmatch(r"-?[0-9]{1,20}", text, re.ASCII):
        return int(text)
    return int(text, 16) if re.fullmatch(r"0[xX][0-9a-fA-F]{1,16}", text) else None


def choice(choices: Sequence[str], meanings: Mapping[str, str] | None = None) -> Callable[[Any], str]:
    """A parser for one of a few words. meanings: what other words for them stand for."""

    def parse(value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            hint = did_you_mean(value, choices, meanings)
            raise ValueError(f"{show(value)} is not one of {', '.join(choices)}{hint}")
        return value

    return parse


def matching(pattern: str, what: str, hint: Hint = no_hint) -> Callable[[Any], str]:
    """A parser for text of a form. Nothing else may reach a command, a file or the kernel as text."""

    def parse(value: Any) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value, re.ASCII):
            raise ValueError(f"{show(value)} is not {what}{hint(value)}")
        return value

    return parse


def boolean(value: Any) -> bool:
    word = str(value).lower() if isinstance(value, (bool, int, str)) else ""
    if word not in _TRUE + _FALSE:
        raise ValueError(f"{show(value)} is neither true nor false")
    return word in _TRUE


fwmark = integer(1, FWMARK_MAX, "a firewall mark")
port = integer(1, 65535, "a port", as_port)
any_port = integer(0, 65535, "a port or 0")
weight = integer(0, 65535, "a weight")
threshold = integer(0, THRESHOLD_MAX, "a connection threshold")
name = matching(_NAME, "a name (a letter or digit, then at most 62 letters, digits, '_', '.' or '-')", as_text)
interface = matching(r"[A-Za-z0-9_][A-Za-z0-9_.:@-]{0,14}|[A-Za-z0-9_][A-Za-z0-9_.:@-]{0,13}\+", "an interface")
chain_name = matching(
    r"[A-Za-z_][A-Za-z0-9_-]{0,27}", "a chain name (a letter or '_', then at most 27 letters, digits, '_' or '-')"
)


def mac_address(value: Any) -> str:
    """The MAC address of one machine, as iptables and nft print it."""
    parts = re.split(r"[:-]", value) if isinstance(value, str) else []
    if len(parts) != _MAC_BYTES or not all(re.fullmatch(r"[0-9a-fA-F]{2}", part) for part in parts):
        raise ValueError(f"{show(value)} is not a MAC address, such as 52:54:00:12:34:56")
    if int(parts[0], 16) & 1:
        raise ValueError(f"{show(value)} is the MAC address of a group, from which no packet comes")
    return ":".join(parts).lower()


def port_range(value: Any) -> PortRange:
    """A port, or "low:high"."""
    if isinstance(value, str) and ":" in value:
        low_text, _colon, high_text = value.partition(":")
        try:
            low, high = port(low_text), port(high_text)
        except ValueError as error:
            raise ValueError(f"{show(value)} is not a range of ports: {error}") from None
        if low > high:
            raise ValueError(f'{show(value)} is not a range of ports: {low} is above {high}; write "{high}:{low}"')
        return (low, high)
    number = port(value)
    return (number, number)


def network(value: Any) -> str:
    """An address or a network, as a network in canonical form."""
    # ip_network takes numbers and zones ("fe80::1%eth0") as well; iptables takes neither.
    try:
        parsed = ip_network(value, strict=False) if isinstance(value, str) and "%" not in value else None
    except ValueError:
        parsed = None
    if parsed is None or (_is_dotted_mask(value) and not value.endswith(f"/{parsed.netmask}")):
        raise ValueError(f"{show(value)} is not an address or network{as_address(value)}")
    address = ip_address(value.partition("/")[0])
    if address != parsed.network_address:
        raise ValueError(
            f"{show(value)} is no network; write {address} for the one address, or {parsed} for the network"
        )
    return str(parsed)


def _is_dotted_mask(value: str) -> bool:
    """Whether a network has its mask in dots. ip_network takes an inverted mask there, and nobody else does."""
    return "." in value.partition("/")[2]


def unicast_address(value: Any) -> str:
    """The address of one machine, in canonical form."""
    if not isinstance(value, str) or "%" in value:
        raise ValueError(f"{show(value)} is not an IP address{as_address(value)}")
    family = socket.AF_INET6 if ":" in value else socket.AF_INET
    try:
        # A twentieth of the time that ip_address takes.
        packed = socket.inet_pton(family, value)
    except (OSError, ValueError):
        raise ValueError(f"{show(value)} is not an IP address{as_address(value)}") from None
    if packed.startswith(_MAPPED):
        inside = socket.inet_ntop(socket.AF_INET, packed[-4:])
        raise ValueError(f"{show(value)} is an IPv4 address in the form of an IPv6 one; write {inside}")
    is_multicast = packed[0] >> 4 == 0xE if family == socket.AF_INET else packed[0] == 0xFF
    if is_multicast or packed in _NOT_ONE_MACHINE:
        raise ValueError(f"{show(value)} is not the address of one machine")
    # With dots alone there is one way to write an address.
    return value if family == socket.AF_INET else str(ip_address(packed))


def netmask(family: str) -> Callable[[Any], int]:
    """A parser for a prefix length; for IPv4 also for a dotted mask."""
    length = integer(1, FULL_NETMASK[family], "a prefix length", as_prefix_length)

    def parse(value: Any) -> int:
        if family == IPV4 and isinstance(value, str) and "." in value:
            try:
                return length(ip_network(network(f"0.0.0.0/{value}")).prefixlen)
            except ValueError:
                raise ValueError(f"{show(value)} is not a netmask") from None
        return length(value)

    return parse
