"""The rows that are set aside, in a file that only its owner can read: a JSON object a line."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peewee import sqlite3

from ..errors import ConfigError
from ..files import part_of_sqlite
from .tables import TransferTable


def write(path: str, sqlite: sqlite3.Connection, tables: Sequence[TransferTable]) -> None:
    """Write the rows that are set aside into a new file, which goes again when it cannot be written to its end.

    :raises ConfigError: when there is a file of that name.
    """
    if not os.path.lexists(path) and (of := part_of_sqlite(Path(path))):
        raise ConfigError(f"--side-file: SQLite would take {path} for {of}, and remove it", "name another file")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        number = os.open(path, flags, 0o600)
    except FileExistsError:
        raise ConfigError(f"--side-file: {path} is there already", "name a file that is not there yet") from None
    try:
        with open(number, "w", encoding="utf-8") as file:
            for table in tables:
                for row in _rows(sqlite, table) if table.left_out else ():
                    file.write(json.dumps({"table": table.name, "row": row}, ensure_ascii=True) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        os.unlink(path)
        if isinstance(error, OSError):  # it names no file, and would be reported as stdout's
            raise OSError(error.errno, error.strerror, path) from error
        raise


def _rows(sqlite: sqlite3.Connection, table: TransferTable) -> list[dict[str, Any]]:
    identity = ", ".join(table.identity)
    cursor = sqlite.execute(
        f"SELECT * FROM {table.sqlite} WHERE ({identity}) IN (SELECT * FROM {table.left_out}) ORDER BY {identity}"
    )
    names = [each[0] for each in cursor.description]
    return [dict(zip(names, map(_plain, row), strict=True)) for row in cursor.fetchall()]


def _plain(value: Any) -> Any:
    """Return a value as JSON has it; a BLOB, and a text that is not UTF-8, as base64."""
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
        return {"text_base64": base64.b64encode(value.encode(errors="surrogateescape")).decode()}
    return value
