"""The log: its form, its fields, its rotation; and what no record can do: leak a secret or forge a line (FAULTS B22)."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol import logs, settings
from protocol.errors import PilotageError
from protocol.logs import LOGGING_ROWS, Logs, RotatingFile, bound, bound_fields
from protocol.settings import Table

logger = logging.getLogger("pilot.control.job")


@pytest.fixture(autouse=True)
def root_logger_as_before() -> Iterator[None]:
    root = logging.getLogger()
    level = root.level
    yield
    for handler in list(root.handlers):
        if isinstance(handler, (RotatingFile, logs._StreamHandler)):
            root.removeHandler(handler)
            handler.close()
    root.setLevel(level)


class Captured:
    """A log on a stream in memory."""

    def __init__(self, *, json_lines: bool = False, level: str = "DEBUG") -> None:
        self.stream = io.StringIO()
        self.logs: Logs = logs.set_up(level, json_lines=json_lines, stream=self.stream)

    @property
    def lines(self) -> list[str]:
        return self.stream.getvalue().splitlines()

    @property
    def line(self) -> str:
        (line,) = self.lines
        return line

    @property
    def json(self) -> dict[str, object]:
        parsed = json.loads(self.line)
        assert isinstance(parsed, dict)
        return parsed


# -- form and fields ------------------------------------------------------------------------------------------------------------


def test_a_line_has_a_utc_time_a_level_a_logger_fields_and_the_message() -> None:
    log = Captured()
    with bound(pilot_id="n1-7"), bound(job_id=12, attempt_nr=2):
        logger.info("payload ended", extra={"exit_code": 3, "text": "a b"})
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO    pilot\.control\.job "
        r'\[pilot_id=n1-7 job_id=12 attempt_nr=2\] payload ended exit_code=3 text="a b"',
        log.line,
    )


def test_times_are_utc_wherever_the_node_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        log = Captured()
        record = logging.makeLogRecord({"msg": "x", "created": 0.25})
        assert log.logs.handler.format(record).startswith("1970-01-01T00:00:00.250Z")
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_json_line_has_the_same_and_keeps_types() -> None:
    log = Captured(json_lines=True)
    with bound(job_id=12):
        logger.warning(
            "slow %s",
            "copy",
            extra={"seconds": 0.5, "rate": float("nan"), "path": Path("/x"), "level": "mine"},
        )
    line = log.json
    assert line["message"] == "slow copy"
    assert line["level"] == "WARNING"
    assert line["level_"] == "mine"
    assert (line["job_id"], line["seconds"], line["rate"], line["path"]) == (12, 0.5, "nan", "/x")
    assert str(line["time"]).endswith("Z")


def test_fields_are_bound_for_the_block_and_the_thread_only() -> None:
    log = Captured()
    with bound(job_id=1):
        thread = threading.Thread(target=logger.info, args=("from another thread",))
        thread.start()
        thread.join(10)
        with bound(job_id=2):
            logger.info("inner")
        logger.info("outer")
    logger.info("after")
    assert [("job_id=1" in line, "job_id=2" in line) for line in log.lines] == [
        (False, False),
        (False, True),
        (True, False),
        (False, False),
    ]


def test_a_thread_can_go_on_with_the_fields_of_its_starter() -> None:
    log = Captured()

    def monitor(fields: dict[str, object]) -> None:
        with bound(**fields):
            logger.info("heartbeat")

    with bound(job_id=1):
        thread = threading.Thread(target=monitor, args=(dict(bound_fields()),))
        thread.start()
        thread.join(10)
    assert "[job_id=1] heartbeat" in log.line


def test_bound_fields_end_with_an_exception_too() -> None:
    with pytest.raises(KeyError), bound(job_id=1):
        raise KeyError
    assert dict(bound_fields()) == {}


def test_a_level_below_the_chosen_one_is_not_written() -> None:
    log = Captured(level="WARNING")
    logger.info("no")
    logger.warning("yes")
    assert log.line.endswith("yes")


def test_a_second_set_up_replaces_the_first() -> None:
    first = Captured()
    second = Captured()
    logger.info("once")
    assert (len(first.lines), len(second.lines)) == (0, 1)


# -- B22: hostile text ----------------------------------------------------------------------------------------------------------

FORGERY = "x\r\n2025-01-01T00:00:00.000Z ERROR   root false\x1b[2J\u202e\u2028<script>%s%n{{7*7}}"


def test_b22_no_message_or_field_can_forge_a_line() -> None:
    log = Captured()
    logger.info(FORGERY)
    logger.info("got %s", FORGERY)
    logger.info("got", extra={"word": FORGERY})
    with bound(pilot_id=FORGERY):
        logger.info("got")
    assert len(log.stream.getvalue().split("\n")) == 5  # four lines and what follows the last
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e]", log.stream.getvalue())
    assert r"x\r\n2025-01-01T00:00:00.000Z ERROR" in log.lines[0]


def test_b22_a_json_line_stays_one_line_of_ascii() -> None:
    log = Captured(json_lines=True)
    logger.info("got %s", FORGERY, extra={"word": FORGERY})
    assert log.stream.getvalue().isascii()
    assert log.json["word"] == FORGERY


def test_b22_a_trace_back_cannot_look_like_another_record() -> None:
    log = Captured()
    try:
        raise ValueError(FORGERY)
    except ValueError:
        logger.exception("broken")
    first, *rest = log.lines
    assert first.endswith("broken")
    assert rest
    assert all(line.startswith("  | ") for line in rest)
    assert any("ValueError" in line for line in rest)


def test_a_trace_back_is_in_the_json_line() -> None:
    log = Captured(json_lines=True)
    try:
        raise ValueError("token=hunter22")
    except ValueError:
        logger.exception("broken")
    assert "ValueError: token=(hidden)" in str(log.json["traceback"])


def test_b22_a_message_cannot_counterfeit_bound_fields() -> None:
    log = Captured()
    with bound(job_id=1):
        logger.info("[job_id=2] x")
    assert log.line.index("[job_id=1]") < log.line.index("[job_id=2]")


def test_b22_a_huge_message_is_cut_and_costs_little() -> None:
    log = Captured()
    begin = time.process_time()
    logger.info("head %s tail", "token " * 2_000_000, extra={"word": "y" * 10_000_000})
    assert time.process_time() - begin < 5.0
    assert len(log.line) < 3 * logs.LONGEST_MESSAGE
    assert "head" in log.line
    assert "tail" in log.line


@pytest.mark.parametrize(
    ("message", "arguments"), [("%d jobs", ("many",)), ("%s and %s", ("one",)), ("%(x)s", ("one",))]
)
def test_a_wrong_log_call_still_logs(message: str, arguments: tuple[str, ...]) -> None:
    log = Captured()
    log.logs.handler.handle(logging.makeLogRecord({"msg": message, "args": arguments}))
    assert log.line.endswith(f"{message} {arguments!r} (the log call has wrong arguments)")


# -- secrets --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("json_lines", [False, True])
def test_b25_no_secret_reaches_the_log(json_lines: bool) -> None:
    log = Captured(json_lines=json_lines)
    log.logs.secrets.add("registered-value")
    with bound(attempt_token="hunter22"):
        logger.info("sent Authorization: Bearer hunter22 to http://ann:hunter22@h/ as registered-value")
        logger.info("sent", extra={"password": "hunter22", "headers": {"Authorization": "Bearer hunter22"}})
        try:
            raise RuntimeError("http://ann:hunter22@h and registered-value")
        except RuntimeError:
            logger.exception("failed")
    text = log.stream.getvalue()
    assert "hunter22" not in text
    assert "registered-value" not in text
    assert "(hidden)" in text


# -- files ----------------------------------------------------------------------------------------------------------------------


def sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.iterdir()}


def test_65_the_log_is_rotated_at_its_size_and_old_files_are_counted(tmp_path: Path) -> None:
    log = logs.set_up("INFO", tmp_path / "pilot.log", 2000, 3)
    for number in range(500):
        logger.info("record %04d, straße", number)
    log.close()
    found = sizes(tmp_path)
    assert sorted(found) == ["pilot.log", "pilot.log.1", "pilot.log.2", "pilot.log.3"]
    assert max(found.values()) <= 2000
    assert min(found[f"pilot.log.{number}"] for number in (1, 2, 3)) > 1800
    text = "".join((tmp_path / f"pilot.log{end}").read_text() for end in (".3", ".2", ".1", ""))
    numbers = [int(word) for word in re.findall(r"record (\d+)", text)]
    assert numbers == list(range(numbers[0], 500))


def test_with_no_backups_the_size_is_kept_all_the_same(tmp_path: Path) -> None:
    log = logs.set_up("INFO", tmp_path / "pilot.log", 2000, 0)
    for number in range(200):
        logger.info("record %04d", number)
    log.close()
    assert list(sizes(tmp_path)) == ["pilot.log"]
    assert 0 < sizes(tmp_path)["pilot.log"] <= 2000
    assert "record 0199" in (tmp_path / "pilot.log").read_text()


def test_many_threads_lose_and_mix_no_line(tmp_path: Path) -> None:
    log = logs.set_up("INFO", tmp_path / "pilot.log", 20_000, 100)

    def work(thread: int) -> None:
        with bound(thread_nr=thread):
            for number in range(200):
                logger.info("record", extra={"number": number})

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    log.close()
    lines = [line for path in tmp_path.iterdir() for line in path.read_text().splitlines()]
    found = {re.sub(r".*\[thread_nr=(\d)\] record number=(\d+)$", r"\1 \2", line) for line in lines}
    assert len(lines) == 1600
    assert found == {f"{thread} {number}" for thread in range(8) for number in range(200)}
    assert max(sizes(tmp_path).values()) <= 20_000


def test_two_that_share_a_file_follow_each_other_s_rotation(tmp_path: Path) -> None:
    """As gunicorn's workers do. Each handler has the file open for itself, as a process of its own would."""
    path = tmp_path / "server.log"
    one, other = RotatingFile(path, 1000, 50), RotatingFile(path, 1000, 50)
    for number in range(100):
        for handler, name in ((one, "one"), (other, "other")):
            handler.handle(logging.makeLogRecord({"msg": f"record {name} {number:04}"}))
    one.close()
    other.close()
    lines = [line for file in tmp_path.iterdir() for line in file.read_text().splitlines()]
    assert sorted(lines) == sorted(
        f"record {name} {number:04}" for name in ("one", "other") for number in range(100)
    )
    assert max(sizes(tmp_path).values()) <= 1000
    assert len(sizes(tmp_path)) == -(
        -sum(len(line) + 1 for line in lines) // 1000
    )  # no file was begun in vain


