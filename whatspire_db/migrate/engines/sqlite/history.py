"""SQLite: the question how a database stands, which its schema and its history answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import peewee

from whatspire_db.light_stdlib import Any
from whatspire_db.messages import ERROR, primary
from whatspire_db.migrate.ddl import execute, quote, quote_text
from whatspire_db.migrate.schema import folded_ascii
from whatspire_db.peewee_compat import peewee_errors

# The mark is a hash of the very SQL that the schema consists of, so no two schemas share one, whatever file they are
# in: a schema that was once found to be the declared one always is. The stamps are in a file beside the database,
# which may be lost or deleted at any time.
_HISTORY = "SELECT (SELECT max(version) FROM migration_versions), NULL, NULL, NULL, NULL"
_NO_HISTORY = "SELECT 0, NULL, NULL, NULL, NULL"
# Not in the file of the stamps, for an older database may be restored beside it.
_FINISHED = "(SELECT group_concat(name, char(10)) FROM main.whatspire_db_data_migrations WHERE finished IS NOT NULL)"
_STANDING = "SELECT {0}, tbl_name, type, name, sql FROM {1}.sqlite_master"

_HISTORY_COLUMNS = """
SELECT c.name FROM main.sqlite_master AS t, pragma_table_xinfo(t.name, 'main') AS c
WHERE t.type = 'table' AND t.name = 'migration_versions' COLLATE NOCASE
"""


def columns(db: peewee.SqliteDatabase) -> set[str]:
    """Return the names of the history's columns; none where there is none."""
    return {folded_ascii(name) for (name,) in execute(db, _HISTORY_COLUMNS)}


def answer(db: peewee.SqliteDatabase, schemas: Sequence[str], with_rows: bool) -> Iterable[tuple[Any, ...]] | None:
    """Return a row of the newest version and the finished data migrations, and those of the schemas.

    None where another program made the history.
    """
    parts = [_STANDING.format(quote_text(schema or "main"), quote(schema or "main")) for schema in schemas]
    with peewee_errors:
        first = _HISTORY.replace("NULL", _FINISHED, 1) if with_rows else _HISTORY
        found = _asked(db, [first, *parts])
        if found is None and with_rows:  # no data migration was ever begun
            found = _asked(db, [_HISTORY, *parts])
        if found is not None:
            return found
        if columns(db):
            return None
        found = _asked(db, [_NO_HISTORY, *parts])
    # Another run may have made the history since the first question: its version is not 0.
    is_new = found is not None and any(folded_ascii(name) == "migration_versions" for _, name, *_ in found[1:])
    return answer(db, schemas, with_rows) if is_new else found


def _asked(db: peewee.SqliteDatabase, parts: Sequence[str]) -> list[tuple[Any, ...]] | None:
    """Return the rows of a question; None where a table or a column is not there."""
    try:
        return list(db.cursor().execute(" UNION ALL ".join(parts)))
    except peewee.sqlite3.OperationalError as error:
        if primary(error) != ERROR:
            raise
        return None
