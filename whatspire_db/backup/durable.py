"""Files that are there as a whole or not at all: made in a folder of their own, given their names when on the disk."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import shutil
import signal
import stat
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from .. import interruption
from ..errors import BackupFailed, LockTimeout
from ..files import (
    CREATED_MODE,
    give_name,
    is_not_offered,
    is_placeholder,
    make_folders,
    open_regular,
    others_can_replace,
    remove_folders,
    rename_new,
    sync,
)
from .archive import CHUNK, OTHER_FOLDER

LOCK_SECONDS = 10.0
POLL_SECONDS = 0.02
_WORK = re.compile(r"\.whatspire-[0-9a-f]{12}\.partial")
_READY = "ready"
_MARK = ".whatspire-workspace"
_READY_BYTES = 1 << 16

logger = logging.getLogger("whatspire_db.backup")


@contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Have a folder for a block, which this user alone can read if it is made here; if the block fails, it goes again.

    :raises BackupFailed: when it cannot be made or written.
    """
    made = _make_folder(folder)
    try:
        yield
    except BaseException:
        remove_folders(made)
        raise


def _make_folder(folder: Path) -> list[Path]:
    try:
        made = make_folders(folder, 0o700)
    except OSError as error:
        reason = "a file is in its place" if isinstance(error, FileExistsError) else error.strerror
        raise BackupFailed(f"the folder {folder} cannot be made: {reason}", OTHER_FOLDER) from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise BackupFailed(f"the folder {folder} cannot be written", f"give this user the right to, or {OTHER_FOLDER}")
    return made


@contextmanager
def workspace(folder: Path, wait: float = LOCK_SECONDS) -> Iterator[Path]:
    """Give a folder of mode 0700 within another, which holds a mark alone, and is gone after the block with all in it.

    What a killed process left behind is finished or removed first: a workspace in use is locked.

    :param wait: seconds to wait for the folder's lock, which that takes.
    """
    sweep(folder, wait)
    claimed: list[tuple[Path, int]] = []
    try:
        with undisturbed():
            claimed.append(_claimed(folder))
        yield claimed[0][0]
    finally:
        try:
            _clear(claimed)
        except KeyboardInterrupt:  # another one, just before it was held back
            _clear(claimed)
            raise


def _clear(claimed: list[tuple[Path, int]]) -> None:
    with undisturbed():
        while claimed:
            path, descriptor = claimed.pop()
            _remove(path)
            os.close(descriptor)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let signals that end a run wait for the end of a block, which is short; then the first of them does its work.

    Python runs its handlers in the main thread alone, so others are never disturbed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not None]
    before = {number: signal.signal(number, lambda given, frame: came.append(given)) for number in numbers}
    try:
        with interruption.held():
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            _deliver(came[0])


def _deliver(number: int) -> None:
    """Handle a signal that was held back. It is the same one, so a command must not count it a second time."""
    handler = signal.getsignal(number)
    if callable(handler):
        handler(number, None)
    else:
        signal.raise_signal(number)


def _claimed(folder: Path) -> tuple[Path, int]:
    while True:
        path = folder / f".whatspire-{uuid.uuid4().hex[:12]}.partial"
        path.mkdir(mode=0o700)
        with suppress(FileNotFoundError):  # somebody who sweeps was faster than the lock
            descriptor = os.open(path, _FOLDER)
            _has_locks(descriptor, fcntl.LOCK_EX, folder)
            if path.exists():
                os.close(os.open(_MARK, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, CREATED_MODE, dir_fd=descriptor))
                _warn_if_readable(path, folder)
                return path, descriptor
            os.close(descriptor)


_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def _has_locks(descriptor: int, operation: int, folder: Path) -> bool:
    """Lock, and return whether the file system has locks; without them nothing is swept, and names are still safe."""
    try:
        fcntl.flock(descriptor, operation)
    except OSError as error:
        if not is_not_offered(error) and error.errno != errno.EBADF:  # NFS wants another descriptor for its own locks
            raise
        _warn_of_no_locks(folder, os.strerror(error.errno or 0))
        return False
    return True


@lru_cache
def _warn_of_no_locks(folder: Path, reason: str) -> None:
    logger.warning(
        "the file system of %s has no locks (flock: %s): let one backup command at a time use it, and remove what a "
        "killed one left: .whatspire-*.partial",
        folder,
        reason,
    )


def _warn_if_readable(work: Path, folder: Path) -> None:
    if work.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        _warn_of_no_rights(folder)


@lru_cache
def _warn_of_no_rights(folder: Path) -> None:
    logger.warning(
        "the file system of %s does not keep the rights of files: other users may read these backups", folder
    )


def sweep(folder: Path, wait: float = LOCK_SECONDS) -> None:
    """Give the files of dead processes their names, where all was ready for that, and remove the rest.

    Only this user's are looked at: in a folder that others can write, theirs could say anything. Where they can
    rename, any folder of this user can have got such a name, so it must hold the mark of a workspace too.
    """
    is_open = others_can_replace(folder)
    for path in folder.iterdir():
        if not _WORK.fullmatch(path.name):
            continue
        with suppress(OSError):
            descriptor = os.open(path, _FOLDER)
            try:
                if os.fstat(descriptor).st_uid == os.geteuid():
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if not is_open or _MARK in os.listdir(descriptor):
                        _finish(path, folder, wait)
            finally:
                os.close(descriptor)


