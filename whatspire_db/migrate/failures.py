"""A migration's failure in the engine -> an error that says what was kept and what to do."""

from __future__ import annotations

from ..errors import LONGEST, RightMissing, StepFailed
from ..messages import NOTHING_CHANGED, first_line, is_locked, sqlstate
from ..messages import hint as hint_for
from .plan import Plan, Step
from .undo_plan import UndoPlan

SHOWN = 3  # statements, and titles


# The server lacks something, a lock was waited for in vain, or somebody ended the session.
_NO_CHANGE = ("08", "25", "53", "54", "55", "57", "58")


def can_be_of_a_change(error: BaseException) -> bool:
    """Return whether a look can have failed because another session changed the schema meanwhile."""
    cause = error.__cause__ or error
    return not (is_locked(cause) or (sqlstate(cause) or "").startswith(_NO_CHANGE))


def right_missing(plan: Plan | UndoPlan, fact: str, hint: str) -> RightMissing:
    """Return the error for a plan that somebody else has to carry out, with its statements where they are few."""
    if not plan.pending:
        return RightMissing(f"the run cannot be recorded: {fact}", hint)
    titles = [step.title for step in plan.pending]
    more = f" and {len(titles) - SHOWN} more" if len(titles) > SHOWN else ""
    return RightMissing(
        f"pending: {', '.join(titles[:SHOWN])}{more}, but {fact}",
        f"{hint}; or let somebody who has the right run: {_statements(plan)}",
    )


def _statements(plan: Plan | UndoPlan) -> str:
    """Return a plan's statements, or the command that prints them where they are many or long."""
    statements = [f"{sql};" for step in plan.pending for sql in step.sql]
    text = " ".join(statements)
    if len(statements) > SHOWN or len(text) > LONGEST - 200:
        return f"what `python -m whatspire_db.migrate {plan.command} --sql` prints"
    return text


def step_failed(step: Step, error: Exception) -> StepFailed:
    """Return the error for a step of the transaction."""
    text = first_line(error)
    return StepFailed(f"{step.title} failed and everything was rolled back: {text}", hint_for(error, NOTHING_CHANGED))


def online_step_failed(step: Step, error: Exception) -> StepFailed:
    """Return the error for a step after the transaction."""
    remedy = hint_for(error, "correct what the database names and try again")
    return StepFailed(
        f"{step.title} failed, and what was applied before it stays: {first_line(error)}",
        f"{remedy}; the next run goes on from there",
    )
