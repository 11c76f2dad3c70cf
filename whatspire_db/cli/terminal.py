"""How lines look on a terminal: within its width, and the word that says how things stand in colour."""

from __future__ import annotations

import os
import shutil
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


def fitted(line: str) -> list[str]:
    """Return a line as those of the terminal's width that it takes; what is no longer than that stays as it is."""
    width = shutil.get_terminal_size().columns
    if len(line) <= width:
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
    return f"\033[{COLOURS[beginning]}m{beginning}\033[0m{line[len(beginning) :]}" if beginning else line
