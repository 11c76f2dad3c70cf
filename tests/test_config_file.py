"""The service's config file: where it is looked for, what counts more, and what is refused in it."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest

from tests.conftest import Place
from whatspire_db import ConfigError, Settings, settings

pytestmark = pytest.mark.fast

SHIPPED = """
server:
  host: 0.0.0.0
  port: 8080
database:
  driver: sqlite
  dsn: /data/application.db   # the service's default
  max_idle_conns: 10
  max_open_conns: 50
  conn_max_lifetime: 30m
  log_level: warn
events:
  enabled: true
  retention_days: 7
  cleanup_time: "02:00"
  cleanup_interval: 1h
whatsapp:
  databases: [1, 2]
"""
SECRET = "Zq7SECRETx9"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder; the other places where the service looks lie beside it."""
    monkeypatch.setattr(settings, "CONFIG_FOLDERS", (".", "config", str(tmp_path / "etc"), "~/.whatspire"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("here/config", "etc", "home/.whatspire"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def read(text: str | None = None, name: str = "config.yaml", **variables: str) -> Settings:
    if text is not None:
        Path(name).write_text(text)
    return Settings.from_environment(variables, None)


def refused(text: str, name: str = "config.yaml", **variables: str) -> str:
    with pytest.raises(ConfigError) as error:
        read(text, name, **variables)
    assert SECRET not in str(error.value)
    return f"{error.value.fact}; {error.value.hint}"


def test_the_file_that_the_service_ships() -> None:
    found = read(SHIPPED)
    assert (found.driver, found.dsn) == ("sqlite", "/data/application.db")
    assert (found.max_idle_conns, found.max_open_conns, found.log_level) == (10, 50, "warn")
    assert found.conn_max_lifetime == timedelta(minutes=30)
    assert (found.events_enabled, found.events_retention_days) == (True, 7)
    assert found.config == "config.yaml"
    assert found.sources["dsn"] == "line 7 of config.yaml"


def test_without_a_file_the_defaults_hold() -> None:
    assert read() == Settings()
    assert read().config == ""


def test_each_source_goes_over_those_below_it(folder: Path) -> None:
    Path("config.yaml").write_text("database: {dsn: file.db, max_idle_conns: 3, max_open_conns: 5, log_level: info}")
    Path(".env").write_text("WHATSAPP_DATABASE_DSN=dotenv.db\nWHATSAPP_DATABASE_MAX_OPEN_CONNS=6\n")
    environ = {"WHATSAPP_DATABASE_DSN": "environment.db", "WHATSAPP_DATABASE_LOG_LEVEL": ""}
    found = Settings.from_environment(environ)
    assert (found.dsn, found.max_open_conns, found.max_idle_conns, found.log_level) == ("environment.db", 6, 3, "info")
    assert [found.sources[name] for name in ("dsn", "max_open_conns", "max_idle_conns")] == [
        "the environment",
        ".env",
        "line 1 of config.yaml",
    ]
    assert "pool_timeout" not in found.sources
    assert Settings.from_environment(environ, dsn="argument.db").dsn == "argument.db"


ORDER = [
    f"{place}/config.{kind}"
    for place in ("here", "here/config", "etc", "home/.whatspire")
    for kind in ("yaml", "yml", "json")
]


def test_the_first_file_where_the_service_looks_is_the_only_one(tmp_path: Path) -> None:
    for name in ORDER:
        (tmp_path / name).write_text(f'{{"database": {{"dsn": "{name}"}}}}')
    for name in ORDER:
        assert read().dsn == name
        (tmp_path / name).unlink()
    assert read() == Settings()


def test_a_folder_of_that_name_is_not_the_file() -> None:
    Path("config.yaml").mkdir()
    assert read("database: {dsn: x.db}", "config.yml").dsn == "x.db"


def test_a_variable_an_argument_and_dotenv_name_a_file() -> None:
    read("database: {dsn: found.db}")
    for name in ("env", "dotenv", "argument"):
        Path(f"{name}.yaml").write_text(f"database: {{dsn: {name}.db}}")
    Path(".env").write_text("WHATSAPP_CONFIG=dotenv.yaml\n")
    assert Settings.from_environment({}).dsn == "dotenv.db"
    assert Settings.from_environment({"WHATSAPP_CONFIG": "env.yaml"}).dsn == "env.db"
    assert Settings.from_environment({"WHATSAPP_CONFIG": "env.yaml"}, config="argument.yaml").dsn == "argument.db"
    assert Settings.from_environment({"WHATSAPP_CONFIG": ""}) == Settings()
    assert Settings.from_environment({}, config="") == Settings()


def test_a_named_file_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="the config file gone.yaml does not exist"):
        read(WHATSAPP_CONFIG="gone.yaml")


OTHERS = ["[1, 2]", "just a text", "", "# nothing", "---", "database: postgres", "logging: {level: debug, level: x}"]


@pytest.mark.parametrize("text", OTHERS)
def test_a_file_that_is_found_and_not_the_services_does_not_count(text: str) -> None:
    assert read(text) == Settings()
    assert read().config == ""


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("[1, 2]", "line 1 of named.yaml: the file is not a mapping"),
        ("\ndatabase: postgres", "line 2 of named.yaml: database is not a mapping"),
        ("a: 1\na: 2", "line 2 of named.yaml repeats a key"),
    ],
)
def test_a_file_that_is_named_has_to_be_the_services(text: str, fact: str) -> None:
    assert fact in refused(text, "named.yaml", WHATSAPP_CONFIG="named.yaml")


