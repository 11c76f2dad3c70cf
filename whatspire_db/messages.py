"""The one table from a SQLSTATE or SQLite's result code to a fact and a hint; nothing is decided by words."""

from __future__ import annotations

import sys
from functools import cache
from types import MappingProxyType

from .errors import WhatspireDBError, bounded, printable
from .light_stdlib import Any

LONGEST = 500  # characters of an engine's own words
NOTHING_CHANGED = "nothing was changed; correct what the database names and try again"
DAMAGED = (
    "stop what writes to it, keep a copy of the file and of its -wal, look at the disk, then restore a backup or try "
    "sqlite3's .recover"
)

# https://www.postgresql.org/docs/current/errcodes-appendix.html
SQLSTATE_HINTS = MappingProxyType(
    {
        "08P01": "take the run-time parameters out of WHATSAPP_DATABASE_DSN and set them for the role (ALTER ROLE ... "
        "SET): a pooler in between does not pass them on",
        "0A000": "the server does not support this; correct the model, or use a later server",
        "22021": "the text cannot be stored in the encoding of the database; a new database should have UTF8",
        "22P05": "the text cannot be stored in the encoding of the database; a new database should have UTF8",
        "23505": "rows were written meanwhile that share their value; plan shows how to find them",
        "25006": "connect to the primary, or to a database that can be written",
        "25P03": "raise idle_in_transaction_session_timeout for this role",
        "25P04": "raise transaction_timeout for this role",
        "28000": "check the user in WHATSAPP_DATABASE_DSN, that the role exists, and that the server's pg_hba.conf "
        "lets this host and user in (with or without SSL: sslmode)",
        "28P01": "check user and password in WHATSAPP_DATABASE_DSN",
        "3D000": "create the database, or correct its name in WHATSAPP_DATABASE_DSN",
        "3F000": "create the schema, or correct its name",
        "40001": "another transaction changed the same rows; run it again",
        "40P01": "another session waited for this one; run it again",
        "42501": "use a role that owns the tables and may create others",
        "42701": "a column of that name exists; rename it, or the declared one",
        "42704": "check the name; if an extension brings it, install that extension, or add its schema to search_path",
        "42710": "an object of that name exists; rename it, or the declared one",
        "42883": "check the name and its arguments; if an extension brings it, install that, or add its schema to "
        "search_path",
        "42P06": "a schema of that name exists; rename it, or the declared one",
        "42P07": "a table or an index of that name exists; rename it, or the declared one",
        "53100": "make room on the server's disk and try again",
        "53200": "the server has too little memory; give it more, or run this when it is quiet",
        "53300": "close connections, raise max_connections on the server, or lower WHATSAPP_DATABASE_MAX_OPEN_CONNS",
        "53400": "raise the limit that the server names",
        "54011": "split the table: PostgreSQL takes 1,600 columns at most",
        "55000": "the server does not take connections to this database now; see pg_database.datallowconn",
        "55006": "another session uses it; try again when that has ended",
        "55P03": "another session holds the lock; wait for it to end, or raise --lock-timeout",
        "57014": "a time limit of the server or the role ended the statement; raise statement_timeout, or run it again",
        "57P01": "the server ended this session; run it again",
        "57P02": "the server is restarting after a crash; run it again when it answers",
        "57P03": "the server is starting, recovering or shutting down; run it again when it answers",
        "57P05": "raise idle_session_timeout for this role",
        "58030": "look at the server's disk and its log",
        "58P01": "a file of the server is missing; look at its disk and its log",
        "XX000": "see the server's log",
        "XX001": "the server's data is damaged: look at its disk and its log, and restore a backup",
        "XX002": "an index is damaged: REINDEX it, and look at the server's disk and its log",
    }
)
CONNECT_HINTS = MappingProxyType(  # where a code means something else when it answers a connection
    {
        "22023": "correct the parameter's value in WHATSAPP_DATABASE_DSN",
        "42501": "grant this role CONNECT on the database",
        "42704": "correct the parameter's name in WHATSAPP_DATABASE_DSN",
        "53200": "the server's memory or its lock table is full: run this when it is quiet, or raise "
        "max_locks_per_transaction (needs a restart)",
        "42P01": "correct the parameter's name in WHATSAPP_DATABASE_DSN",
    }
)
LOCK_TABLE_FULL = (
    "raise max_locks_per_transaction on the server (needs a restart), or run this when fewer sessions hold locks"
)
ROWS_HIDDEN = (
    "use a role with BYPASSRLS, or the owner of the table where security is not forced on it (ALTER TABLE ... NO FORCE "
    "ROW LEVEL SECURITY)"
)
CONNECTION_LOST = "the connection to the server was lost; run it again, and see the server's log"
# PostgreSQL has one code for both kinds of memory; the file of its source that reports it tells them apart.
_LOCK_TABLE_FILES = frozenset({"lock.c", "predicate.c", "dynahash.c", "shmem.c"})

