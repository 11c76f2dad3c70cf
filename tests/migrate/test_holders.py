"""PostgreSQL: messages name the holder of a lock as far as this role may see it, and invent nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import psycopg2
import pytest

from tests.conftest import Place, Server
from tests.migrate.test_command_line import fails
from tests.servers import new_node, psql, up
from whatspire_db.dsn.postgres import parse_postgres

pytestmark = pytest.mark.sampled

WRITES = "INSERT INTO sessions (id, name, status, created_at, updated_at) VALUES ('x', 'n', 'pending', now(), now())"


@pytest.fixture
def owned(postgres: Place, server: Server) -> Iterator[Place]:
    """A migrated database of a plain role, with an index missing."""
    server.execute("DROP ROLE IF EXISTS plain", "CREATE ROLE plain LOGIN")
    name = parse_postgres(postgres.dsn).arguments["dbname"]
    server.execute(f"ALTER DATABASE {name} OWNER TO plain")
    place = replace(postgres, dsn=server.of_database(name, user="plain"))
    up(place)
    psql(place.dsn, "DROP INDEX idx_sessions_jid")
    yield place
    psql(postgres.dsn, "DROP OWNED BY plain")
    server.execute(f"ALTER DATABASE {name} OWNER TO postgres", "DROP ROLE plain")


def test_session_of_another_role_is_named_without_what_is_hidden(postgres: Place, owned: Place) -> None:
    with closing(psycopg2.connect(postgres.dsn, application_name="nightly")) as holder:
        holder.cursor().execute(WRITES)
        pid = holder.info.backend_pid
        done = owned.run("--lock-timeout", "300ms")
    fails(done, 1, f"pid {pid}, application nightly, user postgres, the rest is hidden from this role")
    assert "None" not in done.stderr
    assert "local socket" not in done.stderr


@pytest.mark.soak
def test_session_that_can_be_seen_is_named_in_full(owned: Place, postgres: Place) -> None:
    with closing(psycopg2.connect(owned.dsn, application_name="own")) as holder:
        holder.cursor().execute(WRITES)
        for role, options in ((owned, []), (postgres, ["--trust-source"])):
            done = role.run("--lock-timeout", "300ms", *options)
            fails(done, 1, f"pid {holder.info.backend_pid}, application own, user plain, from local socket, since 20")


@pytest.mark.soak
def test_prepared_transaction_is_named(server: Server, postgres: Place) -> None:
    with new_node(server, "-c max_prepared_transactions=2 -c fsync=off") as node:
        node.make()
        node.start()
        place = replace(postgres, dsn=node.dsn())
        up(place)
        psql(place.dsn, f"DROP INDEX idx_sessions_jid; BEGIN; {WRITES}; PREPARE TRANSACTION 'left over'")
        fails(place.run("--lock-timeout", "300ms"), 1, "prepared transaction 'left over'", "PREPARED ends")
        psql(place.dsn, "ROLLBACK PREPARED 'left over'")
        assert place.run().returncode == 0


BESIDE = {
    "a table of that name that is not committed": "CREATE TABLE audit_logs (id integer)",
    "the history": "LOCK TABLE migration_versions IN SHARE MODE",
}


@pytest.mark.soak
@pytest.mark.parametrize("what", BESIDE)
def test_holder_of_a_lock_that_no_step_asks_for_is_named(postgres: Place, what: str) -> None:
    assert postgres.run().returncode == 0
    with closing(psycopg2.connect(postgres.dsn, application_name="nightly-job")) as other, other.cursor() as cursor:
        cursor.execute("DROP TABLE audit_logs")
        other.commit()
        cursor.execute(BESIDE[what])
        done = postgres.run("up", "-q", "--lock-timeout", "300ms")
        pid = other.info.backend_pid
    assert done.returncode == 1
    assert f"waited for 0.3 s, most likely held by pid {pid}, application nightly-job" in done.stderr
    assert postgres.run("up", "-q").returncode == 0
