# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Everything that can go wrong and that a user should read. PRIVATE to the collection."""

from __future__ import annotations

import os
from typing import Sequence

from ._text import printable_lines

# What Python raises where an answer is not of the shape that it should have.
MISSHAPEN = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
_SHOWN = 200


class LvsError(Exception):
    """Root of the collection's errors; its text is complete and needs no traceback.

    It goes to a terminal as it is, and quotes rules, names and tools, in which other people may have put anything.
    """

    def __str__(self) -> str:
        return printable_lines(super().__str__())


class ValidationError(LvsError):
    """Bad input: every problem found, each with the path of its item, before anything was touched."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class ParseError(LvsError):
    """A tool or the kernel answered something that cannot be understood."""


def not_understood(answer: str, error: Exception) -> ParseError:
    """What to raise for an answer that is misshapen."""
    return ParseError(f"{answer}: it is not understood: {repr(error)[:_SHOWN]}")


class ToolError(LvsError):
    """A command failed: the tool, its arguments, its exit status and what it said."""

    def __init__(self, argv: Sequence[str], status: int, said: str) -> None:
        super().__init__(f"{' '.join(argv)}: exit status {status}: {said.strip() or 'it said nothing'}")


class KernelError(LvsError):
    """The kernel refused an operation: the operation in ipvsadm's words, the errno in words, and what it means."""

    def __init__(self, operation: str, code: int, meaning: str = "") -> None:
        hint = f" ({meaning})" if meaning else ""
        super().__init__(f"{operation}: the kernel says: {os.strerror(code)}{hint}")
        self.code = code


class LockError(LvsError):
    """Another writer kept the lock for longer than we wait."""


def reason(error: Exception) -> str:
    """What went wrong, in words; of what should never go wrong at least the kind."""
    expected = isinstance(error, (LvsError, OSError))
    return str(error) if expected else f"{type(error).__name__}: {error}"
