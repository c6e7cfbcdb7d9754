"""Jobs of tasks that ended a while ago leave the hot tables: one row per job then holds all that there was to know of it.

The hot tables so keep their size while a laboratory runs for years. What a job read and wrote stays in the catalogue.
"""

from __future__ import annotations

import datetime
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

from peewee import fn

from protocol.messages.views import FileView
from server import accounting, failure_report, job_manager
from server.core import Core
from server.jobs import debugging, series
from server.models import ArchivedJob, Attempt, File, Job, JobEvent, JobInput, Task, now
from server.pace import Pace
from server.upkeep import garbage, packing

PASS_SECONDS = 0.2
"""So much of each second it works at most: the rest is for the pilots."""
MOST_TASKS = 200
"""Looked at in one pass."""
MOST_JOBS = 200
"""Moved in one transaction, if they are quick."""


def run_once(core: Core, seconds: float = PASS_SECONDS) -> int:
    """One pass of at most `seconds` over the tasks that ended long enough ago; how many jobs were moved."""
    deadline = time.monotonic() + seconds
    debugging.forget_old(core)
    with core.database.reading():
        due = Task.select(Task.id).where(
            Task.ended.is_null(False), ~Task.archived, Task.ended <= now() - core.limits.archive_after_seconds
        )
        task_ids = [task.id for task in due.order_by(Task.ended).limit(MOST_TASKS)]
    moved, pace = 0, Pace(first=20, most=MOST_JOBS)
    for task_id in task_ids:
        more = True
        while more and time.monotonic() < deadline:
            n = _move_some(core, task_id, pace)
            moved, more = moved + n, n > 0
    return moved


def _move_some(core: Core, task_id: int, pace: Pace) -> int:
    """Move some jobs of an ended task, of those that its numbers include already; how many.

    They are read before the transaction, which then only has to see that nothing has changed meanwhile.
    """
    with core.database.reading():
        query = Job.select().where(Job.task == task_id, Job.ended_at.is_null(False), Job.counted)
        jobs = list(query.order_by(Job.job_nr).limit(pace.rows))
        before = _marks([job.id for job in jobs])
        rows = [
            (
                job.id,
                job.task_id,
                job.job_nr,
                job.state,
                job.attempt_nr,
                job.error,
                job.ended_at,
                packing.pack(view),
            )
            for job, view in zip(jobs, job_manager.details_of(jobs), strict=True)
        ]
        left = garbage.left_by(task_id, jobs)
    work = (
        functools.partial(_move, core, rows, left, before, pace) if rows else functools.partial(_end, task_id)
    )
    return core.database.write(work)


def _marks(job_ids: Sequence[int], lock: Callable[[Any], Any] = lambda query: query) -> tuple[Any, Any]:
    """What changes with every word about these jobs: a pilot may still add a log, a user may have one tried again."""
    jobs = Job.select(Job.id, Job.state, Job.changed).where(Job.id.in_(job_ids)).order_by(Job.id)
    attempts = Attempt.select(Attempt.id, Attempt.seq).where(Attempt.job.in_(job_ids)).order_by(Attempt.id)
    return list(lock(jobs).tuples()), list(lock(attempts).tuples())


def _move(
    core: Core,
    rows: Sequence[tuple[Any, ...]],
    left: Sequence[garbage.Left],
    before: tuple[Any, Any],
    pace: Pace,
) -> int:
    ids = [row[0] for row in rows]
    with pace.measured(len(rows)):
        if _marks(ids, core.database.locked) != before:
            return 0  # in the next pass
        accounting.add(core, ids)
        failure_report.add(core, rows[0][1], ids)
        garbage.note(core, left)
        # There is a row already of a job that was tried again.
        ArchivedJob.delete().where(ArchivedJob.id.in_(ids)).execute()
        ArchivedJob.insert_many(rows, ArchivedJob._meta.sorted_fields).execute()
        series.forget(ids)
        for table in (Attempt, JobEvent, JobInput):
            table.delete().where(table.job.in_(ids)).execute()
        Job.delete().where(Job.id.in_(ids)).execute()
    return len(rows)


def _end(task_id: int) -> int:
    """None is left that may be moved now; perhaps none at all."""
    Task.update(archived=True).where(
        Task.id == task_id,
        Task.ended.is_null(False),
        ~fn.EXISTS(Job.select(Job.id).where(Job.task == task_id)),
    ).execute()
    return 0


# -- what a task's view needs of it -----------------------------------------------------------------------------------------


def errors_of(task_id: int, state: str) -> dict[str, int]:
    """Archived jobs of a task that ended in this state, by error; without those that are being tried again."""
    again = Job.select(Job.id).where(Job.id == ArchivedJob.id)
    query = ArchivedJob.select(ArchivedJob.error, fn.COUNT(ArchivedJob.id)).where(
        ArchivedJob.task_id == task_id,
        ArchivedJob.error.is_null(False),
        ArchivedJob.state == state,
        ~fn.EXISTS(again),
    )
    return dict(query.group_by(ArchivedJob.error).tuples())


# -- back again -------------------------------------------------------------------------------------------------------------


def revive(jobs: Sequence[ArchivedJob]) -> None:
    """Make archived jobs hot again, in the state they are in, so that a user may have them tried again; inside `Database.write`.

    Their earlier attempts stay in the archive, and are shown before the new ones. Their budgets begin anew.
    """
    for row in jobs:
        shown = packing.unpack(row.details)
        task = Task.get_by_id(row.task_id)
        Job.insert(
            id=row.id,
            task=task.id,
            job_nr=row.job_nr,
            job_class=task.job_class_id,
            state=row.state,
            priority=shown.priority,
            attempt_nr=row.attempt_nr,
            error=row.error,
            error_detail=shown.error_detail,
            registered=_seconds(shown.created),
            changed=_seconds(shown.changed),
            ended_at=row.ended_at,
            counted=True,
        ).execute()
        inputs = [(task.id, _file_id(each), row.id) for each in shown.inputs or ()]
        if inputs:
            JobInput.insert_many(inputs, [JobInput.task, JobInput.file, JobInput.job]).execute()
    Task.update(archived=False).where(Task.id.in_({row.task_id for row in jobs})).execute()


def _file_id(view: FileView) -> int:
    return int(File.select(File.id).where(File.scope == view.scope, File.lfn == view.lfn).scalar())


def _seconds(moment: str) -> float:
    return datetime.datetime.fromisoformat(moment.replace("Z", "+00:00")).timestamp()
