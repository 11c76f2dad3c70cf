"""A Diagram as SVG: one picture that stands alone, light or dark as its reader's system is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources

from ..letters import cells
from ..migrate.schema import Key
from .layout import Layout, Point, Rect, laid_out
from .placing import Link
from .sizes import HEADER, INSET, KEYS, LETTER, MOST_NAME, Box, Line, box_of, state_of_parts, type_of
from .text import cut, escaped, plain
from .values import MEANINGS, SIGNS, Diagram, Reference

EDGE, CORNER = 32.0, 6.0  # around the picture; the radius of a line's corners
CAPTION, MOST_CAPTION = 18.0, 240  # the height of a line, and its letters


@dataclass(frozen=True)
class Picture:
    """A diagram with the box, the place and the line of everything in it."""

    diagram: Diagram
    boxes: dict[Key, Box]
    layout: Layout
    ids: dict[Key, str]


def picture_of(diagram: Diagram) -> Picture:
    """Place everything that is drawn."""
    boxes = {key: box_of(table, marked=diagram.is_compared) for key, table in diagram.tables.items()}
    links = [
        Link(r.source, boxes[r.source].port(r.columns), r.target, boxes[r.target].port(r.target_columns))
        for r in diagram.references
    ]
    layout = laid_out({key: box.size for key, box in boxes.items()}, links)
    return Picture(diagram, boxes, layout, {key: f"t{number}" for number, key in enumerate(boxes)})


def style(name: str) -> str:
    """Return one of the package's style sheets or scripts."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def svg(diagram: Diagram) -> str:
    """Return the picture as a document of its own."""
    picture = picture_of(diagram)
    captions = [cut(plain(text), MOST_CAPTION) for text in diagram.captions]
    legend = list(_legend(diagram))
    top = EDGE + CAPTION * len(captions) + 12
    longest = max(cells(plain(text)) for text in (*captions, *legend))
    width = max(picture.layout.width, longest * 7.3) + 2 * EDGE
    height = top + picture.layout.height + 24 + CAPTION * len(legend) + EDGE
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_n(width)} {_n(height)}" width="{_n(width)}" '
        f'height="{_n(height)}" role="img" aria-label="{escaped(f"schema of {diagram.database}")}">',
        f"<title>{escaped(f'schema of {diagram.database}')}</title>",
        f"<style>{style('picture.css')}</style>",
        f'<rect class="paper" width="{_n(width)}" height="{_n(height)}"/>',
        *(
            f'<text class="caption" x="{_n(EDGE)}" y="{_n(y)}">{escaped(text)}</text>'
            for text, y in _column(captions, EDGE)
        ),
        f'<g transform="translate({_n(EDGE)} {_n(top)})">',
        *content(picture),
        "</g>",
        *(
            f'<text class="caption legend" x="{_n(EDGE)}" y="{_n(y)}">{escaped(text)}</text>'
            for text, y in _column(legend, top + picture.layout.height + 24)
        ),
        "</svg>\n",
    ]
    return "\n".join(lines)


def _column(texts: Sequence[str], top: float) -> list[tuple[str, float]]:
    return [(text, top + CAPTION * number + 10) for number, text in enumerate(texts)]


def _legend(diagram: Diagram) -> Iterator[str]:
    implied = any(reference.is_implied for reference in diagram.references)
    yield "PK primary key   FK reference   UQ unique" + ("   dashed line: implied by names alone" if implied else "")
    states = {difference.state for difference in diagram.differences}
    yield from (f"{sign} {state}: {MEANINGS[state]}" for state, sign in SIGNS.items() if state in states)


def content(picture: Picture, *, from_afar: bool = False) -> Iterator[str]:
    """Yield the elements of a picture: its lines first, so that no line is above a table.

    :param from_afar: give each table a large name too, for a script to show where the picture is small.
    """
    for number, reference in enumerate(picture.diagram.references):
        yield _reference(picture, number, reference)
    for x, y, text in picture.layout.headings:
        yield f'<text class="caption" x="{_n(x)}" y="{_n(y + 8)}">{escaped(text)}</text>'
    for key, box in picture.boxes.items():
        place = picture.layout.places[key]
        yield from _table(picture.ids[key], box, place, _large_name(box, place) if from_afar else "")


# Tables


def _large_name(box: Box, place: Rect) -> str:
    """Return the name of a table, as large as its box, in a line a word."""
    words = cut(plain(box.table.label), MOST_NAME).replace(".", "._").split("_")
    words = [
        word + ("_" if word and number < len(words) - 1 and not word.endswith(".") else "")
        for number, word in enumerate(words)
    ]
    longest = max(max(map(cells, words)), 4)
    scale = min((place.width - 12) / (longest * LETTER), (place.height - HEADER) / (len(words) * 13), 6)
    top = HEADER / scale / 2 + place.height / scale / 2 - 13 * len(words) / 2
    middle = place.width / 2 / scale
    lines = "".join(
        f'<tspan x="{_n(middle)}" y="{_n(top + 13 * number + 10)}">{escaped(word)}</tspan>'
        for number, word in enumerate(words)
    )
    return f'<text class="large" transform="scale({scale:.2f})" aria-hidden="true">{lines}</text>'


