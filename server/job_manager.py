"""Job and pilot metadata, and questions about jobs: those in the hot tables, and those in the archive."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from peewee import JOIN, fn

from protocol.errors import BY_NAME, PilotageError
from protocol.messages import from_wire
from protocol.messages.pilots import CacheReport, GpuKind
from protocol.messages.views import AttemptView, FileView, JobView, Page, PilotView, StateTime
from protocol.states import FINAL, HELD, Actor, JobState, PilotState
from server import catalogue
from server.job_executor import TAKEN_AWAY, lease_clock
from server.jobs import benchmarks, retrying
from server.jobs.moves import find as find
from server.jobs.places import log_url
from server.models import (
    STATE_TIMES,
    ArchivedJob,
    Attempt,
    Dataset,
    File,
    Job,
    JobEvent,
    JobInput,
    Pilot,
    Storage,
    Task,
)
from server.paging import Cursor, iso, page_of, rows_after
from server.specs import spec_of
from server.upkeep import packing


def view(job: Job | ArchivedJob) -> JobView:
    """One line about a job."""
    return _lines_of([job])[0]


def details(job: Job | ArchivedJob) -> JobView:
    """Everything about a job: its files, each attempt, and its history from the first state on."""
    return _archived(job) if isinstance(job, ArchivedJob) else details_of([job])[0]


def _archived(row: ArchivedJob) -> JobView:
    return packing.unpack(row.details)


def _lines_of(jobs: Sequence[Job | ArchivedJob]) -> list[JobView]:
    hot = [job for job in jobs if isinstance(job, Job)]
    lines = {line.job_id: line for line in _hot_lines(hot)}
    for job in jobs:
        if isinstance(job, ArchivedJob):
            lines[job.id] = dataclasses.replace(
                _archived(job), inputs=None, outputs=None, attempts=None, history=None
            )
    return [lines[job.id] for job in jobs]


def _hot_lines(jobs: Sequence[Job]) -> list[JobView]:
    tasks = {task.id: task for task in Task.select().where(Task.id.in_({job.task_id for job in jobs}))}
    ids = [job.attempt_id for job in jobs if job.attempt_id]
    attempts = {attempt.id: attempt for attempt in Attempt.select().where(Attempt.id.in_(ids))}
    return [_line(job, tasks[job.task_id], attempts.get(job.attempt_id)) for job in jobs]


def _line(job: Job, task: Task, attempt: Attempt | None) -> JobView:
    return JobView(
        job_id=job.id,
        job_nr=job.job_nr,
        task_id=job.task_id,
        task=task.name,
        state=job.state,
        resource_type=task.resource_type,
        priority=job.priority,
        attempt_nr=job.attempt_nr,
        created=iso(job.registered),
        changed=iso(job.changed),
        pilot_id=attempt.pilot_id if attempt else None,
        node=attempt.node if attempt else None,
        error=job.error,
        error_code=_code(job.error),
        error_detail=job.error_detail,
        replicate=1 if job.copies is None else spec_of(task).replicate,
    )


def _code(error: str | None) -> int | None:
    return BY_NAME[error].code if error in BY_NAME else None


def details_of(jobs: Sequence[Job]) -> list[JobView]:
    """Everything about many hot jobs, in a few questions for all of them together."""
    ids = [job.id for job in jobs]
    tries = Attempt.select(Attempt, Storage).join(Storage, JOIN.LEFT_OUTER).where(Attempt.job.in_(ids))
    attempts = _by_job(tries.order_by(Attempt.attempt_nr))
    events = _by_job(JobEvent.select().where(JobEvent.job.in_(ids)).order_by(JobEvent.id))
    inputs, outputs = _inputs(ids), _outputs(ids)
    earlier = {row.id: _archived(row) for row in ArchivedJob.select().where(ArchivedJob.id.in_(ids))}
    views = _hot_lines(jobs)
    for job, shown in zip(jobs, views, strict=True):
        before = earlier.get(job.id)
        shown.inputs, shown.outputs = inputs[job.id], outputs[job.id]
        views_of_attempts = [_attempt_view(attempt, job.task_id) for attempt in attempts[job.id]]
        shown.attempts = [*_attempts(before), *views_of_attempts]
        shown.history = _history(job, before, attempts[job.id], events[job.id])
    return views


def _attempts(before: JobView | None) -> list[AttemptView]:
    return (before.attempts or []) if before else []


def _by_job(rows: Iterable[Any]) -> dict[int, list[Any]]:
    found: dict[int, list[Any]] = defaultdict(list)
    for row in rows:
        found[row.job_id].append(row)
    return found


def _inputs(job_ids: Sequence[int]) -> dict[int, list[FileView]]:
    pairs = list(
        JobInput.select(JobInput.job, JobInput.file)
        .where(JobInput.job.in_(job_ids))
        .order_by(JobInput.file)
        .tuples()
    )
    files = _files(File.id.in_({file_id for _, file_id in pairs}))
    views = dict(zip((file.id for file in files), catalogue.file_views(files), strict=True))
    found: dict[int, list[FileView]] = defaultdict(list)
    for job_id, file_id in pairs:
        found[job_id].append(views[file_id])
    return found


def _outputs(job_ids: Sequence[int]) -> dict[int, list[FileView]]:
    found: dict[int, list[FileView]] = defaultdict(list)
    for shown in catalogue.file_views(_files(File.job_id.in_(job_ids))):
        if shown.job_id is not None:
            found[shown.job_id].append(shown)
    return found


def _files(condition: Any) -> list[File]:
    return list(File.select(File, Dataset).join(Dataset).where(condition).order_by(File.id))


def _attempt_view(attempt: Attempt, task_id: int) -> AttemptView:
    """The storage has been read with it."""
    url = attempt.storage.url if attempt.storage else ""
    return AttemptView(
        attempt_id=attempt.id,
        attempt_nr=attempt.attempt_nr,
        state=attempt.state,
        pilot_id=attempt.pilot_id,
        node=attempt.node,
        queue=attempt.queue,
        exit_code=attempt.exit_code,
        error=attempt.error,
        error_code=_code(attempt.error),
        error_detail=attempt.error_detail,
        started=iso(attempt.extracted_at),
        ended=iso(attempt.ended_at) if attempt.ended_at else None,
        log_url=None if attempt.log_size is None else log_url(url, task_id, attempt.job_id, attempt.id),
        metrics=json.loads(attempt.metrics) if attempt.metrics else None,
        benchmark=benchmarks.of(attempt),
    )


def _history(
    job: Job, before: JobView | None, attempts: Sequence[Attempt], events: Sequence[JobEvent]
) -> list[StateTime]:
    """The states in the order in which they were entered: by attempt and by the order of the states, not by clocks."""
    if before is None:
        lines = [StateTime(JobState.REGISTERED.value, iso(job.registered), 0, "task-executor")]
    else:
        lines = [*(before.history or []), *_event_lines(events, before.attempt_nr)]
    for attempt in attempts:
        lines += _attempt_lines(attempt, events)
    untold = {state.value for state in (JobState.READY, *FINAL)} - {JobState.COMPLETED.value}
    if lines[-1].state != job.state and job.state in untold:
        actor = Actor.USER if job.state == JobState.CANCELLED.value else Actor.EXECUTOR
        # READY already belongs to the attempt that comes, as it will be shown then.
        attempt_nr = job.attempt_nr + (job.state == JobState.READY.value)
        lines.append(StateTime(job.state, iso(job.changed), attempt_nr, actor.value, job.error_detail or ""))
    return lines


def _event_lines(events: Sequence[JobEvent], attempt_nr: int) -> list[StateTime]:
    return [
        StateTime(event.event, iso(event.at), event.attempt_nr, event.actor, event.detail)
        for event in events
        if event.attempt_nr == attempt_nr
    ]


def _follows_an_end(event: JobEvent) -> bool:
    """It tells what was made of the attempt that had ended."""
    return event.actor == Actor.HEALING.value or event.event == retrying.RETRIED


def _attempt_lines(attempt: Attempt, events: Sequence[JobEvent]) -> list[StateTime]:
    nr = attempt.attempt_nr
    lines = [StateTime(JobState.READY.value, iso(attempt.ready_at), nr, "task-executor")]
    for state in HELD:
        at = getattr(attempt, STATE_TIMES[state].name)
        if at is not None:
            by = "dispatcher" if state is JobState.EXTRACTED else f"pilot {attempt.pilot_id}"
            lines.append(StateTime(state.value, iso(at), nr, by))
    lines += _event_lines([event for event in events if not _follows_an_end(event)], nr)
    if attempt.ended_at is not None:
        detail = ": ".join(part for part in (attempt.error, attempt.error_detail) if part)
        by = "server" if attempt.error in TAKEN_AWAY else f"pilot {attempt.pilot_id}"
        lines.append(StateTime(attempt.state, iso(attempt.ended_at), nr, by, detail))
    return lines + _event_lines([event for event in events if _follows_an_end(event)], nr)


def jobs(cursor: Cursor, task: int | None = None, state: str = "", error: str = "") -> Page:
    """A page of jobs by their numbers, out of the hot tables and the archive."""
    hot = Job.select()
    # A job that is tried again is in both.
    archived = ArchivedJob.select().where(~fn.EXISTS(Job.select(Job.id).where(Job.id == ArchivedJob.id)))
    if task is not None:
        hot, archived = hot.where(Job.task == task), archived.where(ArchivedJob.task_id == task)
    if state:
        hot, archived = hot.where(Job.state == state), archived.where(ArchivedJob.state == state)
    if error:
        hot, archived = hot.where(Job.error == error), archived.where(ArchivedJob.error == error)
    total = hot.count() + archived.count()
    # In this order, as in `find`: one that is archived meanwhile is seen twice then, but never not at all.
    found: dict[int, Job | ArchivedJob] = {job.id: job for job in rows_after(hot, Job.id, cursor)}
    for row in rows_after(archived, ArchivedJob.id, cursor):
        found.setdefault(row.id, row)
    ids = sorted(found, reverse=cursor.descending)
    shown = [found[job_id] for job_id in ids[: cursor.limit]]
    more = len(ids) > cursor.limit
    return Page(items=_lines_of(shown), total=total, next_cursor=shown[-1].id if more else None)


# -- pilots -----------------------------------------------------------------------------------------------------------------


def pilot_view(pilot: Pilot) -> PilotView:
    ended = pilot.ended is not None
    state = (
        PilotState.ENDED
        if ended
        else PilotState.SILENT
        if pilot.lease_until < lease_clock()
        else PilotState.ALIVE
    )
    held = Attempt.select().where(Attempt.pilot_id == pilot.pilot_id, Attempt.ended_at.is_null()).count()
    return PilotView(
        pilot_id=pilot.pilot_id,
        state=state.value,
        node=pilot.node,
        queue=pilot.queue_id,
        site=pilot.queue.site_id,
        resource_type=pilot.queue.resource_type,
        version=pilot.version,
        slots=pilot.slots,
        cores=pilot.cores,
        memory_mb=pilot.memory_mb,
        gpus=pilot.gpus,
        n_held=held,
        n_done=pilot.n_done,
        first_seen=iso(pilot.first_seen),
        last_seen=iso(pilot.last_seen),
        exit_code=pilot.exit_code,
        reason=pilot.reason,
        draining=pilot.draining,
        updating=pilot.updating,
        batch_system=pilot.batch_system,
        batch_id=pilot.batch_id,
        gpu_kinds=[from_wire(GpuKind, each) for each in json.loads(pilot.gpu_kinds)],
        benchmark=benchmarks.of(pilot),
        cache=from_wire(CacheReport, json.loads(pilot.cache)) if pilot.cache else None,
    )


def pilot(pilot_id: str) -> PilotView:
    row = Pilot.get_or_none(Pilot.pilot_id == pilot_id)
    if row is None:
        raise PilotageError("NOT_FOUND", f"no pilot {pilot_id[:200]}; see 'pilotage pilot list'")
    return pilot_view(row)


def pilots(cursor: Cursor, queue: str = "", state: str = "") -> Page:
    query = Pilot.select()
    if queue:
        query = query.where(Pilot.queue == queue)
    if state == PilotState.ENDED.value:
        query = query.where(Pilot.ended.is_null(False))
    elif state == PilotState.ALIVE.value:
        query = query.where(Pilot.ended.is_null(), Pilot.lease_until >= lease_clock())
    elif state == PilotState.SILENT.value:
        query = query.where(Pilot.ended.is_null(), Pilot.lease_until < lease_clock())
    return page_of(query, Pilot.number, cursor, pilot_view)
