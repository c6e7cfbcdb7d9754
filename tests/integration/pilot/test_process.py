"""Payload processes: what they are given, how they end, and that nobody else's are touched."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable, Iterator, List

import pytest

from pilot import process
from pilot.process import Process
from protocol.errors import PilotageError
from tests.waiting import wait_until

ENVIRONMENT = {"PATH": "/usr/bin:/bin"}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    started: List[Process] = []

    def begin(*command: str, **environment: str) -> Process:
        place = tmp_path / str(len(started))
        place.mkdir()
        made = process.start(command, place, {**ENVIRONMENT, **environment}, place / "out", place / "err")
        started.append(made)
        return made

    yield begin
    for each in started:
        if not each.ended.is_set():
            each.kill()
            each.wait()


def waited(payload: Process) -> Any:
    """Wait in a thread, as payload control does; its result comes in a list."""
    codes: List[int] = []
    thread = threading.Thread(target=lambda: codes.append(payload.wait()))
    thread.start()
    return thread, codes


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -15 $$", -15), ("kill -9 $$", -9)]
)
def test_the_exit_code_or_minus_the_signal_comes_back(
    script: str, code: int, start: Callable[..., Process]
) -> None:
    payload = start("sh", "-c", script)
    assert payload.wait() == code
    assert payload.ended.is_set()


def test_what_the_kernel_counted_is_known_after_the_end(start: Callable[..., Process]) -> None:
    """More memory than this process has ever had, for its fork was as large."""
    mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024 + 300
    payload = start(sys.executable, "-c", f"x = b'1' * {mb}_000_000; sum(range(3_000_000))")
    payload.wait()
    assert payload.used.cpu_seconds > 0.05
    assert payload.used.memory_mb > 250


def test_usage_counts_the_children_too(start: Callable[..., Process]) -> None:
    payload = start("sh", "-c", "sleep 60 & sleep 60 & wait")
    wait_until(lambda: payload.usage().processes == 3, what="three processes")
    assert payload.usage().memory_mb > 0
    thread, codes = waited(payload)
    payload.terminate(1)
    thread.join(5)
    assert payload.usage().processes == 0


def test_a_stopped_payload_can_be_ended_in_order(start: Callable[..., Process]) -> None:
    payload = start("sh", "-c", "kill -STOP $$; exit 1")
    wait_until(
        lambda: "T" in Path(f"/proc/{payload.pid}/stat").read_text(), what="the payload to stop itself"
    )
    thread, codes = waited(payload)
    payload.terminate(5)
    thread.join(5)
    assert codes == [-15]


def test_the_children_of_a_payload_have_their_grace_as_well(
    start: Callable[..., Process], tmp_path: Path
) -> None:
    child = f"trap 'sleep 0.3; touch {tmp_path}/tidy; exit' TERM; touch {tmp_path}/ready; while :; do sleep 0.05; done"
    payload = start("sh", "-c", 'sh -c "$0" & exec sleep 60', child)
    wait_until((tmp_path / "ready").exists, what="the child")
    thread, codes = waited(payload)
    payload.terminate(5)
    thread.join(10)
    assert (tmp_path / "tidy").exists()


def test_nobody_elses_process_is_ever_signalled(start: Callable[..., Process], tmp_path: Path) -> None:
    """The same program, the same account, an orphan as well, but not started by us."""
    made = subprocess.run(
        ["sh", "-c", "setsid sleep 61 >/dev/null 2>&1 & echo $!"], capture_output=True, text=True, check=True
    )
    stranger = int(made.stdout)
    try:
        payload = start("sh", "-c", "sleep 61 & setsid sleep 61 & exit 0")
        payload.wait()
        assert alive(stranger)
    finally:
        os.kill(stranger, 9)


def test_a_payload_whose_mark_is_another_payloads_is_left_alone(start: Callable[..., Process]) -> None:
    first, second = start("sleep", "60"), start("true")
    second.wait()
    assert alive(first.pid)


def test_terminating_after_the_end_does_nothing(start: Callable[..., Process]) -> None:
    payload = start("true")
    payload.wait()
    begin = time.monotonic()
    payload.terminate(5)
    payload.kill()
    assert time.monotonic() - begin < 1


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ([""], "BAD_COMMAND"),
        (["no-such-program"], "TRANSFORM_NOT_FOUND"),
        (["./no-such-program"], "TRANSFORM_NOT_FOUND"),
        (["/etc"], "BAD_COMMAND"),
        (["/etc/passwd"], "BAD_COMMAND"),
        (["tr\0ue"], "BAD_COMMAND"),
        (["echo", "a\0b"], "BAD_COMMAND"),
        (["echo", "x" * 3_000_000], "BAD_COMMAND"),
    ],
)
def test_what_cannot_be_started_is_told_apart(
    command: List[str], name: str, start: Callable[..., Process]
) -> None:
    with pytest.raises(PilotageError) as caught:
        start(*command)
    assert caught.value.name == name


def test_a_program_is_looked_for_on_the_payloads_own_path(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "tool").write_text("#!/bin/sh\n")
    environment = {"PATH": str(tmp_path / "bin")}
    with pytest.raises(PilotageError) as caught:
        process.check_program(["tool"], tmp_path, environment)
    assert caught.value.name == "BAD_COMMAND", "it may not be executed"
    (tmp_path / "bin" / "tool").chmod(0o755)
    process.check_program(["tool"], tmp_path, environment)
    process.check_program(["bin/tool"], tmp_path, {})


def test_the_files_of_the_text_must_be_new_and_no_links(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PilotageError):
        process.start(["true"], tmp_path, ENVIRONMENT, tmp_path / "out", tmp_path / "err")
    assert not (tmp_path / "elsewhere").exists()


def test_without_pidfd_orphans_are_ended_all_the_same(
    start: Callable[..., Process], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on EL 8, whose kernel has none."""
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    payload = start("sh", "-c", f"setsid sleep 60 & echo $! > {tmp_path}/orphan; exit 0")
    payload.wait()
    assert not alive(int((tmp_path / "orphan").read_text()))
