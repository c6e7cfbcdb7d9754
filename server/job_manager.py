"""Job and pilot metadata, and questions about jobs."""

from __future__ import annotations

import json

from protocol.errors import BY_NAME, PilotageError
from protocol.messages import AttemptView, FileView, JobView, Page, PilotView, StateTime
from protocol.states import FINAL, HELD, Actor, JobState, PilotState
from server import catalogue
from server.job_executor import TAKEN_AWAY, lease_clock
from server.models import STATE_TIMES, Attempt, Dataset, File, Job, JobEvent, JobInput, Pilot, Task
from server.paging import Cursor, iso, page_of


def find(job_id: int) -> Job:
    job = Job.get_or_none(Job.id == job_id)
    if job is None:
        raise PilotageError("NOT_FOUND", f"no job {job_id}; see 'pilotage job list'")
    return job


def view(job: Job) -> JobView:
    """One line about a job."""
    attempt = Attempt.get_or_none(Attempt.id == job.attempt_id) if job.attempt_id else None
    return JobView(
        job_id=job.id,
        job_nr=job.job_nr,
        task_id=job.task_id,
        task=job.task.name,
        state=job.state,
        resource_type=job.task.resource_type,
        priority=job.priority,
        attempt_nr=job.attempt_nr,
        created=iso(job.registered),
        changed=iso(job.changed),
        pilot_id=attempt.pilot_id if attempt else None,
        node=attempt.node if attempt else None,
        error=job.error,
        error_code=_code(job.error),
        error_detail=job.error_detail,
    )


def _code(error: str | None) -> int | None:
    return BY_NAME[error].code if error in BY_NAME else None


def details(job: Job) -> JobView:
    """Everything about a job: its files, each attempt, and its history from the first state on."""
    shown = view(job)
    attempts = list(Attempt.select().where(Attempt.job == job.id).order_by(Attempt.attempt_nr))
    shown.inputs = _inputs(job)
    shown.outputs = [catalogue.file_view(row) for row in _output_rows(job)]
    shown.attempts = [attempt_view(attempt) for attempt in attempts]
    shown.history = _history(job, attempts)
    return shown


def _inputs(job: Job) -> list[FileView]:
    rows = (
        File.select(File, Dataset)
        .join(JobInput, on=(JobInput.file == File.id))
        .switch(File)
        .join(Dataset)
        .where(JobInput.job == job.id)
    )
    return [catalogue.file_view(row) for row in rows.order_by(File.id)]


def _output_rows(job: Job) -> list[File]:
    return list(File.select(File, Dataset).join(Dataset).where(File.job_id == job.id).order_by(File.id))


def attempt_view(attempt: Attempt) -> AttemptView:
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
        log_url=attempt.log_url if attempt.log_size is not None else None,
        metrics=json.loads(attempt.metrics) if attempt.metrics else None,
    )


def _history(job: Job, attempts: list[Attempt]) -> list[StateTime]:
    """The states in the order in which they were entered: by attempt and by the order of the states, not by clocks."""
    lines = [StateTime(JobState.REGISTERED.value, iso(job.registered), 0, "task-executor")]
    for attempt in attempts:
        lines.append(
            StateTime(JobState.READY.value, iso(attempt.ready_at), attempt.attempt_nr, "task-executor")
        )
        for state in HELD:
            at = getattr(attempt, STATE_TIMES[state].name)
            if at is not None:
                by = "dispatcher" if state is JobState.EXTRACTED else f"pilot {attempt.pilot_id}"
                lines.append(StateTime(state.value, iso(at), attempt.attempt_nr, by))
        lines += [
            StateTime(event.event, iso(event.at), event.attempt_nr, event.actor, event.detail)
            for event in JobEvent.select()
            .where(JobEvent.job == job.id, JobEvent.attempt_nr == attempt.attempt_nr)
            .order_by(JobEvent.id)
        ]
        if attempt.ended_at is not None:
            detail = ": ".join(part for part in (attempt.error, attempt.error_detail) if part)
            lines.append(
                StateTime(
                    attempt.state,
                    iso(attempt.ended_at),
                    attempt.attempt_nr,
                    "server" if attempt.error in TAKEN_AWAY else f"pilot {attempt.pilot_id}",
                    detail,
                )
            )
    if lines[-1].state != job.state and job.state in {state.value for state in (JobState.READY, *FINAL)}:
        actor = Actor.USER if job.state == JobState.CANCELLED.value else Actor.EXECUTOR
        # READY already belongs to the attempt that comes, as it will be shown then.
        attempt_nr = job.attempt_nr + (job.state == JobState.READY.value)
        lines.append(StateTime(job.state, iso(job.changed), attempt_nr, actor.value, job.error_detail or ""))
    return lines


def jobs(cursor: Cursor, task: int | None = None, state: str = "", error: str = "") -> Page:
    query = Job.select(Job, Task).join(Task)
    if task is not None:
        query = query.where(Job.task == task)
    if state:
        query = query.where(Job.state == state)
    if error:
        query = query.where(Job.error == error)
    return page_of(query, Job.id, cursor, view)


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
