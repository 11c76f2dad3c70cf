"""SQLite: a file opened with the pragmas of the DSN over ours; a connection is closed when it is given back."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import peewee
from peewee import sqlite3  # the library that Peewee uses: two in one process lose rows

from whatspire_db import interruption
from whatspire_db.connection.database import Pooling
from whatspire_db.connection.pool_state import Limits
from whatspire_db.connection.query_log import QueryLog
from whatspire_db.connection.tasks import native_thread_id
from whatspire_db.dsn.targets import SqliteTarget
from whatspire_db.errors import ConnectionFailed, LockTimeout, TransactionError
from whatspire_db.light_stdlib import TYPE_CHECKING, Any, lazy_module
from whatspire_db.peewee_compat import pragmas

if TYPE_CHECKING:
    from whatspire_db import messages
else:  # for what fails
    messages = lazy_module("whatspire_db.messages")

PRAGMAS = {"foreign_keys": "1", "synchronous": "NORMAL", "journal_mode": "WAL"}
BUSY_SECONDS = 5.0
SETTLE_SECONDS = 1.0

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
        except (sqlite3.DatabaseError, UnicodeDecodeError, MemoryError) as error:
            raise _cannot_open(self.target, error) from None

    def _set_pragmas(self, conn: Any) -> None:
        interruption.cancellable(conn)
        wanted = pragmas(self)
        is_for_us_to_say = self.target.path is not None and "auto_vacuum" not in dict(wanted)
        if is_for_us_to_say and not conn.execute("PRAGMA page_count").fetchone()[0]:
            conn.execute("PRAGMA auto_vacuum = INCREMENTAL")  # a new file: its free pages can be given back later
        for name, value in wanted:
            if name == "journal_mode":
                if self.keeps_journal_mode and conn.execute("PRAGMA page_count").fetchone()[0]:
                    continue
                _set_journal_mode(conn, value, self)
            else:
                conn.execute(f"PRAGMA {name} = {value}")
        conn.execute("SELECT count(*) FROM sqlite_master")  # a file that is no database is found here

    def settle_journal_mode(self) -> None:
        """Give the file the journal mode that was left out so far, unless others hold it for a second."""
        self.keeps_journal_mode, self.timeout = False, SETTLE_SECONDS
        with suppress(ConnectionFailed, LockTimeout), self.connection_context():
            pass

    def _refuse_writes(self, connection: Any) -> Callable[[], None]:
        (before,) = connection.execute("PRAGMA query_only").fetchone()
        connection.execute("PRAGMA query_only = 1")

        def permit() -> None:
            connection.execute(f"PRAGMA query_only = {before}")

        return permit

    def _is_session_lost(self) -> bool:
        """Tell whether a transaction is over: SQLite ends it itself where a disk is full, or OR ROLLBACK says so."""
        try:
            return self.task_state.closed or not self.task_state.conn.in_transaction
        except sqlite3.ProgrammingError:  # it is closed
            return True

    def cursor(self, named_cursor: Any = None) -> Any:
        """Return a cursor of this thread's connection; none within a transaction's block whose transaction is over."""
        state = self.task_state
        if not state.closed and not state.beginning and state.in_block and self._is_session_lost():
            raise TransactionError(
                "SQLite has rolled back this transaction",
                "let the error leave the transaction's block, then do the whole of it again",
            )
        return super().cursor(named_cursor)

    def begin(self, *args: Any, **kwargs: Any) -> None:
        """Begin a transaction, with Peewee's arguments; at once or never where another task of this thread is in one.

        :raises TransactionError: when that task's transaction has the write lock, for both wait in the same thread.
        """
        with self._not_waiting_for_own_tasks():
            super().begin(*args, **kwargs)

    def execute_sql(self, sql: str, params: Any = None) -> Any:
        """Run a statement and return the driver's cursor."""
        with self._not_waiting_for_own_tasks():
            return super().execute_sql(sql, params)

    @contextmanager
    def _not_waiting_for_own_tasks(self) -> Iterator[None]:
        """Do not wait for a lock that only this thread can free: another of its tasks holds it, and cannot run now."""
        if not self._is_own_task_in_transaction():
            yield
            return
        connection = self.connection()
        connection.execute("PRAGMA busy_timeout = 0")
        try:
            yield
        except peewee.OperationalError as error:
            if not messages.is_locked(error):
                raise
            raise TransactionError(
                f"another task of this thread is in a transaction that holds the lock of {self.target.path}",
                "end a transaction before the task awaits, or run it whole in asyncio.to_thread",
            ) from error
        finally:
            if self.task_state.conn is connection:
                connection.execute(f"PRAGMA busy_timeout = {int(self.timeout * 1000)}")

    def _is_own_task_in_transaction(self) -> bool:
        """Return whether a task of this thread, but not the one that runs, is in a transaction."""
        mine = self.task_state.conn
        return not _is_in_transaction(mine) and any(
            connection is not mine and _is_in_transaction(connection)
            for connection in self.pool.lent_to(native_thread_id())
        )

    def _leave(self, connection: Any) -> None:
        import ctypes  # no worker that does not fork needs it

        # Closing it, at the interpreter's end too, could roll the parent's transaction back.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))
        if self.target.path is not None:
            _inherited.add(os.path.realpath(self.target.path))

    def _before_fork(self) -> None:
        # The next statement, here as in the child, opens another; what is in memory only would be lost.
        for state in self._states.of_thread():
            if self.target.path is not None and not (state.closed or state.transactions or state.conn.in_transaction):
                self._drop(state)


