"""Pilots that are threads: they speak as the real pilot does, with its own client, and each word again until it is answered.

A crew takes jobs until it is dismissed. Its payload is a pause; outputs are written where the server says, with the number of the
attempt in them.
"""

from __future__ import annotations

import itertools
import random
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from copytools import checksum
from pilot.server_client import Backoff, ServerClient, is_passing
from protocol.errors import PilotageError
from protocol.messages.pilots import (
    AttemptUpdate,
    Command,
    GetJobRequest,
    Heartbeat,
    HeldAttempt,
    JobSpec,
    Move,
    OutputReport,
    PilotRegistration,
)
from protocol.states import JobState
from tests.faults.history import OK, REFUSED, History, Word

S = JobState
T = TypeVar("T")

USUAL_STEPS: tuple[tuple[JobState, ...], ...] = (
    (S.OBTAINED,),
    (S.PRE_PROCESSING, S.STAGE_IN, S.RUNNING),
    (S.FINISHED, S.POST_PROCESSING, S.STAGE_OUT),
    (S.COMPLETED,),
)
"""The states that each word brings; the payload runs after the one that brings RUNNING."""
EVERY_STEP = tuple((state,) for state in (*itertools.chain(*USUAL_STEPS),))
BACKOFF_SECONDS = (0.05, 0.5)
DISMISS_SECONDS = 30.0


@dataclass(frozen=True)
class Habits:
    """How the pilots of a crew are. Probabilities are per job."""

    payload_seconds: tuple[float, float] = (0.0, 0.05)
    dies: float = 0.0
    """Some time after its first word it falls silent for ever, and another pilot takes its place."""
    fails: float = 0.0
    error: str = "PAYLOAD_FAILED"
    steps: Sequence[tuple[JobState, ...]] = USUAL_STEPS
    skew_seconds: float = 0.0
    """Its clock is wrong by so much."""
    beat_seconds: float = 1.0
    read_seconds: float = 10.0
    before: Callable[[JobSpec, JobState], None] | None = None
    """Called before each word, with the last state that it brings."""
    client: Callable[..., ServerClient] = ServerClient


USUAL = Habits()


class Dies(Exception):
    """The pilot is no more."""


@dataclass
class Holding:
    """The job that a pilot holds; `stopped` when the server wants it no more."""

    job: JobSpec
    stopped: threading.Event = field(default_factory=threading.Event)


