"""The stamp: a start with nothing to do is one statement, and never takes an old yes for a new one."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import peewee as pw
import pytest
from hypothesis import given
from hypothesis import strategies as st
from peewee import sqlite3

from tests.conftest import Place, Server
from tests.servers import program
from whatspire_db import MigrationRunner, MigrationVersion
from whatspire_db.dsn.postgres import parse_postgres
from whatspire_db.health import check_health
from whatspire_db.migrate import stamp
from whatspire_db.migrate.stamp import BYTES, KEPT, Stamps, fingerprint
from whatspire_db.models.service import SERVICE_MODELS

pytestmark = pytest.mark.sampled


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


def test_the_start_after_an_adoption_is_one_statement(place: Place, db: pw.Database, log_of: Server | None) -> None:
    model = made(1)
    with db.bind_ctx([model]):
        model.create_table()
    assert [step.table for step in MigrationRunner(db, [model]).up().applied] == ["migration_versions"]
    assert is_one_question(db, log_of, MigrationRunner(db, [model]))


STARTED = """
import atexit, runpy, sys
atexit.register(lambda: print(*sys.modules, file=sys.stderr))
runpy.run_module("whatspire_db.migrate", run_name="__main__")
"""


def test_a_start_with_nothing_to_do_loads_nothing_that_looks_or_changes(place: Place, db: pw.Database) -> None:
    MigrationRunner(db).up()
    done = subprocess.run(
        [sys.executable, "-c", STARTED],
        env=place.variables(),
        cwd=place.folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Nothing to do" in done.stdout
    loaded = set(done.stderr.split())
    assert "whatspire_db.migrate.runner" in loaded
    whole = {"playhouse.migrate", "shutil", "whatspire_db.backup", "whatspire_db.migrate.diff"}
    walk = {f"whatspire_db.migrate.{name}" for name in ("full_look", "upgrade", "applying", "planner", "rows", "times")}
    assert not loaded & (whole | walk)
    other = "postgres" if place.is_sqlite else "sqlite"
    assert not [name for name in loaded if name.startswith(f"whatspire_db.migrate.engines.{other}")]
    assert not (place.is_sqlite and "whatspire_db.connection.engines.postgres.database" in loaded)


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
    assert "COMMENT ON TYPE" not in dump


# Stamps that somebody else wrote

DEEP = "[" * 60_000
FORGED = {
    "deep": DEEP,
    "deep and whole": f'{{"whatspire_db": {DEEP}{"]" * 60_000}, "unrecorded": ""}}',
    "deep in a pair": f'{{"whatspire_db": [["a", {DEEP}{"]" * 60_000}]], "unrecorded": ""}}',
    "a huge number": '{"whatspire_db": [[' + "9" * 10_000 + ', ""]], "unrecorded": ""}',
    "numbers": '{"whatspire_db": [[1, 2]], "unrecorded": 1e999}',
    "zero bytes": '{"whatspire_db": [["\\u0000", "\\u0000"]], "unrecorded": "\\u0000"}',
    "no Unicode": '{"whatspire_db": [["\\ud800", "\\udfff"]], "unrecorded": "\\ud800"}',
    "quotes": '{"whatspire_db": [["\'", "\\\\\'"]], "unrecorded": "%s %"}',
    "many": json.dumps({"whatspire_db": [[str(n), ""] for n in range(3000)], "unrecorded": ""}),
    "huge": json.dumps({"whatspire_db": [["x" * 1_000_000, ""]], "unrecorded": ""}),
    "no object": "null",
    "an empty object": "{}",
}


@pytest.mark.parametrize("text", FORGED.values(), ids=FORGED)
def test_whatever_stamps_hold_costs_a_look_and_no_more(place: Place, db: pw.Database, text: str) -> None:
    MigrationRunner(db).up()
    if place.is_sqlite:
        Path(f"{place.dsn}-stamps").write_text(text)
    else:
        quoted = text.replace("'", "''").replace("%", "%%")
        db.execute_sql(f"COMMENT ON TYPE migration_versions IS '{quoted}'")
    for _ in range(2):
        assert MigrationRunner(db).up().applied == ()
        assert not MigrationRunner(db).verify_schema().missing
        assert check_health(db).healthy


def stamps_of(place: Place) -> Path:
    return Path(f"{place.dsn}-stamps")


def test_stamps_that_are_a_link_are_not_followed(sqlite: Place, tmp_path: Path) -> None:
    """In the folder of a service's user, that user could have root overwrite any file."""
    db = sqlite.connect()
    MigrationRunner(db).up()
    stamps = stamps_of(sqlite)
    precious = tmp_path / "precious"
    for before in (b"mine", stamps.read_bytes(), None):
        stamps.unlink()
        precious.unlink(missing_ok=True)
        if before is not None:
            precious.write_bytes(before)
        stamps.symlink_to(precious)
        assert MigrationRunner(db).up().applied == ()
        assert (precious.read_bytes() if precious.exists() else None) == before
    db.close()


