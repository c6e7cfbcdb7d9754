"""The states of jobs and tasks, and the one table of legal moves from which everything else is derived.

The words are those of the SPD online filter and CANCELLED. FINISHED means "the payload ended"; the end of a job that
succeeded is COMPLETED. PanDA's words occur on the PanDA wire only.
"""

from __future__ import annotations

import enum


class JobState(str, enum.Enum):
    """A job's state, in the order in which a job that succeeds passes through them."""

    REGISTERED = "REGISTERED"
    READY = "READY"
    EXTRACTED = "EXTRACTED"
    OBTAINED = "OBTAINED"
    PRE_PROCESSING = "PRE-PROCESSING"
    STAGE_IN = "STAGE-IN"
    RUNNING = "RUNNING"
    FINISHED = "FINISHED"
    POST_PROCESSING = "POST-PROCESSING"
    STAGE_OUT = "STAGE-OUT"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    def __str__(self) -> str:
        return self.value


class Actor(enum.Enum):
    """Who may move a job."""

    EXECUTOR = "task-executor"
    DISPATCHER = "dispatcher"
    PILOT = "pilot"
    REAPER = "reaper"
    USER = "user"
    HEALING = "self-healing"
    """The server's rules for failed jobs: it moves nothing by itself, and is named where a rule was applied."""


S = JobState

SUCCESS: tuple[JobState, ...] = (
    S.REGISTERED,
    S.READY,
    S.EXTRACTED,
    S.OBTAINED,
    S.PRE_PROCESSING,
    S.STAGE_IN,
    S.RUNNING,
    S.FINISHED,
    S.POST_PROCESSING,
    S.STAGE_OUT,
    S.COMPLETED,
)
"""The eleven words of a job that succeeds, in order."""

FINAL: frozenset[JobState] = frozenset({S.COMPLETED, S.FAILED, S.CANCELLED})
PILOT_OWNED: tuple[JobState, ...] = SUCCESS[SUCCESS.index(S.OBTAINED) : SUCCESS.index(S.COMPLETED)]
"""States in which a pilot holds the job under a lease."""
HELD: tuple[JobState, ...] = (S.EXTRACTED, *PILOT_OWNED)
"""States in which a job has a live attempt."""

MEANING: dict[JobState, str] = {
    S.REGISTERED: "the job was formed; inputs or quota are not there yet",
    S.READY: "it may be handed out",
    S.EXTRACTED: "claimed for a pilot; the getJob reply is on its way",
    S.OBTAINED: "the pilot acknowledged it",
    S.PRE_PROCESSING: "environment, bundle and work directory are prepared",
    S.STAGE_IN: "inputs are copied and verified",
    S.RUNNING: "the payload runs",
    S.FINISHED: "the payload ended",
    S.POST_PROCESSING: "outputs are collected, the log archive is packed",
    S.STAGE_OUT: "outputs are copied and verified",
    S.COMPLETED: "the server registered the outputs, in the same transaction",
    S.FAILED: "an error of the catalogue, and its budget is spent",
    S.CANCELLED: "a user or the task ended it",
}


def _moves() -> dict[tuple[JobState, JobState], frozenset[Actor]]:
    table: dict[tuple[JobState, JobState], set[Actor]] = {}

    def allow(source: JobState, target: JobState, *actors: Actor) -> None:
        table.setdefault((source, target), set()).update(actors)

    allow(S.REGISTERED, S.READY, Actor.EXECUTOR)
    allow(S.REGISTERED, S.FAILED, Actor.EXECUTOR)
    allow(S.READY, S.EXTRACTED, Actor.DISPATCHER)
    # A report can get lost, so a pilot moves to any later state of its own, also straight from EXTRACTED.
    for index, source in enumerate(HELD):
        for target in (*HELD[index + 1 :], S.COMPLETED, S.FAILED):
            allow(source, target, Actor.PILOT)
        # An error whose budget is not spent, or a lease that ran out, makes the job claimable again.
        allow(source, S.READY, Actor.PILOT, Actor.REAPER)
        allow(source, S.FAILED, Actor.REAPER)
    # A lease that ran out leaves the job to its pilot until somebody else claims it: a late word takes it back.
    for target in (*PILOT_OWNED, S.COMPLETED, S.FAILED):
        allow(S.READY, target, Actor.PILOT)
    for source in (S.REGISTERED, S.READY, *HELD):
        allow(source, S.CANCELLED, Actor.USER)
    # Final is final, but for a user who says so, on record: the job then gets a new attempt.
    for source in (S.FAILED, S.CANCELLED):
        allow(source, S.READY, Actor.USER)
    return {move: frozenset(actors) for move, actors in table.items()}


