"""The schemas of one PostgreSQL database that a run over many is about, and how they stand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import peewee

from ..connection.connecting import connect
from ..connection.database import Pooling
from ..connection.patience import Patience
from ..dsn.forms import POSTGRES
from ..dsn.redaction import looks_like_dsn
from ..errors import ConfigError, ConnectionFailed
from ..light_stdlib import replace
from ..messages import database_failed
from ..migrate.engines.postgres.engine import PostgresEngine
from ..migrate.engines.postgres.schemas import (
    NO_POOLER,
    SchemaPath,
    require_extensions,
    require_usable,
    schema_paths,
    standing_in,
)
from ..migrate.progress import Watcher
from ..migrate.reports import Report
from .call import Call
from .loading import Model, settings_and_models
from .migrate import runner_of, waits_of
from .targets import Subject, is_meant_by, schema_targets

T = TypeVar("T")

PROTOCOL_VIOLATION = "08P01"  # a pooler's code for a start with options


def schemas_of(call: Call) -> Subject:
    """Return the schemas of the database of the settings whose names the pattern matches.

    :raises ConfigError: when there are none.
    """
    if call.settings().driver != POSTGRES:
        hint = "use --each-file for files of SQLite"
        raise ConfigError(f"--each-schema is for PostgreSQL, not for {call.line}", hint)
    settings, models = settings_and_models(call)
    models = [model for model in models if not model._meta.schema]
    if not models:
        hint = "--each-schema is for tables without one; leave it out"
        raise ConfigError("every model names a schema of its own", hint)
    waits, pattern = waits_of(call.options, settings), call.options.each_schema
    shared = connect(replace(settings, max_open_conns=0), bind=False)
    paths = patiently(shared, waits, lambda: _paths(shared, pattern, models))
    if not paths:
        shown = "the pattern (not shown here)" if looks_like_dsn(pattern) else pattern
        hint = "create it, or check the pattern"
        raise ConfigError(f"--each-schema: no schema of {call.database} matches {shown}", hint)
    return Subject(list(schema_targets(settings, paths)), models, settings, waits, shared)


def _paths(db: Pooling, pattern: str, models: Sequence[Model]) -> list[SchemaPath]:
    with db.connection_context(), translated():
        paths = schema_paths(db, lambda name: is_meant_by(pattern, name))
        if paths:
            require_extensions(db, models)
        return paths


@contextmanager
def translated() -> Iterator[None]:
    """Put what the driver says of a question in words."""
    try:
        yield
    except peewee.PeeweeException as error:
        raise database_failed(error) from error


def require_schema(db: Pooling, waits: tuple[float, float], schema: str) -> None:
    """Check that the sessions of a database begin in a schema; see `require_usable`."""

    def check() -> None:
        with db.connection_context(), translated():
            require_usable(db, schema)

    try:
        patiently(db, waits, check)
    except ConnectionFailed as error:
        if error.sqlstate == PROTOCOL_VIOLATION:  # the list of schemas came over a session without options
            error.hint = NO_POOLER
        raise


def patiently(db: Pooling, waits: tuple[float, float], call: Callable[[], T]) -> T:
    """Return what a call returns, which is made again while the server is full, starting or failing over."""

    def let_go() -> bool:
        db.close_idle()
        return True

    return Patience(*waits).run(call, let_go)


class Stamps:
    """Asks how schemas stand, in one message each on the connection of the thread that asks."""

    def __init__(self, db: Pooling, subject: Subject, options: Any) -> None:
        self._db, self._wait = db, subject.waits[0]
        self._runner = runner_of(db, subject.models, options, subject.waits, Watcher(), data=())
        self._models = self._runner.stamped_models

    def report(self, path: SchemaPath) -> Report | None:
        """Return the report of an `up` that finds its stamp; None where it has to look."""
        engine = self._runner.engine
        assert isinstance(engine, PostgresEngine)
        return self._runner.up_as_stamped(standing_in(engine, path, self._models, self._wait))

    def finish(self) -> None:
        """Give back the connection of this thread."""
        if not self._db.is_closed():
            self._db.close()
