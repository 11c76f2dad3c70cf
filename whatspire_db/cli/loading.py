"""Which models a command is about, and in which database they are."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout

import peewee

from ..connection.own_database import dsn_of, is_same, target_of
from ..dsn.forms import POSTGRES, SQLITE
from ..dsn.naming import describe
from ..dsn.redaction import looks_like_dsn, shown
from ..dsn.targets import PostgresTarget, SqliteTarget
from ..errors import ConfigError, WhatspireDBError
from ..light_stdlib import replace
from ..models.base import data_migrations_of, database, declared_data, is_own, registered_models
from ..settings import Settings
from ..settings.kinds import MODULES, is_module_name
from .call import Call

Model = type[peewee.Model]


def settings_and_models(call: Call, given: Settings | None = None) -> tuple[Settings, list[Model]]:
    """Return the settings of a command and the models that it is about.

    With --only-models, models that are bound to a database of their own are looked for there, unless a DSN is given.

    :param given: default: those of the environment and of the command line.
    :raises ConfigError: when a setting or a module is wrong, or the models are in another database than the DSN names.
    """
    settings = given or call.settings()
    modules = call.options.models or settings.models
    only = call.options.only_models or settings.only_models
    if only and not modules:
        name = "--only-models" if call.options.only_models else settings.name_of("only_models")
        raise ConfigError(f"{name} is given without models", "name their modules: --models or WHATSAPP_DATABASE_MODELS")
    models = load_models(modules, with_service=not only)
    settings = _in_own_database(settings, models, only)
    call.about(settings)
    return settings, models


def _in_own_database(settings: Settings, models: Sequence[Model], only: bool) -> Settings:
    """Return settings for the database that models are bound to; the same settings where they are bound to none."""
    bound = {model: db for model in models if (db := _database_of(model)) is not None}
    for model in [model for model, db in bound.items() if _is_uninitialized(db)]:
        if "dsn" not in settings.origins:
            raise ConfigError(
                f"{model.__name__} is bound to a database that is not initialized yet",
                "initialize it when its module is imported, or name the database by --dsn or WHATSAPP_DATABASE_DSN",
            )
        del bound[model]
    if not bound:
        return settings
    first = next(iter(bound))
    target = target_of(bound[first])
    for model, db in bound.items():
        if not (db is bound[first] or is_same(target_of(db), target)):
            raise ConfigError(
                f"{first.__name__} is bound to the database {describe(target)}, and {model.__name__} to "
                f"{describe(target_of(db))}",
                "give --models only those of one database",
            )
    if is_same(target, settings.target):
        return settings
    bound_to = f"{first.__name__} is bound to a database of its own, {describe(target)}"
    if "dsn" in settings.origins:
        raise ConfigError(
            f"{bound_to}, but {settings.name_of('dsn')} names {describe(settings.target)}",
            f"name that database in {settings.name_of('dsn')}, or take it out of the model's Meta",
        )
    if not only:
        raise ConfigError(
            f"{bound_to}, and the service's tables are in {describe(settings.target)}",
            "add --only-models for those of your own alone, or take the database out of the model's Meta",
        )
    origins = {**settings.origins, "dsn": f"the database of {first.__name__}"}
    return replace(_moved(settings, target, bound_to), origins=origins)


def _moved(settings: Settings, target: SqliteTarget | PostgresTarget, bound_to: str) -> Settings:
    driver = SQLITE if isinstance(target, SqliteTarget) else POSTGRES
    if "driver" in settings.origins and driver != settings.driver:
        raise ConfigError(f"{bound_to}, but {settings.name_of('driver')} is {settings.driver}", "correct one of them")
    try:
        return replace(settings, driver=driver, dsn=dsn_of(target))
    except ValueError:
        hint = "give it a file, or take it out of the model's Meta"
        raise ConfigError(f"{bound_to}, which no other process can see", hint) from None


def _database_of(model: Model) -> peewee.Database | peewee.Proxy | None:
    """Return the database that a model is bound to; None for the one that connect() makes, and for none."""
    db = model._meta.database
    while isinstance(db, peewee.Proxy) and db is not database and db.obj is not None:
        db = db.obj
    return None if db is database else db


def _is_uninitialized(db: peewee.Database | peewee.Proxy) -> bool:
    """Return whether a database gets its place only when the program runs."""
    return isinstance(db, peewee.Proxy) or bool(db.deferred)


def load_models(modules: Iterable[str], *, with_service: bool = True) -> list[Model]:
    """Import modules and return all models that a command is about: the service's, and those of the modules.

    :raises ConfigError: when a module cannot be imported or holds no models.
    """
    found: list[Model] = registered_models() if with_service else []
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    for name in modules:
        models = _models_in(name)
        if not (models or _declares_data(name)):
            raise ConfigError(f"the module {name} holds no models", "name the module in which they are defined")
        found += [model for model in models if model not in found]
    # A module can import others that define tables too.
    found += [m for m in registered_models() if m not in found and (with_service or is_own(m))]
    _require_models_of_data(found)
    return found


def _require_models_of_data(models: Sequence[Model]) -> None:
    """Refuse a data migration that would not run, because its model is none of those of the command."""
    ours = data_migrations_of(models)
    for migration in declared_data.values():
        if migration not in ours:
            raise ConfigError(
                f"the data migration {migration.name} is for {migration.model.__name__}, which is not among the models",
                "name the module of that model too: --models or WHATSAPP_DATABASE_MODELS",
            )


def _models_in(name: str) -> list[Model]:
    """Import a module and return the models that it, or the package that it is, defines."""
    if not is_module_name(name):
        raise ConfigError(f"{shown(name)} is not the name of a module", f"--models takes {MODULES.takes}")
    try:
        with redirect_stdout(sys.stderr):  # stdout is the command's own
            module = importlib.import_module(name)
    except (Exception, SystemExit) as error:  # whatever the module's own code raises
        raise _not_imported(name, error) from error
    models: list[Model] = [v for v in vars(module).values() if peewee.is_model(v)]
    own = [m for m in models if m.__module__ == name or m.__module__.startswith(name + ".")]
    return [m for m in own if not getattr(m._meta, "abstract", False) and _is_table(m, own)]


def _not_imported(name: str, error: BaseException) -> ConfigError:
    """Say why a module cannot be imported; only a module that does not exist needs another name."""
    why, place = f"{type(error).__name__}: {_without_dsn(str(error))}", _place(error)
    hint = f"correct {place}" if place else "correct the module"
    if isinstance(error, WhatspireDBError):
        why, hint = _without_dsn(error.fact), f"{error.hint}, in {place}" if place else error.hint
    elif isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
        hint = "give --models or WHATSAPP_DATABASE_MODELS the dotted name of a module on the Python path"
    elif isinstance(error, ModuleNotFoundError):
        hint = f"install what {place or 'it'} imports for this Python, {sys.executable}"
    return ConfigError(f"the module {name} cannot be imported: {why}", hint)


def _place(error: BaseException) -> str:
    """Return the innermost line of the traceback outside this package and Peewee, or "" if there is none."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}" if error.filename else ""
    theirs = (os.path.dirname(os.path.dirname(__file__)) + os.sep, peewee.__file__, importlib.__file__, "<frozen ")
    frames = [each for each in traceback.extract_tb(error.__traceback__) if not each.filename.startswith(theirs)]
    return f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else ""


def _declares_data(name: str) -> bool:
    modules = {migration.change.__module__ for migration in declared_data.values()}
    return any(module == name or module.startswith(f"{name}.") for module in modules)


def _without_dsn(text: str) -> str:
    return "its message looks like a DSN (not shown here)" if looks_like_dsn(text) else text


def _is_table(model: Model, others: Iterable[Model]) -> bool:
    """Leave out a plain peewee base class: one without fields of its own, that other models extend."""
    extended = any(other is not model and issubclass(other, model) for other in others)
    return not extended or bool(model._meta.fields.keys() - {"id"})