@pytest.mark.parametrize("text", ["", "null", "server: {port: 80}", "database:\nevents: ~"])
def test_a_named_file_may_leave_our_sections_out(text: str) -> None:
    found = read(text, "named.yaml", WHATSAPP_CONFIG="named.yaml")
    assert (found, found.config) == (Settings(), "named.yaml")


WRONG = {
    "a value of another kind": (
        f"database:\n  max_idle_conns: {SECRET}-host=x password={SECRET}",
        "database.max_idle_conns (line 2 of config.yaml)",
    ),
    "a misspelt key": (
        "database:\n  max_idl_conns: 3",
        "line 2 of config.yaml: database.max_idl_conns is not a setting",
    ),
    "an unknown key": (f"database:\n  {SECRET}: 3", "line 2 of config.yaml: a key of database is not a setting"),
    "a key twice": ("database:\n  dsn: a.db\n  dsn: b.db", "line 3 of config.yaml repeats a key"),
    "a key twice in two cases": ("database:\n  dsn: a.db\n  DSN: b.db", "line 3 of config.yaml repeats a key"),
    "a section twice in two cases": (
        "database: {dsn: a.db}\nDatabase: {dsn: b.db}",
        "line 2 of config.yaml repeats a key",
    ),
    "a key twice elsewhere": (
        "database: {dsn: a.db}\nserver:\n  - {a: 1, a: 2}",
        "line 3 of config.yaml repeats a key",
    ),
    "a list": ("database:\n  dsn: [a.db]", "line 2 of config.yaml: database.dsn is not a plain value"),
    "a mapping": ("database:\n  dsn:\n    a: b", "line 3 of config.yaml: database.dsn is not a plain value"),
    "binary": ("database:\n  dsn: !!binary aGk=", "line 2 of config.yaml: database.dsn is not a plain value"),
    "an own type": (
        "database:\n  dsn: !python/name:os.system",
        "line 2 of config.yaml: database.dsn is not a plain value",
    ),
    "an octal number": (
        "events:\n  retention_days: 010",
        "line 2 of config.yaml: events.retention_days may be an octal",
    ),
    "a time of day": (
        "events:\n  retention_days: 12:30",
        "events.retention_days (line 2 of config.yaml) is a text of 5",
    ),
    "on": ("events:\n  enabled: on", "events.enabled (line 2 of config.yaml) is 'on'"),
    "no unit": ("database:\n  conn_max_lifetime: 60", "database.conn_max_lifetime (line 2 of config.yaml) is '60'"),
    "a colon too many": (f"database:\n  dsn: x: {SECRET}", "line 2 of config.yaml cannot be parsed"),
    "an open bracket": (f"server: [1\ndatabase: {{dsn: {SECRET}", "of config.yaml cannot be parsed"),
    "a tab": ("database:\n\tdsn: x", "line 2 of config.yaml cannot be parsed"),
    "a control character": ("database:\n  dsn: a\x07b", "line 2 of config.yaml cannot be parsed"),
    "two documents": ("database: {dsn: a.db}\n---\ndatabase: {dsn: b.db}", "line 2 of config.yaml cannot be parsed"),
    "an unknown alias": ("database: *x", "line 1 of config.yaml cannot be parsed"),
    "a list as a key": ("database: {[a]: b}", "line 1 of config.yaml cannot be parsed"),
    "too deep": ("database: {dsn: " + "[" * 5000 + "]" * 5000 + "}", "config.yaml is nested too deeply"),
    "itself": ("a: &a {<<: *a}\ndatabase: {dsn: x}\nevents: *a", "config.yaml is nested too deeply"),
    "no database": ("database:\n  driver: postgres", "WHATSAPP_DATABASE_DSN is not set"),
    "two that do not agree": (
        "database:\n  driver: postgres\n  dsn: app.db",
        "database.dsn (line 3 of config.yaml) is a SQLite DSN, but database.driver (line 2 of config.yaml) is postgres",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_not_understood_is_refused_with_its_line(case: str) -> None:
    text, fact = WRONG[case]
    assert fact in refused(text)


def test_bytes_that_are_no_text_and_links_to_nothing_are_refused(tmp_path: Path) -> None:
    Path("config.yaml").write_bytes(b"database: {dsn: \xff}")
    with pytest.raises(ConfigError, match=r"config\.yaml cannot be read: it is not UTF-8 text"):
        read()
    Path("config.yaml").unlink()
    Path("config.yaml").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="is a link to a file that does not exist"):
        read()


@pytest.mark.parametrize("none", ["", "~", "null", '""', "'  '"])
def test_an_empty_value_counts_as_not_given(none: str) -> None:
    assert read(f"database:\n  dsn: {none}\n  max_idle_conns: {none}") == Settings()


def test_values_are_the_text_that_stands_there() -> None:
    found = read("DataBase:\n  Backup_Name: 'null'\n  max_idle_conns: '0007'\n", "config.yml")
    assert (found.backup_name, found.max_idle_conns) == ("null", 7)
    assert read("database: {dsn: 2024-01-01}").dsn == "2024-01-01"


def test_what_is_merged_in_stands_below_the_mappings_own() -> None:
    found = read("base: &b {dsn: base.db, max_idle_conns: 3}\ndatabase:\n  <<: *b\n  dsn: own.db")
    assert (found.dsn, found.max_idle_conns) == ("own.db", 3)


def test_many_aliases_cost_nothing() -> None:
    lines = ["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 40))]
    assert read("\n".join([*lines, "database: {dsn: x.db}"])).dsn == "x.db"


def test_mappings_that_are_merged_in_many_times_cost_nothing() -> None:
    levels = (f"a{n}: &a{n}\n  <<: [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30))
    text = "a0: &a0 {dsn: x.db}\n" + "".join(levels) + "database:\n  <<: *a29\n"
    assert read(text).dsn == "x.db"


def test_a_character_that_json_writes_in_two_halves() -> None:
    text = json.dumps({"database": {"dsn": "\U0001f600.db"}})
    assert "\\ud83d" in text
    assert read(text, "config.json").dsn == "\U0001f600.db"
    assert "line 1 of config.json cannot be parsed" in refused(r'{"database": {"dsn": "a\ud83d.db"}}', "config.json")
    Path("config.json").unlink()
    assert "line 1 of config.yaml cannot be parsed" in refused(text)  # as the service's own parser has it


def test_json_may_be_indented_with_tabs() -> None:
    found = read(json.dumps({"database": {"dsn": "é/ü.db", "max_idle_conns": 4}}, indent="\t"), "config.json")
    assert (found.dsn, found.max_idle_conns) == ("é/ü.db", 4)


@pytest.mark.parametrize("name", ["WHATSAPP_CONFG", "whatsapp_config", "WHATSAPP_EVENTS_RETENTION_DAY"])
def test_a_misspelt_variable_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is not a setting"):
        read(**{name: "x"})


def test_other_variables_of_the_service_are_left_alone() -> None:
    assert read(WHATSAPP_EVENTS_CLEANUP_TIME="02:00", WHATSAPP_SERVER_PORT="80") == Settings()


@pytest.mark.soak
def test_every_command_tells_which_file_it_read(sqlite: Place) -> None:
    (sqlite.folder / "config.yaml").write_text("database: {max_idle_conns: 3}")
    done = sqlite.run("plan")
    assert ", settings from config.yaml" in done.stdout.splitlines()[0]
    assert json.loads(sqlite.run("plan", "--json").stdout)["config"] == "config.yaml"
    (sqlite.folder / "other.yaml").write_text("database: {max_idle_conns: x}")
    done = sqlite.run("up", "--config", "other.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "error: database.max_idle_conns (line 1 of other.yaml) is 'x'",
        "hint:  it takes a whole number from 0 to 999999999",
    ]


@pytest.mark.soak
def test_health_and_runs_over_many_tell_which_file_they_read(sqlite: Place) -> None:
    assert sqlite.run("up").returncode == 0
    (sqlite.folder / "config.yaml").write_text("database: {max_idle_conns: 3}")
    done = sqlite.run(module="whatspire_db.health")
    assert any(line.split() == ["settings", "from", "config.yaml"] for line in done.stdout.splitlines())
    assert json.loads(sqlite.run("--json", module="whatspire_db.health").stdout)["config"] == "config.yaml"
    files = ("--each-file", "*.db")
    assert sqlite.run("verify", *files).stdout.splitlines()[0] == "settings from config.yaml"
    assert [each["config"] for each in json.loads(sqlite.run("verify", "--json", *files).stdout)] == ["config.yaml"]


def settings_of(place: Place, *arguments: str) -> str:
    done = place.run("settings", *arguments, module="whatspire_db")
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.soak
def test_settings_prints_values_and_where_they_come_from(sqlite: Place) -> None:
    dsn = f"postgres://me:{SECRET}@localhost/app"
    (sqlite.folder / "config.yaml").write_text(f"database:\n  replica_dsn: {dsn}\n  slow_threshold: 1500ms")
    document = json.loads(settings_of(sqlite, "--json", "--driver", "postgres", "--dsn", dsn))
    found = {each["name"]: each for each in document["settings"]}
    assert (document["driver"], document["config"]) == ("postgres", "config.yaml")
    assert found.keys() == settings.KINDS.keys()
    assert found["dsn"] == {
        "name": "dsn",
        "variable": "WHATSAPP_DATABASE_DSN",
        "value": "host=localhost dbname=app",
        "source": "--dsn",
    }
    assert found["replica_dsn"]["value"] == "host=localhost dbname=app"
    assert (found["slow_threshold"]["value"], found["slow_threshold"]["source"]) == ("1s500ms", "line 3 of config.yaml")
    assert (found["pool_timeout"]["value"], found["pool_timeout"]["source"]) == ("30s", "default")
    text = settings_of(sqlite, "--driver", "postgres", "--dsn", dsn)
    assert SECRET not in text
    assert "WHATSAPP_DATABASE_SLOW_THRESHOLD" in text
    assert settings_of(sqlite, "-q", "--driver", "postgres", "--dsn", dsn) == text


def test_settings_that_are_wrong_are_two_lines(sqlite: Place) -> None:
    (sqlite.folder / "config.yaml").write_text(f"database:\n  dsn: {SECRET}@host:x")
    done = sqlite.run("settings", module="whatspire_db", env={"WHATSAPP_DATABASE_DSN": ""})
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 2)
    assert SECRET not in done.stderr
