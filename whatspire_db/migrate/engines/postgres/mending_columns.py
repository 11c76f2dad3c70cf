"""PostgreSQL: what mends drift of columns: NOT NULL, defaults and sequences, identities, generated values, types."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import peewee

from whatspire_db.messages import is_right_missing
from whatspire_db.migrate.ddl import execute, quote
from whatspire_db.migrate.diff import Drift
from whatspire_db.migrate.mending import (
    Fix,
    comment,
    loses_vectors,
    unsafe,
    vectors_in_the_way,
    vectors_lost,
)
from whatspire_db.migrate.schema import Column, Key, label
from whatspire_db.sql import literal, pinned

from ..base import discarded
from .probing import alters_by_rewriting
from .scripts import Reference, Site, guard, made_again, transaction, validated

_OWN_SEQUENCE = pinned("SELECT pg_get_serial_sequence(%s, %s)")
# What names a column in its own text, which a change of the type would have to rewrite.
_USERS = pinned("""
SELECT DISTINCT CASE WHEN d.classid = 'pg_rewrite'::regclass THEN format('view %%s', r.ev_class::regclass)
    WHEN d.classid = 'pg_attrdef'::regclass THEN format('generated column %%I', a.attname)
    ELSE pg_describe_object(d.classid, d.objid, 0) END
FROM pg_depend AS d
LEFT JOIN pg_rewrite AS r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
LEFT JOIN pg_attrdef AS f ON d.classid = 'pg_attrdef'::regclass AND f.oid = d.objid
LEFT JOIN pg_attribute AS a ON a.attrelid = f.adrelid AND a.attnum = f.adnum
WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = to_regclass(%s)
    AND d.refobjsubid = (SELECT attnum FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attname = %s)
    AND d.classid = ANY (ARRAY['pg_rewrite', 'pg_trigger', 'pg_policy', 'pg_proc', 'pg_publication_rel',
        'pg_attrdef']::regclass[]) AND (a.attname IS NULL OR a.attname <> %s)
ORDER BY 1
""")
# Who owns a table, and who else may insert its rows: the first may own a sequence of it, the others must count it up.
_WRITERS = pinned("""
SELECT quote_ident(pg_get_userbyid(c.relowner)), ARRAY(
    SELECT DISTINCT CASE WHEN r.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(r.grantee)) END
    FROM (
        SELECT c.relacl AS acl
        UNION ALL SELECT a.attacl FROM pg_attribute AS a WHERE a.attrelid = c.oid AND NOT a.attisdropped
    ) AS s CROSS JOIN LATERAL aclexplode(s.acl) AS r
    WHERE r.privilege_type = 'INSERT' AND r.grantee <> c.relowner ORDER BY 1)
FROM pg_class AS c WHERE c.oid = to_regclass(%s)
""")
_IS_INHERITED = pinned("SELECT attinhcount > 0 FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attname = %s")
# Types without an operator that compares two values.
_WITHOUT_EQUALITY = ("json", "xml", "point", "polygon")
_PARTS = ("type", "default", "collation", "generated", "identity")
_ZONES = re.compile(r"^(timestamp|time)\b.* (with|without) time zone$")
_COUNTING = re.compile(r"START (-?\d+) INCREMENT (-?\d+) MINVALUE (-?\d+) MAXVALUE (-?\d+)( CYCLE)?")
_FAMILIES = (("smallint", "integer", "bigint", "numeric"), ("real", "double precision"))
_SIZES = {"smallint": 2**15, "integer": 2**31, "bigint": 2**63}


@dataclass(frozen=True)
class _Part:
    """What mends a part of a column's drift: remarks and statements, or why there is none."""

    sql: Sequence[str] = ()
    remarks: Sequence[str] = ()
    why_not: str = ""


