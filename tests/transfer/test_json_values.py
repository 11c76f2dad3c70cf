"""JSON of both engines is compared by value, and no digit of a whole number is lost."""

from __future__ import annotations

import pytest

from whatspire_db.transfer.json_values import levelled


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("[1e23]", f"[1{'0' * 23}]"),
        ("[1.0, -0.0]", "[1, 0]"),
        ("[2.50]", "[2.5000000000000000000]"),
        ("[9007199254740993]", "[9007199254740993.0]"),
        ('{"a": 1, "b": "é"}', '{"b":"\\u00e9","a":1}'),
        ("[1e400]", f"[1{'0' * 400}]"),
    ],
)
def test_equal_values_have_one_form(one: str, other: str) -> None:
    assert levelled(one) == levelled(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("[9007199254740993]", "[9007199254740992]"),
        ("[1e23]", "[99999999999999991611392]"),
        ("[1]", "[true]"),
        ("[1]", '["1"]'),
        ("null", '"null"'),
        ("[0.1]", "[0.10000000000000002]"),
    ],
)
def test_other_values_have_another(one: str, other: str) -> None:
    assert levelled(one) != levelled(other)
