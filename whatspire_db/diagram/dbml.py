"""A Diagram as DBML, the text that dbdiagram.io and its tools read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ..migrate.schema import Key
from .text import plain
from .values import Diagram, DrawnColumn, DrawnTable, Part, Reference

_PLAIN_TYPE = re.compile(r"\w+(\(\d+(,\s*\d+)?\))?")
_NUMBER = re.compile(r"-?\d+(\.\d+)?")


Names = Mapping[str, str]


def dbml(diagram: Diagram) -> str:
    """Return the text."""
    places = dict(zip(diagram.tables, _places(diagram.tables), strict=True))
    columns = {key: _names(column.name for column in table.columns) for key, table in diagram.tables.items()}
    lines = [
        *(f"// {plain(caption)}" for caption in diagram.captions),
        *(line for key, table in diagram.tables.items() for line in _table(table, places[key], columns[key])),
        "",
        *_references(diagram.references, places, columns),
    ]
    return "\n".join(lines) + "\n"


def _name(text: str) -> str:
    """Return a name as it may stand in quotes.

    DBML has no escape for a double quote in one, and its readers drop spaces at the ends.
    """
    return plain(text).replace('"', "''").replace("\\", "/").strip() or "_"


def _quoted(name: str) -> str:
    return f'"{name}"'


def _names(names: Iterable[str]) -> dict[str, str]:
    """Return for each name a quoted one that no other has; one that may stand as it is keeps its own."""
    found: dict[str, str] = {}
    taken: set[str] = set()
    for name in sorted(names, key=lambda name: _name(name) != name):
        shown, number = _name(name), 1
        while shown in taken:
            number += 1
            shown = f"{_name(name)} {number}"
        taken.add(shown)
        found[name] = _quoted(shown)
    return found


def _places(keys: Iterable[Key]) -> Iterator[str]:
    """Yield how tables are named, with their schemas."""
    all_keys = list(keys)
    schemas = _names({schema: None for schema, _ in all_keys if schema})
    tables = {schema: _names(name for its, name in all_keys if its == schema) for schema, _ in all_keys}
    for schema, name in all_keys:
        yield f"{schemas[schema]}.{tables[schema][name]}" if schema else tables[schema][name]


def _text(text: str) -> str:
    return "'" + plain(text).replace("\\", "\\\\").replace("'", "\\'") + "'"


def _table(table: DrawnTable, place: str, names: Names) -> Iterator[str]:
    yield ""
    yield f"Table {place} {{"
    yield from (f"  {_column(column, table, names)}" for column in table.columns)
    if not table.columns:  # which DBML does not take
        yield f"  {_quoted(table.more or 'no columns')} unknown"
    indexes = [_index(part, names) for part in table.parts if _is_index(part)]
    keys = [names[column.name] for column in table.columns if "PK" in column.keys]
    if len(keys) > 1:
        indexes.insert(0, f"({', '.join(keys)}) [pk]")
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


def _column(column: DrawnColumn, table: DrawnTable, names: Names) -> str:
    kind = plain(column.type) if _PLAIN_TYPE.fullmatch(column.type) else _quoted(_name(column.type or "unknown"))
    is_alone = sum("PK" in other.keys for other in table.columns) == 1
    facts = ["pk"] if "PK" in column.keys and is_alone else []
    facts += ["unique"] if "UQ" in column.keys else []
    facts += ["not null"] if column.column.not_null else ["null"]
    if column.column.default is not None:
        facts.append(f"default: {_default(column.column.default)}")
    if column.differences:
        facts.append(f"note: {_text('; '.join(map(str, column.differences)))}")
    return f"{names[column.name]} {kind} [{', '.join(facts)}]"


def _default(text: str) -> str:
    if _NUMBER.fullmatch(text) or text.lower() in ("true", "false", "null"):
        return text
    return "`" + plain(text).replace("`", "'") + "`"


def _is_index(part: Part) -> bool:
    return part.kind in ("index", "unique")


def _index(part: Part, columns: Names) -> str:
    facts = ["unique"] if part.kind == "unique" else []
    facts += [f"name: {_text(part.name)}"] if part.name else []
    names = ", ".join(columns.get(name) or _quoted(_name(name)) for name in part.columns)
    shown = plain(part.definition).replace("`", "'")
    return f"({names or f'`{shown}`'})" + (f" [{', '.join(facts)}]" if facts else "")


def _references(
    references: Iterable[Reference], places: Mapping[Key, str], columns: Mapping[Key, Names]
) -> Iterator[str]:
    """Yield the references; DBML takes one between the same columns, and none from a column to itself."""
    seen: set[frozenset[str]] = set()
    for reference in references:
        ends = [
            f"{places[key]}.{_end(names, columns[key])}"
            for key, names in ((reference.source, reference.columns), (reference.target, reference.target_columns))
            if names and all(name in columns[key] for name in names)
        ]
        if len(ends) < 2:
            continue
        if is_comment := len(set(ends)) == 1 or frozenset(ends) in seen:
            yield "// not taken by DBML, which has one reference between two columns:"
        seen.add(frozenset(ends))
        if reference.is_implied:
            yield "// implied by the name of the column"
        if reference.state:
            yield f"// {reference.state}"
        yield f"{'// ' if is_comment else ''}Ref: {ends[0]} {'-' if reference.is_unique else '>'} {ends[1]}"


def _end(names: Sequence[str], shown: Names) -> str:
    return shown[names[0]] if len(names) == 1 else f"({', '.join(shown[name] for name in names)})"
