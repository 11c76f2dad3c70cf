"""Vectors stay as they are, bit for bit: in backups, restores and transfers, and when a bulk insert is killed."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.backup.postgres_ground import MODULE, rows
from tests.conftest import KILLS, Place
from tests.servers import opened
from whatspire_db import MigrationRunner, bulk_insert

ROOT = Path(__file__).parent.parent.parent
EXTREMES = [
    3.4028234663852886e38,
    -3.4028234663852886e38,
    -0.0,
    0.0,
    1.401298464324817e-45,
    1.1754943508222875e-38,
    0.1,
]
STORED = """
import peewee
from whatspire_db import VectorField


class Kept(peewee.Model):
    embedding = VectorField(7, "l2", index="hnsw", null=True)
    half = VectorField(2, "l2", type="halfvec", null=True)
"""


def keep(place: Place) -> Any:
    """Make a table with vectors of every kind of number, and return its model."""
    (place.folder / "stored.py").write_text(STORED)
    place.environment.update(WHATSAPP_DATABASE_MODELS="stored", WHATSAPP_DATABASE_ONLY_MODELS="true")
    space: dict[str, Any] = {"__name__": "stored"}
    exec(STORED, space)  # noqa: S102
    model = space["Kept"]
    with opened(place) as db:
        model.bind(db)
        MigrationRunner(db, [model]).up()
        bulk_insert(model, vectors())
    return model


@pytest.fixture
def kept(place: Place) -> Any:
    return keep(place)


def vectors() -> list[dict[str, Any]]:
    """Return vectors of any bits that are finite, the extremes among them."""
    draw = random.Random(7)
    found: list[dict[str, Any]] = [{"embedding": None, "half": None}, {"embedding": EXTREMES, "half": [65504, -0.0]}]
    while len(found) < 200:
        numbers = struct.unpack("<7f", draw.randbytes(28))
        halves = struct.unpack("<2e", draw.randbytes(4))
        if abs(sum(numbers)) < float("inf") and abs(sum(halves)) < float("inf"):
            found.append({"embedding": numbers, "half": halves})
    return found


def bits(place: Place, model: Any) -> list[tuple[Any, ...]]:
    """Return the rows with the bits of their numbers."""
    with opened(place) as db:
        model.bind(db)
        return [
            (
                row.id,
                *(None if one is None else struct.pack(f"<{len(one)}d", *one) for one in (row.embedding, row.half)),
            )
            for row in model.select().order_by(model.id)
        ]


def expected() -> list[tuple[Any, ...]]:
    return [
        (n, *(None if one is None else struct.pack(f"<{len(one)}d", *map(float, one)) for one in given))
        for n, given in enumerate(((row["embedding"], row["half"]) for row in stored()), 1)
    ]


def stored() -> list[dict[str, Any]]:
    """Return the vectors as 32 bits hold them."""
    found = vectors()
    found[1] = {"embedding": struct.unpack("<7f", struct.pack("<7f", *EXTREMES)), "half": [65504, -0.0]}
    return found


def succeeds(place: Place, *arguments: str, module: str) -> str:
    done = place.run(*arguments, module=module)
    assert done.returncode == 0, done
    return done.stdout


def test_backup_with_test_restore_and_restore_keep_every_bit(place: Place, kept: Any) -> None:
    before = bits(place, kept)
    assert before == expected()
    succeeds(place, "create", "--test-restore", module=MODULE)
    with opened(place) as db:
        kept.bind(db)
        kept.update(embedding=[1] * 7).execute()
        kept.delete().where(kept.id > 100).execute()
    succeeds(place, "restore", "latest", "--force", module=MODULE)
    assert bits(place, kept) == before
    assert "in sync" in succeeds(place, "verify", module="whatspire_db.migrate")


@pytest.mark.soak
def test_transfer_to_the_other_engine_and_back_keeps_every_bit(sqlite: Place, postgres: Place) -> None:
    kept = keep(sqlite)
    before = bits(sqlite, kept)
    succeeds(sqlite, "transfer", "--to", postgres.dsn, module="whatspire_db")
    assert bits(postgres, kept) == before
    assert rows(postgres, "SELECT indexname FROM pg_indexes WHERE indexdef LIKE '%USING hnsw%'") == [
        ("kept_embedding_hnsw",)
    ]
    back = sqlite.folder / "back.db"
    postgres.environment.update(sqlite.environment)
    succeeds(postgres, "transfer", "--to", str(back), module="whatspire_db")
    assert bits(Place("sqlite", str(back), sqlite.folder), kept) == before


def test_transfer_finds_what_is_no_vector(sqlite: Place, postgres: Place) -> None:
    keep(sqlite)
    with opened(sqlite) as db:
        nan = struct.pack("<7f", *[float("nan")] * 7)
        db.execute_sql("UPDATE kept SET embedding = ? WHERE id = 5", [nan])
    done = sqlite.run("transfer", "--to", postgres.dsn, "--check", module="whatspire_db")
    assert done.returncode == 3
    assert "kept.embedding, key 5" in done.stdout + done.stderr


LOADER = """
import os, signal, sys
sys.path.insert(0, {folder!r})
from stored import Kept
from whatspire_db import Settings, bulk_insert, connect

