"""PostgreSQL: code of other roles that a superuser would run by changing a schema."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

import peewee

from whatspire_db.errors import ScratchUnavailable, WhatspireDBError
from whatspire_db.light_stdlib import dataclass
from whatspire_db.migrate.ddl import execute
from whatspire_db.sql import pinned

HINT = (
    "run it as the role that owns them; or give --trust-source (in Python trust_source=True), if you trust whoever can "
    "make objects there"
)

# Whether there is anything at all of what _STRANGERS looks for: in a database of superusers alone this is much cheaper.
# A setting of the database can give a session another role, and what runs in it can take that back.
_MEETS_STRANGERS = pinned("""
SELECT bool_or(rolsuper) AND EXISTS (
    SELECT FROM (
        SELECT proowner FROM pg_proc UNION ALL SELECT oprowner FROM pg_operator
        UNION ALL SELECT typowner FROM pg_type UNION ALL SELECT relowner FROM pg_class
    ) AS found (owner) WHERE owner <> ALL (ARRAY(SELECT oid FROM pg_roles WHERE rolsuper)))
FROM pg_roles WHERE rolname = current_user::text OR rolname = session_user::text
""")
# What names in a model can mean: functions, operators and domains of the schemas in the search_path, and of those that
# the models name; casts, wherever their functions are. What statements on a table run by themselves: the code of its
# owner, triggers, and functions in its indexes, constraints, defaults and domains, wherever they are; of its partitions
# and heirs too. Types, operator classes and languages with code of their own are made by superusers alone.
#
# Rows that go or change with those that they refer to run triggers as the user of the statement; since PostgreSQL 18
# as the owner of their table.
#
# Parameters: the models' words, their tables, and whether rows of these change. One row an object: its kind, its bare
# and its full name, and its owner.
_STRANGERS = pinned("""
WITH RECURSIVE strangers AS (
    SELECT oid, rolname FROM pg_roles WHERE NOT rolsuper
), reached AS (
    SELECT oid, nspname FROM pg_namespace WHERE nspname = ANY (current_schemas(true)) OR nspname = ANY (%s::name[])
), tables AS (
    SELECT to_regclass(t)::oid AS oid FROM unnest(%s::text[]) AS t
    UNION
    SELECT r.oid FROM tables AS t, LATERAL (
        SELECT inhrelid FROM pg_inherits WHERE inhparent = t.oid
        UNION ALL
        SELECT conrelid FROM pg_constraint WHERE %s AND contype = 'f' AND confrelid = t.oid
            AND (confdeltype = ANY ('{c,n,d}') OR confupdtype = ANY ('{c,n,d}'))
            AND current_setting('server_version_num')::int < 180000
    ) AS r (oid)
), parts AS (
    SELECT d.classid, d.objid FROM pg_depend AS d JOIN tables AS t ON d.refobjid = t.oid
        WHERE d.refclassid = 'pg_class'::regclass
    UNION ALL
    SELECT 'pg_constraint'::regclass, k.oid FROM pg_attribute AS a JOIN tables AS t ON t.oid = a.attrelid
        JOIN pg_constraint AS k ON k.contypid = a.atttypid
), attached AS (
    SELECT DISTINCT d.refobjid AS oid FROM pg_depend AS d JOIN parts AS p ON p.classid = d.classid AND p.objid = d.objid
        WHERE d.refclassid = 'pg_proc'::regclass
)
SELECT 'attached function', p.proname, p.oid::regprocedure::text, s.rolname
    FROM pg_proc AS p JOIN attached AS a ON a.oid = p.oid JOIN strangers AS s ON s.oid = p.proowner
