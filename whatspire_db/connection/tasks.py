"""Which task of asyncio or trio, or greenlet, runs now: within one thread, each has a connection of its own."""

from __future__ import annotations

import inspect
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..errors import TransactionError
from ..light_stdlib import TYPE_CHECKING, Any, Generic, TypeVar

T = TypeVar("T")

modules = sys.modules


def wait_stops_tasks() -> bool:
    """Return whether a wait stops the other tasks of this thread too.

    So it is in an event loop of asyncio or trio, and in a greenlet of a program that nobody patched: gevent and
    eventlet put classes of their own in the place of those that wait.
    """
    if _runs_asyncio() or _trio_task() is not None:
        return True
    if current_task() is None:
        return False
    import _queue  # where the class is that waits in C
    import queue

    return queue.SimpleQueue is _queue.SimpleQueue


def _runs_asyncio() -> bool:
    asyncio = modules.get("asyncio")
    return asyncio is not None and asyncio._get_running_loop() is not None


def _trio_task() -> Any:
    trio = modules.get("trio")
    if trio is None:
        return None
    try:
        return trio.lowlevel.current_task()
    except (AttributeError, RuntimeError):  # it is still being imported; no task of trio runs in this thread
        return None


def current_task() -> Any:
    """Return the task of asyncio or trio, or the greenlet, that runs now; None for the plain code of a thread.

    None of these libraries is imported: where nobody imported it, none of its tasks runs. In a greenlet of a task (as
    bridges to blocking code make them) it is the task that counts, for it outlives the greenlet.
    """
    if "asyncio" in modules and _runs_asyncio():
        task = modules["asyncio"].current_task()
        if task is not None:
            return task
    if "trio" in modules:
        task = _trio_task()
        if task is not None:
            return task
    if "greenlet" not in modules:
        return None
    greenlet = modules["greenlet"]
    running = greenlet.getcurrent()
    return None if running.parent is None else running  # the one without a parent is the thread itself


_Block: Any = Any if TYPE_CHECKING else object


class PlainFunctionsOnly(_Block):
    """What is added to a block that decorates functions: it refuses those whose body runs after the call has ended."""

    def __call__(self, function: Any) -> Any:
        """Return the function, each call of which is such a block.

        :raises TransactionError: for an async function and for a generator, whose block would end before they begin.
        """
        kinds = (inspect.iscoroutinefunction, inspect.isasyncgenfunction, inspect.isgeneratorfunction)
        if any(is_one(function) for is_one in kinds):
            raise TransactionError(
                f"{getattr(function, '__qualname__', function)} is an async function or a generator, and a decorator's "
                "block would end before it begins",
                "write the block inside of it: with db.atomic(): or with db.connection_context():",
            )
        return super().__call__(function)


class _Native(threading.local):
    def __init__(self) -> None:
        self.id = threading.get_native_id()  # a call of the system, so it is kept


_native = _Native()


def native_thread_id() -> int:
    """Return the system's number of this thread, which the greenlets of a patched program share."""
    return _native.id


class _OfThread(threading.local, Generic[T]):
    def __init__(self, make: Callable[[], T]) -> None:
        self.plain = make()
        self.by_task: weakref.WeakKeyDictionary[Any, T] = weakref.WeakKeyDictionary()


class TaskLocal(Generic[T]):
    """A value for each thread, task and greenlet, made when it is first asked for.

    It is not a context variable: `asyncio.to_thread` and new tasks copy the context, and would share the value.
    A task's value is freed with the task. `local.plain` is the value of a thread's own code.
    """

    def __init__(self, make: Callable[[], T], per_task: bool = True) -> None:
        self._make = make
        self.local = _OfThread(make)
        self.per_task = per_task

    def get(self) -> T:
        """Return the value of whatever runs now."""
        local = self.local
        task = current_task() if self.per_task else None
        if task is None:
            return local.plain
        value = local.by_task.get(task)
        if value is None:
            value = local.by_task[task] = self._make()
        return value

    @contextmanager
    def lent(self, value: T) -> Iterator[None]:
        """Give what runs now the value of another task of this thread, within the block."""
        before = self.get()
        self._set(value)
        try:
            yield
        finally:
            self._set(before)

    def _set(self, value: T) -> None:
        task = current_task() if self.per_task else None
        if task is None:
            self.local.plain = value
        else:
            self.local.by_task[task] = value

    def of_thread(self) -> list[T]:
        """Return every value of this thread: its own, and those of its tasks and greenlets."""
        return [self.local.plain, *self.local.by_task.values()]
