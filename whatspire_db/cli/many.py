"""A verb of the migrator for many databases at once: schemas, files or DSNs, each with a run of its own."""

from __future__ import annotations

import copy
import sys
import threading
from collections import Counter
from dataclasses import dataclass
from signal import SIGINT
from typing import Any

from .. import interruption, signals
from ..errors import ConfigError, VersionMismatch, WhatspireDBError, printable
from ..models.base import data_migrations_of
from ..settings.kinds import PREFIX
from . import migrate
from .call import FAILED, OK, Answer, Call, did, failure_document, failure_of
from .each_schema import Stamps, require_schema, schemas_of
from .jobs import Jobs
from .loading import settings_and_models
from .migrate import PENDING, REFUSED
from .sayings import SAYINGS, NamingWatcher, name_in_log
from .shared_backups import Backups
from .targets import Subject, Target, dsn_targets, file_targets, matching_files

USUAL_JOBS = 4
# From the worst to the best: what is wrong with a call or a setting, with a database, with the models beside it.
WORST_FIRST = (ConfigError.exit_code, FAILED, VersionMismatch.exit_code, REFUSED, PENDING, OK)
NOUNS = {"schema": "schema", "file": "file", "dsn": "database"}
NAMED_BY = {"file": "--each-file", "dsn": "that line of --dsn-file"}
NAMED = 3  # databases that failed, in the last line


@dataclass(frozen=True)
class Result:
    """What came of one database.

    :param state: the word by which the summary counts it.
    :param said: its line, without its name.
    """

    target: Target
    document: dict[str, Any]
    code: int
    state: str
    said: str
    failed: bool = False


def run_many(call: Call) -> Answer:
    """Answer a verb for many databases; a line for each is printed as it is done.

    :raises ConfigError: when the options do not go together, or name no database.
    """
    _refuse(call.options)
    subject = _subject(call)
    names: dict[int, str] = {}
    name_in_log(names)
    run = _Run(call, subject, names)
    try:
        return run.answer()
    finally:
        if subject.shared is not None and not run.is_interrupted:  # then a thread may still wait for the server
            subject.shared.close_all()


def _refuse(options: Any) -> None:
    flags = {f"--{name.replace('_', '-')}": getattr(options, name) for name in migrate.MANY}
    given = [flag for flag, value in flags.items() if value]
    if len(given) > 1:
        hint = "give one of them, and run it again for the other"
        raise ConfigError(f"{' and '.join(given)} exclude each other", hint)
    if options.sql:
        hint = "its statements are for one database: name that alone, or use --json"
        raise ConfigError(f"{given[0]} takes no --sql", hint)
    if options.each_schema:
        return
    for name in ("dsn", "driver"):
        if getattr(options, name):
            hint = f"leave it out, for {given[0]} says which databases"
            raise ConfigError(f"--{name} and {given[0]} exclude each other", hint)


# What it is about


def _subject(call: Call) -> Subject:
    options = call.options
    if options.each_schema:
        return schemas_of(call)
    file = options.dsn_file
    config = options.config
    targets = dsn_targets(file, config) if file else list(file_targets(matching_files(options.each_file), config))
    settings = next(target.settings for target in targets if target.settings)
    _, models = settings_and_models(call, settings)
    return Subject(targets, models, settings, migrate.waits_of(options, settings))


# The runs


NO_DATA = "note: data migrations are not run in many databases at once; run whatspire-db data run with the DSN of each"


