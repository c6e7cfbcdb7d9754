"""The reporter: says every word about the attempts of this pilot to the server (nobody else does), and asks for the next job with the last one.

Words that are due at the same time go in one request. A result is in the outbox before it is sent. A word that got no answer is
said again until it is accepted or rejected; what dead pilots left in the outbox is delivered in the same way.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, Optional, Union
from weakref import WeakKeyDictionary

from pilot.context import Context
from pilot.control.job import Asking, backoff_of
from pilot.jobrun import JobRun, is_result
from pilot.outbox import Leftover
from pilot.server_client import Backoff, is_passing
from protocol.errors import BY_NAME, PilotageError
from protocol.messages.pilots import AttemptUpdate, AttemptUpdates, GetJobRequest, UpdateReplies, UpdateReply

logger = logging.getLogger(__name__)

MOST_WORDS = 100
"""In one request."""
GATHER_SECONDS = 0.01
"""So long the words of brisk jobs wait for each other: a request costs more than some of these jobs."""

Sender = Union[JobRun, Leftover]
Answer = Union[UpdateReply, PilotageError]


class Due(NamedTuple):
    """Who has something to say, and all of it; the first word goes first, alone."""

    sender: Sender
    words: Sequence[AttemptUpdate]

    @property
    def word(self) -> AttemptUpdate:
        return self.words[0]


class Next(NamedTuple):
    """A request for jobs for a slot."""

    slot: int
    request: GetJobRequest


class Reporter:
    def __init__(self, context: Context, asking: Asking) -> None:
        self._context = context
        self._asking = asking
        self._closed = False
        self._leftovers: list[Leftover] = []
        self._waits: WeakKeyDictionary[Sender, tuple[Backoff, float]] = WeakKeyDictionary()

    def run(self) -> None:
        self._leftovers = self._context.outbox.leftovers()
        while not self._closed:
            self._round()
            self._context.bell.wait(self._seconds_until_due())
            if self._asking.is_brisk and not self._closed:
                time.sleep(GATHER_SECONDS)
            self._context.bell.clear()
        for leftover in self._leftovers:
            leftover.close()

    def close(self) -> None:
        self._closed = True
        self._context.bell.set()

    def last_words(self, seconds: float) -> None:
        """Called at the end by the pilot monitor: say results that were not tried yet, also if the reporter's thread is stuck."""
        server_answers = True
        for job in self._context.jobs.all():
            for word in job.words():
                if is_result(word) and not job.told.is_set():
                    self._context.outbox.keep(word)
                    if server_answers:
                        [answer] = self._ask([Due(job, [word])], seconds=seconds)
                        server_answers = self._take(Due(job, [word]), answer)

    def _round(self) -> None:
        """All that is due; of each sender in order, and a word without answer holds back those after it."""
        senders: list[Sender] = [*self._context.jobs.all(), *self._leftovers]
        while senders:
            due = [each for sender in senders for each in [self._due(sender)] if each is not None]
            senders = []
            for start in range(0, len(due), MOST_WORDS):
                part = due[start : start + MOST_WORDS]
                answers = self._ask(part, self._next_for(part))
                senders += [each.sender for each, answer in zip(part, answers) if self._take(each, answer)]
        for leftover in list(self._leftovers):
            if leftover.is_empty():
                leftover.close()
                self._leftovers.remove(leftover)
        self._context.jobs.tidy()

    def _due(self, sender: Sender) -> Optional[Due]:
        words = sender.words()
        # A second of work is not worth the time that the disk takes: that is done again if the pilot dies before it is told.
        if isinstance(sender, JobRun) and not sender.was_brisk:
            self._keep(words)
        return Due(sender, words) if words and self._is_time(sender, words) else None

    def _keep(self, words: Sequence[AttemptUpdate]) -> None:
        for word in words:
            if is_result(word):
                self._context.outbox.keep(word)

    def _is_time(self, sender: Sender, words: Sequence[AttemptUpdate]) -> bool:
        """After a failure not before its wait is over; but a result that was not tried yet is tried at once."""
        _, until = self._waits.get(sender) or (None, 0.0)
        fresh = isinstance(sender, JobRun) and is_result(words[-1]) and not sender.told.is_set()
        return fresh or time.monotonic() >= until

    def _next_for(self, due: Sequence[Due]) -> Optional[Next]:
        """What comes after a job that ends with these words, if that is told for the first time.

        When it is told again, the slot asks by itself.
        """
        for each in due:
            job, word = each.sender, each.word
            if isinstance(job, JobRun) and word.moves and is_result(word) and not job.told.is_set():
                request = self._asking.after(job, f"{word.attempt_id}.{word.seq}")
                if request is not None:
                    return Next(job.slot, request)
        return None

    def _ask(
        self, due: Sequence[Due], wanted: Optional[Next] = None, seconds: Optional[float] = None
    ) -> list[Answer]:
        """One request with all these words; an answer for each."""
        words = [each.word for each in due]
        request = wanted.request if wanted else None
        client = self._context.client
        try:
            if len(words) == 1:
                reply = client.update(replace(words[0], next=request), seconds)
                replies = UpdateReplies([reply], reply.next)
            else:
                replies = client.update_all(AttemptUpdates(words, request), seconds)
        except PilotageError as error:
            if wanted is not None:
                self._asking.unanswered(wanted.request, wanted.slot)
            if len(words) > 1 and not is_passing(error):  # which of them is wrong?
                return [answer for each in due for answer in self._ask([each], seconds=seconds)]
            return [error] * len(words)
        if wanted is not None and replies.next is not None:
            self._asking.take(replies.next, wanted.slot)
        return [_error_in(answer) or answer for answer in replies.answers]

    def _take(self, due: Due, answer: Answer) -> bool:
        """What the server said to a word; False if it is to be repeated later."""
        sender, word = due.sender, due.word
        with sender.logged() if isinstance(sender, JobRun) else contextlib.nullcontext():
            # Only our server's own word rejects a result: a page of something between us and it may pass.
            if isinstance(answer, PilotageError) and (is_passing(answer) or not answer.fields.get("ours")):
                if isinstance(sender, JobRun):
                    self._keep(due.words)
                self._wait_after(sender, answer)
                self._tried(sender, due.words)
                return False
            self._context.outbox.drop(word)
            if isinstance(answer, PilotageError):
                sender.refused(word, answer)
            else:
                sender.answered(word, answer.state)
                if isinstance(sender, JobRun):
                    sender.obey(answer)
            if isinstance(sender, JobRun) and sender.abandoned:
                self._context.outbox.forget(word.attempt_id)
        self._tried(sender, [word])
        self._waits.pop(sender, None)
        return True

    def _wait_after(self, sender: Sender, error: PilotageError) -> None:
        backoff, _ = self._waits.get(sender) or (backoff_of(self._context), 0.0)
        wait = backoff.next(error)
        self._waits[sender] = (backoff, time.monotonic() + wait)
        logger.warning(
            "no answer to updateJob",
            extra={"error": error.name, "detail": error.detail, "again_in": round(wait, 1)},
        )

    def _tried(self, sender: Sender, words: Sequence[AttemptUpdate]) -> None:
        """A result that was tried, or held back by a word that was, keeps its job's slot no longer."""
        if isinstance(sender, JobRun) and any(map(is_result, words)):
            sender.told.set()

    def _seconds_until_due(self) -> Optional[float]:
        """Until somebody has something to say without having rung; None if nobody has."""
        now = time.monotonic()
        senders: list[Sender] = [*self._context.jobs.all(), *self._leftovers]
        waits = [
            self._waits[sender][1] - now for sender in senders if sender in self._waits and sender.words()
        ]
        due = min([*(sender.seconds_until_due() for sender in senders), *waits], default=math.inf)
        return None if due == math.inf else max(0.0, due)


def _error_in(answer: UpdateReply) -> Optional[PilotageError]:
    """In the answer to several words each may have been refused by itself."""
    if not answer.error:
        return None
    name = answer.error if answer.error in BY_NAME else "BAD_REQUEST"  # the word of a newer server
    return PilotageError(name, answer.detail or "", ours=True)
