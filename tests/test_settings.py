"""Settings: arguments over the environment over .env over defaults, and valid however they are made."""

from __future__ import annotations

import copy
import logging
import os
import pickle
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whatspire_db import ConfigError, Settings, connect
from whatspire_db.settings import FIELDS, KINDS, variable
from whatspire_db.settings.kinds import PREFIX
from whatspire_db.settings.variable_names import distance

NAMES = [name.removeprefix(PREFIX) for name in FIELDS if name.startswith(PREFIX)]
SECRET = "Zq7SECRETx9"
SECRETS = [
    f"postgres://me:{SECRET}@127.0.0.1:1/db",
    f"host=x password={SECRET}",
    f"Server=x;Pwd={SECRET}",
    SECRET,
    f'{{"password": "{SECRET}"}}',
]
DURATIONS = [
    "CONN_MAX_LIFETIME",
    "POOL_TIMEOUT",
    "SLOW_THRESHOLD",
    "MIGRATION_LOCK_TIMEOUT",
    "HEALTH_TIMEOUT",
    "DATA_STALL",
]
COUNTS = ["MAX_IDLE_CONNS", "MAX_OPEN_CONNS", "MIGRATION_ONLINE_ROWS"]
BOOLEANS = ["LOG_PARAMETERS", "ONLY_MODELS", "BACKUP_BEFORE_MIGRATE"]
CHOICES = ["DRIVER", "LOG_LEVEL", "RECORD_RUNS"]
JSONS = ["ACCEPTED_DRIFT"]
TEXTS = ["DSN", "REPLICA_DSN", "MODELS", "BACKUP_DIR", "BACKUP_NAME"]


def read(**variables: str) -> Settings:
    return Settings.from_environment({PREFIX + name: value for name, value in variables.items()}, None)


def test_the_names_below_are_all_settings() -> None:
    assert sorted(DURATIONS + COUNTS + BOOLEANS + CHOICES + JSONS + TEXTS) == sorted(NAMES)


def test_defaults(tmp_path: Path) -> None:
    settings = Settings.from_environment({}, tmp_path / ".env")
    assert settings == Settings()
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


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("empty", ["", " ", "\n"])
def test_an_empty_variable_counts_as_unset(name: str, empty: str, tmp_path: Path) -> None:
    assert read(**{name: empty}) == Settings()
    assert Settings(**{name.lower(): empty}) == Settings(**{name.lower(): None}) == Settings()
    (tmp_path / ".env").write_text("WHATSAPP_DATABASE_DSN=file.db\n")
    assert Settings.from_environment({PREFIX + name: empty}, tmp_path / ".env").dsn == "file.db"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("DRIVER", "SQLite", "sqlite"),
        ("DSN", "x.db", "x.db"),
        ("REPLICA_DSN", "y.db", "y.db"),
        ("MAX_OPEN_CONNS", "+5", 5),
        ("POOL_TIMEOUT", "1m30s", timedelta(seconds=90)),
        ("LOG_LEVEL", "WARN", "warn"),
        ("LOG_LEVEL", "Debug", "info"),
        ("LOG_LEVEL", "silent", "silent"),
        ("LOG_PARAMETERS", "True", True),
        ("ONLY_MODELS", "1", True),
        ("MODELS", "a.b, c,", ("a.b", "c")),
        ("RECORD_RUNS", "ALL", "all"),
        ("BACKUP_DIR", "/srv/b", "/srv/b"),
        ("BACKUP_NAME", "one", "one"),
    ],
)
def test_values_are_stripped_and_read_alike_from_variables_and_in_code(name: str, text: str, value: object) -> None:
    for spelling in (text, f" {text}\n", f"\t{text}\r\n"):
        assert getattr(read(**{name: spelling}), name.lower()) == value
        assert getattr(Settings(**{name.lower(): spelling}), name.lower()) == value
    assert getattr(Settings(**{name.lower(): value}), name.lower()) == value


