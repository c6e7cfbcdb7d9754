"""`daq emulate`, `daq read` and `daq verify` as a user meets them: messages, exit codes, processes that end."""

from __future__ import annotations

import json
import multiprocessing
import os
import pty
import re
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from daq.cli import daq
from daq.config import DaqConfig
from daq.emulator import Written, emulating, plan
from protocol import spd
from protocol.errors import PilotageError
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
PROGRAM = [sys.executable, "-c", "from daq.cli import daq; daq(prog_name='pilotage daq')"]
FIRST = "run-000001-00000-00.spd"


def invoke(*arguments: object) -> Result:
    return CliRunner(mix_stderr=False).invoke(
        daq, [str(each) for each in arguments], prog_name="pilotage daq"
    )


def emulate(out: Path, *arguments: object, size: str = "64KiB") -> Result:
    return invoke("emulate", "--out", out, "--size", size, *arguments)


def start(*arguments: object, limit: Callable[[], None] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*PROGRAM, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=limit,
        start_new_session=True,
    )


def run(*arguments: object, limit: Callable[[], None] | None = None) -> subprocess.CompletedProcess[str]:
    process = start(*arguments, limit=limit)
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def good(tmp_path: Path) -> Path:
    assert emulate(tmp_path / "good").exit_code == 0
    return tmp_path / "good" / FIRST


def one_line_error(result: Result, exit_code: int = 1) -> str:
    """The last line on stderr; nothing like a traceback above it."""
    assert result.exit_code == exit_code, result.output
    lines = result.stderr.splitlines()
    assert lines[-1].startswith("Error: ")
    assert "Traceback" not in result.stderr
    return lines[-1]


# -- without the extra -----------------------------------------------------------------------------------------------------


def test_without_numpy_files_are_read_and_verified_and_emulate_tells_what_to_install(good: Path) -> None:
    program = "import sys; sys.modules['numpy'] = None; from client.cli import main; main()"

    def pilotage(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", program, "daq", *words]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert pilotage("read", str(good)).returncode == 0
    assert pilotage("verify", str(good)).returncode == 0
    done = pilotage("emulate", "--out", str(good.parent), "--force")
    assert done.returncode == 1
    assert "pip install 'pilotage[daq]'" in done.stderr and "Traceback" not in done.stderr


# -- wrong options and settings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--slice-length", "4500000"], "--slice-length (SliceLength) must be less than 4500000 ns"),
        (["--slice-length", "10us"], "--slice-length (SliceLength) must be a whole number"),
        (["--frame-length", "0"], "--frame-length (FrameLength) must be"),
        (["--format", "run.spd"], "must take three numbers (run, chunk, builder id)"),
        (["--seed", "x"], "--seed (RandomSeed) must be a whole number"),
        (["--debug-mode", "2"], "--debug-mode (DebugMode) must be 0 or 1"),
        (["--frame-clock-id", "1004"], "source id 1004 is both"),
        (["--bunch-crossing-id", "x"], "--bunch-crossing-id (BunchCrossingID) must be"),
        (["--size", "1X"], "--size (DataFileSizeLimit) must be bytes"),
        (["--size", "20"], "DataFileSizeLimit = 20 bytes is too small"),
        (["--files", "0"], "number of files must be"),
        (["--config", "none.cfg"], "none.cfg cannot be read: No such file"),
    ],
)
def test_a_wrong_option_ends_with_exit_code_2_and_writes_nothing(
    tmp_path: Path, arguments: list[str], says: str
) -> None:
    result = emulate(tmp_path / "out", *arguments)
    assert says in one_line_error(result, 2)
    assert not (tmp_path / "out").exists()


def test_an_error_in_the_configuration_file_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "daq.cfg").write_text("RandomSeed = 1\nFrameLenght = 5\n")
    line = one_line_error(emulate(tmp_path / "out", "-c", tmp_path / "daq.cfg"), 2)
    assert f"{tmp_path}/daq.cfg line 2: unknown key 'FrameLenght'; did you mean FrameLength?" in line


