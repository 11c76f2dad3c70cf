"""What every command of the package shares: options, settings, models, signals, output, and errors in two lines."""

from __future__ import annotations

import errno
import gc
import io
import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from signal import SIGTERM
from types import SimpleNamespace

from .. import signals
from ..dsn.naming import describe
from ..dsn.redaction import without_dsns
from ..dsn.targets import PostgresTarget, SqliteTarget
from ..errors import MigrationRefused, NotProved, UndoRefused, WhatspireDBError, printable
from ..light_stdlib import Any, TextIO, dataclass, replace
from ..messages import in_words
from ..settings import LOG_LEVELS, Settings
from ..settings.kinds import PREFIX

OK, FAILED, INTERRUPTED = 0, 1, 130
# The variables that an option stands above, by the option's name in the namespace.
VARIABLES = {
    "driver": "DRIVER",
    "dsn": "DSN",
    "models": "MODELS",
    "dir": "BACKUP_DIR",
    "name": "BACKUP_NAME",
    "lock_timeout": "MIGRATION_LOCK_TIMEOUT",
}
OTHER_NAMES = {"dir": "--to", "dsn": "--from"}  # of options, in `backup create` and in `transfer`
ENDED_AT_ONCE = "run it again: the next run finishes, or clears away, what this one left"


@dataclass(frozen=True)
class Answer:
    """What a command found or did: as a JSON document and in lines, which --quiet leaves out unless they are wanted.

    `error` is what is wrong with the database.
    """

    document: Any
    lines: Sequence[str] = ()
    code: int = OK
    error: WhatspireDBError | None = None
    wanted: bool = False


def failure_document(error: WhatspireDBError, code: int) -> dict[str, Any]:
    """Return the JSON document of a failure; a refused migration or undo adds its plan."""
    plan = error.plan.to_json() if isinstance(error, MigrationRefused | UndoRefused) else {}
    return {"error": error.fact, "hint": error.hint, "exit": code, **plan}


