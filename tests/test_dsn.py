"""Connection strings as the Go drivers take them, held against libpq's own parser and a real server."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import psycopg2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from peewee import sqlite3
from psycopg2.extensions import make_dsn, parse_dsn

from tests.conftest import Place, Server
from whatspire_db import ConfigError, Settings, connect
from whatspire_db.dsn.postgres import parse_postgres
from whatspire_db.dsn.sqlite import parse_sqlite
from whatspire_db.errors import ConnectionFailed

text = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1, max_size=12)
KEYWORDS = ["host", "user", "password", "dbname", "application_name", "passfile"]


@given(st.dictionaries(st.sampled_from(KEYWORDS), text))
def test_keyword_strings_are_read_as_libpq_reads_them(arguments: dict[str, str]) -> None:
    dsn = make_dsn(**arguments)
    assert parse_postgres(dsn).arguments == parse_dsn(dsn) == arguments


@given(st.text(alphabet="ab ='\\\t\n", max_size=14))
def test_any_keyword_string_is_read_as_libpq_does_or_refused(tail: str) -> None:
    dsn = "user=" + tail
    try:
        expected = parse_dsn(dsn)
    except psycopg2.ProgrammingError:
        return  # libpq refuses more: the names of run-time parameters
    assert dict(parse_postgres(dsn).arguments) == expected


@given(user=text, password=text, name=text, port=st.integers(1, 65535))
def test_urls_are_read_as_libpq_reads_them(user: str, password: str, name: str, port: int) -> None:
    parts = [quote(part, safe="") for part in (user, password, name)]
    url = "postgresql://{}:{}@localhost:{}/{}?sslmode=disable".format(*parts[:2], port, parts[2])
    assert parse_postgres(url).arguments == parse_dsn(url)


@pytest.mark.parametrize(
    "url",
    [
        "postgres://",
        "postgres://localhost",
        "postgresql://localhost/db",
        "postgres://u@h/db",
        "postgres://u:p@[::1]:5433/db",
        "postgres://u:p@a,b:5433,c/db?target_session_attrs=read-write",
        "postgres://a:1,b:2/db",
        "postgres:///db?host=/var/run/postgresql&port=5433",
        "postgres://%2Fvar%2Frun/db",
        "postgres://u@h/db?ssl=true",
        "postgres://h?dbname=x",
        "postgres://u:@h/db",
    ],
)
def test_url_forms(url: str) -> None:
    assert parse_postgres(url).arguments == parse_dsn(url)


def test_password_with_an_at_sign_is_read_as_go_reads_it() -> None:
    assert parse_postgres("postgres://u:p@ss@h/d").arguments == {
        "user": "u",
        "password": "p@ss",
        "host": "h",
        "dbname": "d",
    }


def test_what_the_go_driver_alone_knows_is_left_out() -> None:
    dsn = "host=h dbname=d statement_cache_capacity=0 default_query_exec_mode=simple_protocol"
    assert parse_postgres(dsn).arguments == {"host": "h", "dbname": "d"}


@pytest.mark.parametrize("form", ["keywords", "url"])
def test_run_time_parameters_reach_the_server(postgres: Place, server: Server, form: str) -> None:
    arguments = parse_postgres(postgres.dsn).arguments
    if form == "keywords":
        dsn = f"{postgres.dsn} TimeZone=Asia/Shanghai search_path='\"a b\", public' application_name=mine options='-c geqo=off'"
    else:
        pairs = "&".join(f"{k}={quote(v, safe='')}" for k, v in arguments.items() if k != "dbname")
        more = (
            "TimeZone=Asia%2FShanghai&search_path=%22a%20b%22%2C%20public&application_name=mine&options=-c%20geqo%3Doff"
        )
        dsn = f"postgres:///{arguments['dbname']}?{pairs}&{more}"
    db = connect(Settings(driver="postgres", dsn=dsn), bind=False)
    names = ("TimeZone", "search_path", "application_name", "geqo")
    shown = [db.execute_sql(f"SHOW {name}").fetchone()[0] for name in names]
    assert shown == ["Asia/Shanghai", '"a b", public', "mine", "off"]
    db.close_all()


@pytest.mark.parametrize("value", ["C:\\a b", "\\", "it's \\' -c geqo=off", " both ends "])
@pytest.mark.parametrize("form", ["keywords", "url"])
def test_run_time_parameters_reach_the_server_as_they_are_written(postgres: Place, form: str, value: str) -> None:
    arguments = parse_postgres(postgres.dsn).arguments
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    dsn = f"{postgres.dsn} my.path='{escaped}'"
    if form == "url":
        pairs = {k: v for k, v in arguments.items() if k != "dbname"} | {"my.path": value}
        dsn = f"postgres:///{arguments['dbname']}?" + "&".join(f"{k}={quote(v, safe='')}" for k, v in pairs.items())
    db = connect(Settings(driver="postgres", dsn=dsn), bind=False)
    assert db.execute_sql("SHOW my.path").fetchone() == (value,)
    db.close_all()


@pytest.mark.parametrize(
    "dsn",
    ["hunter2", "password='hunter2", "host=h hunter2 x=1", "postgres://u:hunter2%zz@h", "postgres://u:hunter2@h:port/d",
     "postgres://u@h/d?password", "postgres://u@h/%00"],
)  # fmt: skip
def test_malformed_strings_are_refused_without_being_repeated(dsn: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_postgres(dsn)
    assert "hunter2" not in str(error.value)


@given(text)
def test_no_text_makes_another_error_than_a_config_error(dsn: str) -> None:
    for parse in (parse_postgres, parse_sqlite):
        try:
            parse(dsn)
        except ConfigError:
            pass


def test_sqlite_forms() -> None:
    assert parse_sqlite("/data/x.db").path == "/data/x.db"
    assert parse_sqlite(":memory:").path is None
    assert parse_sqlite("file::memory:?cache=shared").path is None
    assert parse_sqlite("file:x.db?mode=memory").path is None
    assert parse_sqlite("file:/data/a%20b.db?mode=ro").path == "/data/a b.db"
    assert parse_sqlite("file:///data/x.db").path == "/data/x.db"
    assert parse_sqlite("file://localhost/data/x.db").path == "/data/x.db"
    assert parse_sqlite("file:x.db?mode=ro").read_only
    long = "x.db?_journal_mode=WAL&_busy_timeout=100&_foreign_keys=on&_loc=auto&_txlock=immediate"
    short = "x.db?_journal=WAL&_timeout=100&_fk=on"
    for dsn in (long, short):
        target = parse_sqlite(dsn)
        assert target.database == "x.db"
        assert target.pragmas == {"journal_mode": "WAL", "busy_timeout": "100", "foreign_keys": "on"}
    for wrong in (
        "_journal=WAL;DROP",
        "_fk=enabled",
        "_journal_mode=bogus",
        "_timeout=abc",
        "_sync=",
        "_fk=on%20",
        "_txlock=",
        "_txlock=later",
    ):
        with pytest.raises(ConfigError, match="it takes"):
            parse_sqlite(f"x.db?{wrong}")


def test_sqlite_transactions_begin_as_the_dsn_says() -> None:
    assert parse_sqlite("x.db").lock_type == parse_sqlite("x.db?_txlock=immediate").lock_type == "IMMEDIATE"
    assert parse_sqlite("x.db?_txlock=deferred").lock_type == "DEFERRED"
    assert parse_sqlite("file:x.db?_txlock=Exclusive&mode=rw") == replace(
        parse_sqlite("file:x.db?mode=rw"), lock_type="EXCLUSIVE"
    )


# What another connection may do while a transaction has begun and done nothing yet.
@pytest.mark.parametrize(
    ("query", "may_read", "may_write"),
    [
        ("", True, False),
        ("?_txlock=immediate", True, False),
        ("?_txlock=deferred", True, True),
        ("?_txlock=exclusive&_journal_mode=DELETE", False, False),
    ],
)
def test_txlock_is_what_others_feel(sqlite: Place, query: str, may_read: bool, may_write: bool) -> None:
    db = connect(Settings(dsn=sqlite.dsn + query), bind=False)
    db.execute_sql("CREATE TABLE t (n)")
    with closing(sqlite3.connect(sqlite.dsn, timeout=0, isolation_level=None)) as other:
        with db.atomic():
            assert works(other, "SELECT * FROM t") == may_read
            assert works(other, "INSERT INTO t VALUES (1)") == may_write
        assert works(other, "INSERT INTO t VALUES (2)")
    db.close()


def works(connection: sqlite3.Connection, sql: str) -> bool:
    try:
        connection.execute(sql).fetchall()
    except sqlite3.OperationalError as error:
        if "locked" not in str(error):
            raise
        return False
    return True


def test_sqlite_parameters_reach_the_connection(sqlite: Place) -> None:
    dsn = f"file:{sqlite.dsn}?_journal_mode=TRUNCATE&_busy_timeout=1234&_foreign_keys=0&_sync=FULL&cache=private"
    db = connect(Settings(dsn=dsn), bind=False)
    names = ("journal_mode", "busy_timeout", "foreign_keys", "synchronous")
    shown = [db.execute_sql(f"PRAGMA {name}").fetchone()[0] for name in names]
    assert shown == ["truncate", 1234, 0, 2]
    db.close()


def test_database_that_is_not_named_is_libpqs(postgres: Place, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = dict(parse_postgres(postgres.dsn).arguments)
    name = arguments.pop("dbname")
    bare = " ".join(f"{k}='{v}'" for k, v in arguments.items())
    monkeypatch.setenv("PGDATABASE", name)
    db = connect(Settings(driver="postgres", dsn=bare), bind=False)
    assert db.execute_sql("SELECT current_database()").fetchone() == (name,)
    db.close_all()
    monkeypatch.delenv("PGDATABASE")
    services = postgres.folder / "services.conf"
    services.write_text("[ours]\n" + "".join(f"{k}={v}\n" for k, v in {**arguments, "dbname": name}.items()))
    monkeypatch.setenv("PGSERVICEFILE", str(services))
    db = connect(Settings(driver="postgres", dsn="service=ours"), bind=False)
    shown = db.execute_sql("SELECT current_database(), current_setting('application_name')").fetchone()
    assert shown == (name, "whatspire_db")
    db.close_all()


def test_service_that_is_not_there_is_what_the_hint_is_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services.conf"))
    with pytest.raises(ConnectionFailed, match=r"check the service .*PGSERVICEFILE"):
        connect(Settings(dsn="service=theirs"), bind=False).connect()
