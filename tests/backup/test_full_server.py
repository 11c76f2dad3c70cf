"""Backup and restore wait for a PostgreSQL server that has no connection left, and so do PostgreSQL's programs."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

import psycopg2
import pytest

from tests.backup.postgres_ground import MODULE, at, done, name_of, refused, rows, spare
from tests.conftest import Place, Server, postgres_programs
from tests.migrate.test_patience import AGAIN, line_with
from tests.servers import Node, new_node

LIMIT = 3
TABLES = (
    "CREATE TABLE note (id int PRIMARY KEY, text text)",
    "INSERT INTO note SELECT n, n FROM generate_series(1, 9) n",
)


@pytest.fixture(autouse=True)
def programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHATSPIRE_PG_BIN", postgres_programs())


@pytest.fixture
def few(server: Server, postgres: Place) -> Iterator[Place]:
    """A role that may have three sessions and make databases, and a database of its own."""
    role, name = f"few_{uuid.uuid4().hex[:8]}", name_of(postgres)
    server.execute(f"CREATE ROLE {role} LOGIN CREATEDB CONNECTION LIMIT {LIMIT}")
    server.execute(f"ALTER DATABASE {name} OWNER TO {role}")
    place = Place("postgres", server.of_database(name, user=role), postgres.folder)
    rows(place, *TABLES)
    yield place
    server.execute(f"ALTER DATABASE {name} OWNER TO postgres")
    rows(postgres, f"REASSIGN OWNED BY {role} TO postgres", f"DROP OWNED BY {role}")
    server.execute(f"DROP ROLE {role}")


def taken(place: Place, sessions: int) -> ExitStack:
    """Take so many of the sessions that may be had."""
    held = ExitStack()
    for _ in range(sessions):
        held.enter_context(closing(psycopg2.connect(place.dsn)))
    return held


def waits(place: Place, sessions: int, *arguments: str, **options: Any) -> None:
    """Run a verb that waits for a connection while others hold these, and has its way when they give them back."""
    held = taken(place, sessions)
    process = place.start(*arguments, "--lock-timeout", "60s", module=MODULE, **options)
    line_with(process, AGAIN)
    held.close()
    out, said = process.communicate(timeout=60)
    assert process.returncode == 0, (out, said)


# One session reads, and pg_dump is the other.
@pytest.mark.soak
@pytest.mark.parametrize("sessions", [LIMIT, LIMIT - 1], ids=["at-once", "for-pg_dump"])
def test_a_backup_waits(few: Place, sessions: int) -> None:
    waits(few, sessions, "create")
    assert done(few, "verify", "latest", "--test-restore")["verified"]


@pytest.mark.soak
def test_a_backup_that_is_tried_waits_for_all_it_needs(few: Place) -> None:
    waits(few, 1, "create", "--test-restore")


# One session makes the database, one fills it, and pg_restore is the third.
@pytest.mark.soak
@pytest.mark.parametrize("sessions", [LIMIT, LIMIT - 1, LIMIT - 2], ids=["at-once", "later", "for-pg_restore"])
def test_a_restore_waits(few: Place, server: Server, sessions: int) -> None:
    done(few, "create")
    with spare(server) as name:
        waits(few, sessions, "restore", "latest", "--to", name)
        assert rows(at(few, name), "SELECT count(*) FROM note") == [(9,)]


@pytest.mark.soak
def test_a_test_restore_waits(few: Place) -> None:
    done(few, "create")
    waits(few, LIMIT, "verify", "latest", "--test-restore")


@pytest.mark.parametrize("sessions", [LIMIT, LIMIT - 1], ids=["at-once", "for-pg_dump"])
def test_a_server_that_stays_full_is_an_error_in_two_lines(few: Place, sessions: int) -> None:
    with taken(few, sessions):
        said = refused(few, 1, "create", "--quiet", "--lock-timeout", "0s")
        assert said.startswith("error: cannot connect to PostgreSQL")
        assert "MAX_OPEN_CONNS" in said
    assert not list((few.folder / "backups").glob("*"))


def test_what_fails_for_another_reason_is_not_tried_again(few: Place, server: Server) -> None:
    with spare(server) as name:
        said = refused(at(few, name), 1, "create", "--lock-timeout", "60s")
    assert AGAIN not in said


@pytest.fixture
def node(server: Server) -> Iterator[Node]:
    settings = "-c max_connections=4 -c superuser_reserved_connections=0 -c max_wal_senders=0 -c fsync=off"
    with new_node(server, settings) as node:
        node.make()
        node.start()
        yield node


@pytest.mark.soak
def test_a_whole_server_that_is_full_is_waited_for(node: Node, sqlite: Place) -> None:
    place = Place("postgres", node.dsn(), sqlite.folder)
    rows(place, "CREATE DATABASE app")
    app = at(place, "app")
    rows(app, *TABLES)
    waits(app, 4, "create")
    waits(app, 3, "create", "--test-restore")
    waits(app, 4, "restore", "latest", "--force")
    waits(app, 2, "restore", "latest", "--force")
    assert rows(app, "SELECT count(*) FROM note") == [(9,)]
