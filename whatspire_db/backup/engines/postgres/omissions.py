"""What a backup of PostgreSQL will lack, or may not bring back: said when it is made, for later is too late."""

from __future__ import annotations

from collections.abc import Iterator

from whatspire_db import messages
from whatspire_db.dsn.targets import PostgresTarget

from .bare_names import bare_uses_in
from .server import Session, session

# pg_dump leaves them out.
_INVALID_INDEXES = """
SELECT format('%I.%I', n.nspname, c.relname) FROM pg_catalog.pg_index AS i
JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid JOIN pg_catalog.pg_class AS t ON t.oid = i.indrelid
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE NOT i.indisvalid AND t.relkind <> 'p' AND t.relpersistence <> 't' AND n.nspname !~ '^pg_' ORDER BY 1
"""
_UNLOGGED = """
SELECT format('%I.%I', n.nspname, c.relname) FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence = 'u' AND pg_is_in_recovery() ORDER BY 1
"""
# Of a superuser's eyes alone.
_SUBSCRIPTIONS = """
SELECT s.subname FROM pg_catalog.pg_subscription AS s JOIN pg_catalog.pg_database AS d ON d.oid = s.subdbid
WHERE d.datname = current_database() ORDER BY 1
"""
# By the rule of the view pg_user_mappings for whom it shows options.
_USER_MAPPINGS = """
SELECT format('of %s for server %s', m.usename, m.srvname)
FROM pg_catalog.pg_user_mappings AS m JOIN pg_catalog.pg_foreign_server AS s ON s.oid = m.srvid
WHERE m.umoptions IS NULL AND NOT (
    CASE WHEN m.umuser = 0 THEN pg_has_role(s.srvowner, 'USAGE')
    ELSE m.usename = current_user AND (pg_has_role(s.srvowner, 'USAGE') OR has_server_privilege(s.oid, 'USAGE')) END
)
ORDER BY 1
"""
# But for those that come with an extension, or with the type of a range.
_UNTRUSTED = """
SELECT format('%I.%I', n.nspname, p.proname) FROM pg_catalog.pg_proc AS p
JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace JOIN pg_catalog.pg_language AS l ON l.oid = p.prolang
WHERE p.oid >= 16384 AND NOT l.lanpltrusted AND NOT EXISTS (
    SELECT FROM pg_catalog.pg_depend AS d
    WHERE d.classid = 'pg_catalog.pg_proc'::regclass AND d.objid = p.oid AND d.deptype IN ('e', 'i')
) ORDER BY 1
"""
_LABELS = """
SELECT l.provider FROM pg_catalog.pg_shseclabel AS l JOIN pg_catalog.pg_database AS d ON d.oid = l.objoid
WHERE l.classoid = 'pg_catalog.pg_database'::regclass AND d.datname = current_database() ORDER BY 1
"""
_FOR_ALL = {
    "index {} is INVALID, and no backup holds it: REINDEX it, or drop it": _INVALID_INDEXES,
    "the rows of unlogged table {} are not on a standby, and not in this backup": _UNLOGGED,
    "the security label of {} for the database is in no backup": _LABELS,
}
_FOR_PLAIN_ROLES = {
    "subscription {} is not in this backup: only a superuser may read it": _SUBSCRIPTIONS,
    "function {} is in a language that is not trusted: only a superuser can restore it": _UNTRUSTED,
    "the user mapping {} is in this backup without its options: this role may not read them": _USER_MAPPINGS,
}


def lacks_of(target: PostgresTarget, *, is_tried: bool) -> list[str]:
    """Return a line for all that a backup by this role lacks, or that may stop its restore.

    :param is_tried: the backup was restored, so that its functions are known to work.
    """
    with session(target) as reading:
        lines = [*_missing(reading), *(() if is_tried else _hazards(reading))]
    return [messages.clean(line) for line in lines]


def _missing(reading: Session) -> Iterator[str]:
    asked = _FOR_ALL if reading.is_superuser else {**_FOR_ALL, **_FOR_PLAIN_ROLES}
    for line, question in asked.items():
        yield from (line.format(name) for (name,) in reading.rows(question))


def _hazards(reading: Session) -> Iterator[str]:
    for function, name in bare_uses_in(reading):
        yield (
            f"function {function} uses {name} by its bare name, and rows are given to it: a restore has an empty "
            f"search_path, and may fail; name the schema, or ALTER FUNCTION {function} SET search_path"
        )
