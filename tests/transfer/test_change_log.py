"""The change log: whoever follows it has every row, and its writers notice nothing of it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import peewee
import pytest
from hypothesis import given
from hypothesis import strategies as st
from peewee import sqlite3

from tests.conftest import Place
from tests.servers import eventually
from tests.transfer.following import copy_of, follow, opened, rows_of, schema_of
from whatspire_db import MigrationRunner, WhatspireDBError
from whatspire_db.dsn.postgres import parse_postgres
from whatspire_db.models.service import SERVICE_MODELS
from whatspire_db.transfer import change_log, fence

# Keys of all kinds, unique indexes, a collation, a cascade, and names that have to be quoted.
TABLES = {
    "t": "CREATE TABLE t (id text PRIMARY KEY, u integer UNIQUE, v)",
    "o'\"t": 'CREATE TABLE "o\'""t" (a, "b""2" text, v, PRIMARY KEY (a, "b""2")) WITHOUT ROWID',
    "n": "CREATE TABLE n (id integer PRIMARY KEY, x text COLLATE NOCASE, y, v, UNIQUE (x, y))",
    "r": "CREATE TABLE r (rowid, v)",
    "c": "CREATE TABLE c (id text COLLATE NOCASE PRIMARY KEY, t_id text REFERENCES t (id) ON DELETE CASCADE, v)",
}
INDEX = "CREATE UNIQUE INDEX c_v ON c (v COLLATE NOCASE)"  # another collation than the column's
TRIGGER = "CREATE TRIGGER own AFTER UPDATE ON n BEGIN UPDATE r SET v = NEW.v WHERE _rowid_ = NEW.id; END"


@pytest.fixture
def source(tmp_path: Path) -> Iterator[peewee.SqliteDatabase]:
    with opened(tmp_path / "source.db") as db:
        make(db)
        yield db


def make(db: peewee.SqliteDatabase) -> None:
    db.execute_sql("PRAGMA journal_mode = WAL")
    for sql in [*TABLES.values(), INDEX, TRIGGER]:
        db.execute_sql(sql)


def keys(db: peewee.SqliteDatabase, after: int = 0) -> list[tuple[str, change_log.Key]]:
    return list(change_log.changed(db, after).keys)


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        (["INSERT INTO t VALUES ('a', 1, 2), ('b', 2, 2)"], [("t", ("a",)), ("t", ("b",))]),
        (["INSERT INTO t VALUES ('a', 1, 2)", "DELETE FROM t"], [("t", ("a",))]),
        (["INSERT INTO t VALUES (NULL, 1, 2), (x'00', 2, 2)"], [("t", (None,)), ("t", (b"\0",))]),
        (["INSERT INTO r (v) VALUES (7)", "UPDATE r SET v = 8"], [("r", (1,))]),
        (["INSERT INTO r (_rowid_, v) VALUES (9, 7)", "UPDATE r SET _rowid_ = 4"], [("r", (9,)), ("r", (4,))]),
        (["INSERT INTO n (x) VALUES ('x')"], [("n", (1,))]),
        (["""INSERT INTO "o'""t" VALUES (1.5, 'b', 0)"""], [("o'\"t", (1.5, "b"))]),
        (["INSERT INTO c VALUES ('a', NULL, 1)", "UPDATE c SET id = 'A'"], [("c", ("a",)), ("c", ("A",))]),
        (
            [
                "INSERT INTO t VALUES ('a', 1, 2)",
                "INSERT INTO t VALUES ('b', 1, 2) ON CONFLICT (u) DO UPDATE SET v = 3",
            ],
            [("t", ("a",))],
        ),
        (
            ["INSERT INTO t VALUES ('a', 1, 2)", "INSERT INTO c VALUES ('c', 'a', 1)", "DELETE FROM t"],
            [("t", ("a",)), ("c", ("c",))],
        ),
        (["INSERT INTO n (id) VALUES (1)", "INSERT INTO r VALUES (0, 0)", "UPDATE n SET v = 5"], None),
    ],
)
def test_each_write_is_noted_once_by_its_key(
    source: peewee.SqliteDatabase, statements: list[str], expected: list[tuple[str, change_log.Key]] | None
) -> None:
    source.execute_sql("PRAGMA foreign_keys = 1")
    change_log.start(source, list(TABLES))
    for sql in statements:
        source.execute_sql(sql)
    found = keys(source)
    assert len(found) == len(set(found))
    assert set(found) == set(expected or [("n", (1,)), ("r", (1,))])


@pytest.mark.parametrize(
    ("replace", "replaced"),
    [
        ("INSERT OR REPLACE INTO t VALUES ('b', 1, 0)", ("t", ("a",))),
        ("UPDATE OR REPLACE t SET u = 1 WHERE u = 2", ("t", ("a",))),
        ("INSERT OR REPLACE INTO c VALUES ('A', NULL, 'new')", ("c", ("a",))),  # its key is NOCASE
        ("INSERT OR REPLACE INTO c VALUES ('new', NULL, 'V')", ("c", ("a",))),  # and so is an index
    ],
)
@pytest.mark.parametrize("recursive", [0, 1])
def test_row_that_is_replaced_by_another_key_is_noted(
    source: peewee.SqliteDatabase, replace: str, replaced: tuple[str, change_log.Key], recursive: int
) -> None:
    source.execute_sql(f"PRAGMA recursive_triggers = {recursive}")
    source.execute_sql("INSERT INTO t VALUES ('a', 1, 0), ('c', 2, 0)")
    source.execute_sql("INSERT INTO c VALUES ('a', NULL, 'v')")
    change_log.start(source, list(TABLES))
    source.execute_sql(replace)
    table, key = replaced
    assert source.execute_sql(f"SELECT 1 FROM {table} WHERE id = ? COLLATE BINARY", key).fetchall() == []
    assert replaced in keys(source)


def test_row_that_is_replaced_by_a_default_is_noted(source: peewee.SqliteDatabase) -> None:
    """OR REPLACE takes the default for NULL in a column that is NOT NULL, which NEW does not show."""
    source.execute_sql("CREATE TABLE d (id integer PRIMARY KEY, v text NOT NULL DEFAULT 'it''s' UNIQUE)")
    source.execute_sql("INSERT INTO d VALUES (1, 'it''s'), (2, 'b')")
    change_log.start(source, ["d"])
    source.execute_sql("INSERT OR REPLACE INTO d VALUES (3, NULL)")
    source.execute_sql("UPDATE OR REPLACE d SET v = NULL WHERE id = 2")
    assert source.execute_sql("SELECT id FROM d").fetchall() == [(2,)]
    assert set(keys(source)) == {("d", (1,)), ("d", (3,)), ("d", (2,))}


@pytest.mark.parametrize("kind", ["STORED", "VIRTUAL"])
def test_row_that_is_replaced_by_a_generated_value_is_noted(source: peewee.SqliteDatabase, kind: str) -> None:
    source.execute_sql(f"CREATE TABLE g (id integer PRIMARY KEY, v integer, w integer AS (v % 10) {kind} UNIQUE)")
    source.execute_sql("INSERT INTO g (id, v) VALUES (1, 1), (2, 2), (3, 3)")
    change_log.start(source, ["g"])
    source.execute_sql("INSERT OR REPLACE INTO g (id, v) VALUES (9, 11)")
    source.execute_sql("UPDATE OR REPLACE g SET v = 12 WHERE id = 3")
    assert source.execute_sql("SELECT id FROM g ORDER BY id").fetchall() == [(3,), (9,)]
    assert set(keys(source)) == {("g", (number,)) for number in (1, 2, 3, 9)}


def test_key_that_changes_its_case_alone_is_noted_twice(source: peewee.SqliteDatabase) -> None:
    source.execute_sql("CREATE TABLE b (id text COLLATE NOCASE, PRIMARY KEY (id COLLATE BINARY))")
    source.execute_sql("INSERT INTO b VALUES ('a')")
    change_log.start(source, ["b"])
    source.execute_sql("UPDATE b SET id = 'A'")
    assert keys(source) == [("b", ("a",)), ("b", ("A",))]


def test_what_is_rolled_back_is_not_noted_and_positions_go_on(source: peewee.SqliteDatabase) -> None:
    change_log.start(source, list(TABLES))
    source.execute_sql("INSERT INTO r VALUES (1, 1)")
    with source.atomic() as transaction:
        source.execute_sql("INSERT INTO r VALUES (2, 2)")
        transaction.rollback()
    first = change_log.changed(source, 0)
    assert first.keys == (("r", (1,)),)
    source.execute_sql("INSERT INTO r VALUES (3, 3)")
    second = change_log.changed(source, first.position)
    assert second.keys == (("r", (2,)),)
    assert not change_log.changed(source, second.position)


def test_the_last_change_of_a_row_is_what_counts_for_the_order(source: peewee.SqliteDatabase) -> None:
    change_log.start(source, list(TABLES))
    for key in "aba":
        source.execute_sql("INSERT OR REPLACE INTO t (id) VALUES (?)", (key,))
    assert keys(source) == [("t", ("b",)), ("t", ("a",))]


# The law

ids = st.sampled_from(["a", "A", "b"])
numbers = st.one_of(st.none(), st.integers(0, 2))
conflicts = st.sampled_from(["", "OR IGNORE", "OR REPLACE"])
inserts = st.one_of(
    st.tuples(st.just("INSERT {} INTO t VALUES (?, ?, ?)"), conflicts, st.tuples(ids, numbers, numbers)),
    st.tuples(
        st.just("INSERT {} INTO t VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE SET v = v + 1"),
        st.just(""),
        st.tuples(ids, numbers, numbers),
    ),
    st.tuples(
        st.just("""INSERT {} INTO "o'""t" VALUES (?, ?, ?)"""), conflicts, st.tuples(st.integers(0, 3), ids, numbers)
    ),
    st.tuples(
        st.just("INSERT {} INTO n VALUES (?, ?, ?, ?)"), conflicts, st.tuples(st.integers(1, 5), ids, numbers, numbers)
    ),
    st.tuples(st.just("INSERT {} INTO r VALUES (?, ?)"), conflicts, st.tuples(numbers, numbers)),
    st.tuples(st.just("INSERT {} INTO c VALUES (?, ?, ?)"), conflicts, st.tuples(ids, st.one_of(st.none(), ids), ids)),
    st.tuples(st.just("INSERT {} INTO r SELECT v, v FROM t WHERE v IS NOT ?"), conflicts, st.tuples(numbers)),
)
updates = st.one_of(
    st.tuples(st.just("UPDATE {} t SET id = ? WHERE id = ?"), conflicts, st.tuples(ids, ids)),
    st.tuples(st.just("UPDATE {} t SET u = ?, v = ? WHERE id = ?"), conflicts, st.tuples(numbers, numbers, ids)),
    st.tuples(st.just("""UPDATE {} "o'""t" SET a = ? WHERE "b""2" > ?"""), conflicts, st.tuples(numbers, ids)),
    st.tuples(st.just("UPDATE {} n SET x = ?, v = ? WHERE id > ?"), conflicts, st.tuples(ids, numbers, numbers)),
    st.tuples(st.just("UPDATE {} n SET id = ? WHERE x = ?"), conflicts, st.tuples(st.integers(1, 5), ids)),
    st.tuples(st.just("UPDATE {} r SET _rowid_ = ? WHERE v = ?"), conflicts, st.tuples(st.integers(1, 9), numbers)),
    st.tuples(st.just("UPDATE {} c SET v = ?, t_id = ? WHERE v = ?"), conflicts, st.tuples(ids, st.none(), ids)),
    st.tuples(st.just("UPDATE {} c SET id = ? WHERE id = ?"), conflicts, st.tuples(ids, ids)),
)
deletes = st.one_of(
    st.tuples(st.just("DELETE {} FROM t WHERE id = ?"), st.just(""), st.tuples(ids)),
    st.tuples(st.just("DELETE {} FROM n WHERE x = ?"), st.just(""), st.tuples(ids)),
    st.tuples(st.just("DELETE {} FROM r WHERE v >= ?"), st.just(""), st.tuples(numbers)),
)
statements = st.one_of(inserts, updates, deletes)
transactions = st.lists(st.tuples(st.lists(statements, max_size=4), st.booleans(), st.booleans()), max_size=12)


def run(db: peewee.SqliteDatabase, statement: tuple[str, str, tuple[Any, ...]]) -> None:
    sql, conflict, values = statement
    try:
        db.execute_sql(sql.format(conflict), values)
    except peewee.IntegrityError:
        pass  # that statement alone is undone


@given(before=st.lists(statements, max_size=8), work=transactions)
def test_copy_that_follows_has_the_rows_of_its_source(
    before: list[Any], work: list[tuple[list[Any], bool, bool]]
) -> None:
    with tempfile.TemporaryDirectory() as folder, opened(Path(folder) / "source.db") as db:
        copy = Path(folder) / "copy.db"
        make(db)
        db.execute_sql("PRAGMA foreign_keys = 1")
        for statement in before:
            run(db, statement)
        change_log.start(db, list(TABLES))
        copy_of(db, copy)
        for body, commits, follows in work:
            with db.atomic() as transaction:
                for statement in body:
                    run(db, statement)
                if not commits:
                    transaction.rollback()
            if follows:
                follow(db, copy)
        follow(db, copy)
        assert rows_of(copy, TABLES) == rows_of(str(db.database), TABLES)


# What writers notice

SERVICE = [
    ("INSERT INTO n (x, v) VALUES ('x', 1), ('y', 2)", ()),
    ("INSERT INTO n (x, y, v) VALUES ('x', 1, 1) RETURNING id, v", ()),
    ("INSERT OR IGNORE INTO n (id, v) VALUES (1, 1)", ()),
    ("INSERT OR REPLACE INTO n (x, y, v) VALUES ('X', 1, 3)", ()),
    ("INSERT INTO t VALUES ('a', 1, 1) ON CONFLICT (id) DO UPDATE SET v = excluded.v RETURNING *", ()),
    ("INSERT INTO t VALUES ('a', 1, 2) ON CONFLICT (id) DO UPDATE SET v = excluded.v RETURNING *", ()),
    ("INSERT INTO t VALUES ('a', 1, 2) ON CONFLICT DO NOTHING", ()),
    ("UPDATE t SET v = ? WHERE id = ?", (5, "a")),
    ("UPDATE t SET v = ? WHERE id = ?", (5, "nobody")),
    ("UPDATE n SET v = v + 1 RETURNING id", ()),
    ("INSERT INTO r VALUES (1, 1), (2, 2)", ()),
    ("DELETE FROM r WHERE v > 0 RETURNING v", ()),
    ("DELETE FROM r", ()),
]


def answers(db: peewee.SqliteDatabase) -> list[Any]:
    """Return what each statement answers: its rows and counts, and SQLite's own of both."""
    found: list[Any] = []
    for sql, values in SERVICE:
        cursor = db.execute_sql(sql, values)
        rows = cursor.fetchall()
        counts = db.execute_sql("SELECT changes(), last_insert_rowid()").fetchone()
        found.append((sql, rows, cursor.rowcount, cursor.lastrowid, counts))
    return found


