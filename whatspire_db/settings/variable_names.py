"""Names of environment variables: which are settings, which are mistyped, and which are other programs'."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from ..errors import ConfigError
from ..light_stdlib import pattern
from .kinds import PREFIX

# Kubernetes puts these into each pod for a Service named whatsapp-database, or whatsapp-database-replica.
_KUBERNETES = pattern(r"(?:.*_)?(?:SERVICE_.+|PORT|PORT_.+)")
_SHORT = 8  # letters: a shorter name may differ by one letter, a longer one by two


def check_names(names: Iterable[str], known: Collection[str]) -> list[str]:
    """Check the names of all variables that are set, and return those that look like settings and are none.

    :param known: the settings, without the prefix.
    :raises ConfigError: when a name is almost that of a setting; the value is not repeated.
    """
    unknown = []
    for name in sorted(names):
        rest = name[len(PREFIX) :]
        if not name.upper().startswith(PREFIX):
            unknown += [name] if _has_almost_the_prefix(name, known) else []
        elif not name.startswith(PREFIX) or (rest not in known and not _KUBERNETES.fullmatch(rest)):
            if near := _near(rest, known):
                hint = f"the setting is {PREFIX}{near}: rename or unset it"
                raise ConfigError(f"{_shown(name)} is not a setting", hint)
            unknown.append(_shown(name))
    return unknown


def _has_almost_the_prefix(name: str, known: Collection[str]) -> bool:
    if not name.upper().startswith("WHAT"):
        return False
    return any(name.endswith(f"_{each}") and distance(name[: -len(each)], PREFIX) <= 2 for each in known)


def _near(name: str, known: Collection[str]) -> str | None:
    """Return the setting that a name is almost equal to."""
    name = re.sub(r"[-.\s]", "_", name.strip().upper())
    least, near = min((distance(name, each), each) for each in known)
    return near if least <= (1 if len(near) < _SHORT else 2) else None


def distance(one: str, other: str) -> int:
    """Return how many letters must be put in, left out, replaced or swapped with their neighbour."""
    last: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one):
        above, row = row, [i + 1]
        for j, wanted in enumerate(other):
            cost = min(row[j] + 1, above[j + 1] + 1, above[j] + (letter != wanted))
            if i and j and letter == other[j - 1] and one[i - 1] == wanted:
                cost = min(cost, last[j - 1] + 1)
            row.append(cost)
        last = above
    return row[-1]


def _shown(name: str) -> str:
    return name if re.fullmatch(r"[\w.-]{1,80}", name) else f"{PREFIX}..."
