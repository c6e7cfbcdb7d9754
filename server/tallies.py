"""How far tasks are: jobs by state, attempts, and the state that follows from them; asked of many tasks at once.

The closer has counted the jobs that ended (`Task.n_completed` and its like), so that only open jobs and those that ended
since its last pass are looked at, each by an index of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from peewee import Value, fn

from protocol.states import JobState, TaskState, task_state
from server import catalogue, containers
from server.models import Job, Task
from server.specs import spec_of


@dataclass
class Tally:
    """Of one task."""

    counts: dict[JobState, int] = field(default_factory=dict)
    n_attempts: int = 0

    def add(self, state: JobState, n_jobs: int, n_attempts: int) -> None:
        self.n_attempts += n_attempts
        if n_jobs:
            self.counts[state] = self.counts.get(state, 0) + n_jobs


def of(task_ids: Sequence[int]) -> dict[int, Tally]:
    """One question, so that a job which ends meanwhile is counted once."""
    tallies = {task_id: Tally() for task_id in task_ids}
    attempts = fn.COALESCE(fn.SUM(Job.attempt_nr), 0)
    columns = (Job.task, Job.state, fn.COUNT(Job.id), attempts)
    jobs = Job.select(*columns).where(Job.task.in_(task_ids)).group_by(Job.task, Job.state)
    counted = (
        (JobState.COMPLETED, Task.n_completed, Task.n_attempts),
        (JobState.FAILED, Task.n_failed, Value(0)),
        (JobState.CANCELLED, Task.n_cancelled, Value(0)),
    )
    query = jobs.where(Job.ended_at.is_null()) + jobs.where(_UNCOUNTED)
    for state, n_jobs, n_attempts in counted:
        kept = Task.select(Task.id, Value(state.value), n_jobs, n_attempts).where(Task.id.in_(task_ids))
        query = query + kept
    for task_id, word, n, n_tries in query.tuples():
        tallies[task_id].add(JobState(word), int(n), int(n_tries))
    return tallies


_UNCOUNTED = Job.ended_at.is_null(False) & ~Job.counted


def counts_of(task: Task) -> dict[JobState, int]:
    return of([task.id])[task.id].counts


def expected_jobs(task: Task) -> int:
    """How many jobs the task has when all are formed; until the end of forming is noted there is always one more to come."""
    if task.all_formed:
        return int(task.n_formed)
    spec = spec_of(task)
    if task.input_dataset_id is None:
        return spec.n_jobs
    sizes = catalogue.sizes(containers.inputs_of(task))
    n_jobs = sum(-(-n_files // spec.files_per_job) for n_files, _ in sizes.values())
    return max(n_jobs, int(task.n_formed) + 1)


def state_of(task: Task) -> TaskState:
    return task_state(counts_of(task), expected_jobs(task), task.cancelled)


# -- conditions of queries --------------------------------------------------------------------------------------------------


def may_end() -> Any:
    """Tasks that the closer is to end: no job is to come, and all that there are have ended and are counted."""
    return Task.ended.is_null() & (Task.all_formed | Task.cancelled) & ~_has_open() & ~_has(_UNCOUNTED)


def is_in(state: TaskState) -> Any:
    """Tasks in this state; those that have just ended, and that the closer has not seen yet, are looked at one by one."""
    if state is TaskState.REGISTERED:
        return Task.ended.is_null() & (Task.n_formed == 0) & ~Task.all_formed & ~Task.cancelled
    if state is TaskState.RUNNING:
        return Task.ended.is_null() & (
            _has_open() | ((Task.n_formed > 0) & ~Task.all_formed & ~Task.cancelled)
        )
    whole = Task.all_formed & (Task.n_completed == Task.n_formed)
    ended = {
        TaskState.COMPLETED: whole,
        TaskState.CANCELLED: Task.cancelled & ~whole,
        TaskState.PARTIAL: ~Task.cancelled & ~whole & (Task.n_completed > 0),
        TaskState.FAILED: ~Task.cancelled & ~whole & (Task.n_completed == 0),
    }[state]
    ending = Task.select().where(Task.ended.is_null(), Task.all_formed | Task.cancelled, ~_has_open())
    just_now = [task.id for task in ending if state_of(task) is state]
    return (Task.ended.is_null(False) & ended) | Task.id.in_(just_now)


def _has_open() -> Any:
    return _has(Job.ended_at.is_null())


def _has(condition: Any) -> Any:
    return fn.EXISTS(Job.select(Job.id).where(Job.task == Task.id, condition))
