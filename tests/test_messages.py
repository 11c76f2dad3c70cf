"""Errors say the same in every language: codes decide, words do not, and no row, control character or flood gets out."""

from __future__ import annotations

import copy
import os
import pickle
import pwd
import socket
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import peewee
import psycopg2
import pytest
from peewee import sqlite3

from tests.conftest import PASSWORD, Place, Server
from tests.migrate.test_command_line import fails
from whatspire_db import MigrationRefused, MigrationRunner, Settings, UndoRefused, connect, errors, messages
from whatspire_db.backup.engines.postgres.tool_errors import Said
from whatspire_db.backup.engines.postgres.tools import ToolFailed
from whatspire_db.errors import ConnectionFailed, WhatspireDBError, printable
from whatspire_db.messages import SQLITE_HINTS, SQLSTATE_HINTS, first_line, hint, primary, sqlite_code, sqlstate

pytestmark = pytest.mark.sampled

SECRET = "s3cret-row"


# Every error


def kinds(base: type[WhatspireDBError]) -> Iterator[type[WhatspireDBError]]:
    yield base
    for kind in base.__subclasses__():
        yield from kinds(kind)


OF_PLANS = (MigrationRefused, UndoRefused)  # which are made of one
KINDS = [kind for kind in kinds(WhatspireDBError) if kind.__module__ == errors.__name__ and kind not in OF_PLANS]


@pytest.mark.parametrize("kind", sorted(set(KINDS), key=lambda kind: kind.__name__))
@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])  # noqa: S301
def test_errors_copy_and_pickle(kind: type[WhatspireDBError], way: Callable[[Any], Any]) -> None:
    error = kind("table t is gone", "make it again")
    error.extra = ["of the caller"]  # type: ignore[attr-defined]
    other = way(error)
    assert type(other) is kind
    assert (other.fact, other.hint, str(other), other.extra) == (error.fact, error.hint, str(error), error.extra)


def test_error_that_takes_other_arguments_copies_and_pickles() -> None:
    error = ToolFailed("pg_dump", 1, Said("no room"))
    for other in (copy.copy(error), pickle.loads(pickle.dumps(error))):  # noqa: S301
        assert (type(other), str(other), other.said) == (ToolFailed, str(error), error.said)


def migrate_a_table_with_rows(path: str) -> None:
    db = connect(Settings(dsn=path), bind=False)

    class Note(peewee.Model):
        title = peewee.CharField()

        class Meta:
            database = db

    MigrationRunner(db, [Note]).up()


@pytest.mark.soak
def test_refusal_crosses_processes_with_its_plan(tmp_path: Path) -> None:
    path = str(tmp_path / "x.db")
    with closing(sqlite3.connect(path)) as file:
        file.executescript("CREATE TABLE note (id integer NOT NULL PRIMARY KEY); INSERT INTO note VALUES (1);")
    with pytest.raises(MigrationRefused) as here:
        migrate_a_table_with_rows(path)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool, pytest.raises(MigrationRefused) as there:
        pool.submit(migrate_a_table_with_rows, path).result(timeout=60)
    assert (str(there.value), str(there.value.plan)) == (str(here.value), str(here.value.plan))


def test_facts_and_hints_are_one_short_line_without_control_characters() -> None:
    error = WhatspireDBError("a\n\x1b]0;title\x07\x9b31m\u202eb\u2028c", "x" * 30_000)
    assert error.fact == "a \\x1b]0;title\\x07\\x9b31m\\u202eb c"
    assert len(error.hint) <= errors.LONGEST
    error.fact = "later\r\x1b[2J"
    error.hint += "\x00"
    assert printable(str(error)) == str(error)
    assert error.fact == "later \\x1b[2J"
    assert pickle.loads(pickle.dumps(error)).fact == error.fact  # noqa: S301