WRONG = [
    *((name, text) for name in COUNTS for text in ("-5", "1.5", "many", "9999999999", "5 # five")),
    *((name, text) for name in DURATIONS for text in ("-1s", "30", "soon", "1s # a second")),
    *((name, text) for name in BOOLEANS for text in ("yes", "2")),
    *((name, text) for name in CHOICES for text in ("loud", "oracle", "sqlite3")),
    *(("MODELS", text) for text in ("a/b.py", "models.py", "a b", ".", "a..b", ",")),
    *((name, text) for name in (*COUNTS, *DURATIONS, *BOOLEANS, *CHOICES, "MODELS") for text in SECRETS[:3]),
    *((name, f"{quote}{text}{quote}") for name, text in [("DRIVER", "sqlite"), ("LOG_LEVEL", "warn"),
      ("BACKUP_NAME", "x"), ("BACKUP_DIR", "b"), ("DSN", "x.db"), ("MODELS", "m")] for quote in "'\"`"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text"), WRONG)
def test_wrong_values_are_refused_by_the_name_that_was_used(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"^{variable(name.lower())} ") as by_variable:
        read(**{name: text})
    with pytest.raises(ConfigError, match=f"^{name.lower()} ") as in_code:
        Settings(**{name.lower(): text})
    assert SECRET not in f"{by_variable.value!r} {in_code.value!r}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_open_conns", -5),
        ("max_open_conns", True),
        ("max_open_conns", 1.5),
        ("max_idle_conns", 10**9),
        ("pool_timeout", timedelta(seconds=-1)),
        ("pool_timeout", 30),
        ("log_level", "loud"),
        ("log_level", 3),
        ("record_runs", "x"),
        ("migration_online_rows", -1),
        ("log_parameters", 1),
        ("models", (1,)),
        ("models", ("a b",)),
        ("dsn", {"host": SECRET}),
        ("dsn", b"x.db"),
        ("backup_dir", "s3://bucket/x"),
    ],
)
def test_wrong_values_in_code_are_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"^{name}\b") as error:
        Settings(**{name: value})
    assert SECRET not in repr(error.value)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in TEXTS])
@pytest.mark.parametrize("secret", SECRETS)
def test_a_dsn_in_the_wrong_variable_is_not_repeated(name: str, secret: str) -> None:
    with pytest.raises(ConfigError, match=PREFIX + name) as error:
        read(**{name: secret})
    assert SECRET not in repr(error.value)


