# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A fleet as a page: one file that loads nothing and runs nothing. PRIVATE to the collection. Pure."""

from __future__ import annotations

from typing import Any, Iterable, Mapping, Sequence

from .lines import STATES, count, load, named, rate, reason_words
from .markup import Content, Markup, element, joined
from .style import STYLE
from .topology import chosen, state_of, topology

# Up to so many server places each has a row. Above, only those of services that need a look.
FEW_PLACES = 200
# So many rows of a table, and servers in all, are on a page. That keeps a page of any fleet below 2 MB.
ROWS, SERVER_ROWS = 1000, 800
# Those with sentences have fewer.
SENTENCES = 200
_NUMBERS = (
    "mark", "servers", "weight", "active", "inactive", "persistent", "threshold", "new/s", "packets/s", "services",
    "problems",
)  # fmt: skip
# Nothing but the page's own style. Even if a text of a router became an element, no browser would load or run it.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(fleet: Mapping[str, Any]) -> str:
    sections = {
        "topology": ("Where connections go", _topology(fleet)),
        "problems": ("What is wrong", _problems(fleet)),
        "out": ("Out of service", _out(fleet["out"])),
        "services": ("Services", _services(fleet["services"])),
        "routers": ("Routers", _routers(fleet["routers"])),
    }
    links = [element("li", element("a", words, href=f"#{key}")) for key, (words, _content) in sections.items()]
    body = (
        element("header", element("h1", "LVS fleet"), element("p", _read(fleet)), _cards(fleet)),
        element("nav", element("ul", *links), aria_label="Sections"),
        element("main", *(_section(key, words, content) for key, (words, content) in sections.items())),
    )
    head = (
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", "LVS fleet"),
        element("style", Markup(STYLE)),
    )
    return f"<!DOCTYPE html>\n{element('html', element('head', *head), element('body', *body), lang='en')}\n"


def _section(key: str, words: str, content: Markup) -> Markup:
    return element("section", element("h2", words, id=f"{key}-title"), content, id=key, aria_labelledby=f"{key}-title")


def _read(fleet: Mapping[str, Any]) -> str:
    totals, interval = fleet["totals"], fleet["rate_interval"]
    rates = f", rates over {count(interval, 'second')}" if interval else ""
    return f"Read from {totals['routers_read']:,} of {count(totals['routers'], 'router')} at {fleet['now']}{rates}"


def table(caption: str, headings: Sequence[str], rows: Iterable[Sequence[Content]], most: int = ROWS) -> Markup:
    """A table that can be scrolled by itself. The first cell of a row names it. Numbers are on the right."""
    shown = list(rows)
    kinds = ["number" if words in _NUMBERS and place else "words" for place, words in enumerate(headings)]
    head = element("tr", *(element("th", words, scope="col", class_=kind) for words, kind in zip(headings, kinds)))
    body = (_row(row, kinds) for row in shown[:most])
    left = len(shown) - most
    more = [element("tr", element("td", f"and {left:,} more", colspan=len(headings)))] if left > 0 else []
    whole = element("table", element("caption", caption), element("thead", head), element("tbody", *body, *more))
    return element("div", whole, class_="scroll", role="region", aria_label=caption, tabindex=0)


def _row(row: Sequence[Content], kinds: Sequence[str]) -> Markup:
    first, *rest = row
    cells = (
        element("td", one if isinstance(one, str) else f"{one:,}", **({"class_": kind} if kind == "number" else {}))
        for one, kind in zip(rest, kinds[1:])
    )
    return element("tr", element("th", first, scope="row"), *cells)


def _cards(fleet: Mapping[str, Any]) -> Markup:
    totals, routers, services = fleet["totals"], fleet["routers"], fleet["services"]
    differ = sum(bool(one["different"]) for one in routers)
    weak = sum(one["state"] in ("no_server", "one_left") for one in services)
    unread = totals["routers"] - totals["routers_read"]
    new = totals["connections_per_second"]
    cards = (
        (totals["routers"], "routers", f"{differ:,} with another table, {unread:,} not read", differ or unread),
        (totals["services"], "services", f"{weak:,} with one server or none left", weak),
        (f"{totals['servers_in_service']:,} of {totals['servers']:,}", "server places in service",
         f"{count(totals['out'], 'server')} out, {totals['overdue']:,} overdue", totals["out"]),
        (totals["active_connections"], "active connections", "" if new is None else f"{rate(new)} new per second", 0),
        (len(fleet["problems"]), "problems", "", len(fleet["problems"])),
    )  # fmt: skip
    return element("ul", *(_card(*card) for card in cards), class_="cards")


def _card(number: Content, words: str, detail: str, wrong: int) -> Markup:
    told = f"{number:,}" if isinstance(number, int) else number
    content = (element("strong", told), " ", words, element("small", detail))
    return element("li", *content, class_="wrong" if wrong else "well")