@pytest.mark.parametrize("text", ["Tabelle »große« fehlt", "таблица", "👩‍👩‍👧", "C:\\dir", "plain"])
def test_printable_text_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_long_text_keeps_its_beginning_and_its_end() -> None:
    error = WhatspireDBError("table wide: " + "column, " * 1000 + "too many columns", "")
    assert error.fact.startswith("table wide: ")
    assert error.fact.endswith("too many columns")


def test_every_hint_is_a_sentence_that_fits() -> None:
    for text in (*SQLSTATE_HINTS.values(), *SQLITE_HINTS.values(), *messages.CONNECT_HINTS.values()):
        assert text[0].islower() or text.startswith("SQL")
        assert not text.endswith(".")
        assert len(text) < 300


# SQLite's codes


def busy(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "x.db")) as one, closing(sqlite3.connect(folder / "x.db", timeout=0)) as two:
        one.execute("CREATE TABLE t (a)")
        one.execute("BEGIN IMMEDIATE")
        two.execute("CREATE TABLE u (a)")


def in_memory(*statements: str) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
            for statement in statements:
                connection.execute(statement).fetchall()

    return run


def no_database(folder: Path) -> None:
    (folder / "x.db").write_bytes(b"nothing of the kind" * 100)
    with closing(sqlite3.connect(folder / "x.db")) as connection:
        connection.execute("SELECT * FROM sqlite_master")


def no_file(folder: Path) -> None:
    sqlite3.connect(folder / "missing" / "x.db").close()


MALFORMED = ("PRAGMA writable_schema = 1", "UPDATE sqlite_master SET sql = 'CREATE TABLE t (a,, b)'")
SQLITE_FAILURES: dict[str, tuple[Callable[[Path], None], int]] = {
    "busy": (busy, messages.BUSY),
    "readonly": (in_memory("PRAGMA query_only = 1", "CREATE TABLE t (a)"), messages.READONLY),
    "malformed": (
        in_memory("CREATE TABLE t (a)", *MALFORMED, "PRAGMA writable_schema = RESET", "SELECT * FROM t"),
        messages.CORRUPT,
    ),
    "no_database": (no_database, messages.NOTADB),
    "no_file": (no_file, messages.CANTOPEN),
    "no_table": (in_memory("SELECT * FROM t"), messages.ERROR),
    "no_collation": (in_memory("CREATE TABLE t (a COLLATE own UNIQUE)"), messages.ERROR),
    "full": (in_memory("PRAGMA max_page_count = 2", "CREATE TABLE t (a)", "CREATE TABLE u (a)"), messages.FULL),
    "constraint": (in_memory("CREATE TABLE t (a NOT NULL)", "INSERT INTO t VALUES (NULL)"), messages.CONSTRAINT),
}


@pytest.mark.parametrize(("fail", "code"), SQLITE_FAILURES.values(), ids=SQLITE_FAILURES.keys())
def test_sqlite_failures_have_their_code_on_every_python(
    fail: Callable[[Path], None], code: int, tmp_path: Path
) -> None:
    with pytest.raises(sqlite3.Error) as failed:
        fail(tmp_path)
    assert primary(failed.value) == code
    assert messages._code_of_words(failed.value) == code  # as on Python 3.10, which keeps no codes


def test_name_in_a_message_does_not_change_its_code() -> None:
    with closing(sqlite3.connect(":memory:")) as connection, pytest.raises(sqlite3.Error) as failed:
        connection.execute('SELECT * FROM "database is locked"')
    assert messages._code_of_words(failed.value) == messages.ERROR


def test_error_of_the_module_itself_has_no_code_of_sqlite() -> None:
    with closing(sqlite3.connect(":memory:")) as connection, pytest.raises(sqlite3.Error) as failed:
        connection.execute("SELECT CAST(x'ff' AS text)").fetchall()
    assert sqlite_code(failed.value) is None or not hasattr(sqlite3, "SQLITE_BUSY")


# PostgreSQL's codes


