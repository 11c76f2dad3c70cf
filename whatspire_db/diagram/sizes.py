"""The lines of each table's box, where each stands, and how wide the box is; pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..letters import cells
from .placing import Size
from .text import cut, plain
from .values import SIGNS, Difference, DrawnColumn, DrawnTable, gravest

HEADER, ROW, DETAIL, PADDING = 32.0, 20.0, 16.0, 5.0
LETTER, BOLD, SMALL = 7.23, 7.85, 6.63  # the widths of a letter of 12, 13 and 11 pixels
KEYS, SIGN, INSET = 40.0, 18.0, 10.0  # the columns for keys and for signs; beside all texts
MOST_NAME, MOST_TYPE, MOST_DETAIL, MOST_PART = 64, 34, 58, 34


@dataclass(frozen=True)
class Line:
    """One line of a box: `kind` is column, detail, part or more; `y` is its top."""

    kind: str
    y: float
    height: float
    text: str
    title: str
    state: str = ""
    column: DrawnColumn | None = None


@dataclass(frozen=True)
class Box:
    """A table as it is drawn: its lines, its size, and where the types of its columns begin."""

    table: DrawnTable
    lines: tuple[Line, ...]
    size: Size
    types: float
    inset: float
    badge: str

    def port(self, columns: tuple[str, ...]) -> float:
        """Return how far below the top a line to the first of some columns ends; one to a hidden column: the header."""
        wanted = columns[0] if columns else ""
        found = (line.y + line.height / 2 for line in self.lines if line.column and line.column.name == wanted)
        return next(found, HEADER / 2)


def box_of(table: DrawnTable, *, marked: bool) -> Box:
    """Return the box of a table.

    :param marked: leave room for the signs of differences.
    """
    lines = tuple(_placed(_lines(table)))
    inset = INSET + (SIGN if marked else 0.0)
    names = [cells(line.text) for line in lines if line.kind == "column"]
    types = inset + KEYS + max(names, default=0) * LETTER + 14
    badge = _badge(table)
    width = max(
        (cells(cut(plain(table.label), MOST_NAME)) + cells(badge)) * BOLD + 2 * INSET + 24,
        *(types + cells(type_of(line.column)) * LETTER + INSET for line in lines if line.column),
        *(inset + cells(line.text) * SMALL + INSET for line in lines if line.kind == "detail"),
        inset + MOST_PART * SMALL + INSET if table.parts else 0.0,
        160.0,
    )
    # The text of an index or a CHECK makes no box wider; what is cut is in its title.
    room = int((width - inset - INSET) / SMALL)
    lines = tuple(replace(line, text=cut(line.text, room)) if line.kind == "part" else line for line in lines)
    height = lines[-1].y + lines[-1].height + PADDING if lines else HEADER + PADDING
    return Box(table, lines, Size(round(width, 1), height), types, inset, badge)


def type_of(column: DrawnColumn | None) -> str:
    """Return a column's type as its line shows it, with "null" where it may be."""
    if column is None:
        return ""
    return cut(plain(column.type), MOST_TYPE) + ("" if column.column.not_null else " null")


def _badge(table: DrawnTable) -> str:
    """Return what the header says besides the name: the table's own state, or how many differences are in it."""
    if table.state:
        return f"{SIGNS[table.state]} {table.state}"
    states = [d.state for d in table.all_differences]
    counted = (f"{SIGNS[state]}{states.count(state)}" for state in SIGNS if state in states)
    kind = [] if table.kind == "table" else [table.kind]
    return " ".join([*kind, *counted])


def _placed(lines: Iterator[tuple[Line, bool]]) -> Iterator[Line]:
    """Give each line its place below the header; one that begins a section has some space above."""
    y = HEADER + PADDING
    for line, begins in lines:
        y += PADDING if begins else 0.0
        yield Line(line.kind, y, line.height, line.text, line.title, line.state, line.column)
        y += line.height


def _lines(table: DrawnTable) -> Iterator[tuple[Line, bool]]:
    for column in table.columns:
        yield Line("column", 0, ROW, cut(plain(column.name), MOST_NAME), _title(column), column.state, column), False
        for difference in column.differences:
            if detail := _detail(difference):
                yield Line("detail", 0, DETAIL, cut(detail, MOST_DETAIL), detail, difference.state), False
    if table.more:
        yield Line("more", 0, DETAIL, table.more, table.more), False
    for number, part in enumerate(table.parts):
        text = plain(f"{part.kind} {part.name}" if part.state and part.name else part.text)
        title = f"{part.kind} {part.name}: {part.definition}"
        yield Line("part", 0, DETAIL, text, plain(title), part.state), number == 0
        for difference in part.differences:
            if detail := _detail(difference):
                yield Line("detail", 0, DETAIL, cut(detail, MOST_DETAIL), detail, difference.state), False


def _title(column: DrawnColumn) -> str:
    facts = column.column
    extra = [f"default {facts.default}"] if facts.default is not None else []
    extra += [text for text in (facts.generated, facts.identity) if text]
    return plain(" ".join([column.name, column.type, facts.nullability, *column.keys, *extra]))


def _detail(difference: Difference) -> str:
    """Return the line below a column or a part: both values of drift, why it is refused, or what it is."""
    if difference.values:
        kind = difference.what.removeprefix("column ")
        return plain(f"{difference.state} {kind}: {difference.declared or 'none'} → live {difference.live or 'none'}")
    return difference.state


def state_of_parts(table: DrawnTable) -> str:
    """Return the gravest state within a table."""
    return gravest([d.state for d in table.all_differences])
