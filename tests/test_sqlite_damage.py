"""Damage of a SQLite file: health, backup and migrate say the same, and only of what is damaged."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import peewee
import pytest
from peewee import sqlite3

from tests.conftest import Place
from whatspire_db import MigrationVersion
from whatspire_db.connection.engines.sqlite.damage import damage
from whatspire_db.health import check_health

pytestmark = pytest.mark.sampled

PAGE = 4096


def script(path: str | Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.create_collation(
            "own", lambda one, other: (one.lower() > other.lower()) - (one.lower() < other.lower())
        )
        connection.create_function("own_half", 1, lambda value: value // 2, deterministic=True)
        for statement in statements:
            connection.execute(statement)


def overwrite(path: str, start: int, written: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(start)
        file.write(written)


def with_a_bad_page(path: str) -> None:
    script(
        path,
        "CREATE TABLE note (id INTEGER PRIMARY KEY, text TEXT)",
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000) "
        "INSERT INTO note SELECT i, 'row ' || i FROM n",
    )
    overwrite(path, 5 * PAGE, b"\xff" * 200)


def with_a_bad_first_page(path: str) -> None:
    script(path, "CREATE TABLE note (x)")
    overwrite(path, 100, b"\xff" * 40)


def with_a_bad_header_field(path: str) -> None:
    script(path, "CREATE TABLE note (x)")
    overwrite(path, 21, b"\x01\x02\x03")  # payload fractions that no SQLite writes: NOTADB behind a right header


def with_a_malformed_schema(path: str) -> None:
    script(
        path,
        "CREATE TABLE note (x)",
        "PRAGMA writable_schema = 1",
        "UPDATE sqlite_master SET sql = 'CREATE TABLE note (x,, y)'",
    )


def with_a_schema_that_is_not_text(path: str) -> None:
    script(
        path,
        "CREATE TABLE note (x)",
        "PRAGMA writable_schema = 1",
        "UPDATE sqlite_master SET sql = CAST(x'4352454154452054414242ff' AS text)",
    )


DAMAGED = [
    with_a_bad_page,
    with_a_bad_first_page,
    with_a_bad_header_field,
    with_a_malformed_schema,
    with_a_schema_that_is_not_text,
]


@pytest.mark.parametrize("harm", DAMAGED)
@pytest.mark.parametrize(
    "command",
    [
        ("whatspire_db.health", "--quick-check", "--no-schema"),
        ("whatspire_db.backup", "create"),
        ("whatspire_db.migrate", "plan"),
    ],
    ids=lambda command: command[0],
)
def test_damage_is_called_damage(sqlite: Place, harm: object, command: tuple[str, ...]) -> None:
    harm(sqlite.dsn)  # type: ignore[operator]
    module, *arguments = command
    done = sqlite.run(*arguments, module=module)
    if harm is with_a_bad_page and module == "whatspire_db.migrate":
        assert done.returncode in (0, 3)  # a plan of other tables does not read that page
        return
    assert done.returncode == 1, done.stderr
    assert "is damaged" in done.stderr
    for word in ("is not a SQLite database", "move the file", "make room", "Traceback"):
        assert word not in done.stderr


def test_step_on_a_damaged_page_is_called_damage(sqlite: Place) -> None:
    with_a_bad_page(sqlite.dsn)
    (sqlite.folder / "own.py").write_text(
        "from peewee import *\nfrom whatspire_db import BaseModel\n"
        "class Note(BaseModel):\n    text = TextField(null=True, index=True)\n"
    )
    done = sqlite.run("--models", "own", "--only-models")
    assert done.returncode == 1
    assert "restore a backup" in done.stderr
    assert "make room" not in done.stderr


def test_file_that_does_not_begin_as_sqlites_is_no_database(sqlite: Place) -> None:
    Path(sqlite.dsn).write_bytes(b"nothing of the kind" * 1000)
    for module, verb in (("whatspire_db.migrate", "plan"), ("whatspire_db.backup", "create")):
        done = sqlite.run(verb, module=module)
        assert done.returncode == 1
        assert "is not a SQLite database" in done.stderr
        assert "move the file" not in done.stderr


AGAINST_A_CHECK = (
    "CREATE TABLE stock (id INTEGER PRIMARY KEY, n INTEGER CHECK (n > 0), name TEXT NOT NULL)",
    "PRAGMA ignore_check_constraints = 1",
    "INSERT INTO stock VALUES (1, -5, 'a')",
    "PRAGMA writable_schema = 1",
    "UPDATE sqlite_master SET sql = replace(sql, 'name TEXT NOT NULL', 'name TEXT NOT NULL CHECK (n <> -5)')",
)
OF_ANOTHER_PROGRAM = (
    "CREATE TABLE tags (tag TEXT NOT NULL PRIMARY KEY COLLATE own, n INTEGER NOT NULL) WITHOUT ROWID",
    "INSERT INTO tags VALUES ('a', 1), ('B', 2), ('c', 3)",
    "CREATE TABLE word (id INTEGER PRIMARY KEY, text TEXT COLLATE own, half AS (own_half(id)), CHECK (own_half(id) < 9))",
    "CREATE INDEX word_text ON word (text)",
    "CREATE INDEX word_half ON word (own_half(id))",
    "INSERT INTO word (text) VALUES ('b'), ('A'), ('c')",
)


@pytest.mark.parametrize("statements", [AGAINST_A_CHECK, OF_ANOTHER_PROGRAM], ids=["rows", "program"])
def test_what_is_no_damage_is_not_called_so(sqlite: Place, statements: tuple[str, ...]) -> None:
    script(sqlite.dsn, *statements)
    done = sqlite.run("--quick-check", "--no-schema", "--json", module="whatspire_db.health")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["quick_check"] == "ok"
    done = sqlite.run("create", "--test-restore", module="whatspire_db.backup")
    assert done.returncode == 0, done.stderr
    done = sqlite.run("restore", "latest", "--force", module="whatspire_db.backup")
    assert done.returncode == 0, done.stderr


def test_damage_is_found_behind_rows_against_a_check_and_unknown_collations(sqlite: Place) -> None:
    script(sqlite.dsn, *AGAINST_A_CHECK, *OF_ANOTHER_PROGRAM)
    with_a_bad_page(sqlite.dsn)
    with closing(sqlite3.connect(sqlite.dsn)) as connection:
        assert damage(connection, "quick_check")
        assert damage(connection)


def test_health_lends_the_callers_connection_nothing(sqlite: Place) -> None:
    """A stand-in lets rows pass a CHECK that calls it."""
    script(sqlite.dsn, *OF_ANOTHER_PROGRAM)
    db = sqlite.connect()
    with db.connection_context():
        assert check_health(db, [MigrationVersion], schema=False, quick_check=True).quick_check == "ok"
        with pytest.raises(peewee.OperationalError):
            db.execute_sql("SELECT own_half(4)")
