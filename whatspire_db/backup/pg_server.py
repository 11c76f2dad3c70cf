"""A PostgreSQL server's databases: what belongs to one besides its tables, scratch ones, and the swap of two names."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager, suppress
from datetime import datetime, timedelta
from typing import Any

from ..dsn import PostgresTarget, redact
from ..errors import BackupFailed, ConfigError, ConnectionFailed, TargetRefused
from ..postgres import arguments_of, cannot_connect
from .archive import STAMP
from .durable import undisturbed

MAINTENANCE = ("postgres", "template1")  # databases to be connected to while another one is renamed
SCRATCH = "whatspire_scratch_"
RESTORING = "whatspire_db restore"  # the application name of the program that fills a database
NAME_BYTES = 63
OLD_BYTES = len("_old_20260102T030405Z")
STEM_BYTES = NAME_BYTES - OLD_BYTES
POLL_SECONDS = 0.1
LOST_LOOKS, LOST_LOOK_SECONDS = 100, 0.1  # at a session that was lost, until it has ended
# What is asked must come out alike on every server and for every role.
SESSION = {
    "search_path": "",
    "TimeZone": "UTC",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "lc_monetary": "C",
    "quote_all_identifiers": "off",
    "row_security": "off",  # rows that a policy hides are an error, and not missing
    "default_transaction_read_only": "off",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "transaction_timeout": "0",
}

_SET = """
SELECT set_config(s.name, given.value, false)
FROM json_each_text(%s) AS given (name, value)
JOIN pg_catalog.pg_settings AS s ON lower(s.name) = lower(given.name)
"""
# A lock is of one database's sessions, but seen by all.
_LEFT = """
SELECT d.datname FROM pg_catalog.pg_database AS d
WHERE d.datname ~ %s AND pg_has_role(current_user, d.datdba, 'USAGE') AND NOT EXISTS (
    SELECT FROM pg_catalog.pg_locks AS l WHERE l.locktype = 'advisory' AND l.objsubid = 1
        AND (l.classid::bigint << 32) | l.objid::bigint = hashtextextended(d.datname, 0)
)
"""
_END = """
SELECT pg_terminate_backend(a.pid) FROM pg_catalog.pg_stat_activity AS a
WHERE EXISTS (
    SELECT FROM pg_catalog.pg_locks AS l
    WHERE l.pid = %s AND l.classid = 'pg_catalog.pg_database'::regclass AND l.objid = %s
        AND l.mode = 'AccessExclusiveLock' AND l.granted
) AND a.datid = %s AND a.backend_type = 'client backend'
"""
# Of the server's names none is asked for but those that matter: others can be in any encoding, and not be read.
_IS_OLD = "d.datname ~ '_old_[0-9]{8}T[0-9]{6}Z$'"
_OLD = f"""
SELECT d.datname FROM (SELECT %s::text AS stem) AS given, pg_catalog.pg_database AS d
WHERE {_IS_OLD} AND starts_with(d.datname, stem || '_old_')
    AND octet_length(d.datname::text) = octet_length(stem) + {OLD_BYTES}
ORDER BY 1
"""
# A character has four bytes at most, so that what has three less may be the rest of a longer name.
_ALIKE = f"""
SELECT 1 FROM (SELECT %s::text AS stem, %s::text AS name, {STEM_BYTES} AS most) AS given, pg_catalog.pg_database AS d
WHERE octet_length(stem) > most - 4 AND starts_with(d.datname, stem) AND d.datname <> name AND NOT {_IS_OLD}
    AND (octet_length(d.datname::text) > most OR d.datname = stem)