def _finish(path: Path, folder: Path, wait: float) -> None:
    with locked(folder, wait):  # else somebody could be about to give another file that name
        if names := _ready_names(path):
            with suppress(FileExistsError, FileNotFoundError):  # another has that name, or it was half removed
                _give_names(path, names, folder)
        _remove(path)


def _ready_names(path: Path) -> list[str]:
    """Return the names that a dead process was about to give; none where it was not ready, or they lead elsewhere."""
    try:
        with os.fdopen(open_regular(path / _READY), "rb") as file:
            names = os.fsdecode(file.read(_READY_BYTES)).split("\n")
    except FileNotFoundError:
        return []
    return [] if any("/" in name or name in ("", ".", "..") for name in names) else names


def _remove(path: Path) -> None:
    with suppress(OSError):  # first of all, for without a part of the rest nothing is ready any more
        (path / _READY).unlink()
    shutil.rmtree(path, ignore_errors=True)


@contextmanager
def locked(folder: Path, wait: float = LOCK_SECONDS) -> Iterator[None]:
    """Be the only one who gives files of a folder their names, or removes them.

    :param wait: seconds to wait for the process that is it now.
    :raises LockTimeout: when that was not enough.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _lock(descriptor, folder, wait)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path, wait: float) -> None:
    """Ask for a folder's lock again and again, for the system itself would wait for ever."""
    end = time.monotonic() + wait
    while True:
        try:
            _has_locks(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, folder)
            return
        except BlockingIOError:
            if time.monotonic() > end:
                break
        time.sleep(POLL_SECONDS)
    raise LockTimeout(
        f"the folder {folder} was locked by another process for {wait:g} s",
        "wait for it to end, or raise --lock-timeout; if flock holds it around this run, give flock a file instead",
    )


def publish(files: Sequence[Path], folder: Path) -> None:
    """Give the files of one workspace their names in a folder, in this order; none is replaced.

    They have these names in the workspace already. A process that is killed in the middle leaves what `sweep`
    finishes; one that fails takes the names back.

    :raises FileExistsError: when the folder has one of the names.
    """
    for file in files:
        sync(file)
    work = files[0].parent
    ready = write_new(work / f"{_READY}.new", os.fsencode("\n".join(file.name for file in files)))
    sync(ready)
    ready.rename(work / _READY)
    sync(work)
    _give_names(work, [file.name for file in files], folder)


def _give_names(work: Path, names: Sequence[str], folder: Path) -> None:
    """Give all files their names, or none, unless killed in between."""
    new = [name for name in names if not os.path.lexists(folder / name)]
    try:
        for name in names:
            _give_name(work / name, folder / name)
    except BaseException:
        for name in new:
            _take_back(work / name, folder / name)
        raise
    sync(folder)


def _give_name(file: Path, named: Path) -> None:
    """Give a file its name, or leave it the one that a killed process gave it."""
    if not os.path.lexists(file) and os.path.lexists(named):
        return  # renamed, for want of hard links
    try:
        give_name(file, named)
    except FileExistsError:
        if is_placeholder(named, file):
            os.replace(file, named)
        elif not os.path.samefile(file, named):
            raise


def _take_back(file: Path, named: Path) -> None:
    with suppress(FileNotFoundError):
        if not os.path.lexists(file):
            rename_new(named, file)
        elif os.path.samefile(file, named):
            named.unlink()


def new_file(path: Path) -> Path:
    """Make an empty file that this user alone can read, whatever the umask, where the file system keeps rights."""
    os.close(_created(path))
    return path


def write_new(path: Path, data: bytes) -> Path:
    """Make a file as `new_file` does, and write it without opening its name again."""
    with os.fdopen(_created(path), "wb") as file:
        file.write(data)
    return path


def _created(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, CREATED_MODE)
    try:
        if stat.S_IMODE(os.fstat(descriptor).st_mode) != CREATED_MODE:
            os.fchmod(descriptor, CREATED_MODE)
    except OSError as error:
        if not is_not_offered(error):
            os.close(descriptor)
            raise
    return descriptor


@contextmanager
def shielded(folder: Path, beside: Path) -> Iterator[Path]:
    """Give a workspace in which no other user can put links in the place of files.

    It is the one beside the result, in `folder`, or one among the temporary files, if others can rename in `folder`.
    """
    if not others_can_replace(folder):
        yield beside
        return
    with workspace(Path(tempfile.gettempdir())) as work:
        yield work


def brought(file: Path, beside: Path) -> Path:
    """Return a file that is in the workspace beside its later name: itself, or a copy."""
    if file.parent == beside:
        return file
    with file.open("rb") as source, os.fdopen(_created(beside / file.name), "wb") as copy:
        shutil.copyfileobj(source, copy, CHUNK)
    return beside / file.name
