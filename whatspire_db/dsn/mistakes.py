"""What people write in the place of a DSN, and what to write instead. Loaded for a DSN of an unusual form alone."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from ..errors import ConfigError
from .forms import (
    ALIASES,
    ANY_FORM,
    AS_URL,
    KEYWORDS,
    POSTGRES,
    POSTGRES_FORMS,
    QUOTES,
    SQLITE,
    SQLITE_FORMS,
    check_path,
    refuse_other_bytes,
)
from .redaction import looks_like_dsn

_PAIR = re.compile(rf"(?:^|[\s;,&?{{\"'])(?:{KEYWORDS}|{'|'.join(ALIASES)})\s*=", re.IGNORECASE)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(//)?")
_OTHERS = frozenset(
    {"mysql", "mariadb", "mongodb", "mongodb+srv", "mssql", "sqlserver", "oracle", "redis", "rediss",
     "duckdb", "libsql", "http", "https", "s3", "gs", "clickhouse", "firebird", "odbc"}
)  # fmt: skip


class Mistake(NamedTuple):
    """A form that is neither engine's: its pattern, what it is, and what to write instead."""

    pattern: re.Pattern[str]
    fact: str
    hint: str


_UNQUOTED = "write it without quotes: docker's --env-file and Kubernetes keep them"
QUOTED = Mistake(re.compile(rf"\A[{QUOTES}]"), "is in quotes", _UNQUOTED)
_TWO = Mistake(re.compile(r"WHATSAPP_DATABASE_\w+="), "has another variable behind it", "write one variable a line")
_ANYWHERE = (
    QUOTED,
    Mistake(
        re.compile(r"\A(?:export\s+|set\s+)?[A-Za-z_]*(?:DSN|UR[LI])\s*=", re.IGNORECASE),
        "repeats the name of a variable",
        "write the value alone",
    ),
    Mistake(
        re.compile(rf";\s*(?:{KEYWORDS}|{'|'.join(ALIASES)}|version|trusted_connection)\s*=", re.IGNORECASE),
        "separates its pairs by semicolons, as ADO and ODBC do",
        f"PostgreSQL takes {POSTGRES_FORMS}; SQLite takes the path alone",
    ),
    Mistake(
        re.compile(rf",\s*(?:{KEYWORDS}|{'|'.join(ALIASES)})\s*=", re.IGNORECASE),
        "separates its pairs by commas",
        f"PostgreSQL takes {POSTGRES_FORMS}; a value that ends in a comma is written in quotes",
    ),
    Mistake(re.compile(r"\A="), "begins with =", "write the value alone"),
    _TWO,
    Mistake(re.compile(r"\Apsql\s", re.IGNORECASE), "is a psql command", "write what follows psql, without quotes"),
    Mistake(re.compile(r"\Ajdbc:postgres", re.IGNORECASE), "is a JDBC URL", f"{AS_URL}, user and password in front"),
)
# A path is taken as it is written, so what a shell would have replaced is a mistake.
_PATHS = (
    _TWO,
    Mistake(re.compile(rf"[{QUOTES}]\Z"), "ends in a quote", _UNQUOTED),
    Mistake(re.compile(r"[\x00-\x1f\x7f]"), "has a zero byte or another control character", "name a file without one"),
    Mistake(re.compile(r"\A~"), "begins with ~", "write the whole path: ~ is not replaced here"),
    Mistake(
        re.compile(r"(?:\A|/)\$(?:\w|[{(])|\$\{|\A%[A-Za-z_]{4,}%"),
        "has a variable in it that was not replaced",
        "write the whole path, or let the shell replace it",
    ),
    Mistake(
        re.compile(r"\A\*:|\A[\w.-]+:[0-9]+(?:[:/]|\Z)"),
        "looks like a PostgreSQL server's host and port",
        f"{AS_URL}; a file of such a name is written ./NAME",
    ),
    Mistake(
        re.compile(r"\A[^@]*:[^@]*@|://"),
        "looks like a URL without its scheme",
        f"{AS_URL}; a file of such a name is written as a file: URI, with %3A and %40 for : and @",
    ),
    Mistake(
        re.compile(r"\A[A-Za-z]\w*\s*="),
        "begins like a key=value form",
        f"PostgreSQL takes {POSTGRES_FORMS}; a file of such a name is written ./NAME",
    ),
    Mistake(re.compile(r"\A-"), "looks like an option", "a file of such a name is written ./NAME"),
    Mistake(re.compile(r"\A[^/@.]+/[^/@]+@(?:[^/@.]+\Z|//)"), "looks like Oracle's user/password@name", ANY_FORM),
    Mistake(re.compile(r"\s#"), "has a comment behind it", "write the path alone: docker's --env-file keeps comments"),
)
_PLACEHOLDER = Mistake(
    re.compile(r"\A[*<{\[@]|\{\{|<[^<>]*>"),
    "looks like a placeholder, or a value of another form, and not like a path",
    f"{ANY_FORM}; a file of such a name is written ./NAME",
)
# Only without a folder before it.
_NAMES = (
    _PLACEHOLDER,
    Mistake(
        re.compile(
            r"\A(?:none|null|nil|undefined|true|false|yes|no|on|off|memory|sqlite3?|postgres(?:ql)?|pgx?|psql"
            r"|localhost|[0-9]+(?:\.[0-9]+){3}|[^@.]+@[^@.]+)\Z",
            re.IGNORECASE,
        ),
        "is a word or a host, and hardly the name of a file",
        f"{ANY_FORM}; a file of such a name is written ./NAME",
    ),
    Mistake(re.compile(r"\A:(?!memory:\Z)"), "begins with a colon", "the database in memory is :memory:"),
    Mistake(re.compile(r"[;,]\Z"), "ends in a semicolon or a comma", "write the path alone"),
    Mistake(
        re.compile(r"\A(?:host|hostaddr|user|dbname|server)\s", re.IGNORECASE),
        "begins like a key=value form",
        f"PostgreSQL takes {POSTGRES_FORMS}; a file of such a name is written ./NAME",
    ),
)
_WINDOWS = Mistake(
    re.compile(r"\A[A-Za-z]:[/\\]|\\"), "is a Windows path", "write a path of this system, with / between its folders"
)


