"""The front door: whatspire-db VERB, or python -m whatspire_db VERB, hands on to the command that has the verb."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from importlib.metadata import version
from typing import Any, NoReturn

from ..dsn.redaction import shown
from ..errors import ConfigError
from .call import Answer, Call, run_command
from .options import Parser, RawHelpFormatter, listed

PROG = "whatspire-db"
COMMANDS = {
    "migrate": "the verbs above, as whatspire-db migrate [up|plan|verify|status|version]",
    "backup": "make backups, prove them, and bring them back: create, list, verify, restore, prune",
    "health": "tell whether the database can be used; exit 0 when healthy, else 1",
    "data": "run data migrations and see how they stand: run, status, retry, skip",
    "retain": "delete rows that are older than a rule says, a few at a time",
    "transfer": "bring every row from SQLite to PostgreSQL, or back, with proof",
    "diagram": "draw the tables and their references as Mermaid, HTML, SVG or DBML; --live draws the database",
    "settings": "print every setting with its value and where that comes from, without secrets",
}
OWN = {
    "completion": "print the script that completes this command in bash, zsh or tcsh",
    "help": "show this, or with a verb its options",
}


def main(argv: list[str] | None = None) -> int:
    """Run one verb and return its exit code. Errors are two lines on stderr, a fact and a hint."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]
    verb, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if verb in COMMANDS:
        return int(_command(verb).main(rest, f"{PROG} {verb}"))
    if verb == "completion":
        return run_command(Call(rest), _completion_parser().parse_args, _complete)
    if verb in _command("migrate").VERBS:
        return int(_command("migrate").main(arguments, f"{PROG} {verb}"))
    return run_command(Call(arguments), _show_or_refuse, _complete)


def _command(name: str) -> Any:
    return import_module(f".{name}", __package__)


def _parser() -> Parser:
    verbs = _command("migrate").VERBS | COMMANDS | OWN
    parser = Parser(
        prog=PROG,
        usage=f"{PROG} VERB [OPTIONS]",
        formatter_class=RawHelpFormatter,
        description="Migrations, backups and health of a database.",
        epilog=listed(verbs, 12),
    )
    parser.add_argument("--version", action="version", version=f"{PROG} {version('whatspire-db')}")
    return parser


def _show_or_refuse(arguments: list[str]) -> NoReturn:
    """Show help or the version where they are asked for.

    :raises ConfigError: for anything else.
    :raises SystemExit: after showing.
    """
    first = arguments[0] if arguments else ""
    if first in ("-h", "--help", "--version"):
        _parser().parse_args([first])
    see = f"see {PROG} --help"
    if not first:
        raise ConfigError("no verb is given", f"{PROG} up brings the database to the models; {see}")
    if first.startswith("-"):
        raise ConfigError("an option stands before the verb", f"write the verb first, then its options; {see}")
    from difflib import get_close_matches  # only for a mistake

    near = get_close_matches(first, [*_command("migrate").VERBS, *COMMANDS, *OWN], 1)
    raise ConfigError(f"{shown(first)} is no verb", f"did you mean {near[0]}? {see}" if near else see)


def _completion_parser() -> Parser:
    parser = Parser(prog=f"{PROG} completion", description=f"{OWN['completion']}.".capitalize())
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout, also for a failure")
    return parser


def _complete(call: Call) -> Answer:
    import shtab  # only here

    script = shtab.complete(_whole_parser(), call.options.shell)
    return Answer({"completion": script}, script.splitlines(), wanted=True)


def _whole_parser() -> argparse.ArgumentParser:
    """Return a parser of every verb, as completion reads it."""
    whole = argparse.ArgumentParser(prog=PROG)
    whole.add_argument("--version", action="store_true")
    verbs = whole.add_subparsers()
    for verb, text in _command("migrate").VERBS.items():
        verbs.add_parser(verb, help=text, parents=[_command("migrate").parser_of(f"{PROG} {verb}")], add_help=False)
    for name, text in COMMANDS.items():
        verbs.add_parser(name, help=text, parents=[_command(name).parser_of(f"{PROG} {name}")], add_help=False)
    for name, text in OWN.items():
        verbs.add_parser(
            name, help=text, parents=[_completion_parser()] if name == "completion" else [], add_help=False
        )
    return whole
