"""The health of a database: what is told, 0 or 1 and no other exit code, and that to look changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import peewee
import psycopg2
import pytest
from peewee import sqlite3
from playhouse.pool import PooledPostgresqlDatabase

from tests.citus import TO_WORKER
from tests.conftest import PASSWORD, Place, Server, stamp
from tests.migrate.test_command_line import AS_NOBODY, fails
from tests.migrate.test_stamp import statements
from tests.servers import eventually, new_node, opened, psql, schema_text, up
from whatspire_db import MigrationRunner, WhatspireDBError
from whatspire_db.dsn.postgres import parse_postgres
from whatspire_db.health import Health, check_health
from whatspire_db.models.service import SERVICE_MODELS

pytestmark = pytest.mark.sampled

KEYS = {
    *("healthy", "driver", "reachable", "error", "hint", "server_version", "schema_version", "in_sync", "missing"),
    *("drift", "differences", "note", "quick_check", "pool", "server", "file"),
    *("database", "exit", "times"),
}


def health(place: Place, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return place.run(*arguments, module="whatspire_db.health", **options)


def document(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Return the JSON that a check printed, whose every kind of answer has the same keys and the same exit code."""
    found = json.loads(done.stdout)
    assert found.keys() == KEYS
    assert done.returncode == (0 if found["healthy"] else 1), done.stderr
    assert (found["error"] is None) == (found["hint"] is None) == found["healthy"]
    if not found["healthy"]:
        fails(done, 1, found["error"], found["hint"])
    return found


def execute(place: Place, statements: str) -> None:
    if not place.is_sqlite:
        psql(place.dsn, statements)
        return
    with closing(sqlite3.connect(place.dsn, isolation_level=None)) as connection:
        connection.executescript(statements)


def name_of(postgres: Place) -> str:
    return parse_postgres(postgres.dsn).arguments["dbname"]


def arguments_of(server: Server) -> dict[str, str]:
    return {k: v for k, v in parse_postgres(server.dsn).arguments.items() if k != "dbname"}


