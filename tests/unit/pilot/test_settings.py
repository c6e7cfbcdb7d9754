"""The pilot's and the daemon's tables, and the seeds' own ini files against them (seeds 63-66, 139-155, 186-188)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from pilot import settings
from protocol.errors import PilotageError
from protocol.settings import Settings, describe

ROOT = Path(__file__).parents[3]
FIXTURES = ROOT / "tests" / "fixtures"
PROPER = "http://11.111.111.80:8080"


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path / "home")}


@pytest.fixture
def seeds(tmp_path: Path) -> Path:
    """The slides' pilot configuration with a proper address, everything else as it is."""
    path = tmp_path / "seeds.ini"
    path.write_text((FIXTURES / "seeds_pilot.ini").read_text().replace("http://11.111.111.8080", PROPER))
    path.chmod(0o644)
    return path


def load(
    config: Path, environ: Mapping[str, str], command_line: Mapping[str, object] | None = None
) -> Settings:
    return settings.load(command_line, config, environ, config.parent)


def test_63_64_65_187_the_seeds_pilot_file_loads_unchanged_but_for_its_address(
    seeds: Path, environ: dict[str, str]
) -> None:
    loaded = load(seeds, environ)
    assert loaded.text("node_settings", "server_address") == PROPER
    assert loaded.text("node_settings", "processor_type") == "cpu"
    assert loaded.text("node_settings", "pilot_id") == "1"
    assert loaded.path("node_settings", "script_prefix") == Path("/path_to_data")
    assert loaded.text("logging", "log_level") == "INFO"
    assert loaded.integer("logging", "max_log_size") == 10485760
    assert loaded.integer("logging", "backup_count") == 5
    assert loaded.origin("logging", "max_log_size") == f"{seeds} line 17"


def test_186_the_seeds_address_is_refused_with_what_would_be_right(environ: dict[str, str]) -> None:
    with pytest.raises(PilotageError) as caught:
        load(FIXTURES / "seeds_pilot.ini", environ)
    assert caught.value.name == "BAD_SETTINGS"
    assert caught.value.detail == (
        f"{FIXTURES / 'seeds_pilot.ini'} line 10: SERVER_ADRESS is not valid: 'http://11.111.111.8080': "
        "11.111.111.8080 is not an IPv4 address; a port follows a colon, did you mean http://HOST:8080 ?"
    )


def test_63_188_the_seeds_broker_is_ignored_with_one_notice_and_its_password_is_no_secret_of_ours(
    seeds: Path, environ: dict[str, str]
) -> None:
    (notice,) = load(seeds, environ).notices
    assert notice.startswith(
        f"[rabbit_settings] in {seeds} is ignored: pilots fetch their jobs from the server over HTTP"
    )
    assert f"chmod 600 {seeds}" in notice
    seeds.chmod(0o600)
    (notice,) = load(seeds, environ).notices
    assert "chmod" not in notice


def test_66_the_seeds_daemon_file_loads(environ: dict[str, str]) -> None:
    loaded = settings.load_daemon(None, FIXTURES / "seeds_daemon.ini", environ, FIXTURES)
    assert loaded.number("node_settings", "script_delay") == 10
    assert loaded.notices == ()


def test_pilot_and_daemon_share_an_environment(environ: dict[str, str], tmp_path: Path) -> None:
    environ.update(PILOTAGE_NODE_SETTINGS__SCRIPT_DELAY="3", PILOTAGE_NODE_SETTINGS__QUEUE="Q")
    environ.update(PILOTAGE_LOGGING__LOG_LEVEL="DEBUG")
    pilot, daemon = (
        settings.load(None, None, environ, tmp_path),
        settings.load_daemon(None, None, environ, tmp_path),
    )
    assert pilot.text("node_settings", "queue") == "Q"
    assert daemon.number("node_settings", "script_delay") == 3
    assert pilot["logging", "log_level"] == daemon["logging", "log_level"] == "DEBUG"


def test_139_to_155_every_option_of_pilot_2_has_a_row_or_is_the_command_s_own() -> None:
    options = {option for row in settings.TABLE.options() for option in row.options}
    options_of_pilot_2 = {
        "-a",
        "-w",
        "-l",
        "-q",
        "-s",
        "-j",
        "-p",
        "--url",
        "--pilotuser",
        "--cacert",
        "--capath",
    }
    options_of_pilot_2 |= {"--countrygroup", "--workinggroup", "--allowothercountry", "--allowsameuser"}
    assert options_of_pilot_2 <= options
    assert not {"-d", "--config"} & options  # of cli.py: the level of the log, and where to read


def test_no_option_means_two_things() -> None:
    options = [option for row in settings.TABLE.options() for option in row.options]
    assert len(options) == len(set(options))


@pytest.mark.parametrize(
    ("address", "port", "url"),
    [
        ("http://h", 0, "http://h"),
        ("http://h:1", 0, "http://h:1"),
        ("http://h", 25080, "http://h:25080"),
        ("http://h:1/p", 25080, "http://h:25080/p"),
        ("https://[::1]:1", 25080, "https://[::1]:25080"),
    ],
)
def test_148_the_port_option_takes_the_place_of_the_address_s(
    environ: dict[str, str], tmp_path: Path, address: str, port: int, url: str
) -> None:
    given = {"node_settings__server_address": address, "node_settings__port": port}
    assert settings.server_url(settings.load(given, None, environ, tmp_path)) == url


def test_nothing_of_a_site_or_an_experiment_is_a_default(environ: dict[str, str], tmp_path: Path) -> None:
    loaded = settings.load(None, None, environ, tmp_path)
    assert loaded["experiment", "plugin"] == "generic"
    assert {loaded["node_settings", key] for key in ("queue", "site")} == {""}
    assert loaded["spd", "software_setup"] is None


@pytest.mark.parametrize("program", ["pilot", "daemon"])
def test_the_file_in_etc_loads_and_names_only_known_keys(
    program: str, environ: dict[str, str], tmp_path: Path
) -> None:
    """Also the keys that are commented out: whoever takes the # away must not be refused."""
    read = {"pilot": settings.load, "daemon": settings.load_daemon}[program]
    source = ROOT / "etc" / f"{program}.ini"
    assert read(None, source, environ, tmp_path).notices == ()
    text = re.sub(r"^# (\[\w+\]|\w+ =)", r"\1", source.read_text(), flags=re.MULTILINE)
    assert text != source.read_text()
    (tmp_path / "all.ini").write_text(text)
    loaded = read(None, tmp_path / "all.ini", environ, tmp_path)
    assert len([line for line in describe(loaded) if line.origin.startswith(str(tmp_path / "all.ini"))]) > 3
