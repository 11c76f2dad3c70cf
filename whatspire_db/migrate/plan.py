"""The plan as a value: steps with their exact SQL, refusals with the way around."""

from __future__ import annotations

from ..light_stdlib import TYPE_CHECKING, Any, dataclass
from .schema import place_of

if TYPE_CHECKING:
    from typing import Literal

    from .costs import Cost
    from .diff import Drift
    from .renaming import Renaming

    StepKind = Literal[
        "create_schema",
        "create_extension",
        "create_table",
        "add_column",
        "create_index",
        "attach_index",
        "add_constraint",
        "validate_constraint",
        "drop_table",
        "drop_column",
        "drop_index",
        "drop_constraint",
        "drop_schema",
        "drop_extension",
        "prove_unused",
    ]
    # PostgreSQL's modes of table locks; SQLite has one lock for the whole database.
    Lock = Literal[
        "none",
        "SHARE UPDATE EXCLUSIVE",
        "SHARE",
        "SHARE ROW EXCLUSIVE",
        "ACCESS EXCLUSIVE",
        "the database's write lock",
    ]
    # What locks are asked for: the kinds of steps, and two ways of a kind that take another lock.
    LockedWork = StepKind | Literal["add_foreign_key", "build_index"]


@dataclass(frozen=True)
class Step:
    """One addition: its statements, the lock that they take, and what they cost.

    An online step runs after the transaction of the others, each of its statements alone, or, where it takes
    `locks`, in a transaction of its own.
    """

    kind: StepKind
    table: str
    name: str
    sql: tuple[str, ...]
    lock: Lock
    cost: Cost
    online: bool = False
    free: bool = False  # it needs nothing that stands already, and so comes before any lock
    locks: tuple[tuple[str, Lock], ...] = ()  # quoted tables that stand already, and the mode that each is taken in
    builds: str = ""  # the quoted index that a failure leaves INVALID
    repairs: str = ""  # the quoted table on which somebody may still be building what the step repairs

    @property
    def title(self) -> str:
        return f"{self.kind.replace('_', ' ')} {place_of(self.kind, self.table, self.name)}"

    def __str__(self) -> str:
        lines = [f"{self.title}  (lock: {self.lock}; {self.cost})", *(f"    {sql};" for sql in self.sql)]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "table": self.table,
            "name": self.name,
            "sql": list(self.sql),
            "lock": self.lock,
            "cost": str(self.cost),
        }


def number_of_steps(number: int) -> str:
    """Return a number of steps in words."""
    return "1 step" if number == 1 else f"{number} steps"


@dataclass(frozen=True)
class Refusal:
    """An addition that would fail, lose data or stop the service, and what to do instead."""

    kind: str
    table: str
    name: str
    reason: str
    hint: str

    def __str__(self) -> str:
        return f"{self.reason}\n    hint: {self.hint}"

    def to_json(self) -> dict[str, str]:
        return {
            "kind": self.kind,
            "table": self.table,
            "name": self.name,
            "reason": self.reason,
            "hint": self.hint,
        }


@dataclass(frozen=True)
class Plan:
    """What a run would do; falsy when there is nothing to do. str() shows it, `to_json` gives plain data."""

    command = "plan"  # the verb that shows it

    driver: str
    version: int
    pending: tuple[Step, ...] = ()
    refused: tuple[Refusal, ...] = ()
    drift: tuple[Drift, ...] = ()
    notes: tuple[str, ...] = ()  # what running clients will notice of the steps
    adoption: tuple[Step, ...] = ()  # nothing is pending, but `up` makes the history of a database that has none
    renamed: tuple[Renaming, ...] = ()  # columns that may have been renamed: a remark, and no reason to refuse
    left: tuple[str, ...] = ()  # what an undo has left there that keeps values out, or that is running
    settings: tuple[str, ...] = ()  # at the head of a script, so that it means the same in every session

    def __bool__(self) -> bool:
        return bool(self.pending or self.refused)

    def __str__(self) -> str:
        sections = [
            (f"pending: {number_of_steps(len(self.pending))}", self.pending),
            ("refused: nothing will be applied until this is solved", self.refused),
            ("drift: differences that adding cannot mend; they are left as they are", self.drift),
        ]
        lines = [f"{title}\n" + "\n".join(f"  {item}" for item in items) for title, items in sections if items]
        lines += [str(renaming) for renaming in self.renamed]
        lines += [f"note: {note}" for note in (*self.notes, *self.left)]
        lines = lines or ["nothing to do"]
        if self.adoption:
            lines.append("note: up adopts this database: it makes migration_versions and records a version there")
        return "\n".join(lines)

    @property
    def at_once(self) -> tuple[Step, ...]:
        """The steps that are done in one transaction."""
        return tuple(step for step in self.pending if not step.online)

    @property
    def online(self) -> tuple[Step, ...]:
        """The steps that follow the transaction, each by itself."""
        return tuple(step for step in self.pending if step.online)

    def sql(self) -> str:
        """Return the statements alone, ready for the engine's own shell; nothing when refused.

        All that can be is in one transaction; what is done online follows it.
        """
        if self.refused or not self.pending:
            return ""
        at_once, online = ([f"{sql};\n" for step in steps for sql in step.sql] for steps in (self.at_once, self.online))
        settings = [f"{sql};\n" for sql in self.settings]
        return "".join([*settings, *(["BEGIN;\n", *at_once, "COMMIT;\n"] if at_once else []), *online])

    def to_json(self) -> dict[str, Any]:
        return {
            "driver": self.driver,
            "version": self.version,
            "pending": [step.to_json() for step in self.pending],
            "refused": [refusal.to_json() for refusal in self.refused],
            "drift": [drift.to_json() for drift in self.drift],
            **({"notes": [*self.notes, *self.left]} if self.notes or self.left else {}),
            **({"adoption": [step.to_json() for step in self.adoption]} if self.adoption else {}),
            **({"renamed": [renaming.to_json() for renaming in self.renamed]} if self.renamed else {}),
        }
