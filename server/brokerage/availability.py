"""Queues that fail too often are put to the test by the server itself, and come back when they work again.

Only attempts that failed by the fault of node, site or storage speak against a queue. What an operator has closed by hand
stays as it is; one that an operator has opened is judged by what came after that.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from peewee import fn

from protocol.errors import BY_NAME, Blame
from protocol.states import JobState, QueueState
from server.access import trail
from server.core import Core
from server.models import Attempt, Job, JobClass, Queue
from server.waiting import wake

logger = logging.getLogger(__name__)

SERVER = "server"
"""Who it is in the trail of administrative actions that changed a queue."""
AGAINST_THE_QUEUE = frozenset({Blame.NODE, Blame.SITE, Blame.STORAGE})
WINDOW = 20_000
"""The queues are judged by so many of the installation's last attempts: a pass costs the same whatever the history."""


@dataclass(frozen=True)
class Outcome:
    """What an attempt came to: whether its job completed, and the error that speaks against its queue, if one does."""

    attempt_id: int
    completed: bool
    fault: str | None


def run_once(core: Core) -> int:
    """One pass over all queues; how many were changed."""
    with core.database.reading():
        outcomes = _outcomes(max(core.limits.judged_attempts, core.limits.test_successes))
        judged = [
            queue
            for queue in Queue.select().where(Queue.name.in_(list(outcomes)))
            if queue.state == QueueState.ONLINE.value
            or (queue.state == QueueState.TEST.value and queue.state_by == SERVER)
        ]
    changed = 0
    for queue in judged:
        latest = [each for each in outcomes[queue.name] if each.attempt_id > queue.state_attempt_id]
        verdict = (
            _too_many_faults(core, latest) if queue.state == QueueState.ONLINE.value else _works(core, latest)
        )
        if verdict is not None:
            changed += _change(core, queue, *verdict)
    return changed


def _outcomes(most: int) -> dict[str, list[Outcome]]:
    """The last outcomes of each queue that has any in the window, the latest first; attempts that a user ended say nothing."""
    latest = Attempt.select(fn.MAX(Attempt.id)).scalar() or 0
    rows = (
        Attempt.select(Attempt.queue, Attempt.id, Attempt.state, Attempt.error)
        .where(
            Attempt.id > latest - WINDOW,
            Attempt.ended_at.is_null(False),
            Attempt.state != JobState.CANCELLED.value,
        )
        .order_by(Attempt.id.desc())
        .tuples()
    )
    found: defaultdict[str, list[Outcome]] = defaultdict(list)
    for queue, attempt_id, state, error in rows:
        if len(found[queue]) < most:
            speaks = error in BY_NAME and BY_NAME[error].suspect in AGAINST_THE_QUEUE
            completed = state == JobState.COMPLETED.value
            found[queue].append(Outcome(attempt_id, completed, error if speaks and not completed else None))
    return found


def _too_many_faults(core: Core, latest: list[Outcome]) -> tuple[QueueState, str] | None:
    needed = core.limits.judged_attempts
    faults = [each.fault for each in latest[:needed] if each.fault is not None]
    if len(latest) < needed or len(faults) * 100 <= core.limits.judged_percent * needed:
        return None
    most = max(sorted(set(faults)), key=faults.count)
    return QueueState.TEST, (
        f"{len(faults)} of its last {needed} attempts failed by the fault of node, site or storage, most with {most}"
    )


def _works(core: Core, latest: list[Outcome]) -> tuple[QueueState, str] | None:
    """Jobs that complete one after the other bring a queue back. A failure of the payload alone says nothing either way."""
    needed = core.limits.test_successes
    telling = [each for each in latest if each.completed or each.fault is not None][:needed]
    if len(telling) < needed or not all(each.completed for each in telling):
        return None
    return QueueState.ONLINE, f"{needed} jobs in a row completed in the test"


def _change(core: Core, queue: Queue, state: QueueState, reason: str) -> bool:
    """Set the queue, unless somebody else has set it since it was looked at."""

    def work() -> bool:
        return set_state(queue.name, state, reason, SERVER, seen=queue)

    changed = core.database.write(work)
    if changed:
        logger.warning(
            "a queue was set by its failures",
            extra={"queue": queue.name, "state": state.value, "reason": reason},
        )
    return changed


def set_state(name: str, state: QueueState, reason: str, who: str, seen: Queue | None = None) -> bool:
    """Set a queue and leave a trail; with `seen`, only if it is still as it was seen. Inside `Database.write`."""
    condition = Queue.name == name
    if seen is not None:
        condition &= (Queue.state == seen.state) & (Queue.state_attempt_id == seen.state_attempt_id)
    latest = Attempt.select(fn.COALESCE(fn.MAX(Attempt.id), 0)).scalar()
    moved = (
        Queue.update(state=state.value, state_reason=reason, state_by=who, state_attempt_id=latest)
        .where(condition)
        .execute()
    )
    if moved:
        trail.note(who, "queue set", name, f"{state.value}: {reason}" if reason else state.value)
    return bool(moved)


def announce(core: Core, queues: Iterable[str]) -> None:
    """Wake the pilots of queues that hand out jobs again, as far as there are jobs; after the commit."""
    if core.waiting is None:
        return
    with core.database.reading():
        ready = Job.select(JobClass.key, fn.COUNT(Job.id)).join(JobClass).where(Job.ready_nr.is_null(False))
        waiting = dict(ready.group_by(JobClass.id, JobClass.key).tuples())
    for queue in queues:
        wake.poke(core, waiting, queue)
