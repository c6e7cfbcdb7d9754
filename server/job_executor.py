"""Make jobs, hand them to pilots, take their updates, register outputs: every change of a job's state passes through here.

The parts stand in `jobs/`: `forming`, `claiming` (getJob), `words` (updates), `leases` (heartbeats, the reaper's
work), `copies` (of one job, at the same time), `cancelling`, `operations` (a user's retry, pause, resume), and what they share,
`moves` and `statements`. A move is one conditional UPDATE whose row count is the answer; a final state never
changes but by a user's explicit word. What a function changes it changes in one transaction, so a crash leaves all of it or
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from protocol.errors import PilotageError
from protocol.messages.pilots import AttemptUpdate, GetJobReply, GetJobRequest, UpdateReplies, UpdateReply
from server.core import Core
from server.jobs.cancelling import cancel
from server.jobs.claiming import claim
from server.jobs.forming import form
from server.jobs.leases import expire, heartbeat, promote
from server.jobs.moves import READY_NUMBERS, TAKEN_AWAY
from server.jobs.words import check_once, update, update_all
from server.leaseclock import LEASE_CLOCK, advance_lease_clock, lease_clock
from server.recent import queue_facts

__all__ = [
    "LEASE_CLOCK",
    "READY_NUMBERS",
    "TAKEN_AWAY",
    "advance_lease_clock",
    "cancel",
    "claim",
    "expire",
    "form",
    "heartbeat",
    "lease_clock",
    "next_jobs",
    "promote",
    "update",
    "update_all",
    "update_and_next",
]


WORD_SECONDS = 0.0002
"""About what the database has to do with a word: a long request is taken in several transactions."""

# -- a word and the next job ------------------------------------------------------------------------------------------------


def next_jobs(core: Core, request: GetJobRequest) -> GetJobReply:
    """The answer to getJob: jobs, or when to ask again, and why there will be none if the queue is closed."""
    jobs = claim(core, request)
    if jobs:
        return GetJobReply(jobs)
    with core.database.reading():
        queue = queue_facts(core.recent, request.queue)
    return GetJobReply([], core.limits.idle_wait_seconds, reason=queue.closed if queue else "")


def update_and_next(
    core: Core, words: Sequence[AttemptUpdate], request: GetJobRequest | None, *, if_taken: bool = False
) -> UpdateReplies:
    """Take words, and hand out the next jobs in the same round trip if they are asked for.

    The words count whatever becomes of the request: one that is wrong gets no jobs. With `if_taken` there are none if a word
    was refused: for whom the refusal is the whole answer, so that they would wait for nobody.
    """

    check_once(words)
    size = round(core.database.bulk_seconds / WORD_SECONDS)
    *parts, last = [words[start : start + size] for start in range(0, max(len(words), 1), size)]
    earlier = [answer for part in parts for answer in core.database.together(partial(_taken, core, part))]

    def work() -> UpdateReplies:
        answers = earlier + _taken(core, last)
        try:
            if request is None or (if_taken and any(answer.error for answer in answers)):
                return UpdateReplies(answers)
            return UpdateReplies(answers, next_jobs(core, request))
        except PilotageError:
            return UpdateReplies(answers, GetJobReply([], core.limits.idle_wait_seconds))

    return core.database.together(work)


def _taken(core: Core, words: Sequence[AttemptUpdate]) -> list[UpdateReply]:
    return [
        UpdateReply(word.attempt_id, "", error=answer.name, detail=answer.detail)
        if isinstance(answer, PilotageError)
        else answer
        for word, answer in zip(words, update_all(core, words), strict=True)
    ]
