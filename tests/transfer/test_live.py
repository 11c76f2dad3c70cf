"""A live transfer: others write to the source until the fence, and no row that was acknowledged is missing after it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import peewee
import pytest
from peewee import sqlite3

from tests.conftest import Place, Server
from tests.migrate.models import model, run
from tests.servers import eventually
from tests.transfer.rows import ROWS, contents, go_database, transfers
from tests.transfer.test_check import FIELDS, made
from whatspire_db import ConfigError, DatabaseMoved, LockTimeout, NotProved, Session, TransferRefused, WhatspireDBError
from whatspire_db.fields import InstantField
from whatspire_db.transfer import Watcher, change_log, check, fence, transfer

ROOT = Path(__file__).parent.parent.parent
# More than the driver and the sockets keep.
LARGE_ROWS = (
    "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 400) "
    "INSERT INTO word (text) SELECT hex(zeroblob(50000)) FROM n"
)
WRITERS = ("sqlite3", "peewee", "sql", "models")


def notes_of(file: Path) -> list[tuple[str, str | None]]:
    """Return what a writer noted: each key that was acknowledged, with its name, None once it was deleted."""
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [tuple(json.loads(line)) for line in lines if line.endswith("\n")]


def names_in(place: Place) -> dict[str, str]:
    db = place.connect()
    with db.connection_context(), db.bind_ctx([Session]):
        return dict(Session.select(Session.id, Session.name).tuples())


def test_no_acknowledged_row_is_missing(sqlite: Place, postgres: Place, tmp_path: Path) -> None:
    go_database(sqlite)
    files = {kind: tmp_path / f"{kind}.notes" for kind in WRITERS}
    with ExitStack() as stack:
        writers = {}
        for kind, file in files.items():
            command = [sys.executable, "-m", "tests.transfer.writer", sqlite.dsn, kind, str(file)]
            options = {"cwd": ROOT, "env": sqlite.variables(), "stdout": subprocess.PIPE, "text": True}
            writers[kind] = stack.enter_context(subprocess.Popen(command, **options))
            stack.callback(writers[kind].kill)
        for file in files.values():
            eventually(lambda file=file: len(notes_of(file)) > 20, "a writer writes")
        report = transfer(sqlite.dsn, postgres.dsn, live=True)
        for kind, writer in writers.items():
            told, _ = writer.communicate(timeout=60)
            assert (kind, writer.returncode) == (kind, 0)
            assert "this database was moved to" in told
    expected: dict[str, str | None] = {}
    for file in files.values():
        expected.update(notes_of(file))
    found = names_in(postgres)
    for key, name in expected.items():
        assert found.get(key) == name, key
    assert report.locked is not None
    assert report.locked.seconds > 0
    assert transfers(postgres) == [("proved", None)]
    assert contents(postgres, ROWS) == contents(sqlite, ROWS)
    assert not [name for name in os.listdir(sqlite.folder) if name.startswith(".whatspire")]
    with pytest.raises(DatabaseMoved):
        transfer(sqlite.dsn, postgres.dsn, live=True)
    with pytest.raises(DatabaseMoved):
        transfer(sqlite.dsn, postgres.dsn)


DROP_TRIGGERS = "drop the triggers of sessions"


def _triggers(db: peewee.Database) -> list[str]:
    found = db.execute_sql("SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'sessions'").fetchall()
    return [f'DROP TRIGGER "{name}"' for (name,) in found]


class Changing(Watcher):
    """Changes the source while it is copied."""

    def __init__(self, place: Place, *statements: str) -> None:
        super().__init__()
        self.place, self.statements = place, statements

    def progress(self, phase: str, table: str, done: int, total: int | None) -> None:
        if phase == "index" and self.statements:
            db = self.place.connect()
            with db.connection_context():
                for statement in self.statements:
                    for sql in _triggers(db) if statement == DROP_TRIGGERS else [statement]:
                        db.execute_sql(sql)
            self.statements = ()


def times_below_the_microsecond(place: Place) -> int:
    db, found = place.connect(), 0
    with db.connection_context():
        for field in (field for each in ROWS for field in each._meta.sorted_fields if isinstance(field, InstantField)):
            texts = db.execute_sql(f"SELECT {field.column_name} FROM {field.model._meta.table_name}").fetchall()
            found += sum(
                len(text.rstrip("Z").partition(".")[2].partition("+")[0].rstrip("0")) > 6 for (text,) in texts if text
            )
    return found


def test_rows_that_swap_and_replace_unique_values_meanwhile(sqlite: Place, postgres: Place) -> None:
    go_database(sqlite)
    changing = Changing(
        sqlite,
        "UPDATE api_keys SET key_hash = 'x' WHERE key_hash = 'key_hash-0'",
        "UPDATE api_keys SET key_hash = 'key_hash-0' WHERE key_hash = 'key_hash-1'",
        "UPDATE api_keys SET key_hash = 'key_hash-1' WHERE key_hash = 'x'",
        "UPDATE events SET id = 'new key' WHERE rowid = 1",
        "DELETE FROM events WHERE rowid = 2",
        "DELETE FROM receipts",
        "INSERT OR REPLACE INTO api_keys (id, key_hash, role, created_at, is_active) "
        "SELECT 'other', key_hash, role, created_at, 1 FROM api_keys WHERE key_hash = 'key_hash-3'",
    )
    report = transfer(sqlite.dsn, postgres.dsn, live=True, watcher=changing)
    assert contents(postgres, ROWS) == contents(sqlite, ROWS)
    assert report.shortened == times_below_the_microsecond(sqlite)
    assert report.rows == sum(map(len, contents(postgres, ROWS).values()))


def test_keys_that_change_their_case_meanwhile(sqlite: Place, postgres: Place) -> None:
    """SQLite finds a row of such a column by either key, and PostgreSQL by the one that it has."""
    word = model("Word", "word", {"id": peewee.TextField(primary_key=True)})
    db = sqlite.connect()
    with db.connection_context(), db.bind_ctx([word]):
        db.execute_sql("CREATE TABLE word (id text NOT NULL COLLATE NOCASE PRIMARY KEY)")
        word.insert_many([{"id": f"word {number}"} for number in range(300)]).execute()
    # The odd one parts old and new key of a row, of which a query asks for 200 at a time.
    changing = Changing(sqlite, "INSERT INTO word VALUES ('odd')", "UPDATE word SET id = upper(id) WHERE id <> 'odd'")
    report = transfer(sqlite.dsn, postgres.dsn, [word], live=True, watcher=changing)
    assert report.rows == 301
    assert contents(postgres, [word]) == contents(sqlite, [word])


def test_what_the_log_does_not_see_is_found_by_the_proof(sqlite: Place, postgres: Place) -> None:
    go_database(sqlite)
    unseen = Changing(sqlite, DROP_TRIGGERS, "UPDATE sessions SET name = 'new' WHERE rowid = 1")
    with pytest.raises(NotProved, match="sessions: 5 rows in SQLite and 5 in PostgreSQL, 1 keys differ"):
        transfer(sqlite.dsn, postgres.dsn, live=True, watcher=unseen)
    ((state, _),) = transfers(postgres)
    assert state == "failed"
    db = sqlite.connect()
    with db.connection_context():
        assert fence.find(db) is None
        assert change_log.find(db) is None
        db.execute_sql("UPDATE sessions SET name = 'it goes on'")


def test_a_failure_leaves_the_source_to_its_writers(sqlite: Place, postgres: Place) -> None:
    go_database(sqlite)
    spoiling = Changing(sqlite, "UPDATE sessions SET name = 'a' || char(0) WHERE rowid = 1")
    with pytest.raises(TransferRefused, match=r"written meanwhile in sessions\.name, key .*: a zero byte in a text"):
        transfer(sqlite.dsn, postgres.dsn, live=True, watcher=spoiling)
    db = sqlite.connect()
    with db.connection_context():
        assert fence.find(db) is None
        assert change_log.find(db) is None
        db.execute_sql("UPDATE sessions SET name = 'sound'")
    assert not any(contents(postgres, ROWS).values())
    transfer(sqlite.dsn, postgres.dsn, live=True)
    assert contents(postgres, ROWS) == contents(sqlite, ROWS)


@pytest.mark.parametrize(
    ("column", "value", "what"),
    [
        ("text", "X'41'", "another type"),  # as a text it would be b'A', on both sides alike
        ("flag", "2", "another type"),
        ("blob", "'text'", "another type"),
        ("data", "5", "another type"),
        ("price", "'cheap'", "another type"),
        ("at", "1764000000", "no time"),
        ("at", "'yesterday'", "no time"),
        ("json", "'[1e5000]'", "does not take"),
    ],
)
def test_a_value_that_comes_meanwhile_is_refused_as_a_check_refuses_it(
    sqlite: Place, postgres: Place, column: str, value: str, what: str
) -> None:
    odd = model("Odd", "odd", FIELDS)
    made(sqlite, [odd], "INSERT INTO odd (id, needed) VALUES ('a', 'x'), ('b', 'x')")
    spoiling = Changing(sqlite, f"UPDATE odd SET {column} = {value} WHERE id = 'b'")
    with pytest.raises(TransferRefused, match=rf"written meanwhile in odd\.{column}, key b: .*{what}") as failed:
        transfer(sqlite.dsn, postgres.dsn, [odd], live=True, watcher=spoiling)
    assert "yesterday" not in str(failed.value)
    assert re.search(r"give --on (nul|encoding|type|range|length|time|json)=replace", failed.value.hint)
    assert not any(contents(postgres, [odd]).values())
    db = sqlite.connect()
    with db.connection_context():
        assert (fence.find(db), change_log.find(db)) == (None, None)


def test_a_key_with_a_fault_that_came_and_went_takes_no_other_row_along(sqlite: Place, postgres: Place) -> None:
    odd = model("Odd", "odd", FIELDS)
    made(sqlite, [odd], "INSERT INTO odd (id, needed) VALUES ('b''A''', 'x')")
    passing = Changing(sqlite, "INSERT INTO odd (id, needed) VALUES (X'41', 'x')", "DELETE FROM odd WHERE id = X'41'")
    assert transfer(sqlite.dsn, postgres.dsn, [odd], live=True, watcher=passing).rows == 1
    assert contents(postgres, [odd]) == contents(sqlite, [odd])


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE later (id integer NOT NULL PRIMARY KEY)",
        "ALTER TABLE sessions ADD COLUMN more text",
        "CREATE UNIQUE INDEX one_name ON sessions (name)",
    ],
)
def test_a_schema_that_changes_meanwhile_is_refused(sqlite: Place, postgres: Place, statement: str) -> None:
    """A new table has no triggers, and nobody reads a new column: their rows would be left behind."""
    go_database(sqlite)
    later = model("Later", "later", {})
    with pytest.raises(TransferRefused, match="the schema of the source changed meanwhile: (later|sessions|one_name)"):
        transfer(sqlite.dsn, postgres.dsn, [*ROWS, later], live=True, watcher=Changing(sqlite, statement))
    db = sqlite.connect()
    with db.connection_context():
        assert (fence.find(db), change_log.find(db)) == (None, None)
    assert not any(contents(postgres, ROWS).values())


def test_values_that_are_to_be_replaced_and_come_meanwhile(sqlite: Place, postgres: Place) -> None:
    word = model("Word", "word", {"id": peewee.TextField(primary_key=True), "text": peewee.TextField()})
    run(
        sqlite.connect(),
        "CREATE TABLE word (id text NOT NULL PRIMARY KEY, text text NOT NULL)",
        "INSERT INTO word VALUES ('a' || char(0), 'x'), ('b', 'x')",
    )
    changing = Changing(sqlite, "UPDATE word SET text = 'y' || char(0)")
    transfer(sqlite.dsn, postgres.dsn, [word], live=True, on={"nul": "replace"}, watcher=changing)
    db = postgres.connect()
    with db.connection_context():
        found = db.execute_sql("SELECT id, text FROM word ORDER BY id").fetchall()
    assert found == [("a\ufffd", "y\ufffd"), ("b", "y\ufffd")]


class Ending(Watcher):
    """Ends a transfer when its proof begins, as a kill would."""

    def progress(self, phase: str, table: str, done: int, total: int | None) -> None:
        if phase == "prove":
            raise KeyboardInterrupt


def test_the_proof_after_a_kill_knows_what_was_replaced(sqlite: Place, postgres: Place) -> None:
    go_database(sqlite)
    run(
        sqlite.connect(),
        "UPDATE sessions SET name = 'a' || char(0) WHERE rowid = 1",
        "UPDATE events SET timestamp = 'yesterday' WHERE rowid = 1",
    )
    event = model(
        "Nullable", "events", {"id": peewee.TextField(primary_key=True), "timestamp": InstantField(null=True)}
    )
    models, leave = [Session, event], [f"events.{name}" for name in ("type", "session_id", "data", "created_at")]
    leave += [each._meta.table_name for each in ROWS if each._meta.table_name not in ("sessions", "events")]
    replaced = {"nul": "replace", "time": "replace"}
    with pytest.raises(KeyboardInterrupt) as ended:
        transfer(sqlite.dsn, postgres.dsn, models, leave=leave, live=True, on=replaced, watcher=Ending())
    fact, hint = ended.value.args  # the command prints them in the place of "nothing is half done"
    assert "the source has its fence" in fact
    assert "run it again with --live and the same --to" in hint
    assert transfers(postgres) == [("copied", None)]
    (sqlite.folder / ".whatspire-transfer-whatspire.db-abc_1234").mkdir()
    assert transfer(sqlite.dsn, postgres.dsn, models, leave=leave, live=True).rows == 10
    assert transfers(postgres) == [("proved", None)]
    assert not [name for name in os.listdir(sqlite.folder) if name.startswith(".whatspire")]


class EndingSessions(Watcher):
    """Has the server end the sessions of a database at a phase of the transfer."""

    def __init__(self, server: Server, place: Place, phase: str, *, is_last: bool = False) -> None:
        super().__init__()
        self.server, self.name, self.phase, self.is_last = server, place.connect().database, phase, is_last

    def progress(self, phase: str, table: str, done: int, total: int | None) -> None:
        if phase == self.phase:
            if self.is_last:  # like a server that shuts down
                self.server.execute(f'ALTER DATABASE "{self.name}" ALLOW_CONNECTIONS false')
            where = f"datname = '{self.name}' AND backend_type = 'client backend'"
            self.server.execute(f"SELECT pg_terminate_backend(pid, 30000) FROM pg_stat_activity WHERE {where}")


def test_an_error_before_the_comparison_says_what_is_left(
    sqlite: Place, postgres: Place, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    go_database(sqlite)
    with pytest.raises(WhatspireDBError):
        transfer(sqlite.dsn, postgres.dsn, live=True, watcher=EndingSessions(server, postgres, "prove"))
    assert "the source has its fence, but both sides were not compared; run it again with --live" in caplog.text
    assert transfer(sqlite.dsn, postgres.dsn, live=True).rows
    assert transfers(postgres) == [("proved", None)]


@pytest.mark.parametrize("live", [False, True])
def test_a_server_that_ends_the_copy_is_heard_once(
    sqlite: Place, postgres: Place, server: Server, capfd: pytest.CaptureFixture[str], live: bool
) -> None:
    word = model("Word", "word", {"text": peewee.TextField()})
    made(sqlite, [word], LARGE_ROWS)
    with pytest.raises(WhatspireDBError, match="terminating connection due to administrator command"):
        transfer(sqlite.dsn, postgres.dsn, [word], live=live, watcher=EndingSessions(server, postgres, "copy"))
    assert "SystemError" not in capfd.readouterr().err
    assert not any(contents(postgres, [word]).values())


@pytest.mark.soak
@pytest.mark.parametrize("live", [False, True])
def test_the_end_of_a_server_is_told_and_not_that_it_takes_no_connection_afterwards(
    sqlite: Place, postgres: Place, server: Server, live: bool
) -> None:
    word = model("Word", "word", {"text": peewee.TextField()})
    made(sqlite, [word], LARGE_ROWS)
    ending = EndingSessions(server, postgres, "copy", is_last=True)
    with pytest.raises(WhatspireDBError, match="terminating connection due to administrator command"):
        transfer(sqlite.dsn, postgres.dsn, [word], live=live, watcher=ending)
    server.execute(f'ALTER DATABASE "{ending.name}" ALLOW_CONNECTIONS true')
    assert transfer(sqlite.dsn, postgres.dsn, [word], live=live).rows


def test_two_of_one_source_wait_for_each_other(sqlite: Place, postgres: Place, server: Server) -> None:
    go_database(sqlite)
    with another_database(server) as other:
        first = Second(sqlite, other)
        transfer(sqlite.dsn, postgres.dsn, live=True, watcher=first)
        assert isinstance(first.error, LockTimeout)
        assert contents(postgres, ROWS) == contents(sqlite, ROWS)
        with pytest.raises(DatabaseMoved):
            transfer(sqlite.dsn, other, live=True)


class Second(Watcher):
    """Tries to transfer a source to another place while the first transfer copies it."""

    def __init__(self, source: Place, to: str) -> None:
        super().__init__()
        self.source, self.to, self.error = source, to, None

    def progress(self, phase: str, table: str, done: int, total: int | None) -> None:
        if phase == "index" and self.error is None:
            try:
                transfer(self.source.dsn, self.to, live=True, lock_timeout=0.1)
            except LockTimeout as error:
                self.error = error


@contextmanager
def another_database(server: Server) -> Iterator[str]:
    name = f"t_{uuid.uuid4().hex[:12]}"
    server.execute(f"CREATE DATABASE {name}")
    try:
        yield server.of_database(name)
    finally:
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")


class Reading(Watcher):
    """Opens a transaction on the source while it is copied, and does not end it."""

    def __init__(self, *statements: str) -> None:
        super().__init__()
        self.statements = statements
        self.connection: sqlite3.Connection | None = None

    def of(self, path: str) -> Reading:
        self.connection = sqlite3.connect(path, isolation_level=None)
        return self

    def progress(self, phase: str, table: str, done: int, total: int | None) -> None:
        assert self.connection is not None
        if phase == "index" and not self.connection.in_transaction:
            for statement in self.statements:
                self.connection.execute(statement).fetchall()


def test_who_reads_a_file_with_a_rollback_journal_is_waited_for_before_the_target_commits(
    sqlite: Place, postgres: Place
) -> None:
    go_database(sqlite)
    with closing(sqlite3.connect(sqlite.dsn)) as connection:
        assert connection.execute("PRAGMA journal_mode = DELETE").fetchall() == [("delete",)]
    reading = Reading("BEGIN", "SELECT count(*) FROM sessions").of(sqlite.dsn)
    with closing(reading.connection), pytest.raises(LockTimeout, match="other programs held the lock of"):
        transfer(sqlite.dsn, postgres.dsn, live=True, lock_timeout=0.1, watcher=reading)
    assert not any(contents(postgres, ROWS).values())
    transfer(sqlite.dsn, postgres.dsn, live=True)
    assert contents(postgres, ROWS) == contents(sqlite, ROWS)


@pytest.mark.soak
def test_a_log_that_could_not_be_removed_is_named_and_removed(
    sqlite: Place, postgres: Place, caplog: pytest.LogCaptureFixture
) -> None:
    go_database(sqlite)
    writing = Reading("BEGIN IMMEDIATE").of(sqlite.dsn)
    with closing(writing.connection), pytest.raises(LockTimeout, match="other programs held the lock of"):
        transfer(sqlite.dsn, postgres.dsn, live=True, lock_timeout=0.1, watcher=writing)
    assert "whatspire-db transfer --remove-log removes it" in caplog.text
    assert transfer(sqlite.dsn, postgres.dsn).has_log
    done = sqlite.run("transfer", "--check", "--to", postgres.dsn, module="whatspire_db")
    assert "the source has the change log of a live transfer" in done.stdout
    removed = sqlite.run("transfer", "--remove-log", module="whatspire_db")
    assert (removed.returncode, removed.stdout.splitlines()[1]) == (0, "removed: the change log")
    assert not check(sqlite.dsn, postgres.dsn).has_log


def test_what_a_killed_one_left_goes_with_the_next(sqlite: Place, postgres: Place) -> None:
    go_database(sqlite)
    left = sqlite.folder / ".whatspire-transfer-whatspire.db-abc_1234"
    others = [sqlite.folder / f".whatspire-transfer-{name}" for name in ("other.db-abc_1234", "whatspire.db-mine")]
    for folder in (left, *others):
        folder.mkdir()
        (folder / "copy.db").touch()
    db = sqlite.connect()
    with db.connection_context():
        change_log.start(db, ["sessions"])
    transfer(sqlite.dsn, postgres.dsn, live=True)
    assert [folder.exists() for folder in (left, *others)] == [False, True, True]
    assert contents(postgres, ROWS) == contents(sqlite, ROWS)


def test_no_row_is_set_aside_meanwhile(sqlite: Place, postgres: Place) -> None:
    go_database(sqlite)
    with pytest.raises(ConfigError, match="sets no rows aside"):
        transfer(sqlite.dsn, postgres.dsn, live=True, on={"nul": "set-aside"}, side_file="aside")


@pytest.mark.soak
def test_the_command_moves_a_live_source_and_removes_the_fence(sqlite: Place, postgres: Place) -> None:
    go_database(sqlite)
    removed = sqlite.run("transfer", "--remove-fence", module="whatspire_db")
    assert (removed.returncode, removed.stdout.splitlines()[1]) == (0, "this database has no fence")
    done = sqlite.run("transfer", "--live", "--to", postgres.dsn, module="whatspire_db")
    assert done.returncode == 0, done
    assert "writers were locked out from" in done.stdout
    refused = sqlite.run("transfer", "--live", "--to", postgres.dsn, module="whatspire_db")
    assert refused.returncode == 4
    assert "--remove-fence" in refused.stderr
    for arguments in (
        ["--remove-fence", "--to", "x"],
        [],
        ["--remove-fence", "--from", postgres.dsn],
        ["--remove-log", "--from", postgres.dsn],
        ["--remove-log", "--remove-fence"],
    ):
        environment = {"WHATSAPP_DATABASE_DRIVER": ""}
        assert sqlite.run("transfer", *arguments, module="whatspire_db", env=environment).returncode == 2
    removed = sqlite.run("transfer", "--remove-fence", "--from", sqlite.dsn, module="whatspire_db")
    assert "the fence is removed" in removed.stdout
    db = sqlite.connect()
    with db.connection_context():
        db.execute_sql("UPDATE sessions SET name = 'back'")
