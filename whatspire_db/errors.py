"""Every error that a caller can catch; each says what is the case and what to do."""

from __future__ import annotations

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any, TypeVar

    from .migrate.plan import Plan

    E = TypeVar("E", bound="WhatspireDBError")

LONGEST = 900  # characters of a fact or of a hint: both fit on a screen
_INVISIBLE = {"Cc", "Zl", "Zp"}  # control characters, line and paragraph separators
_DIRECTIONS = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: str) -> str:
    """Return a text whose control characters are escaped, so that it cannot steer a terminal or start a line."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_escaped, text))


def _escaped(letter: str) -> str:
    import unicodedata  # only for a text that is not plain

    if unicodedata.category(letter) not in _INVISIBLE and letter not in _DIRECTIONS:
        return letter
    return f"\\x{ord(letter):02x}" if ord(letter) < 256 else f"\\u{ord(letter):04x}"


def bounded(text: str, longest: int = LONGEST) -> str:
    """Return a text of at most so many characters: its beginning and its end, which says what went wrong."""
    if len(text) <= longest:
        return text
    end = longest // 3
    return f"{text[: longest - end - 5]} ... {text[-end:]}"


def _one_line(text: str) -> str:
    return bounded(printable(" ".join(text.split())))


class WhatspireDBError(Exception):
    """Base of all errors of this package.

    `fact` is one sentence that names the object and the values, `hint` says what to do about it: each is one line
    of at most 900 characters, without control characters. `exit_code` is the exit code of a command that fails so.
    """

    exit_code = 1

    def __init__(self, fact: str, hint: str) -> None:
        super().__init__(_one_line(fact), _one_line(hint))

    @property
    def fact(self) -> str:
        """What is the case."""
        return str(self.args[0])

    @fact.setter
    def fact(self, text: str) -> None:
        self.args = (_one_line(text), self.hint)

    @property
    def hint(self) -> str:
        """What to do about it."""
        return str(self.args[1])

    @hint.setter
    def hint(self, text: str) -> None:
        self.args = (self.fact, _one_line(text))

    def __str__(self) -> str:
        return f"{self.fact} ({self.hint})"

    def __reduce__(self) -> tuple[Any, ...]:
        # A subclass may take other arguments than a fact and a hint: a copy gets what they became.
        return _rebuilt, (type(self), self.args), self.__dict__


def _rebuilt(kind: type[E], args: tuple[str, str]) -> E:
    error = kind.__new__(kind, *args)
    error.args = args
    return error


class ConfigError(WhatspireDBError):
    """A setting, an argument or a models module is wrong."""

    exit_code = 2


class NotConnected(ConfigError, AttributeError):
    """A model was used before connect() pointed it at a database."""


class ConnectionFailed(WhatspireDBError):
    """The database cannot be reached or opened.

    `sqlstate` is what a PostgreSQL server answered with, `sqlite_code` SQLite's extended result code; None where
    there was no answer, or none that can be told. `accepts_now` says that the server took a connection right after,
    `is_unanswered` that nothing answered at all: no such host yet, nothing listens there, or what does is silent.
    `has_no_fitting_server` says that no server is what target_session_attrs asks for, as in a failover.
    """

    def __init__(self, fact: str, hint: str, *, sqlstate: str | None = None, sqlite_code: int | None = None) -> None:
        super().__init__(fact, hint)
        self.sqlstate = sqlstate
        self.sqlite_code = sqlite_code
        self.accepts_now = self.is_unanswered = self.has_no_fitting_server = False


class PoolTimeout(WhatspireDBError):
    """Every connection of the pool was in use for longer than the caller waits."""


class TransactionError(WhatspireDBError):
    """Something cannot be done while a transaction is open, or the session of an open transaction was lost."""


class ValueRefused(WhatspireDBError, ValueError):
    """A value cannot be stored in, or read from, a column without a loss."""


class ModelError(WhatspireDBError):
    """The models cannot be turned into a schema on this engine."""


class ScratchUnavailable(ModelError):
    """The declared schema cannot be worked out for want of a place to create it; names can still be compared."""


class RightMissing(WhatspireDBError):
    """Something is pending that this role, file or server does not let this user do."""


class WrongNode(WhatspireDBError):
    """This node of a cluster is not the one on which its schema is changed and compared; nothing was changed."""

    exit_code = 4


class DatabaseMoved(WhatspireDBError):
    """The rows of this database are in another one by now, and nothing is changed here."""

    exit_code = 4


class LockTimeout(WhatspireDBError):
    """Another migration, or another session, held a lock for longer than this run waits."""


class StepFailed(WhatspireDBError):
    """The database refused a statement; its transaction was rolled back."""


class DataMigrationFailed(WhatspireDBError):
    """The function of a data migration failed; its last transaction was rolled back, earlier ones stay."""


class VerificationFailed(WhatspireDBError):
    """After all steps the schema was still not the declared one; their transaction was rolled back."""


class MigrationRefused(WhatspireDBError):
    """An addition would fail or lose data, so nothing was applied; `plan` holds every refusal."""

    exit_code = 4

    def __init__(self, plan: Plan) -> None:
        first, more = plan.refused[0], len(plan.refused) - 1
        also = f"; and {more} more, see plan" if more else ""
        super().__init__(first.reason + also, first.hint)
        self.plan = plan


class BackupFailed(WhatspireDBError):
    """A backup or a restore could not be done; what was there before is as it was."""


class NothingToBackUp(BackupFailed):
    """A database holds no tables."""


class BackupTorn(BackupFailed):
    """A backup of this cluster would not be of one moment, and the caller did not accept that."""

    exit_code = 4


class BackupInvalid(WhatspireDBError):
    """A file is not a backup, or not the one that its manifest tells of."""

    exit_code = 3


class TargetRefused(WhatspireDBError):
    """A restore would overwrite data, or others hold the target; it is as it was."""

    exit_code = 4


class SourceNotTrusted(WhatspireDBError):
    """A superuser would run code that other roles left in a database; nothing of it has run."""

    exit_code = 4


class VersionMismatch(WhatspireDBError):
    """A backup, a server and the programs that are to handle them are of versions that do not fit."""

    exit_code = 5
