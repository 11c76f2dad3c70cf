"""Which databases a run over many is about: the schemas of one, files, or the DSNs of a file."""

from __future__ import annotations

import fnmatch
import glob
import logging
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ..connection.database import Pooling
from ..dsn.forms import POSTGRES, SQLITE, kind_of
from ..dsn.naming import describe
from ..dsn.redaction import looks_like_dsn
from ..dsn.targets import PostgresTarget, SqliteTarget
from ..errors import ConfigError, ConnectionFailed, WhatspireDBError
from ..files import (
    BESIDE_SQLITE,
    NotRegular,
    open_regular,
    others_can_write,
    owner_name,
    require_regular,
    trusted_owners,
)
from ..light_stdlib import replace
from ..settings import Settings
from .call import read_settings
from .loading import Model

if TYPE_CHECKING:
    from ..migrate.engines.postgres.schemas import SchemaPath

logger = logging.getLogger("whatspire_db.migrate")

# What lies beside a database file and is none.
_BESIDE = (*BESIDE_SQLITE, "-stamps")
_READABLE_BY_OTHERS = stat.S_IRGRP | stat.S_IROTH
MOST_BYTES = 1 << 24  # of a file of DSNs


@dataclass(frozen=True)
class Target:
    """One of many databases.

    :param kind: what names it: schema, file or dsn.
    :param name: as lines and documents show it.
    :param line: of the file of DSNs.
    :param error: why it is none.
    """

    kind: str
    name: str
    driver: str = ""
    database: str = ""
    settings: Settings | None = None
    path: SchemaPath | None = None
    line: int = 0
    error: WhatspireDBError | None = None

    @property
    def title(self) -> str:
        """How lines name it."""
        if not self.line:
            return self.name
        return f"line {self.line} ({self.name})" if self.name else f"line {self.line}"

    def document(self) -> dict[str, Any]:
        """Return the head of its JSON document."""
        line = {"line": self.line} if self.line else {}
        return {self.kind: self.name or None, **line, "driver": self.driver or None, "database": self.database or None}

    def required(self) -> Settings:
        """Return its settings, when it can still be tried.

        :raises WhatspireDBError: says why not.
        """
        if self.error is not None:
            raise self.error
        assert self.settings is not None
        if self.kind == "file":
            _require_file(self.database)
        return self.settings


# Files


def matching_files(patterns: Sequence[str]) -> list[str]:
    """Return the regular files that glob patterns match, or name: by name, each once; links are not followed.

    :raises ConfigError: when there are none.
    """
    found = {os.path.normpath(path): None for pattern in patterns for path in _matches(pattern)}
    files = [path for path in sorted(found) if _is_file(path)]
    beside = {f"{path}{suffix}" for path in files for suffix in _BESIDE}
    if kept := [path for path in files if path not in beside]:
        return kept
    what = " ".join("a pattern (not shown here)" if looks_like_dsn(text) else text for text in patterns)
    raise ConfigError(f"--each-file: no regular file matches {what}", "check the pattern; a run makes no new file here")


def _matches(pattern: str) -> list[str]:
    return [pattern] if os.path.lexists(pattern) else glob.glob(pattern, recursive=True)


def _is_file(path: str) -> bool:
    try:
        require_regular(path, os.lstat(path))
    except NotRegular as error:
        if not os.path.isdir(path) or os.path.islink(path):
            logger.warning("%s is left out: %s", path, error.strerror)
        return False
    except OSError as error:  # it is gone, or cannot be looked at: then its own run says so
        return not isinstance(error, FileNotFoundError)
    return True


def _require_file(path: str) -> None:
    """Check that a file is still the regular one that was matched.

    :raises ConnectionFailed: when it is not.
    """
    try:
        require_regular(path, os.lstat(path))
    except NotRegular as error:
        raise ConnectionFailed(
            f"{path}: {error.strerror}", "links are not followed here; name the file itself"
        ) from None
    except FileNotFoundError:
        raise ConnectionFailed(f"{path} is gone", "run it again for the files that are there") from None
    except OSError as error:
        raise ConnectionFailed(f"{path}: {error.strerror}", "give this user the right to it") from None


def file_targets(paths: Sequence[str], config: str | None = None) -> Iterator[Target]:
    """Yield a target for each file.

    :param config: the config file that the other settings are read from, as `Settings.from_environment` takes it.
    """
    base = _settings(SQLITE, _dsn_of_file(paths[0]), "--each-file", config)
    for path in paths:
        settings = replace(base, dsn=_dsn_of_file(path))
        yield Target("file", path, SQLITE, describe(settings.target), settings)


