"""Laws: what the check lets pass is copied and proved; what it finds can be replaced or set aside."""

from __future__ import annotations

import itertools
from copy import copy
from pathlib import Path

import peewee as pw
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import Place
from tests.migrate.models import model, run
from tests.transfer.rows import contents
from tests.transfer.test_check import FIELDS
from whatspire_db import MigrationRunner
from whatspire_db.transfer import check, transfer
from whatspire_db.transfer.faults import KINDS
from whatspire_db.transfer.kinds import FloatKind

COLUMNS = [name for name in FIELDS if name not in ("id", "needed")]
TRAP = model("Trap", "traps", FIELDS)
# The same table, with a field that reads what is not JSON too.
READ = model("Trap", "traps", {name: copy(field) for name, field in FIELDS.items()} | {"data": pw.BlobField(null=True)})

# Texts are stored as they are, and as bytes that SQLite takes for a text, whatever they are.
NUMBERS = st.one_of(
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.integers(-3, 3),
    st.floats(allow_nan=False),
    st.decimals(-1000, 1000, places=2).map(float),
)
DIGITS = st.text("0123456789", min_size=1, max_size=3)
TIMES = st.builds(
    "{:04d}-{:02d}-{:02d}{}{:02d}:{:02d}:{:02d}{}{}".format,
    st.integers(0, 9999),
    st.integers(0, 13),
    st.integers(0, 32),
    st.sampled_from(" T_"),
    st.integers(0, 25),
    st.integers(0, 60),
    st.integers(0, 61),
    st.one_of(st.just(""), st.text("0123456789", max_size=11).map(".{}".format)),
    st.sampled_from(["+00:00", "", "Z", "+05:30", "-23:59", "+00", " UTC", "+00:00:00"]),
)
JSON = st.sampled_from(
    [
        '{"a":1}',
        "[1,2.50,1e5,1E400]",
        '"\\u0000"',
        '"\\\\u0000"',
        '"\\ud83d\\ude00"',
        '"\\ud83d"',
        "NaN",
        "-0",
        "{",
        " 1 ",
    ]
)
TEXTS = st.one_of(st.text(max_size=8), TIMES, JSON, DIGITS, st.uuids().map(str), st.uuids().map(lambda u: u.hex))
VALUES = st.one_of(
    st.none(),
    NUMBERS,
    TEXTS.map(lambda text: ("text", text.encode(errors="surrogatepass"))),
    st.binary(max_size=16).map(lambda value: ("text", value)),
    st.binary(max_size=16),
)
FRESH = itertools.count()


def emptied(place: Place) -> None:
    run(place.connect(), "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")


def stored(place: Place, rows: list[tuple[str, object]]) -> Place:
    """Return a new file in which each value stands in a column, in a row of its own."""
    source = Place("sqlite", str(place.folder / f"law{next(FRESH)}.db"), place.folder)
    db = source.connect()
    with db.connection_context():
        MigrationRunner(db, [TRAP]).up()
        for number, (column, value) in enumerate(rows):
            is_text = isinstance(value, tuple)
            mark = "CAST(? AS TEXT)" if is_text else "?"
            inner = value[1] if isinstance(value, tuple) else value
            sql = f"INSERT INTO traps (id, \"{column}\", needed) VALUES (?, {mark}, 'x')"
            db.execute_sql(sql, (f"key {number}", inner))
    return source


@given(st.lists(st.tuples(st.sampled_from(COLUMNS), VALUES), min_size=40, max_size=120))
def test_what_the_check_lets_pass_is_copied_and_proved(
    sqlite: Place, postgres: Place, rows: list[tuple[str, object]]
) -> None:
    source = stored(sqlite, rows)
    emptied(postgres)
    found = check(source.dsn, postgres.dsn, [TRAP])
    file = Path(f"{source.dsn}.aside")
    report = transfer(source.dsn, postgres.dsn, [TRAP], on={"all": "set-aside"}, side_file=str(file))
    assert report.rows + report.set_aside == len(rows)
    assert report.set_aside == len({each.key for each in found.findings}) or found.more
    emptied(postgres)
    replaced = transfer(source.dsn, postgres.dsn, [TRAP], on=dict.fromkeys(REPLACED, "replace"))
    assert replaced.rows == len(rows)
    assert len(contents(postgres, [READ])["Trap"]) == len(rows)


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=50, max_size=200))
def test_a_number_of_four_bytes_is_known_as_postgres_prints_it(postgres: Place, numbers: list[float]) -> None:
    numbers += [457465986.0, 75835300.0, 1.5e-45, 3.4028234e38]
    db = postgres.connect()
    with db.connection_context():
        (read,) = db.execute_sql("SELECT array_agg(n::real) FROM unnest(%s) AS n", (numbers,)).fetchone()
    kind = FloatKind(pw.FloatField(), "real", (), not_null=True)
    assert [kind.mended(number) for number in numbers] == read


REPLACED = [kind for kind, (_, instead) in KINDS.items() if instead]


@given(st.lists(st.tuples(st.sampled_from(COLUMNS), VALUES), min_size=40, max_size=120))
def test_there_and_back_again_is_the_same(sqlite: Place, postgres: Place, rows: list[tuple[str, object]]) -> None:
    # PostgreSQL takes it for a number that SQLite does not have.
    source = stored(sqlite, [row for row in rows if row != ("real", ("text", b"NaN"))])
    emptied(postgres)
    there = transfer(source.dsn, postgres.dsn, [TRAP], on=dict.fromkeys(REPLACED, "replace"))
    back = Place("sqlite", f"{source.dsn}.back", sqlite.folder)
    report = transfer(postgres.dsn, back.dsn, [TRAP])
    assert [table.fingerprint for table in report.tables] == [table.fingerprint for table in there.tables]
    assert contents(back, [READ]) == contents(postgres, [READ])
