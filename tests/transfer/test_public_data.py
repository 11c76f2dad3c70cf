"""Public data sets that PyPI holds, as SQLite files and through the models that pwiz makes of them."""

from __future__ import annotations

import csv
import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

import peewee
import pytest

from tests.conftest import Place
from tests.transfer.rows import contents
from whatspire_db.cli.loading import load_models
from whatspire_db.transfer import check, transfer

# Chinook's tables, of which prqlc has the rows as CSV files.
CHINOOK = {
    "artists": "artist_id INTEGER PRIMARY KEY, name VARCHAR(120)",
    "albums": "album_id INTEGER PRIMARY KEY, title VARCHAR(160) NOT NULL, artist_id INTEGER NOT NULL REFERENCES artists",
    "genres": "genre_id INTEGER PRIMARY KEY, name VARCHAR(120)",
    "media_types": "media_type_id INTEGER PRIMARY KEY, name VARCHAR(120)",
    "tracks": "track_id INTEGER PRIMARY KEY, name VARCHAR(200) NOT NULL, album_id INTEGER REFERENCES albums,"
    " media_type_id INTEGER NOT NULL REFERENCES media_types, genre_id INTEGER REFERENCES genres,"
    " composer VARCHAR(220), milliseconds INTEGER NOT NULL, bytes INTEGER, unit_price NUMERIC(10, 2) NOT NULL",
    "playlists": "playlist_id INTEGER PRIMARY KEY, name VARCHAR(120)",
    "playlist_track": "playlist_id INTEGER NOT NULL REFERENCES playlists,"
    " track_id INTEGER NOT NULL REFERENCES tracks, PRIMARY KEY (playlist_id, track_id)",
    "employees": "employee_id INTEGER PRIMARY KEY, last_name VARCHAR(20) NOT NULL, first_name VARCHAR(20) NOT NULL,"
    " title VARCHAR(30), reports_to INTEGER REFERENCES employees, birth_date DATETIME, hire_date DATETIME,"
    " address VARCHAR(70), city VARCHAR(40), state VARCHAR(40), country VARCHAR(40), postal_code VARCHAR(10),"
    " phone VARCHAR(24), fax VARCHAR(24), email VARCHAR(60)",
    "customers": "customer_id INTEGER PRIMARY KEY, first_name VARCHAR(40) NOT NULL, last_name VARCHAR(20) NOT NULL,"
    " company VARCHAR(80), address VARCHAR(70), city VARCHAR(40), state VARCHAR(40), country VARCHAR(40),"
    " postal_code VARCHAR(10), phone VARCHAR(24), fax VARCHAR(24), email VARCHAR(60) NOT NULL,"
    " support_rep_id INTEGER REFERENCES employees",
    "invoices": "invoice_id INTEGER PRIMARY KEY, customer_id INTEGER NOT NULL REFERENCES customers,"
    " invoice_date DATETIME NOT NULL, billing_address VARCHAR(70), billing_city VARCHAR(40),"
    " billing_state VARCHAR(40), billing_country VARCHAR(40), billing_postal_code VARCHAR(10),"
    " total NUMERIC(10, 2) NOT NULL",
    "invoice_items": "invoice_line_id INTEGER PRIMARY KEY, invoice_id INTEGER NOT NULL REFERENCES invoices,"
    " track_id INTEGER NOT NULL REFERENCES tracks, unit_price NUMERIC(10, 2) NOT NULL, quantity INTEGER NOT NULL",
}


def copied(folder: Path, name: str, file: Path) -> None:
    """Take the SQLite file of a package."""
    (found,) = folder.rglob(name)
    shutil.copy(found, file)


def filled(folder: Path, name: str, file: Path) -> None:
    """Make Chinook's file of a package's CSV files."""
    (chinook,) = (path for path in folder.rglob(name) if path.is_dir())
    with closing(peewee.sqlite3.connect(file)) as connection, connection:
        for table, columns in CHINOOK.items():
            connection.execute(f"CREATE TABLE {table} ({columns})")
            with (chinook / f"{table}.csv").open(newline="") as lines:
                _, *rows = csv.reader(lines)
            places = ", ".join("?" * len(rows[0]))
            connection.executemany(f"INSERT INTO {table} VALUES ({places})", (list(map(value, row)) for row in rows))