def test_statements_answer_the_same_with_the_log(source: peewee.SqliteDatabase, tmp_path: Path) -> None:
    with opened(tmp_path / "other.db") as other:
        make(other)
        expected = answers(other)
    change_log.start(source, list(TABLES))
    assert answers(source) == expected


def test_peewee_writes_as_ever(sqlite: Place) -> None:
    db = sqlite.connect()
    with db.connection_context():
        MigrationRunner(db, SERVICE_MODELS).up()
        change_log.start(db, db.get_tables())
        session = next(model for model in SERVICE_MODELS if model.__name__ == "Session")
        created = session.create(name="main", status="pending")
        created.status = "connected"
        created.save()
        assert session.update(name="other").where(session.id == created.id).execute() == 1
        assert session.get_by_id(created.id).name == "other"
        assert keys(db) == [("sessions", (created.id,))]
        assert created.delete_instance() == 1


# Its beginning and its end


@pytest.mark.parametrize("pragma", ["auto_vacuum = NONE", "auto_vacuum = INCREMENTAL", "auto_vacuum = FULL"])
def test_nothing_of_the_log_stays(tmp_path: Path, pragma: str) -> None:
    with opened(tmp_path / "source.db") as db:
        db.execute_sql(f"PRAGMA {pragma}")
        make(db)
        before = schema_of(db)
        change_log.start(db, list(TABLES))
        for number in range(2000):
            db.execute_sql("INSERT INTO r VALUES (?, zeroblob(50))", (number,))
        assert schema_of(db) != before
        change_log.stop(db)
        assert schema_of(db) == before
        assert change_log.find(db) is None
        change_log.stop(db)
        assert db.execute_sql("PRAGMA integrity_check").fetchone() == ("ok",)


