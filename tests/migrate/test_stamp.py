"""The stamp: a start with nothing to do is one statement, and never takes an old yes for a new one."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import peewee as pw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import Place, Server
from tests.servers import program
from whatspire_db import MigrationRunner
from whatspire_db.dsn import parse_postgres
from whatspire_db.migrate.stamp import KEPT, Stamps


def made(number: int, columns: int = 4) -> type[pw.Model]:
    """Return a model of its own table."""
    fields = {f"c{i}": pw.TextField(null=True, index=i == 0) for i in range(columns)}
    return type(f"Made{number}", (pw.Model,), {**fields, "Meta": type("Meta", (), {"table_name": f"made{number}"})})


@contextlib.contextmanager
def statements(db: pw.Database, server: Server | None) -> Iterator[list[str]]:
    """Collect what reaches the engine, as SQLite's trace and the server's own log say."""
    seen: list[str] = []
    if server is None:
        db.connection().set_trace_callback(seen.append)
        yield seen
        db.connection().set_trace_callback(None)
        return
    assert server.folder is not None
    log = server.folder / "log"
    (pid,) = db.execute_sql("SELECT pg_backend_pid()").fetchone()
    db.execute_sql("SET log_statement = 'all'")
    start = log.stat().st_size
    yield seen
    with log.open("rb") as file:
        file.seek(start)
        text = file.read().decode(errors="replace")
    db.execute_sql("RESET log_statement")
    seen += [line for line in text.splitlines() if f"[{pid}]" in line and "LOG:  statement:" in line]


@pytest.fixture
def log_of(place: Place, request: pytest.FixtureRequest) -> Server | None:
    if place.is_sqlite:
        return None
    server: Server = request.getfixturevalue("server")
    if server.folder is None:
        pytest.skip("the log of another server is out of reach")
    return server


def is_one_question(db: pw.Database, log_of: Server | None, runner: MigrationRunner) -> bool:
    with statements(db, log_of) as seen:
        assert runner.up().applied == ()
    return len(seen) == 1


@pytest.mark.parametrize("tables", [1, 60])
def test_a_start_with_nothing_to_do_is_one_statement(
    place: Place, db: pw.Database, log_of: Server | None, tables: int
) -> None:
    models = [made(number) for number in range(tables)]
    with db.bind_ctx(models):
        MigrationRunner(db, models).up()
        assert is_one_question(db, log_of, MigrationRunner(db, models))
    MigrationRunner(db).up()
    with statements(db, log_of) as seen:
        report = MigrationRunner(db).up()
    assert len(seen) == 1, seen
    assert report.previous_version == report.version > 0


def test_first_look_at_a_schema_that_stands_already_is_stamped(
    place: Place, db: pw.Database, log_of: Server | None
) -> None:
    runner = MigrationRunner(db)
    for step in runner.plan().pending:
        for sql in step.sql:
            db.execute_sql(sql.replace("%", "%%"))
    assert runner.up().applied == ()
    assert is_one_question(db, log_of, runner)


HARMLESS = {
    True: ["INSERT INTO made1 (c0) VALUES ('x')", "ANALYZE", "CREATE TABLE other (id integer)", "REINDEX", "VACUUM"],
    False: [
        "INSERT INTO made1 (c0) VALUES ('x')",
        "ANALYZE",
        "VACUUM (FREEZE)",
        "GRANT SELECT ON made1 TO PUBLIC",
        "TRUNCATE made1",
        "CREATE TABLE other (id integer)",
        "CREATE TEMPORARY TABLE passing (id integer)",
        "CREATE OR REPLACE FUNCTION f() RETURNS integer LANGUAGE sql AS 'SELECT 2'",
    ],
}


def test_what_changes_no_structure_keeps_the_stamp(place: Place, db: pw.Database, log_of: Server | None) -> None:
    models = [made(1)]
    if not place.is_sqlite:
        db.execute_sql("CREATE FUNCTION f() RETURNS integer LANGUAGE sql AS 'SELECT 1'")
    with db.bind_ctx(models):
        MigrationRunner(db, models).up()
        for statement in HARMLESS[place.is_sqlite]:
            db.execute_sql(statement)
            assert is_one_question(db, log_of, MigrationRunner(db, models)), statement


def test_releases_that_take_turns_keep_a_stamp_each(place: Place, db: pw.Database, log_of: Server | None) -> None:
    old, new = [made(1, columns=4)], [made(1, columns=5)]
    with db.bind_ctx([*old, *new]):
        MigrationRunner(db, old).up()
        assert len(MigrationRunner(db, new).up().applied) == 1
        MigrationRunner(db, old).up()
        for models in (old, new, old, new):
            assert is_one_question(db, log_of, MigrationRunner(db, models))


def _change_field(model: type[pw.Model]) -> None:
    model._meta.fields["c1"].index = True


def _add_field(model: type[pw.Model]) -> None:
    model._meta.add_field("later", pw.IntegerField(null=True))


def _add_index(model: type[pw.Model]) -> None:
    model._meta.indexes.append(pw.ModelIndex(model, [model.c2, model.c3]))


@pytest.mark.parametrize("change", [_change_field, _add_field, _add_index])
def test_a_model_that_changes_is_looked_at_again(
    place: Place, db: pw.Database, change: Callable[[type[pw.Model]], None]
) -> None:
    model = made(1)
    with db.bind_ctx([model]):
        MigrationRunner(db, [model]).up()
        MigrationRunner(db, [model]).up()
        change(model)
        assert len(MigrationRunner(db, [model]).up().applied) == 1


def test_drift_is_told_at_every_start(place: Place, db: pw.Database) -> None:
    models = [made(1)]
    with db.bind_ctx(models):
        MigrationRunner(db, models).up()
        db.execute_sql("DROP TABLE made1")
        db.execute_sql("CREATE TABLE made1 (id integer PRIMARY KEY, c0 text, c1 text, c2 text, c3 integer)")
        for _ in range(3):
            assert "c3" in {drift.name for drift in MigrationRunner(db, models).up().drift}


def test_a_restored_file_is_looked_at_again(sqlite: Place, tmp_path: Path) -> None:
    """The stamps are true for a schema, not for a file: another file under the same name gets a look of its own."""
    db = sqlite.connect()
    MigrationRunner(db).up()
    old = tmp_path / "old.db"
    with contextlib.closing(sqlite3.connect(sqlite.dsn)) as other:
        other.execute(f"VACUUM INTO '{old}'")
    with contextlib.closing(sqlite3.connect(old)) as other:
        other.execute("DROP INDEX idx_sessions_jid")
    db.close()
    shutil.copy(old, sqlite.dsn)
    report = MigrationRunner(sqlite.connect()).up()
    assert [step.name for step in report.applied] == ["idx_sessions_jid"]


def test_a_copied_database_is_looked_at_where_it_differs(postgres: Place, server: Server) -> None:
    db = postgres.connect()
    MigrationRunner(db).up()
    db.close_all()
    name = parse_postgres(postgres.dsn).arguments["dbname"]
    server.execute(f"DROP DATABASE IF EXISTS {name}_copy", f"CREATE DATABASE {name}_copy TEMPLATE {name}")
    copy = Place("postgres", server.of_database(f"{name}_copy"), postgres.folder).connect()
    assert MigrationRunner(copy).up().applied == ()
    copy.execute_sql("DROP INDEX idx_sessions_jid")
    assert len(MigrationRunner(copy).up().applied) == 1
    copy.close_all()
    server.execute(f"DROP DATABASE {name}_copy")


def test_stamps_that_cannot_be_kept_cost_a_look_and_no_more(sqlite: Place) -> None:
    db = sqlite.connect()
    MigrationRunner(db).up()
    stamps = Path(f"{sqlite.dsn}-stamps")
    for spoil in (lambda: stamps.write_text("not ours"), stamps.unlink, stamps.mkdir):
        if spoil == stamps.mkdir:
            stamps.unlink()
        spoil()
        assert MigrationRunner(db).up().applied == ()
    stamps.rmdir()
    MigrationRunner(db).up()
    assert Stamps.from_text(stamps.read_text()).verified
    assert {file.name for file in sqlite.folder.iterdir()} <= {
        f"whatspire.db{end}" for end in ("", "-shm", "-stamps", "-wal")
    }
    db.close()


def test_somebody_elses_comment_stays(postgres: Place) -> None:
    db = postgres.connect()
    MigrationRunner(db).up()
    db.execute_sql("COMMENT ON TYPE migration_versions IS 'hands off'")
    MigrationRunner(db).up()
    assert db.execute_sql("SELECT obj_description('migration_versions'::regtype)").fetchone() == ("hands off",)
    db.close()


@given(pairs=st.lists(st.tuples(st.text(), st.text()), max_size=30), unrecorded=st.text())
def test_stamps_survive_being_stored_and_the_newest_are_kept(pairs: list[tuple[str, str]], unrecorded: str) -> None:
    stamps = Stamps(unrecorded=unrecorded)
    for declared, mark in pairs:
        stamps = stamps.adding(declared, mark)
    assert Stamps.from_text(stamps.to_text()) == stamps
    newest: list[tuple[str, str]] = []
    seen: set[str] = set()
    for declared, mark in reversed(pairs):
        if declared not in seen:
            newest.append((declared, mark))
            seen.add(declared)
    assert list(stamps.verified) == newest[:KEPT]


def test_stamps_are_not_carried_along_by_a_dump(postgres: Place) -> None:
    MigrationRunner(postgres.connect()).up()
    dump = subprocess.run([program("pg_dump"), "-d", postgres.dsn], capture_output=True, text=True, check=True).stdout
    assert "CREATE TABLE public.migration_versions" in dump
    assert "whatspire_db" not in dump
