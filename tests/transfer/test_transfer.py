"""Rows of SQLite into PostgreSQL and what both hold then, compared by the proof and by the tests themselves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import peewee
import psycopg2
import pytest
from peewee import sqlite3

from tests import gorm
from tests.conftest import Place, Server
from tests.migrate.models import model, run
from tests.transfer.rows import ROWS, contents, go_database, transfers
from whatspire_db import (
    ConfigError,
    ConnectionFailed,
    LockTimeout,
    MigrationRunner,
    NotProved,
    RightMissing,
    Session,
    Settings,
    TransferRefused,
    WhatspireDBError,
    copy_in,
)
from whatspire_db.fields import InstantField
from whatspire_db.models.data_migrations import DataMigration
from whatspire_db.transfer import Watcher, check, transfer
from whatspire_db.transfer.tables import LISTS_SHADOWS


@pytest.fixture
def service(sqlite: Place) -> Place:
    """The service's database, with rows of Go's and of this package's."""
    go_database(sqlite)
    db = sqlite.connect()
    with db.connection_context():
        for number in range(20):
            Session.create(name=f"tab\t {number} \\ line\n é 🦉", status="pending")
    return sqlite


def test_the_services_rows_are_the_same_afterwards(service: Place, postgres: Place) -> None:
    before = contents(service, ROWS)
    report = transfer(service.dsn, postgres.dsn)
    assert contents(postgres, ROWS) == before == contents(service, ROWS)
    assert report.rows == sum(map(len, before.values())) > 0
    assert report.shortened > 0
    with pytest.raises(TransferRefused, match="the target has rows"):
        transfer(service.dsn, postgres.dsn)
    with postgres.connect().connection_context():
        assert not MigrationRunner(postgres.connect()).plan()