class Call:
    """One call of a command: what the user typed, and which database that is about, as far as it is known.

    :param exit_code: turns an error's exit code into the command's.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        exit_code: Callable[[int], int] = lambda code: code,
        document: Callable[[WhatspireDBError, int], Any] = failure_document,
    ) -> None:
        self.arguments = list(arguments)
        self.options: Any = SimpleNamespace()
        self.driver, self.database, self.config = "", "", ""
        self.to = ""  # the other database, of a transfer
        self._exit_code, self._document = exit_code, document
        typed = self.arguments[: self.arguments.index("--")] if "--" in self.arguments else self.arguments
        self._json = "--json" in typed
        self._has_answered = self._has_told = False

    def settings(self) -> Settings:
        """Return the environment's settings under those of the command line, and remember which database they name.

        :raises ConfigError: when one of them is wrong.
        """
        settings = read_settings(self.options)
        self.about(settings)
        return settings

    def about(self, settings: Settings) -> None:
        """Remember the database that the call is about, and the config file that named it."""
        self.driver, self.config = settings.driver, settings.config
        self.name(settings.target)

    def name(self, target: SqliteTarget | PostgresTarget) -> None:
        """Remember the database that the call is about."""
        self.database = describe(target)

    def named(self, document: dict[str, Any]) -> dict[str, Any]:
        """Return a document that begins with the database it speaks of, and with the config file that was read."""
        return {"driver": self.driver, "database": self.database} | self.read | document

    @property
    def read(self) -> dict[str, Any]:
        """What a document says of the config file that was read."""
        return {"config": self.config} if self.config else {}

    @property
    def line(self) -> str:
        """The line that names the database, and the config file that was read."""
        config = f", settings from {self.config}" if self.config else ""
        return f"database: {self.driver} {self.database}{config}"

    def answer(self, answer: Answer) -> int:
        """Print an answer and return the exit code."""
        self._has_answered = True
        words = self.in_words_of_the_user(answer.error) if answer.error else None
        if self._json:
            is_list = isinstance(answer.document, list)  # each of its documents has an error of its own
            wrong = dict(zip(("error", "hint"), words, strict=True)) if words else {}
            print_json(answer.document if is_list else answer.document | wrong)
        elif answer.wanted or not self.options.quiet:
            for text in answer.lines:
                self.show(text, answer.wanted)
        sys.stdout.flush()  # output that cannot be written is found here, not when the interpreter ends
        if words:
            self._tell(*words)
        return self._exit_code(answer.code)

    def show(self, text: str, wanted: bool = False) -> None:
        """Print the lines of a text."""
        for line in text.split("\n"):
            self._print(line, wanted)

    def _print(self, line: str, wanted: bool) -> None:
        """Print a line; on a terminal it fits, and no name that another user gave steers it."""
        if not sys.stdout.isatty():
            print(line if wanted else printable(line))  # a file gets SQL as it is
        elif wanted:
            print(printable(line))
        else:
            from .terminal import coloured, fitted

            first, *more = fitted(printable(line))
            print("\n".join([coloured(first), *more]))

    def fail(self, error: WhatspireDBError, code: int | None = None) -> int:
        """Print an error: two lines on stderr, and with --json one document. Return the exit code."""
        codes = (FAILED, MigrationRefused.exit_code)
        is_about_database = code is None and (error.exit_code in codes or isinstance(error, NotProved))
        code = self._exit_code(error.exit_code if code is None else code)
        error.fact, error.hint = self.in_words_of_the_user(error)
        if is_about_database and self.database and not all(part in error.fact for part in self.database.split()):
            to = f", to: {self.to}" if self.to else ""
            error.fact = f"{error.fact} ({self.line}{to})"
        if self._json and not self._has_answered:
            self._has_answered = True
            document = self._document(error, code)
            self._try_to_print(self.named(document) if "driver" in document and self.driver else document)
        self._tell(error.fact, error.hint)
        return code

    def _tell(self, fact: str, hint: str) -> None:
        self._has_told = True
        tell(fact, hint)

    def last_words(self, number: int) -> int:
        """Print what a signal did that ends the process at once; return the exit code."""
        if not self._has_told:
            error = WhatspireDBError(f"{did(number)} while it waited", ENDED_AT_ONCE)
            self.fail(error, signals.exit_code(number))
        return self._exit_code(signals.exit_code(number))

    def _try_to_print(self, document: Any) -> None:
        try:
            print_json(document)
            sys.stdout.flush()
        except OSError:
            _discard(sys.stdout)

    def in_words_of_the_user(self, error: WhatspireDBError) -> tuple[str, str]:
        """Return fact and hint; they name an option that the user typed instead of its variable, and repeat no DSN."""
        fact, hint = (without_dsns(text, self.arguments) for text in (error.fact, error.hint))
        for option, variable in VARIABLES.items():
            if getattr(self.options, option, None) is not None:
                flag = f"--{option.replace('_', '-')}"
                pattern = rf"(?:({flag} or )?{PREFIX}{variable}|(?<!\S){flag})\b"
                fact, hint = (re.sub(pattern, self._typed(option), text) for text in (fact, hint))
        return fact, hint

    def _typed(self, option: str) -> str:
        """Return an option by the name that the user typed, like --to for --dir in `backup create`."""
        flag = f"--{option.replace('_', '-')}"
        is_typed = any(each.partition("=")[0] == flag for each in self.arguments)
        return flag if is_typed else OTHER_NAMES.get(option, flag)


def run_command(call: Call, parse: Callable[[list[str]], Any], run: Callable[[Call], Answer]) -> int:
    """Run a command and return its exit code; an error is two lines on stderr, a fact and a hint."""
    if not gc.isenabled():  # cli/starting.py turned it off
        gc.freeze()
        gc.enable()
    _open_what_is_closed()
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in ("strict", "surrogateescape"):
        # A name that its encoding lacks is no error, and bytes that are not text do not reach a terminal as they are.
        sys.stdout.reconfigure(errors="backslashreplace")
    with signals.heard(call.last_words) as heard:
        try:
            call.options = parse(call.arguments)
            answer = run(call)
            heard.is_over = True
            return call.answer(answer)
        except BrokenPipeError:
            _discard(sys.stdout)
            return FAILED
        except (Exception, KeyboardInterrupt) as error:
            heard.is_over = True
            return call.fail(*failure_of(error, heard.number))


def failure_of(error: BaseException, signal: int | None) -> tuple[WhatspireDBError, int | None]:
    """Return an error in words, and the exit code where it is not the error's own."""
    if isinstance(error, KeyboardInterrupt):
        interrupted = error.args if len(error.args) == 2 else (did(signal), "nothing is half done; run it again")
        return WhatspireDBError(*interrupted), signals.exit_code(signal) if signal else INTERRUPTED
    if signal and isinstance(error, WhatspireDBError):  # most likely the statement that it cancelled
        error.fact = f"{did(signal)}: {error.fact}"
        return error, signals.exit_code(signal)
    if (known := in_words(error)) is not None:  # an error of the database, which is then named
        return known, None
    return _in_words(error), FAILED


