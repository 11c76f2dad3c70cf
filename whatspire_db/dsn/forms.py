"""Which engine a DSN is for; what is neither's is refused with the way to write it, and never becomes a file."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..errors import ConfigError
from ..light import pattern
from .redaction import place_of

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
# What most write. For these, none of the mistakes below has a pattern, and to try them all takes milliseconds.
_PLAIN_PATH = r"[A-Za-z0-9_./][A-Za-z0-9_./-]*"
PLAIN = {
    SQLITE: pattern(rf"{_PLAIN_PATH}\.(?:db|sqlite3?)"),
    POSTGRES: pattern(
        r"(?:(?:\A| )(?:host|port|user|dbname|password|sslmode|sslrootcert|connect_timeout|application_name|TimeZone)"
        r"=(?:[\w./%+-]+|'[\w./%+-]+'))+"
        r"|postgres(?:ql)?://(?!.*WHATSAPP_)[\w.~%:@/?=&+-]+",
        re.ASCII,
    ),
}
QUOTES = "\"'`“”„‘’«»"


def kind_of(name: str, dsn: str) -> str:
    """Return "postgres" or "sqlite", whichever a DSN is for; it is not parsed any further.

    :param name: of the setting or the option that has it, for messages. They never repeat the DSN.
    :raises ConfigError: when it is neither's.
    """
    likely = POSTGRES if "=" in dsn or "://" in dsn else SQLITE
    if PLAIN[likely].fullmatch(dsn):
        return likely
    from .mistakes import kind_of_any

    return kind_of_any(name, dsn)


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
    if not re.fullmatch(_PLAIN_PATH, path):
        from .mistakes import refuse_path

        refuse_path(name, path)
