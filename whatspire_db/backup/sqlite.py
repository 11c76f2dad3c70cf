"""SQLite: a consistent copy under writers, its fingerprints, and the way back into a live file."""

from __future__ import annotations

import hashlib
import json
import logging
import marshal
import os
import re
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from ..dsn import SqliteTarget
from ..errors import BackupFailed, BackupInvalid, ConfigError, NothingToBackUp, TargetRefused
from . import compression
from .archive import Content, Manifest, Progress, Table, differences, digest, silent
from .durable import new_file, sync, undisturbed, workspace

SUFFIX = ".sqlite3"
HEADER = b"SQLite format 3\0"
PAGES_A_STEP = 4096
RESTORED_PAGES_A_STEP = 256
CACHE_KIB = 32768  # room for a step of the largest pages
ROWS_A_STEP = 20  # few, for each may be large, and more are hardly faster
LARGE_STEP = 2**20
HEAD_OF_LIST = 5  # in Python's serialization: its type, and its length
MARK_OF_WAL = 18  # its place in the header: 1, or 2 with a WAL
ROWID_NAMES = ("rowid", "_rowid_", "oid")
MANY_LINES = 2**31 - 1
OK, BUSY, LOCKED, DONE = 0, 5, 6, 101  # SQLITE_OK and so on; the module names them from Python 3.11 on
SIDE_FILES = ("-wal", "-shm", "-journal")

# What integrity_check says of rows that were stored so on purpose, or before a constraint was there: it is data.
_OF_ROWS = re.compile(r"(NULL|TEXT|NUMERIC|non-\w+) value in |CHECK constraint failed in ")
# Whole messages, for names of tables and columns may be in others.
_LACKING = re.compile(r"^(no such collation sequence|unknown function|no such function): (.+?)(?:\(\))?$")
_LOCKED = re.compile(r"database (table |schema )?is locked")
_FULL = re.compile(r"database or disk is full")
_BROKEN = re.compile(r"is not a database|disk image is malformed|^malformed database schema")

logger = logging.getLogger("whatspire_db.backup")

T = TypeVar("T")
Keep = Callable[[Path], None]  # is given a copy of what is about to be overwritten


@contextmanager
def opened(path: Path, mode: str = "rw", busy: float = 5.0, **options: str) -> Iterator[sqlite3.Connection]:
    """Open a file that must be there, in the mode of its URI; transactions are begun by hand."""
    parameters = "&".join(f"{key}={value}" for key, value in {"mode": mode, **options}.items())
    uri = f"{_uri(path)}?{parameters}"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=busy, check_same_thread=False)
    with closing(connection):
        yield connection


def _uri(path: Path) -> str:
    return f"file:{quote(os.fsencode(path.absolute()))}"


def file_of(target: SqliteTarget) -> Path:
    """Return the file of a DSN, behind all links.

    :raises ConfigError: when the database is in memory.
    """
    if target.path is None:
        raise ConfigError("a database in memory cannot be backed up or restored", "name a file by --dsn")
    return Path(os.path.realpath(target.path))


def dump(source: Path, draft: Path, method: str, wait: float, progress: Progress) -> Content:
    """Write a backup of a database into a file that is there, while others write; return what it holds.

    :param wait: seconds to wait for others' locks.
    :raises BackupFailed: when the source is missing, has no tables, or is damaged.
    """
    plain = draft if method == "none" else new_file(draft.with_name("plain"))
    with _told(source):
        _copy(source, plain, progress, wait)
    try:
        content = examine(plain, progress, source)
    except BackupInvalid as error:
        raise BackupFailed(error.fact, "restore a backup, or look at the disk") from None
    if not content.tables:
        raise NothingToBackUp(
            f"{source} has no tables: there is nothing to back up", "migrate it first, or check the DSN"
        )
    if method != "none":
        compression.compress(plain, draft, method, progress)
        if compression.digest(draft, method, progress) != digest(plain, progress):
            raise BackupFailed("what was compressed is not what was copied", "look at memory and disk")
        plain.unlink()
    return content


