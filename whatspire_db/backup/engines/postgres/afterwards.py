"""The part of a dump that a database is whole without: views that are refreshed, publications, event triggers, labels.

It is restored when all else is there, each entry by itself. What the server refuses is left out with a warning.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from whatspire_db import messages
from whatspire_db.backup.manifest import Progress
from whatspire_db.dsn.targets import PostgresTarget

from . import tools as pg_tools
from .dump_file import Entry, needing, title
from .server import PIN, SESSION, Session, session
from .swapping import RESTORING

logger = logging.getLogger("whatspire_db.backup")

_CATALOGS = {3466, 6100, 6104, 6106, 6237}  # event triggers, subscriptions, publications and what they publish
_REFRESH = "MATERIALIZED VIEW DATA "
_SUBSCRIPTIONS = """
SELECT s.subname FROM pg_catalog.pg_subscription AS s JOIN pg_catalog.pg_database AS d ON d.oid = s.subdbid
WHERE d.datname = current_database() AND NOT s.subenabled ORDER BY 1
"""
_KEY = re.compile(r"^\\restrict (\S+)$", re.MULTILINE)
_ENCODING = re.compile(r"^SET client_encoding = '([\w-]+)';$", re.MULTILINE)
# Classes of SQLSTATE for a server that is short of something, stops or is broken: no fault of an entry.
_SERVERS_OWN = {"08", "53", "57", "58", "XX"}
# Classes for what a row or a function said, whose words can hold a value.
_ROWS_OWN = {"22", "23", "P0", "38", "39"}


def afterwards(entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries that can wait, in the order in which they are restored: what derives rows first."""
    waiting = needing(entries, (entry.number for entry in entries if _can_wait(entry)))
    return sorted((entry for entry in entries if entry.number in waiting), key=lambda entry: not _is_refresh(entry))


def _can_wait(entry: Entry) -> bool:
    return entry.catalog in _CATALOGS or (not entry.catalog and entry.words.startswith((_REFRESH, "SECURITY LABEL ")))


def _is_refresh(entry: Entry) -> bool:
    return not entry.catalog and entry.words.startswith(_REFRESH)


def finish(
    target: PostgresTarget,
    tool: pg_tools.Tool,
    file: Path,
    entries: Iterable[Entry],
    options: Sequence[str],
    owners: Collection[str],
    work: Path,
    progress: Progress,
) -> None:
    """Restore what can wait; warn of each entry that is left out, and why.

    :raises BackupFailed: when the server itself fails.
    """
    entries = list(entries)
    if not entries:
        return
    left_out: set[int] = set()
    with session(PostgresTarget({**target.arguments, "application_name": RESTORING})) as asked:
        asked.rows("RESET ALL")  # a view's rows are made under the settings of the role, as PostgreSQL's programs do
        asked.rows(PIN)
        asked.set({name: value for name, value in SESSION.items() if name.endswith(("_timeout", "_read_only"))})
        for entry in entries:
            progress("restoring", 0, 0)
            if entry.needs & left_out or not _restored(asked, tool, file, entry, options, owners, work):
                left_out.add(entry.number)


def warn_of_subscriptions(target: PostgresTarget) -> None:
    """Say which subscriptions a restore brought back: they receive nothing until they are enabled."""
    with session(target) as asked:
        for (name,) in asked.rows(_SUBSCRIPTIONS):
            logger.warning("subscription %s is restored disabled: ALTER SUBSCRIPTION ... ENABLE starts it again", name)


def _restored(
    asked: Session,
    tool: pg_tools.Tool,
    file: Path,
    entry: Entry,
    options: Sequence[str],
    owners: Collection[str],
    work: Path,
) -> bool:
    """Restore an entry and return True, or warn that it is left out and return False."""
    import psycopg2

    statements = _statements(tool, file, entry, options, work)
    if encoding := _ENCODING.search(statements):
        asked.rows(f"SET client_encoding = '{encoding[1]}'")  # the statements are in it before they set it
    try:
        asked.rows(statements.encode("utf-8", "surrogateescape"))
    except psycopg2.Error as error:
        if (messages.sqlstate(error) or "08")[:2] in _SERVERS_OWN:
            raise
        logger.warning("%s", _left_out(entry, error, owners))
        return False
    return True


def _statements(tool: pg_tools.Tool, file: Path, entry: Entry, options: Sequence[str], work: Path) -> str:
    """Return the statements that make an entry, without the lines that are for psql."""
    listed = work / "entry"
    listed.write_text(f"{entry.line}\n", encoding="utf-8", errors="surrogateescape")
    text = pg_tools.run(tool, [f"--use-list={listed}", "--file=-", *options, str(file)], None)
    if key := _KEY.search(text):
        text = text.replace(f"\\restrict {key[1]}\n", "").replace(f"\\unrestrict {key[1]}\n", "")
    return text


def _left_out(entry: Entry, error: Exception, owners: Collection[str]) -> str:
    name = messages.clean(title(entry, owners))
    if _is_refresh(entry):
        again = name.removeprefix("materialized view ")
        return f"{name} is restored without its rows: {_why(error)}; mend that, and REFRESH MATERIALIZED VIEW {again}"
    return f"left out: {name}: {_why(error)}"


def _why(error: Exception) -> str:
    state = messages.sqlstate(error) or ""
    if state[:2] in _ROWS_OWN:
        return f"the server refuses what it computes (SQLSTATE {state})"
    return messages.first_line(error)
