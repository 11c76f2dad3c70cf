"""What a health check finds, and how it is shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from ..migrate.times import TimeNote

if TYPE_CHECKING:
    from ..data import DataState


@dataclass(frozen=True)
class Cluster:
    """The cluster that a server is a node of, as this node knows it; nodes are named by host and port.

    `inactive` are those that take no queries. The database is healthy all the same: a node is taken out on purpose.
    """

    is_coordinator: bool
    coordinator: str | None
    nodes: int
    inactive: tuple[str, ...]

    def __str__(self) -> str:
        role = "coordinator" if self.is_coordinator else f"worker of the coordinator {self.coordinator or 'not known'}"
        inactive = f", inactive: {', '.join(self.inactive)}" if self.inactive else ", all active"
        return f"{role}, {self.nodes} {'node' if self.nodes == 1 else 'nodes'}{inactive if self.nodes else ''}"


@dataclass(frozen=True)
class PostgresServer:
    """A server's figures: `connections` are those of all clients to all its databases, this check's included.

    `cluster` is None on a server that is not a node of one.
    """

    in_recovery: bool
    max_connections: int
    superuser_reserved_connections: int
    reserved_connections: int
    connections: int
    connections_by_application: dict[str, int]
    cluster: Cluster | None = None


@dataclass(frozen=True)
class SqliteFile:
    """A file's figures; sizes are in bytes and None in memory, what its pages say is None where it was not opened."""

    path: str | None
    size: int | None
    wal_size: int | None
    journal_mode: str | None = None
    page_size: int | None = None
    pages: int | None = None
    free_pages: int | None = None


@dataclass(frozen=True)
class Health:
    """What a check found; None where something was not asked, does not apply or cannot be known.

    `database` is a file's whole path, or where the server is and its database's name.

    `error` and `hint` say why a database is not healthy. `in_sync` is None too where names alone could be compared
    and agree; `note` tells why. `times` says which columns hold times that are not UTC, or may; the database is healthy
    all the same. `data` tells how the data migrations stand, where some are declared. `quick_check` is "ok", or
    SQLite's first messages.
    """

    driver: str | None
    database: str | None = None
    reachable: bool = False
    error: str | None = None
    hint: str | None = None
    server_version: str | None = None
    schema_version: int | None = None
    in_sync: bool | None = None
    missing: int | None = None
    drift: int | None = None
    differences: tuple[str, ...] = ()
    note: str | None = None
    times: tuple[TimeNote, ...] = ()
    data: tuple[DataState, ...] | None = None
    quick_check: str | None = None
    pool: dict[str, Any] | None = None
    server: PostgresServer | None = None
    file: SqliteFile | None = None

    @property
    def healthy(self) -> bool:
        """Tell whether the database was reached and nothing was found wrong."""
        return self.reachable and self.error is None

    def to_json(self) -> dict[str, Any]:
        document = {"healthy": self.healthy, **asdict(replace(self, data=None))}
        del document["data"]
        return document if self.data is None else document | {"data": [state.to_json() for state in self.data]}

    def __str__(self) -> str:
        found = list(rows(self))
        if self.error:
            found += [("error", self.error), ("hint", self.hint or "")]
        return aligned(found)


def aligned(found: Sequence[tuple[str, str]]) -> str:
    """Return rows of a name and a text as lines whose texts begin in one column."""
    width = max(len(name) for name, _ in found) + 2
    return "\n".join(f"{name:<{width}}{text}" for name, text in found)


def rows(health: Health) -> Iterator[tuple[str, str]]:
    """Give what is known, for people, without the error."""
    yield "healthy", _yes(health.healthy)
    if health.driver:
        yield "driver", health.driver
    yield "reachable", _yes(health.reachable)
    if health.database:
        yield "database", health.database
    if health.server_version:
        yield "server version", health.server_version
    if health.schema_version is not None:
        yield "schema version", str(health.schema_version)
    if health.missing is not None:
        counts = f"no: {health.missing} missing, {health.drift} drift"
        yield "in sync", counts if health.in_sync is False else "yes" if health.in_sync else "not known"
        for difference in health.differences:
            yield "", difference
    if health.note:
        yield "note", health.note
    for state in health.data or ():
        yield "data migration", str(state)
    for note in health.times:
        yield "times", str(note)
    yield from _figures(health)
    if health.quick_check:
        yield "quick check", health.quick_check


def _figures(health: Health) -> Iterator[tuple[str, str]]:
    if (pool := health.pool) is not None:
        yield "pool", "{open_connections} of {max_open_connections} open, {in_use} in use, {idle} idle".format(**pool)
        yield "pool waits", "{wait_count}, {wait_duration:.1f} s in all".format(**pool)
    if (server := health.server) is not None:
        yield "in recovery", _yes(server.in_recovery)
        kept = f"{server.superuser_reserved_connections} for superusers, {server.reserved_connections} reserved"
        yield "connections", f"{server.connections} of {server.max_connections} ({kept})"
        for name, number in server.connections_by_application.items():
            yield "", f"{number} {name or 'unnamed'}"
        if server.cluster is not None:
            yield "cluster", str(server.cluster)
    if (file := health.file) is not None:
        yield "file", f"{file.path}, {file.size} bytes, -wal {file.wal_size} bytes" if file.path else "in memory"
        if file.journal_mode:
            pages = f"{file.pages} pages of {file.page_size} bytes, {file.free_pages} free"
            yield "journal mode", f"{file.journal_mode}, {pages}"


def _yes(value: bool) -> str:
    return "yes" if value else "no"