def test_every_key_of_the_configuration_has_an_option(tmp_path: Path) -> None:
    result = emulate(
        tmp_path, "--format", "r%u.c%u.b%u", "--seed", 5, "--debug-mode", 1, "--frame-clock-id", "1, 2, 3",
        "--bunch-crossing-id", "4", "--slice-length", 20_000, "--frame-length", 3, "--run", 6, size="100kB",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    header = json.loads(invoke("read", "--json", tmp_path / "r6.c0.b0").stdout)["header"]
    assert header["seed"] == 5
    assert header["keepsEmpty"] is True
    assert [each["sourceId"] for each in header["sources"]][:4] == [1, 2, 3, 4]
    assert (header["sliceNs"], header["frameSlices"], header["run"]) == (20_000, 3, 6)
    assert header["size"] <= 100_000


def test_options_stand_above_the_configuration_file(tmp_path: Path) -> None:
    (tmp_path / "daq.cfg").write_text(
        "RandomSeed = 1  # ours\nDataFileSizeLimit = 20kB\nSliceLength = 15000\n"
    )
    result = invoke("emulate", "-c", tmp_path / "daq.cfg", "-o", tmp_path / "out", "--seed", 2)
    assert result.exit_code == 0, result.output
    header = json.loads(invoke("read", "--json", tmp_path / "out" / FIRST).stdout)["header"]
    assert (header["seed"], header["sliceNs"]) == (2, 15_000)
    assert header["size"] <= 20_000


def test_an_unusual_slice_is_warned_about_and_written(tmp_path: Path) -> None:
    result = emulate(tmp_path, "--slice-length", 5000)
    assert result.exit_code == 0
    assert "Warning: SliceLength = 5000 ns lies outside the 10 to 100 µs" in result.stderr
    assert "Warning" not in emulate(tmp_path / "usual", "--slice-length", 100_000, size="1MiB").stderr


def test_existing_files_are_refused_unless_forced(good: Path) -> None:
    before = good.read_bytes()
    line = one_line_error(emulate(good.parent, "--files", 2, "--seed", 7))
    assert str(good) in line
    assert "--force writes over them" in line
    assert contents(good.parent) == {FIRST: before}
    assert emulate(good.parent, "--files", 2, "--seed", 7, "--force").exit_code == 0
    assert good.read_bytes() != before
    assert len(contents(good.parent)) == 2


# -- a full disk ------------------------------------------------------------------------------------------------------------


def test_a_write_that_the_system_refuses_is_one_clear_line_and_leaves_nothing(tmp_path: Path) -> None:
    def smallest_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    result = run("emulate", "-o", tmp_path, "-n", 4, "-j", 2, "--size", "1MiB", limit=smallest_files)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert re.match(r"Error: .*run-000001-0000\d-00.spd cannot be written: File too large", result.stderr)
    assert contents(tmp_path) == {}


def test_more_than_the_disk_holds_is_refused_before_it_is_begun(tmp_path: Path) -> None:
    line = one_line_error(emulate(tmp_path / "out", "-n", 1000, size="1TiB"))
    assert "the files need up to" in line
    assert not (tmp_path / "out").exists()


# -- many processes ---------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes_whatever_the_number_of_processes(tmp_path: Path) -> None:
    common = ("--files", 7, "--builders", 2, "--size", "3MB", "--quiet")
    for jobs in (1, 4):
        result = run("emulate", "-o", tmp_path / str(jobs), "-j", jobs, *common)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    one, four = contents(tmp_path / "1"), contents(tmp_path / "4")
    assert len(one) == 7
    assert one == four
    assert len(set(one.values())) == 7


def test_processes_are_started_afresh_beside_threads(tmp_path: Path) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        config = DaqConfig(data_file_size_limit=50_000)
        with emulating(plan(config, tmp_path, 3), 2) as events:
            written = [event for event in events if isinstance(event, Written)]
    finally:
        stop.set()
        thread.join()
    assert sorted(each.chunk for each in written) == [0, 1, 2]
    assert len(contents(tmp_path)) == 3


def test_the_error_of_a_process_ends_all(tmp_path: Path) -> None:
    plans = plan(DaqConfig(data_file_size_limit=50_000), tmp_path, 3)
    plans[1].path.mkdir()
    with pytest.raises(PilotageError) as caught, emulating(plans, 2) as events:
        list(events)
    assert caught.value.name == "ALREADY_EXISTS"


def test_a_process_that_is_killed_is_told(tmp_path: Path) -> None:
    with emulating(plan(DaqConfig(data_file_size_limit=1 << 30), tmp_path, 1), 1) as events:
        next(events)
        multiprocessing.active_children()[0].kill()
        with pytest.raises(ChildProcessError, match="a writing process died, exit code -9"):
            list(events)
    assert not list(tmp_path.iterdir())


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(
    ("number", "to_group", "exit_code"),
    [(signal.SIGINT, True, 130), (signal.SIGTERM, False, 143), (signal.SIGKILL, False, -9)],
)
def test_an_end_at_any_moment_leaves_no_process_and_no_half_file(
    tmp_path: Path, number: signal.Signals, to_group: bool, exit_code: int
) -> None:
    process = start("emulate", "-o", tmp_path, "-n", 40, "-j", 2, "--size", "64MiB")
    try:
        wait_until(lambda: len(list(tmp_path.glob(".*.part"))) == 2, what="two files being written")
        workers = children(process.pid)
        assert len(workers) == 2
        (os.killpg if to_group else os.kill)(process.pid, number)
        _, err = process.communicate(timeout=8)
    finally:
        process.kill()
    assert process.returncode == exit_code
    wait_until(lambda: not any(map(alive, workers)), what="the workers to end")
    assert not list(tmp_path.glob(".*"))
    for path in tmp_path.iterdir():
        spd.verify(path)
    if number == signal.SIGINT:
        assert re.fullmatch(r"Interrupted: \d+ of 40 files are complete\.\n", err)
    else:
        assert err == ""


# -- what is printed --------------------------------------------------------------------------------------------------------


def test_the_summary_tells_files_size_and_the_next_command(tmp_path: Path) -> None:
    result = emulate(tmp_path, "--files", 3, "--builders", 3, "--builder-directories")
    assert re.search(r"^Wrote 3 files, \d+ KiB, in \d\.\d s \(\d+ MB/s\)\.$", result.stdout, re.MULTILINE)
    assert f"pilotage daq read {tmp_path}/builder-00/{FIRST}" in result.stdout
    assert sorted(contents(tmp_path)) == [f"builder-0{n}/run-000001-00000-0{n}.spd" for n in range(3)]


def test_hits_left_out_for_want_of_room_are_told(tmp_path: Path) -> None:
    assert re.search(r"^\d+ hits were left out", emulate(tmp_path, size="3kB").stdout, re.MULTILINE)


def test_the_summary_comes_as_json_too(tmp_path: Path) -> None:
    found = json.loads(emulate(tmp_path, "--files", 2, "--json").stdout)
    assert [Path(each["path"]).name for each in found["files"]] == [FIRST, "run-000001-00001-00.spd"]
    assert found["bytes"] == sum(each["size"] for each in found["files"])
    assert set(found["files"][0]) >= {
        "run",
        "chunk",
        "builder",
        "frames",
        "blocks",
        "words",
        "cutHits",
        "seconds",
    }


@pytest.mark.parametrize("command", [["emulate", "-n", "3", "--size", "2MiB", "--force"], ["verify", FIRST]])
def test_a_terminal_shows_a_progress_bar(good: Path, command: list[str]) -> None:
    screen, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [*PROGRAM, *command], cwd=good.parent, env=environment, stdout=subprocess.PIPE, stderr=terminal
    )
    os.close(terminal)
    shown = b""
    try:
        while piece := os.read(screen, 65536):
            shown += piece
    except OSError:
        pass  # Linux says EIO when the other side of a terminal is closed.
    out, _ = process.communicate(timeout=30)
    os.close(screen)
    assert process.returncode == 0, shown
    assert "━".encode() in shown
    assert "━".encode() not in out


