"""How many files of a dataset wait to be processed: what whoever fills it asks, to go no faster than its tasks."""

from __future__ import annotations

from peewee import fn

from server import catalogue, containers
from server.models import Dataset, File, Job, Task
from server.specs import spec_of

MOST = 100_000
"""Files are counted up to here."""


def of(dataset: Dataset) -> int:
    """Files of which no job was formed, or whose job has not ended; where several tasks read them, those of the slowest one.

    Tasks that have ended leave what came after them; without any task all files wait.
    """
    tasks = list(Task.select().where(catalogue.reads(dataset.id)))
    n_files = catalogue.sizes([dataset])[dataset.id][0]
    going = [_n_left(task, dataset, n_files) + _n_open(task) for task in tasks if task.ended is None]
    if going:
        return min(max(going), MOST)
    if tasks:
        return min(_n_left(task, dataset, n_files) for task in tasks)
    return min(n_files, MOST)


def _n_left(task: Task, dataset: Dataset, n_files: int) -> int:
    """Files of which no job was formed. In a container the dataset may come later, or have been read before."""
    if task.input_dataset_id != dataset.id:
        order = [each.id for each in containers.inputs_of(task)]
        return n_files if order.index(dataset.id) > order.index(task.input_dataset_id) else 0
    files = File.select(File.id).where(
        File.dataset == task.input_dataset_id, File.state == "available", File.id > task.last_file_id
    )
    return int(files.limit(MOST).count())


def _n_open(task: Task) -> int:
    n_jobs = Job.select(fn.COUNT(Job.id)).where(Job.task == task.id, Job.ended_at.is_null()).scalar()
    return int(n_jobs) * spec_of(task).files_per_job