"""
# By SQLSTATE.
HINTS = {"42501": "take a role with the right to it", "53100": "make room on the server"}
# Settings that hold a list of names, each quoted by itself.
LISTS = {
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
    "unix_socket_directories",
}


class Session:
    """A connection in autocommit, that answers in rows."""

    def __init__(self, connection: Any, target: PostgresTarget, pool: ThreadPoolExecutor) -> None:
        self.connection = connection
        self.target = target
        self._pool = pool

    def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Run a statement and return its rows, none where it gives none; an interrupt ends it."""
        if threading.current_thread() is not threading.main_thread():
            return self._rows(sql, *values)
        # The driver waits for the server in C, where no handler of a signal runs, so it does in another thread.
        future = self._pool.submit(self._rows, sql, *values)
        try:
            return future.result()
        finally:
            if not future.done():
                with undisturbed():
                    self.cancel(future)

    def _rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with self.connection.cursor() as cursor:
            cursor.execute(sql, values or None)
            return cursor.fetchall() if cursor.description else []

    def cancel(self, future: Future[Any]) -> None:
        """End the statements that run in another thread until that is done."""
        while not future.done():  # between two statements there is nothing to cancel
            with suppress(Exception):
                self.connection.cancel()
            wait([future], POLL_SECONDS)

    def value(self, sql: str, *values: Any) -> Any:
        """Return the first column of the first row."""
        return self.rows(sql, *values)[0][0]

    def pinned(self, target: PostgresTarget) -> PostgresTarget:
        """Return a target that leads to this very server, where it names several."""
        if "," not in target.arguments.get("host", ""):
            return target
        info = self.connection.info
        return PostgresTarget({**target.arguments, "host": info.host, "port": str(info.port)})

    @property
    def major(self) -> int:
        """The major version of the server."""
        return int(self.connection.server_version) // 10000

    @property
    def is_superuser(self) -> bool:
        """Whether its role may do all."""
        return bool(self.value("SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user"))


@contextmanager
def session(target: PostgresTarget) -> Iterator[Session]:
    """Open a connection whose answers do not depend on its role's settings.

    :raises ConnectionFailed: when there is none to be had.
    :raises BackupFailed: when the server refuses a statement.
    :raises TargetRefused: when others hold a lock for too long.
    """
    import psycopg2

    try:
        connection = psycopg2.connect(**arguments_of(target))
    except psycopg2.Error as error:
        refused = cannot_connect(target, error)
        if "unsupported startup parameter" in str(error):
            refused.hint += "; a restore takes a direct connection, without a pooler"
        raise refused from None
    with closing(connection), ThreadPoolExecutor(1) as pool:
        connection.autocommit = True
        opened = Session(connection, target, pool)
        try:
            connection.set_client_encoding("UTF8")  # a server without an encoding names none
            opened.rows(_SET, json.dumps(SESSION))
            yield opened
        except psycopg2.Error as error:
            text = redact(" ".join(str(error).split()), target.secrets)
            if isinstance(error, psycopg2.errors.LockNotAvailable):
                fact = f"another session held a lock for too long: {text}"
                raise TargetRefused(fact, "wait for that session to end, or raise --lock-timeout") from None
            raise BackupFailed(text, HINTS.get(error.pgcode, "see the server's log; nothing was changed")) from None


