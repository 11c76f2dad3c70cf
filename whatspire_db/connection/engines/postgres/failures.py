"""Why PostgreSQL could not be connected to: what the server answers, or what this machine can find out by itself.

libpq keeps the SQLSTATE of a refused connection to itself and words everything else in the language of the machine. So
the reason is looked up: does the name resolve, is the port open, and what is the server's code when it is asked again.
"""

from __future__ import annotations

import ctypes
import os
import selectors
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from whatspire_db.dsn.redaction import redact
from whatspire_db.dsn.targets import PostgresTarget
from whatspire_db.errors import ConnectionFailed, bounded
from whatspire_db.light_stdlib import pattern
from whatspire_db.messages import CONNECT_HINTS, LONGEST, SQLSTATE_HINTS

PROBE_SECONDS = 1.0  # for each host
ANSWER_SECONDS = 2.0  # for the server to repeat its refusal
PORT = 5432
_SQLSTATE_ONLY = 3  # PQERRORS_SQLSTATE, from libpq 12 on
_CODE = pattern(r":\s+([0-9A-Z]{5})\s*$")

UNKNOWN_HOST = "check the host in WHATSAPP_DATABASE_DSN: this machine cannot resolve the name"
CLOSED = "start the server, or check host and port in WHATSAPP_DATABASE_DSN: nothing listens there"
NO_PORT = "correct the port in WHATSAPP_DATABASE_DSN or PGPORT: it is a number from 1 to 65535"
NO_SOCKET = "start the server, or check the folder of its socket (host) in WHATSAPP_DATABASE_DSN"
UNREACHABLE = "check that the server runs and can be reached: its host does not answer (network, firewall, port)"
NO_RIGHT = "give this user the right to open the server's socket"
NAME_THE_USER = (
    "name the user in WHATSAPP_DATABASE_DSN (user=...): this process runs as user id {}, which has no name here"
)
NO_PASSWORD = "add the password to WHATSAPP_DATABASE_DSN"  # noqa: S105 - a sentence
SSL = "check sslmode and the certificates that WHATSAPP_DATABASE_DSN names: the server answers, but not over this SSL"
ATTRIBUTES = "no server of WHATSAPP_DATABASE_DSN is what target_session_attrs asks for; take it out, or name another"
DSN = "correct WHATSAPP_DATABASE_DSN"
AGAIN = "run it again: the server accepted the connection a moment later"
SERVICE = (
    "check the service that WHATSAPP_DATABASE_DSN or PGSERVICE names: whether ~/.pg_service.conf or the file of "
    "PGSERVICEFILE has it, and whether its server listens"
)
ELSE = "see the server's log, and check that PostgreSQL listens there"


@dataclass(frozen=True)
class Answer:
    """What a server said when it was asked again; all is None or False where it said nothing."""

    sqlstate: str | None = None
    wants_password: bool = False
    accepts: bool = False


SILENCE = Answer()


def cannot_connect(target: PostgresTarget, error: Exception, arguments: Mapping[str, str]) -> ConnectionFailed:
    """Return the error for a driver's failure to connect, without anything secret, with what to do.

    It takes a second or two where the server does not answer.

    :param arguments: what the driver was given.
    """
    words = bounded(redact(" ".join(str(error).split()), target.secrets), LONGEST)
    answer, remedy = SILENCE, _before_any_answer(error, arguments)
    if remedy is None:
        answer = _ask_again(arguments)
        remedy = _after(answer, arguments)
    failed = ConnectionFailed(f"cannot connect to PostgreSQL at {target.describe()}: {words}", remedy)
    failed.sqlstate, failed.accepts_now = answer.sqlstate, answer.accepts
    failed.is_unanswered = remedy in (UNKNOWN_HOST, CLOSED, NO_SOCKET, UNREACHABLE, SERVICE, ELSE) and answer == SILENCE
    failed.has_no_fitting_server = remedy == ATTRIBUTES
    return failed


def _before_any_answer(error: Exception, arguments: Mapping[str, str]) -> str | None:
    """Return what to do where no server needs to be asked; None where one answers, or none is named."""
    if type(error).__name__ == "ProgrammingError":  # the driver's, for a connection string that libpq cannot read
        return DSN
    if "service" in arguments or "PGSERVICE" in os.environ:
        return None
    if not arguments.get("user") and "PGUSER" not in os.environ and not _has_name():
        return NAME_THE_USER.format(os.geteuid())
    found = [_probe(host, port) for host, port in _places(arguments)]
    return None if None in found or not found else found[0]