db = connect(Settings(driver={driver!r}, dsn={dsn!r}, log_level="silent"))
Kept.bind(db)


def rows():
    for number in range(10_000):
        if number == int(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGKILL)
        yield {{"embedding": [number] * 7, "half": [1, 2]}}


with db.connection_context():
    bulk_insert(Kept, rows(), batch_rows=50, progress=lambda done: print(done, flush=True))
"""


def load(place: Place, point: int) -> subprocess.Popen[str]:
    program = LOADER.format(folder=str(place.folder), driver=place.driver, dsn=place.dsn)
    command = [sys.executable, "-c", program, str(point)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=place.variables(), cwd=place.folder)


def emptied(place: Place, model: Any) -> None:
    with opened(place) as db:
        model.bind(db)
        model.delete().execute()


def assert_whole_batches(place: Place, model: Any, told: int) -> None:
    with opened(place) as db:
        model.bind(db)
        count = model.select().count()
        assert count % 50 == 0
        assert count in (told, told + 50)  # a batch is told of after its commit


def test_bulk_insert_that_is_killed_leaves_whole_batches(place: Place, kept: Any) -> None:
    emptied(place, kept)
    loading = load(place, 333)
    out, _ = loading.communicate(timeout=60)
    assert loading.returncode == -9
    assert out.split()[-1] == "300"
    assert_whole_batches(place, kept, 300)


@pytest.mark.soak
def test_bulk_inserts_that_are_killed_anywhere_leave_whole_batches(place: Place, kept: Any) -> None:
    draw = random.Random(3)
    for _ in range(KILLS):
        emptied(place, kept)
        loading = load(place, -1)
        assert loading.stdout is not None
        told = 0
        for _ in range(draw.randrange(1, 40)):
            told = int(loading.stdout.readline())
        for _ in range(draw.randrange(20_000)):
            pass  # anywhere within the batch that follows
        loading.kill()
        rest = loading.stdout.read().split()  # communicate() leaves out what readline() has read ahead
        loading.communicate(timeout=60)
        assert_whole_batches(place, kept, int(rest[-1]) if rest else told)


WITHOUT = """
import sys
for name in ("numpy", "sqlite_vec", "pgvector"):
    sys.modules[name] = None
import whatspire_db
assert not [name for name in sys.modules if name.startswith(("whatspire_db.vectors", "whatspire_db.bulk"))]
from stored import Kept
from whatspire_db import MigrationRunner, bulk_insert, nearest

db = whatspire_db.connect()
with db.connection_context():
    Kept.bind(db)
    assert not MigrationRunner(db, [Kept]).verify_schema()
    bulk_insert(Kept, [{"embedding": [n, 1, 1, 1, 1, 1, 1]} for n in range(5)])
    print([round(row.distance, 3) for row in nearest(Kept, "embedding", [4, 1, 1, 1, 1, 1, 1], 3)])
"""


def test_without_the_extras_everything_works(place: Place, kept: Any) -> None:
    emptied(place, kept)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], env=place.variables(), cwd=place.folder, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "[0.0, 1.0, 2.0]\n"), done.stderr
