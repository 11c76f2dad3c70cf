"""What differs between the engines: snapshot, scratch, lock, and what a step costs."""

from __future__ import annotations

import abc
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime

import peewee

from whatspire_db.errors import LockTimeout, ModelError, WhatspireDBError
from whatspire_db.light_stdlib import TYPE_CHECKING, Any, TypeVar, dataclass
from whatspire_db.peewee_compat import peewee_errors

from ..ddl import ModelType, execute
from ..plan import Step
from ..progress import Progress
from ..schema import Column, Constraint, Index, Key, Schema, Table
from ..stamp import Stamps, Standing, rendered

if TYPE_CHECKING:
    from whatspire_db.transfer.fence import Fence

    from ..mending import DriftedTable, Fix
    from ..placements import Placements
    from ..plan import Lock, LockedWork, StepKind
    from ..times import TimeNote

T = TypeVar("T")
LOOK_SECONDS = 60.0  # a look waits no longer for a lock, unless its caller says otherwise


class _Discard(Exception):
    pass


@dataclass(frozen=True)
class IndexPart:
    """A step of those that together build one index: its kind, its table, its index and its statements.

    `builds` is the quoted index that a failure leaves INVALID, `locked` the quoted table that is locked for it.
    """

    kind: StepKind
    table: Key
    name: str
    sql: tuple[str, ...]
    builds: str = ""
    locked: str = ""


@contextmanager
def discarded(db: peewee.Database, *mode: str) -> Iterator[None]:
    """Run the body in a transaction, or in a savepoint of one, that is always rolled back."""
    try:
        with db.atomic(*mode):
            yield
            raise _Discard
    except _Discard:
        pass


