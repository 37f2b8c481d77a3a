# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which packets rules see: all of those of another one, none of them, or perhaps some. PRIVATE to the collection. Pure.

Of a MARK rule as a value only the traffic counts here, not its name nor its mark.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import ip_network
from typing import Iterable, Sequence

from .._model import MarkRule, PortRange

_EVERY_PORT: tuple[PortRange, ...] = ((0, 65535),)


def disjoint(one: MarkRule, other: MarkRule) -> bool:
    """Whether it is certain that no packet is seen by both."""
    return (
        not _overlap(one.destination, other.destination)
        or bool(one.source and other.source and not _overlap(one.source, other.source))
        or bool(one.protocol and other.protocol and one.protocol != other.protocol)
        or bool(one.ports and other.ports and not _common_port(one.ports, other.ports))
        or not (_covers_interface(one.in_interface, other.in_interface)
                or _covers_interface(other.in_interface, one.in_interface))
    )  # fmt: skip


def covered(rule: MarkRule, by: Iterable[MarkRule]) -> bool:
    """Whether every packet that the rule sees is seen by one of the others; their ports count together."""
    wider = [other for other in by if _covers_but_for_ports(other, rule)]
    ports = sorted(port_range for other in wider for port_range in other.ports or _EVERY_PORT)
    return bool(wider) and all(_within(port_range, ports) for port_range in rule.ports or _EVERY_PORT)


def _covers_but_for_ports(wide: MarkRule, narrow: MarkRule) -> bool:
    return (
        _contains(wide.destination, narrow.destination)
        and (not wide.source or bool(narrow.source and _contains(wide.source, narrow.source)))
        and wide.protocol in ("", narrow.protocol)
        and _covers_interface(wide.in_interface, narrow.in_interface)
        and set(wide.exclude_mac) <= set(narrow.exclude_mac)
    )


def _within(port_range: PortRange, ports: Sequence[PortRange]) -> bool:
    """Whether sorted ranges hold all of a range, perhaps one after the other."""
    low, high = port_range
    for first, last in ports:
        if first <= low <= last:
            low = last + 1
    return low > high


def _common_port(one: Sequence[PortRange], other: Sequence[PortRange]) -> bool:
    return any(first <= high and low <= last for low, high in one for first, last in other)


def _covers_interface(wide: str, narrow: str) -> bool:
    """A + at the end stands for any ending; no interface at all for every interface."""
    return wide in ("", narrow) or (wide.endswith("+") and narrow.startswith(wide[:-1]))


def _overlap(one: str, other: str) -> bool:
    return _contains(one, other) or _contains(other, one)


def _contains(wide: str, narrow: str) -> bool:
    (version, low, high), (inner_version, inner_low, inner_high) = address_range(wide), address_range(narrow)
    return version == inner_version and low <= inner_low and inner_high <= high


# Without a limit: a table may hold more networks than any limit, and then each of them would be parsed again and again.
@lru_cache(maxsize=None)
def address_range(network: str) -> tuple[int, int, int]:
    """Version, first and last address of a network."""
    parsed = ip_network(network)
    return (parsed.version, int(parsed.network_address), int(parsed.broadcast_address))
