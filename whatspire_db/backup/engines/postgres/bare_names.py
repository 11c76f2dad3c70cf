"""Functions that a restore may fail on: they use others by bare names, and a restore has an empty search_path.

A database works with them for years, and its backup is of no use. This finds most of them without running any.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from .server import Session

# What a restore evaluates for each row: checks, generated columns, indexes and the keys of partitions. A function whose
# body was parsed when it was made has no text, and one that sets its search_path needs none.
_USED = """
SELECT DISTINCT format('%I.%I', n.nspname, p.proname), p.proname, p.prosrc
FROM pg_catalog.pg_depend AS d
JOIN pg_catalog.pg_proc AS p ON d.refclassid = 'pg_catalog.pg_proc'::regclass AND d.refobjid = p.oid
JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
WHERE p.oid >= 16384 AND (
    d.classid = 'pg_catalog.pg_constraint'::regclass
    OR d.classid = 'pg_catalog.pg_class'::regclass
    OR d.classid = 'pg_catalog.pg_attrdef'::regclass AND d.objid IN (
        SELECT f.oid FROM pg_catalog.pg_attrdef AS f
        JOIN pg_catalog.pg_attribute AS a ON (a.attrelid, a.attnum) = (f.adrelid, f.adnum) WHERE a.attgenerated <> ''
    )
)
ORDER BY 1
"""
_BODIES = """
SELECT format('%I.%I', n.nspname, p.proname), p.proname,
    CASE WHEN l.lanname IN ('sql', 'plpgsql') AND NOT coalesce(array_to_string(p.proconfig, ' '), '') ~ 'search_path='
        THEN p.prosrc ELSE '' END
FROM pg_catalog.pg_proc AS p
JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace JOIN pg_catalog.pg_language AS l ON l.oid = p.prolang
WHERE n.nspname NOT IN ('pg_catalog', 'information_schema')
    AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_proc AS o
        WHERE o.proname = p.proname AND o.pronamespace = 'pg_catalog'::regnamespace
    )
"""
_RELATIONS = """
SELECT c.relname FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'v', 'm', 'p', 'f') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
"""
_NO_CODE = re.compile(r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'", re.DOTALL)
_CALL = re.compile(r'(?P<schema>(?:\w+|"[^"]+")\s*\.\s*)?\b(?P<name>[a-z_]\w*)\s*\(', re.IGNORECASE)
_READ = re.compile(r"\b(?:from|join|into|update)\s+(?:only\s+)?(?P<name>[a-z_]\w*)\b(?!\s*[.(])", re.IGNORECASE)


class Function(NamedTuple):
    """A function as it is called: its name with its schema, the bare one, and its text; none where that is safe."""

    title: str
    name: str
    text: str


def bare_uses(
    used: Iterable[str], functions: Mapping[str, list[Function]], relations: frozenset[str]
) -> list[tuple[str, str]]:
    """Return pairs of a function that rows are given to, directly or not, and what it uses by its bare name.

    :param used: bare names of functions that expressions call.
    :param functions: by their bare names.
    """
    found: list[tuple[str, str]] = []
    waiting, seen = list(used), set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for function in functions.get(name, ()):
            code = _NO_CODE.sub(" ", function.text)
            calls = [(match["schema"], match["name"].lower()) for match in _CALL.finditer(code)]
            known = [(schema, called) for schema, called in calls if called in functions]
            waiting += [called for _, called in known]
            found += [(function.title, called) for schema, called in known if not schema]
            read = {match["name"].lower() for match in _READ.finditer(code)}
            found += [(function.title, table) for table in sorted(read & relations)]
    return sorted(set(found))


def bare_uses_in(asked: Session) -> list[tuple[str, str]]:
    """Return what `bare_uses` finds in a database."""
    used = {name for _, name, _ in asked.rows(_USED)}
    if not used:
        return []
    functions: dict[str, list[Function]] = {}
    for row in asked.rows(_BODIES):
        functions.setdefault(row[1], []).append(Function(*row))
    return bare_uses(used, functions, frozenset(name for (name,) in asked.rows(_RELATIONS)))
