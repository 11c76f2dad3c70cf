"""Which engine a DSN is for; what is neither's is refused with the way to write it, and never becomes a file."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ..errors import ConfigError
from .redaction import looks_like_dsn, place_of, shown

SQLITE, POSTGRES = "sqlite", "postgres"
POSTGRES_FORMS = "'host=localhost user=me password=... dbname=whatspire' or 'postgres://me:...@localhost/whatspire'"
SQLITE_FORMS = "a path or a file: URI, like data/whatspire.db"
ANY_FORM = f"SQLite takes {SQLITE_FORMS}; PostgreSQL {POSTGRES_FORMS}"
AS_URL = "write postgres://USER:PASSWORD@HOST:PORT/NAME"

# Keywords that say by themselves that a text is libpq's key=value form.
_KEYWORDS = (
    "host|hostaddr|port|user|dbname|database|password|passfile|service|sslmode|sslrootcert|sslcert|sslkey|options"
    "|application_name|connect_timeout|target_session_attrs"
)
# Those of other drivers, and the keyword that libpq has for each.
_ALIASES: Mapping[str, str] = {
    "server": "host",
    "data source": "host",
    "datasource": "host",
    "address": "host",
    "hostname": "host",
    "initial catalog": "dbname",
    "db": "dbname",
    "uid": "user",
    "user id": "user",
    "userid": "user",
    "username": "user",
    "pwd": "password",
    "pass": "password",
    "passwd": "password",
}
_PAIR = re.compile(rf"(?:^|[\s;,&?{{\"'])(?:{_KEYWORDS}|{'|'.join(_ALIASES)})\s*=", re.IGNORECASE)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(//)?")
_QUOTES = "\"'`“”„‘’«»"
_OTHERS = frozenset(
    {"mysql", "mariadb", "mongodb", "mongodb+srv", "mssql", "sqlserver", "oracle", "redis", "rediss",
     "duckdb", "libsql", "http", "https", "s3", "gs", "clickhouse", "firebird", "odbc"}
)  # fmt: skip


class _Mistake(NamedTuple):
    """A form that is neither engine's: its pattern, what it is, and what to write instead."""

    pattern: re.Pattern[str]
    fact: str
    hint: str


