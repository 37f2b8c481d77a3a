# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The page: whole, small, and nothing in it that a router could have made an element of."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from ansible_collections.lvs.fleet.plugins.filter.status import status, status_page
from ansible_collections.lvs.fleet.plugins.module_utils._status.markup import Markup, element
from ansible_collections.lvs.fleet.plugins.module_utils._status.style import STYLE
from ansible_collections.lvs.fleet.tests.unit.fleets import NOW, SMALL, answer, large, small

ELEMENTS = {
    "html", "head", "meta", "title", "style", "body", "header", "nav", "main", "section", "article", "h1", "h2", "h3",
    "p", "ul", "li", "a", "strong", "small", "figure", "figcaption", "div", "table", "caption", "thead", "tbody",
    "tr", "th", "td", "details", "summary", "svg", "rect", "path", "text",
}  # fmt: skip
VOID = {"meta"}


class Page(HTMLParser):
    """A page read again, strictly: every element is closed, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def page_of(answers: dict[str, Any]) -> str:
    return status_page(status(answers, {name: {"lvs_found": told} for name, told in answers.items()}, NOW, 10))


def expect_harmless(text: str) -> Page:
    page = Page(text)
    assert {tag for tag, _attributes in page.found} <= ELEMENTS
    for tag, attributes in page.found:
        assert not {name for name in attributes if name.startswith("on") or name in ("src", "style")}, tag
        assert (attributes.get("href") or "#").startswith("#")
    assert "url(" not in text and "@import" not in text
    return page


def test_a_small_fleet() -> None:
    page = expect_harmless(page_of(small()))
    words = " ".join(page.words)
    for told in ("web: 10.0.0.12 has weight 20 instead of 10", "disk swap (alice, since", "one server left", "overdue"):
        assert told in words
    assert len([attributes for attributes in page.of("svg") if "box" in str(attributes.get("class"))]) == 1 + 5 + 2 + 13


def test_what_a_screen_reader_needs() -> None:
    page = Page(page_of(small()))
    assert page.of("html") == [{"lang": "en"}]
    assert len(page.of("h1")) == 1
    assert all(attributes.get("scope") in ("row", "col") for attributes in page.of("th"))
    assert len(page.of("caption")) == len(page.of("table")) > 5
    assert [attributes["role"] for attributes in page.of("svg") if attributes.get("class") == "topology"] == ["img"]
    scrolled = [attributes for attributes in page.of("div") if attributes.get("class") == "scroll"]
    assert scrolled and all(
        one["tabindex"] == "0" and one["role"] == "region" and one["aria-label"] for one in scrolled
    )
    known = {attributes["id"] for _tag, attributes in page.found if "id" in attributes}
    assert {attributes["aria-labelledby"] for attributes in page.of("section")} <= known
    assert {str(attributes["href"])[1:] for attributes in page.of("a")} <= known


def test_a_large_fleet_is_small_and_says_what_it_leaves_out() -> None:
    text = page_of(large(services=1000, routers=10, servers=4))
    assert 100_000 < len(text.encode()) < 2_000_000
    page = expect_harmless(text)
    words = " ".join(page.words)
    assert "of 1,000 services: those that need a look, then the busiest." in words
    assert "service-0999" in words and "Real servers of service-0009" in words
    assert "Real servers of service-0011" not in words


def test_the_worst_fleet_is_below_two_megabytes() -> None:
    """Each service needs a look, has long names, and more rows than a page has room for."""
    services = [
        {**SMALL[0], "name": f"{'&' * 60}{number}", "fwmark": number + 1,
         "servers": [{"address": f"10.{number // 250}.{number % 250}.{place}", "active": 1, "rate": 1, "weight": place}
                     for place in range(2)]}
        for number in range(3000)
    ]  # fmt: skip
    text = page_of({"router1": answer(services, [{"kind": "<b>", "message": "&" * 600 + str(n)} for n in range(2000)])})
    assert len(text.encode()) < 2_000_000
    assert re.search(r"and [\d,]+ more", text)


def test_a_script_is_text() -> None:
    services = [{**SMALL[0], "name": "<script>alert(1)</script>", "scheduler": '"><img src=x onerror=alert(1)>'}]
    answers = {"router1": answer(services, [{"kind": "</style><script>", "message": "</title><script>x</script>"}])}
    page = expect_harmless(page_of(answers))
    assert "<script>alert(1)</script>" in page.words
    assert [attributes["content"] for attributes in page.of("meta") if "http-equiv" in attributes] == [
        "default-src 'none'; style-src 'unsafe-inline'"
    ]


@pytest.mark.parametrize("text", ["<b>", "a & b", '"', "'"])
def test_elements_escape_what_is_no_element(text: str) -> None:
    read = Page(element("p", text, title=text))
    assert ("".join(read.words), read.of("p")) == (text, [{"title": text}])
    assert element("p", Markup("<b></b>")) == "<p><b></b></p>"


def test_a_fleet_without_anything() -> None:
    page = expect_harmless(page_of({"router1": {"unreachable": True, "msg": "timed out"}}))
    assert "No router has a service." in page.words


def luminance(colour: str) -> float:
    """As the guidelines for accessibility (WCAG 2) define it."""
    digits = colour if len(colour) == 6 else "".join(digit * 2 for digit in colour)
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_words_stand_out_by_day_by_night_and_on_paper() -> None:
    light, dark, paper = re.findall(r":root\{(.*?)\}", STYLE, re.DOTALL)
    for changed in ("", dark, dark + paper):
        colours = dict(re.findall(r"--(\w+):#([0-9a-f]+)", light + changed))
        for words in ("fore", "dim", "live", "out", "wrong"):
            for ground in ("back", "panel"):
                low, high = sorted((luminance(colours[words]), luminance(colours[ground])))
                assert (high + 0.05) / (low + 0.05) >= 4.5, (words, ground, changed)
