"""Copies of a job: several attempts of it run at the same time on different nodes, and the first that completes is its outcome.

One of them *leads*: the job's row names it and mirrors its state, as it does for a job without copies. The others are its
*rivals*; when the leader ends and one of them lives, that one leads. Only the end of the last one is the job's: then budgets
are charged, and a retry has all its copies again. `Job.copies` says how many may still be handed out, and is NULL where there
never are any: there nothing in this file is needed.
"""

from __future__ import annotations

from typing import Any

from protocol.messages.requests import TaskSpec
from protocol.states import Actor, JobState
from server.core import Core
from server.jobs import moves
from server.models import Attempt, Job, now


def after_the_first(spec: TaskSpec) -> int | None:
    """How many copies may follow the one that leads; None for a task whose jobs have none, and whose ends need no look."""
    return spec.replicate - 1 if spec.replicate > 1 or spec.replicate_to else None


def running(job: Job) -> Any:
    """The attempts of a job that live."""
    return Attempt.select().where(Attempt.job == job.id, Attempt.ended_at.is_null()).order_by(Attempt.id)


def locked(core: Core, attempt_id: int) -> Job | None:
    """The job of this attempt, if it may have copies: this transaction alone then ends any of them; inside `Database.write`."""
    copied = Job.copies.is_null(False)
    job = Job.select().join(Attempt).where(Attempt.id == attempt_id, copied).first()
    if job is None:
        return None
    # In the order of a pilot's word, first attempts, then the job: so that no two wait for ever for each other.
    list(core.database.locked(running(job)))
    # A copy that is being claimed is waited for here, and seen by whatever is asked from now on.
    return core.database.locked(Job.select().where(Job.id == job.id)).first()


def win(job: Job, attempt_id: int) -> None:
    """This attempt has completed, as the first one: it is the job's outcome, and the others are taken from their pilots."""
    others = Attempt.update(
        state=JobState.CANCELLED.value,
        ended_at=now(),
        error="ANOTHER_COPY_WON",
        error_detail=f"attempt {attempt_id} of the job completed first",
    )
    others.where(Attempt.job == job.id, Attempt.ended_at.is_null()).execute()
    Job.update(attempt_id=attempt_id).where(Job.id == job.id).execute()
    moves.set_job(job.id, attempt_id, JobState.COMPLETED, Actor.PILOT, error=None, error_detail=None)


def goes_on(job: Job, without: int) -> bool:
    """Whether another copy lives than this one, which ends or has ended; if this one has led, the other does from now on."""
    rival = running(job).where(Attempt.id != without).first()
    if rival is not None and job.attempt_id == without:
        changes = Job.update(attempt_id=rival.id, state=rival.state, changed=now())
        changes.where(Job.id == job.id).execute()
    return rival is not None
