"""SIGINT and SIGTERM end a command within a second, whatever it waits for; only commands install handlers."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading

# Bound here, before a module of the user's models can replace them (gevent, eventlet): the watcher is a real thread.
from _thread import allocate_lock, start_new_thread
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from select import select
from time import monotonic

from . import interruption
from .light_stdlib import Any, NoReturn, TypeVar

T = TypeVar("T")

NUMBERS = (signal.SIGINT, signal.SIGTERM)
HEARD_SECONDS = 0.7  # a main thread that has not heard the signal by then waits in C for what cannot be cancelled
CLEAR_SECONDS = 30.0  # for what a command rolls back and clears up after the signal
WATCHER_SECONDS = 1.0  # for the watcher to end; the child of a fork has none to wait for
HELD_SECONDS = 2.0  # a second signal ends what holds the first one back, but not before
CANCEL_SECONDS = 0.1
REPEAT_SECONDS = 0.15  # timeout(1) sends its signal to the process and to its group: that is one, not two
LAST_WORDS_SECONDS = 0.2
TICK_SECONDS = 0.02


class Command:
    """The signals of one run of a command: the first one interrupts it, the second one ends it at once.

    :param last_words: prints the error where the process ends without its main thread; returns the exit code.
    """

    def __init__(self, last_words: Callable[[int], int]) -> None:
        self.number: int | None = None  # of the first signal
        self.is_over = False  # from here on a signal interrupts nothing
        self.connections: list[Any] = []
        self._last_words = last_words
        self._heard = False
        self._held = 0

    def interrupt(self, number: int, frame: Any) -> None:
        """Handle a signal in the main thread.

        :raises KeyboardInterrupt: at the first one.
        """
        self.number = self.number or number
        if not self._heard and not self.is_over:
            self._heard = True
            raise KeyboardInterrupt

    @contextmanager
    def held(self) -> Iterator[None]:
        """Leave the main thread alone during the block, which handles signals itself."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1

    def watch(self, pipe: int) -> None:
        """Wait in a thread of its own for a signal, and see to it that the main thread hears it."""
        number = _next(pipe, None)
        if not number:
            return
        self.number = self.number or number
        if self._is_to_be_ended(pipe):
            self._end(self.number)

    def _is_to_be_ended(self, pipe: int) -> bool:
        """Watch the main thread end the command; False when it did, True when this thread has to."""
        started = monotonic()
        unheard, cancelled, second = 0.0, 0.0, False
        while True:
            again = _next(pipe, TICK_SECONDS)
            now = monotonic()
            if again == 0:
                return False
            second = second or bool(again and now - started > REPEAT_SECONDS)
            if self._held:
                if second and now - started > HELD_SECONDS:
                    return True
            elif second or unheard > HEARD_SECONDS or now - started > CLEAR_SECONDS:
                return True
            elif self.is_over or not self._heard:
                unheard += TICK_SECONDS
                if unheard > TICK_SECONDS and now - cancelled > CANCEL_SECONDS:
                    cancelled = now
                    self.cancel()

    def cancel(self) -> None:
        """Cancel what the connections run; each in a thread, because the server may not answer."""
        for connection in list(self.connections):
            cancel = getattr(connection, "cancel", None) or connection.interrupt
            start_new_thread(_quietly, (cancel,))

    def _end(self, number: int) -> None:
        said, code = allocate_lock(), exit_code(number)
        said.acquire()

        def say() -> None:
            nonlocal code
            with suppress(Exception):
                code = self._last_words(number)
            said.release()

        start_new_thread(say, ())
        said.acquire(timeout=LAST_WORDS_SECONDS)
        os._exit(code)


def exit_code(number: int) -> int:
    """Return the exit code of a command that a signal ended."""
    return 128 + number


def end(code: int) -> NoReturn:
    """End the process with a command's exit code, whatever signals come meanwhile.

    Threads and what is registered for the end of Python have their turn, as always. Python itself is not taken apart:
    that takes some 2 ms for memory that is about to be given back, and a signal that comes then changes the exit code.
    """
    for number in NUMBERS:
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            signal.signal(number, lambda number, frame: os._exit(code))
    # As multiprocessing ends its processes.
    for last in (threading._shutdown, atexit._run_exitfuncs, sys.stdout.flush, sys.stderr.flush):  # type: ignore[attr-defined]
        with suppress(Exception):
            last()
    os._exit(code)


def _quietly(call: Callable[..., object], *arguments: object) -> None:
    with suppress(Exception):
        call(*arguments)


def _next(pipe: int, seconds: float | None) -> int | None:
    """Return the number of the next signal; None when none came in time, 0 when the command is over."""
    if not select([pipe], [], [], seconds)[0]:
        return None
    data = os.read(pipe, 64)
    return next((byte for byte in data if byte in (0, *NUMBERS)), None) if data else 0


@contextmanager
def heard(last_words: Callable[[int], int]) -> Iterator[Command]:
    """Handle SIGINT and SIGTERM during the block; a signal that the caller ignores stays ignored.

    Outside of the main thread, where Python has no handlers, nothing is installed.
    """
    command = Command(last_words)
    if threading.current_thread() is not threading.main_thread():
        yield command
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    numbers = [n for n in NUMBERS if signal.getsignal(n) not in (signal.SIG_IGN, None)]
    outer, wakeup = interruption.command, signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    before = {number: signal.signal(number, command.interrupt) for number in numbers}
    interruption.command = command
    watching = allocate_lock()
    watching.acquire()
    start_new_thread(_watch, (command, reader, watching))
    try:
        yield command
    finally:
        command.is_over = True
        interruption.command = outer
        signal.set_wakeup_fd(wakeup)
        os.write(writer, b"\0")
        os.close(writer)
        # A thread that starts while Python shuts down crashes it (seen with Python 3.11.2).
        watching.acquire(timeout=WATCHER_SECONDS)
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(command: Command, pipe: int, watching: Any) -> None:
    try:
        command.watch(pipe)
    finally:
        os.close(pipe)
        watching.release()
