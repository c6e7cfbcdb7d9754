"""What the pilot does with the server's answers, and which limits a job has."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from pilot import settings as tables
from pilot.control import monitor
from pilot.jobrun import JobRun
from pilot.limits import Limits
from protocol.errors import PilotageError
from protocol.messages import Command, JobSpec, UpdateReply


def job(**fields: int) -> JobRun:
    return JobRun(JobSpec(1, 1, 1, 1, 1, "t", ["true"], **fields), Path("/work"), lambda: None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("state", "command", "stops"),
    [
        ("RUNNING", Command.CONTINUE, False),
        ("OBTAINED", Command.CONTINUE, False),
        ("READY", Command.STOP, True),
        ("", Command.STOP, True),
        ("CANCELLED", Command.CONTINUE, True),
        ("FAILED", Command.CONTINUE, True),
    ],
)
def test_an_attempt_that_is_not_ours_any_more_is_stopped(state: str, command: Command, stops: bool) -> None:
    run = job()
    monitor.obey(run, UpdateReply(1, state, command))
    assert run.abandoned is stops


def test_what_the_server_says_about_an_end_that_we_told_it_is_no_stop() -> None:
    for end in (JobRun.complete, lambda run: run.fail(PilotageError("PAYLOAD_FAILED"))):
        run = job()
        end(run)
        monitor.obey(run, UpdateReply(1, "FAILED", Command.STOP))
        assert not run.abandoned


def test_a_task_that_names_a_limit_overrides_the_settings(tmp_path: Path) -> None:
    environ = {"PILOTAGE_LIMITS__WALLTIME_SECONDS": "100", "PILOTAGE_LIMITS__JOB_DISK_MB": "10"}
    context = SimpleNamespace(settings=tables.load(start=tmp_path, environ=environ))
    assert monitor.limits_of(context, job()) == Limits(100, 10, 1024, 7200)  # type: ignore[arg-type]
    asked = monitor.limits_of(context, job(walltime_seconds=5, disk_mb=7))  # type: ignore[arg-type]
    assert (asked.walltime_seconds, asked.disk_mb) == (5, 7)
