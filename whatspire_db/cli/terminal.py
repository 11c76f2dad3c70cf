"""How lines look on a terminal: wrapped to its width, with the state of the database in colour."""

from __future__ import annotations

import os
import sys
import textwrap

RED, GREEN, YELLOW, BLUE = 31, 32, 33, 34
# By how a line begins.
COLOURS = {
    "error:": RED,
    "refused": RED,
    "drift": RED,
    "pending": YELLOW,
    "missing": YELLOW,
    "note:": BLUE,
    "hint:": BLUE,
    "extra": BLUE,
    "in sync": GREEN,
    "nothing to do": GREEN,
    "nothing is pending": GREEN,
}


def columns() -> int:
    """Return the width of the terminal: COLUMNS, else that of stdout, else 80."""
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given):
        return int(given)
    try:
        return os.get_terminal_size(sys.__stdout__.fileno()).columns or 80  # type: ignore[union-attr]
    except (AttributeError, ValueError, OSError):  # there is no terminal
        return 80


def fitted(line: str) -> list[str]:
    """Wrap a line to the terminal's width; continuation lines are indented by two more columns."""
    width = columns()
    if len(line) <= width or line.isspace():
        return [line]
    indent = line[: len(line) - len(line.lstrip())]
    text = line.lstrip()
    return textwrap.wrap(
        text,
        max(width, len(indent) + 20),
        initial_indent=indent,
        subsequent_indent=f"{indent}  ",
        break_on_hyphens=False,
    )


def coloured(line: str) -> str:
    """Return a line with its beginning in colour, unless NO_COLOR is set or the terminal is a dumb one."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb":
        return line
    beginning = next((word for word in COLOURS if line.startswith(word)), "")
    if COLOURS.get(beginning) == GREEN and line.startswith(f"{beginning}  "):  # health asks it, and does not say it
        return line
    return f"\033[{COLOURS[beginning]}m{beginning}\033[0m{line[len(beginning) :]}" if beginning else line
