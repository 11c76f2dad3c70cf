"""What a PostgreSQL database holds: tables with rows and fingerprints, and what a restore needs to know besides."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from whatspire_db.backup.manifest import Content, Table
from whatspire_db.errors import BackupFailed
from whatspire_db.messages import first_line
from whatspire_db.sql import SAFE_TO_QUERY

from . import copying as pg_copying
from .properties import database_properties
from .server import Session, session

NO_ROWS = Table(0, "0")  # the fingerprint of nothing
COPIED = "copied "  # before a fingerprint that leaves out generated columns, which COPY does not give
# What belongs to an extension comes with it.
_IS_EXTENSIONS = """EXISTS (
    SELECT FROM pg_catalog.pg_depend AS d
    WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
)"""
_OWN = f"NOT {_IS_EXTENSIONS} AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"

# The hash of an enum's value is another one in each database, so rows of a table that is partitioned by it are restored
# by way of the whole table, into other partitions. 405 is the access method hash.
_WHOLE = """CASE WHEN c.relispartition AND EXISTS (
    SELECT FROM pg_partition_ancestors(c.oid) AS above
    JOIN pg_catalog.pg_partitioned_table AS t ON t.partrelid = above.relid
    JOIN pg_catalog.pg_opclass AS o ON o.oid = ANY (t.partclass) WHERE o.opcmethod = 405 AND o.opcname = 'enum_ops'
) THEN pg_partition_root(c.oid)::regclass::text ELSE '' END"""

# An extension's table has indexes that it does not name, and sessions leave schemas for their temporary tables behind.
_WITHOUT = {
    "pg_class": " AND o.relkind NOT IN ('i', 'I', 't') AND o.relpersistence <> 't'",
    "pg_namespace": " AND o.nspname !~ '^pg_'",
}


def is_users_own(catalog: str) -> str:
    """Return a condition on a row `o` of a catalog: a user's own object, no extension's, nor made with another one.

    Those have an oid from 16384 on.
    """
    return (
        f"o.oid >= 16384{_WITHOUT.get(catalog, '')} AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend AS d "
        f"WHERE d.classid = 'pg_catalog.{catalog}'::regclass AND d.objid = o.oid AND d.deptype IN ('e', 'i'))"
    )


# Of an extension's tables those are data that it declares as its configuration, and of their rows what it says.
_TABLES = f"""
SELECT format('%I.%I', n.nspname, c.relname), coalesce(e.condition, ''), e.oid IS NOT NULL,
    c.relpersistence = 'p' OR NOT pg_is_in_recovery(), {SAFE_TO_QUERY}, {_WHOLE}
FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN (
    SELECT unnest(extconfig) AS oid, unnest(extcondition) AS condition FROM pg_catalog.pg_extension
) AS e ON e.oid = c.oid
WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND (e.oid IS NOT NULL OR {_OWN})
ORDER BY 1
"""
# By name: what a parent got late stands elsewhere in a restored child. A virtual column is in no dump: it is computed
# when it is read, and may fail for a row that is there.
_COLUMNS = """
SELECT quote_ident(attname), attgenerated <> '' FROM pg_catalog.pg_attribute
WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated <> 'v' ORDER BY attname
"""
_HIDDEN = f"""
SELECT format('%I.%I', n.nspname, c.relname)
FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relrowsecurity AND row_security_active(c.oid) AND {_OWN} ORDER BY 1
"""
# In parts, for one value has 1 GB at most, and hexadecimal digits take two bytes for one. 262144 opens for reading.
_LARGE_OBJECTS = """
SELECT count(*) FILTER (WHERE start = 0),
    coalesce(sum(hashtextextended(concat_ws(' ', oid, start, encode(lo_get(oid, start, 1048576), 'hex')), 0)), 0)::text
FROM (
    SELECT oid, lo_lseek64(opened, 0, 2) AS size, opened
    FROM (SELECT oid, lo_open(oid, 262144) AS opened FROM pg_catalog.pg_largeobject_metadata OFFSET 0) AS one OFFSET 0
) AS sized, generate_series(0, greatest(size - 1, 0), 1048576) AS start
WHERE lo_close(opened) = 0
"""
# An extension's sequences are in a dump only where it declares them as its configuration.
_SEQUENCES = f"""
SELECT format('%I.%I', s.schemaname, s.sequencename), s.last_value, s.increment_by
FROM pg_catalog.pg_sequences AS s JOIN pg_catalog.pg_namespace AS n ON n.nspname = s.schemaname
JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid AND c.relname = s.sequencename
WHERE s.last_value IS NOT NULL AND NOT s.cycle
    AND (NOT {_IS_EXTENSIONS} OR c.oid IN (SELECT unnest(extconfig) FROM pg_catalog.pg_extension))