def test_read_shows_header_frames_and_hits(good: Path) -> None:
    result = invoke("read", "--hits", 4, good)
    assert result.exit_code == 0, result.output
    for word in ("raw", "12345", "10000 ns", "100000 slices (1 s)", "1000, 1001", "2007", "0 to", "76.3 ns"):
        assert word in result.stdout
    assert len(re.findall(r"1004 │ +0 │", result.stdout)) == 4


def test_read_shows_some_frames_and_says_how_many_more_there_are(tmp_path: Path) -> None:
    emulate(tmp_path, "--frame-length", 1)
    frames = json.loads(invoke("read", "--json", tmp_path / FIRST).stdout)["frames"]
    assert len(frames) > 3
    shown = invoke("read", "--frames", 2, tmp_path / FIRST).stdout
    assert f"… and {len(frames) - 2} more frames (--all shows them)" in shown
    assert shown.count(" whole ") == 2
    assert invoke("read", "--all", "--frames", 2, tmp_path / FIRST).stdout.count(" whole ") == len(frames)


def test_read_works_when_its_output_is_cut(good: Path) -> None:
    command = f"{sys.executable} -c 'from daq.cli import daq; daq()' read --hits 5000 {good} | head -1"
    result = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
    assert FIRST in result.stdout
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("name", ["emulate", "read", "verify"])
def test_the_help_of_each_command_has_examples(name: str) -> None:
    text = invoke(name, "--help").stdout
    assert "Examples:" in text
    assert f"    pilotage daq {name} " in text


