"""Leases: a pilot's heartbeat renews them; the job of an attempt whose lease ran out may be claimed again."""

from __future__ import annotations

import functools
import json
import time
from itertools import islice
from typing import Any

from protocol.errors import PilotageError
from protocol.messages import to_wire
from protocol.messages.pilots import Command, Heartbeat, UpdateReply
from protocol.states import HELD, Actor, JobState
from server.access import tokens
from server.core import Core
from server.database import Chain, Part, Rows
from server.jobs import copies, debugging, moves, series, statements
from server.jobs.moves import reply
from server.jobs.statements import PAYLOAD_STATES
from server.leaseclock import lease_clock
from server.models import Attempt, Job, Pilot, now
from server.pace import Pace
from server.recent import pilot_facts, queue_facts, task_facts

EXPIRE_CHUNK = 25
"""Attempts whose lease ran out in one transaction."""
MOST_OVERDUE = 5_000
"""Such attempts looked at in one go."""
PROMOTE_SECONDS = 1.0
"""How long one pass lets jobs back into the queue; the next one goes on."""

# -- heartbeats -------------------------------------------------------------------------------------------------------------


def heartbeat(core: Core, word: Heartbeat) -> list[UpdateReply]:
    """Renew the leases of all attempts that a living pilot names; each answer says whether it still holds that one.

    An attempt that it leaves out twice in a row loses its lease: the pilot does not know of it any more.
    """
    with core.database.reading():
        return _heartbeat(core, word)


def _heartbeat(core: Core, word: Heartbeat) -> list[UpdateReply]:
    pilot = pilot_facts(core.database, core.recent, word.pilot_id)
    if pilot is None:
        core.recent.forget()
        raise PilotageError(
            "NOT_FOUND", f"no pilot {word.pilot_id} is registered; a pilot's first word is registerPilot"
        )
    queue = queue_facts(core.recent, pilot.queue)
    genuine: dict[int, str] = {}
    words, reports = [], []
    for held in word.attempts:
        moves.check_metrics(held.metrics)
        nonce = tokens.nonce_in(core.key, held.attempt_id, held.attempt_token)
        if nonce is not None and held.attempt_id not in genuine:
            genuine[held.attempt_id] = nonce
            words.append((held.attempt_id, nonce, None if held.metrics is None else json.dumps(held.metrics)))
            if held.debug is not None:
                reports.append((held.attempt_id, held.debug))
    values = {
        "pilot_id": word.pilot_id,
        "lease_seconds": queue.lease_seconds if queue else core.limits.lease_seconds,
        "now": now(),
    }
    renewed = core.database.write(
        lambda: core.database.run(statements.RENEW, words=sorted(words), **values), atomic=False
    )
    if word.cache is not None:
        told = json.dumps(to_wire(word.cache))
        core.database.write(
            lambda: Pilot.update(cache=told).where(Pilot.pilot_id == word.pilot_id).execute(), atomic=False
        )
    states = {attempt_id: state for attempt_id, _, state in renewed}
    if core.limits.metrics_seconds:
        for held in word.attempts:
            if held.metrics and held.attempt_id in states:
                core.series.offer(held.attempt_id, held.metrics, core.limits.metrics_seconds)
        series.keep(core.database, core.series)
    debugging.take(core, [each for each in reports if each[0] in states])
    orders = debugging.orders(core)
    return [
        _still_held(held.attempt_id, states[held.attempt_id], orders.get(held.attempt_id))
        if held.attempt_id in states
        else _not_held(held.attempt_id, genuine.get(held.attempt_id))
        for held in word.attempts
    ]


def _still_held(attempt_id: int, state: str, order: debugging.Order | None) -> UpdateReply:
    if order is None:
        return UpdateReply(attempt_id, state)
    return UpdateReply(attempt_id, state, debug=order.debug, soft_stop=order.soft_stop or None)


def _not_held(attempt_id: int, nonce: str | None) -> UpdateReply:
    """The answer about an attempt that was not renewed: its pilot has ended it itself, or it is to stop."""
    attempt = Attempt.get_or_none(Attempt.id == attempt_id, Attempt.nonce == nonce) if nonce else None
    return reply(attempt) if attempt else UpdateReply(attempt_id, "", Command.STOP)


# -- the reaper's work ------------------------------------------------------------------------------------------------------


def expire(core: Core) -> int:
    """Make the jobs of attempts whose lease ran out claimable again, some at a time; how many there were.

    The old attempt stays valid until somebody claims the job, so a late word before that keeps it; only a job whose budget
    this loss would overdraw ends here.
    """
    with core.database.reading():
        overdue = list(_overdue(Attempt.id, Job.copies.is_null(False)).limit(MOST_OVERDUE).tuples())
    expired: list[int] = []
    ordinary = [attempt_id for attempt_id, copied in overdue if not copied]
    pace = Pace(first=5, most=EXPIRE_CHUNK, seconds=core.database.bulk_seconds, least=1)
    rest = iter(ordinary)
    while chunk := list(islice(rest, pace.rows)):
        expired += core.database.write(functools.partial(_expire_chunk, core, chunk, pace))
    for attempt_id in [attempt_id for attempt_id, copied in overdue if copied]:
        expired += core.database.write(functools.partial(_expire_copy, core, attempt_id))
    moves.tell_ready(core, expired)
    return len(expired)