ORDER BY 1
"""
# Those that an extension made, and that no dump holds.
_MADE_WITH_EXTENSIONS = f"""
SELECT format('%I.%I', n.nspname, c.relname)
FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind = 'S' AND {_IS_EXTENSIONS}
    AND c.oid NOT IN (SELECT unnest(extconfig) FROM pg_catalog.pg_extension WHERE extconfig IS NOT NULL)
"""
EXTENSIONS = """
SELECT e.extname, e.extversion, n.nspname
FROM pg_catalog.pg_extension AS e JOIN pg_catalog.pg_namespace AS n ON n.oid = e.extnamespace
WHERE e.extname <> 'plpgsql' ORDER BY 1
"""
_TABLESPACES = """
SELECT DISTINCT t.spcname
FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_tablespace AS t ON t.oid = c.reltablespace
WHERE c.oid >= 16384 ORDER BY 1
"""
_SCHEMAS = """
SELECT n.nspname, r.rolname FROM pg_catalog.pg_namespace AS n JOIN pg_catalog.pg_roles AS r ON r.oid = n.nspowner
WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' ORDER BY 1
"""
# What the first superuser owns is in no catalog of dependencies.
_OWNED = " UNION ".join(
    f"SELECT {owner} FROM pg_catalog.{catalog} AS o WHERE {is_users_own(catalog)}"
    for catalog, owner in {
        "pg_class": "relowner",
        "pg_namespace": "nspowner",
        "pg_proc": "proowner",
        "pg_type": "typowner",
        "pg_largeobject_metadata": "lomowner",
        "pg_collation": "collowner",
        "pg_event_trigger": "evtowner",
        "pg_foreign_data_wrapper": "fdwowner",
        "pg_foreign_server": "srvowner",
        "pg_operator": "oprowner",
        "pg_publication": "pubowner",
        "pg_ts_config": "cfgowner",
        "pg_ts_dict": "dictowner",
    }.items()
)
# What each object's grants are, where they are not those that it was made with by the server or by an extension.
_GRANTS = " UNION ALL ".join(
    f"SELECT 'pg_catalog.{catalog}'::regclass::oid AS catalog, o.oid, 0 AS part, {owner} AS owner, {grants} AS acl "
    f"FROM pg_catalog.{catalog} AS o"
    for catalog, owner, grants in (
        ("pg_class", "relowner", "relacl"),
        ("pg_namespace", "nspowner", "nspacl"),
        ("pg_proc", "proowner", "proacl"),
        ("pg_type", "typowner", "typacl"),
        ("pg_language", "lanowner", "lanacl"),
        ("pg_foreign_data_wrapper", "fdwowner", "fdwacl"),
        ("pg_foreign_server", "srvowner", "srvacl"),
        ("pg_largeobject_metadata", "lomowner", "lomacl"),
        ("pg_default_acl", "defaclrole", "defaclacl"),
    )
)
_ROLES = f"""
WITH changed AS (
    SELECT o.*, o.oid < 16384 OR EXISTS (
        SELECT FROM pg_catalog.pg_depend AS d WHERE d.classid = o.catalog AND d.objid = o.oid AND d.deptype = 'e'
    ) AS is_given, (o.catalog, o.oid) IN (
        SELECT 'pg_catalog.pg_namespace'::regclass::oid, oid FROM pg_catalog.pg_namespace WHERE nspname = 'public'
    ) AS is_public
    FROM (
        {_GRANTS} UNION ALL
        SELECT 'pg_catalog.pg_class'::regclass::oid, c.oid, a.attnum, c.relowner, a.attacl
        FROM pg_catalog.pg_attribute AS a JOIN pg_catalog.pg_class AS c ON c.oid = a.attrelid
    ) AS o
    LEFT JOIN pg_catalog.pg_init_privs AS i ON (i.classoid, i.objoid, i.objsubid) = (o.catalog, o.oid, o.part)
    WHERE o.acl IS NOT NULL AND o.acl IS DISTINCT FROM i.initprivs
        -- the information schema is in no dump, and the server notes no grants that it was made with
        AND (o.oid NOT BETWEEN 12000 AND 16383 OR i.initprivs IS NOT NULL)
), granted AS (
    SELECT c.owner, c.is_given, c.is_public, g.grantor, g.grantee FROM changed AS c, aclexplode(c.acl) AS g
), found (part, role) AS (
    SELECT 'owners', d.refobjid FROM pg_catalog.pg_shdepend AS d
    WHERE d.dbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
        AND d.refclassid = 'pg_catalog.pg_authid'::regclass AND d.deptype = 'o'
        AND d.classid::regclass::text NOT IN ('pg_default_acl', 'pg_extension', 'pg_user_mapping')
        AND NOT EXISTS (
            SELECT FROM pg_catalog.pg_depend AS e
            WHERE (e.classid, e.objid) = (d.classid, d.objid) AND e.deptype = 'e'
        )
    UNION SELECT 'owners', 10 WHERE 10 IN ({_OWNED})
    UNION SELECT 'defaults', defaclrole FROM pg_catalog.pg_default_acl
    UNION SELECT 'grantors', grantor FROM granted WHERE grantor <> owner
    UNION SELECT 'grantors', owner FROM granted
        WHERE is_given AND NOT is_public AND owner IN (SELECT oid FROM pg_catalog.pg_roles WHERE rolsuper)
    UNION SELECT 'grantees', grantee FROM granted WHERE grantee NOT IN (0, owner)
    UNION SELECT 'named', unnest(polroles) FROM pg_catalog.pg_policy
    UNION SELECT 'named', umuser FROM pg_catalog.pg_user_mappings
)
SELECT f.part, r.rolname FROM found AS f JOIN pg_catalog.pg_roles AS r ON r.oid = f.role ORDER BY 1, 2
"""


class Source(NamedTuple):
    """A table with rows of its own that are data."""

    name: str
    condition: str  # a WHERE clause, or nothing
    is_extensions: bool
    is_readable: bool  # unlogged tables are not on a standby: the dump has none of their rows
    is_safe: bool  # a query of it runs no code of its owner with this role's rights
    whole: str = ""  # the partitioned table that its rows are compared with, where they may change partitions

    @property
    def counted_as(self) -> str:
        """The table that a manifest tells its rows of."""
        return self.whole or self.name


def sources_of(reading: Session) -> list[Source]:
    """Return the tables whose rows are a database's own."""
    return [Source(*row) for row in reading.rows(_TABLES)]


