"""What every command of the package shares: options, settings, models, output, and errors in two lines."""

from __future__ import annotations

import argparse
import errno
import importlib
import io
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NoReturn, TextIO

import peewee

from .errors import ConfigError, WhatspireDBError
from .models import BaseModel, registered_models
from .settings import LOG_LEVELS, Settings

OK, FAILED, INTERRUPTED = 0, 1, 130


class Parser(argparse.ArgumentParser):
    """argparse's, whose errors are ConfigErrors; it does not end the process for them."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, f"see {self.prog} --help")


def add_shared_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a command about a schema: which database, which models, and how to speak."""
    add_database_options(parser)
    parser.add_argument(
        "--models", nargs="+", action="extend", metavar="MODULE", help="modules with models of your own"
    )
    parser.add_argument("--only-models", action="store_true", help="leave the service's own tables out")


def add_database_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that every command takes: which database, and how to speak."""
    parser.add_argument("--driver", metavar="D", help="sqlite or postgres (default: WHATSAPP_DATABASE_DRIVER)")
    parser.add_argument(
        "--dsn",
        help="where the database is (default: WHATSAPP_DATABASE_DSN, where a password is safer than here)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors alone")
    parser.add_argument("-v", "--verbose", action="store_true", help="log statements to stderr")


def guarded(run: Callable[[], int]) -> int:
    """Run a command and return its exit code; an error is two lines on stderr, a fact and a hint."""
    _open_what_is_closed()
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that its encoding lacks is no error
    try:
        code = run()
        sys.stdout.flush()  # output that cannot be written is found here, not when the interpreter ends
        return code
    except WhatspireDBError as error:
        tell(error.fact, error.hint)
        return error.exit_code
    except KeyboardInterrupt as error:  # which tells more itself where that would be untrue
        fact, hint = error.args if len(error.args) == 2 else ("interrupted", "nothing is half done; run it again")
        tell(fact, hint)
        return INTERRUPTED
    except BrokenPipeError:
        _discard(sys.stdout)
        return FAILED
    except OSError as error:
        _discard(sys.stdout)
        if error.errno == errno.ENOENT and not error.filename:  # of all that has no name, it alone can be missing
            tell("the current folder is deleted", "go to another folder")
        else:
            tell(f"{error.filename or 'stdout'}: {error.strerror}", "make room, or give this user the right to it")
        return FAILED


def _open_what_is_closed() -> None:
    """Let a standard stream that the caller closed lead nowhere; Python has None for it, which nobody can write to."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # In this order each gets its own number, so that no file of the run gets it.
            setattr(sys, name, open(os.devnull, mode, errors="backslashreplace"))  # noqa: SIM115


def tell(fact: str, hint: str) -> None:
    """Print an error's two lines on stderr, where somebody reads it."""
    try:
        print(f"error: {fact}\nhint:  {hint}", file=sys.stderr)
    except OSError:
        _discard(sys.stderr)


def _discard(stream: TextIO) -> None:
    """Let what a stream still holds go nowhere, for else the interpreter fails on it when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def configure_logging(options: argparse.Namespace) -> None:
    """Let the package's log go to stderr: warnings, with -v more, with -q errors alone."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logger = logging.getLogger("whatspire_db")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO if options.verbose else logging.ERROR if options.quiet else logging.WARNING)


def read_settings(options: argparse.Namespace) -> Settings:
    """Return the environment's settings under those of the command line.

    :raises ConfigError: when one of them is wrong.
    """
    settings = Settings.from_environment(driver=options.driver, dsn=options.dsn)
    if settings.log_level == LOG_LEVELS[-1]:
        logging.getLogger("whatspire_db").setLevel(logging.INFO)
        return settings
    # A failed statement is told in the two lines of its error, not in a third.
    return replace(settings, log_level=LOG_LEVELS[0])


def load_models(modules: Iterable[str], *, with_service: bool = True) -> list[type[peewee.Model]]:
    """Import modules and return all models that a command is about: the service's, and those of the modules.

    :raises ConfigError: when a module cannot be imported or holds no models.
    """
    found: list[type[peewee.Model]] = registered_models() if with_service else []
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    for name in modules:
        models = _models_in(name)
        if not models:
            raise ConfigError(f"the module {name} holds no models", "name the module in which they are defined")
        found += [model for model in models if model not in found]
    # A module can import others that define tables too.
    return found + [m for m in registered_models() if m not in found and (with_service or _is_own(m))]


def _is_own(model: type[BaseModel]) -> bool:
    return not model.__module__.startswith("whatspire_db.")


def _models_in(name: str) -> list[type[peewee.Model]]:
    """Import a module and return the models that it, or the package that it is, defines."""
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:  # whatever the module's own code raises
        raise ConfigError(
            f"the module {name} cannot be imported: {type(error).__name__}: {error}",
            "give --models or WHATSAPP_DATABASE_MODELS the dotted name of a module on the Python path",
        ) from error
    models: list[type[peewee.Model]] = [v for v in vars(module).values() if peewee.is_model(v)]
    own = [m for m in models if m.__module__ == name or m.__module__.startswith(name + ".")]
    return [m for m in own if not getattr(m._meta, "abstract", False) and _is_table(m, own)]


def _is_table(model: type[peewee.Model], others: Iterable[type[peewee.Model]]) -> bool:
    """Leave out a plain peewee base class: one without fields of its own, that other models extend."""
    extended = any(other is not model and issubclass(other, model) for other in others)
    return not extended or bool(model._meta.fields.keys() - {"id"})


def print_json(document: Any) -> None:
    """Print one JSON document on stdout."""
    text = json.dumps(document, ensure_ascii=False, indent=2)
    # JSON is UTF-8; in ASCII it is so in every encoding, and takes what is no Unicode.
    print(text if _is_utf8(sys.stdout) and _is_unicode(text) else json.dumps(document, indent=2))


def _is_utf8(stream: TextIO) -> bool:
    return (stream.encoding or "").lower().replace("-", "") == "utf8"


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def say(symbol: str, text: str) -> None:
    """Print a line, with its symbol on a terminal that takes UTF-8."""
    print(f"{symbol} {text}" if sys.stdout.isatty() and _is_utf8(sys.stdout) else text, flush=True)


def progress_bar(title: str, leave: bool = True) -> Any:
    """Return a bar on stderr whose `n` goes from 0 to 1; `leave` it there when it is closed."""
    from tqdm import tqdm  # only where a bar is drawn

    layout = "{desc}: {percentage:3.0f}% |{bar:24}| {elapsed}{postfix}"
    return tqdm(total=1, desc=title, bar_format=layout, file=sys.stderr, leave=leave)
