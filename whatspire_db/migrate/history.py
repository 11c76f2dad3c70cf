"""migration_versions: which runs were recorded, by this package or by the Go service."""

from __future__ import annotations

import re
import time
from datetime import datetime

from ..errors import RightMissing, StepFailed
from ..fields import utcnow
from ..light_stdlib import Any, dataclass
from ..models.service import MigrationVersion
from .engines.base import Engine
from .stamp import ForeignHistory, recorded_version

RUN_NAME = "auto_migration"
MOST_TAKEN = 1000  # versions that another writer takes one after the other


@dataclass(frozen=True)
class MigrationStatus:
    """One recorded run: `version` in epoch seconds, `applied_at` aware and in UTC.

    `added` says how many objects of each kind it added; None where nobody recorded that, and undo leaves it alone.
    `undone_by` is the version of the run that took them back.
    """

    version: int
    name: str
    applied_at: datetime | None
    applied: bool = True
    added: dict[str, int] | None = None
    undone_by: int | None = None

    def to_json(self) -> dict[str, Any]:
        applied_at = self.applied_at.isoformat() if self.applied_at else None
        more = {} if self.added is None else {"added": self.added, "undone_by": self.undone_by}
        return {"version": self.version, "name": self.name, "applied_at": applied_at, "applied": self.applied, **more}


def exists(engine: Engine) -> bool:
    """Tell whether anything was ever recorded there."""
    return bool(engine.history_columns())


def _has(engine: Engine, *needed: str) -> bool:
    """Tell whether there is a history to read these columns of.

    :raises ForeignHistory: when the table lacks one, for then another program made it.
    """
    columns = engine.history_columns()
    for name in needed:
        if columns and name not in columns:
            raise ForeignHistory(
                f"table migration_versions seems to belong to another program: it has no column {name}"
            )
    return bool(columns)


def version(engine: Engine) -> int:
    """Return the newest recorded version; 0 before the first run.

    :raises ForeignHistory: when another program made the table.
    :raises RightMissing: when row level security hides what was recorded.
    """
    newest = _newest(engine)
    if not newest:
        _refuse_hidden(engine)
    return newest


def _refuse_hidden(engine: Engine) -> None:
    """Refuse a history without a row where a policy may have hidden them: it would pass for an empty one."""
    if engine.hides_history():
        raise RightMissing(
            "row level security hides the rows of migration_versions from this role",
            "use a role that its policies let see them, the owner of the table (where security is not forced on it), "
            "or one with BYPASSRLS",
        )


def _newest(engine: Engine) -> int:
    if not _has(engine, "version"):
        return 0
    if (copy := engine.copied_history("version")) is not None:
        return max((recorded_version(version) for (version,) in copy), default=0)
    return recorded_version(engine.ask(f"SELECT {engine.function('max')}(version) FROM migration_versions"))


def version_or_zero(engine: Engine) -> int:
    """Return the newest recorded version that can be seen; 0 also where another program made the table."""
    try:
        return _newest(engine)
    except ForeignHistory:
        return 0


def status(engine: Engine) -> list[MigrationStatus]:
    """Return the recorded runs, oldest first.

    :raises ForeignHistory: when another program made the table.
    :raises RightMissing: when row level security hides what was recorded.
    """
    if not _has(engine, "version", "name", "applied_at"):
        return []
    if (copy := engine.copied_history("version, name, applied_at")) is not None:
        return sorted(map(_copied, copy), key=lambda run: run.version)
    rows = list(MigrationVersion.select().order_by(MigrationVersion.version).execute(engine.db))
    if not rows:
        _refuse_hidden(engine)
    return [MigrationStatus(recorded_version(row.version), row.name, row.applied_at) for row in rows]


def _copied(row: list[str]) -> MigrationStatus:
    version, name, applied_at = row
    # A server leaves out minutes of an offset that are zero.
    when = re.sub(r"([+-]\d\d)$", r"\1:00", applied_at) or None
    return MigrationStatus(recorded_version(version), name, MigrationVersion.applied_at.python_value(when))


def record(engine: Engine, name: str = RUN_NAME, newest: int | None = None) -> int:
    """Add a row and return its version: the later of now and the last one + 1.

    The Go service takes no lock when it records its start, so a version that it takes meanwhile is passed over.

    :param newest: the last version, where it was just asked for.
    :raises StepFailed: when one version after the other is taken.
    """
    first = max(int(time.time()), (_newest(engine) if newest is None else newest) + 1)
    for number in range(first, first + MOST_TAKEN):
        insert = MigrationVersion.insert(version=number, name=name, applied_at=engine.as_value(utcnow()))
        # Only a version that is taken is passed over; any other conflict is an error of its own. Without
        # `returning` a model that is bound to another engine could return its key, and no row would be counted.
        do_nothing = insert.on_conflict(action="NOTHING", conflict_target=["version"]).returning()
        if engine.db.rows_affected(engine.db.execute(do_nothing)):
            return number
    raise StepFailed(
        f"the versions from {first} to {first + MOST_TAKEN - 1} are taken by somebody else at this moment",
        "find out what else writes to migration_versions, then run it again",
    )
