"""What every change of a job's state is made of: the guarded move of a job's row, entering and leaving the queue, the event."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from peewee import Case, fn

from protocol.errors import PilotageError, shorten
from protocol.messages.pilots import Command, UpdateReply
from protocol.states import FINAL, Actor, JobState, sources
from server.core import Core
from server.leaseclock import lease_clock
from server.models import ArchivedJob, Attempt, Job, JobEvent, Task, now
from server.waiting import news

READY_NUMBERS = "ready_nr"
"""The sequence that orders jobs of a class and priority by when they became READY."""
LONGEST_PAUSE_SECONDS = 600
LONGEST_METRIC_NAME = 100
TAKEN_AWAY = frozenset({"LOST_HEARTBEAT", "NOT_ACKNOWLEDGED", "CANCELLED_BY_USER", "ANOTHER_COPY_WON"})
"""The errors of attempts that the server took from their pilots; no pilot reports one itself."""


def find(job_id: int) -> Job | ArchivedJob:
    """A job, hot or archived; NOT_FOUND if there is none of this number."""
    # In this order: meanwhile a job may go into the archive, but none comes out that a user does not wait for.
    job = Job.get_or_none(Job.id == job_id) or ArchivedJob.get_or_none(ArchivedJob.id == job_id)
    if job is None:
        raise PilotageError("NOT_FOUND", f"no job {job_id}; see 'pilotage job list'")
    return job


def names(states: Iterable[JobState]) -> list[str]:
    return [state.value for state in states]


def set_job(job_id: int, attempt_id: int, target: JobState, actor: Actor, **changes: object) -> None:
    """Move the job that this attempt holds; STALE_ATTEMPT, and the transaction is undone, if it holds it no more."""
    changes = {"ready_nr": None, "ready_after": None, "loss": None, **changes}
    if target in FINAL:
        changes["ended_at"] = now()
    allowed = sources(target, actor)
    if actor is Actor.PILOT:
        # A lease that ran out leaves the job to its pilot until somebody else claims it.
        allowed += (JobState.READY,)
    moved = (
        Job.update(state=target.value, changed=now(), **changes)
        .where(Job.id == job_id, Job.attempt_id == attempt_id, Job.state.in_(names(allowed)))
        .execute()
    )
    if not moved:
        raise PilotageError("STALE_ATTEMPT", f"attempt {attempt_id} does not hold job {job_id} any more")


def back_in_queue(core: Core, pause_seconds: int) -> dict[str, object]:
    """How a job enters READY: claimable at once, or when the lease clock has gone on by `pause_seconds`."""
    if pause_seconds:
        return {"ready_nr": None, "ready_after": lease_clock() + pause_seconds}
    return {"ready_nr": place(core.database.next_numbers(READY_NUMBERS, 1)[0]), "ready_after": None}


def place(number: int) -> Case:
    """A place in the queue; none for a job of a paused task, which waits outside of it."""
    paused = Task.select().where(Task.id == Job.task, Task.paused)
    return Case(None, [(fn.EXISTS(paused), None)], number)


def pause(core: Core, losses: int) -> int:
    """Seconds to wait before a retry that makes sense *later*: doubled with each loss, up to a bound."""
    return int(min(core.limits.retry_seconds * 2.0 ** min(max(losses - 1, 0), 20), LONGEST_PAUSE_SECONDS))


def is_taken(attempt: Attempt) -> bool:
    """Whether the server ended the attempt, and not its pilot."""
    return attempt.ended_at is not None and attempt.error in TAKEN_AWAY


def reply(attempt: Attempt) -> UpdateReply:
    """The state of an attempt now; STOP if it is not its pilot's any more, and why."""
    if is_taken(attempt):
        return UpdateReply(attempt.id, attempt.state, Command.STOP, detail=attempt.error_detail)
    return UpdateReply(attempt.id, attempt.state)


def tell_ready(core: Core, job_ids: Sequence[int]) -> None:
    """These jobs may be READY again: brokerage looks, and pilots that wait are woken; after the commit."""
    if job_ids:
        core.broker.changed()
        news.of_jobs(core, job_ids)


def check_metrics(metrics: Mapping[str, float] | None) -> None:
    for name in metrics or ():
        if len(name) > LONGEST_METRIC_NAME:
            raise PilotageError(
                "BAD_REQUEST", f"metrics: {name[:40]!a}... is longer than {LONGEST_METRIC_NAME} characters"
            )


def event(job_id: int, attempt_nr: int, actor: Actor, what: str, detail: str) -> None:
    """What happened to a job by another word than its pilot's."""
    JobEvent.create(job=job_id, attempt_nr=attempt_nr, actor=actor.value, event=what, detail=shorten(detail))
