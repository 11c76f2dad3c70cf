"""SQLite: a lock for long work on the rows, beside the write lock, which others need meanwhile."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from whatspire_db.errors import LockTimeout
from whatspire_db.files import open_regular

TRY_SECONDS = 0.05


@contextmanager
def work_lock(path: str | None, database: str, wait_seconds: float) -> Iterator[None]:
    """Hold a lock on the file of the stamps, whose content it does not touch; it is gone with its process.

    Where that file cannot be opened, or its file system has no locks, nobody is kept out.

    :param path: the file; None for a database in memory, which no other process sees.
    :raises LockTimeout: when another run holds it for longer.
    """
    descriptor = _opened(path)
    try:
        if descriptor is not None:
            _wait(descriptor, database, wait_seconds)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _opened(path: str | None) -> int | None:
    try:
        return None if path is None else open_regular(path, os.O_RDWR | os.O_CREAT)
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
