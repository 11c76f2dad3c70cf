"""What a backup holds, as its manifest says it: tables, fingerprints, versions; and in what two contents differ."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from ..errors import BackupInvalid
from .json_shapes import Shape, fits, levels

FORMAT = 1
ENGINES = {"sqlite": "SQLite", "postgres": "PostgreSQL"}
LAST_SERIAL = 10**15
# What a backup was made before, if anything.
Purpose = Literal["", "before a migration", "before a restore"]
SAFETY: Purpose = "before a restore"
LEVELS = 8  # in which the details of an engine lie, at most
NAME_BYTES = 255  # of a file's name

Progress = Callable[[str, int, int], None]  # what is done, how much of it, of how much; 0 of 0 is not known


_COUNT = range(2**63)
_NUMBER = range(-(2**63), 2**63)
_SEQUENCES: Shape = {...: (_NUMBER, _NUMBER)}
_DISTRIBUTED: Shape = {...: {str, None}}
_BODY: Shape = {
    "name": str,
    "file": str,
    "created_at": str,
    "serial": range(LAST_SERIAL + 1),
    "source": str,
    "compression": {"none", "gzip", "zstd"},
    "size": _COUNT,
    "sha256": str,
    "content": {
        "engine": set(ENGINES),
        "engine_version": str,
        "schema_version": int,
        "tables": {...: {"rows": _COUNT, "fingerprint": str}},
        "extensions": {...: str},
        "details": {},
    },
    "package_version": str,
    "purpose": str,
    "tested_at": {str, None},
}
_DATABASE: Shape = {
    "owner": str,
    "encoding": str,
    "collate": str,
    "ctype": str,
    "provider": {"c", "i", "b"},
    "locale": {str, None},
    "rules": {str, None},
    "connection_limit": _NUMBER,
    "is_template": bool,
    "tablespace": str,
    "comment": {str, None},
    "has_grants": bool,
    "settings": [(str, [str])],
    "grants": [(str, {"CREATE", "CONNECT", "TEMPORARY"}, bool, str)],
}
# What is read of the details; the rest is compared at most.
_DETAILS: dict[str, Shape] = {
    "sqlite": {"page_size": _NUMBER, "page_count": _COUNT, "encoding": str},
    "postgres": {
        "major": _NUMBER,
        "dumped_by": _NUMBER,
        "sequences": _SEQUENCES,
        "roles": {...: [str]},
        "schemas": {...: str},
        "tablespaces": [str],
        "database": _DATABASE,
        "hnsw": bool,
    },
}


def silent(what: str, done: int, total: int) -> None:
    """Tell nobody how far a backup is."""


@dataclass(frozen=True)
class Table:
    """What a table held: the number of its rows, and a fingerprint over all of them."""

    rows: int
    fingerprint: str


@dataclass(frozen=True)
class Content:
    """What a database held at the moment of its backup, as it must be again after a restore."""

    engine: str  # sqlite or postgres
    engine_version: str
    schema_version: int
    tables: Mapping[str, Table]
    extensions: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)  # what the engine needs to bring it back

    @property
    def rows(self) -> int:
        return sum(table.rows for table in self.tables.values())

    @property
    def distributed(self) -> Mapping[str, str | None]:
        """The tables of a cluster, of whose rows the backup is torn, and the column that each was distributed by."""
        found: Mapping[str, str | None] = self.details.get("distributed", {})
        return found


@dataclass(frozen=True)
class Manifest:
    """What a backup is of and what its file must be; times are UTC, sizes bytes.

    `serial` counts the backups of a folder, so that their order does not depend on a clock. `source` tells the
    database from another of the same name. `purpose` says what a backup was made before, if anything.
    """

    name: str
    file: str  # beside the manifest
    created_at: str  # ISO 8601
    serial: int
    source: str
    compression: str
    size: int
    sha256: str
    content: Content
    package_version: str
    purpose: str = ""  # a Purpose, unless another release made it
    tested_at: str | None = None  # when it was restored into a scratch place and compared

    @property
    def is_safety(self) -> bool:
        """Return whether a restore made it of what it replaced."""
        return self.purpose == SAFETY

    @property
    def time(self) -> datetime:
        return datetime.fromisoformat(self.created_at)

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}

    def to_text(self) -> str:
        """Return the manifest as JSON that carries a checksum of itself."""
        body = self.to_json()
        # Names of files and tables need not be Unicode, so they are written in ASCII.
        return json.dumps(body | {"checksum": _checksum(body)}, indent=2) + "\n"

    @classmethod
    def from_text(cls, text: str, path: Path) -> Manifest:
        """Read what `to_text` wrote.

        :raises BackupInvalid: when it is no manifest, or was changed.
        """
        try:
            body = json.loads(text, parse_constant=_finite, parse_float=_finite)
            checksum = body.pop("checksum")
            if body["format"] != FORMAT:
                raise BackupInvalid(f"{path} is of another version of this package", "restore it with that version")
            if _checksum(body) != checksum:
                raise BackupInvalid(f"{path} was changed after the backup was made", "take another backup")
            del body["format"]
            _require_sense(body)
            content = body.pop("content")
            tables = {name: Table(**table) for name, table in content.pop("tables").items()}
            return cls(**body, content=Content(**content, tables=tables))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            raise BackupInvalid(f"{path} is not the manifest of a backup", "take another backup") from None


def _finite(text: str) -> float:
    """Read a number that JSON can hold too when it is printed."""
    if not math.isfinite(number := float(text)):
        raise ValueError
    return number


def _require_sense(body: Mapping[str, Any]) -> None:
    """Find out here, and not amid the work, what somebody made up who knows how to compute a checksum.

    :raises ValueError: for what `create` does not write; OverflowError: for a time that is none in UTC.
    """
    if not fits(body, _BODY):
        raise ValueError
    details = body["content"]["details"]
    known = fits(details, _DETAILS[body["content"]["engine"]]) and fits(details.get("sequences", {}), _SEQUENCES)
    known = known and fits(details.get("distributed", {}), _DISTRIBUTED)
    if not known or levels(details) > LEVELS:
        raise ValueError
    if not set(body["file"]).isdisjoint("/\0") or len(os.fsencode(body["file"])) > NAME_BYTES:
        raise ValueError
    time = datetime.fromisoformat(body["created_at"])
    if time.tzinfo is None:
        raise ValueError
    time.astimezone(timezone.utc)


def _checksum(body: Mapping[str, Any]) -> str:
    text = json.dumps(body, ensure_ascii=True, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def differences(expected: Content, found: Content) -> list[str]:
    """Return in what a restored database differs from the one of the backup; sequences may be further.

    Of distributed tables the rows are not compared: the backup read them, and counted them, at different moments.
    """
    lines = []
    for name in sorted({*expected.tables, *found.tables}):
        before, after = expected.tables.get(name), found.tables.get(name)
        if before is None or after is None:
            lines.append(f"table {name} is {'missing' if after is None else 'new'}")
        elif name in expected.distributed:
            continue
        elif before.rows != after.rows:
            lines.append(f"table {name} has {after.rows} rows, not {before.rows}")
        elif before != after:
            lines.append(f"table {name} has other rows")
    same = ("schema", "user_version", "application_id", "encoding")
    lines += [f"{key} differs" for key in same if expected.details.get(key) != found.details.get(key)]
    sequences = found.details.get("sequences", {})
    for name, (value, step) in expected.details.get("sequences", {}).items():
        after = sequences.get(name, (None, step))[0]
        if after is None or (after - value) * step < 0:
            lines.append(f"sequence {name} is at {after}, not {value}")
    return lines
