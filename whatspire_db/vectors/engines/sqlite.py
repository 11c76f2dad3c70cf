"""SQLite: the functions that a search calls, by sqlite-vec, by numpy or in plain Python, with the same results."""

from __future__ import annotations

import ctypes
import logging
import math
import os
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from importlib import import_module
from operator import mul
from types import ModuleType
from typing import Any

import peewee
from peewee import sqlite3

from ..metrics import COSINE, INNER_PRODUCT, L2, METRICS, Metric

logger = logging.getLogger("whatspire_db")
INSTALL = "pip install 'whatspire-db[vector]'"

SUFFIXES = (".so", ".dylib", ".dll", "")  # which SQLite adds to a path by itself
_PROOF = "SELECT vec_version()"
_PRESENT = f"SELECT {COSINE.function}(NULL, NULL)"


def function_for(db: peewee.SqliteDatabase, metric: Metric, is_half: bool) -> str:
    """Return the SQL function for a distance; the connection of this thread has it afterwards."""
    connection = db.connection()
    if not _takes(connection, _PRESENT):
        _load_extension(connection)
        add_functions(connection)
    if metric.extension and not is_half and _takes(connection, _PROOF):
        return metric.extension
    return metric.function + ("_half" if is_half else "")


def accelerator(db: peewee.SqliteDatabase) -> str:
    """Return what computes the cosine distances of a database: sqlite-vec, numpy or python."""
    if function_for(db, COSINE, False) == COSINE.extension:
        return "sqlite-vec"
    return "numpy" if _numpy() else "python"


def _takes(connection: Any, sql: str) -> bool:
    """Return whether a connection knows the functions of a query; nothing is kept that could be wrong later."""
    try:
        connection.execute(sql).fetchone()
        return True
    except sqlite3.OperationalError:
        return False


def _load_extension(connection: Any) -> None:
    """Load sqlite-vec into a connection, where it is installed and Python can load it."""
    try:
        extension = import_module("sqlite_vec")
    except ImportError:
        return
    if hasattr(connection, "enable_load_extension"):
        with suppress(sqlite3.Error):
            connection.enable_load_extension(True)
            try:
                connection.load_extension(extension.loadable_path())
            finally:
                connection.enable_load_extension(False)
    else:
        _load_from_now_on(extension.loadable_path())


@cache
def _load_from_now_on(path: str) -> None:
    """Let SQLite give the extension to the connections of this process that are opened later.

    That is for a Python that was built without `enable_load_extension`; connections that are open use numpy or Python.
    """
    root = peewee.sqlite3.__name__.partition(".")[0]
    with suppress(ImportError, OSError, AttributeError, StopIteration):
        module = import_module("_sqlite3" if root == "sqlite3" else f"{root}._sqlite3")
        library = ctypes.CDLL(getattr(module, "__file__", None))
        entry = ctypes.CDLL(next(found for end in SUFFIXES if os.path.exists(found := path + end))).sqlite3_vec_init
        library.sqlite3_auto_extension(ctypes.cast(entry, ctypes.c_void_p))


def add_functions(connection: Any) -> None:
    """Give a connection our own functions."""
    numpy = _numpy()
    if numpy is None and not _takes(connection, _PROOF):
        _say_slow()
    for metric in METRICS.values():
        for suffix, is_half in (("", False), ("_half", True)):
            function = partial(_distance, _by_numpy(numpy, is_half) if numpy else _by_python(is_half), metric.name)
            connection.create_function(metric.function + suffix, 2, function, deterministic=True)


@cache
def _say_slow() -> None:
    logger.warning("distances are computed in plain Python, about eight times slower than by sqlite-vec: %s", INSTALL)


def _numpy() -> ModuleType | None:
    try:
        return import_module("numpy")
    except ImportError:
        return None


@dataclass(frozen=True, eq=False)  # compared as one object: a row in a search asks for it each time
class _Arithmetic:
    """What computes with stored vectors, in double precision."""

    read: Callable[[bytes], Any]
    dot: Callable[[Any, Any], float]
    length: Callable[[Any], float]
    apart: Callable[[Any, Any], float]


def _distance(by: _Arithmetic, metric: str, stored: Any, given: Any) -> float | None:
    """Return a distance in double precision; None for NULL, and where it has no value."""
    if not isinstance(stored, bytes) or not isinstance(given, bytes):
        return None
    if len(stored) != len(given):
        raise ValueError("different dimensions")
    one, (other, length) = by.read(stored), _kept(by, given)
    if metric == L2.name:
        return by.apart(one, other)
    product = by.dot(one, other)
    if metric == INNER_PRODUCT.name:
        return -product
    lengths = by.length(one) * length
    cosine = product / lengths if lengths else math.nan
    return None if math.isnan(cosine) else 1.0 - max(-1.0, min(1.0, cosine))  # NaN is neither more nor less than 1


@lru_cache(maxsize=4)
def _kept(by: _Arithmetic, given: bytes) -> tuple[Any, float]:
    """Return the vector that is searched for, which every row is compared with, and its length."""
    vector = by.read(given)
    return vector, by.length(vector)


@cache
def _by_numpy(numpy: Any, is_half: bool) -> _Arithmetic:
    stored, double, dot = numpy.dtype("<f2" if is_half else "<f4"), numpy.dtype("f8"), numpy.dot

    def length(one: Any) -> float:
        return math.sqrt(dot(one, one))

    return _Arithmetic(
        read=lambda value: numpy.frombuffer(value, stored).astype(double),
        dot=lambda one, other: float(dot(one, other)),
        length=length,
        apart=lambda one, other: length(one - other),
    )


@cache
def _by_python(is_half: bool) -> _Arithmetic:
    letter, size = ("e", 2) if is_half else ("f", 4)

    def dot(one: Sequence[float], other: Sequence[float]) -> float:
        return sum(map(mul, one, other))

    return _Arithmetic(
        read=lambda value: struct.unpack(f"<{len(value) // size}{letter}", value),
        dot=getattr(math, "sumprod", dot),  # from Python 3.12 on
        length=lambda one: math.hypot(*one),
        apart=math.dist,
    )
