"""Settings: one table of fields, read from arguments, the environment, .env and the service's config file.

They are valid however they are made.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import lru_cache

from ..dsn.forms import POSTGRES, POSTGRES_FORMS, SQLITE, check_folder, is_plainly_sqlite, kind_of
from ..dsn.targets import PostgresTarget, SqliteTarget
from ..errors import ConfigError
from ..light_stdlib import TYPE_CHECKING, Any, dataclass, field, fields
from .kinds import (
    BOOLEAN,
    CONFIG,
    COUNT,
    DIFFERENCES,
    DURATION,
    EVENTS,
    MODULES,
    NAME,
    PREFIX,
    SERVICE,
    TEXT,
    TIME,
    Kind,
    checked,
    choice,
)

if TYPE_CHECKING:
    from .config_file import ConfigFile

DRIVERS = (SQLITE, POSTGRES)
LOG_LEVELS = ("silent", "error", "warn", "info")
DEFAULT_SQLITE_DSN = "data/whatspire.db"
DRIVER = choice(*DRIVERS)
LOG_LEVEL = choice(*LOG_LEVELS, debug="info")  # the level at which the Go service logs its SQL
RECORD_RUNS = choice("changes", "all")
# Where the service looks for its config file, in this order; the first file that is there is the one.
CONFIG_FOLDERS = (".", "config", "/etc/whatspire", "~/.whatspire")
CONFIG_NAMES = ("config.yaml", "config.yml", "config.json")

logger = logging.getLogger("whatspire_db")


def _setting(kind: Kind, default: Any, *, secret: bool = False) -> Any:
    return field(default=default, repr=not secret, metadata={"kind": kind})


@dataclass(frozen=True)
class Settings:
    """What the WHATSAPP_DATABASE_* variables and the service's config file say; `from_environment` reads them.

    Each field is a setting. Its name in capitals is the variable's, and as it stands here it is the key under
    `database:` in the file; those of `events` have the variables WHATSAPP_EVENTS_* and the keys under `events:`. A
    setting takes a value of its own type or the text that the variable takes; blanks around a text are dropped, and an
    empty one counts as not given. Without `driver` the DSN decides. The DSN may hold a password and is left out of the
    repr.

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
    data_stall: timedelta = _setting(TIME, timedelta(milliseconds=50))
    backup_dir: str = _setting(TEXT, "backups")
    backup_name: str | None = _setting(NAME, None)  # the database's
    backup_before_migrate: bool = _setting(BOOLEAN, False)
    events_enabled: bool = _setting(BOOLEAN, False)
    events_retention_days: int = _setting(COUNT, 30)  # 0: forever
    # Which settings were given, by field, and under which name: a variable, an option, or a key of the config file.
    origins: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    # Where they were given, by field; and the config file that was read, "" for none.
    sources: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    config: str = field(default="", compare=False, repr=False)

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
        config: str | os.PathLike[str] | None = None,
        option_prefix: str = "",
    ) -> Settings:
        """Read the settings: arguments, over the environment, over .env, over the config file, over defaults.

        :param environ: the environment; default os.environ.
        :param dotenv: a file to read where there is one; None reads none.
        :param config: a config file to read, "" for none; by default the one that WHATSAPP_CONFIG names, else the first
            that is found where the service looks.
        :param option_prefix: what stands before `driver`, `dsn` and `config` in messages, like "--".
        :raises ConfigError: names the setting, what it got and what it takes.
        """
        written, variables = _variables(environ, dotenv)
        argued = {"driver": driver or "", "dsn": dsn or ""}
        file = _config(config, [variables, written])
        sources = [
            *([_of_config(file)] if file else []),
            _of_variables(written, os.fspath(dotenv or "")),
            _of_variables(variables, "the environment"),
            Source(argued, lambda field: option_prefix + field, lambda field: option_prefix + field),
        ]
        return cls._from_sources(sources, file.name if file else "")

    @classmethod
    def _from_sources(cls, sources: list[Source], config: str) -> Settings:
        """Return the settings of sources, each over those before it; an empty text counts as not given."""
        found: dict[str, tuple[Source, str]] = {}
        for source in sources:
            found |= {field: (source, text) for field, text in source.texts.items() if text.strip()}
        origins = {field: source.name_of(field) for field, (source, _) in found.items()}
        places = {field: source.place_of(field) for field, (source, _) in found.items()}
        given = {field: checked(origins[field], text, KINDS[field]) for field, (_, text) in found.items()}
        made = cls.__new__(cls)  # what was just checked is not checked again
        vars(made).update(_completed(given, origins), origins=origins, sources=places, config=config)
        return made


