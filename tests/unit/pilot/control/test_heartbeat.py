"""What the pilot does with the server's answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from pilot.control import heartbeat
from pilot.jobrun import JobRun
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
    heartbeat.obey(run, UpdateReply(1, state, command))
    assert run.abandoned is stops


@pytest.mark.parametrize(("state", "level"), [("CANCELLED", "INFO"), ("FAILED", "WARNING"), ("", "WARNING")])
def test_only_what_somebody_wanted_to_end_asks_for_nobodys_look(
    state: str, level: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        heartbeat.obey(
            job(), UpdateReply(1, state, Command.STOP, detail="task 3 was cancelled" if state else None)
        )
    (record,) = caplog.records
    assert record.levelname == level
    assert ("task 3 was cancelled" if state else "unknown") in record.why  # type: ignore[attr-defined]


def test_what_the_server_says_about_an_end_that_we_told_it_is_no_stop() -> None:
    for end in (JobRun.complete, lambda run: run.fail(PilotageError("PAYLOAD_FAILED"))):
        run = job()
        end(run)
        heartbeat.obey(run, UpdateReply(1, "FAILED", Command.STOP))
        assert not run.abandoned
