"""Whether a superuser may run the code in a dump: a restore evaluates the checks and expressions of every owner."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from whatspire_db.dsn.targets import PostgresTarget
from whatspire_db.errors import SourceNotTrusted

from . import tools as pg_tools
from .content import owners_in
from .dump_file import owners_of
from .server import Session, session

# A setting of the database can give a session another role, and what runs in it can take that back.
_ACTS_AS_SUPERUSER = "SELECT bool_or(rolsuper) FROM pg_catalog.pg_roles WHERE rolname IN (current_user, session_user)"
_SUPERUSERS = "SELECT rolname FROM pg_catalog.pg_roles WHERE rolsuper AND rolname = ANY(%s)"


def require_trusted(admin: Session, file: Path, dumped_by: int, trusts: bool) -> None:
    """Refuse to restore a dump as a superuser where any owner in it is not one, or does not exist on this server.

    :param trusts: the user trusts every owner.
    :raises SourceNotTrusted: when it is refused; nothing of the dump has run.
    """
    if trusts or not admin.value(_ACTS_AS_SUPERUSER):
        return
    tool = pg_tools.find("pg_restore", dumped_by, "the dump")
    _require_superusers(admin, owners_of(tool, file), "the backup holds objects of")


def require_trusted_database(target: PostgresTarget, trusts: bool) -> None:
    """Refuse to try a backup out as a superuser before it is made, where the database has objects of other roles.

    :raises SourceNotTrusted: when it is refused.
    """
    with session(target) as asked:
        if not trusts and asked.value(_ACTS_AS_SUPERUSER):
            name = asked.value("SELECT current_database()")
            _require_superusers(asked, owners_in(asked), f"database {name} holds objects of")


def _require_superusers(asked: Session, owners: Iterable[str], fact: str) -> None:
    # The names of a dump in another encoding are not read, and belong to nobody here.
    readable = [name for name in owners if not any("\ud800" <= letter <= "\udfff" for letter in name)]
    strangers = set(owners) - {name for (name,) in asked.rows(_SUPERUSERS, readable)}
    if not strangers:
        return
    raise SourceNotTrusted(
        f"{fact} {', '.join(sorted(strangers))}, and a restore as superuser {asked.value('SELECT session_user')} would "
        "run their code: checks, generated columns, indexes",
        "run it as the role that owns them; or give --trust-source, if you trust whoever could make objects there",
    )