def test_a_signal_before_a_read_is_an_interrupt(
    service: Place, postgres: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python raises it as the read begins, so the driver sees it first, and puts it into words of its own."""

    def read(self: Any, size: int = -1) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(copy_in._Stream, "read", read)
    with pytest.raises(KeyboardInterrupt):
        transfer(service.dsn, postgres.dsn)


def test_a_trigger_that_changes_rows_is_found_by_the_proof(service: Place, postgres: Place) -> None:
    db = postgres.connect()
    with db.connection_context():
        MigrationRunner(db).up()
        for sql in (
            "CREATE FUNCTION louder() RETURNS trigger LANGUAGE plpgsql AS "
            "$$BEGIN IF NEW.name LIKE 'tab%%' THEN NEW.name := upper(NEW.name); END IF; RETURN NEW; END$$",
            "CREATE TRIGGER louder BEFORE INSERT ON sessions FOR EACH ROW EXECUTE FUNCTION louder()",
        ):
            db.execute_sql(sql)
    with pytest.raises(NotProved, match=r"sessions: 25 rows in SQLite and 25 in PostgreSQL, 20 keys differ") as failed:
        transfer(service.dsn, postgres.dsn)
    assert failed.value.exit_code == 3
    assert all(not rows for rows in contents(postgres, ROWS).values())
    ((state, error),) = transfers(postgres)
    assert (state, error) == ("failed", failed.value.fact)
    with db.connection_context():
        db.execute_sql("DROP TRIGGER louder ON sessions")
    transfer(service.dsn, postgres.dsn)
    assert [state for state, _ in transfers(postgres)] == ["failed", "proved"]


def test_a_lost_row_and_a_row_too_many_are_found(service: Place, postgres: Place) -> None:
    db = postgres.connect()
    with db.connection_context():
        MigrationRunner(db).up()
        db.execute_sql(
            "CREATE RULE lose AS ON INSERT TO sessions DO INSTEAD NOTHING"  # COPY does not ask rules
        )
        for sql in (
            "CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS "
            "$$BEGIN IF NEW.id LIKE '%%0001' THEN RETURN NULL; END IF; RETURN NEW; END$$",
            "CREATE TRIGGER lose BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION lose()",
        ):
            db.execute_sql(sql)
    with pytest.raises(NotProved, match=r"events: 5 rows in SQLite and 4 in PostgreSQL, 1 keys differ: 0000"):
        transfer(service.dsn, postgres.dsn)


@pytest.mark.parametrize(
    ("field", "value", "type_", "changed"),
    [
        (peewee.JSONField(null=True), "[9007199254740993]", "jsonb", "'[9007199254740992]'"),
        (peewee.DecimalField(40, 20, null=True), f"{'1' * 20}.{'2' * 20}", "numeric(40,20)", "NEW.value + 1e-20"),
        (peewee.DoubleField(null=True), "0.3", "double precision", "0.1::float8 + 0.2::float8"),
    ],
)
def test_a_change_of_the_last_digit_is_found(
    sqlite: Place, postgres: Place, field: peewee.Field, value: str, type_: str, changed: str
) -> None:
    thing = model("Thing", "things", {"value": field})
    run(sqlite.connect(), "CREATE TABLE things (id integer NOT NULL PRIMARY KEY, value)")
    affinity = "CAST(0.3 AS REAL)" if type_ == "double precision" else f"'{value}'"
    run(sqlite.connect(), f"INSERT INTO things (value) VALUES ({affinity})")
    run(
        postgres.connect(),
        f"CREATE TABLE things (id serial PRIMARY KEY, value {type_})",
        f"CREATE FUNCTION other() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$BEGIN NEW.value := {changed}; RETURN NEW; END$$",
        "CREATE TRIGGER other BEFORE INSERT ON things FOR EACH ROW EXECUTE FUNCTION other()",
    )
    with pytest.raises(NotProved, match="1 keys differ: 1"):
        transfer(sqlite.dsn, postgres.dsn, [thing])
    run(postgres.connect(), "DROP TRIGGER other ON things")
    transfer(sqlite.dsn, postgres.dsn, [thing])


def test_a_trigger_that_waits_for_the_commit_runs_before_the_proof(service: Place, postgres: Place) -> None:
    with postgres.connect().connection_context():
        MigrationRunner(postgres.connect()).up()
    run(
        postgres.connect(),
        "CREATE FUNCTION later() RETURNS trigger LANGUAGE plpgsql AS "
        "$$BEGIN UPDATE public.sessions SET name = 'late' WHERE id = NEW.id; RETURN NULL; END$$",
        "CREATE CONSTRAINT TRIGGER later AFTER INSERT ON sessions DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION later()",
    )
    with pytest.raises(NotProved, match="sessions: 25 rows in SQLite and 25 in PostgreSQL, 25 keys differ"):
        transfer(service.dsn, postgres.dsn)
    assert all(not rows for rows in contents(postgres, ROWS).values())


@pytest.mark.soak
def test_the_table_of_transfers_runs_no_code_after_the_proof(service: Place, postgres: Place, tmp_path: Path) -> None:
    transfer(service.dsn, postgres.dsn)
    back = Place("sqlite", str(tmp_path / "back.db"), tmp_path)
    transfer(postgres.dsn, back.dsn)
    for place in (postgres, back):
        tables = [model._meta.table_name for model in ROWS]
        run(place.connect(), "BEGIN", *(f"DELETE FROM {table}" for table in reversed(tables)), "COMMIT")
    with closing(sqlite3.connect(back.dsn)) as connection:
        connection.execute("CREATE TRIGGER t AFTER UPDATE ON whatspire_db_transfers BEGIN DELETE FROM sessions; END")
    run(postgres.connect(), "CREATE RULE r AS ON UPDATE TO whatspire_db_transfers DO ALSO DELETE FROM sessions")
    for source, target in ((service, postgres), (postgres, back)):
        with pytest.raises(TransferRefused, match="whatspire_db_transfers has triggers or rules"):
            transfer(source.dsn, target.dsn)
    run(
        postgres.connect(),
        "DROP RULE r ON whatspire_db_transfers",
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN DELETE FROM public.sessions; RETURN NEW; END$$",
        "CREATE TRIGGER t AFTER UPDATE ON whatspire_db_transfers FOR EACH ROW EXECUTE FUNCTION f()",
    )
    with pytest.raises(TransferRefused, match="whatspire_db_transfers has triggers or rules"):
        transfer(service.dsn, postgres.dsn)


def test_a_role_that_rounds_doubles_changes_nothing(sqlite: Place, postgres: Place, tmp_path: Path) -> None:
    thing = model("Thing", "things", {"value": peewee.DoubleField()})
    run(sqlite.connect(), "CREATE TABLE things (id integer NOT NULL PRIMARY KEY, value real NOT NULL)")
    run(sqlite.connect(), "INSERT INTO things (value) VALUES (0.1 + 0.2)")
    run(postgres.connect(), f'ALTER DATABASE "{postgres.connect().database}" SET extra_float_digits = 0')
    assert transfer(sqlite.dsn, postgres.dsn, [thing]).rows == 1
    back = str(tmp_path / "back.db")
    transfer(postgres.dsn, back, [thing])
    with closing(sqlite3.connect(back)) as connection:
        assert connection.execute("SELECT value FROM things").fetchall() == [(0.1 + 0.2,)]


def test_json_comes_back_with_every_digit_and_its_null(postgres: Place, tmp_path: Path) -> None:
    thing = model("Thing", "things", {"value": peewee.JSONField(null=True)})
    run(postgres.connect(), "CREATE TABLE things (id serial PRIMARY KEY, value jsonb)")
    texts = ["[0.1234567890123456789012345]", "[1e400]", "null", None]
    with closing(psycopg2.connect(postgres.dsn)) as connection, connection, connection.cursor() as cursor:
        cursor.executemany("INSERT INTO things (value) VALUES (%s)", [(text,) for text in texts])
    back = str(tmp_path / "back.db")
    transfer(postgres.dsn, back, [thing])
    with closing(sqlite3.connect(back)) as connection:
        found = [text for (text,) in connection.execute("SELECT value FROM things ORDER BY id")]
    assert found == [texts[0], f"[1{'0' * 400}]", "null", None]


def test_times_that_are_cut_are_counted_however_they_are_written(sqlite: Place, postgres: Place) -> None:
    thing = model("Thing", "things", {"at": InstantField()})
    times = ["123456789+00:00", "123456789+02:00", "123456789", "123456000+02:00", "5"]
    run(sqlite.connect(), "CREATE TABLE things (id integer NOT NULL PRIMARY KEY, at datetime NOT NULL)")
    run(sqlite.connect(), *(f"INSERT INTO things (at) VALUES ('2026-11-22 09:05:03.{time}')" for time in times))
    assert transfer(sqlite.dsn, postgres.dsn, [thing]).shortened == 3


def test_rows_that_no_model_brings_over_stop_it(service: Place, postgres: Place) -> None:
    """A model of another schema, or of a temporary table, speaks of another table than that of the file."""
    run(
        service.connect(),
        "CREATE TABLE elsewhere (id integer NOT NULL PRIMARY KEY)",
        "CREATE TABLE passing (id integer NOT NULL PRIMARY KEY)",
        "CREATE VIRTUAL TABLE docs USING fts5 (text)",
        "CREATE TABLE docs_archive (text)",
    )
    others = [model("Elsewhere", "elsewhere", {}, schema="audit"), model("Passing", "passing", {}, temporary=True)]
    with pytest.raises(TransferRefused, match="no model has docs, docs_archive, elsewhere, passing, so"):
        transfer(service.dsn, postgres.dsn, [*ROWS, *others])


def test_tables_and_columns_without_a_model_stop_it(service: Place, postgres: Place) -> None:
    db = service.connect()
    with db.connection_context():
        db.execute_sql("CREATE TABLE mine (a)")
        db.execute_sql("CREATE TABLE whatspire_db_own (a)")
        db.execute_sql("ALTER TABLE events ADD COLUMN more text")
    with pytest.raises(TransferRefused, match=r"no model has events.more, mine"):
        transfer(service.dsn, postgres.dsn)
    with pytest.raises(ConfigError, match="no such table"):
        transfer(service.dsn, postgres.dsn, leave=["mine", "sessions"])
    assert transfer(service.dsn, postgres.dsn, leave=["MINE", "events.more"]).rows > 0


def test_what_has_rows_is_refused_whoever_made_them(service: Place, postgres: Place, tmp_path: Path) -> None:
    db = postgres.connect()
    with db.connection_context():
        gorm.create(postgres, db)
    with pytest.raises(TransferRefused, match="has rows already: api_keys, audit_logs, events"):
        transfer(service.dsn, postgres.dsn)
    with pytest.raises(TransferRefused, match="has rows already: api_keys, audit_logs, events"):
        transfer(postgres.dsn, service.dsn)
    back = Place("sqlite", str(tmp_path / "back.db"), tmp_path)
    assert transfer(postgres.dsn, back.dsn).rows == 5 * len(ROWS)
    assert contents(back, ROWS) == contents(postgres, ROWS)


def test_the_go_services_empty_database_is_filled(service: Place, postgres: Place) -> None:
    db = postgres.connect()
    with db.connection_context():
        gorm.create(postgres, db, with_rows=False)
    transfer(service.dsn, postgres.dsn)
    assert contents(postgres, ROWS) == contents(service, ROWS)


def test_a_second_transfer_waits_and_is_refused(service: Place, postgres: Place) -> None:
    first = Held()
    with ThreadPoolExecutor() as pool:
        running = pool.submit(transfer, service.dsn, postgres.dsn, watcher=first)
        assert first.is_copying.wait(60)
        with pytest.raises(LockTimeout, match="another run that changes many rows held the lock"):
            transfer(service.dsn, postgres.dsn, lock_timeout=0.1)
        second = pool.submit(transfer, service.dsn, postgres.dsn)
        first.may_go_on.set()
        assert running.result().rows > 0
        with pytest.raises(TransferRefused, match="has rows already"):
            second.result()


class Held(Watcher):
    """Stops a transfer while it copies."""

    def __init__(self) -> None:
        super().__init__()
        self.is_copying, self.may_go_on = threading.Event(), threading.Event()

    def progress(self, phase: str, table: str, done: int, total: int | None) -> None:
        if phase == "copy":
            self.is_copying.set()
            assert self.may_go_on.wait(60)


def test_rows_that_come_meanwhile_are_not_in_the_snapshot(service: Place, postgres: Place) -> None:
    held, before = Held(), contents(service, ROWS)
    with ThreadPoolExecutor() as pool:
        running = pool.submit(transfer, service.dsn, postgres.dsn, watcher=held)
        assert held.is_copying.wait(60)
        db = service.connect()
        with db.connection_context(), db.bind_ctx([Session]):
            Session.delete().execute()
            Session.create(name="late", status="pending")
        held.may_go_on.set()
        running.result()
    assert contents(postgres, ROWS) == before


def test_the_source_stays_as_it_is(service: Place, postgres: Place) -> None:
    with closing(sqlite3.connect(service.dsn)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before, names = Path(service.dsn).read_bytes(), set(os.listdir(service.folder))
    transfer(service.dsn, postgres.dsn)
    assert Path(service.dsn).read_bytes() == before
    assert set(os.listdir(service.folder)) - names <= {"whatspire.db-wal", "whatspire.db-shm"}


def test_a_number_that_sqlite_does_not_hold_is_found_on_the_way_back(sqlite: Place, postgres: Place) -> None:
    price = model("Price", "prices", {"amount": peewee.DecimalField(max_digits=25, decimal_places=5)})
    db = postgres.connect()
    with db.connection_context():
        MigrationRunner(db, [price]).up()
        db.execute_sql("INSERT INTO prices (amount) VALUES (12345678901234567.12345)")
    with pytest.raises(NotProved, match="prices: 1 rows in SQLite and 1 in PostgreSQL, 1 keys differ") as failed:
        transfer(postgres.dsn, sqlite.dsn, [price])
    assert "decimals with more than 15 digits" in failed.value.hint


def test_times_that_python_has_not_come_back_as_they_are(sqlite: Place, postgres: Place) -> None:
    fields = {"day": peewee.DateField(), "moment": peewee.DateTimeField(), "clock": peewee.TimeField()}
    odd, texts = model("Odd", "odd", fields), ("infinity", "0044-03-15 00:00:00 BC", "24:00:00")
    db = postgres.connect()
    with db.connection_context():
        MigrationRunner(db, [odd]).up()
        db.execute_sql("INSERT INTO odd (day, moment, clock) VALUES (%s, %s, %s)", texts)
    transfer(postgres.dsn, sqlite.dsn, [odd])
    db = sqlite.connect()
    with db.connection_context():
        assert db.execute_sql("SELECT day, moment, clock FROM odd").fetchall() == [texts]


@pytest.mark.parametrize("at", ["infinity", "0044-03-15 BC", "20000-01-01", "0001-01-01 00:00+05"])
def test_an_instant_that_no_model_reads_is_refused_with_its_key(sqlite: Place, postgres: Place, at: str) -> None:
    log = model("Log", "log", {"at": InstantField(null=True)})
    db = postgres.connect()
    with db.connection_context():
        MigrationRunner(db, [log]).up()
        db.execute_sql("INSERT INTO log (at) VALUES (NULL), ('2026-11-28'), (%s)", (at,))
    with pytest.raises(TransferRefused, match=r"SQLite cannot hold what is in log.at, key 3: a time that is infinite"):
        transfer(postgres.dsn, sqlite.dsn, [log])
    assert not any(contents(sqlite, [log]).values())


@pytest.mark.parametrize("has_rowid", [True, False])
def test_a_reference_to_nothing_is_refused_with_its_key_on_the_way_back(
    sqlite: Place, postgres: Place, has_rowid: bool
) -> None:
    fields = {"name": peewee.CharField(primary_key=True), "above": peewee.ForeignKeyField("self", null=True)}
    node = model("Node", "node", fields)
    with closing(sqlite3.connect(sqlite.dsn)) as connection:
        columns = "name varchar(255) NOT NULL PRIMARY KEY, above_id varchar(255) REFERENCES node (name)"
        connection.execute(f"CREATE TABLE node ({columns}) {'' if has_rowid else 'WITHOUT ROWID'}")
    db = postgres.connect()
    with db.connection_context():
        MigrationRunner(db, [node]).up()
        (name,) = db.execute_sql("SELECT conname FROM pg_constraint WHERE contype = 'f'").fetchone()
        db.execute_sql(f'ALTER TABLE node DROP CONSTRAINT "{name}"')
        db.execute_sql("INSERT INTO node VALUES ('a', NULL), ('b', 'a'), ('c', 'gone'), ('d', 'gone')")
        key = "FOREIGN KEY (above_id) REFERENCES node (name) NOT VALID"
        db.execute_sql(f'ALTER TABLE node ADD CONSTRAINT "{name}" {key}')
    with pytest.raises(TransferRefused) as refused:
        transfer(postgres.dsn, sqlite.dsn, [node])
    shown = "c" if has_rowid else "not known"
    fact = f"node.above_id, key {shown}: a reference to a row that is not there; and 1 more"
    assert refused.value.fact == f"SQLite cannot hold what is in {fact}"
    assert not any(contents(sqlite, [node]).values())


@pytest.mark.soak
def test_an_error_names_the_option_that_gave_the_database(sqlite: Place, postgres: Place) -> None:
    (sqlite.folder / "no.db").write_text("no database at all" * 100)

    def hint(*arguments: str) -> str:
        done = sqlite.run("transfer", *arguments, module="whatspire_db", env={"WHATSAPP_DATABASE_DRIVER": ""})
        return done.stderr.splitlines()[1]

    assert hint("--from", postgres.dsn, "--to", "nowhere/x.db").endswith("correct --to")
    assert hint("--from", postgres.dsn, "--to", "no.db").startswith("hint:  point --to at the database")
    assert hint("--from", "no.db", "--to", postgres.dsn).startswith("hint:  point --from at the database")
    assert hint("--dsn", "no.db", "--to", postgres.dsn).startswith("hint:  point --dsn at the database")


def test_another_roles_trigger_is_not_run_by_a_superuser(service: Place, postgres: Place, server: Server) -> None:
    db = postgres.connect()
    role = f"r_{uuid.uuid4().hex[:12]}"
    with db.connection_context():
        MigrationRunner(db).up()
        for sql in (
            f"CREATE ROLE {role}",
            f"GRANT TRIGGER ON sessions TO {role}",
            f"GRANT CREATE ON SCHEMA public TO {role}",
            f"SET ROLE {role}",
            "CREATE FUNCTION planted() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RETURN NEW; END$$",
            "CREATE TRIGGER planted BEFORE INSERT ON sessions FOR EACH ROW EXECUTE FUNCTION planted()",
            "RESET ROLE",
        ):
            db.execute_sql(sql)
        try:
            with pytest.raises(WhatspireDBError, match=role):
                transfer(service.dsn, postgres.dsn)
            assert all(not rows for rows in contents(postgres, ROWS).values())
            assert transfer(service.dsn, postgres.dsn, trust_source=True).rows > 0
        finally:
            for sql in (f"DROP OWNED BY {role} CASCADE", f"DROP ROLE {role}"):
                db.execute_sql(sql)


def test_rows_that_a_policy_hides_are_not_passed_over(
    service: Place, postgres: Place, server: Server, tmp_path: Path
) -> None:
    transfer(service.dsn, postgres.dsn)
    db = postgres.connect()
    role = f"r_{uuid.uuid4().hex[:12]}"
    with db.connection_context():
        for sql in (
            f"CREATE ROLE {role} LOGIN",
            f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}",
            "ALTER TABLE sessions ENABLE ROW LEVEL SECURITY",
            "CREATE POLICY few ON sessions USING (name LIKE 'tab%%')",
        ):
            db.execute_sql(sql)
        try:
            with pytest.raises(WhatspireDBError, match="row-level security"):
                transfer(f"{postgres.dsn} user={role}", str(tmp_path / "copy.db"))
        finally:
            for sql in (f"DROP OWNED BY {role} CASCADE", f"DROP ROLE {role}"):
                db.execute_sql(sql)


def test_a_role_without_rights_at_the_target_is_not_sent_to_plan(service: Place, postgres: Place) -> None:
    db = postgres.connect()
    role = f"r_{uuid.uuid4().hex[:12]}"
    with db.connection_context():
        db.execute_sql(f"CREATE ROLE {role} LOGIN")
        try:
            with pytest.raises(RightMissing, match="permission denied for schema public") as refused:
                transfer(service.dsn, f"{postgres.dsn} user={role}")
        finally:
            db.execute_sql(f"DROP ROLE {role}")
    assert refused.value.hint == "use a role that owns the tables and may create others"


def test_a_view_in_the_place_of_a_table_is_refused(service: Place, postgres: Place) -> None:
    db = postgres.connect()
    with db.connection_context():
        db.execute_sql("CREATE VIEW sessions AS SELECT 1 / 0 AS id")
    with pytest.raises(WhatspireDBError, match="sessions"):
        transfer(service.dsn, postgres.dsn)


@pytest.mark.parametrize("dsn", ["other.db", "whatspire.db", ":memory:"])
def test_ends_that_do_not_fit(service: Place, postgres: Place, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(service.folder)
    with pytest.raises(ConfigError):
        transfer(service.dsn, dsn)
    with pytest.raises(ConfigError):
        transfer(":memory:", postgres.dsn)
    with pytest.raises(ConnectionFailed, match="does not exist"):
        transfer("nowhere.db", postgres.dsn)
    with pytest.raises(ConfigError, match="leave out --check"):
        transfer(postgres.dsn, "new.db", on={"nul": "replace"})


KILLED = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
for sql in ("PRAGMA journal_mode = DELETE", "PRAGMA cache_size = 1", "BEGIN"):
    connection.execute(sql).fetchall()
connection.execute("UPDATE sessions SET name = hex(zeroblob(5000))")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.version_info < (3, 11), reason="keeps no extended result code")
def test_a_journal_that_a_killed_program_left(service: Place, postgres: Place, tmp_path: Path) -> None:
    before = contents(service, ROWS)
    subprocess.run([sys.executable, "-c", KILLED, service.dsn], check=False, timeout=60)
    with pytest.raises(ConnectionFailed, match="left its journal beside the file"):
        transfer(service.dsn, postgres.dsn)
    with service.connect().connection_context():  # as any command that may write
        pass
    transfer(service.dsn, postgres.dsn)
    assert contents(postgres, ROWS) == before
    empty = tmp_path / "empty.db"
    empty.touch()
    with pytest.raises(ConnectionFailed, match="is empty"):
        transfer(str(empty), postgres.dsn)


# The command


def test_a_view_of_sqlite_in_the_place_of_a_table_is_refused(sqlite: Place, postgres: Place) -> None:
    """On the way back the rows of the table would be left behind, and on the way there the target would have none."""
    word = model("Word", "word", {"text": peewee.TextField(null=True)})
    run(sqlite.connect(), "CREATE TABLE other (id integer PRIMARY KEY)", "CREATE VIEW Word AS SELECT 1 AS id")
    for look in (check, transfer):
        with pytest.raises(TransferRefused, match="Word of SQLite is a view"):
            look(sqlite.dsn, postgres.dsn, [word], leave=["other"])
    db = postgres.connect()
    with db.connection_context(), db.bind_ctx([word]):
        MigrationRunner(db, [word]).up()
        word.create(text="a")
    with pytest.raises(TransferRefused, match="Word of SQLite is a view"):
        transfer(postgres.dsn, sqlite.dsn, [word])


def test_a_table_that_is_named_like_part_of_a_virtual_one_is_not_passed_over(sqlite: Place, postgres: Place) -> None:
    word = model("Word", "word", {"text": peewee.TextField(null=True)})
    run(
        sqlite.connect(),
        "CREATE TABLE word (id integer NOT NULL PRIMARY KEY, text text)",
        "CREATE VIRTUAL TABLE found USING fts5(text)",
        "CREATE TABLE found_node (id integer PRIMARY KEY)",
    )
    # An older SQLite does not say which tables are part of another, so the name has to.
    strangers = ["found", "found_node"] if sqlite3.sqlite_version_info >= LISTS_SHADOWS else ["found"]
    with pytest.raises(TransferRefused, match=f"no model has {', '.join(strangers)}, so"):
        transfer(sqlite.dsn, postgres.dsn, [word])
    assert not transfer(sqlite.dsn, postgres.dsn, [word], leave=strangers).rows


def test_the_command_moves_and_says_how_to_switch(service: Place, postgres: Place) -> None:
    to = postgres.dsn + " password='very secret'"
    done = service.run("transfer", "--to", to, "--json", module="whatspire_db")
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    assert (answer["driver"], answer["database"]) == ("sqlite", service.dsn)
    assert answer["proved"]
    assert answer["rows"] == sum(table["rows"] for table in answer["tables"]) > 0
    assert "very secret" not in done.stdout
    driver, line = answer["switch"]
    (service.folder / ".env").write_text(f"{driver}\n{line.replace('PASSWORD', 'very secret')}\n")
    settings = Settings.from_environment({}, service.folder / ".env")
    assert settings.target == Settings(driver="postgres", dsn=to).target
    again = service.run("transfer", "--to", to, module="whatspire_db")
    assert again.returncode == 4
    assert len(again.stderr.splitlines()) == 2


@pytest.mark.soak
def test_an_error_names_both_databases(service: Place, postgres: Place) -> None:
    """The target that is read-only, or that differs, was called by the name of the source, or by none."""
    name = postgres.connect().database
    refused = service.run("transfer", "--to", f"{postgres.dsn} default_transaction_read_only=on", module="whatspire_db")
    run(
        postgres.connect(),
        "CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.name = 'x'; RETURN NEW; END $$",
    )
    db = postgres.connect()
    with db.connection_context():
        MigrationRunner(db).up()
    run(postgres.connect(), "CREATE TRIGGER t BEFORE INSERT ON sessions FOR EACH ROW EXECUTE FUNCTION spoil()")
    differs = service.run("transfer", "--to", postgres.dsn, module="whatspire_db")
    assert (refused.returncode, differs.returncode) == (1, 3)
    for done in (refused, differs):
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert f"(database: sqlite {service.dsn}, to: postgres " in line
        assert line.endswith(f"dbname={name})")


@pytest.mark.soak
def test_the_command_checks(service: Place, postgres: Place) -> None:
    db = service.connect()
    with db.connection_context():
        db.execute_sql("UPDATE sessions SET name = 'secret' || char(0) WHERE rowid = 1")
    for arguments, code in ([], 3), (["--on", "nul=replace"], 0):
        done = service.run("transfer", "--check", "--to", postgres.dsn, *arguments, module="whatspire_db")
        assert done.returncode == code, done
        assert "sessions.name, key 00000000-0000-0000-0000-000000000000: a zero byte in a text" in done.stdout
        assert "secret" not in done.stdout + done.stderr
    done = service.run("transfer", "--to", postgres.dsn, module="whatspire_db")
    assert done.returncode == 4
    assert "secret" not in done.stderr


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["--on", "nul"], 2, "KIND=CHOICE"),
        (["--on", "nul=set-aside"], 2, "--side-file"),
        (["--from", "nowhere.db"], 1, "does not exist"),
        (["--from", "."], 2, "names a folder"),
        (["--leave", "nothing"], 2, "no such table"),
        (["--to", "host=/nowhere dbname=x"], 1, "cannot connect"),
        (["--to", "."], 2, "names a folder"),
        (["--to", "other.db"], 2, "one engine"),
        (["--to", "mysql://x/y"], 2, "--to"),
    ],
)
def test_bad_input_ends_in_two_lines(
    service: Place, postgres: Place, arguments: list[str], code: int, word: str
) -> None:
    environment = {} if "--from" not in arguments else {"WHATSAPP_DATABASE_DSN": ""}
    done = service.run("transfer", "--to", postgres.dsn, *arguments, module="whatspire_db", env=environment)
    assert done.returncode == code, done
    assert word in done.stderr
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: ")
    assert hint.startswith("hint:  ")


def test_finished_data_migrations_stay_finished(service: Place, postgres: Place, tmp_path: Path) -> None:
    declared = DataMigration("louder", Session, lambda: Session.update(name="changed").execute())
    begun = DataMigration("begun", Session, lambda: 1 / 0)
    db = service.connect()
    with db.connection_context(), db.bind_ctx([Session]):
        MigrationRunner(db, data=[declared]).up()
        with pytest.raises(WhatspireDBError):
            MigrationRunner(db, data=[declared, begun]).up()
    transfer(service.dsn, postgres.dsn)
    back = Place("sqlite", str(tmp_path / "back.db"), tmp_path)
    transfer(postgres.dsn, back.dsn)
    for place in (postgres, back):
        target = place.connect()
        with target.connection_context():
            states = MigrationRunner(target, data=[declared, begun]).data_states()
            assert [(state.name, state.state) for state in states] == [("louder", "finished"), ("begun", "pending")]
            assert states[0].rows == MigrationRunner(db, data=[declared]).data_states()[0].rows
            assert states[0].position is None
    assert contents(back, ROWS) == contents(service, ROWS)
