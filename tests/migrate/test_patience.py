"""A start waits for a server that is full, starting or failing over, and begins again after a lost session."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import peewee
import psycopg2
import pytest

from tests.conftest import Place, Server
from tests.servers import Node, new_node, opened, terminate
from whatspire_db import ConnectionFailed, MigrationRunner, WhatspireDBError
from whatspire_db.migrate import Step, Watcher

AGAIN = "trying again"


class Note(peewee.Model):
    text = peewee.TextField(index=True)

    class Meta:
        legacy_table_names = False
        table_name = "notes"


@pytest.fixture
def few(server: Server, postgres: Place) -> Iterator[Place]:
    """A role that may have two sessions, and a database of its own."""
    role = f"few_{uuid.uuid4().hex[:8]}"
    name = dict(part.split("=", 1) for part in postgres.dsn.split())["dbname"].strip("'")
    server.execute(f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 2", f"ALTER DATABASE {name} OWNER TO {role}")
    yield Place("postgres", server.of_database(name, user=role), postgres.folder)
    server.execute(f"ALTER DATABASE {name} OWNER TO postgres")
    with closing(psycopg2.connect(postgres.dsn)) as admin, admin, admin.cursor() as cursor:
        cursor.execute(f"DROP OWNED BY {role}")
    server.execute(f"DROP ROLE {role}")


def filled(place: Place) -> ExitStack:
    """Take every session that the role may have."""
    taken = ExitStack()
    for _ in range(2):
        taken.enter_context(closing(psycopg2.connect(place.dsn)))
    return taken


def line_with(process: subprocess.Popen[str], text: str) -> str:
    """Read what a process reports until a line holds the text."""
    assert process.stderr is not None
    for line in process.stderr:
        if text in line:
            return line
    pytest.fail(f"no line with {text!r}")


@pytest.mark.sampled
@pytest.mark.parametrize("verb", ["up", "plan", "verify", "status", "version"])
def test_every_verb_waits_for_a_full_server(few: Place, verb: str) -> None:
    taken = filled(few)
    process = few.start(verb, "--lock-timeout", "60s")
    line_with(process, AGAIN)
    taken.close()
    process.communicate(timeout=60)
    assert process.returncode == {"plan": 3, "verify": 3}.get(verb, 0)


@pytest.mark.soak
def test_a_server_that_stays_full_is_an_error_in_two_lines(few: Place) -> None:
    with filled(few):
        done = few.run("-q", "--lock-timeout", "1s")
    assert done.returncode == 1
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: cannot connect to PostgreSQL")
    assert "MAX_OPEN_CONNS" in hint


def test_a_server_that_does_not_answer_at_first_is_not_waited_for(sqlite: Place) -> None:
    nowhere = Place("postgres", "host=127.0.0.1 port=1 dbname=x user=x", sqlite.folder)
    done = nowhere.run("--lock-timeout", "60s")
    assert done.returncode == 1
    assert AGAIN not in done.stderr


def test_a_wrong_password_is_not_tried_again(locked: Server, sqlite: Place) -> None:
    wrong = Place("postgres", locked.of_database("postgres", user="locked", password="wrong"), sqlite.folder)
    done = wrong.run("--lock-timeout", "60s", "--wait", "60s")
    assert done.returncode == 1
    assert AGAIN not in done.stderr


@pytest.fixture
def node(server: Server) -> Iterator[Node]:
    with new_node(server, "-c fsync=off") as node:
        node.make()
        yield node


def test_wait_names_how_long_a_start_waits_for_a_server_to_answer(node: Node, sqlite: Place) -> None:
    place = Place("postgres", node.dsn(), sqlite.folder)
    process = place.start("--wait", "60s")
    line_with(process, AGAIN)
    node.start()
    process.communicate(timeout=60)
    assert process.returncode == 0


class Interrupting(Watcher):
    """Does something when the first steps are started."""

    def __init__(self, *deeds: Callable[[], object]) -> None:
        super().__init__()
        self.deeds = list(deeds)

    def step_started(self, step: Step) -> None:
        if self.deeds:
            self.deeds.pop(0)()


def test_a_run_that_loses_its_session_begins_again(postgres: Place, server: Server) -> None:
    with opened(postgres) as db:
        (pid,) = db.execute_sql("SELECT pg_backend_pid()").fetchone()
        runner = MigrationRunner(db, [Note], watcher=Interrupting(lambda: terminate(server, pid)))
        report = runner.up()
        assert report.applied
        assert [run.version for run in runner.status()] == [report.version]
        assert not runner.verify_schema()


def test_a_run_waits_for_a_server_that_restarts_under_it(node: Node, sqlite: Place) -> None:
    node.start()

    def restart() -> None:
        node.stop("immediate")
        node.start()

    with opened(Place("postgres", node.dsn(), sqlite.folder)) as db:
        runner = MigrationRunner(db, [Note], watcher=Interrupting(restart))
        assert runner.up().applied
        assert not runner.verify_schema()


def test_a_server_that_does_not_come_back_is_an_error_after_the_lock_timeout(node: Node, sqlite: Place) -> None:
    node.start()
    with opened(Place("postgres", node.dsn(), sqlite.folder)) as db:
        runner = MigrationRunner(db, [Note], watcher=Interrupting(lambda: node.stop("immediate")), lock_timeout=1)
        with pytest.raises(ConnectionFailed):
            runner.up()


def test_a_step_that_loses_its_session_twice_is_not_tried_a_third_time(postgres: Place, server: Server) -> None:
    """It may be the step itself that crashes the server."""
    lost: list[int] = []

    with opened(postgres) as db:

        def lose() -> None:
            (pid,) = db.execute_sql("SELECT pg_backend_pid()").fetchone()
            lost.append(pid)
            terminate(server, pid)

        runner = MigrationRunner(db, [Note], watcher=Interrupting(lose, lose, lose))
        with pytest.raises(WhatspireDBError):
            runner.up()
        assert len(lost) == 2


def test_a_plain_peewee_database_whose_caller_holds_a_dead_connection_is_an_error(
    postgres: Place, server: Server
) -> None:
    arguments = dict(part.split("=", 1) for part in postgres.dsn.replace("'", "").split())
    db = peewee.PostgresqlDatabase(arguments["dbname"], host=arguments["host"], user=arguments["user"])
    with db.bind_ctx([Note]), db.connection_context():
        (pid,) = db.execute_sql("SELECT pg_backend_pid()").fetchone()
        with pytest.raises(WhatspireDBError):
            MigrationRunner(db, [Note], watcher=Interrupting(lambda: terminate(server, pid))).up()
