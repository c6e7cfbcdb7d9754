"""End jobs because a user says so, many at a time: those that nobody holds, and those whose pilots are told at their next word.

A whole task is first marked: from then on no job of it is formed. Its jobs end chunk by chunk; what is not done when the
answer is due, or when the server dies, the closer goes on with.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Sequence
from itertools import islice

from peewee import fn

from protocol.errors import shorten
from protocol.states import Actor, JobState, sources
from server.core import Core
from server.database import Chain, Part, Rows
from server.jobs.statements import listed
from server.models import Attempt, Job, Task, now
from server.pace import Pace

WINDOW = 5_000
"""Numbers of jobs among which those that are open are looked for in one query."""

CANCEL = Chain(
    Rows("doomed", {"id": "bigint"}),
    Part(
        "cancelled",
        f"""UPDATE job SET state = '{JobState.CANCELLED.value}', ready_nr = NULL, ready_after = NULL, loss = NULL,
                changed = :now, ended_at = :now, error = 'CANCELLED_BY_USER', error_detail = CAST(:reason AS text)
            FROM doomed
            WHERE job.id = doomed.id AND job.state IN ({listed(sources(JobState.CANCELLED, Actor.USER))})
            RETURNING job.id, job.attempt_id, job.attempt_nr""",
        {"id": "bigint", "attempt_id": "bigint", "attempt_nr": "integer"},
    ),
    Part(
        "ended",
        f"""UPDATE attempt SET state = '{JobState.CANCELLED.value}', ended_at = :now, error = 'CANCELLED_BY_USER',
                error_detail = CAST(:reason AS text)
            FROM cancelled
            WHERE attempt.job_id = cancelled.id AND cancelled.attempt_id IS NOT NULL AND attempt.ended_at IS NULL
            RETURNING attempt.id""",
        {},
    ),
    Part(
        "noted",
        f"""INSERT INTO job_event (job_id, attempt_nr, at, actor, event, detail)
            SELECT id, attempt_nr, CAST(:now AS double precision), '{Actor.USER.value}', 'CANCELLED_BY_USER',
                CAST(:who AS text)
            FROM cancelled
            RETURNING job_id""",
        {},
    ),
    result="cancelled",
    bulk=True,
)
"""Jobs that have not ended, and the attempts that hold them, end; with an event for each."""


def cancel(core: Core, job_ids: Sequence[int], actor_name: str, reason: str) -> int:
    """End these jobs as CANCELLED, those that have not ended; how many were. Their pilots are told at their next word."""
    pace = Pace(seconds=core.database.bulk_seconds)
    rest, cancelled = iter(job_ids), 0
    while ids := list(islice(rest, pace.rows)):
        cancelled += core.database.write(functools.partial(_cancel, core, ids, actor_name, reason, pace))
    return cancelled


def _cancel(core: Core, job_ids: Sequence[int], actor_name: str, reason: str, pace: Pace) -> int:
    """Inside `Database.write`."""
    with pace.measured(len(job_ids)):
        # In the order of a pilot's word, first attempt, then job: so that neither waits for ever for the other.
        held = Attempt.select(Attempt.id).where(Attempt.job.in_(job_ids), Attempt.ended_at.is_null())
        list(core.database.locked(held.order_by(Attempt.id)))
        # A claim that is under way is waited for here: the statement below would not see its attempt, and leave it alive.
        list(core.database.locked(Job.select(Job.id).where(Job.id.in_(job_ids)).order_by(Job.id)))
        doomed = [(job_id,) for job_id in job_ids]
        who = shorten(f"{actor_name}: {reason}")
        return len(core.database.run(CANCEL, doomed=doomed, reason=shorten(reason), who=who, now=now()))


# -- a whole task -----------------------------------------------------------------------------------------------------------


def cancel_task(core: Core, task_id: int, actor_name: str, seconds: float) -> None:
    """Form no further job of a task that has not ended, and end its jobs for so long; the closer ends the rest."""

    def mark() -> int:
        return int(
            Task.update(cancelled=True, cancelled_by=actor_name)
            .where(Task.id == task_id, Task.ended.is_null())
            .execute()
        )

    if core.database.write(mark):
        _end_jobs(core, task_id, time.monotonic() + seconds)


def go_on(core: Core, seconds: float) -> int:
    """For the closer's pass: end jobs of tasks that are being cancelled, for so long; how many."""
    with core.database.reading():
        task_ids = [task.id for task in Task.select(Task.id).where(Task.cancelled_by.is_null(False))]
    deadline = time.monotonic() + seconds
    return sum(_end_jobs(core, task_id, deadline) for task_id in task_ids)


def _end_jobs(core: Core, task_id: int, deadline: float) -> int:
    """End the open jobs of a task until they are done or the time is over; how many. A later wish to go on with it wins."""
    with core.database.reading():
        task = Task.get_by_id(task_id)
        pace = Pace(seconds=core.database.bulk_seconds)
        open_jobs, ended = _open_jobs(task), 0
        while ids := list(islice(open_jobs, pace.rows)):
            if time.monotonic() > deadline:
                return ended
            chunk = core.database.write(functools.partial(_end_some, core, task_id, ids, pace))
            if chunk is None:
                return ended
            ended += chunk
    core.database.write(functools.partial(_end_wish, core, task_id))
    return ended


def _end_wish(core: Core, task_id: int) -> None:
    """Inside `Database.write`; a job that was tried again, and is to end by a later wish, keeps that alive."""
    list(core.database.locked(Task.select(Task.id).where(Task.id == task_id)))
    open_jobs = Job.select(Job.id).where(Job.task == task_id, Job.ended_at.is_null())
    Task.update(cancelled_by=None).where(Task.id == task_id, ~fn.EXISTS(open_jobs)).execute()


def _end_some(core: Core, task_id: int, job_ids: Sequence[int], pace: Pace) -> int | None:
    """Inside `Database.write`; None if the task is not being cancelled any more."""
    task = core.database.locked(Task.select().where(Task.id == task_id)).get()
    if not task.cancelled or task.cancelled_by is None:
        return None
    return _cancel(core, job_ids, task.cancelled_by, f"task {task_id} was cancelled", pace)


def _open_jobs(task: Task) -> Iterator[int]:
    """Looked for in parts of bounded length, each entry once: those that have just ended stay in the index for a while."""
    for first in range(1, task.n_formed + 1, WINDOW):
        query = Job.select(Job.id).where(
            Job.task == task.id, Job.job_nr.between(first, first + WINDOW - 1), Job.ended_at.is_null()
        )
        yield from [job_id for (job_id,) in query.order_by(Job.job_nr).tuples()]