UNION ALL
SELECT 'function', p.proname, format('%%I.%%I(%%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid)),
        s.rolname
    FROM pg_proc AS p JOIN reached AS n ON n.oid = p.pronamespace JOIN strangers AS s ON s.oid = p.proowner
UNION ALL
SELECT 'operator', o.oprname, o.oid::regoperator::text, s.rolname
    FROM pg_operator AS o JOIN reached AS n ON n.oid = o.oprnamespace JOIN strangers AS s ON s.oid = o.oprowner
UNION ALL
SELECT 'domain', t.typname, format('%%I.%%I', n.nspname, t.typname), s.rolname
    FROM pg_type AS t JOIN reached AS n ON n.oid = t.typnamespace JOIN strangers AS s ON s.oid = t.typowner
    WHERE t.typtype = 'd'
UNION ALL
SELECT 'cast', p.proname, format('%%s to %%s', format_type(c.castsource, NULL), format_type(c.casttarget, NULL)),
        s.rolname
    FROM pg_cast AS c JOIN pg_proc AS p ON p.oid = c.castfunc JOIN strangers AS s ON s.oid = p.proowner
UNION ALL
SELECT 'table', c.relname, format('%%I.%%I', n.nspname, c.relname), s.rolname
    FROM pg_class AS c JOIN tables AS t ON t.oid = c.oid JOIN strangers AS s ON s.oid = c.relowner
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
UNION ALL
SELECT 'trigger', g.tgname, format('%%I on %%I', g.tgname, c.relname), s.rolname
    FROM pg_trigger AS g JOIN tables AS t ON t.oid = g.tgrelid JOIN pg_class AS c ON c.oid = g.tgrelid
    JOIN pg_proc AS p ON p.oid = g.tgfoid JOIN strangers AS s ON s.oid = p.proowner
ORDER BY 1, 3
""")

OF_ROWS = ("table", "trigger", "attached function")  # what a change of a table's rows runs by itself


@dataclass(frozen=True)
class Stranger:
    """An object of a role that is no superuser, whose code a superuser could run."""

    kind: str
    name: str
    full_name: str
    owner: str

    def __str__(self) -> str:
        return f"{self.kind} {self.full_name} of {self.owner}"

    def is_meant_by(self, words: Collection[str]) -> bool:
        """Tell whether models of these words can mean it while their tables are only created."""
        return self.kind in ("operator", "cast") or (self.kind in ("function", "domain") and self.name in words)


def words_of(text: str) -> set[str]:
    """Return every name that the text of models can mean."""
    found = set(re.findall(r"\w+", text))
    return found | {word.lower() for word in found}


def strangers(
    db: peewee.PostgresqlDatabase, words: Collection[str], tables: Sequence[str], of_rows: bool = False
) -> list[Stranger]:
    """Return what a superuser could run of other roles by a change of these tables; nothing for any other role.

    :param words: every name that the models can mean.
    :param tables: the quoted tables that the change is about.
    :param of_rows: whether rows change, and with them rows of others that refer to them.
    """
    if not execute(db, _MEETS_STRANGERS).fetchone()[0]:
        return []
    found = execute(db, _STRANGERS, [sorted(words), list(tables), of_rows]).fetchall()
    return [Stranger(*row) for row in found]


def named(found: Sequence[Stranger], most: int = 3) -> str:
    """Name the first of them, for a message."""
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(map(str, found[:most])) + more


def owners(found: Iterable[Stranger]) -> list[str]:
    """Return the roles that own them."""
    return sorted({stranger.owner for stranger in found})


def told(db: peewee.PostgresqlDatabase, found: Sequence[Stranger]) -> WhatspireDBError | None:
    """Return whose code a superuser would run, and what to do; None where it is nobody's."""
    if not found:
        return None
    role = execute(db, "SELECT session_user").fetchone()[0]
    return WhatspireDBError(f"superuser {role} would run code of {', '.join(owners(found))}: {named(found)}", HINT)


def require_trusted(found: Sequence[Stranger]) -> None:
    """Refuse to create the models anywhere while a superuser would run what other roles made."""
    if found:
        raise ScratchUnavailable(f"what the models declare can mean {named(found)}", HINT)
