"""The client's settings table."""

from __future__ import annotations

from pathlib import Path

import pytest

from client import settings
from protocol.errors import PilotageError


def test_by_default_the_client_asks_the_server_of_this_machine(tmp_path: Path) -> None:
    loaded = settings.load(None, None, {"HOME": str(tmp_path)}, tmp_path)
    assert loaded.text("client", "server") == "http://127.0.0.1:8080"
    assert loaded.optional_path("client", "token_file") is None


def test_the_user_s_file_is_read_and_the_option_beats_it(tmp_path: Path) -> None:
    folder = tmp_path / ".config" / "pilotage"
    folder.mkdir(parents=True)
    (folder / "client.ini").write_text("[client]\nserver = https://wms.example.org\ntoken_file = ~/token\n")
    environ = {"HOME": str(tmp_path)}
    loaded = settings.load(None, None, environ, tmp_path)
    assert loaded.text("client", "server") == "https://wms.example.org"
    assert loaded.path("client", "token_file") == tmp_path / "token"
    given = settings.load({"client__server": "http://h:1"}, None, environ, tmp_path)
    assert given.text("client", "server") == "http://h:1"
    assert given.origin("client", "server") == "command line --server"


def test_a_server_without_a_scheme_is_told_what_was_meant(tmp_path: Path) -> None:
    with pytest.raises(
        PilotageError, match="command line --server: SERVER must begin with http:// or https://"
    ):
        settings.load({"client__server": "localhost:8080"}, None, {"HOME": str(tmp_path)}, tmp_path)
