"""A session of PostgreSQL that remembers whether it was changed, so that the next user gets it as new."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache

from psycopg2 import DatabaseError, OperationalError, extensions

from whatspire_db.connection.deadline import answered_within, is_readable
from whatspire_db.light_stdlib import Any, pattern

from . import times as postgres_times

# A server answers these questions in well under a millisecond; a peer that lets one wait so long is as good as gone.
ANSWER_SECONDS = 10.0
_READ_ONLY = "SELECT set_config('default_transaction_read_only', 'on', false) WHERE pg_backend_pid() = %s"
GOODBYE_SECONDS = 1.0  # wait so long for the server to end a session; it takes about a millisecond

# A statement leaves the session as it was when it begins with one of these words, calls no function but these (or
# keywords before a parenthesis), and makes no table. What any other function does is known to nobody here.
_HARMLESS_START = pattern(
    r"[\s(]*(SELECT|INSERT|UPDATE|DELETE|MERGE|VALUES|WITH|BEGIN|START|COMMIT|END|ROLLBACK|ABORT|SAVEPOINT|RELEASE|SHOW"
    r"|ANALYZE|VACUUM|TRUNCATE)\b",
    re.IGNORECASE,
)
# What Peewee sends most, without a call or a word that says more: known at a glance.
_PLAIN = pattern(
    r'BEGIN|COMMIT|ROLLBACK|SELECT (?:"\w+"(?:\."\w+")*|\b(?:WHERE|AND|OR)\b \(*'
    r"|\b(?:AS|FROM|ORDER|BY|LIMIT|OFFSET)\b|%s|[ ,=<>0-9)])*"
)
_NAME = r'(?:"(?:[^"]|"")*"|\w+)'
_INSERT = pattern(rf"\b(?:INSERT|MERGE)\s+INTO\s+(?:{_NAME}\s*\.\s*)?{_NAME}(?:\s+AS\s+{_NAME})?\s*\(?", re.IGNORECASE)
_DOUBTFUL = pattern(r'\bINTO\b|--|/\*|pg_settings|["$]\s*\(|\.\s*\w+\s*\(', re.IGNORECASE)
_CALL = pattern(r"(\w+)\s*\(")
_HARMLESS_NAMES = (
    "all and any array as between by case conflict distinct else except exists filter from group having ilike "
    "in intersect join lateral like limit materialized not on only or over partition row select set some then "
    "union using values when where within with "
    "abs age array_agg array_length avg bool_and bool_or btrim cast ceil char_length coalesce concat concat_ws "
    "count date_part date_trunc dense_rank every extract first_value floor format gen_random_uuid "
    "generate_series greatest json_agg json_array_length json_build_object jsonb_agg jsonb_array_elements "
    "jsonb_array_length jsonb_build_object jsonb_set lag last_value lead least left length lower lpad ltrim "
    "make_interval max md5 min mod now nullif numeric octet_length percentile_cont percentile_disc pg_sleep "
    "position power random rank regexp_replace repeat replace right round row_number row_to_json rpad rtrim "
    "sign split_part sqrt string_agg strpos substr substring sum to_char to_date to_json to_jsonb to_number "
    "to_timestamp translate trim trunc unnest upper varchar"
)
_HARMLESS_CALLS = frozenset(_HARMLESS_NAMES.split())


@lru_cache(maxsize=1024)
def changes_session(sql: str) -> bool:
    """Tell whether a statement might leave something behind in its session: a setting, a lock, a temporary table ...

    True in every doubt. What a trigger, a view or a cast does by itself is not seen.
    """
    if _PLAIN.fullmatch(sql):
        return False
    if not _HARMLESS_START.match(sql) or ";" in sql.rstrip().rstrip(";"):
        return True
    text = _INSERT.sub(" ", sql)
    return bool(_DOUBTFUL.search(text)) or any(name.lower() not in _HARMLESS_CALLS for name in _CALL.findall(text))


class Cursor(extensions.cursor):
    """The driver's cursor, which tells its connection what might change the session."""

    connection: Connection

    def execute(self, query: Any, vars: Any = None) -> None:
        """Run a statement."""
        self._note(query)
        try:
            super().execute(query, vars)
        except DatabaseError as error:
            # The driver's word for a server that ended while nothing was asked of it; it takes the session to be open.
            if type(error) is DatabaseError and error.pgcode is None:
                self.connection.close()
                raise OperationalError(*error.args) from None
            raise

    def executemany(self, query: Any, vars_list: Any) -> None:
        """Run a statement for each set of parameters."""
        self._note(query)
        super().executemany(query, vars_list)

    def callproc(self, procname: Any, *args: Any) -> Any:
        """Call a function."""
        self._note()
        return super().callproc(procname, *args)

    def copy_expert(self, sql: Any, file: Any, *args: Any) -> None:
        """Run a COPY statement, whose query may call any function."""
        self._note()
        super().copy_expert(sql, file, *args)

    def _note(self, query: Any = None) -> None:
        if not isinstance(query, str) or changes_session(query):
            self.connection.changed = True
        self.connection.note_transaction()


