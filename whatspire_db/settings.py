"""The environment and .env -> Settings."""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar

from .dsn import (
    POSTGRES_FORMS,
    PostgresTarget,
    SqliteTarget,
    looks_like_postgres,
    parse_postgres,
    parse_sqlite,
)
from .errors import ConfigError

PREFIX = "WHATSAPP_DATABASE_"
DRIVERS = ("sqlite", "postgres")
LOG_LEVELS = ("silent", "error", "warn", "info")
RECORD_RUNS = ("changes", "all")
DEFAULT_SQLITE_DSN = "data/whatspire.db"
DEFAULT_BACKUP_DIR = "backups"
NAMES = (
    "DRIVER",
    "DSN",
    "MAX_IDLE_CONNS",
    "MAX_OPEN_CONNS",
    "CONN_MAX_LIFETIME",
    "POOL_TIMEOUT",
    "REPLICA_DSN",
    "LOG_LEVEL",
    "SLOW_THRESHOLD",
    "LOG_PARAMETERS",
    "MODELS",
    "RECORD_RUNS",
    "MIGRATION_LOCK_TIMEOUT",
    "MIGRATION_ONLINE_ROWS",
    "BACKUP_DIR",
    "BACKUP_NAME",
    "BACKUP_BEFORE_MIGRATE",
)

logger = logging.getLogger("whatspire_db")
T = TypeVar("T")

_UNITS = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,
    "μs": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_TERM = re.compile(r"(?=\.?[0-9])([0-9]*)\.?([0-9]*)(ns|us|µs|μs|ms|s|m|h)")
_GO_LIMIT = 2**63  # nanoseconds, of which Go's time.Duration holds less, or as many below zero


def parse_duration(text: str) -> timedelta:
    """Read a duration as Go's time.ParseDuration does: 300ms, 1.5h, 2h45m, 0.

    Parts of a microsecond are dropped.

    :raises ValueError: for anything else, a number without a unit included.
    """
    negative = text.startswith("-")
    nanoseconds = _nanoseconds(text, start=1 if text[:1] in ("+", "-") else 0)
    if nanoseconds > _GO_LIMIT - (not negative):
        raise ValueError(f"{text!r} is out of range")
    duration = timedelta(microseconds=nanoseconds // 1000)
    return -duration if negative else duration


def _nanoseconds(text: str, start: int) -> int:
    if text[start:] == "0":
        return 0
    total, position = 0, start
    while position < len(text) or position == start:
        term = _TERM.match(text, position)
        if term is None:
            raise ValueError(f"{text!r} is not a duration")
        total += _term(*term.groups())
        position = term.end()
    return total


def _term(whole: str, fraction: str, unit: str) -> int:
    digits = whole.lstrip("0")
    if len(digits) > len(str(_GO_LIMIT)):  # more than fits; Python refuses to read thousands of digits
        return _GO_LIMIT + 1
    # Go computes the fraction in floating point and leaves out the digits that its integer has no room for.
    number, scale = 0, 1.0
    for digit in fraction:
        if number * 10 + int(digit) > _GO_LIMIT:
            break
        number, scale = number * 10 + int(digit), scale * 10
    return int(digits or "0") * _UNITS[unit] + int(number * (_UNITS[unit] / scale))


@dataclass(frozen=True)
class Settings:
    """What the WHATSAPP_DATABASE_* variables say; `from_environment` reads them.

    The DSN may hold a password and is left out of the repr.
    """

    driver: str = "sqlite"
    dsn: str = field(default=DEFAULT_SQLITE_DSN, repr=False)
    max_idle_conns: int = 10
    max_open_conns: int = 100  # 0: no limit
    conn_max_lifetime: timedelta = timedelta(hours=1)  # 0: for ever
    pool_timeout: timedelta = timedelta(seconds=30)  # 0: for ever
    replica_dsn: str | None = field(default=None, repr=False)
    log_level: str = "warn"
    slow_threshold: timedelta = timedelta(milliseconds=200)  # 0: nothing is slow
    log_parameters: bool = False
    models: tuple[str, ...] = ()
    record_runs: str = "changes"
    migration_lock_timeout: timedelta = timedelta(seconds=60)
    migration_online_rows: int = 10_000
    backup_dir: str = DEFAULT_BACKUP_DIR
    backup_name: str | None = None  # the database's
    backup_before_migrate: bool = False

    def __post_init__(self) -> None:
        _choice(DRIVERS)("DRIVER", self.driver)
        if not self.dsn.strip():
            raise _wrong("DSN", self.dsn, _dsn_takes(self.driver))
        # A malformed DSN is found here, not at the first query.
        self.target  # noqa: B018
        self.replica_target  # noqa: B018

    @property
    def target(self) -> SqliteTarget | PostgresTarget:
        """Return the parsed DSN.

        :raises ConfigError: when the DSN is malformed or is the other driver's.
        """
        return self._parsed("DSN", self.dsn)

    @property
    def replica_target(self) -> SqliteTarget | PostgresTarget | None:
        """Return the parsed DSN of the replica, None where there is none.

        :raises ConfigError: when the DSN is malformed or is the other driver's.
        """
        return self._parsed("REPLICA_DSN", self.replica_dsn) if self.replica_dsn else None

    def _parsed(self, name: str, dsn: str) -> SqliteTarget | PostgresTarget:
        if self.driver == "postgres":
            return parse_postgres(dsn)
        if looks_like_postgres(dsn):
            raise ConfigError(
                f"{PREFIX}{name} is a PostgreSQL DSN, but {PREFIX}DRIVER is sqlite",
                f"set {PREFIX}DRIVER=postgres",
            )
        return parse_sqlite(dsn)

    @classmethod
    def from_environment(
        cls,
        environ: Mapping[str, str] | None = None,
        dotenv: str | os.PathLike[str] | None = ".env",
        *,
        driver: str | None = None,
        dsn: str | None = None,
    ) -> Settings:
        """Read the variables: arguments given here, over the environment, over a .env file, over defaults.

        :param environ: the environment; default os.environ.
        :param dotenv: a file to read where there is one; None reads none.
        :raises ConfigError: names the variable, what it got and what it takes.
        """
        given = _variables(os.environ if environ is None else environ, dotenv)
        given |= {name: value for name, value in (("DRIVER", driver), ("DSN", dsn)) if value is not None}
        chosen = _read(given, "DRIVER", _choice(DRIVERS), "sqlite")
        if chosen == "postgres" and "DSN" not in given:
            raise ConfigError(f"{PREFIX}DSN is not set", f"{PREFIX}DRIVER=postgres takes {_dsn_takes(chosen)}")
        return cls(
            driver=chosen,
            dsn=given.get("DSN", DEFAULT_SQLITE_DSN),
            max_idle_conns=_read(given, "MAX_IDLE_CONNS", _count, 10),
            max_open_conns=_read(given, "MAX_OPEN_CONNS", _count, 100),
            conn_max_lifetime=_read(given, "CONN_MAX_LIFETIME", _duration, timedelta(hours=1)),
            pool_timeout=_read(given, "POOL_TIMEOUT", _duration, timedelta(seconds=30)),
            replica_dsn=given.get("REPLICA_DSN", "").strip() or None,
            log_level=_read(given, "LOG_LEVEL", _choice(LOG_LEVELS), "warn"),
            slow_threshold=_read(given, "SLOW_THRESHOLD", _duration, timedelta(milliseconds=200)),
            log_parameters=_read(given, "LOG_PARAMETERS", _boolean, False),
            models=_read(given, "MODELS", _module_list, ()),
            record_runs=_read(given, "RECORD_RUNS", _choice(RECORD_RUNS), "changes"),
            migration_lock_timeout=_read(given, "MIGRATION_LOCK_TIMEOUT", _duration, timedelta(seconds=60)),
            migration_online_rows=_read(given, "MIGRATION_ONLINE_ROWS", _count, 10_000),
            backup_dir=given.get("BACKUP_DIR", "").strip() or DEFAULT_BACKUP_DIR,
            backup_name=given.get("BACKUP_NAME", "").strip() or None,
            backup_before_migrate=_read(given, "BACKUP_BEFORE_MIGRATE", _boolean, False),
        )


def _variables(environ: Mapping[str, str], dotenv: str | os.PathLike[str] | None) -> dict[str, str]:
    """Return the values by their names without the prefix; warn of names that nothing reads."""
    merged = _read_dotenv(dotenv) | dict(environ)
    given = {k.removeprefix(PREFIX): v for k, v in merged.items() if k.startswith(PREFIX)}
    for name in sorted(given.keys() - set(NAMES)):
        near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0)[0]
        logger.warning("%s%s is not a setting and was ignored; the nearest is %s%s", PREFIX, name, PREFIX, near)
    return {name: given[name] for name in NAMES if name in given}


