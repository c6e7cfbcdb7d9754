"""Pilots that fell silent: killed, or paused beyond their lease. All wait for the end of the same lease, before the first test."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from protocol.messages.views import TaskView
from protocol.states import JobState
from tests.acceptance.world import LEASE, Running, World, errors, words
from tests.running_server import RunningServer

HANGS = "exec sleep 1000"
OUTLIVED = "sleep 3; echo of the zombie > {output}; exit"
"""Its end comes while its pilot is paused."""


@dataclass
class Silent:
    """A job whose first pilot fell silent while the payload ran; `since` is when."""

    world: World
    queue: str
    pilot: Running
    task: TaskView
    directory: Path
    since: float
    ended_at: float = 0.0


def _silenced(world: World, number: int, first_attempt: str, **fields: int) -> Silent:
    """A running job in a queue of its own whose pilot got this signal."""
    queue = world.queue(**LEASE)
    pilot = world.pilot(queue)
    script = f"if [ {{attempt_nr}} = 1 ]; then {first_attempt}; fi; echo attempt {{attempt_nr}} > {{output}}"
    task = world.submit_shell(queue, script, outputs=["out"], **fields)
    world.reached(task, JobState.RUNNING)
    (directory,) = (world.directory / "work").glob("pilot-*/")
    pilot.signal(number)
    if number == signal.SIGKILL:
        pilot.wait(5)
        world.kill_payloads()
    return Silent(world, queue, pilot, task, directory, time.monotonic())


@pytest.fixture(scope="module")
def silent(
    shared_server: RunningServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Silent]]:
    """By what happened to the first pilot. All but one have a second pilot, which has done the job when the tests begin."""
    with ExitStack() as stack:

        def world(name: str) -> World:
            return stack.enter_context(_closing(World(shared_server, tmp_path_factory.mktemp(name), name)))

        cases = {
            "killed": _silenced(world("killed"), signal.SIGKILL, HANGS, max_attempts=1),
            "killed for the last time": _silenced(world("last"), signal.SIGKILL, HANGS, max_losses=0),
            "paused": _silenced(world("paused"), signal.SIGSTOP, HANGS),
            "outlived": _silenced(world("outlived"), signal.SIGSTOP, OUTLIVED),
        }
        for name in ("killed", "paused", "outlived"):
            case = cases[name]
            case.world.pilot(case.queue, *(() if name == "killed" else ("--max-jobs", "1")))
        for case in cases.values():
            case.task = case.world.ended(case.task)
            case.ended_at = time.monotonic()
        yield cases


@contextmanager
def _closing(world: World) -> Iterator[World]:
    yield world
    world.close()


def test_f04_a_killed_pilots_job_is_done_by_another_one(silent: dict[str, Silent]) -> None:
    """One attempt is all that the payload has: the loss is charged to the other budget."""
    killed = silent["killed"]
    job = killed.world.job(killed.task)
    assert (killed.task.state, errors(job)) == ("COMPLETED", ["LOST_HEARTBEAT", None])
    assert killed.world.output(killed.task) == "attempt 2\n"
    assert [attempt.pilot_id for attempt in job.attempts or ()][0] in killed.directory.name


def test_f04_a_lost_job_waits_for_the_end_of_the_lease_and_not_much_longer(silent: dict[str, Silent]) -> None:
    killed = silent["killed"]
    waited = killed.ended_at - killed.since
    print(
        f"the job was done again {waited:.1f} s after its pilot was killed; the lease is {LEASE['lease_seconds']} s"
    )
    assert LEASE["lease_seconds"] - LEASE["heartbeat_seconds"] - 1 < waited < LEASE["lease_seconds"] + 15


def test_the_history_tells_who_fell_silent_and_who_noticed(silent: dict[str, Silent]) -> None:
    killed = silent["killed"]
    (line,) = [line for line in killed.world.job(killed.task).history or () if line.state == "LOST_HEARTBEAT"]
    assert (line.by, line.attempt_nr) == ("reaper", 1)
    assert "was silent in RUNNING" in line.detail


def test_the_next_pilot_on_the_node_removes_what_a_killed_one_left(silent: dict[str, Silent]) -> None:
    assert not silent["killed"].directory.exists()


def test_a_pilot_removes_nothing_of_one_that_is_only_paused(silent: dict[str, Silent]) -> None:
    """Both have worked in the same directory."""
    assert silent["paused"].directory.exists()


def test_a_job_that_is_lost_more_often_than_it_may_be_fails_and_says_why(silent: dict[str, Silent]) -> None:
    last = silent["killed for the last time"]
    job = last.world.job(last.task)
    assert (job.state, job.error, errors(job)) == (
        "FAILED",
        "INFRASTRUCTURE_BUDGET_SPENT",
        ["LOST_HEARTBEAT"],
    )


@pytest.mark.parametrize("case", ["paused", "outlived"])
def test_f05_a_pilot_that_was_paused_beyond_its_lease_changes_nothing_and_stops_its_payload(
    silent: dict[str, Silent], case: str
) -> None:
    zombie = silent[case]
    world = zombie.world
    before = _all_that_is_known(zombie)
    zombie.pilot.signal(signal.SIGCONT)
    zombie.pilot.says("job is given up")
    world.no_payload_is_left()
    assert _all_that_is_known(zombie) == before
    assert world.output(zombie.task) == "attempt 2\n"
    job = world.job(zombie.task)
    assert errors(job) == ["LOST_HEARTBEAT", None]
    assert words(job, 2)[-1] == "COMPLETED"
    # And it goes on as a pilot like any other.
    assert world.ended(world.submit(zombie.queue, ["true"])).state == "COMPLETED"
    assert zombie.pilot.is_running()


def _all_that_is_known(silent: Silent) -> object:
    session = silent.world.session
    task = session.task(silent.task.task_id)
    return task, silent.world.jobs(task), list(session.dataset_files(str(task.output_dataset)))