def _has_name() -> bool:
    import pwd

    with suppress(KeyError):
        return bool(pwd.getpwuid(os.geteuid()))
    return False


def _places(arguments: Mapping[str, str]) -> Iterator[tuple[str, int]]:
    """Yield the hosts and ports that libpq tries; none for its own default socket, whose folder it alone knows."""
    hosts = arguments.get("hostaddr") or arguments.get("host") or os.environ.get("PGHOSTADDR", os.environ.get("PGHOST"))
    ports = (arguments.get("port") or os.environ.get("PGPORT") or "").split(",")
    for number, host in enumerate((hosts or "").split(",")):
        port = ports[number] if len(ports) > number else ports[0]
        if host and (port or str(PORT)).isdecimal():
            yield host, int(port or PORT)


def _probe(host: str, port: int) -> str | None:
    """Return why a place cannot be reached; None where something answers."""
    if not 0 < port < 65536:
        return NO_PORT
    try:
        if host.startswith(("/", "@")):
            return _probe_socket(f"{host}/.s.PGSQL.{port}")
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind, protocol) as tried, suppress(TimeoutError, OSError):
                tried.settimeout(PROBE_SECONDS)
                tried.connect(address)
                return None
        return _closed_or_silent(host, port)
    except (socket.gaierror, UnicodeError):
        return UNKNOWN_HOST
    except OSError:
        return UNREACHABLE


def _closed_or_silent(host: str, port: int) -> str:
    try:
        socket.create_connection((host, port), PROBE_SECONDS).close()
    except ConnectionRefusedError:
        return CLOSED
    except OSError:
        return UNREACHABLE
    return UNREACHABLE


def _probe_socket(path: str) -> str | None:
    with socket.socket(socket.AF_UNIX) as tried:
        tried.settimeout(PROBE_SECONDS)
        try:
            tried.connect("\0" + path[1:] if path.startswith("@") else path)
        except PermissionError:
            return NO_RIGHT
        except OSError:
            return NO_SOCKET
    return None


def _ask_again(arguments: Mapping[str, str]) -> Answer:
    """Connect once more, step by step, with the server's errors as their SQLSTATE alone."""
    import psycopg2

    connection = None
    try:
        connection = psycopg2.connect(**arguments, async_=True)
        library = _libpq()
        library.PQsetErrorVerbosity(ctypes.c_void_p(connection.pgconn_ptr), _SQLSTATE_ONLY)
        return Answer(accepts=_complete(connection))
    except psycopg2.Error as error:
        code = _CODE.search(str(error))
        return Answer(code[1] if code else None, wants_password=_wants_password(connection))
    except (AttributeError, OSError):  # a driver whose libpq cannot be reached from here
        return Answer()
    finally:
        if connection is not None:
            connection.close()


def _libpq() -> Any:
    """Return the very libpq that the driver uses."""
    from psycopg2 import _psycopg, extensions

    if extensions.libpq_version() < 120000:
        raise AttributeError("PQERRORS_SQLSTATE")
    return ctypes.CDLL(_psycopg.__file__)


def _wants_password(connection: Any) -> bool:
    with suppress(AttributeError, OSError):
        return bool(_libpq().PQconnectionNeedsPassword(ctypes.c_void_p(connection.pgconn_ptr)))
    return False


def _complete(connection: Any) -> bool:
    """Go on with a connection that was begun; tell whether the server accepted it in time."""
    from psycopg2 import extensions

    deadline = time.monotonic() + ANSWER_SECONDS
    while (state := connection.poll()) != extensions.POLL_OK:
        with selectors.DefaultSelector() as selector:
            event = selectors.EVENT_READ if state == extensions.POLL_READ else selectors.EVENT_WRITE
            selector.register(connection.fileno(), event)
            if not selector.select(max(0.0, deadline - time.monotonic())):
                return False
    return True


def _after(answer: Answer, arguments: Mapping[str, str]) -> str:
    """Return what to do about what a server answered."""
    state = answer.sqlstate
    if state == "08P01" and "options" not in arguments:  # a pooler's code for many things
        return ELSE
    if state is not None:
        return CONNECT_HINTS.get(state) or SQLSTATE_HINTS.get(state, ELSE)
    if answer.wants_password:
        return NO_PASSWORD
    if answer.accepts:
        return AGAIN
    if "target_session_attrs" in arguments:
        return ATTRIBUTES
    if any(name.startswith("ssl") for name in arguments):
        return SSL
    return SERVICE if "service" in arguments or "PGSERVICE" in os.environ else ELSE
