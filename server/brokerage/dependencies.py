"""What a task waits for before its first job is formed, and what it gains by being a later step: plain look-ups, no change of state."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from peewee import fn

from protocol.errors import PilotageError
from protocol.messages.requests import TaskSpec
from server.core import Limits
from server.models import Dataset, Task, TaskDependency, TaskInput

LONGEST_CHAIN = 100
"""Steps that are counted for the boost of a chain."""
MOST_DEPENDENTS = 10_000
"""Tasks that one cancellation takes along."""


def resolve(spec: TaskSpec, owner: str, working_group: str) -> list[int]:
    """The tasks that `after` names, by number or name. Only tasks that exist can be named, so there is never a cycle.

    NOT_FOUND for one that is not there, FORBIDDEN for one of another tenant.
    """
    found: list[int] = []
    for index, name in enumerate(spec.after):
        if name == spec.name:
            raise PilotageError("BAD_REQUEST", f"after[{index}]: the task cannot wait for itself")
        task = _named(name)
        if task is None:
            raise PilotageError(
                "NOT_FOUND", f"after[{index}]: no task {name[:200]!a}; see 'pilotage task list'"
            )
        if task.owner != owner and not (working_group and task.working_group == working_group):
            raise PilotageError(
                "FORBIDDEN", f"after[{index}]: task {task.name} is {task.owner}'s, of another group"
            )
        found.append(task.id)
    return sorted(set(found))


def _named(name: str) -> Task | None:
    is_number = name.isascii() and name.isdigit() and len(name) < 20 and int(name) < 2**63
    by_number = Task.get_or_none(Task.id == int(name)) if is_number else None
    return by_number or Task.get_or_none(Task.name == name)


def keep(task_id: int, on_tasks: Sequence[int]) -> None:
    """Remember what a new task waits for; inside `Database.write`."""
    if on_tasks:
        TaskDependency.insert_many(
            [(task_id, on_task) for on_task in on_tasks], [TaskDependency.task, TaskDependency.on_task]
        ).execute()


def _completed(task: Any) -> Any:
    """The condition that a task has completed: it has ended, and every job of it did."""
    return task.ended.is_null(False) & task.all_formed & (task.n_completed == task.n_formed)


def is_free() -> Any:
    """The condition that all tasks which a task waits for have completed."""
    other = Task.alias()
    unmet = (
        TaskDependency.select(TaskDependency.task)
        .join(other, on=(TaskDependency.on_task == other.id))
        .where(TaskDependency.task == Task.id, ~_completed(other))
    )
    return ~fn.EXISTS(unmet)


def unmet(task: Task) -> list[Task]:
    """The tasks that this one waits for, those that ended and did not complete among them."""
    query = Task.select().join(TaskDependency, on=(TaskDependency.on_task == Task.id))
    return list(query.where(TaskDependency.task == task.id, ~_completed(Task)).order_by(Task.id))


def dependents(task_id: int) -> list[int]:
    """All tasks that come after this one: those that wait for it or read its output, those after them, and so on."""
    found: list[int] = []
    frontier = [task_id]
    while frontier and len(found) < MOST_DEPENDENTS:
        frontier = [each for each in _next_ones(frontier) if each not in found and each != task_id]
        found += frontier
    return found


def _next_ones(task_ids: Sequence[int]) -> Iterable[int]:
    waiting = TaskDependency.select(TaskDependency.task).where(TaskDependency.on_task.in_(task_ids)).tuples()
    reading = (
        Task.select(Task.id)
        .join(Dataset, on=(Task.input_dataset == Dataset.id))
        .where(Dataset.task_id.in_(task_ids))
    )
    listed = (
        TaskInput.select(TaskInput.task)
        .join(Dataset, on=(TaskInput.dataset == Dataset.id))
        .where(Dataset.task_id.in_(task_ids))
    )
    return sorted({task_id for (task_id,) in [*waiting, *reading.tuples(), *listed.tuples()]})


# -- boosts -----------------------------------------------------------------------------------------------------------------


def boost(limits: Limits, spec: TaskSpec, input_dataset: Dataset | None) -> int:
    """What is added to a new task's priority: for each step of its chain that lies before it, and for its tags."""
    by_tags = sum(number for tag, number in limits.tag_boosts if tag in spec.tags)
    return by_tags + (limits.chain_boost * _depth(input_dataset) if limits.chain_boost else 0)


def _depth(dataset: Dataset | None) -> int:
    """How many tasks made what this dataset is made of, one after the other."""
    depth = 0
    while dataset is not None and dataset.task_id is not None and depth < LONGEST_CHAIN:
        depth += 1
        maker = Task.get_or_none(Task.id == dataset.task_id)
        dataset = maker.input_dataset if maker is not None else None
    return depth