# https://www.sqlite.org/rescode.html
ERROR, BUSY, LOCKED, NOMEM, READONLY, INTERRUPT, IOERR, CORRUPT = 1, 5, 6, 7, 8, 9, 10, 11
FULL, CANTOPEN, PROTOCOL, TOOBIG, CONSTRAINT, NOTADB = 13, 14, 15, 18, 19, 26
MISSING_COLLATION, READONLY_ROLLBACK, READONLY_DIRECTORY, CONSTRAINT_TRIGGER = 257, 776, 1544, 1811

SQLITE_HINTS = MappingProxyType(
    {
        BUSY: "find the program that writes to it for that long, or try again when it is quiet",
        LOCKED: "find the program that writes to it for that long, or try again when it is quiet",
        NOMEM: "give this program more memory and try again",
        READONLY: "give this user the right to write the file and its folder",
        INTERRUPT: "run it again",
        IOERR: "make room on the disk, check this user's limits and whether files can be locked there",
        CORRUPT: DAMAGED,
        FULL: "make room on the disk and try again",
        CANTOPEN: "give this user the right to read and write the file and its folder, and make sure there is room",
        PROTOCOL: "other programs open and close the file all the time; try again when it is quiet",
        TOOBIG: "SQLite stores no text or blob this large",
        NOTADB: "point WHATSAPP_DATABASE_DSN at the database",
        CONSTRAINT_TRIGGER: "a trigger of the database says so: if its rows were moved, point WHATSAPP_DATABASE_DSN to "
        "where they are",
        MISSING_COLLATION: "register the collation on the database (db.register_collation) before the migration",
    }
)


_DRIVERS = {"peewee", "psycopg2", "sqlite3", "pysqlite3"}


def sqlstate(error: BaseException) -> str | None:
    """Return the SQLSTATE of an error of ours or of a driver, also where Peewee wrapped it; None without one."""
    original = getattr(error, "orig", error)
    return getattr(original, "pgcode", None) or getattr(original, "sqlstate", None)


def sqlite_code(error: BaseException) -> int | None:
    """Return SQLite's extended result code of an error; None for an error that is not SQLite's.

    Python 3.10 keeps only the class and the text of an error. There the code is the primary one, and it is found by
    comparing the whole text with those that SQLite itself has for its codes, which are never translated.
    """
    original = getattr(error, "orig", error)
    if isinstance(original, MemoryError):
        return NOMEM
    code = getattr(original, "sqlite_errorcode", None) or getattr(original, "sqlite_code", None)
    if code is not None:
        return int(code)
    module = sys.modules.get(type(original).__module__)
    if not hasattr(module, "sqlite_version") or hasattr(module, "SQLITE_BUSY"):  # a module that keeps codes names them
        return None
    return _code_of_words(original)


def _code_of_words(error: BaseException) -> int | None:
    """Return the primary code of an error of a Python that does not keep it."""
    text = str(error)
    if code := _codes().get(text):
        return code
    kind = type(error).__name__
    if kind == "DatabaseError" and text != "file is not a database":
        return CORRUPT  # the module raises this class itself for CORRUPT and NOTADB alone
    return {"IntegrityError": CONSTRAINT, "DataError": TOOBIG, "OperationalError": ERROR}.get(kind)


@cache
def _codes() -> dict[str, int]:
    """Return SQLite's own text for each code, from the library that is loaded, or as it has been for years."""
    texts = {
        BUSY: "database is locked",
        LOCKED: "database table is locked",
        READONLY: "attempt to write a readonly database",
        INTERRUPT: "interrupted",
        IOERR: "disk I/O error",
        CORRUPT: "database disk image is malformed",
        FULL: "database or disk is full",
        CANTOPEN: "unable to open database file",
        PROTOCOL: "locking protocol",
        NOTADB: "file is not a database",
    }
    return {text: code for code, text in texts.items()} | dict(_texts_of_library(texts))


def _texts_of_library(codes: Any) -> list[tuple[str, int]]:
    try:
        import _sqlite3
        import ctypes

        library = ctypes.CDLL(_sqlite3.__file__)
        library.sqlite3_errstr.restype = ctypes.c_char_p
        return [(library.sqlite3_errstr(code).decode(), code) for code in codes]
    except (ImportError, OSError, AttributeError):  # a build without its own file, or with hidden symbols
        return []


def primary(error: BaseException) -> int | None:
    """Return SQLite's primary result code of an error; None for an error that is not SQLite's."""
    code = sqlite_code(error)
    return None if code is None else code & 0xFF


def is_right_missing(error: BaseException) -> bool:
    """Tell whether a statement failed because this role, server or file may not be written."""
    # insufficient_privilege, read_only_sql_transaction
    return sqlstate(error) in ("42501", "25006") or primary(error) == READONLY


def is_there_already(error: BaseException) -> bool:
    """Tell whether a statement failed because a table or an index of that name exists."""
    return sqlstate(error) == "42P07"