@pytest.fixture
def session(postgres: Place) -> Iterator[Any]:
    with closing(psycopg2.connect(postgres.dsn)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE TABLE t (id int PRIMARY KEY, a text); INSERT INTO t VALUES (1, '{SECRET}')")
            yield cursor


REFUSED = {
    "42P07": "CREATE TABLE t ()",
    "42701": "ALTER TABLE t ADD id int",
    "42704": "CREATE TABLE u (a nix(3))",
    "25006": "BEGIN READ ONLY; CREATE TABLE u ()",
    "42501": "SET ROLE pg_monitor; CREATE TABLE public.u ()",
    "57014": "SET statement_timeout = 1; SELECT pg_sleep(9)",
    "53200": "SELECT pg_advisory_xact_lock(n) FROM generate_series(1, 1000000) AS n",
    "54011": f"CREATE TABLE u ({', '.join(f'c{n} int' for n in range(1601))})",
    "3F000": "CREATE TABLE nowhere.u ()",
}


@pytest.mark.parametrize(("state", "sql"), REFUSED.items(), ids=REFUSED.keys())
def test_hint_goes_by_the_sqlstate(session: Any, state: str, sql: str) -> None:
    with pytest.raises(psycopg2.Error) as failed:
        session.execute(sql)
    assert sqlstate(failed.value) == state
    wanted = messages.LOCK_TABLE_FULL if state == "53200" else SQLSTATE_HINTS[state]
    assert hint(failed.value) == wanted
    assert messages.is_lock_table_full(failed.value) == (state == "53200")
    assert first_line(failed.value) == printable(first_line(failed.value))


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE INDEX i ON t ((a::int))",
        "CREATE UNIQUE INDEX i ON t ((left(a, 0))); INSERT INTO t VALUES (2, 'other-row')",
        "ALTER TABLE t ADD CHECK (a = '')",
        "ALTER TABLE t ALTER a TYPE json USING a::json",
        f"INSERT INTO t VALUES (1, '{SECRET}')",
        f"INSERT INTO t VALUES (NULL, '{SECRET}')",
    ],
)
def test_messages_do_not_repeat_rows(session: Any, sql: str) -> None:
    with pytest.raises(psycopg2.Error) as failed:
        session.execute(sql)
    assert SECRET not in messages.database_failed(failed.value).fact
    assert "other-row" not in messages.database_failed(failed.value).fact


def test_lost_session_is_called_lost(session: Any) -> None:
    with pytest.raises(psycopg2.Error):
        session.execute("SELECT pg_terminate_backend(pg_backend_pid())")
    with pytest.raises(psycopg2.Error) as failed:
        session.execute("SELECT 1")
    assert hint(failed.value) == messages.CONNECTION_LOST


# Connections that fail


def refused(dsn: str) -> ConnectionFailed:
    db = connect(Settings(driver="postgres", dsn=dsn, log_level="silent"), bind=False)
    with pytest.raises(ConnectionFailed) as failed:
        db.connect()
    return failed.value


WRONG = {
    "database": ("dbname=nowhere", "3D000", "create the database"),
    "role": ("user=nobody_here", "28000", "check the user"),
    "value": ("work_mem=quark", "22023", "the parameter's value"),
    "parameter": ("nowhere_to_set=1", "42704", "the parameter's name"),
    "socket": ("host=/nowhere", None, "folder of its socket"),
    "host": ("host=no-such-host.invalid", None, "check the host"),
    "second_host": ("host=/nowhere,/neither", None, "folder of its socket"),
    "attributes": ("target_session_attrs=standby", None, "target_session_attrs"),
}


@pytest.mark.parametrize(("wrong", "state", "remedy"), WRONG.values(), ids=WRONG.keys())
def test_connection_that_fails_says_what_to_do(postgres: Place, wrong: str, state: str | None, remedy: str) -> None:
    error = refused(f"{postgres.dsn} {wrong}")
    assert error.sqlstate == state
    assert remedy in error.hint


@pytest.mark.soak
def test_closed_port_is_told_from_a_silent_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert "see the server's log" in refused(f"host=127.0.0.1 port={port} user=u connect_timeout=2").hint
    assert "nothing listens there" in refused(f"host=127.0.0.1 port={port} user=u").hint


