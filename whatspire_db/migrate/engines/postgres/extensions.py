"""PostgreSQL: the extensions that models need, and the types that they bring."""

from __future__ import annotations

from collections.abc import Sequence

import peewee

from whatspire_db.errors import ModelError
from whatspire_db.messages import first_line, sqlstate
from whatspire_db.migrate.ddl import ModelType, execute, quote
from whatspire_db.sql import pinned, version_of

from ..base import Engine
from .trust import Stranger, require_trusted

# Types that an extension brings; a model can name more in Meta.extensions.
EXTENSION_TYPES = {
    "vector": "vector",
    "halfvec": "vector",
    "sparsevec": "vector",
    "hstore": "hstore",
    "citext": "citext",
    "ltree": "ltree",
}
# Of those, the ones that came with a later version of their extension.
SINCE = {"halfvec": (0, 7), "sparsevec": (0, 7)}

_TYPES_ELSEWHERE = pinned("""
SELECT t.typname, n.nspname FROM pg_type AS t JOIN pg_namespace AS n ON n.oid = t.typnamespace
WHERE t.typname = ANY (%s) AND NOT pg_type_is_visible(t.oid) ORDER BY 1, 2
""")

_VERSIONS = pinned("""
SELECT a.installed_version, a.default_version FROM pg_available_extensions AS a WHERE a.name = %s
""")


def type_names(db: peewee.Database, model: ModelType) -> set[str]:
    """Return the names of the types of a model's columns, without lengths, in lower case."""
    context = db.get_sql_context()
    types = (f.ddl_datatype(context) for f in model._meta.sorted_fields)
    return {str(getattr(t, "sql", "")).partition("(")[0].lower() for t in types if t is not None}


def extensions_of(db: peewee.Database, model: ModelType) -> set[str]:
    """Return the extensions that a model needs for its types, or names itself."""
    names = type_names(db, model)
    return {EXTENSION_TYPES[n] for n in names if n in EXTENSION_TYPES} | set(getattr(model._meta, "extensions", ()))


def types_elsewhere(db: peewee.PostgresqlDatabase, models: Sequence[ModelType]) -> str | None:
    """Return what to do about types that are in a schema which search_path lacks; None where there are none."""
    names = sorted({name for model in models for name in type_names(db, model)})
    found = [f"type {name} is in schema {schema}" for name, schema in execute(db, _TYPES_ELSEWHERE, [names])]
    if not found:
        return None
    return f"{', '.join(found)}: add that schema to search_path, in WHATSAPP_DATABASE_DSN or for the role"


def types_too_new(db: peewee.PostgresqlDatabase, models: Sequence[ModelType]) -> str | None:
    """Return what to do about types that came after the version of their extension; None where there are none."""
    for name in sorted({name for model in models for name in type_names(db, model)} & SINCE.keys()):
        extension, since = EXTENSION_TYPES[name], ".".join(map(str, SINCE[name]))
        for installed, newest in execute(db, _VERSIONS, [extension]):
            if version_of(installed or newest) < SINCE[name]:
                where = f"the database has {installed}" if installed else f"the server brings {newest}"
                install = "" if version_of(newest) >= SINCE[name] else "install a newer one on the server, then "
                update = f"ALTER EXTENSION {quote(extension)} UPDATE;" if installed else "up again"
                return f"{name} came with {extension} {since}, and {where}: {install}run {update}"
    return None


def create_extension(engine: Engine, name: str, found: Sequence[Stranger]) -> None:
    """Create an extension that the models need, unless it is there."""
    if engine.ask(pinned("SELECT count(*) FROM pg_extension WHERE extname = %s"), [name]):
        return
    if not engine.ask(pinned("SELECT count(*) FROM pg_available_extensions WHERE name = %s"), [name]):
        raise ModelError(
            f"the models need the extension {name}, which the server does not have",
            "install it on the server; the image pgvector/pgvector:pg18-trixie brings vector",
        )
    require_trusted(found)
    try:
        with engine.db.atomic():
            execute(engine.db, f"CREATE EXTENSION {quote(name)}")
    except peewee.PeeweeException as error:
        if sqlstate(error) in ("23505", "42710"):  # unique_violation, duplicate_object: somebody was faster
            return
        raise ModelError(
            f"the models need the extension {name}, which this role may not create: {first_line(error)}",
            f"let a superuser run: CREATE EXTENSION {quote(name)};",
        ) from None
