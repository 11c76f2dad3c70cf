"""What a message may repeat of what a user wrote: plain values, but no DSN and no secret."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from ..light_stdlib import pattern

HIDDEN = "***"

_WORDS = pattern(r"[A-Za-z]+([_./ -][A-Za-z]+)*")
_NUMBERS = pattern(r"[+-]?[.,]?[0-9][0-9.,_]*(\s?[a-zµμ]{1,8}[0-9.,]*)*")
_LONGEST = 40  # characters of a value that is repeated
_SENSITIVE = r"(?:pass(?:word|wd|phrase|code)?|pwd|secret|token|api[_-]?key)"
_OPTION = pattern(r"--?[A-Za-z][A-Za-z-]*")
_OPTION_FOR_SECRET = pattern(rf"--?[a-z_-]*{_SENSITIVE}", re.IGNORECASE)
_DSN = pattern(
    r"://"  # a URL
    r"|:[^\s:@]*@"  # user:password@host; no more of it than tells it, for long texts take long otherwise
    rf"|{_SENSITIVE}[\"']?\s*[=:]"  # password=, "password":
    r"|(?:^|[\s;?&\"'])(?:host|hostaddr|user|dbname|service|server|data source|uid|user id)\s*=",
    re.IGNORECASE,
)
_PLAIN_WORD = pattern(r"[A-Za-z]*|[0-9]*|\W*|.{1,3}", re.DOTALL)
# What stands before and behind a value that a driver repeats, in any language.
_OPENING, _CLOSING = r"[\"'=:@/«»„“”‘’`(]", r"[\"'@&;,/\s«»„“”‘’`)]"


def looks_like_dsn(text: str) -> bool:
    """Return whether a text looks like a DSN, or holds a secret beside its name."""
    return bool(_DSN.search(text))


def is_plain(text: str) -> bool:
    """Return whether a text is short and consists of words or of numbers with units, so that it can be repeated."""
    fits = len(text) <= _LONGEST and not looks_like_dsn(text)
    return fits and bool(_WORDS.fullmatch(text) or _NUMBERS.fullmatch(text))


def shown(value: object) -> str:
    """Return a value as a message may show it: a plain one as it is, any other by what it is."""
    if not isinstance(value, str):
        return repr(value) if isinstance(value, bool | int | float) else f"a {type(value).__name__}"
    if is_plain(value):
        return repr(value)
    if looks_like_dsn(value):
        return "what looks like a DSN (not shown here)"
    return f"a text of {len(value)} characters (not shown here)" if value else "empty"


def place_of(url: str) -> str:
    """Return where a URL leads, without user, password and parameters."""
    scheme, _, rest = url.partition("?")[0].partition(":")
    user, at, place = rest.rpartition("@")
    slashes = "//" if at and user.startswith("//") else ""
    return f"{scheme.rpartition('@')[2]}:{slashes}{place}"


def redact(text: str, secrets: Iterable[str]) -> str:
    """Return a message without the secrets.

    A secret that is an ordinary word or number is hidden only where the message quotes a value, because the same
    word may be part of the message itself.
    """
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = _pattern_of(secret).sub(HIDDEN, text)
    return text


def _pattern_of(secret: str) -> re.Pattern[str]:
    if _PLAIN_WORD.fullmatch(secret):
        return re.compile(rf"(?<={_OPENING}){re.escape(secret)}(?={_CLOSING}|$)")
    before = r"(?<!\w)" if re.match(r"\w", secret) else ""
    behind = r"(?!\w)" if re.search(r"\w\Z", secret) else ""
    return re.compile(before + re.escape(secret) + behind)


def without_arguments(message: str, arguments: Iterable[str]) -> str:
    """Return a message about a command line without those of its arguments that may be secret.

    The names of options and plain words and numbers stay, but not the value of an option like --password.
    """
    for secret in sorted(filter(None, _doubtful(arguments)), key=len, reverse=True):
        message = message.replace(repr(secret), HIDDEN)
        if re.search(r"\w", secret):
            message = message.replace(secret, HIDDEN)
        else:  # signs alone, like the "--" before what is no option, are part of other words too
            message = re.sub(rf"(?<![^\s='\"]){re.escape(secret)}(?![^\s,'\"])", HIDDEN, message)
    return message


def without_dsns(message: str, arguments: Iterable[str]) -> str:
    """Return a message without those arguments that look like a DSN, whoever repeats them."""
    for argument in arguments:
        option, _, value = argument.partition("=")
        text = value if _OPTION.fullmatch(option) else argument
        if looks_like_dsn(text) and not _is_bare_url(text):
            message = message.replace(text, HIDDEN)
    return message


def _is_bare_url(text: str) -> bool:
    """Return whether a text is a URL without user, password and parameters, which a message may repeat."""
    return "://" in text and place_of(text) == text and not looks_like_dsn(text.replace("://", "/", 1))


def _doubtful(arguments: Iterable[str]) -> Iterator[str]:
    """Give those arguments, or values of options, that a message must not repeat."""
    for_secret = False
    for argument in arguments:
        option, equals, value = argument.partition("=")
        is_option = bool(_OPTION.fullmatch(option))
        text = value if is_option else argument
        if for_secret or not is_plain(text) or (is_option and equals and _OPTION_FOR_SECRET.match(option)):
            yield text
        for_secret = is_option and not equals and bool(_OPTION_FOR_SECRET.match(option))
