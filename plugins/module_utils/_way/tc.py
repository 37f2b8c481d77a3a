# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Filters of traffic control (tc) that ask for a packet's mark. PRIVATE to the collection. Pure.

On the way out they see packets with our marks. On the way in they come before netfilter: of our marks they see none,
and what they set there our rules replace. iproute2 6.1 prints a filter of kind fw as something that is not JSON, so
its text is read.
"""

from __future__ import annotations

import re
from typing import Iterator, NamedTuple

from .._model import FULL_MASK

# A name that has a meaning to "tc -batch", with a quote, is left out.
_QDISC = re.compile(r"qdisc (\S+) (\S+) dev ([\w.:@+-]+)(?: |$)", re.M)
_FILTER = re.compile(r"filter .*?\bprotocol (\S+) pref \d+ (\S+)")
# What each kind of filter prints where it asks for a mark. Whether that is less or more than a number is not read.
_ASKED = {
    "fw": re.compile(r" handle (?P<value>0x[0-9a-f]+)(?:/(?P<mask>0x[0-9a-f]+))?"),
    "u32": re.compile(r"^ +mark (?P<value>0x[0-9a-f]+) (?P<mask>0x[0-9a-f]+) \(", re.M),
    # A number from 2^31 on is printed as a negative one.
    "basic": re.compile(r"meta\(nf_mark (?:mask (?P<mask>0x[0-9a-f]+) )?eq (?P<value>-?\d+)\)"),
}


class MarkFilter(NamedTuple):
    """One filter: its first line, the protocol it is for (ip, ipv6, all, ...), and marks, each as (value, mask)."""

    text: str
    protocol: str
    marks: tuple[tuple[int, int], ...]


def places(listing: str) -> dict[str, list[str]]:
    """Where filters for packets on their way out may be, by device, in words of "tc filter show": of "tc qdisc show".

    A queue without a number (0:), as the kernel makes it by itself, has no filters.
    """
    found: dict[str, list[str]] = {}
    for kind, handle, device in _QDISC.findall(listing):
        place = {"clsact": "egress", "ingress": ""}.get(kind, "" if handle == "0:" else f"parent {handle}")
        if place:
            found.setdefault(device, []).append(place)
    return found


def mark_filters(listing: str) -> list[MarkFilter]:
    """Those of "tc filter show" that ask for a mark."""
    return list(_mark_filters(listing))


def _mark_filters(listing: str) -> Iterator[MarkFilter]:
    for block in re.split(r"^(?=filter )", listing, flags=re.M):
        head = _FILTER.match(block)
        asked = _ASKED.get(head[2]) if head else None
        if head and asked:
            marks = tuple(
                (int(one["value"], 0) & FULL_MASK, int(one["mask"] or hex(FULL_MASK), 16))
                for one in asked.finditer(block)
            )
            if marks:
                yield MarkFilter(block.splitlines()[0].strip(), head[1], marks)
