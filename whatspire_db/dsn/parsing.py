"""A driver's connection string, as the Go service takes it, into connection arguments; and its redaction."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from urllib.parse import parse_qsl, unquote

from ..errors import ConfigError
from .forms import POSTGRES_FORMS, check_postgres
from .redaction import redact as redact
from .redaction import shown

# What the Go driver for SQLite (mattn/go-sqlite3) reads from a DSN, long and short form: the pragma it sets.
SQLITE_PRAGMAS = {
    "_auto_vacuum": "auto_vacuum",
    "_vacuum": "auto_vacuum",
    "_busy_timeout": "busy_timeout",
    "_timeout": "busy_timeout",
    "_cache_size": "cache_size",
    "_case_sensitive_like": "case_sensitive_like",
    "_cslike": "case_sensitive_like",
    "_defer_foreign_keys": "defer_foreign_keys",
    "_defer_fk": "defer_foreign_keys",
    "_foreign_keys": "foreign_keys",
    "_fk": "foreign_keys",
    "_ignore_check_constraints": "ignore_check_constraints",
    "_journal_mode": "journal_mode",
    "_journal": "journal_mode",
    "_locking_mode": "locking_mode",
    "_locking": "locking_mode",
    "_query_only": "query_only",
    "_recursive_triggers": "recursive_triggers",
    "_rt": "recursive_triggers",
    "_secure_delete": "secure_delete",
    "_synchronous": "synchronous",
    "_sync": "synchronous",
    "_writable_schema": "writable_schema",
}
BOOLEANS = "0|1|no|yes|false|true|off|on"
PRAGMA_VALUES = {
    "auto_vacuum": "0|1|2|none|full|incremental",
    "busy_timeout": "[0-9]{1,9}",
    "cache_size": "-?[0-9]{1,9}",
    "journal_mode": "delete|truncate|persist|memory|wal|off",
    "locking_mode": "normal|exclusive",
    "secure_delete": BOOLEANS + "|fast",
    "synchronous": "0|1|2|3|off|normal|full|extra",
}
# SQLite's own, https://www.sqlite.org/uri.html
URI_PARAMETERS = {
    "mode": "ro|rw|rwc|memory",
    "cache": "shared|private",
    "immutable": BOOLEANS,
    "nolock": BOOLEANS,
    "psow": BOOLEANS,
    "modeof": ".+",
    "vfs": r"[\w-]+",
}
WITHOUT_EFFECT = {("mode", "rwc"), ("cache", "shared"), ("cache", "private")}
# How a transaction begins. The Go driver's own default is deferred; but such a transaction, when it reads and then
# writes, fails with "database is locked" as soon as another has written in between, without waiting.
SQLITE_LOCK_TYPES = "deferred|immediate|exclusive"
# Also read by the Go driver, without a meaning here: times, for example, are always UTC.
SQLITE_IGNORED = frozenset({"_loc", "_mutex", "_stmt_cache_size"})

# Read by pgx, the Go driver for PostgreSQL, itself; neither libpq nor the server knows them.
PGX_ONLY = frozenset(
    {
        "default_query_exec_mode",
        "description_cache_capacity",
        "min_read_buffer_size",
        "servicefile",
        "sslinline",
        "statement_cache_capacity",
        "statement_cache_mode",
        "pool_max_conns",
        "pool_min_conns",
        "pool_max_conn_lifetime",
        "pool_max_conn_idle_time",
        "pool_health_check_period",
        "pool_max_conn_lifetime_jitter",
    }
)

_BLANKS = " \t\n\r\v\f"  # what libpq skips; of Python's str.isspace much more is a character like any other
_URL = re.compile(r"postgres(ql)?://", re.IGNORECASE)
# Where the user is looked for: up to a slash, or up to a question mark with a parameter behind it.
_AUTHORITY = re.compile(r"(?:[^/?]|\?(?![\w%]+=))*", re.ASCII)
_HOST = re.compile(r"(?:\[([^]]+)\](?=[:/?,]|\Z)|(?!\[)([^:/?,]*))(?::([^/?,]*))?")
_PAIR_START = re.compile(r"\s*([^=\s]*)\s*=\s*", re.ASCII)
_VALUE = re.compile(r"'((?:\\.|[^\\'])*)'|(?!')((?:\\.|[^\\\s])*)\\?", re.ASCII | re.DOTALL)
_PARAMETER = re.compile(r"[A-Za-z_][A-Za-z0-9_$.]*")
_SECRET_KEY = re.compile(r"pass(?!file)|pwd|secret", re.IGNORECASE)


@dataclass(frozen=True)
class SqliteTarget:
    """Where a SQLite database is: `database` as sqlite3.connect takes it, the pragmas and the kind of BEGIN."""

    database: str
    path: str | None  # the file; None in memory
    uri: bool = False
    read_only: bool = False
    pragmas: Mapping[str, str] = field(default_factory=dict)
    lock_type: str = "IMMEDIATE"


@dataclass(frozen=True)
class PostgresTarget:
    """libpq's connection arguments; run-time parameters are folded into `options`."""

    arguments: Mapping[str, str] = field(repr=False)

    @property
    def secrets(self) -> tuple[str, ...]:
        """The values to hide; one that is also the name of a user or a database is no secret that hiding would keep."""
        public = set(self.public.values())
        return tuple(v for k, v in self.arguments.items() if _SECRET_KEY.search(k) and v and v not in public)

    @property
    def public(self) -> dict[str, str]:
        """The arguments that are no secret."""
        return {k: v for k, v in self.arguments.items() if not _SECRET_KEY.search(k)}

    def to(self, database: str) -> PostgresTarget:
        """Return the same server and user, with another database."""
        return PostgresTarget({**self.arguments, "dbname": database})

    def __repr__(self) -> str:
        return f"PostgresTarget({self.describe()})"

    def describe(self) -> str:
        """Name the server and the database, without anything secret."""
        shown = {k: v for k, v in self.arguments.items() if k in ("host", "port", "dbname", "user")}
        return " ".join(f"{k}={v}" for k, v in shown.items()) or "the local server"


