"""Public data sets that packages of PyPI bring as SQLite files, through the models that pwiz makes of them."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import peewee
import pytest

from tests.conftest import Place
from tests.transfer.rows import contents
from whatspire_db.cli.loading import load_models
from whatspire_db.transfer import check, transfer

# The package, the file in it, and how many rows it has at least.
FILES = {
    "elements": ("mendeleev==1.3.0", "mendeleev/elements.db", 60_000),
    "zipcodes": ("pyzipcode==3.0.1", "pyzipcode/zipcodes.db", 40_000),
}


def downloaded(package: str, name: str, folder: Path) -> Path:
    """Return a file of a package, as pip downloads it."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", str(folder), package]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip(f"{package} cannot be downloaded")
    (archive,) = folder.iterdir()
    shutil.unpack_archive(archive, folder, "zip" if archive.suffix == ".whl" else "gztar")
    (found,) = folder.rglob(name)
    return found


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
    package, name, _ = FILES[request.param]
    folder = tmp_path / "package"
    folder.mkdir()
    file = tmp_path / "data.db"
    shutil.copy(downloaded(package, name, folder), file)
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
@pytest.mark.parametrize("models", FILES, indirect=True)
def test_public_data_are_the_same_afterwards(
    models: tuple[Place, list[type[peewee.Model]]], postgres: Place, request: pytest.FixtureRequest
) -> None:
    place, own = models
    before = contents(place, own)
    assert not check(place.dsn, postgres.dsn, own).counts
    report = transfer(place.dsn, postgres.dsn, own)
    assert report.rows == sum(map(len, before.values()))
    assert report.rows >= min(rows for _, _, rows in FILES.values())
    assert contents(postgres, own) == before