@pytest.mark.parametrize("port", ["0", "70000"])
@pytest.mark.parametrize("host", ["127.0.0.1", "/nowhere", "nowhere.invalid"])
def test_a_port_that_is_none_is_named_and_not_waited_for(host: str, port: str) -> None:
    error = refused(f"host={host} port={port} user=u")
    assert "correct the port" in error.hint
    assert not error.is_unanswered


def test_missing_and_wrong_passwords_are_told_apart(locked: Server) -> None:
    dsn = locked.of_database("postgres", user="locked")
    assert "add the password" in refused(dsn).hint
    wrong = refused(f"{dsn} password=wr0ng-one")
    assert (wrong.sqlstate, "wr0ng-one" in str(wrong)) == ("28P01", False)
    assert "check user and password" in wrong.hint
    assert PASSWORD not in str(wrong)


def test_connection_that_failed_holds_no_socket_while_its_error_lives(locked: Server) -> None:
    def sockets() -> int:
        found = 0
        for number in os.listdir("/proc/self/fd"):
            with suppress(OSError):  # that of the listing itself
                found += stat.S_ISSOCK(os.stat(int(number)).st_mode)
        return found

    before = sockets()
    errors = [refused(locked.of_database("postgres", user="locked")) for _ in range(3)]
    assert len(errors) == 3
    assert sockets() == before


def test_full_server_passes_by_itself(server: Server, postgres: Place) -> None:
    name = postgres.dsn.rpartition("dbname='")[2].partition("'")[0]
    server.execute("CREATE ROLE few LOGIN CONNECTION LIMIT 0")
    try:
        full = refused(server.of_database(name, user="few"))
    finally:
        server.execute("DROP ROLE few")
    assert full.sqlstate == "53300"
    assert messages.passes_by_itself(full)
    assert messages.passes_by_itself(pickle.loads(pickle.dumps(full)))  # noqa: S301


def test_user_id_without_a_name_is_asked_to_name_the_user(postgres: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PGUSER", raising=False)

    def nameless(user_id: int) -> pwd.struct_passwd:
        raise KeyError(user_id)

    monkeypatch.setattr(pwd, "getpwuid", nameless)
    assert f"user id {os.geteuid()}" in refused("host=/nowhere").hint


# Commands


@pytest.mark.soak
def test_service_role_without_temporary_gets_names_alone(postgres: Place, server: Server) -> None:
    assert postgres.run("-q").returncode == 0
    name = postgres.dsn.rpartition("dbname='")[2].partition("'")[0]
    role = f"worker_{name}"
    with closing(psycopg2.connect(postgres.dsn)) as owner, owner.cursor() as cursor:
        cursor.execute(f"CREATE ROLE {role} LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
        cursor.execute(f"COMMENT ON TYPE migration_versions IS NULL; REVOKE TEMPORARY ON DATABASE {name} FROM PUBLIC")
        owner.commit()
    try:
        worker = Place("postgres", server.of_database(name, user=role), postgres.folder)
        done = worker.run()
        assert (done.returncode, "by names alone" in done.stderr) == (0, True), done.stderr
        assert worker.run(module="whatspire_db.health").returncode == 0
    finally:
        server.execute(f"DROP DATABASE {name} WITH (FORCE)", f"DROP ROLE {role}", f"CREATE DATABASE {name}")


MODELS = """
from peewee import *
from whatspire_db import BaseModel
class Wide(BaseModel):
{}
"""


@pytest.mark.soak
def test_model_that_is_too_wide_fits_on_a_screen(place: Place) -> None:
    columns = "\n".join(f"    c{n} = IntegerField(null=True)" for n in range(2001))
    (place.folder / "wide.py").write_text(MODELS.format(columns))
    done = place.run("--models", "wide")
    assert len(done.stderr) < 2000
    fails(done, done.returncode, "ide")
