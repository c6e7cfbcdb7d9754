"""The signals that gunicorn would act on, and what its home would keep of it."""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path

import pytest

from tests.running_server import RunningServer
from tests.waiting import wait_until


def workers(server: RunningServer) -> list[str]:
    assert server.process is not None
    return Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()


def test_a_signal_for_more_workers_adds_no_second_writer(running_server: RunningServer) -> None:
    assert running_server.process is not None
    before = workers(running_server)
    for number in (signal.SIGTTIN, signal.SIGUSR2, signal.SIGTTOU):
        os.kill(running_server.process.pid, number)
    for _ in range(20):  # each answer is time enough for the arbiter's loop
        running_server.request("GET", "/healthz")
    assert workers(running_server) == before


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_a_closed_terminal_ends_the_server_in_order(running_server: RunningServer, number: int) -> None:
    process = running_server.process
    assert process is not None
    os.kill(process.pid, number)
    wait_until(lambda: process.poll() is not None, 30, "the server's end")
    assert process.returncode == 0
    assert "Traceback" not in running_server.text_of_log()
    assert not (running_server.directory / "server.json").exists()
    running_server.start()


def test_what_the_server_keeps_is_private(running_server: RunningServer, tmp_path: Path) -> None:
    for path in running_server.directory.iterdir():
        mode = stat.S_IMODE(path.stat().st_mode)
        assert path.name == "pilot.pyz" or not mode & 0o077, (path.name, oct(mode))
    assert not list(tmp_path.rglob(".gunicorn"))
