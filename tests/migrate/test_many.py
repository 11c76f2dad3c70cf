"""Many databases at once: schemas, files and DSNs, each with a run, a line and an outcome of its own."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from tests.conftest import PASSWORD, Place, Server
from tests.migrate.test_command_line import fails
from tests.servers import eventually
from whatspire_db import MigrationRunner, Settings, connect
from whatspire_db.dsn.postgres import parse_postgres

MODELS = """
import peewee
from peewee import Check
from whatspire_db import BaseModel

class Customer(BaseModel):
    name = peewee.TextField(index=True)

class Invoice(BaseModel):
    customer = peewee.ForeignKeyField(Customer)
    number = peewee.IntegerField(unique=True)
    total = peewee.IntegerField(constraints=[Check("total >= 0", "invoice_total")])
"""
OWN = ("--models", "shop", "--only-models")
# What is alike on both engines is tested on one of them, and in a soak on the other.
MOSTLY_SQLITE = ["sqlite", pytest.param("postgres", marks=pytest.mark.soak)]
MOSTLY_POSTGRES = ["postgres", pytest.param("sqlite", marks=pytest.mark.soak)]
STEPS = 6  # three tables, with that of the history, and three indexes


@pytest.fixture(autouse=True)
def models(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(MODELS)


def run(place: Place, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line without a database of its own."""
    given = {} if "--each-schema" in arguments else {"WHATSAPP_DATABASE_DSN": "", "WHATSAPP_DATABASE_DRIVER": ""}
    return place.run(*arguments, *OWN, env=given | options.pop("env", {}), **options)