def test_stamps_with_a_second_name_are_not_written(sqlite: Place, tmp_path: Path) -> None:
    db = sqlite.connect()
    MigrationRunner(db).up()
    precious = tmp_path / "precious"
    precious.write_text("mine")
    stamps_of(sqlite).unlink()
    os.link(precious, stamps_of(sqlite))
    assert MigrationRunner(db).up().applied == ()
    assert precious.read_text() == "mine"
    db.close()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_stamps_that_are_no_file_are_not_waited_for(sqlite: Place, make: Callable[[Path], None]) -> None:
    db = sqlite.connect()
    MigrationRunner(db).up()
    stamps_of(sqlite).unlink()
    make(stamps_of(sqlite))
    assert MigrationRunner(db).up().applied == ()
    assert check_health(db).healthy
    db.close()


def _drop_what_is_declared(place: Place) -> None:
    with contextlib.closing(sqlite3.connect(place.dsn)) as other:
        other.execute("DROP INDEX idx_sessions_jid")


@pytest.mark.parametrize("way", ["another user's", "writable by others"])
def test_stamps_that_another_user_can_write_are_not_believed(
    sqlite: Place, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """They could say of any schema that it is in sync."""
    db = sqlite.connect()
    MigrationRunner(db).up()
    _drop_what_is_declared(sqlite)
    standing = MigrationRunner(db).engine.standing(SERVICE_MODELS)
    assert standing is not None
    forged = Stamps().adding(fingerprint(db, SERVICE_MODELS), standing.mark)
    stamps_of(sqlite).write_text(forged.to_text())
    if way == "another user's":
        if os.geteuid() != 0:
            pytest.skip("root alone can give a file away")
        os.chown(stamps_of(sqlite), 65534, 65534)
    else:
        stamps_of(sqlite).chmod(0o664)
    assert [step.name for step in MigrationRunner(db).up().applied] == ["idx_sessions_jid"]
    db.close()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_stamps_are_written_so_that_this_user_alone_can_write_them(sqlite: Place, umask: int) -> None:
    usual = os.umask(umask)
    try:
        db = sqlite.connect()
        MigrationRunner(db).up()
        assert stamps_of(sqlite).stat().st_mode & 0o777 == 0o644 & ~umask
        stamps_of(sqlite).chmod(0o666)
        MigrationRunner(db).up()
        assert stamps_of(sqlite).stat().st_mode & 0o022 == 0
        with statements(db, None) as seen:
            MigrationRunner(db).up()
        assert len(seen) == 1
        db.close()
    finally:
        os.umask(usual)


DRIFTED = [
    "CREATE TABLE made1 (id integer NOT NULL PRIMARY KEY, c0 text, c1 integer, c2 text, c3 text)",
    "CREATE INDEX made1_c0 ON made1 (c0)",
]


@pytest.fixture
def drifted(place: Place, db: pw.Database) -> Iterator[type[pw.Model]]:
    """A model whose table has another type for one column."""
    model = made(1)
    for statement in DRIFTED:
        db.execute_sql(statement.replace("id integer", "id integer" if place.is_sqlite else "id serial"))
    with db.bind_ctx([MigrationVersion]):
        db.create_tables([MigrationVersion])
    with db.bind_ctx([model]):
        yield model


def test_drift_is_reported_in_one_statement_by_later_starts(
    place: Place, db: pw.Database, log_of: Server | None, drifted: type[pw.Model]
) -> None:
    runner = MigrationRunner(db, [drifted])
    first = runner.up()
    assert [(d.kind, d.name) for d in first.drift] == [("column_type", "c1")]
    with statements(db, log_of) as seen:
        again = runner.up()
    assert len(seen) == 1, seen
    assert again.drift == first.drift
    assert again.to_json()["drift"] == first.to_json()["drift"]
    with statements(db, log_of) as seen:
        found = runner.check()
    assert len(seen) == 1, seen
    assert (found.in_sync, found.drift) == (False, first.drift)
    assert tuple(runner.verify_schema().drift) == runner.plan().drift == first.drift


def test_drift_that_was_mended_is_not_reported(place: Place, db: pw.Database, drifted: type[pw.Model]) -> None:
    runner = MigrationRunner(db, [drifted])
    assert runner.up().drift
    if place.is_sqlite:
        db.execute_sql("DROP TABLE made1")
        assert not runner.up().drift
    else:
        db.execute_sql("ALTER TABLE made1 ALTER c1 TYPE text")
        assert not runner.up().drift
    assert runner.check().in_sync


def test_run_that_adds_something_stores_the_drift_that_is_left(
    place: Place, db: pw.Database, log_of: Server | None, drifted: type[pw.Model]
) -> None:
    db.execute_sql("DROP INDEX made1_c0")
    runner = MigrationRunner(db, [drifted])
    first = runner.up()
    assert (len(first.applied), len(first.drift)) == (1, 1)
    with statements(db, log_of) as seen:
        assert runner.up().drift == first.drift
    assert len(seen) == 1, seen


def test_what_rows_keep_from_being_finished_is_tried_at_each_start(postgres: Place) -> None:
    db = postgres.connect()
    model = made(1)
    model._meta.constraints = [pw.Check("c1 <> ''", name="filled")]
    with db.connection_context(), db.bind_ctx([model]):
        MigrationRunner(db, [made(1)]).up()
        db.execute_sql("INSERT INTO made1 (c1) VALUES ('')")
        db.execute_sql("ALTER TABLE made1 ADD CONSTRAINT filled CHECK (c1 <> '') NOT VALID")
        runner = MigrationRunner(db, [model])
        for _ in range(2):
            assert [d.name for d in runner.up().drift] == ["filled"]
        db.execute_sql("DELETE FROM made1")
        assert [step.kind for step in runner.up().applied] == ["validate_constraint"]


def test_differences_that_are_too_many_to_store_are_left_out() -> None:
    difference = ("column_type", "table", "column", "text", None)
    stamps = Stamps().adding("old", "m", [difference]).adding("new", "m", [difference])
    assert Stamps.from_text(stamps.to_text()) == stamps
    assert stamps.differences("old", "m") == (difference,)
    full = stamps.adding("many", "m", [difference] * 2_000)
    assert len(full.to_text()) <= BYTES
    assert full.differences("many", "m") is None


@given(st.lists(st.tuples(st.sampled_from("abcdefghijkl"), st.booleans())))
def test_a_declared_schema_has_one_stamp(looks: list[tuple[str, bool]]) -> None:
    stamps = Stamps()
    for declared, has_drift in looks:
        differences = (("table", "t", "t", None, "view"),) if has_drift else ()
        stamps = stamps.adding(declared, "m", differences)
        assert stamps.differences(declared, "m") == differences
        assert stamps.differences(declared, "other") is None
    assert len(stamps.verified) <= KEPT
    assert len(stamps.drifted) <= KEPT


def test_models_are_rendered_once_for_each_engine(
    postgres: Place, sqlite: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run over many databases asks in turn for files and servers, in several threads."""
    rendered: list[tuple[str, str]] = []

    def counted(db: pw.Database, model: type[pw.Model]) -> list[str]:
        rendered.append((type(db).__name__, model.__name__))
        return create_table(db, model)

    create_table = stamp.create_table
    monkeypatch.setattr(stamp, "create_table", counted)
    models = [made(1), made(2)]
    engines = [sqlite.connect(), postgres.connect()]
    first = [fingerprint(db, models) for db in engines]
    wanted = [(type(db).__name__, model.__name__) for db in engines for model in models]
    with ThreadPoolExecutor(4) as threads:
        again = list(threads.map(lambda number: fingerprint(engines[number % 2], models), range(200)))
    assert again == first * 100
    assert rendered == wanted
    models[0].c1.null = False
    assert fingerprint(engines[0], models) != first[0]
    for db in engines:
        db.close_all()
