"""The catalogue is whole: names, numbers and rules that agree with each other, and errors that carry them."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Dict

import pytest

from protocol.errors import (
    BY_CODE,
    BY_NAME,
    CATALOGUE,
    DETAIL_LIMIT,
    PILOT_EXIT_TEXT,
    Blame,
    Budget,
    ErrorEntry,
    PilotageError,
    PilotExit,
    Retry,
    shorten,
)

ROOT = Path(__file__).parents[3]

PANDA: Dict[str, int] = {
    "GENERAL_ERROR": 1008,
    "NO_LOCAL_SPACE": 1098,
    "STAGE_IN_FAILED": 1099,
    "REPLICA_NOT_FOUND": 1100,
    "INPUT_NOT_FOUND": 1103,
    "WORK_DIRECTORY_TOO_LARGE": 1104,
    "STDOUT_TOO_LARGE": 1106,
    "SETUP_FAILED": 1110,
    "OUTPUT_TOO_LARGE": 1124,
    "NO_STORAGE": 1133,
    "STAGE_OUT_FAILED": 1137,
    "STAGE_OUT_MD5_MISMATCH": 1141,
    "KILLED_BY_SERVER": 1144,
    "STAGE_IN_MD5_MISMATCH": 1145,
    "SOFTWARE_NOT_FETCHED": 1149,
    "LOOPING_JOB": 1150,
    "STAGE_IN_TIMEOUT": 1151,
    "STAGE_OUT_TIMEOUT": 1152,
    "NO_PROXY": 1163,
    "MISSING_OUTPUT": 1165,
    "INPUTS_TOO_LARGE": 1168,
    "STAGE_IN_ADLER32_MISMATCH": 1171,
    "STAGE_OUT_ADLER32_MISMATCH": 1172,
    "NO_VOMS_PROXY": 1177,
    "NO_SOFTWARE_DIRECTORY": 1186,
    "MISSING_JOB_REPORT": 1187,
    "LFN_TOO_LONG": 1190,
    "MKDIR_FAILED": 1199,
    "KILL_SIGNAL": 1200,
    "PILOT_SIGTERM": 1201,
    "PILOT_SIGQUIT": 1202,
    "PILOT_SIGXCPU": 1204,
    "PILOT_SIGUSR1": 1207,
    "PILOT_SIGINT": 1208,
    "SOFTWARE_NOT_INSTALLED": 1211,
    "PAYLOAD_OUT_OF_MEMORY": 1212,
    "WALLTIME_EXCEEDED": 1213,
    "OUTPUT_EXISTS": 1221,
    "PAYLOAD_BAD_ALLOC": 1223,
    "EVENT_SERVICE_RECOVERABLE": 1224,
    "EVENT_SERVICE_FATAL": 1228,
    "PAYLOAD_MEMORY_LIMIT": 1235,
    "EVENT_SERVICE_NO_EVENTS": 1238,
    "EVENT_MESSAGE_FAILED": 1240,
    "CHECKSUM_NOT_SUPPORTED": 1242,
    "NOT_SUPPORTED": 1300,
    "PILOT_EXCEPTION": 1301,
    "FILE_HANDLING_FAILED": 1303,
    "PAYLOAD_FAILED": 1305,
    "CONTAINER_FAILED": 1306,
    "CONTAINER_NO_LOOP_DEVICES": 1307,
    "CONTAINER_BIND_FAILED": 1308,
    "CONTAINER_IMAGE_MOUNT_FAILED": 1309,
    "RUCIO_UNAVAILABLE": 1316,
    "COMMUNICATION_FAILED": 1318,
    "LOG_FAILED": 1320,
    "RUCIO_LOCATION_FAILED": 1321,
    "RUCIO_LIST_REPLICAS_FAILED": 1322,
    "UNKNOWN_COPYTOOL": 1323,
    "SERVICE_UNAVAILABLE": 1324,
    "SINGULARITY_NOT_INSTALLED": 1325,
    "NETWORK_UNREACHABLE": 1327,
    "PAYLOAD_SEGFAULT": 1328,
    "BLACK_HOLE": 1332,
    "NO_REMOTE_SPACE": 1333,
    "BUNDLE_MISSING": 1335,
    "ALREADY_RUNNING": 1336,
    "STAGE_IN_AUTHENTICATION": 1338,
    "CONTAINER_NEW_USER_NAMESPACE": 1340,
    "BAD_QUEUE_SETTINGS": 1341,
    "MIDDLEWARE_MISSING": 1342,
    "JOB_REPORT_WITHOUT_OUTPUTS": 1343,
    "RESOURCE_UNAVAILABLE": 1344,
    "CONTAINER_USER_NAMESPACE_FAILED": 1345,
    "TRANSFORM_NOT_FOUND": 1346,
    "CONTAINER_RESOURCE_UNAVAILABLE": 1348,
    "UNRECOGNIZED_ARGUMENTS": 1349,
    "EMPTY_OUTPUT": 1350,
    "CORE_DUMP": 1355,
    "PREPROCESS_FAILED": 1356,
    "POSTPROCESS_FAILED": 1357,
    "CONTAINER_SETUP_MISSING": 1358,
    "IMAGE_NOT_FOUND": 1360,
    "REMOTE_FILE_NOT_OPENED": 1361,
    "XRDCP_OPEN_FAILED": 1362,
    "NO_S3_CREDENTIALS": 1364,
    "CHECKSUM_FAILED": 1366,
    "COPY_TIMEOUT": 1367,
    "REMOTE_OPEN_TIMEOUT": 1368,
    "FRONTIER_FAILED": 1369,
    "APPTAINER_NOT_INSTALLED": 1372,
    "CERTIFICATE_EXPIRED": 1373,
    "LOG_TIMEOUT": 1376,
    "CVMFS_NOT_ALIVE": 1377,
    "PREEMPTED": 1379,
    "PROXY_TOO_SHORT": 1382,
    "STAGE_OUT_AUTHENTICATION": 1383,
    "QUEUE_WITHOUT_CONTAINERS": 1384,
}
"""PanDA's numbers where the meaning is the same: a change here would tell PanDA's monitors something else."""


@pytest.mark.parametrize(("name", "code"), sorted(PANDA.items()))
def test_an_error_that_panda_knows_has_pandas_number(name: str, code: int) -> None:
    assert BY_NAME[name].code == code
    assert BY_CODE[code].name == name


def test_98_122_there_are_many_errors_and_no_number_of_pandas_is_in_no_list() -> None:
    assert len(CATALOGUE) >= 150
    assert {entry.name for entry in CATALOGUE if entry.code < 2000} == set(PANDA)


def test_every_number_is_pandas_or_ours() -> None:
    assert not [entry for entry in CATALOGUE if not (1000 <= entry.code < 2000 or 3000 <= entry.code < 4000)]


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry.name)
def test_a_row_is_whole(entry: ErrorEntry) -> None:
    assert re.fullmatch(r"[A-Z][A-Z0-9_]+", entry.name)
    assert isinstance(entry.blame, Blame)
    assert len(entry.text) > 10
    assert len(entry.advice) > 10
    for sentence in (entry.text, entry.advice):
        assert not sentence.endswith("."), "detail and advice are joined to it with a colon or a full stop"
        assert sentence[0] not in ("{", "%"), "no template: a detail says what was the matter"


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry.name)
def test_budget_and_blame_agree(entry: ErrorEntry) -> None:
    """The user's own budget pays for what the payload or the user did; nodes, storages and sites are not their fault."""
    if entry.budget is Budget.PAYLOAD:
        assert entry.blame in (Blame.PAYLOAD, Blame.USER)
    if entry.budget is Budget.INFRASTRUCTURE:
        assert entry.blame not in (Blame.PAYLOAD, Blame.USER)
        assert entry.retry is not Retry.NEVER, "what is lost to the infrastructure is tried again"
    if entry.retry is Retry.MORE_MEMORY:
        assert entry.budget is Budget.PAYLOAD


