"""BaseModel: the base of the service's tables and of a user's own, and which models there are."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from types import ModuleType

import peewee

from ..errors import ConfigError, ModelError, NotConnected
from ..light_stdlib import TYPE_CHECKING, Any
from .queries import Queries
from .saving import SavesChanges

if TYPE_CHECKING:
    from .data_migrations import DataMigration


class _Unconnected(peewee.DatabaseProxy):
    """Peewee's stand-in for a database, whose use before connect() says what is missing."""

    def __getattr__(self, name: str) -> Any:
        if self.obj is None and not name.startswith("__"):
            raise NotConnected(
                "a model was used before connect()",
                "call connect() first; it points the models at the database of the settings",
            )
        return super().__getattr__(name)

    def __enter__(self) -> Any:
        return self.__getattr__("connection_context") and self.obj.__enter__()

    # The blocks of the database: Peewee's proxy makes blocks of its own, which do not say how they end. A decorator may
    # ask for one before connect(), and enters it later.

    def atomic(self, *args: Any, **kwargs: Any) -> Any:
        return super().atomic(*args, **kwargs) if self.obj is None else self.obj.atomic(*args, **kwargs)

    def transaction(self, *args: Any, **kwargs: Any) -> Any:
        return super().transaction(*args, **kwargs) if self.obj is None else self.obj.transaction(*args, **kwargs)

    def savepoint(self) -> Any:
        return super().savepoint() if self.obj is None else self.obj.savepoint()


# connect() points it at a database; until then the models only describe tables.
database = _Unconnected()


class _BaseModelMeta(peewee.ModelBase):
    """Keeps `Meta.abstract` to the class that says it; peewee hands every Meta option down."""

    def __new__(mcs, name: str, bases: tuple[type, ...], attrs: dict[str, Any], **kwargs: Any) -> Any:
        abstract = bool(getattr(attrs.get("Meta"), "abstract", False))
        model = super().__new__(mcs, name, bases, attrs, **kwargs)
        if hasattr(model, "_meta"):
            model._meta.abstract = abstract
        return model


class _Id(peewee.AutoField):
    """The key of models that declare none, which Peewee copies for each model, whether it needs it or not.

    With all that hangs on a field, a copy would take most of what it takes to make a model.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> peewee.AutoField:
        copy = peewee.AutoField()
        copy.name = self.name
        return copy


class BaseModel(SavesChanges, Queries, peewee.Model, metaclass=_BaseModelMeta):
    """Base of the service's models and of a user's own: a subclass is a table of the migration.

    A subclass with `abstract = True` in its Meta is no table, only a base of others. `save()` writes the columns that
    changed since the row was read; a value that cannot be read raises ValueRefused with the row's table and key.
    """

    if not TYPE_CHECKING:  # a subclass may have an `id` of another type
        id = _Id()

    class Meta:
        database = database
        legacy_table_names = False
        abstract = True


# Data migrations by their names, in the order of declaration; `data_migration` adds to them.
declared_data: dict[str, DataMigration] = {}


def data_migrations_of(models: Collection[type[peewee.Model]]) -> tuple[DataMigration, ...]:
    """Return the data migrations that were declared for some models, in the order of declaration."""
    return tuple(migration for migration in declared_data.values() if migration.model in models)


def is_own(model: type[peewee.Model]) -> bool:
    """Return whether a model is a user's, and not one of the service's tables."""
    return not model.__module__.startswith("whatspire_db.")


def registered_models() -> list[type[BaseModel]]:
    """Return every subclass of BaseModel that is a table: the service's, then others in the order of definition."""
    from .service import SERVICE_MODELS

    found = list(SERVICE_MODELS)
    pending = list(BaseModel.__subclasses__())
    while pending:
        model = pending.pop(0)
        if not model._meta.abstract and model not in found:
            found.append(model)
        pending.extend(model.__subclasses__())
    return found


def usual_models(db: peewee.Database) -> list[type[peewee.Model]]:
    """Return the registered models, without the service's where a database's settings leave these out."""
    settings = getattr(db, "settings", None)
    if not (settings and settings.only_models):
        return list(registered_models())
    if own := [model for model in registered_models() if is_own(model)]:
        return own
    name = settings.name_of("only_models")
    raise ConfigError(
        f"{name} is true, and no models of your own are there", "import their modules, or list the models"
    )


def listed(models: Sequence[type[peewee.Model]]) -> list[type[peewee.Model]]:
    """Return a list of models without doubles.

    :raises ModelError: when it is no list of models.
    """
    from ..dsn.redaction import shown  # not for a worker

    if isinstance(models, ModuleType | str) or peewee.is_model(models) or not isinstance(models, Iterable):
        what = getattr(models, "__name__", type(models).__name__)
        hint = "give model classes in a list: MigrationRunner(db, [User, Tweet])"
        raise ModelError(f"a list of models is needed, not {what}", hint)
    for model in models:
        if not peewee.is_model(model):
            raise ModelError(f"{shown(model)} is not a peewee model", "give model classes")
    return list(dict.fromkeys(models))
