"""A .env file -> its variables; whatever cannot be read or understood is an error that repeats none of it."""

from __future__ import annotations

import io
import os
import re

from ..errors import ConfigError
from ..light_stdlib import Any, pattern
from .text_file import read_text

_USED = pattern(r"\$\{([^}:]*)\}")  # without a default, as python-dotenv has it
_NAME = pattern(r"[A-Za-z_][\w.-]*", re.ASCII)


def read_dotenv(path: str | os.PathLike[str], prefixes: tuple[str, ...]) -> dict[str, str]:
    """Return the variables of a .env file, which may be a pipe; none where there is no such file.

    :param prefixes: of the names that need a value.
    :raises ConfigError: when it is a folder, cannot be read, or a line of it cannot be parsed.
    """
    text = read_text(path, "NAME=value lines")
    return _variables(os.fspath(path), text, prefixes) if text and text.strip() else {}


def _variables(path: str, text: str, prefixes: tuple[str, ...]) -> dict[str, str]:
    from dotenv import dotenv_values  # only where there is a file to read
    from dotenv.parser import parse_stream

    known = set(os.environ)
    for binding in parse_stream(io.StringIO(text)):
        if binding.error or (binding.key is not None and not _is_understood(binding.key, binding.value, prefixes)):
            raise ConfigError(
                f"line {_line(binding)} of {path} cannot be parsed",
                "write NAME=value, a value with blanks or # in quotes that are closed, and a comment behind #",
            )
        if binding.key is not None:
            if binding.key.startswith(prefixes) and not known.issuperset(_USED.findall(binding.value or "")):
                raise ConfigError(
                    f"line {_line(binding)} of {path} uses a variable that is not set",
                    "set it, or give it a default as in ${NAME:-default}; ${NAME} is replaced within quotes too",
                )
            known.add(binding.key)
    values = dotenv_values(stream=io.StringIO(text))
    return {name: value for name, value in values.items() if value is not None}


def _line(binding: Any) -> int:
    """Return the number of the line on which a binding begins; the parser counts the blank lines before it."""
    blank = re.match(r"\s*", binding.original.string)[0]  # type: ignore[index]  # it matches "" too
    return int(binding.original.line) + len(re.findall(r"\r\n|\n|\r", blank))


def _is_understood(name: str, value: str | None, prefixes: tuple[str, ...]) -> bool:
    # A name without "=" is how docker passes a variable on. Among ours it is more likely a value that was forgotten.
    is_forgotten = value is None and name.startswith(prefixes)
    return bool(_NAME.fullmatch(name)) and "\0" not in (value or "") and not is_forgotten
