# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Elements of HTML and SVG. What is not markup already becomes text. PRIVATE to the collection. Pure."""

from __future__ import annotations

from html import escape
from typing import Iterable, Union

_VOID = ("meta", "path", "rect", "circle", "br")


class Markup(str):
    """Text that may have elements in it, because it was made by the functions below."""

    __slots__ = ()


Content = Union[str, int, float]


def element(tag: str, *content: Content, **attributes: Content) -> Markup:
    """An element. An attribute's name has - for _, and class is class_."""
    given = "".join(f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"' for key, value in attributes.items())
    if tag in _VOID:
        return Markup(f"<{tag}{given}/>")
    return Markup(f"<{tag}{given}>{joined(content)}</{tag}>")


def joined(content: Iterable[Content]) -> Markup:
    return Markup("".join(part if isinstance(part, Markup) else escape(str(part)) for part in content))