def set_not_null(site: Site, drift: Drift) -> Fix:
    """Return what makes a column NOT NULL without a scan under a lock that stops others."""
    column = quote(drift.name)
    empty = f"SELECT * FROM {site.name} WHERE {column} IS NULL"
    texts = [f"CHECK (({written} IS NOT NULL))" for written in (drift.name, column)]
    name, left = site.free_constraint(drift.name, "not_null_mending", texts)
    check = guard(empty, f"{site.name}.{column} has rows that hold NULL", f"find them: {empty}")
    again = [f"DROP CONSTRAINT {quote(name)}"] if left else []
    sql = (
        comment(f"rows in the way: {empty}"),
        *transaction(check, site.alter(*again, f"ADD CONSTRAINT {quote(name)} CHECK ({column} IS NOT NULL) NOT VALID")),
        site.alter(f"VALIDATE CONSTRAINT {quote(name)}"),
        *transaction(site.alter(f"ALTER {column} SET NOT NULL"), site.alter(f"DROP CONSTRAINT {quote(name)}")),
    )
    return Fix((drift,), sql)


def drop_not_null(site: Site, drift: Drift) -> Fix:
    """Return what lets a column hold NULL; a primary key that it was part of is gone by then."""
    return Fix((drift,), transaction(site.alter(f"ALTER {quote(drift.name)} DROP NOT NULL")), 3)


@dataclass(frozen=True, eq=False)
class ColumnWork:
    """What mends the type, default, generated value and identity of one column, to be done in one transaction."""

    site: Site
    drift: tuple[Drift, ...]
    parts: tuple[_Part, ...]

    @classmethod
    def of(cls, site: Site, drifts: Sequence[Drift]) -> ColumnWork:
        """Find out what mends a column."""
        wanted, got = drifts[0].wanted, drifts[0].got
        assert isinstance(wanted, Column)
        assert isinstance(got, Column)
        wanted = _with_accepted(site, wanted, got)
        kinds = {drift.kind for drift in drifts}
        return cls(site, tuple(drifts), tuple(part for part in _parts(site, wanted, got, kinds) if part is not None))

    @property
    def place(self) -> tuple[Key, str] | None:
        """The table and the column, where it gets another type."""
        name = self.drift[0].name
        return (self.site.table.key, name) if any(d.kind == "column_type" for d in self.drift) else None

    def statements(self) -> tuple[str, ...]:
        """Return the statements, whose expressions are as seen from the table's schema."""
        return self.site.within([sql for part in self.parts for sql in part.sql], local=True)


def _with_accepted(site: Site, wanted: Column, got: Column) -> Column:
    """Return a declared column with what is accepted of the live one, which is to stay."""
    accepted = {d.kind.removeprefix("column_") for d in site.table.accepted if d.got is got}
    return replace(wanted, **{part: getattr(got, part) for part in accepted.intersection(_PARTS)})


def columns(works: Sequence[ColumnWork], references: Sequence[Reference]) -> Fix:
    """Return what mends columns in one transaction.

    :param references: the foreign keys between them, which can stand neither before nor after one of them alone.
    """
    drift = [one for work in works for one in work.drift]
    if why := [part.why_not for work in works for part in work.parts if part.why_not]:
        return unsafe(drift, *why)
    if bare := [one for work in works if not work.statements() for one in work.drift]:
        return unsafe(drift, f"none is known for {bare[0]}")
    remarks = [comment(remark) for work in works for part in work.parts for remark in part.remarks]
    remarks += made_again(references)
    sql = transaction(
        *(r.dropped() for r in references),
        *(statement for work in works for statement in work.statements()),
        *(r.added() for r in references),
    )
    return Fix(tuple(drift), (*remarks, *sql, *validated(references)), 1)


def _parts(site: Site, wanted: Column, got: Column, kinds: set[str]) -> Iterator[_Part | None]:
    changes_type = bool({"column_type", "column_collation"} & kinds)
    name = quote(wanted.name)
    drops_default = got.default is not None and not got.is_serial and (changes_type or wanted.default is None)
    yield _generated(site, wanted, got) if "column_generated" in kinds else None
    if drops_default:
        yield _Part([site.alter(f"ALTER {name} DROP DEFAULT")])
    sequences = _Sequences(site, wanted, got)
    yield sequences.taken_away()
    if changes_type:
        yield _type(site, wanted, got, kinds)
    yield sequences.given()
    if wanted.default is not None and not wanted.is_serial and ("column_default" in kinds or drops_default):
        yield _Part([site.alter(f"ALTER {name} SET DEFAULT {wanted.default}")])


