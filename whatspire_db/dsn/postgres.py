"""PostgreSQL's connection strings, as the Go service takes them, into targets."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache

from ..errors import ConfigError
from ..light_stdlib import lazy_module, pattern
from .forms import ALIASES, KEYWORDS, POSTGRES_FORMS, plain_pairs
from .targets import PostgresTarget

redaction = lazy_module("whatspire_db.dsn.redaction")  # for messages

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
_URL = pattern(r"postgres(ql)?://", re.IGNORECASE)
# Where the user is looked for: up to a slash, or up to a question mark with a parameter behind it.
_AUTHORITY = pattern(r"(?:[^/?]|\?(?![\w%]+=))*", re.ASCII)
_HOST = pattern(r"(?:\[([^]]+)\](?=[:/?,]|\Z)|(?!\[)([^:/?,]*))(?::([^/?,]*))?")
_PAIR_START = pattern(r"\s*([^=\s]*)\s*=\s*", re.ASCII)
_VALUE = pattern(r"'((?:\\.|[^\\'])*)'|(?!')((?:\\.|[^\\\s])*)\\?", re.ASCII | re.DOTALL)
_PARAMETER = pattern(r"[A-Za-z_][A-Za-z0-9_$.]*")
# libpq checks these too, but its error message repeats the value, which may be a secret.
_VALUES: Mapping[str, str] = {
    "sslmode": "disable|allow|prefer|require|verify-ca|verify-full",
    "target_session_attrs": "any|read-write|read-only|primary|standby|prefer-standby",
    "port": "[0-9]{0,5}(?:,[0-9]{0,5})*",
    "connect_timeout": "-?[0-9]{1,9}",
    "keepalives": "-?[0-9]{1,9}",
    "keepalives_idle": "-?[0-9]{1,9}",
    "keepalives_interval": "-?[0-9]{1,9}",
    "keepalives_count": "-?[0-9]{1,9}",
    "tcp_user_timeout": "-?[0-9]{1,9}",
}


def read_postgres(name: str, dsn: str) -> PostgresTarget:
    """Read a DSN like `parse_postgres`, and refuse what libpq reads in a way that nobody means.

    :param name: of the setting or the option that has it, for messages.
    :raises ConfigError: when it is malformed or was hardly meant so.
    """
    _check(name, dsn.strip(_BLANKS), _parameters(dsn), _libpq_knows)
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
    if plain := plain_pairs(dsn):
        return plain
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
    if "%" in text:
        from urllib.parse import unquote

        text = unquote(text, errors="surrogateescape")
    _refuse_zero_byte(text)
    return text


def _malformed(what: str) -> ConfigError:
    return ConfigError(f"the PostgreSQL DSN is malformed: it has {what}", f"it takes {POSTGRES_FORMS}")


def _check(name: str, dsn: str, given: Mapping[str, str], knows: Callable[[str], bool]) -> None:
    """Check a PostgreSQL DSN for what its writer cannot have meant.

    :param given: the parameters that it was split into.
    :param knows: whether libpq knows a parameter.
    :raises ConfigError: names the parameter and what to write; it repeats no value.
    """
    if "@" in dsn and re.match(r"\Apostgres(?:ql)?://[^/?@]*/[^?]*@", dsn, re.IGNORECASE):
        hint = "in a password a / is written %2F, a ? %3F, a # %23 and a @ %40; in a database's name a @ is %40"
        raise ConfigError(f"{name} has a @ behind a /", hint)
    for key in given:
        if (meant := _meant(key)) and not knows(key):
            raise ConfigError(f"{name} has a parameter {key}", f"write {meant}: libpq knows no {key}")
    for key, takes in _VALUES.items():
        value = given.get(key, "").strip()
        if value and not re.fullmatch(takes, value):
            hint = f"it takes {takes.replace('|', ', ')}" if "[" not in takes else "it takes a whole number"
            raise ConfigError(f"{name} gives {key} the value {redaction.shown(value)}", hint)


def _meant(key: str) -> str | None:
    """Return the keyword that a key stands for in other drivers, or in capitals."""
    small = key.lower()
    known = small if small in KEYWORDS.split("|") else None
    return ALIASES.get(small) or ("dbname" if known == "database" else known)
