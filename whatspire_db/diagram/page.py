"""A Diagram as one HTML file: the picture, a search, a list of differences; it loads nothing from anywhere."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Iterator

from ..migrate.schema import Key, label
from .svg import Picture, content, picture_of, style
from .text import escaped
from .values import MEANINGS, SIGNS, Diagram, Difference, DrawnTable, Reference

KEYS_HELP = (
    ("/", "search"),
    ("Tab, Enter", "choose a table"),
    ("[ and ]", "go along the references of the chosen table"),
    ("arrows", "move the picture"),
    ("+ − 0", "zoom, fit"),
    ("Esc", "let go"),
)


def page(diagram: Diagram) -> str:
    """Return the document."""
    picture = picture_of(diagram)
    sheet, script = f"{style('picture.css')}{style('page.css')}", style("page.js")
    title = escaped(f"Schema of {diagram.database}")
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(sheet, script)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">',
        f"<title>{title}</title><style>{sheet}</style></head><body>",
        '<div class="screen">',
        *_header(diagram),
        '<div class="columns"><nav aria-label="tables">',
        *_list(picture),
        "</nav><main>",
        *_drawing(picture, title),
        "</main>",
        '<aside aria-live="polite">',
        *_details(picture),
        "</aside></div></div>",
        *_differences(picture),
        f"<script>{script}</script></body></html>\n",
    ]
    return "\n".join(lines)


def _policy(sheet: str, script: str) -> str:
    """Return the policy that lets this one style sheet and this one script run, and nothing be loaded."""
    hashes = [b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (sheet, script)]
    own = f"style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'"
    return f"default-src 'none'; {own}; base-uri 'none'; form-action 'none'"


def _header(diagram: Diagram) -> Iterator[str]:
    first, *captions = diagram.captions
    yield f'<header><div class="about"><h1>{escaped(first)}</h1>'
    yield "".join(f"<p>{escaped(caption)}</p>" for caption in captions) + "</div>"
    yield '<div class="tools"><label>search <input id="search" type="search" autocomplete="off" '
    yield 'placeholder="table or column" aria-describedby="found"></label><span id="found" role="status"></span>'
    yield '<button id="in" title="zoom in (+)">+</button><button id="out" title="zoom out (−)">−</button>'
    yield '<button id="fit" title="show all (0)">fit</button>'
    if diagram.is_compared:
        yield '<a class="button" href="#differences">differences</a>'
    yield "</div></header>"


def _link(picture: Picture, key: Key) -> str:
    """Return the link to a table: no element has it as its id, for a browser would scroll the whole page to that."""
    return f"#/{picture.ids[key]}"


def _list(picture: Picture) -> Iterator[str]:
    yield '<ul id="tables">'
    for key, table in sorted(picture.diagram.tables.items(), key=lambda one: one[1].label):
        words = " ".join([table.label, *(column.name for column in table.columns)])
        badge = picture.boxes[key].badge
        shown = f' <span class="sign">{escaped(badge)}</span>' if badge else ""
        link = f'<a href="{_link(picture, key)}">{escaped(table.label)}{shown}</a>'
        yield f'<li data-words="{escaped(words.lower())}">{link}</li>'
    yield "</ul>"
    yield "<dl>" + "".join(f"<dt>{keys}</dt><dd>{does}</dd>" for keys, does in KEYS_HELP) + "</dl>"
    yield '<p class="legend">PK primary key<br>FK reference<br>UQ unique<br>bold: NOT NULL'
    if any(reference.is_implied for reference in picture.diagram.references):
        yield "<br>dashed line: implied by names alone"
    yield "</p>"


def _drawing(picture: Picture, title: str) -> Iterator[str]:
    width, height = picture.layout.width + 40, picture.layout.height + 40
    yield f'<svg id="picture" viewBox="-20 -20 {width:.0f} {height:.0f}" role="group" aria-label="{title}" data-box="'
    yield f'-20 -20 {width:.0f} {height:.0f}">'
    yield from content(picture, from_afar=True)
    yield "</svg>"


# Details of each table, of which the script shows the chosen one's


def _details(picture: Picture) -> Iterator[str]:
    yield '<p id="hint">Choose a table to see all of it, and to follow its references.</p>'
    for key, table in picture.diagram.tables.items():
        yield f'<section hidden data-of="{picture.ids[key]}"><h2 tabindex="-1">{escaped(table.label)}</h2>'
        if table.kind != "table":
            yield f"<p>{escaped(table.kind)}</p>"
        yield from _relations(picture, table)
        yield "<table><thead><tr><th>column</th><th>type</th><th>default</th></tr></thead><tbody>"
        for column in table.columns:
            keys = "".join(f" <b>{name}</b>" for name in column.keys)
            kind = f"{column.type} {column.column.nullability}"
            default = column.column.default or column.column.generated or column.column.identity or ""
            yield f"<tr><td>{escaped(column.name)}{keys}</td><td>{escaped(kind)}</td><td>{escaped(default)}</td></tr>"
        yield "</tbody></table>"
        if table.parts:
            parts = (
                f"{part.kind} {part.name} {part.definition if part.definition != part.name else ''}"
                for part in table.parts
            )
            yield (
                "<h3>indexes and constraints</h3><ul>"
                + "".join(f"<li>{escaped(part)}</li>" for part in parts)
                + "</ul>"
            )
        if table.all_differences:
            yield "<h3>differences</h3><ul>"
            yield from (f"<li>{SIGNS[d.state]} {escaped(str(d))}</li>" for d in table.all_differences)
            yield "</ul>"
        yield "</section>"


def _relations(picture: Picture, table: DrawnTable) -> Iterator[str]:
    out = [r for r in picture.diagram.references if r.source == table.key]
    back = [r for r in picture.diagram.references if r.target == table.key and r.source != table.key]
    for heading, found, is_out in (("refers to", out, True), ("referred to by", back, False)):
        if found:
            yield f'<h3>{heading}</h3><ul class="relations">'
            yield from (_relation(picture, reference, is_out) for reference in found)
            yield "</ul>"


def _relation(picture: Picture, reference: Reference, is_out: bool) -> str:
    other, columns = (reference.target, reference.columns) if is_out else (reference.source, reference.columns)
    by = f"by {', '.join(columns)}" + (", implied" if reference.is_implied else "")
    return f'<li><a href="{_link(picture, other)}">{escaped(label(other))}</a> {escaped(by)}</li>'


# Differences


def _differences(picture: Picture) -> Iterator[str]:
    diagram = picture.diagram
    if not diagram.is_compared:
        return
    yield f'<section id="differences" tabindex="-1"><h2>Differences: {escaped(diagram.verdict or "none")}</h2>'
    states = {difference.state for difference in diagram.differences}
    meanings = (
        f"<li>{sign} <b>{state}</b>: {MEANINGS[state]}</li>" for state, sign in SIGNS.items() if state in states
    )
    yield f'<ul class="meanings">{"".join(meanings)}</ul>'
    if diagram.differences:
        yield "<table><thead><tr><th>state</th><th>what</th><th>where</th><th>declared</th><th>live</th>"
        yield "<th>SQL that adds or fixes it, and notes</th></tr></thead><tbody>"
        yield from (_difference(picture, difference) for difference in diagram.differences)
        yield "</tbody></table>"
    if diagram.script:
        yield f'<h3>The script of verify --sql</h3><pre id="script">{_lines_of(diagram.script)}</pre>'
    yield "</section>"


def _difference(picture: Picture, difference: Difference) -> str:
    place = escaped(difference.place)
    is_drawn = difference.table in picture.ids
    where = f'<a href="{_link(picture, difference.table)}">{place}</a>' if is_drawn else place
    values = (
        [escaped(difference.declared or "none"), escaped(difference.live or "none")] if difference.values else ["", ""]
    )
    sql = "".join(f"<pre>{_lines_of(text)}</pre>" for text in difference.sql)
    sql = f"<details><summary>SQL</summary>{sql}</details>" if sql else ""
    note = f"<p>{escaped(difference.note)}</p>" if difference.note else ""
    state = f'<td class="state is-{difference.state}">{SIGNS[difference.state]} {difference.state}</td>'
    cells = "".join(f"<td>{text}</td>" for text in (escaped(difference.what), where, *values, note + sql))
    return f"<tr>{state}{cells}</tr>"


def _lines_of(text: str) -> str:
    """Return a text of several lines, escaped line by line."""
    return "\n".join(escaped(line) for line in text.split("\n"))
