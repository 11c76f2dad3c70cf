"""Durations as Go reads them."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import Place
from whatspire_db import ConfigError, MigrationRunner
from whatspire_db.settings.durations import LONGEST_SECONDS, parse_duration, seconds_of

GO_DURATIONS = Path(__file__).parent / "data" / "go_durations.json"


def read(text: str) -> timedelta | None:
    try:
        return parse_duration(text)
    except ValueError:
        return None


def whole_microseconds(nanoseconds: int | None) -> timedelta | None:
    """Return a duration without its parts of a microsecond, dropped toward zero."""
    if nanoseconds is None:
        return None
    return timedelta(microseconds=nanoseconds // 1000 if nanoseconds >= 0 else -(-nanoseconds // 1000))


def test_durations_are_gos() -> None:
    # The table holds what time.ParseDuration of Go 1.19.8 made of each text: nanoseconds, or null for an error.
    go = {text: whole_microseconds(n) for text, n in json.loads(GO_DURATIONS.read_text("utf-8"))}
    assert {text: read(text) for text in go} == go


def test_digits_beyond_what_python_reads_are_gos() -> None:
    assert parse_duration("0" * 5000 + "1s") == parse_duration("1." + "0" * 5000 + "s") == timedelta(seconds=1)
    assert parse_duration("0." + "9" * 5000 + "s") == timedelta(seconds=1)  # rounded
    for text, reason in (("9" * 5000 + "s", "is out of range"), ("9" * 5000, "is not a duration")):
        with pytest.raises(ValueError, match=reason):
            parse_duration(text)


@given(st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=90_000)))
def test_durations_round_trip(duration: timedelta) -> None:
    micros = duration // timedelta(microseconds=1)
    hours, rest = divmod(micros, 3_600_000_000)
    minutes, rest = divmod(rest, 60_000_000)
    assert parse_duration(f"{hours}h{minutes}m{rest / 1_000_000:.6f}s") == duration


@given(st.text(alphabet="0123456789.hmsunµ+- x", max_size=12))
def test_any_text_is_a_duration_or_a_value_error(text: str) -> None:
    try:
        assert isinstance(parse_duration(text), timedelta)
    except ValueError:
        pass


@pytest.mark.parametrize(
    ("limit", "seconds"), [(5, 5), (0, 0), (2.5, 2.5), (timedelta(minutes=1), 60), ("1m30s", 90), ("0", 0)]
)
def test_limit_in_python_is_seconds_a_timedelta_or_a_text(limit: Any, seconds: float) -> None:
    assert seconds_of("lock_timeout", limit) == seconds


@pytest.mark.parametrize("limit", [-1, "5", "", "soon", True, None, float("nan"), timedelta(-1), [5]])
def test_what_is_no_limit_is_refused_by_name(limit: Any, sqlite: Place) -> None:
    with pytest.raises(ConfigError, match="^lock_timeout is .*it takes "):
        MigrationRunner(sqlite.connect(), lock_timeout=limit)


@pytest.mark.parametrize("limit", ["600h", "2000000h", float("inf"), 10**400, timedelta.max])
def test_limit_is_never_longer_than_the_engines_count(limit: Any) -> None:
    assert seconds_of("lock_timeout", limit) == LONGEST_SECONDS


@pytest.mark.sampled
@pytest.mark.parametrize("verb", ["up", "plan", "version"])
def test_month_long_limits_are_taken_by_both_engines(place: Place, verb: str) -> None:
    done = place.run(verb, "--lock-timeout", "1000h", "--wait", "1000h")
    assert done.returncode == (3 if verb == "plan" else 0), done.stderr
    limit = {"WHATSAPP_DATABASE_HEALTH_TIMEOUT": "2000000h"}
    assert "failed" not in place.run(module="whatspire_db.health", env=limit).stderr
