"""What a start loads: the modules of this package that it may, and of the standard library what Peewee loads too."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping

import peewee as pw
import pytest

from tests.conftest import Place
from whatspire_db.cli import migrate as command_line
from whatspire_db.migrate import MigrationRunner

PEEWEE = """
import sys, peewee
peewee.SqliteDatabase(":memory:").connect()
print(*sys.modules)
"""
WORKER = """
import sys
from whatspire_db import Session, connect
with connect():
    Session.select().first()
print(*sys.modules)
"""
MIGRATE = """
import atexit, runpy, sys
atexit.register(lambda: print(*sys.modules))
runpy.run_module("whatspire_db.migrate", run_name="__main__")
"""

# By room; "" is the package itself.
WORKERS = {
    "": "errors fields interruption light_stdlib peewee_compat",
    "connection": "borrowing call_site connecting database engines pool pool_state query_log replica tasks transactions",
    "dsn": "forms targets",
    "models": "base queries row_state rows saving service service.sessions",
    "settings": "kinds",
}
STARTS = {
    "": "fields.json_fields fields.text_search files signals",
    "cli": "call loading migrate starting",
    "connection": "own_database patience",
    "dsn": "naming redaction",
    "settings": "durations",
    "models": "service.access service.events service.history service.messages",
    "migrate": "ddl engines engines.base history plan progress reports runner schema stamp stamping",
}
OF_ENGINE = {
    "sqlite": {"": "messages", "dsn": "sqlite", "connection.engines.sqlite": "database folder"},
    "postgres": {
        "dsn": "postgres",
        "connection": "deadline",
        "connection.engines.postgres": "database session times",
    },
}
STARTS_OF_ENGINE = {
    "sqlite": {"migrate.engines.sqlite": "engine history"},
    "postgres": {"": "messages sql", "migrate.engines.postgres": "engine history limits"},
}
STANDARD = {"__future__"}
STANDARD_OF_COMMANDS = {"_contextvars", "contextvars", "gc", "importlib._abc", "importlib.util", "runpy", "signal"}


def listed(*rooms: Mapping[str, str]) -> set[str]:
    """Return the full names of modules that are listed by room, and of the packages that they are in."""
    found = {"whatspire_db"}
    for each in rooms:
        for room, modules in each.items():
            found |= {".".join(filter(None, ("whatspire_db", room, module))) for module in ("", *modules.split())}
    return found


def loaded(place: Place, program: str) -> set[str]:
    """Return the modules that a program loaded; its DSN is written as most write theirs."""
    variables = {name: value for name, value in place.variables().items() if not name.startswith("WHATSPIRE_")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=variables | {"WHATSAPP_DATABASE_DSN": place.dsn.replace("'", "")},
        cwd=place.folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.splitlines()[-1].split())


def test_a_start_without_arguments_does_what_the_parser_would_say() -> None:
    assert vars(command_line.parser_of().parse_args([])) == command_line.NOTHING_TYPED


@pytest.mark.parametrize("program", ["worker", "migrate"])
def test_a_start_loads_what_it_needs_and_no_more(place: Place, db: pw.Database, program: str) -> None:
    MigrationRunner(db).up()
    engine = "sqlite" if place.is_sqlite else "postgres"
    allowed = listed(WORKERS, OF_ENGINE[engine])
    standard = loaded(place, PEEWEE) | STANDARD
    if program == "migrate":
        allowed |= listed(STARTS, STARTS_OF_ENGINE[engine])
        standard |= STANDARD_OF_COMMANDS
    found = loaded(place, WORKER if program == "worker" else MIGRATE)
    ours = {name for name in found if name.split(".")[0] == "whatspire_db"}
    assert ours - allowed == set()
    assert found - ours - standard == set()
