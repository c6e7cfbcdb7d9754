"""Worker nodes on which jobs die within seconds, one after the other (black holes): held back, and put aside when it is clear."""

from __future__ import annotations

import logging

from protocol.errors import Blame
from protocol.states import HELD, JobState
from server.core import Core
from server.leaseclock import lease_clock
from server.models import Attempt, Job, Node, Pilot, now

logger = logging.getLogger(__name__)

HELD_BACK = "held"
"""The state of a suspect, in what users see; the others are those of queues."""
QUICK_SECONDS = 10.0
"""A job that fails sooner after it was handed out has failed at once."""
FAR = 50_000
"""Attempts, of all nodes, after which a quick failure begins a new row."""
HOLD_SECONDS = 60
"""A suspect gets no job for so long while other nodes of its queue show whether the jobs are at fault."""


def is_closed(core: Core, queue: str, node: str) -> bool:
    """Whether this node gets no jobs now."""

    def load() -> tuple[bool, int]:
        row = Node.get_or_none(Node.queue == queue, Node.name == node)
        return (row.set_aside is not None, row.held_until) if row else (False, 0)

    aside, held_until = core.recent.get(("node", queue, node), load)
    return aside or (held_until > 0 and held_until > lease_clock())


def note_failure(core: Core, attempt_id: int, queue: str, node: str, seconds: float, blame: Blame) -> None:
    """An attempt has failed `seconds` after it was handed out; inside `Database.write`."""
    if seconds > QUICK_SECONDS or blame is Blame.USER or not node:
        return
    row = core.database.locked(Node.select().where(Node.queue == queue, Node.name == node)).first()
    if row is None:
        row = Node.create(queue=queue, name=node, first_attempt_id=attempt_id)
    in_a_row = row.quick_failures + 1
    first = row.first_attempt_id
    # So far apart they are not in a row; and what lies in between is never read for it.
    if in_a_row > 1 and (attempt_id - first > FAR or _has_done_well(queue, node, first)):
        in_a_row, first = 1, attempt_id
    changes: dict[str, object] = {"quick_failures": in_a_row, "first_attempt_id": first}
    if in_a_row >= core.limits.black_hole_failures and row.set_aside is None:
        changes |= _verdict(queue, node, first, in_a_row, blame)
        core.recent.forget()
    Node.update(**changes).where(Node.queue == queue, Node.name == node).execute()


def _has_done_well(queue: str, node: str, since: int) -> bool:
    """Whether an attempt on this node has got further than a quick failure since."""
    good = (Attempt.state == JobState.COMPLETED.value) | (
        Attempt.ended_at.is_null(False) & (Attempt.ended_at - Attempt.extracted_at > QUICK_SECONDS)
    )
    query = Attempt.select().where(Attempt.id >= since, Attempt.queue == queue, Attempt.node == node, good)
    return bool(query.exists())


def _verdict(queue: str, node: str, since: int, n: int, blame: Blame) -> dict[str, object]:
    """What to do with a node after so many failures in a row.

    Where the payload is blamed, it is the node's fault only if other nodes do the same tasks well; while that is not known it
    is held, and a node that is the only one goes on: then there is nothing to lose jobs from.
    """
    reason = f"{n} jobs in a row failed within {QUICK_SECONDS:.0f} s"
    own_fault = blame in (Blame.NODE, Blame.SITE, Blame.PILOT)
    if own_fault or _others_do_well(queue, node, since):
        logger.warning("a node is put aside", extra={"queue": queue, "node": node, "reason": reason})
        return {"set_aside": now(), "reason": reason}
    alone = not (
        Pilot.select()
        .where(
            Pilot.queue == queue,
            Pilot.node != node,
            Pilot.ended.is_null(),
            Pilot.lease_until >= lease_clock(),
        )
        .exists()
    )
    if alone:
        return {}
    return {"held_until": lease_clock() + HOLD_SECONDS, "reason": f"{reason}; held back for {HOLD_SECONDS} s"}


def _others_do_well(queue: str, node: str, since: int) -> bool:
    """Whether other nodes completed jobs of the tasks that failed here since then."""
    failed_here = (
        Attempt.select(Job.task)
        .join(Job)
        .where(
            Attempt.id >= since, Attempt.queue == queue, Attempt.node == node, Attempt.ended_at.is_null(False)
        )
    )
    well = (
        Attempt.select()
        .join(Job)
        .where(
            Attempt.id >= since,
            Attempt.node != node,
            Attempt.state.in_(
                [JobState.COMPLETED.value, *(state.value for state in HELD[HELD.index(JobState.FINISHED) :])]
            ),
            Job.task.in_(failed_here),
        )
    )
    return bool(well.exists())
