"""Which engine a DSN is for; what is neither's is refused with the way to write it, and never becomes a file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from string import ascii_letters, digits

from ..errors import ConfigError
from ..light_stdlib import lazy_module

redaction = lazy_module("whatspire_db.dsn.redaction")  # for messages

SQLITE, POSTGRES = "sqlite", "postgres"
POSTGRES_FORMS = "'host=localhost user=me password=... dbname=whatspire' or 'postgres://me:...@localhost/whatspire'"
SQLITE_FORMS = "a path or a file: URI, like data/whatspire.db"
ANY_FORM = f"SQLite takes {SQLITE_FORMS}; PostgreSQL {POSTGRES_FORMS}"
AS_URL = "write postgres://USER:PASSWORD@HOST:PORT/NAME"

# Keywords that say by themselves that a text is libpq's key=value form.
KEYWORDS = (
    "host|hostaddr|port|user|dbname|database|password|passfile|service|sslmode|sslrootcert|sslcert|sslkey|options"
    "|application_name|connect_timeout|target_session_attrs"
)
# Those of other drivers, and the keyword that libpq has for each.
ALIASES: Mapping[str, str] = {
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
# What most write. It has none of the mistakes that `mistakes` looks for, which takes milliseconds.
_LETTERS = frozenset(f"{ascii_letters}{digits}_./-")
_URL_LETTERS = _LETTERS | frozenset("~%:@?=&+")
_PLAIN_FILES = (".db", ".sqlite", ".sqlite3")
_PLAIN_URLS = ("postgres://", "postgresql://")
_PLAIN_WORDS = "host port user dbname password sslmode sslrootcert connect_timeout application_name TimeZone"
_PLAIN_KEYS = frozenset(_PLAIN_WORDS.split())
QUOTES = "\"'`“”„‘’«»"


def kind_of(name: str, dsn: str) -> str:
    """Return "postgres" or "sqlite", whichever a DSN is for; it is not parsed any further.

    :param name: of the setting or the option that has it, for messages. They never repeat the DSN.
    :raises ConfigError: when it is neither's.
    """
    if _is_plain_path(dsn) and dsn.endswith(_PLAIN_FILES) and dsn not in _PLAIN_FILES:
        return SQLITE
    if _is_plain_url(dsn) or plain_pairs(dsn):
        return POSTGRES
    from .mistakes import kind_of_any

    return kind_of_any(name, dsn)


def plain_pairs(dsn: str) -> dict[str, str]:
    """Return the parameters of a PostgreSQL DSN as most write one: keys and values between blanks; else none."""
    pairs: dict[str, str] = {}
    for pair in dsn.split(" "):
        key, _, value = pair.partition("=")
        if len(value) > 2 and value[0] == value[-1] == "'":
            value = value[1:-1]
        if key not in _PLAIN_KEYS or not value or not _LETTERS.issuperset(value):
            return {}
        pairs[key] = value
    return pairs if pairs.keys() - {"TimeZone"} else {}  # which alone says nothing of PostgreSQL


def _is_plain_url(dsn: str) -> bool:
    return dsn.startswith(_PLAIN_URLS) and _URL_LETTERS.issuperset(dsn) and "WHATSAPP_" not in dsn


def _is_plain_path(path: str) -> bool:
    return _LETTERS.issuperset(path) and path[:1] not in ("", "-")


def is_plainly_sqlite(dsn: str) -> bool:
    """Return whether a text can only be meant as a DSN for SQLite."""
    is_file = re.search(r"\A[^\s=]+\.(db|db3|sqlite|sqlite3)(\?|\Z)", dsn, re.IGNORECASE)
    return bool(is_file or re.match(r"file:|:memory:|\.{0,2}/", dsn, re.IGNORECASE))


def refuse_quotes(name: str, text: str) -> None:
    """Refuse a value that is in quotes.

    :raises ConfigError: names the setting or the option.
    """
    if len(text) > 1 and text[0] in QUOTES and text[-1] in QUOTES:
        from .mistakes import QUOTED, refuse

        refuse(name, text, QUOTED)


def check_folder(name: str, folder: str) -> None:
    """Check that a text is meant as the path of a folder.

    :raises ConfigError: says what it looks like; the message repeats no secret.
    """
    if folder.isalnum() and _is_plain_path(folder):
        return
    if re.match(r"[A-Za-z][\w+.-]+:/", folder):
        hint = "name a folder of this machine, and copy the files elsewhere from there"
        raise ConfigError(f"{name}: {redaction.place_of(folder)} is not a folder of this machine", hint)
    _check_path(name, re.sub(r"\A~|[/.]+\Z", "", folder))  # ~ is replaced there


def check_path(name: str, path: str) -> None:
    """Check that a text is meant as the path of a file, and not as something else that would become one.

    :raises ConfigError: says what it looks like; the message does not repeat it.
    """
    if re.search(r"(?:\A|/)\.{0,2}\Z", path):
        raise ConfigError(f"{name} names a folder", "name a file, like data/whatspire.db")
    refuse_other_bytes(name, path)
    _check_path(name, path)


def refuse_other_bytes(name: str, path: str) -> None:
    """Refuse a path with bytes that are not UTF-8, which stand as surrogates in it: a connection cannot tell it.

    :raises ConfigError: says so; the message does not repeat the path.
    """
    if not path.isascii() and re.search(r"[\ud800-\udfff]", path):
        raise ConfigError(f"{name} has bytes that are not UTF-8", "name a file whose path is UTF-8")


def _check_path(name: str, path: str) -> None:
    if not _is_plain_path(path):
        from .mistakes import refuse_path

        refuse_path(name, path)
