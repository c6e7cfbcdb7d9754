"""A database that has seen life: jobs of every end, retries, losses, logs, metrics, and some that still run."""

from __future__ import annotations

from typing import Any

from protocol.messages import to_wire
from protocol.messages.pilots import JobSpec
from protocol.states import JobState
from server import job_manager, task_manager
from server.models import ArchivedJob, Job, Task
from server.paging import Cursor
from tests.integration.server.world import World


def live(world: World) -> list[JobSpec]:
    """Two tasks that end and one that goes on; the jobs of the last that are held now."""

    def past() -> None:
        world.dataset(4)
        world.task("done", outputs=["{stem}.o"], working_group="ana")
        world.task("mixed", n_jobs=3, max_attempts=2)
        world.form()
        world.pilot()
        world.pilot("p2")

    world.core.database.write(past)
    _work(world)
    world.close_tasks()
    world.task("open", n_jobs=3)
    world.form()
    held = world.claim(n_jobs=2)
    world.say(held[0], JobState.OBTAINED, JobState.RUNNING)
    return held


def _work(world: World) -> None:
    """Every job of the two tasks comes to an end: one is lost and failed before, one cancelled, two fail for good."""
    jobs = {job.job_id: job for job in world.claim(n_jobs=7)}
    done = [job for job in jobs.values() if job.outputs]
    mixed = [job for job in jobs.values() if not job.outputs]
    world.say(done[0], JobState.OBTAINED, JobState.STAGE_IN, JobState.RUNNING, metrics={"cpu": 1.5})
    for job in done[1:]:
        world.say(job, JobState.RUNNING)
        world.complete(job)
        world.log(job)
    world.complete(mixed[0])
    for job in mixed[1:]:
        world.fail(job)
    world.pass_seconds(200)  # the first of `done` is lost
    for job in world.claim("p2", n_jobs=7):
        if job.outputs:
            world.complete(job)
        elif job.job_id == mixed[1].job_id:
            world.fail(job)
        else:
            task_manager.cancel(world.core, "mixed", "ada")


def pictures(world: World) -> dict[str, Any]:
    """What users see of all jobs and tasks."""
    with world.core.database.reading():
        ids = sorted(
            {job.id for job in Job.select(Job.id)} | {row.id for row in ArchivedJob.select(ArchivedJob.id)}
        )
        jobs = {str(job_id): to_wire(job_manager.details(job_manager.find(job_id))) for job_id in ids}
        page = to_wire(job_manager.jobs(Cursor(limit=1000)))
        tasks = [to_wire(task_manager.view(task, with_spec=True)) for task in Task.select().order_by(Task.id)]
    return {"jobs": jobs, "list": page, "tasks": tasks}
