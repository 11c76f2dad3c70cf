"""Times are instants, whatever the time zone of a server, a role or a writer."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from datetime import date, datetime, time, timedelta, timezone
from typing import Any

import peewee
import pytest
from playhouse import postgres_ext

from tests import gorm
from tests.conftest import Place, Server
from whatspire_db import ApiKey, BaseModel, Event, MigrationRunner, ValueRefused, readable
from whatspire_db.fields import InstantField, utcnow

pytestmark = pytest.mark.sampled

FIRST = datetime.min.replace(tzinfo=timezone.utc)
LAST = datetime.max.replace(tzinfo=timezone.utc)


@pytest.fixture
def migrated(db: peewee.Database) -> peewee.Database:
    MigrationRunner(db).up()
    return db


@pytest.fixture
def in_cairo(server: Server, postgres: Place) -> Place:
    """A database whose sessions begin in a time zone east of UTC."""
    server.execute(f"ALTER DATABASE {postgres.connect().database} SET TimeZone = 'Africa/Cairo'")
    return postgres


def zone(db: peewee.Database) -> Any:
    return db.execute_sql("SHOW TimeZone").fetchone()[0]


def test_sessions_are_in_utc_whatever_the_server_says(in_cairo: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (None, "America/New_York"):
        if value:
            monkeypatch.setenv("PGTZ", value)
        db = in_cairo.connect()
        with db.connection_context():
            assert zone(db) == "UTC"
            db.execute_sql("SET TimeZone TO 'Asia/Tokyo'")
        with db.connection_context():  # the same session, cleaned
            assert zone(db) == "UTC"
        db.close_all()


@pytest.mark.parametrize("option", ["TimeZone=Asia/Tokyo", "options='-c timezone=Asia/Tokyo'"])
def test_time_zone_of_the_dsn_is_kept(in_cairo: Place, option: str) -> None:
    db = replace(in_cairo, dsn=f"{in_cairo.dsn} {option}").connect()
    for _ in range(2):
        with db.connection_context():
            assert zone(db) == "Asia/Tokyo"
            db.execute_sql("SET TimeZone TO 'UTC'")
    db.close_all()


@pytest.mark.parametrize("option", ["", "TimeZone=Africa/Cairo", "TimeZone=America/New_York"])
def test_both_ends_of_the_calendar_are_read_as_written(in_cairo: Place, option: str) -> None:
    db = replace(in_cairo, dsn=f"{in_cairo.dsn} {option}").connect()
    with db.connection_context():
        MigrationRunner(db).up()
        for key, time in (("first", FIRST), ("last", LAST)):
            Event.create(id=key, type="t", session_id="s", timestamp=time)
            assert Event.get_by_id(key).timestamp == time
        assert Event.select().order_by(Event.timestamp).get().id == "first"
    db.close_all()


UNREADABLE = ["infinity", "-infinity", "10000-06-23", "294276-12-31", "0044-03-15 BC", "4713-01-01 BC"]


@pytest.mark.parametrize("option", ["", "TimeZone=Africa/Cairo"])
@pytest.mark.parametrize("text", UNREADABLE)
def test_times_that_python_has_not_are_refused_by_table_column_and_key(in_cairo: Place, text: str, option: str) -> None:
    db = replace(in_cairo, dsn=f"{in_cairo.dsn} {option}").connect()
    with db.connection_context():
        MigrationRunner(db).up()
        Event.create(id="good", type="t", session_id="s", timestamp=LAST)
        db.execute_sql(
            f"INSERT INTO events (id, type, session_id, timestamp, created_at) VALUES ('bad', 't', 's', '{text}', now())"
        )
        ApiKey.create(id="bad", key_hash="h", role="read")
        db.execute_sql(f"UPDATE api_keys SET last_used_at = '{text}'")
        queries = [
            Event.select(),
            Event.select().dicts(),
            Event.select().tuples(),
            Event.select().namedtuples(),
            Event.raw("SELECT * FROM events"),
        ]
        for query in queries:
            with pytest.raises(
                ValueRefused, match=r"events\.timestamp holds a time .* in the row with id 'bad'"
            ) as error:
                list(query)
            assert text == "infinity" or text not in str(error.value)  # the message names what it may be
            assert len(list(readable(query, lambda error: None))) == 1
        with pytest.raises(ValueRefused, match=r"api_keys\.last_used_at holds a time .* id 'bad'"):
            ApiKey.get()
        with pytest.raises(ValueRefused, match="holds a time"):
            Event.select(peewee.fn.MAX(Event.timestamp)).where(Event.id == "bad").scalar()
        assert str(db.execute_sql("SELECT last_used_at FROM api_keys").fetchone()[0]).startswith(text[:4])
    db.close_all()


class Odd(BaseModel):
    moment = peewee.DateTimeField(null=True)
    day = peewee.DateField(null=True)
    clock = peewee.TimeField(null=True)
    length = postgres_ext.IntervalField(null=True)
    moments = postgres_ext.ArrayField(postgres_ext.DateTimeTZField, index=False, null=True)

    class Meta:
        abstract = True


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("moment", "'infinity'"),
        ("moment", "'10000-01-01'"),
        ("day", "'infinity'"),
        ("day", "'0001-01-01 BC'"),
        ("clock", "'24:00:00'"),  # the driver reads the beginning of the day
        ("length", "'1000000000 days'"),
        ("moments", "array['infinity'::timestamptz]"),
    ],
)
def test_peewees_own_fields_refuse_them_too(postgres: Place, column: str, value: str) -> None:
    db = postgres.connect()
    with db.connection_context(), db.bind_ctx([Odd]):
        db.create_tables([Odd])
        good = Odd.create(moment=datetime(1, 1, 1), day=date.max, clock=time.max, length=timedelta(1), moments=[LAST])
        db.execute_sql(f"INSERT INTO odd ({column}) VALUES ({value})")
        with pytest.raises(ValueRefused, match=rf"odd\.{column} holds a time .* in the row with id 2"):
            list(Odd.select())
        (read,) = readable(Odd.select(), lambda error: None)
        assert read.__data__ == good.__data__
    db.close_all()


def test_a_server_in_utc_costs_no_statement(server: Server, postgres: Place) -> None:
    server.execute(f"ALTER DATABASE {postgres.connect().database} SET TimeZone = 'Etc/UTC'")
    db = postgres.connect()
    with db.connection_context():
        assert zone(db) == "Etc/UTC"
    db.close_all()


# Values that cannot be read


@pytest.fixture
def spoilt(place: Place, migrated: peewee.Database) -> peewee.Database:
    """Ten good events, and two that are no JSON."""
    Event.insert_many(
        [
            {"id": f"good-{n}", "type": "t", "session_id": "s", "data": {"n": n}, "timestamp": utcnow()}
            for n in range(10)
        ]
    ).execute()
    for key, data in (("bad 1", b'{"secret'), ("bad\n2", b"\xff\xfe")):
        mark = "?, ?" if place.is_sqlite else "%s, %s"
        migrated.execute_sql(
            "INSERT INTO events (id, data, type, session_id, timestamp, created_at) "
            f"VALUES ({mark}, 't', 's', '2026-11-22 09:05:03+00:00', '2026-11-22 09:05:03+00:00')",
            (key, data if place.is_sqlite else memoryview(data)),
        )
    return migrated


def test_bad_row_is_named_in_every_kind_of_query(spoilt: peewee.Database) -> None:
    first = Event.select().where(Event.id.startswith("bad"))
    for query in (first, first.dicts(), first.tuples(), first.namedtuples(), first.objects(), first | first):
        with pytest.raises(
            ValueRefused, match=r"events\.data holds a value that is not JSON, in the row with id 'bad"
        ) as e:
            list(query.clone())
        assert "secret" not in str(e.value)
        assert "\n" not in str(e.value)
    with pytest.raises(ValueRefused, match=r"events\.data .* a key that was not selected"):
        list(Event.select(Event.data))


def test_rows_beside_a_bad_one_can_be_read(spoilt: peewee.Database, caplog: pytest.LogCaptureFixture) -> None:
    errors: list[ValueRefused] = []
    assert len(list(readable(Event.select(), errors.append))) == 10
    assert [row["id"] for row in readable(Event.select().order_by(Event.id).dicts())] == [
        f"good-{n}" for n in range(10)
    ]
    assert len(errors) == 2
    assert caplog.text.count("row left out: events.data holds a value that is not JSON") == 2
    assert Event.select(Event.id).count() == 12


def test_expression_that_cannot_be_read_is_not_named_by_its_sql(migrated: peewee.Database) -> None:
    Event.create(id="e", type="t", session_id="s", data=1, timestamp=utcnow())
    broken = peewee.fn.SUBSTR(peewee.SQL("'{x'"), 1, 1).python_value(json.loads)
    with pytest.raises(ValueRefused, match=r"^(an expression of events|events\.substr) holds .* with id 'e'"):
        list(Event.select(Event.id, broken).tuples())


@pytest.mark.parametrize("given", [Event.select().iterator, list, lambda: Event])
def test_readable_takes_a_query_alone(migrated: peewee.Database, given: Any) -> None:
    with pytest.raises(ValueRefused, match=r"readable\(\) takes a query"):
        list(readable(given()))


def test_second_loop_over_a_query_that_failed_fails_again(spoilt: peewee.Database) -> None:
    query = Event.select().order_by(Event.id.desc())
    for _ in range(3):
        with pytest.raises(ValueRefused, match="bad"):
            list(query)


def test_joined_row_is_named_by_its_own_key(migrated: peewee.Database) -> None:
    class Note(BaseModel):
        event = peewee.ForeignKeyField(Event)

        class Meta:
            abstract = True

    migrated.create_tables([Note])
    Event.create(id="bad", type="t", session_id="s", data=1, timestamp=utcnow())
    Note.create(event="bad")
    migrated.execute_sql("UPDATE events SET data = '{'")
    other = Event.alias()
    for query in (Note.select(Note, Event).join(Event), Note.select(Note, other).join(other)):
        with pytest.raises(ValueRefused, match=r"events\.data .* in the row with id 'bad'"):
            list(query)


@pytest.mark.parametrize(
    "text", ["2026-02-30 00:00:00", "yesterday", "2026-11-22 09:05:03.1 +0000 UTC m=+0.5", "x" * 5000]
)
def test_text_that_is_no_time_names_its_row(sqlite: Place, text: str) -> None:
    db = sqlite.connect()
    with db.connection_context():
        MigrationRunner(db).up()
        Event.create(id="e", type="t", session_id="s", timestamp=gorm.instant(0))
        db.execute_sql("UPDATE events SET created_at = ?", (text,))
        with pytest.raises(ValueRefused, match=r"events\.created_at holds a text .* in the row with id 'e'") as error:
            Event.get()
        assert text not in str(error.value)


class Loose(BaseModel):
    number = peewee.DecimalField()
    name = peewee.TextField()

    class Meta:
        abstract = True


def test_values_that_sqlite_let_into_columns_of_another_type(sqlite: Place) -> None:
    gives_the_row_again = sys.version_info >= (3, 11)  # the driver, after a text that it could not decode
    db = sqlite.connect()
    with db.connection_context(), db.bind_ctx([Loose]):
        db.create_tables([Loose])
        Loose.insert_many([{"number": n, "name": str(n)} for n in range(3)]).execute()
        db.execute_sql("INSERT INTO loose (number, name) VALUES ('secret', 'x')")
        if gives_the_row_again:
            db.execute_sql("INSERT INTO loose (number, name) VALUES (7, CAST(x'736563726574ff' AS TEXT))")
        Loose.create(number=8, name="last")
        errors: list[ValueRefused] = []
        assert [row.number for row in readable(Loose.select().order_by(Loose.id), errors.append)] == [0, 1, 2, 8]
        assert [error.fact for error in errors] == [
            "loose.number holds a value that is not of the field's kind, in the row with id 4",
            "loose.name holds a text that is not UTF-8, in the row with id 5",
        ][: 1 + gives_the_row_again]


@pytest.mark.soak
def test_deeply_nested_json_is_refused(migrated: peewee.Database) -> None:
    deep: list[Any] = []
    for _ in range(200_000):
        deep = [deep]
    with pytest.raises(ValueRefused, match=r"events\.data takes a JSON value"):
        Event.create(id="e", type="t", session_id="s", data=deep, timestamp=utcnow())
    while deep:  # freed level by level
        deep = deep[0]
    Event.create(id="e", type="t", session_id="s", data=1, timestamp=utcnow())
    migrated.execute_sql(f"UPDATE events SET data = '{'[' * 200_000 + ']' * 200_000}'")
    with pytest.raises(ValueRefused, match=r"events\.data .* in the row with id 'e'"):
        Event.get()


def test_instants_that_utc_has_no_year_for_are_refused() -> None:
    field = InstantField()
    with pytest.raises(ValueRefused, match="years 1 to 9999"):
        field.python_value(datetime.max.replace(tzinfo=timezone(timedelta(hours=-5))))
