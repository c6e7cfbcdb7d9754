"""Leases: a clock that only the reaper advances, silent pilots, and the late word that keeps its job."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from protocol.messages.pilots import Command, PilotEnd, UpdateReply
from protocol.messages.requests import QueueSpec
from protocol.states import HELD, JobState
from server import computing, job_executor, job_manager, reaper
from server.core import Core, Limits
from server.database import proxy
from server.job_executor import lease_clock
from server.models import Job, JobEvent
from tests.integration.server.world import World, at_once, giving_back
from tests.waiting import wait_until

S = JobState


# -- the clock --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("elapsed", "clock"), [(5.0, 5), (5.4, 5), (600.0, 5), (1e9, 5), (0.0, 0), (-3.0, 0), (2.0, 2)]
)
def test_f06_the_clock_goes_on_by_at_most_one_period_a_pass(world: World, elapsed: float, clock: int) -> None:
    reaper.run_once(world.core, elapsed)
    assert lease_clock() == clock


@pytest.mark.parametrize("period", [0.05, 0.3, 0.6, 1.4, 2.5])
def test_the_clock_is_right_also_with_periods_that_are_no_whole_seconds(world: World, period: float) -> None:
    core = dataclasses.replace(world.core, limits=Limits(reaper_seconds=period))
    passes = 40
    for _ in range(passes):
        reaper.run_once(core, period)
    assert lease_clock() == int(passes * period + 1e-6)


def test_f06_processes_that_share_a_database_make_the_clock_no_faster(world: World) -> None:
    turns = [reaper.Turn() for _ in range(4)]
    for _ in range(10):
        for turn in turns:
            reaper.run_once(world.core, 5.0, turn)
    assert 45 <= lease_clock() <= 50


def test_nothing_else_moves_the_clock(world: World) -> None:
    job = world.job_with_outputs()
    world.beat(job)
    world.complete(job)
    world.form()
    world.close_tasks()
    assert lease_clock() == 0


# -- silence ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", HELD, ids=str)
def test_a_pilot_that_is_silent_for_longer_than_its_lease_loses_its_job(
    world: World, state: JobState
) -> None:
    world.ready()
    [job] = world.claim()
    if state is not S.EXTRACTED:
        world.say(job, state)
    assert world.pass_seconds(60) == 0
    assert world.state() is state
    assert world.pass_seconds(5) == 1
    assert world.state() is S.READY
    assert world.attempt(job.attempt_id).ended_at is None, "it is valid until somebody claims the job"
    [event] = JobEvent.select()
    name = "NOT_ACKNOWLEDGED" if state is S.EXTRACTED else "LOST_HEARTBEAT"
    assert (event.job_id, event.attempt_nr, event.actor, event.event) == (job.job_id, 1, "reaper", name)
    assert world.pass_seconds(200) == 0, "once"


def test_a_heartbeat_renews_the_lease_of_what_it_names_and_of_nothing_else(world: World) -> None:
    world.ready(2)
    named, forgotten = world.claim(n_jobs=2)
    world.say(named, S.RUNNING)
    world.say(forgotten, S.RUNNING)
    for _ in range(4):
        world.pass_seconds(20)
        assert world.state(named.job_id) is S.RUNNING
        world.beat(named)
    assert world.state(named.job_id) is S.RUNNING
    assert world.state(forgotten.job_id) is S.READY


def test_any_word_renews_the_lease(world: World) -> None:
    world.ready()
    [job] = world.claim()
    for state in (S.OBTAINED, S.STAGE_IN, S.RUNNING):
        world.say(job, state)
        world.pass_seconds(60)
    world.say(job)
    world.pass_seconds(60)
    assert world.state() is S.RUNNING


def test_a_queue_has_a_lease_of_its_own(world: World) -> None:
    computing.create_queue(world.core, QueueSpec("LONG", lease_seconds=300, heartbeat_seconds=100))
    world.ready()
    world.pilot("p2", "LONG")
    [job] = world.claim("p2", queue="LONG")
    world.say(job, S.RUNNING)
    assert world.pass_seconds(300) == 0
    assert world.pass_seconds(5) == 1


def test_an_attempt_that_has_ended_has_no_lease(world: World) -> None:
    world.ready(3, max_attempts=1)
    done, failed, cancelled = world.claim(n_jobs=3)
    world.complete(done)
    world.fail(failed)
    job_executor.cancel(world.core, [cancelled.job_id], "ada", "")
    assert world.pass_seconds(200) == 0
    assert [world.state(job_id) for job_id in (1, 2, 3)] == [S.COMPLETED, S.FAILED, S.CANCELLED]


def test_many_leases_that_run_out_are_all_found_in_one_pass(world: World) -> None:
    world.ready(20)
    world.claim(n_jobs=20)
    world.pass_seconds(60)
    Job.update(unacknowledged=4).where(Job.id <= 5).execute()
    assert job_executor.expire(world.core) == 0
    job_executor.advance_lease_clock(world.core, 5)
    assert [job_executor.expire(world.core) for _ in range(2)] == [20, 0]
    assert Job.select().where(Job.state == S.READY.value).count() == 15
    assert Job.select().where(Job.state == S.FAILED.value).count() == 5


def test_the_reaper_passes_over_an_attempt_whose_pilot_is_just_speaking(postgres_core: Core) -> None:
    world = World(postgres_core)
    database = postgres_core.database
    world.ready()
    [job] = world.claim()
    world.say(job, S.RUNNING)
    job_executor.advance_lease_clock(postgres_core, 70)

    def reap() -> int:
        proxy.execute_sql("SET LOCAL lock_timeout = '2s'")
        return job_executor.expire(postgres_core)

    def speaking() -> int:
        world.beat(job)
        [reaped] = at_once([lambda: database.write(reap)])
        return reaped.result()

    assert database.write(speaking) == 0
    with database.reading():
        assert world.state() is S.RUNNING
        assert job_executor.expire(postgres_core) == 0


# -- the late word ----------------------------------------------------------------------------------------------------------


def silent(world: World, state: JobState = S.RUNNING) -> Any:
    """A job whose pilot fell silent in this state, not claimed again."""
    job = world.job_with_outputs()
    if state is not S.EXTRACTED:
        world.say(job, state)
    world.pass_seconds(65)
    assert world.state() is S.READY
    return job


LATE: dict[str, tuple[Callable[[World, Any], UpdateReply], JobState]] = {
    "a heartbeat": (lambda world, job: world.beat(job)[0], S.RUNNING),
    "a word without a move": (lambda world, job: world.say(job), S.RUNNING),
    "the same state": (lambda world, job: world.say(job, S.RUNNING), S.RUNNING),
    "a later state": (lambda world, job: world.say(job, S.STAGE_OUT), S.STAGE_OUT),
    "the end": (lambda world, job: world.complete(job), S.COMPLETED),
}


@pytest.mark.parametrize("late", LATE)
def test_a_late_word_before_another_claim_keeps_the_job(world: World, late: str) -> None:
    job = silent(world)
    say, state = LATE[late]
    assert say(world, job) == UpdateReply(job.attempt_id, state.value, Command.CONTINUE)
    assert world.state() is state
    row = world.job()
    assert (row.ready_nr, row.ready_after, row.losses) == (None, None, 0)
    world.pilot("p2")
    assert world.claim("p2") == []
    assert world.beat(job)[0].command is Command.CONTINUE


@pytest.mark.parametrize("late", LATE)
def test_a_late_word_after_another_claim_is_refused(world: World, late: str) -> None:
    job = silent(world)
    world.pilot("p2")
    [second] = world.claim("p2")
    say, _ = LATE[late]
    if late == "a heartbeat":
        with world.unchanged(ignore=("last_seen", "lease_until")):
            assert say(world, job).command is Command.STOP
    else:
        with world.refused("STALE_ATTEMPT"):
            say(world, job)
    assert world.state() is S.EXTRACTED
    assert world.job().losses == 1
    world.complete(second)


def test_a_late_failure_is_a_failure_of_the_payload_and_no_loss(world: World) -> None:
    job = silent(world)
    assert world.fail(job).state == "FAILED"
    row = world.job()
    assert (row.state, row.payload_failures, row.losses) == (S.READY.value, 1, 0)
    [second] = world.claim()
    assert second.attempt_nr == 2
    assert [each.error for each in job_manager.details(world.job()).attempts or []] == [
        "PAYLOAD_FAILED",
        None,
    ]


def test_a_late_failure_that_ends_the_job_takes_it_out_of_the_queue(world: World) -> None:
    job = silent(world)
    world.fail(job, "MISSING_OUTPUT")
    assert (world.state(), world.job().ready_nr) == (S.FAILED, None)
    assert world.claim() == []


def test_a_late_acknowledgement_keeps_the_job(world: World) -> None:
    job = silent(world, S.EXTRACTED)
    assert world.say(job, S.OBTAINED).state == "OBTAINED"
    assert (world.state(), world.job().unacknowledged) == (S.OBTAINED, 0)


def test_a_late_word_and_a_claim_at_once_give_the_job_to_one_of_them(world: World) -> None:
    world.dataset(8)
    world.task()
    world.form()
    world.pilot()
    world.pilot("p2")
    jobs = world.claim(n_jobs=8)
    for job in jobs:
        world.say(job, S.RUNNING)
    world.pass_seconds(65)
    works: list[Callable[[], Any]] = [lambda job=job: world.say(job, S.FINISHED) for job in jobs]
    works += [lambda: world.claim("p2")] * 8
    futures = at_once(works)
    kept = {job.job_id for job, future in zip(jobs, futures) if future.exception() is None}
    refused = [future.exception() for future in futures[:8] if future.exception() is not None]
    assert all(getattr(error, "name", error) == "STALE_ATTEMPT" for error in refused)
    claimed = [job.job_id for future in futures[8:] for job in future.result()]
    assert len(claimed) == len(set(claimed))
    assert not kept & set(claimed)
    for row in Job.select():
        if row.id in kept:
            assert (row.state, row.attempt_nr) == (S.FINISHED.value, 1)
        elif row.id in claimed:
            assert (row.state, row.attempt_nr) == (S.EXTRACTED.value, 2)


def test_a_pilot_may_claim_the_job_it_lost(world: World) -> None:
    first = silent(world)
    [second] = world.claim()
    assert (second.job_id, second.attempt_nr) == (first.job_id, 2)
    assert world.beat(first)[0].command is Command.STOP
    world.complete(second)


def test_the_history_tells_of_the_loss(world: World) -> None:
    silent(world)
    world.complete(world.claim()[0])
    history = job_manager.details(world.job()).history or []
    assert [(line.state, line.attempt_nr) for line in history] == [
        *(("REGISTERED", 0), ("READY", 1), ("EXTRACTED", 1), ("RUNNING", 1)),
        *(("LOST_HEARTBEAT", 1), ("FAILED", 1), ("READY", 2), ("EXTRACTED", 2), ("COMPLETED", 2)),
    ]
    assert [line.by for line in history if line.state in ("LOST_HEARTBEAT", "FAILED")] == ["reaper", "server"]


def test_a_pilot_is_silent_when_its_lease_has_run_out_and_ended_when_it_said_so(world: World) -> None:
    world.pilot()
    assert job_manager.pilot("p1").state == "alive"
    world.pass_seconds(65)
    assert job_manager.pilot("p1").state == "silent"
    world.pilot()
    assert job_manager.pilot("p1").state == "alive"
    computing.end_pilot(world.core, PilotEnd("p1", 82, "no jobs"))
    seen = job_manager.pilot("p1")
    assert (seen.state, seen.exit_code, seen.reason) == ("ended", 82, "no jobs")


def test_a_heartbeat_and_a_last_word_do_not_wait_for_each_other(
    postgres_core: Core, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(postgres_core)
    world.ready(1)
    [job] = world.claim()
    world.say(job, S.RUNNING)
    caplog.set_level(logging.DEBUG, "server.database")
    beat = threading.Thread(target=giving_back(world.beat), daemon=True)
    word = threading.Thread(target=giving_back(lambda: world.complete(job)), daemon=True)

    def with_the_pilot_in_hand() -> None:
        proxy.execute_sql("SELECT 1 FROM pilot FOR UPDATE")
        for n, thread in enumerate((beat, word), start=1):
            thread.start()
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            wait_until(lambda: proxy.execute_sql(waiting).fetchone()[0] >= n, 30)  # noqa: B023

    postgres_core.database.write(with_the_pilot_in_hand)
    beat.join(30)
    word.join(30)
    assert "run again" not in caplog.text
    with postgres_core.database.reading():
        assert world.state() is S.COMPLETED
