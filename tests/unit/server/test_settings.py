"""The server's settings table, and etc/server.ini against it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from client import settings as client_settings
from protocol.errors import PilotageError
from protocol.settings import Settings
from server import settings

ROOT = Path(__file__).parents[3]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def load(home: Path, **variables: str) -> Settings:
    environ = {"HOME": str(home), **{f"PILOTAGE_{name}": value for name, value in variables.items()}}
    return settings.load(None, None, environ, home.parent)


def refusal(home: Path, **variables: str) -> str:
    with pytest.raises(PilotageError) as caught:
        load(home, **variables)
    assert caught.value.name == "BAD_SETTINGS"
    return caught.value.detail


def test_by_default_only_this_machine_can_reach_it_and_the_state_is_in_the_home(home: Path) -> None:
    loaded = load(home)
    assert loaded.text("server", "host") == "127.0.0.1"
    assert loaded.path("server", "state_directory") == home / ".local" / "share" / "pilotage"
    assert loaded.text("database", "url") == ""
    assert loaded.integer("queue", "lease_seconds") == 60


def test_server_and_client_look_for_the_state_in_the_same_place() -> None:
    server, client = settings.TABLE.names, client_settings.TABLE.names
    assert server["server", "state_directory"].default == client["client", "state_directory"].default


def test_a_certificate_without_its_key_is_refused(home: Path) -> None:
    detail = refusal(home, SERVER__CERTFILE="/c.pem")
    assert detail.startswith("environment PILOTAGE_SERVER__CERTFILE: certfile and keyfile go together")
    assert "only keyfile is set" in refusal(home, SERVER__KEYFILE="/c.key")
    load(home, SERVER__CERTFILE="/c.pem", SERVER__KEYFILE="/c.key")


def test_a_lease_that_one_lost_heartbeat_would_end_is_refused(home: Path) -> None:
    detail = refusal(home, QUEUE__LEASE_SECONDS="39")
    assert "lease_seconds = 39 (environment PILOTAGE_QUEUE__LEASE_SECONDS)" in detail
    assert "heartbeat_seconds = 20 (default)" in detail
    load(home, QUEUE__LEASE_SECONDS="40")


def test_b26_port_99999_is_refused(home: Path) -> None:
    assert "PORT must be from 0 to 65535, not '99999'" in refusal(home, SERVER__PORT="99999")


def test_188_a_database_password_in_a_file_for_all_is_refused(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "site.ini"
    file.write_text("[database]\nurl = postgresql://pilotage:hunter22@db/pilotage\n")
    file.chmod(0o644)
    environ: Mapping[str, str] = {"HOME": str(home)}
    with pytest.raises(PilotageError, match="chmod 600") as caught:
        settings.load(None, file, environ, tmp_path)
    assert "hunter22" not in str(caught.value)
    file.chmod(0o600)
    assert "hunter22" in settings.load(None, file, environ, tmp_path).text("database", "url")


def test_the_file_in_etc_loads_and_names_only_known_keys(home: Path, tmp_path: Path) -> None:
    """Also the keys that are commented out: whoever takes the # away must not be refused."""
    source = ROOT / "etc" / "server.ini"
    environ = {"HOME": str(home)}
    assert settings.load(None, source, environ, tmp_path).text("database", "url") == ""
    text = re.sub(r"^# (\w+ =)", r"\1", source.read_text(), flags=re.MULTILINE)
    assert text != source.read_text()
    (tmp_path / "all.ini").write_text(text)
    loaded = settings.load(None, tmp_path / "all.ini", environ, tmp_path)
    assert loaded.text("database", "url").startswith("postgresql://")


# -- boosts and availability ------------------------------------------------------------------------------------------------


def test_97_tags_and_what_each_adds_are_read(home: Path) -> None:
    loaded = load(home, BROKERAGE__TAG_BOOSTS="smb:100, calibration: 50,a:b:-7", BROKERAGE__CHAIN_BOOST="10")
    assert settings.tag_boosts(loaded) == (("smb", 100), ("calibration", 50), ("a:b", -7))
    assert loaded.integer("brokerage", "chain_boost") == 10
    assert settings.tag_boosts(load(home)) == ()


@pytest.mark.parametrize(
    "entry", ["smb", "smb:", ":5", "smb:x", "smb:1.5", "smb:1000001", "smb:--1", "smb:\u00b2"]
)
def test_a_boost_that_is_none_is_refused(home: Path, entry: str) -> None:
    assert "is no TAG:NUMBER" in refusal(home, BROKERAGE__TAG_BOOSTS=f"ok:1, {entry}")


def test_a_queue_is_judged_by_no_fewer_than_twenty_attempts(home: Path) -> None:
    assert "ATTEMPTS must be from 20" in refusal(home, AVAILABILITY__ATTEMPTS="19")