def parse_sqlite(dsn: str) -> SqliteTarget:
    """Read a path or a `file:` URI, either with the Go driver's `?_option=value` parameters.

    :raises ConfigError: for a parameter that neither the Go driver nor SQLite knows, or a value that it does not take.
    """
    base, _, query = dsn.partition("?")
    is_uri = base[:5].lower() == "file:"
    pragmas: dict[str, str] = {}
    lock_type = SqliteTarget.lock_type
    kept: list[str] = []
    for pair in filter(None, query.split("&")):
        key, _, value = pair.partition("=")
        if key in SQLITE_PRAGMAS:
            pragma = SQLITE_PRAGMAS[key]
            wanted = _checked(key, value, PRAGMA_VALUES.get(pragma, BOOLEANS))
            if pragmas.setdefault(pragma, wanted).lower() != wanted.lower():  # the Go driver takes the first of the two
                raise ConfigError(f"the SQLite DSN gives {pragma} two values", f"leave one of them out, like {key}")
        elif key == "_txlock":
            lock_type = _checked(key, value, SQLITE_LOCK_TYPES).upper()
        elif key in URI_PARAMETERS:
            kept += _uri_parameter(key, value, pair, is_uri)
        elif key not in SQLITE_IGNORED and not key.startswith("_auth"):
            raise _unknown_parameter(key, query)
    place = _sqlite_uri(base, kept) if is_uri else _sqlite_path(base)
    return replace(place, pragmas=pragmas, lock_type=lock_type)


def _uri_parameter(key: str, value: str, pair: str, is_uri: bool) -> list[str]:
    """Return a parameter of SQLite's own; the Go driver drops it from a path, which is refused where it matters."""
    _checked(key, value, URI_PARAMETERS[key])
    if is_uri:
        return [pair]
    if (key, value) not in WITHOUT_EFFECT:
        raise ConfigError(f"the SQLite DSN has {key}, which counts only in a URI", f"write file:PATH?{key}=...")
    return []


