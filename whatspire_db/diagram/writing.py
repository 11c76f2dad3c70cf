"""A file that is written whole or not at all, and never through a link."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from ..errors import ConfigError
from ..files import NotRegular, require_regular

SQLITE = b"SQLite format 3\0"  # how a database begins
BESIDE = ("-wal", "-shm", "-journal")  # what SQLite adds to its name for the files beside it
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
        raise ConfigError(
            f"{path} cannot be written: {reason}", "name a file in a folder that this user can write"
        ) from None


def _replace(target: Path, data: bytes) -> None:
    mode = None
    with suppress(FileNotFoundError):
        mode = require_regular(target, target.lstat()).st_mode & 0o777
    _require_no_database(target)
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


def _require_no_database(target: Path) -> None:
    """Refuse to replace a SQLite database, or a file beside one that has rows of it: one wrong word would do that.

    :raises ConfigError: when the file is one, or would be taken for one.
    """
    for end in ("", *BESIDE):
        base = target.name[: len(target.name) - len(end)]
        if base and target.name.endswith(end) and _is_database(target.with_name(base)):
            part = f"part of the SQLite database {base}" if end else "a SQLite database"
            raise ConfigError(f"{target} is {part}, and a picture never replaces one", "name another file")


def _is_database(path: Path) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(SQLITE)) == SQLITE