def _generated(site: Site, wanted: Column, got: Column) -> _Part:
    name, slow = quote(wanted.name), "rewrites the table; readers and writers wait meanwhile (ACCESS EXCLUSIVE)"
    here, there = (c.generated.partition(" ") if c.generated else ("", "", "") for c in (wanted, got))
    if not here[0] and there[0] == "STORED":
        return _Part([site.alter(f"ALTER {name} DROP EXPRESSION")], ["the values stay as they are"])
    if here[0] == there[0] and site.version >= 170000:
        remarks = [f"all its values are computed anew; {slow}"] if here[0] == "STORED" else ["reads the new expression"]
        return _Part([site.alter(f"ALTER {name} SET EXPRESSION AS {here[2]}")], remarks)
    where = f"{site.name}.{name}"
    if here[0] == there[0]:
        return _Part(why_not=f"before PostgreSQL 17 the expression of {where} cannot be changed")
    what = f"{there[0] or 'plain'} column cannot become {here[0] or 'plain'}"
    return _Part(why_not=f"{where}: a {what}; add another column, move what uses it, and drop this one")


@dataclass(frozen=True)
class _Sequences:
    """What counts a column up, before and afterwards; the value that is reached is kept."""

    site: Site
    wanted: Column
    got: Column

    @property
    def _column(self) -> str:
        return quote(self.wanted.name)

    def taken_away(self) -> _Part | None:
        """Return what takes a serial's default or an identity away."""
        site, wanted, got = self.site, self.wanted, self.got
        if got.is_serial and not wanted.is_serial:
            sql = [site.alter(f"ALTER {self._column} DROP DEFAULT")]
            own = self._own()
            if wanted.identity and own:
                sql.append(f"ALTER SEQUENCE {own} OWNED BY NONE")
            return _Part(sql, [f"its sequence {own} stays, and nothing uses it any more"] if own else [])
        if not got.identity or wanted.identity:
            return None
        sql, remarks = [site.alter(f"ALTER {self._column} DROP IDENTITY")], []
        if wanted.is_serial:
            created = self._new_sequence()
            value = f"SELECT pg_catalog.setval({literal(created)}, last_value, is_called) FROM {self._own()}"
            # Whoever counts the old sequence up after its value was read would be given the same keys again.
            sql = [self._locked(), *self._made(created), value, *sql, *self._attached(created)]
        else:
            remarks = ["the value that its sequence reached is lost"]
        return _Part(sql, remarks)

    def given(self) -> _Part | None:
        """Return what gives the column a serial's default or an identity."""
        site, wanted, got = self.site, self.wanted, self.got
        if wanted.identity and got.identity and wanted.identity != got.identity:
            return _Part([site.alter(f"ALTER {self._column} {self._counting()}")])
        if wanted.identity and not got.identity:
            kind, _, counting = wanted.identity.partition(" (")
            options = f" ({counting}" if counting else ""
            add = site.alter(f"ALTER {self._column} ADD GENERATED {kind} AS IDENTITY{options}")
            return _Part([self._locked(), add, *self._risen(self._serial_sequence(), self._own())])
        if wanted.is_serial and got.is_serial and wanted.default != got.default and (own := self._own()):
            options = " ".join(self._options(str(wanted.default)))
            return _Part([f"ALTER SEQUENCE {own} AS {wanted.type} {options}"])
        if wanted.is_serial and not got.is_serial and not got.identity:
            own = self._own()
            created = own or self._new_sequence()
            sql = [] if own else list(self._made(created))
            return _Part([self._locked(), *sql, *self._attached(created), *self._risen(literal(created), None)])
        return None

    def _locked(self) -> str:
        return f"LOCK TABLE {self.site.name} IN SHARE ROW EXCLUSIVE MODE"

    def _own(self) -> str | None:
        row = execute(self.site.engine.db, _OWN_SEQUENCE, [self.site.name, self.wanted.name]).fetchone()
        return str(row[0]) if row and row[0] else None

    def _serial_sequence(self) -> str:
        name, column = literal(self.site.name), literal(self.wanted.name)
        return f"pg_catalog.pg_get_serial_sequence({name}, {column})"

    def _new_sequence(self) -> str:
        key = self.site.table.key
        return self.site.relation(self.site.free_name(f"{key[1]}_{self.wanted.name}", "seq"))

    def _made(self, sequence: str) -> Iterator[str]:
        """Yield what makes a sequence that belongs to the table's owner, and that all who insert rows may use."""
        owner, writers = execute(self.site.engine.db, _WRITERS, [self.site.name]).fetchone()
        yield f"CREATE SEQUENCE {sequence} AS {self.wanted.type}"
        yield f"ALTER SEQUENCE {sequence} OWNER TO {owner}"
        if writers:
            yield f"GRANT USAGE ON SEQUENCE {sequence} TO {', '.join(writers)}"

    def _attached(self, sequence: str) -> list[str]:
        default = f"ALTER {self._column} SET DEFAULT pg_catalog.nextval({literal(sequence)})"
        return [self.site.alter(default), f"ALTER SEQUENCE {sequence} OWNED BY {self.site.name}.{self._column}"]

    def _risen(self, sequence: str, before: str | None) -> Iterator[str]:
        """Yield what puts a sequence, an expression for its name, behind all values that are there or were given."""
        if before:
            yield f"SELECT pg_catalog.setval({sequence}, last_value, is_called) FROM {before}"
        used = f"pg_catalog.max({self._column})"
        reached = f"pg_catalog.pg_sequence_last_value(CAST({sequence} AS pg_catalog.regclass))"
        above = self.site.engine.operator(">")
        found = f"HAVING CAST({used} AS pg_catalog.int8) {above} coalesce({reached}, 0)"
        yield f"SELECT pg_catalog.setval({sequence}, {used}) FROM {self.site.name} {found}"

    def _counting(self) -> str:
        """Return the actions that make an identity count as declared."""
        kind, _, written = str(self.wanted.identity).partition(" (")
        return " ".join(f"SET {part}" for part in (f"GENERATED {kind}", *self._options(written)))

    def _options(self, written: str) -> Iterator[str]:
        """Yield the options of a sequence that counts as its text says, or as the column's type goes."""
        usual = f"START 1 INCREMENT 1 MINVALUE 1 MAXVALUE {_SIZES.get(str(self.wanted.type), 2**63) - 1}"
        match = _COUNTING.search(written) or _COUNTING.search(usual)
        assert match is not None
        start, increment, least, most, cycle = match.groups()
        yield from (f"INCREMENT BY {increment}", f"MINVALUE {least}", f"MAXVALUE {most}", f"START WITH {start}")
        yield "CYCLE" if cycle else "NO CYCLE"


