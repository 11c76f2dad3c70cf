"""PostgreSQL: pg_dump with fingerprints of its own snapshot; a restore beside the database, and a swap by rename."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ..dsn import PostgresTarget
from ..errors import (
    BackupFailed,
    BackupInvalid,
    NothingToBackUp,
    TargetRefused,
    VersionMismatch,
    WhatspireDBError,
)
from . import pg_tools
from .archive import Backup, Content, Progress, Table, differences, silent
from .durable import new_file, undisturbed
from .pg_server import (
    RESTORING,
    Session,
    alone,
    apply_properties,
    database_of,
    database_properties,
    drop,
    end_restoring,
    maintenance,
    may_act_for,
    old_name,
    quoted,
    rename,
    replaced,
    require_direct,
    scratch,
    session,
    swap,
)

logger = logging.getLogger("whatspire_db.backup")

SUFFIX = ".dump"
MAGIC = b"PGDMP"
NO_ROWS = Table(0, "0")  # the fingerprint of nothing
LEVELS = {"none": "0", "gzip": "1", "zstd": "zstd:3"}
# What belongs to an extension comes with it.
_OWN = """
NOT EXISTS (
    SELECT FROM pg_catalog.pg_depend AS d
    WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
) AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
"""
# Of an extension's tables those are data that it declares as its configuration, and of their rows what it says.
_TABLES = f"""
SELECT format('%I.%I', n.nspname, c.relname), coalesce(e.condition, ''), e.oid IS NOT NULL,
    c.relpersistence = 'p' OR NOT pg_is_in_recovery()
FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN (
    SELECT unnest(extconfig) AS oid, unnest(extcondition) AS condition FROM pg_catalog.pg_extension
) AS e ON e.oid = c.oid
WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND (e.oid IS NOT NULL OR {_OWN})
ORDER BY 1
"""
_ANY_LARGE_OBJECT = "SELECT EXISTS (SELECT FROM pg_catalog.pg_largeobject_metadata)"
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
# An extension's table has indexes that it does not name, and sessions leave schemas for their temporary tables behind.
_WITHOUT = {
    "pg_class": " AND o.relkind NOT IN ('i', 'I', 't') AND o.relpersistence <> 't'",
    "pg_namespace": " AND o.nspname !~ '^pg_'",
}


def _own(catalog: str) -> str:
    """Return a condition on a row `o` of a catalog: a user's own object, no extension's, nor made with another one.

    Those have an oid from 16384 on.
    """
    return (
        f"o.oid >= 16384{_WITHOUT.get(catalog, '')} AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend AS d "
        f"WHERE d.classid = 'pg_catalog.{catalog}'::regclass AND d.objid = o.oid AND d.deptype IN ('e', 'i'))"
    )


_ANY_OBJECT = " OR ".join(
    f"EXISTS (SELECT FROM pg_catalog.{catalog} AS o WHERE {_own(catalog)}"
    # The first is there always, and others hold extensions.
    + (
        " AND o.nspname <> 'public' AND o.oid NOT IN (SELECT extnamespace FROM pg_catalog.pg_extension))"
        if catalog == "pg_namespace"
        else ")"
    )
    for catalog in _KINDS
)
_ANY_OBJECT = f"SELECT {_ANY_OBJECT} OR ({_ANY_LARGE_OBJECT})"
_SEQUENCES = """
SELECT format('%I.%I', schemaname, sequencename), last_value, increment_by
FROM pg_catalog.pg_sequences WHERE last_value IS NOT NULL AND NOT cycle ORDER BY 1
"""
_EXTENSIONS = """
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
    f"SELECT {owner} FROM pg_catalog.{catalog} AS o WHERE {_own(catalog)}"
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


class _Source(NamedTuple):
    """A table with rows of its own that are data."""

    name: str
    condition: str  # a WHERE clause, or nothing
    is_extensions: bool
    is_readable: bool  # unlogged tables are not on a standby: the dump has none of their rows


def source_of(target: PostgresTarget) -> str:
    """Return what tells a database from those of its name on other servers."""
    with session(target) as asked:
        system, name = asked.rows("SELECT system_identifier, current_database() FROM pg_catalog.pg_control_system()")[0]
    return f"postgres {system} {name}"


# Making


