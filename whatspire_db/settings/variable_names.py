"""Names of environment variables: which are settings, which are mistyped, and which are other programs'."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from ..errors import ConfigError
from ..light_stdlib import pattern
from .kinds import CONFIG, EVENTS, PREFIX, SERVICE

# Kubernetes puts these into each pod for a Service named whatsapp-database, or whatsapp-database-replica.
_KUBERNETES = pattern(r"(?:.*_)?(?:SERVICE_.+|PORT|PORT_.+)")
_SHORT = 8  # letters: a shorter name may differ by one letter, a longer one by two


def check_names(names: Iterable[str], known: Collection[str]) -> list[str]:
    """Check the names of all variables that are set, and return those that look like settings and are none.

    :param known: the variables of all settings.
    :raises ConfigError: when a name is almost that of a setting; the value is not repeated.
    """
    families = {
        prefix: [each[len(prefix) :] for each in known if each.startswith(prefix)] for prefix in (PREFIX, EVENTS)
    }
    unknown = []
    for name in sorted(names):
        prefix = next((each for each in families if name.upper().startswith(each)), SERVICE)
        rest = name[len(prefix) :]
        if prefix == SERVICE:
            if distance(name.upper(), CONFIG) <= 1:
                raise _no_setting(name, CONFIG)
            unknown += [name] if _has_almost_the_prefix(name, families[PREFIX]) else []
        elif not name.startswith(prefix) or (rest not in families[prefix] and not _KUBERNETES.fullmatch(rest)):
            if near := _near(rest, families[prefix]):
                raise _no_setting(name, prefix + near)
            unknown += [_shown(name)] if prefix == PREFIX else []  # the service has more about its events
    return unknown


def _no_setting(name: str, near: str) -> ConfigError:
    return ConfigError(f"{_shown(name)} is not a setting", f"the setting is {near}: rename or unset it")


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
