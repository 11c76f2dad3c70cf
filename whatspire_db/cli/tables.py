"""Tables for people: columns that are aligned on a terminal, and wrapped where it is too narrow for them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from ..errors import printable
from ..letters import cells, fitting
from .terminal import columns

GAP = "  "
NARROWEST = 10  # a column that is wider than this gives way where the terminal is too narrow


def is_terminal() -> bool:
    """Tell whether people read the output, and not a file or another program."""
    return sys.stdout.isatty()


def aligned(heads: Sequence[str], rows: Sequence[Sequence[str]], indent: str = "") -> list[str]:
    """Return the lines of a table that fit the terminal; a column in which nothing stands is left out.

    No text is cut: one that is too long for its column goes on in the next line. Where the terminal is too narrow for
    a table, each row becomes lines of a head and a text.
    """
    texts = [[printable(text) for text in row] for row in rows]
    used = [place for place in range(len(heads)) if any(row[place] for row in texts)]
    table = [[heads[place] for place in used], *([row[place] for place in used] for row in texts)]
    widths = [max(cells(row[place]) for row in table) for place in range(len(used))]
    room = columns() - len(indent) - len(GAP) * (len(used) - 1)
    if not _narrowed(widths, room):
        return [f"{indent}{line}" for row in table[1:] for line in _record(table[0], row)]
    return [indent + line for row in table for line in _lines(row, widths)]


def _narrowed(widths: list[int], room: int) -> bool:
    """Take from the widest columns until all fit; return whether they do."""
    while sum(widths) > room:
        widest = max(range(len(widths)), key=widths.__getitem__)
        if widths[widest] <= NARROWEST:
            return False
        widths[widest] -= 1
    return True


def _record(heads: Sequence[str], row: Sequence[str]) -> Iterator[str]:
    for head, text in zip(heads, row, strict=True):
        if text:
            yield f"{head}: {text}"
    yield ""


def _lines(row: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    parts = [list(wrapped(text, room)) for text, room in zip(row, widths, strict=True)]
    for number in range(max(map(len, parts), default=0)):
        shown = (part[number] if number < len(part) else "" for part in parts)
        yield GAP.join(text + " " * (room - cells(text)) for text, room in zip(shown, widths, strict=True)).rstrip()


def wrapped(text: str, room: int) -> Iterator[str]:
    """Yield the lines of a text that take at most so many columns, broken at spaces where there are some."""
    while cells(text) > room:
        end = max(fitting(text, room), 1)
        space = text.rfind(" ", 1, end + 1)
        cut = space if space > 0 else end
        yield text[:cut].rstrip()
        text = text[cut:].lstrip()
    yield text
