"""The verbs of the migrator but for up: those that only look, and undo."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import RightMissing, printable
from ..light_stdlib import replace
from ..migrate.added import in_words
from ..migrate.diff import Changes, Drift
from ..migrate.history import MigrationStatus
from ..migrate.plan import Plan, number_of_steps
from ..migrate.runner import MigrationRunner
from ..migrate.stamp import ForeignHistory
from . import tables
from .call import OK, Answer, Call
from .migrate import PENDING, REFUSED, is_many
from .undo import answer as undo
from .undo import outlook, refusals, said_of

if TYPE_CHECKING:
    from ..data import DataState
    from ..migrate.mending import Mending
    from ..transfer.fence import Fence


def _moved(fence: Fence | None) -> tuple[dict[str, Any], list[str]]:
    """Return what a document and the first lines say of a database whose rows were moved to another one."""
    return ({"moved": fence.to_json()}, [fence.fact, f"    hint: {fence.hint}"]) if fence else ({}, [])


def _plan(runner: MigrationRunner, call: Call) -> Answer:
    plan = runner.plan()
    moved, first = _moved(runner.fence())
    notes = [*map(str, plan.renamed), *(f"note: {note}" for note in plan.notes)]
    heading = [f"-- {printable(line)}" for line in (call.line, *notes)]
    left = [state for state in runner.data_states() if state.is_left]
    told = [f"data migration {state}" for state in left]
    if call.options.sql:
        shown = [*heading, plan.sql().rstrip("\n")] if plan.sql() else [f"-- {printable(line)}" for line in first]
        shown = shown or refusals(call, plan.refused) or heading * bool(told)
        lines = [*shown, *(f"-- {line}" for line in told)]
    else:
        shown = _plan_table(plan) if tables.is_terminal() and plan.pending else [str(plan)]
        lines = [*first[:1], call.line, *(shown if plan or not told else []), *told]  # the plan has the hint
    code = REFUSED if plan.refused else PENDING if plan.pending or left else OK
    document = moved | plan.to_json() | _data_document(runner, left)
    return Answer(call.named(document), lines, code, wanted=call.options.sql)


def _data_document(runner: MigrationRunner, states: Sequence[DataState]) -> dict[str, Any]:
    return {"data": [state.to_json() for state in states]} if runner.data else {}


def _verify(runner: MigrationRunner, call: Call) -> Answer:
    wants_sql, wants_json = call.options.sql, call.options.json
    written = _pictured(runner, call) if call.options.html else None
    mending = written or (runner.mending() if wants_sql or wants_json else None)
    changes = mending.changes if mending else runner.verify_schema()
    times = () if wants_sql and not wants_json else runner.time_notes()
    moved, first = _moved(runner.fence())
    document = {
        **moved,
        "version": _version_for(runner) if wants_json else None,  # its table may be closed to this role
        "missing": [item.to_json() for item in changes.missing],
        "drift": [
            *(item.to_json() | ({"sql": mending.of(item)} if mending else {}) for item in changes.drift),
            *(item.to_json() | {"accepted": True} for item in changes.accepted),
        ],
        "extra": [item.to_json() for item in changes.extra],
        "times": [note.to_json() for note in times],
        **({"renamed": [renaming.to_json() for renaming in changes.renamed]} if changes.renamed else {}),
        **({"html": call.options.html} if written else {}),
    }
    code = REFUSED if changes.drift else PENDING if changes.missing else OK
    shown = _verify_table(changes) if tables.is_terminal() else [_shown(changes)]
    lines = [*first, call.line, *shown, *map(str, changes.renamed), *(f"note: {note}" for note in times)]
    if wants_sql:
        lines = [*(f"-- {printable(line)}" for line in (*first, call.line)), str(mending)]
    elif written:
        lines.append(f"written: {call.options.html}")
    return Answer(call.named(document), lines, code, wanted=wants_sql)


def _pictured(runner: MigrationRunner, call: Call) -> Mending:
    """Write the picture of --html, and return what differs in it."""
    from ..diagram.drawing import of_both  # not for a look without a picture
    from ..diagram.page import page
    from ..diagram.writing import write_whole

    comparison = runner.comparison()
    write_whole(call.options.html, page(of_both(comparison, f"{call.driver} {call.database}", runner.fence())))
    return comparison.mending


def _version_for(runner: MigrationRunner) -> int | None:
    """Return the recorded version; None where another program made its table, or a policy hides its rows."""
    try:
        return runner.version()
    except (ForeignHistory, RightMissing):
        return None


def _shown(changes: Changes) -> str:
    lines = [str(item) for group in (changes.missing, changes.drift) for item in group]
    lines += [f"accepted {item}" for item in changes.accepted]
    lines += [str(item) for item in changes.extra]
    lines += [f"note: accepted, and not there: {Drift(*facts)}" for facts in changes.outdated]
    if changes:
        return "\n".join(lines)
    return "\n".join(["in sync", *lines])


def _verify_table(changes: Changes) -> list[str]:
    """Return the differences as a table, one a row, the state first."""
    rows = [
        *(("missing", m.kind, m.place, "", "") for m in changes.missing),
        *(("drift", *_drift_cells(d)) for d in changes.drift),
        *(("accepted", *_drift_cells(d)) for d in changes.accepted),
        *(("extra", e.kind, e.place, "", "") for e in changes.extra),
    ]
    lines = tables.aligned(("state", "what", "where", "declared", "live"), rows) if rows else []
    lines += [f"note: {extra}" for extra in changes.extra if extra.is_proof]  # which says what it does to writers
    lines += [f"note: accepted, and not there: {Drift(*facts)}" for facts in changes.outdated]
    return lines if changes else ["in sync", *lines]


def _drift_cells(drift: Drift) -> tuple[str, str, str, str]:
    return drift.kind.replace("_", " "), drift.place, drift.declared or "none", drift.live or "none"


def _plan_table(plan: Plan) -> list[str]:
    """Return a plan with its steps as a table, and their statements below it by the steps' numbers."""
    steps = [(str(n), step.title, step.lock, str(step.cost)) for n, step in enumerate(plan.pending, 1)]
    rest = replace(plan, pending=())
    others = str(rest) if rest.refused or rest.drift or rest.renamed or rest.notes or rest.left else ""
    heading = f"pending: {number_of_steps(len(plan.pending))}"
    table = tables.aligned(("step", "what", "lock", "cost"), steps, "  ")
    sql = [f"  {n}. {sql};" for n, step in enumerate(plan.pending, 1) for sql in step.sql]
    return [heading, *table, "statements", *sql, *([others] if others else [])]


