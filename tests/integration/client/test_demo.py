"""The demo with real programs: its outcome, what it leaves, and that it leaves nothing when it is interrupted."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Callable, Dict, List

import pytest

from protocol.share import shared_path
from tests.waiting import wait_until

PILOTAGE = [sys.executable, "-m", "client.cli"]
ROOT = Path(__file__).parents[3]
MARK = "PILOTAGE_TEST_MARK"


def environment(home: Path, **more: str) -> Dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PILOTAGE_")}
    return {**kept, "HOME": str(home), "PYTHONPATH": str(ROOT), **more}


def marked(mark: str) -> List[str]:
    """The living processes that have the mark in their environment: all that descend from a demo."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            state = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[0]
            environ = Path(f"/proc/{name}/environ").read_bytes()
            command = Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if state not in "ZX" and f"TEST_MARK={mark}".encode() in environ:
            found.append(f"{name}: {command}")
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """One demo with few files, run to its end."""
    here = tmp_path_factory.mktemp("demo")
    done = subprocess.run(
        [*PILOTAGE, "demo", "--files", "4"],
        cwd=here,
        env=environment(here),
        capture_output=True,
        text=True,
        check=False,
    )
    return here, done


def test_the_demo_verifies_every_hash_of_both_tasks(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    here, done = finished
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Verified  8 hashes, each equal to the registered checksum" in done.stdout
    for name, kind in (("md5", "cpu"), ("blake3", "gpu")):
        row = rf"demo-{name} +{kind} +4 +COMPLETED 4 +4 +[0-9.]+ s +demo-{name}\.out: 4 files, closed"
        assert re.search(row, done.stdout), done.stdout
    assert re.search(
        r"Memory    server [0-9.]+ MiB in \d processes, CPU pilot [0-9.]+ MiB, GPU pilot", done.stdout
    )
    assert re.search(r"Time      [0-9.]+ s in all", done.stdout)


def test_its_programs_have_ended_and_its_state_is_there(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    here, _ = finished
    state = here / "demo" / "state"
    assert (state / "admin.token").exists() and not (state / "server.json").exists()
    assert len(list((here / "demo" / "data").glob("builder-*/run-*.spd"))) == 4


@pytest.mark.slow
def test_the_commands_that_it_prints_work_as_they_stand(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    """All in one shell, one after the other; only the port is another than the usual one."""
    here, done = finished
    printed = done.stdout.partition("Go on by yourself")[2].splitlines()[1:]
    commands = [line.strip() for line in printed if line.strip()]
    assert len(commands) >= 10 and "rm -r demo" in commands[-1]
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        port = str(door.getsockname()[1])
    env = environment(
        here, PILOTAGE_SERVER__PORT=port, PILOTAGE_NODE_SETTINGS__SERVER_ADDRESS=f"http://127.0.0.1:{port}"
    )
    script = here / "go-on.sh"
    script.write_text(
        "set -eu\n" + "\n".join(f"echo '##' {number}; {command}" for number, command in enumerate(commands))
    )
    try:
        run = subprocess.run(
            ["sh", str(script)], cwd=here, env=env, capture_output=True, text=True, check=False
        )
    finally:
        subprocess.run([*PILOTAGE, "server", "stop", "--state", "demo/state"], cwd=here, env=env, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "COMPLETED 2" in run.stdout, "the user's own task ran"
    assert "4 files copied and verified" in run.stdout
    assert not (here / "demo").exists()


STAGES: Dict[str, Callable[[str], bool]] = {
    "at the start": lambda out: True,
    "when the server starts": lambda out: False,
    "while files are made": lambda out: "Server" in out,
    "when tasks are there": lambda out: "Task      2" in out,
    "when pilots run": lambda out: "queue GPU" in out,
    "while payloads run": lambda out: "queue GPU" in out,
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
@pytest.mark.parametrize("stage", list(STAGES))
def test_an_interrupted_demo_leaves_no_process(tmp_path: Path, stage: str, number: signal.Signals) -> None:
    mark = uuid.uuid4().hex
    out, err = tmp_path / "out", tmp_path / "err"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        demo = subprocess.Popen(
            [*PILOTAGE, "demo", "--files", "30"], cwd=tmp_path, env=environment(tmp_path, TEST_MARK=mark),
            stdout=stdout, stderr=stderr, start_new_session=True,
        )  # fmt: skip
    try:
        wait_until(lambda: (tmp_path / "demo" / "state").exists(), 20)
        if stage == "when the server starts":
            wait_until(lambda: (tmp_path / "demo" / "logs" / "server.log").exists(), 20)
        elif stage == "while payloads run":
            wait_until(lambda: any("hash_file.py" in line for line in marked(mark)), 30, interval=0.005)
        else:
            wait_until(lambda: STAGES[stage](out.read_text()), 30)
        demo.send_signal(number)
        code = demo.wait(30)
    finally:
        left = marked(mark)
        demo.kill()
        demo.wait()
    assert left == []
    assert code == 128 + number
    lines = [line for line in err.read_text().splitlines() if not line.startswith("demo-")]
    assert lines == ["Interrupted: everything that the demo started has ended."]


def demo(here: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [*PILOTAGE, "demo", "--files", "2", *arguments]
    return subprocess.run(
        command, cwd=here, env=environment(here, **more), capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_an_earlier_demo_is_replaced_and_anything_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "thesis.tex").write_text("mine")
    refused = demo(tmp_path)
    assert refused.returncode == 1 and "demo is no earlier demo and not empty" in refused.stderr
    assert (tmp_path / "demo" / "thesis.tex").read_text() == "mine"
    for _ in range(2):
        done = demo(tmp_path, "--keep", "other")
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_server_of_an_earlier_demo_that_runs_is_let_run_and_one_that_was_killed_is_not_in_the_way(
    tmp_path: Path,
) -> None:
    state = tmp_path / "demo" / "state"
    env = environment(tmp_path)
    assert demo(tmp_path).returncode == 0
    start = [*PILOTAGE, "server", "start", "--state", str(state), "--port", "0"]
    subprocess.run(start, cwd=tmp_path, env=env, check=True, capture_output=True)
    facts = json.loads((state / "server.json").read_text())
    try:
        refused = demo(tmp_path)
        assert refused.returncode == 1 and "in demo a server runs" in refused.stderr
        assert "pilotage server stop --state demo/state" in refused.stderr
    finally:
        os.killpg(facts["pid"], signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{facts['pid']}").exists())
    assert (state / "server.json").exists()
    assert demo(tmp_path).returncode == 0


def test_a_temporary_demo_leaves_nothing(tmp_path: Path) -> None:
    done = demo(tmp_path, "--no-keep", TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == []


def test_a_disk_that_is_too_small_is_told_before_anything_starts(tmp_path: Path) -> None:
    done = demo(tmp_path, "--files", "100000", "--size", "900GiB")
    assert done.returncode == 1
    assert re.search(r"demo has [0-9.]+ [GT]iB free, [0-9.]+ TiB are needed", done.stderr)


def test_a_program_that_fails_is_shown_with_the_end_of_its_log(tmp_path: Path) -> None:
    """The emulator refuses a file size that holds no frame."""
    done = demo(tmp_path, "--size", "10B")
    assert done.returncode == 1
    assert "the DAQ emulator failed, with exit code 2; the end of its log" in done.stderr
    assert "is too small" in done.stderr and "Traceback" not in done.stderr


def test_settings_of_the_user_do_not_reach_the_demo(tmp_path: Path) -> None:
    """It must never register its tasks with a server that is in use."""
    (tmp_path / "server.ini").write_text("[database]\nurl = postgresql://nobody@127.0.0.1:1/production\n")
    folder = tmp_path / ".config" / "pilotage"
    folder.mkdir(parents=True)
    (folder / "pilot.ini").write_text("[node_settings]\nSERVER_ADDRESS = http://127.0.0.1:1\n")
    done = demo(
        tmp_path,
        PILOTAGE_CLIENT__SERVER="http://127.0.0.1:1",
        PILOTAGE_DATABASE__URL="postgresql://nobody@127.0.0.1:1/x",
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("size", ["0x10", "-1", "many", "1EiB"])
def test_a_size_that_is_none_is_wrong_usage(tmp_path: Path, size: str) -> None:
    done = demo(tmp_path, "--size", size)
    assert done.returncode == 2 and "is no size" in done.stderr


def test_the_payload_of_the_demo_hashes_and_says_how_it_is_used(tmp_path: Path) -> None:
    program = [sys.executable, str(shared_path("etc/examples/hash_file.py"))]
    (tmp_path / "in").write_bytes(b"x" * 3_000_000)
    subprocess.run([*program, "md5", tmp_path / "in", "run.spd", tmp_path / "out"], check=True)
    assert (tmp_path / "out").read_text() == f"{hashlib.md5(b'x' * 3_000_000).hexdigest()}  run.spd\n"
    for arguments, words in (
        (["sha1", "a", "b", "c"], "neither md5 nor blake3"),
        ([], "hash_file.py md5|blake3 INPUT"),
    ):
        done = subprocess.run([*program, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 1 and words in done.stderr
