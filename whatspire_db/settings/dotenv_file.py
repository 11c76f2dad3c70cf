"""A .env file -> its variables; whatever cannot be read or understood is an error that repeats none of it."""

from __future__ import annotations

import errno
import io
import os
import re
import selectors
import stat
import time

from ..errors import ConfigError
from ..light_stdlib import Any, pattern

PIPE_SECONDS = 10.0  # how long whoever fills a pipe may take
LARGEST = 1 << 20  # bytes

_USED = pattern(r"\$\{([^}:]*)\}")  # without a default, as python-dotenv has it
_NAME = pattern(r"[A-Za-z_][\w.-]*", re.ASCII)


def read_dotenv(path: str | os.PathLike[str], prefix: str) -> dict[str, str]:
    """Return the variables of a .env file, which may be a pipe; none where there is no such file.

    :param prefix: of the names that need a value.
    :raises ConfigError: when it is a folder, cannot be read, or a line of it cannot be parsed.
    """
    try:
        text = _content(path).decode("utf-8-sig")
    except FileNotFoundError:
        if not os.path.islink(path):
            return {}
        raise ConfigError(f"{_shown(path)} is a link to a file that does not exist", "mend or remove it") from None
    except IsADirectoryError:
        raise ConfigError(
            f"{_shown(path)} is a folder", "move it away; it should be a file of NAME=value lines"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, getattr(error, "strerror", None) or "it is not UTF-8 text") from None
    return _variables(path, text, prefix) if text.strip() else {}


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


def _variables(path: str | os.PathLike[str], text: str, prefix: str) -> dict[str, str]:
    from dotenv import dotenv_values  # only where there is a file to read
    from dotenv.parser import parse_stream

    known = set(os.environ)
    for binding in parse_stream(io.StringIO(text)):
        if binding.error or (binding.key is not None and not _is_understood(binding.key, binding.value, prefix)):
            raise ConfigError(
                f"line {_line(binding)} of {_shown(path)} cannot be parsed",
                "write NAME=value, a value with blanks or # in quotes that are closed, and a comment behind #",
            )
        if binding.key is not None:
            if binding.key.startswith(prefix) and not known.issuperset(_USED.findall(binding.value or "")):
                raise ConfigError(
                    f"line {_line(binding)} of {_shown(path)} uses a variable that is not set",
                    "set it, or give it a default as in ${NAME:-default}; ${NAME} is replaced within quotes too",
                )
            known.add(binding.key)
    values = dotenv_values(stream=io.StringIO(text))
    return {name: value for name, value in values.items() if value is not None}


def _line(binding: Any) -> int:
    """Return the number of the line on which a binding begins; the parser counts the blank lines before it."""
    blank = re.match(r"\s*", binding.original.string)[0]  # type: ignore[index]  # it matches "" too
    return int(binding.original.line) + len(re.findall(r"\r\n|\n|\r", blank))


def _is_understood(name: str, value: str | None, prefix: str) -> bool:
    # A name without "=" is how docker passes a variable on. Among ours it is more likely a value that was forgotten.
    return bool(_NAME.fullmatch(name)) and "\0" not in (value or "") and not (value is None and name.startswith(prefix))


def _unreadable(path: str | os.PathLike[str], why: str) -> ConfigError:
    return ConfigError(f"{_shown(path)} cannot be read: {why}", "make it a UTF-8 text file that this user may read")


def _shown(path: str | os.PathLike[str]) -> str:
    return os.fspath(path)