def _run_table(runs: Sequence[MigrationStatus]) -> list[str]:
    rows = [
        (
            str(run.version),
            f"{run.applied_at:%Y-%m-%d %H:%M:%S} UTC" if run.applied_at else "-",
            run.name,
            in_words(run.added) if run.added is not None else "",
            str(run.undone_by or ""),
        )
        for run in runs
    ]
    return tables.aligned(("version", "applied at", "run", "added", "undone by"), rows)


def _status(runner: MigrationRunner, call: Call) -> Answer:
    runs = runner.status()
    plan = runner.plan() if runner.check().missing else Plan(runner.engine.name, 0)  # a stamp saves the full look
    outcome, undo_lines = ({}, []) if is_many(call.options) else outlook(runner)
    moved, first = _moved(runner.fence())
    document = {
        **moved,
        "version": max((run.version for run in runs), default=0),
        "runs": [run.to_json() for run in runs],
        "pending": [step.to_json() for step in plan.pending],
        **({"refused": [refusal.to_json() for refusal in plan.refused]} if plan.refused else {}),
        **_data_document(runner, states := runner.data_states()),
        **outcome,
    }
    lines = [*first, call.line, *(_run_table(runs) if tables.is_terminal() and runs else _run_lines(runs))]
    lines += [f"data migration {state}" for state in states]
    lines += [f"pending: {step.title}" for step in plan.pending]
    if plan.refused:
        lines.append(f"refused: {len(plan.refused)}, see plan")
    if not (plan or any(state.is_left for state in states)):
        lines.append("nothing is pending")
    return Answer(call.named(document), lines + undo_lines)


def _run_lines(runs: Sequence[MigrationStatus]) -> Iterator[str]:
    if not runs:
        yield "no run is recorded yet"
        return
    width = max(len(str(run.version)) for run in runs)
    yield f"{'version':<{width}}  {'applied at':<23}  run"
    for run in runs:
        applied_at = f"{run.applied_at:%Y-%m-%d %H:%M:%S} UTC" if run.applied_at else "-"
        yield f"{run.version:<{width}}  {applied_at:<23}  {run.name}{said_of(run)}"


def _version(runner: MigrationRunner, call: Call) -> Answer:
    version = runner.version()
    return Answer(call.named({"version": version}), [str(version)], wanted=True)


ANSWERS: dict[str, Callable[[MigrationRunner, Call], Answer]] = {
    "plan": _plan,
    "verify": _verify,
    "status": _status,
    "version": _version,
    "undo": undo,
}
