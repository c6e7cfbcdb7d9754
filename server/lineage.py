"""Of what a dataset was made, by which tasks, and what was made of it."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Callable, Collection
from typing import Any

from protocol.messages.views import Lineage, LineageStep
from server.models import Dataset, Task, TaskInput
from server.specs import spec_of

MOST = 1000
"""Datasets told of."""
MOST_INPUTS = 100
"""Inputs told of one task."""
LONGEST = 500
"""Characters of a command."""

Next = Callable[[Collection[Dataset]], Any]
"""A query for the ids of the datasets that come next to these."""


def of(dataset: Dataset) -> Lineage:
    """The dataset itself, with level 0, what it was made of with levels below, and what was made of it with levels above."""
    found = {dataset.id: (0, dataset)}
    complete = _follow(found, dataset, -1, _made_of) and _follow(found, dataset, 1, _made_from)
    told = sorted(found.values(), key=lambda pair: (pair[0], pair[1].id))
    made_by = {each.task_id for _, each in told if each.task_id is not None}
    makers = {
        task.id: task for task in Task.select(Task.id, Task.name, Task.spec).where(Task.id.in_(made_by))
    }
    inputs = _inputs(makers)
    steps = [_step(level, each, makers.get(each.task_id), inputs) for level, each in told]
    cut = any(len(names) > MOST_INPUTS for names in inputs.values())
    return Lineage(dataset.name, steps, more=cut or not complete)


def _follow(found: dict[int, tuple[int, Dataset]], start: Dataset, by: int, following: Next) -> bool:
    """Add what is reached in one direction, level by level; whether that is all."""
    frontier, level = [start], 0
    while frontier:
        level += by
        room = MOST - len(found)
        new = Dataset.select().where(Dataset.id.in_(following(frontier)), Dataset.id.not_in(list(found)))
        frontier = list(new.order_by(Dataset.id).limit(room + 1))
        found |= {each.id: (level, each) for each in frontier[:room]}
        if len(frontier) > room:
            return False
    return True


def _made_of(datasets: Collection[Dataset]) -> Any:
    makers = [each.task_id for each in datasets if each.task_id is not None]
    listed = TaskInput.select(TaskInput.dataset).where(TaskInput.task.in_(makers))
    # Of a task over a container this one is listed, too.
    current = Task.select(Task.input_dataset).where(Task.id.in_(makers), Task.input_dataset.is_null(False))
    return current.union(listed)


def _made_from(datasets: Collection[Dataset]) -> Any:
    ids = [each.id for each in datasets]
    made = Task.select(Task.output_dataset).where(Task.output_dataset.is_null(False))
    listed = TaskInput.select(TaskInput.task).where(TaskInput.dataset.in_(ids))
    return made.where(Task.input_dataset.in_(ids)).union(made.where(Task.id.in_(listed)))


def _inputs(makers: Collection[int]) -> dict[int, list[str]]:
    """The names of what each task reads, in that order; one more than are told, where there are more."""
    tasks = list(makers)
    alone = Task.select(Task.id, Dataset.name).join(Dataset, on=(Task.input_dataset == Dataset.id))
    alone = alone.where(Task.id.in_(tasks), Task.input_container.is_null())
    inputs = {task_id: [name] for task_id, name in alone.tuples()}
    listed = TaskInput.select(TaskInput.task, Dataset.name).join(Dataset)
    listed = listed.where(TaskInput.task.in_(tasks), TaskInput.position <= MOST_INPUTS)
    rows = listed.order_by(TaskInput.task, TaskInput.position).tuples()
    for task_id, group in itertools.groupby(rows, key=lambda row: row[0]):
        inputs[task_id] = [name for _, name in group]
    return inputs


def _step(level: int, dataset: Dataset, maker: Task | None, inputs: dict[int, list[str]]) -> LineageStep:
    step = LineageStep(dataset.name, level, dataset.state, dataset.owner)
    if maker is not None:
        spec = spec_of(maker)
        step.task_id, step.task = maker.id, maker.name
        step.inputs = inputs.get(maker.id, [])[:MOST_INPUTS]
        step.command = shlex.join(spec.command)[:LONGEST]
        step.software = spec.software or spec.image or (f"bundle {spec.bundle}" if spec.bundle else "")
    return step
