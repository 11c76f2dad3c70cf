"""Data migrations as users declare them: functions that change rows once, in the order of their declaration."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import peewee

from ..errors import ModelError, printable
from ..light_stdlib import TYPE_CHECKING, Any, TypeVar, dataclass
from .base import declared_data

if TYPE_CHECKING:
    from datetime import timedelta

F = TypeVar("F", bound=Callable[..., Any])

LONGEST_NAME = 200


@dataclass(frozen=True)
class DataMigration:
    """A function that changes rows once: batch by batch where it takes a batch, else in one transaction.

    :param name: under which it is recorded.
    :param model: whose rows it goes through.
    :param change: the function.
    :param batch: how many rows a batch has at most; None leaves that to the engine.
    :param pause: how long to pause behind a batch at least: seconds, a timedelta or a text like 50ms.
    """

    name: str
    model: type[peewee.Model]
    change: Callable[..., Any]
    batch: int | None = None
    pause: float | timedelta | str = 0

    @property
    def in_batches(self) -> bool:
        """Tell whether the function takes a batch."""
        return bool(inspect.signature(self.change).parameters)

    @property
    def place(self) -> tuple[str, str]:
        """Where the function is defined: a module that is imported again declares the same ones."""
        return self.change.__module__, self.change.__qualname__


def data_migration(
    model: type[peewee.Model],
    *,
    name: str | None = None,
    batch: int | None = None,
    pause: float | timedelta | str = 0,
) -> Callable[[F], F]:
    """Declare a function that changes rows once; `up` runs it behind the steps of the schema.

    A function with a parameter is called for one batch after the other, each in a transaction of its own. It gets an
    expression that selects the batch's rows, for `.where()`. A function without one is called once, in one transaction.

    :param model: whose rows it goes through, by their primary key.
    :param name: under which it is recorded; default: the function's name.
    :param batch: how many rows a batch has at most.
    :param pause: how long to pause behind a batch at least: seconds, a timedelta or a text like 50ms. The pause is
        always as long as the batch was.
    :raises ModelError: when the model is none or has no key, when the name is taken, or when a parameter is wrong.
    """
    if not peewee.is_model(model):
        raise ModelError("a data migration without a model", "write @data_migration(Model) above its function")
    if batch is not None and (isinstance(batch, bool) or not isinstance(batch, int) or batch < 1):
        raise ModelError("the batch of a data migration is not a number of rows", "give a whole number, 1 or more")

    def declare(change: F) -> F:
        _add(DataMigration(name or change.__name__, model, change, batch, pause))
        return change

    return declare


def _add(migration: DataMigration) -> None:
    name = migration.name
    if not name or len(name) > LONGEST_NAME or printable(name) != name or name != name.strip():
        raise ModelError(
            "the name of a data migration is empty, longer than 200 characters, or has blanks at its ends or "
            "control characters",
            "give it a short name in one line",
        )
    if migration.in_batches and not migration.model._meta.primary_key:
        raise ModelError(
            f"the data migration {name} goes through {migration.model.__name__}, which has no primary key",
            "let its function take no batch: it then runs in one transaction",
        )
    other = declared_data.get(name)
    if other is not None and other.place != migration.place:
        raise ModelError(
            f"two data migrations have the name {name}: {'.'.join(other.place)} and {'.'.join(migration.place)}",
            "give one of them another name",
        )
    declared_data[name] = migration
