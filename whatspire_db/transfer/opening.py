"""The databases of a transfer: which is which, and a SQLite source that is opened so that it stays as it is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

from peewee import sqlite3

from ..connection.connecting import connect
from ..connection.own_database import dsn_of, is_same
from ..dsn.forms import POSTGRES, SQLITE, kind_of
from ..dsn.naming import describe
from ..dsn.targets import PostgresTarget, SqliteTarget
from ..errors import ConfigError, ConnectionFailed, DatabaseMoved
from ..messages import READONLY_ROLLBACK
from ..settings import Settings, variable
from . import fence
from .kinds import TEXTS

PLACEHOLDER = "PASSWORD"


@dataclass(frozen=True)
class Ends:
    """Where the rows come from and where they go."""

    source: Settings
    target: Settings

    @property
    def is_to_postgres(self) -> bool:
        return self.target.driver == POSTGRES

    @property
    def source_name(self) -> str:
        return f"{self.source.driver} {describe(self.source.target)}"

    @property
    def target_name(self) -> str:
        return f"{self.target.driver} {describe(self.target.target)}"


def ends_of(source: Settings, to: str) -> Ends:
    """Return both ends of a transfer.

    :raises ConfigError: when the target's DSN is none, is the source's, or is of the same engine.
    """
    origins = {**source.origins, "driver": "--to", "dsn": "--to"}
    target = replace(source, driver=kind_of("--to", to), dsn=to, replica_dsn=None, config="", origins=origins)
    ends = Ends(source, target)
    if is_same(source.target, target.target):
        raise ConfigError(f"the target is the source: {ends.source_name}", "name another database in --to")
    if source.driver == target.driver:
        raise ConfigError(
            f"both databases are of one engine: {ends.source_name} and {ends.target_name}",
            "a transfer goes from SQLite to PostgreSQL or back; for a copy use backup create and restore",
        )
    for end in (source, target):
        if isinstance(end.target, SqliteTarget) and end.target.path is None:
            raise ConfigError("a SQLite database in memory cannot be transferred", "name a file")
    return ends


def _to_read(settings: Settings) -> str:
    """Return the DSN that opens a SQLite file for reading alone."""
    target = settings.target
    assert isinstance(target, SqliteTarget)
    assert target.path is not None
    if not os.path.lexists(target.path):
        raise ConnectionFailed(f"{target.path} does not exist", "name the database file in --from")
    if os.path.isdir(target.path):
        raise ConnectionFailed(f"{target.path} is a directory", "name the database file in --from")
    if os.path.isfile(target.path) and not os.path.getsize(target.path):
        raise ConnectionFailed(f"{target.path} is empty", "name the database file in --from")
    return settings.dsn if target.read_only else f"file:{quote(os.path.abspath(target.path))}?mode=ro"


@contextmanager
def sqlite_source(settings: Settings, may_be_fenced: bool = False) -> Iterator[sqlite3.Connection]:
    """Open a SQLite file read-only, in a transaction that sees one state of it until the end.

    :raises ConnectionFailed: when there is no such file, or it cannot be read.
    :raises DatabaseMoved: when its rows were moved before.
    """
    db: Any = connect(replace(settings, dsn=_to_read(settings), replica_dsn=None), bind=False, read_only=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(db.connection_context())
        except ConnectionFailed as error:
            if error.sqlite_code == READONLY_ROLLBACK:
                error.hint = (
                    "a program that was killed left its journal beside the file: start one that may write, like "
                    "whatspire-db status, which takes back what was half done, then run this again"
                )
            raise
        connection: sqlite3.Connection = db.connection()
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM main.sqlite_master").fetchone()  # from here on it sees one state
        moved = None if may_be_fenced else fence.find(connection)
        if moved:
            again = "a live transfer that was killed is completed by --live and the same --to"
            raise DatabaseMoved(moved.fact, f"{moved.hint}; {again}")
        connection.text_factory = TEXTS
        try:
            yield connection
        finally:
            connection.text_factory = str
            if connection.in_transaction:
                connection.execute("ROLLBACK")


@contextmanager
def connected(settings: Settings, option: str) -> Iterator[Any]:
    """Connect to an end and return its database.

    :param option: names its DSN in messages.
    """
    db: Any = connect(settings, bind=False)
    try:
        db.connect()
    except ConnectionFailed as error:
        error.hint = error.hint.replace(variable("dsn"), option)
        raise
    try:
        yield db
    except ConnectionFailed as error:
        if settings.driver == POSTGRES and error.sqlite_code is None:  # a lost session could not be replaced
            error.hint = error.hint.replace(variable("dsn"), option)
        raise
    finally:
        if not db.is_closed():
            db.close()


def switch_lines(target: Settings) -> list[str]:
    """Return the lines of .env that point a program at the target; a password is not repeated."""
    place = target.target
    if isinstance(place, PostgresTarget):
        secrets = {key for key in place.arguments if key not in place.public}
        place = PostgresTarget({k: PLACEHOLDER if k in secrets else v for k, v in place.arguments.items()})
    dsn = dsn_of(place) if isinstance(place, PostgresTarget) else target.dsn
    driver = POSTGRES if isinstance(place, PostgresTarget) else SQLITE
    return [f"WHATSAPP_DATABASE_DRIVER={driver}", f"WHATSAPP_DATABASE_DSN={_dotenv(dsn)}"]


def _dotenv(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"' if set(text) - set("/.:-_=") - set(map(chr, range(48, 123))) else text