@pytest.mark.parametrize(
    ("name", "text", "most"),
    [
        ("MAX_OPEN_CONNS", "1000000000", "999999999"),
        ("POOL_TIMEOUT", "2562048h", "2562047h"),
    ],
)
def test_hint_for_a_value_that_is_too_large_names_the_largest(name: str, text: str, most: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read(**{name: text})
    assert f"from 0 to {most}" in refused.value.hint
    assert read(**{name: most})


def test_a_negative_duration_is_shown_as_it_was_written() -> None:
    with pytest.raises(ConfigError, match="POOL_TIMEOUT is '-1h'"):
        read(POOL_TIMEOUT="-1h")


def test_a_replica_of_the_other_engine_is_refused_by_the_names_of_what_was_given() -> None:
    with pytest.raises(ConfigError, match="REPLICA_DSN is a PostgreSQL DSN, but the database itself is SQLite"):
        read(DSN="x.db", REPLICA_DSN="postgres://h/d")
    with pytest.raises(ConfigError, match="replica_dsn is a SQLite DSN, but the database itself is PostgreSQL"):
        Settings(dsn="postgres://h/d", replica_dsn="x.db")


@given(st.text(max_size=30), st.sampled_from(NAMES))
def test_any_text_is_taken_or_a_config_error(text: str, name: str) -> None:
    try:
        first = read(**{name: text})
    except ConfigError:
        with pytest.raises(ConfigError):
            Settings(**{name.lower(): text})
    else:
        assert first == Settings(**{name.lower(): text}) == replace(first)


def test_paths_and_lists_are_taken_in_code(tmp_path: Path) -> None:
    settings = Settings(dsn=tmp_path / "x.db", backup_dir=tmp_path, models=["a", "b"])  # type: ignore[arg-type]
    assert (settings.dsn, settings.backup_dir, settings.models) == (f"{tmp_path}/x.db", str(tmp_path), ("a", "b"))


def test_settings_copy_and_pickle() -> None:
    settings = read(DSN="x.db", MAX_OPEN_CONNS="5")
    assert copy.deepcopy(settings) == pickle.loads(pickle.dumps(settings)) == replace(settings) == settings  # noqa: S301
    assert settings.origins == {"dsn": PREFIX + "DSN", "max_open_conns": PREFIX + "MAX_OPEN_CONNS"}


# Driver and DSN.


@pytest.mark.parametrize("dsn", ["postgres://h/d", "PostgreSQL://h/d", "host=h dbname=d", " user=u\n", "service=x"])
def test_a_postgres_dsn_without_a_driver_means_postgres(dsn: str) -> None:
    assert Settings(dsn=dsn).driver == read(DSN=dsn).driver == "postgres"


@pytest.mark.parametrize(
    ("driver", "dsn"),
    [
        ("sqlite", "postgres://h/d"),
        ("sqlite", "host=h dbname=d"),
        ("postgres", "data/w.db"),
        ("postgres", "/srv/w"),
        ("postgres", ":memory:"),
        ("postgres", "file:w.db?mode=ro"),
    ],
)
def test_driver_and_dsn_that_contradict_each_other_are_refused(driver: str, dsn: str) -> None:
    with pytest.raises(ConfigError, match=f"{PREFIX}DSN is a .* DSN, but {PREFIX}DRIVER is {driver}"):
        read(DRIVER=driver, DSN=dsn)
    with pytest.raises(ConfigError, match=f"^dsn is a .* DSN, but driver is {driver}"):
        Settings(driver, dsn)
    with pytest.raises(ConfigError, match=f"^--dsn is a .* DSN, but {PREFIX}DRIVER is {driver}"):
        Settings.from_environment({PREFIX + "DRIVER": driver}, None, dsn=dsn, option_prefix="--")
    with pytest.raises(ConfigError, match=f"^{PREFIX}DSN is a .* DSN, but --driver is {driver}"):
        Settings.from_environment({PREFIX + "DSN": dsn}, None, driver=driver, option_prefix="--")


def test_replica_of_the_other_engine_is_refused() -> None:
    with pytest.raises(ConfigError, match="REPLICA_DSN is a PostgreSQL DSN"):
        read(DSN="x.db", REPLICA_DSN="host=standby")
    with pytest.raises(ConfigError, match="REPLICA_DSN is a SQLite DSN"):
        read(DSN="host=primary", REPLICA_DSN="copy.db")


def test_postgres_needs_a_dsn() -> None:
    with pytest.raises(ConfigError, match="DSN is not set"):
        read(DRIVER="postgres")
    with pytest.raises(ConfigError, match="dsn is not set"):
        Settings("postgres")


def test_a_password_is_in_no_repr() -> None:
    for dsn in ("host=h user=u password=hunter2 dbname=d", "postgres://u:hunter2@h/d"):
        settings = Settings(driver="postgres", dsn=dsn, replica_dsn=dsn)
        assert "hunter2" not in repr(settings) + str(settings) + repr(settings.target) + str(settings.target)


# Names of variables.


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("DNS", "DSN"),
        ("MAX_OPEN_CONN", "MAX_OPEN_CONNS"),
        ("MAX_OPENCONNS", "MAX_OPEN_CONNS"),
        ("POOL_TIMOUT", "POOL_TIMEOUT"),
        ("LOGLEVEL", "LOG_LEVEL"),
        ("log_level", "LOG_LEVEL"),
        ("LOG-LEVEL", "LOG_LEVEL"),
        ("DRIVERS", "DRIVER"),
        ("MODEL", "MODELS"),
        ("REPLICA_DNS", "REPLICA_DSN"),
    ],
)
def test_a_name_that_is_almost_a_settings_is_refused(name: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is not a setting .*{PREFIX}{meant}:") as error:
        read(**{name: SECRET})
    assert SECRET not in repr(error.value)


def test_a_name_in_small_letters_is_refused() -> None:
    with pytest.raises(ConfigError, match="the setting is WHATSAPP_DATABASE_DSN"):
        Settings.from_environment({"whatsapp_database_dsn": "x.db"}, None)


def test_a_mistyped_name_without_a_value_is_no_matter() -> None:
    assert read(DNS="") == Settings()


def test_other_names_are_warned_of_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    others = ["CONN_MAX_IDLE_TIME", "TABLE_PREFIX", "SSL_MODE", "URL", "HOST", "PASSWORD", "MODE"]
    variables = {PREFIX + name: SECRET for name in others} | {"WHATSAP_DATABASE_DSN": SECRET, "WHATSAPP_OTHER": "x"}
    with caplog.at_level(logging.WARNING, "whatspire_db"):
        assert Settings.from_environment(variables, None) == Settings()
    (record,) = caplog.records
    assert all(PREFIX + name in record.getMessage() for name in others)
    assert "WHATSAP_DATABASE_DSN" in record.getMessage()
    assert "WHATSAPP_OTHER" not in record.getMessage()
    assert SECRET not in record.getMessage()


def test_names_that_kubernetes_sets_are_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    links = {
        f"{service}{end}": "tcp://10.0.0.1:5432"
        for service in ("WHATSAPP_DATABASE", "WHATSAPP_DATABASE_REPLICA", "WHATSAPP_DATABASE_DSN")
        for end in ("_PORT", "_SERVICE_HOST", "_SERVICE_PORT", "_SERVICE_PORT_POSTGRES", "_PORT_5432_TCP",
                    "_PORT_5432_TCP_PROTO", "_PORT_5432_TCP_PORT", "_PORT_5432_TCP_ADDR")
    }  # fmt: skip
    assert Settings.from_environment(links, None) == Settings()
    assert not caplog.records


@given(st.sampled_from(NAMES), st.data())
def test_one_slip_in_a_name_is_never_passed_over(name: str, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(name) - 1))
    swapped = name[:place] + name[place : place + 2][::-1] + name[place + 2 :]
    for mistyped in (swapped, name[:place] + name[place + 1 :], name[:place] + "X" + name[place:]):
        if mistyped in NAMES:
            continue
        assert distance(mistyped, name) <= 1
        with pytest.raises(ConfigError, match="is not a setting"):
            read(**{mistyped: "x"})