def test_what_a_payload_says_by_itself_accuses_only_the_payload() -> None:
    said = [entry for entry in CATALOGUE if entry.hearsay]
    assert {entry.suspect for entry in said} == {Blame.PAYLOAD}
    assert Blame.NODE in {entry.blame for entry in said}, (
        "statistics still tell where the fault is said to be"
    )
    assert all(entry.suspect is entry.blame for entry in CATALOGUE if not entry.hearsay)


def test_every_name_that_code_raises_is_in_the_catalogue() -> None:
    raised = {}
    for folder in ("protocol", "copytools", "pilot", "server", "client", "daq"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if (
                    isinstance(node, ast.Call)
                    and getattr(node.func, "id", getattr(node.func, "attr", "")) == "PilotageError"
                ):
                    if node.args and isinstance(node.args[0], ast.Constant):
                        raised[node.args[0].value] = path
                elif isinstance(node, ast.Subscript) and getattr(node.value, "id", "") == "BY_NAME":
                    if isinstance(node.slice, ast.Constant):
                        raised[node.slice.value] = path
    assert len(raised) > 10
    assert not {name: str(path) for name, path in raised.items() if name not in BY_NAME}


def test_an_error_carries_its_row_and_its_detail() -> None:
    error = PilotageError("STAGE_IN_FAILED", "cp /a /b: no space", path="/b")
    assert (error.name, error.code, error.fields) == ("STAGE_IN_FAILED", 1099, {"path": "/b"})
    assert str(error) == "an input file could not be copied: cp /a /b: no space"
    assert str(PilotageError("STAGE_IN_FAILED")) == "an input file could not be copied"


def test_a_name_that_is_not_in_the_catalogue_cannot_be_raised() -> None:
    with pytest.raises(KeyError):
        PilotageError("SOMETHING_ELSE")


def test_a_long_detail_keeps_its_head_and_its_tail() -> None:
    detail = PilotageError("STAGE_IN_FAILED", "head" + "x" * 5000 + "tail").detail
    assert len(detail) <= DETAIL_LIMIT
    assert detail.startswith("headx")
    assert detail.endswith("xtail")
    assert " ... " in detail


@pytest.mark.parametrize("length", [0, 1, 39, 40])
def test_a_short_text_is_not_cut(length: int) -> None:
    assert shorten("x" * length, 40) == "x" * length


@pytest.mark.parametrize("length", [41, 42, 1000])
def test_a_cut_text_is_not_longer_than_its_limit(length: int) -> None:
    assert 35 <= len(shorten("x" * length, 40)) <= 40


def test_exit_codes_fit_into_a_byte_and_have_a_sentence() -> None:
    assert all(0 <= code <= 255 for code in PilotExit)
    assert set(PILOT_EXIT_TEXT) == set(PilotExit)
    assert PilotExit.DONE == 0
    assert (PilotExit.INTERRUPTED, PilotExit.TERMINATED) == (128 + 2, 128 + 15), (
        "what a shell expects of a signal"
    )


@pytest.mark.parametrize("name", ["INPUT_NOT_FOUND", "INPUT_SIZE_MISMATCH", "STAGE_IN_MD5_MISMATCH"])
def test_a_lost_input_is_restored_or_made_again_by_another_job_than_the_one_that_misses_it(name: str) -> None:
    advice = BY_NAME[name].advice_for(17)
    assert "restore the file, or make it again" in advice
    assert "17" not in advice, "the job that made it is another one"