def is_locked(error: BaseException) -> bool:
    """Tell whether a statement failed because of another session's lock."""
    return sqlstate(error) == "55P03" or primary(error) in (BUSY, LOCKED)


def is_deadlock(error: BaseException) -> bool:
    """Tell whether PostgreSQL ended a statement to end a deadlock."""
    return sqlstate(error) == "40P01"


def is_damage(error: BaseException) -> bool:
    """Tell whether SQLite says that a file is damaged, or not a database."""
    return primary(error) in (CORRUPT, NOTADB)


def is_disk_full(error: BaseException) -> bool:
    """Tell whether a statement failed for want of room on the disk."""
    return sqlstate(error) == "53100" or primary(error) == FULL


def is_lock_table_full(error: BaseException) -> bool:
    """Tell whether a statement failed because PostgreSQL's shared lock table is full."""
    if sqlstate(error) != "53200":
        return False
    return _source_file(error) in _LOCK_TABLE_FILES


def is_hidden_by_policy(error: BaseException) -> bool:
    """Tell whether a statement failed because a policy hides rows: not for want of a right, which has the same code."""
    return sqlstate(error) == "42501" and _source_file(error) == "rls.c"


def _source_file(error: BaseException) -> str | None:
    """Return the file of PostgreSQL's source that reports an error."""
    diagnostics = getattr(getattr(error, "orig", error), "diag", None)
    return getattr(diagnostics, "source_file", None)


def is_connection_lost(error: BaseException) -> bool:
    """Tell whether PostgreSQL's driver failed without an answer of the server."""
    original = getattr(error, "orig", error)
    kinds = ("OperationalError", "InterfaceError", "DatabaseError")  # the driver's own classes, without importing it
    return hasattr(original, "pgcode") and original.pgcode is None and type(original).__name__ in kinds


def passes_by_itself(error: BaseException) -> bool:
    """Tell whether a server answered, and refused for now: it is full, starting, shutting down or failing over."""
    if getattr(error, "accepts_now", False) or getattr(error, "has_no_fitting_server", False):
        return True
    return sqlstate(error) in ("53300", "57P01", "57P02", "57P03")


def clean(text: str) -> str:
    """Return an engine's words as one bounded line: without the lines that can repeat a row, or steer a terminal."""
    lines = text.strip().splitlines() or [""]
    return bounded(printable(" ".join(lines[0].split())), LONGEST)


def first_line(error: BaseException, *, values: bool = False) -> str:
    """Return an engine's own words for an error, without values of a row.

    :param values: keep the words that quote a value, where it can be no row's.
    """
    original = getattr(error, "orig", error)
    if isinstance(error, WhatspireDBError):
        return error.fact
    if isinstance(original, MemoryError):
        return "out of memory"
    if is_lock_table_full(error):
        return "the server's lock table is full"  # which PostgreSQL calls "out of shared memory"
    state = sqlstate(error) or ""
    if state.startswith("22") and not values:  # the class of errors whose text repeats the value
        return f"a value is refused: {_condition(original)} (SQLSTATE {state})"
    words = getattr(getattr(original, "diag", None), "message_primary", None) or str(original)
    return clean(str(words)) or _condition(original)


def _condition(error: BaseException) -> str:
    """Name a kind of error as its class does: InvalidTextRepresentation -> invalid text representation."""
    name = type(error).__name__
    return "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in name).strip()


def hint(error: BaseException, default: str = NOTHING_CHANGED) -> str:
    """Return what to do about an engine's error."""
    if isinstance(error, WhatspireDBError):
        return error.hint
    if is_lock_table_full(error):
        return LOCK_TABLE_FULL
    if is_hidden_by_policy(error):
        return ROWS_HIDDEN
    state, code = sqlstate(error), sqlite_code(error)
    if state is not None:
        return SQLSTATE_HINTS.get(state) or (CONNECTION_LOST if state.startswith("08") else default)
    if is_connection_lost(error):
        return CONNECTION_LOST
    if code is not None:
        return SQLITE_HINTS.get(code) or SQLITE_HINTS.get(code & 0xFF, default)
    return default


def in_words(error: BaseException) -> WhatspireDBError | None:
    """Return our error for one of a database, a driver or Peewee; None for any other, which is a fault of a program."""
    if isinstance(error, WhatspireDBError):
        return error
    if isinstance(error, UnicodeError):
        return WhatspireDBError(
            f"the database holds text that is not in its encoding: {bounded(str(error), LONGEST)}",
            "find the row or the name and write it again in UTF-8; a new PostgreSQL database should have UTF8",
        )
    modules = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return database_failed(error) if modules & _DRIVERS else None


def database_failed(error: BaseException) -> WhatspireDBError:
    """Return the error for a question that the database did not answer, or for a write that a trigger refused."""
    did = "refused this" if sqlite_code(error) == CONSTRAINT_TRIGGER else "failed"
    return WhatspireDBError(f"the database {did}: {first_line(error)}", hint(error))
