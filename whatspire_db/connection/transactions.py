"""The blocks of a database on a pool: a connection, a transaction, a savepoint; they know where they began."""

from __future__ import annotations

import peewee

from ..errors import TransactionError
from ..light_stdlib import Any
from ..models.row_state import Outcome
from ..peewee_compat import AtomicBlock, SavepointBlock, TransactionBlock
from .borrowing import Borrowing, State, notice_tasks
from .tasks import PlainFunctionsOnly, native_thread_id


class ConnectionContext(PlainFunctionsOnly, peewee.ConnectionContext):
    """A block with a connection."""

    def __init__(self, db: Borrowing) -> None:
        notice_tasks()
        super().__init__(db)


class Atomic(PlainFunctionsOnly, AtomicBlock):
    """A transaction, or a savepoint within one."""

    def __init__(self, db: Borrowing, *args: Any, **kwargs: Any) -> None:
        notice_tasks()
        super().__init__(db, *args, **kwargs)


class _Observed(PlainFunctionsOnly):
    """A block that ends where it began, whichever task leaves it, and whose rollback can be observed.

    Peewee calls a block's own method to roll it back, however that comes about.
    """

    db: Borrowing
    state: State
    thread: int
    _outcome: Outcome | None = None  # made when somebody asks for it

    def __enter__(self) -> Any:
        entered = super().__enter__()
        self.state, self.thread, self._outcome = self.db.task_state, native_thread_id(), None
        return entered

    def __exit__(self, *error: Any) -> Any:
        if self.state is self.db.task_state:
            return super().__exit__(*error)
        if self.thread != native_thread_id():
            raise TransactionError(
                "a transaction's block was left in another thread than the one that entered it",
                "enter and leave it in one function; the transaction is rolled back when its thread closes it",
            )
        with self.db._states.lent(self.state):  # others finish generators and fixtures
            return super().__exit__(*error)

    def rollback(self, begin: bool = True) -> None:
        if self._outcome is not None:
            self._outcome.undone = True
            self._outcome = None
        super().rollback(begin)

    @property
    def outcome(self) -> Outcome:
        """How this block ends; after a rollback within it, how the rest of it does."""
        if self._outcome is None:
            self._outcome = Outcome()
        return self._outcome


class Transaction(_Observed, TransactionBlock):
    """A transaction that knows where it began."""


class _KnownSavepoint(SavepointBlock):
    """A savepoint that its connection's state knows, for what a rollback to it takes back."""

    db: Borrowing
    state: State
    outer: _KnownSavepoint | None = None

    def __enter__(self) -> Any:
        entered = super().__enter__()
        state = self.db.task_state
        self.outer, state.savepoint = state.savepoint, self
        return entered

    def __exit__(self, *error: Any) -> Any:
        try:
            return super().__exit__(*error)
        finally:
            self.state.savepoint = self.outer

    def rollback(self, begin: bool = True) -> None:
        """Roll back to this savepoint; with a session that is lost, that hides no error."""
        try:
            if not self.db._is_session_lost():
                super().rollback(begin)
        except peewee.PeeweeException:
            if not self.db._is_session_lost():
                raise


class Savepoint(_Observed, _KnownSavepoint):
    """A savepoint that knows where it began."""
