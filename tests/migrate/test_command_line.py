"""The command line: verbs, exit codes, JSON, and two lines for every bad input."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from peewee import sqlite3

from tests.conftest import PASSWORD, Place, Server
from tests.servers import program
from whatspire_db import MigrationRunner
from whatspire_db.dsn.postgres import parse_postgres

pytestmark = pytest.mark.sampled


def fails(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """Show that a run ended with two lines, a fact and a hint, that hold the words."""
    assert done.returncode == code, done.stderr
    fact, hint = done.stderr.splitlines()
    assert fact.startswith("error: ")
    assert hint.startswith("hint:  ")
    assert len(hint) > 12
    for word in words:
        assert word in done.stderr, done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_verbs_in_the_life_of_a_database(place: Place) -> None:
    assert place.run("version").stdout == "0\n"
    named, empty, *pending = place.run("status").stdout.splitlines()
    assert named == f"database: {place.driver} {place.named}"
    assert empty == "no run is recorded yet"
    assert "pending: create table sessions" in pending
    planned = place.run("plan", "--json")
    assert planned.returncode == 3
    plan = json.loads(planned.stdout)
    assert plan.keys() == {"driver", "database", "version", "pending", "refused", "drift"}
    assert (plan["driver"], plan["database"]) == (place.driver, place.named)
    assert {step["kind"] for step in plan["pending"]} == {"create_table", "create_index"}
    assert all(step.keys() == {"kind", "table", "name", "sql", "lock", "cost"} for step in plan["pending"])
    assert place.run("verify").returncode == 3
    if place.is_sqlite:
        assert not Path(place.dsn).exists(), "looking made a file"

    up = place.run()
    assert up.returncode == 0
    assert up.stdout.splitlines()[:2] == ["Running database migrations...", "Current migration version: 0"]
    assert up.stdout.splitlines()[-1] == "Database migrations completed"
    version = place.run("version").stdout.strip()
    assert f"Migration recorded: version {version}" in up.stdout

    again = place.run("--json")
    report = json.loads(again.stdout)
    expected = {"driver", "database", "previous_version", "version", "applied", "drift", "duration_ms"}
    assert report.keys() == expected
    assert (report["applied"], report["version"]) == ([], int(version))
    assert place.run("plan").returncode == 0
    verified = json.loads(place.run("verify", "--json").stdout)
    head = {"driver": place.driver, "database": place.named, "version": int(version)}
    assert verified == head | {"missing": [], "drift": [], "extra": [], "times": []}
    assert json.loads(place.run("version", "--json").stdout) == head
    status = json.loads(place.run("status", "--json").stdout)
    (run,) = status.pop("runs")
    undo = status.pop("undo")
    assert status == head | {"pending": []}
    assert (undo["runs"], undo["refused"], len(undo["pending"])) == ([int(version)], [], 8)
    assert run.keys() == {"version", "name", "applied_at", "applied", "added", "undone_by"}
    assert (run["version"], run["name"], run["applied"]) == (int(version), "auto_migration", True)
    assert place.run("-q").stdout == ""


@pytest.mark.soak
def test_what_runs_is_what_was_shown(place: Place) -> None:
    shown = json.loads(place.run("plan", "--json").stdout)["pending"]
    assert json.loads(place.run("--json").stdout)["applied"] == shown


def test_statements_of_the_plan_make_the_schema(place: Place) -> None:
    steps = json.loads(place.run("plan", "--json").stdout)["pending"]
    db = place.connect()
    with db.connection_context():
        for step in steps:
            for sql in step["sql"]:
                db.execute_sql(sql)
        assert not MigrationRunner(db).verify_schema()


@pytest.mark.soak
def test_statements_alone_run_through_the_engines_own_shell(place: Place, server: Server) -> None:
    planned = place.run("plan", "--sql")
    assert planned.returncode == 3
    if place.is_sqlite:
        sqlite3.connect(place.dsn, isolation_level=None).executescript(planned.stdout)
    else:
        command = [program("psql"), "-v", "ON_ERROR_STOP=1", "-qd", place.dsn]
        subprocess.run(command, input=planned.stdout, text=True, check=True)
    done = place.run("plan", "--sql")
    assert (done.returncode, done.stdout) == (0, "")
    assert place.run("verify").returncode == 0


@pytest.mark.soak
def test_lock_timeout_ends_the_wait_in_two_lines(place: Place) -> None:
    db = place.connect()
    with db.connection_context(), MigrationRunner(db).engine.lock(1):
        fails(place.run("--lock-timeout", "100ms"), 1, "for 0.1 s", "--lock-timeout")
        fails(place.run(env={"WHATSAPP_DATABASE_MIGRATION_LOCK_TIMEOUT": "50ms"}), 1, "for 0.05 s")
    fails(place.run("--lock-timeout", "soon"), 2, "--lock-timeout is 'soon'")


def test_terminal_that_takes_utf8_gets_symbols(sqlite: Place) -> None:
    control, terminal = pty.openpty()
    variables = sqlite.variables() | {"PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-m", "whatspire_db.migrate"]
    process = subprocess.Popen(command, env=variables, cwd=sqlite.folder, stdout=terminal, stderr=subprocess.DEVNULL)
    os.close(terminal)
    shown = b""
    try:
        while chunk := os.read(control, 65536):
            shown += chunk
    except OSError:  # the terminal is closed when the process ends
        pass
    assert process.wait(60) == 0
    os.close(control)
    lines = shown.decode().splitlines()
    assert lines[0] == "🔄 Running database migrations..."
    assert lines[1] == "📊 Current migration version: 0"
    assert lines[-2].startswith("✅ Migration recorded: version ")
    assert lines[-1] == "✅ Database migrations completed"


SETTINGS = [
    ({"WHATSAPP_DATABASE_DRIVER": "mysql"}, ["WHATSAPP_DATABASE_DRIVER", "'mysql'", "sqlite, postgres"]),
    ({"WHATSAPP_DATABASE_DRIVER": "Postgre"}, ["did you mean postgres?"]),
    ({"WHATSAPP_DATABASE_DRIVER": "Postgres"}, ["is a SQLite DSN", "set WHATSAPP_DATABASE_DRIVER to sqlite"]),
    ({"WHATSAPP_DATABASE_DSN": "postgres://u:hunter2@h/d"}, ["set WHATSAPP_DATABASE_DRIVER to postgres"]),
    ({"WHATSAPP_DATABASE_DSN": "x.db?_journal_mod=WAL"}, ["_journal_mod"]),
    ({"WHATSAPP_DATABASE_DRIVER": "postgres", "WHATSAPP_DATABASE_DSN": "hunter2 host=x"}, ["malformed"]),
    (
        {"WHATSAPP_DATABASE_DRIVER": "postgres", "WHATSAPP_DATABASE_DSN": "postgres://u:hunter2%@h/d"},
        ["malformed", "%25"],
    ),
    ({"WHATSAPP_DATABASE_MAX_OPEN_CONNS": "-1"}, ["WHATSAPP_DATABASE_MAX_OPEN_CONNS", "'-1'", "from 0 to 999999999"]),
    ({"WHATSAPP_DATABASE_MAX_IDLE_CONNS": "ten"}, ["WHATSAPP_DATABASE_MAX_IDLE_CONNS", "'ten'"]),
    ({"WHATSAPP_DATABASE_CONN_MAX_LIFETIME": "1x"}, ["WHATSAPP_DATABASE_CONN_MAX_LIFETIME", "'1x'", "1.5h"]),
    ({"WHATSAPP_DATABASE_CONN_MAX_LIFETIME": "-5m"}, ["from 0 to 2562047h"]),
    ({"WHATSAPP_DATABASE_LOG_LEVEL": "loud"}, ["silent, error, warn, info"]),
    ({"WHATSAPP_DATABASE_RECORD_RUNS": "some"}, ["changes, all"]),
    ({"WHATSAPP_DATABASE_MODELS": " , "}, ["WHATSAPP_DATABASE_MODELS"]),
]


@pytest.mark.parametrize(("variables", "words"), SETTINGS)
def test_wrong_settings(sqlite: Place, variables: dict[str, str], words: list[str]) -> None:
    done = sqlite.run(env=variables)
    fails(done, 2, *words)
    assert "hunter2" not in done.stderr
    assert not Path(sqlite.dsn).exists()


@pytest.mark.parametrize("arguments", [["sideways"], ["up", "--nonsense"], ["--driver"]])
def test_wrong_arguments(sqlite: Place, arguments: list[str]) -> None:
    fails(sqlite.run(*arguments), 2, "--help")


def test_postgres_without_a_dsn(sqlite: Place) -> None:
    variables = {k: v for k, v in os.environ.items() if not k.startswith("WHATSAPP_DATABASE_")}
    command = [sys.executable, "-m", "whatspire_db.migrate", "--driver", "postgres"]
    done = subprocess.run(command, env=variables, cwd=sqlite.folder, capture_output=True, text=True, check=False)
    fails(done, 2, "WHATSAPP_DATABASE_DSN is not set")


@pytest.mark.soak
def test_models_modules(sqlite: Place) -> None:
    (sqlite.folder / "broken.py").write_text("raise ValueError('not today')\n")
    (sqlite.folder / "empty.py").write_text("from peewee import Model\nfrom whatspire_db import Session\n")
    (sqlite.folder / "syntax.py").write_text("def\n")
    fails(sqlite.run("--models", "nowhere.models"), 2, "nowhere.models cannot be imported", "ModuleNotFoundError")
    fails(sqlite.run("--models", "broken"), 2, "broken cannot be imported", "not today")
    fails(sqlite.run("--models", "syntax"), 2, "syntax cannot be imported")
    (sqlite.folder / "script.py").write_text("import sys\nsys.exit(7)\n")
    fails(sqlite.run("--models", "empty"), 2, "empty holds no models")
    fails(sqlite.run("--models", "script"), 2, "script cannot be imported: SystemExit: 7")
    assert not Path(sqlite.dsn).exists()


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_cannot_be_written(sqlite: Place, unbuffered: str) -> None:
    variables = sqlite.variables() | {"PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, "-m", "whatspire_db.migrate", "plan"]
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full", "w") as full, open(writer, "w") as broken:
        for out, said in ((full, "error: stdout: No space left on device\nhint:  make room"), (broken, "")):
            done = subprocess.run(
                command, env=variables, cwd=sqlite.folder, stdout=out, stderr=subprocess.PIPE, text=True, check=False
            )
            assert done.returncode == 1, done.stderr
            assert done.stderr.startswith(said)
            assert len(done.stderr.splitlines()) == 2 * bool(said)
        silent = [*command, "--nonsense"]
        done = subprocess.run(silent, env=variables, cwd=sqlite.folder, stderr=full, check=False)
        assert done.returncode == 2


def test_own_models_are_migrated_too(place: Place) -> None:
    (place.folder / "myapp").mkdir()
    (place.folder / "myapp" / "__init__.py").touch()
    (place.folder / "myapp" / "models.py").write_text(
        "import peewee\n"
        "from whatspire_db import BaseModel\n"
        "class Note(BaseModel):\n    text = peewee.TextField(index=True)\n"
        "class Common(BaseModel):\n    made_by = peewee.TextField()\n    class Meta:\n        abstract = True\n"
        "class Task(Common):\n    title = peewee.TextField()\n"
        "class Plain(peewee.Model):\n    class Meta:\n        legacy_table_names = False\n"
        "class Tag(Plain):\n    name = peewee.CharField(unique=True)\n"
    )
    done = place.run("--json", env={"WHATSAPP_DATABASE_MODELS": "myapp.models"})
    assert done.returncode == 0, done.stderr
    made = {s["table"] for s in json.loads(done.stdout)["applied"] if s["kind"] == "create_table"}
    assert made >= {"note", "task", "tag", "sessions"}
    assert not made & {"common", "plain", "base_model"}
    assert place.run("verify", "--models", "myapp.models").returncode == 0
    assert place.run("plan").returncode == 0
    assert place.run("--models", "myapp.models", "version").stdout.strip().isdigit()


# SQLite files


@pytest.mark.soak
def test_sqlite_path_is_a_directory(sqlite: Place) -> None:
    Path(sqlite.dsn).mkdir()
    for verb in ("up", "plan", "verify", "status", "version"):
        fails(sqlite.run(verb), 1, "is a directory")


@pytest.mark.parametrize("content", [b"hello, I am a text\n" * 100, b"SQLite format 3\0" + b"x" * 5000])
def test_file_that_is_no_database(sqlite: Place, content: bytes) -> None:
    Path(sqlite.dsn).write_bytes(content)
    for verb in ("up", "plan"):
        fails(sqlite.run(verb), 1, sqlite.dsn)
    assert Path(sqlite.dsn).read_bytes() == content


def test_device_is_no_database(sqlite: Place) -> None:
    fails(sqlite.run("--dsn", "/dev/null"), 1, "/dev/null is not a regular file")


def test_folder_that_cannot_be_made(sqlite: Place) -> None:
    (sqlite.folder / "data").touch()
    fails(sqlite.run("--dsn", "data/x.db"), 2, "--dsn names data/x.db, but data cannot be a folder")
    (sqlite.folder / "data").unlink()
    (sqlite.folder / "data").symlink_to("nowhere")
    fails(sqlite.run("--dsn", "data/x.db"), 1, "data cannot be made")


# All modules first: those that load late may lie where only root reads.
AS_NOBODY = """
import importlib, os, pkgutil, sys
import dotenv, whatspire_db
for module in pkgutil.walk_packages(whatspire_db.__path__, "whatspire_db."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
from whatspire_db.cli.migrate import main
os.setgroups([]); os.setgid(65534); os.setuid(65534)
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def run_as_nobody(sqlite: Place) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line without root's rights, which no file refuses anything."""
    if os.geteuid() != 0:
        return sqlite.run
    for folder in (sqlite.folder, *sqlite.folder.parents):
        if folder.stat().st_mode & 0o777 == 0o700:
            folder.chmod(0o755)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", AS_NOBODY, *arguments]
        return subprocess.run(
            command, env=sqlite.variables(), cwd=sqlite.folder, capture_output=True, text=True, check=False
        )

    return run


@pytest.mark.soak
def test_sqlite_file_that_cannot_be_read(
    sqlite: Place, run_as_nobody: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    assert sqlite.run().returncode == 0
    os.chmod(sqlite.dsn, 0o000)
    for verb in ("up", "plan"):
        fails(run_as_nobody(verb), 1, sqlite.dsn, "cannot be")


@pytest.mark.soak
def test_file_in_a_folder_that_cannot_be_searched_is_not_taken_for_a_missing_one(
    sqlite: Place, run_as_nobody: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    closed = sqlite.folder / "closed"
    closed.mkdir()
    assert sqlite.run("--dsn", str(closed / "x.db")).returncode == 0
    closed.chmod(0o000)
    for verb in ("up", "plan", "verify", "status", "version"):
        fails(run_as_nobody(verb, "--dsn", str(closed / "x.db")), 1, "closed/x.db", "cannot be")
    closed.chmod(0o755)


@pytest.mark.soak
def test_read_only_file(sqlite: Place, run_as_nobody: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    db = sqlite.connect()
    db.execute_sql("PRAGMA journal_mode = DELETE")
    db.execute_sql("CREATE TABLE mine (id integer)")
    db.close()
    os.chmod(sqlite.dsn, 0o444)
    os.chmod(sqlite.folder, 0o555)
    fails(run_as_nobody(), 1, "right to write")
    assert run_as_nobody("plan").returncode == 3
    uri = f"file:{sqlite.dsn}?mode=ro"
    fails(run_as_nobody("--dsn", uri), 1, "right to write")
    os.chmod(sqlite.folder, 0o755)


@pytest.mark.soak
def test_read_only_file_in_sync_is_no_error(
    sqlite: Place, run_as_nobody: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    assert sqlite.run("--dsn", f"{sqlite.dsn}?_journal_mode=DELETE").returncode == 0
    os.chmod(sqlite.dsn, 0o444)
    os.chmod(sqlite.folder, 0o555)
    done = run_as_nobody()
    assert done.returncode == 0, done.stderr
    assert "Nothing to do" in done.stdout
    os.chmod(sqlite.folder, 0o755)


def test_missing_file_in_read_only_mode(sqlite: Place) -> None:
    fails(sqlite.run("--dsn", f"file:{sqlite.dsn}?mode=ro"), 1, "does not exist")


# PostgreSQL servers


def test_no_such_server(postgres: Place) -> None:
    fails(postgres.run("--dsn", "host=127.0.0.1 port=1 user=u password='p@s:s/%' dbname=d"), 1, "refused", "port=1")
    fails(postgres.run("--dsn", "host=no-such-host.invalid user=u dbname=d"), 1, "no-such-host.invalid")
    fails(postgres.run("--dsn", "postgres://u:x@no-such-host.invalid/d"), 1, "check the host")


def test_no_such_database(postgres: Place, server: Server) -> None:
    fails(
        postgres.run("--dsn", server.of_database("nowhere_at_all")),
        1,
        "nowhere_at_all",
        "does not exist",
        "create the database",
    )


def test_unknown_parameter_of_the_server(postgres: Place) -> None:
    fails(postgres.run("--dsn", f"{postgres.dsn} search_pth=x"), 1, "search_pth")


@pytest.mark.soak
def test_passwords(locked: Server, postgres: Place) -> None:
    name = parse_postgres(postgres.dsn).arguments["dbname"]
    escaped = PASSWORD.replace("\\", "\\\\").replace("'", "\\'")
    right = {"WHATSAPP_DATABASE_DSN": f"host={locked.folder} user=locked dbname={name} password='{escaped}'"}
    wrong = {"WHATSAPP_DATABASE_DSN": f"host={locked.folder} user=locked dbname={name} password='{escaped}x'"}
    done = postgres.run("-v", env=right)
    assert done.returncode == 0, done.stderr
    assert PASSWORD not in done.stdout + done.stderr
    failed = postgres.run("-v", env=wrong)
    fails(failed, 1, "password authentication failed", "check user and password")
    assert PASSWORD not in failed.stderr
    url = {"WHATSAPP_DATABASE_DSN": f"postgres://locked:p%40s%3As%2F%25%27%5C%20w@/{name}?host={locked.folder}"}
    assert postgres.run(env=url).returncode == 0


@pytest.mark.soak
def test_role_without_rights(postgres: Place, server: Server) -> None:
    server.execute("DROP ROLE IF EXISTS reader", "CREATE ROLE reader LOGIN")
    name = parse_postgres(postgres.dsn).arguments["dbname"]
    fails(postgres.run("--dsn", server.of_database(name, user="reader")), 1, "permission denied", "role")
    assert postgres.run().returncode == 0
    assert postgres.run("verify", "--dsn", server.of_database(name, user="reader")).returncode == 0
    db = postgres.connect()
    db.execute_sql("GRANT SELECT ON migration_versions TO reader")
    done = postgres.run("up", "--dsn", server.of_database(name, user="reader"))
    assert (done.returncode, done.stderr) == (0, "")
    db.execute_sql("INSERT INTO receipts VALUES ('1', 'm', 's', 'f', 't', 'read', now())")
    db.execute_sql("ALTER TABLE receipts DROP COLUMN to_jid, ALTER id DROP DEFAULT")
    db.execute_sql("DROP INDEX idx_sessions_jid")
    planned = postgres.run("plan", "--dsn", server.of_database(name, user="reader"))
    assert planned.returncode == 4, planned.stderr
    assert "the table has an unknown number of rows" in planned.stdout
    assert 'CREATE INDEX IF NOT EXISTS "idx_sessions_jid"' not in planned.stdout
    assert 'CREATE INDEX CONCURRENTLY "idx_sessions_jid" ON "sessions" ("jid")' in planned.stdout
    server.execute("REVOKE ALL ON DATABASE " + name + " FROM reader")
    db.execute_sql("REVOKE SELECT ON migration_versions FROM reader")
    db.close()
    server.execute("DROP ROLE reader")


@pytest.mark.soak
def test_role_that_may_make_no_temporary_tables(postgres: Place, server: Server) -> None:
    name = parse_postgres(postgres.dsn).arguments["dbname"]
    server.execute("DROP ROLE IF EXISTS modest", "CREATE ROLE modest LOGIN")
    server.execute(f"REVOKE TEMPORARY ON DATABASE {name} FROM PUBLIC")
    modest = server.of_database(name, user="modest")
    fails(postgres.run("--dsn", modest), 1, "pending: create table", "temporary tables", "TEMPORARY")
    assert postgres.run("plan", "--sql", "--dsn", modest).stdout == postgres.run("plan", "--sql").stdout != ""
    assert postgres.run().returncode == 0
    db = postgres.connect()
    db.execute_sql("GRANT SELECT ON migration_versions TO modest")
    for verb, warned in (("up", False), ("plan", True), ("verify", True)):  # up trusts the stamp
        done = postgres.run(verb, "--dsn", modest)
        assert done.returncode == 0, done.stderr
        assert ("compared by names alone" in done.stderr) == warned
    db.execute_sql("DROP INDEX idx_sessions_jid")
    db.execute_sql("ALTER TABLE sessions ALTER name DROP NOT NULL")
    fails(postgres.run("--dsn", modest), 1, "pending: create index sessions.idx_sessions_jid", "CREATE INDEX")
    verified = postgres.run("verify", "--dsn", modest)
    assert verified.returncode == 4
    assert "drift column_null sessions.name" in verified.stdout
    db.execute_sql("DROP OWNED BY modest")
    db.close()
    server.execute("DROP ROLE modest")


@pytest.mark.soak
def test_session_that_may_only_read(postgres: Place) -> None:
    reading = f"{postgres.dsn} default_transaction_read_only=on"
    fails(postgres.run("up", "--dsn", reading), 1, "read-only transaction")
    assert postgres.run().returncode == 0
    assert postgres.run("up", "--dsn", reading).returncode == 0


@pytest.mark.soak
def test_search_path_decides_where_tables_go(postgres: Place) -> None:
    db = postgres.connect()
    db.execute_sql("CREATE SCHEMA app")
    done = postgres.run("--dsn", f"{postgres.dsn} search_path=app,public TimeZone=Asia/Shanghai")
    assert done.returncode == 0, done.stderr
    assert len(db.get_tables(schema="app")) == 10
    assert db.get_tables(schema="public") == []
    assert postgres.run("verify", "--dsn", f"{postgres.dsn} search_path=app,public").returncode == 0
    fails(postgres.run("--dsn", f"{postgres.dsn} search_path=gone"), 1, "search_path")
    db.close()


@pytest.mark.soak
def test_name_with_a_newline_starts_no_line_of_its_own(place: Place) -> None:
    text = (
        "import peewee\nclass Odd(peewee.Model):\n    v = peewee.IntegerField(column_name='v\\nno drift')\n{}"
        "    class Meta:\n        table_name = 'odd\\nin sync'\n"
    )
    odd = ("--models", "odd", "--only-models")
    (place.folder / "odd.py").write_text(text.format(""))
    said = place.run("up", *odd).stdout
    (place.folder / "odd.py").write_text(
        text.format("    w = peewee.IntegerField(null=True, column_name='w\\nin sync')\n")
    )
    said += place.run("verify", *odd).stdout + place.run("plan", *odd).stdout + place.run("up", *odd).stdout
    (place.folder / "odd.py").write_text(text.format(""))
    said += place.run("verify", *odd).stdout.replace("in sync\n", "", 1) + place.run("status", *odd).stdout
    # SQL is printed as it is; its names end in a quotation mark.
    starts = [line for line in said.splitlines() if line.startswith(("in sync", "no drift")) and '"' not in line]
    assert starts == []
    assert "odd\\x0ain sync.w\\x0ain sync" in said
