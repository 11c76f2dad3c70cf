"""Settings files, which may be pipes: their text, or why it cannot be read."""

from __future__ import annotations

import errno
import os
import selectors
import stat
import time

from ..errors import ConfigError

PIPE_SECONDS = 10.0  # how long whoever fills a pipe may take
LARGEST = 1 << 20  # bytes


def read_text(path: str | os.PathLike[str], holds: str) -> str | None:
    """Return what a file in UTF-8 holds, None where there is none.

    :param holds: what such a file should consist of, for messages.
    :raises ConfigError: when it is a folder or a link to nothing, or cannot be read.
    """
    try:
        return _content(path).decode("utf-8-sig")
    except FileNotFoundError:
        if not os.path.islink(path):
            return None
        raise ConfigError(f"{_shown(path)} is a link to a file that does not exist", "mend or remove it") from None
    except IsADirectoryError:
        raise ConfigError(f"{_shown(path)} is a folder", f"move it away; it should be a file of {holds}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, getattr(error, "strerror", None) or "it is not UTF-8 text") from None


def _content(path: str | os.PathLike[str]) -> bytes:
    # A pipe that nobody fills would block the open, so it is opened without waiting and waited for here.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        return _everything(path, descriptor, waits=not stat.S_ISREG(mode))
    finally:
        os.close(descriptor)


def _everything(path: str | os.PathLike[str], descriptor: int, waits: bool) -> bytes:
    deadline = time.monotonic() + PIPE_SECONDS
    parts: list[bytes] = []
    while not parts or parts[-1]:
        if waits and not _has_news(descriptor, deadline):
            raise _unreadable(path, f"nothing was written into it within {PIPE_SECONDS:g} s")
        try:
            parts.append(os.read(descriptor, 65536))
        except BlockingIOError:
            continue
        if sum(map(len, parts)) > LARGEST:
            raise _unreadable(path, f"it has more than {LARGEST} bytes")
    return b"".join(parts)


def _has_news(descriptor: int, deadline: float) -> bool:
    """Return whether a pipe has data, or was closed by its writer, before the deadline."""
    with selectors.DefaultSelector() as selector:
        try:
            selector.register(descriptor, selectors.EVENT_READ)
        except PermissionError:  # devices like /dev/null never block
            return True
        return bool(selector.select(max(0.0, deadline - time.monotonic())))


def _unreadable(path: str | os.PathLike[str], why: str) -> ConfigError:
    return ConfigError(f"{_shown(path)} cannot be read: {why}", "make it a UTF-8 text file that this user may read")


def _shown(path: str | os.PathLike[str]) -> str:
    return os.fspath(path)
