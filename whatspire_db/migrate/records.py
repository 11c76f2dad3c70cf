"""whatspire_db_runs: what each recorded run added, so that it can be taken back."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import peewee

from ..errors import RightMissing, WhatspireDBError
from ..messages import first_line, is_right_missing
from .added import Added, counted
from .ddl import execute, quote_text
from .engines.base import Engine
from .engines.undoing import undo_engine
from .history import MigrationStatus
from .schema import RUNS_TABLE
from .stamp import rendered

logger = logging.getLogger("whatspire_db.migrate")

UNFINISHED = 0  # the version of a run that is past its transaction, and not recorded yet


class RunRecord(peewee.Model):
    """What a run added, as JSON, and the version of the run that took it back.

    It is no BaseModel, whose subclasses are tables of every user's schema.
    """

    version = peewee.BigIntegerField(primary_key=True)
    content = peewee.TextField()
    undone_by = peewee.BigIntegerField(null=True)

    class Meta:
        table_name = RUNS_TABLE


@dataclass(frozen=True)
class Record:
    """A recorded run: its version, what it added, and the version of the run that undid it."""

    version: int
    added: tuple[Added, ...]
    undone_by: int | None = None


def write(engine: Engine, version: int, added: Sequence[Added]) -> None:
    """Record what a run added, in the transaction of its version; the log says so where that cannot be done."""
    state = undo_engine(engine).records_state(RunRecord)
    untrusted = engine.untrusted_table(RunRecord) if state.exists else None
    if untrusted or not state.may_write:
        why = untrusted.fact if untrusted else f"this role may not write to {RUNS_TABLE}, or make it"
        logger.warning("this run cannot be undone: %s", why)
        return
    content = quote_text(json.dumps([each.to_json() for each in added]))
    insert = f"INSERT INTO {RUNS_TABLE} (version, content) VALUES ({version}, {content})"
    if not state.exists:
        _execute_all(engine, [*rendered(engine.db, RunRecord).table, insert])
        return
    delete = f"DELETE FROM {RUNS_TABLE} WHERE version {engine.operator('=')} "
    try:
        with engine.db.atomic():  # a version is taken again after a history was emptied
            _execute_all(engine, [f"{delete}{version}", insert])
    except peewee.PeeweeException as error:
        if engine.is_lock_failure(error):
            raise
        logger.warning("this run cannot be undone: %s", first_line(error))


def _execute_all(engine: Engine, statements: Sequence[str]) -> None:
    for sql in [";\n".join(statements)] if engine.takes_many_statements else statements:
        execute(engine.db, sql)


def take_unfinished(engine: Engine) -> list[Added]:
    """Return what a run has noted that did not finish, and remove its note."""
    state = undo_engine(engine).records_state(RunRecord)
    if not (state.exists and state.may_write) or engine.untrusted_table(RunRecord):
        return []
    try:
        found = [record for record in _read(engine) if record.version == UNFINISHED]
    except WhatspireDBError as error:
        logger.warning("what a run noted that was killed is not known: %s", error.fact)
        return []
    if found:
        RunRecord.delete().where(_is(engine, UNFINISHED)).execute(engine.db)
    return [added for record in found for added in record.added]


def read(engine: Engine) -> list[Record]:
    """Return the records, the newest run first; one that did not finish is the newest.

    :raises WhatspireDBError: when they cannot be read.
    """
    state = undo_engine(engine).records_state(RunRecord)
    if not state.exists:
        return []
    if found := engine.untrusted_table(RunRecord) or undo_engine(engine).forgeable(RunRecord):
        raise found
    if not state.may_read:
        raise WhatspireDBError(
            f"this role may not read {RUNS_TABLE}, where each run recorded what it added",
            "run it as the role that runs the migrations",
        )
    try:
        with engine.db.atomic():
            engine.see_every_row()
            records = _read(engine)
    except WhatspireDBError as error:
        if not is_right_missing(error.__cause__ or error):
            raise
        raise RightMissing(
            f"row level security hides rows of {RUNS_TABLE} from this role",
            "use the owner of the table, or a role with BYPASSRLS",
        ) from error
    return sorted(records, key=lambda record: (record.version != UNFINISHED, -record.version))


def with_added(engine: Engine, runs: Sequence[MigrationStatus]) -> list[MigrationStatus]:
    """Return runs with what each added, where that is recorded and can be read."""
    try:
        found = {record.version: record for record in read(engine)}
    except WhatspireDBError as error:
        logger.info("what the runs added is not known: %s", error.fact)
        found = {}
    return [_with_added(run, found.get(run.version)) for run in runs]


def _with_added(run: MigrationStatus, record: Record | None) -> MigrationStatus:
    if record is None:
        return run
    return replace(run, added=counted(record.added), undone_by=record.undone_by)


def _read(engine: Engine) -> list[Record]:
    query = RunRecord.select(RunRecord.version, RunRecord.content, RunRecord.undone_by).tuples()
    try:
        with engine.db.atomic():
            rows = list(query.execute(engine.db))
    except (ValueError, OverflowError):  # a value that its field cannot hold
        raise WhatspireDBError(f"{RUNS_TABLE} cannot be read", "it was not written by this package") from None
    except peewee.PeeweeException as error:
        if engine.is_lock_failure(error):
            raise
        raise WhatspireDBError(
            f"table {RUNS_TABLE} seems to belong to another program: {first_line(error)}", "rename that table"
        ) from error
    return [_record(*row) for row in rows]


def _record(version: int, content: str, undone_by: int | None) -> Record:
    try:
        if not (_is_version(version) and (undone_by is None or _is_version(undone_by))):
            raise TypeError
        found = json.loads(content)
        if not isinstance(found, list):
            raise TypeError
        return Record(version, tuple(map(Added.from_json, found)), undone_by)
    except (KeyError, TypeError, ValueError, RecursionError):
        raise WhatspireDBError(
            f"what run {version} added cannot be read from {RUNS_TABLE}", "it was not written by this package"
        ) from None


def _is_version(found: object) -> bool:
    """Tell whether a column that another program may have made holds a whole number, of 64 bits."""
    return isinstance(found, int) and 0 <= found < 2**63


def mark_undone(engine: Engine, records: Sequence[Record], version: int) -> None:
    """Note which run took others back; what an unfinished one has noted is removed."""
    for record in records:
        if record.version == UNFINISHED:
            RunRecord.delete().where(_is(engine, UNFINISHED)).execute(engine.db)
        else:
            update = RunRecord.update(undone_by=version).where(_is(engine, record.version))
            if engine.db.rows_affected(engine.db.execute(update)) != 1:
                raise RightMissing(
                    f"this role may not note in {RUNS_TABLE} that run {record.version} is undone",
                    "use the role that runs the migrations; nothing was changed",
                )


def _is(engine: Engine, version: int) -> peewee.Expression:
    return peewee.Expression(RunRecord.version, engine.operator("="), version)
