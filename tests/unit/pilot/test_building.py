"""Which server a pilot speaks to, what it shows it, and whose word counts for its settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from copytools.base import FileTool
from pilot import building, settings
from pilot.plugins.base import ExperimentPlugin
from protocol.errors import PilotageError
from protocol.messages.pilots import QueueForPilot
from protocol.redaction import Secrets
from protocol.resources import ResourceType


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state directory of the user's own server, with its first token."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    state = tmp_path / ".local" / "share" / "pilotage"
    state.mkdir(parents=True)
    (state / "pilot.token").write_text("pilot-secret\n")
    (state / "pilot.token").chmod(0o600)
    return state


def test_a_pilot_of_the_users_own_server_asks_that_server_wherever_it_listens(home: Path) -> None:
    (home / "server.json").write_text(json.dumps({"url": "http://127.0.0.1:18123"}))
    assert building.server_and_token(settings.load({}))[:2] == ("http://127.0.0.1:18123", "pilot-secret")


def test_without_a_server_of_ones_own_the_first_token_is_shown_to_nobody(home: Path) -> None:
    with pytest.raises(PilotageError) as caught:
        building.server_and_token(settings.load({}))
    assert caught.value.name == "SERVER_UNREACHABLE"


def test_a_server_that_is_named_is_asked(home: Path) -> None:
    given = settings.load({"node_settings__server_address": "http://other:1"})
    assert building.server_and_token(given)[:2] == ("http://other:1", "pilot-secret")


def test_queue_and_experiment_say_otherwise_and_the_queue_last(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = QueueForPilot(
        "Q",
        "S",
        ResourceType.CPU,
        heartbeat_seconds=7,
        copytools=["cp"],
        pilot_settings={"validation.tools": "git, tar", "limits.walltime_margin_seconds": "60"},
    )
    wished = {"validation.tools": "root", "validation.clock_skew_seconds": 30, "limits.stdout_mb": 5}
    with_wishes = type("Wishing", (ExperimentPlugin,), {"pilot_settings": lambda self: wished})
    monkeypatch.setattr(building.plugins, "load", lambda name, given: with_wishes(given))
    found, _ = building.as_others_say(settings.load({}), answer)
    assert found.items("validation", "tools") == ("git", "tar")
    assert found.integer("validation", "clock_skew_seconds") == 30
    assert found.integer("limits", "stdout_mb") == 5
    assert found.integer("limits", "walltime_margin_seconds") == 60
    assert found.number("heartbeat", "heartbeat_seconds") == 7
    assert found.origin("validation", "tools") == "queue Q"


@pytest.mark.parametrize(
    "name", ["limits.lifetime_seconds", "validation.nothing", "tools", "node_settings.token_file"]
)
def test_what_a_queue_may_not_set_is_a_wrong_setting_that_names_it(name: str) -> None:
    answer = QueueForPilot("Q", "S", ResourceType.CPU, heartbeat_seconds=7, pilot_settings={name: "1"})
    with pytest.raises(PilotageError, match=r"queue Q: .*is not for the queue to set; it may set") as caught:
        building.as_others_say(settings.load({}), answer)
    assert caught.value.name == "BAD_SETTINGS"


def test_without_a_server_the_own_settings_hold() -> None:
    own = settings.load({})
    found, plugin = building.as_others_say(own, None)
    assert dict(found.values) == dict(own.values)
    assert type(plugin).__module__ == "pilot.plugins.generic"


def test_a_pilot_that_speaks_through_a_bridge_needs_no_token(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o700)
    given = settings.load({"node_settings__bridge_directory": str(shared)})
    client = building.client_for(given, {}, Secrets())
    assert client.url == shared.as_uri()
    client.close()


def test_the_collectors_token_is_no_input_of_a_job(tmp_path: Path) -> None:
    (tmp_path / "collector").write_text("secret")
    given = settings.load(
        {}, environ={"PILOTAGE_SERVICES__COLLECTOR_TOKEN_FILE": str(tmp_path / "collector")}, start=tmp_path
    )
    files = [tool for tool in building.tools(given, {}).usable if isinstance(tool, FileTool)]
    assert files
    for tool in files:
        with pytest.raises(PilotageError, match="is the pilot's own"):
            tool.path_of(f"file://{tmp_path}/collector")


def test_the_credentials_of_copytools_are_no_inputs_of_a_job(tmp_path: Path) -> None:
    names = ("keys", "keytab", "proxy", ".aws/credentials")
    (tmp_path / ".aws").mkdir()
    for name in names:
        (tmp_path / name).write_text("secret")
    (tmp_path / "pilot.ini").write_text(
        f"[copytool:s3]\ncredentials_file = {tmp_path}/keys\n[copytool:xrdcp]\nkeytab = {tmp_path}/keytab\n"
    )
    given = settings.load({}, tmp_path / "pilot.ini", start=tmp_path)
    environ = {"HOME": str(tmp_path), "X509_USER_PROXY": str(tmp_path / "proxy")}
    files = [tool for tool in building.tools(given, environ).usable if isinstance(tool, FileTool)]
    assert files
    for tool in files:
        for name in names:
            with pytest.raises(PilotageError, match="is the pilot's own"):
                tool.path_of(f"file://{tmp_path}/{name}")