class Engine(abc.ABC):
    """The questions that the migrator asks an engine."""

    name: str
    constraints_can_be_added: bool
    builds_online: bool
    takes_many_statements = False  # in one message

    def __init__(self, db: peewee.Database, trust_source: bool = False) -> None:
        self.db = db
        self.trust_source = trust_source  # run code that other roles left in the database
        self._keys: dict[ModelType, Key] = {}

    def ask(self, sql: str, params: Sequence[Any] | None = None) -> Any:
        """Return the first value of the first row."""
        row = execute(self.db, sql, params).fetchone()
        return row[0] if row else None

    def ask_quietly(self, sql: str, params: Sequence[Any] = ()) -> Any:
        """Return the only row of a question that may fail, which is no news for the log of failed statements."""
        with peewee_errors:
            cursor = self.db.cursor()
            cursor.execute(sql, params)
            return cursor.fetchone()

    def is_in_memory(self) -> bool:
        """Tell whether the database is gone when its connection is closed."""
        return False

    @abc.abstractmethod
    def fold(self, name: str) -> str:
        """Return a name as the engine keeps and compares it."""

    def key(self, model: ModelType) -> Key:
        """Return where a model's table stands, as a run asks many times."""
        if model not in self._keys:
            self._keys[model] = self.place(model)
        return self._keys[model]

    @abc.abstractmethod
    def place(self, model: ModelType) -> Key:
        """Find out where a model's table stands."""

    @abc.abstractmethod
    def snapshot(self, keys: Collection[Key]) -> Schema:
        """Read the live schema, in one statement for each schema of the keys."""

    @abc.abstractmethod
    def declared(self, models: Sequence[ModelType]) -> Schema:
        """Let the engine create the models' tables in a scratch place, and read them there."""

    @abc.abstractmethod
    def standing(
        self, models: Sequence[ModelType], wait_seconds: float = LOOK_SECONDS, *, with_rows: bool = False
    ) -> Standing | None:
        """Ask in one statement how the database stands; None where its history cannot be read.

        :param wait_seconds: how long to wait for a lock; within a transaction its own limit counts.
        :param with_rows: ask for data migrations too, and for a run that changes many rows.
        """

    @abc.abstractmethod
    def reading(self, wait_seconds: float) -> AbstractContextManager[None]:
        """Look in a transaction that is rolled back: one state of things on SQLite, temporary tables on PostgreSQL.

        :param wait_seconds: no statement in it waits longer for a lock.
        """

    def forget(self) -> None:
        """Let go of what was kept for the rest of a run."""
        self._keys = {}

    @abc.abstractmethod
    def locked_out(self, models: Sequence[ModelType], wait_seconds: float) -> LockTimeout:
        """Return the error for a look that another session's lock stopped, and name that session where it can be."""

    @abc.abstractmethod
    def keep(self, stamps: Stamps) -> None:
        """Store the stamps in place of those that are there, where that is possible."""

    def looks_alone(self, standing: Standing | None) -> bool:
        """Return whether a run takes the lock before it looks: where it could change something, and a look costs."""
        return False

    def may_create(self) -> bool:
        """Return whether this role and session may make a table, as far as that can be asked."""
        return True

    @abc.abstractmethod
    def lock(self, wait_seconds: float) -> AbstractContextManager[None]:
        """Hold the migration lock.

        :raises LockTimeout: when another migration holds it for longer.
        """

    def is_working(self, standing: Standing) -> bool:
        """Tell whether a run that changes many rows holds its lock; `standing` was asked with rows."""
        return standing.is_working

    @abc.abstractmethod
    def work_lock(self, wait_seconds: float) -> AbstractContextManager[None]:
        """Hold the lock of long work on the rows, beside which others read, write and migrate.

        :raises LockTimeout: when another run holds it for longer.
        """

    @abc.abstractmethod
    def transact(
        self,
        body: Callable[[], T],
        locks: Sequence[tuple[str, str]],
        wait_seconds: float,
        before: Callable[[], None] | None = None,
    ) -> T:
        """Run a body in a transaction that holds table locks; try it again while others hold them.

        :param before: what needs none of the locks, run in the transaction before anybody is stopped by them.
        :raises LockTimeout: when they do for longer.
        """

    def is_lock_failure(self, error: Exception) -> bool:
        """Tell whether a statement failed for a lock, so that `transact` tries again."""
        return False

    def wait_for_builds(self, tables: Sequence[str], wait_seconds: float) -> None:  # noqa: B027 - for online engines
        """Wait until nobody builds an index on the tables."""

    def run_online(
        self, sql: str, locks: Sequence[tuple[str, str]], wait_seconds: float, tell: Callable[[Progress], None]
    ) -> None:
        """Run a statement that waits for others without stopping them: alone, or where it takes locks in a transaction.

        :param wait_seconds: how long it may wait for the same session.
        :raises LockTimeout: names that session.
        """
        raise NotImplementedError

    def is_invalid(self, index: str) -> bool:
        """Tell whether an index stands there that nothing can use."""
        return False

    def discard_failed_build(self, index: str) -> None:  # noqa: B027 - for online engines
        """Drop an index whose build has just failed, unless it is valid."""

    @abc.abstractmethod
    def estimate(self, table: str, exact_up_to: int) -> int:
        """Return how many rows a table has: the number, or above a limit an estimate."""

    @abc.abstractmethod
    def lock_of(self, kind: LockedWork) -> Lock:
        """Name the lock that a kind of step takes."""

    def online_build(self, index_sql: str, broken: str | None) -> list[str]:
        """Return the statements that build an index beside readers and writers, in place of a broken one."""
        return [index_sql]

    def index_parts(self, key: Key, index: Index, index_sql: str, names: Mapping[Key, str]) -> list[IndexPart]:
        """Return the steps that build an index of a partitioned table beside readers and writers.

        :param names: the names of the indexes on tables that have a model of their own.
        """
        raise NotImplementedError

    def refuses_unique(self, key: Key, columns: Sequence[str]) -> WhatspireDBError | None:
        """Return why a partitioned table cannot be unique by some columns, and what to do; None where it can."""
        return None

    @abc.abstractmethod
    def rewriting(self, model: ModelType, columns: Sequence[Column]) -> set[str]:
        """Return the names of those columns whose addition rewrites the table."""

    @abc.abstractmethod
    def refuses_column(self, model: ModelType, column: Column, has_rows: bool, is_key: bool) -> WhatspireDBError | None:
        """Return why the engine cannot add a column, and what to do instead; None where it can."""

    @abc.abstractmethod
    def as_stored(self, value: str, column: Column) -> str:
        """Return an expression for what a column holds when it is given a value."""

    @abc.abstractmethod
    def fixes(self, tables: Sequence[DriftedTable], models: Mapping[Key, ModelType], live: Schema) -> list[Fix]:
        """Return the statements that would mend the drift of tables, or say why there are none; none is run."""

    def refuses_transaction(self, steps: Sequence[Step], declared: Schema) -> WhatspireDBError | None:
        """Return why the engine has no room for the steps in one transaction, and what to do; None where it has."""
        return None

    def search_first(self, *schemas: str) -> None:  # noqa: B027 - nothing to do where tables stand in one place
        """Let names without a schema mean those of the schemas, until the transaction ends; "" names none."""

    def fence(self) -> Fence | None:
        """Return the fence of a database whose rows were moved to another one; None without one."""
        return None

    def refuses_everything(self, live: Schema) -> WhatspireDBError | None:
        """Return why a schema may be neither changed nor judged here, and where instead; None where it may."""
        return None

    def placements(self, live: Schema) -> Placements:
        """Return where the rows of the live tables are, and what that forbids."""
        from ..placements import Placements  # not for a start

        return Placements()

    def untrusted(self, models: Sequence[ModelType]) -> WhatspireDBError | None:
        """Return whose code a change of the models' tables would run with rights above theirs, and what to do."""
        return None

    def untrusted_table(self, model: ModelType) -> WhatspireDBError | None:
        """Return whose code a new row of a table would run with rights above theirs, and what to do."""
        return None

    def notes(self, steps: Sequence[Step]) -> tuple[str, ...]:
        """Return what running clients will notice of the steps."""
        return ()

    def refuses_reference(self, constraint: Constraint, column: Column, title: str) -> WhatspireDBError | None:
        """Return why the engine cannot add a foreign key with a new column, and what to do; None where it can."""
        return None

    @abc.abstractmethod
    def family(self, type_: str) -> str:
        """Return what kind of values a type holds, which is given in lower case and without a length."""

    @abc.abstractmethod
    def history_columns(self) -> set[str]:
        """Return the names of the columns of migration_versions; none where there is no such table."""

    def hides_history(self) -> bool:
        """Tell whether a policy may have hidden rows of migration_versions."""
        return False

    def copied_history(self, columns: str) -> list[list[str]] | None:
        """Return columns of a history that is not safe to query, as texts; None where it is safe."""
        return None

    def as_value(self, moment: datetime) -> Any:
        """Return a moment as a query's value."""
        return moment

    @abc.abstractmethod
    def time_notes(self, models: Sequence[ModelType], newest: int | None) -> tuple[TimeNote, ...]:
        """Return what the rows of the models' tables say of times that are not UTC; nothing where they may not be read.

        :param newest: look at that many rows of each table, the newest that an index gives; None: at all.
        """

    def fields_of(self, models: Iterable[ModelType], kinds: Any) -> dict[Key, dict[str, peewee.Field]]:
        """Return the models' fields of some kinds by table and column."""
        return {
            self.key(model): {self.fold(f.column_name): f for f in model._meta.sorted_fields if isinstance(f, kinds)}
            for model in models
        }

    def see_every_row(self) -> None:  # noqa: B027 - nothing hides rows elsewhere
        """Have a question fail, until the transaction ends, that a policy would answer without some of the rows."""

    def within(self, schema: str, sql: str) -> tuple[str, ...]:
        """Return the statements that run one in which names without a schema mean those of a schema."""
        return (sql,)

    def function(self, name: str) -> str:
        """Return the engine's own function of a name, as a query calls it; nobody else's takes its place."""
        return name

    def operator(self, symbol: str) -> str:
        """Return the engine's own operator, as a query writes it; those of a query bind alike, from the left."""
        return symbol

    def equals(self, column: Column | None) -> str:
        """Return the operator that compares a column of one table with one of another for equality; None is unknown."""
        return "="

    def script_settings(self) -> tuple[str, ...]:
        """Return the statements at the head of a script: in whatever session it runs, it then means the same."""
        return ()

    @abc.abstractmethod
    def index_condition(self, index: Index) -> str:
        """Return the condition for a row to take part in an index's uniqueness."""

    def has_table(self, key: Key) -> bool:
        """Tell whether a table is there that stands beside those of the models' schemas."""
        return False

    def settled(self, table: Table) -> Table:
        """Return a table whose expressions were read back from what the engine shows, and shown again.

        An engine may show an expression differently once it has read its own text back, as after a restore.
        """
        return table


