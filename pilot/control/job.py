"""Job control: ask for jobs and hand them over, tell the server what becomes of them, and clean up after them.

Three threads: `get_jobs` asks, the `Reporter` says every word about an attempt (nobody else does), `finish_jobs` ends a job.
"""

from __future__ import annotations

import enum
import logging
import math
import random
import secrets
import time
from typing import Optional, Union
from weakref import WeakKeyDictionary

from pilot import control, node, workdir
from pilot.context import Context
from pilot.control.monitor import obey
from pilot.jobrun import JobRun, is_result
from pilot.outbox import Leftover
from pilot.server_client import CREDENTIALS, Backoff, is_passing
from protocol.errors import PilotageError
from protocol.messages import AttemptUpdate, GetJobReply, GetJobRequest, JobSpec
from protocol.states import JobState

logger = logging.getLogger(__name__)

IN_VAIN_SECONDS = (0.2, 5.0)
"""First and longest pause of a pilot that was told of jobs and got none."""


class Why(enum.Enum):
    """Why a pilot asks for no further job; the words go into the log and to the server."""

    LIFETIME = "its lifetime is over"
    TIMEFLOOR = "the time in which it may ask for jobs is over"
    MAX_JOBS = "it has run as many jobs as it was told to"
    IDLE = "there was no job for it"
    UNREACHABLE = "the server did not answer"
    CREDENTIALS = "the server refused the pilot's token"
    UNFIT = "the node is not fit for work any more"
    REFUSED = "the server refused the request for a job"
    DRAINED = "it was told to take no further job"
    STOPPED = "it was told to end"


# -- asking -----------------------------------------------------------------------------------------------------------------


