"""A small model of the job executor: what jobs and attempts must be after each call, in plain Python and without a database.

It is written from the rules (docs/server.md, docs/tasks.md, protocol/states.py, protocol/errors.py), one job at a time; the
machine in test_state_machine.py makes the same calls here and there, and compares.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from protocol.errors import BY_NAME, Budget, Retry
from protocol.messages.pilots import JobSpec
from protocol.states import FINAL, HELD, Actor, JobState, can_move

S = JobState
TAKEN_AWAY = ("LOST_HEARTBEAT", "NOT_ACKNOWLEDGED", "CANCELLED_BY_USER", "ANOTHER_COPY_WON")
LEASE = 60
UNACKNOWLEDGED = 3
KILLS = 2
FIRST_PAUSE = 10
AVOID = 600


@dataclass(eq=False)
class Attempt:
    spec: JobSpec
    job: Job
    pilot: str
    node: str
    request_id: str
    lease_until: int
    state: JobState = S.EXTRACTED
    seq: int = 0
    left_out: int = 0
    error: str | None = None
    has_log: bool = False

    @property
    def ended(self) -> bool:
        return self.state in FINAL

    @property
    def is_taken(self) -> bool:
        return self.ended and self.error in TAKEN_AWAY

    def end(self, state: JobState, error: str | None) -> None:
        self.state, self.error = state, error


@dataclass(eq=False)
class Job:
    id: int
    task: Task
    state: JobState = S.READY
    attempts: list[Attempt] = field(default_factory=list)
    not_before: int | None = None
    loss: str | None = None
    avoid: tuple[str, int] = ("", 0)
    error: str | None = None
    failures: int = 0
    losses: int = 0
    unacknowledged: int = 0
    kills: int = 0
    leader: Attempt | None = None
    """The attempt that the job follows; of several copies the others are its rivals."""
    copies: int | None = None
    """How many more copies may be handed out; None where there never are any."""
    nodes: list[str] = field(default_factory=list)
    """Those that have been given a copy."""

    def __post_init__(self) -> None:
        self.restore_copies()

    def restore_copies(self) -> None:
        self.copies = self.task.replicate - 1 if self.task.replicate > 1 else None

    @property
    def living(self) -> list[Attempt]:
        return [each for each in self.attempts if not each.ended]

    def may_be_claimed(self, node: str, clock: int) -> bool:
        avoided = self.avoid[0] == node and self.avoid[1] > clock
        wants_a_copy = self.state in HELD and bool(self.copies) and node not in self.nodes
        is_ready = self.state is S.READY and self.not_before is None
        return (is_ready or wants_a_copy) and not self.task.paused and not avoided

    def goes_on_without(self, attempt: Attempt) -> bool:
        """Whether a rival of this attempt, which has ended, goes on; if this one has led, the job follows that one now."""
        rivals = self.living
        if rivals and attempt is self.leader:
            self.leader, self.state = rivals[0], rivals[0].state
        return bool(rivals)

    def check(self) -> None:
        """One outcome, and no more holders than copies are wanted."""
        assert len(self.living) <= self.task.replicate
        completed = [each for each in self.attempts if each.state is S.COMPLETED]
        assert completed == ([self.leader] if self.state is S.COMPLETED else [])
        assert not (self.state in FINAL and self.living)

    def move(self, state: JobState, actor: Actor) -> None:
        assert state is self.state or can_move(self.state, state, actor), (self.state, state)
        self.state, self.loss, self.not_before = state, None, None


@dataclass(eq=False)
class Task:
    id: int
    max_attempts: int
    max_losses: int
    n_outputs: int
    replicate: int = 1
    jobs: list[Job] = field(default_factory=list)
    paused: bool = False
    ended: bool = False


class Model:
    def __init__(self) -> None:
        self.clock = 0
        self.tasks: list[Task] = []
        self.attempts: dict[int, Attempt] = {}

    @property
    def jobs(self) -> list[Job]:
        return [job for task in self.tasks for job in task.jobs]

    @property
    def raced(self) -> list[Job]:
        """Those of which several copies live."""
        return [job for job in self.jobs if len(job.living) > 1]

    def claimable(self, node: str) -> set[int]:
        return {job.id for job in self.jobs if job.may_be_claimed(node, self.clock)}

    # -- pilots -------------------------------------------------------------------------------------------------------------

    def claim(self, pilot: str, node: str, request_id: str, specs: Iterable[JobSpec]) -> None:
        by_id = {job.id: job for job in self.jobs}
        for spec in specs:
            job = by_id[spec.job_id]
            if job.loss is not None:
                old = job.leader
                assert old is not None
                job.losses += job.loss == "LOST_HEARTBEAT"
                job.unacknowledged += job.loss == "NOT_ACKNOWLEDGED"
                job.kills += job.loss == "LOST_HEARTBEAT" and old.state is S.RUNNING
                old.end(S.FAILED, job.loss)
            attempt = Attempt(spec, job, pilot, node, request_id, self.clock + LEASE)
            if job.state is S.READY:
                job.move(S.EXTRACTED, Actor.DISPATCHER)
                job.leader, job.nodes = attempt, [node]
            else:
                assert job.copies
                job.copies -= 1
                job.nodes.append(node)
            job.attempts.append(attempt)
            self.attempts[spec.attempt_id] = attempt

    def given(self, pilot: str, request_id: str) -> list[Attempt] | None:
        """What a repeated request must get; None: it got nothing before, and counts as a new one."""
        got = [
            each for each in self.attempts.values() if (each.pilot, each.request_id) == (pilot, request_id)
        ]
        return [each for each in got if not each.ended] if got else None

    def word(
        self, attempt: Attempt, states: Sequence[JobState], seq: int, error: str, outputs: str, log: bool
    ) -> str:
        """The state that the answer tells, or the name of an error; what is refused changes nothing."""
        target = states[-1] if states else None
        if attempt.is_taken:
            return "STALE_ATTEMPT"
        if seq <= attempt.seq:
            return attempt.state.value
        if attempt.ended:
            if states or not log or attempt.has_log:
                return "STALE_ATTEMPT"
            attempt.seq, attempt.has_log = seq, True
            return attempt.state.value
        wrong = outputs == "wrong" or (outputs == "none" and attempt.job.task.n_outputs)
        if target is S.COMPLETED and wrong:
            return "BAD_REQUEST"
        if target is not None and not (
            target is attempt.state or can_move(attempt.state, target, Actor.PILOT)
        ):
            return "WRONG_STATE"
        attempt.seq, attempt.has_log = seq, attempt.has_log or log
        self._renew(attempt, target)
        if target is S.FAILED:
            self._fail(attempt, error)
        elif target is S.COMPLETED:
            self._win(attempt)
        return attempt.state.value

    def _renew(self, attempt: Attempt, target: JobState | None = None) -> None:
        state = target or (S.OBTAINED if attempt.state is S.EXTRACTED else attempt.state)
        attempt.state, attempt.left_out, attempt.lease_until = state, 0, self.clock + LEASE
        if attempt is attempt.job.leader and state is not S.FAILED:
            attempt.job.move(state, Actor.PILOT)

    def _win(self, attempt: Attempt) -> None:
        job = attempt.job
        for rival in job.living:
            rival.end(S.CANCELLED, "ANOTHER_COPY_WON")
        job.leader, job.error = attempt, None
        job.move(S.COMPLETED, Actor.PILOT)

    def _fail(self, attempt: Attempt, error: str) -> None:
        job, entry = attempt.job, BY_NAME[error]
        attempt.error = error
        if job.goes_on_without(attempt):
            return
        still_wrong = entry.retry is Retry.FRESH_INPUT and job.error == error
        job.error = error
        job.restore_copies()
        job.failures += entry.budget is Budget.PAYLOAD
        job.losses += entry.budget is Budget.INFRASTRUCTURE
        spent = job.failures >= job.task.max_attempts or job.losses > job.task.max_losses
        if spent or still_wrong or entry.retry is Retry.NEVER:
            job.move(S.FAILED, Actor.PILOT)
            return
        job.move(S.READY, Actor.PILOT)
        if entry.retry is Retry.LATER:
            job.not_before = self.clock + min(FIRST_PAUSE * 2 ** max(job.losses - 1, 0), 600)
        if entry.retry is Retry.ELSEWHERE:
            job.avoid = (attempt.node, self.clock + AVOID)

    def beat(self, pilot: str, named: Collection[Attempt]) -> list[tuple[str, bool]]:
        """For each the state, and whether its pilot is to stop."""
        for attempt in self.attempts.values():
            if attempt.ended:
                continue
            if attempt in named:
                self._renew(attempt)
            elif attempt.pilot == pilot and attempt.state is not S.EXTRACTED:
                if attempt.left_out:
                    attempt.lease_until = self.clock - 1
                attempt.left_out += 1
        return [(attempt.state.value, attempt.is_taken) for attempt in named]

    # -- time ---------------------------------------------------------------------------------------------------------------

    def pass_seconds(self, seconds: int, leading: Mapping[int, int]) -> int:
        """How many leases ran out. Of copies that fall silent together any may be the last: `leading` says which one was."""
        self.clock += seconds
        late = [
            attempt
            for job in self.jobs
            if job.state in HELD
            for attempt in job.living
            if attempt.lease_until < self.clock
        ]
        for attempt in sorted(late, key=lambda each: leading[each.job.id] == each.spec.attempt_id):
            self._expire(attempt.job, attempt)
        return len(late)

    def _expire(self, job: Job, attempt: Attempt) -> None:
        loss = "NOT_ACKNOWLEDGED" if attempt.state is S.EXTRACTED else "LOST_HEARTBEAT"
        if len(job.living) > 1:
            attempt.end(S.FAILED, loss)
            job.goes_on_without(attempt)
            return
        if loss == "NOT_ACKNOWLEDGED":
            verdict = "NEVER_ACKNOWLEDGED" if job.unacknowledged + 1 >= UNACKNOWLEDGED else ""
        elif attempt.state is S.RUNNING and job.kills + 1 >= KILLS:
            verdict = "KILLS_PILOTS"
        else:
            verdict = "INFRASTRUCTURE_BUDGET_SPENT" if job.losses + 1 > job.task.max_losses else ""
        job.move(S.FAILED if verdict else S.READY, Actor.REAPER)
        if not verdict:
            job.loss = loss
            job.restore_copies()
            return
        job.error = verdict
        job.unacknowledged += loss == "NOT_ACKNOWLEDGED"
        job.losses += loss == "LOST_HEARTBEAT"
        attempt.end(S.FAILED, loss)

    def executor_pass(self) -> None:
        for job in self.jobs:
            if job.not_before is not None and job.not_before <= self.clock:
                job.not_before = None

    def close(self) -> None:
        for task in self.tasks:
            task.ended = task.ended or all(job.state in FINAL for job in task.jobs)

    # -- users --------------------------------------------------------------------------------------------------------------

    def cancel(self, jobs: Iterable[Job]) -> int:
        doomed = [job for job in jobs if job.state not in FINAL]
        for job in doomed:
            for attempt in job.living:
                attempt.end(S.CANCELLED, "CANCELLED_BY_USER")
            job.move(S.CANCELLED, Actor.USER)
            job.error = "CANCELLED_BY_USER"
        return len(doomed)

    def retry(self, task: Task, states: Collection[JobState]) -> int:
        jobs = [job for job in task.jobs if job.state in states]
        for job in jobs:
            job.move(S.READY, Actor.USER)
            job.failures = job.losses = job.unacknowledged = job.kills = 0
            job.error, job.avoid = None, ("", 0)
            job.restore_copies()
        task.ended = task.ended and not jobs
        return len(jobs)
