"""The end of a task: its output dataset is closed once, with exactly the files that jobs completed."""

from __future__ import annotations

import pytest

from protocol.states import JobState
from server import catalogue, job_executor, task_manager
from server.models import File, Replica
from server.paging import Cursor
from tests.integration.server.world import World, at_once


def running(world: World, n_jobs: int = 3) -> list:
    world.dataset(n_jobs)
    world.task(outputs=["{stem}.o"], max_attempts=1)
    world.form()
    world.pilot()
    return world.claim(n_jobs=n_jobs)


def lfns() -> list[str]:
    return [file.lfn for file in catalogue.files(Cursor(), dataset="t.out").items]


def test_when_every_job_completed_the_task_has_and_its_dataset_is_closed(world: World) -> None:
    for job in running(world):
        assert world.close_tasks() == 0
        assert catalogue.view(catalogue.find("t.out")).state == "open"
        world.complete(job)
    assert world.close_tasks() == 1
    view = task_manager.view(task_manager.find("t"))
    assert (view.state, view.output_state, view.n_outputs) == ("COMPLETED", "closed", 3)
    assert view.ended is not None
    assert lfns() == ["f00000.o", "f00001.o", "f00002.o"]
    seen = catalogue.view(catalogue.find("t.out"))
    assert (seen.state, seen.n_files, seen.size) == ("closed", 3, 9)


def test_partial_failure_is_visible_and_the_dataset_has_only_what_completed(world: World) -> None:
    first, second, third = running(world)
    world.complete(first)
    world.fail(second, "WALLTIME_EXCEEDED")
    job_executor.cancel(world.core, [third.job_id], "ada", "")
    assert world.close_tasks() == 1
    view = task_manager.view(task_manager.find("t"))
    assert (view.state, view.output_state, view.n_outputs) == ("PARTIAL", "closed", 1)
    assert view.counts == {"COMPLETED": 1, "FAILED": 1, "CANCELLED": 1}
    assert view.errors == {"WALLTIME_EXCEEDED": 1}
    assert lfns() == ["f00000.o"]
    assert File.select().where(File.state == "declared").count() == 0, "nothing that will never come"


def test_when_no_job_completed_the_task_failed_and_its_dataset_is_closed_and_empty(world: World) -> None:
    for job in running(world):
        world.fail(job)
    assert world.close_tasks() == 1
    view = task_manager.view(task_manager.find("t"))
    assert (view.state, view.output_state, view.n_outputs) == ("FAILED", "closed", 0)
    assert view.errors == {"PAYLOAD_FAILED": 3}


def test_a_task_whose_jobs_are_not_all_formed_goes_on(world: World) -> None:
    world.dataset(1, close=False)
    world.task(outputs=["{stem}.o"])
    world.form()
    world.pilot()
    world.complete(world.claim()[0])
    assert world.close_tasks() == 0
    catalogue.close(world.core, "in")
    assert world.close_tasks() == 0, "the task-executor has to see first that no file came with the closing"
    world.form()
    assert world.close_tasks() == 1


def test_f23_a_task_is_closed_once_however_often_and_by_how_many(world: World) -> None:
    for job in running(world):
        world.complete(job)
    closed = [future.result() for future in at_once([world.close_tasks] * 6)]
    assert sum(closed) == 1
    with world.unchanged():
        assert world.close_tasks() == 0


def test_after_the_end_nothing_comes_into_the_dataset(world: World) -> None:
    for job in running(world):
        world.complete(job)
    world.close_tasks()
    with world.refused("WRONG_STATE"):
        catalogue.add_files(world.core, "t.out", [], close=False)


@pytest.mark.parametrize("close", [True, False])
def test_a_dataset_that_a_task_fills_is_its_own(world: World, close: bool) -> None:
    running(world)
    with world.refused("WRONG_STATE", "filled by task 1"):
        catalogue.add_files(world.core, "t.out", [], close=close)
    with world.refused("WRONG_STATE", "filled by task 1"):
        catalogue.close(world.core, "t.out")


def test_a_task_without_outputs_ends_too(world: World) -> None:
    world.ready()
    world.complete(world.claim()[0])
    assert world.close_tasks() == 1
    view = task_manager.view(task_manager.find("t"))
    assert (view.state, view.output_dataset, view.n_outputs) == ("COMPLETED", None, 0)


def test_every_row_of_a_closed_dataset_has_a_replica_of_the_attempt_that_completed(world: World) -> None:
    first, *others = running(world)
    for job in others:
        world.complete(job)
    world.say(first, JobState.RUNNING)
    world.pass_seconds(65)
    [again] = world.claim()
    world.complete(again)
    world.close_tasks()
    urls = {row.url for row in Replica.select().where(Replica.storage.is_null(False))}
    assert urls == {output.url for job in (again, *others) for output in job.outputs}
