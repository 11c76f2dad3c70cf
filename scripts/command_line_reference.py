"""Write docs/reference/command-line.md from the parsers of the commands.

    python scripts/command_line_reference.py [--check]

With --check it writes nothing and exits 1 when the page is not what the parsers say.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

PAGE = ROOT / "docs" / "reference" / "command-line.md"
# The modules whose `parser_of()` returns a command's parser, in the order of the page.
COMMANDS = tuple(
    f"whatspire_db.cli.{name}"
    for name in ("migrate", "health", "backup", "data", "retain", "transfer", "diagram", "settings")
)
HEAD = """\
# Command-line reference

This page is generated from the parsers by `scripts/command_line_reference.py`. A verb refuses an option that it does
not use, and options cannot be abbreviated. `whatspire-db` is one door to all commands (so is `python -m whatspire_db`):
`whatspire-db up` and the other verbs of the migrator, `whatspire-db health`, `whatspire-db backup create` and the other
verbs of backups, `whatspire-db --version`, `whatspire-db help VERB`, and `whatspire-db completion bash` (or zsh, or
tcsh), which prints a completion script. The installed scripts `whatspire-migrate` and `whatspire-backup` are the same
as `python -m whatspire_db.migrate` and `python -m whatspire_db.backup`. See also
[Configuration](../configuration.md) for the variables, and [Exit codes and errors](../exit-codes-and-errors.md).
"""


def page() -> str:
    """Return the text of the page."""
    return "\n".join([HEAD, *(line for name in COMMANDS for line in _command(import_module(name).parser_of()))])


def _command(parser: argparse.ArgumentParser, level: int = 2) -> Iterator[str]:
    """Yield the lines about a command, then about its verbs."""
    subparsers = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    yield f"{'#' * level} {parser.prog}"
    yield ""
    if parser.description:
        yield _sentence(parser.description)
        yield ""
    yield f"    {_usage(parser)}"
    yield ""
    rows = [_row(action) for action in parser._actions if action not in subparsers and action.dest != "help"]
    if rows:
        yield from ("| argument | meaning |", "| --- | --- |", *rows, "")
    if parser.epilog:
        yield from _epilog(parser.epilog)
    for action in subparsers:
        for verb in action.choices.values():
            yield from _command(verb, level + 1)


def _usage(parser: argparse.ArgumentParser) -> str:
    """Return the usage in one line, whatever the width of the terminal."""
    return " ".join(parser.format_usage().removeprefix("usage: ").split())


def _row(action: argparse.Action) -> str:
    value = action.metavar or action.dest.upper()
    if not action.option_strings:
        names = f"`{value}`"
    else:
        takes = "" if action.nargs == 0 else f" {value}" + (f" [{value} ...]" if action.nargs == "+" else "")
        names = ", ".join(f"`{option}{takes}`" for option in action.option_strings)
    return f"| {names} | {action.help or ''} |".replace("FILE|latest", r"FILE\|latest")


def _epilog(text: str) -> Iterator[str]:
    """Yield a list of verbs as a table, and other text as it is."""
    first, *rest = text.split("\n")
    if not rest:
        yield from (_sentence(first), "")
        return
    yield from (f"| {first.strip(': ').removesuffix('s')} | does |", "| --- | --- |")
    for line in rest:
        name, does = line.split(maxsplit=1)
        yield f"| `{name}` | {does} |"
    yield ""


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def main() -> int:
    """Write the page, or with --check compare it; return the exit code."""
    if sys.argv[1:] == ["--check"]:
        return 0 if PAGE.read_text() == page() else 1
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
