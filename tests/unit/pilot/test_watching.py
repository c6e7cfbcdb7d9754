"""Who is watched, when a look is due, and who is woken for it."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, List

from pilot.jobrun import JobRun
from pilot.watching import Watch, Watches
from protocol.errors import PilotageError
from protocol.messages.pilots import JobSpec
from tests.waiting import wait_until


def job() -> JobRun:
    return JobRun(JobSpec(1, 1, 1, 1, 1, "t", ["true"]), Path("/work"), lambda: None)


def process() -> Any:
    killed: List[bool] = []
    return SimpleNamespace(kill=lambda: killed.append(True), killed=killed)


def sleeper(watches: Watches) -> Any:
    """A job monitor that sleeps for one turn; what was due comes in a list."""
    found: List[List[Watch]] = []
    thread = threading.Thread(target=lambda: found.append(watches.due()))
    thread.start()
    return thread, found


def test_a_payload_is_due_when_its_time_has_come_and_not_once_it_has_ended() -> None:
    watches = Watches()
    with watches.over(job(), process(), 0.0, {}) as watch:
        assert watches.due() == [watch]
        with watches.over(job(), process(), 3600, {}):
            assert watches.due() == [watch]
    assert watches.all() == []


def test_the_end_of_a_job_wakes_who_watches_it_before_the_next_look_is_due() -> None:
    watches, run = Watches(), job()
    with watches.over(run, process(), 3600, {}) as watch:
        thread, found = sleeper(watches)
        run.fail(PilotageError("KILL_SIGNAL"))
        thread.join(10)
        assert found == [[watch]]


def test_a_payload_that_comes_while_nobody_is_watched_is_looked_at_in_time() -> None:
    watches = Watches()
    thread, found = sleeper(watches)
    wait_until(lambda: watches._sleeps_until > 0, 10, "the sleeper")
    with watches.over(job(), process(), 0.05, {}) as watch:
        thread.join(10)
    assert found == [[watch]]


def test_a_job_that_was_over_before_its_payload_began_is_due_at_once() -> None:
    watches, run = Watches(), job()
    run.abandon("cancelled")
    with watches.over(run, process(), 3600, {}) as watch:
        assert watches.due() == [watch]


def test_numbers_of_a_look_do_not_overwrite_those_of_the_end() -> None:
    watches, run = Watches(), job()
    with watches.over(run, process(), 3600, {}) as watch:
        watches.publish(watch, {"memory_mb": 1.0})
        assert run.metrics == {"memory_mb": 1.0}
    run.metrics = {"memory_mb": 2.0}
    watches.publish(watch, {"memory_mb": 1.5})
    assert run.metrics == {"memory_mb": 2.0}


def test_a_payload_that_nobody_would_look_at_is_ended_and_its_job_told() -> None:
    watches, run, payload = Watches(), job(), process()
    watches.close()
    assert watches.due() == []
    with watches.over(run, payload, 3600, {}):
        assert payload.killed
    assert run.error is not None and run.error.name == "PILOT_EXCEPTION"


def test_the_monitors_of_a_payload_are_closed_when_its_last_look_is_over() -> None:
    said: List[str] = []
    watches = Watches()
    threads: List[threading.Thread] = []
    begun = threading.Event()

    def look(watch: Watch) -> None:
        with watch.looking:
            begun.set()
            wait_until(lambda: watches.all() == [], 10, "the end of the payload")
            assert not watch.is_left
            said.append("looked")

    with watches.over(job(), process(), 0.0, {}) as watch:
        watch.monitors = SimpleNamespace(close=lambda: said.append("closed"))  # type: ignore[assignment]
        threads.append(threading.Thread(target=look, args=(watch,)))
        threads[0].start()
        begun.wait(10)
    threads[0].join(10)
    assert said == ["looked", "closed"] and watch.is_left
