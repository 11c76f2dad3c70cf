"""Every error that a caller can catch; each says what is the case and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .migrate.plan import Plan


class WhatspireDBError(Exception):
    """Base of all errors of this package.

    `fact` is one sentence that names the object and the values, `hint` says
    what to do about it. `exit_code` is what the command line ends with.
    """

    exit_code = 1

    def __init__(self, fact: str, hint: str) -> None:
        super().__init__(fact, hint)
        self.fact = " ".join(fact.split())
        self.hint = " ".join(hint.split())

    def __str__(self) -> str:
        return f"{self.fact} ({self.hint})"


class ConfigError(WhatspireDBError):
    """A setting, an argument or a models module is wrong."""

    exit_code = 2


class ConnectionFailed(WhatspireDBError):
    """The database cannot be reached or opened."""


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


class LockTimeout(WhatspireDBError):
    """Another migration, or another session, held a lock for longer than this run waits."""


class StepFailed(WhatspireDBError):
    """The database refused a statement; its transaction was rolled back."""


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


class BackupInvalid(WhatspireDBError):
    """A file is not a backup, or not the one that its manifest tells of."""

    exit_code = 3


class TargetRefused(WhatspireDBError):
    """A restore would overwrite data, or others hold the target; it is as it was."""

    exit_code = 4


class VersionMismatch(WhatspireDBError):
    """A backup, a server and the programs that are to handle them are of versions that do not fit."""

    exit_code = 5