def engine_for(db: peewee.Database, trust_source: bool = False) -> Engine:
    """Return the engine of a peewee database.

    :param trust_source: let a superuser run code that other roles left in the database.
    :raises ModelError: when it is neither SQLite nor PostgreSQL.
    """
    real = db.obj if isinstance(db, peewee.Proxy) else db
    if isinstance(real, peewee.SqliteDatabase):
        from .sqlite.engine import SqliteEngine

        return SqliteEngine(real, trust_source)
    if isinstance(real, peewee.PostgresqlDatabase):
        from .postgres.engine import PostgresEngine

        return PostgresEngine(real, trust_source)
    raise ModelError(
        f"{type(real).__name__} is not supported",
        "give what connect() returns, or another peewee database for SQLite or PostgreSQL",
    )


def declared_names(engine: Engine, models: Sequence[ModelType]) -> Schema:
    """Return what the models alone say of their schema: names, and which columns are NOT NULL."""
    tables = {}
    for model in models:
        keys = {field.name for field in model._meta.get_primary_keys()}
        columns = [
            Column(engine.fold(f.column_name), None, not f.null or f.name in keys) for f in model._meta.sorted_fields
        ]
        indexes = [Index(engine.fold(name), ()) for name, _ in rendered(engine.db, model).indexes]
        key = engine.key(model)
        tables[key] = Table(key, columns={c.name: c for c in columns}, indexes=tuple(indexes), by_name=True)
    return Schema(tables)
