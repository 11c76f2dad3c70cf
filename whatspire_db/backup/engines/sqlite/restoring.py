"""SQLite: bringing a file to what a backup holds, by rename, or page by page under its own lock."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import count
from pathlib import Path

from peewee import sqlite3  # the library that Peewee uses: two in one process lose rows

from whatspire_db.backup.durable import brought, new_file, shielded, undisturbed, workspace
from whatspire_db.backup.manifest import Content, Progress, differences
from whatspire_db.connection.engines.sqlite.damage import damage, is_unreadable, verdict
from whatspire_db.connection.engines.sqlite.holders import held_by
from whatspire_db.errors import BackupFailed, LockTimeout, TargetRefused
from whatspire_db.files import (
    BESIDE_SQLITE,
    CREATED_MODE,
    give_name,
    is_not_offered,
    make_folders,
    open_regular,
    remove_folders,
    rename_new,
    sync,
)
from whatspire_db.messages import ERROR, first_line, is_locked, primary

from .content import BUSY, DONE, LOCKED, OK, copy_pages, examine, opened, told, uri_of
from .dumping import MARK_OF_WAL, copy_of
from .verifying import copied

logger = logging.getLogger("whatspire_db.backup")

RESTORED_PAGES_A_STEP = 256
CACHE_KIB = 32768  # room for a step of the largest pages
Keep = Callable[[Path], None]  # is given a copy of what is about to be overwritten


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
) -> list[Path]:
    """Bring a database's file to what a plain copy holds; whoever has it open goes on, with the new rows.

    Returns the files that were moved out of the way.

    :param wait: seconds to wait for others' transactions.
    :param moved_name: what is added to the names of files that cannot be part of the database.
    :param keep: is given a copy of what is overwritten, made while nobody can write.
    :raises TargetRefused: when there is data without `force`.
    :raises LockTimeout: when others hold the file for too long.
    """
    with told(target):
        if not target.exists():
            return _restore_new(plain, content, target, moved_name, progress, replaces=False)
        if problem := _unreadable(target, wait):
            if not force:
                raise TargetRefused(f"{target} {problem}", "--force keeps it under another name and restores")
            return _restore_new(plain, content, target, moved_name, progress, replaces=True)
        _restore_live(plain, content, target, wait, keep, progress)
        return []


def _unreadable(path: Path, wait: float) -> str | None:
    """Tell why SQLite itself cannot make a database of a file; None when it can.

    The file is opened by SQLite alone: closing it after another way would end all locks of this process on it.
    """
    try:
        with opened(path, busy=wait) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        if is_unreadable(error):
            return verdict(str(path), error)
        raise
    return None


def _side_files(path: Path) -> list[Path]:
    return [side for end in BESIDE_SQLITE if os.path.lexists(side := path.with_name(path.name + end))]


def _give_rights_of(replaced: Path, scratch: Path) -> None:
    """Let those open a file who could open the one that it replaces; where that cannot be, it stays this user's."""
    old = replaced.stat()
    _change_rights(scratch, old, stat.S_IMODE(old.st_mode))


def _change_rights(scratch: Path, like: os.stat_result, mode: int = CREATED_MODE) -> None:
    """Give a file of this process another's owner, where this user may; never another file that came in its place."""
    descriptor = open_regular(scratch)
    try:
        own = os.fstat(descriptor)
        if (own.st_uid, own.st_nlink) == (os.geteuid(), 1):
            os.fchown(descriptor, like.st_uid, like.st_gid)
            os.fchmod(descriptor, mode)
    except OSError as error:
        if not is_not_offered(error):
            raise
    finally:
        os.close(descriptor)


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
) -> list[Path]:
    """Make the file beside its name, compare it, and link it: it is there as a whole or not at all.

    :param replaces: what is no database, and is moved away at the last moment.
    """
    folder = target.parent
    with (
        _folder_of(target),
        _once_and_for_all(target) as commit,
        workspace(folder) as beside,
        shielded(folder, beside) as work,
    ):
        scratch = new_file(work / "scratch")
        if lines := copied(plain, content, scratch, progress):
            raise BackupFailed(f"what was restored differs: {lines[0]}", "look at the disk; nothing was changed")
        scratch = brought(scratch, beside)
        if replaces:
            _give_rights_of(target, scratch)
        elif os.geteuid() == 0:  # else a service that is not root could not open it
            _change_rights(scratch, folder.stat())
        sync(scratch)
        meanwhile = TargetRefused(f"{target} was made meanwhile", "stop who makes it, or restore again")
        if target.exists() and not replaces:
            raise meanwhile  # and what lies beside it is its own
        # What a database of this name left behind would be taken for a part of this one.
        away = [*([target] if replaces else []), *_side_files(target)]
        with undisturbed():
            moved = _moved_aside(away, moved_name)
            try:
                give_name(scratch, target)
            except OSError as error:
                _move_back(moved)
                if isinstance(error, FileExistsError):
                    raise meanwhile from None
                raise
            commit.done = True
            sync(folder)
    return list(moved.values())


@contextmanager
def _folder_of(target: Path) -> Iterator[None]:
    """Make the folder of a target for a block; if the block fails, it goes again."""
    made = make_folders(target.parent)
    try:
        yield
    except BaseException:
        remove_folders(made)
        raise


def _moved_aside(paths: Sequence[Path], name: str) -> dict[Path, Path]:
    """Rename files, all by the same ending, and return their new names; what has such a name already is kept."""
    for number in count(1):
        ending = name if number == 1 else f"{name}-{number}"
        moved: dict[Path, Path] = {}
        try:
            for path in paths:
                other = path.with_name(f"{path.name}.{ending}")
                rename_new(path, other)
                moved[path] = other
        except FileExistsError:
            _move_back(moved)
        except BaseException:
            _move_back(moved)
            raise
        else:
            return moved
    raise AssertionError  # unreachable: the loop above never ends


def _move_back(moved: Mapping[Path, Path]) -> None:
    for path, other in moved.items():
        with suppress(FileExistsError):  # another file has this name by now: what was moved stays where it is
            rename_new(other, path)


def _restore_live(plain: Path, content: Content, target: Path, wait: float, keep: Keep, progress: Progress) -> None:
    with (
        _once_and_for_all(target) as commit,
        workspace(target.parent) as beside,
        shielded(target.parent, beside) as work,
        opened(target, busy=wait) as live,
    ):
        _require_encoding(live, content, target)
        live.execute("PRAGMA synchronous = EXTRA")  # FULL leaves it to chance whether a deleted journal comes back
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
                raise LockTimeout(
                    f"{target} was in use by another transaction for {wait:g} s{held_by(target)}",
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

        copy_pages(source, live, a_step, stepped)


def _require_whole(live: sqlite3.Connection, target: Path) -> None:
    """Look at what was restored, but where somebody else holds it by now."""
    try:
        problem = next(iter(damage(live, "quick_check")), None)
    except sqlite3.DatabaseError as error:
        problem = None if is_locked(error) else first_line(error)
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
            source.execute("VACUUM INTO ?", (f"{uri_of(copy)}?nolock=1",))
    except sqlite3.OperationalError as error:
        if primary(error) != ERROR:
            raise
        # A stand-in would do for reading, and here it would put the rows of an index in its own order.
        raise BackupFailed(
            f"{target} has pages of {page_size} bytes, to which the backup cannot be brought here: {first_line(error)}",
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
        copy_of(target, old, progress)
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