def sequences_of(reading: Session) -> dict[str, list[int]]:
    """Return each sequence's last value and step; no snapshot holds for them."""
    return {name: [value, step] for name, value, step in reading.rows(_SEQUENCES)}


def sequences_to_compare(reading: Session, noted: Mapping[str, Any]) -> dict[str, Any]:
    """Return which of the sequences of a manifest a restore brings back; backups made before noted extensions' too."""
    made_anew = {name for (name,) in reading.rows(_MADE_WITH_EXTENSIONS)}
    return {name: value for name, value in noted.items() if name not in made_anew}


@contextmanager
def hashing_for(reading: Session, sources: Sequence[Source]) -> Iterator[Session]:
    """Give a session that computes hashes: another one where tables must be copied, which keeps theirs busy."""
    if all(source.is_safe for source in sources):
        yield reading
        return
    with session(reading.target) as hashing:
        yield hashing


def content_of(
    reading: Session,
    hashing: Session,
    sources: Sequence[Source],
    details: Mapping[str, Any],
    copied: Collection[str] = (),
) -> Content:
    """Read all tables, in the session's snapshot if it has one, and return what the database holds.

    :param hashing: see `hashing_for`.
    :param details: what a manifest tells besides.
    :param copied: tables whose fingerprint leaves out generated columns, to be compared with one that does.
    :raises BackupFailed: when a row is too long to be read as text.
    """
    without = {*copied, *(source.counted_as for source in sources if source.whole and not source.is_safe)}
    tables: dict[str, Table] = {}
    for source in sources:
        table, name = _table(reading, hashing, source, source.counted_as in without), source.counted_as
        tables[name] = _together(tables[name], table) if name in tables else table
    count, fingerprint = reading.rows(_LARGE_OBJECTS)[0]
    if count:
        tables["large objects"] = Table(count, fingerprint)
    extensions = {name: version for name, version, _ in reading.rows(EXTENSIONS)}
    version = reading.value("SELECT current_setting('server_version')").split()[0]
    return Content("postgres", version, _schema_version(reading, sources), tables, extensions, details)


