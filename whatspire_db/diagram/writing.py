"""A file that is written whole or not at all, and never through a link."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from ..errors import ConfigError
from ..files import NotRegular, part_of_sqlite, require_regular

MODE = 0o666  # under the umask: it holds no secret


def write_whole(path: str, text: str) -> None:
    """Write a text to a file, which replaces one of that name at once.

    :raises ConfigError: when the file cannot be written there.
    """
    target = Path(path)
    if path.endswith(os.sep):  # which a Path leaves out
        raise ConfigError(f"{path} names a folder", "name a file in it")
    if path == "-":
        raise ConfigError("- means stdout, but a file is needed", "name a file; ./- is one of that name")
    try:
        _replace(target, text.encode("utf-8", "backslashreplace"))
    except NotRegular as error:
        raise ConfigError(f"{path}: {error.strerror}", "name a regular file, or one that is not there yet") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no path"
        hint = "make room, or name a file in a folder that this user can write"
        raise ConfigError(f"{path} cannot be written: {reason}", hint) from None


def _replace(target: Path, data: bytes) -> None:
    mode = None
    with suppress(FileNotFoundError):
        mode = require_regular(target, target.lstat()).st_mode & 0o777
    if of := part_of_sqlite(target):
        raise ConfigError(f"{target} is {of}, and a picture never replaces one", "name another file")
    beside = target.with_name(f".{target.name[:100]}.{secrets.token_hex(6)}.partial")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(beside, flags, MODE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, target)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
