"""F6, F19: the server stands still, and clocks jump. Lease time is a counter, so that nothing ages and nothing lives by it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from protocol.messages.views import TaskView
from protocol.states import SUCCESS
from tests.faults import scenarios
from tests.faults.conftest import Install
from tests.faults.crew import EVERY_STEP, Habits
from tests.faults.installation import SHORT_LEASE, Installation
from tests.running_server import ROOT

HOUR = 3600
DAY = 24 * HOUR


def test_f06_a_server_that_stands_still_for_longer_than_the_leases_takes_no_job_away(
    where: Installation,
) -> None:
    pause = 2.5 * SHORT_LEASE["lease_seconds"]
    assert scenarios.server_pauses(where, rounds=1, pause_seconds=pause).rounds == 1


@pytest.fixture
def clock(tmp_path: Path) -> Path:
    """What the faked clock reads: an offset."""
    path = tmp_path / "clock"
    path.write_text("0")
    return path


JUMPY = """
import pathlib, time
real, file = time.time, pathlib.Path(FILE)
time.time = lambda: real() + float(file.read_text())
"""
"""Python reads a file of this name at its start, before anything else can have taken `time.time`."""


def with_clock(clock: Path) -> dict[str, str]:
    """The environment of a program of ours whose wall clock is off by what the file holds; no other clock is touched.

    libfaketime would do it from outside, but under its version 0.9.10 Python's `time.sleep` fails.
    """
    folder = clock.with_suffix(".d")
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(JUMPY.replace("FILE", repr(str(clock))))
    return {"PYTHONPATH": f"{folder}:{ROOT}"}


def set_clock(clock: Path, seconds: int) -> None:
    """At once: nobody reads half a number."""
    new = clock.with_suffix(".new")
    new.write_text(str(seconds))
    new.rename(clock)


def test_f19_a_server_whose_clock_jumps_and_pilots_a_day_off_lose_no_lease(
    install: Install, clock: Path
) -> None:
    """Two hours back, four forward and back again, while pilots a day too late and too early work; a silent one is noticed still."""
    with install(extra=with_clock(clock)) as where:
        queue = where.queue(**SHORT_LEASE)
        task = where.submit(queue, 60)
        habits = Habits(payload_seconds=(0.2, 0.6), steps=EVERY_STEP)
        late, early = (Habits(**{**vars(habits), "skew_seconds": skew}) for skew in (-DAY, DAY))
        with where.crew(queue, 4, late) as crew, where.crew(queue, 4, early, history=crew.history) as other:
            for number, offset in enumerate((-2 * HOUR, 2 * HOUR, 0), 1):
                where.completed(crew.history, 15 * number, crew)
                set_clock(clock, offset)
            where.ended(task, other)
        where.judge("F19 clocks", [task], crew.history, rounds=3)
        for row in where.session.jobs(task=task.task_id):
            job = where.session.job(row.job_id)
            assert [attempt.error for attempt in job.attempts or ()] == [None]
            assert [line.state for line in job.history or ()] == [state.value for state in SUCCESS]


def test_f19_a_silent_pilot_is_noticed_whatever_the_clock_says(install: Install, clock: Path) -> None:
    with install(extra=with_clock(clock)) as where:
        queue = where.queue(**SHORT_LEASE)
        task = where.submit(queue, 2, max_losses=100)
        with where.crew(queue, 2, Habits(dies=1.0)) as crew:
            where.until(lambda: any(word.attempts for word in crew.history.words), "a claimed job", crew=crew)
            for offset in (-2 * HOUR, 2 * HOUR):
                set_clock(clock, offset)
                lost = where.session.task(task.task_id).n_attempts + 1
                where.until(
                    partial(has_attempts, where, task, lost), "a job that is claimed again", crew=crew
                )
        with where.crew(queue, 2, history=crew.history) as crew:
            where.ended(task, crew)
        where.judge("F19 a silent pilot", [task], crew.history, rounds=2)


def has_attempts(where: Installation, task: TaskView, enough: int) -> bool:
    return where.session.task(task.task_id).n_attempts >= enough