def _type(site: Site, wanted: Column, got: Column, kinds: set[str]) -> _Part:
    name = quote(wanted.name)
    if any(inherited for (inherited,) in execute(site.engine.db, _IS_INHERITED, [site.name, wanted.name]).fetchall()):
        parents = ", ".join(label(key) for key in site.table.live.parents)
        return _Part(why_not=f"{site.name}.{name} is inherited from {parents}; change the type there")
    where = [site.name, site.name, wanted.name, wanted.name]
    if users := [user for (user,) in execute(site.engine.db, _USERS, where).fetchall()]:
        what = f"PostgreSQL changes no type that other things name: {', '.join(users)}"
        return _Part(why_not=f"{what}; drop them, change the type, and make them again")
    if loses_vectors(wanted, got):
        return _other_dimension(site, wanted, got)
    collation = f" COLLATE {wanted.collation}" if wanted.collation else ""
    plain = f"ALTER {name} TYPE {wanted.type}{collation}"
    zoned = all(_ZONES.match(str(c.type)) for c in (wanted, got)) and wanted.type != got.type
    actions = (plain, f"{plain} USING {name}::{wanted.type}")
    tried = [(action, alters_by_rewriting(site.engine, site.table.key, action)) for action in actions]
    action, outcome = next(((action, out) for action, out in tried if isinstance(out, bool)), tried[-1])
    if not isinstance(outcome, bool):
        return _Part(why_not=f"{got.type} was tried to be made {wanted.type} in an empty table: {outcome}")
    slow = "rewrites the table" if outcome else "does not rewrite the table, but may scan it and build its indexes anew"
    remarks = [f"{slow}; readers and writers wait meanwhile (ACCESS EXCLUSIVE)"]
    if "column_type" in kinds:
        remarks += _losses(site, wanted, got)
    sql = [*(["SET LOCAL TimeZone TO 'UTC'"] if zoned else []), site.alter(action)]
    if got.is_serial and wanted.is_serial and wanted.type in _SIZES and (own := _Sequences(site, wanted, got)._own()):
        sql.append(f"ALTER SEQUENCE {own} AS {wanted.type}")
    return _Part(sql, remarks)


