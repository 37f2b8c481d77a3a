# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Clients, services, routers and real servers as a drawing, with lines as wide as what goes there. PRIVATE. Pure.

Each box is a drawing of its own, which cuts off what does not fit, whatever characters a text has.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any, Iterator, Mapping, Sequence

from .lines import load, rate
from .markup import Markup, element

# A drawing has so many of them. What is left out is in the tables.
SERVICES, SERVERS, ROUTERS = 10, 32, 6
WIDTH = 1040
_SERVICE_X, _SERVICE_WIDTH = 165, 235
_ROUTER_X, _ROUTER_WIDTH = 480, 170
_SERVER_X, _SERVER_WIDTH = 740, 300
_CLIENT_WIDTH = 125
_TOP, _ROW, _GAP, _BOX = 34, 24, 12, 46
_WIDEST = 14
# How wide letters are at most, in parts of their height; of the fonts that systems have, DejaVu has the broadest.
_NARROW, _BROAD = 0.73, 1.12
_NARROW_LETTERS = frozenset("abcdefghijklnopqrstuvxyz0123456789.,:;-/_ ")
_WORST = {"no_server": 0, "one_left": 1, "full": 2, "reduced": 3, "all": 4}


@dataclass
class Box:
    """A router, or routers that are alike, and where they are drawn."""

    names: list[str]
    title: str
    kind: str
    middle: float = 0


