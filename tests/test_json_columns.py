"""JSON columns in queries: their stored text, and the values within, alike on both engines."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import peewee
import pytest

from tests.conftest import Place
from whatspire_db import AuditLog, Event, MigrationRunner, ValueRefused
from whatspire_db.fields import utcnow

pytestmark = pytest.mark.sampled

# As texts, for the Go service writes them: with its escapes, and some that are no JSON.
TEXTS = {
    "a": '{"success":true,"n":3,"from":{"jid":"1@x","tags":["x","y"]}}',
    "b": '{"success":false,"n":"3","from":{"jid":null}}',
    "c": '{"n":3.0, "success" : true, "text":"100% M\u00fcller_\\u003c"}',
    "d": '{"n":-2.5,"a\\"b":{"c\\u003cd":1},"0":"zero"}',
    "e": '["first",{"n":3},"last"]',
    "f": '"n"',
    "broken": '{"success":true,"n":3',
    "none": "",
}
BYTES = {**{key: text.encode() for key, text in TEXTS.items()}, "latin": b'{"success":true,"n":3,"x":"\xfc"}'}


@pytest.fixture(params=["text", "bytes"])
def column(request: pytest.FixtureRequest, place: Place, db: peewee.Database) -> Any:
    """A column with the rows above."""
    MigrationRunner(db).up()
    mark = "?" if place.is_sqlite else "%s"
    at = "'2026-11-22 09:05:03+00:00'"
    if request.param == "text":
        for key, text in TEXTS.items():
            db.execute_sql(
                f"INSERT INTO audit_logs (id, event_type, details, created_at) VALUES ({mark}, 't', {mark}, {at})",
                (key, text),
            )
        AuditLog.create(id="null", event_type="t")
        return AuditLog.details
    for key, data in BYTES.items():
        db.execute_sql(
            "INSERT INTO events (id, type, session_id, data, timestamp, created_at) "
            f"VALUES ({mark}, 't', 's', {mark}, {at}, {at})",
            (key, data if place.is_sqlite else memoryview(data)),
        )
    Event.create(id="null", type="t", session_id="s", timestamp=utcnow())
    return Event.data


def found(column: Any, condition: Any) -> set[str]:
    model = column.model
    return {row[0] for row in model.select(model.id).where(condition).tuples()} - {"latin"}


def test_text_is_found_as_it_is_stored(column: Any) -> None:
    assert found(column, column.contains('"success":true')) == {"a", "broken"}
    assert found(column, column.contains('"SUCCESS":TRUE')) == {"a", "broken"}
    assert found(column, column.contains("100% m")) == {"c"}
    assert found(column, column.contains("r_\\u003c")) == {"c"}
    assert found(column, column.contains("M\u00fcller")) == {"c"}
    assert found(column, column.startswith('{"success":')) == {"a", "b", "broken"}
    assert found(column, column.endswith('"last"]')) == {"e"}
    assert found(column, column.contains("")) == {*TEXTS}
    assert found(column, ~column.contains('"success"')) == {"d", "e", "f", "none"}


def test_patterns_mean_the_same_on_both_engines(column: Any) -> None:
    for operator in (column.like, column.__mod__):
        assert found(column, operator('%"success":true%')) == {"a", "broken"}
        assert found(column, operator('%"Success":true%')) == set()
        assert found(column, operator('{"n":_._, %')) == {"c"}
        assert found(column, operator("%100\\% M_ller\\_%")) == {"c"}
        assert found(column, operator('["first"%"last"]')) == {"e"}
        assert found(column, operator("%*%")) == set()
    for operator in (column.ilike, column.__pow__):
        assert found(column, operator('%"Success":true%')) == {"a", "broken"}
        assert found(column, operator("%100\\% m%")) == {"c"}
    assert found(column, column.regexp(r'"n":-?\d+\.\d')) == {"c", "d"}
    assert found(column, column.regexp("MÜLLER")) == set()
    assert found(column, column.iregexp('"SUCCESS":(true|false)')) == {"a", "b", "broken"}


def test_search_for_something_else_than_a_text_is_refused(column: Any) -> None:
    for call in (column.contains, column.startswith, column.endswith, column.like, column.ilike, column.regexp):
        with pytest.raises(ValueRefused, match=r"(audit_logs\.details|events\.data) is searched for a text"):
            call({"success": True})


def test_value_is_compared_with_values_of_its_kind(column: Any) -> None:
    n, success = column.value("n"), column.value("success")
    assert found(column, n == 3) == {"a", "c"}
    assert found(column, n == 3.0) == {"a", "c"}
    assert found(column, n == Decimal("3")) == {"a", "c"}
    assert found(column, n == "3") == {"b"}
    assert found(column, n == 1) == set()
    assert found(column, success == True) == {"a", "c"}  # noqa: E712
    assert found(column, success == 1) == set()
    assert found(column, n != 3) == {"b", "d"}
    assert found(column, n < 3) == {"d"}
    assert found(column, (n >= -2.5) & (n <= 3)) == {"a", "c", "d"}
    assert found(column, n.between(-3, 0)) == {"d"}
    assert found(column, n.in_([3, "3"])) == {"a", "b", "c"}
    assert found(column, n.in_([])) == set()
    assert found(column, n.not_in([3, -2.5])) == {"b"}
    assert found(column, column.value("text").contains("m\u00fcller_<")) == {"c"}
    assert found(column, column.value("text").like("100\\%%")) == {"c"}


def test_value_is_found_by_its_path(column: Any) -> None:
    assert found(column, column.value("from", "jid") == "1@x") == {"a"}
    assert found(column, column.value("from", "tags", 1) == "y") == {"a"}
    assert found(column, column.value("from", "tags", -2) == "x") == {"a"}
    assert found(column, column.value(0) == "first") == {"e"}
    assert found(column, column.value(-1) == "last") == {"e"}
    assert found(column, column.value(1, "n") == 3) == {"e"}
    assert found(column, column.value("0") == "zero") == {"d"}
    assert found(column, column.value('a"b', "c<d") == 1) == {"d"}
    assert found(column, column.value("n", "n") == 3) == set()


def test_none_stands_for_null_and_for_nothing(column: Any) -> None:
    assert found(column, column.value("from", "jid") != None) == {"a"}  # noqa: E711
    assert found(column, column.value("from", "jid").is_null(False)) == {"a"}
    assert found(column, column.value("n") == None) == {"e", "f", "broken", "none", "null"}  # noqa: E711


def test_values_are_read_and_sorted(column: Any) -> None:
    model = column.model
    n, jid = column.value("n"), column.value("from", "jid")
    query = model.select(model.id, n.alias("n"), jid.alias("jid"), column.value("from").alias("whole"))
    rows = {row["id"]: (row["n"], row["jid"], row["whole"]) for row in query.dicts()}
    assert rows["a"] == (3, "1@x", {"jid": "1@x", "tags": ["x", "y"]})
    assert rows["b"] == ("3", None, {"jid": None})
    assert rows["broken"] == (None, None, None)
    ordered = model.select(model.id).where(n.as_number().is_null(False)).order_by(n.as_number().desc(), model.id)
    assert [key for (key,) in ordered.tuples() if key != "latin"] == ["a", "c", "d"]
    assert model.select(n.as_number()).where(model.id == "d").scalar() == -2.5
    assert model.select(n.as_number()).where(model.id == "a").scalar() == 3
    flag = column.value("success").as_flag()
    assert model.select(flag).where(model.id == "b").scalar() is False


def test_values_of_an_alias_are_its_own(column: Any) -> None:
    other = column.model.alias()
    data = getattr(other, column.name)
    query = other.select(other.id).where((data.value("from", "jid") == "1@x") & data.contains("success"))
    assert [row.id for row in query] == ["a"]


@pytest.mark.parametrize("number", [12345678901234567890, -(10**25), 10**400])
def test_numbers_of_more_than_64_bits_are_compared(column: Any, number: int) -> None:
    model = column.model
    row = {column.name: {"big": number % 10**30}, "id": "big"}
    more = {"event_type": "t"} if model is AuditLog else {"type": "t", "session_id": "s", "timestamp": utcnow()}
    model.create(**row, **more)
    big = column.value("big")
    assert found(column, big == number % 10**30) == {"big"}
    assert found(column, big < 10**400) == {"big"}
    assert found(column, big > -(10**400)) == {"big"}
    assert found(column, big != 5) == {"big"}
    assert found(column, column.value("n") > number) == (
        set() if number > 0 else found(column, column.value("n") > -1000)
    )


def test_paths_and_values_of_other_types_are_refused(column: Any) -> None:
    for refused in (
        lambda: column.value(),
        lambda: column.value("a", None),
        lambda: column.value(1.5),
        lambda: column.value(True),
        lambda: column.value(1 << 31),
        lambda: column.value("a") == {"b": 1},
        lambda: column.value("a") > None,
        lambda: column.value("a") == column,
    ):
        with pytest.raises(ValueRefused):
            refused()
