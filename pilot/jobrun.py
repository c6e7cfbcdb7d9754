"""One attempt of a job on this node: its files, where it stands, its first error, and the words about it for the server.

The one place that numbers the words of an attempt (`seq`). A word that got no answer is said again unchanged, until the server
accepts or rejects it; what happens meanwhile goes into the next one. Threads share a JobRun: everything here is guarded.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Optional

from pilot.sourcing import Software
from protocol import templates
from protocol.errors import PilotageError
from protocol.files import check_lfn
from protocol.logs import bound
from protocol.messages.pilots import (
    AttemptUpdate,
    BenchmarkReport,
    Command,
    HeldAttempt,
    InputFile,
    JobSpec,
    LogReport,
    Move,
    OutputFile,
    OutputReport,
    UpdateReply,
)
from protocol.settings import Settings
from protocol.states import FINAL, JobState

logger = logging.getLogger(__name__)

AT_ONCE = frozenset((JobState.OBTAINED, JobState.RUNNING))
"""States that somebody waits for: told by themselves. The end is told at once too; the others ride along."""

_FINAL_WORDS = frozenset(state.value for state in FINAL)

BRISK_SECONDS = 1.0
"""Payloads that last less may be claimed ahead, at most for so long."""
UNREPORTED_SECONDS = 1.0
"""A state that lasts longer than this is reported by itself."""

INPUTS, BUNDLE, SOFTWARE, STDOUT, STDERR = "inputs", "bundle", "software", "payload.stdout", "payload.stderr"


class JobOver(Exception):
    """The job was ended from outside the part that works on it: stop the work, its error is known already."""


class JobRun:
    """The spec of one attempt and what became of it."""

    def __init__(
        self,
        spec: JobSpec,
        directory: Path,
        ring: Callable[[], None],
        slot: int = 1,
        is_brisk: bool = False,
        patience: float = 0.0,
    ) -> None:
        """`ring` wakes the reporter: there is, or will soon be, something to say. `slot`: whose share of the node it has.

        One that `is_brisk` was claimed ahead since such payloads last less than a second: nobody waits for its states one by one.
        So many seconds of `patience` has the acknowledgement: mostly the payload runs by then, and both are one word.
        """
        self.spec = spec
        self.slot = slot
        self.is_brisk = is_brisk
        self._patience = patience
        self.directory = directory
        self.over = threading.Event()
        """Set when the job goes no further: it has failed, or it is not ours any more."""
        self.attention: Callable[[], None] = lambda: None
        """Called when the job is over: wakes who watches its payload."""
        self.running_told = threading.Event()
        """The server knows that the payload runs."""
        self.told = threading.Event()
        """Set when the end was sent once, with or without an answer: the slot may take the next job."""
        self.metrics: dict[str, float] = {}
        self.remote: dict[str, str] = {}
        """Name of an input that stays where it is → what the payload gets instead of a path in its directory."""
        self.linked: list[Path] = []
        """The files of the node that inputs are links to; looked up when they came, before anything of the job ran."""
        self.step_texts: list[Path] = []
        """What the steps that were started have printed."""
        self.outputs: list[OutputReport] = []
        self.log: Optional[LogReport] = None
        self.settings: Optional[Settings] = None
        """The pilot's, with what the task wants otherwise; None: it wants nothing."""
        self.software: Optional[Software] = None
        """That of the task, once it is there."""
        self.benchmark: Optional[BenchmarkReport] = None
        """What one found that ran before the payload, or that the payload was; told with the next word."""
        self.error: Optional[PilotageError] = None
        self.exit_code: Optional[int] = None
        self.abandoned = False
        self._ring = ring
        self._lock = threading.Lock()
        self._moves: list[Move] = []
        self._due = math.inf
        self._words: list[AttemptUpdate] = []
        self._seq = 0
        self._completed = False
        self._end_said = False
        self._log_said = False
        self._state: Optional[JobState] = None
        self._payload_running = False
        self._payload_since = 0.0
        self._kill: Optional[Callable[[], None]] = None
        self._gone = False

    # -- its files ----------------------------------------------------------------------------------------------------------

    @property
    def stdout(self) -> Path:
        return self.directory / STDOUT

    @property
    def stderr(self) -> Path:
        return self.directory / STDERR

    @property
    def bundle(self) -> Path:
        return self.directory / BUNDLE

    def input_path(self, file: InputFile) -> Path:
        """Inputs have a directory of their own, so that an output may have the name of an input."""
        return self.directory / INPUTS / file.lfn

    def _input(self, file: InputFile) -> str:
        """What the payload gets for it."""
        return self.remote.get(file.lfn) or str(self.input_path(file))

    def output_path(self, file: OutputFile) -> Path:
        return self.directory / file.lfn

    def check_names(self) -> None:
        """A name that would lead out of the job's directory never becomes a path, whoever sent it."""
        for lfn in (*(file.lfn for file in self.spec.inputs), *(file.lfn for file in self.spec.outputs)):
            check_lfn(lfn)

    def command(self) -> list[str]:
        """The task's command with the paths of this node, within its software."""
        return self.in_software(self.filled(self.spec.command))

    def in_software(self, command: list[str]) -> list[str]:
        """A command of the task after the set-up of the task's software."""
        return self.software.before(command) if self.software is not None else command

    def filled(self, words: Sequence[str]) -> list[str]:
        """A command of the task with the paths of this node."""
        several = {
            "inputs": [self._input(file) for file in self.spec.inputs],
            "outputs": [str(self.output_path(file)) for file in self.spec.outputs],
        }
        try:
            return templates.fill_command(words, self._placeholders(), several)
        except KeyError as error:
            raise PilotageError("BAD_COMMAND", f"this pilot knows no placeholder {error}") from None

    def environment(self, texts: Optional[Mapping[str, str]] = None) -> dict[str, str]:
        """What the task adds to the payload's environment; or these texts, filled in as well."""
        values = {**self._placeholders(), "inputs": "", "outputs": ""}
        try:
            return {
                name: templates.fill(text, values)
                for name, text in (self.spec.environment if texts is None else texts).items()
            }
        except KeyError as error:
            raise PilotageError("BAD_COMMAND", f"this pilot knows no placeholder {error}") from None

    def _placeholders(self) -> dict[str, str]:
        spec = self.spec
        lfn = spec.inputs[0].lfn if spec.inputs else ""
        return {
            "lfn": lfn,
            "stem": templates.stem(lfn),
            "task_id": str(spec.task_id),
            "job_nr": str(spec.job_nr),
            "job_id": str(spec.job_id),
            "attempt_nr": str(spec.attempt_nr),
            "input": self._input(spec.inputs[0]) if spec.inputs else "",
            "output": str(self.output_path(spec.outputs[0])) if spec.outputs else "",
            "bundle": str(self.bundle),
            "software": str(self.software.directory) if self.software is not None else "",
            "workdir": str(self.directory),
            "python": sys.executable,
        }

    @contextmanager
    def logged(self) -> Iterator[None]:
        """Bind the job's ids to the records of this thread."""
        spec = self.spec
        with bound(job_id=spec.job_id, attempt_nr=spec.attempt_nr, attempt_id=spec.attempt_id):
            yield

    # -- its course ---------------------------------------------------------------------------------------------------------

    def enter(self, state: JobState) -> None:
        """The job enters a state; JobOver if it was ended meanwhile."""
        with self._lock:
            if self.over.is_set():
                raise JobOver
            at_once = state in AT_ONCE and not self.is_brisk
            patience = self._patience if state is JobState.OBTAINED else 0.0
            is_sooner = self._move(state, patience if at_once else UNREPORTED_SECONDS)
        # Of thousands a minute, a line for each at its end is enough.
        level = logging.DEBUG if self.is_brisk else logging.INFO
        logger.log(level, "job enters a state", extra={"state": state.value})
        if is_sooner:
            self._ring()

    def check(self) -> None:
        """Between two steps: JobOver if the job was ended from outside."""
        if self.over.is_set():
            raise JobOver

    def payload_started(self, kill: Callable[[], None]) -> None:
        """Until `payload_ended`; `kill` ends it at once, should its monitor not do so in order."""
        with self._lock:
            self._payload_running = True
            self._payload_since = time.monotonic()
            self._kill = kill

    def payload_ended(self, exit_code: int) -> None:
        """An end that was held back because the payload still ran may be told now."""
        with self._lock:
            self._payload_running = False
            self.exit_code = exit_code
            was_over = self.over.is_set()
            is_sooner = was_over or self._move(JobState.FINISHED, UNREPORTED_SECONDS)
        if is_sooner:
            self._ring()

    def step_ended(self) -> None:
        """What `payload_started` told of was a step; the job goes on."""
        with self._lock:
            self._payload_running = False
        self._ring()

    def kill_payload(self) -> None:
        """At the pilot's very end."""
        with self._lock:
            kill = self._kill if self._payload_running else None
        if kill is not None:
            logger.warning("payload is killed")
            kill()

    @property
    def is_waiting(self) -> bool:
        """Nothing of it has begun here."""
        return self._state is JobState.OBTAINED and not self.over.is_set()

    @property
    def lasts(self) -> bool:
        """Its payload runs and is none of those that take a moment."""
        return self._payload_running and time.monotonic() - self._payload_since >= BRISK_SECONDS

    def fail(self, error: PilotageError, level: int = logging.ERROR) -> bool:
        """The job has failed; False if it had ended before: the first end counts. A running payload is ended by its monitor."""
        with self._lock:
            if self.error is not None or self._completed or self.abandoned:
                return False
            self.error = error
            self._move(JobState.FAILED, 0.0)
            self.over.set()
        self.attention()
        logger.log(level, "job failed", extra=error.facts(self.spec.job_id))
        self._ring()
        return True

    def complete(self) -> None:
        """Outputs (and log) are stored and verified; JobOver if the job was ended meanwhile."""
        with self._lock:
            if self.over.is_set():
                raise JobOver
            self._completed = True
            self._move(JobState.COMPLETED, 0.0)
        logger.info("job is complete")
        self._ring()

    def abandon(self, why: str, level: int = logging.WARNING) -> None:
        """It is not ours any more: nothing further is said about it. `level` INFO: that asks for nobody's look."""
        with self._lock:
            if self.abandoned:
                return
            self.abandoned = True
            self._words.clear()
            self._moves.clear()
            self.over.set()
        self.attention()
        self.told.set()
        logger.log(level, "job is given up", extra={"why": why})
        self._ring()

    def obey(self, answer: UpdateReply) -> None:
        """What the server says about an attempt that we hold; once its outcome is on the way, only the answer to that counts."""
        if self.has_ended:
            return
        if answer.command is Command.STOP or answer.state in _FINAL_WORDS:
            why = answer.detail or f"the attempt is {answer.state or 'unknown'} there"
            is_wish = answer.state == JobState.CANCELLED.value
            self.abandon(f"the server says stop: {why}", logging.INFO if is_wish else logging.WARNING)

    def leave(self) -> None:
        """The job has gone through all controls; the last that this pilot can say about it is known."""
        with self._lock:
            self._gone = True
        self._ring()

    def _move(self, state: JobState, within_seconds: float) -> bool:
        """Whether there will be something to say sooner than was known."""
        self._state = state
        self._moves.append(Move(state.value, time.time()))
        due = time.monotonic() + within_seconds
        is_sooner = due < self._due
        self._due = min(self._due, due)
        return is_sooner

    # -- the words about it -------------------------------------------------------------------------------------------------

    def words(self) -> list[AttemptUpdate]:
        """What is to be said now, oldest first; each is repeated here, unchanged, until `answered` or `refused` takes it away."""
        with self._lock:
            if not self.abandoned:
                self._compose()
            return list(self._words)

    def seconds_until_due(self) -> float:
        """When `words` will have something new; infinite if that depends on an event."""
        with self._lock:
            if self.abandoned or self._words or not self._moves or (self._is_end and self._payload_running):
                return math.inf
            return max(0.0, self._due - time.monotonic())

    def answered(self, word: AttemptUpdate, state: str) -> None:
        """The server took a word; the attempt is in this state there."""
        self._take_away(word)
        if any(move.state == JobState.RUNNING.value for move in word.moves):
            self.running_told.set()
        logger.debug("the server took a word", extra={"seq": word.seq, "state": state})

    def refused(self, word: AttemptUpdate, error: PilotageError) -> None:
        """The server will never take this word."""
        self._take_away(word)
        if error.name == "STALE_ATTEMPT":
            # Cancelled, say: the server's own doing, and its history has the reason.
            self.abandon(f"the server has ended it ({error.detail})", logging.INFO)
            return
        logger.error(
            "the server refused a word", extra={"seq": word.seq, "error": error.name, "detail": error.detail}
        )
        if error.name in ("WRONG_STATE", "NOT_FOUND"):
            self.abandon(f"{error.name}: {error.detail}")
        elif word.outputs is not None:
            self._fail_instead(PilotageError("OUTPUTS_REFUSED", error.detail))

    def held(self) -> HeldAttempt:
        """How a heartbeat names it."""
        with self._lock:
            return HeldAttempt(self.spec.attempt_id, self.spec.attempt_token, dict(self.metrics) or None)

    @property
    def has_ended(self) -> bool:
        """Its outcome is known here, whether or not the server knows it."""
        with self._lock:
            return self._is_end or self.abandoned

    @property
    def was_brisk(self) -> bool:
        """It was taken for one whose payload lasts a moment, and that was true."""
        return self.is_brisk and self.metrics.get("wall_seconds", 0.0) < BRISK_SECONDS

    @property
    def is_settled(self) -> bool:
        """Nothing is left to be said about it, and the server was told its end."""
        with self._lock:
            is_all_said = self._completed or (self._gone and (self._log_said or self.log is None))
            return self.abandoned or (self._end_said and not self._words and is_all_said)

    @property
    def is_gone(self) -> bool:
        return self._gone

    @property
    def _is_end(self) -> bool:
        return self._completed or self.error is not None

    def _compose(self) -> None:
        """Make a word of what is due. Moves ride along with the end; the log archive of a failed job follows it."""
        if self._is_end and not self._end_said:
            if not self._payload_running:
                self._end_said = True
                self._say(outputs=self.outputs if self._completed else None, log=self._log_to_say())
        elif self._moves and not self._words and time.monotonic() >= self._due:
            self._say()
        elif self._end_said and self._gone and not self._log_said and self.log is not None:
            self._say(log=self._log_to_say())

    def _log_to_say(self) -> Optional[LogReport]:
        self._log_said = self.log is not None
        return self.log

    def _say(self, outputs: Optional[list[OutputReport]] = None, log: Optional[LogReport] = None) -> None:
        self._seq += 1
        ends = self._end_said and bool(self._moves)
        error = self.error if ends else None
        word = AttemptUpdate(
            self.spec.attempt_id,
            self.spec.attempt_token,
            self._seq,
            moves=self._moves,
            exit_code=self.exit_code if ends else None,
            error=error.name if error else "",
            error_detail=error.detail if error else "",
            input_url=error.fields.get("input_url", "") if error else "",
            outputs=outputs,
            log=log,
            metrics=dict(self.metrics) or None if ends else None,
            benchmark=self.benchmark,
        )
        self.benchmark = None
        self._words.append(word)
        self._moves, self._due = [], math.inf

    def _take_away(self, word: AttemptUpdate) -> None:
        with self._lock:
            self._words = [each for each in self._words if each.seq != word.seq]

    def _fail_instead(self, error: PilotageError) -> None:
        """The server does not take the outputs: then the job has failed, and it says so."""
        with self._lock:
            self._completed, self._end_said = False, False
            self.error = error
            self._move(JobState.FAILED, 0.0)
            self.over.set()
        self._ring()


