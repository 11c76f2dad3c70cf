"""Whether a PostgreSQL database, or a table, holds anything."""

from __future__ import annotations

from .content import Source, is_users_own, sources_of
from .server import Session

ANY_LARGE_OBJECT = "SELECT EXISTS (SELECT FROM pg_catalog.pg_largeobject_metadata)"
# Kinds of objects that are no part of another one, by the catalog that they stand in.
_KINDS = (
    "pg_am",
    "pg_cast",
    "pg_class",
    "pg_collation",
    "pg_conversion",
    "pg_event_trigger",
    "pg_foreign_data_wrapper",
    "pg_foreign_server",
    "pg_language",
    "pg_namespace",
    "pg_opclass",
    "pg_operator",
    "pg_opfamily",
    "pg_proc",
    "pg_publication",
    "pg_transform",
    "pg_ts_config",
    "pg_ts_dict",
    "pg_ts_parser",
    "pg_ts_template",
    "pg_type",
)
_ANY_OBJECT = " OR ".join(
    f"EXISTS (SELECT FROM pg_catalog.{catalog} AS o WHERE {is_users_own(catalog)}"
    # The first is there always, and others hold extensions.
    + (
        " AND o.nspname <> 'public' AND o.oid NOT IN (SELECT extnamespace FROM pg_catalog.pg_extension))"
        if catalog == "pg_namespace"
        else ")"
    )
    for catalog in _KINDS
)


def is_empty(asked: Session) -> bool:
    """Tell whether there is nothing that anybody made, but for extensions without data."""
    extensions = (source for source in sources_of(asked) if source.is_extensions)
    return not asked.value(f"SELECT {_ANY_OBJECT} OR ({ANY_LARGE_OBJECT})") and not any(
        has_rows(asked, source) for source in extensions
    )


def has_rows(asked: Session, source: Source) -> bool:
    """Tell whether a table has a row; one that is not safe to query counts as having some when its file holds bytes."""
    if not source.is_readable:
        return False
    if not source.is_safe:
        return bool(asked.value("SELECT pg_relation_size(%s::regclass) > 0", source.name))
    return bool(asked.value(f"SELECT EXISTS (SELECT FROM ONLY {source.name} {source.condition})"))