def kind_of_any(name: str, dsn: str) -> str:
    """Return the kind of a DSN, whatever is written in it, like `forms.kind_of`.

    :raises ConfigError: when it is neither engine's.
    """
    for mistake in _ANYWHERE:
        refuse(name, dsn, mistake)
    if scheme := _SCHEME.match(dsn):
        return _kind_of_url(name, dsn, scheme[1].lower(), bool(scheme[2]))
    if _PAIR.search(dsn):
        return POSTGRES
    path = dsn.partition("?")[0]
    check_path(name, path)
    for mistake in _NAMES if "/" not in path else (_PLACEHOLDER,):
        refuse(name, path, mistake)
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
    refuse(name, dsn, _WINDOWS)
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
    from urllib.parse import unquote  # not for a path

    path = re.sub(r"\A//(?:localhost)?(?=/)", "", rest)
    if path.startswith("//") and not path.startswith("///"):
        raise ConfigError(f"{name} names a host in a file: URI", "write file:/data/x.db, or file:data/x.db here")
    if "%00" in path:
        raise ConfigError(f"{name} has a zero byte", "name a file without one")
    refuse_other_bytes(name, unquote(path, errors="surrogateescape"))
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


def refuse_path(name: str, path: str) -> None:
    """Refuse what cannot be meant as the path of a file or a folder.

    :raises ConfigError: says what it looks like; the message does not repeat it.
    """
    for mistake in (QUOTED, *_PATHS):
        refuse(name, path, mistake)
    if os.name != "nt":
        refuse(name, path, _WINDOWS)
    if looks_like_dsn(path):
        raise ConfigError(f"{name} looks like a DSN with a password in it", ANY_FORM)


def refuse(name: str, text: str, mistake: Mistake) -> None:
    """Refuse a text in which a mistake is found.

    :raises ConfigError: says what is wrong and what to write; the message does not repeat the text.
    """
    if mistake.pattern.search(text):
        raise ConfigError(f"{name} {mistake.fact}", mistake.hint)
