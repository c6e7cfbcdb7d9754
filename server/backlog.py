"""How many files of a dataset wait to be processed: what whoever fills it asks, to go no faster than its tasks."""

from __future__ import annotations

import functools
from typing import Any

from peewee import fn

from server import catalogue
from server.models import Dataset, File, Job, Task, TaskInput
from server.specs import spec_of

MOST = 100_000
"""Files are counted up to here."""


def of(dataset: Dataset) -> int:
    """Files of which no job was formed, or whose job has not ended; where several tasks read them, those of the slowest one.

    Tasks that have ended leave what came after them; without any task all files wait.
    """
    n_files = catalogue.sizes([dataset])[dataset.id][0]
    going = _going(dataset)
    if going:
        past = {task_id for (task_id,) in _past(dataset).where(Task.ended.is_null()).tuples()}
        # Most of them have come equally far: files are counted once for each place.
        n_after = functools.cache(functools.partial(_n_after, dataset))
        most = 0
        for task in going:
            if task.input_dataset_id == dataset.id:
                n_left = n_after(task.last_file_id)
            else:
                n_left = 0 if task.id in past else n_files
            most = max(most, n_left + _n_open(task))
        return min(most, MOST)
    if _past(dataset).exists():
        return 0
    last = Task.select(fn.MAX(Task.last_file_id)).where(Task.input_dataset == dataset.id).scalar()
    return min(n_files, MOST) if last is None else _n_after(dataset, last)


def _going(dataset: Dataset) -> list[Task]:
    """The tasks over it that have not ended."""
    needed = Task.select(Task.id, Task.spec, Task.input_dataset, Task.last_file_id)
    return list(needed.where(catalogue.reads(dataset.id), Task.ended.is_null()))


def _past(dataset: Dataset) -> Any:
    """A query for the tasks over containers that have formed all jobs over this dataset and read a later one now."""
    mine, current = TaskInput.alias(), TaskInput.alias()
    query = Task.select(Task.id).join(mine, on=(mine.task == Task.id))
    query = query.join(
        current, on=((current.task == Task.id) & (current.dataset == Task.input_dataset)), src=Task
    )
    return query.where(mine.dataset == dataset.id, mine.position < current.position)


def _n_after(dataset: Dataset, last_file_id: int) -> int:
    """Files of which no job was formed by a task that has come so far."""
    files = File.select(File.id).where(
        File.dataset == dataset.id, File.state == "available", File.id > last_file_id
    )
    return int(files.limit(MOST).count())


def _n_open(task: Task) -> int:
    n_jobs = Job.select(fn.COUNT(Job.id)).where(Job.task == task.id, Job.ended_at.is_null()).scalar()
    return int(n_jobs) * spec_of(task).files_per_job
