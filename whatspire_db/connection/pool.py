"""A pool of connections with the meaning of Go's database/sql, for any driver.

The rules are those of https://pkg.go.dev/database/sql: SetMaxOpenConns, SetMaxIdleConns, SetConnMaxLifetime, DBStats.
Who finds every connection in use waits in line. As with Go's sync.Mutex, a thread that comes by may take what has just
come free, which saves a switch of threads; who has waited for long is handed the next one, whoever comes by.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial

from ..errors import PoolTimeout
from ..light_stdlib import TYPE_CHECKING, Any
from .call_site import CallSite, call_site
from .pool_state import Holder, Lease, Limits, Member, Shared, Waiter, longest_held
from .tasks import native_thread_id, wait_stops_tasks

if TYPE_CHECKING:
    from .pool_stats import PoolStats

logger = logging.getLogger("whatspire_db.pool")

LIFETIME_JITTER = 0.1  # a connection lives for 90 to 100 % of the lifetime, so that a fleet does not reconnect at once
# Who has waited for so long is next. Less of it costs throughput, for every turn is a switch of threads.
STARVING_SECONDS = 0.2
LONG_WAIT_SECONDS = 1.0  # who waits for longer says so, and who holds the connections
WARNING_INTERVAL_SECONDS = 10.0
SWEEP_SECONDS = 1.0


class Pool:
    """Connections that are lent, one to whoever asks, and kept for the next one.

    Connecting, checking and closing are left to the driver's functions and happen outside of the lock.

    :param close: closes a connection; it must not refer to the pool's owner, who would never be freed.
    """

    def __init__(self, limits: Limits, close: Callable[[Any], None]) -> None:
        idle = min(limits.max_idle, limits.max_open) if limits.max_open else limits.max_idle
        self.limits = Limits(limits.max_open, idle, limits.lifetime, limits.timeout)
        self._close_connection = close
        self._warned: set[CallSite] = set()
        self._forgotten: deque[Holder] = deque()
        self._warned_at = -math.inf
        self._begin()

    def _begin(self) -> None:
        # Reentrant, for the collector ends a lease at any line of any thread: under this lock too, where nothing else
        # may change meanwhile. What is lost there waits until the lock is left.
        self._lock = threading.RLock()
        self._lost_keys: deque[int] = deque()
        self._shared = Shared()
        self._process = os.getpid()

    # Lending

    def acquire(
        self, connect: Callable[[], Any], is_usable: Callable[[Any], bool], since: float | None = None
    ) -> Lease:
        """Lend a connection: an idle one, or a new one, or after a wait the next that comes free.

        :param connect: opens a connection.
        :param is_usable: tells of a connection that was idle, without asking its server, that it is not known as dead.
        :param since: a moment of time.monotonic() from which the wait counts; default: now.
        :raises PoolTimeout: when none came free in time, or can; names the lines that hold them.
        """
        self._tell_forgotten()
        member = self._take(since)
        try:
            if member is not None and not is_usable(member.connection):
                self._close(member)
                member = None
            was_idle = member is not None
            if member is None:
                member = self._member(connect())
            return self._lend(member, proved=not was_idle)
        except BaseException:
            self._free_slot()
            raise

    def release(self, lease: Lease) -> None:
        """Take a connection back; one that is not `reusable` is closed."""
        with self._lock:
            holder = self._shared.in_use.pop(id(lease), None)
        if holder is not None:
            self._put(lease.member, lease.reusable)
        self._end_lost()

    def _member(self, connection: Any) -> Member:
        chance = os.urandom(1)[0] / 255  # `random` takes a while to load
        lifetime = self.limits.lifetime * (1 - LIFETIME_JITTER * chance)
        return Member(connection, time.monotonic() + lifetime if lifetime else math.inf)

    def _lend(self, member: Member, proved: bool) -> Lease:
        lease = Lease(self, member, proved)
        lost = weakref.ref(lease, partial(Pool._lost, weakref.ref(self), id(lease)))
        holder = Holder(lost, member, call_site(), threading.current_thread(), native_thread_id(), time.monotonic())
        with self._lock:
            self._shared.in_use[id(lease)] = holder
        self._end_lost()
        return lease

    @staticmethod
    def _lost(pool: weakref.ref[Pool], key: int, _: object) -> None:
        """End a lease whose thread died, or dropped it, without giving the connection back."""
        this = pool()
        if this is None or this._process != os.getpid():  # the threads of a parent end in the child of a fork too
            return
        this._lost_keys.append(key)
        this._end_lost()

    def _end_lost(self) -> None:
        while self._lost_keys and not self._lock._is_owned():  # type: ignore[attr-defined]
            with suppress(IndexError):  # another thread was first
                self._end_one_lost(self._lost_keys.popleft())

    def _end_one_lost(self, key: int) -> None:
        with self._lock:
            holder = self._shared.in_use.pop(key, None)
        if holder is None:
            return
        self._put(holder.member, reusable=False)
        self._forgotten.append(holder)  # for whoever comes by next: a thread that is about to end should not log

    def _take(self, since: float | None) -> Member | None:
        """Return an idle connection, or None with the right to open one."""
        waiter = None
        while waiter is None:
            expired: list[Member] = []
            with self._lock:
                shared, now = self._shared, time.monotonic()
                if now - shared.swept_at > SWEEP_SECONDS:
                    expired = self._sweep(now)
                elif shared.idle:
                    member = shared.idle.pop()  # the last one that came back, so that surplus ones grow old
                    if now < member.expires_at:
                        return member
                    shared.counters.max_lifetime_closed += 1
                    expired = [member]
                elif not self.limits.max_open or shared.open < self.limits.max_open:
                    shared.open += 1
                    return None
                elif self._waits_for_itself():
                    raise self._deadlock()
                else:
                    waiter = Waiter(since)
                    shared.waiters.append(waiter)
                    shared.counters.wait_count += 1
            self._end(expired)
            self._end_lost()
        return self._wait(waiter)

    def _sweep(self, now: float) -> list[Member]:
        """Take those that are too old out of the idle ones."""
        shared = self._shared
        shared.swept_at = now
        expired = [member for member in shared.idle if now >= member.expires_at]
        shared.idle = [member for member in shared.idle if now < member.expires_at]
        shared.counters.max_lifetime_closed += len(expired)
        return expired

    # Waiting

    def _wait(self, waiter: Waiter) -> Member | None:
        """Return what a waiter finds idle or is handed: a connection, or None with the right to open one."""
        deadline = waiter.since + self.limits.timeout if self.limits.timeout else math.inf
        patience = waiter.since + LONG_WAIT_SECONDS
        try:
            while True:
                waiter.sleep(min(deadline, patience) - time.monotonic())
                with self._lock:
                    waiter.woken = False
                    if waiter.handed:
                        return waiter.given
                    if self._is_any_free():
                        return self._found(waiter)
                self._end_lost()
                if time.monotonic() >= deadline:
                    raise self._timeout()
                if time.monotonic() >= patience:
                    patience = math.inf
                    self._warn_of_wait(waiter)
        except BaseException:
            self._leave(waiter)
            raise
        finally:
            with self._lock:
                self._shared.counters.wait_duration += time.monotonic() - waiter.since

    def _is_any_free(self) -> bool:
        return bool(self._shared.idle) or self._shared.open < self.limits.max_open

    def _found(self, waiter: Waiter) -> Member | None:
        """Step out of the line with an idle connection, or the right to open one."""
        self._shared.waiters.remove(waiter)
        member = self._shared.idle.pop() if self._shared.idle else None
        self._shared.open += member is None
        self._wake_next()
        return member

    def _hand(self, member: Member | None) -> None:
        """Hand the first in line a connection, or the right to open one."""
        self._shared.waiters.popleft().hand(member)
        self._wake_next()

    def _wake_next(self) -> None:
        """Let the next in line look for what the one before was woken for, and left, or what is there besides."""
        if self._shared.waiters and self._is_any_free():
            self._shared.waiters[0].wake()

    def _leave(self, waiter: Waiter) -> None:
        """Step out of the line, and pass on what was handed, or left for this waiter to find, in the last moment."""
        left: list[Member] = []
        with self._lock:
            shared = self._shared
            if not waiter.handed:
                if waiter in shared.waiters:
                    shared.waiters.remove(waiter)
                left, shared.idle = shared.idle, []
        for member in left:
            self._put(member, reusable=True)
        if not waiter.handed:
            return
        if waiter.given is None:
            self._free_slot()
        else:
            self._put(waiter.given, reusable=True)

    def _waits_for_itself(self) -> bool:
        """Return whether tasks that a wait would stop hold all connections, so that none came back."""
        held = self._shared.in_use.values()
        return (
            wait_stops_tasks()
            and len(held) == self._shared.open
            and all(holder.native_id == native_thread_id() for holder in held)
        )

    def _deadlock(self) -> PoolTimeout:
        return PoolTimeout(
            f"the tasks of this thread hold all {self.limits.max_open} connections, and none can come free while "
            f"it waits: held longest by {self._holders()}",
            "give a connection back before the task awaits, use the database in asyncio.to_thread, or raise "
            "WHATSAPP_DATABASE_MAX_OPEN_CONNS",
        )

    def _timeout(self) -> PoolTimeout:
        return PoolTimeout(
            f"no connection came free within {self.limits.timeout:g} s: {self._shared.open} of "
            f"{self.limits.max_open} are open, held longest by {self._holders()}",
            "give connections back sooner (with db.connection_context():), or raise "
            "WHATSAPP_DATABASE_MAX_OPEN_CONNS or WHATSAPP_DATABASE_POOL_TIMEOUT",
        )

    def _holders(self) -> str:
        with self._lock:
            holders = list(self._shared.in_use.values())
        return longest_held(holders)

    def _warn_of_wait(self, waiter: Waiter) -> None:
        """Say who holds the connections, out of the line: what handles the log may need a connection itself."""
        with self._lock:
            seconds = time.monotonic() - waiter.since
            if waiter.handed or time.monotonic() - self._warned_at < WARNING_INTERVAL_SECONDS:
                return
            self._warned_at = time.monotonic()
            self._shared.waiters.remove(waiter)
            self._wake_next()
        logger.warning(
            "waiting for a connection for %.1f s: all %d are in use, held longest by %s",
            seconds,
            self.limits.max_open,
            self._holders(),
        )
        with self._lock:
            self._shared.waiters.appendleft(waiter)
            self._wake_next()

    def _tell_forgotten(self) -> None:
        while self._forgotten:
            with suppress(IndexError):  # another thread tells it
                self._warn_of_leak(self._forgotten.popleft(), "whose thread or task ended")

    def _warn_of_leak(self, holder: Holder, what: str) -> None:
        if holder.site in self._warned:
            return
        self._warned.add(holder.site)
        logger.warning(
            "a connection was not closed by %s, %s (thread %s): use `with db.connection_context():`, or db.close()",
            holder.site,
            what,
            holder.thread.name,
        )

    # Taking back

    def _put(self, member: Member, reusable: bool) -> None:
        """Keep a connection for the next one or hand it on; or close it, and let who waits open another."""
        now = time.monotonic()
        with self._lock:
            shared = self._shared
            if reusable and now < member.expires_at:
                if len(shared.waiters) > len(shared.idle):  # otherwise there is one for each already
                    self._offer(member, now)
                    return
                if len(shared.idle) < self.limits.max_idle:
                    shared.idle.append(member)
                    return
                shared.counters.max_idle_closed += 1
            elif reusable:
                shared.counters.max_lifetime_closed += 1
        self._end([member])

    def _offer(self, member: Member, now: float) -> None:
        """Hand a connection to the first in line when he has waited for long, otherwise let him look for it."""
        first = self._shared.waiters[0]
        if now - first.since > STARVING_SECONDS:
            self._hand(member)
        else:
            self._shared.idle.append(member)
            first.wake()

    def _free_slot(self) -> None:
        with self._lock:
            if len(self._shared.waiters) > len(self._shared.idle):
                self._hand(None)
            else:
                self._shared.open -= 1
                self._wake_next()

    def _end(self, members: list[Member]) -> None:
        """Close connections and give their places to others, also when a signal's exception comes in between."""
        with ExitStack() as ends:
            for member in members:
                ends.callback(self._free_slot)
                ends.callback(self._close, member)

    def _close(self, member: Member) -> None:
        with suppress(Exception):  # it is to be gone, and a server that is gone already says so
            self._close_connection(member.connection)

    # For all

    def stats(self) -> PoolStats:
        """Return the figures of this moment."""
        self._tell_forgotten()
        with self._lock:
            return self._shared.stats(self.limits.max_open)

    def lent_to(self, native_id: int) -> list[Any]:
        """Return the connections that a thread of the system holds: greenlets have Thread objects of their own."""
        holders = list(self._shared.in_use.values())
        return [holder.member.connection for holder in holders if holder.native_id == native_id]

    def close_idle(self) -> None:
        """Close the connections that nobody uses."""
        with self._lock:
            idle, self._shared.idle = self._shared.idle, []
        self._end(idle)

    def close_all(self, in_use: bool = True) -> None:
        """Close every connection, those in use by other threads included where that is said."""
        self.close_idle()
        if not in_use:
            return
        with self._lock:
            holders, self._shared.in_use = list(self._shared.in_use.values()), {}
        self._end([holder.member for holder in holders])

    def abandon(self) -> list[Any]:
        """Begin anew without a word to any server, as the child of a fork must; return the connections left behind."""
        shared = self._shared
        left = [*shared.idle, *(holder.member for holder in list(shared.in_use.values()))]
        self._begin()
        return [member.connection for member in left]

    def warn_of_unreturned(self, thread: threading.Thread, what: str) -> None:
        """Name the lines whose connections a thread still holds, and those of threads that ended."""
        self._tell_forgotten()
        with self._lock:
            holders = [holder for holder in self._shared.in_use.values() if holder.thread is thread]
        for holder in holders:
            self._warn_of_leak(holder, what)
