"""SQLite: opening a file, and reading what it holds: tables, fingerprints, damage."""

from __future__ import annotations

import hashlib
import json
import logging
import marshal
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from peewee import sqlite3  # the library that Peewee uses: two in one process lose rows

from whatspire_db import interruption
from whatspire_db.backup.manifest import Content, Progress, Table, silent
from whatspire_db.connection.engines.sqlite.damage import damage, is_unreadable, verdict, with_stand_ins
from whatspire_db.connection.engines.sqlite.holders import held_by
from whatspire_db.dsn.targets import SqliteTarget
from whatspire_db.errors import BackupFailed, BackupInvalid, ConfigError, LockTimeout
from whatspire_db.files import SQLITE_HEADER, kind_of
from whatspire_db.messages import ERROR, first_line, is_disk_full, is_locked, primary, sqlite_code
from whatspire_db.messages import hint as hint_for
from whatspire_db.transfer.fence import Fence, find

logger = logging.getLogger("whatspire_db.backup")

ROWS_A_STEP = 20  # few, for each may be large, and more are hardly faster
LARGE_STEP = 2**20
HEAD_OF_LIST = 5  # in Python's serialization: its type, and its length
ROWID_NAMES = ("rowid", "_rowid_", "oid")
OK, BUSY, LOCKED, DONE = 0, 5, 6, 101  # SQLITE_OK and so on; the module names them from Python 3.11 on

T = TypeVar("T")
U = TypeVar("U")


@contextmanager
def opened(path: Path, mode: str = "rw", busy: float = 5.0, **options: str) -> Iterator[sqlite3.Connection]:
    """Open a file that must be there, in the mode of its URI; transactions are begun by hand."""
    parameters = "&".join(f"{key}={value}" for key, value in {"mode": mode, **options}.items())
    uri = f"{uri_of(path)}?{parameters}"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=busy, check_same_thread=False)
    with closing(interruption.cancellable(connection)):
        yield connection


def own(path: Path) -> AbstractContextManager[sqlite3.Connection]:
    """Open a file that nobody else knows of: without locks, which its file system may lack."""
    return opened(path, nolock="1")


def copy_pages(
    source: sqlite3.Connection, target: sqlite3.Connection, pages: int, tell: Callable[[int, int, int], None]
) -> None:
    """Copy a database by SQLite's own backup; an error has its result code, which pysqlite3 leaves out.

    :param pages: of a step.
    :param tell: is given the result code of each step, the pages that remain, and those that there are.
    """
    code = OK

    def stepped(status: int, remaining: int, total: int) -> None:
        nonlocal code
        code = status
        tell(status, remaining, total)

    try:
        source.backup(target, pages=pages, progress=stepped)
    except sqlite3.DatabaseError as error:
        if sqlite_code(error) is None and code not in (OK, DONE):
            error.sqlite_errorcode = code
        raise


def uri_of(path: Path) -> str:
    """Return the URI of a file for SQLite."""
    return f"file:{quote(os.fsencode(path.absolute()))}"


def file_of(target: SqliteTarget) -> Path:
    """Return the file of a DSN, behind all links.

    :raises ConfigError: when the database is in memory.
    """
    if target.path is None:
        raise ConfigError("a database in memory cannot be backed up or restored", "name a file by --dsn")
    return Path(os.path.realpath(target.path))


def examine(path: Path, progress: Progress = silent, named: str | Path | None = None) -> Content:
    """Return what a file that nobody else has open holds.

    :param named: what errors call the file, which may be a copy; default: its name.
    :raises BackupInvalid: when it is no database, or damaged.
    :raises FileNotFoundError: when it is not there, or not any more.
    """
    with path.open("rb") as file:
        if file.read(len(SQLITE_HEADER)) != SQLITE_HEADER:
            raise BackupInvalid(f"{named or path.name} is not a SQLite database", "take another backup")
    try:
        tables, problem = _at_once(lambda: _tables(path, progress), lambda: _damage(path))
        details = _details(path)
        version = _version(path)
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        if is_unreadable(error):
            raise BackupInvalid(f"{named or path.name} {verdict(str(path), error)}", "take another backup") from None
        path.lstat()  # FileNotFoundError, if it was deleted meanwhile
        raise BackupFailed(f"{named or path.name} cannot be read: {first_line(error)}", hint_for(error)) from None
    if problem:
        raise BackupInvalid(f"{named or path.name} is damaged: {problem}", "take another backup")
    return Content("sqlite", sqlite3.sqlite_version, version, tables, details=details)


def _at_once(one: Callable[[], T], other: Callable[[], U]) -> tuple[T, U]:
    """Run two works that let each other go on; one after the other, where no thread can be started."""
    with ThreadPoolExecutor(1) as pool:
        try:
            future = pool.submit(other)
        except RuntimeError:  # no thread can be started
            return one(), other()
        return one(), future.result()


def _reading(path: Path) -> Any:
    return opened(path, "ro", immutable="1")


def _damage(path: Path) -> str | None:
    with _reading(path) as connection:
        return next(iter(damage(connection)), None)


