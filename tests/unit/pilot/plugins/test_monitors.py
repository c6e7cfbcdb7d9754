"""Monitors of payloads: found by name, and what each sees of a process that is real."""

from __future__ import annotations

import base64
import calendar
import importlib
import json
import math
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Iterator, List

import pytest

from pilot import diagnosis, process
from pilot import settings as tables
from pilot.jobrun import JobRun
from pilot.node import Share
from pilot.plugins import monitors
from pilot.plugins.monitors import Look, Monitor, Monitors, Payload, credentials, memory
from pilot.process import Process
from protocol import pilot_settings
from protocol.errors import PilotageError
from protocol.messages.pilots import JobSpec, OutputFile
from tests.waiting import wait_until

ENVIRONMENT = {"PATH": "/usr/bin:/bin"}


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Callable[..., Payload]]:
    started: List[Process] = []

    def begin(*command: str, spec: Any = None, environ: Any = None, **limits: str) -> Payload:
        environment = {f"PILOTAGE_LIMITS__{name.upper()}": value for name, value in limits.items()}
        made = JobRun(
            replace(JobSpec(1, 1, 1, 1, 1, "t", list(command)), **spec or {}), tmp_path, lambda: None
        )
        started.append(process.start(command, tmp_path, ENVIRONMENT, made.stdout, made.stderr))
        settings = tables.load(start=tmp_path, environ=environment)
        return Payload(made, started[-1], settings, environ or {}, Share(1, 1000, ()))

    yield begin
    for each in started:
        if not each.ended.is_set():
            each.kill()
            each.wait()


def one(name: str) -> Any:
    return importlib.import_module(f"pilot.plugins.monitors.{name}").Monitor


def test_the_monitors_of_the_folder_are_those_that_are_on_by_default() -> None:
    assert set(monitors.names()) == set(pilot_settings.MONITORS)
    assert all(issubclass(kind, Monitor) for kind in monitors.load(pilot_settings.MONITORS))


def test_an_unknown_monitor_is_refused_with_those_there_are() -> None:
    with pytest.raises(PilotageError, match="no monitor nope; .*walltime") as caught:
        monitors.load(["walltime", "nope"])
    assert caught.value.name == "BAD_SETTINGS"


@pytest.mark.parametrize("name", pilot_settings.MONITORS)
def test_a_monitor_finds_nothing_wrong_with_a_payload_that_sleeps_and_none_once_it_has_ended(
    name: str, watched: Callable[..., Payload]
) -> None:
    payload = watched("sleep", "600")
    monitor = one(name)(payload)
    for _ in range(2):
        look = Look(payload)
        numbers = monitor.sample(look)
        assert all(isinstance(value, (int, float)) for value in numbers.values())
        assert monitor.verdict(look) is None
        assert monitor.seconds_to_next(look) > 0
    payload.process.kill()
    payload.process.wait()
    look = Look(payload)
    monitor.sample(look)
    assert monitor.verdict(look) is None


def test_what_no_server_would_take_is_left_out(watched: Callable[..., Payload]) -> None:
    class Odd(Monitor):
        def sample(self, look: Look) -> Any:
            return {"a": math.nan, "b": math.inf, "c" * 101: 1, **{f"d{n}": n for n in range(300)}}

    payload = watched("true")
    found = Monitors([Odd], payload).sample(Look(payload), {"e": 1.0})
    assert len(found) == 100
    assert all(name.startswith("d") for name in found)


def test_memory_that_processes_share_is_counted_once_for_the_limit(watched: Callable[..., Payload]) -> None:
    program = (
        "import os, sys, time; x = bytearray(100_000_000)\n"
        "for _ in range(3): os.fork() or time.sleep(600)\nprint('ready', flush=True); time.sleep(600)"
    )
    payload = watched(sys.executable, "-c", program, memory_mb="250")
    wait_until(lambda: payload.process._text.copy(0.05) or payload.job.stdout.read_text(), 10, "the payload")
    wait_until(lambda: len(payload.process.members()) == 4, 10, "the children")
    monitor, look = memory.Monitor(payload), Look(payload)
    assert monitor.sample(look)["memory_mb"] > 350
    assert monitor.verdict(look) is None
    assert 90 < float(monitor._pss or 0) < 200