def _copy(source: Path, draft: Path, progress: Progress, wait: float = 5.0) -> None:
    """Copy a database, with what is still in its WAL, as of one moment.

    The snapshot is pinned by a read transaction: an unpinned copy begins again whenever somebody writes
    (https://www.sqlite.org/backup.html).
    """
    with opened(source, busy=wait) as live, opened(draft) as target:
        live.execute("BEGIN")
        live.execute("SELECT count(*) FROM sqlite_master").fetchone()
        _backup(live, target, PAGES_A_STEP, lambda done, total: progress("copying", done, total))
        live.execute("ROLLBACK")
    _without_wal(draft)


def _backup(
    source: sqlite3.Connection, target: sqlite3.Connection, pages: int, tell: Callable[[int, int], None]
) -> None:
    """Copy all pages into a file of our own, which needs no journal: it is nothing until it is whole and synced."""
    target.execute("PRAGMA journal_mode = OFF")
    target.execute("PRAGMA synchronous = OFF")

    def stepped(status: int, remaining: int, total: int) -> None:
        if status in (BUSY, LOCKED):
            raise sqlite3.OperationalError("database is locked")
        tell(total - remaining, total)

    source.backup(target, pages=pages, progress=stepped)


def _without_wal(path: Path) -> None:
    """Have a copy say of itself that it has no WAL (https://www.sqlite.org/fileformat2.html, 1.3.3)."""
    with path.open("r+b") as file:
        if file.read(len(HEADER)) == HEADER:
            file.seek(MARK_OF_WAL)
            file.write(b"\x01\x01")


def examine(path: Path, progress: Progress = silent, named: str | Path | None = None) -> Content:
    """Return what a file that nobody else has open holds.

    :param named: what errors call the file, which may be a copy; default: its name.
    :raises BackupInvalid: when it is no database, or damaged.
    """
    with path.open("rb") as file:
        if file.read(len(HEADER)) != HEADER:
            raise BackupInvalid(f"{named or path.name} is not a SQLite database", "take another backup")
    try:
        # Each of both reads the whole file, and lets the other go on meanwhile.
        with ThreadPoolExecutor(2) as pool:
            damage = pool.submit(_damage, path)
            tables = _tables(path, progress)
            problem = damage.result()
        details = _details(path)
        version = _version(path)
    except (sqlite3.DatabaseError, ValueError) as error:
        raise BackupInvalid(f"{named or path.name} is damaged: {_text(error)}", "take another backup") from None
    if problem:
        raise BackupInvalid(f"{named or path.name} is damaged: {problem}", "take another backup")
    return Content("sqlite", sqlite3.sqlite_version, version, tables, details=details)


def _reading(path: Path) -> Any:
    return opened(path, "ro", immutable="1")


def _damage(path: Path) -> str | None:
    with _reading(path) as connection:
        try:
            return _found_by(connection, "integrity_check")
        except sqlite3.OperationalError as error:
            if not _LACKING.search(str(error)):
                raise
            return _found_by(connection, "quick_check")  # which does not look at the order of an index


def _found_by(connection: sqlite3.Connection, check: str) -> str | None:
    """Return the first damage that one of SQLite's checks tells of; by itself it ends after a hundred lines."""

    def found() -> str | None:
        lines = (row[0] for row in connection.execute(f"PRAGMA {check}({MANY_LINES})"))
        return next((line for line in lines if line != "ok" and not _OF_ROWS.match(line)), None)

    return found() if check == "integrity_check" else _with_stand_ins(connection, found)


def _with_stand_ins(connection: sqlite3.Connection, work: Callable[[], T]) -> T:
    """Do something with a database whose own program registers collations and functions that are not known here."""
    lent: set[str] = set()
    while True:
        try:
            return work()
        except sqlite3.OperationalError as error:
            lacking = _LACKING.search(str(error))
            if lacking is None or lacking[2] in lent:
                raise
            lent.add(lacking[2])
            if "collation" in lacking[1]:
                connection.create_collation(lacking[2], lambda one, other: (one > other) - (one < other))
            else:
                connection.create_function(lacking[2], -1, lambda *values: None, deterministic=True)


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
            tables[name] = _with_stand_ins(connection, partial(_table, connection, name))
            progress("reading tables", number, len(found))
    return tables


