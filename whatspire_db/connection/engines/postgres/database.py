"""PostgreSQL: sessions opened with sane timeouts, and errors that say what to do."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager

import peewee

from whatspire_db import interruption
from whatspire_db.connection.database import Pooling
from whatspire_db.connection.deadline import answered_within
from whatspire_db.connection.pool_state import Limits
from whatspire_db.connection.query_log import QueryLog
from whatspire_db.dsn.targets import PostgresTarget
from whatspire_db.errors import ConnectionFailed
from whatspire_db.light_stdlib import Any

from . import session as postgres_session

# libpq's parameters, which a DSN overrides. A host that has vanished is found out within a minute: by the probes
# where nothing is sent, by tcp_user_timeout where what was sent is not acknowledged.
DEFAULTS = {
    "connect_timeout": "10",  # seconds, for each host
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",  # milliseconds
}
READ_ONLY = "-c default_transaction_read_only=on"


class PostgresqlDatabase(Pooling, peewee.PostgresqlDatabase):
    """Peewee's database on a pool, whose failure to connect says what to do."""

    target: PostgresTarget
    answer_seconds = postgres_session.ANSWER_SECONDS
    _fresh: tuple[Any, ...] = ()

    def _connect(self) -> Any:
        try:
            connection = interruption.cancellable(interruption.aside(super()._connect))
        except Exception as error:
            raise self._cannot_connect(error) from None
        self._fresh = connection.driver_state()
        return connection

    def _initialize_connection(self, conn: Any) -> None:
        super()._initialize_connection(conn)
        try:
            postgres_session.read_times(conn)
        except Exception as error:
            raise self._cannot_connect(error) from None

    def _cannot_connect(self, error: Exception) -> ConnectionFailed:
        # The driver's own error class, without naming a driver that SQLite users do not need.
        options = {key: self.connect_params[key] for key in ("options",) if key in self.connect_params}
        from .failures import cannot_connect  # ctypes and sockets, which a connection that works never needs

        return cannot_connect(self.target, error, arguments_of(self.target) | options)

    def _open(self) -> Any:
        connection = super()._open()
        connection.changed = False  # what initialises every connection stays
        return connection

    @staticmethod
    def _close_raw(connection: Any) -> None:
        postgres_session.close(connection)

    def _is_usable(self, connection: Any) -> bool:
        return not connection.closed and not postgres_session.has_news(connection)

    def _answers(self, connection: Any, seconds: float) -> bool:
        return postgres_session.answers(connection, seconds)

    def _limit_answer(self, connection: Any, seconds: float) -> AbstractContextManager[None]:
        return answered_within(seconds, connection.fileno())

    def _refuse_writes(self, connection: Any) -> Callable[[], None]:
        return postgres_session.refuse_writes(connection)

    def _is_lost(self, connection: Any) -> bool:
        return bool(connection.closed)

    def _was_in_transaction(self, connection: Any) -> bool:
        return bool(connection.was_in_transaction)

    def _is_clean(self, connection: Any) -> bool:
        return postgres_session.clean(connection, self._fresh)

    def _leave(self, connection: Any) -> None:
        postgres_session.leave(connection)


def open_postgres(target: PostgresTarget, limits: Limits, log: QueryLog, read_only: bool = False) -> PostgresqlDatabase:
    """Return a database for a DSN; `read_only` has the server refuse what writes."""
    arguments: dict[str, Any] = dict(arguments_of(target))
    if read_only:
        arguments["options"] = " ".join(filter(None, [arguments.get("options"), READ_ONLY]))
    # Peewee takes an empty URL as: whatever libpq finds in its service file, its variables and its defaults.
    database = arguments.pop("dbname", "") or "postgresql://"
    db = PostgresqlDatabase(
        database, limits=limits, log=log, connection_factory=postgres_session.Connection, **arguments
    )
    db.target = target
    return db


def arguments_of(target: PostgresTarget) -> dict[str, str]:
    """Return libpq's arguments for a DSN, with sane ones where it says nothing."""
    arguments = dict(target.arguments)
    if "service" not in arguments:  # what the service file says would be overridden
        for name, value in DEFAULTS.items():
            if not (name == "connect_timeout" and "PGCONNECT_TIMEOUT" in os.environ):
                arguments.setdefault(name, value)
    arguments.setdefault("fallback_application_name", "whatspire_db")
    # Python's texts are Unicode. A database in SQL_ASCII would name no encoding, and nothing but ASCII could be read.
    arguments.setdefault("client_encoding", "UTF8")
    return arguments