def did(signal: int | None) -> str:
    """Return what a signal did to a command."""
    return "terminated" if signal == SIGTERM else "interrupted"


def _in_words(error: BaseException) -> WhatspireDBError:
    if isinstance(error, MemoryError):
        return WhatspireDBError("this program ran out of memory", "give it more memory; nothing is half done")
    if isinstance(error, OSError):
        if error.filename is None:
            _discard(sys.stdout)
        if error.errno == errno.ENOENT and not error.filename:  # of all that has no name, it alone can be missing
            return WhatspireDBError("the current folder is deleted", "go to another folder")
        fact = f"{error.filename or 'stdout'}: {error.strerror}"
        return WhatspireDBError(fact, "make room, or give this user the right to it")
    for line in "".join(traceback.format_tb(error.__traceback__)).splitlines():
        logging.getLogger("whatspire_db").info("%s", line)
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{os.path.basename(place.filename)}, line {place.lineno}"
    # Its text may quote a row or a password.
    return WhatspireDBError(f"unexpected {type(error).__name__} in {where}", "report this; -v shows where it came from")


def _open_what_is_closed() -> None:
    """Let a standard stream that the caller closed lead nowhere; Python has None for it, which nobody can write to."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # In this order each gets its own number, so that no file of the run gets it.
            setattr(sys, name, open(os.devnull, mode, errors="backslashreplace"))  # noqa: SIM115


def tell(fact: str, hint: str) -> None:
    """Print an error's two lines on stderr, where somebody reads it."""
    try:
        lines = f"error: {printable(fact)}", f"hint:  {printable(hint)}"
        if sys.stderr.isatty():
            from .terminal import coloured

            lines = coloured(lines[0]), coloured(lines[1])
        print("\n".join(lines), file=sys.stderr, flush=True)
    except OSError:
        _discard(sys.stderr)


def _discard(stream: TextIO) -> None:
    """Let what a stream still holds go nowhere, for else the interpreter fails on it when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class Line(logging.Formatter):
    """One line a record, whatever the names in it hold."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def configure_logging(options: Any) -> None:
    """Let the package's log go to stderr: warnings, with -v more, with -q errors alone."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Line("%(levelname)s: %(message)s"))
    logger = logging.getLogger("whatspire_db")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO if options.verbose else logging.ERROR if options.quiet else logging.WARNING)


def given_settings(options: Any) -> Settings:
    """Return the environment's settings under those of the command line.

    :raises ConfigError: when one of them is wrong.
    """
    return Settings.from_environment(driver=options.driver, dsn=options.dsn, config=options.config, option_prefix="--")


def read_settings(options: Any) -> Settings:
    """Return the given settings as a command uses them.

    :raises ConfigError: when one of them is wrong.
    """
    settings = given_settings(options)
    if settings.log_level == LOG_LEVELS[-1]:
        logging.getLogger("whatspire_db").setLevel(logging.INFO)
        return settings
    # A failed statement is told in the two lines of its error, not in a third.
    return replace(settings, log_level=LOG_LEVELS[0])


def print_json(document: Any) -> None:
    """Print one JSON document on stdout."""
    text = json.dumps(document, ensure_ascii=False, indent=2)
    # JSON is UTF-8. ASCII escapes are valid in every encoding, and cover lone surrogates and control characters.
    print(text if _is_utf8(sys.stdout) and _is_unicode(text) and _is_shown(text) else json.dumps(document, indent=2))


def _is_utf8(stream: TextIO) -> bool:
    return (stream.encoding or "").lower().replace("-", "") == "utf8"


def _is_shown(text: str) -> bool:
    return all(printable(line) == line for line in text.split("\n"))


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def symbol(sign: str, text: str) -> str:
    """Return a line, with its symbol on a terminal that takes UTF-8."""
    return f"{sign} {text}" if sys.stdout.isatty() and _is_utf8(sys.stdout) else text


def say(sign: str, text: str) -> None:
    """Print a line at once, with its symbol on a terminal that takes UTF-8."""
    print(symbol(sign, text), flush=True)


def progress_bar(title: str, leave: bool = True) -> Any:
    """Return a bar on stderr whose `n` goes from 0 to 1; `leave` it there when it is closed."""
    from tqdm import tqdm  # only where a bar is drawn

    layout = "{desc}: {percentage:3.0f}% |{bar:24}| {elapsed}{postfix}"
    return tqdm(total=1, desc=title, bar_format=layout, file=sys.stderr, leave=leave)
