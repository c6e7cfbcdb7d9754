"""Options, help and settings of the command line; no pilot is started here."""

from __future__ import annotations

import ast
import logging
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pilot import cli
from pilot import settings as tables
from protocol import __version__
from protocol.errors import PILOT_EXIT_TEXT, PilotExit

PILOT_2 = [
    "-a",
    "-d",
    "-w",
    "-l",
    "-q",
    "-s",
    "-j",
    "--cacert",
    "--capath",
    "-p",
    "--config",
    "--countrygroup",
    "--workinggroup",
    "--allowothercountry",
    "--allowsameuser",
    "--url",
    "--pilotuser",
]
OURS = ["--token-file", "--resource-type", "--max-jobs", "--wait", "--outbox", "--print-config", "--version"]


def call(*words: str) -> Result:
    return CliRunner().invoke(cli.run, words)


def test_a_bridge_has_no_option_of_pilots_that_does_nothing_there() -> None:
    said = CliRunner().invoke(cli.bridge, ["--help"]).output
    assert "--directory" in said and "give-up" not in said


@pytest.mark.parametrize("option", [*PILOT_2, *OURS])
def test_every_option_of_pilot_2_and_ours_is_taken_and_has_help(option: str) -> None:
    parameter = next(each for each in cli.run.params if option in each.opts)
    assert getattr(parameter, "help", None)
    assert option in call("--help").output


def test_each_setting_with_an_option_has_it() -> None:
    names = {name for parameter in cli.run.params for name in parameter.opts}
    assert {option for row in tables.TABLE.options() for option in row.options} <= names


def test_what_does_nothing_yet_says_so() -> None:
    text = " ".join(call("--help").output.split())
    assert text.count("(accepted; acts in a later version)") == len(cli.LATER) == 3


def test_the_help_lists_the_exit_codes_and_examples() -> None:
    lines = [line.split() for line in call("--help").output.splitlines()]
    for code, text in PILOT_EXIT_TEXT.items():
        assert [str(code.value), *text.split()] in lines
    assert "--max-jobs 1 -d" in call("--help").output


def test_the_version_is_shown() -> None:
    assert call("--version").output == f"pilot {__version__}\n"


def test_print_config_shows_values_and_where_they_come_from() -> None:
    output = call("--print-config", "-q", "SPD", "-l", "99", "--allowsameuser", "--outbox", "/keep").output
    assert "[node_settings] QUEUE = SPD   (command line -q)" in output
    assert "[limits] lifetime_seconds = 99   (command line -l)" in output
    assert "[get_job] allow_same_user = yes   (command line --allowsameuser)" in output
    assert "[node_settings] OUTBOX_DIRECTORY = /keep" in output
    assert "[limits] idle_seconds = 600   (default)" in output


def test_debug_and_wait_are_short_for_settings() -> None:
    output = call("--print-config", "-d", "--wait").output
    assert "LOG_LEVEL = DEBUG" in output and "keep_work_directories = yes" in output
    assert "idle_seconds = 31536000" in output


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("-l", "soon"), "LIFETIME_SECONDS must be a whole number"),
        (("--url", "http://11.111.111.8080"), "a port follows a colon"),
        (("--config", "/no/such.ini"), "/no/such.ini"),
        (("-w", "unheard"), "no workflow unheard; there are analysis, generic, production, user"),
    ],
)
def test_a_wrong_setting_ends_the_start_with_one_sentence_and_its_exit_code(words: list, told: str) -> None:  # type: ignore[type-arg]
    result = call(*words)
    assert result.exit_code == PilotExit.BAD_SETTINGS
    assert told in result.output


def test_an_unknown_option_has_the_same_exit_code() -> None:
    assert call("--unheard-of").exit_code == PilotExit.BAD_SETTINGS


def test_the_seeds_own_file_is_taken_apart_from_its_address(tmp_path: Path) -> None:
    ini = tmp_path / "config_example.ini"
    ini.write_text(
        "[rabbit settings]\nRABBITMQ_USERNAME=user\n[node_settings]\nSERVER_ADRESS = http://11.111.111.11:8080\n"
        "PROCESSOR_TYPE = cpu\nPILOT_ID = 1\nSCRIPT_PREFIX = /path_to_data/\n[logging]\nMAX_LOG_SIZE = 10485760 # 10MB\n"
    )
    output = call("--config", str(ini), "--print-config").output
    assert "PROCESSOR_TYPE = cpu" in output and "MAX_LOG_SIZE = 10485760" in output


def test_no_log_call_of_the_pilot_uses_a_field_that_logging_keeps_for_itself() -> None:
    """logging raises then: the record is lost, and perhaps a thread."""
    reserved = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
    for path in Path(cli.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "extra" and isinstance(node.value, ast.Dict):
                keys = {key.value for key in node.value.keys if isinstance(key, ast.Constant)}
                assert not keys & reserved, f"{path.name}:{node.value.lineno}: {keys & reserved}"