class _Run:
    """The runs over all databases, and what the command says of them."""

    def __init__(self, call: Call, subject: Subject, names: dict[int, str]) -> None:
        self.call, self.subject, self.names = call, subject, names
        self.options = call.options
        self.kind = subject.targets[0].kind
        self.results: dict[int, Result] = {}
        self.jobs = Jobs(subject.targets, self.of_one, self.options.jobs or USUAL_JOBS, self._finish)
        self.backups = Backups(call.options, subject.settings, self.jobs.in_main_thread)
        self.stamps: Stamps | None = None
        if subject.shared is not None and call.options.verb == "up":
            self.stamps = Stamps(subject.shared, subject, call.options)
        self.is_interrupted = False

    def answer(self) -> Answer:
        """Do all, and return the answer about them."""
        if self.kind == "schema" and self._speaks:
            self.call.show(self.call.line)
        elif self.call.config and self._speaks:
            self.call.show(f"settings from {self.call.config}")
        try:
            for number, result in self.jobs.run():
                self._say(number, result)
        except KeyboardInterrupt:
            self.is_interrupted = True
            self.jobs.stop()
            for number, result in sorted(self.jobs.done.items()):
                if number not in self.results:
                    self._say(number, result)
        except BaseException:  # nobody reads what it says
            self.jobs.stop()
            raise
        return self._answer()

    @property
    def _all(self) -> str:
        number = len(self.subject.targets)
        return f"{number} {NOUNS[self.kind]}{'' if number == 1 else 's'}"

    @property
    def _speaks(self) -> bool:
        return not (self.options.json or self.options.quiet)

    def _say(self, number: int, result: Result) -> None:
        self.results[number] = result
        if result.failed:
            print(printable(f"error: {result.target.title}: {result.said}"), file=sys.stderr, flush=True)
        elif self._speaks:
            self.call.show(f"{result.target.title}: {result.said}")
            sys.stdout.flush()

    def _answer(self) -> Answer:
        documents = [self._document(number, target) for number, target in enumerate(self.subject.targets)]
        counts = Counter(result.state for result in self.results.values())
        if left := len(documents) - len(self.results):
            counts["not begun"] = left
        summary = f"{self._all}: {', '.join(f'{count} {state}' for state, count in counts.items())}"
        if self.is_interrupted:
            error, code = _interruption(f": {summary}")
            return Answer(documents, [summary], code, error)
        code = min((result.code for result in self.results.values()), key=_rank, default=OK)
        notes = [NO_DATA] if data_migrations_of(self.subject.models) else []
        return Answer(documents, [summary, *notes], code, self._error())

    def _error(self) -> WhatspireDBError | None:
        failed = [result.target.title for _, result in sorted(self.results.items()) if result.failed]
        if not failed:
            return None
        named = ", ".join(failed[:NAMED]) + (f" and {len(failed) - NAMED} more" if len(failed) > NAMED else "")
        hint = "the line of each says what to do; then run it again, and what is done takes no time"
        return WhatspireDBError(f"{len(failed)} of {self._all} failed: {named}", hint)

    def _document(self, number: int, target: Target) -> dict[str, Any]:
        begun = target.document() | self.call.read
        if result := self.results.get(number):
            return begun | result.document
        if self.is_interrupted:
            return begun | failure_document(*_interruption())
        error = WhatspireDBError("not begun, for another one failed", "run it again, or without --fail-fast")
        return begun | failure_document(error, FAILED)

    # In a thread of its own

    def of_one(self, target: Target) -> Result:
        """Return what comes of one database, also where that is an error or an interrupt."""
        self.names[threading.get_ident()] = target.title
        try:
            answer = self._answer_of(target)
            return Result(target, answer.document, answer.code, *SAYINGS[self.options.verb](answer.document))
        except (Exception, KeyboardInterrupt) as error:
            return self._failed(target, error)
        finally:
            self.names.pop(threading.get_ident(), None)
            interruption.forget_closed()

    def _answer_of(self, target: Target) -> Answer:
        if target.path and self.stamps and (report := self.stamps.report(target.path)):
            return Answer(report.to_json())
        settings = target.required()
        waits, options = self.subject.waits, copy.copy(self.options)
        options.quiet = True  # it speaks in a line of its own
        is_new = options.verb == "up" and migrate.has_no_file(settings)
        db = migrate.opened(settings, options, waits, bind=False)
        try:
            if target.path:
                require_schema(db, waits, target.name)
            watcher = NamingWatcher(target, self.names, is_new)
            before = self.backups.of(target, settings)
            runner = migrate.runner_of(db, self.subject.models, options, waits, watcher, before, data=())
            return migrate.answer(runner, _call_of(options, target))
        finally:
            db.close_all()

    def _failed(self, target: Target, error: BaseException) -> Result:
        number = _signal() if isinstance(error, KeyboardInterrupt) or self.is_interrupted else None
        if isinstance(error, OSError) and error.filename is None:  # not of stdout, as one of the command's own would be
            error = WhatspireDBError(error.strerror or type(error).__name__, "make room, or look at the system's log")
        told, code = failure_of(error, number)
        code = told.exit_code if code is None else code
        told.fact, told.hint = self.call.in_words_of_the_user(told)
        if target.kind in NAMED_BY:  # instead of a variable
            told.fact, told.hint = (t.replace(f"{PREFIX}DSN", NAMED_BY[target.kind]) for t in (told.fact, told.hint))
        if self.options.fail_fast:
            self.jobs.begin_no_more()
        state = "refused" if code == REFUSED else "interrupted" if number else "failed"
        said = f"{told.fact} (hint: {told.hint})"
        return Result(target, failure_document(told, code), code, state, said, failed=True)

    def _finish(self) -> None:
        if self.stamps is not None:
            self.stamps.finish()


def _rank(code: int) -> int:
    """Return how many exit codes are worse than one; a code of none of them counts as a failure."""
    return WORST_FIRST.index(code if code in WORST_FIRST else FAILED)


def _signal() -> int:
    """Return the signal that interrupts the command."""
    return (interruption.command and interruption.command.number) or SIGINT


def _interruption(more: str = "") -> tuple[WhatspireDBError, int]:
    """Return the error of what a signal ended, and its exit code."""
    number = _signal()
    return WhatspireDBError(did(number) + more, "nothing is half done; run it again"), signals.exit_code(number)


def _call_of(options: Any, target: Target) -> Call:
    """Return what stands for a call of the command for one database alone."""
    call = Call([])
    call.options, call.driver, call.database = options, target.driver, target.database
    return call
