"""Job control: ask for jobs, hand them over, and clean up after them.

A slot runs one payload at a time. Where the queue says so it holds further jobs: while one runs, the inputs of the next one are
staged and the outputs of the last one; and while payloads last less than a second, jobs are claimed ahead for a second of work.
"""

from __future__ import annotations

import enum
import logging
import random
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Optional, Union

from pilot import building, control, node, workdir
from pilot.channels import Channel, Slots
from pilot.context import Context
from pilot.control.slot import goes_all_the_way
from pilot.jobrun import BRISK_SECONDS, JobRun
from pilot.server_client import CREDENTIALS, Backoff, is_passing
from protocol.errors import PilotageError
from protocol.messages.pilots import GetJobReply, GetJobRequest, JobSpec
from protocol.states import JobState

logger = logging.getLogger(__name__)

IN_VAIN_SECONDS = (0.2, 5.0)
"""First and longest pause of a pilot that was told of jobs and got none."""
ACKNOWLEDGE_SECONDS = 0.05
"""A job that runs sooner is acknowledged by that word."""


class Why(enum.Enum):
    """Why a pilot asks for no further job; the words go into the log and to the server."""

    LIFETIME = "its lifetime is over"
    WALLTIME = "the batch job ends too soon for a further job"
    TIMEFLOOR = "the time in which it may ask for jobs is over"
    MAX_JOBS = "it has run as many jobs as it was told to"
    IDLE = "there was no job for it"
    UNREACHABLE = "the server did not answer"
    CREDENTIALS = "the server refused the pilot's token"
    UNFIT = "the node is not fit for work any more"
    REFUSED = "the server refused the request for a job"
    DRAINED = "an operator has drained it: it takes no further job"
    UPDATED = "an operator wants the server's present pilot in its place"
    STOPPED = "it was told to end"


# -- asking -----------------------------------------------------------------------------------------------------------------