def test_a_file_that_an_operator_moved_away_is_begun_anew(tmp_path: Path) -> None:
    log = logs.set_up("INFO", tmp_path / "pilot.log")
    logger.info("one")
    (tmp_path / "pilot.log").rename(tmp_path / "kept")
    logger.info("two")
    log.close()
    assert (tmp_path / "kept").read_text().endswith("one\n")
    assert (tmp_path / "pilot.log").read_text().endswith("two\n")


def test_where_old_files_cannot_be_renamed_the_log_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pilot.log.1").mkdir()
    (tmp_path / "pilot.log.1" / "x").touch()
    log = logs.set_up("INFO", tmp_path / "pilot.log", 1000, 1)
    for number in range(100):
        logger.info("record %04d", number)
    log.close()
    assert (tmp_path / "pilot.log").read_text().count("record") == 100
    told = capsys.readouterr().err
    assert told.startswith("pilotage: the log cannot be written: ")
    assert told.count("\n") == 1


def test_a_full_disk_is_told_once_and_ends_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    log = logs.set_up("INFO", Path("/dev/full"))
    for _ in range(10):
        logger.info("record")
    log.close()
    assert (
        capsys.readouterr().err == "pilotage: the log cannot be written: [Errno 28] No space left on device\n"
    )


def test_a_device_is_not_rotated() -> None:
    log = logs.set_up("INFO", Path("/dev/null"), 1000, 1)
    for _ in range(100):
        logger.info("record")
    log.close()
    assert not os.path.exists("/dev/null.1")


