"""What a Python counterpart of the service needs, and what has to mean the same on both engines."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone

import peewee
import pytest

from tests.conftest import Place
from whatspire_db import ApiKey, Event, MigrationRunner, ValueRefused
from whatspire_db.models.service.event_pages import LARGEST

START = datetime(2026, 11, 22, 9, tzinfo=timezone.utc)


@pytest.fixture
def made(db: peewee.Database) -> peewee.Database:
    MigrationRunner(db).up()
    return db


def moment(number: int) -> datetime:
    return START + timedelta(seconds=number // 3)  # so that three events have one timestamp


@pytest.fixture
def events(made: peewee.Database) -> list[str]:
    """The ids of 30 events in their order; they were written in another one."""
    numbers = list(range(30))
    random.Random(5).shuffle(numbers)
    for number in numbers:
        Event.create(
            id=f"e{number:02}",
            type="message" if number % 2 else "presence",
            session_id=f"s{number % 5}",
            timestamp=moment(number),
            data={"n": number},
        )
    return [f"e{number:02}" for number in range(30)]


def pages(**options: object) -> Iterator[list[str]]:
    after = None
    while True:
        page = Event.page(after, **options)  # type: ignore[arg-type]
        yield [event.id for event in page.events]
        after = page.after
        if after is None:
            return


@pytest.mark.parametrize("limit", [1, 2, 7, 30, 100])
@pytest.mark.parametrize("newest_first", [False, True])
def test_pages_hold_each_event_once_in_order(events: list[str], limit: int, newest_first: bool) -> None:
    found = list(pages(limit=limit, newest_first=newest_first))
    assert [id for page in found for id in page] == (events[::-1] if newest_first else events)
    assert all(len(page) == limit for page in found[:-1])
    assert 0 < len(found[-1]) <= limit


def test_without_events_there_is_one_empty_page(made: peewee.Database) -> None:
    assert list(pages()) == [[]]


def test_filters(events: list[str]) -> None:
    def found(**filters: object) -> list[str]:
        return [id for page in pages(limit=2, **filters) for id in page]

    assert found(session="s3") == events[3::5]
    assert found(type="message") == events[1::2]
    assert found(session="s3", type="message") == events[3::10]
    assert found(since=moment(6), until=moment(12)) == events[6:12]
    assert found(session="nobody") == []
    berlin = timezone(timedelta(hours=1))
    assert found(since=moment(6).astimezone(berlin), until=moment(12).astimezone(berlin)) == events[6:12]


def test_events_that_come_and_go_shift_nothing(events: list[str]) -> None:
    first = Event.page(limit=10)
    Event.delete().where(Event.id << ["e00", "e09"]).execute()  # what the page ends with is gone too
    Event.create(id="before", type="x", session_id="s", timestamp=START - timedelta(days=1))
    Event.create(id="between", type="x", session_id="s", timestamp=moment(9) + timedelta(milliseconds=1))
    ids = [id for page in _rest(first.after) for id in page]
    assert ids == [*events[10:12], "between", *events[12:]]


def _rest(after: str | None) -> Iterator[list[str]]:
    while after is not None:
        page = Event.page(after, limit=3)
        yield [event.id for event in page.events]
        after = page.after


@pytest.mark.parametrize("newest_first", [False, True])
def test_nanoseconds_of_the_service_are_no_second_place(
    place: Place, made: peewee.Database, newest_first: bool
) -> None:
    fractions = ["", ".5", ".123456", ".123456001", ".123456789", ".1234567", ".999999999"]
    for number, fraction in enumerate(fractions):
        made.execute_sql(
            "INSERT INTO events (id, type, session_id, timestamp, created_at) VALUES "
            f"('n{number}', 'x', 's', '2026-11-22 09:00:00{fraction}+00:00', '2026-11-22 09:00:00+00:00')"
        )
    ids = [id for page in pages(limit=1, newest_first=newest_first) for id in page]
    assert sorted(ids) == [f"n{number}" for number in range(len(fractions))]
    if place.is_sqlite:
        order = ["n0", "n2", "n3", "n5", "n4", "n1", "n6"]
        assert ids == (order[::-1] if newest_first else order)


def test_equal_timestamps_are_in_one_order_on_both_engines(made: peewee.Database) -> None:
    ids = ["A", "B", "a", "a-b", "aa", "b", "é"]
    for id in reversed(ids):
        Event.create(id=id, type="x", session_id="s", timestamp=START)
    assert [id for page in pages(limit=2) for id in page] == ids
    assert [id for page in pages(limit=3, newest_first=True) for id in page] == ids[::-1]


def test_events_of_a_page_are_rows_like_others(events: list[str]) -> None:
    (event,) = Event.page(limit=1).events
    assert (event.data, event.timestamp) == ({"n": 0}, START)
    event.type = "other"
    event.save()
    assert Event.get_by_id("e00").type == "other"


@pytest.mark.parametrize("limit", [0, -1, LARGEST + 1, True, 2.5, "3"])
def test_limits_that_are_none(made: peewee.Database, limit: object) -> None:
    with pytest.raises(ValueRefused, match="limit is not a number"):
        Event.page(limit=limit)  # type: ignore[arg-type]


AFTERS: list[object] = [
    *("", "x", "[]", "[1, 2]", '["2026"]', '{"a": "b"}', "null", 3, "[" * 100_000),
    *('["soon", "e1"]', '["infinity", "e1"]', '["2026-11-22 09:00:00+00:00", 1]'),
    *('["2026-11-22 09:00:00+00:00", "a\\u0000"]', '["2026-11-22 09:00:00+00:00", "\\ud800"]'),
]


@pytest.mark.parametrize("after", AFTERS, ids=range(len(AFTERS)))
def test_places_that_are_none(made: peewee.Database, after: object) -> None:
    with pytest.raises(ValueRefused, match="after does not come from a page"):
        Event.page(after)  # type: ignore[arg-type]


def test_a_key_is_issued_found_and_revoked(made: peewee.Database) -> None:
    row, key = ApiKey.issue("write", "of a worker")
    assert row.id.startswith("key_")
    assert len(key) == 43
    assert row.key_hash == hashlib.sha256(key.encode()).hexdigest()
    found = ApiKey.find(key)
    assert found is not None
    assert (found.id, found.role, found.description, found.is_active) == (row.id, "write", "of a worker", True)
    assert ApiKey.find(key + "x") is None
    assert ApiKey.find("") is None
    assert found.revoke("ada", "lost")
    assert (found.is_active, found.revoked_by, found.revocation_reason) == (False, "ada", "lost")
    assert ApiKey.find(key) is None
    stored = ApiKey.get_by_id(row.id)
    assert (stored.is_active, stored.revoked_by, stored.revocation_reason) == (False, "ada", "lost")
    assert stored.revoked_at == found.revoked_at


def test_what_others_write_after_a_revocation_stays(made: peewee.Database) -> None:
    row, _ = ApiKey.issue("read")
    row.revoke("ada", "lost")
    assert not row.is_dirty()
    ApiKey.update(revocation_reason="stolen").where(ApiKey.id == row.id).execute()
    row.description = "of a worker"
    row.save()
    stored = ApiKey.get_by_id(row.id)
    assert (stored.description, stored.revocation_reason, stored.revoked_by) == ("of a worker", "stolen", "ada")


def test_a_text_that_no_key_can_be_is_unknown(made: peewee.Database) -> None:
    assert ApiKey.find("\ud800\0") is None


def test_the_first_who_revokes_a_key_stays(made: peewee.Database) -> None:
    row, key = ApiKey.issue("read")
    other = ApiKey.find(key)
    assert other is not None
    assert row.revoke("ada", "lost")
    assert not other.revoke("bob")
    assert ApiKey.get_by_id(row.id).revoked_by == "ada"


def test_no_two_keys_are_alike_and_none_is_stored(made: peewee.Database) -> None:
    keys = {ApiKey.issue("admin")[1] for _ in range(20)}
    assert len(keys) == 20
    everything = repr(list(ApiKey.select().tuples()))
    assert not any(key in everything for key in keys)


def test_a_role_that_the_service_does_not_know(made: peewee.Database) -> None:
    with pytest.raises(peewee.IntegrityError):
        ApiKey.issue("root")