class Connection(extensions.connection):
    """The driver's connection, with what its user changed of it."""

    changed = False
    was_in_transaction = False
    in_utc = False  # kept in UTC

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().__init__(*args, **kwargs)
        except BaseException:
            # Whoever keeps the error keeps this object, and with it a socket on which the server waits for a password.
            self.close()
            raise
        self.cursor_factory = Cursor

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        """Return a cursor; one of another kind may do what this connection does not see."""
        if args or kwargs:
            self.changed = True
        return super().cursor(*args, **kwargs)

    def lobject(self, *args: Any, **kwargs: Any) -> Any:
        """Return a large object."""
        self.changed = True
        return super().lobject(*args, **kwargs)

    def note_transaction(self) -> None:
        """Remember whether a transaction is open, which a lost connection does not tell."""
        status = self.get_transaction_status()
        if status != extensions.TRANSACTION_STATUS_UNKNOWN:
            self.was_in_transaction = status != extensions.TRANSACTION_STATUS_IDLE

    def driver_state(self) -> tuple[Any, ...]:
        """Return what the driver itself keeps of a session, and no statement brings back."""
        return (
            self.encoding,
            self.autocommit,
            self.isolation_level,
            self.readonly,
            self.deferrable,
            self.cursor_factory,
        )


def read_times(connection: Connection) -> None:
    """Put a new session into UTC, unless the DSN says otherwise, and have every time read for what it is."""
    postgres_times.register(connection)
    connection.in_utc = not postgres_times.names_time_zone(connection)
    _back_to_utc(connection)


def _back_to_utc(connection: Connection) -> None:
    if connection.in_utc and not postgres_times.is_in_utc(connection):
        _run(connection, postgres_times.SET_UTC)


def has_news(connection: Connection) -> bool:
    """Return whether there is something to read of a session that was asked nothing: most often, that it has ended."""
    return is_readable(connection.fileno())


def answers(connection: Connection, seconds: float) -> bool:
    """Return whether the server still holds a session and says so within so many seconds; if not, it is closed."""
    try:
        _run(connection, "SELECT 1", seconds)
    except Exception:
        return False
    return True


def refuse_writes(connection: Connection) -> Callable[[], None]:
    """Have the server refuse what writes in transactions from here on, and return what ends that.

    Behind a pooler, whose server process is not the one that answered first, a setting would be left to others: there
    nothing is refused.
    """
    from whatspire_db.sql import pinned  # only here

    with answered_within(ANSWER_SECONDS, connection.fileno()), connection.cursor() as cursor:
        cursor.execute(pinned(_READ_ONLY), [connection.info.backend_pid])
        is_set = cursor.fetchone() is not None

    def permit() -> None:
        if is_set:
            _run(connection, "RESET default_transaction_read_only")

    return permit


def clean(connection: Connection, fresh: tuple[Any, ...]) -> bool:
    """End what is open in a session and undo what was changed; return False when only closing it helps.

    :param fresh: the driver's state of a connection that nobody has used.
    """
    try:
        if connection.closed or connection.driver_state() != fresh:
            return False
        status = connection.get_transaction_status()
        if status in (extensions.TRANSACTION_STATUS_ACTIVE, extensions.TRANSACTION_STATUS_UNKNOWN):
            return False
        if status != extensions.TRANSACTION_STATUS_IDLE:
            _run(connection, "ROLLBACK")
        if connection.changed:
            _run(connection, "DISCARD ALL")
            if not (connection.get_parameter_status("DateStyle") or "").startswith("ISO"):
                _run(connection, "SET datestyle TO 'ISO'")  # as the driver does when it connects
            _back_to_utc(connection)
            connection.notifies.clear()
            connection.notices.clear()
            connection.changed = False
    except Exception:
        return False
    return True


def _run(connection: Connection, sql: str, seconds: float | None = None) -> None:
    with answered_within(seconds or ANSWER_SECONDS, connection.fileno()), connection.cursor() as cursor:
        cursor.execute(sql)


def close(connection: Connection) -> None:
    """Close a session, and wait a moment until the server has ended it too.

    Otherwise who connects next would find one session more than the pool may have.
    """
    if connection.closed:
        return
    socket = os.dup(connection.fileno())
    try:
        connection.close()
        is_readable(socket, GOODBYE_SECONDS)
    finally:
        os.close(socket)


def leave(connection: Connection) -> None:
    """Let go of a session that belongs to the parent process.

    Closing it would end it for the parent too, and an open socket would keep it alive when the parent dies; so its file
    descriptor becomes one of /dev/null, which no later file can take the number of.
    """
    with suppress(Exception):
        nothing = os.open(os.devnull, os.O_RDWR)
        try:
            os.dup2(nothing, connection.fileno(), inheritable=False)
        finally:
            os.close(nothing)