def _expire_chunk(core: Core, attempt_ids: list[int], pace: Pace) -> list[int]:
    """The jobs of those of these attempts that are overdue still and that no other transaction has in its hands."""
    with pace.measured(len(attempt_ids)):
        expired = list(
            core.database.skip_locked(_overdue(Attempt).where(Attempt.id.in_(attempt_ids)), Job, Attempt)
        )
        for attempt in expired:
            _expire(core, attempt, Job.get_by_id(attempt.job_id))
    return [attempt.job_id for attempt in expired]


def _expire_copy(core: Core, attempt_id: int) -> list[int]:
    """The job of an attempt that may have rivals; while one of them lives, its end is no loss to the job."""
    job = copies.locked(core, attempt_id)
    attempt = _overdue(Attempt).where(Attempt.id == attempt_id).first()
    if job is None or attempt is None:
        return []
    _expire(core, attempt, job)
    return [job.id]


def _overdue(*columns: Any) -> Any:
    """Attempts whose lease has run out, and which hold their job or are copies of it."""
    return (
        Attempt.select(*columns)
        .join(Job)
        .where(
            (Job.attempt_id == Attempt.id) | Job.copies.is_null(False),
            Attempt.ended_at.is_null(),
            Attempt.lease_until < lease_clock(),
            Job.state.in_(moves.names(HELD)),
        )
    )


def _expire(core: Core, attempt: Attempt, job: Job) -> None:
    loss = "NOT_ACKNOWLEDGED" if attempt.state == JobState.EXTRACTED.value else "LOST_HEARTBEAT"
    silent = f"pilot {attempt.pilot_id} was silent in {attempt.state}"
    moves.event(attempt.job_id, attempt.attempt_nr, Actor.REAPER, loss, silent)
    if job.copies is not None and copies.goes_on(job, without=attempt.id):
        _end(attempt, loss, f"{silent}; another copy of the job goes on")
        return
    verdict = _verdict(core, job, attempt)
    if verdict is None:
        queue = queue_facts(core.recent, attempt.queue)
        delay = queue.requeue_delay_seconds if queue else 0
        back = moves.back_in_queue(core, delay)
        again = copies.after_the_first(task_facts(core.recent, job.task_id).spec)
        moves.set_job(job.id, attempt.id, JobState.READY, Actor.REAPER, loss=loss, copies=again, **back)
        return
    detail = f"the last attempt, {attempt.attempt_nr}, ended with {loss} on node {attempt.node} (pilot {attempt.pilot_id})"
    charge = (
        {"unacknowledged": job.unacknowledged + 1}
        if loss == "NOT_ACKNOWLEDGED"
        else {"losses": job.losses + 1}
    )
    moves.set_job(
        job.id, attempt.id, JobState.FAILED, Actor.REAPER, error=verdict, error_detail=detail, **charge
    )
    _end(attempt, loss, detail)


def _end(attempt: Attempt, loss: str, detail: str) -> None:
    Attempt.update(state=JobState.FAILED.value, ended_at=now(), error=loss, error_detail=detail).where(
        Attempt.id == attempt.id, Attempt.ended_at.is_null()
    ).execute()


def _verdict(core: Core, job: Job, attempt: Attempt) -> str | None:
    """The error with which this loss ends the job, if it spends a budget."""
    if attempt.state == JobState.EXTRACTED.value:
        return "NEVER_ACKNOWLEDGED" if job.unacknowledged + 1 >= core.limits.unacknowledged else None
    if JobState(attempt.state) in PAYLOAD_STATES and job.kills + 1 >= core.limits.killed_pilots:
        return "KILLS_PILOTS"
    spent = job.losses + 1 > task_facts(core.recent, job.task_id).spec.max_losses
    return "INFRASTRUCTURE_BUDGET_SPENT" if spent else None


PROMOTE = Chain(
    Rows("due", {"id": "bigint", "number": "bigint"}),
    Part(
        "promoted",
        """UPDATE job SET ready_after = NULL,
               ready_nr = CASE WHEN EXISTS (SELECT 1 FROM task WHERE task.id = job.task_id AND task.paused)
                   THEN NULL ELSE due.number END
           FROM due WHERE job.id = due.id AND job.ready_after IS NOT NULL
           RETURNING job.id""",
        {"id": "bigint"},
    ),
    result="promoted",
    bulk=True,
)
"""Jobs whose pause is over enter the queue; those of a paused task wait outside of it."""


def promote(core: Core, seconds: float = PROMOTE_SECONDS) -> int:
    """Make READY jobs claimable whose pause before a retry is over, for so long; how many there were."""
    pace = Pace(seconds=core.database.bulk_seconds)
    deadline = time.monotonic() + seconds
    total = 0
    while time.monotonic() < deadline:
        n_wanted = pace.rows
        promoted = core.database.write(functools.partial(_promote, core, pace))
        moves.tell_ready(core, promoted)
        total += len(promoted)
        if len(promoted) < n_wanted:
            break
    return total


def _promote(core: Core, pace: Pace) -> list[int]:
    """Inside `Database.write`."""
    due = Job.select(Job.id).where(Job.ready_after <= lease_clock())
    ids = [job_id for (job_id,) in due.order_by(Job.ready_after).limit(pace.rows).tuples()]
    if not ids:
        return []
    with pace.measured(len(ids)):
        numbers = core.database.next_numbers(moves.READY_NUMBERS, len(ids))
        rows = list(zip(ids, numbers, strict=True))
        return [job_id for (job_id,) in core.database.run(PROMOTE, due=rows)]
