"""Measure one tool in process: warm connection, imports done. Runs in the tool's own virtual environment.

Takes one JSON document as its argument and prints another as its last line. `do` is one of

- make: write the migration that leads to the models, where the tool has such files;
- run: run the tool once;
- no-op: on a database in sync; otherwise fresh or column: every round on a database that is made anew.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import counting
from places import Place

LEAST_ROUNDS = 3


class Worker:
    """One tool on one database."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.place = Place(**job["place"])
        self.trace = counting.SqliteTrace()
        self.tool = importlib.import_module(job["module"])
        self.action: Callable[[], object] = getattr(self.tool, job["action"])

    def do(self) -> dict[str, Any]:
        """Do what the job says."""
        what = self.job["do"]
        if what == "make":
            self.tool.make()
            return {}
        if what == "run":
            self._connected(self.tool.run)
            return {}
        return self._in_sync() if what == "no-op" else self._anew()

    def _connected(self, action: Callable[[], object]) -> None:
        self.tool.connect()
        try:
            action()
        finally:
            self.tool.close()

    def _in_sync(self) -> dict[str, Any]:
        self.place.clear()
        self._connected(self.tool.run)
        times: list[float] = []
        self.tool.connect()
        self.action()
        self._rounds(lambda: times.append(_milliseconds(self.action)))
        self.tool.close()
        return {"ms": statistics.median(times), "statements": self._count(warm=True)}

    def _anew(self) -> dict[str, Any]:
        before = self.place.clear if self.job["do"] == "fresh" else self.place.restore
        times: list[float] = []

        def one() -> None:
            before()
            self._connected(lambda: times.append(_milliseconds(self.action)))

        one()
        del times[:]
        self._rounds(one)
        before()
        return {"ms": statistics.median(times), "statements": self._count(warm=False)}

    def _rounds(self, one: Callable[[], object]) -> None:
        """Do so many rounds as are wanted, or as many as time is for."""
        end = time.monotonic() + self.job["seconds"]
        for done in range(self.job["rounds"]):
            if done >= LEAST_ROUNDS and time.monotonic() > end:
                break
            one()

    def _count(self, warm: bool) -> int | None:
        log = self.job["log"]
        if self.place.driver == "postgres" and not log:
            self._connected(self.action)
            return None
        counted: list[int] = []
        self.place.log(True)
        self.trace.install()

        def one() -> None:
            if warm:
                self.action()
            start = counting.log_size(log) if log else 0
            self.trace.active = True
            self.action()
            self.trace.active = False
            statements = counting.logged(log, start, self.place.name) if log else self.trace.statements
            counted.append(len(statements))

        self._connected(one)
        self.place.log(False)
        return counted[0]


def _milliseconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return (time.perf_counter() - start) * 1000


def main() -> None:
    """Do the job that the command line gives."""
    with contextlib.redirect_stdout(io.StringIO()):
        result = Worker(json.loads(sys.argv[1])).do()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
