"""Drift that the settings accept counts as none, and they accept exactly what they list."""

from __future__ import annotations

import json
from typing import Any

import peewee as pw
import pytest

from tests.conftest import Place
from whatspire_db import ConfigError, MigrationRunner, MigrationVersion, Settings

MODELS = """
import peewee
from whatspire_db import BaseModel
class Thing(BaseModel):
    name = peewee.CharField(max_length=20)
    class Meta:
        table_name = "thing"
"""


class Thing(pw.Model):
    name = pw.CharField(max_length=20)

    class Meta:
        table_name = "thing"


def drifted(place: Place) -> pw.Database:
    """Make a table whose column is longer than declared."""
    db = place.connect()
    key = "INTEGER NOT NULL" if place.is_sqlite else "serial"
    with db.connection_context():
        db.execute_sql(f"CREATE TABLE thing (id {key} PRIMARY KEY, name varchar(50) NOT NULL)")
    return db


def listed(db: pw.Database) -> list[dict[str, Any]]:
    return [drift.to_json() for drift in MigrationRunner(db, [Thing]).verify_schema().drift]


def test_accepted_drift_is_in_sync_and_stamped(place: Place) -> None:
    db = drifted(place)
    accepted = listed(db)
    with db.bind_ctx([MigrationVersion]):
        MigrationVersion.create_table()
    runner = MigrationRunner(db, [Thing], accepted_drift=accepted)
    changes = runner.verify_schema()
    assert not changes
    assert [drift.to_json() for drift in changes.accepted] == accepted
    assert runner.up().drift == ()
    assert runner.check().in_sync
    standing = runner._stamping.standing()
    assert runner._stamping.drift(standing) == ()
    assert MigrationRunner(db, [Thing]).check().in_sync is False


@pytest.mark.parametrize("name", ["kind", "table", "name", "declared", "live"])
def test_each_value_of_what_is_accepted_counts(place: Place, name: str) -> None:
    db = drifted(place)
    (entry,) = listed(db)
    runner = MigrationRunner(db, [Thing], accepted_drift=[entry | {name: "other"}])
    changes = runner.verify_schema()
    assert [drift.to_json() for drift in changes.drift] == [entry]
    assert len(changes.outdated) == 1


def test_accepted_drift_that_goes_further_is_told(place: Place) -> None:
    db = drifted(place)
    accepted = listed(db)
    MigrationRunner(db, [Thing], accepted_drift=accepted).up()
    with db.connection_context():
        if place.is_sqlite:
            db.execute_sql("DROP TABLE thing")
            db.execute_sql("CREATE TABLE thing (id INTEGER NOT NULL PRIMARY KEY, name varchar(60) NOT NULL)")
        else:
            db.execute_sql("ALTER TABLE thing ALTER name TYPE varchar(60)")
    (drift,) = MigrationRunner(db, [Thing], accepted_drift=accepted).up().drift
    assert "60" in str(drift.live)


def test_the_commands_show_what_is_accepted_and_exit_0(place: Place) -> None:
    db = drifted(place)
    accepted = json.dumps(listed(db))
    (place.folder / "accepting.py").write_text(MODELS)
    environ = {
        "WHATSAPP_DATABASE_ACCEPTED_DRIFT": accepted,
        "WHATSAPP_DATABASE_MODELS": "accepting",
        "WHATSAPP_DATABASE_ONLY_MODELS": "true",
    }
    place.environment.update(environ)
    up, verify, plan = (place.run(verb) for verb in ("up", "verify", "plan"))
    assert (up.returncode, verify.returncode, plan.returncode) == (0, 0, 0), (up, verify, plan)
    assert "drift" not in up.stderr
    assert "accepted drift column_type thing.name" in verify.stdout
    (entry,) = json.loads(place.run("verify", "--json").stdout)["drift"]
    assert entry == json.loads(accepted)[0] | {"accepted": True}
    checked = place.run("--json", module="whatspire_db.health")
    assert (checked.returncode, json.loads(checked.stdout)["in_sync"]) == (0, True)


@pytest.mark.parametrize(
    "text",
    ["{}", "[1]", '[{"kind": "table"}]', "not json", '[{"kind":1,"table":"","name":"","declared":null,"live":null}]'],
)
def test_what_is_no_list_of_differences_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="accepted_drift"):
        Settings(accepted_drift=text)  # type: ignore[arg-type]


def test_settings_take_what_verify_shows(sqlite: Place) -> None:
    db = drifted(sqlite)
    shown = json.dumps([entry | {"accepted": True} for entry in listed(db)])
    settings = Settings(dsn=sqlite.dsn, accepted_drift=shown)  # type: ignore[arg-type]
    assert [entry[:3] for entry in settings.accepted_drift] == [("column_type", "thing", "name")]
