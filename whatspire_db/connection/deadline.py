"""A deadline for a question to a server: when the answer is late, the socket is shut down under the driver."""

from __future__ import annotations

import _socket  # the one that gevent and eventlet do not replace
import os
import select
import threading
import time
from contextlib import suppress

TICK_SECONDS = 0.5  # so late is a deadline noticed at most


class _Watchdog:
    """Watches the sockets of questions under way, from a thread that wakes twice a second while there are any.

    libpq waits in C without a limit, and neither keepalives nor tcp_user_timeout end the wait for a peer that
    acknowledges what it receives and never answers. Shutting the socket down does: libpq then reads its end.
    A question that is answered in time takes no lock and wakes no thread.
    """

    def __init__(self) -> None:
        self.due: dict[object, tuple[float, int]] = {}  # the deadline and the socket of each question
        self._is_needed = threading.Event()
        self._starting = threading.Lock()
        self._ending = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, question: object, socket: int, seconds: float) -> None:
        self.due[question] = (time.monotonic() + seconds, socket)
        if not self._is_needed.is_set():
            self._start()

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                thread = threading.Thread(target=self._watch, name="whatspire_db deadlines", daemon=True)
                with suppress(RuntimeError):  # no room for another thread: the next question tries again
                    thread.start()
                    self._thread = thread
        self._is_needed.set()

    def remove(self, question: object) -> None:
        if self.due.pop(question, None) is None:  # it is late: the caller may close the socket only afterwards
            with self._ending:
                pass

    def _watch(self) -> None:
        while True:
            self._is_needed.wait()
            time.sleep(TICK_SECONDS)
            self._end_late()
            if not self.due:
                self._is_needed.clear()
                if self.due:  # one was added meanwhile, which saw that the watch goes on
                    self._is_needed.set()

    def _end_late(self) -> None:
        now = time.monotonic()
        for question, (deadline, socket) in list(self.due.items()):
            if deadline <= now:
                with self._ending:
                    if self.due.pop(question, None) is not None:
                        _shut_down(socket)


def _shut_down(socket: int) -> None:
    with suppress(OSError):  # it was closed, or the peer has ended it
        copy = _socket.socket(fileno=os.dup(socket))
        try:
            copy.shutdown(_socket.SHUT_RDWR)
        finally:
            copy.close()


_watchdog = _Watchdog()


class answered_within:
    """Have the driver's wait for an answer fail when it takes longer: its socket is shut down.

    :param seconds: the deadline; it is noticed up to half a second late.
    :param socket: the file descriptor of the driver's connection, which the caller alone uses in the block.
    """

    __slots__ = ("_seconds", "_socket", "_watchdog")

    def __init__(self, seconds: float, socket: int) -> None:
        self._seconds, self._socket = seconds, socket

    def __enter__(self) -> None:
        self._watchdog = _watchdog
        self._watchdog.add(self, self._socket, self._seconds)

    def __exit__(self, *_: object) -> None:
        self._watchdog.remove(self)


def is_readable(socket: int, seconds: float = 0) -> bool:
    """Return whether there is something to read within so many seconds, the end of the stream included."""
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(socket, select.POLLIN)
        return bool(poll.poll(seconds * 1000))
    return bool(select.select([socket], [], [], seconds)[0])  # eventlet takes poll away


def _begin_anew() -> None:
    global _watchdog
    _watchdog = _Watchdog()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
