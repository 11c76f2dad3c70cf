"""What an undo would do and what it did, as values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .plan import Refusal, Step, number_of_steps


@dataclass(frozen=True)
class UndoPlan:
    """What an undo would do; falsy when there is nothing to do. str() shows it, `to_json` gives plain data.

    `runs` are the versions of the runs that it takes back, the newest first; 0 is one that did not finish.
    """

    command = "undo --plan"

    driver: str
    version: int
    runs: tuple[int, ...] = ()
    pending: tuple[Step, ...] = ()
    refused: tuple[Refusal, ...] = ()
    notes: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()  # at the head of a script, so that it means the same in every session

    def __bool__(self) -> bool:
        return bool(self.runs)

    @property
    def title(self) -> str:
        """Which runs it takes back."""
        return undone(self.runs)

    @property
    def at_once(self) -> tuple[Step, ...]:
        """The steps that are done in one transaction."""
        return tuple(step for step in self.pending if not step.online)

    @property
    def online(self) -> tuple[Step, ...]:
        """The steps that come before the transaction, each by itself."""
        return tuple(step for step in self.pending if step.online)

    def __str__(self) -> str:
        sections = [
            (f"pending: {number_of_steps(len(self.pending))}", self.pending),
            ("refused: nothing will be undone until this is solved", self.refused),
        ]
        lines = [f"{title}\n" + "\n".join(f"  {item}" for item in items) for title, items in sections if items]
        if self.runs and not lines:
            lines = ["nothing of it is left; undo records that"]
        notes = [f"note: {note}" for note in self.notes]
        return "\n".join([self.title, *lines, *notes])

    def sql(self) -> str:
        """Return the statements alone, ready for the engine's own shell; nothing when refused.

        What is done online comes first; the rest is one transaction.
        """
        if self.refused or not self.pending:
            return ""
        at_once, online = ([f"{sql};\n" for step in steps for sql in step.sql] for steps in (self.at_once, self.online))
        settings = [f"{sql};\n" for sql in self.settings]
        return "".join([*settings, *online, *(["BEGIN;\n", *at_once, "COMMIT;\n"] if at_once else [])])

    def to_json(self) -> dict[str, Any]:
        return {
            "driver": self.driver,
            "version": self.version,
            "runs": list(self.runs),
            "pending": [step.to_json() for step in self.pending],
            "refused": [refusal.to_json() for refusal in self.refused],
            "notes": list(self.notes),
        }


def undone(runs: tuple[int, ...]) -> str:
    """Return in words which runs are taken back."""
    if not runs:
        return "nothing to undo"
    names = ", ".join(str(run) if run else "the one that did not finish" for run in runs)
    return f"undo of {'run' if len(runs) == 1 else 'runs'} {names}"


@dataclass(frozen=True)
class UndoReport:
    """What an undo did. `runs` is empty when there was nothing to do."""

    driver: str
    previous_version: int
    version: int
    runs: tuple[int, ...]
    undone: tuple[Step, ...]
    notes: tuple[str, ...]
    duration_ms: float
    backup: str | None = None  # the file of the backup that was made before

    def to_json(self) -> dict[str, Any]:
        made = {"backup": self.backup} if self.backup else {}
        return {
            "driver": self.driver,
            "previous_version": self.previous_version,
            "version": self.version,
            "runs": list(self.runs),
            "undone": [step.to_json() for step in self.undone],
            "notes": list(self.notes),
            "duration_ms": round(self.duration_ms, 1),
            **made,
        }
