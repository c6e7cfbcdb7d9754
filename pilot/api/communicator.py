"""The Communicator API: speak with a server as a pilot does, with its fences and its patience.

    from pilot.api.communicator import Communicator, JobState, PilotRegistration
    me = PilotRegistration("my-agent", node="node1", version="1", queue="CPU", cores=4)
    with Communicator("http://127.0.0.1:8080", token, me) as server:
        for job in server.get_jobs():
            job.enter(JobState.RUNNING)
            server.tell(job)
            …                          # job.spec has the command and the files; job.outputs = […] what was stored
            job.complete()             # or job.fail(PilotageError("PAYLOAD_FAILED", "exit code 3"))
            server.tell(job)

A job numbers the words about it, and shows its attempt's token: what is repeated has no effect, and who has lost a job changes nothing.
It is the pilot's own class (pilot/jobrun.py), as is the `client`, which has one function for each message of the protocol.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Optional, TypeVar

from pilot import certificates
from pilot.jobrun import JobOver, JobRun, Jobs
from pilot.server_client import Backoff, ServerClient, Waiting, insist, is_passing, last_word
from protocol.errors import PilotageError, PilotExit
from protocol.messages.pilots import (
    GetJobReply,
    GetJobRequest,
    Heartbeat,
    JobSpec,
    OutputReport,
    PilotEnd,
    PilotRegistration,
    QueueForPilot,
)
from protocol.states import JobState
from protocol.values import Bounds, Places, Type, parse

__all__ = [
    "Communicator",
    "JobOver",
    "JobRun",
    "JobState",
    "OutputReport",
    "PilotRegistration",
    "PilotageError",
    "QueueForPilot",
]

logger = logging.getLogger(__name__)

T = TypeVar("T")

CONNECT_SECONDS, READ_SECONDS, LAST_WORD_SECONDS = 10.0, 60.0, 5.0
FURTHER = frozenset(("bundle", "image", "pilot_settings", "software", "steps"))
"""What a job may ask for beside its command and its files: fields of JobSpec. Who overlooks one runs something else than was wanted."""
REST_SECONDS = 5.0
"""After a job was given back that cannot be done here: the others may be of its kind."""


class Communicator:
    """One pilot's conversation with its server. Within its `with` it is registered and alive; at the end it gives back what it holds."""

    queue: QueueForPilot
    """What the server said about our queue."""

    def __init__(
        self,
        url: str,
        token: str,
        who: PilotRegistration,
        *,
        ca_file: Optional[Path] = None,
        ca_path: Optional[Path] = None,
        give_up_seconds: float = 600.0,
        can: Iterable[str] = (),
    ) -> None:
        """BAD_SETTINGS for a `url` that is none. `give_up_seconds`: how long a server that does not answer is asked again, before
        the call raises. `can`: which of `FURTHER` the program does itself; jobs that ask for another are given back.
        """
        self._can = frozenset(can)
        if unknown := self._can - FURTHER:
            raise PilotageError(
                "BAD_SETTINGS", f"can: there is no {min(unknown)!a}; known are {', '.join(sorted(FURTHER))}"
            )
        url = _address(url)
        tls = None
        if url.startswith("https:"):
            tls = certificates.context(certificates.search(ca_file, ca_path, os.environ, os.geteuid()))
        self.client = ServerClient(url, token, tls, CONNECT_SECONDS, READ_SECONDS)
        self.who = who
        self.jobs = Jobs(lambda: None)
        """Those that we hold; heartbeats name them."""
        self.drained = False
        """The server wants us to take no further job."""
        self._give_up_seconds = give_up_seconds
        self._silence = threading.Event()
        self._beating = threading.Thread(target=self._beat, name="heartbeat")

    def __enter__(self) -> Communicator:
        self.queue = self._insist(partial(self.client.register, self.who))
        self._beating.start()
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self._silence.set()
        self._beating.join()
        until = time.monotonic() + min(self._give_up_seconds, LAST_WORD_SECONDS)
        why = f"{kind.__name__}: {error}" if kind else "it has ended"
        code = PilotExit.BROKEN if kind else PilotExit.DONE
        end = PilotEnd(self.who.pilot_id, int(code), why[:1000])
        try:
            for job in self.jobs.held():
                self._give_up_seconds = max(0.0, until - time.monotonic())
                job.fail(PilotageError("PILOT_EXCEPTION", f"the program that had the job: {why}"))
                with last_word():  # the others are to be told also if this one cannot be
                    self.tell(job)
            with last_word():
                self.client.end_pilot(end, LAST_WORD_SECONDS)
        finally:
            self.client.close()

    def get_jobs(
        self, n_jobs: int = 1, *, wait_seconds: float = 0.0, directory: Optional[Path] = None, **offer: Any
    ) -> list[JobRun]:
        """Take up to so many jobs, and acknowledge them; none if there are none within `wait_seconds` that this program can do.

        `offer`: other fields of GetJobRequest than the registration has, as prod_source_label. `directory`: where the paths in
        a job's command lie; nothing is made there.
        """
        until = time.monotonic() + wait_seconds
        waiting = self.client.waiting()
        try:
            while not self.drained:
                reply = self._insist(partial(self.client.get_job, self._request(n_jobs, offer)))
                taken = [self._taken(spec, directory or Path.cwd()) for spec in reply.jobs]
                if jobs := [job for job in taken if not self._gives_back(job)]:
                    return jobs
                self.drained = self.drained or reply.drain
                left = until - time.monotonic()
                if left <= 0:
                    break
                if taken:
                    time.sleep(min(left, REST_SECONDS))
                else:
                    self._await_work(waiting, reply, left)
        finally:
            waiting.close()
        return []

    def tell(self, job: JobRun) -> bool:
        """Say what is to be said about a job, each word unchanged until the server has taken or refused it; False: it is not ours.

        A state that nobody waits for goes with the next word. An error that may pass: the server was silent for too long; tell again.
        """
        with job.logged():
            while words := job.words():
                word = words[0]
                try:
                    answer = self._insist(partial(self.client.update, word))
                except PilotageError as error:
                    # Only our server's own word rejects a word: a page of something between us and it may pass.
                    if is_passing(error) or not error.fields.get("ours"):
                        raise
                    job.refused(word, error)
                else:
                    job.answered(word, answer.state)
                    job.obey(answer)
        if job.has_ended:
            job.leave()
            self.jobs.tidy()
        return not job.abandoned

    def heartbeat(self) -> None:
        """We are alive and hold these jobs. Within the `with` a thread says so; one that the server has ended is `over` then."""
        held = {job.spec.attempt_id: job for job in self.jobs.held()}
        reply = self.client.heartbeat(Heartbeat(self.who.pilot_id, [job.held() for job in held.values()]))
        self.drained = self.drained or reply.drain
        for answer in reply.answers:
            if answer.attempt_id in held:
                held[answer.attempt_id].obey(answer)

    # -- inside -------------------------------------------------------------------------------------------------------------

    def _insist(self, call: Callable[[], T]) -> T:
        return insist(call, Backoff(1.0, 60.0), self._give_up_seconds, _warn)

    def _request(self, n_jobs: int, offer: dict[str, Any]) -> GetJobRequest:
        who = self.who
        request = GetJobRequest(
            request_id=secrets.token_hex(16),
            pilot_id=who.pilot_id,
            queue=self.queue.name,
            resource_type=self.queue.resource_type,
            cores=who.cores,
            memory_mb=who.memory_mb,
            disk_mb=who.disk_mb,
            gpus=who.gpus,
            n_jobs=n_jobs,
            site_name=who.site_name,
            node=who.node,
            tags=who.tags,
            images="image" in self._can,
        )
        return replace(request, **offer)

    def _taken(self, spec: JobSpec, directory: Path) -> JobRun:
        job = JobRun(spec, directory / f"job-{spec.job_id}-{spec.attempt_nr}", lambda: None)
        self.jobs.add(job)
        job.enter(JobState.OBTAINED)
        self.tell(job)
        return job

    def _gives_back(self, job: JobRun) -> bool:
        """Whether the job asks for something that the program cannot do, and therefore is given back."""
        lacking = [name for name in sorted(FURTHER - self._can) if getattr(job.spec, name)]
        if not lacking:
            return False
        why = f"this program cannot do what the job asks for: {', '.join(lacking)}"
        logger.warning("job %d is given back: %s", job.spec.job_id, why)
        job.fail(PilotageError("NOT_SUPPORTED", why))
        self.tell(job)
        return True

    def _await_work(self, waiting: Waiting, reply: GetJobReply, seconds: float) -> None:
        """Asleep where the server tells of new jobs, or until it is time to ask again."""
        if reply.ticket and reply.wait_url:
            try:
                waiting.wait(reply.wait_url, reply.ticket, seconds)
                return
            except PilotageError as error:
                logger.info("the server is asked again and again", extra={"detail": error.detail})
        time.sleep(min(seconds, reply.wait_seconds or 5.0))

    def _beat(self) -> None:
        while not self._silence.wait(self.queue.heartbeat_seconds):
            try:
                self.heartbeat()
            except PilotageError as error:
                logger.warning("no heartbeat: %s", error)


def _address(url: str) -> str:
    """As the pilot takes it; BAD_SETTINGS."""
    try:
        return str(parse(Type.URL, url, Bounds(), Places(None, None)))
    except ValueError as error:
        raise PilotageError("BAD_SETTINGS", f"the server's address {error}") from None


def _warn(error: PilotageError, wait: float, until: str) -> None:
    """All of it is text: the formatters of most programs show no further fields."""
    logger.warning("%s: %s; it is asked again in %.1f s, until %s", error.name, error, wait, until)
