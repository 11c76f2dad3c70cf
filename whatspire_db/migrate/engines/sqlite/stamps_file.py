"""SQLite: the file of the stamps is written, and locked for long work on the rows beside others who write."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from whatspire_db.errors import LockTimeout
from whatspire_db.files import open_regular

TRY_SECONDS = 0.05
MODE = 0o644  # what another user could write, a start could not believe


def write(path: str, text: str) -> None:
    """Write the stamps; without them the next start looks in full."""
    # In place, and not by way of another file, which a kill would leave behind; half a text counts as none.
    with suppress(OSError), os.fdopen(_opened(path, os.O_WRONLY), "wb") as file:
        status = os.fstat(file.fileno())
        if status.st_uid == os.geteuid() and status.st_nlink == 1:
            os.fchmod(file.fileno(), status.st_mode & MODE)
            file.truncate()
            file.write(text.encode())


def _opened(path: str, flags: int) -> int:
    """Open the file; one that is made gets the permissions of the database, which only its user may write."""
    return open_regular(path, flags | os.O_CREAT, os.stat(path.removesuffix("-stamps")).st_mode & MODE)


@contextmanager
def work_lock(path: str | None, database: str, wait_seconds: float) -> Iterator[None]:
    """Hold a lock on the file of the stamps, whose content it does not touch; it is gone with its process.

    Where that file cannot be opened, or its file system has no locks, nobody is kept out.

    :param path: the file; None for a database in memory, which no other process sees.
    :raises LockTimeout: when another run holds it for longer.
    """
    descriptor = _to_lock(path)
    try:
        if descriptor is not None:
            _wait(descriptor, database, wait_seconds)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def is_locked(path: str | None) -> bool:
    """Tell whether somebody holds the lock at this moment."""
    descriptor = _to_lock(path)
    try:
        if descriptor is not None:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # this file system has none
        pass
    finally:
        if descriptor is not None:
            os.close(descriptor)
    return False


def _to_lock(path: str | None) -> int | None:
    try:
        # Opened to read, which is enough for the lock, and is all that others than the file's own user may do.
        return None if path is None else _opened(path, os.O_RDONLY)
    except OSError:
        return None


def _wait(descriptor: int, database: str, wait_seconds: float) -> None:
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise LockTimeout(
                    f"another run that changes many rows held the lock of {database} for {wait_seconds:g} s",
                    "wait for it to end, or raise --lock-timeout",
                ) from None
        except OSError:  # this file system has none
            return None
        time.sleep(TRY_SECONDS)
