"""Whether a live table is the declared one, or another program's that has the same name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from .diff import Missing
from .engines.base import Engine
from .plan import Refusal
from .schema import Schema, Table, label


def foreign_tables(engine: Engine, declared: Schema, live: Schema, missing: Iterable[Missing]) -> Iterator[Refusal]:
    """Give a refusal for each table that a run would extend although it seems to belong to another program."""
    for key in dict.fromkeys(item.table for item in missing if item.table in live.tables):
        reason = _difference(engine, declared.tables[key], live.tables[key])
        if reason:
            yield Refusal(
                "table",
                label(key),
                key[1],
                f"table {label(key)} seems to belong to another program: {reason}",
                "use another database or schema, or leave that table out (the service's: --only-models or "
                "WHATSAPP_DATABASE_ONLY_MODELS=true); if it is the model's own table, change it by SQL first",
            )


def _difference(engine: Engine, declared: Table, live: Table) -> str | None:
    """Return why two tables of one name are not the same table; None where they may be."""
    keys = _key_of(declared), _key_of(live)
    if all(keys) and set(keys[0]) != set(keys[1]):
        return f"its key is ({', '.join(keys[1])}), and ({', '.join(keys[0])}) is declared"
    for name in keys[0]:  # also where no key is live: a lost one is added to a column of its own type alone
        wanted, got = declared.columns[name].type, live.columns[name].type if name in live.columns else None
        if wanted and got and _family(engine, wanted) != _family(engine, got):
            return f"its key {name} is {got}, and {wanted} is declared"
    lacking = declared.columns.keys() - live.columns.keys()
    others = live.columns.keys() - declared.columns.keys()
    if others and 2 * len(lacking) > len(declared.columns):
        return f"it lacks {len(lacking)} of {len(declared.columns)} declared columns and has {len(others)} others"
    return None


def _key_of(table: Table) -> tuple[str, ...]:
    return next((c.columns for c in table.constraints if c.kind == "primary_key"), ())


def _family(engine: Engine, type_: str) -> str:
    """Return what kind of values a type holds: a longer varchar or a larger integer is of the same kind."""
    return engine.family(re.sub(r"\(.*\)|\[\]", "", type_).strip().lower())