def documents(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    found = json.loads(done.stdout)
    assert isinstance(found, list)
    return found


def files(place: Place, *names: str) -> list[Path]:
    """Make empty databases."""
    for name in names:
        (place.folder / name).parent.mkdir(exist_ok=True)
        (place.folder / name).touch()
    return [place.folder / name for name in names]


def tables(path: Path) -> set[str]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


ALL = {"customer", "invoice", "migration_versions", "whatspire_db_runs"}


@contextmanager
def session(place: Place) -> Iterator[Any]:
    connection = psycopg2.connect(**parse_postgres(place.dsn).arguments)
    connection.autocommit = True
    with closing(connection), connection.cursor() as cursor:
        yield cursor


def schemas(place: Place, *names: str) -> None:
    with session(place) as cursor:
        for name in names:
            quoted = name.replace('"', '""')
            cursor.execute(f'CREATE SCHEMA "{quoted}"')


def tables_by_schema(place: Place) -> dict[str, set[str]]:
    with session(place) as cursor:
        cursor.execute(
            "SELECT nspname, relname FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace"
            " WHERE relkind = 'r' AND nspname !~ '^pg_' AND nspname <> 'information_schema'"
        )
        found: dict[str, set[str]] = {}
        for schema, table in cursor.fetchall():
            found.setdefault(schema, set()).add(table)
        return found


# Files


def test_every_file_that_the_glob_matches_is_migrated(sqlite: Place) -> None:
    one, two, other = files(sqlite, "data/a.db", "data/b.db", "data/c.other")
    done = run(sqlite, "--each-file", "data/*.db")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    lines = done.stdout.splitlines()
    assert sorted(line.split(":")[0] for line in lines[:-1]) == ["data/a.db", "data/b.db"]
    assert all(f": {STEPS} steps, version " in line for line in lines[:-1])
    assert lines[-1] == "2 files: 2 migrated"
    assert tables(one) == tables(two) == ALL
    assert other.read_bytes() == b""
    again = documents(run(sqlite, "up", "--json", "--each-file", "data/*.db"))
    assert [(d["file"], d["database"], d["applied"]) for d in again] == [
        ("data/a.db", str(one), []),
        ("data/b.db", str(two), []),
    ]


def test_a_match_that_is_no_database_fails_for_itself_and_nothing_is_followed_or_made(sqlite: Place) -> None:
    good, text = files(sqlite, "data/a.db", "data/text.db")
    text.write_bytes(b"hello, I am a text\n" * 100)
    (away,) = files(sqlite, "away.db")
    (sqlite.folder / "data" / "link.db").symlink_to(away)
    (sqlite.folder / "data" / "dangling.db").symlink_to("nowhere.db")
    (sqlite.folder / "data" / "folder.db").mkdir()
    os.mkfifo(sqlite.folder / "data" / "pipe.db")
    done = run(sqlite, "--json", "--each-file", "data/*")
    assert done.returncode == 1
    first, failed = documents(done)
    assert (first["file"], len(first["applied"])) == ("data/a.db", STEPS)
    assert failed.keys() == {"file", "driver", "database", "error", "hint", "exit"}
    assert (failed["file"], failed["exit"]) == ("data/text.db", 1)
    assert "is not a SQLite database" in failed["error"]
    assert "--each-file" in failed["hint"]
    lines = done.stderr.splitlines()
    assert [line.split(": ")[1] for line in lines if line.startswith("WARNING: ")] == [
        f"data/{name}.db is left out" for name in ("dangling", "link", "pipe")
    ]
    assert sum(line.startswith("error: data/text.db: ") for line in lines) == 1
    assert lines[-2:] == [
        "error: 1 of 2 files failed: data/text.db",
        "hint:  the line of each says what to do; then run it again, and what is done takes no time",
    ]
    assert tables(good) == ALL
    assert text.read_bytes() == b"hello, I am a text\n" * 100
    assert away.read_bytes() == b""
    names = {path.name for path in (sqlite.folder / "data").iterdir()}
    assert names - {"a.db-stamps", "a.db-wal", "a.db-shm"} == {
        *("a.db", "text.db", "link.db", "dangling.db", "folder.db", "pipe.db")
    }


def test_a_glob_that_the_shell_has_expanded_names_files_and_a_verb_may_stand_behind(sqlite: Place) -> None:
    files(sqlite, "a[1].db", "a1.db", "b.db")
    done = run(sqlite, "--each-file", "a[1].db", "b.db", "a[1].db", "status")
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [
        "2 files: 2 pending",
        f"a[1].db: version 0, 0 runs, {STEPS} pending",
        f"b.db: version 0, 0 runs, {STEPS} pending",
    ]


def test_a_file_that_goes_away_meanwhile_is_not_made_again(sqlite: Place) -> None:
    files(sqlite, "a.db", "b.db")
    (sqlite.folder / "shop.py").write_text(f"{MODELS}\nimport os\nos.unlink('b.db')\n")
    done = run(sqlite, "--each-file", "?.db")
    assert done.returncode == 1
    assert "error: b.db: " in done.stderr
    assert "b.db is gone (hint: run it again" in done.stderr
    assert not (sqlite.folder / "b.db").exists()


# What is refused as a whole


def test_no_match_is_wrong_usage(sqlite: Place) -> None:
    done = run(sqlite, "--json", "--each-file", "nowhere/*.db")
    fails(done, 2, "no regular file matches nowhere/*.db", "check the pattern")
    assert json.loads(done.stdout).keys() == {"error", "hint", "exit"}
    assert sorted(os.listdir(sqlite.folder)) == ["shop.py"]


REFUSED = [
    (("--each-file", "*.db", "--each-schema", "a"), "--each-schema and --each-file exclude each other"),
    (("--each-file", "*.db", "--dsn-file", "f"), "--each-file and --dsn-file exclude each other"),
    (("--each-file", "*.db", "--dsn", "x.db"), "--dsn and --each-file exclude each other"),
    (("--dsn-file", "f", "--driver", "sqlite"), "--driver and --dsn-file exclude each other"),
    (("version", "--each-file", "*.db"), "version takes no --each-file"),
    (("version", "--each-schema", "a"), "version takes no --each-schema"),
    (("version", "--dsn-file", "f"), "version takes no --dsn-file"),
    (("plan", "--sql", "--each-file", "*.db"), "--each-file takes no --sql"),
    (("--jobs", "2"), "--jobs is for many databases"),
    (("--fail-fast",), "--fail-fast is for many databases"),
    (("--each-file", "*.db", "--jobs", "0"), "--jobs is '0'"),
    (("--each-file", "*.db", "--jobs", "1000"), "from 1 to 64"),
    (("--each-schema", "a", "--dsn", "x.db"), "--each-schema is for PostgreSQL"),
    (("--each-file", ""), "--each-file is given an empty value"),
]


@pytest.mark.parametrize(
    ("arguments", "words"), REFUSED, ids=lambda each: " ".join(each) if type(each) is tuple else ""
)
@pytest.mark.sampled
def test_options_that_do_not_go_together_are_refused_before_anything_is_made(
    sqlite: Place, arguments: tuple[str, ...], words: str
) -> None:
    (path,) = files(sqlite, "x.db")
    fails(run(sqlite, *arguments), 2, words)
    assert path.read_bytes() == b""
    assert sorted(os.listdir(sqlite.folder)) == ["shop.py", "x.db"]


def test_models_that_are_bound_to_another_database_are_refused(sqlite: Place) -> None:
    files(sqlite, "x.db")
    (sqlite.folder / "shop.py").write_text(
        "import peewee\nclass Note(peewee.Model):\n    class Meta:\n        database = peewee.SqliteDatabase('own.db')\n"
    )
    fails(run(sqlite, "--each-file", "x.db"), 2, "Note is bound to a database of its own", "--each-file names")


# A file of DSNs


def dsn_file(place: Place, *lines: str, mode: int = 0o600) -> str:
    path = place.folder / "dsns"
    path.write_text("\n".join(lines) + "\n")
    path.chmod(mode)
    return str(path)


@pytest.mark.soak
def test_dsns_of_both_engines_without_their_passwords(postgres: Place) -> None:
    secret = "hunter2'\\ x"
    quoted = secret.replace("\\", "\\\\").replace("'", "\\'")
    path = dsn_file(
        postgres,
        "# the tenants",
        "",
        f"{postgres.dsn} password='{quoted}'",
        "  new.db  ",
        f"host=/nowhere user=u dbname=gone password='{quoted}'",
        f"postgres://u:{secret}%@h/d",
        f"server=h;uid=u;pwd={secret}",
    )
    done = run(postgres, "-v", "--dsn-file", path)
    shown = run(postgres, "verify", "--json", "--dsn-file", path)
    assert "hunter2" not in done.stdout + done.stderr + shown.stdout + shown.stderr
    assert (done.returncode, shown.returncode) == (2, 2)
    first, second, *failed = documents(shown)
    assert (first["dsn"], first["line"], first["driver"]) == (postgres.named, 3, "postgres")
    assert (second["dsn"], second["line"], second["driver"]) == (str(postgres.folder / "new.db"), 4, "sqlite")
    assert [(d["dsn"], d["line"], d["exit"]) for d in failed] == [
        ("host=/nowhere dbname=gone", 5, 1),
        (None, 6, 2),
        (None, 7, 2),
    ]
    lines = done.stdout.splitlines()
    named = {f"line 3 ({postgres.named})", f"line 4 ({postgres.folder}/new.db)"}
    assert {line.split(": ")[0] for line in lines[:-1]} == named
    assert sorted(lines[-1].removeprefix("5 databases: ").split(", ")) == ["2 migrated", "3 failed"]
    assert tables(postgres.folder / "new.db") == ALL
    assert tables_by_schema(postgres) == {"public": ALL}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o602])
