"""A process that writes into a SQLite file, in one of two ways, for as long as its standard input stays open.

`enter` adds rows and notes the key of each one whose commit was acknowledged. `transfer` moves amounts between accounts,
adds a line to the ledger in the same transaction, at a steady pace, and notes how long each took, in milliseconds.
"""

from __future__ import annotations

import random
import sqlite3
import sys
import threading
import time
from itertools import count
from pathlib import Path

ACCOUNTS, OPENING = 100, 1000  # the balance that each begins with
LEDGER = f"""
CREATE TABLE account (id integer PRIMARY KEY, balance integer NOT NULL, moves integer NOT NULL DEFAULT 0);
CREATE TABLE ledger (id integer PRIMARY KEY, payer integer NOT NULL, payee integer NOT NULL, amount integer NOT NULL);
WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {ACCOUNTS})
INSERT INTO account (id, balance) SELECT n, {OPENING} FROM numbers;
"""
PATIENCE = 60  # seconds that it waits for a lock


def opened(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None)
    connection.execute("PRAGMA synchronous = NORMAL")
    return connection


def enter(path: str, notes: str, stop: threading.Event, name: str) -> None:
    connection = opened(path)
    with Path(notes).open("a", buffering=1) as file:
        for number in count():
            key = f"{name}.{number}"
            connection.execute("INSERT INTO entry (key) VALUES (?)", (key,))
            file.write(key + "\n")
            if stop.wait(0.001):
                break
    connection.close()


def transfer(path: str, notes: str, stop: threading.Event, a_second: str) -> None:
    connection = opened(path)
    due = time.monotonic()
    with Path(notes).open("a", buffering=1) as file:
        while True:
            payer, payee = random.sample(range(1, ACCOUNTS + 1), 2)
            amount = random.randint(1, 50)
            began = time.monotonic()
            connection.execute("BEGIN IMMEDIATE")
            move = "UPDATE account SET balance = balance + ?, moves = moves + 1 WHERE id = ?"
            connection.execute(move, (-amount, payer))
            connection.execute("INSERT INTO ledger (payer, payee, amount) VALUES (?, ?, ?)", (payer, payee, amount))
            connection.execute(move, (amount, payee))
            connection.execute("COMMIT")
            file.write(f"{(time.monotonic() - began) * 1000:.4f}\n")
            due = max(due + 1 / float(a_second), began)
            if stop.wait(max(0.0, due - time.monotonic())):
                break
    connection.close()


def main(way: str, path: str, notes: str, more: str) -> None:
    stop = threading.Event()
    write = {"enter": enter, "transfer": transfer}[way]
    thread = threading.Thread(target=write, args=(path, notes, stop, more))
    thread.start()
    sys.stdin.read()
    stop.set()
    thread.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
