"""Settings: one table of fields, read from arguments, the environment and .env, and valid however they are made."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import lru_cache

from ..dsn.forms import POSTGRES, POSTGRES_FORMS, SQLITE, check_folder, is_plainly_sqlite, kind_of
from ..dsn.targets import PostgresTarget, SqliteTarget
from ..errors import ConfigError
from ..light_stdlib import Any, dataclass, field, fields
from .kinds import BOOLEAN, COUNT, DIFFERENCES, DURATION, MODULES, PREFIX, TEXT, Kind, checked, choice

DRIVERS = (SQLITE, POSTGRES)
LOG_LEVELS = ("silent", "error", "warn", "info")
DEFAULT_SQLITE_DSN = "data/whatspire.db"
DRIVER = choice(*DRIVERS)
LOG_LEVEL = choice(*LOG_LEVELS, debug="info")  # the level at which the Go service logs its SQL
RECORD_RUNS = choice("changes", "all")

logger = logging.getLogger("whatspire_db")


def _setting(kind: Kind, default: Any, *, secret: bool = False) -> Any:
    return field(default=default, repr=not secret, metadata={"kind": kind})


@dataclass(frozen=True)
class Settings:
    """What the WHATSAPP_DATABASE_* variables say; `from_environment` reads them.

    Each field is a setting: its name in capitals is the variable's. It takes a value of its own type or the text
    that the variable takes; blanks around a text are dropped, and an empty one counts as not given. Without `driver`
    the DSN decides. The DSN may hold a password and is left out of the repr.

    :raises ConfigError: names the setting, what it got and what it takes.
    """

    driver: str = _setting(DRIVER, "")
    dsn: str = _setting(TEXT, "", secret=True)
    max_idle_conns: int = _setting(COUNT, 10)
    max_open_conns: int = _setting(COUNT, 100)  # 0: no limit
    conn_max_lifetime: timedelta = _setting(DURATION, timedelta(hours=1))  # 0: no limit
    pool_timeout: timedelta = _setting(DURATION, timedelta(seconds=30))  # 0: no limit
    replica_dsn: str | None = _setting(TEXT, None, secret=True)
    log_level: str = _setting(LOG_LEVEL, "warn")
    slow_threshold: timedelta = _setting(DURATION, timedelta(milliseconds=200))  # 0: nothing is slow
    log_parameters: bool = _setting(BOOLEAN, False)
    models: tuple[str, ...] = _setting(MODULES, ())
    only_models: bool = _setting(BOOLEAN, False)
    record_runs: str = _setting(RECORD_RUNS, "changes")
    migration_lock_timeout: timedelta = _setting(DURATION, timedelta(seconds=60))
    health_timeout: timedelta = _setting(DURATION, timedelta(seconds=5))
    migration_online_rows: int = _setting(COUNT, 10_000)
    accepted_drift: tuple[tuple[str | None, ...], ...] = _setting(DIFFERENCES, ())
    backup_dir: str = _setting(TEXT, "backups")
    backup_name: str | None = _setting(TEXT, None)  # the database's
    backup_before_migrate: bool = _setting(BOOLEAN, False)
    # Which settings were given, by field, and under which name: a variable or an option.
    origins: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        given = {name: checked(name, getattr(self, name), kind) for name, kind in KINDS.items()}
        for name, value in _completed(given, {}).items():
            object.__setattr__(self, name, value)

    def name_of(self, field: str) -> str:
        """Return the name under which a field was given, else that of its variable."""
        return self.origins.get(field) or variable(field)

    @property
    def target(self) -> SqliteTarget | PostgresTarget:
        """Return the parsed DSN."""
        return _parsed(self.driver, "dsn", self.dsn)

    @property
    def replica_target(self) -> SqliteTarget | PostgresTarget | None:
        """Return the parsed DSN of the replica, None where there is none."""
        return _parsed(self.driver, "replica_dsn", self.replica_dsn) if self.replica_dsn else None

    def before_migration(self) -> Callable[[], str | None] | None:
        """Return what makes a backup before a migration changes anything; None unless these settings ask for one.

        The migrator calls it and knows of no backups.
        """
        if not self.backup_before_migrate:
            return None
        from ..backup.before_migration import before_migration

        return before_migration(self)

    @classmethod
    def from_environment(
        cls,
        environ: Mapping[str, str] | None = None,
        dotenv: str | os.PathLike[str] | None = ".env",
        *,
        driver: str | None = None,
        dsn: str | None = None,
        option_prefix: str = "",
    ) -> Settings:
        """Read the variables: arguments given here, over the environment, over a .env file, over defaults.

        :param environ: the environment; default os.environ.
        :param dotenv: a file to read where there is one; None reads none.
        :param option_prefix: what stands before `driver` and `dsn` in messages, like "--".
        :raises ConfigError: names the variable, what it got and what it takes.
        """
        argued = {"driver": driver or "", "dsn": dsn or ""}
        sources = [*_variables(environ, dotenv), Source(argued, lambda field: option_prefix + field)]
        return cls._from_sources(sources)

    @classmethod
    def _from_sources(cls, sources: list[Source]) -> Settings:
        """Return the settings of sources, each over those before it; an empty text counts as not given."""
        found: dict[str, tuple[str, str]] = {}
        for source in sources:
            found |= {f: (source.name_of(f), text) for f, text in source.texts.items() if text.strip()}
        origins = {field: name for field, (name, _) in found.items()}
        given = {field: checked(name, text, KINDS[field]) for field, (name, text) in found.items()}
        made = cls.__new__(cls)  # what was just checked is not checked again
        vars(made).update(_completed(given, origins), origins=origins)
        return made


@dataclass(frozen=True)
class Source:
    """Texts of settings by field, and the name that a field has where they come from."""

    texts: Mapping[str, str]
    name_of: Callable[[str], str]


_TABLE = {field.name: field for field in fields(Settings) if field.metadata}
KINDS: Mapping[str, Kind] = {name: field.metadata["kind"] for name, field in _TABLE.items()}
NAMES = tuple(name.upper() for name in KINDS)


def variable(field: str) -> str:
    """Return the name of a field's environment variable."""
    return PREFIX + field.upper()