def chosen(services: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The services that are drawn: those that need a look, then the busiest, as long as there is room."""
    ordered = sorted(services, key=lambda one: (_WORST[one["state"]], *(-part for part in load(one))))
    found: list[Mapping[str, Any]] = []
    room = SERVERS
    for one in ordered[:SERVICES]:
        if not found or one["servers"] <= room:
            found.append(one)
            room -= one["servers"]
    return found


def topology(fleet: Mapping[str, Any]) -> Markup:
    services = chosen(fleet["services"])
    rows = [max(min(len(one["real_servers"]), SERVERS) * _ROW, _BOX) for one in services]
    height = _TOP + sum(rows) + _GAP * len(rows)
    boxes = _boxes(fleet["routers"])
    height = max(height, _TOP + len(boxes) * (_BOX + _GAP))
    for number, box in enumerate(boxes):
        box.middle = _TOP + (number + 0.5) * (height - _TOP) / len(boxes)
    edges: list[Markup] = []
    shapes = [*_headings(), *(_router(box) for box in boxes)]
    widest = max((one["connections_per_second"] or 0 for one in services), default=0)
    top = float(_TOP)
    for one, tall in zip(services, rows):
        edges += _edges(one, top, tall, boxes, height, widest)
        shapes += [_service(one, top + tall / 2), *_servers(one, top, tall)]
        top += tall + _GAP
    shapes.append(_clients(fleet["totals"], height))
    return element(
        "svg", element("title", "Packets from clients by way of services and routers to real servers"),
        *edges, *shapes, viewBox=f"0 0 {WIDTH} {height:.0f}", role="img", class_="topology",
    )  # fmt: skip


def _boxes(routers: Sequence[Mapping[str, Any]]) -> list[Box]:
    """Each router, or, where there are many, one box for all that are alike."""
    if len(routers) <= ROUTERS:
        return [Box([one["name"]], one["name"], _kind(one)) for one in routers]
    found: dict[str, Box] = {}
    for one in routers:
        found.setdefault(_kind(one), Box([], "", _kind(one))).names.append(one["name"])
    for box in found.values():
        box.title = box.names[0] if len(box.names) == 1 else f"{len(box.names):,} routers"
    return list(found.values())


def _kind(router: Mapping[str, Any]) -> str:
    if router["state"] != "read":
        return str(router["state"])
    return f"{router['role']}, differs" if router["different"] else str(router["role"])


def _headings() -> Iterator[Markup]:
    for words, x in (("services", _SERVICE_X), ("routers", _ROUTER_X), ("real servers", _SERVER_X)):
        yield element("text", words, x=x, y=18, class_="heading")


def _box(x: float, middle: float, width: float, height: float, kind: str, *content: Markup) -> Markup:
    frame = element("rect", x=1, y=1, width=width - 2, height=height - 2, rx=6)
    place = {"x": f"{x:g}", "y": f"{middle - height / 2:g}", "width": f"{width:g}", "height": f"{height:g}"}
    return element("svg", frame, *content, class_=f"box {kind}", **place)


def _text(words: str, x: float, y: float, kind: str, room: float) -> Markup:
    """Words that are cut where they would not fit."""
    size = 13 if kind == "name" else 11
    return element("text", _fitting(words, room / size), x=f"{x:g}", y=y, class_=kind)


def _fitting(words: str, room: float) -> str:
    """As much of the words as has room, which is in parts of the height of letters."""
    used = 0.0
    for place, letter in enumerate(words):
        used += _NARROW if letter in _NARROW_LETTERS else _BROAD
        if used > room:
            return f"{words[: max(place - 1, 1)]}…"
    return words


def _clients(totals: Mapping[str, Any], height: float) -> Markup:
    told = _text(f"{rate(totals['connections_per_second'])} new/s", 10, 38, "small", _CLIENT_WIDTH - 14)
    words = (_text("clients", 10, 20, "name", _CLIENT_WIDTH), *([told] if totals["connections_per_second"] else []))
    return _box(0, _TOP + (height - _TOP) / 2, _CLIENT_WIDTH, _BOX, "clients", *words)


def _service(one: Mapping[str, Any], middle: float) -> Markup:
    what = f"mark {one['fwmark']}" if one["fwmark"] else ""
    room = _SERVICE_WIDTH - 24 - 8 * len(what)
    words = (
        _text(one["name"], 10, 20, "name", room),
        element("text", what, x=_SERVICE_WIDTH - 10, y=20, class_="small end"),
        _text("; ".join(one["traffic"]) or one["key"], 10, 38, "small", _SERVICE_WIDTH - 16),
    )
    return _box(_SERVICE_X, middle, _SERVICE_WIDTH, _BOX, one["state"], *words)


def _router(box: Box) -> Markup:
    words = (_text(box.title, 10, 20, "name", _ROUTER_WIDTH - 14), _text(box.kind, 10, 38, "small", _ROUTER_WIDTH - 14))
    return _box(_ROUTER_X, box.middle, _ROUTER_WIDTH, _BOX, box.kind.replace(",", ""), *words)


def _servers(service: Mapping[str, Any], top: float, tall: float) -> Iterator[Markup]:
    for server, middle in _placed(service, top, tall):
        told = state_of(server) or (
            "" if server["connections_per_second"] is None else f"{rate(server['connections_per_second'])} new/s"
        )
        words = (
            _text(server["address"], 10, 15, "small", 190),
            element("text", told, x=_SERVER_WIDTH - 10, y=15, class_="small end"),
        )
        yield _box(_SERVER_X, middle, _SERVER_WIDTH, _ROW - 2, state_of(server).replace(" ", "_"), *words)


def _placed(service: Mapping[str, Any], top: float, tall: float) -> Iterator[tuple[Mapping[str, Any], float]]:
    servers = service["real_servers"][:SERVERS]
    start = top + (tall - len(servers) * _ROW) / 2
    for number, server in enumerate(servers):
        yield server, start + (number + 0.5) * _ROW


def state_of(server: Mapping[str, Any]) -> str:
    if not server["weight"]:
        return "draining" if server["active_connections"] else "out"
    return "full" if server["full"] else ""


def _edges(
    service: Mapping[str, Any], top: float, tall: float, boxes: Sequence[Box], height: float, widest: float
) -> Iterator[Markup]:
    middle = top + tall / 2
    ways = [box for box in boxes if set(box.names) & set(service["routers"])]
    total = service["connections_per_second"] or 0
    yield _edge(_CLIENT_WIDTH, _TOP + (height - _TOP) / 2, _SERVICE_X, middle, _wide(total, widest), "")
    for box in ways:
        share = total / len(ways)
        yield _edge(_SERVICE_X + _SERVICE_WIDTH, middle, _ROUTER_X, box.middle, _wide(share, widest), "")
        for server, place in _placed(service, top, tall):
            part = (server["connections_per_second"] or 0) / len(ways)
            wide, kind = _wide(part, widest), state_of(server)
            yield _edge(_ROUTER_X + _ROUTER_WIDTH, box.middle, _SERVER_X, place, wide, kind)


def _wide(part: float, widest: float) -> float:
    """A line is as wide as the root of the rate, so that small ones can be seen beside large ones."""
    return 1 + (_WIDEST - 1) * sqrt(part / widest) if widest else 1


def _edge(x1: float, y1: float, x2: float, y2: float, wide: float, kind: str) -> Markup:
    half = (x1 + x2) / 2
    way = f"M{x1:g},{y1:g} C{half:g},{y1:g} {half:g},{y2:g} {x2:g},{y2:g}"
    return element("path", d=way, stroke_width=f"{wide:.1f}", class_=f"edge {kind}".strip())