# -- bad files --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["read"], ["verify"], ["verify", "--quick"]])
def test_a_bad_file_is_one_clear_line_and_exit_code_1(good: Path, command: list[str]) -> None:
    data = good.read_bytes()
    cases = {
        "the .spd file ends too early": data[:-1],
        "the file is not an .spd file": b"%PDF-1.7 something else",
        "the .spd file is damaged inside": data[:200] + b"?" + data[201:],
    }
    for says, content in cases.items():
        good.write_bytes(content)
        assert f"Error: {says}: {good}: " in one_line_error(invoke(*command, good))


def test_read_shows_a_damaged_file_as_far_as_it_goes(tmp_path: Path) -> None:
    emulate(tmp_path, "--frame-length", 2, size="64KiB")
    path = tmp_path / FIRST
    path.write_bytes(path.read_bytes()[:-10] + bytes(10))
    result = invoke("read", path)
    assert "2 slices" in result.stdout
    assert " whole " in result.stdout
    assert "damaged" in one_line_error(result)


def test_damage_among_the_hits_is_found_by_the_full_check_only(good: Path) -> None:
    data = good.read_bytes()
    good.write_bytes(data[:5000] + bytes([data[5000] ^ 1]) + data[5001:])
    assert invoke("verify", "--quick", good).exit_code == 0
    assert "damaged inside" in one_line_error(invoke("verify", good))


@pytest.mark.parametrize("command", ["read", "verify"])
def test_a_file_that_cannot_be_opened_is_one_clear_line(tmp_path: Path, command: str) -> None:
    assert "none.spd: No such file or directory" in one_line_error(invoke(command, tmp_path / "none.spd"))
    assert "is not a plain file" in one_line_error(invoke(command, tmp_path))


def test_all_of_several_files_are_checked_though_the_first_is_bad(tmp_path: Path) -> None:
    emulate(tmp_path, "--files", 3)
    first, second, third = sorted(tmp_path.iterdir())
    first.write_bytes(first.read_bytes()[:1000])
    third.unlink()
    result = invoke("verify", first, second, third)
    assert result.exit_code == 1
    assert f"ok  {second}: raw, run 1, chunk 1, builder 0, 1 frame, " in result.stdout
    errors = result.stderr.splitlines()
    assert errors[0].startswith(f"BAD  the .spd file ends too early: {first}: has 1000 of ")
    assert errors[1] == f"BAD  {third}: No such file or directory"
    assert errors[2] == "Error: 2 of 3 files are bad"


def test_verify_tells_as_json_what_is_wrong_with_each_file(tmp_path: Path) -> None:
    emulate(tmp_path, "--files", 2)
    first, second = sorted(tmp_path.iterdir())
    first.write_bytes(b"")
    result = invoke("verify", "--json", first, second)
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert (found["good"], found["bad"]) == (1, 1)
    assert found["files"][0]["error"] == "SPD_FILE_TRUNCATED"
    assert found["files"][1]["payloadVerified"] is True


def test_the_wrong_kind_of_data_is_refused_when_asked_for(tmp_path: Path) -> None:
    emulate(tmp_path, "--simulated")
    path = tmp_path / FIRST
    assert invoke("verify", "--kind", "simulated", path).exit_code == 0
    assert "holds simulated data, not raw" in one_line_error(invoke("verify", "--kind", "raw", path))