def _read_dotenv(dotenv: str | os.PathLike[str] | None) -> dict[str, str]:
    if dotenv is None or not os.path.isfile(dotenv):
        return {}
    from dotenv import dotenv_values  # only where there is a file to read

    try:
        return {k: v for k, v in dotenv_values(dotenv).items() if v is not None}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{dotenv} cannot be read: {type(error).__name__}", "make it a UTF-8 text file") from None


def _read(given: Mapping[str, str], name: str, parse: Callable[[str, str], T], default: T) -> T:
    return parse(name, given[name].strip()) if name in given else default


def _wrong(name: str, value: str, takes: str) -> ConfigError:
    return ConfigError(f"{PREFIX}{name} is {value!r}", f"it takes {takes}")


def _dsn_takes(driver: str) -> str:
    return POSTGRES_FORMS if driver == "postgres" else "a path or a file: URI, like data/whatspire.db"


def _choice(choices: tuple[str, ...]) -> Callable[[str, str], str]:
    def parse(name: str, value: str) -> str:
        if value not in choices:
            near = difflib.get_close_matches(value.lower(), choices, n=1)
            raise _wrong(name, value, ", ".join(choices) + (f"; did you mean {near[0]}?" if near else ""))
        return value

    return parse


def _count(name: str, value: str) -> int:
    if not re.fullmatch(r"\+?[0-9]{1,9}", value):
        raise _wrong(name, value, "a whole number, 0 or more")
    return int(value)


def _boolean(name: str, value: str) -> bool:
    # Go's strconv.ParseBool
    known = {"1": True, "t": True, "true": True, "0": False, "f": False, "false": False}
    if value.lower() not in known:
        raise _wrong(name, value, "true or false")
    return known[value.lower()]


def _duration(name: str, value: str) -> timedelta:
    return read_duration(f"{PREFIX}{name}", value)


def read_duration(name: str, value: str) -> timedelta:
    """Read a duration of 0 or more.

    :raises ConfigError: names what was set, what it got and what it takes.
    """
    takes = "a duration of 0 or more with its unit, like 300ms, 1.5h or 2h45m"
    try:
        duration = parse_duration(value)
    except ValueError:
        duration = timedelta(-1)
    if duration < timedelta(0):
        raise ConfigError(f"{name} is {value!r}", f"it takes {takes}")
    return duration


def _module_list(name: str, value: str) -> tuple[str, ...]:
    modules = tuple(part.strip() for part in value.split(",") if part.strip())
    if not modules:
        raise _wrong(name, value, "the names of modules, separated by commas")
    return modules
