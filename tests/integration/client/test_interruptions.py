"""Ctrl-C: what has ended with the command and what goes on is said, and how to come back to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from client import watch
from client.session import Session
from tests.integration.client.conftest import ROOT, Outcome, Pilotage
from tests.running_server import environment
from tests.waiting import wait_until


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_who_stops_waiting_for_a_new_task_is_told_that_it_goes_on(
    pilotage: Pilotage, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch.time, "sleep", interrupt)
    done = pilotage("task", "submit", "--name", "left-alone", "--jobs", 1, "--wait", "--json", "--", "true")
    monkeypatch.undo()
    expected = "Interrupted: task left-alone goes on.\nnext: pilotage task watch left-alone\n"
    assert done == Outcome(130, "", expected)
    assert session.task("left-alone").ended is None


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["seen-1"], "Interrupted: task seen-1 goes on."),
        (["seen-1", "seen-2"], "Interrupted: only the watching; the tasks go on."),
    ],
)
def test_who_stops_watching_is_told_how_to_go_on(
    pilotage: Pilotage, session: Session, monkeypatch: pytest.MonkeyPatch, names: list[str], words: str
) -> None:
    for name in names:
        pilotage("task", "submit", "--name", name, "--jobs", 1, "--", "true")
    monkeypatch.setattr(watch.time, "sleep", interrupt)
    done = pilotage("task", "watch", "--json", *names)
    assert done == Outcome(130, "", f"{words}\nnext: pilotage task watch {' '.join(names)}\n")


def test_an_interrupted_start_leaves_no_server_and_says_so(tmp_path: Path, pilotage: Pilotage) -> None:
    state, mark = tmp_path / "state", uuid.uuid4().hex
    start = subprocess.Popen(
        [sys.executable, "-m", "client.cli", "server", "start", "--state", state, "--port", "0"],
        cwd=ROOT, env=environment(tmp_path, {"PILOTAGE_TEST_MARK": mark}), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        wait_until(lambda: len(marked(mark)) > 1, 20, "the server's process", interval=0.005)
        start.send_signal(signal.SIGINT)
        _, said = start.communicate(timeout=60)
    finally:
        start.kill()
        start.wait()
    assert (start.returncode, said) == (130, "Interrupted: the server that was being started has ended.\n")
    assert marked(mark) == []
    assert pilotage("server", "status", "--state", state).code == 1


def marked(mark: str) -> list[str]:
    """The living processes that descend from the command."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if mark.encode() in Path("/proc", name, "environ").read_bytes():
                found.append(name)
        except OSError:
            pass  # it has ended
    return found
