"""SQLite's connection strings, as the Go service takes them, into targets."""

from __future__ import annotations

import re

from ..errors import ConfigError
from ..light_stdlib import lazy_module, replace
from .targets import SqliteTarget

redaction = lazy_module("whatspire_db.dsn.redaction")  # for messages

# What the Go driver for SQLite (mattn/go-sqlite3) reads from a DSN, long and short form: the pragma it sets.
SQLITE_PRAGMAS = {
    "_auto_vacuum": "auto_vacuum",
    "_vacuum": "auto_vacuum",
    "_busy_timeout": "busy_timeout",
    "_timeout": "busy_timeout",
    "_cache_size": "cache_size",
    "_case_sensitive_like": "case_sensitive_like",
    "_cslike": "case_sensitive_like",
    "_defer_foreign_keys": "defer_foreign_keys",
    "_defer_fk": "defer_foreign_keys",
    "_foreign_keys": "foreign_keys",
    "_fk": "foreign_keys",
    "_ignore_check_constraints": "ignore_check_constraints",
    "_journal_mode": "journal_mode",
    "_journal": "journal_mode",
    "_locking_mode": "locking_mode",
    "_locking": "locking_mode",
    "_query_only": "query_only",
    "_recursive_triggers": "recursive_triggers",
    "_rt": "recursive_triggers",
    "_secure_delete": "secure_delete",
    "_synchronous": "synchronous",
    "_sync": "synchronous",
    "_writable_schema": "writable_schema",
}
BOOLEANS = "0|1|no|yes|false|true|off|on"
PRAGMA_VALUES = {
    "auto_vacuum": "0|1|2|none|full|incremental",
    "busy_timeout": "[0-9]{1,9}",
    "cache_size": "-?[0-9]{1,9}",
    "journal_mode": "delete|truncate|persist|memory|wal|off",
    "locking_mode": "normal|exclusive",
    "secure_delete": BOOLEANS + "|fast",
    "synchronous": "0|1|2|3|off|normal|full|extra",
}
# SQLite's own, https://www.sqlite.org/uri.html
URI_PARAMETERS = {
    "mode": "ro|rw|rwc|memory",
    "cache": "shared|private",
    "immutable": BOOLEANS,
    "nolock": BOOLEANS,
    "psow": BOOLEANS,
    "modeof": ".+",
    "vfs": r"[\w-]+",
}
WITHOUT_EFFECT = {("mode", "rwc"), ("cache", "shared"), ("cache", "private")}
# How a transaction begins. The Go driver's own default is deferred; but such a transaction, when it reads and then
# writes, fails with "database is locked" as soon as another has written in between, without waiting.
SQLITE_LOCK_TYPES = "deferred|immediate|exclusive"
# Also read by the Go driver, without a meaning here: times, for example, are always UTC.
SQLITE_IGNORED = frozenset({"_loc", "_mutex", "_stmt_cache_size"})


def parse_sqlite(dsn: str) -> SqliteTarget:
    """Read a path or a `file:` URI, either with the Go driver's `?_option=value` parameters.

    :raises ConfigError: for a parameter that neither the Go driver nor SQLite knows, or a value that it does not take.
    """
    base, _, query = dsn.partition("?")
    is_uri = base[:5].lower() == "file:"
    pragmas: dict[str, str] = {}
    lock_type = SqliteTarget.lock_type
    kept: list[str] = []
    for pair in filter(None, query.split("&")):
        key, _, value = pair.partition("=")
        if key in SQLITE_PRAGMAS:
            pragma = SQLITE_PRAGMAS[key]
            wanted = _checked(key, value, PRAGMA_VALUES.get(pragma, BOOLEANS))
            if pragmas.setdefault(pragma, wanted).lower() != wanted.lower():  # the Go driver takes the first of the two
                raise ConfigError(f"the SQLite DSN gives {pragma} two values", f"leave one of them out, like {key}")
        elif key == "_txlock":
            lock_type = _checked(key, value, SQLITE_LOCK_TYPES).upper()
        elif key in URI_PARAMETERS:
            kept += _uri_parameter(key, value, pair, is_uri)
        elif key not in SQLITE_IGNORED and not key.startswith("_auth"):
            raise _unknown_parameter(key, query)
    place = _sqlite_uri(base, kept) if is_uri else _sqlite_path(base)
    return replace(place, pragmas=pragmas, lock_type=lock_type)


def _uri_parameter(key: str, value: str, pair: str, is_uri: bool) -> list[str]:
    """Return a parameter of SQLite's own; the Go driver drops it from a path, which is refused where it matters."""
    _checked(key, value, URI_PARAMETERS[key])
    if is_uri:
        return [pair]
    if (key, value) not in WITHOUT_EFFECT:
        raise ConfigError(f"the SQLite DSN has {key}, which counts only in a URI", f"write file:PATH?{key}=...")
    return []


def _unknown_parameter(key: str, query: str) -> ConfigError:
    if key == "_pragma":  # the form of another Go driver
        written = re.findall(r"(?:^|&)_pragma=(\w+)(?:\(|=|%28)'?([\w-]+)", query)
        instead = "&".join(f"_{name}={value}" for name, value in written if f"_{name}" in SQLITE_PRAGMAS)
        return ConfigError(
            "the SQLite DSN has _pragma, which is another driver's form",
            f"write {instead or '_foreign_keys=1 for foreign_keys(1), and so on'}",
        )
    from difflib import get_close_matches  # only for the message

    known = [*SQLITE_PRAGMAS, "_txlock", *URI_PARAMETERS]
    near = get_close_matches(key, known, n=1)
    named = key if re.fullmatch("[a-z_]{1,30}", key) else redaction.shown(key)
    hint = f"did you mean {near[0]}?" if near else f"known ones are {', '.join(sorted(known))}"
    return ConfigError(f"the SQLite DSN has an unknown parameter {named}", hint)


def _sqlite_path(base: str) -> SqliteTarget:
    return SqliteTarget(base, None if base == ":memory:" else base)


def _sqlite_uri(base: str, kept: list[str]) -> SqliteTarget:
    from urllib.parse import parse_qsl, unquote  # not for a path

    base = "file:" + base[5:]  # SQLite knows the scheme in small letters only
    options = dict(parse_qsl("&".join(kept), keep_blank_values=True))
    path: str | None = unquote(re.sub(r"^file:(//(localhost)?(?=/))?", "", base.partition("#")[0]))
    if path in ("", ":memory:") or options.get("mode") == "memory":
        path = None
    uri = base + ("?" + "&".join(kept) if kept else "")
    read_only = options.get("mode") == "ro" or options.get("immutable", "").lower() in ("1", "true", "on", "yes")
    return SqliteTarget(uri, path, uri=True, read_only=read_only)


def _checked(key: str, value: str, takes: str) -> str:
    from urllib.parse import unquote

    value = unquote(value)
    if not re.fullmatch(takes, value, re.IGNORECASE | re.ASCII):
        raise ConfigError(
            f"the SQLite DSN gives {key} the value {redaction.shown(value)}", f"it takes {takes.replace('|', ', ')}"
        )
    return value