def _details(path: Path) -> dict[str, Any]:
    names = ("page_size", "page_count", "user_version", "application_id", "encoding", "auto_vacuum")
    with _reading(path) as connection:
        found = {name: connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names}
        schema = connection.execute(
            "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name"
        ).fetchall()
        found["schema"] = hashlib.sha256(json.dumps(schema).encode()).hexdigest()
    return found


def _tables(path: Path, progress: Progress) -> dict[str, Table]:
    """Return the rows and the fingerprint of every table, those behind virtual tables included."""
    tables = {}
    with _reading(path) as connection:
        found = connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND sql NOT LIKE 'CREATE VIRTUAL%' ORDER BY name"
        ).fetchall()
        for number, (name,) in enumerate(found, 1):
            tables[name] = with_stand_ins(connection, partial(_table, connection, name))
            progress("reading tables", number, len(found))
    return tables


def _undecoded(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


def _table(connection: sqlite3.Connection, name: str) -> Table:
    try:
        return _hashed(connection, name)
    except sqlite3.OperationalError as error:
        if primary(error) not in (None, ERROR):  # the module itself fails to decode, without a code of SQLite's
            raise
        connection.text_factory = _undecoded  # text that is no UTF-8 is data all the same
        try:
            return _hashed(connection, name)
        finally:
            connection.text_factory = str


def _hashed(connection: sqlite3.Connection, name: str) -> Table:
    """Hash the rows in the order in which they lie, by Python's own serialization, whose version 2 is one to one."""
    quoted = '"' + name.replace('"', '""') + '"'
    found, rows = hashlib.sha256(), 0
    columns = ", ".join([*_rowid(connection, quoted), "*"])
    cursor = connection.execute(f"SELECT {columns} FROM {quoted} NOT INDEXED")
    at_once = ROWS_A_STEP
    while chunk := cursor.fetchmany(at_once):
        rows += len(chunk)
        written = memoryview(marshal.dumps(chunk, 2))
        found.update(written[HEAD_OF_LIST:])  # the rows alone, so that it does not matter how many come at once
        at_once = ROWS_A_STEP if len(written) < LARGE_STEP else 1
    return Table(rows, found.hexdigest())


def _rowid(connection: sqlite3.Connection, quoted: str) -> list[str]:
    """Return the name of a rowid that is no column: an index for full text, for one, may refer to it.

    Nothing is returned where the primary key is the rowid, where there is none, or where columns hide all its names.
    """
    columns = connection.execute(f"PRAGMA table_xinfo({quoted})").fetchall()
    indexes = connection.execute(f"PRAGMA index_list({quoted})").fetchall()
    if any(column[5] for column in columns) and not any(index[3] == "pk" for index in indexes):
        return []  # only a key that is the rowid needs no index
    taken = {column[1].lower() for column in columns}
    names = [name for name in ROWID_NAMES if name not in taken][:1]
    try:
        for name in names:
            connection.execute(f"SELECT {name} FROM {quoted} LIMIT 0")
    except sqlite3.OperationalError as error:
        if primary(error) != ERROR:
            raise
        return []  # WITHOUT ROWID
    return names


def _version(path: Path) -> int:
    with _reading(path) as connection:
        try:
            return int(connection.execute("SELECT max(version) FROM migration_versions").fetchone()[0] or 0)
        except sqlite3.OperationalError as error:
            if primary(error) != ERROR:
                raise
            return 0  # there is no such table
        except (ValueError, OverflowError):
            return 0


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into ours, by their result codes."""
    try:
        yield
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        if is_unreadable(error):
            hint = "restore a backup: restore --force keeps the damaged file"
            raise BackupFailed(f"{path} {verdict(str(path), error)}", hint) from None
        if is_locked(error):
            raise LockTimeout(
                f"{path} is locked by another process{held_by(path)}",
                "wait for it to end, raise --lock-timeout, or stop who holds it",
            ) from None
        if is_disk_full(error):
            raise BackupFailed(f"no room left: {first_line(error)}", "make room; nothing was changed") from None
        raise not_openable(path) or BackupFailed(f"{path}: {first_line(error)}", hint_for(error)) from None


def fence_of(path: Path) -> Fence | None:
    """Return the fence of a file that nobody else has open; None without one."""
    with _reading(path) as connection:
        return find(connection)


def warn_of_fence(named: Path, path: Path) -> None:
    """Say in the log that a file's rows were moved to another database, and that it takes no writes.

    :param named: what it is called.
    :param path: the file, or a copy that nobody else has open.
    """
    fence = None
    with suppress(sqlite3.OperationalError):  # a backup can be deleted behind its verification
        fence = fence_of(path)
    if fence:
        logger.warning("%s is fenced, so no program can write to it: %s", named, fence.fact)


def not_openable(path: Path) -> BackupFailed | None:
    """Return the error for a file that cannot be opened as a database; None where it can."""
    if not path.exists():
        return BackupFailed(f"{path} does not exist", "check WHATSAPP_DATABASE_DSN")
    if kind := kind_of(path.stat()):
        return BackupFailed(f"{path} is {kind}", "point WHATSAPP_DATABASE_DSN at a database file")
    return None
