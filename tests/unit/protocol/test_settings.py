"""The settings table: order of the sources, origins, and what is refused (seeds 63-66, 164, 179, 186-188; FAULTS B26)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from protocol import settings
from protocol.errors import PilotageError
from protocol.settings import QUEUE, TASK, Setting, Settings, Table
from protocol.values import Type

# fmt: off
ROWS = (
    Setting("node_settings", "SERVER_ADDRESS", Type.URL, "http://127.0.0.1:8080", "the server",
            synonyms=("SERVER_ADRESS",), options=("--url",)),
    Setting("node_settings", "PILOT_ID", Type.NAME, "", "the name", options=("-n", "--name")),
    Setting("node_settings", "PORT", Type.INTEGER, 8080, "the port", minimum=1, maximum=65535),
    Setting("node_settings", "WORK_DIRECTORY", Type.PATH, ".", "the place", overridable=(QUEUE,)),
    Setting("node_settings", "TOKEN_FILE", Type.PATH, "", "the token"),
    Setting("logging", "LOG_LEVEL", Type.CHOICE, "INFO", "the level", choices=("DEBUG", "INFO")),
    Setting("limits", "looping_seconds", Type.NUMBER, 7200, "a | b", minimum=0, overridable=(QUEUE, TASK)),
    Setting("copytools", "names", Type.LIST, "", "the tools", overridable=(QUEUE,)),
    Setting("copytools", "verify", Type.FLAG, True, "whether"),
    Setting("database", "url", Type.DATABASE_URL, "", "the database", secret=True),
    Setting("server", "first_secret", Type.TEXT, "", "a secret", secret=True),
)
SISTER = Setting("node_settings", "SCRIPT_DELAY", Type.INTEGER, 10, "of another program")
# fmt: on
TABLE = Table(
    "pilot",
    ROWS,
    ignored={"rabbit_settings": ("rabbitmq_host", "rabbitmq_password")},
    ignored_because="there is no broker",
    open_sections=("copytool:",),
    sisters=(SISTER,),
)


class Node:
    """A machine with its three usual places for settings files."""

    def __init__(self, root: Path) -> None:
        self.system, self.home, self.start = root / "etc", root / "home", root / "start"
        self.places = {"system": self.system, "user": self.home / ".config" / "pilotage", "start": self.start}
        for place in self.places.values():
            place.mkdir(parents=True)

    def write(self, place: str, text: str, mode: int = 0o644) -> Path:
        path = self.places[place] / "pilot.ini"
        path.write_text(text)
        path.chmod(mode)
        return path

    def load(
        self,
        *,
        config: Path | None = None,
        environ: Mapping[str, str] | None = None,
        command_line: Mapping[str, object] | None = None,
    ) -> Settings:
        variables = {"HOME": str(self.home), **(environ or {})}
        return settings.load_program(TABLE, command_line, config, variables, self.start, self.system)

    def refusal(
        self,
        text: str = "",
        *,
        environ: Mapping[str, str] | None = None,
        command_line: Mapping[str, object] | None = None,
        mode: int = 0o644,
    ) -> str:
        if text:
            self.write("start", text, mode)
        with pytest.raises(PilotageError) as caught:
            self.load(environ=environ, command_line=command_line)
        assert caught.value.name == "BAD_SETTINGS"
        assert "\n" not in caught.value.detail
        return caught.value.detail


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


# -- order and origin -----------------------------------------------------------------------------------------------------------


def test_164_without_anything_every_value_is_its_default(node: Node) -> None:
    loaded = node.load()
    assert loaded.text("node_settings", "server_address") == "http://127.0.0.1:8080"
    assert loaded.integer("node_settings", "port") == 8080
    assert loaded.path("node_settings", "work_directory") == node.start
    assert {loaded.origin(*row.name) for row in ROWS} == {"default"}
    assert loaded.is_default("node_settings", "port")


def test_164_each_source_beats_the_one_before_and_is_named_as_the_origin(node: Node, tmp_path: Path) -> None:
    config = tmp_path / "site.ini"
    environ: dict[str, str] = {}
    command_line: dict[str, object] = {}

    def seen() -> tuple[object, str]:
        loaded = node.load(
            config=config if config.exists() else None, environ=environ, command_line=command_line
        )
        return loaded["node_settings", "pilot_id"], loaded.origin("node_settings", "pilot_id")

    assert seen() == ("", "default")
    for place in ("system", "user", "start"):
        path = node.write(place, f"[node_settings]\n\nPILOT_ID = {place}\n")
        assert seen() == (place, f"{path} line 3")
    config.write_text("[node_settings]\nPILOT_ID = config\n")
    assert seen() == ("config", f"{config} line 2")
    environ["PILOTAGE_NODE_SETTINGS__PILOT_ID"] = "environment"
    assert seen() == ("environment", "environment PILOTAGE_NODE_SETTINGS__PILOT_ID")
    command_line["node_settings__pilot_id"] = "option"
    assert seen() == ("option", "command line -n")


def test_179_a_stronger_file_changes_only_what_it_names(node: Node) -> None:
    node.write("system", "[node_settings]\nPILOT_ID = a\nPORT = 1\n")
    node.write("start", "[node_settings]\nPORT = 2\n")
    loaded = node.load()
    assert (loaded["node_settings", "pilot_id"], loaded["node_settings", "port"]) == ("a", 2)


def test_an_option_that_was_not_given_changes_nothing(node: Node) -> None:
    node.write("start", "[node_settings]\nPORT = 2\n")
    assert node.load(command_line={"node_settings__port": None}).integer("node_settings", "port") == 2


def test_an_option_may_come_with_a_type_of_its_own(node: Node) -> None:
    loaded = node.load(
        command_line={"copytools__verify": False, "node_settings__port": 9, "copytools__names": ("a", "b")}
    )
    assert loaded.flag("copytools", "verify") is False
    assert loaded.integer("node_settings", "port") == 9
    assert loaded.items("copytools", "names") == ("a", "b")


def test_the_file_of_config_must_exist(node: Node) -> None:
    with pytest.raises(PilotageError, match="missing.ini: cannot be read: No such file"):
        node.load(config=Path("missing.ini"))


def test_a_dangling_link_at_a_usual_place_is_not_passed_over(node: Node) -> None:
    (node.start / "pilot.ini").symlink_to("nowhere")
    assert "cannot be read" in node.refusal()


def test_a_file_that_is_reached_twice_is_read_where_it_is_strongest(node: Node) -> None:
    path = node.write("user", "[node_settings]\nPILOT_ID = user\n[rabbit settings]\nRABBITMQ HOST = 1\n")
    node.write("start", "[node_settings]\nPILOT_ID = start\n")
    loaded = node.load(config=path)
    assert loaded["node_settings", "pilot_id"] == "user"
    assert len(loaded.notices) == 1


def test_a_file_that_a_stranger_left_in_an_open_directory_is_refused(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = node.write("start", "[node_settings]\nSERVER_ADDRESS = http://evil:1\n")
    if path.stat().st_uid == 0:
        os.chown(path, 4711, -1)
    else:
        monkeypatch.setattr("os.geteuid", lambda: 4711)
    assert node.load()["node_settings", "server_address"] == "http://evil:1"
    node.start.chmod(0o1777)
    assert "belongs to another user" in node.refusal()
    assert node.load(config=path)["node_settings", "server_address"] == "http://evil:1"


def test_an_account_without_a_home_can_start(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    table = Table("pilot", [Setting("server", "state_directory", Type.PATH, "~/state", "")])
    loaded = settings.load_program(table, environ={}, start=node.start, system=node.system)
    with pytest.raises(PilotageError, match="must be set"):
        loaded.path("server", "state_directory")
    environ = {"PILOTAGE_SERVER__STATE_DIRECTORY": "~/state"}
    with pytest.raises(PilotageError, match="this account has no home directory"):
        settings.load_program(table, environ=environ, start=node.start, system=node.system)


# -- what is refused ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[node_settings]\nPILOT_IDD = 1", "line 2: unknown key PILOT_IDD in [node_settings]; did you mean PILOT_ID?"),
        ("[node_settings]\nzzz = 1", "unknown key ZZZ in [node_settings]; its keys are"),
        ("[node_settings]\nLOG_LEVEL = INFO", "it belongs into [logging]"),
        ("[node_settings]\nSCRIPT_DELAY = 1", "unknown key SCRIPT_DELAY"),
        ("\n[node_setings]", "line 2: unknown section [node_setings]; did you mean node_settings?"),
        ("[zzz]", "unknown section [zzz]; the sections are"),
        ("[DEFAULT]\nPILOT_ID = 1", "unknown section [default]"),
        ("[server]\nport = 1", "unknown key PORT in [server]; it belongs into [node_settings]"),
        ("[rabbit_settings]\nRABBITMQ_HOSTS = 1", "unknown key RABBITMQ_HOSTS in [rabbit_settings]; did you mean RABBITMQ_HOST?"),
        ("[node_settings]\nPORT = 99999", "line 2: PORT must be from 1 to 65535, not '99999'"),
        ("[node_settings]\nPORT = http", "line 2: PORT must be a whole number (from 1 to 65535), not 'http'"),
        ("[node_settings]\nPORT =", "line 2: PORT must be a whole number"),
        ("[logging]\nLOG_LEVEL = LOUD", "line 2: LOG_LEVEL must be one of DEBUG, INFO, not 'LOUD'"),
        ("[logging]\nLOG_LEVEL = INFO\nlog level = INFO", "line 3: the key LOG_LEVEL occurs twice"),
        ("PORT = 1", "line 1: a key before the first section"),
        ("[node_settings]\nSERVER_ADRESS = http://11.111.111.8080",
         "line 2: SERVER_ADRESS is not valid: 'http://11.111.111.8080': 11.111.111.8080 is not an IPv4 address; "
         "a port follows a colon, did you mean http://HOST:8080 ?"),
        ("[node_settings]\nSERVER_ADRESS = http://host:99999", "line 2: SERVER_ADRESS has no valid port"),
    ],
)  # fmt: skip
def test_b26_a_wrong_line_stops_the_start_with_file_and_line(node: Node, text: str, words: str) -> None:
    detail = node.refusal(text)
    assert words in detail
    assert str(node.start / "pilot.ini") in detail


def test_a_wrong_value_is_refused_even_where_a_stronger_source_has_a_right_one(node: Node) -> None:
    text = "[node_settings]\nPORT = http"
    assert "line 2" in node.refusal(text, environ={"PILOTAGE_NODE_SETTINGS__PORT": "1"})


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("PILOTAGE_NODE_SETTINGS__PILOT_IDD", "1", "did you mean PILOTAGE_NODE_SETTINGS__PILOT_ID?"),
        ("PILOTAGE_NODE_SETINGS__PILOT_ID", "1", "did you mean PILOTAGE_NODE_SETTINGS__PILOT_ID?"),
        ("PILOTAGE_QQQQ__WWWW", "1", "unknown setting PILOTAGE_QQQQ__WWWW; a name is PILOTAGE_SECTION__KEY"),
        (
            "PILOTAGE_NODE_SETTINGS__PORT",
            "0",
            "environment PILOTAGE_NODE_SETTINGS__PORT: PORT must be from 1 to 65535",
        ),
        ("PILOTAGE_NODE_SETTINGS__PILOT_ID", "a\nb", r"control character (a tab, perhaps): 'a\nb'"),
    ],
)
def test_a_wrong_environment_stops_the_start(node: Node, variable: str, value: str, words: str) -> None:
    assert words in node.refusal(environ={variable: value})


@pytest.mark.parametrize(
    "variable",
    [
        "PILOTAGE_HOME",
        "PILOTAGE__X",
        "PILOTAGE_CLIENT__SERVER",
        "PILOTAGE_NODE_SETTINGS__SCRIPT_DELAY",
        "OTHER_A__B",
    ],
)
def test_what_other_programs_read_from_the_environment_is_none_of_ours(node: Node, variable: str) -> None:
    assert node.load(environ={variable: "x"}).notices == ()


def test_a_wrong_option_is_named_as_it_was_given(node: Node) -> None:
    words = node.refusal(command_line={"node_settings__pilot_id": "a b"})
    assert words.startswith("command line -n: PILOT_ID must be letters")


# -- synonyms and ignored sections ----------------------------------------------------------------------------------------------


def test_64_the_misspelt_key_of_the_seeds_is_the_same_setting(node: Node) -> None:
    node.write("start", "[node_settings]\nSERVER_ADRESS = http://a:1\n")
    assert node.load()["node_settings", "server_address"] == "http://a:1"
    loaded = node.load(environ={"PILOTAGE_NODE_SETTINGS__SERVER_ADRESS": "http://b:1"})
    assert loaded["node_settings", "server_address"] == "http://b:1"


def test_two_spellings_in_one_source_must_agree(node: Node) -> None:
    text = "[node_settings]\nSERVER_ADRESS = http://a:1\nSERVER_ADDRESS = http://%s:1\n"
    detail = node.refusal(text % "b")
    assert "line 3: SERVER_ADDRESS says http://b:1 but SERVER_ADRESS says otherwise" in detail
    assert "line 2" in detail
    node.write("start", text % "a")
    assert node.load()["node_settings", "server_address"] == "http://a:1"


def test_two_spellings_in_two_files_follow_the_order(node: Node) -> None:
    node.write("system", "[node_settings]\nSERVER_ADDRESS = http://a:1\n")
    node.write("start", "[node_settings]\nSERVER_ADRESS = http://b:1\n")
    assert node.load()["node_settings", "server_address"] == "http://b:1"


def test_63_the_broker_section_is_ignored_with_one_notice(node: Node) -> None:
    text = "[rabbit settings]\nRABBITMQ HOST = 11.111.111.11\nRABBITMQ_PASSWORD = hunter22\n"
    node.write("system", text, 0o600)
    path = node.write("start", text, 0o600)
    (notice,) = node.load(environ={"PILOTAGE_RABBIT_SETTINGS__RABBITMQ_HOST": "x"}).notices
    assert notice.startswith("[rabbit_settings] in ")
    assert str(path) in notice
    assert "there is no broker" in notice
    assert "hunter22" not in notice
    assert "chmod" not in notice


def test_188_the_notice_tells_of_a_broker_password_that_others_can_read(node: Node) -> None:
    path = node.write("start", "[rabbit settings]\nRABBITMQ_PASSWORD = hunter22\n", 0o644)
    (notice,) = node.load().notices
    assert f"the RABBITMQ_PASSWORD there can be read by others: take it out, or chmod 600 {path}" in notice
    assert "hunter22" not in notice


# -- secrets --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620])
@pytest.mark.parametrize(
    "line",
    [
        "[server]\nfirst_secret = hunter22",
        "[database]\nurl = postgresql://p:hunter22@h/n",
        "[copytool:s3]\nsecret_key = hunter22",
    ],
)
def test_188_b26_a_secret_in_a_file_that_is_not_private_is_refused(node: Node, line: str, mode: int) -> None:
    detail = node.refusal(line + "\n", mode=mode)
    assert "line 2" in detail
    assert f"chmod 600 {node.start / 'pilot.ini'} (its mode is {mode:04o})" in detail
    assert "hunter22" not in detail
    node.write("start", line + "\n", 0o600)
    node.load()


def test_188_a_secret_may_come_from_the_environment(node: Node) -> None:
    node.write("start", "[server]\nfirst_secret =\n", 0o644)  # no secret in it, so anybody may read it
    assert (
        node.load(environ={"PILOTAGE_SERVER__FIRST_SECRET": "hunter22"})["server", "first_secret"]
        == "hunter22"
    )


def test_a_database_address_without_a_password_is_no_secret(node: Node) -> None:
    node.write("start", "[database]\nurl = postgresql://pilot@h/n\n", 0o644)
    lines = {(line.section, line.key): line.value for line in settings.describe(node.load())}
    assert lines["database", "url"] == "postgresql://pilot@h/n"


def test_secrets_are_never_shown(node: Node) -> None:
    text = "[server]\nfirst_secret = hunter22\n[database]\nurl = postgresql://p:hunter22@h/n\n[copytool:s3]\nsecret_key = hunter22\n"
    node.write("start", text, 0o600)
    lines = settings.describe(node.load())
    assert "hunter22" not in repr(lines)
    shown = {(line.section, line.key): line.value for line in lines}
    assert shown["server", "first_secret"] == "(hidden)"
    assert shown["database", "url"] == "postgresql://p:(hidden)@h/n"
    assert shown["copytool:s3", "secret_key"] == "(hidden)"


def test_a_wrong_secret_is_not_repeated(node: Node) -> None:
    detail = node.refusal(environ={"PILOTAGE_SERVER__FIRST_SECRET": "hunter22\x1b"})
    assert "hunter22" not in detail


def test_two_secrets_that_disagree_are_not_repeated(node: Node) -> None:
    table = Table("pilot", [Setting("server", "a", Type.TEXT, "", "", synonyms=("b",), secret=True)])
    variables = {"PILOTAGE_SERVER__A": "hunter22", "PILOTAGE_SERVER__B": "hunter23"}
    with pytest.raises(PilotageError) as caught:
        settings.load(table, [], variables, start=node.start)
    assert "hunter" not in caught.value.detail


def test_a_token_file_is_read_if_it_is_private(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("abc.def\n")
    path.chmod(0o600)
    assert settings.read_secret(path) == "abc.def"


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [
        (b"abc\n", 0o644, "chmod 600"),
        (b"", 0o600, "one line"),
        (b"a\nb", 0o600, "one line"),
        (b"\xff", 0o600, "one line"),
        (b"a" * 70_000, 0o600, "one line"),
    ],
)
def test_a_token_file_that_is_not_one_is_refused(
    tmp_path: Path, content: bytes, mode: int, words: str
) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    path.chmod(mode)
    with pytest.raises(PilotageError, match=words):
        settings.read_secret(path)


def test_a_token_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(PilotageError, match="token cannot be read: No such file"):
        settings.read_secret(tmp_path / "token")
    with pytest.raises(PilotageError, match="not a plain file"):
        settings.read_secret(tmp_path)


# -- the result -----------------------------------------------------------------------------------------------------------------


def test_settings_cannot_be_changed(node: Node) -> None:
    loaded = node.load()
    with pytest.raises(TypeError):
        loaded.values["node_settings", "port"] = 1  # type: ignore[index]
    with pytest.raises(AttributeError):
        loaded.notices = ("x",)  # type: ignore[misc]


def test_an_accessor_of_another_type_is_a_mistake_in_the_program(node: Node) -> None:
    loaded = node.load()
    for wrong in (loaded.text, loaded.flag, loaded.items):
        with pytest.raises(TypeError):
            wrong("node_settings", "port")
    with pytest.raises(TypeError):
        loaded.integer("copytools", "verify")
    with pytest.raises(KeyError):
        loaded.integer("node_settings", "prot")
    assert loaded.number("node_settings", "port") == 8080.0


def test_a_path_that_is_needed_and_missing_is_told_with_its_names(node: Node) -> None:
    assert node.load().optional_path("node_settings", "token_file") is None
    with pytest.raises(PilotageError, match=r"TOKEN_FILE must be set \(PILOTAGE_NODE_SETTINGS__TOKEN_FILE\)"):
        node.load().path("node_settings", "token_file")


def test_the_keys_of_a_copytool_are_handed_on_unchecked(node: Node) -> None:
    path = node.write("start", "[copytool:xrdcp]\nstreams = 4\n")
    loaded = node.load(environ={"PILOTAGE_COPYTOOL_XRDCP__OPTIONS": "-f"})
    assert loaded.open_section("copytool:xrdcp") == {"streams": "4", "options": "-f"}
    assert loaded.open_section("copytool:cp") == {}
    assert ("copytool:xrdcp", "streams", "4", f"{path} line 2", "") in settings.describe(loaded)


def test_describe_shows_each_value_and_where_it_comes_from(node: Node) -> None:
    path = node.write("start", "[node_settings]\nPILOT_ID = 1\n")
    lines = settings.describe(node.load())
    assert len(lines) == len(ROWS)
    assert ("node_settings", "PILOT_ID", "1", f"{path} line 2", "the name") in lines
    assert ("copytools", "verify", "yes", "default", "whether") in lines


def test_markdown_has_a_row_for_each_setting() -> None:
    text = settings.markdown(TABLE)
    for row in ROWS:
        assert f"| `{row.key}`" in text
    assert (
        "| `SERVER_ADDRESS`, `SERVER_ADRESS` | web address | `http://127.0.0.1:8080` | `--url` | the server |"
        in text
    )
    assert r"a \| b (may be set per queue and per task)" in text
    assert "| whole number, 1 to 65535 |" in text
    assert "| DEBUG, INFO |" in text


@pytest.mark.parametrize(
    "rows",
    [
        [ROWS[0], ROWS[0]],
        [
            Setting("server", "a", Type.TEXT, "", ""),
            Setting("server", "b", Type.TEXT, "", "", synonyms=("A",)),
        ],
        [Setting("nowhere", "a", Type.TEXT, "", "")],
    ],
)
def test_a_table_that_contradicts_itself_is_a_mistake_in_the_program(rows: list[Setting]) -> None:
    with pytest.raises(ValueError):
        Table("pilot", rows)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("5m", 300), ("2h", 7200), ("1d", 86_400), ("1w", 604_800)]
)
def test_a_time_is_in_seconds_or_has_its_unit(node: Node, text: str, seconds: int) -> None:
    loaded = node.load(environ={"PILOTAGE_LIMITS__LOOPING_SECONDS": text})
    assert loaded.number("limits", "looping_seconds") == seconds


@pytest.mark.parametrize(("key", "text"), [("LIMITS__LOOPING_SECONDS", "5x"), ("NODE_SETTINGS__PORT", "5m")])
def test_a_unit_that_is_none_and_a_number_that_is_no_time_are_refused(
    node: Node, key: str, text: str
) -> None:
    with pytest.raises(PilotageError, match=f"not '{text}'"):
        node.load(environ={f"PILOTAGE_{key}": text})


# -- levels above files ---------------------------------------------------------------------------------------------------------


def test_179_a_queue_overrides_what_it_may_and_is_the_origin(node: Node) -> None:
    loaded = node.load(environ={"PILOTAGE_LIMITS__LOOPING_SECONDS": "5"})
    changed = settings.override(
        loaded,
        QUEUE,
        {"limits": {"looping_seconds": 60}, "copytools": {"names": ["nfs", "cp"]}},
        "queue SPD_CPU",
    )
    assert changed.number("limits", "looping_seconds") == 60
    assert changed.items("copytools", "names") == ("nfs", "cp")
    assert changed.origin("limits", "looping_seconds") == "queue SPD_CPU"
    assert changed.origin("node_settings", "port") == "default"
    assert loaded.number("limits", "looping_seconds") == 5
    further = settings.override(changed, TASK, {"limits": {"looping_seconds": 1.5}}, "task 7")
    assert further.number("limits", "looping_seconds") == 1.5


@pytest.mark.parametrize(
    ("level", "section", "key", "value", "words"),
    [
        (
            QUEUE,
            "node_settings",
            "PORT",
            1,
            "queue Q: [node_settings] PORT is not for the queue to set; it may set",
        ),
        (TASK, "copytools", "names", "cp", "it may set [limits] looping_seconds"),
        (QUEUE, "limits", "nonsense", 1, "not for the queue to set"),
        (QUEUE, "limits", "looping_seconds", "soon", "queue Q: LOOPING_SECONDS must be a number"),
        (QUEUE, "limits", "looping_seconds", -1, "at least 0"),
        (QUEUE, "node_settings", "work_directory", "data", "must be an absolute path here"),
        (
            "experiment",
            "limits",
            "a\nb",
            1,
            r"[limits] a\nb is not for the experiment to set; it may set nothing",
        ),
    ],
)
def test_an_override_that_is_not_allowed_or_wrong_is_refused(
    node: Node, level: str, section: str, key: str, value: object, words: str
) -> None:
    with pytest.raises(PilotageError) as caught:
        settings.override(node.load(), level, {section: {key: value}}, "queue Q")
    assert caught.value.name == "BAD_SETTINGS"
    assert words in caught.value.detail


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"limits": 5}, "queue Q: [limits] must hold keys with values"),
        ({"copytools": {"names": {"a": 1}}}, "queue Q: [copytools] names must be a list"),
    ],
)
def test_an_override_of_the_wrong_shape_is_refused(node: Node, values: dict[str, Any], words: str) -> None:
    with pytest.raises(PilotageError) as caught:
        settings.override(node.load(), QUEUE, values, "queue Q")
    assert caught.value.detail == words


def test_a_null_in_an_override_sets_nothing(node: Node) -> None:
    changed = settings.override(node.load(), QUEUE, {"limits": {"looping_seconds": None}}, "queue Q")
    assert changed.origin("limits", "looping_seconds") == "default"
