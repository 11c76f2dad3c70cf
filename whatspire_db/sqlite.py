"""SQLite: a file opened with the pragmas of the DSN over ours; a connection is closed when it is given back."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peewee

from .dsn import SqliteTarget
from .errors import ConnectionFailed, TransactionError
from .pool_state import Limits
from .pooling import Pooling
from .query_log import QueryLog

PRAGMAS = {"foreign_keys": "1", "synchronous": "NORMAL", "journal_mode": "WAL"}
BUSY_SECONDS = 5.0

# Files that the parent process had open when this one was forked. SQLite keeps books of a process's locks on a file,
# and those of the parent say here that locks are held which are not: whoever writes then does so unguarded, and the
# parent's last connection deletes the WAL under the child's (https://www.sqlite.org/howtocorrupt.html, 2.6).
_inherited: set[str] = set()


class SqliteDatabase(Pooling, peewee.SqliteDatabase):
    """Peewee's, whose journal mode is set patiently and whose failure to open says why."""

    target: SqliteTarget
    must_exist = False
    may_close_elsewhere = False

    def _connect(self) -> Any:
        path = self.target.path
        if path is not None and os.path.realpath(path) in _inherited:
            raise ConnectionFailed(
                f"{path} was open in another thread, or a transaction, when this process was forked from its parent",
                "fork when no other thread uses the database and no transaction is open, or let multiprocessing spawn",
            )
        if self.must_exist and path is not None and not os.path.lexists(path):
            raise ConnectionFailed(f"{path} does not exist", "point WHATSAPP_DATABASE_REPLICA_DSN at a database file")
        if path is not None and os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
            raise ConnectionFailed(f"{path} is not a regular file", "point WHATSAPP_DATABASE_DSN at a database file")
        try:
            return super()._connect()
        except sqlite3.OperationalError as error:
            raise _cannot_open(self.target, error) from None
        except sqlite3.DatabaseError as error:
            raise ConnectionFailed(
                f"{self.target.path or self.database} is not a SQLite database: {error}",
                "point WHATSAPP_DATABASE_DSN at the database, or move the file away",
            ) from None

    def _set_pragmas(self, conn: sqlite3.Connection) -> None:
        for name, value in self._pragmas:
            if name == "journal_mode":
                _set_journal_mode(conn, value, self._timeout)
            else:
                conn.execute(f"PRAGMA {name} = {value}")
        conn.execute("SELECT count(*) FROM sqlite_master")  # a file that is no database is found here

    def _refuse_writes(self, connection: Any) -> Callable[[], None]:
        (before,) = connection.execute("PRAGMA query_only").fetchone()
        connection.execute("PRAGMA query_only = 1")

        def permit() -> None:
            connection.execute(f"PRAGMA query_only = {before}")

        return permit

    def _is_session_lost(self) -> bool:
        """Tell whether a transaction is over: SQLite ends it itself where a disk is full, or OR ROLLBACK says so."""
        try:
            return self._state.closed or not self._state.conn.in_transaction
        except sqlite3.ProgrammingError:  # it is closed
            return True

    def cursor(self, named_cursor: Any = None) -> Any:
        """Return a cursor of this thread's connection; none within a transaction's block whose transaction is over."""
        state = self._state
        if not state.closed and not state.beginning and self._in_block() and self._is_session_lost():
            raise TransactionError(
                "SQLite has rolled back this transaction",
                "let the error leave the transaction's block, then do the whole of it again",
            )
        return super().cursor(named_cursor)

    def _leave(self, connection: Any) -> None:
        import ctypes  # no worker that does not fork needs it

        # Closing it, at the interpreter's end too, could roll the parent's transaction back.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))
        if self.target.path is not None:
            _inherited.add(os.path.realpath(self.target.path))

    def _before_fork(self) -> None:
        # The next statement, here as in the child, opens another; what is in memory only would be lost.
        state = self._state
        if self.target.path is not None and not state.closed and not state.transactions and self._is_session_lost():
            self._drop()


def _set_journal_mode(conn: sqlite3.Connection, mode: str, patience: float) -> None:
    """Switch where the file has another mode; SQLite does not wait for this lock, so wait for it here."""
    if conn.execute("PRAGMA journal_mode").fetchone()[0].lower() in (mode.lower(), "memory"):
        return
    deadline = time.monotonic() + patience
    while True:
        try:
            conn.execute(f"PRAGMA journal_mode = {mode}")
            return
        except sqlite3.OperationalError as error:
            if "readonly" in str(error):
                return
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def open_sqlite(
    target: SqliteTarget, limits: Limits, log: QueryLog, read_only: bool = False, refuse_writes: bool = False
) -> SqliteDatabase:
    """Return a database for a DSN.

    :param read_only: leave the journal mode and the missing file as they are.
    :param refuse_writes: have SQLite refuse what writes, and a missing file too.
    """
    pragmas = PRAGMAS | dict(target.pragmas) | ({"query_only": "1"} if refuse_writes else {})
    busy = float(pragmas.pop("busy_timeout", BUSY_SECONDS * 1000)) / 1000
    if read_only or target.read_only:
        del pragmas["journal_mode"]
    name, uri = target.database, target.uri
    if read_only and not refuse_writes and target.path is not None and not os.path.lexists(target.path):
        name, uri = ":memory:", False  # nothing there yet: looking must not make a file
    db = SqliteDatabase(
        name,
        limits=limits,
        log=log,
        pragmas=list(pragmas.items()),
        timeout=busy,
        lock_type=target.lock_type,
        uri=uri,
        check_same_thread=False,  # a thread that died cannot close its connection
    )
    db.target, db.must_exist = target, refuse_writes
    if target.path is not None and not read_only and not target.read_only:
        _make_folder(Path(target.path).parent)
    return db


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConnectionFailed(
            f"the folder {folder} cannot be made: {error.strerror}",
            "make it, give this user the right to, or point WHATSAPP_DATABASE_DSN elsewhere",
        ) from None


def _cannot_open(target: SqliteTarget, error: Exception) -> ConnectionFailed:
    path = Path(target.path or target.database)
    hint = "point WHATSAPP_DATABASE_DSN at a database file"
    if "locked" in str(error):
        return ConnectionFailed(
            f"{path} is locked by another process",
            "wait for it to end, or raise --lock-timeout, or _busy_timeout in the DSN",
        )
    if path.is_dir():
        return ConnectionFailed(f"{path} is a directory", hint)
    if path.exists() and not os.access(path, os.R_OK):
        return ConnectionFailed(f"{path} cannot be read", "give this user the right to read and write it")
    if not path.exists() and target.read_only:
        return ConnectionFailed(f"{path} does not exist", hint)
    if not os.access(path.parent, os.W_OK):
        return ConnectionFailed(
            f"{path} cannot be opened: no right to write in {path.parent}",
            "give this user that right, or where nobody writes open it as file:PATH?immutable=1",
        )
    return ConnectionFailed(f"{path} cannot be opened: {error}", hint)