def quoted(name: str) -> str:
    """Return a name as an identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(value: str) -> str:
    """Return a text as a literal."""
    escaped = value.replace("'", "''")
    return " E'" + escaped.replace("\\", "\\\\") + "'" if "\\" in value else f"'{escaped}'"


def database_of(target: PostgresTarget) -> str:
    """Return the name of the database that a DSN leads to; asks the server where the DSN does not say."""
    if name := target.arguments.get("dbname"):
        return name
    with session(target) as asked:
        return str(asked.value("SELECT current_database()"))


def database_properties(asked: Session, name: str) -> dict[str, Any] | None:
    """Return what belongs to a database and is not in its dump; None where there is no such database."""
    locale = {15: "d.daticulocale", 16: "d.daticulocale"}.get(
        asked.major, "d.datlocale" if asked.major > 16 else "NULL"
    )
    provider = "d.datlocprovider::text" if asked.major > 14 else "'c'"
    rules = "d.daticurules" if asked.major > 15 else "NULL"
    found = asked.rows(
        f"""
        SELECT r.rolname, pg_encoding_to_char(d.encoding), d.datcollate, d.datctype, {provider}, {locale}, {rules},
            d.datconnlimit, d.datistemplate, t.spcname, shobj_description(d.oid, 'pg_database'),
            d.datacl IS NOT NULL
        FROM pg_catalog.pg_database AS d JOIN pg_catalog.pg_roles AS r ON r.oid = d.datdba
        JOIN pg_catalog.pg_tablespace AS t ON t.oid = d.dattablespace WHERE d.datname = %s
        """,
        name,
    )
    if not found:
        return None
    keys = (
        "owner encoding collate ctype provider locale rules connection_limit is_template tablespace comment has_grants"
    )
    properties = dict(zip(keys.split(), found[0], strict=True))
    properties["settings"] = asked.rows(
        "SELECT coalesce(r.rolname, ''), s.setconfig FROM pg_catalog.pg_db_role_setting AS s "
        "LEFT JOIN pg_catalog.pg_roles AS r ON r.oid = s.setrole "
        "JOIN pg_catalog.pg_database AS d ON d.oid = s.setdatabase WHERE d.datname = %s ORDER BY 1",
        name,
    )
    properties["grants"] = asked.rows(
        "SELECT coalesce(r.rolname, ''), a.privilege_type, a.is_grantable, g.rolname "
        "FROM pg_catalog.pg_database AS d, aclexplode(d.datacl) AS a "
        "LEFT JOIN pg_catalog.pg_roles AS r ON r.oid = a.grantee "
        "JOIN pg_catalog.pg_roles AS g ON g.oid = a.grantor WHERE d.datname = %s ORDER BY 1, 2, 4",
        name,
    )
    return properties


@contextmanager
def maintenance(target: PostgresTarget, other_than: str = "") -> Iterator[Session]:
    """Open a connection to a database of the server that is none of those in question."""
    failure: ConnectionFailed | None = None
    for name in MAINTENANCE:
        if name == other_than:
            continue
        try:
            opened = session(target.to(name))
            admin = opened.__enter__()
        except ConnectionFailed as error:
            failure = failure or error
            continue
        try:
            yield admin
        except BaseException as error:
            if not opened.__exit__(type(error), error, error.__traceback__):
                raise
        else:
            opened.__exit__(None, None, None)
        return
    assert failure
    raise failure


@contextmanager
def scratch(admin: Session, properties: Mapping[str, Any], template: str = "template0") -> Iterator[str]:
    """Make an empty database, and drop it after the block if it still has its name.

    Its name is locked as long as somebody works on it; those of dead processes that this role may drop are dropped
    first.

    :param properties: those of the database that it is to be like.
    """
    for (name,) in admin.rows(_LEFT, f"^{SCRATCH}[0-9a-f]{{12}}$"):
        if admin.value("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", name):
            with suppress(Exception):  # it stops nobody
                drop(admin, name)
            admin.rows("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", name)
    name = SCRATCH + uuid.uuid4().hex[:12]
    admin.rows("SELECT pg_advisory_lock(hashtextextended(%s, 0))", name)
    try:
        admin.rows(f"CREATE DATABASE {quoted(name)} TEMPLATE {template} {_locale_options(admin, properties)}")
        yield name
    except BaseException:
        with suppress(Exception):  # what went wrong is told, and the next restore drops it
            admin.rows("ROLLBACK")
            drop(admin, name)
        raise
    with _unless_gone(admin):
        drop(admin, name)


@contextmanager
def _unless_gone(admin: Session) -> Iterator[None]:
    """Leave undone in the block what a session that was ended cannot do: it was of no weight any more."""
    import psycopg2

    try:
        yield
    except psycopg2.Error:
        if not admin.connection.closed:
            raise


def drop(admin: Session, name: str) -> None:
    """Drop a database that may not be there."""
    if admin.value("SELECT EXISTS (SELECT FROM pg_catalog.pg_database WHERE datname = %s AND datistemplate)", name):
        admin.rows(f"ALTER DATABASE {quoted(name)} IS_TEMPLATE false")
    _drop_subscriptions(admin, name)
    admin.rows(f"DROP DATABASE IF EXISTS {quoted(name)} WITH (FORCE)")


def _drop_subscriptions(admin: Session, name: str) -> None:
    """Drop what stops a database from being dropped, and leave its slots alone: they serve the one that is restored."""
    names = admin.rows(
        "SELECT s.subname FROM pg_catalog.pg_subscription AS s "
        "JOIN pg_catalog.pg_database AS d ON d.oid = s.subdbid WHERE d.datname = %s",
        name,
    )
    if not names:
        return
    with session(admin.pinned(admin.target).to(name)) as inside:
        for (subscription,) in names:
            inside.rows(f"ALTER SUBSCRIPTION {quoted(subscription)} DISABLE")
            inside.rows(f"ALTER SUBSCRIPTION {quoted(subscription)} SET (slot_name = NONE)")
            inside.rows(f"DROP SUBSCRIPTION {quoted(subscription)}")


def _locale_options(admin: Session, properties: Mapping[str, Any]) -> str:
    options = {
        "ENCODING": literal(properties["encoding"]),
        "LC_COLLATE": literal(properties["collate"]),
        "LC_CTYPE": literal(properties["ctype"]),
    }
    provider = {"c": "libc", "i": "icu", "b": "builtin"}[properties["provider"]]
    # Naming the usual one takes a right to it that plain roles do not have.
    if properties["tablespace"] != "pg_default" and admin.rows(
        "SELECT 1 FROM pg_catalog.pg_tablespace WHERE spcname = %s", properties["tablespace"]
    ):
        options["TABLESPACE"] = quoted(properties["tablespace"])
    if admin.major > 14:
        options["LOCALE_PROVIDER"] = provider
        if properties["locale"]:
            options["ICU_LOCALE" if provider == "icu" else "BUILTIN_LOCALE"] = literal(properties["locale"])
        if properties["rules"]:
            options["ICU_RULES"] = literal(properties["rules"])
    return " ".join(f"{name} = {value}" for name, value in options.items())


def may_act_for(asked: Session, roles: Iterable[str]) -> dict[str, bool]:
    """Return which of some roles are there, and for which of them this role may act."""
    right = "SET" if asked.major > 15 else "MEMBER"  # since 16 a member may be one without the right to SET ROLE
    # Of others nothing may come: their names may be in any encoding.
    return dict(
        asked.rows(
            "SELECT rolname, pg_has_role(current_user, oid, %s) FROM pg_catalog.pg_roles WHERE rolname = ANY(%s)",
            right,
            list(roles),
        )
    )


def apply_properties(admin: Session, name: str, properties: Mapping[str, Any], *, on_trial: bool = False) -> None:
    """Give a database the owner, grants, settings, limit and comment of another one.

    What belongs to roles that are not there is left out, and it stays this role's where that may not give it away. All
    of it is done, or nothing.

    :param on_trial: undo it all: it is known then that it can be done.
    :raises BackupFailed: when this role may not make a setting.
    """
    database = quoted(name)
    named = {properties["owner"], *(role for role, _ in properties["settings"])}
    named.update(role for to, _, _, by in properties["grants"] for role in (to, by))
    able = may_act_for(admin, named)
    roles, current = able.keys(), admin.value("SELECT current_user")
    admin.rows("BEGIN")
    if able.get(properties["owner"]) and properties["owner"] != current:
        admin.rows(f"ALTER DATABASE {database} OWNER TO {quoted(properties['owner'])}")
    if properties["connection_limit"] != -1:
        admin.rows(f"ALTER DATABASE {database} CONNECTION LIMIT {properties['connection_limit']}")
    if properties["is_template"]:
        admin.rows(f"ALTER DATABASE {database} IS_TEMPLATE true")
    if properties["comment"]:
        admin.rows(f"COMMENT ON DATABASE {database} IS {literal(properties['comment'])}")
    if properties["has_grants"]:
        holders = {"PUBLIC"} | {quoted(name) for name in {properties["owner"]} & roles}
        admin.rows(f"REVOKE ALL ON DATABASE {database} FROM {', '.join(sorted(holders))}")
    for role, privilege, grantable, grantor in _in_order(properties["grants"], properties["owner"]):
        if role in roles | {""}:
            to = quoted(role) if role else "PUBLIC"
            if able.get(grantor) and grantor not in (properties["owner"], current):
                admin.rows(f"SET LOCAL ROLE {quoted(grantor)}")
            admin.rows(f"GRANT {privilege} ON DATABASE {database} TO {to}{' WITH GRANT OPTION' if grantable else ''}")
            admin.rows("RESET ROLE")
    for role, settings in properties["settings"]:
        if role in roles | {""}:
            whose = f"ROLE {quoted(role)} IN DATABASE {database}" if role else f"DATABASE {database}"
            for setting in settings:
                _set(admin, whose, *setting.split("=", 1))
    admin.rows("ROLLBACK" if on_trial else "COMMIT")


def _in_order(grants: Iterable[Sequence[Any]], owner: str) -> Iterator[Sequence[Any]]:
    """Put the grants of those who were given the right to them behind what gave it to them."""
    left = list(grants)
    holders = {(owner, privilege) for _, privilege, _, _ in left}
    while left:
        ready = [one for one in left if (one[3], one[1]) in holders] or left
        yield from ready
        holders |= {(role, privilege) for role, privilege, grantable, _ in ready if grantable}
        left = [one for one in left if one not in ready]


def _set(admin: Session, whose: str, name: str, value: str) -> None:
    import psycopg2

    parameter = ".".join(quoted(part) for part in name.split("."))
    is_list = name.lower() in LISTS  # in its stored form it is no literal
    try:
        if is_list:
            admin.rows("SELECT set_config(%s, %s, true)", name, value)
        admin.rows(f"ALTER {whose} SET {parameter} {'FROM CURRENT' if is_list else f'= {literal(value)}'}")
    except psycopg2.errors.InsufficientPrivilege:
        raise BackupFailed(
            f"this role may not set {name}, which a superuser set for the {'role' if whose[0] == 'R' else 'database'}",
            f"restore with a superuser, or let one reset {name} by ALTER {whose.split()[0]} ... RESET",
        ) from None


def old_name(admin: Session, name: str, moment: datetime) -> str:
    """Return a free name under which a database is kept that another one takes the place of."""
    taken = {old for (old,) in admin.rows(_OLD, _stem(name))}
    while (old := f"{_stem(name)}_old_{moment.strftime(STAMP)}") in taken:
        moment += timedelta(seconds=1)
    return old


def replaced(asked: Session, name: str) -> list[str]:
    """Return the databases that restores of a database put aside, and that are there still.

    Where they could be another database's too, whose name is as long and begins alike, there are none.
    """
    stem = _stem(name)
    if asked.rows(_ALIKE, stem, name):
        return []
    return [old for (old,) in asked.rows(_OLD, stem)]


def _stem(name: str) -> str:
    return name.encode()[:STEM_BYTES].decode(errors="ignore")


def require_direct(admin: Session) -> None:
    """Refuse a session that is not one of the server's own: its locks would be another's, and soon nobody's.

    :raises ConfigError: when it goes through a pooler.
    """
    if admin.value("SELECT pg_backend_pid()") != admin.connection.info.backend_pid:
        raise ConfigError(
            "a restore takes a direct connection, and this one goes through a pooler",
            "name the server itself in WHATSAPP_DATABASE_DSN",
        )


@contextmanager
def alone(admin: Session, name: str) -> Iterator[None]:
    """Be the only restore of a database, and end what a killed one left at work in it.

    :raises ConfigError: when that cannot be told, behind a pooler.
    :raises TargetRefused: when there is another one.
    """
    require_direct(admin)
    key = f"whatspire_db restore {name}"
    if not admin.value("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", key):
        raise TargetRefused(f"another restore of database {name} is under way", "wait for it to end")
    try:
        end_restoring(admin, name)  # a program outlives the process that started it and was killed
        yield
    finally:
        with _unless_gone(admin):
            admin.rows("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", key)


def end_restoring(admin: Session, name: str) -> None:
    """End what fills a database, and wait until it has ended."""
    admin.rows(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_catalog.pg_stat_activity "
        "WHERE datname = %s AND application_name = %s",
        name,
        RESTORING,
    )


def swap(admin: Session, target: PostgresTarget, new: str, name: str, old: str, wait: float) -> None:
    """Give a database another one's name, in one transaction: whoever is killed, one of them has it.

    The first rename holds off new sessions and waits for five seconds for those that are there, which are ended
    meanwhile from a second connection.

    :param wait: seconds to wait for others that alter the database; 0 for ever.
    :raises TargetRefused: when some of them could not be ended; nothing was changed.
    """
    import psycopg2

    pid = admin.value("SELECT pg_backend_pid()")
    oid = admin.value("SELECT oid FROM pg_catalog.pg_database WHERE datname = %s", name)
    with suppress(psycopg2.Error):  # where the server can: it lets new sessions in as soon as this process is killed
        admin.rows("SET client_connection_check_interval = '100ms'")
    ended = threading.Event()
    with maintenance(target, name) as ender:
        thread = threading.Thread(target=_end_sessions, args=(ender, pid, oid, ended))
        admin.rows("BEGIN")
        admin.rows(f"SET LOCAL lock_timeout = {int(wait * 1000)}")
        thread.start()
        try:
            admin.rows(f"ALTER DATABASE {quoted(name)} RENAME TO {quoted(old)}")
            admin.rows(f"ALTER DATABASE {quoted(new)} RENAME TO {quoted(name)}")
            admin.rows("COMMIT")
        except psycopg2.errors.ObjectInUse as error:
            admin.rows("ROLLBACK")
            detail = " ".join(str(error.diag.message_detail or "").split())
            raise TargetRefused(
                f"database {name} is in use: {detail or 'others are connected'}",
                "end those sessions and prepared transactions (of a subscription by ALTER SUBSCRIPTION ... DISABLE), "
                "or restore with a role that may; nothing was changed",
            ) from None
        except psycopg2.Error:
            if not admin.connection.closed or not _was_renamed(target, pid, oid, name, old):
                raise
        finally:
            ended.set()
            thread.join()


def _was_renamed(target: PostgresTarget, lost: int, oid: int, name: str, old: str) -> bool:
    """Tell whether a transaction that renames was committed, when the session that ran it was lost.

    :param lost: the process of that session.
    :raises BackupFailed: when the server does not tell.
    """
    try:
        with maintenance(target, name) as asked:
            for _ in range(LOST_LOOKS):
                if not asked.rows("SELECT 1 FROM pg_catalog.pg_stat_activity WHERE pid = %s", lost):
                    return bool(
                        asked.rows("SELECT 1 FROM pg_catalog.pg_database WHERE oid = %s AND datname = %s", oid, old)
                    )
                time.sleep(LOST_LOOK_SECONDS)
    except (BackupFailed, ConnectionFailed):
        pass
    raise BackupFailed(
        f"the connection was lost while database {name} was replaced",
        f"{name} is whole: the new one if there is a database {old}, which then is the old one; else the old one",
    )


def _end_sessions(ender: Session, renaming: int, oid: int, ended: threading.Event) -> None:
    """End a database's sessions as long as another session renames it."""
    while not ended.wait(0.02):
        with suppress(Exception):  # of those that it may not end the rename itself will tell
            ender.rows(_END, renaming, oid, oid)


def rename(admin: Session, new: str, name: str) -> None:
    """Give a database a name that none has.

    :raises TargetRefused: when one has it by now.
    """
    import psycopg2

    try:
        admin.rows(f"ALTER DATABASE {quoted(new)} RENAME TO {quoted(name)}")
    except psycopg2.errors.DuplicateDatabase:
        raise TargetRefused(f"database {name} was made meanwhile", "restore again") from None