@pytest.mark.sampled
def test_a_file_of_dsns_that_others_can_read_is_refused(sqlite: Place, mode: int) -> None:
    path = dsn_file(sqlite, "x.db", mode=mode)
    fails(run(sqlite, "--dsn-file", path), 2, "other users can", "chmod 600")
    assert not (sqlite.folder / "x.db").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_dsns_of_another_user_is_refused(sqlite: Place) -> None:
    path = dsn_file(sqlite, "x.db")
    os.chown(path, 65534, 65534)
    fails(run(sqlite, "--dsn-file", path), 2, "belongs to user nobody", "chmod 600")


def test_a_file_of_dsns_may_be_a_link_but_no_pipe_or_folder(sqlite: Place) -> None:
    (sqlite.folder / "link").symlink_to(dsn_file(sqlite, "x.db"))
    assert run(sqlite, "--dsn-file", "link").returncode == 0
    os.mkfifo(sqlite.folder / "pipe")
    fails(run(sqlite, "--dsn-file", "pipe"), 2, "it is a pipe")


# Schemas


@pytest.mark.soak
def test_each_schema_of_the_pattern_and_no_other(postgres: Place) -> None:
    schemas(postgres, "tenant_1", "tenant_2", "Tenant_3", "other")
    done = run(postgres, "--each-schema", "tenant_*")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == f"database: postgres {postgres.named}"
    assert sorted(line.split(":")[0] for line in lines[1:-1]) == ["tenant_1", "tenant_2"]
    assert lines[-1] == "2 schemas: 2 migrated"
    assert tables_by_schema(postgres) == {"tenant_1": ALL, "tenant_2": ALL}
    looked = documents(run(postgres, "verify", "--json", "--each-schema", "*"))
    assert {d["schema"]: len(d["missing"]) for d in looked} == {
        "Tenant_3": 2,
        "other": 2,
        "public": 2,  # tables; nobody asked for the history
        "tenant_1": 0,
        "tenant_2": 0,
    }
    assert {(d["driver"], d["database"]) for d in looked} == {("postgres", postgres.named)}
    fails(run(postgres, "--each-schema", "[ip][ng][f_]*"), 2, "no schema of")  # pg_catalog, information_schema


