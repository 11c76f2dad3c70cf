"""Where a cluster keeps the rows of each table, and what that forbids; a single server keeps them all in one place."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ..errors import WhatspireDBError
from .schema import Column, Constraint, Key


class Placements:
    """All rows in one place: it forbids nothing, and there is nothing to say of it."""

    def refuses_column(self, key: Key, column: Column) -> WhatspireDBError | None:
        """Return why a table takes no such new column, and what to do instead; None where it does."""
        return None

    def refuses_unique(self, key: Key, columns: Sequence[str]) -> WhatspireDBError | None:
        """Return why a table cannot be unique by these plain columns, and what to do instead; None where it can."""
        return None

    def refuses_unique_of_index(self, key: Key) -> WhatspireDBError | None:
        """Return why a table takes no constraint that is made of an index, and what to do; None where it does."""
        return None

    def refuses_reference(self, key: Key, constraint: Constraint) -> WhatspireDBError | None:
        """Return why a table cannot have a foreign key, and what to do instead; None where it can."""
        return None

    def notes(self, concerned: Collection[Key], new: Collection[Key]) -> tuple[str, ...]:
        """Return where the tables stand that a plan is about.

        :param concerned: those that stand already.
        :param new: those that the plan creates.
        """
        return ()
