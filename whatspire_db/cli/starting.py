"""The first moments of a command: a signal ends it in two lines before the modules are there that handle signals.

Without a handler the first process of a container would not hear SIGTERM at all, and Python would print a traceback.
"""

from __future__ import annotations

import sys

COMMANDS = ("whatspire_db", "whatspire_db.migrate", "whatspire_db.backup", "whatspire_db.health")
HINT = "nothing is half done; run it again"


def command() -> str | None:
    """Return the command that Python was started for, while it still looks for that module; None in other programs."""
    if sys.argv[:1] != ["-m"]:  # so it is for as long as the packages above a module are imported
        return None
    arguments = sys.orig_argv[1:]
    return next((name for name in COMMANDS if name in arguments or f"-m{name}" in arguments), None)


def begin(name: str) -> None:
    """Let SIGINT and SIGTERM end a command that starts, and collect no garbage before it has begun its work.

    A signal that the caller ignores stays ignored.
    """
    import gc
    import signal

    gc.disable()  # what is imported stays, so a search through it finds nothing and takes its time

    def end(number: int, frame: object) -> None:
        is_health = name.endswith("health") or (name == "whatspire_db" and "health" in sys.orig_argv)
        _end("terminated" if number == signal.SIGTERM else "interrupted", 1 if is_health else 128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            signal.signal(number, end)


def _end(fact: str, code: int) -> None:
    import os

    try:
        if "--json" in sys.orig_argv:
            healthy = '"healthy": false, ' if code == 1 else ""
            os.write(1, f'{{"error": "{fact}", "hint": "{HINT}", {healthy}"exit": {code}}}\n'.encode())
        os.write(2, f"error: {fact}\nhint:  {HINT}\n".encode())
    finally:
        os._exit(code)


if name := command():
    begin(name)