def test_every_setting_is_a_field_and_has_a_kind() -> None:
    assert [variable(field) for field in KINDS] == list(FIELDS)
    assert {name for name in FIELDS if not name.startswith(PREFIX)} == {
        "WHATSAPP_EVENTS_ENABLED",
        "WHATSAPP_EVENTS_RETENTION_DAYS",
    }
    assert all(isinstance(getattr(Settings(), field), object) for field in KINDS)


def test_folder_of_the_default_is_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [n for n in os.environ if n.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    db = connect()
    db.execute_sql("SELECT 1")
    assert (tmp_path / "data" / "whatspire.db").exists()
    assert db.execute_sql("PRAGMA journal_mode").fetchone() == ("wal",)
    assert db.execute_sql("PRAGMA foreign_keys").fetchone() == (1,)
    db.close()


@pytest.mark.parametrize("dsn", ["\udcff.db", "file:%ff.db", "file:/data/\udcff.db"])
def test_a_file_whose_name_is_not_utf8_is_refused(dsn: str) -> None:
    with pytest.raises(ConfigError, match="WHATSAPP_DATABASE_DSN has bytes that are not UTF-8"):
        Settings.from_environment({"WHATSAPP_DATABASE_DSN": dsn, "WHATSAPP_CONFIG": ""}, None)
    assert Settings(dsn="file:%C3%A4%25.db").target.path == "ä%.db"  # type: ignore[union-attr]


def test_a_dsn_in_the_place_of_a_name_is_refused_and_not_shown() -> None:
    for text in ("postgres://u:Zq7SECRETx9@h/db", "host=h password=Zq7SECRETx9"):
        with pytest.raises(ConfigError, match="BACKUP_NAME is what looks like a DSN") as error:
            Settings.from_environment({"WHATSAPP_DATABASE_BACKUP_NAME": text, "WHATSAPP_CONFIG": ""}, None)
        assert "Zq7SECRETx9" not in str(error.value)
        with pytest.raises(ConfigError):
            Settings(backup_name=text)