def _is_in_transaction(connection: Any) -> bool:
    try:
        return connection is not None and bool(connection.in_transaction)
    except sqlite3.ProgrammingError:  # it is closed
        return False


def _set_journal_mode(conn: Any, mode: str, db: SqliteDatabase) -> None:
    """Switch where the file has another mode; SQLite does not wait for this lock, so wait for it here."""
    if conn.execute("PRAGMA journal_mode").fetchone()[0].lower() in (mode.lower(), "memory"):
        return
    deadline = time.monotonic() + db.timeout
    while True:
        try:
            conn.execute(f"PRAGMA journal_mode = {mode}")
            return
        except sqlite3.OperationalError as error:
            if messages.primary(error) == messages.READONLY:
                return
            if not messages.is_locked(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _is_missing(path: str) -> bool:
    """Tell whether there is no file; a folder that this user may not search may well have one."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        pass
    return False


def _matches(pattern: str | None, subject: Any) -> bool | None:
    """Return whether a regular expression is found: SQLite's REGEXP, which it leaves to the program."""
    if pattern is None or subject is None:
        return None
    text = subject.decode(errors="replace") if isinstance(subject, bytes) else str(subject)
    return re.search(pattern, text) is not None


def open_sqlite(
    target: SqliteTarget, limits: Limits, log: QueryLog, read_only: bool = False, refuse_writes: bool = False
) -> SqliteDatabase:
    """Return a database for a DSN.

    :param read_only: leave the journal mode and the missing file as they are.
    :param refuse_writes: have SQLite refuse what writes, and a missing file too.
    """
    chosen = PRAGMAS | dict(target.pragmas) | ({"query_only": "1"} if refuse_writes else {})
    busy = float(chosen.pop("busy_timeout", BUSY_SECONDS * 1000)) / 1000
    if read_only or target.read_only:
        del chosen["journal_mode"]
    name, uri = target.database, target.uri
    if read_only and not refuse_writes and target.path is not None and _is_missing(target.path):
        name, uri = ":memory:", False  # nothing there yet: looking must not make a file
    db = SqliteDatabase(
        name,
        limits=limits,
        log=log,
        pragmas=sorted(chosen.items(), key=_is_later),
        timeout=busy,
        lock_type=target.lock_type,
        uri=uri,
        per_task=target.path is not None,
        check_same_thread=False,  # a thread that died cannot close its connection
    )
    db.target, db.must_exist = target, refuse_writes
    db.register_function(_matches, "regexp", 2)
    return db


def _is_later(pragma: tuple[str, str]) -> bool:
    return pragma[0] != "auto_vacuum"  # which counts only until something is written: WAL's mark is


def _cannot_open(target: SqliteTarget, error: Exception) -> ConnectionFailed | LockTimeout:
    """Return the error for a file that cannot be opened or read."""
    path = target.path or target.database
    fact, hint = _reason(target, path, error)
    if messages.is_locked(error):
        return LockTimeout(f"{path} {fact}", hint)
    return ConnectionFailed(f"{path} {fact}", hint, sqlite_code=messages.sqlite_code(error))


def _reason(target: SqliteTarget, path: str, error: Exception) -> tuple[str, str]:
    code = messages.primary(error)
    if messages.is_locked(error):
        from whatspire_db.connection.engines.sqlite.holders import held_by  # only where something is wrong

        return (
            f"is locked by another process{held_by(path)}",
            "wait for it to end, or raise --lock-timeout, or _busy_timeout in the DSN",
        )
    if messages.is_damage(error) or code is None:  # without a code the module failed to decode the schema
        return _damaged(path, error)
    if code in (messages.CANTOPEN, messages.READONLY) and (found := _not_openable(target, path)):
        return found
    hint = messages.hint(error, "point WHATSAPP_DATABASE_DSN at a database file")
    return f"cannot be opened: {messages.first_line(error)}", hint


def _damaged(path: str, error: Exception) -> tuple[str, str]:
    from .damage import is_no_database, verdict  # only where something is wrong

    if is_no_database(path, error):
        hint = "point WHATSAPP_DATABASE_DSN at the database; an encrypted file needs the program that made it"
        return verdict(path, error), hint
    hint = f"{messages.DAMAGED}; a later SQLite than {sqlite3.sqlite_version} may have written its schema"
    return verdict(path, error), hint


def _not_openable(target: SqliteTarget, file: str) -> tuple[str, str] | None:
    """Return why the system does not let this user open a file; None where it seems to."""
    from pathlib import Path  # only where something is wrong

    path = Path(file)
    hint = "point WHATSAPP_DATABASE_DSN at a database file"
    try:
        path.lstat()
    except PermissionError:
        return f"cannot be opened: no right to look into {path.parent}", "give this user the right to that folder"
    except OSError:
        pass  # it is missing, or its name is none
    if path.is_dir():
        return "is a directory", hint
    if path.exists() and not os.access(path, os.R_OK):
        return "cannot be read", "give this user the right to read and write it"
    if not path.exists() and target.read_only:
        return "does not exist", hint
    if not os.access(path.parent, os.W_OK):
        return (
            f"cannot be opened: no right to write in {path.parent}",
            "give this user that right, or where nobody writes open it as file:PATH?immutable=1",
        )
    return None