def test_start_that_fails_leaves_nothing(source: peewee.SqliteDatabase) -> None:
    source.execute_sql("CREATE VIRTUAL TABLE docs USING fts5 (body)")
    source.execute_sql("CREATE TABLE hidden (rowid, _rowid_, OID)")
    source.execute_sql("CREATE VIEW seen AS SELECT * FROM t")
    before = schema_of(source)
    for table in ("docs", "hidden", "seen", "nowhere"):
        with pytest.raises(WhatspireDBError, match=f"changes of {table} cannot be noted") as refused:
            change_log.start(source, ["t", table])
        assert (f"--leave {table}" in refused.value.hint) == (table != "hidden")
    assert schema_of(source) == before


def test_stop_is_part_of_the_callers_transaction(source: peewee.SqliteDatabase) -> None:
    change_log.start(source, ["t"])
    with source.atomic("IMMEDIATE") as transaction:
        change_log.stop(source)
        transaction.rollback()
    source.execute_sql("INSERT INTO t (id) VALUES ('a')")
    assert keys(source) == [("t", ("a",))]


def test_log_of_other_tables_is_refused(source: peewee.SqliteDatabase) -> None:
    change_log.start(source, ["t", "n"])
    with pytest.raises(WhatspireDBError, match="change log of other tables") as refused:
        change_log.start(source, ["t"])
    assert "whatspire-db transfer --remove-log" in refused.value.hint
    assert change_log.find(source) == change_log.Log(("n", "t"), 0)


