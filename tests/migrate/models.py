"""Models made in a line, statements run by hand, and what every state of a database is to come to."""

from __future__ import annotations

from collections.abc import Mapping

import peewee as pw

from whatspire_db import MigrationRunner


def model(name: str, table: str, fields: Mapping[str, pw.Field], **meta: object) -> type[pw.Model]:
    """Return a model of a table.

    :param meta: what else its Meta says.
    """
    return type(pw.Model)(name, (pw.Model,), {**fields, "Meta": type("Meta", (), {"table_name": table, **meta})})


def run(db: pw.Database, *statements: str) -> None:
    """Run statements as they are written, whose % is no placeholder."""
    with db.connection_context():
        for sql in statements:
            db.execute_sql(sql, None) if isinstance(db, pw.SqliteDatabase) else db.cursor().execute(sql)


def converges(db: pw.Database, models: list[type[pw.Model]]) -> None:
    """Check that after one run nothing differs, and that the next one has nothing to do."""
    MigrationRunner(db, models).up()
    runner = MigrationRunner(db, models)
    assert not runner.verify_schema(), str(runner.verify_schema())
    assert not runner.up().applied
