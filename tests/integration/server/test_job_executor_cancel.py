"""A user's cancellation in each state, and against a pilot that is just completing."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from protocol.errors import PilotageError
from protocol.messages.pilots import Command, UpdateReply
from protocol.states import FINAL, HELD, JobState
from server import job_executor, job_manager, task_manager
from server.core import Core, Limits
from server.database import proxy
from server.models import File, Job, JobEvent, Replica
from tests.integration.server.world import World, at_once, giving_back
from tests.waiting import wait_until

S = JobState


def cancel(world: World, *job_ids: int) -> int:
    return job_executor.cancel(world.core, job_ids or (1,), "ada", "not wanted any more")


@pytest.mark.parametrize("state", HELD, ids=str)
def test_f21_a_job_that_a_pilot_holds_is_cancelled_and_the_pilot_told_at_its_next_word(
    world: World, state: JobState
) -> None:
    job = world.job_with_outputs()
    if state is not S.EXTRACTED:
        world.say(job, state)
    assert cancel(world) == 1
    row, attempt = world.job(), world.attempt(job.attempt_id)
    assert (row.state, row.error, row.ready_nr) == ("CANCELLED", "CANCELLED_BY_USER", None)
    assert (attempt.state, attempt.error) == ("CANCELLED", "CANCELLED_BY_USER")
    assert attempt.ended_at is not None
    with world.unchanged(ignore=("last_seen",)):
        stop = UpdateReply(job.attempt_id, "CANCELLED", Command.STOP, detail="not wanted any more")
        assert world.beat(job) == [stop]
    for say in (
        lambda: world.say(job, S.STAGE_OUT),
        lambda: world.complete(job),
        lambda: world.fail(job),
        lambda: world.log(job),
        lambda: world.say(job, seq=1),
    ):
        with world.refused("STALE_ATTEMPT"):
            say()
    assert Replica.select().where(Replica.storage.is_null(False)).count() == 0


def test_f21_a_job_that_nobody_holds_is_cancelled_and_never_handed_out(world: World) -> None:
    world.ready(2)
    assert cancel(world) == 1
    assert [job.job_id for job in world.claim(n_jobs=5)] == [2]
    history = job_manager.details(world.job()).history or []
    assert [(line.state, line.by) for line in history] == [
        ("REGISTERED", "task-executor"),
        ("CANCELLED", "user"),
    ]


def test_f21_a_job_that_waits_for_its_retry_is_cancelled(world: World) -> None:
    world.ready()
    world.fail(world.claim()[0], "STAGE_IN_FAILED")
    assert cancel(world) == 1
    world.pass_seconds(60)
    world.form()
    assert world.claim() == []
    assert world.state() is S.CANCELLED
    states = [line.state for line in job_manager.details(world.job()).history or []]
    assert states[:3] == ["REGISTERED", "READY", "EXTRACTED"]
    assert set(states[3:]) == {"FAILED", "HEALED", "CANCELLED_BY_USER", "CANCELLED"}
    assert states[-1] == "CANCELLED"


def test_f21_a_job_whose_lease_ran_out_is_cancelled_for_its_old_pilot_too(world: World) -> None:
    world.ready()
    [job] = world.claim()
    world.say(job, S.RUNNING)
    world.pass_seconds(65)
    assert cancel(world) == 1
    assert world.beat(job)[0].command is Command.STOP
    assert world.attempt(job.attempt_id).state == "CANCELLED"
    with world.refused("STALE_ATTEMPT"):
        world.complete(job)


@pytest.mark.parametrize("end", sorted(FINAL))
def test_a_job_that_has_ended_stays_as_it_is(world: World, end: JobState) -> None:
    world.ready(max_attempts=1)
    [job] = world.claim()
    if end is S.CANCELLED:
        cancel(world)
    elif end is S.FAILED:
        world.fail(job)
    else:
        world.complete(job)
    with world.unchanged():
        assert cancel(world) == 0


def test_what_is_not_there_cannot_be_cancelled(world: World) -> None:
    world.ready()
    with world.unchanged():
        assert cancel(world, 99, 2**62) == 0


def test_a_cancellation_says_by_whom_and_why(world: World) -> None:
    world.ready()
    cancel(world)
    [event] = JobEvent.select()
    assert (event.actor, event.event, event.detail) == (
        "user",
        "CANCELLED_BY_USER",
        "ada: not wanted any more",
    )


def test_f21_cancel_against_completed_ends_as_one_of_both(world: World) -> None:
    world.dataset(10)
    world.task(outputs=["{stem}.a"])
    world.form()
    world.pilot()
    jobs = world.claim(n_jobs=10)
    works: list[Any] = []
    for job in jobs:
        works += [lambda job=job: world.complete(job), lambda job=job: cancel(world, job.job_id)]
    futures = at_once(works)
    for job, completed, cancelled in zip(jobs, futures[::2], futures[1::2]):
        row, attempt = Job.get_by_id(job.job_id), world.attempt(job.attempt_id)
        published = File.select().where(File.job_id == job.job_id, File.state == "available").count()
        assert row.state == attempt.state
        if row.state == "COMPLETED":
            assert (completed.exception(), cancelled.result(), published) == (None, 0, 1)
        else:
            error = completed.exception()
            assert isinstance(error, PilotageError)
            assert (row.state, error.name, cancelled.result(), published) == (
                "CANCELLED",
                "STALE_ATTEMPT",
                1,
                0,
            )


# -- tasks ------------------------------------------------------------------------------------------------------------------


class TestALargeTask:
    @pytest.fixture
    def limits(self) -> Limits:
        return Limits(ready_stock=20)

    def test_a_cancelled_task_forms_no_further_job_and_ends_those_there_are(self, world: World) -> None:
        world.ready(3)
        world.task("large", n_jobs=5000)
        world.form()
        done, held = [job for job in world.claim(n_jobs=6) if job.task_id == 2][:2]
        world.complete(done)
        world.form()
        formed = Job.select().where(Job.task == 2).count()
        assert 17 < formed < 30
        view = task_manager.cancel(world.core, "large", "ada")
        assert view.counts == {"COMPLETED": 1, "CANCELLED": formed - 1}
        assert view.state == "CANCELLED"
        assert world.beat(held)[0].command is Command.STOP
        assert world.form() == 0
        assert Job.select().where(Job.task == 2).count() == formed
        assert Job.select().where(Job.task == 1, Job.state == "CANCELLED").count() == 0


def test_a_task_that_has_ended_is_not_cancelled(world: World) -> None:
    world.ready()
    world.complete(world.claim()[0])
    world.close_tasks()
    with world.unchanged():
        assert task_manager.cancel(world.core, "t", "ada").state == "COMPLETED"


def test_a_task_of_which_no_job_was_formed_can_be_cancelled(world: World) -> None:
    world.task(n_jobs=3, outputs=["o{job_nr}"])
    assert task_manager.cancel(world.core, "t", "ada").state == "CANCELLED"
    assert world.form() == 0
    assert world.close_tasks() == 1


def somebody_waits() -> bool:
    return bool(proxy.execute_sql("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone()[0])


def test_f21_a_cancellation_that_comes_upon_a_claim_ends_the_new_attempt_too(postgres_core: Core) -> None:
    world = World(postgres_core)
    world.ready(1)
    cancel = threading.Thread(
        target=giving_back(lambda: job_executor.cancel(postgres_core, [1], "ada", "")), daemon=True
    )

    def claim_under_way() -> Any:
        [job] = world.claim()
        cancel.start()
        wait_until(somebody_waits, 30)
        return job

    job = postgres_core.database.write(claim_under_way)
    cancel.join(30)
    with postgres_core.database.reading():
        assert world.state() is JobState.CANCELLED
        assert world.attempt(job.attempt_id).state == JobState.CANCELLED.value
        with world.refused("STALE_ATTEMPT"):
            world.say(job, JobState.RUNNING)


def test_g2_a_job_that_has_ended_does_not_move_though_its_attempt_were_left_alive(world: World) -> None:
    world.ready(1)
    [job] = world.claim()
    Job.update(state=JobState.CANCELLED.value, ended_at=1.0).execute()  # what no path of ours does
    world.beat(job)
    world.say(job, JobState.RUNNING)
    world.say(job, JobState.COMPLETED)
    assert world.state() is JobState.CANCELLED