_UNQUOTED = "write it without quotes: docker's --env-file and Kubernetes keep them"
_QUOTED = _Mistake(re.compile(rf"\A[{_QUOTES}]"), "is in quotes", _UNQUOTED)
_TWO = _Mistake(re.compile(r"WHATSAPP_DATABASE_\w+="), "has another variable behind it", "write one variable a line")
_ANYWHERE = (
    _QUOTED,
    _Mistake(
        re.compile(r"\A(?:export\s+|set\s+)?[A-Za-z_]*(?:DSN|UR[LI])\s*=", re.IGNORECASE),
        "repeats the name of a variable",
        "write the value alone",
    ),
    _Mistake(
        re.compile(rf";\s*(?:{_KEYWORDS}|{'|'.join(_ALIASES)}|version|trusted_connection)\s*=", re.IGNORECASE),
        "separates its pairs by semicolons, as ADO and ODBC do",
        f"PostgreSQL takes {POSTGRES_FORMS}; SQLite takes the path alone",
    ),
    _Mistake(
        re.compile(rf",\s*(?:{_KEYWORDS}|{'|'.join(_ALIASES)})\s*=", re.IGNORECASE),
        "separates its pairs by commas",
        f"PostgreSQL takes {POSTGRES_FORMS}; a value that ends in a comma is written in quotes",
    ),
    _Mistake(re.compile(r"\A="), "begins with =", "write the value alone"),
    _TWO,
    _Mistake(re.compile(r"\Apsql\s", re.IGNORECASE), "is a psql command", "write what follows psql, without quotes"),
    _Mistake(re.compile(r"\Ajdbc:postgres", re.IGNORECASE), "is a JDBC URL", f"{AS_URL}, user and password in front"),
)
# A path is taken as it is written, so what a shell would have replaced is a mistake.
_PATHS = (
    _TWO,
    _Mistake(re.compile(rf"[{_QUOTES}]\Z"), "ends in a quote", _UNQUOTED),
    _Mistake(re.compile(r"[\x00-\x1f\x7f]"), "has a zero byte or another control character", "name a file without one"),
    _Mistake(re.compile(r"\A~"), "begins with ~", "write the whole path: ~ is not replaced here"),
    _Mistake(
        re.compile(r"(?:\A|/)\$(?:\w|[{(])|\$\{|\A%[A-Za-z_]{4,}%"),
        "has a variable in it that was not replaced",
        "write the whole path, or let the shell replace it",
    ),
    _Mistake(
        re.compile(r"\A\*:|\A[\w.-]+:[0-9]+(?:[:/]|\Z)"),
        "looks like a PostgreSQL server's host and port",
        f"{AS_URL}; a file of such a name is written ./NAME",
    ),
    _Mistake(
        re.compile(r"\A[^@]*:[^@]*@|://"),
        "looks like a URL without its scheme",
        f"{AS_URL}; a file of such a name is written as a file: URI, with %3A and %40 for : and @",
    ),
    _Mistake(
        re.compile(r"\A[A-Za-z]\w*\s*="),
        "begins like a key=value form",
        f"PostgreSQL takes {POSTGRES_FORMS}; a file of such a name is written ./NAME",
    ),
    _Mistake(re.compile(r"\A-"), "looks like an option", "a file of such a name is written ./NAME"),
    _Mistake(re.compile(r"\A[^/@.]+/[^/@]+@(?:[^/@.]+\Z|//)"), "looks like Oracle's user/password@name", ANY_FORM),
    _Mistake(re.compile(r"\s#"), "has a comment behind it", "write the path alone: docker's --env-file keeps comments"),
)
_PLACEHOLDER = _Mistake(
    re.compile(r"\A[*<{\[@]|\{\{|<[^<>]*>"),
    "looks like a placeholder, or a value of another form, and not like a path",
    f"{ANY_FORM}; a file of such a name is written ./NAME",
)
# Only without a folder before it.
_NAMES = (
    _PLACEHOLDER,
    _Mistake(
        re.compile(
            r"\A(?:none|null|nil|undefined|true|false|yes|no|on|off|memory|sqlite3?|postgres(?:ql)?|pgx?|psql"
            r"|localhost|[0-9]+(?:\.[0-9]+){3}|[^@.]+@[^@.]+)\Z",
            re.IGNORECASE,
        ),
        "is a word or a host, and hardly the name of a file",
        f"{ANY_FORM}; a file of such a name is written ./NAME",
    ),
    _Mistake(re.compile(r"\A:(?!memory:\Z)"), "begins with a colon", "the database in memory is :memory:"),
    _Mistake(re.compile(r"[;,]\Z"), "ends in a semicolon or a comma", "write the path alone"),
    _Mistake(
        re.compile(r"\A(?:host|hostaddr|user|dbname|server)\s", re.IGNORECASE),
        "begins like a key=value form",
        f"PostgreSQL takes {POSTGRES_FORMS}; a file of such a name is written ./NAME",
    ),
)
_WINDOWS = _Mistake(
    re.compile(r"\A[A-Za-z]:[/\\]|\\"), "is a Windows path", "write a path of this system, with / between its folders"
)


def kind_of(name: str, dsn: str) -> str:
    """Return "postgres" or "sqlite", whichever a DSN is for; it is not parsed any further.

    :param name: of the setting or the option that has it, for messages. They never repeat the DSN.
    :raises ConfigError: when it is neither's.
    """
    for mistake in _ANYWHERE:
        _refuse(name, dsn, mistake)
    if scheme := _SCHEME.match(dsn):
        return _kind_of_url(name, dsn, scheme[1].lower(), bool(scheme[2]))
    if _PAIR.search(dsn):
        return POSTGRES
    path = dsn.partition("?")[0]
    check_path(name, path)
    for mistake in _NAMES if "/" not in path else (_PLACEHOLDER,):
        _refuse(name, path, mistake)
    return SQLITE


def _kind_of_url(name: str, dsn: str, scheme: str, has_slashes: bool) -> str:
    if scheme == "file":
        return _kind_of_file(name, dsn[len("file:") :].partition("?")[0])
    if scheme in ("postgres", "postgresql") and has_slashes:
        return POSTGRES
    if re.fullmatch(r"(jdbc:)?sqlite3?(\+?\w+)?", scheme) or dsn.lower().startswith("jdbc:sqlite:"):
        raise ConfigError(f"{name} has a scheme that is not SQLite's own", _path_alone(dsn))
    if len(scheme) == 1 and os.name == "nt":
        return SQLITE
    _refuse(name, dsn, _WINDOWS)
    if re.match(r"post|pg|psql|cockroach|timescale|redshift", scheme):
        raise ConfigError(f"{name} is not quite a PostgreSQL URL", AS_URL)
    if scheme in _OTHERS:
        raise ConfigError(f"{name} is a URL of {scheme}, which is not supported", ANY_FORM)
    if has_slashes:
        raise ConfigError(f"{name} is a URL with an unknown scheme", ANY_FORM)
    hint = f"{AS_URL}; a file of such a name is written ./NAME"
    raise ConfigError(f"{name} begins with a word and a colon, which is neither a path nor a known scheme", hint)


