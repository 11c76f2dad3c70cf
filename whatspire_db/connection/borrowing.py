"""How a database on a pool gets its connections: each thread, task or greenlet borrows one and gives it back."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from operator import attrgetter

import peewee

from ..errors import PoolTimeout, TransactionError
from ..light_stdlib import Any
from ..peewee_compat import ConnectionState, ManualCommitBlock, set_up
from .pool import Pool
from .pool_state import Lease, Limits
from .tasks import TaskLocal, modules


class State(ConnectionState):
    """Peewee's state of a connection, with its lease, the database that lent it and whose transaction is open."""

    conn: Any  # of the driver
    task: Any = None  # that opened the transaction, where the tasks of a thread share a connection
    lease: Lease | None = None
    lender: Borrowing | None = None
    beginning = False
    reading = False  # within replica()
    guarded: Lease | None = None  # the lease whose connection refuses writes meanwhile
    permit: Callable[[], None] | None = None  # has it take them again
    savepoint: Any = None  # the innermost that is open

    @property
    def in_block(self) -> bool:
        """Whether this is in a transaction's block; that of manual_commit() is none by itself."""
        return any(not isinstance(block, ManualCommitBlock) for block in self.transactions)

    def forget(self) -> None:
        """Let go of a connection that belongs to the parent of this process."""
        self.lease, self.conn, self.closed = None, None, True


