"""Form jobs from the contents of datasets, with controlled loading: a bounded stock of READY jobs, never all at once."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from protocol import templates
from protocol.messages import TaskSpec
from protocol.states import DatasetState
from server import job_executor
from server.core import Core
from server.job_executor import NewJob
from server.models import File, Job, Task
from server.specs import spec_of

CHUNK = 50
"""Jobs formed in one transaction, so that no transaction takes longer than a few milliseconds."""


def run_once(core: Core) -> int:
    """One pass: promote retries that are due, then top up the stock, high priorities first; how many jobs were formed."""
    job_executor.promote(core)
    with core.database.reading():
        query = Task.select().where(~Task.all_formed, ~Task.cancelled)
        tasks = list(query.order_by(Task.priority.desc(), Task.id))
    return sum(_top_up(core, task) for task in tasks)


def _top_up(core: Core, task: Task) -> int:
    """Form jobs of a task until the stock of its class and priority is full.

    Each class has a stock of its own, so that jobs which nobody serves now do not keep others from being formed.
    """
    with core.database.reading():
        room = core.limits.ready_stock - _stock(task) if _has_more(task) else 0
    formed = 0
    while room > formed:
        new = core.database.write(functools.partial(_form_some, core, task.id, min(CHUNK, room - formed)))
        formed += new
        if not new:
            break
    return formed


def _has_more(task: Task) -> bool:
    """Whether there is something to form, or the end of forming to be noted; cheap, for each task that waits for files."""
    if task.input_dataset_id is None or task.input_dataset.state == DatasetState.CLOSED.value:
        return True
    available = File.select().where(
        File.dataset == task.input_dataset_id, File.state == "available", File.id > task.last_file_id
    )
    return bool(available.exists())


def _stock(task: Task) -> int:
    """How many jobs of the task's class and priority may be claimed now."""
    query = Job.select().where(
        Job.job_class == task.job_class_id, Job.priority == task.priority, Job.ready_nr.is_null(False)
    )
    return int(query.count())


def _form_some(core: Core, task_id: int, n: int) -> int:
    """Form at most `n` jobs of a task; inside `Database.write`. The task's row remembers how far it has come."""
    task = core.database.locked(Task.select().where(Task.id == task_id)).get()
    if task.all_formed or task.cancelled:
        return 0
    spec = spec_of(task)
    if task.input_dataset_id is None:
        n = min(n, spec.n_jobs - task.n_formed)
        groups: list[Sequence[File]] = [()] * n
        all_formed = task.n_formed + n >= spec.n_jobs
    else:
        groups, all_formed = _next_groups(task, spec, n)
    jobs = [_new_job(task, spec, task.n_formed + index, files) for index, files in enumerate(groups, start=1)]
    job_executor.form(core, task, jobs)
    last_file_id = groups[-1][-1].id if groups and groups[-1] else task.last_file_id
    Task.update(n_formed=task.n_formed + len(jobs), last_file_id=last_file_id, all_formed=all_formed).where(
        Task.id == task.id
    ).execute()
    return len(jobs)


def _next_groups(task: Task, spec: TaskSpec, n: int) -> tuple[list[Sequence[File]], bool]:
    """The inputs of the next `n` jobs, and whether these are the last ones.

    An open dataset may still grow, so its last, incomplete group waits. The outputs of another task become available in
    any order, and the task's row remembers but one place, so they wait until that task has ended.
    """
    size = spec.files_per_job
    closed = task.input_dataset.state == DatasetState.CLOSED.value
    if not closed and task.input_dataset.task_id is not None:
        return [], False
    available = (
        File.select()
        .where(File.dataset == task.input_dataset_id, File.state == "available", File.id > task.last_file_id)
        .order_by(File.id)
        .limit(n * size + 1)
    )
    files = list(available)
    used = files[: n * size]
    if not closed:
        used = used[: len(used) - len(used) % size]
    groups: list[Sequence[File]] = [used[start : start + size] for start in range(0, len(used), size)]
    return groups, closed and len(files) == len(used)


def _new_job(task: Task, spec: TaskSpec, job_nr: int, files: Sequence[File]) -> NewJob:
    lfn = files[0].lfn if files else ""
    values = {"lfn": lfn, "stem": templates.stem(lfn), "task_id": str(task.id), "job_nr": str(job_nr)}
    return NewJob(
        job_nr, [file.id for file in files], [templates.fill(template, values) for template in spec.outputs]
    )
