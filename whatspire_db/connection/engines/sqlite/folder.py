"""The folder of a SQLite database: it must be there, and only that of the default DSN is made."""

from __future__ import annotations

import os

from whatspire_db.dsn.targets import PostgresTarget, SqliteTarget
from whatspire_db.errors import ConfigError, ConnectionFailed

MADE = "data"


def require_folder(name: str, target: SqliteTarget | PostgresTarget, *, make: bool = False) -> None:
    """Check that the folder of a SQLite DSN exists; a database in memory and PostgreSQL need none.

    A folder that this user may not look into passes: the attempt to open the file says what is wrong.

    :param name: of the setting or the option with the DSN, for messages.
    :param make: make the folder data, if that is the one; otherwise it may be missing.
    :raises ConfigError: when there is no such folder.
    :raises ConnectionFailed: when data cannot be made.
    """
    if not isinstance(target, SqliteTarget) or target.path is None:
        return
    path = target.path
    if os.path.islink(path):  # the file is made where the link leads to
        path = os.path.realpath(path)
    folder = os.path.dirname(path) or "."
    try:
        os.stat(os.path.join(folder, ""))  # with a slash behind it a file is no answer
    except PermissionError:
        return
    except FileNotFoundError:
        if os.path.normpath(folder) != MADE:
            raise _missing(name, target.path, f"the folder {folder} does not exist") from None
        if make:
            _make()
    except OSError as error:
        raise _missing(name, target.path, f"{folder} cannot be a folder: {error.strerror}") from None


def _missing(name: str, path: str, why: str) -> ConfigError:
    return ConfigError(f"{name} names {path}, but {why}", f"create or mount the folder, or correct {name}")


def _make() -> None:
    from pathlib import Path  # only where the folder is made

    from whatspire_db.files import make_folders

    try:
        make_folders(Path(MADE))
    except OSError as error:
        raise ConnectionFailed(
            f"the folder {os.path.abspath(MADE)} cannot be made: {error.strerror}",
            "make it, give this user the right to, or point WHATSAPP_DATABASE_DSN elsewhere",
        ) from None
