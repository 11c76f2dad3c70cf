"""Reads elsewhere: blocks whose statements run on a replica, and which refuse writes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from ..errors import TransactionError
from ..light_stdlib import Any
from .borrowing import Borrowing, State


class ReadsElsewhere(Borrowing):
    """A database with a block whose statements only read, on the replica where there is one."""

    replica_database: ReadsElsewhere | None = None

    def _refuse_writes(self, connection: Any) -> Callable[[], None]:
        """Have the database refuse what writes, and return what ends that."""
        raise NotImplementedError

    @contextmanager
    def replica(self) -> Iterator[ReadsElsewhere]:
        """Run the statements of a block on WHATSAPP_DATABASE_REPLICA_DSN, read-only; without one, on this database.

        :raises TransactionError: within a transaction, of which reads elsewhere are no part.
        :raises ConnectionFailed: when the replica cannot be reached.
        """
        state, lender = self.task_state, self.replica_database
        if state.reading:
            yield self
            return
        if self.in_transaction():
            raise TransactionError(
                "the replica cannot be read within a transaction of the primary",
                "end the transaction before `with db.replica():`",
            )
        with self._reading_here() if lender is None else self._reading_from(lender):
            yield self

    def _guard(self, state: State) -> None:
        """Have every connection refuse writes that this thread gets within a block that only reads."""
        if state.lender is None and state.guarded is not state.lease:
            state.permit, state.guarded = self._refuse_writes(state.conn), state.lease

    @contextmanager
    def _reading_here(self) -> Iterator[None]:
        state, opened = self.task_state, self.connect(reuse_if_open=True)
        state.reading = True
        try:
            self.connection()
            yield
        finally:
            state.reading = False
            self._permit_writes()
            if opened:
                self.close()

    def _permit_writes(self) -> None:
        state = self.task_state
        permit, guarded = state.permit, state.guarded
        state.permit = state.guarded = None
        if permit is None or state.lease is not guarded:  # closed or lost within the block
            return
        try:
            permit()
        except Exception:  # the session is gone, and the caller is to see his own error
            self._drop()

    @contextmanager
    def _reading_from(self, lender: Borrowing) -> Iterator[None]:
        state = self.task_state
        outside = dict(state.__dict__)
        process, thread = os.getpid(), threading.get_ident()
        state.__dict__.clear()
        state.reset()
        state.lender, state.reading = lender, True
        try:
            self.connect()
            yield
        finally:
            if threading.get_ident() == thread:  # a generator that was dropped can end in any
                with suppress(Exception):
                    self._give_back(keep=True)
                state.__dict__.clear()
                state.__dict__.update(outside)
            if os.getpid() != process:  # what was held outside is the parent's
                state.forget()
