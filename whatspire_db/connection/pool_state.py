"""What a pool knows: its limits and figures, its connections and who holds them, and the line of those who wait."""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable
from contextlib import suppress

from ..light_stdlib import TYPE_CHECKING, Any, dataclass, field
from .call_site import CallSite

if TYPE_CHECKING:
    from .pool_stats import PoolStats


@dataclass(frozen=True)
class Limits:
    """How many connections, for how long; seconds, and 0 is no limit but for `max_idle`."""

    max_open: int = 0
    max_idle: int = 10
    lifetime: float = 0
    timeout: float = 0


@dataclass(eq=False)
class Member:
    """An open connection of the pool."""

    connection: Any
    expires_at: float


class Lease:
    """A connection in somebody's hands; when the thread dies that holds it, the connection goes back by itself.

    :param pool: whose it is.
    :param proved: its server has answered since it was lent.
    """

    __slots__ = ("__weakref__", "member", "pool", "proved", "reusable")

    def __init__(self, pool: Any, member: Member, proved: bool) -> None:
        self.pool, self.member, self.proved = pool, member, proved
        self.reusable = True

    @property
    def connection(self) -> Any:
        return self.member.connection


class Holder:
    """What the pool knows of a lease: enough to name who holds it, and no more than a weak reference to it."""

    __slots__ = ("lease", "member", "native_id", "since", "site", "thread")

    def __init__(
        self,
        lease: weakref.ref[Lease],
        member: Member,
        site: CallSite,
        thread: threading.Thread,
        native_id: int,  # the system's number of that thread
        since: float,
    ) -> None:
        self.lease, self.member, self.site = lease, member, site
        self.thread, self.native_id, self.since = thread, native_id, since


def longest_held(holders: Iterable[Holder], most: int = 3) -> str:
    """Name the lines that hold connections, those first that hold one the longest."""
    by_site: dict[CallSite, list[Holder]] = {}
    for holder in sorted(holders, key=lambda holder: holder.since):
        by_site.setdefault(holder.site, []).append(holder)
    now = time.monotonic()
    named = [
        f"{site} ({len(held)} for up to {now - held[0].since:.1f} s, thread {held[0].thread.name})"
        for site, held in list(by_site.items())[:most]
    ]
    return "; ".join(named) or "connections that are just being opened"


class Waiter:
    """A place in the line. It is woken to look for itself, or handed a connection, or the right to open one."""

    __slots__ = ("bell", "given", "handed", "since", "woken")

    def __init__(self, since: float | None = None) -> None:
        self.since = time.monotonic() if since is None else since
        import queue  # only where somebody has to wait

        self.bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.woken = self.handed = False
        self.given: Member | None = None

    def wake(self) -> None:
        """Let it look for a connection."""
        if not self.woken:
            self.woken = True
            self.bell.put(None)

    def hand(self, member: Member | None) -> None:
        """Hand it a connection; None is the right to open one."""
        self.handed, self.given = True, member
        self.wake()

    def sleep(self, seconds: float) -> None:
        """Wait until it is woken, so many seconds at most."""
        from queue import Empty

        with suppress(Empty):
            self.bell.get(timeout=None if seconds == math.inf else max(seconds, 0))


@dataclass
class Counters:
    """What was counted since the pool began."""

    wait_count: int = 0
    wait_duration: float = 0.0
    max_idle_closed: int = 0
    max_lifetime_closed: int = 0


@dataclass(eq=False)
class Shared:
    """What the lock guards."""

    open: int = 0  # connections and the slots of those that are being opened or closed
    idle: list[Member] = field(default_factory=list)
    waiters: deque[Waiter] = field(default_factory=deque)
    in_use: dict[int, Holder] = field(default_factory=dict)
    counters: Counters = field(default_factory=Counters)
    swept_at: float = 0.0

    def stats(self, max_open: int) -> PoolStats:
        """Return the figures of this moment."""
        idle = len(self.idle)
        from .pool_stats import PoolStats  # takes a while to make, and few ask

        return PoolStats(
            max_open_connections=max_open,
            open_connections=self.open,
            in_use=self.open - idle,
            idle=idle,
            **vars(self.counters),
        )
