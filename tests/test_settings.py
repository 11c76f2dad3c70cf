"""Settings from the environment, over .env, over defaults; durations as Go reads them."""

from __future__ import annotations

import json
import logging
import os
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whatspire_db import ConfigError, Settings
from whatspire_db.settings import parse_duration

GO_DURATIONS = Path(__file__).parent / "data" / "go_durations.json"


def read(text: str) -> timedelta | None:
    try:
        return parse_duration(text)
    except ValueError:
        return None


def whole_microseconds(nanoseconds: int | None) -> timedelta | None:
    """Return a duration without its parts of a microsecond, dropped toward zero."""
    if nanoseconds is None:
        return None
    return timedelta(microseconds=nanoseconds // 1000 if nanoseconds >= 0 else -(-nanoseconds // 1000))


def test_durations_are_gos() -> None:
    # The table holds what time.ParseDuration of Go 1.19.8 made of each text: nanoseconds, or null for an error.
    go = {text: whole_microseconds(n) for text, n in json.loads(GO_DURATIONS.read_text("utf-8"))}
    assert {text: read(text) for text in go} == go


def test_digits_beyond_what_python_reads_are_gos() -> None:
    assert parse_duration("0" * 5000 + "1s") == parse_duration("1." + "0" * 5000 + "s") == timedelta(seconds=1)
    assert parse_duration("0." + "9" * 5000 + "s") == timedelta(seconds=1)  # rounded
    for text, reason in (("9" * 5000 + "s", "is out of range"), ("9" * 5000, "is not a duration")):
        with pytest.raises(ValueError, match=reason):
            parse_duration(text)


@given(st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=90_000)))
def test_durations_round_trip(duration: timedelta) -> None:
    micros = duration // timedelta(microseconds=1)
    hours, rest = divmod(micros, 3_600_000_000)
    minutes, rest = divmod(rest, 60_000_000)
    assert parse_duration(f"{hours}h{minutes}m{rest / 1_000_000:.6f}s") == duration


@given(st.text(alphabet="0123456789.hmsunµ+- x", max_size=12))
def test_any_text_is_a_duration_or_a_value_error(text: str) -> None:
    try:
        assert isinstance(parse_duration(text), timedelta)
    except ValueError:
        pass


def test_defaults(tmp_path: Path) -> None:
    settings = Settings.from_environment({}, tmp_path / ".env")
    assert settings == Settings(
        driver="sqlite",
        dsn="data/whatspire.db",
        max_idle_conns=10,
        max_open_conns=100,
        conn_max_lifetime=timedelta(hours=1),
        log_level="warn",
    )


def test_environment_goes_over_dotenv_over_defaults(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("WHATSAPP_DATABASE_DSN=from-file.db\nWHATSAPP_DATABASE_MAX_OPEN_CONNS=5\nOTHER=1\n")
    settings = Settings.from_environment({"WHATSAPP_DATABASE_DSN": "from-environment.db"}, dotenv)
    assert (settings.dsn, settings.max_open_conns, settings.max_idle_conns) == ("from-environment.db", 5, 10)
    assert Settings.from_environment({}, dotenv, dsn="argument.db").dsn == "argument.db"
    assert Settings.from_environment({}, None).dsn == "data/whatspire.db"


def test_dotenv_that_is_a_folder_is_not_read(tmp_path: Path) -> None:
    assert Settings.from_environment({}, tmp_path).driver == "sqlite"


def test_dotenv_that_is_no_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"\xff\xfe\x00WHATSAPP")
    with pytest.raises(ConfigError, match="cannot be read"):
        Settings.from_environment({}, tmp_path / ".env")


def test_unknown_name_is_warned_of_with_the_nearest(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "whatspire_db"):
        Settings.from_environment({"WHATSAPP_DATABASE_MAX_OPEN_CONN": "hunter2", "WHATSAPP_OTHER": "x"}, None)
    (record,) = caplog.records
    assert "WHATSAPP_DATABASE_MAX_OPEN_CONN is not a setting" in record.getMessage()
    assert "nearest is WHATSAPP_DATABASE_MAX_OPEN_CONNS" in record.getMessage()
    assert "hunter2" not in record.getMessage()


def test_a_password_is_in_no_repr() -> None:
    for dsn in ("host=h user=u password=hunter2 dbname=d", "postgres://u:hunter2@h/d"):
        settings = Settings(driver="postgres", dsn=dsn)
        assert "hunter2" not in repr(settings) + str(settings) + repr(settings.target) + str(settings.target)


def test_wrong_values_in_code_are_errors_too() -> None:
    with pytest.raises(ConfigError, match="DRIVER"):
        Settings(driver="oracle")
    with pytest.raises(ConfigError, match="malformed"):
        Settings(driver="postgres", dsn="what is this")


def test_folder_of_the_default_is_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from whatspire_db import connect

    monkeypatch.chdir(tmp_path)
    for name in [n for n in os.environ if n.startswith("WHATSAPP_DATABASE_")]:
        monkeypatch.delenv(name)
    db = connect()
    db.execute_sql("SELECT 1")
    assert (tmp_path / "data" / "whatspire.db").exists()
    assert db.execute_sql("PRAGMA journal_mode").fetchone() == ("wal",)
    assert db.execute_sql("PRAGMA foreign_keys").fetchone() == (1,)
    db.close()
