"""A run that is killed, wherever it is, leaves nothing that the next run does not complete, and loses nothing."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import peewee
import psycopg2.extensions
import pytest

from tests.conftest import KILLS, Place, Server
from tests.servers import program
from whatspire_db.dsn.postgres import parse_postgres
from whatspire_db.migrate import records
from whatspire_db.migrate.engines.base import engine_for

FEW, MANY = 6, KILLS
SMALL, LARGE = 12_000, 50_000  # rows; PostgreSQL builds and validates online on either

MODELS = '''
"""A large table that lacks nearly everything, and one that is not there."""

import peewee
from peewee import SQL, Check


class Owner(peewee.Model):
    name = peewee.TextField()


class Part(peewee.Model):
    name = peewee.TextField()
    place = peewee.IntegerField(index=True)
    number = peewee.IntegerField(unique=True)
    size = peewee.IntegerField(constraints=[Check("size >= 0", "part_size")])
    owner = peewee.ForeignKeyField(Owner, index=False)
    state = peewee.TextField(constraints=[SQL("DEFAULT 'new'")])

    class Meta:
        constraints = [SQL("CONSTRAINT part_name_place UNIQUE (name, place)")]


class Remark(peewee.Model):
    part = peewee.ForeignKeyField(Part)
    text = peewee.TextField(index=True)
'''

OWNER = "CREATE TABLE owner (id {key}, name text NOT NULL)"
PART = """CREATE TABLE part (id {key}, name text NOT NULL, place integer NOT NULL, number integer NOT NULL,
    size integer NOT NULL {check}, owner_id integer NOT NULL {reference})"""
# SQLite adds constraints to new columns alone.
SPELLINGS = {
    "sqlite": {
        "key": "integer NOT NULL PRIMARY KEY",
        "check": "CONSTRAINT part_size CHECK (size >= 0)",
        "reference": "REFERENCES owner (id)",
    },
    "postgres": {"key": "serial PRIMARY KEY", "check": "", "reference": ""},
}
PARTS = """WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {rows})
INSERT INTO part (name, place, number, size, owner_id)
SELECT 'part ' || n, n / 7, n, n, 1 + 2 * n / {rows} FROM numbers"""

INVALID = """
SELECT indexrelid::regclass::text FROM pg_index WHERE NOT (indisvalid AND indisready AND indislive)
UNION ALL
SELECT conname FROM pg_constraint WHERE NOT convalidated
"""
STAMPS = "SELECT obj_description('migration_versions'::regtype, 'pg_type')"


@dataclass(frozen=True)
class Ground:
    """Where every run starts from: a prepared database, and copies of it."""

    origin: Place
    server: Server | None = None  # of PostgreSQL

    @contextmanager
    def copy(self) -> Iterator[Place]:
        name = f"copy_{uuid.uuid4().hex[:12]}"
        if self.server is None:
            (self.origin.folder / name).mkdir()
            copied = shutil.copyfile(self.origin.dsn, self.origin.folder / name / "whatspire.db")
            yield Place("sqlite", str(copied), self.origin.folder)
            shutil.rmtree(self.origin.folder / name)
        else:
            original = parse_postgres(self.origin.dsn).arguments["dbname"]
            self.server.execute(f"CREATE DATABASE {name} TEMPLATE {original}")
            yield Place("postgres", self.server.of_database(name), self.origin.folder)
            self.server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@dataclass(frozen=True)
class Run:
    """What a run said until it ended, or was killed."""

    seconds: float
    out: str
    err: str
    code: int

    @property
    def steps(self) -> list[str]:
        """Return the titles of the steps that it had begun."""
        return list(dict.fromkeys(line.split(": ")[1] for line in self.err.splitlines() if line.startswith("INFO: ")))

    @property
    def phase(self) -> str:
        return "after" if "migrations completed" in self.out else "during" if self.steps else "before"


def migrate(place: Place, kill_after: float | None = None, *, at_work: bool = False) -> Run:
    """Run the command line, and kill it so many seconds after its first line, or after the first step that it tells."""
    process = start(place, "-v")
    assert process.stdout
    assert process.stderr
    out = process.stdout.readline()
    err = process.stderr.readline() if at_work else ""
    assert out == "Running database migrations...\n", process.communicate()
    started = time.monotonic()
    if kill_after is not None:
        time.sleep(kill_after)  # the moment is the subject
        process.kill()
    out += process.stdout.read()
    err += process.stderr.read()
    return Run(time.monotonic() - started, out, err, process.wait(timeout=120))


def start(place: Place, *arguments: str) -> subprocess.Popen[str]:
    return place.start(*arguments, "--models", "models_of_parts", "--only-models")


def state(place: Place) -> object:
    """Return the whole schema, all rows, and what was recorded as added; but not in which version."""
    db = place.connect()
    with db.connection_context():
        assert db.execute_sql("SELECT count(*) FROM migration_versions").fetchone() == (1,)
        (record,) = records.read(engine_for(db))
        added = sorted((each.identity, each.definition) for each in record.added)
        if place.is_sqlite:
            return sqlite_state(db), added
        assert db.execute_sql(INVALID).fetchall() == []
        assert '"unrecorded": ""' in db.execute_sql(STAMPS).fetchone()[0]
    db.close_all()
    return postgres_dump(place), added


def sqlite_state(db: peewee.Database) -> object:
    assert db.execute_sql("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert db.execute_sql("PRAGMA foreign_key_check").fetchall() == []
    schema = sorted(db.execute_sql("SELECT type, name, tbl_name, sql FROM sqlite_master").fetchall(), key=repr)
    tables = [table for table in db.get_tables() if table not in ("migration_versions", "whatspire_db_runs")]
    return schema, {table: sorted(db.execute_sql(f'SELECT * FROM "{table}"').fetchall()) for table in tables}


def postgres_dump(place: Place) -> list[str]:
    dsn = psycopg2.extensions.make_dsn(**parse_postgres(place.dsn).arguments)
    excluded = [f"--exclude-table-data={table}" for table in ("migration_versions", "whatspire_db_runs")]
    command = [program("pg_dump"), *excluded, f"--dbname={dsn}"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in lines if not line.startswith(("\\restrict", "\\unrestrict"))]


@pytest.fixture(params=["sqlite", "postgres"])
def ground(request: pytest.FixtureRequest, tmp_path: Path) -> Ground:
    (tmp_path / "models_of_parts.py").write_text(MODELS)
    place = request.getfixturevalue(request.param)
    db = place.connect()
    with db.connection_context():
        for sql in (OWNER, PART):
            db.execute_sql(sql.format(**SPELLINGS[place.driver]))
        db.execute_sql("INSERT INTO owner (name) VALUES ('Ann'), ('Bob'), ('Cid')")
        db.execute_sql(PARTS.format(rows=LARGE if request.node.get_closest_marker("soak") else SMALL))
    if place.is_sqlite:
        return Ground(place)
    db.close_all()
    return Ground(place, request.getfixturevalue("server"))


def kill_often(ground: Ground, kills: int) -> list[tuple[Run, Run]]:
    """Kill runs at random moments; after each the next run must get to where an undisturbed one gets."""
    seconds, states = {}, []
    for at_work in (False, True):
        with ground.copy() as place:
            undisturbed = migrate(place, at_work=at_work)
            assert undisturbed.code == 0, undisturbed
            seconds[at_work] = undisturbed.seconds
            states.append(state(place))
    wanted, again = states
    assert wanted == again
    rounds = []
    for number in range(kills):
        with ground.copy() as place:
            at_work = number % 3 > 0
            # Spread over the whole, so that few kills meet all of it.
            moment = (number + random.random()) / kills * seconds[at_work] * 1.1
            run = migrate(place, moment, at_work=at_work)
            completing = migrate(place)
            assert completing.code == 0, (run, completing)
            process = start(place, "verify")
            out, err = process.communicate()
            assert (out.splitlines()[1:], err) == (["in sync"], ""), (run, completing)
            assert state(place) == wanted, (run, completing)
            rounds.append((run, completing))
    return rounds


def summary(ground: Ground, rounds: list[tuple[Run, Run]]) -> str:
    phases = Counter(run.phase for run, _ in rounds)
    steps = Counter(run.steps[-1] for run, _ in rounds if run.phase == "during")
    told = ", ".join(f"{phases[phase]} {phase} the work" for phase in ("before", "during", "after"))
    rebuilt = sum("DROP INDEX CONCURRENTLY" in completing.err for _, completing in rounds)
    return (
        f"\n{ground.origin.driver}: {len(rounds)} kills, {told}; the last step was {dict(steps.most_common())}; "
        f"{rebuilt} next runs found an index that was not built to the end\n"
    )


@pytest.mark.soak
def test_the_next_run_completes_what_a_killed_one_left(ground: Ground) -> None:
    assert len(kill_often(ground, FEW)) == FEW


@pytest.mark.soak
def test_the_next_run_completes_what_any_of_many_killed_ones_left(
    ground: Ground, capsys: pytest.CaptureFixture[str]
) -> None:
    rounds = kill_often(ground, MANY)
    with capsys.disabled():
        sys.stdout.write(summary(ground, rounds))
    assert any(run.phase == "during" for run, _ in rounds)