MOVES: dict[tuple[JobState, JobState], frozenset[Actor]] = _moves()
"""(from, to) → who may. What is not in here never happens."""


def can_move(source: JobState, target: JobState, actor: Actor) -> bool:
    return actor in MOVES.get((source, target), frozenset())


def sources(target: JobState, actor: Actor) -> tuple[JobState, ...]:
    """The states from which `actor` may move a job to `target`, in the order of the enumeration."""
    return tuple(state for state in JobState if can_move(state, target, actor))


class TaskState(str, enum.Enum):
    """A task's state; computed from its jobs, never set, but for the wish to cancel it."""

    REGISTERED = "REGISTERED"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    PARTIAL = "PARTIAL"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    def __str__(self) -> str:
        return self.value


TASK_MEANING: dict[TaskState, str] = {
    TaskState.REGISTERED: "accepted; no job was formed yet",
    TaskState.RUNNING: "jobs are formed or run",
    TaskState.COMPLETED: "the whole block is processed: every job completed",
    TaskState.PARTIAL: "all jobs ended, some completed and some did not",
    TaskState.FAILED: "all jobs ended and none completed",
    TaskState.CANCELLED: "a user ended it before all jobs had",
}


def task_state(counts: dict[JobState, int], expected: int, cancelled: bool) -> TaskState:
    """The state of a task with these numbers of jobs per state, of `expected` jobs in all; the first rule that matches."""
    formed = sum(counts.values())
    ended = sum(counts.get(state, 0) for state in FINAL)
    completed = counts.get(S.COMPLETED, 0)
    if cancelled and (completed < expected or not formed):
        return TaskState.CANCELLED if ended == formed else TaskState.RUNNING
    if formed == 0 and expected > 0:
        return TaskState.REGISTERED
    if formed < expected or ended < formed:
        return TaskState.RUNNING
    if completed == expected:
        return TaskState.COMPLETED
    return TaskState.PARTIAL if completed else TaskState.FAILED


TASK_FINAL: frozenset[TaskState] = frozenset(
    {TaskState.COMPLETED, TaskState.PARTIAL, TaskState.FAILED, TaskState.CANCELLED}
)


class DatasetState(str, enum.Enum):
    """An open dataset takes files; a closed one is complete and never changes; a deleted one is remembered by name."""

    OPEN = "open"
    CLOSED = "closed"
    DELETED = "deleted"

    def __str__(self) -> str:
        return self.value


class ReplicaState(str, enum.Enum):
    """What is known of a copy of a file: a pilot's word makes it suspect, a look at the storage bad or good again."""

    GOOD = "good"
    SUSPECT = "suspect"
    BAD = "bad"

    def __str__(self) -> str:
        return self.value


class QueueState(str, enum.Enum):
    """Whether a computing queue hands out jobs: all, one at a time, none. Sites and nodes are online or offline."""

    ONLINE = "online"
    TEST = "test"
    DRAIN = "drain"
    OFFLINE = "offline"

    def __str__(self) -> str:
        return self.value


class PilotState(str, enum.Enum):
    """What the server knows of a pilot; SILENT is no verdict, only a lease that ran out."""

    ALIVE = "alive"
    SILENT = "silent"
    ENDED = "ended"

    def __str__(self) -> str:
        return self.value
