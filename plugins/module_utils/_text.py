# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Text that somebody else wrote, for places that it must not leave. PRIVATE to the collection. Pure."""

from __future__ import annotations

import re

# Longer than any line of ours. Who sends more has something else in mind than to be read.
LONGEST = 2000
# What makes a template of a text: the beginnings of Jinja's expressions, and of the line by which Ansible changes them.
_TEMPLATE = re.compile(r"\{(?=[{%#])|#(?=jinja2:)")


def printable(text: str) -> str:
    """The text on one line, with all that a terminal or YAML would act on as an escape, as in \\x1b and \\u2028."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def printable_lines(text: str) -> str:
    """The same with line breaks and tabs as they are, for what has several lines of its own."""
    return re.sub(r"[^\n\t]+", lambda part: printable(part[0]), text)


def plain(value: object) -> str:
    """Any value as one printable line that is no template either, and not longer than a line can bear."""
    text = printable(str(value))
    shown = text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
    return _TEMPLATE.sub(r"\g<0> ", shown)
