"""What the database said -> an error that says what to do."""

from __future__ import annotations

from ..errors import RightMissing, StepFailed, WhatspireDBError
from .engines import sqlstate
from .plan import Plan, Step

_HINTS = {
    "permission denied": "use a role that owns the tables and may create others",
    "must be owner": "use a role that owns the tables",
    "readonly": "give this user the right to write the file and its folder",
    "read-only": "connect to the primary, or to a database that can be written",
    "not a database": "point WHATSAPP_DATABASE_DSN at the database, or move the file away",
    "locked": "find who writes to it for that long, or try again when it is quiet",
    "already exists": "something of that name stands there; rename it, or the declared one",
    "could not create unique index": "rows were written meanwhile that share their value; plan tells how to find them",
    "disk": "make room on the disk and try again",
    "No space": "make room on the disk and try again",
}


def is_right_missing(error: BaseException) -> bool:
    """Tell whether a statement failed because this role, server or file may not be written."""
    # 42501 insufficient_privilege, 25006 read_only_sql_transaction; SQLite says it in words.
    return sqlstate(error) in ("42501", "25006") or "attempt to write a readonly database" in str(error)


def is_there_already(error: BaseException) -> bool:
    """Tell whether a statement failed because something of that name stands there."""
    return sqlstate(error) == "42P07"  # duplicate_table, which an index counts as


def right_missing(plan: Plan, fact: str, hint: str | None = None) -> RightMissing:
    """Return the error for a plan that somebody else has to carry out, with its statements where they are few."""
    if not plan.pending:
        return RightMissing(f"the run cannot be recorded: {fact}", hint or _hint(fact))
    titles = [step.title for step in plan.pending]
    more = f" and {len(titles) - 3} more" if len(titles) > 3 else ""
    statements = [f"{sql};" for step in plan.pending for sql in step.sql]
    shown = "what `python -m whatspire_db.migrate plan --sql` prints" if len(statements) > 3 else " ".join(statements)
    return RightMissing(
        f"pending: {', '.join(titles[:3])}{more}, but {fact}",
        f"{hint or _hint(fact)}; or let somebody who has the right run: {shown}",
    )


def step_failed(step: Step, error: Exception) -> StepFailed:
    """Return the error for a step of the transaction."""
    text = first_line(error)
    return StepFailed(f"{step.title} failed and everything was rolled back: {text}", _hint(text))


def online_step_failed(step: Step, error: Exception) -> StepFailed:
    """Return the error for a step after the transaction."""
    text = first_line(error)
    hint = _hint(text, "correct what the database names and try again") + "; the next run goes on from there"
    return StepFailed(f"{step.title} failed, and what was applied before it stays: {text}", hint)


def database_failed(error: Exception) -> WhatspireDBError:
    """Return the error for a question that the database did not answer."""
    text = first_line(error)
    return WhatspireDBError(f"the database failed: {text}", _hint(text))


def first_line(error: BaseException) -> str:
    """Return what an error says, without the lines that can repeat values of a row."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _hint(text: str, default: str = "nothing was changed; correct what the database names and try again") -> str:
    return next((hint for mark, hint in _HINTS.items() if mark in text), default)
