"""PostgreSQL: many schemas of one database with the same tables, and how each of them stands."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import peewee

from whatspire_db.errors import ModelError, RightMissing, WhatspireDBError
from whatspire_db.light_stdlib import Any
from whatspire_db.migrate.ddl import ModelType, execute, quote
from whatspire_db.migrate.stamp import Standing
from whatspire_db.sql import pinned

from ..references import with_references
from . import history
from .engine import PostgresEngine
from .extensions import extensions_of
from .limits import lock_limit

NO_POOLER = "connect to the server itself: a pooler in between does not pass on in which schema a session begins"
_SCHEMAS = pinned("""
SELECT nspname::text, current_setting('search_path') FROM pg_namespace
WHERE (left(nspname::text, 3) <> 'pg_') AND (nspname <> 'information_schema')
""")
_SEARCH_FIRST = pinned("SELECT set_config('search_path', %s, true)")
_EXTENSIONS = pinned("SELECT extname::text FROM pg_extension")
# A schema that the role may not use, or that is gone, is passed over in a search_path.
_USABLE = pinned("""
SELECT current_schema()::text, to_regnamespace(quote_ident(%s))::oid,
    has_schema_privilege(to_regnamespace(quote_ident(%s))::oid, 'USAGE')
""")


@dataclass(frozen=True)
class SchemaPath:
    """A schema at the head of a search_path; the others stay behind it, for types and functions.

    :param options: libpq's, that a session has for other reasons: by the DSN, a service or PGOPTIONS.
    """

    schema: str
    others: str
    options: str = ""

    @property
    def setting(self) -> str:
        """The value of search_path."""
        return ", ".join(filter(None, [quote(self.schema), self.others]))

    @property
    def in_options(self) -> str:
        """The options with this path behind what is there, so that every session has it from its start."""
        escaped = re.sub(r"([\\\s])", r"\\\1", self.setting)
        return " ".join(filter(None, [self.options, f"-c search_path={escaped}"]))


def schema_paths(db: peewee.PostgresqlDatabase, is_meant: Callable[[str], bool]) -> list[SchemaPath]:
    """Return the schemas whose names are meant, by name; those of the server itself are never among them."""
    found = execute(db, _SCHEMAS).fetchall()
    options = db.connection().info.dsn_parameters.get("options", "")
    return [SchemaPath(name, path.removeprefix('""'), options) for name, path in sorted(found) if is_meant(name)]


def require_extensions(db: peewee.PostgresqlDatabase, models: Sequence[ModelType]) -> None:
    """Check that the database has the extensions that models need: a run would create them in one of many schemas.

    :raises ModelError: names those that it lacks.
    """
    wanted = {name for model in with_references(models) for name in extensions_of(db, model)}
    lacking = sorted(wanted - {name for (name,) in execute(db, _EXTENSIONS)}) if wanted else []
    if lacking:
        statements = " ".join(f"CREATE EXTENSION {quote(name)} SCHEMA public;" for name in lacking)
        raise ModelError(
            f"the models need the extension {', '.join(lacking)}, which a database has once, for all schemas",
            f"create it where every search_path leads: {statements}",
        )


def require_usable(db: peewee.PostgresqlDatabase, schema: str) -> None:
    """Check that names without a schema mean those of one schema in this session.

    :raises RightMissing: when they mean those of another one.
    """
    current, oid, may_use = execute(db, _USABLE, [schema, schema]).fetchone()
    if current == schema:
        return
    if oid is None:
        raise RightMissing(f"there is no schema {schema} any more", "run it again; create the schema if it is needed")
    if schema == "$user":
        raise RightMissing(f"{schema} in a search_path is the schema of the role's name", "rename that schema")
    if not may_use:
        raise RightMissing(
            f"this role may not use schema {schema}", f"let its owner run: GRANT USAGE ON SCHEMA {quote(schema)} TO ..."
        )
    raise RightMissing(f"the session's schema is {current}, not {schema}, with which it was to begin", NO_POOLER)


def standing_in(
    engine: PostgresEngine, path: SchemaPath, models: Sequence[ModelType], wait_seconds: float
) -> Standing | None:
    """Ask in one message how a schema stands, and leave nothing of it in the session.

    None where that cannot be told so: there is no history, the role may not use the schema, or a lock is in the way.
    """
    # As one message it is one transaction, also behind a pooler.
    sql = f"{_SEARCH_FIRST}; {lock_limit(wait_seconds)}; {history.question()}"
    try:
        row: tuple[Any, ...] | None = engine.ask_quietly(sql, [path.setting, *engine.tables_of(models)])
        return history.standing_of(row) if row and row[-1] == path.schema else None
    except (peewee.PeeweeException, WhatspireDBError):
        return None