def value(text: str) -> str | None:
    """Return a value as Chinook's own file has it."""
    is_instant = re.fullmatch(r"\d{4}-\d\d-\d\dT00:00:00\.0+", text)
    return text[:19].replace("T", " ") if is_instant else text or None


class Archive(NamedTuple):
    """An archive at PyPI: where, its SHA-256, what of it is wanted, what makes a SQLite file of that, and its rows."""

    place: str
    sha256: str
    name: str
    file_of: Callable[[Path, str, Path], None]
    rows: int


DATA = {
    "chinook": Archive(
        "e0/e9/e29a72a4f64936a8badcdc9e3772d21afc09a0a2a339508552e7c1536d29/prqlc-0.13.14.tar.gz",
        "592563798c33077aa6ae782bb46724c39ea4ae99f01dd71546113d5baeec3444",
        "chinook",
        filled,
        15_607,
    ),
    "elements": Archive(
        "77/c0/c6fe26d8eda3b6eb1c4e3265ced9879dd95f0ca51d3569b042781f98ea76/mendeleev-1.3.0-py3-none-any.whl",
        "76f415767b654634e51dead755513ef431abf200e892eab8468aa659ff218d1c",
        "mendeleev/elements.db",
        copied,
        60_000,
    ),
    "zipcodes": Archive(
        "3f/b9/9cf79708df6bdcbbd512424cf5b7321b571b3477eb2e9648fec13e2b2b91/pyzipcode-3.0.1.tar.gz",
        "4146386c3f45dc9b5c30e537da60c7d58fac54d6312f24a718340f3c235cff1b",
        "pyzipcode/zipcodes.db",
        copied,
        40_000,
    ),
}


def unpacked(archive: Archive, folder: Path) -> None:
    """Unpack an archive from PyPI; none of its code is run, as it is when pip downloads a source archive."""
    with urlopen(f"https://files.pythonhosted.org/packages/{archive.place}", timeout=60) as answer:
        content = answer.read()
    assert sha256(content).hexdigest() == archive.sha256
    file = folder / Path(archive.place).name
    file.write_bytes(content)
    shutil.unpack_archive(file, folder, "zip" if file.suffix == ".whl" else "gztar")


def improved(module: str) -> str:
    """Return what pwiz made, as its user would correct it: SQLite's FLOAT has eight bytes, and its VARCHAR no end."""
    for found, instead in (
        (r"\bFloatField\(", "DoubleField("),
        (r"\bUnknownField\(null", "DoubleField(null"),
        (r"\bCharField\((?!.*max_length)", "TextField("),
        (r"        database = database\n", "        legacy_table_names = False\n"),
    ):
        module = re.sub(found, instead, module)
    return module


@pytest.fixture
def models(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Place, list[type[peewee.Model]]]]:
    """Return a data set's file and the models that pwiz makes of it."""
    archive = DATA[request.param]
    folder = tmp_path / "package"
    folder.mkdir()
    file = tmp_path / "data.db"
    unpacked(archive, folder)
    archive.file_of(folder, archive.name, file)
    made = subprocess.run(
        [sys.executable, "-m", "pwiz", "-e", "sqlite", str(file)], capture_output=True, text=True, check=True
    ).stdout
    module = tmp_path / f"models_of_{request.param}.py"
    module.write_text(improved(made))
    spec = importlib.util.spec_from_file_location(module.stem, module)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[module.stem] = loaded
    spec.loader.exec_module(loaded)
    yield Place("sqlite", str(file), tmp_path), load_models([module.stem], with_service=False)
    del sys.modules[module.stem]


@pytest.mark.soak
@pytest.mark.parametrize("models", DATA, indirect=True)
def test_public_data_are_the_same_afterwards(
    models: tuple[Place, list[type[peewee.Model]]], postgres: Place, request: pytest.FixtureRequest
) -> None:
    data = request.node.callspec.params["models"]
    place, own = models
    before = contents(place, own)
    assert not check(place.dsn, postgres.dsn, own).counts
    report = transfer(place.dsn, postgres.dsn, own)
    assert report.rows == sum(map(len, before.values()))
    assert report.rows >= DATA[data].rows
    assert contents(postgres, own) == before