def test_memory_beyond_what_the_slot_has_ends_a_payload_that_asked_for_none(
    watched: Callable[..., Payload],
) -> None:
    payload = watched(sys.executable, "-c", "import time; x = bytearray(100_000_000); time.sleep(600)")
    payload.share = Share(1, 80, ())
    monitor = memory.Monitor(payload)
    wait_until(lambda: monitor.sample(Look(payload))["memory_mb"] > 95, 10, "its memory")
    found = monitor.verdict(Look(payload))
    assert found is not None and found.name == "PAYLOAD_OUT_OF_MEMORY"


def test_a_large_directory_is_not_measured_at_each_look(
    watched: Callable[..., Payload], monkeypatch: pytest.MonkeyPatch
) -> None:
    payload = watched("sleep", "600")
    measured: List[Path] = []

    def slow(*directories: Path) -> Any:
        measured.append(directories[0])
        now = time.monotonic()
        while time.monotonic() < now + 0.02:
            pass
        return (0, 0.0)

    monkeypatch.setattr("pilot.workdir.measure", slow)
    for _ in range(5):
        assert Look(payload).disk is not None
    assert len(measured) == 1


def test_an_output_that_grows_too_large_is_seen_while_it_is_written(
    watched: Callable[..., Payload], tmp_path: Path
) -> None:
    payload = watched("sleep", "600", spec={"outputs": [OutputFile("big", "s", "d", "")]}, output_mb="1")
    monitor, look = one("outputs")(payload), Look(payload)
    assert monitor.sample(look) == {} and monitor.verdict(look) is None
    (tmp_path / "big").write_bytes(bytes(1_100_000))
    assert monitor.sample(look) == {"output_mb": 1.0}
    assert monitor.verdict(look).name == "OUTPUT_TOO_LARGE"


def test_threads_count_as_processes_do(watched: Callable[..., Payload]) -> None:
    program = (
        "import threading, time; [threading.Thread(target=time.sleep, args=(600,)).start() for _ in range(4)]"
    )
    payload = watched(sys.executable, "-c", program)
    monitor = one("processes")(payload)
    wait_until(lambda: monitor.sample(Look(payload)) == {"processes": 1, "threads": 5}, 10, "its threads")
    payload.settings = tables.load(environ={"PILOTAGE_PAYLOAD__PROCESSES": "4"})
    assert monitor.verdict(Look(payload)).name == "TOO_MANY_PROCESSES"


# -- looping ----------------------------------------------------------------------------------------------------------------


def quiet_for(monitor: Any, payload: Payload, seconds: float) -> Any:
    """The verdict of a look that many seconds after the last one."""
    look = Look(payload)
    look.at = monitor._looked + seconds
    return monitor.verdict(look)


def test_a_payload_that_touches_a_file_is_not_looping_whatever_the_clock_says(
    watched: Callable[..., Payload], tmp_path: Path
) -> None:
    payload = watched("sleep", "600", looping_seconds="100")
    monitor = one("looping")(payload)
    assert quiet_for(monitor, payload, 60) is None
    old = tmp_path / "old"
    old.write_text("from an archive")
    subprocess.run(["touch", "-d", "1999-01-01", str(old)], check=True)
    payload._disk = None
    assert quiet_for(monitor, payload, 60) is None, "it has written"
    payload._disk = None
    assert quiet_for(monitor, payload, 60) is None
    assert quiet_for(monitor, payload, 60).name == "LOOPING_JOB"


