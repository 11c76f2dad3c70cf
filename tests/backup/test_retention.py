"""Which backups are kept: laws that hold for any times and any rules, and the calendar's own traps."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from itertools import groupby
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whatspire_db.backup.retention import Policy, decide
from whatspire_db.errors import ConfigError

UTC = timezone.utc
EXAMPLES = 100

# Dense enough that several fall on a day, long enough for months; in any order, for a clock may be set back.
MOMENTS = st.integers(0, 24 * 120).map(lambda hours: datetime(2026, 11, 20, tzinfo=UTC) + timedelta(hours=hours))
HISTORIES = st.lists(MOMENTS, max_size=40)
COUNTS = st.integers(0, 6)
POLICIES = st.builds(Policy, COUNTS, COUNTS, COUNTS, COUNTS)
RULES = ("last", "daily", "weekly", "monthly")

Item = tuple[int, datetime]  # its place in the history, which tells two of the same time from each other


def numbered(history: list[datetime]) -> list[Item]:
    return list(enumerate(history))


def kept(items: list[Item], policy: Policy) -> list[Item]:
    return [verdict.item for verdict in decide(items, lambda item: item[1], policy) if verdict.kept]


def reasons(items: list[Item], policy: Policy) -> list[tuple[str, ...]]:
    return [verdict.reasons for verdict in decide(items, lambda item: item[1], policy)]


def bucket(rule: str, time: datetime) -> object:
    """Return the day, week or month of a time, by another way than the code under test."""
    if rule == "daily":
        return time.toordinal()
    if rule == "weekly":
        return (time.toordinal() - 1) // 7  # the first day of all was a Monday
    return time.year, time.month


def by_the_book(items: list[Item], policy: Policy) -> set[Item]:
    """Return what is kept, as one would tell it somebody: rule by rule, from the latest on."""
    found = set(items[:1]) | set(items[: policy.last])
    for rule in RULES[1:]:
        first_of = {}
        for item in items:
            first_of.setdefault(bucket(rule, item[1]), item)
        found |= set(list(first_of.values())[: getattr(policy, rule)])
    return found if policy else set(items)


@given(HISTORIES, POLICIES)
@settings(max_examples=EXAMPLES)
def test_what_is_kept_is_what_the_rules_say(history: list[datetime], policy: Policy) -> None:
    items = numbered(history)
    assert set(kept(items, policy)) == by_the_book(items, policy)


@given(HISTORIES, POLICIES)
@settings(max_examples=EXAMPLES)
def test_every_item_gets_a_verdict_and_a_rule_keeps_no_more_than_asked(history: list[datetime], policy: Policy) -> None:
    items = numbered(history)
    verdicts = decide(items, lambda item: item[1], policy)
    assert [verdict.item for verdict in verdicts] == items
    for rule in RULES:
        named = [reason for verdict in verdicts for reason in verdict.reasons if reason.startswith(rule)]
        assert len(named) <= getattr(policy, rule)
        assert len(set(named)) == len(named)


@given(HISTORIES, POLICIES)
@settings(max_examples=EXAMPLES)
def test_the_latest_is_always_kept(history: list[datetime], policy: Policy) -> None:
    items = numbered(history)
    assert kept(items, policy)[:1] == items[:1]


@given(HISTORIES, POLICIES.filter(bool), st.sampled_from(RULES), st.integers(1, 6))
@settings(max_examples=EXAMPLES)
def test_a_rule_more_or_a_larger_one_never_deletes_more(
    history: list[datetime], policy: Policy, rule: str, more: int
) -> None:
    items = numbered(history)
    larger = replace(policy, **{rule: getattr(policy, rule) + more})
    assert set(kept(items, policy)) <= set(kept(items, larger))


@given(HISTORIES, POLICIES)
@settings(max_examples=EXAMPLES)
def test_pruning_twice_deletes_no_more(history: list[datetime], policy: Policy) -> None:
    left = kept(numbered(history), policy)
    assert kept(left, policy) == left


@given(HISTORIES, HISTORIES, POLICIES)
@settings(max_examples=EXAMPLES)
def test_pruning_every_day_leaves_what_pruning_at_the_end_leaves(
    earlier: list[datetime], later: list[datetime], policy: Policy
) -> None:
    items = numbered(later + earlier)
    new, old = items[: len(later)], items[len(later) :]
    assert kept(new + kept(old, policy), policy) == kept(items, policy)


@given(HISTORIES)
def test_no_rule_keeps_everything(history: list[datetime]) -> None:
    assert kept(numbered(history), Policy()) == numbered(history)


def test_nothing_is_kept_of_nothing() -> None:
    assert decide([], lambda item: item, Policy(1, 1, 1, 1)) == []


@given(HISTORIES, POLICIES, st.lists(st.integers(-12 * 60, 14 * 60), min_size=40, max_size=40))
@settings(max_examples=EXAMPLES)
def test_zones_change_nothing(history: list[datetime], policy: Policy, offsets: list[int]) -> None:
    moved = [
        time.astimezone(timezone(timedelta(minutes=offset))) for time, offset in zip(history, offsets, strict=False)
    ]
    assert reasons(numbered(moved), policy) == reasons(numbered(history), policy)


def test_hour_that_comes_twice_and_hour_that_is_left_out() -> None:
    """Summer time ends and begins: days are those of UTC, so none has two latest and none is lost."""
    summer, winter = timezone(timedelta(hours=2)), timezone(timedelta(hours=1))
    items = numbered(
        [
            datetime(2026, 10, 26, 0, 30, tzinfo=winter),  # 23:30 of the 25th
            datetime(2026, 10, 25, 2, 30, tzinfo=winter),
            datetime(2026, 10, 25, 2, 30, tzinfo=summer),
            datetime(2026, 10, 25, 1, 30, tzinfo=summer),  # 23:30 of the 24th
            datetime(2026, 3, 29, 3, 0, tzinfo=summer),
            datetime(2026, 3, 29, 1, 59, tzinfo=winter),
        ]
    )
    assert reasons(items, Policy(daily=9)) == [
        ("the latest", "daily 2026-10-25"),
        (),
        (),
        ("daily 2026-10-24",),
        ("daily 2026-03-29",),
        (),
    ]


@pytest.mark.parametrize(
    ("day", "week"),
    [
        ("2024-12-29", "2024-W52"),
        ("2024-12-30", "2025-W01"),
        ("2025-12-28", "2025-W52"),
        ("2025-12-29", "2026-W01"),
        ("2026-12-31", "2026-W53"),
        ("2027-01-03", "2026-W53"),
        ("2027-01-04", "2027-W01"),
        ("2020-02-29", "2020-W09"),
    ],
)
def test_weeks_at_the_ends_of_years(day: str, week: str) -> None:
    items = numbered([datetime.fromisoformat(f"{day}T23:59:59+00:00")])
    assert reasons(items, Policy(weekly=1)) == [("the latest", f"weekly {week}")]


def test_a_week_across_the_new_year_is_one_and_its_months_are_two() -> None:
    days = [datetime(2027, 1, 4, tzinfo=UTC) - timedelta(days=n) for n in range(9)]  # to the 27th of December
    weeks = [[n for n, _ in group] for _, group in groupby(numbered(days), lambda item: item[1].isocalendar()[:2])]
    assert weeks == [[0], [1, 2, 3, 4, 5, 6, 7], [8]]
    assert [n for n, _ in kept(numbered(days), Policy(weekly=9))] == [0, 1, 8]
    assert [n for n, _ in kept(numbered(days), Policy(monthly=9))] == [0, 4]


def test_clock_that_was_set_back_deletes_nothing_later() -> None:
    """The latest is the one that was made last, whatever it says of itself."""
    set_back = datetime(2020, 1, 1, tzinfo=UTC)
    items = numbered([set_back, datetime(2026, 5, 2, tzinfo=UTC), datetime(2026, 5, 1, tzinfo=UTC)])
    assert [n for n, _ in kept(items, Policy(last=1))] == [0]
    assert [n for n, _ in kept(items, Policy(daily=1))] == [0]
    assert [n for n, _ in kept(items, Policy(monthly=2))] == [0, 1]
    same = numbered([set_back, datetime(2026, 5, 2, tzinfo=UTC), set_back])
    assert [n for n, _ in kept(same, Policy(daily=9))] == [0, 1]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("number", [-1, 1.5, "1", True, None])
def test_rule_that_is_no_number_keeps_nothing_so_it_is_refused(rule: str, number: Any) -> None:
    with pytest.raises(ConfigError, match=rule):
        Policy(**{rule: number})