class Asking:
    """Asks for a job for each free slot, until there is a reason to stop; then `why` says which."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._backoff = _backoff(context)
        self._waiting = context.client.waiting()
        for end in (context.stop, context.drain):
            end.then(self._waiting.end)
        self._idle_polls = 0
        self._is_woken = False
        self._in_vain = Backoff(*IN_VAIN_SECONDS)
        self._task_id: Optional[int] = None
        self._last_work = time.monotonic()
        self._failing_since: Optional[float] = None
        self.obtained = 0
        self.why: Optional[Why] = None
        self.detail = ""

    def run(self) -> None:
        for _ in self._context.channels.free:
            job = self._next_job()
            if job is None:
                break
            self._hand_over(job)
        self.why = self.why or Why.STOPPED
        logger.info("no further job is asked for", extra={"reason": self.why.value, "detail": self.detail})

    def _next_job(self) -> Optional[JobSpec]:
        """Ask until there is a job or a reason to stop. Each request has an id of its own, and keeps it when it is repeated."""
        request: Optional[GetJobRequest] = None
        while not self._is_through():
            try:
                if request is None:
                    request = self._request()
                reply = self._context.client.get_job(request)
            except PilotageError as error:
                if not self._bear(error):
                    return None
                continue
            self._backoff.reset()
            self._failing_since = None
            if reply.jobs:
                self._is_idle_no_more()
                return reply.jobs[0]
            request = None
            if reply.drain:
                self.why = Why.DRAINED
                return None
            self._wait_for_work(reply)
        return None

    def _is_through(self) -> bool:
        settings = self._context.settings
        ran = time.monotonic() - self._context.started
        floor = settings.integer("limits", "timefloor_seconds")
        most = settings.integer("limits", "max_jobs")
        if self._context.stop.is_set():
            self.why = Why.STOPPED
        elif self._context.drain.is_set():
            self.why = Why.DRAINED
        elif most and self.obtained >= most:
            self.why = Why.MAX_JOBS
        elif self._context.seconds_left() <= 0:
            self.why = Why.LIFETIME
        elif floor and ran >= floor and self.obtained:
            self.why = Why.TIMEFLOOR
        return self.why is not None

    def _request(self) -> GetJobRequest:
        context, settings = self._context, self._context.settings
        node.check_disk(context.directory.path, settings.integer("limits", "free_disk_mb"))
        offer = context.node.offer(
            context.computing_queue.name,
            settings.text("node_settings", "label"),
            context.directory.path,
            int(context.seconds_left()),
            settings.integer("node_settings", "slots"),
        )
        return GetJobRequest(
            request_id=secrets.token_hex(16),
            pilot_id=context.pilot_id,
            queue=offer.queue,
            resource_type=offer.resource_type,
            cores=offer.cores,
            memory_mb=offer.memory_mb,
            disk_mb=offer.disk_mb,
            walltime_seconds=offer.walltime_seconds,
            gpus=offer.gpus,
            site_name=settings.text("node_settings", "site"),
            node=context.node.name,
            prod_source_label=offer.label,
            working_group=settings.text("get_job", "working_group"),
            country_group=settings.text("get_job", "country_group"),
            allow_other_country=settings.flag("get_job", "allow_other_country"),
            task_id=self._task_id,
        )

    def _bear(self, error: PilotageError) -> bool:
        """Wait after a failure and go on, or say why not."""
        self.detail = error.detail
        now = time.monotonic()
        self._failing_since = self._failing_since or now
        if error.name == "NODE_UNFIT":
            self.why = Why.UNFIT
        elif error.name in CREDENTIALS:
            self.why = Why.CREDENTIALS
        elif now - self._failing_since >= self._context.settings.integer("connection", "give_up_seconds"):
            self.why = Why.UNREACHABLE
        elif is_passing(error) or self._is_unknown_pilot(error):
            wait = self._backoff.next(error)
            logger.warning(
                "no answer to getJob",
                extra={"error": error.name, "detail": error.detail, "again_in": round(wait, 1)},
            )
            self._context.stop.wait(min(wait, max(0.0, self._context.seconds_left())))
            return True
        else:
            self.why = Why.REFUSED
        logger.error("getJob failed", extra={"error": error.name, "detail": error.detail})
        return False

    def _is_unknown_pilot(self, error: PilotageError) -> bool:
        """A server that was restored from a backup may have forgotten us: then we introduce ourselves again."""
        if error.name != "NOT_FOUND":
            return False
        try:
            self._context.client.register(self._context.registration)
        except PilotageError as second:
            return is_passing(second)
        return True

    def _is_idle_no_more(self) -> None:
        self._idle_polls = 0
        self._is_woken = False
        self._in_vain.reset()
        self._waiting.close()

    def _wait_for_work(self, reply: GetJobReply) -> None:
        """Until the server tells of new jobs or it is time to ask; the pilot ends if it was without work for too long."""
        settings = self._context.settings
        idle_left = self._last_work + settings.integer("limits", "idle_seconds") - time.monotonic()
        if self._context.jobs.in_work():
            idle_left = math.inf
        if idle_left <= 0:
            self.why = Why.IDLE
            return
        most = max(0.0, min(idle_left, self._context.seconds_left()))
        if self._is_woken:
            # Woken, and others were quicker; or the job is not yet to be seen by the process that was asked. Once more.
            self._is_woken = False
            self._context.stop.wait(min(self._in_vain.next(), most))
            return
        asked = time.monotonic()
        if reply.ticket and reply.wait_url:
            self._is_woken = self._is_told_of_jobs(reply.wait_url, reply.ticket, most)
            if self._is_woken or self._context.drain.is_set():
                return
        pause = self._next_poll(reply) - (time.monotonic() - asked)
        self._context.stop.wait(max(0.0, min(pause, most)))

    def _is_told_of_jobs(self, url: str, ticket: str, most: float) -> bool:
        """Wait without asking, as the server offers; where that fails the pilot polls."""
        seconds = min(most, self._jittered(self._context.settings.number("heartbeat", "waiting_seconds")))
        try:
            told = self._waiting.wait(url, ticket, seconds)
        except PilotageError as error:
            if not self._context.stop.is_set():
                logger.info("the pilot polls", extra={"error": error.name, "detail": error.detail})
            return False
        if not told:
            self._in_vain.reset()
        return told

    def _next_poll(self, reply: GetJobReply) -> float:
        """Seconds; twice as long each time, up to a bound."""
        settings = self._context.settings
        first = reply.wait_seconds or settings.number("heartbeat", "poll_seconds")
        longest = max(first, settings.number("heartbeat", "poll_max_seconds"))
        wait = min(longest, first * 2.0 ** min(self._idle_polls, 30))
        self._idle_polls += 1
        return self._jittered(wait)

    def _jittered(self, seconds: float) -> float:
        jitter = self._context.settings.number("heartbeat", "jitter_percent") / 100
        return seconds * random.uniform(1 - jitter, 1 + jitter)

    def _hand_over(self, spec: JobSpec) -> None:
        """The job enters the pilot."""
        context = self._context
        self.obtained += 1
        self._last_work = time.monotonic()
        if context.settings.flag("get_job", "allow_same_user"):
            self._task_id = self._task_id or spec.task_id
        context.secrets.add(spec.attempt_token)
        job = JobRun(spec, context.directory.job_path(spec), context.bell.set)
        job.records = _open_log(context, job)
        context.jobs.add(job)
        try:
            control.attempt(job, "check", self._accept)
        finally:
            (context.channels.collected if job.over.is_set() else context.channels.obtained).put(job)

    def _accept(self, job: JobRun) -> None:
        """Acknowledge a job, and refuse it if the pilot has to end or the experiment says so."""
        job.enter(JobState.OBTAINED)
        if self._context.stop.error is not None:  # told to end while the answer was on its way
            raise self._context.stop.error
        self._context.plugin.check_job(job)

    def worked(self) -> None:
        """A job has ended: the pilot is idle from now on."""
        self._last_work = time.monotonic()


# -- telling ----------------------------------------------------------------------------------------------------------------


Sender = Union[JobRun, Leftover]


class Reporter:
    """Says every word about the attempts of this pilot, and delivers what dead pilots left; each until it is accepted or rejected."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._closed = False
        self._leftovers: list[Leftover] = []
        self._waits: WeakKeyDictionary[Sender, tuple[Backoff, float]] = WeakKeyDictionary()

    def run(self) -> None:
        self._leftovers = self._context.outbox.leftovers()
        while not self._closed:
            self._round()
            self._context.bell.wait(self._seconds_until_due())
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
                    server_answers = server_answers and self._say(job, word, seconds)

    def _round(self) -> None:
        for job in self._context.jobs.all():
            with job.logged():
                self._speak(job)
        for leftover in list(self._leftovers):
            self._speak(leftover)
            if leftover.is_empty():
                leftover.close()
                self._leftovers.remove(leftover)
        self._context.jobs.tidy()

    def _speak(self, sender: Sender) -> None:
        """All that is due, in order; a word without answer holds back those after it."""
        while True:
            words = sender.words()
            for word in words:
                if is_result(word) and isinstance(sender, JobRun):
                    self._context.outbox.keep(word)
            if not words or not self._is_time(sender, words):
                return
            if not self._say(sender, words[0]):
                self._tried(sender, words)
                return

    def _is_time(self, sender: Sender, words: list[AttemptUpdate]) -> bool:
        """After a failure not before its wait is over; but a result that was not tried yet is tried at once."""
        _, until = self._waits.get(sender) or (None, 0.0)
        fresh = isinstance(sender, JobRun) and is_result(words[-1]) and not sender.told.is_set()
        return fresh or time.monotonic() >= until

    def _say(self, sender: Sender, word: AttemptUpdate, seconds: Optional[float] = None) -> bool:
        """One try; False if it is to be repeated later."""
        try:
            reply = self._context.client.update(word, seconds)
        except PilotageError as error:
            # Only our server's own word rejects a result: a page of something between us and it may pass.
            if is_passing(error) or not error.fields.get("ours"):
                self._wait_after(sender, error)
                return False
            self._context.outbox.drop(word)
            sender.refused(word, error)
        else:
            self._context.outbox.drop(word)
            sender.answered(word, reply.state)
            if isinstance(sender, JobRun):
                obey(sender, reply)
        self._tried(sender, [word])
        self._waits.pop(sender, None)
        return True

    def _wait_after(self, sender: Sender, error: PilotageError) -> None:
        backoff, _ = self._waits.get(sender) or (_backoff(self._context), 0.0)
        wait = backoff.next(error)
        self._waits[sender] = (backoff, time.monotonic() + wait)
        logger.warning(
            "no answer to updateJob",
            extra={"error": error.name, "detail": error.detail, "again_in": round(wait, 1)},
        )

    def _tried(self, sender: Sender, words: list[AttemptUpdate]) -> None:
        """A result that was tried, or held back by a word that was, keeps its job's slot no longer."""
        if isinstance(sender, JobRun) and any(map(is_result, words)):
            sender.told.set()

    def _seconds_until_due(self) -> Optional[float]:
        """Until somebody has something to say without having rung; None if nobody has."""
        now = time.monotonic()
        senders: list[Sender] = [*self._context.jobs.all(), *self._leftovers]
        waits = [self._waits[sender][1] - now for sender in senders if sender in self._waits]
        due = min([*(sender.seconds_until_due() for sender in senders), *waits], default=math.inf)
        return None if due == math.inf else max(0.0, due)


def _backoff(context: Context) -> Backoff:
    settings = context.settings
    return Backoff(
        settings.number("connection", "backoff_seconds"), settings.number("connection", "backoff_max_seconds")
    )


# -- ending -----------------------------------------------------------------------------------------------------------------


def finish_jobs(context: Context, asking: Asking) -> None:
    """When the end of a job was told once, remove its directory and free its slot; what got no answer is in the outbox."""
    for job in context.channels.ended:
        with job.logged():
            job.leave()
            job.told.wait()
            context.directory.remove_job(job.directory)
            context.secrets.discard(job.spec.attempt_token)
            _close_log(job)
        asking.worked()
        context.channels.free.put(None)
        context.jobs.tidy()


def _open_log(context: Context, job: JobRun) -> Optional[logging.Handler]:
    """From now on the records about this job are also kept for its log archive."""
    try:
        records = workdir.JobLog(workdir.log_path(job.directory), job.spec.attempt_id, context.secrets)
    except OSError as error:
        logger.warning("the job's own log cannot be written", extra={"reason": str(error)})
        return None
    logging.getLogger().addHandler(records)
    return records


def _close_log(job: JobRun) -> None:
    if job.records is not None:
        logging.getLogger().removeHandler(job.records)
        job.records.close()
