"""Of what a dataset was made, by which tasks, and what was made of it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable

from protocol.messages.views import Lineage, LineageStep
from server import containers
from server.models import Dataset, Task
from server.specs import spec_of

MOST = 1000
"""Datasets told of."""
LONGEST = 500
"""Characters of a command."""

Next = Callable[[Dataset], Iterable[Dataset]]


def of(dataset: Dataset) -> Lineage:
    """The dataset itself, with level 0, what it was made of with levels below, and what was made of it with levels above."""
    found = {dataset.id: (0, dataset)}
    complete = _follow(found, dataset, -1, _made_of) and _follow(found, dataset, 1, _made_from)
    steps = [
        _step(level, each) for level, each in sorted(found.values(), key=lambda pair: (pair[0], pair[1].id))
    ]
    return Lineage(dataset.name, steps, more=not complete)


def _follow(found: dict[int, tuple[int, Dataset]], start: Dataset, by: int, following: Next) -> bool:
    """Add what is reached in one direction, level by level; whether that is all."""
    frontier, level = [start], 0
    while frontier:
        level += by
        reached = {each.id: each for one in frontier for each in following(one) if each.id not in found}
        if len(found) + len(reached) > MOST:
            return False
        found |= {dataset_id: (level, each) for dataset_id, each in reached.items()}
        frontier = list(reached.values())
    return True


def _maker(dataset: Dataset) -> Task | None:
    return Task.get_or_none(Task.id == dataset.task_id) if dataset.task_id is not None else None


def _made_of(dataset: Dataset) -> Iterable[Dataset]:
    maker = _maker(dataset)
    return containers.inputs_of(maker) if maker is not None else ()


def _made_from(dataset: Dataset) -> Iterable[Dataset]:
    outputs = Dataset.select().join(Task, on=(Task.output_dataset == Dataset.id))
    return list(outputs.where(containers.reads(dataset.id)).order_by(Dataset.id).limit(MOST + 1))


def _step(level: int, dataset: Dataset) -> LineageStep:
    maker = _maker(dataset)
    step = LineageStep(dataset.name, level, dataset.state, dataset.owner)
    if maker is not None:
        spec = spec_of(maker)
        step.task_id, step.task = maker.id, maker.name
        step.inputs = [each.name for each in containers.inputs_of(maker)]
        step.command = shlex.join(spec.command)[:LONGEST]
        step.software = spec.software or spec.image or (f"bundle {spec.bundle}" if spec.bundle else "")
    return step