def _dsn_of_file(path: str) -> str:
    from urllib.parse import quote

    # Not a path, for SQLite would make a file of that name when this one is gone.
    return f"file:{quote(os.path.abspath(path)).replace('~', '%7E')}?mode=rw"


# DSNs


def dsn_targets(path: str, config: str | None = None) -> list[Target]:
    """Return a target for each DSN of a file; a malformed one has an error of its own.

    :param config: as for `file_targets`.
    :raises ConfigError: when the file cannot be trusted or read, or holds no DSN.
    """
    lines = [(number, text.strip()) for number, text in enumerate(_secret_text(path).splitlines(), 1)]
    lines = [(number, text) for number, text in lines if text and not text.startswith("#")]
    if not lines:
        raise ConfigError(
            f"--dsn-file: {path} holds no DSN", "write one a line, like postgres://USER:PASSWORD@HOST/NAME"
        )
    base: Settings | None = None
    found = []
    for number, dsn in lines:
        name = f"line {number} of {path}"
        try:
            driver, target = _target_of(name, dsn)
        except ConfigError as error:
            found.append(Target("dsn", "", line=number, error=error))
            continue
        base = base or _settings(driver, dsn, name, config)
        settings = replace(base, driver=driver, dsn=dsn, origins={**base.origins, "dsn": name, "driver": name})
        place = describe(target)
        found.append(Target("dsn", place, driver, place, settings, line=number))
    if base is None and (wrong := found[0].error):
        raise ConfigError(f"{found[0].title} of {path}: {wrong.fact}", wrong.hint)
    return found


def _target_of(name: str, dsn: str) -> tuple[str, SqliteTarget | PostgresTarget]:
    driver = kind_of(name, dsn)
    if driver == POSTGRES:
        from ..dsn.postgres import read_postgres

        return driver, read_postgres(name, dsn)
    from ..dsn.sqlite import parse_sqlite

    return driver, parse_sqlite(dsn)


def _secret_text(path: str) -> str:
    """Return what a file holds that nobody but this user, or root, can read or write; a link to it is followed.

    :raises ConfigError: when others can, or it cannot be read.
    """
    shown = "its value (not shown here)" if looks_like_dsn(path) else path
    hint = "name a file with a DSN a line, which only this user can read"
    try:
        with os.fdopen(open_regular(os.path.realpath(path)), "rb") as file:
            _require_secret(shown, os.fstat(file.fileno()))
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise ConfigError(f"--dsn-file: {shown} has more than {MOST_BYTES >> 20} MB", hint)
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"--dsn-file: {shown} is no text in UTF-8", hint) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"--dsn-file: {shown}: {getattr(error, 'strerror', None) or 'no path'}", hint) from None


def _require_secret(shown: str, status: os.stat_result) -> None:
    if status.st_uid not in trusted_owners():
        fact = f"--dsn-file: {shown} belongs to {owner_name(status.st_uid)}, who can read it"
        raise ConfigError(fact, "it holds passwords: make it this user's, and chmod 600")
    if status.st_mode & _READABLE_BY_OTHERS or others_can_write(status):
        done = "read" if status.st_mode & _READABLE_BY_OTHERS else "write"
        raise ConfigError(
            f"--dsn-file: other users can {done} {shown}", "it holds passwords: chmod 600, and change them"
        )


def _settings(driver: str, dsn: str, origin: str, config: str | None) -> Settings:
    """Return the environment's settings for another database than its own."""
    settings = read_settings(SimpleNamespace(driver=driver, dsn=dsn, config=config))
    origins = {**settings.origins, "dsn": origin, "driver": origin}
    return replace(settings, replica_dsn=None, origins=origins)


# Schemas


def is_meant_by(pattern: str, name: str) -> bool:
    """Tell whether a glob pattern matches a schema's name, in its own case."""
    return fnmatch.fnmatchcase(name, pattern)


def schema_targets(settings: Settings, paths: Sequence[SchemaPath]) -> Iterator[Target]:
    """Yield a target for each schema of the database of settings; its sessions begin in that schema."""
    from ..connection.own_database import dsn_of

    target = settings.target
    assert isinstance(target, PostgresTarget)
    database = describe(target)
    for path in paths:
        dsn = dsn_of(PostgresTarget({**target.arguments, "options": path.in_options}))
        yield Target("schema", path.schema, POSTGRES, database, replace(settings, dsn=dsn, replica_dsn=None), path)


@dataclass(frozen=True)
class Subject:
    """What a run over many is about."""

    targets: Sequence[Target]
    models: Sequence[Model]
    settings: Settings
    waits: tuple[float, float]
    shared: Pooling | None = None  # the one database of all schemas
