"""Rules of retention: how old the rows of a model may become, by what somebody set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import peewee

from ..dsn.redaction import shown
from ..errors import ConfigError, ModelError
from ..fields import InstantField
from ..models.service import Event
from ..settings import Settings
from ..settings.durations import in_units, parse_duration

Model = type[peewee.Model]

AGE = "an age like 30d, 12h or 90m"


@dataclass(frozen=True)
class Rule:
    """Rows of a model whose time in a field lies further back than an age are deleted; `source` says who set it.

    :raises ConfigError: when the age is not above 0, for then all rows would go.
    """

    model: Model
    field: InstantField[Any]
    age: timedelta
    source: str

    def __post_init__(self) -> None:
        if self.age <= timedelta(0):
            raise ConfigError(f"the age of the rule for {self.name} is not above 0", f"give {AGE}")

    @property
    def name(self) -> str:
        """The column, as TABLE.COLUMN."""
        return f"{self.model._meta.table_name}.{self.field.column_name}"

    def before(self, now: datetime) -> datetime:
        """Return the moment before which rows are deleted.

        :raises ConfigError: when it lies before the year 1, which no row does.
        """
        try:
            return now - self.age
        except OverflowError:
            raise ConfigError(
                f"the age of the rule for {self.name} leads back beyond the year 1 ({self.source})",
                f"give {AGE}, or leave the rule out to keep all rows",
            ) from None

    def __str__(self) -> str:
        return f"{self.name} older than {shown_age(self.age)}"


def rules_of(models: Sequence[Model], settings: Settings, given: Sequence[str] = ()) -> list[Rule]:
    """Return the rules that somebody set: those given as TABLE.COLUMN=AGE alone, else of the settings and the models.

    The settings' rule is that of the service: its events are deleted after `events_retention_days`, where
    `events_enabled` is set. A model's is `retention = ("COLUMN", AGE)` in its Meta.

    :raises ConfigError: when a text is no rule, or names what no model has.
    :raises ModelError: when a model's rule is none.
    """
    if given:
        return [_read_rule(models, text) for text in given]
    rules = [rule for model in models if (rule := _declared(model)) is not None]
    if settings.events_enabled and settings.events_retention_days and Event in models:
        days = timedelta(days=settings.events_retention_days)
        rules.append(Rule(Event, Event.timestamp, days, settings.name_of("events_retention_days")))
    return rules


def _read_rule(models: Sequence[Model], text: str) -> Rule:
    place, _, age = text.partition("=")
    table, _, column = place.strip().rpartition(".")
    hint = f"write TABLE.COLUMN=AGE, with {AGE}"
    found = [model for model in models if model._meta.table_name == table]
    if not (age and column and table):
        raise ConfigError("--rule is not a rule", hint)
    if not found:
        raise ConfigError(f"--rule: no model has the table {shown(table)}", f"{hint}; --models names the models")
    if len(found) > 1:
        names = ", ".join(sorted(model.__name__ for model in found))
        hint = "declare retention in the Meta of the model that you mean"
        raise ConfigError(f"--rule: {names} all have a table {shown(table)}", hint)
    try:
        instant = _instant(found[0], column)
    except ValueError as error:
        fields = [field.column_name for field in found[0]._meta.sorted_fields if isinstance(field, InstantField)]
        hint = f"{table} has {', '.join(fields)}" if fields else "it needs an InstantField; see docs/retention.md"
        raise ConfigError(f"--rule for {shown(place.strip())}: {error}", hint) from None
    try:
        return Rule(found[0], instant, read_age(age), "--rule")
    except ValueError as error:
        raise ConfigError(f"--rule for {shown(place.strip())}: {error}", hint) from None


def _declared(model: Model) -> Rule | None:
    declared = getattr(model._meta, "retention", None)
    if declared is None:
        return None
    try:
        if not isinstance(declared, tuple | list) or len(declared) != 2:
            raise ValueError("it is not a pair")
        column, age = declared
        return Rule(model, _instant(model, column), age if isinstance(age, timedelta) else read_age(age), "Meta")
    except (ValueError, ConfigError) as error:
        why = error.fact if isinstance(error, ConfigError) else error
        hint = f'write retention = ("COLUMN", AGE) in its Meta, with a timedelta or {AGE}'
        raise ModelError(f"the retention of {model.__name__} is not a rule: {why}", hint) from None


def _instant(model: Model, column: str) -> InstantField[Any]:
    found = model._meta.columns.get(column) or model._meta.fields.get(column)
    if found is None:
        raise ValueError("there is no such column")
    if not isinstance(found, InstantField):
        raise ValueError("the column is not an InstantField, so the time zone of its values is not known")
    return found


def read_age(text: str) -> timedelta:
    """Read an age: days as 30d, else a duration like 12h.

    :raises ValueError: when it is none, or not above 0.
    """
    text = str(text).strip()
    is_days = text.endswith("d") and text[:-1].isdecimal() and text.isascii() and len(text) < 8
    try:
        age = timedelta(days=int(text[:-1])) if is_days else parse_duration(text)
    except ValueError:
        raise ValueError("that is not an age") from None
    if age <= timedelta(0):
        raise ValueError("the age is not above 0")
    return age


def shown_age(age: timedelta) -> str:
    """Return an age as `read_age` takes it."""
    return f"{age.days}d" if age.days and not age % timedelta(days=1) else in_units(age)
