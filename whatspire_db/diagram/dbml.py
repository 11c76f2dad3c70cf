"""A Diagram as DBML, the text that dbdiagram.io and its tools read."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..migrate.schema import Key
from .text import plain
from .values import Diagram, DrawnColumn, DrawnTable, Part, Reference

_PLAIN_TYPE = re.compile(r"\w+(\(\d+(,\s*\d+)?\))?")
_NUMBER = re.compile(r"-?\d+(\.\d+)?")


def dbml(diagram: Diagram) -> str:
    """Return the text."""
    lines = [
        *(f"// {plain(caption)}" for caption in diagram.captions),
        *(line for table in diagram.tables.values() for line in _table(table)),
        "",
        *(line for reference in diagram.references for line in _reference(reference)),
    ]
    return "\n".join(lines) + "\n"


def _name(text: str) -> str:
    """Quote a name; DBML has no escape for a double quote in one, and its readers drop spaces at the ends."""
    return '"' + (plain(text).replace('"', "''").replace("\\", "/").strip() or "_") + '"'


def _text(text: str) -> str:
    return "'" + plain(text).replace("\\", "\\\\").replace("'", "\\'") + "'"


def _place(key: Key) -> str:
    return ".".join(_name(part) for part in key if part)


def _table(table: DrawnTable) -> Iterator[str]:
    yield ""
    yield f"Table {_place(table.key)} {{"
    yield from (f"  {_column(column, table)}" for column in table.columns)
    indexes = [_index(part) for part in table.parts if _is_index(part)]
    keys = [column.name for column in table.columns if "PK" in column.keys]
    if len(keys) > 1:
        indexes.insert(0, f"({', '.join(map(_name, keys))}) [pk]")
    if indexes:
        yield "  indexes {"
        yield from (f"    {line}" for line in indexes)
        yield "  }"
    notes = [] if table.kind == "table" else [table.kind]
    notes += [part.text for part in table.parts if not _is_index(part)]
    notes += [str(difference) for difference in table.all_differences]
    if notes:
        yield f"  Note: {_text('; '.join(notes))}"
    yield "}"


def _column(column: DrawnColumn, table: DrawnTable) -> str:
    kind = plain(column.type) if _PLAIN_TYPE.fullmatch(column.type) else _name(column.type or "unknown")
    is_alone = sum("PK" in other.keys for other in table.columns) == 1
    facts = ["pk"] if "PK" in column.keys and is_alone else []
    facts += ["unique"] if "UQ" in column.keys else []
    facts += ["not null"] if column.column.not_null else ["null"]
    if column.column.default is not None:
        facts.append(f"default: {_default(column.column.default)}")
    if column.differences:
        facts.append(f"note: {_text('; '.join(map(str, column.differences)))}")
    return f"{_name(column.name)} {kind} [{', '.join(facts)}]"


def _default(text: str) -> str:
    if _NUMBER.fullmatch(text) or text.lower() in ("true", "false", "null"):
        return text
    return "`" + plain(text).replace("`", "'") + "`"


def _is_index(part: Part) -> bool:
    return part.kind in ("index", "unique")


def _index(part: Part) -> str:
    facts = ["unique"] if part.kind == "unique" else []
    facts += [f"name: {_text(part.name)}"] if part.name else []
    names = ", ".join(map(_name, part.columns))
    shown = plain(part.definition).replace("`", "'")
    return f"({names or f'`{shown}`'})" + (f" [{', '.join(facts)}]" if facts else "")


def _reference(reference: Reference) -> Iterator[str]:
    if reference.is_implied:
        yield "// implied by the name of the column"
    if reference.state:
        yield f"// {reference.state}"
    mark = "-" if reference.is_unique else ">"
    ends = [
        f"{_place(key)}.{_name(names[0]) if len(names) == 1 else '(' + ', '.join(map(_name, names)) + ')'}"
        for key, names in ((reference.source, reference.columns), (reference.target, reference.target_columns))
        if names
    ]
    if len(ends) == 2:
        yield f"Ref: {ends[0]} {mark} {ends[1]}"
