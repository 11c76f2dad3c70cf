"""What messages repeat: plain values, but no DSN, no secret, and nothing that hiding a secret would garble."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import Place
from whatspire_db.dsn.postgres import parse_postgres
from whatspire_db.dsn.redaction import looks_like_dsn, redact, shown, without_arguments

pytestmark = pytest.mark.sampled

SECRET = "Zq7SECRETx9"


@pytest.mark.parametrize("value", ["loud", "-5", "1h30m", "1.5x", "10 s", "data/w.db", "my-module", "300", True, 3.5])
def test_plain_values_are_shown(value: object) -> None:
    assert shown(value) == repr(value)


@pytest.mark.parametrize(
    "value",
    [
        SECRET,
        f"postgres://u:{SECRET}@h/d",
        f"u:{SECRET}@h",
        f"password={SECRET}",
        f"host=x;Pwd={SECRET}",
        f"a\x1b[31m{SECRET}",
        "x" * 41,
        {"password": SECRET},
        SECRET.encode(),
    ],
)
def test_what_may_be_a_secret_is_not_shown(value: object) -> None:
    text = shown(value)
    assert SECRET not in text
    assert "x" * 41 not in text
    assert text.isprintable()


@pytest.mark.parametrize(
    "text",
    ["postgres://u:p@h", "u:p@h/d", "host=x", "dbname = x", "a;Pwd=x", "Server=x;Database=y", '{"password": "x"}',
     "api_key=x", "token: x"],
)  # fmt: skip
def test_dsns_are_known_by_their_form(text: str) -> None:
    assert looks_like_dsn(text)


@pytest.mark.parametrize("text", ["data/w.db", "a b;c.db", "me@home.db", "2024-01-02 10:00", "warn", "1h30m", ""])
def test_other_texts_are_no_dsns(text: str) -> None:
    assert not looks_like_dsn(text)


@pytest.mark.parametrize("letter", ["y", ":", "-", " "])
def test_a_long_text_is_judged_at_once(letter: str) -> None:
    """A search that began anew at each letter would not end within the time of a test."""
    assert not looks_like_dsn(letter * 500_000)


@pytest.mark.parametrize(
    ("message", "secrets", "expected"),
    [
        ("no user hunter2 at h", ("hunter", "hunter2"), "no user *** at h"),
        ("role »hunter« does not exist", ("hunter",), "role »***« does not exist"),
        ('invalid value "connection" of the connection', ("connection",), 'invalid value "***" of the connection'),
        ("connection to a server at host failed", ("connection", "a", "host", "at"), None),
        ("port 5432 failed", ("5432",), None),
        ("password=5432 failed", ("5432",), "password=*** failed"),
        ("postgres://u:p@s:s/%@h/d", ("p@s:s/%",), "postgres://u:***@h/d"),
        ("xhunter2x hunter2x", ("hunter2",), None),
        ("nothing", ("",), None),
    ],
)
def test_secrets_are_hidden_and_the_message_stays_readable(
    message: str, secrets: tuple[str, ...], expected: str | None
) -> None:
    assert redact(message, secrets) == (expected or message)


def test_a_password_that_is_also_the_users_name_does_not_hide_the_name() -> None:
    target = parse_postgres("host=h user=postgres password=postgres")
    assert redact('no such role "postgres"', target.secrets) == 'no such role "postgres"'
    assert "hunter2" in parse_postgres("user=u password=hunter2").secrets


@pytest.mark.parametrize(
    ("arguments", "message", "expected"),
    [
        (["upp"], "invalid choice: 'upp' (choose from up, plan)", None),
        ([SECRET], f"invalid choice: '{SECRET}' (choose from up)", "invalid choice: *** (choose from up)"),
        (["--dns", f"host=x password={SECRET}"], f"unrecognized arguments: --dns host=x password={SECRET}",
         "unrecognized arguments: --dns ***"),
        ([f"--dns=postgres://u:{SECRET}@h"], f"ambiguous option: --dns=postgres://u:{SECRET}@h could match",
         "ambiguous option: --dns=*** could match"),
        (["--password", "monkey"], "unrecognized arguments: --password monkey", "unrecognized arguments: --password ***"),
        (["--password=monkey"], "unrecognized arguments: --password=monkey", "unrecognized arguments: --password=***"),
        (["--", "--json"], "invalid choice: '--json' (choose from up)", None),
        (["up", "-", "!!"], "unrecognized arguments: - !!", "unrecognized arguments: *** ***"),
        (["--keep-last", "many"], "argument --keep-last: invalid int value: 'many'", None),
    ],
)  # fmt: skip
def test_command_lines_are_repeated_without_secrets(arguments: list[str], message: str, expected: str | None) -> None:
    assert without_arguments(message, arguments) == (expected or message)


@given(st.text("ab:@/ '\"\\=1", min_size=1, max_size=12))
def test_no_quoted_secret_survives(secret: str) -> None:
    assert redact(f"failed for «{secret}»", (secret,)) == "failed for «***»"


URL = f"postgres://me:{SECRET}@127.0.0.1:1/db"
PAIRS = f"host=127.0.0.1 port=1 password={SECRET}"
MISPLACED = [
    ("migrate", "--lock-timeout", "{}"),
    ("migrate", "--json", "--driver", "{}"),
    ("migrate", "--models", "{}"),
    ("migrate", "{}"),
    ("health", "--json", "--models", "{}"),
    ("backup", "verify", "{}"),
    ("backup", "restore", "{}"),
    ("backup", "restore", "latest", "--to", "{}"),
    ("backup", "create", "--name", "{}"),
    ("backup", "create", "--compress", "{}"),
    ("backup", "create", "--keep-last", "{}"),
    ("backup", "list", "--dir", "{}"),
]


@pytest.mark.parametrize("call", MISPLACED, ids=" ".join)
@pytest.mark.parametrize("dsn", [URL, PAIRS], ids=["url", "pairs"])
def test_no_command_repeats_a_dsn_that_was_put_in_the_wrong_place(
    sqlite: Place, call: tuple[str, ...], dsn: str
) -> None:
    module, *arguments = call
    done = sqlite.run(*(a.format(dsn) for a in arguments), module=f"whatspire_db.{module}")
    assert done.returncode != 0
    assert "error" in done.stdout + done.stderr
    assert SECRET not in done.stdout + done.stderr
    assert not [path for path in sqlite.folder.rglob("*") if SECRET in str(path)]
