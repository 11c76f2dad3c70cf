"""Databases whose encoding is not UTF8: what they hold is read as far as it can be, and an error is two lines."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import peewee as pw
import pytest

from tests.conftest import Place, Server
from tests.migrate.test_command_line import fails
from tests.servers import psql
from whatspire_db import MigrationRunner

MODEL = """
from peewee import *
from peewee import SQL
from whatspire_db import BaseModel
class T(BaseModel):
    a = TextField(null=True, constraints=[SQL("DEFAULT '{}'")])
    class Meta:
        table_name = "t"
"""


@pytest.fixture(params=["SQL_ASCII", "LATIN1"])
def encoding(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def old(server: Server, encoding: str, tmp_path: Path) -> Iterator[Place]:
    """A database in an old encoding, whose table has a default that a client of LATIN1 wrote."""
    name = f"t_{uuid.uuid4().hex[:12]}"
    server.execute(f"CREATE DATABASE {name} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    place = Place("postgres", server.of_database(name), tmp_path)
    psql(place.dsn, "CREATE TABLE t (id serial PRIMARY KEY, a text DEFAULT E'\\xe4'); INSERT INTO t DEFAULT VALUES")
    yield place
    server.execute(f"DROP DATABASE {name} WITH (FORCE)")


def declare(place: Place, default: str) -> None:
    (place.folder / "declared.py").write_text(MODEL.format(default), encoding="utf-8")


@pytest.mark.soak
def test_old_encoding_is_migrated_and_compared(old: Place) -> None:
    declare(old, "x")
    done = old.run("--models", "declared")
    assert done.returncode == 0, done.stderr
    verified = old.run("verify", "--models", "declared", "--json")
    assert verified.returncode == 4, verified.stderr
    assert [(d["table"], d["name"]) for d in json.loads(verified.stdout)["drift"]] == [("t", "a")]
    assert old.run("status", "--models", "declared").returncode == 0


@pytest.mark.soak
def test_old_encoding_is_backed_up_and_restored(old: Place) -> None:
    done = old.run("create", "--test-restore", module="whatspire_db.backup")
    assert done.returncode == 0, done.stderr


def test_bytes_that_are_not_text_do_not_reach_a_terminal_of_the_c_locale(old: Place) -> None:
    declare(old, "x")
    done = old.run("verify", "--models", "declared", env={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"})
    assert done.returncode == 4
    assert done.stdout.isascii()


def test_default_that_the_encoding_lacks_is_refused_in_two_lines(old: Place, encoding: str) -> None:
    declare(old, "€")
    done = old.run("plan", "--models", "declared")
    if encoding == "LATIN1":
        fails(done, 1, "encoding of the database")
    else:
        assert done.returncode == 3, done.stderr


@pytest.mark.parametrize("encoding", ["SQL_ASCII"], indirect=True)
@pytest.mark.parametrize("live", ["DEFAULT E'\\xe4'", "CHECK (a <> E'\\xe4')"])
def test_expressions_with_bytes_that_are_not_text_are_compared(old: Place, live: str) -> None:
    class Checked(pw.Model):
        a = pw.TextField(null=True, constraints=[pw.Check("a IN ('x', 'y')", name="u_a_check")])

        class Meta:
            table_name = "u"

    psql(old.dsn, f"CREATE TABLE u (id serial PRIMARY KEY, a text {live})")
    kinds = {drift.kind for drift in MigrationRunner(old.connect(), [Checked]).verify_schema().drift}
    assert kinds == {"column_default" if live.startswith("DEFAULT") else "check"}
