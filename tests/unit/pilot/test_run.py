"""Which server a pilot speaks to, and what it shows it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pilot import run, settings
from protocol.errors import PilotageError


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
    assert run._server_and_token(settings.load({})) == ("http://127.0.0.1:18123", "pilot-secret")


def test_without_a_server_of_ones_own_the_first_token_is_shown_to_nobody(home: Path) -> None:
    with pytest.raises(PilotageError) as caught:
        run._server_and_token(settings.load({}))
    assert caught.value.name == "SERVER_UNREACHABLE"


def test_a_server_that_is_named_is_asked(home: Path) -> None:
    given = settings.load({"node_settings__server_address": "http://other:1"})
    assert run._server_and_token(given) == ("http://other:1", "pilot-secret")