class Borrowing(peewee.Database):
    """A Peewee database that borrows its connections from a pool.

    A thread holds one connection, as with Peewee's own, and so does each asyncio task and each greenlet in it: their
    transactions would mix otherwise. Peewee connects and closes under a lock of the database; here threads wait for
    nothing but their own connection.

    :param per_task: False where a second connection would be another database (SQLite's in memory). Then the tasks of
        a thread share one, and only the task that opened a transaction may use it until that ends.
    """

    pool: Pool

    def __init__(self, *args: Any, limits: Limits, per_task: bool = True, **kwargs: Any) -> None:
        self.pool = Pool(limits, self._close_raw)
        self._states = TaskLocal(State, per_task)
        self._local = self._states.local
        super().__init__(*args, **kwargs)

    # Peewee asks for it some twenty times in a transaction: while a program has no tasks, without a call of Python.
    # The state that Peewee's own __init__ makes, which knows threads but no tasks, is ignored.
    task_state = _state = property(attrgetter("_local.plain"), lambda self, state: None)

    # What an engine says of its connections

    @staticmethod
    def _close_raw(connection: Any) -> None:
        connection.close()

    def _is_usable(self, connection: Any) -> bool:
        """Return whether an idle connection is, as far as it is known here, still that of its server."""
        return True

    answer_seconds = math.inf  # how long a server may take to answer the pool's own question

    def _answers(self, connection: Any, seconds: float) -> bool:
        """Ask the server of a connection whether it is there, and return whether it said so in time."""
        return True

    def _limit_answer(self, connection: Any, seconds: float) -> AbstractContextManager[None]:
        """Have a question fail, and its connection be lost, when the answer takes longer."""
        return nullcontext()

    def _is_lost(self, connection: Any) -> bool:
        """Return whether a connection in use is known to be closed."""
        return False

    def _was_in_transaction(self, connection: Any) -> bool:
        """Return whether a transaction was open, by whatever statement, when a connection was lost."""
        return False

    def _is_clean(self, connection: Any) -> bool:
        """Make a connection that is given back as good as new; False where it cannot be."""
        return False

    def _open(self) -> Any:
        connection = self._connect()
        try:
            set_up(self, connection)
        except BaseException:  # whoever keeps the error would keep the session
            with suppress(Exception):
                self._close_raw(connection)
            raise
        return connection

    # A thread's connection

    def connect(self, reuse_if_open: bool = False) -> bool:
        """Get this thread a connection; return False when it has one and `reuse_if_open`.

        :raises PoolTimeout: when none came free in time.
        :raises ConnectionFailed: when the database cannot be reached.
        """
        return self._borrow(time.monotonic(), reuse_if_open)

    def _borrow(self, since: float, reuse_if_open: bool = False) -> bool:
        """Get this thread a connection, which it has been waiting for since a moment of time.monotonic()."""
        notice_tasks()
        state = self.task_state
        if not state.closed:
            if reuse_if_open:
                return False
            raise peewee.OperationalError("Connection already opened.")
        if state.in_block:
            raise TransactionError(
                "the session of this transaction is gone, and what was done in it is rolled back",
                "let the error leave the transaction's block, then do the whole of it again",
            )
        lender = state.lender or self
        lease = lender.pool.acquire(lender._open, lender._is_usable, since)
        contexts, blocks = state.ctx, state.transactions  # those of a connection that was lost go on
        state.set_connection(lease.connection)
        state.ctx, state.transactions, state.lease = contexts, blocks, lease
        return True

    def close(self) -> bool:
        """Give this thread's connection back; return False when it has none."""
        if self.in_transaction():
            raise peewee.OperationalError("Attempting to close database while transaction is open.")
        return self._give_back(keep=True)

    def manual_close(self) -> bool:
        """Close this thread's connection for good; return False when it has none."""
        if self.in_transaction():
            raise peewee.OperationalError("Attempting to close database while transaction is open.")
        return self._give_back(keep=False)

    def _give_back(self, keep: bool, state: State | None = None) -> bool:
        state = state or self.task_state
        lease, state.lease = state.lease, None
        contexts = state.ctx  # `with db.connection_context()` ends well though the connection was closed inside
        state.reset()
        state.ctx = contexts
        if lease is None:
            return False
        lease.reusable = False
        lease.reusable = keep and (state.lender or self)._is_clean(lease.connection)
        lease.pool.release(lease)
        return True

    def _is_session_lost(self) -> bool:
        state = self.task_state
        return state.closed or self._is_lost(state.conn)

    def _drop(self, state: State | None = None) -> None:
        state = state or self.task_state
        blocks = state.transactions  # which go on with the next connection
        self._give_back(keep=False, state=state)
        state.transactions = blocks

    def _drop_lost(self, ended: bool = False) -> None:
        """Forget a lost connection, so that the next statement gets another.

        Not while its transaction has not `ended` for the caller, who would go on in it without one.
        """
        state = self.task_state
        if state.closed or not self._is_lost(state.conn) or state.in_block:
            return
        if ended or not self._was_in_transaction(state.conn):
            self._drop()

    def _prove(self, state: State) -> None:
        """Have this thread's connection answer before its first statement, which would be lost with a dead one.

        A BEGIN needs no such question: it can be repeated on another connection.
        """
        if state.lease is None or state.lease.proved:
            return
        begins = state.beginning and not state.reading  # where it reads only, that is said before
        if begins or state.in_block:
            return
        since = time.monotonic()
        while state.lease is not None and not state.lease.proved:
            state.lease.proved = self._answers(state.conn, self._seconds_to_answer(since))
            if not state.lease.proved:
                self._drop()
                self._borrow(since)

    def _seconds_to_answer(self, since: float) -> float:
        """Return how long a server may still take to answer, where somebody has waited for a connection since then.

        :raises PoolTimeout: when that is no time at all.
        """
        timeout = self.pool.limits.timeout
        left = since + timeout - time.monotonic() if timeout else math.inf
        if left <= 0:
            raise PoolTimeout(
                f"no connection of the pool answered within {timeout:g} s",
                "check the server and what stands before it (a proxy, a load balancer), or raise "
                "WHATSAPP_DATABASE_POOL_TIMEOUT",
            )
        return min(self.answer_seconds, left)

    def _limit_begin(self, since: float) -> AbstractContextManager[None]:
        """Limit the wait for BEGIN, which is the first statement of a connection that was idle: it can be repeated."""
        state = self.task_state
        if state.lease is None or state.lease.proved:
            return nullcontext()
        return self._limit_answer(state.conn, self._seconds_to_answer(since))


def notice_tasks() -> None:
    """Have every database tell tasks apart from now on, where a library that has them was imported meanwhile.

    This is asked wherever a task can begin to use a database. What a thread's own code has open stays its own.
    """
    may_run = "asyncio" in modules or "greenlet" in modules or "trio" in modules
    if may_run and Borrowing.task_state is not _state_of_task:
        Borrowing.task_state = Borrowing._state = _state_of_task


_state_of_task = property(lambda self: self._states.get(), lambda self, state: None)