ODD = ['Q"uoted', "two words", "back\\slash", "per%s", "it's,", "a;b", "Ünï\nline", "0"]


@pytest.mark.soak
def test_schemas_with_any_name(postgres: Place) -> None:
    schemas(postgres, *ODD)
    for verb in ("up", "up"):  # a look, and the stamp
        done = run(postgres, verb, "--json", "--each-schema", "*[!c]")  # not public
        assert done.returncode == 0, done.stderr
        assert sorted(d["schema"] for d in documents(done)) == sorted(ODD)
    assert tables_by_schema(postgres) == dict.fromkeys(ODD, ALL)


def test_a_schema_that_no_search_path_can_name_is_refused(postgres: Place) -> None:
    schemas(postgres, "$user")
    done = run(postgres, "--each-schema", "$*")
    assert done.returncode == 1
    assert "error: $user: $user in a search_path is the schema of the role's name (hint: rename" in done.stderr
    assert tables_by_schema(postgres) == {}


@pytest.mark.soak
def test_a_schema_that_the_role_may_not_use_fails_and_no_other_schema_takes_its_place(
    postgres: Place, server: Server
) -> None:
    schemas(postgres, "tenant_1", "tenant_2")
    server.execute("DROP ROLE IF EXISTS limited", "CREATE ROLE limited LOGIN")
    name = parse_postgres(postgres.dsn).arguments["dbname"]
    with session(postgres) as cursor:
        cursor.execute("GRANT ALL ON SCHEMA public, tenant_2 TO limited")
    limited = Place("postgres", server.of_database(name, user="limited"), postgres.folder)
    assert limited.run(*OWN).returncode == 0  # public has a stamp that fits
    for _ in range(2):
        done = run(limited, "--each-schema", "tenant_*")
        assert done.returncode == 1
        assert "error: tenant_1: this role may not use schema tenant_1 (hint: let its owner run: GRANT" in done.stderr
        assert tables_by_schema(postgres) == {"public": ALL, "tenant_2": ALL}
    with session(postgres) as cursor:
        cursor.execute("DROP OWNED BY limited")
    server.execute("DROP ROLE limited")


@pytest.mark.soak
def test_a_history_of_another_schema_does_not_count(postgres: Place) -> None:
    schemas(postgres, "tenant_1")
    assert postgres.run(*OWN).returncode == 0
    (done,) = documents(run(postgres, "--json", "--each-schema", "tenant_1"))
    assert (done["previous_version"], len(done["applied"])) == (0, STEPS)
    assert tables_by_schema(postgres) == {"public": ALL, "tenant_1": ALL}


def test_a_schema_of_the_settings_stays_behind_each(postgres: Place) -> None:
    schemas(postgres, "tenant_1", "common")
    with session(postgres) as cursor:
        cursor.execute("CREATE DOMAIN common.amount AS integer CHECK (VALUE > 0)")
    (postgres.folder / "shop.py").write_text(
        "import peewee\nclass Amount(peewee.Field):\n    field_type = 'amount'\n"
        "class Bill(peewee.Model):\n    amount = Amount()\n"
    )
    dsn = f"{postgres.dsn} search_path=common,public statement_timeout=60s"
    for _ in range(2):
        done = run(postgres, "--each-schema", "tenant_*", "--dsn", dsn)
        assert done.returncode == 0, done.stderr
    assert tables_by_schema(postgres) == {"tenant_1": {"bill", "migration_versions", "whatspire_db_runs"}}


