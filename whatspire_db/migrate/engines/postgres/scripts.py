"""PostgreSQL: parts of scripts that mend drift: transactions, guards that stop them early, names for the meantime."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from whatspire_db.light_stdlib import TYPE_CHECKING
from whatspire_db.migrate.ddl import ModelType, execute, qualified
from whatspire_db.migrate.mending import DriftedTable, comment
from whatspire_db.migrate.schema import Schema
from whatspire_db.sql import literal, pinned

from . import NAME_BYTES

if TYPE_CHECKING:
    from .engine import PostgresEngine

LOCK_SECONDS = 5  # a statement that waits for its lock holds up all that come after it
_REFERRING = pinned("""
SELECT format('%%I.%%I', n.nspname, c.relname), quote_ident(k.conname), pg_get_constraintdef(k.oid), k.convalidated,
    EXISTS (SELECT FROM pg_trigger AS g WHERE g.tgconstraint = k.oid AND g.tgenabled = ANY (ARRAY['D', 'R']::"char"[])),
    c.relkind = 'p'
FROM pg_constraint AS k JOIN pg_class AS c ON c.oid = k.conrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE k.contype = 'f' AND k.conparentid = 0 AND k.conindid = to_regclass(%s) ORDER BY k.oid
""")


def transaction(*statements: str) -> tuple[str, ...]:
    """Return statements that are run as a whole, and give up rather than hold others up for long."""
    return "BEGIN", f"SET LOCAL lock_timeout TO '{LOCK_SECONDS}s'", *statements, "COMMIT"


def guard(found: str, message: str, hint: str) -> str:
    """Return a statement that fails when a query finds a row, so that nothing is begun that cannot be ended."""
    said = f"MESSAGE = {literal(message)}, HINT = {literal(hint)}, ERRCODE = 'integrity_constraint_violation'"
    body = f"BEGIN IF EXISTS ({found}) THEN RAISE EXCEPTION USING {said}; END IF; END"
    tag, number = "$mending$", 0
    while tag in body:
        number += 1
        tag = f"$mending{number}$"
    return f"DO {tag}{body}{tag}"


@dataclass(frozen=True)
class Reference:
    """A foreign key of any table that needs an index, which cannot go before it; texts are quoted.

    `at_once` is one that this server makes only with a look at the rows.
    """

    table: str
    name: str
    definition: str
    valid: bool
    disabled: bool = False
    at_once: bool = False

    def dropped(self) -> str:
        """Return the statement that drops it."""
        return f"ALTER TABLE {self.table} DROP CONSTRAINT {self.name}"

    def added(self) -> str:
        """Return the statement that adds it again, without a look at the rows where the server can."""
        definition = self.definition.removesuffix(" NOT VALID")
        end = "" if self.at_once else " NOT VALID"
        return f"ALTER TABLE {self.table} ADD CONSTRAINT {self.name} {definition}{end}"

    def validated(self) -> str:
        """Return the statement that has the rows checked."""
        return f"ALTER TABLE {self.table} VALIDATE CONSTRAINT {self.name}"


def validated(references: Sequence[Reference]) -> Iterator[str]:
    """Yield what makes references that were made again as valid as they were."""
    return (r.validated() for r in references if r.valid and not r.at_once)


def made_again(references: Sequence[Reference]) -> Iterator[str]:
    """Yield comments on references that are dropped and made again."""
    if references:
        listed = ", ".join(f"{r.table}.{r.name}" for r in references)
        yield comment(f"the foreign keys that need it are dropped and made again in the same transaction: {listed}")
    for r in references:
        if r.disabled:
            yield comment(f"the triggers of {r.table}.{r.name} are disabled now, and enabled afterwards")


@dataclass(frozen=True)
class Site:
    """A drifted table as the parts of its fixes need it."""

    engine: PostgresEngine
    table: DriftedTable
    live: Schema
    model: ModelType | None = None

    @property
    def name(self) -> str:
        """The table's quoted name."""
        return qualified(*self.table.key)

    def relation(self, name: str) -> str:
        """Return the quoted name of an index or a sequence beside the table."""
        return qualified(self.table.key[0], name)

    def alter(self, *actions: str) -> str:
        """Return ALTER TABLE."""
        return f"ALTER TABLE {self.name} {', '.join(actions)}"

    @property
    def version(self) -> int:
        return self.engine.db.server_version or 0

    def free_name(self, name: str, end: str, taken: Callable[[str], bool] | None = None) -> str:
        """Return a name of no relation, or of nothing else, that says what it is for."""
        is_taken = taken or (lambda candidate: (self.table.key[0], candidate) in self.live.names)
        number = 0
        while True:
            number += 1
            suffix = f"_{end}" if number == 1 else f"_{end}_{number}"
            candidate = name.encode()[: NAME_BYTES - len(suffix)].decode(errors="ignore") + suffix
            if not is_taken(candidate):
                return candidate

    def free_constraint(self, name: str, end: str, definitions: Sequence[str]) -> tuple[str, bool]:
        """Return a name for a constraint, and whether an earlier script that failed left it behind."""
        left = {c.name for c in self.table.live.constraints if c.definition in definitions}
        names = {c.name for c in self.table.live.constraints} | {i.name for i in self.table.live.indexes}
        found = self.free_name(name, end, (names - left).__contains__)
        return found, found in left

    def free_index(self, name: str) -> tuple[str, tuple[str, ...]]:
        """Return a name for an index that is to be built, and what drops one that a failed script left there."""
        left = {i.name for i in self.table.live.indexes if not i.valid}
        key = self.table.key[0]
        found = self.free_name(name, "new", lambda one: one not in left and (key, one) in self.live.names)
        drop = f"DROP INDEX CONCURRENTLY {self.relation(found)}"
        return found, (drop,) if found in left else ()

    def references_by(self, index: str) -> list[Reference]:
        """Return the foreign keys that need an index."""
        rows = execute(self.engine.db, _REFERRING, [self.relation(index)]).fetchall()
        found = [(Reference(*facts), partitioned) for *facts, partitioned in rows]
        return [replace(reference, at_once=self.makes_at_once(partitioned)) for reference, partitioned in found]

    def makes_at_once(self, partitioned: bool) -> bool:
        """Tell whether the server takes no foreign key of such a table as NOT VALID."""
        return partitioned and self.version < 180000

    def within(self, sql: Sequence[str], *, local: bool = False) -> tuple[str, ...]:
        """Return statements in which expressions mean what they mean in the table's schema.

        :param local: they are part of a transaction.
        """
        if not self.table.key[0]:
            return tuple(sql)
        path, before = (f"search_path TO {self.engine.path_after(*schemas)}" for schemas in ([self.table.key[0]], []))
        if local:
            return (f"SET LOCAL {path}", *sql, f"SET LOCAL {before}")
        return (f"SET {path}", *sql, f"SET {before}")


def without_tail(definition: str, *tails: str) -> tuple[str, str]:
    """Split a definition into what it is and the words at its end, some of the given ones."""
    match = re.fullmatch(rf"(.*?)((?: (?:{'|'.join(map(re.escape, tails))}))*)", definition, re.DOTALL)
    assert match is not None
    return match[1], match[2].strip()
