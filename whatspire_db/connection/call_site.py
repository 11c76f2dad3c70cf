"""Where in the caller's own code something was asked for."""

from __future__ import annotations

import contextlib
import os
import sys
from functools import lru_cache
from types import CodeType

import peewee

from ..light_stdlib import dataclass

_LIBRARIES = (
    os.path.dirname(__file__) + os.sep,
    os.path.join(os.path.dirname(peewee.__file__), "playhouse", ""),
    peewee.__file__,
    contextlib.__file__,
)


@dataclass(frozen=True)
class CallSite:
    """A line of code; it prints itself as file:line in function."""

    code: CodeType
    line: int

    def __str__(self) -> str:
        return f"{self.code.co_filename}:{self.line} in {self.code.co_name}"


@lru_cache(maxsize=1024)
def _is_library(filename: str) -> bool:
    return filename.startswith(_LIBRARIES)


def call_site() -> CallSite:
    """Return the innermost line outside of this package and of Peewee; the outermost where there is none."""
    frame = sys._getframe(1)
    while _is_library(frame.f_code.co_filename) and frame.f_back is not None:
        frame = frame.f_back
    return CallSite(frame.f_code, frame.f_lineno)