def dump(target: PostgresTarget, draft: Path, method: str, wait: float, progress: Progress) -> Content:
    """Write a dump in the custom format into a file that is there, while others write; return what it holds.

    The fingerprints are of the very snapshot that pg_dump reads
    (https://www.postgresql.org/docs/current/functions-admin.html, pg_export_snapshot).

    :param wait: seconds to wait for others' locks.
    """
    with session(target) as reading:
        target = reading.pinned(target)
        tool = pg_tools.find("pg_dump", reading.major, "the server")
        pg_tools.require_taken(tool, reading.major, pg_tools.how_to_get("pg_dump", reading.major))
        reading.rows("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        reading.rows(f"SET LOCAL lock_timeout = {int(wait * 1000)}")
        sources = _sources(reading)
        if _is_empty(reading):
            raise NothingToBackUp(
                f"database {database_of(target)} holds nothing to back up", "migrate it first, or check the DSN"
            )
        for other in replaced(reading, reading.value("SELECT current_database()")):
            logger.warning("database %s holds what a restore replaced: drop it when nothing of it is needed", other)
        if sources and reading.value("SELECT NOT pg_is_in_recovery()"):
            names = ", ONLY ".join(source.name for source in sources)
            reading.rows(f"LOCK TABLE ONLY {names} IN ACCESS SHARE MODE")
        (size,) = reading.rows("SELECT pg_database_size(current_database())")[0]
        arguments = [
            "--format=custom",
            f"--compress={LEVELS[method]}",
            f"--snapshot={reading.value('SELECT pg_export_snapshot()')}",
            f"--lock-wait-timeout={int(wait * 1000)}",
            f"--file={draft}",
            _encoding(reading),
        ]
        if reading.value("SELECT pg_is_in_recovery()"):
            arguments.append("--no-unlogged-table-data")
        # No snapshot holds for sequences: the dump's must not be behind these.
        sequences = _sequences(reading)
        with _beside(reading, lambda: _content(reading, sources, tool, sequences)) as content:
            pg_tools.run(tool, arguments, target, lambda: progress("dumping", draft.stat().st_size, size))
            found = content()
        reading.rows("ROLLBACK")
    check(draft, tool.major, progress)
    return found


@contextmanager
def _beside(reading: Session, work: Callable[[], Content]) -> Iterator[Callable[[], Content]]:
    """Run what a session reads in a thread during the block; what is given returns its result, or raises its error.

    When the block fails, nobody waits for the rest; when it failed because the session did, that error is raised.
    """
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        try:
            yield future.result
        except BaseException as error:
            first = future.exception() if future.done() else None
            reading.cancel(future)
            if first is not None and isinstance(error, BackupFailed):
                raise first from None
            raise


def _quiet(asked: Session, target: PostgresTarget) -> PostgresTarget:
    """Return a target whose sessions fire no triggers by beginning, which may write; where this role may have it so."""
    if asked.major < 17 or not asked.value("SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user"):
        return target
    options = f"{target.arguments.get('options', '')} -c event_triggers=off".strip()
    return PostgresTarget({**target.arguments, "options": options})


def _encoding(asked: Session) -> str:
    """Return pg_dump's option for the database's own encoding: its settings may name one that does not hold it all."""
    return f"--encoding={asked.value('SHOW server_encoding')}"


def _sources(reading: Session) -> list[_Source]:
    return [_Source(*row) for row in reading.rows(_TABLES)]


def _sequences(reading: Session) -> dict[str, list[int]]:
    return {name: [value, step] for name, value, step in reading.rows(_SEQUENCES)}


def _content(
    reading: Session, sources: Sequence[_Source], tool: pg_tools.Tool, sequences: Mapping[str, list[int]]
) -> Content:
    tables = {source.name: _table(reading, source) for source in sources}
    count, fingerprint = reading.rows(_LARGE_OBJECTS)[0]
    if count:
        tables["large objects"] = Table(count, fingerprint)
    extensions = reading.rows(_EXTENSIONS)
    details = {
        "major": reading.major,
        "dumped_by": tool.major,
        "sequences": sequences,
        "tablespaces": [name for (name,) in reading.rows(_TABLESPACES)],
        "schemas": dict(reading.rows(_SCHEMAS)),
        "roles": _roles(reading),
        "database": database_properties(reading, reading.value("SELECT current_database()")),
        "hnsw": reading.value(
            "SELECT EXISTS (SELECT FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_am AS a ON a.oid = c.relam "
            "WHERE c.relkind = 'i' AND a.amname = 'hnsw')"
        ),
    }
    version = reading.value("SELECT current_setting('server_version')").split()[0]
    return Content(
        "postgres", version, _schema_version(reading, sources), tables, {n: v for n, v, _ in extensions}, details
    )


def _roles(reading: Session) -> dict[str, list[str]]:
    """Return the roles that a restore needs, by what it needs them for."""
    found: dict[str, list[str]] = {}
    for part, role in reading.rows(_ROLES):
        found.setdefault(part, []).append(role)
    return found


def _table(reading: Session, source: _Source) -> Table:
    import psycopg2

    if not source.is_readable:
        return NO_ROWS
    # By name: what a parent got late stands elsewhere in a restored child.
    columns = reading.value(
        "SELECT coalesce(string_agg(format('one.%%I', attname), ', ' ORDER BY attname), '') "
        "FROM pg_catalog.pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped",
        source.name,
    )
    asked = f"coalesce(sum(hashtextextended(ROW({columns})::text, 0)), 0)::text"
    rows_of = f"(SELECT * FROM ONLY {source.name} {source.condition}) AS one"
    try:
        rows, fingerprint = reading.rows(f"SELECT count(*), {asked} FROM {rows_of}")[0]
    except (psycopg2.errors.ProgramLimitExceeded, psycopg2.errors.InternalError_) as error:
        fact = f"table {source.name} cannot be read: {' '.join(str(error).split())}"
        raise BackupFailed(fact, "a row must not take more than 1 GB as text; bytea takes two bytes for one") from None
    return Table(rows, fingerprint)


def _schema_version(reading: Session, sources: Sequence[_Source]) -> int:
    for name in (source.name for source in sources if source.is_readable):
        if name.rpartition(".")[2] == "migration_versions":
            columns = reading.value(
                "SELECT count(*) FROM pg_catalog.pg_attribute WHERE attrelid = %s::regclass AND attname = 'version' "
                "AND atttypid IN (20, 23)",
                name,
            )
            return int(reading.value(f"SELECT max(version) FROM {name}") or 0) if columns else 0
    return 0


# Verifying


def check(file: Path, dumped_by: int, progress: Progress = silent) -> None:
    """Read a dump to its end.

    :param dumped_by: the major version of the program that made it.
    :raises BackupInvalid: when it is none, or damaged.
    """
    with file.open("rb") as raw:
        if raw.read(len(MAGIC)) != MAGIC:
            raise BackupInvalid(f"{file.name} is not a dump in PostgreSQL's custom format", "take another backup")
    progress("reading the dump", 0, 0)
    tool = pg_tools.find("pg_restore", dumped_by, "the dump")
    try:
        pg_tools.run(tool, ["--file=/dev/null", str(file)], None)
    except BackupFailed as error:
        raise BackupInvalid(f"{file.name} is damaged: {error.fact}", "take another backup") from None


def test_restore(target: PostgresTarget, file: Path, content: Content, work: Path, progress: Progress) -> list[str]:
    """Restore a dump into a scratch database of the server and return in what that differs."""
    with maintenance(target) as admin:
        require_direct(admin)
        target = admin.pinned(target)
        require_fitting(admin, content)
        with scratch(admin, content.details["database"], _template(admin, target, content)) as name:
            fill(target.to(name), file, content, work, progress)
            return compared(_quiet(admin, target.to(name)), content)


def _template(admin: Session, target: PostgresTarget, content: Content) -> str:
    """Return what a scratch database is copied from: where this role may not make extensions, what holds them."""
    if not content.extensions or admin.value("SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user"):
        return "template0"
    with session(target.to("template1")) as template:
        there = {name for name, _, _ in template.rows(_EXTENSIONS)}
        fits = there >= content.extensions.keys() and _is_empty(template)
    return "template1" if fits else "template0"


def require_fitting(admin: Session, content: Content) -> None:
    """Refuse a backup of a later server than this one, or one that cannot be restored here.

    :raises VersionMismatch: when it is, or when it holds an extension that is not to be had here in its version.
    :raises TargetRefused: when a role is missing that it names otherwise than as an owner or grantee.
    """
    major = content.details["major"]
    if major > admin.major:
        raise VersionMismatch(
            f"the backup is of PostgreSQL {major}, and this server is of version {admin.major}",
            f"restore it on a server of version {major} or later",
        )
    available = dict(admin.rows("SELECT name, default_version FROM pg_catalog.pg_available_extensions"))
    for name, version in content.extensions.items():
        if name not in available:
            raise VersionMismatch(
                f"the backup holds the extension {name} {version}, which this server does not have",
                f"install it on the server: {name} {version} or later",
            )
        if _numbers(available[name]) < _numbers(version):
            raise VersionMismatch(
                f"the backup holds the extension {name} {version}, and this server has {available[name]}",
                f"install {name} {version} or later on the server",
            )

    _require_named_roles(admin, content.details["roles"])


def _require_named_roles(admin: Session, roles: Mapping[str, Sequence[str]]) -> None:
    named = roles.get("named", ())
    if missing := sorted(set(named) - may_act_for(admin, named).keys()):
        raise TargetRefused(
            f"policies or user mappings of the backup name roles that are not there: {', '.join(missing)}",
            "; ".join(f"CREATE ROLE {quoted(name)}" for name in missing)
            + "; or drop what names them, and make another backup",
        )


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def compared(target: PostgresTarget, content: Content) -> list[str]:
    """Return in what a database differs from a backup's content."""
    with session(target) as reading:
        # A later version of an extension may have more of them.
        sources = [one for one in _sources(reading) if not one.is_extensions or one.name in content.tables]
        found = _content(reading, sources, pg_tools.Tool("", 0), _sequences(reading))
    return differences(
        replace(content, details=_compared_details(content)), replace(found, details=_compared_details(found))
    )


def _compared_details(content: Content) -> dict[str, Any]:
    return {"sequences": content.details["sequences"]}


def fill(target: PostgresTarget, file: Path, content: Content, work: Path, progress: Progress) -> None:
    """Restore a dump into an empty database, in one transaction, and analyze it."""
    with session(target) as filling:
        least = max(content.details["dumped_by"], filling.major)
        tool = pg_tools.find("pg_restore", least, "the dump or the server")
        later = least > filling.major
        hint = f"restore it on a server of version {least}" if later else pg_tools.how_to_get("pg_restore", least)
        pg_tools.require_taken(tool, filling.major, hint)
        entries = work / "entries"
        listing = _entries(tool, file, filling, content.details["schemas"])
        entries.write_text(listing, encoding="utf-8", errors="surrogateescape")
        arguments = ["--single-transaction", "--exit-on-error", f"--use-list={entries}"]
        arguments += _left_to_roles(filling, content.details["roles"])
        arguments += _left_to_tablespaces(filling, content.details["tablespaces"])
        target = PostgresTarget({**target.arguments, "application_name": RESTORING})
        options = []
        if content.details["hnsw"]:
            # In little memory a graph takes four times as long; in parallel it wants shared memory, of which
            # containers have little.
            options.append("-c maintenance_work_mem=1GB -c max_parallel_maintenance_workers=0")
        options += [target.arguments["options"]] if "options" in target.arguments else []
        options.append("-c default_transaction_read_only=off")  # the last one counts
        target = PostgresTarget({**target.arguments, "options": " ".join(options)})

        def tick() -> None:
            progress("restoring", filling.value("SELECT pg_database_size(current_database())"), 0)

        try:
            pg_tools.run(tool, [*arguments, str(file)], target, tick)
        except BackupFailed as error:
            raise _restore_failed(error) from None
        progress("analyzing", 0, 0)
        filling.rows("ANALYZE")


def _entries(tool: pg_tools.Tool, file: Path, filling: Session, owners: Mapping[str, str]) -> str:
    """Return what of a dump is to be restored: all but the extensions that are there, and their schemas.

    :param owners: of the backup's schemas.
    """
    left_out = []
    for name, _, schema in filling.rows(_EXTENSIONS):
        owner = re.escape(owners[schema]) if schema in owners else r"\S*"
        left_out += [f"(?:EXTENSION -|COMMENT - EXTENSION) {re.escape(name)} ", f"SCHEMA - {re.escape(schema)} {owner}"]
    left_out += _left_of_public(filling, owners.get("public"))
    matched = re.compile(rf"\d+; \d+ \d+ (?:{'|'.join(left_out) or '(?!)'})")
    listing = pg_tools.run(tool, ["--list", str(file)], None)
    return "".join(f"{line}\n" for line in listing.splitlines() if not matched.fullmatch(line))


def _left_of_public(asked: Session, owner: str | None) -> list[str]:
    """Return the entries for owner and grants of the schema public that this role cannot restore.

    It is there in any database; where a server before 15 made it, it is the first superuser's.
    """
    if owner in (None, "pg_database_owner") or may_act_for(asked, [owner]).get(owner):
        return []
    logger.warning("the schema public is left as it is made: this role may not act for %s, who owned it", owner)
    return [f"(?:SCHEMA -|ACL - SCHEMA) public {re.escape(owner)}"]


def _left_to_roles(asked: Session, needed: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the options that leave out what this role cannot restore, or names roles that are not there.

    :param needed: by what for.
    """
    roles = may_act_for(asked, {name for names in needed.values() for name in names})
    is_super, current = asked.rows("SELECT rolsuper, rolname FROM pg_catalog.pg_roles WHERE rolname = current_user")[0]
    usable = {name for name, may in roles.items() if may}
    if not usable.issuperset(needed.get("owners", ())):
        logger.warning("all that is restored belongs to this role, without grants: it may not act for all who owned it")
        return ["--no-owner", "--no-privileges"]
    missing = {name for names in needed.values() for name in names if name not in roles}
    if missing:
        logger.warning("grants are left out: there is no role %s", ", ".join(sorted(missing)))
        return ["--no-privileges"]
    # What another one than the owner granted is granted again in its name, which superusers alone can take.
    others = {name for name in needed.get("defaults", ()) if name not in usable}
    others |= {name for name in needed.get("grantors", ()) if not is_super and name != current}
    if others:
        logger.warning("grants are left out: this role may not grant in the name of %s", ", ".join(sorted(others)))
        return ["--no-privileges"]
    return []


def _left_to_tablespaces(asked: Session, needed: Sequence[str]) -> list[str]:
    """Return the option that leaves tablespaces out, where some are not there, or this role may not use them."""
    usable = asked.rows(
        "SELECT spcname FROM pg_catalog.pg_tablespace "
        "WHERE spcname = ANY(%s) AND has_tablespace_privilege(oid, 'CREATE')",
        list(needed),
    )
    missing = sorted(set(needed) - {name for (name,) in usable})
    if not missing:
        return []
    logger.warning("all is restored in the database's own tablespace: there is none, or no right to %s", missing[0])
    return ["--no-tablespaces"]


def _restore_failed(error: BackupFailed) -> BackupFailed:
    extension = re.search(r'permission denied to create extension "?([^" ]+)', error.fact)
    if not extension:
        return error
    return BackupFailed(
        f"this role may not create the extension {extension[1]}",
        f"let a superuser run CREATE EXTENSION {extension[1]} in template1, or in an empty database to restore --to; "
        "or restore with a superuser",
    )


# Restoring


@dataclass(frozen=True)
class Outcome:
    """What a restore did besides: the backup of what was there, and the database that still holds it."""

    safety: Backup | None = None
    kept_database: str | None = None


def restore(
    target: PostgresTarget,
    file: Path,
    content: Content,
    *,
    force: bool,
    keep: Callable[[], Backup] | None,
    work: Path,
    progress: Progress,
    wait: float = 0,
) -> Outcome:
    """Bring a database to what a dump holds: made beside it, compared, and swapped for it by rename.

    :param target: names the database; it is made where there is none.
    :param keep: makes a backup of what is about to be replaced; None where that was not wanted.
    :param wait: seconds to wait for others' locks; 0 for ever.
    :raises TargetRefused: when there is data without `force`, or others cannot be sent away.
    """
    done: list[Outcome] = []
    made: list[Backup] = []

    def kept(given: Callable[[], Backup]) -> Backup:
        made.append(given())
        return made[0]

    try:
        _restore(
            target,
            file,
            content,
            done,
            force=force,
            keep=partial(kept, keep) if keep else None,
            work=work,
            progress=progress,
            wait=wait,
        )
    except KeyboardInterrupt:
        if not done:
            raise
        logger.warning("the restore was done when the interrupt came: what it put aside, if anything, is kept")
    except WhatspireDBError as error:
        if made:
            error.hint += f"; what is there is in the backup {made[0].file}"
        raise
    return done[-1]


def _restore(
    target: PostgresTarget,
    file: Path,
    content: Content,
    done: list[Outcome],
    *,
    force: bool,
    keep: Callable[[], Backup] | None,
    work: Path,
    progress: Progress,
    wait: float,
) -> None:
    """Do the work of `restore`, and put into `done` what holds as soon as the database is the new one."""
    name = target.arguments["dbname"]
    with maintenance(target, name) as admin, alone(admin, name):
        target = admin.pinned(target)
        require_fitting(admin, content)
        quiet = _quiet(admin, target)
        properties = database_properties(admin, name)
        if properties is not None and _is_empty_at(quiet):
            with _told_if_filled(admin, quiet):
                fill(target, file, content, work, progress)
                _require_same(quiet, content, "drop the database and restore again")
                done.append(Outcome())
            return
        holds_rows = properties is not None and _holds_rows(quiet, wait)
        if holds_rows and not force:
            raise TargetRefused(f"database {name} holds data", "--force makes a backup of it, and replaces it")
        likeness = properties or content.details["database"]
        with scratch(admin, likeness, _template(admin, target, content)) as new:
            apply_properties(admin, new, likeness, on_trial=True)  # better refused now than when all is done
            fill(target.to(new), file, content, work, progress)
            _require_same(quiet.to(new), content, "nothing was changed")
            if properties is None:
                apply_properties(admin, new, likeness)
                with undisturbed():
                    rename(admin, new, name)
                    done.append(Outcome())
                return
            safety = keep() if keep else None
            properties = database_properties(admin, name) or properties  # others may have changed them meanwhile
            apply_properties(admin, new, properties)
            old = old_name(admin, name, datetime.now(timezone.utc))
            progress("swapping", 0, 0)
            with undisturbed():
                swap(admin, target, new, name, old, wait)
                done.append(Outcome(safety, old))
        with suppress(Exception):  # the restore is done: what cannot be looked at, or dropped, is kept and told
            same = database_properties(admin, old) == properties
            if safety is None or (same and _is_saved(quiet.to(old), safety, work)):
                with undisturbed():
                    drop(admin, old)
                    done.append(Outcome(safety))


@contextmanager
def _told_if_filled(admin: Session, target: PostgresTarget) -> Iterator[None]:
    """Have an interrupt of the block tell so, where a database that was empty before is filled by then."""
    try:
        yield
    except KeyboardInterrupt:
        name = target.arguments["dbname"]
        with undisturbed():
            end_restoring(admin, name)  # else it could commit after the look at what it did
            if _is_empty_at(target):
                raise
        raise KeyboardInterrupt(
            f"interrupted when database {name}, which was empty, had been filled from the backup",
            "that was neither compared nor analyzed: drop the database and restore again",
        ) from None


def _require_same(target: PostgresTarget, content: Content, hint: str) -> None:
    if lines := compared(target, content):
        raise BackupFailed(f"what was restored differs: {lines[0]}", hint)


def _is_saved(old: PostgresTarget, safety: Backup, work: Path) -> bool:
    """Tell whether a database that was replaced holds nothing that was written, or made, after its backup."""
    if compared(old, safety.manifest.content):
        return False
    with session(old) as asked:
        tool = pg_tools.find("pg_dump", asked.major, "the server")
        encoding = _encoding(asked)
    now = new_file(work / "schema")
    pg_tools.run(tool, ["--format=custom", "--schema-only", f"--file={now}", encoding], old)
    return _schema(now, tool.major) == _schema(safety.file, tool.major)


def _schema(file: Path, dumped_by: int) -> list[str]:
    """Return the statements of a dump that make what holds no data, in an order of their own."""
    tool = pg_tools.find("pg_restore", dumped_by, "the dump")
    text = pg_tools.run(tool, ["--schema-only", "--file=-", str(file)], None)
    # The key of these lines is another one in each run.
    parts = re.split(r"\n--\n(?=-- (?:Name: |PostgreSQL ))", re.sub(r"(?m)^\\(un)?restrict .*$", "", text))
    return sorted(part for part in parts if "; Type: MATERIALIZED VIEW DATA; " not in part.partition("\n")[0])


def _is_empty(asked: Session) -> bool:
    """Tell whether there is nothing that anybody made, but for extensions without data."""
    extensions = (source for source in _sources(asked) if source.is_extensions)
    return not asked.value(_ANY_OBJECT) and not any(_has_rows(asked, source) for source in extensions)


def _is_empty_at(target: PostgresTarget) -> bool:
    with session(target) as asked:
        return _is_empty(asked)


def _holds_rows(target: PostgresTarget, wait: float) -> bool:
    """Tell whether any table has a row, but for the migrator's own, or there is a large object."""
    with session(target) as asked:
        asked.rows(f"SET lock_timeout = {int(wait * 1000)}")
        if asked.value(_ANY_LARGE_OBJECT):
            return True
        sources = [one for one in _sources(asked) if one.name.rpartition(".")[2] != "migration_versions"]
        return any(_has_rows(asked, source) for source in sources)


def _has_rows(asked: Session, source: _Source) -> bool:
    return source.is_readable and asked.value(f"SELECT EXISTS (SELECT FROM ONLY {source.name} {source.condition})")