def _kind_of_file(name: str, rest: str) -> str:
    """Check what follows the scheme of a file: URI; an empty path and :memory: are databases in memory."""
    path = re.sub(r"\A//(?:localhost)?(?=/)", "", rest)
    if path.startswith("//") and not path.startswith("///"):
        raise ConfigError(f"{name} names a host in a file: URI", "write file:/data/x.db, or file:data/x.db here")
    if "%00" in path:
        raise ConfigError(f"{name} has a zero byte", "name a file without one")
    if path not in ("", ":memory:"):
        check_path(name, path)
    return SQLITE


def _path_alone(dsn: str) -> str:
    """Return the hint for a URL of SQLAlchemy's kind: its path, where it can be shown."""
    rest = re.sub(r"\A(?:jdbc:)?[A-Za-z0-9+]+:", "", dsn)
    path = re.sub(r"\A//(?:/(?=.))?", "", rest) or ":memory:"
    if looks_like_dsn(path) or len(path) > 100:
        return f"SQLite takes {SQLITE_FORMS}"
    return f"write the path alone: {path}"


def is_plainly_sqlite(dsn: str) -> bool:
    """Return whether a text can only be meant as a DSN for SQLite."""
    is_file = re.search(r"\A[^\s=]+\.(db|db3|sqlite|sqlite3)(\?|\Z)", dsn, re.IGNORECASE)
    return bool(is_file or re.match(r"file:|:memory:|\.{0,2}/", dsn, re.IGNORECASE))


def refuse_quotes(name: str, text: str) -> None:
    """Refuse a value that is in quotes.

    :raises ConfigError: names the setting or the option.
    """
    if len(text) > 1 and text[0] in _QUOTES and text[-1] in _QUOTES:
        raise ConfigError(f"{name} {_QUOTED.fact}", _QUOTED.hint)


def check_folder(name: str, folder: str) -> None:
    """Check that a text is meant as the path of a folder.

    :raises ConfigError: says what it looks like; the message repeats no secret.
    """
    if re.match(r"[A-Za-z][\w+.-]+:/", folder):
        hint = "name a folder of this machine, and copy the files elsewhere from there"
        raise ConfigError(f"{name}: {place_of(folder)} is not a folder of this machine", hint)
    _check_path(name, re.sub(r"\A~|[/.]+\Z", "", folder))  # ~ is replaced there


def check_path(name: str, path: str) -> None:
    """Check that a text is meant as the path of a file, and not as something else that would become one.

    :raises ConfigError: says what it looks like; the message does not repeat it.
    """
    if re.search(r"(?:\A|/)\.{0,2}\Z", path):
        raise ConfigError(f"{name} names a folder", "name a file, like data/whatspire.db")
    _check_path(name, path)


def _check_path(name: str, path: str) -> None:
    for mistake in (_QUOTED, *_PATHS):
        _refuse(name, path, mistake)
    if os.name != "nt":
        _refuse(name, path, _WINDOWS)
    if looks_like_dsn(path):
        raise ConfigError(f"{name} looks like a DSN with a password in it", ANY_FORM)


def _refuse(name: str, text: str, mistake: _Mistake) -> None:
    if mistake.pattern.search(text):
        raise ConfigError(f"{name} {mistake.fact}", mistake.hint)


# What libpq checks itself, but with a message that repeats the value.
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


def check_postgres(name: str, dsn: str, given: Mapping[str, str], knows: Callable[[str], bool]) -> None:
    """Check a PostgreSQL DSN for what its writer cannot have meant.

    :param given: the parameters that it was split into.
    :param knows: whether libpq knows a parameter.
    :raises ConfigError: names the parameter and what to write; it repeats no value.
    """
    if re.match(r"\Apostgres(?:ql)?://[^/?@]*/[^?]*@", dsn, re.IGNORECASE):
        hint = "in a password a / is written %2F, a ? %3F, a # %23 and a @ %40; in a database's name a @ is %40"
        raise ConfigError(f"{name} has a @ behind a /", hint)
    for key in given:
        if (meant := _meant(key)) and not knows(key):
            raise ConfigError(f"{name} has a parameter {key}", f"write {meant}: libpq knows no {key}")
    for key, takes in _VALUES.items():
        value = given.get(key, "").strip()
        if value and not re.fullmatch(takes, value):
            hint = f"it takes {takes.replace('|', ', ')}" if "[" not in takes else "it takes a whole number"
            raise ConfigError(f"{name} gives {key} the value {shown(value)}", hint)


def _meant(key: str) -> str | None:
    """Return the keyword that a key stands for in other drivers, or in capitals."""
    small = key.lower()
    known = small if re.fullmatch(_KEYWORDS, small) else None
    return _ALIASES.get(small) or ("dbname" if known == "database" else known)