def test_what_sessions_begin_with_otherwise_stays(postgres: Place, server: Server) -> None:
    server.execute("DROP ROLE IF EXISTS keeper", "CREATE ROLE keeper")
    schemas(postgres, "tenant_1")
    with session(postgres) as cursor:
        cursor.execute("GRANT ALL ON SCHEMA tenant_1 TO keeper")
        assert run(postgres, "--each-schema", "tenant_*", env={"PGOPTIONS": "-c role=keeper"}).returncode == 0
        cursor.execute("SELECT DISTINCT tableowner::text FROM pg_tables WHERE schemaname = 'tenant_1'")
        assert cursor.fetchall() == [("keeper",)]
        cursor.execute("DROP OWNED BY keeper")
    server.execute("DROP ROLE keeper")


def test_models_with_a_schema_of_their_own_are_left_out(postgres: Place) -> None:
    schemas(postgres, "tenant_1", "tenant_2")
    shared = "import peewee\nclass Plan(peewee.Model):\n    class Meta:\n        schema = 'shared'\n"
    (postgres.folder / "shop.py").write_text(f"{shared}class Customer(peewee.Model):\n    name = peewee.TextField()\n")
    assert run(postgres, "--each-schema", "tenant_*").returncode == 0
    own = {"customer", "migration_versions", "whatspire_db_runs"}
    assert tables_by_schema(postgres) == {"tenant_1": own, "tenant_2": own}


def test_an_extension_is_not_made_in_one_of_the_schemas(postgres: Place) -> None:
    schemas(postgres, "tenant_1", "tenant_2")
    (postgres.folder / "shop.py").write_text(
        "import peewee\nclass Note(peewee.Model):\n    class Meta:\n        extensions = ['hstore']\n"
    )
    fails(run(postgres, "--each-schema", "tenant_*"), 1, "extension hstore", 'CREATE EXTENSION "hstore" SCHEMA public')
    assert tables_by_schema(postgres) == {}


def lock_of(place: Place, schema: str) -> Any:
    db = connect(Settings(dsn=f"{place.dsn} search_path={schema}", log_level="silent"), bind=False)
    return db, MigrationRunner(db, []).engine.lock(1)


@pytest.mark.soak
def test_the_lock_of_one_schema_stops_no_other(postgres: Place) -> None:
    schemas(postgres, "tenant_1", "tenant_2", "tenant_3")
    db, lock = lock_of(postgres, "tenant_2")
    with db.connection_context(), lock:
        done = run(postgres, "--each-schema", "tenant_*", "--lock-timeout", "100ms", "--jobs", "1")
    db.close_all()
    assert done.returncode == 1
    assert "error: tenant_2: another migration held the lock for 0.1 s" in done.stderr
    assert tables_by_schema(postgres) == {"tenant_1": ALL, "tenant_3": ALL}


COUNTED = """
import atexit, pathlib
from whatspire_db.connection.engines.postgres import session

said, opened = [], []
execute, init = session.Cursor.execute, session.Connection.__init__

def counted(self, query, vars=None):
    said.append(query)
    return execute(self, query, vars)

def counted_init(self, *arguments, **more):
    opened.append(1)
    init(self, *arguments, **more)

session.Cursor.execute, session.Connection.__init__ = counted, counted_init
atexit.register(lambda: pathlib.Path("counts").write_text(f"{len(said)} {len(opened)}"))
"""


@pytest.mark.soak
def test_a_schema_with_nothing_to_do_costs_one_statement_and_no_connection(postgres: Place) -> None:
    few, many, jobs = 4, 13, 3
    schemas(postgres, *(f"tenant_{number:02}" for number in range(many)))
    assert run(postgres, "--each-schema", "tenant_*", "--jobs", "8").returncode == 0
    (postgres.folder / "shop.py").write_text(MODELS + COUNTED)
    counts = {}
    for number, pattern in ((few, "tenant_0[0-3]"), (many, "tenant_*")):
        done = run(postgres, "--each-schema", pattern, "--jobs", str(jobs))
        assert done.stdout.splitlines()[-1] == f"{number} schemas: {number} with nothing to do"
        counts[number] = [int(word) for word in (postgres.folder / "counts").read_text().split()]
    for number, (said, opened) in counts.items():
        assert said <= number + 2 * opened + 2  # what a session begins with, and the list of schemas
        assert opened <= jobs


# All of them


def place_of_many(place: Place, number: int) -> tuple[str, str]:
    """Make empty databases of an engine; return the option and the pattern for them."""
    if place.is_sqlite:
        files(place, *(f"t/{n:03}.db" for n in range(number)))
        return "--each-file", "t/*.db"
    schemas(place, *(f"t_{n:03}" for n in range(number)))
    return "--each-schema", "t_*"