def _unknown_parameter(key: str, query: str) -> ConfigError:
    if key == "_pragma":  # the form of another Go driver
        written = re.findall(r"(?:^|&)_pragma=(\w+)(?:\(|=|%28)'?([\w-]+)", query)
        instead = "&".join(f"_{name}={value}" for name, value in written if f"_{name}" in SQLITE_PRAGMAS)
        return ConfigError(
            "the SQLite DSN has _pragma, which is another driver's form",
            f"write {instead or '_foreign_keys=1 for foreign_keys(1), and so on'}",
        )
    from difflib import get_close_matches  # only for the message

    known = [*SQLITE_PRAGMAS, "_txlock", *URI_PARAMETERS]
    near = get_close_matches(key, known, n=1)
    named = key if re.fullmatch("[a-z_]{1,30}", key) else shown(key)
    hint = f"did you mean {near[0]}?" if near else f"known ones are {', '.join(sorted(known))}"
    return ConfigError(f"the SQLite DSN has an unknown parameter {named}", hint)


def _sqlite_path(base: str) -> SqliteTarget:
    return SqliteTarget(base, None if base == ":memory:" else base)


def _sqlite_uri(base: str, kept: list[str]) -> SqliteTarget:
    base = "file:" + base[5:]  # SQLite knows the scheme in small letters only
    options = dict(parse_qsl("&".join(kept), keep_blank_values=True))
    path: str | None = unquote(re.sub(r"^file:(//(localhost)?(?=/))?", "", base.partition("#")[0]))
    if path in ("", ":memory:") or options.get("mode") == "memory":
        path = None
    uri = base + ("?" + "&".join(kept) if kept else "")
    read_only = options.get("mode") == "ro" or options.get("immutable", "").lower() in ("1", "true", "on", "yes")
    return SqliteTarget(uri, path, uri=True, read_only=read_only)


def _checked(key: str, value: str, takes: str) -> str:
    value = unquote(value)
    if not re.fullmatch(takes, value, re.IGNORECASE | re.ASCII):
        raise ConfigError(
            f"the SQLite DSN gives {key} the value {shown(value)}", f"it takes {takes.replace('|', ', ')}"
        )
    return value


def read_postgres(name: str, dsn: str) -> PostgresTarget:
    """Read a DSN like `parse_postgres`, and refuse what libpq reads in a way that nobody means.

    :param name: of the setting or the option that has it, for messages.
    :raises ConfigError: when it is malformed or was hardly meant so.
    """
    check_postgres(name, dsn.strip(_BLANKS), _parameters(dsn), _libpq_knows)
    return parse_postgres(dsn)


def parse_postgres(dsn: str) -> PostgresTarget:
    """Read a libpq `key=value` string or a `postgres://` URL, with run-time parameters in either.

    What libpq does not know (TimeZone, search_path, statement_timeout, ...) goes to the server through
    `options`, as the Go driver sends it. Messages never repeat the string, for it may hold a password.

    :raises ConfigError: when the string has neither form.
    """
    given = _parameters(dsn)
    arguments = {k: v for k, v in given.items() if _libpq_knows(k)}
    runtime = {k: v for k, v in given.items() if not _libpq_knows(k) and k not in PGX_ONLY}
    flags = [f"-c {k}={_escape_option(v)}" for k, v in runtime.items()]
    if flags:
        arguments["options"] = " ".join(filter(None, [arguments.get("options", ""), *flags]))
    return PostgresTarget(arguments)


def _parameters(dsn: str) -> dict[str, str]:
    _refuse_zero_byte(dsn)
    pairs = _url_pairs(dsn.strip(_BLANKS)) if _URL.match(dsn.strip(_BLANKS)) else _keyword_pairs(dsn)
    given = dict(_canonical(key, value) for key, value in pairs)
    _refuse_what_is_no_utf8(given.values())
    return given


def _refuse_zero_byte(text: str) -> None:
    if "\0" in text:
        raise _malformed("a zero byte")


def _refuse_what_is_no_utf8(values: Iterable[str]) -> None:
    # Other bytes stand in a str as surrogates, from %FF in a URL as from the environment; no driver takes those.
    try:
        "".join(values).encode()
    except UnicodeEncodeError:
        raise _malformed("bytes that are not UTF-8") from None