def _other_dimension(site: Site, wanted: Column, got: Column) -> _Part:
    name = quote(wanted.name)
    column = f"{site.name}.{name}"
    has_vectors = _may_have_values(site, name)
    if wanted.not_null and has_vectors:
        return _Part(why_not=vectors_in_the_way(column, wanted, got))
    lost = [vectors_lost(column, wanted, got)] if has_vectors else []
    nullable = "" if wanted.not_null or not got.not_null else f"ALTER {name} DROP NOT NULL, "
    remarks = [*lost, "rewrites the table; readers and writers wait meanwhile (ACCESS EXCLUSIVE)"]
    return _Part([site.alter(f"{nullable}ALTER {name} TYPE {wanted.type} USING NULL")], remarks)


def _may_have_values(site: Site, name: str) -> bool:
    """Return whether a column has values; it may where a look would run code of others, or misses hidden rows."""
    if site.model is None or site.engine.untrusted([site.model]):
        return True
    try:
        with discarded(site.engine.db):
            site.engine.see_every_row()
            return bool(site.engine.ask(f"SELECT EXISTS (SELECT FROM {site.name} WHERE {name} IS NOT NULL)"))
    except peewee.PeeweeException as error:
        if not is_right_missing(error):
            raise
        return True


def _widens(old: str, new: str) -> bool:
    """Tell whether a type holds all values of another one."""
    for family in _FAMILIES:
        if old in family and new in family:
            return family.index(old) <= family.index(new)
    (kind, size), (new_kind, new_size) = (_sized(type_) for type_ in (old, new))
    if kind not in ("character varying", "text") or new_kind not in ("character varying", "text"):
        return False
    return new_size is None or (size is not None and size <= new_size)


def _sized(type_: str) -> tuple[str, int | None]:
    match = re.fullmatch(r"(.*?)\((\d+)\)", type_)
    return (match[1], int(match[2])) if match else (type_, None)


def _losses(site: Site, wanted: Column, got: Column) -> Iterator[str]:
    """Yield what may be lost, or stop the change, and which query finds it."""
    name, new, old = quote(wanted.name), wanted.type, got.type
    if _widens(str(old), str(new)):
        return
    if re.match(r"(character|bit)\b.*\(\d+\)$", str(new)):
        limit = re.sub(r".*\((\d+)\)$", r"\1", str(new))
        long = f"length({name}::text) > {limit}"
        yield f"values that are too long stop it: SELECT * FROM {site.name} WHERE {long}"
        return
    if all(_ZONES.match(str(type_)) for type_ in (new, old)):
        yield "times without a zone are taken as UTC"
        return
    after, before = (f"{name}::{new}::{old}", name)
    if old in _WITHOUT_EQUALITY:
        after, before = (f"{name}::{new}::text", f"{name}::text")
    yield (
        f"values that {new} cannot hold are rounded, or stop it: "
        f"SELECT * FROM {site.name} WHERE {after} IS DISTINCT FROM {before}"
    )
