"""What a signal to a command may interrupt: calls that wait in C, and what the command's connections run.

Workers use it too; it does not load the signal handlers, which only commands install.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress

from .light_stdlib import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from .signals import Command

T = TypeVar("T")

command: Command | None = None  # which runs in this process; none in a worker


def held() -> AbstractContextManager[None]:
    """Return a context in which a command's watcher leaves the main thread alone."""
    return command.held() if command else nullcontext()


def cancellable(connection: T) -> T:
    """Have a signal cancel what a connection runs, as long as the command runs; return the connection."""
    if command is not None:
        command.connections.append(connection)
    return connection


def forget_closed() -> None:
    """Forget connections that are closed: a command that opens one after the other has nothing to cancel there."""
    for connection in list(command.connections) if command else ():
        if _is_closed(connection):
            with suppress(ValueError):  # another thread was faster
                command.connections.remove(connection)  # type: ignore[union-attr]


def _is_closed(connection: Any) -> bool:
    if hasattr(connection, "closed"):
        return bool(connection.closed)
    try:
        connection.total_changes  # noqa: B018 - SQLite's has no other way to ask
    except Exception:
        return True
    return False


def aside(call: Callable[[], T]) -> T:
    """Return the result of a call that waits in C, run in another thread so that the main thread hears signals.

    An interrupt leaves the call to itself. Outside of commands, and of their main thread, the call runs as it is.
    """
    if command is None or threading.current_thread() is not threading.main_thread():
        return call()
    done = threading.Event()
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)
        done.set()

    try:
        threading.Thread(target=run, name="whatspire_db aside", daemon=True).start()
    except RuntimeError:  # no thread can be started, for want of memory or by a limit: better deaf than not at all
        return call()
    done.wait()
    if errors:
        raise errors[0]
    return results[0]
