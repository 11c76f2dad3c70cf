"""The stamp of some models in a database: asks for it, reads what it says of them, and keeps what a look found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import peewee

from ..errors import ConfigError
from ..light_stdlib import TYPE_CHECKING, Any, dataclass, replace
from ..models.service import MigrationVersion
from ..settings.kinds import difference_of
from .ddl import ModelType
from .engines.base import Engine
from .plan import Plan
from .schema import Difference
from .stamp import KEPT, ForeignHistory, Stamps, Standing, fingerprint, hash_of

if TYPE_CHECKING:
    from .diff import Drift


@dataclass(frozen=True)
class Stamping:
    """The questions about a stamp.

    :param models: those that the run is about.
    :param wait_seconds: how long a question waits for a lock.
    :param accepted: the differences that count as none.
    :param names: of data migrations.
    """

    engine: Engine
    models: Sequence[ModelType]
    wait_seconds: float
    accepted: tuple[Difference, ...] = ()
    names: frozenset[str] = frozenset()

    @property
    def stamped_models(self) -> list[ModelType]:
        """The models, and the one of the history, whether or not they have it among them."""
        return list(dict.fromkeys([*self.models, MigrationVersion]))

    def fingerprint(self) -> str:
        """Return the hash of all that the models declare, and of what may differ from it."""
        return fingerprint(self.engine.db, self.stamped_models, self.accepted)

    def standing(self) -> Standing | None:
        """Ask how the database stands; None where its history cannot be read."""
        try:
            return self.engine.standing(self.stamped_models, self.wait_seconds, with_rows=bool(self.names))
        except ForeignHistory:
            return None

    def drift(self, standing: Standing | None) -> tuple[Drift, ...] | None:
        """Return the drift that these models were found to have in this very schema; None where nobody has looked."""
        if standing is None or standing.stamps is None:
            return None
        found = standing.stamps.differences(self.fingerprint(), standing.mark)
        if not found:
            return None if found is None else ()
        from .diff import Drift  # not for a start that finds itself in sync

        return tuple(Drift(*facts) for facts in found)

    def plan(self, standing: Standing | None) -> Plan | None:
        """Return what a run has to do that finds its stamp: nothing; None where it has to look."""
        drift = self.drift(standing)
        return None if standing is None or drift is None else Plan(self.engine.name, standing.version, drift=drift)

    def is_unrecorded(self, standing: Standing | None) -> bool:
        """Tell whether a run of these models was not recorded yet; who may not note that it is leaves it to others."""
        stamps = standing.stamps if standing and standing.may_write else None
        return bool(stamps and stamps.unrecorded and stamps.unrecorded == self.fingerprint())

    def is_other_online(self, standing: Standing | None) -> bool:
        """Tell whether a run of other models is past its transaction, and may build indexes for hours."""
        stamps = standing.stamps if standing else None
        return bool(stamps and stamps.unrecorded and stamps.unrecorded != self.fingerprint())

    def keep_found(self, standing: Standing | None, drift: Sequence[Drift]) -> None:
        """Keep what a look found."""
        if standing and standing.stamps:
            self._keep(standing, self._with_found(standing.stamps, standing.mark, drift))

    def keep_unrecorded(self, standing: Standing | None) -> None:
        """Note that a run of these models is past its transaction, and not recorded yet."""
        if standing and standing.stamps:
            self._keep(standing, replace(standing.stamps, unrecorded=self.fingerprint()))

    def keep_recorded(self, standing: Standing | None, drift: Sequence[Drift], is_found: bool = True) -> None:
        """Keep what a run found that is recorded.

        :param is_found: whether the next start need not look again.
        """
        if standing and standing.stamps:
            recorded = replace(standing.stamps, unrecorded="")
            self._keep(standing, self._with_found(recorded, standing.mark, drift) if is_found else recorded)

    def has_finished(self, standing: Standing | None) -> bool:
        """Tell whether the data migrations are known to be finished."""
        finished: frozenset[str] = standing.finished if standing else frozenset()
        return finished.issuperset(self.names) or hash_of(self.names) in finished

    def keep_undone(self, standing: Standing | None) -> None:
        """Note that no run is past its transaction: what one had added there is taken back."""
        if standing and standing.stamps:
            self._keep(standing, replace(standing.stamps, unrecorded=""))

    def keep_finished(self) -> None:
        """Keep that the data migrations are finished, so that the next start asks no further."""
        standing = self.standing()
        if standing and standing.stamps and not self.has_finished(standing):
            finished = (hash_of(self.names), *standing.stamps.finished)[:KEPT]
            self._keep(standing, replace(standing.stamps, finished=finished))

    def _with_found(self, stamps: Stamps, mark: str, drift: Sequence[Drift]) -> Stamps:
        # What rows alone keep from being finished can be done as soon as they are corrected, so it is looked for again.
        if any(d.unfinished for d in drift):
            return stamps
        return stamps.adding(self.fingerprint(), mark, [d.facts for d in drift])

    def _keep(self, standing: Standing, stamps: Stamps) -> None:
        if standing.may_write and stamps != standing.stamps:
            self.engine.keep(stamps)


def accepted_differences(db: peewee.Database, given: Iterable[Mapping[str, Any]] | None) -> tuple[Any, ...]:
    """Return the differences that count as none, each as kind, table, name, declared and live."""
    if given is None:
        return getattr(getattr(db, "settings", None), "accepted_drift", ())
    try:
        return tuple(map(difference_of, given))
    except (TypeError, ValueError):
        hint = "give mappings with kind, table, name, declared and live, as verify --json lists them under drift"
        raise ConfigError("accepted_drift is no list of differences", hint) from None