def _canonical(key: str, value: str) -> tuple[str, str]:
    if not _PARAMETER.fullmatch(key):
        raise _malformed("a parameter whose name is none")
    if key == "requiressl":  # libpq's own older name, which it reads like this
        return "sslmode", "require" if value.startswith("1") else "prefer"
    return "dbname" if key == "database" else key, value  # pgx takes either name


def _escape_option(value: str) -> str:
    return re.sub(r"([\\\s])", r"\\\1", value)


@lru_cache(maxsize=256)
def _libpq_knows(key: str) -> bool:
    # The driver's own libpq decides: it refuses a keyword that it does not know. The import is here, so
    # that a worker on SQLite does not load the PostgreSQL driver a second before it has to.
    from psycopg2 import ProgrammingError
    from psycopg2.extensions import parse_dsn

    try:
        parse_dsn(f"{key}=1")
    except ProgrammingError:
        return False
    return True


def _keyword_pairs(dsn: str) -> Iterator[tuple[str, str]]:
    """Split libpq's keyword/value form (PostgreSQL documentation, 32.1.1.1)."""
    position = 0
    while dsn[position:].strip(_BLANKS):
        start = _PAIR_START.match(dsn, position)
        if start is None:
            raise _malformed("a word without '='")
        value = _VALUE.match(dsn, start.end())
        if value is None:
            raise _malformed("a quoted value without its closing quote")
        quoted, plain = value.groups()
        yield start[1], re.sub(r"\\(.)", r"\1", plain if quoted is None else quoted, flags=re.DOTALL)
        position = value.end()


def _url_pairs(dsn: str) -> Iterator[tuple[str, str]]:
    """Split a URL as libpq does, and as Go does where libpq reads what nobody means.

    The user ends at the last @, so that a password may hold one; what looks like a parameter holds no user; a #
    behind the user ends the URL.
    """
    rest = _URL.sub("", dsn, count=1)
    userinfo, at, _ = _AUTHORITY.match(rest)[0].rpartition("@")  # type: ignore[index]  # it matches "" too
    user, _, password = userinfo.partition(":")
    host, port, rest = _hosts(rest[len(userinfo + at) :].partition("#")[0])
    path, _, query = rest.removeprefix("/").partition("?")
    parts = {"user": user, "password": password, "host": host, "port": port, "dbname": path}
    yield from ((key, _decode(value)) for key, value in parts.items() if value)
    for pair in filter(None, query.split("&")):
        key, equals, value = pair.partition("=")
        if not equals:
            raise _malformed("a URL parameter without '='")
        key, value = _decode(key), _decode(value)
        # libpq's only alias in URLs: JDBC's ssl=true
        yield ("sslmode", "require") if (key, value) == ("ssl", "true") else (key, value)


def _hosts(text: str) -> tuple[str, str, str]:
    """Return the hosts and the ports, each as libpq's list with commas, and what stands behind them."""
    hosts, ports = [], []
    position = -1
    while position < 0 or text[position : position + 1] == ",":
        match = _HOST.match(text, position + 1)
        # A word in the port's place is mostly a piece of a password, which libpq would repeat in its message.
        if match is None or not re.fullmatch("[0-9,]*", _decode(match[3] or "")):
            raise _malformed("a host or port that is none (a / in a password is written %2F)")
        hosts.append(match[1] or match[2] or "")
        ports.append(match[3] or "")
        position = match.end()
    return ",".join(hosts), ",".join(ports), text[position:]


def _decode(text: str) -> str:
    if re.search(r"%(?![0-9A-Fa-f]{2})", text):
        raise _malformed("a % that two hex digits do not follow (a % in a password is written %25)")
    decoded = unquote(text, errors="surrogateescape")
    _refuse_zero_byte(decoded)
    return decoded


def _malformed(what: str) -> ConfigError:
    return ConfigError(f"the PostgreSQL DSN is malformed: it has {what}", f"it takes {POSTGRES_FORMS}")
