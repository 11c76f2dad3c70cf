"""Work on many things in threads, some at a time, which a signal to the command ends in order."""

from __future__ import annotations

import ctypes
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from .. import interruption
from ..errors import WhatspireDBError

T = TypeVar("T")
R = TypeVar("R")
A = TypeVar("A")

TICK_SECONDS = 0.05
CANCEL_SECONDS = 1.0  # so long are statements cancelled, again and again: a thread may be between two
END_SECONDS = 5.0  # what has not ended by then ends with the process, as if it were killed


@dataclass
class _Asked:
    """A call that the main thread makes for another one."""

    call: Callable[[], Any]
    done: threading.Event = field(default_factory=threading.Event)
    value: Any = None
    error: BaseException | None = None

    def answer(self) -> None:
        try:
            self.value = self.call()
        except BaseException as error:
            self.error = error
            if not isinstance(error, Exception):
                raise
        finally:
            self.done.set()


class Jobs(Generic[T, R]):
    """Tasks, and the threads that do them.

    :param work: does a task; the one exception that it may let through is KeyboardInterrupt.
    :param count: how many at a time.
    :param finish: is called in each thread when it has no more to do.
    """

    def __init__(
        self, tasks: Sequence[T], work: Callable[[T], R], count: int, finish: Callable[[], object] = lambda: None
    ) -> None:
        self.done: dict[int, R] = {}  # by the task's number
        self._waiting = deque(enumerate(tasks))
        self._work, self._finish = work, finish
        self._news: SimpleQueue[int | _Asked | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._at_work: set[int] = set()  # threads, by their idents
        self._threads = [
            threading.Thread(target=self._run, name=f"whatspire_db job {number}", daemon=True)
            for number in range(min(count, len(tasks)))
        ]

    def run(self) -> Iterator[tuple[int, R]]:
        """Do the tasks, and yield the number and the result of each as it is done; call it in the main thread."""
        running = 0
        for thread in self._threads:
            try:
                thread.start()
                running += 1
            except RuntimeError:  # for want of memory or by a limit: fewer at a time do it too
                if not running:
                    raise WhatspireDBError("no thread can be started", "raise the limit on processes") from None
                break
        while running:
            news = self._news.get()
            if news is None:
                running -= 1
            elif isinstance(news, _Asked):
                news.answer()
            else:
                yield news, self.done[news]

    def in_main_thread(self, call: Callable[[], A]) -> A:
        """Have the main thread make a call, where signals are heard, and return what it returns."""
        asked = _Asked(call)
        self._news.put(asked)
        while not asked.done.wait(TICK_SECONDS):  # an interrupt of this thread is heard between
            pass
        if asked.error is not None:
            raise asked.error
        return asked.value

    def begin_no_more(self) -> None:
        """Leave the tasks that nobody has begun."""
        with self._lock:
            self._waiting.clear()

    def stop(self) -> None:
        """Begin no more, interrupt what is under way, and wait a while for it to end."""
        with self._lock:
            self._waiting.clear()
            for ident in self._at_work:
                _interrupt(ident)
        started = time.monotonic()
        while any(thread.is_alive() for thread in self._threads) and time.monotonic() - started < END_SECONDS:
            if interruption.command is not None and time.monotonic() - started < CANCEL_SECONDS:
                interruption.command.cancel()
            time.sleep(TICK_SECONDS)

    def _run(self) -> None:
        try:
            while (task := self._next()) is not None:
                number, one = task
                try:
                    self.done[number] = self._work(one)
                finally:
                    with self._lock:
                        self._at_work.discard(threading.get_ident())
                self._news.put(number)
        except KeyboardInterrupt:  # it came when the work was over
            pass
        finally:
            self._finish()
            self._news.put(None)

    def _next(self) -> tuple[int, T] | None:
        with self._lock:
            if not self._waiting:
                return None
            self._at_work.add(threading.get_ident())
            return self._waiting.popleft()


def _interrupt(ident: int) -> None:
    """Raise KeyboardInterrupt in a thread, as a signal does in the main one: when it next runs Python's code."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(KeyboardInterrupt))
