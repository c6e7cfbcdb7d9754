"""`pilotage demo`, as a new user runs it: it ends well, says how to go on, and leaves no process at whatever moment it is ended."""

from __future__ import annotations

import os
import pty
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.acceptance.world import MARK, Running, processes_with
from tests.running_server import environment
from tests.waiting import wait_until

FILES = 6
OPTIONS = ("--files", str(FILES), "--size", "32KiB", "--keep", "kept")


class Demo:
    """A place to start demos in; everything that one starts carries the mark."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.mark = f"demo-{secrets.token_hex(4)}"
        self.started: list[Running] = []

    def environment(self, extra: Mapping[str, str] = {}) -> dict[str, str]:  # it is only read
        # Beside this Python lies the command `pilotage`, which the demo's last words name.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return environment(self.directory, {MARK: self.mark, "PATH": path, "COLUMNS": "200", **extra})

    def start(self, *options: str, extra: Mapping[str, str] = {}) -> Running:  # it is only read
        log = self.directory / f"demo-{len(self.started)}.out"
        with open(log, "wb") as output:
            popen = subprocess.Popen(
                [sys.executable, "-m", "client.cli", "demo", *options], cwd=self.directory,
                env=self.environment(extra), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
        self.started.append(Running(popen, log))
        return self.started[-1]

    def left(self) -> dict[int, str]:
        """What still runs: by the mark, and by the demo's directory on its command line."""
        found = processes_with(self.mark)
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                command = Path(f"/proc/{name}/cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if f"{self.directory}/kept" in command:
                found[int(name)] = command
        return found

    def close(self) -> None:
        for running in self.started:
            print(f"-- {running.log.name}, exit code {running.popen.poll()} --\n{running.text[-6000:]}")
            if running.is_running():
                running.signal(signal.SIGTERM)
                running.wait(20)
        left = self.left()
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        assert not left, f"left behind: {left}"


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    demo = Demo(tmp_path)
    yield demo
    demo.close()


# -- to its end ---------------------------------------------------------------------------------------------------------------


def test_the_demo_ends_well_says_what_it_did_and_the_commands_it_prints_work_as_they_stand(
    demo: Demo,
) -> None:
    began = time.monotonic()
    running = demo.start(*OPTIONS)
    assert running.wait(90) == 0
    print(f"the demo took {time.monotonic() - began:.1f} s")
    said = running.text
    for pattern in (
        r"^Server +http://127\.0\.0\.1:\d+, SQLite in kept/state$",
        rf"^DAQ +{FILES} files of 2 builders",
        rf"^Dataset +demo-run-1: {FILES} files registered with size and checksums",
        rf"^Task +1 \(demo-md5\): .* {FILES} jobs for cpu pilots$",
        rf"^Task +2 \(demo-blake3\): .* {FILES} jobs for gpu pilots$",
        rf"^demo-md5 +cpu +{FILES} +COMPLETED {FILES} +{FILES} .* demo-md5\.out: {FILES} files, closed$",
        rf"^demo-blake3 +gpu +{FILES} +COMPLETED {FILES} +{FILES} .* demo-blake3\.out: {FILES} files, closed$",
        rf"^Verified +{2 * FILES} hashes, each equal to the registered checksum of its file$",
        r"^Memory +server .* \(peak\)$",
        r"^Time +[0-9.]+ s in all; server and pilots have ended$",
        r"^Go on by yourself",
    ):
        assert re.search(pattern, said, re.MULTILINE), f"{pattern} is not in:\n{said}"
    assert not demo.left()
    _commands_work(demo, re.findall(r"^  (\S.*)$", said.partition("Go on by yourself")[2], re.MULTILINE))
    assert not (demo.directory / "kept").exists(), "the last command removes it"


def _commands_work(demo: Demo, commands: list[str]) -> None:
    """In one shell, as a user pastes them; but the port is not 8080, which somebody else may have."""
    assert len(commands) >= 10
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    elsewhere = {
        "PILOTAGE_SERVER__PORT": port,
        "PILOTAGE_NODE_SETTINGS__SERVER_ADDRESS": f"http://127.0.0.1:{port}",
    }
    (demo.directory / "commands").write_text("\n".join(["set -ex", *commands]))
    done = subprocess.run(
        ["bash", "commands"], cwd=demo.directory, env=demo.environment(elsewhere), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    print(f"-- the commands --\n{done.stdout}\n{done.stderr}")
    assert done.returncode == 0
    assert "files copied and verified" in done.stdout
    assert "2: COMPLETED 2" in done.stdout, "the task hello"


def test_a_temporary_demo_leaves_nothing_behind(demo: Demo) -> None:
    temporary = demo.directory / "tmp"
    temporary.mkdir()
    running = demo.start("--files", "1", "--size", "32KiB", "--no-keep", extra={"TMPDIR": str(temporary)})
    assert running.wait(90) == 0
    assert not list(temporary.iterdir())


def test_a_directory_that_is_no_earlier_demo_is_refused_and_left_as_it_is(demo: Demo) -> None:
    (demo.directory / "kept").mkdir()
    (demo.directory / "kept" / "thesis.txt").write_text("years of work")
    running = demo.start(*OPTIONS)
    assert running.wait(30) == 1
    assert "is no earlier demo and not empty" in running.text
    assert [path.name for path in (demo.directory / "kept").iterdir()] == ["thesis.txt"]


# -- ended at any moment ------------------------------------------------------------------------------------------------------

MOMENTS = {
    "before it says anything": "",
    "when the server runs": r"^Server ",
    "when the files are there": r"^DAQ ",
    "when the dataset is registered": r"^Dataset ",
    "when a pilot was started": r"^Pilot .*cpu",
    "while jobs run": r"RUNNING|COMPLETED [1-9]",
    "when the last job has ended": r"^demo-blake3: COMPLETED",
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_at_any_moment_ends_the_demo_with_130_and_leaves_no_process(demo: Demo, moment: str) -> None:
    running = demo.start("--files", "6" if "last" in moment else "40", "--size", "32KiB", "--keep", "kept")
    running.says(MOMENTS[moment], 30)
    if not MOMENTS[moment]:
        wait_until(lambda: (demo.directory / "kept").exists(), 10, "the demo's first deed")
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does: to all of the foreground group
    assert running.wait(15) == 130
    assert not demo.left()
    assert "Traceback" not in running.text
    assert "Interrupted" in running.text


def test_sigterm_ends_the_demo_with_143_and_leaves_no_process(demo: Demo) -> None:
    running = demo.start("--files", "40", "--size", "32KiB", "--keep", "kept")
    running.says(MOMENTS["while jobs run"], 30)
    running.signal(signal.SIGTERM)
    assert running.wait(15) == 143
    assert not demo.left()


def test_a_demo_that_is_killed_takes_its_programs_with_it(demo: Demo) -> None:
    running = demo.start("--files", "40", "--size", "32KiB", "--keep", "kept")
    running.says(MOMENTS["while jobs run"], 30)
    running.kill()
    wait_until(lambda: not demo.left(), 20, "the end of all its programs")


def test_a_demo_that_was_interrupted_can_be_run_again_in_the_same_place(demo: Demo) -> None:
    first = demo.start("--files", "40", "--size", "32KiB", "--keep", "kept")
    first.says(MOMENTS["when the dataset is registered"], 30)
    first.signal(signal.SIGINT)
    assert first.wait(15) == 130
    assert demo.start("--files", "1", "--size", "32KiB", "--keep", "kept").wait(60) == 0


def test_ctrl_c_typed_at_a_terminal_ends_the_demo_and_leaves_no_process(demo: Demo) -> None:
    """With a real terminal the progress bars move; the key reaches the demo through the terminal's driver."""
    terminal, slave = pty.openpty()
    popen = subprocess.Popen(
        ["setsid", "--ctty", "--wait", sys.executable, "-m", "client.cli", "demo", "--files", "40", "--size", "32KiB",
         "--keep", "kept"],
        cwd=demo.directory, env=demo.environment(), stdin=slave, stdout=slave, stderr=slave,
    )  # fmt: skip
    os.close(slave)
    seen = b""
    try:
        while not re.search(rb"RUNNING|COMPLETED", seen):
            seen += os.read(terminal, 65536)
        os.write(terminal, b"\x03")
        assert popen.wait(15) == 130
        assert not demo.left()
    finally:
        print(seen.decode(errors="replace"))
        if popen.poll() is None:
            popen.kill()
        os.close(terminal)
