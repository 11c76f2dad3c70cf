"""Who holds the lock of a SQLite file, where Linux tells: SQLite itself does not know."""

from __future__ import annotations

import os
from collections.abc import Iterator, Set
from contextlib import suppress
from typing import NamedTuple

LOCKS = "/proc/locks"
SHOWN = 3


class _Lock(NamedTuple):
    """A lock of another process, of a line of /proc/locks."""

    writes: bool
    pid: int
    file: str


def held_by(path: str | os.PathLike[str]) -> str:
    """Return who holds locks that others wait for, as " (pid 12, python3)" behind a message; "" where nobody knows.

    It asks the system and does not open the file, for closing it would end this process's own locks on it.
    """
    file = os.path.realpath(path)
    itself, shared = _identity(file), _identity(f"{file}-shm")
    found = [lock for lock in _locks() if lock.file in (itself, shared)]
    writers = {lock.pid for lock in found if lock.writes}
    # With a -shm, which WAL has, whoever has the file open holds locks of a reader, and stops nobody by them.
    return _described(writers or {lock.pid for lock in found if shared is None})


def _identity(file: str) -> str | None:
    """Return a file as /proc/locks names it."""
    with suppress(OSError):
        found = os.stat(file)
        return f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    return None


def _locks() -> Iterator[_Lock]:
    """Yield the locks of other processes; none where the system has no such list, or one of another form."""
    with suppress(OSError, ValueError, IndexError), open(LOCKS, encoding="ascii") as lines:
        for line in lines:
            words = line.split()
            if words[1] == "POSIX" and int(words[4]) not in (os.getpid(), 0, -1):  # no waiters, nor who cannot be seen
                yield _Lock(words[3] == "WRITE", int(words[4]), words[5])


def _described(pids: Set[int]) -> str:
    names = [f"pid {pid}{_program(pid)}" for pid in sorted(pids)]
    more = [f"{len(names) - SHOWN} more"] if len(names) > SHOWN else []
    return f" ({'; '.join(names[:SHOWN] + more)})" if names else ""


def _program(pid: int) -> str:
    with suppress(OSError), open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as name:
        return f", {name.read().strip()}"
    return ""
