"""A worker process: threads that write and note what became of each row, for as long as standard input stays open.

Its loop has no word about reconnecting: going on by itself is what the tests that start it are about. No row is ever
tried twice. A line of the notes is the JSON of a row's key, when its attempt began and ended, and the error's class and
text; both are empty where the commit was acknowledged.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from itertools import count
from pathlib import Path

import peewee

from whatspire_db import Settings, connect

PAUSE_SECONDS = 0.01
THREADS = 4
MAX_OPEN_CONNS = 3  # fewer than the threads, so that some wait for a connection

# No unique key that would hide a row written twice.
TABLES = """
DROP TABLE IF EXISTS entry, tally;
CREATE TABLE entry (key text NOT NULL, writer text NOT NULL);
CREATE TABLE tally (writer text PRIMARY KEY, written integer NOT NULL);
"""


def write(db: peewee.Database, writer: str, notes: Path, stop: threading.Event) -> None:
    """Write rows, and count them in another table, each in a transaction, until told to stop."""
    with notes.open("a", buffering=1) as file:
        for number in count():
            key, began, failure = f"{writer}.{number}", time.monotonic(), ("", "")
            try:
                with db.connection_context(), db.atomic():
                    db.execute_sql("INSERT INTO entry (key, writer) VALUES (%s, %s)", (key, writer))
                    db.execute_sql("UPDATE tally SET written = written + 1 WHERE writer = %s", (writer,))
            except Exception as error:  # every kind is noted; the test tells which it allows
                failure = type(error).__name__, str(error)
            file.write(json.dumps([key, began, time.monotonic(), *failure]) + "\n")
            if stop.wait(PAUSE_SECONDS):
                return


def main(dsn: str, folder: str, *writers: str) -> None:
    db = connect(Settings(driver="postgres", dsn=dsn, max_open_conns=MAX_OPEN_CONNS, log_level="silent"))
    stop = threading.Event()
    threads = [
        threading.Thread(target=write, args=(db, writer, Path(folder, writer), stop), daemon=True) for writer in writers
    ]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    stop.set()
    deadline = time.monotonic() + 60
    for thread in threads:
        thread.join(max(0, deadline - time.monotonic()))
    hanging = [thread.name for thread in threads if thread.is_alive()]
    json.dump({"hanging": hanging, "pool": db.pool_stats()._asdict()}, sys.stdout, default=str)


if __name__ == "__main__":
    main(*sys.argv[1:])
