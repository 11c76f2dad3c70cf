"""The command line: whatspire-db transfer."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from ..connection.connecting import connect
from ..dsn.forms import SQLITE
from ..dsn.redaction import shown
from ..errors import ConfigError
from ..settings import Settings
from ..settings.durations import seconds_of
from ..transfer import fence, live_source
from ..transfer.checking import Checked
from ..transfer.faults import CHOICES, KINDS
from ..transfer.opening import ends_of, sqlite_source
from ..transfer.progress import Watcher
from ..transfer.progress import logger as progress_logger
from ..transfer.reports import Report, found_lines
from ..transfer.transferring import check, transfer
from .call import OK, Answer, Call, configure_logging, progress_bar, run_command, symbol
from .loading import settings_and_models
from .options import Parser, RawHelpFormatter, add_shared_options, add_trust_source

PROG = "whatspire-db transfer"
FOUND = 3
HAS_LOG = (
    "note: the source has the change log of a live transfer, which grows with every write; if none runs, "
    "whatspire-db transfer --remove-log removes it"
)


def parser_of(prog: str = PROG) -> argparse.ArgumentParser:
    """Return the parser of the command under the name that the user typed."""
    width = max(map(len, KINDS))
    kinds = "\n".join(
        f"  {kind:<{width}}  {what}" + (f"; replace: {instead}" if instead else "")
        for kind, (what, instead) in KINDS.items()
    )
    parser = Parser(
        prog=prog,
        formatter_class=RawHelpFormatter,
        description="Bring every row from SQLite to PostgreSQL, or back, and prove that both sides are equal.",
        epilog=f"kinds of faults, for --on KIND=CHOICE:\n{kinds}",
    )
    _add_options(parser)
    add_shared_options(parser)
    return parser


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to", metavar="DSN", help="the database to fill, whose tables have no rows")
    parser.add_argument("--from", dest="source", metavar="DSN", help="the database to read: another name for --dsn")
    parser.add_argument("--check", action="store_true", help="find what PostgreSQL cannot hold, and copy nothing")
    parser.add_argument(
        "--on",
        action="append",
        metavar="KIND=CHOICE",
        help=f"what to do about a kind of fault, or about all: {', '.join(CHOICES)} (default: {CHOICES[0]})",
    )
    parser.add_argument(
        "--live",
        action="store_true",
        help="let others write to the SQLite source until a short lock at the end, after which a fence refuses writes",
    )
    parser.add_argument(
        "--remove-fence",
        action="store_true",
        help="let a SQLite file be written again whose rows a live transfer moved; takes --from alone",
    )
    parser.add_argument(
        "--remove-log",
        action="store_true",
        help="remove what a live transfer left at a SQLite file that was killed; takes --from alone",
    )
    parser.add_argument("--side-file", metavar="FILE", help="the new file for rows that are set aside")
    parser.add_argument(
        "--leave",
        nargs="+",
        action="extend",
        metavar="TABLE",
        help="leave behind what has no model: a table, or a column as TABLE.COLUMN",
    )
    parser.add_argument(
        "--lock-timeout", metavar="D", help="wait so long for another transfer, like 90s or 5m (default: 60s)"
    )
    add_trust_source(parser, "code of other roles that is in the target")


def main(argv: list[str] | None = None, prog: str = PROG) -> int:
    """Do a transfer, or check what one would meet, and return the exit code."""
    return run_command(Call(sys.argv[1:] if argv is None else argv), parser_of(prog).parse_args, _run)


def _run(call: Call) -> Answer:
    options = call.options
    configure_logging(options)
    progress_logger.setLevel(logging.ERROR if options.quiet else logging.INFO)
    if options.source is not None:
        if options.dsn is not None:
            raise ConfigError("--from and --dsn are two names for one thing", "give one of them")
        options.dsn = options.source
    if options.remove_fence or options.remove_log:
        return _at_source(call)
    if options.to is None:
        raise ConfigError("no target is named", "name it with --to DSN")
    choices = _choices(options.on or ())
    settings, models = settings_and_models(call)
    call.to = ends_of(settings, options.to).target_name  # an error may be about either database
    common: dict[str, Any] = {
        "leave": options.leave or (),
        "on": choices,
        "lock_timeout": _lock_timeout(call, settings),
        "watcher": _CommandLineWatcher(options.quiet),
    }
    if options.check:
        return _checked(call, check(settings, options.to, models, **common))
    report = transfer(
        settings,
        options.to,
        models,
        side_file=options.side_file or "",
        trust_source=options.trust_source,
        live=options.live,
        **common,
    )
    return Answer(call.named(report.to_json()), [call.line, *_lines(report)])


def _lock_timeout(call: Call, settings: Settings) -> float:
    given = call.options.lock_timeout
    return seconds_of("--lock-timeout", settings.migration_lock_timeout if given is None else given)


def _at_source(call: Call) -> Answer:
    """Remove the fence of a SQLite file, or what a live transfer left there."""
    option, what = ("--remove-fence", "a fence") if call.options.remove_fence else ("--remove-log", "a change log")
    if call.options.remove_fence and call.options.remove_log:
        raise ConfigError("--remove-fence and --remove-log are two commands", "give one of them")
    if call.options.to is not None:
        raise ConfigError(f"{option} is about the source alone", "leave out --to")
    settings = call.settings()
    if settings.driver != SQLITE:
        raise ConfigError(f"only a SQLite file has {what}", "name it in --from")
    with sqlite_source(settings, may_be_fenced=True):  # which says what is wrong with a file
        pass
    return _without_fence(call, settings) if call.options.remove_fence else _without_log(call, settings)


def _without_fence(call: Call, settings: Settings) -> Answer:
    db: Any = connect(settings, bind=False, read_only=True)
    with db.connection_context():
        found = fence.remove(db)
    return Answer(call.named({"removed": found.to_json() if found else None}), [call.line, fence.removed(found)])


def _without_log(call: Call, settings: Settings) -> Answer:
    with live_source.opened(settings, _lock_timeout(call, settings)) as source:
        removed = live_source.clear(source, settings)
    said = f"removed: {', '.join(removed)}" if removed else "no live transfer left anything here"
    return Answer(call.named({"removed": removed}), [call.line, said])


def _choices(given: Sequence[str]) -> dict[str, str]:
    """Read the choices that are given as KIND=CHOICE."""
    pairs = [text.partition("=") for text in given]
    for kind, equals, choice in pairs:
        if not (kind and equals and choice):
            raise ConfigError(f"--on is {shown(kind)}", f"write KIND=CHOICE, with {', '.join(CHOICES)}")
    return {kind: choice for kind, _, choice in pairs}


def _checked(call: Call, checked: Checked) -> Answer:
    document = {
        "to": call.to,
        "findings": [finding.to_json() for finding in checked.findings],
        "more": checked.more,
        "refused": checked.refused,
        "replaced": checked.replaced,
        "set_aside": checked.set_aside,
        "change_log": checked.has_log,
    }
    lines = [call.line, f"to: {call.to}", *found_lines(checked), *([HAS_LOG] if checked.has_log else [])]
    if not checked.counts:
        lines.append(symbol("✅", "PostgreSQL can hold every row"))
    elif not checked.refused:
        lines.append(symbol("✅", f"{checked.replaced:,} values to replace, {checked.set_aside:,} rows to set aside"))
    return Answer(call.named(document), lines, FOUND if checked.refused else OK)


def _lines(report: Report) -> Iterator[str]:
    yield f"to: {report.ends.target_name}"
    width = max(len(table.table) for table in report.tables)
    for table in report.tables:
        yield f"  {table.table:<{width}}  {table.rows:>12,} rows  {table.seconds:8.1f} s"
    if report.shortened:
        yield f"note: {report.shortened:,} times were cut to microseconds, which is what PostgreSQL keeps"
    if report.replaced:
        yield f"note: {report.replaced:,} values were replaced"
    if report.set_aside:
        yield f"note: {report.set_aside:,} rows were set aside, in {report.side_file}"
    if report.has_log:
        yield HAS_LOG
    if report.locked:
        yield f"writers were locked out {report.locked}; now the source's fence refuses every write"
    yield symbol("✅", f"{report.rows:,} rows in {report.seconds:.1f} s, proved equal on both sides")
    yield "to switch, set in .env:"
    yield from (f"  {line}" for line in report.switch)


class _CommandLineWatcher(Watcher):
    """Draws a bar for each phase of a table on a terminal; elsewhere the log gets a line every ten seconds."""

    def __init__(self, is_quiet: bool) -> None:
        super().__init__()
        self.draws = not is_quiet and sys.stderr.isatty()
        self.title = ""
        self.bar: Any = None

    def progress(self, phase: str, table: str, done: int, total: int | None) -> None:
        if not self.draws:
            super().progress(phase, table, done, total)
            return
        title = f"{phase} {table}"
        if title != self.title:
            self.ended()
            self.title, self.bar = title, progress_bar(title, leave=False)
        self.bar.n = done / total if total else 0
        self.bar.set_postfix_str(f"{done:,} rows" if done else "", refresh=True)

    def ended(self) -> None:
        if self.bar is not None:
            self.bar.close()
        self.title, self.bar = "", None