def _undecoded(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


def _table(connection: sqlite3.Connection, name: str) -> Table:
    try:
        return _hashed(connection, name)
    except sqlite3.OperationalError as error:
        if "decode" not in str(error):
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
        if "no such column" not in str(error):
            raise
        return []  # WITHOUT ROWID
    return names


def _version(path: Path) -> int:
    with _reading(path) as connection:
        try:
            return int(connection.execute("SELECT max(version) FROM migration_versions").fetchone()[0] or 0)
        except (sqlite3.OperationalError, ValueError, OverflowError):
            return 0


# Verifying


def plain_file(file: Path, manifest: Manifest, work: Path, progress: Progress) -> Path:
    """Return the plain file of a backup: itself, or decompressed in a workspace."""
    if manifest.compression == "none":
        return file
    plain = new_file(work / "unpacked")
    compression.decompress(file, plain, manifest.compression, progress)
    return plain


def check(file: Path, manifest: Manifest, work: Path, progress: Progress) -> None:
    """Read a backup's file to its end.

    :raises BackupInvalid: when it is damaged, or holds something else than its manifest tells.
    """
    plain = plain_file(file, manifest, work, progress)
    require_same(file, manifest, plain, progress)
    if plain != file:
        plain.unlink()


def require_same(file: Path, manifest: Manifest, plain: Path, progress: Progress) -> None:
    """Compare the plain file of a backup with its manifest.

    :raises BackupInvalid: when it is damaged, or holds something else.
    """
    if lines := differences(manifest.content, examine(plain, progress, file)):
        raise BackupInvalid(f"{file} is not what its manifest tells: {lines[0]}", "take another backup")


def test_restore(file: Path, manifest: Manifest, work: Path, progress: Progress) -> list[str]:
    """Restore a backup into a new file in a workspace and return in what that differs."""
    plain = plain_file(file, manifest, work, progress)
    return _copied(plain, manifest.content, new_file(work / "restored"), progress)


def _copied(plain: Path, content: Content, scratch: Path, progress: Progress) -> list[str]:
    """Copy a backup's plain file into another that is there, and return in what that differs from its content."""
    with _told(scratch), opened(plain, "ro", immutable="1") as source, opened(scratch) as target:
        _backup(source, target, PAGES_A_STEP, lambda done, total: progress("restoring", done, total))
    return differences(content, examine(scratch, progress, "what was restored"))


# Restoring


@dataclass(frozen=True)
class Outcome:
    """What a restore did besides: the files that it moved out of its way."""

    moved: tuple[Path, ...] = ()


def restore(
    plain: Path,
    content: Content,
    target: Path,
    *,
    force: bool,
    wait: float,
    moved_name: str,
    keep: Keep,
    progress: Progress,
) -> Outcome:
    """Bring a database's file to what a plain copy holds; whoever has it open goes on, with the new rows.

    :param wait: seconds to wait for others' transactions.
    :param moved_name: what is added to the names of files that cannot be part of the database.
    :param keep: is given a copy of what is overwritten, made while nobody can write.
    :raises TargetRefused: when there is data without `force`, or others hold the file for too long.
    """
    with _told(target):
        if not target.exists():
            return _restore_new(plain, content, target, moved_name, progress, replaces=False)
        if problem := _unreadable(target, wait):
            if not force:
                raise TargetRefused(f"{target}: {problem}", "--force moves it away and restores")
            return _restore_new(plain, content, target, moved_name, progress, replaces=True)
        _restore_live(plain, content, target, wait, keep, progress)
        return Outcome()


def _unreadable(path: Path, wait: float) -> str | None:
    """Tell why SQLite itself cannot make a database of a file; None when it can.

    The file is opened by SQLite alone: closing it after another way would end all locks of this process on it.
    """
    try:
        with opened(path, busy=wait) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        if _BROKEN.search(_text(error)):
            return _text(error)
        raise
    return None


def _side_files(path: Path) -> list[Path]:
    return [side for end in SIDE_FILES if (side := path.with_name(path.name + end)).exists()]


def _give_rights_of(replaced: Path, scratch: Path) -> None:
    """Let those open a file who could open the one that it replaces; where that cannot be, it stays this user's."""
    old = replaced.stat()
    with suppress(PermissionError):
        os.chown(scratch, old.st_uid, old.st_gid)
        scratch.chmod(stat.S_IMODE(old.st_mode))


class Commit:
    """Whether a restore is done for good."""

    done = False


@contextmanager
def _once_and_for_all(target: Path) -> Iterator[Commit]:
    """Let an interrupt that comes after the commit change nothing: what was done is told as done."""
    commit = Commit()
    try:
        yield commit
    except KeyboardInterrupt:
        if not commit.done:
            raise
        logger.warning("%s was restored before the interrupt", target)


def _restore_new(
    plain: Path, content: Content, target: Path, moved_name: str, progress: Progress, *, replaces: bool
) -> Outcome:
    """Make the file beside its name, compare it, and link it: it is there as a whole or not at all.

    :param replaces: what is no database, and is moved away at the last moment.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with _once_and_for_all(target) as commit, workspace(target.parent) as work:
        scratch = new_file(work / "scratch")
        if lines := _copied(plain, content, scratch, progress):
            raise BackupFailed(f"what was restored differs: {lines[0]}", "look at the disk; nothing was changed")
        if replaces:
            _give_rights_of(target, scratch)
        elif os.geteuid() == 0:  # else a service that is not root could not open it
            owner = target.parent.stat()
            os.chown(scratch, owner.st_uid, owner.st_gid)
        sync(scratch)
        meanwhile = TargetRefused(f"{target} was made meanwhile", "stop who makes it, or restore again")
        if target.exists() and not replaces:
            raise meanwhile  # and what lies beside it is its own
        # What a database of this name left behind would be taken for a part of this one.
        away = [*([target] if replaces else []), *_side_files(target)]
        moved = {path: path.with_name(f"{path.name}.{moved_name}") for path in away}
        with undisturbed():
            try:
                for path, other in moved.items():
                    path.rename(other)
                os.link(scratch, target)
            except OSError as error:
                for path, other in moved.items():
                    if other.exists() and not path.exists():
                        other.rename(path)
                if isinstance(error, FileExistsError):
                    raise meanwhile from None
                raise
            commit.done = True
            sync(target.parent)
    return Outcome(tuple(moved.values()))


def _restore_live(plain: Path, content: Content, target: Path, wait: float, keep: Keep, progress: Progress) -> None:
    with _once_and_for_all(target) as commit, workspace(target.parent) as work, opened(target, busy=wait) as live:
        _require_encoding(live, content, target)
        live.execute("PRAGMA synchronous = FULL")
        live.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        is_wal = live.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        (page_size,) = live.execute("PRAGMA page_size").fetchone()
        if is_wal and page_size != content.details["page_size"]:
            plain = _with_pages_of(page_size, plain, content, target, work, progress)
        try:
            kept = partial(_keep_old, target, is_wal, work, keep, progress)
            _overwrite(live, plain, target, wait, kept, commit, progress)
        finally:
            if is_wal:
                _empty_wal(live)
        _require_whole(live, target)


def _overwrite(
    live: sqlite3.Connection,
    plain: Path,
    target: Path,
    wait: float,
    kept: Callable[[], None],
    commit: Commit,
    progress: Progress,
) -> None:
    """Write all pages in one transaction.

    :param kept: is called when nobody else can write any more, and nothing has been written yet.
    """
    with opened(plain, "ro", immutable="1") as source, ExitStack() as undivided:
        (pages,) = source.execute("PRAGMA page_count").fetchone()
        a_step = min(RESTORED_PAGES_A_STEP, max(1, pages - 1))  # the last step commits, so there must be one before it
        held = False

        def stepped(status: int, remaining: int, total: int) -> None:
            nonlocal held
            if status in (BUSY, LOCKED):
                raise TargetRefused(
                    f"{target} was in use by another transaction for {wait:g} s",
                    "wait for it to end, raise --lock-timeout, or stop who holds it; nothing was changed",
                )
            if status not in (OK, DONE):
                return  # nothing is held, and the backup is about to fail by this
            if not held:
                held = True
                kept()
            if status == DONE:
                commit.done = True
                return
            progress("restoring", total - remaining, total)
            if remaining <= a_step:
                undivided.enter_context(undisturbed())  # else an interrupt could hide whether the last step was done

        source.backup(live, pages=a_step, progress=stepped)


def _require_whole(live: sqlite3.Connection, target: Path) -> None:
    """Look at what was restored, but where somebody else holds it by now."""
    try:
        problem = _found_by(live, "quick_check")
    except sqlite3.DatabaseError as error:
        problem = None if _LOCKED.search(str(error)) else str(error)
    if problem:
        raise BackupFailed(
            f"{target} is damaged after the restore: {problem}", "look at the disk, and restore elsewhere by --to"
        )


def _require_encoding(live: sqlite3.Connection, content: Content, target: Path) -> None:
    """Refuse a database that stores text otherwise: a connection that has read its schema could read nothing then."""
    (encoding,) = live.execute("PRAGMA encoding").fetchone()
    (found,) = live.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if found and encoding != content.details["encoding"]:
        raise TargetRefused(
            f"{target} stores text as {encoding}, and the backup as {content.details['encoding']}",
            "restore into a new file by --to; nothing was changed",
        )


def _empty_wal(live: sqlite3.Connection) -> None:
    """Give back the room of what was written, or was given up; what cannot be moved now is as good in the WAL."""
    with suppress(sqlite3.OperationalError):
        live.execute("PRAGMA busy_timeout = 0")
        live.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()


def _with_pages_of(page_size: int, plain: Path, content: Content, target: Path, work: Path, progress: Progress) -> Path:
    """Return a copy with other pages, for in WAL mode a file keeps its page size.

    Nothing but VACUUM INTO makes one that keeps the rowids which are no columns.
    """
    copy = new_file(work / "pages")
    progress("copying", 0, 1)
    try:
        with opened(plain, "ro") as source:  # an immutable one would keep its page size
            source.execute(f"PRAGMA page_size = {page_size}")
            source.execute("VACUUM INTO ?", (_uri(copy),))
    except sqlite3.OperationalError as error:
        if not _LACKING.search(str(error)):
            raise
        # A stand-in would do for reading, and here it would put the rows of an index in its own order.
        raise BackupFailed(
            f"{target} has pages of {page_size} bytes, and to bring the backup to these is not possible here: {error}",
            "restore into a new file by --to; nothing was changed",
        ) from None
    progress("copying", 1, 1)
    if lines := differences(content, examine(copy, progress, "what was restored")):
        raise BackupFailed(
            f"with pages of {page_size} bytes the backup differs: {lines[0]}",
            "restore into a new file by --to; nothing was changed",
        )
    return copy


def _keep_old(target: Path, is_wal: bool, work: Path, keep: Keep, progress: Progress) -> None:
    """Copy what is about to be overwritten, as nobody can change it any more, and hand it over."""
    old = new_file(work / "old")
    if is_wal:
        _copy(target, old, progress)
    else:
        # Readers are locked out too, but the pages of the first step are in memory still. Another process reads
        # them, for closing the file here would lose this process's locks on it.
        # It is isolated (-I), for else it would import what lies in the current folder.
        script = "import shutil, sys; shutil.copyfile(*sys.argv[1:])"
        command = [sys.executable, "-I", "-c", script, str(target), str(old)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["it was ended"])[-1]
            raise BackupFailed(f"{target} cannot be copied: {reason}", "make room; nothing was changed")
        with old.open("rb") as file:
            if file.read(MARK_OF_WAL + 1)[MARK_OF_WAL:] == b"\x02":
                raise TargetRefused(f"{target} was switched to WAL meanwhile", "restore again; nothing was changed")
    keep(old)


def _text(error: Exception) -> str:
    """Return what SQLite says; where it quotes what is no UTF-8, that is a schema which it cannot read.

    Of that, Python 3.10 leaves an error without a word, and others fail to decode it.
    """
    if isinstance(error, UnicodeDecodeError) or not str(error):
        return "malformed database schema, which is no UTF-8"
    return str(error)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Put SQLite's errors in words."""
    try:
        yield
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        text = _text(error)
        if _BROKEN.search(text):
            raise BackupFailed(f"{path}: {text}", "restore a backup: restore --force keeps the damaged file") from None
        if _LOCKED.search(text):
            raise TargetRefused(
                f"{path} is locked by another process", "wait for it to end, raise --lock-timeout, or stop who holds it"
            ) from None
        if _FULL.search(text):
            raise BackupFailed(f"no room left: {text}", "make room; nothing was changed") from None
        if not path.exists():
            raise BackupFailed(f"{path} does not exist", "check WHATSAPP_DATABASE_DSN") from None
        if path.is_dir():
            raise BackupFailed(f"{path} is a directory", "point WHATSAPP_DATABASE_DSN at a database file") from None
        hint = "give this user the right to read and write the file and its folder"
        if "I/O error" in text:
            hint = "make room, also within the limits of this user, or look at the disk"
        raise BackupFailed(f"{path}: {text}", hint) from None