@dataclass(frozen=True)
class Source:
    """Texts of settings by field, with the name that a field has where they come from, and the place itself."""

    texts: Mapping[str, str]
    name_of: Callable[[str], str]
    place_of: Callable[[str], str]


_TABLE = {field.name: field for field in fields(Settings) if field.metadata}
KINDS: Mapping[str, Kind] = {name: field.metadata["kind"] for name, field in _TABLE.items()}
OF_EVENTS = "events_"  # how the fields begin that the service keeps apart from its database's


def variable(field: str) -> str:
    """Return the name of a field's environment variable."""
    return (SERVICE if field.startswith(OF_EVENTS) else PREFIX) + field.upper()


def key_of(field: str) -> tuple[str, str]:
    """Return the section of the config file in which a field stands, and its key there."""
    return ("events", field[len(OF_EVENTS) :]) if field.startswith(OF_EVENTS) else ("database", field)


FIELDS = {variable(field): field for field in KINDS}  # by their variables


def _variables(
    environ: Mapping[str, str] | None, dotenv: str | os.PathLike[str] | None
) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """Return the variables of .env and those of the environment; warn once of names that may be another program's.

    :raises ConfigError: for a name that is almost a setting's, and for a .env that cannot be understood.
    """
    written: Mapping[str, str] = {}
    if dotenv is not None and _may_exist(dotenv):
        from .dotenv_file import read_dotenv  # only where there is one

        written = read_dotenv(dotenv, (PREFIX, EVENTS, CONFIG))
    found = written, os.environ if environ is None else environ
    names = {name for variables in found for name, text in variables.items() if text.strip()}
    if doubtful := {name for name in names - FIELDS.keys() - {CONFIG} if name[:4].upper() == PREFIX[:4]}:
        from .variable_names import check_names  # only where a name is no setting's

        if unknown := check_names(doubtful, [*FIELDS, CONFIG]):
            logger.warning("ignored, for no such setting is known here: %s", ", ".join(unknown))
    return found


def _of_variables(variables: Mapping[str, str], place: str) -> Source:
    texts = {FIELDS[name]: text for name, text in variables.items() if name in FIELDS}
    return Source(texts, variable, lambda field: place)


def _config(given: str | os.PathLike[str] | None, variables: list[Mapping[str, str]]) -> ConfigFile | None:
    """Return the config file that counts: one that is named, else the first that is found where the service looks.

    :param variables: where a variable may name one, those that count more first.
    :raises ConfigError: when it cannot be read or understood.
    """
    if given is None:
        given = next((each[CONFIG] for each in variables if CONFIG in each), None)
    named = given is not None
    path = os.fspath(given).strip() if given is not None else _found()
    if not path:
        return None
    from .config_file import read_config  # only where there is one

    return read_config(path, [key_of(field) for field in KINDS], named)


def _found() -> str | None:
    """Return the config file that is found first, as the service looks for it."""
    for folder in CONFIG_FOLDERS:
        for name in CONFIG_NAMES:
            path = os.path.join(os.path.expanduser(folder), name) if folder != "." else name
            # A folder that this user may not search counts as holding none, as the service has it.
            if os.path.lexists(path) and not os.path.isdir(path):
                return path
    return None


def _of_config(file: ConfigFile) -> Source:
    def place_of(field: str) -> str:
        return f"line {file.entries[key_of(field)].line} of {file.name}"

    def name_of(field: str) -> str:
        return f"{'.'.join(key_of(field))} ({place_of(field)})"

    texts = {field: file.entries[key].text for field in KINDS if (key := key_of(field)) in file.entries}
    return Source(texts, name_of, place_of)


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
        raise ConfigError(f"{missing} is not set", f"{name_of('driver')} is postgres, which takes {POSTGRES_FORMS}")
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
            f"set {name_of('driver')} to {kind} or leave it out, or give the DSN of a {driver} database",
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