def _variables(environ: Mapping[str, str] | None, dotenv: str | os.PathLike[str] | None) -> list[Source]:
    """Return .env and the environment as sources; warn once of names that may be another program's.

    :raises ConfigError: for a name that is almost a setting's, and for a .env that cannot be understood.
    """
    written: Mapping[str, str] = {}
    if dotenv is not None and _may_exist(dotenv):
        from .dotenv_file import read_dotenv  # only where there is one

        written = read_dotenv(dotenv, PREFIX)
    found = [written, os.environ if environ is None else environ]
    names = {name for variables in found for name, text in variables.items() if text.strip()}
    by_name = {variable(field): field for field in KINDS}
    if doubtful := {name for name in names - by_name.keys() if name[:4].upper() == PREFIX[:4]}:
        from .variable_names import check_names  # only where a name is no setting's

        if unknown := check_names(doubtful, NAMES):
            logger.warning("ignored, for no such setting is known here: %s", ", ".join(unknown))
    return [Source({by_name[n]: t for n, t in each.items() if n in by_name}, variable) for each in found]


def _may_exist(path: str | os.PathLike[str]) -> bool:
    """Return False only where a path is known to lead to nothing; whatever else is wrong, its reader says."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return True
    return True


def _completed(given: Mapping[str, Any], origins: Mapping[str, str]) -> dict[str, Any]:
    """Return the values of all fields: those that are given, and defaults; the DSN decides for a driver.

    :raises ConfigError: when DSN and driver contradict each other, or a DSN or a folder is none.
    """
    values: dict[str, Any] = {f: field.default if given.get(f) is None else given[f] for f, field in _TABLE.items()}

    def name_of(field: str) -> str:
        return origins.get(field, field)

    if values["dsn"]:
        values["driver"] = _driver_for(values["driver"], values["dsn"], name_of, "dsn")
    elif values["driver"] == POSTGRES:
        missing = variable("dsn") if origins else "dsn"
        raise ConfigError(f"{missing} is not set", f"{name_of('driver')}=postgres takes {POSTGRES_FORMS}")
    else:
        values |= {"driver": SQLITE, "dsn": DEFAULT_SQLITE_DSN}
    if values["replica_dsn"]:
        _driver_for(values["driver"], values["replica_dsn"], name_of, "replica_dsn")
    check_folder(name_of("backup_dir"), values["backup_dir"])
    return values


def _driver_for(driver: str, dsn: str, name_of: Callable[[str], str], field: str) -> str:
    """Return the driver of a DSN, which is found to be malformed here and not at the first query.

    :raises ConfigError: when the DSN is neither engine's, is malformed, or is not that of the given driver.
    """
    kind = kind_of(name_of(field), dsn)
    if driver == POSTGRES != kind and not is_plainly_sqlite(dsn):
        kind = POSTGRES  # libpq's parser says what is wrong
    if driver and kind != driver:
        titles = {SQLITE: "SQLite", POSTGRES: "PostgreSQL"}
        fact = f"{name_of(field)} is a {titles[kind]} DSN"
        if field == "replica_dsn":
            hint = f"give the DSN of a replica of it, or leave {name_of(field)} out"
            raise ConfigError(f"{fact}, but the database itself is {titles[driver]}", hint)
        raise ConfigError(
            f"{fact}, but {name_of('driver')} is {driver}",
            f"set {name_of('driver')}={kind} or leave it out, or give the DSN of a {driver} database",
        )
    _parsed(kind, name_of(field), dsn)
    return kind


@lru_cache(maxsize=8)
def _parsed(driver: str, name: str, dsn: str) -> SqliteTarget | PostgresTarget:
    # A worker loads the parser of its own engine alone.
    if driver == POSTGRES:
        from ..dsn.postgres import read_postgres

        return read_postgres(name, dsn)
    from ..dsn.sqlite import parse_sqlite

    return parse_sqlite(dsn)
