"""What counts as damage of a SQLite file: one answer for a backup, a health check and a migration."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from peewee import sqlite3

from whatspire_db.messages import ERROR, NOTADB, first_line, is_damage, primary

MANY_LINES = 2**31 - 1
LONGEST_NAME = 255  # bytes of a function's name
# SQLite's checks report these too: rows that were stored so on purpose, or before a constraint was there. It is data.
_OF_ROWS = re.compile(r"(NULL|TEXT|NUMERIC|non-\w+) value in |CHECK constraint failed in ")
# A stand-in for a collation has an order of its own.
_OF_ORDER = re.compile(r"row not in PRIMARY KEY order for ")
_NAME = r'"(?:[^"]|"")*"|\[[^\]]*\]|`(?:[^`]|``)*`|\'(?:[^\']|\'\')*\'|\w+'
_COLLATION = re.compile(rf"\bCOLLATE\s+({_NAME})", re.IGNORECASE)
_FUNCTION = re.compile(rf"({_NAME})\s*\(")

T = TypeVar("T")


def damage(connection: Any, check: str = "integrity_check", most: int = 1) -> list[str]:
    """Return the first lines of damage that one of SQLite's checks finds; none for a sound database.

    Rows against a constraint, and collations and functions that only another program registers, are no damage.

    :param connection: one for reading alone, see `lend`.
    :param most: how many lines to return.
    :raises sqlite3.DatabaseError: when SQLite cannot look, for example because another process holds a lock.
    """
    try:
        return _found(connection, check, most)
    except sqlite3.DatabaseError as error:
        if is_damage(error):
            return [first_line(error)]
        if primary(error) != ERROR:
            raise
    lend(connection)
    # A quick check does not compare an index with its table, whose order only the other program knows.
    return [line for line in _found(connection, "quick_check", MANY_LINES) if not _OF_ORDER.match(line)][:most]


def _found(connection: Any, check: str, most: int) -> list[str]:
    found: list[str] = []
    try:
        for (text,) in connection.execute(f"PRAGMA {check}({MANY_LINES})"):  # which ends after a hundred by itself
            found += filter(_is_damage, text.split("\n"))
            if len(found) >= most:
                break
    except sqlite3.DatabaseError as error:
        if not (found and is_damage(error)):
            raise
    return found[:most]


def _is_damage(line: str) -> bool:
    return line not in ("", "ok") and not line.startswith("*** in database ") and not _OF_ROWS.match(line)


def with_stand_ins(connection: Any, work: Callable[[], T]) -> T:
    """Read a database whose own program registers collations and functions that this one lacks.

    :param connection: one for reading alone, see `lend`.
    """
    try:
        return work()
    except sqlite3.OperationalError as error:
        if primary(error) != ERROR:
            raise
    lend(connection)
    return work()


def lend(connection: Any) -> None:
    """Give a connection stand-ins for the collations and functions that its schema names and this program lacks.

    They cannot be taken back: SQLite takes a schema for malformed whose function is gone. So give them to a connection
    that only reads, and is closed afterwards.
    """
    collations, functions = _lacking(connection)
    for name in collations:
        with suppress(sqlite3.ProgrammingError):  # Python 3.10 takes names of letters and digits alone
            connection.create_collation(name, lambda one, other: (one > other) - (one < other))
    for name in functions:
        connection.create_function(name, -1, lambda *values: None, deterministic=True)
    # A schema that was read without a collation has a WITHOUT ROWID table that nothing can read: read it again.
    connection.execute("PRAGMA writable_schema = RESET")


def _lacking(connection: Any) -> tuple[list[str], list[str]]:
    """Return the names that stand where collations and functions do, and are none here; some are only types."""
    rows = connection.execute("SELECT CAST(sql AS BLOB) FROM sqlite_master WHERE sql IS NOT NULL")
    text = "\n".join(sql.decode("utf-8", "ignore") for (sql,) in rows)
    functions = {row[0].lower() for row in connection.execute("PRAGMA function_list")}
    # The list of collations has those too that the schema names and nobody has registered.
    collations = [name for name in _names(_COLLATION, text) if _lacks_collation(connection, name)]
    return collations, [name for name in _names(_FUNCTION, text) if name not in functions]


def _lacks_collation(connection: Any, name: str) -> bool:
    quoted = '"' + name.replace('"', '""') + '"'
    try:
        connection.execute(f"SELECT '' COLLATE {quoted} = ''")
    except sqlite3.OperationalError as error:
        if primary(error) != ERROR:
            raise
        return True
    return False


def _names(pattern: re.Pattern[str], text: str) -> list[str]:
    found = {_bare(name).lower() for name in pattern.findall(text)}
    return sorted(name for name in found if 0 < len(name.encode()) <= LONGEST_NAME and "\0" not in name)


def _bare(name: str) -> str:
    if name[0] in "\"`'":
        return name[1:-1].replace(name[0] * 2, name[0])
    return name[1:-1] if name[0] == "[" else name


def is_unreadable(error: BaseException) -> bool:
    """Tell whether a file or its schema cannot be read: it is damaged, or no database."""
    return is_damage(error) or isinstance(error, UnicodeDecodeError) or _is_of_text(error)


def _is_of_text(error: BaseException) -> bool:
    """Tell whether the module failed to decode what SQLite said; Python 3.10 leaves such an error without a word."""
    is_plain = type(error) in (sqlite3.DatabaseError, sqlite3.OperationalError)
    return is_plain and (primary(error) is None or not str(error))


def verdict(path: str, error: BaseException) -> str:
    """Return what is wrong with a file that cannot be read, to follow its name."""
    if is_no_database(path, error):
        return f"is not a SQLite database: {first_line(error)}"
    words = first_line(error) if is_damage(error) and str(error) else "malformed database schema, which is not UTF-8"
    return f"is damaged: {words}"


def is_no_database(path: str, error: BaseException) -> bool:
    """Tell whether a file that cannot be read does not even begin as SQLite's do."""
    return primary(error) == NOTADB and not has_header(path)


def has_header(path: str) -> bool:
    """Tell whether a file begins as SQLite's do; True where that cannot be found out.

    Another process reads it: closing the file here would end all locks of this process on it.
    """
    import subprocess  # only where something is wrong

    script = "import sys; sys.exit(open(sys.argv[1], 'rb').read(16) != b'SQLite format 3\\0')"
    command = [sys.executable, "-I", "-S", "-c", script, path]
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=10).returncode != 1
    except (OSError, subprocess.SubprocessError):
        return True
