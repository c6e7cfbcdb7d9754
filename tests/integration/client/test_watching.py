"""The watcher of an input buffer with a real server and the real emulator: killed, started again, and ended by SIGTERM."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Iterator, List

import pytest

from client.session import Session
from protocol.messages.requests import TaskSpec
from tests.integration.client.conftest import Pilotage, Server
from tests.waiting import wait_until

ROOT = Path(__file__).parents[3]


class Watching:
    """The command as a process of its own."""

    def __init__(self, server: Server, tmp_path: Path, *words: object) -> None:
        environment = {
            **os.environ,
            "PILOTAGE_CLIENT__STATE_DIRECTORY": str(server.state),
            "HOME": str(tmp_path),
        }
        self.log = tmp_path / "watch.log"
        command = [sys.executable, "-m", "client.cli", "dataset", "watch", *map(str, words)]
        command += ["--settle", "0", "--interval", "0.1", "--checksum", "adler32"]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(20)


@pytest.fixture
def processes() -> Iterator[List[Watching]]:
    started: List[Watching] = []
    yield started
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait()


def emulate(pilotage: Pilotage, out: Path, first: int, builders: int = 2) -> None:
    done = pilotage(
        *("daq", "emulate", "--out", out, "--files", 2 * builders, "--builders", builders, "--size", "64KiB"),
        *("--builder-directories", "--first-chunk", first),
    )
    assert done.code == 0, done.err


def test_29_files_of_the_daq_become_a_dataset_though_the_watcher_is_killed(
    pilotage: Pilotage, session: Session, server: Server, tmp_path: Path, processes: List[Watching]
) -> None:
    buffer = tmp_path / "buffer"
    buffer.mkdir()
    processes.append(Watching(server, tmp_path, "watched", buffer, "--max-waiting", 5))
    emulate(pilotage, buffer, first=0)
    wait_until(
        lambda: [each.n_files for each in session.datasets(name="watched")] == [4], 30, "the first files"
    )
    assert processes[-1].end(signal.SIGKILL) == -signal.SIGKILL
    emulate(pilotage, buffer, first=2)
    processes.append(Watching(server, tmp_path, "watched", buffer, "--max-waiting", 5))
    wait_until(lambda: session.dataset("watched").n_files == 5, 30, "the fifth file")
    wait_until(lambda: "wait to be processed" in processes[-1].log.read_text(), 30, "word of it")
    assert session.dataset("watched").n_waiting == 5
    assert processes[-1].end(signal.SIGTERM) == 0
    last = processes[-1].log.read_text().splitlines()[-1]
    assert last == "Dataset watched: 1 file registered; it is open; the same command goes on."
    processes.append(Watching(server, tmp_path, "watched", buffer, "--max-waiting", 0, "--close-after", 1))
    assert processes[-1].process.wait(30) == 0, processes[-1].log.read_text()
    view = session.dataset("watched")
    assert (view.state, view.n_files) == ("closed", 8)
    numbers = [re.findall("[0-9]+", file.lfn) for file in session.dataset_files("watched")]
    assert [(int(chunk), int(builder)) for _, chunk, builder in numbers] == [
        (chunk, builder) for chunk in range(4) for builder in range(2)
    ]


def test_what_waits_is_told_of_a_dataset(pilotage: Pilotage, session: Session, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    pilotage("dataset", "register", "waits", tmp_path / "a", tmp_path / "b")
    assert re.search("to be processed +2", pilotage("dataset", "show", "waits").out)
    session.submit_task(TaskSpec("waits-task", ["true"], "waits"))
    assert session.dataset("waits").n_waiting == 2
    session.cancel_task("waits-task")