@pytest.mark.soak
def test_threads_record_each_run_where_it_belongs(place: Place) -> None:
    many = place_of_many(place, 9)
    done = run(place, *many, "--jobs", "6")
    assert (done.returncode, done.stderr) == (0, "")
    looked = documents(run(place, "status", "--json", *many, "--jobs", "6"))
    said = dict(line.split(": ") for line in done.stdout.splitlines() if " steps, " in line)
    assert {d.get("file") or d["schema"]: f"{STEPS} steps, version {d['version']}" for d in looked} == {
        name: text.removesuffix(", created") for name, text in said.items()
    }
    assert [(len(d["runs"]), d["pending"]) for d in looked] == [(1, [])] * 9


def damage(place: Place, number: int, sql: str) -> None:
    if place.is_sqlite:
        with closing(sqlite3.connect(place.folder / f"t/{number:03}.db", isolation_level=None)) as connection:
            connection.execute(sql)
        return
    with session(place) as cursor:
        cursor.execute(f"SET search_path TO t_{number:03}; {sql}")


@pytest.mark.soak
@pytest.mark.parametrize("place", MOSTLY_SQLITE, indirect=True)
def test_the_worst_exit_code_of_all(place: Place) -> None:
    many = place_of_many(place, 4)
    assert run(place, *many).returncode == 0
    damage(place, 1, "DROP INDEX customer_name")
    assert run(place, "verify", *many).returncode == 3
    damage(place, 2, "DROP TABLE invoice")
    damage(place, 2, "CREATE TABLE invoice (number integer PRIMARY KEY)")
    damage(place, 2, "INSERT INTO invoice VALUES (1)")
    done = run(place, "plan", *many)
    assert done.returncode == 4
    counts = done.stdout.splitlines()[-1].split(": ")[1].split(", ")
    assert sorted(counts) == ["1 pending", "1 refused", "2 with nothing to do"]
    up = run(place, "up", "--json", *many)
    assert up.returncode == 4
    first, second, third, _ = documents(up)
    assert (first["applied"], len(second["applied"])) == ([], 1)
    assert third["exit"] == 4
    assert third["refused"]
    assert ("1 of 4 " in up.stderr, up.stderr.count("error: ")) == (True, 2)
    quiet = run(place, "up", "-q", *many)
    assert (quiet.returncode, quiet.stdout, quiet.stderr.count("error: ")) == (4, "", 2)


@pytest.mark.soak
@pytest.mark.parametrize("place", MOSTLY_POSTGRES, indirect=True)
def test_drift_is_logged_with_its_database(place: Place) -> None:
    many = place_of_many(place, 2)
    assert run(place, *many).returncode == 0
    damage(place, 1, "DROP INDEX customer_name")
    damage(place, 1, "CREATE UNIQUE INDEX customer_name ON customer (name)")
    name = "t/001.db" if place.is_sqlite else "t_001"
    for _ in range(2):  # a look, and the stamp
        done = run(place, *many)
        assert done.returncode == 0
        (warning,) = done.stderr.splitlines()
        assert warning.startswith(f"WARNING: {name}: drift, left as it is: ")
        assert f"{name}: nothing to do, version " in done.stdout
        assert "1 difference that adding cannot mend" in done.stdout


def summary(done: subprocess.CompletedProcess[str]) -> list[str]:
    return sorted(done.stdout.splitlines()[-1].split(": ")[1].split(", "))


@pytest.mark.soak
@pytest.mark.parametrize("place", MOSTLY_SQLITE, indirect=True)
def test_drift_is_in_the_line_and_the_summary_and_accepted_drift_is_in_sync(place: Place) -> None:
    many = place_of_many(place, 3)
    assert run(place, *many).returncode == 0
    for sql in ("DROP INDEX customer_name", "CREATE UNIQUE INDEX customer_name ON customer (name)"):
        damage(place, 1, sql)
    name = "t/001.db" if place.is_sqlite else "t_001"
    done = run(place, "verify", *many)
    assert (done.returncode, summary(done)) == (4, ["1 with drift", "2 in sync"])
    assert f"{name}: 1 drift\n" in done.stdout
    (drift,) = documents(run(place, "verify", "--json", *many))[1]["drift"]
    done = run(place, "verify", *many, env={"WHATSAPP_DATABASE_ACCEPTED_DRIFT": json.dumps([drift])})
    assert (done.returncode, summary(done)) == (0, ["3 in sync"])
    assert f"{name}: in sync, 1 accepted\n" in done.stdout


