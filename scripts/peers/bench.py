"""One run of the benchmark: where everything is, and how a tool is started there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peers import tables
from peers.counting import log_size, logged
from peers.places import Place, of_database
from peers.tools import ADDED, PEERS, Tool, write_models

ROOT = PEERS.parents[1]
Result = dict[str, Any]


class Failed(Exception):
    """A tool did not do what it was started for; the text says why, without paths."""


@dataclass
class Bench:
    """One run of the benchmark: what to measure, and where everything is."""

    folder: Path
    environments: Path
    service: list[tables.Table]  # the service's tables
    admin: str  # a DSN of PostgreSQL
    log: str  # the server's log, or nothing where it is not ours
    rounds: int = 20
    whole_rounds: int = 5
    seconds: float = 3.0  # for the rounds of one tool in one scenario in process
    sizes: tuple[int, ...] = (10, 100, 300)
    storms: tuple[int, ...] = (16, 32)
    missing: set[str] = field(default_factory=set)  # virtual environments that could not be made
    broken: dict[tuple[str, str], str] = field(default_factory=dict)  # why a family cannot be measured on an engine

    def python(self, environment: str) -> str:
        """Return the interpreter of a virtual environment."""
        return str(self.environments / environment / "bin" / "python")

    def demand(self, tool: Tool, driver: str) -> None:
        """Look whether a tool could be set up.

        :raises Failed: when it could not.
        """
        if (driver, tool.family) in self.broken:
            raise Failed(self.broken[driver, tool.family])

    def place(self, tool: Tool, driver: str) -> Place:
        """Return the database of a tool."""
        name = f"bench_{tool.family}"
        if driver == "sqlite":
            return Place(driver, str(self.folder / f"{name}.db"))
        return Place(driver, of_database(self.admin, name), self.admin)

    def project(self, tool: Tool, driver: str, size: int | None = None) -> Path:
        """Return the folder with a tool's models and migrations: for the service's tables, or for so many."""
        return self.folder / driver / tool.family / str(size or "service")

    def variables(self, tool: Tool, driver: str, project: Path) -> dict[str, str]:
        """Return the environment of a tool's process, with nothing of our own environment that steers one."""
        steering = ("PYTHON", "PG", "WHATSAPP_DATABASE_", "DJANGO_", "BENCH_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(steering)}
        dsn = self.place(tool, driver).dsn
        return kept | {
            "PYTHONPATH": os.pathsep.join([str(project), *([str(ROOT)] if tool.family == "ours" else [])]),
            "DJANGO_SETTINGS_MODULE": "settings",
            "BENCH_DRIVER": driver,
            "BENCH_DSN": dsn,
            "WHATSAPP_DATABASE_DRIVER": driver,
            "WHATSAPP_DATABASE_DSN": dsn,
        }

    def work(self, tool: Tool, driver: str, do: str, size: int | None = None, rounds: int = 0) -> Result:
        """Have the worker do something with a tool in process.

        :raises Failed: when the tool is not installed, or fails.
        """
        if tool.environment in self.missing:
            raise Failed("it could not be installed")
        project = self.project(tool, driver, size)
        job = {
            "do": do,
            "module": tool.module,
            "action": tool.action,
            "place": vars(self.place(tool, driver)),
            "rounds": rounds,
            "seconds": self.seconds,
            "log": self.log if driver == "postgres" else "",
        }
        command = [self.python(tool.environment), str(PEERS / "worker.py"), json.dumps(job)]
        return _answer(command, self.variables(tool, driver, project), project, seconds=180)

    def launch(self, tool: Tool, driver: str, number: int, **more: str) -> Result:
        """Start so many whole processes of a tool at once, on the service's tables."""
        project = self.project(tool, driver)
        job = {"command": [self.python(tool.environment), *tool.command], "number": number, "seconds": 120}
        # -I -S: the launcher is to be small, and our environment is for its children alone.
        command = [sys.executable, "-I", "-S", str(PEERS / "launch.py"), json.dumps(job)]
        return _answer(command, self.variables(tool, driver, project) | more, project, seconds=150)

    def start(self, tool: Tool, driver: str, **more: str) -> Result:
        """Start one whole process of a tool.

        :raises Failed: when it exits with another code than 0.
        """
        result = self.launch(tool, driver, 1, **more)
        if result["errors"]:
            raise Failed(f"exit {result['codes'][0]}: {reason(result['errors'][0])}")
        return result

    def count_whole(self, tool: Tool, driver: str) -> int | None:
        """Start a whole process and return the number of its statements, or nothing where none can be counted."""
        place = self.place(tool, driver)
        if driver == "sqlite":
            file = self.folder / "count"
            own = self.variables(tool, driver, self.project(tool, driver))["PYTHONPATH"]
            path = os.pathsep.join([str(PEERS / "counted"), own])
            self.start(tool, driver, PYTHONPATH=path, BENCH_COUNT=str(file))
            return int(file.read_text())
        if not self.log:
            self.start(tool, driver)
            return None
        place.log(True)
        start = log_size(self.log)
        self.start(tool, driver)
        place.log(False)
        return len(logged(self.log, start, place.name))

    def wrong(self, place: Place, wanted: Sequence[tables.Table] | None = None) -> list[str]:
        """Name the tables that are not there with all their columns and indexes."""
        found = place.tables()
        wrong = []
        for table in self.service if wanted is None else wanted:
            columns, indexes = found.get(table.name, (set(), 0))
            if not {c.name for c in table.columns} <= columns or indexes < len(table.indexes):
                wrong.append(table.name)
        return wrong


_ERROR = re.compile(r"([a-z_][\w.]*\.)?[A-Z]\w*[a-z]\w*: |error: |[A-Z]\w+(Error|Exception)$")
_PATH = re.compile(r"(?<![\w(])/[\w./+-]+")


def reason(output: str) -> str:
    """Return the line of an output that names the error, without paths."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    named = [line for line in lines if _ERROR.match(line)]
    return _PATH.sub("…", (named or lines or ["no output"])[-1])[:120]


def _answer(command: list[str], variables: dict[str, str], folder: Path, seconds: float) -> Result:
    """Run a command that prints a JSON document as its last line."""
    try:
        done = subprocess.run(command, env=variables, cwd=folder, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise Failed(f"not done after {seconds} s") from None
    if done.returncode:
        raise Failed(reason(done.stderr))
    answer: Result = json.loads(done.stdout.splitlines()[-1])
    return answer


def guarded(action: Callable[..., Result], *arguments: Any) -> Result:
    """Return what an action returns, or why it failed: whatever that is, the others are to be measured."""
    try:
        return action(*arguments)
    except Failed as error:
        return {"failed": str(error)}
    except Exception as error:
        return {"failed": reason(f"{type(error).__name__}: {error}")}


def set_up(bench: Bench, tool: Tool, driver: str) -> Result:
    """Make a tool's project: a database of the models before the column, its migrations, the models of now."""
    place, project = bench.place(tool, driver), bench.project(tool, driver)
    place.clear()
    write_models(tool, driver, project, tables.without(bench.service, *ADDED), "before")
    bench.work(tool, driver, "make")
    bench.work(tool, driver, "run")
    place.keep()
    write_models(tool, driver, project, bench.service, "now")
    bench.work(tool, driver, "make")
    return {}
