"""The parsers of commands: options that all share, help that fits the terminal, and errors that repeat no secret."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from ..dsn.redaction import shown, without_arguments
from ..errors import ConfigError
from .terminal import columns

MOST_JOBS = 64


class HelpFormatter(argparse.HelpFormatter):
    """argparse's, which it makes for each argument; by itself it would load `shutil` for the width of the terminal."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, **{"width": columns() - 2} | options)


class RawHelpFormatter(HelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The same for a command whose description or epilog has lines of its own."""


class Parser(argparse.ArgumentParser):
    """argparse's, without abbreviated options; its errors are ConfigErrors that repeat no secret, and do not exit."""

    given: Sequence[str] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        defaults: dict[str, Any] = {"allow_abbrev": False, "formatter_class": HelpFormatter}
        super().__init__(*args, **defaults | kwargs)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse like argparse; the arguments are kept for messages about them."""
        self.given = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(self.given, namespace)

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        """Add an argument like argparse; one whose value is a text takes no empty one."""
        action = super().add_argument(*names, **options)
        if action.type is None:
            action.type = _not_empty("/".join(action.option_strings) or str(action.metavar))
        return action

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print help or the version and flush it: left to the end, a failure would be reported by the interpreter."""
        stream = file or sys.stderr
        stream.write(message)
        stream.flush()

    def error(self, message: str) -> NoReturn:
        raise ConfigError(without_arguments(message, self.given), f"see {self.prog} --help")


def _not_empty(name: str) -> Callable[[str], str]:
    """Return the type of an argument that refuses an empty or blank value, which an unset variable leaves behind."""

    def text(value: str) -> str:
        if not value.strip():
            raise ConfigError(
                f"{name} is given an empty value", "give a value or leave it out; is a variable in the command unset?"
            )
        return value

    return text


def add_many_options(parser: argparse.ArgumentParser) -> None:
    """Add the options about many databases at once."""
    parser.add_argument(
        "--each-schema", metavar="PATTERN", help="PostgreSQL: run in each schema of such a name, like 'tenant_*'"
    )
    parser.add_argument(
        "--each-file",
        nargs="+",
        action="extend",
        metavar="GLOB",
        help="SQLite: run on each file that is there, like 'data/*.db'",
    )
    parser.add_argument(
        "--dsn-file", metavar="FILE", help="run on each DSN of a file, one a line, that only its owner can read"
    )
    parser.add_argument(
        "--jobs", type=_jobs, metavar="N", help="with those three: so many databases at a time (default: 4)"
    )
    parser.add_argument(
        "--fail-fast", action="store_true", help="with those three: begin no other database after the first failure"
    )


def _jobs(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 4 and 0 < int(text) <= MOST_JOBS):
        raise ConfigError(f"--jobs is {shown(text)}", f"it takes a whole number from 1 to {MOST_JOBS}")
    return int(text)


def add_trust_source(
    parser: argparse.ArgumentParser, what: str = "code of other roles that is in the database"
) -> None:
    """Add the option that lets a superuser run what other roles made."""
    parser.add_argument("--trust-source", action="store_true", help=f"let a PostgreSQL superuser run {what}")


def listed(verbs: Mapping[str, str], width: int = 9) -> str:
    """Return the verbs of a command as its help lists them."""
    return "verbs:\n" + "\n".join(f"  {verb:<{width}}{text}" for verb, text in verbs.items())


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
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="the service's config file (default: WHATSAPP_CONFIG, else config.yaml, .yml or .json where it looks)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout, also for a failure")
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors alone")
    parser.add_argument("-v", "--verbose", action="store_true", help="log statements to stderr")
