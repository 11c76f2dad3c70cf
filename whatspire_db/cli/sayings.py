"""What a verb of the migrator found or did in one of many databases, in a word and in a line."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from ..migrate.plan import Step
from ..migrate.progress import Progress, Watcher
from .call import Line
from .targets import Target


def _count(number: int, one: str, more: str) -> str:
    return f"{number} {one if number == 1 else more}"


def _moved(document: dict[str, Any]) -> list[str]:
    """Say of a database whose rows were moved to another one where they are."""
    return [f"moved to {document['moved']['to']} on {document['moved']['at']}"] if "moved" in document else []


def _of_up(document: dict[str, Any]) -> tuple[str, str]:
    applied, drift = len(document["applied"]), len(document["drift"])
    state = "migrated" if applied else "with nothing to do"
    parts = [_count(applied, "step", "steps") if applied else "nothing to do", f"version {document['version']}"]
    parts += ["created"] if document.get("created") else []
    parts += [f"{_count(drift, 'difference', 'differences')} that adding cannot mend, see verify"] if drift else []
    return state, ", ".join(parts)


def _of_plan(document: dict[str, Any]) -> tuple[str, str]:
    refused, pending = len(document["refused"]), len(document["pending"])
    parts = _moved(document)
    parts += [f"{refused} refused"] if refused else []
    parts += [f"{pending} pending"] if pending else []
    parts += [f"{len(document['drift'])} drifted"] if document["drift"] else []
    state = "refused" if refused else "pending" if pending else "with nothing to do"
    return state, ", ".join(parts) if refused or pending else ", ".join(["nothing to do", *parts])


def _of_verify(document: dict[str, Any]) -> tuple[str, str]:
    accepted = [drift for drift in document["drift"] if drift.get("accepted")]
    numbers = {
        "missing": len(document["missing"]),
        "drift": len(document["drift"]) - len(accepted),
        "accepted": len(accepted),
        "extra": len(document["extra"]),
    }
    found = [f"{number} {what}" for what, number in numbers.items() if number]
    state = "with drift" if numbers["drift"] else "with something missing" if numbers["missing"] else "in sync"
    return state, ", ".join([*_moved(document), *([state] if state == "in sync" else []), *found])


def _of_status(document: dict[str, Any]) -> tuple[str, str]:
    pending, refused = len(document["pending"]), len(document.get("refused", ()))
    said = [*_moved(document), f"version {document['version']}", _count(len(document["runs"]), "run", "runs")]
    said += [f"{pending} pending"] if pending else []
    said += [f"{refused} refused, see plan"] if refused else []
    said += [] if pending or refused else ["nothing is pending"]
    return "refused" if refused else "pending" if pending else "with nothing pending", ", ".join(said)


# By verb: from its document to the word that a summary counts by, and the line.
SAYINGS: dict[str, Callable[[dict[str, Any]], tuple[str, str]]] = {
    "up": _of_up,
    "plan": _of_plan,
    "verify": _of_verify,
    "status": _of_status,
}


class NamingWatcher(Watcher):
    """Names the database in what is logged of long steps, which another thread tells."""

    def __init__(self, target: Target, names: dict[int, str], is_new: bool) -> None:
        super().__init__()
        self.target, self.names, self.is_new = target, names, is_new

    def step_progress(self, step: Step, progress: Progress) -> None:
        self.names[threading.get_ident()] = self.target.title
        super().step_progress(step, progress)


class _NamedLine(Line):
    """A line of the log that begins with the database that its thread works on."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__("%(levelname)s: %(subject)s%(message)s")
        self.names = names

    def format(self, record: logging.LogRecord) -> str:
        name = self.names.get(record.thread or 0)
        record.subject = f"{name}: " if name else ""
        return super().format(record)


def name_in_log(names: dict[int, str]) -> None:
    """Have what a thread logs begin with the name of what it works on."""
    for handler in logging.getLogger("whatspire_db").handlers:
        handler.setFormatter(_NamedLine(names))
