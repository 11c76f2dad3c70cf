"""Which backups to keep: the last ones, and the latest of each day, week and month; pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Generic, TypeVar

from ..errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class Policy:
    """How many to keep of each kind; all of 0 keeps everything.

    :raises ConfigError: for what is no such number, which would keep nothing.
    """

    last: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0

    def __post_init__(self) -> None:
        for rule, number in vars(self).items():
            if type(number) is not int or number < 0:
                raise ConfigError(f"the rule to keep {rule} is {number!r}", "it takes a whole number, 0 or more")

    def __bool__(self) -> bool:
        return bool(self.last or self.daily or self.weekly or self.monthly)


@dataclass(frozen=True)
class Verdict(Generic[T]):
    """Whether a backup is kept, and why."""

    item: T
    reasons: tuple[str, ...]

    @property
    def kept(self) -> bool:
        return bool(self.reasons)


def decide(items: Sequence[T], time_of: Callable[[T], datetime], policy: Policy) -> list[Verdict[T]]:
    """Return a verdict on each of the items, which are given the latest first; times are taken in UTC.

    Their order decides which one is later, not their times, for a clock may have been set back. Weeks are those of
    ISO 8601. A bucket is kept for its latest item, as long as fewer than asked for are kept; days without a backup do
    not count. The very latest item is always kept.
    """
    reasons: list[list[str]] = [[] for _ in items]
    if items:
        reasons[0].append("the latest")
    if not policy:
        for found in reasons:
            found.append("no rule says otherwise")
    for number in range(min(policy.last, len(items))):
        reasons[number].append(f"last {number + 1} of {policy.last}")
    for label, most, bucket in (
        ("daily", policy.daily, _day),
        ("weekly", policy.weekly, _week),
        ("monthly", policy.monthly, _month),
    ):
        seen: list[str] = []
        for number, item in enumerate(items):
            name = bucket(time_of(item).astimezone(timezone.utc))
            if name not in seen and len(seen) < most:
                seen.append(name)
                reasons[number].append(f"{label} {name}")
    return [Verdict(item, tuple(found)) for item, found in zip(items, reasons, strict=True)]


def _day(time: datetime) -> str:
    return f"{time:%Y-%m-%d}"


def _week(time: datetime) -> str:
    year, week, _ = time.isocalendar()
    return f"{year}-W{week:02}"


def _month(time: datetime) -> str:
    return f"{time:%Y-%m}"
