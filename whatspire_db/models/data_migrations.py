"""Data migrations as users declare them: functions that change rows once, in the order of their declaration."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import peewee

from ..errors import ConfigError, ModelError, printable
from ..light_stdlib import TYPE_CHECKING, Any, TypeVar, dataclass
from ..settings.durations import seconds_of
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
    :param pause: the least pause after a batch: seconds, a timedelta or a text like 50ms.
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
    def place(self) -> str:
        """Where the function is defined: a module that is imported again declares the same ones."""
        code = self.change.__code__
        return f"{code.co_filename}:{code.co_firstlineno}"


def data_migration(
    model: type[peewee.Model],
    *,
    name: str | None = None,
    batch: int | None = None,
    pause: float | timedelta | str = 0,
) -> Callable[[F], F]:
    """Declare a function that changes rows once; `up` runs it after the steps of the schema.

    A function with a parameter is called for one batch after the other, each in a transaction of its own. It gets an
    expression that selects the batch's rows, for `.where()`. A function without one is called once, in one transaction.

    :param model: whose rows it goes through, by their primary key.
    :param name: under which it is recorded; default: the function's name.
    :param batch: how many rows a batch has at most.
    :param pause: the least pause after a batch: seconds, a timedelta or a text like 50ms. The pause is
        always as long as the batch was.
    :raises ModelError: when the model is none or has no key, when the name is taken, or when a parameter is wrong.
    """
    if not peewee.is_model(model):
        raise ModelError("a data migration without a model", "write @data_migration(Model) above its function")
    if batch is not None and (isinstance(batch, bool) or not isinstance(batch, int) or batch < 1):
        raise ModelError("the batch of a data migration is not a number of rows", "give a whole number, 1 or more")

    try:
        seconds_of("pause", pause)
    except ConfigError as error:
        raise ModelError(f"the pause of a data migration is wrong: {error.fact}", error.hint) from None

    def declare(change: F) -> F:
        _require_plain_function(change)
        _add(DataMigration(change.__name__ if name is None else name, model, change, batch, pause))
        return change

    return declare


def _require_plain_function(change: Any) -> None:
    """Refuse what would not run when it is called with a batch, or with nothing."""
    if not inspect.isfunction(change):
        raise ModelError("a data migration is not a function", "write @data_migration(Model) above a def")
    kinds = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
    if any(is_kind(change) for is_kind in kinds):
        raise ModelError(
            f"the function {change.__name__} of a data migration is async or a generator, so calling it does nothing",
            "write a plain function",
        )
    parameters = inspect.signature(change).parameters.values()
    if len(parameters) > 1 or any(p.kind not in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters):
        raise ModelError(
            f"the function {change.__name__} of a data migration takes other arguments than one batch",
            "let it take one argument, the batch, or none",
        )


def _is_name(name: Any) -> bool:
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME or name.startswith("-"):
        return False
    is_text = name.encode(errors="replace").decode() == name
    return is_text and printable(name) == name == name.strip()


def _is_imported_again(other: DataMigration, migration: DataMigration) -> bool:
    """Tell whether two are one, whose module ran twice; what a loop declares has the same code and another model."""
    is_compiled_again = other.change.__code__ is not migration.change.__code__
    return other == migration or (other.place == migration.place and is_compiled_again)


def _add(migration: DataMigration) -> None:
    name = migration.name
    if not _is_name(name):
        raise ModelError(
            "the name of a data migration is no text, empty, longer than 200 characters, begins with -, or has blanks "
            "at its ends or control characters",
            "give it a short name in one line",
        )
    if migration.in_batches and not migration.model._meta.primary_key:
        raise ModelError(
            f"the data migration {name} goes through {migration.model.__name__}, which has no primary key",
            "let its function take no batch: it then runs in one transaction",
        )
    other = declared_data.get(name)
    if other is not None and not _is_imported_again(other, migration):
        raise ModelError(
            f"two data migrations have the name {name}: {other.place} and {migration.place}",
            "give each a name of its own, as in @data_migration(Model, name=...)",
        )
    declared_data[name] = migration
