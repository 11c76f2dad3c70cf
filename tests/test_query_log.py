"""The log of statements: GORM's levels, the line that is slow, and nothing of a row unless it is asked for."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

import peewee
import psycopg2.sql
import pytest

from tests.conftest import Place
from whatspire_db import Settings, connect

SECRET = "hunter2"


def logged(place: Place, caplog: pytest.LogCaptureFixture, **settings: Any) -> list[logging.LogRecord]:
    """Run statements that succeed, that are slow, and that fail, and return what was logged at DEBUG by anybody."""
    db = connect(Settings(driver=place.driver, dsn=place.dsn, **settings), bind=False)
    mark = "?" if place.is_sqlite else "%s"
    slow = "SELECT count(*) FROM (WITH RECURSIVE r (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < 300000) "
    with caplog.at_level(logging.DEBUG), db.connection_context():
        caplog.clear()
        db.execute_sql("CREATE TABLE kept (secret text CONSTRAINT once UNIQUE)")
        with db.atomic():
            db.execute_sql(f"INSERT INTO kept VALUES ({mark})", (SECRET,))
        db.execute_sql(f"{slow} SELECT n FROM r) AS s")
        with pytest.raises(peewee.IntegrityError):
            db.execute_sql(f"INSERT INTO kept VALUES ({mark})", (SECRET,))
        db.execute_sql("DROP TABLE kept")
    if hasattr(db, "close_all"):
        db.close_all()
    return list(caplog.records)


def texts(records: list[logging.LogRecord]) -> list[str]:
    return [record.getMessage() for record in records if record.name == "whatspire_db"]


@pytest.mark.parametrize(
    ("level", "levels"),
    [
        ("silent", set()),
        ("error", {logging.ERROR}),
        ("warn", {logging.ERROR, logging.WARNING}),
        ("info", {logging.ERROR, logging.WARNING, logging.INFO}),
    ],
)
def test_levels(place: Place, caplog: pytest.LogCaptureFixture, level: str, levels: set[int]) -> None:
    records = logged(place, caplog, log_level=level, slow_threshold=timedelta(milliseconds=20))
    assert {record.levelno for record in records if record.name.startswith("whatspire_db")} == levels
    assert SECRET not in "".join(record.getMessage() for record in records)


def test_info_has_every_statement_with_its_duration_and_rows(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    lines = texts(logged(place, caplog, log_level="info", slow_threshold=timedelta(0)))
    ran = [line.split(" rows: ")[-1].split(": ")[-1].split()[0] for line in lines]
    assert ran == ["CREATE", "BEGIN", "INSERT", "COMMIT", "SELECT", "INSERT", "DROP"]
    insert = lines[2]
    assert insert.split(" ms, ")[1].startswith("1 rows: INSERT INTO kept")
    assert float(insert.split(" ms, ")[0]) >= 0


def test_a_failure_names_its_kind_and_the_line_and_no_value(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    (line,) = texts(logged(place, caplog, log_level="error"))
    kind = "IntegrityError" if place.is_sqlite else "UniqueViolation (23505, once)"
    assert f"with {kind}" in line
    assert "INSERT INTO kept" in line
    assert "test_query_log.py:" in line


def test_a_slow_statement_names_the_line(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    records = logged(place, caplog, slow_threshold=timedelta(milliseconds=20))
    slow = [record.getMessage() for record in records if record.levelno == logging.WARNING]
    assert any("WITH RECURSIVE" in line and "test_query_log.py:" in line for line in slow)


def test_zero_is_never_slow(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    records = logged(place, caplog, slow_threshold=timedelta(0))
    assert not [record for record in records if record.levelno == logging.WARNING]


def test_parameters_are_logged_where_that_is_asked_for(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    lines = texts(logged(place, caplog, log_level="info", log_parameters=True))
    assert sum(f"with ['{SECRET}']" in line for line in lines) == 2


def test_of_a_long_statement_the_beginning_is_logged(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    db = connect(Settings(driver=place.driver, dsn=place.dsn, log_level="info"), bind=False)
    values = ", ".join(f"({number})" for number in range(5000))
    with caplog.at_level(logging.INFO), db.connection_context():
        db.execute_sql(f"SELECT count(*) FROM (VALUES {values}) AS v")
    db.close_all()
    (line,) = (line for line in texts(caplog.records) if "VALUES" in line)
    assert line.endswith("...")
    assert len(line) < 11_000


def test_a_commit_that_fails_is_logged(postgres: Place, caplog: pytest.LogCaptureFixture) -> None:
    db = connect(Settings(driver="postgres", dsn=postgres.dsn), bind=False)
    with db.connection_context():
        db.execute_sql("CREATE TABLE later (n integer UNIQUE DEFERRABLE INITIALLY DEFERRED)")
        with caplog.at_level(logging.ERROR), pytest.raises(peewee.IntegrityError), db.atomic():
            db.execute_sql("INSERT INTO later VALUES (1), (1)")
    db.close_all()
    (line,) = caplog.messages
    assert "UniqueViolation" in line
    assert "COMMIT" in line


@pytest.mark.parametrize("statement", [b"SELECT 'hunter2', 1 / 0", psycopg2.sql.SQL("SELECT 'hunter2', 1 / 0")])
def test_a_statement_that_is_no_text_is_logged_without_it(
    postgres: Place, caplog: pytest.LogCaptureFixture, statement: Any
) -> None:
    db = connect(Settings(driver="postgres", dsn=postgres.dsn), bind=False)
    with db.connection_context(), pytest.raises(peewee.DataError):
        db.execute_sql(statement)
    db.close_all()
    assert "DivisionByZero" in caplog.text
    assert SECRET not in caplog.text
