"""Files that are there as a whole or not at all: made in a folder of their own, given their names when on the disk."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import BackupFailed, TargetRefused
from .archive import OTHER_FOLDER

LOCK_SECONDS = 10.0
POLL_SECONDS = 0.02
_WORK = re.compile(r"\.whatspire-[0-9a-f]{12}\.partial")
_READY = "ready"


def make_folder(folder: Path) -> None:
    """Make a folder that this user alone can read, where it is not there.

    :raises BackupFailed: when it cannot be made or written.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise BackupFailed(f"the folder {folder} cannot be made: {error.strerror}", OTHER_FOLDER) from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise BackupFailed(f"the folder {folder} cannot be written", f"give this user the right to, or {OTHER_FOLDER}")


@contextmanager
def workspace(folder: Path, wait: float = LOCK_SECONDS) -> Iterator[Path]:
    """Give an empty folder of mode 0700 within another, which is gone after the block with all that is in it.

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
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def _claimed(folder: Path) -> tuple[Path, int]:
    while True:
        path = folder / f".whatspire-{uuid.uuid4().hex[:12]}.partial"
        path.mkdir(mode=0o700)
        with suppress(FileNotFoundError):  # somebody who sweeps was faster than the lock
            descriptor = os.open(path, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if path.exists():
                return path, descriptor
            os.close(descriptor)


def sweep(folder: Path, wait: float = LOCK_SECONDS) -> None:
    """Give the files of dead processes their names, where all was ready for that, and remove the rest.

    Only this user's are looked at: in a folder that others can write, theirs could say anything.
    """
    for path in folder.iterdir():
        if not _WORK.fullmatch(path.name):
            continue
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(descriptor).st_uid == os.geteuid():
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _finish(path, folder, wait)
            finally:
                os.close(descriptor)


def _finish(path: Path, folder: Path, wait: float) -> None:
    with locked(folder, wait):  # else somebody could be about to give another file that name
        if (path / _READY).exists():
            names = os.fsdecode((path / _READY).read_bytes()).split("\n")
            with suppress(FileExistsError, FileNotFoundError):  # another has that name, or it was half removed
                _link(path, names, folder)
        _remove(path)


def _remove(path: Path) -> None:
    with suppress(OSError):  # first of all, for without a part of the rest nothing is ready any more
        (path / _READY).unlink()
    shutil.rmtree(path, ignore_errors=True)


@contextmanager
def locked(folder: Path, wait: float = LOCK_SECONDS) -> Iterator[None]:
    """Be the only one who gives files of a folder their names, or removes them.

    :param wait: seconds to wait for who is it now.
    :raises TargetRefused: when that was not enough.
    """
    descriptor = os.open(folder, os.O_RDONLY)
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
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > end:
                break
        time.sleep(POLL_SECONDS)
    raise TargetRefused(
        f"the folder {folder} was locked by another process for {wait:g} s",
        "wait for it to end, or raise --lock-timeout; if flock holds it around this run, give flock a file instead",
    )


def publish(files: Sequence[Path], folder: Path) -> None:
    """Link the files of one workspace, which have their final names, into a folder, in this order; none is replaced.

    Who is killed in the middle leaves what `sweep` finishes; who fails there takes them back.
    """
    for file in files:
        sync(file)
    work = files[0].parent
    ready = work / f"{_READY}.new"
    ready.write_bytes(os.fsencode("\n".join(file.name for file in files)))
    sync(ready)
    ready.rename(work / _READY)
    sync(work)
    _link(work, [file.name for file in files], folder)


def _link(work: Path, names: Sequence[str], folder: Path) -> None:
    """Give all files their names, or none, unless killed in between."""
    new = [name for name in names if not os.path.lexists(folder / name)]
    try:
        for name in names:
            try:
                os.link(work / name, folder / name)
            except FileExistsError:
                if not os.path.samefile(work / name, folder / name):
                    raise
    except BaseException:
        for name in new:
            with suppress(FileNotFoundError):
                if os.path.samefile(work / name, folder / name):
                    (folder / name).unlink()
        raise
    sync(folder)


def sync(path: Path) -> None:
    """Have a file's bytes, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def new_file(path: Path) -> Path:
    """Make an empty file that this user alone can read, whatever the umask."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    path.chmod(0o600)
    return path