@pytest.mark.soak
@pytest.mark.parametrize("place", MOSTLY_SQLITE, indirect=True)
def test_status_does_not_hide_that_plan_refuses(place: Place) -> None:
    many = place_of_many(place, 2)
    assert run(place, *many).returncode == 0
    damage(place, 1, "DROP TABLE invoice")
    damage(place, 1, "CREATE TABLE invoice (number integer PRIMARY KEY)")
    done = run(place, "status", *many)
    assert summary(done) == ["1 refused", "1 with nothing pending"]
    assert " refused, see plan" in done.stdout
    assert documents(run(place, "status", "--json", *many))[1]["refused"]


@pytest.mark.parametrize("place", MOSTLY_SQLITE, indirect=True)
def test_fail_fast_begins_no_other(place: Place) -> None:
    many = place_of_many(place, 4)
    if place.is_sqlite:
        (place.folder / "t/001.db").write_text("no database" * 100)
    else:
        damage(place, 1, "CREATE TABLE invoice (number integer PRIMARY KEY)")
    done = run(place, "--json", *many, "--jobs", "1", "--fail-fast")
    assert done.returncode == (1 if place.is_sqlite else 4)
    first, second, *others = documents(done)
    assert len(first["applied"]) == STEPS
    assert second["error"]
    assert [d["error"] for d in others] == ["not begun, for another one failed"] * 2
    keys = {"file" if place.is_sqlite else "schema", "driver", "database", "error", "hint", "exit"}
    assert [d.keys() for d in others] == [keys, keys]


@pytest.mark.soak
def test_a_backup_of_each_file_or_one_of_all_schemas(place: Place) -> None:
    many = place_of_many(place, 3)
    assert run(place, *many).returncode == 0
    for number in range(3):
        damage(place, number, "DROP INDEX customer_name")
    done = run(place, "--json", "--backup", *many)
    assert done.returncode == 0, done.stderr
    made = {document["backup"] for document in documents(done)}
    assert len(made) == (3 if place.is_sqlite else 1)
    assert {Path(file).name for file in made} < set(os.listdir(place.folder / "backups"))
    assert len(list((place.folder / "backups").glob("*.json"))) == len(made)


@pytest.mark.soak
@pytest.mark.parametrize("place", MOSTLY_POSTGRES, indirect=True)
def test_nothing_is_changed_where_the_backup_fails(place: Place) -> None:
    many = place_of_many(place, 2)
    assert run(place, *many).returncode == 0
    for number in range(2):
        damage(place, number, "DROP INDEX customer_name")
    (place.folder / "backups").write_text("in the way")
    done = run(place, *many, env={"WHATSAPP_DATABASE_BACKUP_BEFORE_MIGRATE": "true"})
    assert done.returncode in (1, 2)
    assert done.stderr.count("error: t") == 2
    assert done_in(place, 2) == set()


# Ends


@contextmanager
def blocked(place: Place, number: int) -> Iterator[None]:
    """Hold what a run over one of the databases waits for."""
    if place.is_sqlite:
        with closing(sqlite3.connect(place.folder / f"t/{number:03}.db", isolation_level=None)) as holder:
            holder.execute("BEGIN IMMEDIATE")
            yield
        return
    with session(place) as cursor:  # it waits in a statement
        cursor.execute(f"BEGIN; LOCK TABLE t_{number:03}.customer")
        yield


