"""The steps that both directions of a transfer share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import peewee

from ..data.records import DataMigrationRecord
from ..errors import NotProved, RightMissing, WhatspireDBError
from ..messages import hint
from ..migrate.ddl import ModelType
from ..migrate.engines.base import Engine
from ..migrate.engines.postgres.engine import PostgresEngine
from ..migrate.runner import MigrationRunner
from . import records
from .opening import Ends
from .progress import Watcher
from .proof import TableProof
from .records import Transfer

SNAPSHOT = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"


@dataclass(frozen=True)
class Wishes:
    """What the caller of a transfer wants: which models, what stays behind, what is done about each kind of fault."""

    models: Sequence[ModelType]
    leave: Sequence[str]
    choices: Mapping[str, str]
    side_file: str
    wait_seconds: float
    trust_source: bool
    watcher: Watcher


def migrate(db: Any, wishes: Wishes, with_data: bool) -> None:
    """Bring the target to the models and to the table of transfers; no data migration runs.

    :param with_data: and to the table of data migrations.
    """
    models = [*wishes.models, Transfer, *([DataMigrationRecord] if with_data else [])]
    try:
        runner(db, models, wishes).up()
    except RightMissing as error:
        # Its hint, to have somebody else run the statements, does not help: the rows need a role that owns the tables.
        error.hint = hint(error.__cause__ or error)
        raise


def runner(db: Any, models: Sequence[ModelType], wishes: Wishes) -> MigrationRunner:
    """Return what brings the target to models, and makes no backup of what has no rows."""
    return MigrationRunner(
        db,
        models,
        lock_timeout=wishes.wait_seconds,
        before_changes=lambda: None,
        trust_source=wishes.trust_source,
        data=(),
    )


@contextmanager
def recorded(engine: Engine, ends: Ends) -> Iterator[int]:
    """Note an attempt that begins, and one that fails; the transaction of the rows notes that it is proved."""
    number = records.begin(engine, ends.source_name)
    try:
        yield number
    except BaseException as error:
        with suppress(peewee.PeeweeException, WhatspireDBError):  # if the server is gone, that is the error to report
            fact = error.fact if isinstance(error, WhatspireDBError) else type(error).__name__
            records.end(engine, number, records.FAILED, error=fact)
        raise


def require_proved(
    proofs: Sequence[TableProof], what_to_do: str = "look for triggers and rules on its tables, or report this"
) -> None:
    """Refuse tables that are not the same on both sides.

    :param what_to_do: about the cause, for the hint.
    :raises NotProved: names them.
    """
    if unequal := [str(proof) for proof in proofs if not proof.is_equal]:
        raise NotProved(
            f"both sides do not hold the same rows: {'; '.join(unequal)}",
            f"no row was kept at the target; {what_to_do}",
        )


def teller(watcher: Watcher, phase: str) -> Callable[[str, int], None]:
    """Return what tells a watcher how many rows of a table a phase has done."""
    return lambda table, done: watcher.progress(phase, table, done, None)


@contextmanager
def snapshot(postgres: PostgresEngine) -> Iterator[None]:
    """Read one state of the server in a block, in which names without a schema are its own."""
    assert postgres.default_schema  # asked before the path says otherwise
    with postgres.db.atomic():
        postgres.db.execute_sql(SNAPSHOT)
        postgres.search_first("pg_catalog")
        postgres.see_every_row()
        yield
