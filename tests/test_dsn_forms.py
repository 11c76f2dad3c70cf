"""Texts that are almost a DSN: each is the database that is meant, or an error that says what to write."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whatspire_db import ConfigError, Settings
from whatspire_db.dsn.targets import SqliteTarget

SECRET = "Zq7SECRETx9"

SQLITE = {
    "data/w.db": "data/w.db",
    " w.db\n": "w.db",
    "a b;c.db": "a b;c.db",
    "me@home.db": "me@home.db",
    "post gres.db": "post gres.db",
    "hosts.db": "hosts.db",
    "/srv/date=2026/w.db": "/srv/date=2026/w.db",
    "./foo:bar.db": "./foo:bar.db",
    "./-x.db": "./-x.db",
    "./a=b.db": "./a=b.db",
    "12:30.db": "12:30.db",
    "a~b$c%d.db": "a~b$c%d.db",
    "w.db?_journal=WAL&cache=shared&mode=rwc": "w.db",
    "File:w.db": "w.db",
    "FILE:/srv/w.db?mode=ro": "/srv/w.db",
    "file:///srv/w.db": "/srv/w.db",
    "file://localhost/srv/w.db": "/srv/w.db",
    "file:a%24b@c:d.db": "a$b@c:d.db",
    ":memory:": None,
    "file::memory:?cache=shared": None,
    "file:w.db?mode=memory": None,
    "file:": None,
    ":memory:?_fk=1": None,
    "./none": "./none",
    "data/none": "data/none",
    "data/me@home.db": "data/me@home.db",
    "none.db": "none.db",
    "w.db?_auth&_auth_user=me&_auth_pass=p:w@x": "w.db",
}


@pytest.mark.parametrize("dsn", SQLITE)
def test_files_are_named_as_they_are_written(dsn: str) -> None:
    settings = Settings(dsn=dsn)
    assert isinstance(settings.target, SqliteTarget)
    assert settings.target.path == SQLITE[dsn]
    assert not settings.target.uri or settings.target.database.startswith("file:")


REFUSED = {
    # quotes, and what a shell or docker would have taken away
    '"data/w.db"': "without quotes",
    "'data/w.db'": "without quotes",
    "“data/w.db”": "without quotes",
    '"data/w.db': "without quotes",
    'data/w.db"': "without quotes",
    f'"postgres://me:{SECRET}@h/d"': "without quotes",
    f"'host=h password={SECRET}'": "without quotes",
    "~/w.db": "whole path",
    "~me/w.db": "whole path",
    "file:~/w.db": "whole path",
    "$HOME/w.db": "whole path",
    "data/$NAME/w.db": "whole path",
    "${DATA}/w.db": "whole path",
    "$(pwd)/w.db": "whole path",
    "%USERPROFILE%/w.db": "whole path",
    "w.db # the database": "keeps comments",
    "WHATSAPP_DATABASE_DSN=w.db": "value alone",
    f"export DATABASE_URL=postgres://me:{SECRET}@h/d": "value alone",
    "a\tb.db": "control character",
    "a\x00b.db": "control character",
    "=w.db": "value alone",
    f"host=h, user=me, password={SECRET}, dbname=d": "by commas",
    "Server=h,Database=d": "by commas",
    # templates, placeholders and words in the place of a value
    "none": "./NAME",
    "Null": "./NAME",
    "undefined": "./NAME",
    "true": "./NAME",
    "sqlite": "./NAME",
    "PostgreSQL": "./NAME",
    "localhost": "./NAME",
    "10.0.0.5": "./NAME",
    "whatspire@localhost": "./NAME",
    "<no value>": "./NAME",
    "data/<name>.db": "./NAME",
    "{{ .Values.dsn }}": "./NAME",
    "data/{{ name }}.db": "./NAME",
    "{}": "./NAME",
    "***": "./NAME",
    "[::1]:5432/d": "PostgreSQL",
    "@/run/secrets/dsn": "./NAME",
    ":memory": "is :memory:",
    ":MEMORY:": "is :memory:",
    "w.db;": "path alone",
    "host localhost": "key=value",
    f"scott/{SECRET}@tns": "Oracle",
    "w.db WHATSAPP_DATABASE_DRIVER=sqlite": "one variable a line",
    "host=h WHATSAPP_DATABASE_DRIVER=postgres": "one variable a line",
    f"scott/{SECRET}@//h:1521/x": "Oracle",
    # SQLite in others' words
    "sqlite:///data/w.db": "write the path alone: data/w.db",
    "sqlite:////srv/w.db": "write the path alone: /srv/w.db",
    "sqlite+pysqlite:///w.db": "write the path alone: w.db",
    "sqlite3:data/w.db": "write the path alone: data/w.db",
    "SQLite:data/w.db": "write the path alone: data/w.db",
    "sqlite://": "write the path alone: :memory:",
    "jdbc:sqlite:w.db": "write the path alone: w.db",
    f"sqlite:///w.db?password={SECRET}": "SQLite takes",
    "Data Source=w.db;Version=3": "SQLite takes the path alone",
    "C:\\data\\w.db": "path of this system",
    "C:/data/w.db": "path of this system",
    "data\\w.db": "path of this system",
    "\\\\server\\share\\w.db": "path of this system",
    "file://data/w.db": "names a host",
    "data/": "name a file",
    "data/..": "name a file",
    ".": "name a file",
    # PostgreSQL in others' words
    f"postgres:/me:{SECRET}@h/d": "write postgres://",
    f"postgres:me:{SECRET}@h/d": "write postgres://",
    f"postgress://me:{SECRET}@h/d": "write postgres://",
    f"pgsql://me:{SECRET}@h/d": "write postgres://",
    f"postgresql+psycopg2://me:{SECRET}@h/d": "write postgres://",
    f"cockroachdb://me:{SECRET}@h/d": "write postgres://",
    f"jdbc:postgresql://h/d?user=me&password={SECRET}": "write postgres://",
    f"psql 'postgresql://me:{SECRET}@h/d'": "what follows psql",
    f"me:{SECRET}@h/d": "write postgres://",
    f"//me:{SECRET}@h/d": "write postgres://",
    f"./me:{SECRET}@h/d": "write postgres://",
    "localhost:5432/d": "write postgres://",
    "10.0.0.1:5432/d": "write postgres://",
    f"10.0.0.1:5432:d:me:{SECRET}": "write postgres://",
    f"*:*:*:me:{SECRET}": "write postgres://",
    "-h localhost -U me": "looks like an option",
    f"HOST=h PASSWORD={SECRET}": "write host",
    f"host=h Password={SECRET}": "write password",
    f"host=h pwd={SECRET}": "write password",
    "host=h username=me": "write user",
    "server=h user=me": "write host",
    f"Server=h;Database=d;Pwd={SECRET}": "separates its pairs by semicolons",
    f"host=h;port=1;user=me;password={SECRET}": "separates its pairs by semicolons",
    f"host=h dbname=d;password={SECRET}": "separates its pairs by semicolons",
    f"postgres://me:1{SECRET[1]}/{SECRET}@h/d": "%2F",
    f"postgres://me:12/{SECRET}@h/d": "%2F",
    f"postgres:///me:{SECRET}@h/d": "%2F",
    f'{{"host": "h", "password": "{SECRET}"}}': "looks like a DSN",
    f"host: h, password: {SECRET}": "write postgres://",
    "statement_timeout=5": "key=value",
    f"host=h sslmode={SECRET}": "it takes disable",
    f"postgres://me@h/d?target_session_attrs={SECRET}": "it takes any",
    f"postgres://me@h/d?connect_timeout={SECRET}": "whole number",
    f"host=h port={SECRET}": "whole number",
    # others' databases
    f"mysql://me:{SECRET}@h/d": "mysql, which is not supported",
    "https://example.com/w.db": "https, which is not supported",
    "s3://bucket/w.db": "s3, which is not supported",
    f"{SECRET}://h/d": "unknown scheme",
    "foo:bar.db": "./NAME",
    # parameters
    "w.db?mode=ro": "file:PATH",
    "w.db?immutable=1": "file:PATH",
    "file:w.db?moed=ro": "did you mean mode",
    "file:w.db?mode=readonly": "it takes ro, rw",
    "w.db?_jornal_mode=WAL": "did you mean _journal_mode",
    f"w.db?{SECRET}": "known ones are",
    f"w.db?_timeout={SECRET}": "it takes",
    "w.db?_pragma=foreign_keys(1)&_pragma=journal_mode(WAL)&_pragma=busy_timeout=5": "_foreign_keys=1&_journal_mode=WAL&_busy_timeout=5",
    "w.db?_pragma=optimize": "_foreign_keys=1",
    "w.db?_journal_mode=WAL&_journal_mode=DELETE": "leave one of them out",
    "w.db?_fk=1&_foreign_keys=0": "leave one of them out",
}  # fmt: skip


@pytest.mark.parametrize("dsn", REFUSED)
def test_what_is_neither_engines_is_refused_with_what_to_write(dsn: str) -> None:
    with pytest.raises(ConfigError) as error:
        Settings(dsn=dsn)
    assert REFUSED[dsn] in str(error.value)
    assert SECRET not in repr(error.value) + repr(error.value.__cause__)


@pytest.mark.parametrize("dsn", [dsn for dsn in REFUSED if not dsn.startswith(("statement_", "12:"))])
@pytest.mark.parametrize("driver", ["sqlite", "postgres"])
def test_the_right_driver_makes_none_of_them_a_database(dsn: str, driver: str) -> None:
    with pytest.raises(ConfigError) as error:
        Settings(driver, dsn)
    assert SECRET not in repr(error.value)


def test_passwords_may_hold_any_character() -> None:
    for password in ("a;b", "p@s:s/%", "x y", '"quoted"', "~", "$HOME", "sqlite:///x"):
        escaped = password.replace("'", "\\'")
        target = Settings(dsn=f"host=h password='{escaped}'").target
        assert not isinstance(target, SqliteTarget)
        assert target.arguments["password"] == password


def test_database_is_another_name_for_dbname() -> None:
    for dsn in ("host=h database=d", "postgres://h?database=d"):
        target = Settings(dsn=dsn).target
        assert not isinstance(target, SqliteTarget)
        assert target.arguments == {"host": "h", "dbname": "d"}


@given(st.text("ab:/@=;~$%\\\"' .#?&\n", min_size=1, max_size=14), st.sampled_from(["", "postgres", "sqlite"]))
def test_no_message_repeats_what_it_got(text: str, driver: str) -> None:
    for dsn in (f"{text}{SECRET}", f"{SECRET}{text}", f"{text}{SECRET}{text}"):
        try:
            Settings(driver, dsn)
        except ConfigError as error:
            assert SECRET not in str(error).replace(f"write the path alone: {dsn}", "")  # noqa: PT017


@given(st.sampled_from(sorted(REFUSED)))
def test_refused_texts_make_no_files(dsn: str) -> None:
    before = set(os.listdir())
    with pytest.raises(ConfigError):
        Settings(dsn=dsn)
    assert set(os.listdir()) == before


@pytest.mark.parametrize("folder", ["s3://bucket/x", "file:///srv/b", "$HOME/b", '"b"', "C:\\b", "a\x00b"])
def test_folders_of_backups_are_checked_too(folder: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="backup_dir"):
        Settings(backup_dir=folder)
    assert Settings(backup_dir=f"{tmp_path}/").backup_dir == f"{tmp_path}/"
    assert Settings(backup_dir="..").backup_dir == ".."