@pytest.mark.soak
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("output", [[], ["--json"]], ids=["lines", "json"])
@pytest.mark.sampled
def test_a_signal_ends_it_and_what_was_finished_is_said(place: Place, number: int, output: Sequence[str]) -> None:
    many = place_of_many(place, 4)
    assert run(place, *many).returncode == 0
    for one in range(4):
        damage(place, one, "DROP INDEX customer_name")
    if place.is_sqlite:
        for stamps in (place.folder / "t").glob("*-stamps"):
            stamps.unlink()
    code, did = 128 + number, "terminated" if number == signal.SIGTERM else "interrupted"
    with blocked(place, 1):
        given = {"WHATSAPP_DATABASE_DSN": "", "WHATSAPP_DATABASE_DRIVER": ""} if place.is_sqlite else {}
        process = place.start("up", *many, *OWN, *output, "--lock-timeout", "90s", "--jobs", "2", env=given)
        eventually(lambda: done_in(place) == {0, 2, 3}, "the others are done")
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert process.returncode == code, err
    kind, name = ("files", "t/001.db") if place.is_sqlite else ("schemas", "t_001")
    assert f"error: {name}: {did}" in err
    # One of the three may have changed its database, and not ended, when the signal comes.
    migrated = 2 if f"4 {kind}: 2 migrated" in err else 3
    assert err.splitlines()[-2:] == [
        f"error: {did}: 4 {kind}: {migrated} migrated, {4 - migrated} interrupted",
        "hint:  nothing is half done; run it again",
    ]
    if output:
        entries = json.loads(out)
        assert (entries[1].get("applied", []), entries[1]["exit"]) == ([], code)
        assert [len(entry["applied"]) for entry in entries if "exit" not in entry] == [1] * migrated
    else:
        assert sum(": 1 step, version " in line for line in out.splitlines()) == migrated
    again = run(place, *many)
    assert again.returncode == 0
    assert done_in(place) == {0, 1, 2, 3}
    assert run(place, *many).stdout.splitlines()[-1].startswith(f"4 {kind}: 4 with nothing to do")


def done_in(place: Place, number: int = 4) -> set[int]:
    """Return which of the databases have the index of customers."""
    if not place.is_sqlite:
        with session(place) as cursor:
            cursor.execute("SELECT schemaname FROM pg_indexes WHERE indexname = 'customer_name'")
            return {int(name[2:]) for (name,) in cursor.fetchall()}
    found = set()
    for one in range(number):
        with closing(sqlite3.connect(place.folder / f"t/{one:03}.db")) as connection:
            if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'customer_name'").fetchall():
                found.add(one)
    return found


def kill_in_the_middle(place: Place, number: int) -> None:
    """Kill a run over many empty databases when some are done; the next one must finish, and all be in sync."""
    many = place_of_many(place, number)
    given = {"WHATSAPP_DATABASE_DSN": "", "WHATSAPP_DATABASE_DRIVER": ""} if place.is_sqlite else {}
    process = place.start("up", *many, *OWN, env=given)
    assert process.stdout
    for _ in range(number // 3):
        assert process.stdout.readline()
    process.kill()
    said = process.stdout.read()
    process.wait()
    assert f"{number} " not in said, "it was not killed in the middle"
    completed = run(place, *many)
    assert completed.returncode == 0, completed.stderr
    last = completed.stdout.splitlines()[-1]
    assert "migrated" in last
    assert "with nothing to do" in last
    looked = documents(run(place, "verify", "--json", *many))
    assert len(looked) == number
    assert all(d["missing"] == d["drift"] == d["extra"] == [] and d["version"] for d in looked)


@pytest.mark.soak
def test_the_next_run_finishes_what_a_killed_one_left(place: Place) -> None:
    kill_in_the_middle(place, 9)


@pytest.mark.soak
def test_the_next_run_finishes_200_files_or_100_schemas(place: Place) -> None:
    kill_in_the_middle(place, 200 if place.is_sqlite else 100)


def test_a_failure_names_no_password(locked: Server, postgres: Place) -> None:
    schemas(postgres, "tenant_1")
    name = parse_postgres(postgres.dsn).arguments["dbname"]
    escaped = PASSWORD.replace("\\", "\\\\").replace("'", "\\'")
    dsn = f"host={locked.folder} user=locked dbname={name} password='{escaped}'"
    variables = {"WHATSAPP_DATABASE_DSN": dsn}
    done = run(postgres, "-v", "--each-schema", "tenant_*", env=variables)
    assert done.returncode == 0, done.stderr
    failed = run(postgres, "-v", "--each-schema", "tenant_*", env={"WHATSAPP_DATABASE_DSN": f"{dsn[:-1]}x'"})
    fails(failed, 1, "password authentication failed")
    assert PASSWORD not in done.stdout + done.stderr + failed.stdout + failed.stderr


def test_files_in_folders_of_a_pattern_with_stars(sqlite: Place) -> None:
    files(sqlite, "a/x.db", "b/x.db")
    done = run(sqlite, "--json", "--each-file", "**/*.db")
    assert [d["file"] for d in documents(done)] == ["a/x.db", "b/x.db"]
