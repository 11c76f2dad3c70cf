""".env: files, pipes and devices are read; what cannot be understood is refused with its line and without its content."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from tests.conftest import Place
from whatspire_db import ConfigError, Settings
from whatspire_db.settings import text_file

pytestmark = pytest.mark.sampled

SECRET = "Zq7SECRETx9"
NAME = "WHATSAPP_DATABASE_DSN"


@pytest.fixture
def dotenv(tmp_path: Path) -> Path:
    return tmp_path / ".env"


@pytest.mark.parametrize(
    "text",
    [
        f"{NAME}=w.db\n",
        f"\ufeff{NAME}=w.db\r\nOTHER=1\r\n",
        f"# a comment\n\nexport {NAME}='w.db' # another\nSOME.NAME-2=x\nALONE\n",
        f"A=w\n{NAME}=${{A}}.db",
        f'OTHER="two\nlines"\n{NAME} = "w.db"\n',
    ],
)
def test_lines_are_read(dotenv: Path, text: str) -> None:
    dotenv.write_text(text, "utf-8")
    assert Settings.from_environment({}, dotenv).dsn == "w.db"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (f'{NAME}="{SECRET}.db\n', 1),
        (f"A=1\n\n# x\n{NAME}: {SECRET}.db\n", 4),
        (f"A=1\r\n\r\n{NAME} {SECRET}.db\r\n", 3),
        (f"{NAME}\n", 1),
        (f"postgres://me:{SECRET}@h/d?sslmode=disable\n", 1),
        (f"A=1\npostgres://me:{SECRET}@h/d\n", 2),
        (f'{NAME}: "postgres://me:{SECRET}@h/d?x=1"\n', 1),
        (f"[database]\n{NAME}={SECRET}\n", 1),
        ("source other.env\n", 1),
        (f"{NAME}=a\0{SECRET}\n", 1),
        ("=x\n", 1),
    ],
)
def test_a_line_that_cannot_be_parsed_is_refused_by_its_number(dotenv: Path, text: str, line: int) -> None:
    dotenv.write_bytes(text.encode())
    with pytest.raises(ConfigError, match=rf"^line {line} of .*\.env cannot be parsed") as error:
        Settings.from_environment({}, dotenv)
    assert SECRET not in repr(error.value)


@pytest.mark.parametrize("value", ["${NO_SUCH_NAME}/w.db", '"${NO_SUCH_NAME}"', f"'postgres://me:{SECRET}${{x}}@h/d'"])
def test_a_variable_that_is_not_set_is_refused(dotenv: Path, value: str) -> None:
    dotenv.write_text(f"A=1\n\n{NAME}={value}\n")
    with pytest.raises(ConfigError, match=r"line 3 of .* uses a variable that is not set") as error:
        Settings.from_environment({}, dotenv)
    assert SECRET not in repr(error.value)


def test_a_variable_that_is_set_or_has_a_default_is_replaced(dotenv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOLDER", "/srv")
    for value in ("${FOLDER}/w.db", "${NO_SUCH_NAME:-/srv}/w.db", "${ABOVE}/w.db"):
        dotenv.write_text(f"ABOVE=/srv\nOTHERS=${{NO_SUCH_NAME}}\n{NAME}={value}\n")
        assert Settings.from_environment({}, dotenv).dsn == "/srv/w.db"


@pytest.mark.parametrize("content", [b"\xff\xfeW\x00H\x00", b"\xffWHATSAPP", b"x" * (2**20 + 1)])
def test_what_is_no_text_is_refused(dotenv: Path, content: bytes) -> None:
    dotenv.write_bytes(content)
    with pytest.raises(ConfigError, match=r"\.env cannot be read"):
        Settings.from_environment({}, dotenv)


def test_a_folder_is_refused(dotenv: Path) -> None:
    dotenv.mkdir()
    with pytest.raises(ConfigError, match=r"\.env is a folder"):
        Settings.from_environment({}, dotenv)


def test_a_link_that_leads_nowhere_is_refused(dotenv: Path) -> None:
    dotenv.symlink_to(dotenv.parent / "missing")
    with pytest.raises(ConfigError, match="is a link to a file that does not exist"):
        Settings.from_environment({}, dotenv)


def test_a_missing_file_and_a_device_without_content_hold_nothing(dotenv: Path) -> None:
    assert Settings.from_environment({}, dotenv) == Settings.from_environment({}, os.devnull) == Settings()


def test_a_device_without_end_is_refused() -> None:
    with pytest.raises(ConfigError, match="has more than"):
        Settings.from_environment({}, "/dev/zero")


def test_a_pipe_is_read_to_its_end(dotenv: Path) -> None:
    os.mkfifo(dotenv)
    filler = threading.Thread(target=lambda: dotenv.write_text(f"A={'x' * 70_000}\n{NAME}=w.db\n"))
    filler.start()
    try:
        assert Settings.from_environment({}, dotenv).dsn == "w.db"
    finally:
        filler.join()


def test_a_pipe_that_nobody_fills_is_given_up(dotenv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(dotenv)
    monkeypatch.setattr(text_file, "PIPE_SECONDS", 0.05)
    with pytest.raises(ConfigError, match="nothing was written into it within"):
        Settings.from_environment({}, dotenv)


@pytest.mark.soak
@pytest.mark.parametrize("module", ["whatspire_db.migrate", "whatspire_db.health", "whatspire_db.backup"])
def test_commands_stop_at_a_bad_line_and_make_nothing(place: Place, module: str) -> None:
    (place.folder / ".env").write_text(f'A=1\n{NAME}="{SECRET}\n')
    done = place.run(*(["list"] if module.endswith("backup") else []), module=module, env={NAME: ""})
    assert done.returncode == (1 if module.endswith("health") else 2)
    assert "line 2 of .env cannot be parsed" in done.stderr
    assert SECRET not in done.stderr + done.stdout
    assert [file.name for file in place.folder.iterdir()] == [".env"]


def test_file_that_cannot_be_reached_is_not_taken_for_a_missing_one(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    for path in (tmp_path / "loop" / ".env", tmp_path / "file" / ".env"):
        with pytest.raises(ConfigError, match="cannot be read"):
            Settings.from_environment({}, dotenv=path)
    assert Settings.from_environment({}, dotenv=tmp_path / "nowhere" / ".env") == Settings()
