"""Start processes at once and report exit codes, milliseconds and peak memory.

A process of its own, and a small one: the kernel counts the memory of the parent, as it was at the start of a child,
as the child's own. Takes one JSON document as its argument and prints one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from typing import IO, Any


def launch(command: list[str], number: int, seconds: float) -> dict[str, Any]:
    """Start a command so many times at once, wait for the last, and end what takes longer than it may."""
    outputs = [tempfile.TemporaryFile() for _ in range(number)]  # noqa: SIM115 - read when all have ended
    started = time.perf_counter()
    children = [subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output) for output in outputs]

    def end(*_: object) -> None:
        for child in children:
            if child.returncode is None:
                os.kill(child.pid, signal.SIGKILL)

    signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    codes, peaks = [], []
    for child in children:
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        codes.append(child.returncode)
        peaks.append(usage.ru_maxrss / (1024 * 1024 if sys.platform == "darwin" else 1024))
    milliseconds = (time.perf_counter() - started) * 1000
    signal.setitimer(signal.ITIMER_REAL, 0)
    errors = [_tail(output) for code, output in zip(codes, outputs) if code]  # noqa: B905 - as many of both
    return {"codes": codes, "ms": milliseconds, "mib": max(peaks), "errors": errors}


def _tail(output: IO[bytes]) -> str:
    output.seek(0)
    return output.read()[-4000:].decode(errors="replace")


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    print(json.dumps(launch(job["command"], job["number"], job["seconds"])))