@pytest.mark.parametrize("name", ["missing/pilot.log", ""])
def test_a_log_file_that_cannot_be_opened_stops_the_start(tmp_path: Path, name: str) -> None:
    with pytest.raises(PilotageError, match="the log file .* cannot be written: "):
        logs.set_up("INFO", tmp_path / name)


def test_what_is_no_unicode_is_written_spelt_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # What pytest captures goes from process to process where tests run side by side, as text.
    monkeypatch.setattr(type(caplog.handler), "emit", lambda handler, record: None)
    log = logs.set_up("INFO", tmp_path / "pilot.log", json_lines=False)
    logger.info("name %s", os.fsdecode(b"\xff\xfe"))
    log.close()
    assert r"name \udcff\udcfe" in (tmp_path / "pilot.log").read_text()


# -- from settings --------------------------------------------------------------------------------------------------------------


def test_65_the_section_logging_sets_it_all(tmp_path: Path) -> None:
    table = Table(
        "pilot", LOGGING_ROWS, ignored={"rabbit_settings": ("x",)}, ignored_because="there is no broker"
    )
    file = tmp_path / "x.ini"
    file.write_text(
        f"[logging]\nLOG_LEVEL = debug\nMAX_LOG_SIZE = 2048 # 2 kB\nBACKUP COUNT = 1\nLOG_FILE = {tmp_path}/a.log\nLOG_JSON = yes\n"
        "[rabbit settings]\nx = 1\n"
    )
    log = logs.set_up_from(settings.load(table, [file], {}, start=tmp_path))
    for _ in range(100):
        logger.debug("x")
    log.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.log", "a.log.1", "x.ini"]
    assert max(sizes(tmp_path).values()) <= 2048
    assert json.loads((tmp_path / "a.log").read_text().splitlines()[0])["level"] == "DEBUG"


def test_notices_of_the_settings_are_logged_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    table = Table(
        "pilot", LOGGING_ROWS, ignored={"rabbit_settings": ("x",)}, ignored_because="there is no broker"
    )
    file = tmp_path / "x.ini"
    file.write_text("[rabbit settings]\nx = 1\n")
    logs.set_up_from(settings.load(table, [file], {}, start=tmp_path))
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "WARNING protocol.logs [rabbit_settings] in" in told


def test_without_a_file_the_log_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("INFO")
    logger.info("hello")
    assert capsys.readouterr().err.endswith("pilot.control.job hello\n")
    assert sys.stderr is not None
