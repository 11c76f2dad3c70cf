"""Statements to the log, at the levels of GORM: silent, error, warn (and what is slow), info (all)."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ..light_stdlib import Any, dataclass
from .call_site import call_site

logger = logging.getLogger("whatspire_db")

LONGEST_STATEMENT, LONGEST_PARAMETERS = 10_000, 1000  # characters: insert_many makes statements of a megabyte


@dataclass(frozen=True)
class QueryLog:
    """What of the statements is logged; what they carry of the rows only if that is asked for."""

    level: str = "warn"
    slow_seconds: float = 0.2  # 0: nothing is slow
    parameters: bool = False

    def done(self, sql: str, parameters: Sequence[Any] | None, seconds: float, rows: int) -> None:
        """Log a statement that succeeded; `rows` is the driver's count, -1 where it knows none."""
        if self.level in ("silent", "error"):
            return
        slow = 0 < self.slow_seconds <= seconds
        if slow or self.level == "info":
            line = f"{seconds * 1000:.1f} ms, {rows if rows >= 0 else '-'} rows: {self._shown(sql, parameters)}"
            if slow:
                logger.warning("slow, %s (at %s)", line, call_site())
            else:
                logger.info("%s", line)

    def failed(self, sql: str, parameters: Sequence[Any] | None, seconds: float, error: BaseException) -> None:
        """Log a statement that failed, with the kind of the error and not its text, which may repeat a row."""
        if self.level != "silent":
            shown = self._shown(sql, parameters)
            logger.error("failed after %.1f ms with %s: %s (at %s)", seconds * 1000, _kind(error), shown, call_site())

    def _shown(self, sql: str, parameters: Sequence[Any] | None) -> str:
        if not isinstance(sql, str):  # the driver's bytes and compositions, which can have values in them
            return f"({type(sql).__name__})"
        text = _cut(" ".join(sql.split()), LONGEST_STATEMENT)
        if not self.parameters or not parameters:
            return text
        return f"{text} with {_cut(repr(list(parameters)), LONGEST_PARAMETERS)}"


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[:longest]}..."


def _kind(error: BaseException) -> str:
    """Name a driver's error: its class or SQLite's name for it, SQLSTATE, and the constraint, none of which is data."""
    original = getattr(error, "orig", error)
    diagnostics = getattr(original, "diag", None)
    found = [
        getattr(original, "sqlite_errorname", None),
        getattr(original, "pgcode", None),
        getattr(diagnostics, "constraint_name", None),
    ]
    details = ", ".join(str(item) for item in found if item)
    return type(original).__name__ + (f" ({details})" if details else "")
