"""What a user calls: transfer() and check()."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import ModuleType
from typing import Any

from ..connection.connecting import settings_of
from ..errors import ConfigError
from ..messages import in_words
from ..migrate.ddl import ModelType
from ..models.base import registered_models
from ..settings import Settings
from ..settings.durations import seconds_of
from . import live as live_transfer
from . import to_postgres, to_sqlite
from .checking import Checked
from .faults import SET_ASIDE, read_choices
from .opening import Ends, ends_of
from .progress import Watcher
from .reports import Report
from .steps import Wishes


def transfer(
    source: Settings | str | None,
    to: str,
    models: Sequence[ModelType] | None = None,
    *,
    leave: Sequence[str] = (),
    on: Mapping[str, str] | None = None,
    side_file: str = "",
    lock_timeout: float | timedelta = 60.0,
    watcher: Watcher | None = None,
    trust_source: bool = False,
    live: bool = False,
) -> Report:
    """Bring every model's rows from one database into the empty tables of another, and prove that both are equal.

    The source is opened read-only, and is read in one transaction. The rows become visible at the target only when
    they are proved.

    :param source: Settings or a DSN; default: the environment and .env.
    :param to: the DSN of the target, of the other engine.
    :param models: default: every registered model.
    :param leave: tables without a model, and columns without a field as TABLE.COLUMN, that stay behind.
    :param on: what to do about each kind of fault, as {"nul": "replace"}: refuse (default), replace or set-aside.
    :param side_file: the new file for the rows that are set aside.
    :param lock_timeout: how long to wait for another transfer or migration, in seconds or as a timedelta.
    :param watcher: hears how far the transfer is; default: a line in the log every ten seconds.
    :param trust_source: let a PostgreSQL superuser run code of other roles that is attached to the tables.
    :param live: let others write to the SQLite source, until a short lock at the end; then a fence refuses writes.
    :raises ConfigError: when an argument is wrong.
    :raises TransferRefused: when rows would be lost or changed, or the target has rows; none was copied.
    :raises NotProved: when both sides differ afterwards; the target keeps no row.
    :raises LockTimeout: when another transfer or migration takes longer.
    """
    ends = ends_of(settings_of(source, by="transfer()"), to)
    _require_sqlite(ends, on or side_file or live)
    wishes = _wishes(models, leave, on, side_file, lock_timeout, watcher, trust_source)
    way: Any = _live(wishes) if live else to_postgres if ends.is_to_postgres else to_sqlite
    with _in_words():
        return way.transfer(ends, wishes)


@contextmanager
def _in_words() -> Iterator[None]:
    """Turn the errors of drivers, which are used directly, into ours."""
    try:
        yield
    except Exception as error:
        found = in_words(error)
        if found is None or found is error:
            raise
        raise found from error


def _live(wishes: Wishes) -> ModuleType:
    if SET_ASIDE in wishes.choices.values():
        raise ConfigError(
            "a live transfer sets no rows aside, for they may change meanwhile",
            "correct them first, or transfer without --live, while nothing writes",
        )
    return live_transfer


def check(
    source: Settings | str | None,
    to: str,
    models: Sequence[ModelType] | None = None,
    *,
    leave: Sequence[str] = (),
    on: Mapping[str, str] | None = None,
    lock_timeout: float | timedelta = 60.0,
    watcher: Watcher | None = None,
) -> Checked:
    """Find every value and row of a SQLite database that the target could not hold or would change.

    Takes what `transfer` takes, and changes neither database.
    """
    ends = ends_of(settings_of(source, by="check()"), to)
    _require_sqlite(ends, not ends.is_to_postgres)
    with _in_words():
        return to_postgres.check_only(ends, _wishes(models, leave, on, "-", lock_timeout, watcher, False))


def _require_sqlite(ends: Ends, wanted: object) -> None:
    if wanted and not ends.is_to_postgres:
        raise ConfigError(
            "the source is PostgreSQL, and only SQLite holds what the other engine does not",
            "leave out --check, --on, --side-file and --live",
        )


def _wishes(
    models: Sequence[ModelType] | None,
    leave: Sequence[str],
    on: Mapping[str, str] | None,
    side_file: str,
    lock_timeout: float | timedelta,
    watcher: Watcher | None,
    trust_source: bool,
) -> Wishes:
    choices = read_choices(on or {})
    if SET_ASIDE in choices.values() and not side_file:
        raise ConfigError("rows are to be set aside, and no file for them is named", "name one with --side-file")
    wait_seconds = seconds_of("lock_timeout", lock_timeout)
    known = registered_models() if models is None else models
    return Wishes(list(known), leave, choices, side_file, wait_seconds, trust_source, watcher or Watcher())
