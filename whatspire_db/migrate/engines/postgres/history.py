"""PostgreSQL: the history is read without running what the owner of its table may have attached to it."""

from __future__ import annotations

from collections.abc import Callable

import peewee

from whatspire_db.light_stdlib import Any, TextIO
from whatspire_db.messages import sqlstate
from whatspire_db.migrate.ddl import execute
from whatspire_db.migrate.stamp import Stamps, Standing, recorded_version
from whatspire_db.peewee_compat import peewee_errors
from whatspire_db.sql import SAFE_TO_QUERY, pinned

DIVISION_BY_ZERO = "22012"

_HISTORY = "FROM pg_class WHERE oid = to_regclass('migration_versions')"
_ASK = f"SELECT {SAFE_TO_QUERY} {_HISTORY}"
# In one message with the question, which the server does not even plan after an error.
_STOP = f"SELECT 1 / CASE WHEN {SAFE_TO_QUERY} THEN 1 ELSE 0 END {_HISTORY}; "
_COLUMNS = """
SELECT a.attname::text FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
WHERE c.oid = to_regclass(quote_ident(current_schema()) || '.migration_versions') AND c.relkind = ANY ('{r,p}')
    AND a.attnum > 0 AND NOT a.attisdropped
"""
_HIDES_ROWS = """
SELECT row_security_active(c.oid) FROM pg_class AS c
WHERE c.oid = to_regclass(quote_ident(current_schema()) || '.migration_versions')
"""

# A server becomes a worker of a cluster without any change of these catalogs, so of a node counts which one it is. The
# function is there where the extension is, so it can be named in a text alone, and this is what runs a text.
_NODE = """CASE WHEN to_regprocedure('pg_catalog.citus_is_coordinator()') IS NOT NULL THEN hashtext(ts_rewrite('node', '
    SELECT ''node''::pg_catalog.tsquery,
        CASE WHEN pg_catalog.citus_is_coordinator() THEN ''coordinator'' ELSE ''worker'' END::pg_catalog.tsquery
')::text) ELSE 0 END"""

# The mark of the tables asked for: a hash of which catalog rows describe them, for every change of structure writes
# such a row anew (oid and xmin). The rows of pg_class are also written by GRANT, TRUNCATE and CREATE TRIGGER, so of
# them counts what is compared; what is only named in definitions counts by its name. Each catalog more costs some
# 0.1 ms of planning, which is most of what the question takes.
#
# Parameters: quoted schemas, NULL for the default, and quoted tables. One row: the recorded version, the mark, the
# stamps, whether this role and session could write them, and the default schema. Only a history in that schema counts:
# another one of the search_path is that of other tables. The stamps are the comment on the row type of
# migration_versions: read by everybody, gone with the table, and not carried along by a dump, in whose restored rows
# no mark would be true.
_STANDING = """
WITH oids AS (
    -- As one array they are looked up at once, whatever the planner expects.
    SELECT array_agg(to_regclass(coalesce(nspname, quote_ident(current_schema())) || '.' || relname)::oid) AS o
    FROM ROWS FROM (unnest(%s::text[]), unnest(%s::text[])) AS asked (nspname, relname)
), facts AS (
    SELECT 1::bigint AS kind, oid AS object,
            hashtext(relkind::text || relpersistence::text)::bigint << 32 # relnamespace::bigint AS version
        FROM pg_catalog.pg_class WHERE oid = ANY ((SELECT o FROM oids)::oid[])
    UNION ALL
    -- Every table has a composite type too, so only those that a column uses count.
    SELECT 2, attrelid, xmin::text::bigint << 16 | attnum
            # coalesce(hashtext(CASE WHEN atttypid >= 16384 THEN atttypid::regtype::text END), 0)
        FROM pg_catalog.pg_attribute WHERE attrelid = ANY ((SELECT o FROM oids)::oid[]) AND attnum > 0
    UNION ALL
    SELECT 3, indexrelid, i.xmin::text::bigint << 32 # hashtext(concat_ws(' ', relname, relam, reloptions))::bigint
        FROM pg_catalog.pg_index AS i JOIN pg_catalog.pg_class AS c ON c.oid = indexrelid
        WHERE indrelid = ANY ((SELECT o FROM oids)::oid[])
    UNION ALL
    -- Those of partitions come and go with them.
    SELECT 4, oid, xmin::text::bigint << 32 # hashtext(concat_ws(' ', confrelid::regclass::text, ARRAY(
            SELECT attname FROM pg_catalog.pg_attribute
                WHERE attrelid = confrelid AND attnum = ANY (confkey) ORDER BY attnum
        )::text, (
            SELECT count(*) FROM pg_catalog.pg_trigger WHERE tgconstraint = k.oid AND tgenabled = ANY ('{D,R}')
        )))::bigint
        FROM pg_catalog.pg_constraint AS k
        WHERE conrelid = ANY ((SELECT o FROM oids)::oid[]) AND conparentid = 0
    UNION ALL
    SELECT 5, objid, e.xmin::text::bigint << 32 # coalesce(s.xmin::text::bigint, 0) # refobjsubid
        FROM pg_catalog.pg_depend AS e JOIN pg_catalog.pg_sequence AS s ON seqrelid = objid
        WHERE refclassid = 'pg_catalog.pg_class'::regclass AND refobjid = ANY ((SELECT o FROM oids)::oid[])
            AND classid = 'pg_catalog.pg_class'::regclass
    UNION ALL
    -- A default stores sequences, collations and enum labels by number; its text shows their names.
    SELECT 9, oid, xmin::text::bigint << 32 # coalesce(hashtext(
            CASE WHEN strpos(adbin::text, '{VAR ') = 0 THEN pg_get_expr(adbin, 0) END), 0)::bigint
        FROM pg_catalog.pg_attrdef WHERE adrelid = ANY ((SELECT o FROM oids)::oid[])
    UNION ALL
    SELECT 6, oid, hashtext(typname)::bigint # typnamespace::bigint
        FROM pg_catalog.pg_type WHERE oid >= 16384 AND typtype <> 'c' AND typcategory <> 'A'
    UNION ALL
    SELECT 7, oid, hashtext(proname)::bigint # pronamespace::bigint FROM pg_catalog.pg_proc WHERE oid >= 16384
    UNION ALL
    SELECT 8, oid, hashtext(extname) # CASE WHEN extname = 'citus' THEN {node} ELSE 0 END FROM pg_catalog.pg_extension
)
SELECT (SELECT max(version) FROM migration_versions),
    (SELECT concat_ws(' ', current_setting('server_version_num')::int / 10000, current_schema(), count(*),
            sum(hashint8extended(kind << 32 | object::bigint, version)))
        FROM facts),
    (SELECT description FROM pg_catalog.pg_description
        WHERE objoid = reltype AND classoid = 'pg_catalog.pg_type'::regclass AND objsubid = 0),
    pg_has_role(relowner, 'USAGE') AND current_setting('transaction_read_only') = 'off',
    current_schema()::text
FROM pg_catalog.pg_class WHERE oid = to_regclass(quote_ident(current_schema()) || '.migration_versions')
""".replace("{node}", _NODE)
_NEWEST = "(SELECT max(version) FROM migration_versions)"
# Whether a run that changes many rows holds its lock: the number is that of `run_lock`.
_IS_WORKING = """
EXISTS (
    SELECT FROM pg_catalog.pg_locks
    WHERE locktype = 'advisory' AND granted AND objsubid = 1
        AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
        AND (classid::bigint << 32 | objid::bigint) = ('x' || encode(substr(
            sha256(convert_to('whatspire_db rows ' || current_schema(), 'UTF8')), 1, 8), 'hex'))::bit(64)::bigint
)"""