HOLDER = """
import sys
from pathlib import Path
from tests.transfer.following import copy_of, follow, opened
from whatspire_db.transfer import change_log
path, copy, *tables = sys.argv[1:]
with opened(path) as db:
    change_log.start(db, tables)
    copy_of(db, Path(copy))
    print("copied", flush=True)
    while True:
        follow(db, Path(copy))
"""


def held(path: Path, copy: Path, tables: list[str]) -> subprocess.Popen[str]:
    """Start a process that holds a log and follows it, and wait until it has its copy."""
    command = [sys.executable, "-c", HOLDER, str(path), str(copy), *tables]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "copied\n"
    return process


def killed(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()


def test_log_of_a_killed_process_goes_on(source: peewee.SqliteDatabase, tmp_path: Path) -> None:
    before = schema_of(source)
    killed(held(tmp_path / "source.db", tmp_path / "copy.db", ["t", "r"]))
    source.execute_sql("INSERT INTO t (id) VALUES ('a')")
    assert change_log.find(source) == change_log.Log(("r", "t"), 1)
    assert change_log.start(source, ["t", "r"]).position == 1
    assert follow(source, tmp_path / "copy.db") == 1
    assert rows_of(tmp_path / "copy.db", ["t"]) == {"t": [("a", None, None)]}
    change_log.stop(source)
    assert schema_of(source) == before


WRITERS = ("peewee", "sqlite3", "sql", "models")


@contextmanager
def writing(path: Path, notes: Sequence[Path]) -> Iterator[list[subprocess.Popen[str]]]:
    """Let a process of each kind write until the fence stops it, or the block is left."""
    command = [sys.executable, "-m", "tests.transfer.writer", str(path)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([*command, file.name, str(file)], **pipes) for file in notes]
    try:
        eventually(lambda: all(file.exists() for file in notes), "all write")
        yield processes
    finally:
        for process in processes:
            killed(process)


def require_more(notes: Sequence[Path]) -> None:
    """Wait until each writer has written something since."""
    sizes = [file.stat().st_size for file in notes]
    eventually(lambda: all(f.stat().st_size > size for f, size in zip(notes, sizes, strict=True)), "all wrote")


def acknowledged(notes: Path) -> dict[str, str | None]:
    """Return the names of the rows of a writer by their keys, as it was last told; None for a row that is deleted."""
    return dict(json.loads(line) for line in notes.read_text().splitlines())


@pytest.mark.soak
def test_no_acknowledged_row_is_missing_after_the_switch(sqlite: Place, tmp_path: Path) -> None:
    path, copy = Path(sqlite.dsn), tmp_path / "copy.db"
    db: Any = sqlite.connect()
    with db.connection_context():
        MigrationRunner(db, SERVICE_MODELS).up()
        tables = sorted(model._meta.table_name for model in SERVICE_MODELS)
        notes = [tmp_path / kind for kind in WRITERS]
        with writing(path, notes) as writers:
            for _ in range(3):
                copy.unlink(missing_ok=True)
                holder = held(path, copy, tables)
                require_more(notes)
                killed(holder)
                require_more(notes)
            change_log.start(db, tables)
            follow(db, copy)
            with db.atomic("IMMEDIATE"):
                follow(db, copy)
                moved = fence.put_up(db, tables, parse_postgres("host=db dbname=whatspire"), datetime.now(timezone.utc))
                change_log.stop(db)
            for process in writers:
                out, err = process.communicate(timeout=60)
                assert (process.returncode, err) == (0, "")
                assert out.splitlines()[-1].endswith(moved.fact)
    assert rows_of(copy, tables) == rows_of(path, tables)
    with closing(sqlite3.connect(copy)) as connection:
        names = dict(connection.execute("SELECT id, name FROM sessions"))
    for file in notes:
        rows = acknowledged(file)
        assert len(rows) > 1
        assert {key: names.get(key) for key in rows} == rows
