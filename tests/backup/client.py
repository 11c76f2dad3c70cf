"""Another process that has a SQLite file open: it runs the statements that it is given, and says what came of each.

A line of standard input is the JSON of a statement, a line of standard output that of its rows, or of the error's text.
It ends, and closes the file, with its standard input.
"""

from __future__ import annotations

import json
import sqlite3
import sys


def main(path: str, busy: str) -> None:
    connection = sqlite3.connect(path, timeout=float(busy), isolation_level=None)
    for line in sys.stdin:
        try:
            answer = {"rows": connection.execute(json.loads(line)).fetchall()}
        except sqlite3.Error as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)  # noqa: T201
    connection.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