def _table(name: str, box: Box, place: Rect, large: str) -> Iterator[str]:
    table = box.table
    inner = f" holds-{state_of_parts(table)}" if table.all_differences and not table.state else ""
    own = f" is-{table.state}" if table.state else ""
    about = f"{table.kind} {table.label}" + (f", {box.badge}" if box.badge else "")
    width, height = place.width, place.height
    yield (
        f'<g class="table{own}{inner}" id="{name}" data-table="{escaped(table.label)}" tabindex="0" role="button" '
        f'aria-label="{escaped(about)}" transform="translate({_n(place.x)} {_n(place.y)})">'
    )
    yield f'<rect class="box" width="{_n(width)}" height="{_n(height)}" rx="6"/>'
    yield f'<path class="head" d="M0 {_n(HEADER)}V6a6 6 0 0 1 6 -6H{_n(width - 6)}a6 6 0 0 1 6 6V{_n(HEADER)}z"/>'
    shown = cut(plain(table.label), MOST_NAME)
    yield f'<text class="name" x="{_n(INSET)}" y="21">{escaped(shown)}<title>{escaped(about)}</title></text>'
    if box.badge:
        yield f'<text class="badge" x="{_n(width - INSET)}" y="21">{escaped(box.badge)}</text>'
    for line in box.lines:
        yield from _line(line, box, width)
    if large:
        yield large
    yield f'<rect class="frame" width="{_n(width)}" height="{_n(height)}" rx="6"/>'
    yield "</g>"


def _line(line: Line, box: Box, width: float) -> Iterator[str]:
    state = f" is-{line.state}" if line.state else ""
    base = line.y + line.height - (6 if line.kind == "column" else 4.5)
    yield f'<g class="{line.kind}{state}"><title>{escaped(line.title)}</title>'
    if line.state:
        yield f'<rect class="mark" x="1" y="{_n(line.y)}" width="{_n(width - 2)}" height="{_n(line.height)}"/>'
        if line.kind != "detail":
            yield f'<text class="sign" x="{_n(INSET)}" y="{_n(base)}">{SIGNS[line.state]}</text>'
    if line.column is None:
        yield f'<text x="{_n(box.inset)}" y="{_n(base)}">{escaped(line.text)}</text></g>'
        return
    if line.column.keys:
        yield f'<text class="keys" x="{_n(box.inset)}" y="{_n(base - 0.5)}">{" ".join(line.column.keys[:2])}</text>'
    needed = ' class="needed"' if line.column.column.not_null else ""
    yield f'<text{needed} x="{_n(box.inset + KEYS)}" y="{_n(base)}">{escaped(line.text)}</text>'
    yield f'<text class="type" x="{_n(box.types)}" y="{_n(base)}">{escaped(type_of(line.column))}</text></g>'


# References


def _reference(picture: Picture, number: int, reference: Reference) -> str:
    points = picture.layout.lines[number]
    path = _path(points[::-1])  # from the target, so that the dashes of lines that share their way lie on each other
    implied = " implied" if reference.is_implied else ""
    state = f" is-{reference.state}" if reference.state else ""
    return (
        f'<g class="reference{implied}{state}" id="r{number}" data-from="{picture.ids[reference.source]}" '
        f'data-to="{picture.ids[reference.target]}"><title>{escaped(reference.title)}</title>'
        f'<path class="touch" d="{path}"/><path class="line" d="{path}"/>'
        f'<path class="ends" d="{_many_end(points, reference)}{_one_end(points)}"/></g>'
    )


def _path(points: Sequence[Point]) -> str:
    """Return a line with round corners."""
    parts = [f"M{_n(points[0][0])} {_n(points[0][1])}"]
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        start, end = _towards(corner, before), _towards(corner, after)
        parts.append(f"L{_n(start[0])} {_n(start[1])}Q{_n(corner[0])} {_n(corner[1])} {_n(end[0])} {_n(end[1])}")
    return "".join([*parts, f"L{_n(points[-1][0])} {_n(points[-1][1])}"])


def _towards(corner: Point, other: Point) -> Point:
    """Return the point that is a radius away from a corner, or half of the way where that is shorter."""
    dx, dy = other[0] - corner[0], other[1] - corner[1]
    share = min(CORNER, (abs(dx) + abs(dy)) / 2) / max(abs(dx) + abs(dy), 0.01)
    return corner[0] + dx * share, corner[1] + dy * share


def _many_end(points: Sequence[Point], reference: Reference) -> str:
    """Return the crow's foot at the referring table, or a bar where one row at most refers."""
    (x, y), out = points[0], 1 if points[1][0] >= points[0][0] else -1
    if reference.is_unique:
        return f"M{_n(x + 8 * out)} {_n(y - 5)}v10"
    return f"M{_n(x)} {_n(y - 5)}L{_n(x + 11 * out)} {_n(y)}L{_n(x)} {_n(y + 5)}"


def _one_end(points: Sequence[Point]) -> str:
    """Return the bar at the table that is referred to."""
    (x, y), out = points[-1], 1 if points[-2][0] >= points[-1][0] else -1
    return f"M{_n(x + 7 * out)} {_n(y - 5)}v10"


def _n(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0")