def test_a_payload_that_computes_without_a_word_is_not_looping(watched: Callable[..., Payload]) -> None:
    payload = watched("sh", "-c", "while :; do :; done", looping_seconds="1")
    monitor = one("looping")(payload)
    for _ in range(3):
        before = monitor._cpu
        wait_until(lambda: Look(payload).cpu_seconds > before + 0.05, 20, "its CPU time")  # noqa: B023
        assert quiet_for(monitor, payload, 2.0) is None


def test_the_diagnosis_names_processes_calls_and_open_files(
    watched: Callable[..., Payload], tmp_path: Path
) -> None:
    payload = watched("sh", "-c", "exec 7> kept-open; sleep 600 & wait")
    wait_until(lambda: len(payload.process.members()) == 2, 10, "both processes")
    text = diagnosis.of(payload.process.members(), ENVIRONMENT, with_debugger=False)
    assert "sleep 600" in text and "sleeping in" in text
    assert f"7 -> {tmp_path / 'kept-open'}" in text
    assert "stack of" in text


def test_a_diagnosis_is_bounded_and_a_debugger_that_hangs_is_not_waited_for(
    tmp_path: Path, watched: Callable[..., Payload], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, does in (("py-spy", "exec sleep 600"), ("gdb", "yes main | head -c 1000000")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(diagnosis, "STACK_SECONDS", 0.2)
    payload = watched("sleep", "600")
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    text = diagnosis.stack(payload.process.pid, environ, with_debugger=True)
    assert "gdb says:\nmain" in text
    assert len(text) < diagnosis.STACK_CHARACTERS + 5_000


# -- credentials ------------------------------------------------------------------------------------------------------------


def token(ends: float) -> str:
    body = base64.urlsafe_b64encode(json.dumps({"exp": ends}).encode()).decode().rstrip("=")
    return f"aaa.{body}.bbb"


def test_the_end_of_a_token_is_read_from_it() -> None:
    assert credentials.token_ends(token(1234.0)) == 1234.0
    for other in ("", "opaque", "a.b.c", "a.bm8.c"):
        assert credentials.token_ends(other) is None


def test_the_first_certificate_of_a_proxy_that_ends_counts(tmp_path: Path) -> None:
    pem = ""
    for days in (30, 3, 20_000):
        key, made = tmp_path / "key", tmp_path / "made"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=x",
             "-days", str(days), "-keyout", str(key), "-out", str(made)],
            check=True, capture_output=True,
        )  # fmt: skip
        pem += key.read_text() + made.read_text()
    ends = credentials.certificates_end(pem)
    assert ends is not None and abs(ends - (time.time() + 3 * 86_400)) < 3600
    far = credentials.certificates_end(made.read_text())
    assert far is not None and far > calendar.timegm((2060, 1, 1, 0, 0, 0, 0, 0, 0)), "a time of four digits"
    assert credentials.certificates_end("no certificate") is None


def test_a_token_that_ends_soon_is_warned_of_once_and_ends_who_needs_it(
    watched: Callable[..., Payload], caplog: pytest.LogCaptureFixture
) -> None:
    environ = {"BEARER_TOKEN": token(time.time() + 100), "X509_USER_PROXY": "/nowhere"}
    payload = watched("sleep", "600", environ=environ, credentials_needed="yes")
    monitor = credentials.Monitor(payload)
    for _ in range(2):
        monitor._again_at = 0.0
        assert 90 < monitor.sample(Look(payload))["credentials_seconds"] <= 100
        assert monitor.verdict(Look(payload)) is None
    (record,) = caplog.records
    assert record.credential == "the token in BEARER_TOKEN"  # type: ignore[attr-defined]
    payload.environ = {**environ, "BEARER_TOKEN": token(time.time() - 5)}
    monitor._again_at = 0.0
    monitor.sample(Look(payload))
    found = monitor.verdict(Look(payload))
    assert found is not None and found.name == "CREDENTIALS_EXPIRED"