def question(with_rows: bool = False) -> str:
    """Return the question for the row of _STANDING, which fails before it runs code of others."""
    return pinned(_STOP + _standing(with_rows))


def _standing(with_rows: bool) -> str:
    last = "    current_schema()::text\nFROM"
    return _STANDING.replace(last, f"    {_IS_WORKING},\n{last}") if with_rows else _STANDING


def standing_of(row: tuple[Any, ...]) -> Standing:
    """Return what a row of _STANDING says.

    :raises ForeignHistory: when the version is not a number.
    """
    version, mark, text, may_write, *is_working, _ = row
    stamps = Stamps.from_text(text)
    finished = frozenset(stamps.finished if stamps else ())
    return Standing(recorded_version(version), mark, stamps, bool(may_write), finished, any(is_working))


def standing_row(
    db: peewee.PostgresqlDatabase, ask: Callable[[str], Any], limit: str, with_rows: bool
) -> tuple[Any, ...] | None:
    """Return the row of _STANDING; None where there is no history. A history that runs code of others is only copied.

    :param ask: sends a message and returns the first row of its last statement.
    :param limit: a statement to go before, in the same message.
    """
    try:
        row: tuple[Any, ...] | None = ask(limit + question(with_rows))
        return row
    except peewee.DataError as error:
        if sqlstate(error) != DIVISION_BY_ZERO:
            raise
    row = ask(limit + pinned(_standing(with_rows).replace(_NEWEST, "NULL")))
    return (newest(db), *row[1:]) if row else None


def columns(db: peewee.PostgresqlDatabase) -> set[str]:
    """Return the names of the history's columns; none where there is none."""
    return {name for (name,) in execute(db, pinned(_COLUMNS))}


def hides_rows(db: peewee.PostgresqlDatabase) -> bool:
    """Tell whether a policy may have hidden rows of the history."""
    return execute(db, pinned(_HIDES_ROWS)).fetchone() == (True,)


def is_unsafe(db: peewee.PostgresqlDatabase) -> bool:
    """Tell whether a query of the history could run code of another role with rights above that role's."""
    row = execute(db, pinned(_ASK)).fetchone()
    return row is not None and not row[0]


def newest(db: peewee.PostgresqlDatabase) -> int:
    """Return the newest version in a history that is not safe to query; 0 where none can be copied either."""
    return max((recorded_version(version) for (version,) in copied(db, "version")), default=0)


def copied(db: peewee.PostgresqlDatabase, columns: str) -> list[list[str]]:
    """Return columns of the history as texts, by COPY, which plans nothing; none of what is no plain table."""
    import csv  # only for a history that is not safe to query
    import io

    file = io.StringIO()
    try:
        with db.atomic(), peewee_errors:
            _copy(db.cursor(), f"COPY migration_versions ({columns}) TO STDOUT (FORMAT csv)", file)
    except peewee.PeeweeException as error:
        if sqlstate(error) != "42809":  # wrong_object_type: a view, or a partitioned table
            raise
    return list(csv.reader(io.StringIO(file.getvalue())))


def _copy(cursor: Any, sql: str, file: TextIO) -> None:
    if hasattr(cursor, "copy_expert"):
        cursor.copy_expert(sql, file)
        return
    with cursor.copy(sql) as copy:  # psycopg 3
        for data in copy:
            file.write(bytes(data).decode())