class Asking:
    """Asks for jobs for each slot that has room, until there is a reason to stop; then `why` says which."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._backoff = backoff_of(context)
        self._waiting = context.client.waiting()
        for end in (context.stop, context.drain):
            end.then(self._waiting.end)
        self._idle_polls = 0
        self._is_woken = False
        self._in_vain = Backoff(*IN_VAIN_SECONDS)
        self._task_id: Optional[int] = None
        self._last_work = time.monotonic()
        self._payload_seconds: Optional[float] = None
        """How long payloads last, as the last ones did; None: none has ended yet."""
        self._failing_since: Optional[float] = None
        self._unanswered: dict[int, str] = {}
        """The request id for each slot whose request, sent with a word, got no answer: the server may have given jobs to it."""
        self._lock = threading.Lock()
        self.obtained = 0
        self.why: Optional[Why] = None
        self.detail = ""

    def run(self) -> None:
        for slot in self._context.channels.free:
            n_jobs = 0 if self._is_through() else self._room(slot)
            for job in self._next_jobs(slot, n_jobs) if n_jobs else ():
                self._hand_over(job, slot)
            if self.why is not None:
                break
        self.why = self.why or Why.STOPPED
        logger.info("no further job is asked for", extra={"reason": self.why.value, "detail": self.detail})

    def _room(self, slot: int, leaving: Optional[JobRun] = None) -> int:
        """How many jobs to ask for now for a slot; one job that is about to leave it does not count.

        Not for each of many that are claimed ahead: it is asked when half of them are gone.
        """
        held = sum(job.slot == slot and job is not leaving for job in self._context.jobs.in_work())
        most = 1 + self._ahead()
        missing = most - held
        if held and missing < (most + 1) // 2:
            return 0
        limit = self._context.settings.integer("limits", "max_jobs")
        return max(0, min(missing, limit - self.obtained) if limit else missing)

    @property
    def is_brisk(self) -> bool:
        """Payloads are so short that they are claimed ahead."""
        return self._ahead() > self._context.settings.integer("get_job", "stage_ahead")

    def _ahead(self) -> int:
        """Jobs that a slot may hold beside the one that runs."""
        settings = self._context.settings
        seconds = self._payload_seconds
        is_brisk = (
            seconds is not None
            and seconds < BRISK_SECONDS
            and not any(job.lasts for job in self._context.jobs.in_work())
        )
        brisk = int(BRISK_SECONDS / max(seconds or 0.0, 0.001)) if is_brisk else 0
        return max(
            settings.integer("get_job", "stage_ahead"), min(brisk, settings.integer("get_job", "claim_ahead"))
        )

    def after(self, job: JobRun, request_id: str) -> Optional[GetJobRequest]:
        """What to ask for in the same breath as the end of this job is told; None if its slot is not to go on, or has enough."""
        is_counted = self._context.settings.integer("limits", "max_jobs") > 0  # then only one place asks
        if is_counted or self.why is not None or self._reason_to_stop() is not None:
            return None
        n_jobs = self._room(job.slot, leaving=job)
        if not n_jobs:
            return None
        try:
            request = self._request(job.slot, n_jobs, request_id)
        except PilotageError:
            return None  # the slot will ask by itself, and see
        return replace(request, request_id=self._unanswered.pop(job.slot, request_id))

    def unanswered(self, request: GetJobRequest, slot: int) -> None:
        """The slot repeats the request when it asks by itself, lest the jobs given to it wait until their lease is over."""
        self._unanswered[slot] = request.request_id

    def take(self, reply: GetJobReply, slot: int) -> None:
        """Jobs that came with the answer to a word."""
        for spec in reply.jobs:
            self._hand_over(spec, slot)

    def _next_jobs(self, slot: int, n_jobs: int) -> Sequence[JobSpec]:
        """Ask until there are jobs or a reason to stop; but for a slot that is at work already only once.

        Each request has an id of its own, and keeps it when it is repeated.
        """
        request: Optional[GetJobRequest] = None
        while not self._is_through():
            asked = time.monotonic()
            try:
                if request is None:
                    request = self._request(slot, n_jobs, self._unanswered.pop(slot, secrets.token_hex(16)))
                reply = self._context.client.get_job(request, self._patience(asked))
            except PilotageError as error:
                if not self._bear(error, asked):
                    return ()
                continue
            self._backoff.reset()
            self._failing_since = None
            self.detail = reply.reason
            if reply.jobs:
                self._is_idle_no_more()
                return reply.jobs
            request = None
            if reply.drain:
                self.why = self._drained(reply.update)
                return ()
            if any(job.slot == slot for job in self._context.jobs.in_work()):
                return ()
            self._wait_for_work(reply)
            n_jobs = max(1, min(n_jobs, self._room(slot)))  # payloads may take longer since it began to wait
        return ()

    def _is_through(self) -> bool:
        self.why = self.why or self._reason_to_stop()
        if self.why is Why.WALLTIME:
            left = max(0.0, self._context.batch_seconds_left())
            self.detail = f"{left:.0f} s are left of it (walltime_margin_seconds)"
        return self.why is not None

    def _reason_to_stop(self) -> Optional[Why]:
        context, settings = self._context, self._context.settings
        floor = settings.integer("limits", "timefloor_seconds")
        most = settings.integer("limits", "max_jobs")
        if context.stop.is_set():
            return Why.STOPPED
        if context.drain.is_set():
            return self._drained(context.update.is_set())
        if most and self.obtained >= most:
            return Why.MAX_JOBS
        if context.seconds_left() <= settings.integer("limits", "drain_seconds"):
            return Why.LIFETIME
        if context.seconds_to_offer() <= 0:
            return Why.WALLTIME
        if floor and context.age() >= floor and self.obtained:
            return Why.TIMEFLOOR
        return None

    def _drained(self, update: bool) -> Why:
        """One that was to run some jobs and no more is not replaced: the next one would count them anew."""
        is_counted = self._context.settings.integer("limits", "max_jobs") > 0
        return Why.UPDATED if update and not is_counted else Why.DRAINED

    def _request(self, slot: int, n_jobs: int, request_id: str) -> GetJobRequest:
        context, settings = self._context, self._context.settings
        node.check_disk(context.directory.path, settings.integer("limits", "free_disk_mb"))
        offer = context.node.offer(
            context.computing_queue.name,
            settings.text("node_settings", "label"),
            context.directory.path,
            int(context.seconds_to_offer() - self._promised(slot)),
            slot,
            settings.integer("node_settings", "slots"),
        )
        return GetJobRequest(
            request_id=request_id,
            pilot_id=context.pilot_id,
            n_jobs=n_jobs,
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
            images=settings.flag("payload", "task_images") and context.executor.takes_images,
            cached=context.cache.summary() or None if context.cache is not None else None,
        )

    def _promised(self, slot: int) -> int:
        """Seconds that jobs which a slot holds may run before the next one: then less of the pilot's time is left for that."""
        held = [job for job in self._context.jobs.in_work() if job.slot == slot and not job.has_ended]
        return sum(1 if job.is_brisk else job.spec.walltime_seconds for job in held)

    def _patience(self, now: float) -> float:
        """Seconds until the server is given up that does not answer from now on, or has not since earlier."""
        since = self._failing_since or now
        return since + self._context.settings.integer("connection", "give_up_seconds") - now

    def _bear(self, error: PilotageError, asked: float) -> bool:
        """Wait after a failure and go on, or say why not; `asked`: when the request was made."""
        self.detail = error.detail
        self._failing_since = self._failing_since or asked
        if error.name == "NODE_UNFIT":
            self.why = Why.UNFIT
        elif error.name in CREDENTIALS:
            self.why = Why.CREDENTIALS
        elif self._patience(time.monotonic()) <= 0:
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
        logger.error("getJob failed", extra=error.facts())
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
            # It is idle when the last of them has ended: so it looks again when it may have been for long enough.
            idle_left = max(1.0, settings.integer("limits", "idle_seconds"))
        if idle_left <= 0:
            self.why = Why.IDLE
            return
        most = max(0.0, min(idle_left, self._context.seconds_to_offer()))
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

    def _hand_over(self, spec: JobSpec, slot: int) -> None:
        """The job enters the pilot."""
        context = self._context
        with self._lock:
            self.obtained += 1
        self._last_work = time.monotonic()
        if context.settings.flag("get_job", "allow_same_user"):
            self._task_id = self._task_id or spec.task_id
        context.secrets.add(spec.attempt_token)
        # One that was lost before may kill pilots: then each of its states is told before it is entered.
        is_brisk = spec.attempt_nr == 1 and self.is_brisk
        job = JobRun(
            spec, context.directory.job_path(spec), context.bell.set, slot, is_brisk, ACKNOWLEDGE_SECONDS
        )
        context.job_logs.open(spec.attempt_id, workdir.log_path(job.directory))
        context.jobs.add(job)
        try:
            control.attempt(job, "check", self._accept)
        finally:
            channels = context.channels
            to_slot = goes_all_the_way(context, job)
            onward: Union[Channel[JobRun], Slots] = channels.staged_in if to_slot else channels.obtained
            (channels.collected if job.over.is_set() else onward).put(job)

    def _accept(self, job: JobRun) -> None:
        """Acknowledge a job, and refuse it if the pilot has to end."""
        job.enter(JobState.OBTAINED)
        if job.spec.pilot_settings:
            job.settings = building.as_task_says(self._context.settings, job.spec)
        if self._context.stop.error is not None:  # told to end while the answer was on its way
            raise self._context.stop.error

    def worked(self, job: JobRun) -> None:
        """A job has ended: its slot may be idle from now on."""
        self._last_work = time.monotonic()
        lasted = job.metrics.get("wall_seconds")
        if lasted is not None:
            known = self._payload_seconds
            self._payload_seconds = lasted if known is None or lasted > known else (known + lasted) / 2


def backoff_of(context: Context) -> Backoff:
    settings = context.settings
    return Backoff(
        settings.number("connection", "backoff_seconds"), settings.number("connection", "backoff_max_seconds")
    )


# -- ending -----------------------------------------------------------------------------------------------------------------


def finish_jobs(context: Context, asking: Asking) -> None:
    """When the end of a job was told once, remove its directory, and its slot has room; what got no answer is in the outbox."""
    for job in context.channels.ended:
        with job.logged():
            job.leave()
            job.told.wait()
            if job.abandoned:
                context.outbox.forget(job.spec.attempt_id)
            if context.directory.keeps:
                context.job_logs.write(job.spec.attempt_id)
            context.directory.remove_job(job.directory)
            context.secrets.discard(job.spec.attempt_token)
            context.job_logs.close_log(job.spec.attempt_id)
        asking.worked(job)
        context.channels.free.put(job.slot)
        context.jobs.tidy()
