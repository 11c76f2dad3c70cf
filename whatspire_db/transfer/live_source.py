"""The SQLite source of a live transfer: its change log, its copy, its lock, and what one that was killed left."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import peewee

from ..connection.connecting import connect
from ..dsn.targets import SqliteTarget
from ..errors import LockTimeout, TransferRefused
from ..messages import BUSY, primary
from ..migrate.engines.sqlite.engine import SqliteEngine
from ..migrate.schema import folded_ascii
from ..settings import Settings
from . import change_log, fence
from .kinds import TEXTS
from .progress import logger
from .steps import Wishes
from .tables import is_ours, require_models, transferred

FOLDER = ".whatspire-transfer-"
_SCHEMA = """
SELECT name, tbl_name, sql FROM main.sqlite_master
WHERE type IN ('table', 'index') AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'
"""
Schema = Mapping[str, str]  # what each table and index was made by


@contextmanager
def opened(settings: Settings, wait_seconds: float) -> Iterator[Any]:
    """Connect to a source, which gets a log and a fence, while no other live transfer of it runs.

    :raises LockTimeout: when another one takes longer.
    """
    db: Any = connect(settings, bind=False, read_only=True)
    db.timeout = wait_seconds  # its writers have the lock most of the time
    with db.connection_context(), SqliteEngine(db).work_lock(wait_seconds):
        db.connection().text_factory = TEXTS
        yield db


def clear(source: Any, settings: Settings) -> list[str]:
    """Remove what a live transfer left that was killed, and return what that was.

    The caller has `opened` the source.
    """
    removed = []
    if change_log.find(source) is not None:
        change_log.stop(source)
        removed.append("the change log")
    for folder in _folders(settings):
        shutil.rmtree(folder, ignore_errors=True)
        removed.append(folder)
    return removed


def _folders(settings: Settings) -> list[str]:
    """Return the folders with copies of a source that this user has left."""
    place, beginning = _beside(settings)
    is_one = re.compile(re.escape(beginning) + "[a-z0-9_]{8}").fullmatch  # which mkdtemp puts there
    found = (entry for entry in os.scandir(place) if is_one(entry.name) and entry.is_dir(follow_symlinks=False))
    return [entry.path for entry in found if entry.stat(follow_symlinks=False).st_uid == os.geteuid()]


def _beside(settings: Settings) -> tuple[str, str]:
    """Return the folder of a source, and how the names of the folders with its copies begin."""
    target = settings.target
    assert isinstance(target, SqliteTarget)
    place, name = os.path.split(os.path.abspath(str(target.path)))
    return place, f"{FOLDER}{name[:200]}-"


@contextmanager
def logged(source: Any, wishes: Wishes) -> Iterator[tuple[int, Schema]]:
    """Have changes noted in a block, and give the log's position and the schema that it is about.

    :raises DatabaseMoved: when the source has a fence.
    :raises TransferRefused: when it has tables or columns without a model.
    """
    own = {folded_ascii(model._meta.table_name) for model in transferred(wishes.models)}
    with source.atomic("IMMEDIATE"):  # no table comes in between
        if moved := fence.find(source.connection()):
            raise moved.refusal()
        require_models(source.connection(), wishes.models, wishes.leave)
        found = source.execute_sql("SELECT name FROM main.sqlite_master WHERE type = 'table'").fetchall()
        log = change_log.start(source, [name for (name,) in found if folded_ascii(name) in own])
        schema = schema_of(source)
    try:
        yield log.position, schema
    except BaseException:
        _stop(source)
        raise


def _stop(source: Any) -> None:
    try:
        change_log.stop(source)
    except peewee.PeeweeException:
        logger.error("the source keeps its change log; whatspire-db transfer --remove-log removes it")


def schema_of(source: Any) -> Schema:
    """Return the tables and indexes of a source, but for those of this package."""
    return {name: sql for name, table, sql in source.execute_sql(_SCHEMA).fetchall() if not is_ours(table)}


def require_schema(source: Any, schema: Schema) -> None:
    """Refuse a source whose schema has changed since; the caller holds a transaction on it.

    Nobody notes rows of a new table or column, nor those that REPLACE removes because of a new index.

    :raises TransferRefused: names what changed.
    """
    now = schema_of(source)
    if changed := sorted(name for name in {**schema, **now} if schema.get(name, "") != now.get(name, "")):
        raise TransferRefused(
            f"the schema of the source changed meanwhile: {', '.join(changed)}",
            "nothing was copied; run it again when nobody changes the schema",
        )


@contextmanager
def copied(source: Any, settings: Settings) -> Iterator[Settings]:
    """Copy a source as of one moment into a file beside it that nobody else can read; give its settings."""
    place, beginning = _beside(settings)
    folder = tempfile.mkdtemp(prefix=beginning, dir=place)
    try:
        file = os.path.join(folder, "copy.db")
        source.execute_sql("VACUUM INTO ?", (file,))
        yield replace(settings, dsn=f"file:{quote(file)}?mode=ro")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def locked(source: Any, wait_seconds: float) -> Iterator[None]:
    """Hold a source's lock in a block that ends with its commit.

    It is the exclusive one: with a rollback journal the commit waits for those who read, and the target's is done then.

    :raises LockTimeout: when others hold it for longer.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(source.atomic("EXCLUSIVE"))
        except peewee.OperationalError as error:
            if primary(error) != BUSY:
                raise
            raise LockTimeout(
                f"other programs held the lock of {source.database} for {wait_seconds:g} s",
                "find the program that writes or reads for that long, or raise --lock-timeout; nothing was copied",
            ) from error
        yield
