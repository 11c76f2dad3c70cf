"""The verb undo of the migrator, and what status says of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..dsn.redaction import shown
from ..errors import ConfigError, DatabaseMoved, WhatspireDBError, printable
from ..migrate.added import in_words
from ..migrate.history import MigrationStatus
from ..migrate.plan import Refusal
from ..migrate.undo_plan import UndoPlan, UndoReport, undone
from .call import OK, Answer, Call, say, symbol

if TYPE_CHECKING:
    from ..migrate.runner import MigrationRunner

PENDING, REFUSED = 3, 4
DIGITS = 18  # of a version, which is a number of 64 bits


def answer(runner: MigrationRunner, call: Call) -> Answer:
    """Undo what the options say, or show what that would do."""
    options = call.options
    to = _version(options.to)
    if options.plan or options.sql:
        return _shown(runner.undo_plan(to, with_data=options.with_data), call)
    if not (options.quiet or options.json):
        say("🔄", "Undoing database migrations...")
    report = runner.undo(to, with_data=options.with_data)
    return Answer(call.named(report.to_json()), list(_report(report)))


def _version(text: str | None) -> int | None:
    """Read a version.

    :raises ConfigError: when it is none.
    """
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= DIGITS):
        raise ConfigError(
            f"--to is {shown(text)}", "it takes a version that status lists, or 0 for all that is recorded"
        )
    return int(text)


def _shown(plan: UndoPlan, call: Call) -> Answer:
    heading = [f"-- {printable(line)}" for line in (call.line, plan.title, *(f"note: {note}" for note in plan.notes))]
    script = [*heading, plan.sql().rstrip("\n")] if plan.sql() else refusals(call, plan.refused)
    lines = script if call.options.sql else [call.line, str(plan)]
    code = REFUSED if plan.refused else PENDING if plan else OK
    return Answer(call.named(plan.to_json()), lines, code, wanted=call.options.sql)


def refusals(call: Call, refused: Sequence[Refusal]) -> list[str]:
    """Return, as comments of a script that has no statements, why it has none."""
    said = [line for refusal in refused for line in f"refused: {refusal}".splitlines()]
    return [f"-- {printable(line)}" for line in (call.line, *said)] if said else []


def _report(report: UndoReport) -> Iterator[str]:
    for step in report.undone:
        yield f"   {step.title}"
    for note in report.notes:
        yield f"note: {note}"
    if report.runs:
        yield symbol("✅", f"{undone(report.runs).capitalize()} recorded: version {report.version}")
    else:
        yield symbol("✅", "Nothing to undo")


def outlook(runner: MigrationRunner) -> tuple[dict[str, Any], list[str]]:
    """Return what an undo would do now, for the document and the lines of status; nothing where it has nothing to do.

    Where that cannot be found out, status has its say without it.
    """
    try:
        plan = runner.undo_plan(counts=False)  # status is asked for often
    except DatabaseMoved:  # which status says itself
        return {}, []
    except WhatspireDBError as error:
        return {"undo": {"error": error.fact, "hint": error.hint}}, [f"undo: {error.fact}"]
    notes = [f"note: {note}" for note in plan.notes]
    if not (plan or notes):
        return {}, []
    facts = plan.to_json()
    document = {"undo": {name: facts[name] for name in ("runs", "pending", "refused", "notes")}}
    if plan.refused:
        return document, [f"{plan.title} is refused: {plan.refused[0].reason}", *notes]
    steps = [f"   {step.title}" for step in plan.pending]
    if plan:
        steps = [f"{plan.title} would do this:", *steps] if steps else [f"{plan.title}: nothing of it is left"]
    return document, [*steps, *notes]


def said_of(run: MigrationStatus) -> str:
    """Return what a run added, and by which it was undone; nothing where nobody recorded that."""
    if run.added is None:
        return ""
    return f": added {in_words(run.added)}" + (f", undone by {run.undone_by}" if run.undone_by else "")