def _topology(fleet: Mapping[str, Any]) -> Markup:
    drawn, services = len(chosen(fleet["services"])), len(fleet["services"])
    if not services:
        return element("p", "No router has a service.")
    what = "All services." if drawn == services else (
        f"{drawn} of {services:,} services: those that need a look, then the busiest. The tables have all."
    )  # fmt: skip
    legend = "Lines are wider where more new connections go. Dashed: weight 0, open connections only. Red: full."
    drawing = element(
        "div", topology(fleet), class_="scroll", role="region", aria_label="Where connections go", tabindex=0
    )
    return element("figure", drawing, element("figcaption", f"{what} {legend}"))


def _problems(fleet: Mapping[str, Any]) -> Markup:
    rows: list[Sequence[Content]] = [
        (one["state"], one["name"], one["message"]) for one in fleet["routers"] if one["state"] != "read"
    ]
    for one in fleet["routers"]:
        rows += [("differs", one["name"], difference) for difference in one["differences"]]
        if one["different"] > len(one["differences"]):
            rows.append(
                ("differs", one["name"], f"and {one['different'] - len(one['differences']):,} more differences")
            )
    rows += [(one["kind"], named(one["routers"]) or "all", one["message"]) for one in fleet["problems"]]
    for one in fleet["services"]:
        if one["state"] in ("no_server", "one_left"):
            rows.append((STATES[one["state"]], named(one["routers"]), f"{one['name']}: {_in_service(one)}"))
        rows += [("full", named(one["routers"]), f"{one['name']}: {address}") for address in one["full"]]
    if not rows:
        return element("p", "Nothing.")
    return table("What is wrong, and on which routers", ("kind", "routers", "what"), rows, SENTENCES)


def _out(out: Sequence[Mapping[str, Any]]) -> Markup:
    if not out:
        return element("p", "All real servers get connections.")
    rows = [
        (
            one["address"],
            named(one["services"]),
            one["active_connections"],
            "; ".join(reason_words(reason) for reason in one["reasons"]) or "weight 0, no reason on record",
            "overdue" if one["overdue"] else "",
        )
        for one in sorted(out, key=lambda one: not one["overdue"])
    ]
    headings = ("real server", "services", "active", "why", "state")
    return table("Real servers that get no new connections", headings, rows, SENTENCES)


def _in_service(service: Mapping[str, Any]) -> str:
    return f"{service['servers_in_service']:,} of {count(service['servers'], 'server')} in service"


def _services(services: Sequence[Mapping[str, Any]]) -> Markup:
    weak_first = sorted(services, key=lambda one: (one["state"] == "all", *(-part for part in load(one))))
    few = sum(one["servers"] for one in services) <= FEW_PLACES
    rows = [
        (one["name"], str(one["fwmark"] or ""), "; ".join(one["traffic"]) or one["key"], named(one["addresses"], 3),
         one["scheduler"], f"{one['servers_in_service']:,} of {one['servers']:,}", STATES[one["state"]],
         one["active_connections"], rate(one["connections_per_second"]))
        for one in weak_first
    ]  # fmt: skip
    headings = ("service", "mark", "traffic", "addresses", "scheduler", "servers", "state", "active", "new/s")
    all_of_them = table("All services", headings, rows)
    if not few:
        all_of_them = element("details", element("summary", f"All {len(services):,} services"), all_of_them)
    shown = weak_first if few else [one for one in weak_first if one["state"] != "all"]
    return joined([all_of_them, *_service_details(shown)])


def _service_details(services: Sequence[Mapping[str, Any]]) -> Iterable[Markup]:
    """The real servers of services, as long as there is room on the page."""
    room = SERVER_ROWS
    for number, one in enumerate(services):
        if one["servers"] > room:
            yield element("p", f"The servers of {len(services) - number:,} more services are not shown.")
            return
        room -= one["servers"]
        told = ", ".join(filter(None, [_in_service(one), STATES[one["state"]]]))
        heading = element("h3", one["name"], " ", element("small", told))
        yield element("article", heading, _real_servers(one))


def _real_servers(service: Mapping[str, Any]) -> Markup:
    headings = ("real server", "state", "weight", "active", "inactive", "persistent", "threshold", "new/s", "packets/s")
    rows = [
        (
            one["address"] + (f" port {one['port']}" if one["port"] else ""),
            state_of(one),
            _weight(one),
            one["active_connections"],
            one["inactive_connections"],
            one["persistent_connections"],
            one["upper_threshold"] or "none",
            rate(one["connections_per_second"]),
            rate(one["in_packets_per_second"]),
        )
        for one in service["real_servers"]
    ]
    return table(f"Real servers of {service['name']}", headings, rows)


def _weight(server: Mapping[str, Any]) -> Content:
    declared = server["declared_weight"]
    weight: int = server["weight"]
    return weight if declared in (None, weight) else f"{weight} of {declared}"


def _routers(routers: Sequence[Mapping[str, Any]]) -> Markup:
    rows = [
        (
            one["name"],
            one["role"] or one["state"],
            "" if one["group"] is None else "equal" if one["group"] == 0 else count(one["different"], "difference"),
            named(one["addresses"]),
            one["services"],
            one["problems"],
            rate(one["connections_per_second"]),
        )
        for one in routers
    ]
    headings = ("router", "state", "table", "addresses", "services", "problems", "new/s")
    return table("Routers, and how their tables compare with those of most", headings, rows)