def details_of(reading: Session) -> dict[str, Any]:
    """Return what a restore needs to know besides the tables."""
    return {
        "major": reading.major,
        "tablespaces": [name for (name,) in reading.rows(_TABLESPACES)],
        "schemas": dict(reading.rows(_SCHEMAS)),
        "roles": _roles(reading),
        "database": database_properties(reading, reading.value("SELECT current_database()")),
        "hnsw": reading.value(
            "SELECT EXISTS (SELECT FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_am AS a ON a.oid = c.relam "
            "WHERE c.relkind = 'i' AND a.amname = 'hnsw')"
        ),
    }


def _roles(reading: Session) -> dict[str, list[str]]:
    """Return the roles that a restore needs, by what it needs them for."""
    found: dict[str, list[str]] = {}
    for part, role in reading.rows(_ROLES):
        found.setdefault(part, []).append(role)
    return found


def hidden_from(reading: Session) -> list[str]:
    """Return the tables of which row-level security may hide rows from the session's role."""
    return [name for (name,) in reading.rows(_HIDDEN)]


def owners_in(reading: Session) -> list[str]:
    """Return the roles that own something in a database."""
    return _roles(reading).get("owners", [])


def _table(reading: Session, hashing: Session, source: Source, leaves_out: bool) -> Table:
    import psycopg2

    if not source.is_readable:
        return NO_ROWS
    columns = reading.rows(_COLUMNS, source.name)
    stored = [name for name, generated in columns if not generated]
    # Only tables with generated columns have two fingerprints.
    prefix = COPIED if len(stored) < len(columns) and (leaves_out or not source.is_safe) else ""
    try:
        if source.is_safe:
            rows, fingerprint = _queried(reading, source, stored if prefix else [name for name, _ in columns])
        else:
            _require_copyable(source)
            rows, fingerprint = pg_copying.fingerprint(reading, hashing, source.name, stored)
    except (psycopg2.errors.ProgramLimitExceeded, psycopg2.errors.InternalError_) as error:
        fact = f"table {source.name} cannot be read: {first_line(error)}"
        raise BackupFailed(fact, "a row must not take more than 1 GB as text; bytea takes two bytes for one") from None
    return Table(rows, prefix + fingerprint)


def _together(one: Table, other: Table) -> Table:
    """Return the rows of two partitions: a fingerprint is a sum."""
    prefix = COPIED if one.fingerprint.startswith(COPIED) else ""
    total = sum(int(table.fingerprint.removeprefix(COPIED)) for table in (one, other))
    return Table(one.rows + other.rows, f"{prefix}{total}")


def _queried(reading: Session, source: Source, columns: Sequence[str]) -> tuple[int, str]:
    listed = ", ".join(f"one.{name}" for name in columns)
    asked = f"coalesce(sum(hashtextextended(ROW({listed})::text, 0)), 0)::text"
    rows_of = f"(SELECT * FROM ONLY {source.name} {source.condition}) AS one"
    rows, fingerprint = reading.rows(f"SELECT count(*), {asked} FROM {rows_of}")[0]
    return rows, fingerprint


def _require_copyable(source: Source) -> None:
    if source.condition:
        raise BackupFailed(
            f"table {source.name} of an extension belongs to a role whose code a superuser would run by reading it",
            "make the backup as that role, or give the table to a superuser",
        )


def _schema_version(reading: Session, sources: Sequence[Source]) -> int:
    for source in (source for source in sources if source.is_readable):
        if source.name.rpartition(".")[2] == "migration_versions":
            columns = reading.value(
                "SELECT count(*) FROM pg_catalog.pg_attribute WHERE attrelid = %s::regclass AND attname = 'version' "
                "AND atttypid IN (20, 23) AND (attgenerated = '' OR %s)",
                source.name,
                source.is_safe,
            )
            if not columns:
                return 0
            if not source.is_safe:
                return pg_copying.newest(reading, source.name)
            return int(reading.value(f"SELECT max(version) FROM {source.name}") or 0)
    return 0