class FakePilot:
    """One pilot, in a thread of its crew."""

    def __init__(self, crew: Crew, number: int) -> None:
        self.crew = crew
        self.number = number
        self.habits = crew.habits
        self.chance = random.Random(f"{crew.seed}-{number}")
        self.client = self.habits.client(crew.url, crew.token, None, 5.0, self.habits.read_seconds)
        self.pilot_id = ""
        self.holding: Holding | None = None

    def work(self) -> None:
        """Take one job after the other until the crew is dismissed."""
        try:
            self._register()
            while not self.crew.dismissed.is_set():
                try:
                    self._one_job()
                except Dies:
                    self.holding = None
                    self._register()
        except Dismissed:
            pass
        finally:
            self.client.close()

    def beat(self) -> None:
        """The heartbeat, if it holds a job."""
        holding = self.holding
        if holding is None:
            return
        held = HeldAttempt(holding.job.attempt_id, holding.job.attempt_token)
        try:
            reply = self.client.heartbeat(Heartbeat(self.pilot_id, [held]))
        except PilotageError as error:
            if not is_passing(error):
                raise
            return
        if reply.answers[0].command is Command.STOP:
            holding.stopped.set()

    def _register(self) -> None:
        crew = self.crew
        self.pilot_id = f"{crew.name}-{self.number}-{secrets.token_hex(3)}"
        word = PilotRegistration(self.pilot_id, f"{crew.node}{self.number}", "fake", queue=crew.queue)
        self._until_answered(lambda: self.client.register(word))

    def _one_job(self) -> None:
        request = GetJobRequest(secrets.token_hex(8), self.pilot_id, self.crew.queue)
        word = self.crew.history.begin(Word(self.pilot_id, request.request_id))
        reply = self._until_answered(lambda: self.client.get_job(request), word)
        word.attempts = [job.attempt_id for job in reply.jobs]
        self.crew.history.end(word, OK)
        if not reply.jobs:
            self.crew.dismissed.wait(self.chance.uniform(0.05, 0.2))
        for job in reply.jobs:
            self._do(job)

    def _do(self, job: JobSpec) -> None:
        self.holding = Holding(job)
        fate = self.chance.random()
        end = self.chance.randrange(1, len(self.habits.steps))
        try:
            for seq, states in enumerate(self.habits.steps, 1):
                if fate < self.habits.dies and seq - 1 == end:
                    raise Dies
                if fate > 1 - self.habits.fails and states[-1] is S.COMPLETED:
                    states = (S.FAILED,)
                self._step(job, seq, states)
        except PilotageError as error:
            if error.name != "STALE_ATTEMPT":
                raise
        finally:
            self.holding = None

    def _step(self, job: JobSpec, seq: int, states: tuple[JobState, ...]) -> None:
        now = time.time() + self.habits.skew_seconds
        said = AttemptUpdate(
            job.attempt_id, job.attempt_token, seq, [Move(state.value, now) for state in states]
        )
        if states[-1] is S.COMPLETED:
            said.outputs = [write_output(each.url, each.lfn, job.attempt_id) for each in job.outputs]
        elif states[-1] is S.FAILED:
            said.error = self.habits.error
        if self.habits.before is not None:
            self.habits.before(job, states[-1])
        word = self.crew.history.begin(
            Word(self.pilot_id, attempt=job.attempt_id, seq=seq, state=states[-1].value)
        )
        try:
            reply = self._until_answered(lambda: self.client.update(said), word)
        except PilotageError:
            self.crew.history.end(word, REFUSED)
            raise
        self.crew.history.end(word, OK)
        if reply.command is Command.STOP:
            raise PilotageError("STALE_ATTEMPT", "told to stop")
        if S.RUNNING in states:
            self._payload()

    def _payload(self) -> None:
        assert self.holding is not None
        if self.holding.stopped.wait(self.chance.uniform(*self.habits.payload_seconds)):
            raise PilotageError("STALE_ATTEMPT", "told to stop by a heartbeat")

    def _until_answered(self, say: Callable[[], T], word: Word | None = None) -> T:
        """The same word again and again while the server is away, as a pilot does."""
        backoff = Backoff(*BACKOFF_SECONDS)
        while True:
            if word is not None:
                word.tries += 1
            try:
                return say()
            except PilotageError as error:
                if not is_passing(error):
                    raise
                # Not as long as the server asks for: a test has less patience than a pilot.
                if self.crew.given_up.wait(backoff.next()):
                    raise Dismissed from None


class Dismissed(Exception):
    """The test is over and the server did not answer any more."""


def write_output(url: str, lfn: str, attempt_id: int) -> OutputReport:
    path = Path(urlsplit(url).path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{lfn} of attempt {attempt_id}\n")
    return OutputReport(lfn, path.stat().st_size, checksum.of(path, ("adler32",)))


class Crew:
    """Pilots at work within a `with` block; an error of any of them is raised at its end."""

    _numbers = itertools.count(1)

    def __init__(
        self, url: str, token: str, queue: str, size: int, habits: Habits = USUAL, *, node: str = "node", seed: int = 0,
        history: History | None = None,
    ) -> None:  # fmt: skip
        self.name = f"crew{next(self._numbers)}"
        self.url, self.token, self.queue, self.habits = url, token, queue, habits
        self.node, self.seed = node, seed
        self.history = history or History()
        self.dismissed = threading.Event()
        self.given_up = threading.Event()
        self.pilots = [FakePilot(self, number) for number in range(size)]
        self._errors: list[Exception] = []
        threads = [threading.Thread(target=self._run, args=(pilot.work,)) for pilot in self.pilots]
        self._threads = [*threads, threading.Thread(target=self._run, args=(self._beat,))]

    def __enter__(self) -> Crew:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.dismissed.set()
        deadline = time.monotonic() + (DISMISS_SECONDS if kind is None else 2.0)
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self.given_up.set()
        for thread in self._threads:
            thread.join()
        if kind is None and self._errors:
            raise AssertionError(f"{len(self._errors)} pilots died of errors") from self._errors[0]

    def _run(self, work: Callable[[], Any]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001  a thread's top: told at the end
            self._errors.append(error)

    def raise_errors(self) -> None:
        """For who waits for the crew: one that has died will never be done."""
        if self._errors:
            raise RuntimeError(f"a pilot died: {self._errors[0]!r}") from self._errors[0]

    def _beat(self) -> None:
        with ThreadPoolExecutor(max(1, len(self.pilots))) as pool:
            while not self.dismissed.wait(self.habits.beat_seconds):
                list(pool.map(FakePilot.beat, self.pilots))


def tried(history: History) -> Mapping[str, int]:
    """How many words there were and how many of them had to be said again."""
    return {"words": len(history.words), "repeated": sum(word.tries > 1 for word in history.words)}