def trace(place: Place) -> Any:
    """Return all that a check could leave behind: a schema and its stamps, or a folder's files and their bytes."""
    if place.is_sqlite:
        return {path: path.read_bytes() for path in place.folder.iterdir()}
    with closing(psycopg2.connect(place.dsn)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT objoid::regtype::text, description FROM pg_description WHERE objoid >= 16384")
        return cursor.fetchall(), schema_text(place)


# In sync, or not


def test_database_in_sync_is_healthy(place: Place) -> None:
    up(place)
    version = int(place.run("version").stdout)
    done = health(place)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    assert lines[:3] == [["healthy", "yes"], ["driver", place.driver], ["reachable", "yes"]]
    assert f"schema version  {version}" in done.stdout
    assert "in sync         yes" in done.stdout
    found = document(health(place, "--json"))
    assert (found["healthy"], found["driver"], found["schema_version"]) == (True, place.driver, version)
    assert (found["in_sync"], found["missing"], found["drift"], found["differences"]) == (True, 0, 0, [])
    assert (found["server"] is None, found["file"] is None) == (place.is_sqlite, not place.is_sqlite)
    quiet = health(place, "-q")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    assert "SELECT" in health(place, "-v").stderr


def test_missing_and_drifted_are_unhealthy_unless_the_schema_is_left_out(place: Place) -> None:
    up(place)
    version = int(place.run("version").stdout)
    execute(place, "DROP INDEX idx_sessions_jid; CREATE INDEX idx_sessions_jid ON sessions (name)")
    execute(place, "DROP INDEX idx_receipts_message_id")
    found = document(health(place, "--json"))
    assert (found["reachable"], found["in_sync"], found["missing"], found["drift"]) == (True, False, 1, 1)
    assert found["differences"][0] == "missing index receipts.idx_receipts_message_id"
    assert "drift index sessions.idx_sessions_jid" in found["differences"][1]
    assert found["schema_version"] == version
    shown = health(place)
    fails(shown, 1, "receipts.idx_receipts_message_id, and 1 more", "verify")
    assert "in sync         no: 1 missing, 1 drift\n" in shown.stdout
    assert found["differences"][1] in shown.stdout
    without = document(health(place, "--json", "--no-schema"))
    assert (without["healthy"], without["in_sync"], without["schema_version"]) == (True, None, version)


def test_database_that_was_never_migrated_is_unhealthy(place: Place) -> None:
    execute(place, "CREATE TABLE mine (id integer)")
    found = document(health(place, "--json"))
    assert (found["reachable"], found["in_sync"], found["schema_version"], found["drift"]) == (True, False, 0, 0)
    assert found["missing"] >= len(SERVICE_MODELS) - 1
    assert len(found["differences"]) == 5


@pytest.mark.soak
def test_own_models_are_looked_for(place: Place) -> None:
    (place.folder / "notes.py").write_text("import peewee\nclass Note(peewee.Model):\n    text = peewee.TextField()\n")
    assert place.run("--models", "notes", "--only-models").returncode == 0
    assert document(health(place, "--json", "--models", "notes", "--only-models"))["healthy"]
    assert document(health(place, "--json", "--models", "notes"))["in_sync"] is False
    up(place)
    execute(place, "DROP TABLE note")
    assert document(health(place, "--json"))["healthy"]
    assert document(health(place, "--json", "--models", "notes"))["differences"] == ["missing table note"]


# It costs nothing, and changes nothing


def test_schema_of_a_stamped_database_costs_one_statement(place: Place, server: Server, db: peewee.Database) -> None:
    stamp(db, list(SERVICE_MODELS))

    def count(check: Callable[[], Any]) -> int:
        with statements(db, None if place.is_sqlite else server) as seen:
            check()
        return len([text for text in seen if not text.startswith("--")])  # parts of a statement before it

    figures = 2 if place.is_sqlite else 1
    assert count(lambda: MigrationRunner(db, SERVICE_MODELS).check()) == 1
    assert count(lambda: check_health(db, SERVICE_MODELS, schema=False)) == figures + 1  # the last version


@pytest.mark.parametrize("options", [[], ["--no-schema"], ["--quick-check"]])
@pytest.mark.parametrize("in_sync", [True, False])
def test_check_changes_nothing(place: Place, options: list[str], in_sync: bool) -> None:
    up(place)
    if place.is_sqlite:
        execute(place, "PRAGMA journal_mode = DELETE")
        os.unlink(f"{place.dsn}-stamps")
    execute(place, "SELECT 1" if in_sync else "DROP INDEX idx_sessions_jid")
    if not place.is_sqlite:
        execute(place, "COMMENT ON TYPE migration_versions IS NULL")
    before = trace(place)
    done = health(place, *options)
    assert done.returncode == (0 if in_sync or "--no-schema" in options else 1), done.stderr
    assert trace(place) == before


def test_connection_is_left_as_it_was(place: Place) -> None:
    up(place)
    db = place.connect()
    assert check_health(db).healthy
    assert db.is_closed()
    with db.connection_context():
        assert check_health(db).healthy
        assert not db.is_closed()
        with db.atomic(), pytest.raises(WhatspireDBError, match="inside a transaction"):
            check_health(db)


# SQLite


@pytest.mark.soak
def test_figures_of_a_file(sqlite: Place) -> None:
    up(sqlite)
    with opened(sqlite) as db:
        db.execute_sql("CREATE TABLE mine AS SELECT hex(randomblob(100000)) AS text")
        db.execute_sql("DELETE FROM mine")
        file = document(health(sqlite, "--json"))["file"]
        assert file["wal_size"] == os.path.getsize(f"{sqlite.dsn}-wal") > 100_000
    assert (file["path"], file["journal_mode"]) == (sqlite.dsn, "wal")
    assert file["page_size"] == 4096
    assert file["free_pages"] > 24
    found = document(health(sqlite, "--json"))
    assert found["file"]["size"] == os.path.getsize(sqlite.dsn) == found["file"]["pages"] * 4096
    assert found["server_version"] == sqlite3.sqlite_version
    assert f"{sqlite.dsn}, {found['file']['size']} bytes, -wal 0 bytes" in health(sqlite).stdout


@pytest.mark.parametrize("way", ["whatspire.db", "data/whatspire.db", "file:whatspire.db", "file:whatspire.db?mode=ro"])
def test_missing_file_is_not_made(sqlite: Place, way: str) -> None:
    found = document(health(sqlite, "--json", "--dsn", way))
    assert found["reachable"] is False
    assert "whatspire.db cannot be opened: No such file" in found["error"]
    assert "whatspire_db.migrate" in found["hint"]
    assert list(sqlite.folder.iterdir()) == []
    assert "reachable   no" in health(sqlite, "--dsn", way).stdout


def test_missing_file_is_not_made_by_the_call_either(sqlite: Place) -> None:
    for db in (
        sqlite.connect(),
        peewee.SqliteDatabase(sqlite.dsn),
        peewee.SqliteDatabase(f"file:{sqlite.dsn}", uri=True),
    ):
        found = check_health(db, [])
        assert (found.reachable, found.healthy) == (False, False)
        assert "No such file" in str(found)
    assert list(sqlite.folder.iterdir()) == []


def test_database_in_memory_survives_its_check() -> None:
    db = peewee.SqliteDatabase(":memory:")
    found = check_health(db, [])
    assert (found.healthy, found.file and found.file.path) == (True, None)
    assert "in memory" in str(found)
    assert not db.is_closed()
    db.close()


def test_directory_and_device_are_not_reachable(sqlite: Place) -> None:
    assert "is a directory" in document(health(sqlite, "--json", "--dsn", str(sqlite.folder)))["error"]
    assert "not a regular file" in document(health(sqlite, "--json", "--dsn", "/dev/null"))["error"]


def test_file_that_is_no_database(sqlite: Place) -> None:
    content = b"hello, I am a text\n" * 100
    Path(sqlite.dsn).write_bytes(content)
    found = document(health(sqlite, "--json"))
    assert (found["reachable"], found["file"]["size"]) == (False, len(content))
    assert "is not a SQLite database" in found["error"]
    assert trace(sqlite) == {Path(sqlite.dsn): content}


@pytest.mark.soak
def test_locked_file_is_not_reachable(sqlite: Place) -> None:
    up(sqlite)
    with closing(sqlite3.connect(sqlite.dsn, isolation_level=None)) as holder:
        holder.executescript("PRAGMA journal_mode = DELETE; BEGIN EXCLUSIVE")
        found = document(health(sqlite, "--json", "--dsn", f"{sqlite.dsn}?_busy_timeout=50"))
        assert (found["reachable"], found["server_version"]) == (False, None)
        assert "is locked by another process" in found["error"]
        assert "raise WHATSAPP_DATABASE_HEALTH_TIMEOUT" in found["hint"]  # health has no --lock-timeout
        assert "--lock-timeout" not in found["hint"]
        holder.execute("ROLLBACK")
        assert health(sqlite).returncode == 0


@pytest.mark.soak
def test_file_and_folder_that_may_only_be_read() -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Place("sqlite", f"{folder}/whatspire.db", Path(folder))
        up(place)
        execute(place, "PRAGMA journal_mode = DELETE")
        for path in place.folder.iterdir():
            path.chmod(0o444)
        place.folder.chmod(0o555)
        code = (
            AS_NOBODY.replace("cli.migrate", "cli.health")
            if os.geteuid() == 0
            else "from whatspire_db.cli.health import *; sys.exit(main())"
        )
        command = [sys.executable, "-c", f"import sys\n{code}", "--json", "--quick-check"]
        done = subprocess.run(
            command, env=place.variables(), cwd=folder, capture_output=True, text=True, timeout=120, check=False
        )
        found = document(done)
        assert (found["healthy"], found["in_sync"], found["quick_check"]) == (True, True, "ok")
        place.folder.chmod(0o755)


@pytest.mark.parametrize("noise", [b"\xff" * 4096, b"\0" * 4096, b"\x0d\0\0\0\x01" + b"\0" * 4091])
def test_damage_is_found_by_the_quick_check_alone(sqlite: Place, noise: bytes) -> None:
    up(sqlite)
    execute(sqlite, "PRAGMA journal_mode = DELETE; CREATE TABLE mine (text); INSERT INTO mine VALUES (1)")
    with closing(sqlite3.connect(sqlite.dsn)) as connection:
        ((page,),) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'mine'")
    with open(sqlite.dsn, "r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(noise)
    assert document(health(sqlite, "--json"))["healthy"]
    found = document(health(sqlite, "--json", "--quick-check"))
    assert (found["reachable"], found["in_sync"]) == (True, True)
    assert found["quick_check"] not in (None, "", "ok")
    assert "***" not in found["quick_check"]
    assert found["error"].startswith(f"{sqlite.dsn} is damaged: ")
    assert ".recover" in found["hint"]


def test_quick_check_of_a_good_file(sqlite: Place) -> None:
    up(sqlite)
    assert document(health(sqlite, "--json", "--quick-check"))["quick_check"] == "ok"
    assert "quick check     ok" in health(sqlite, "--quick-check").stdout


# PostgreSQL


@pytest.fixture
def clerk(postgres: Place, server: Server) -> Iterator[Place]:
    """A migrated database, as a role sees it that may read its history and nothing else."""
    up(postgres)
    psql(postgres.dsn, "CREATE ROLE health_clerk LOGIN; GRANT SELECT ON migration_versions TO health_clerk;")
    yield replace(postgres, dsn=server.of_database(name_of(postgres), user="health_clerk"))
    psql(postgres.dsn, "DROP OWNED BY health_clerk; DROP ROLE health_clerk;")


def test_figures_of_a_server(postgres: Place, clerk: Place) -> None:
    limits = "SELECT current_setting('max_connections')::int, current_setting('superuser_reserved_connections')::int"
    with closing(psycopg2.connect(f"{postgres.dsn} application_name='the boss'")) as boss, boss.cursor() as cursor:
        boss.autocommit = True
        cursor.execute(limits + ", current_setting('server_version')")
        most, superuser, version = cursor.fetchone()

        def others() -> dict[str, int]:
            by_name = "SELECT application_name, count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
            cursor.execute(f"{by_name} AND application_name <> 'whatspire_db' GROUP BY 1")
            return dict(cursor.fetchall())

        def is_told(place: Place) -> bool:
            before, found, after = others(), document(health(place, "--json")), others()
            server, counts = found["server"], found["server"]["connections_by_application"]
            assert found["server_version"] == version.split()[0]
            assert (server["max_connections"], server["superuser_reserved_connections"]) == (most, superuser)
            assert (server["in_recovery"], server["reserved_connections"]) == (False, 0)
            assert server["connections"] == sum(counts.values())
            assert (counts["the boss"], counts.pop("whatspire_db") > 0) == (1, True)
            return before == counts == after

        for place in (postgres, clerk):  # others may still be leaving
            eventually(lambda place=place: is_told(place), "all clients are told, and nothing else", 10)
    shown = health(postgres).stdout
    assert f" of {most} ({superuser} for superusers, 0 reserved)" in shown
    assert "1 whatspire_db" in shown


def test_figures_of_the_pool(postgres: Place) -> None:
    up(postgres)
    with opened(postgres) as db:
        pool = check_health(db).pool
    assert pool is not None
    assert (pool["max_open_connections"], pool["open_connections"], pool["in_use"], pool["idle"]) == (100, 1, 1, 0)
    assert document(health(postgres, "--json"))["pool"].keys() == pool.keys()
    assert "pool            0 of 100 open, 0 in use, 0 idle" in health(postgres).stdout


def test_exhausted_pool_is_not_reachable(server: Server) -> None:
    db = PooledPostgresqlDatabase("postgres", **arguments_of(server), max_connections=1)
    found: list[Health] = []
    with db.connection_context():
        thread = threading.Thread(target=lambda: found.append(check_health(db, [])))
        thread.start()
        thread.join()
    assert (found[0].reachable, found[0].pool) == (False, None)
    assert "no connection of the pool came free" in str(found[0].error)
    assert check_health(db, []).healthy
    db.close_all()


def test_role_that_may_only_look_finds_a_stamped_schema_in_sync(postgres: Place, clerk: Place) -> None:
    psql(postgres.dsn, f"REVOKE TEMPORARY ON DATABASE {name_of(postgres)} FROM PUBLIC")
    reading = replace(clerk, dsn=f"{clerk.dsn} default_transaction_read_only=on")
    for place in (clerk, reading):
        found = document(health(place, "--json"))
        assert (found["in_sync"], found["note"]) == (True, None)


@pytest.mark.soak
def test_names_alone_are_compared_without_a_stamp_and_temporary_tables(postgres: Place, clerk: Place) -> None:
    psql(postgres.dsn, f"REVOKE TEMPORARY ON DATABASE {name_of(postgres)} FROM PUBLIC")
    psql(postgres.dsn, "COMMENT ON TYPE migration_versions IS NULL")
    done = health(clerk, "--json")
    found = document(done)
    assert (found["healthy"], found["in_sync"], found["missing"]) == (True, None, 0)
    assert found["note"].startswith("compared by names alone: permission denied")
    assert done.stderr == ""
    assert "in sync         not known" in health(clerk).stdout
    psql(postgres.dsn, "DROP INDEX idx_sessions_jid")
    assert document(health(clerk, "--json"))["in_sync"] is False


def test_role_that_may_not_read_the_history_does_not_know_the_version(postgres: Place, clerk: Place) -> None:
    psql(postgres.dsn, "REVOKE SELECT ON migration_versions FROM health_clerk")
    for options in ([], ["--no-schema"]):
        found = document(health(clerk, "--json", *options))
        assert (found["healthy"], found["schema_version"]) == (True, None)
        assert found["in_sync"] is (None if options else True)


def test_quick_check_is_not_for_postgres(postgres: Place) -> None:
    up(postgres)
    assert document(health(postgres, "--json", "--quick-check"))["quick_check"] is None


@pytest.mark.soak
def test_stopped_server_is_not_reachable(server: Server, tmp_path: Path) -> None:
    with new_node(server, "-c fsync=off") as node:
        place = Place("postgres", node.dsn(), tmp_path)
        node.make()
        node.start()
        up(place)
        assert document(health(place, "--json"))["healthy"]
        db = place.connect()
        db.connect()
        node.stop("fast")
        found = document(health(place, "--json"))
        assert (found["reachable"], found["server"], found["schema_version"]) == (False, None, None)
        assert "cannot connect to PostgreSQL" in found["error"]
        lost = check_health(db)  # over a connection that the server has left
        assert (lost.reachable, lost.healthy) == (False, False)
        assert lost.error
        db.close()


def test_password_is_told_nowhere(locked: Server, postgres: Place) -> None:
    up(postgres)
    escaped = PASSWORD.replace("\\", "\\\\").replace("'", "\\'")
    dsn = f"host={locked.folder} user=locked dbname={name_of(postgres)} password='{escaped}'"
    right = health(replace(postgres, dsn=dsn), "--json", "-v")
    wrong = health(replace(postgres, dsn=dsn[:-1] + "x'"), "--json", "-v")
    malformed = health(replace(postgres, dsn=f"{dsn} '{escaped}'"), "--json", "-v")
    assert json.loads(right.stdout)["healthy"] is True
    assert "password authentication failed" in document(wrong)["error"]
    assert "malformed" in document(malformed)["error"]
    for done in (right, wrong, malformed):
        assert PASSWORD not in done.stdout + done.stderr
        assert json.dumps(PASSWORD)[1:-1] not in done.stdout + done.stderr


def test_password_that_a_driver_repeats_is_redacted(server: Server) -> None:
    arguments = arguments_of(server) | {"password": "hunter2", "options": "hunter2 is no option"}
    db = peewee.PostgresqlDatabase("postgres", **arguments)
    found = check_health(db, [])
    assert not found.reachable
    assert "***" in str(found.error)
    assert "hunter2" not in f"{found}{found!r}{json.dumps(found.to_json())}"


# 0 or 1


WRONG: dict[str, tuple[list[str], dict[str, str], str]] = {
    "option": (["--nonsense"], {}, "--help"),
    "value": (["--driver"], {}, "--help"),
    "setting": ([], {"WHATSAPP_DATABASE_DRIVER": "mysql"}, "'mysql'"),
    "module": (["--models", "nowhere"], {}, "nowhere cannot be imported"),
    "module that ends the process": (["--models", "script"], {}, "SystemExit: 7"),
    "models": (["--models", "cyclic"], {}, "both declare table"),
}


@pytest.mark.soak
@pytest.mark.parametrize(("arguments", "variables", "word"), WRONG.values(), ids=WRONG.keys())
def test_wrong_configuration_is_unhealthy(
    sqlite: Place, arguments: list[str], variables: dict[str, str], word: str
) -> None:
    up(sqlite)
    (sqlite.folder / "script.py").write_text("import sys\nsys.exit(7)\n")
    twice = "class {0}(peewee.Model):\n    class Meta:\n        table_name = 'one'\n"
    (sqlite.folder / "cyclic.py").write_text("import peewee\n" + twice.format("A") + twice.format("B"))
    os.unlink(f"{sqlite.dsn}-stamps")
    fails(health(sqlite, *arguments, env=variables), 1, word)
    found = document(health(sqlite, "--json", *arguments, env=variables))
    assert word in f"{found['error']} {found['hint']}"


def test_interrupted_is_unhealthy(sqlite: Place) -> None:
    (sqlite.folder / "slow.py").write_text("raise KeyboardInterrupt\n")
    fails(health(sqlite, "--models", "slow"), 1, "interrupted")


def test_answer_that_nobody_can_read_is_unhealthy(sqlite: Place) -> None:
    up(sqlite)
    command = [sys.executable, "-m", "whatspire_db.health", "--json"]
    variables = sqlite.variables() | {"PYTHONUNBUFFERED": ""}
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, env=variables, cwd=sqlite.folder, stdout=full, stderr=full, check=False)
    assert done.returncode == 1


def test_help_is_no_failure(sqlite: Place) -> None:
    done = health(sqlite, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--quick-check" in done.stdout


@pytest.mark.soak
def test_cluster_names_its_inactive_nodes_and_is_healthy(citus: Place) -> None:
    up(citus)
    cluster = document(health(citus, "--json"))["server"]["cluster"]
    assert cluster == {"is_coordinator": True, "coordinator": "coordinator:5432", "nodes": 3, "inactive": []}
    psql(citus.dsn, "UPDATE pg_dist_node SET isactive = false WHERE nodename = 'worker-2'")
    assert document(health(citus, "--json"))["server"]["cluster"]["inactive"] == ["worker-2:5432"]
    assert "cluster         coordinator, 3 nodes, inactive: worker-2:5432" in health(citus).stdout
    psql(citus.dsn, "UPDATE pg_dist_node SET isactive = false")
    assert document(health(citus, "--json"))["server"]["cluster"]["is_coordinator"]


def test_worker_of_a_cluster_is_not_healthy(citus: Place) -> None:
    psql(citus.dsn, TO_WORKER)
    found = document(health(citus, "--json"))
    assert "worker of a Citus cluster" in found["error"]
    assert "coordinator:5432" in found["hint"]
    assert "worker of the coordinator coordinator:5432" in health(citus, "--no-schema").stdout
