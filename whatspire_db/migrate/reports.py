"""What a run did, and how a database stands beside the models, as values."""

from __future__ import annotations

from ..light_stdlib import TYPE_CHECKING, Any, NamedTuple, dataclass
from .plan import Plan, Step

if TYPE_CHECKING:
    from ..data import DataOutcome
    from .diff import Drift, Missing


class Done(NamedTuple):
    """What a run did, the version since, and the file of the backup that was made before."""

    plan: Plan
    version: int
    backup: str | None = None


@dataclass(frozen=True)
class Report:
    """What a run did. `applied` is empty when there was nothing to do; `data` is None without data migrations."""

    driver: str
    previous_version: int
    version: int
    applied: tuple[Step, ...]
    drift: tuple[Drift, ...]
    duration_ms: float
    backup: str | None = None  # the file of the backup that was made before
    data: DataOutcome | None = None

    def to_json(self) -> dict[str, Any]:
        made = {"backup": self.backup} if self.backup else {}
        data = {"data": self.data.to_json()} if self.data else {}
        return {
            "driver": self.driver,
            "previous_version": self.previous_version,
            "version": self.version,
            "applied": [step.to_json() for step in self.applied],
            "drift": [drift.to_json() for drift in self.drift],
            "duration_ms": round(self.duration_ms, 1),
            **made,
            **data,
        }


@dataclass(frozen=True)
class SchemaCheck:
    """How a database stands beside the models; `version` is None where no history can be read.

    `unproved` says why names alone could be compared, and what to do about it.
    """

    version: int | None
    missing: tuple[Missing, ...] = ()
    drift: tuple[Drift, ...] = ()
    unproved: tuple[str, str] | None = None

    @property
    def in_sync(self) -> bool | None:
        """Tell whether nothing is missing and nothing drifted; None where names alone agree."""
        if self.missing or self.drift:
            return False
        return None if self.unproved else True
