"""PostgreSQL: sessions opened with sane timeouts, and errors that say what to do."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import peewee

from . import postgres_session
from .dsn import PostgresTarget, redact
from .errors import ConnectionFailed
from .pool_state import Limits
from .pooling import Pooling
from .query_log import QueryLog

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
    _fresh: tuple[Any, ...] = ()

    def _connect(self) -> Any:
        try:
            connection = super()._connect()
        except Exception as error:
            # The driver's own error class, without naming a driver that SQLite users do not need.
            raise cannot_connect(self.target, error) from None
        self._fresh = connection.driver_state()
        return connection

    def _open(self) -> Any:
        connection = super()._open()
        connection.changed = False  # what initialises every connection stays
        return connection

    @staticmethod
    def _close_raw(connection: Any) -> None:
        postgres_session.close(connection)

    def _is_usable(self, connection: Any) -> bool:
        return not connection.closed and not postgres_session.has_news(connection)

    def _answers(self, connection: Any) -> bool:
        return postgres_session.answers(connection)

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
    arguments = arguments_of(target)
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
    return arguments


def cannot_connect(target: PostgresTarget, error: Exception) -> ConnectionFailed:
    """Return the error for a driver's failure to connect, without anything secret, with what to do."""
    text = redact(" ".join(str(error).split()), target.secrets)
    hints = {
        "password authentication failed": "check user and password in WHATSAPP_DATABASE_DSN",
        "no password supplied": "add the password to WHATSAPP_DATABASE_DSN",
        "does not exist": "create it, or correct its name in WHATSAPP_DATABASE_DSN",
        "translate host name": "check the host in WHATSAPP_DATABASE_DSN",
        "refused": "start the server, or check host and port in WHATSAPP_DATABASE_DSN",
        "No such file": "start the server, or check host and port in WHATSAPP_DATABASE_DSN",
        "too many": "close connections, or lower WHATSAPP_DATABASE_MAX_OPEN_CONNS",
        "unrecognized configuration parameter": "correct the parameter's name in WHATSAPP_DATABASE_DSN",
        "unsupported startup parameter": "take the run-time parameters out of WHATSAPP_DATABASE_DSN and set them for "
        "the role (ALTER ROLE ... SET): the pooler in between does not pass them on",
        "pg_hba.conf": "allow this host and user in the server's pg_hba.conf, or change sslmode",
        "SSL": "check sslmode in WHATSAPP_DATABASE_DSN",
    }
    hint = next((h for mark, h in hints.items() if mark in text), "check that the server runs and can be reached")
    return ConnectionFailed(f"cannot connect to PostgreSQL at {target.describe()}: {text}", hint)