def is_result(word: AttemptUpdate) -> bool:
    """Whether a word must outlive the pilot: it brings the end of an attempt, or its log archive."""
    return bool(word.error) or word.outputs is not None or word.log is not None


class Jobs:
    """The attempts that this pilot holds; `changed` is called when it holds none any more."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._lock = threading.Lock()
        self._jobs: dict[int, JobRun] = {}

    def add(self, job: JobRun) -> None:
        with self._lock:
            self._jobs[job.spec.attempt_id] = job

    def all(self) -> list[JobRun]:
        with self._lock:
            return list(self._jobs.values())

    def held(self) -> list[JobRun]:
        """Those that a heartbeat names: the server does not know their end yet, or waits for their log."""
        return [job for job in self.all() if not job.is_settled]

    def behind(self, job: JobRun, keep: int) -> list[JobRun]:
        """Those that wait for the slot of this one, without the first ones."""
        return [each for each in self.all() if each.slot == job.slot and each.is_waiting][keep:]

    def in_work(self) -> list[JobRun]:
        """Those that have not gone through all controls yet."""
        return [job for job in self.all() if not job.is_gone]

    def tidy(self) -> None:
        """Forget what has gone through all controls and is settled with the server."""
        with self._lock:
            done = [key for key, job in self._jobs.items() if job.is_gone and job.is_settled]
            for key in done:
                del self._jobs[key]
            is_empty = not self._jobs
        if done and is_empty:
            self._changed()
