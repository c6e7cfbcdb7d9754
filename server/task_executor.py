"""Form jobs from the contents of datasets, with controlled loading: a bounded stock of READY jobs, never all at once.

Jobs of equal needs and priority share a stock, whatever their tasks. A pass asks how full each stock is; it looks at tasks
only where there is room, and never holds more of them, or of their files, than one chunk.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from peewee import JOIN, fn

from protocol.messages.requests import TaskSpec
from protocol.states import DatasetState, JobState, ReplicaState
from server import containers, job_executor
from server.access import quotas
from server.access.quotas import Quotas
from server.brokerage import dependencies
from server.core import Core
from server.jobs import forming, operations
from server.jobs.forming import NewJob
from server.models import Dataset, File, Job, JobClass, Replica, Task
from server.pace import Pace
from server.specs import output_names, spec_of
from server.waiting import wake

PASS_JOBS = 5_000
"""Most jobs that a pass forms of one stock: then the others have their turn, and this one goes on in the next pass."""
PAGE = 100
"""Tasks looked at in one go."""
PLACE_SECONDS = 60.0
"""How long the place of the first job of a stock is remembered."""


@dataclass(frozen=True)
class Stock:
    """READY jobs of one class and priority."""

    class_id: int
    priority: int


def run_once(core: Core) -> int:
    """One pass: promote retries that are due, then top up the stocks, high priorities first; how many jobs were formed."""
    job_executor.promote(core)
    operations.settle_all(core)
    with core.database.reading():
        budget = functools.cache(quotas.now)
        return sum(_top_up(core, stock, budget) for stock in _wanted())


def _wanted() -> list[Stock]:
    """The stocks for which some task has more to form."""
    priority = Task.priority + Task.boost
    query = _forming(Task.select(Task.job_class, priority.alias("of_jobs"), fn.MIN(Task.id)))
    rows = query.group_by(Task.job_class, priority).tuples()
    by_order = sorted(rows, key=lambda row: (-row[1], row[2]))
    return [Stock(class_id, jobs_priority) for class_id, jobs_priority, _ in by_order]


def _forming(query: Any) -> Any:
    """The tasks that have something to form, or the end of forming to be noted."""
    new_files = File.select(File.id).where(
        File.dataset == Task.input_dataset, File.state == "available", File.id > Task.last_file_id
    )
    has_more = (
        Task.input_dataset.is_null()
        | (Dataset.state != DatasetState.OPEN.value)
        | (Dataset.task_id.is_null() & fn.EXISTS(new_files))
    )
    return query.join(Dataset, JOIN.LEFT_OUTER, on=(Task.input_dataset == Dataset.id)).where(
        ~Task.all_formed, ~Task.cancelled, ~Task.paused, has_more, dependencies.is_free()
    )


def _top_up(core: Core, stock: Stock, budget: Callable[[], Quotas]) -> int:
    """Form jobs until a stock is full, as far as the quotas of the tasks allow.

    Each class and priority has a stock of its own, so that jobs which nobody serves now do not keep others from being formed.
    """
    missing = core.limits.ready_stock - _n_ready(core, stock, core.limits.ready_stock)
    if missing <= 0:
        return 0
    class_key = JobClass.get_by_id(stock.class_id).key
    room = left = min(missing, PASS_JOBS)
    for task in _tasks_of(stock):
        allowed = budget().room(task)
        formed = _form(core, task, left if allowed is None else min(left, allowed), class_key)
        budget().took(task, formed)
        left -= formed
        if left <= 0:
            break
    if left <= 0 and missing > room:
        core.to_form.set()
    return room - left


def _n_ready(core: Core, stock: Stock, limit: int) -> int:
    """How many jobs of it nobody holds now; counted up to the limit.

    On Postgres what was claimed long ago may still lie before the first of them, so where that is is looked up only now and
    then; one that is not seen because it lies before that is no harm.
    """
    waiting = (
        (Job.job_class == stock.class_id) & (Job.priority == stock.priority) & Job.ready_nr.is_null(False)
    )
    place = core.recent.get(
        ("stock", stock.class_id, stock.priority),
        lambda: Job.select(fn.MIN(Job.ready_nr)).where(waiting).scalar() or 0,
        PLACE_SECONDS,
    )
    query = Job.select(Job.ready_nr).where(waiting, Job.ready_nr >= place, Job.state == JobState.READY.value)
    return int(query.limit(limit).count())


def _tasks_of(stock: Stock) -> Iterator[Task]:
    """First come, first served."""
    last = 0
    while True:
        query = _forming(Task.select(Task, Dataset)).where(
            Task.id > last, Task.job_class == stock.class_id, Task.priority + Task.boost == stock.priority
        )
        tasks = list(query.order_by(Task.id).limit(PAGE))
        yield from tasks
        if len(tasks) < PAGE:
            return
        last = tasks[-1].id


def _form(core: Core, task: Task, n: int, class_key: str) -> int:
    """Form at most `n` jobs of a task; how many there were."""
    if n <= 0 or not _is_enough(task):
        return 0
    pace = Pace(seconds=core.database.bulk_seconds)
    formed = 0
    while formed < n:
        new, ready = core.database.write(functools.partial(_form_some, core, task.id, n - formed, pace))
        if ready:
            core.broker.changed()
            wake.poke(core, {class_key: ready})
        formed += new
        if not new:
            break
    return formed


def _is_enough(task: Task) -> bool:
    """Whether what is new in an open dataset makes a job: a dataset that grows slowly costs no transaction per pass."""
    if task.input_dataset_id is None or task.input_dataset.state == DatasetState.CLOSED.value:
        return True
    size = spec_of(task).files_per_job
    return bool(_next_files(task).offset(size - 1).limit(1).exists())


def _next_files(task: Task) -> Any:
    """Files that no job of the task reads yet, in order."""
    query = File.select(File.id, File.lfn).where(
        File.dataset == task.input_dataset_id, File.state == "available", File.id > task.last_file_id
    )
    if task.target_storage:
        there = Replica.select().where(
            Replica.file == File.id,
            Replica.storage == task.target_storage,
            Replica.state == ReplicaState.GOOD.value,
        )
        query = query.where(~fn.EXISTS(there))
    return query.order_by(File.id)


def _form_some(core: Core, task_id: int, n: int, pace: Pace) -> tuple[int, int]:
    """Form a chunk of at most `n` jobs of a task; inside `Database.write`. How many, and how many of them may be claimed.

    The task's row remembers how far it has come.
    """
    task = core.database.locked(Task.select().where(Task.id == task_id)).get()
    if task.all_formed or task.cancelled or task.paused:
        return 0, 0
    spec = spec_of(task)
    rows_of_job = 1 + (spec.files_per_job if task.input_dataset_id is not None else 0) + len(spec.outputs)
    n = max(1, min(n, pace.rows // rows_of_job))
    with pace.measured(n * rows_of_job):
        groups, all_formed = _next_groups(task, spec, n)
        jobs = [
            _new_job(task, spec, task.n_formed + index, files) for index, files in enumerate(groups, start=1)
        ]
        ready = forming.form(core, task, jobs)
        last_file_id = groups[-1][-1][0] if groups and groups[-1] else task.last_file_id
        changes = {
            "n_formed": task.n_formed + len(jobs),
            "last_file_id": last_file_id,
            "all_formed": all_formed,
        }
        if all_formed and task.input_container is not None:
            changes |= _go_on(task)
        Task.update(changes).where(Task.id == task.id).execute()
    return len(jobs), ready


def _go_on(task: Task) -> dict[str, Any]:
    """What changes in a task over a container, of which one dataset has been read."""
    following = containers.after(task)
    if following is None:
        return {}
    return {"input_dataset": following, "last_file_id": 0, "all_formed": False}


Group = Sequence[tuple[int, str]]
"""The inputs of a job: id and name of each."""


def _next_groups(task: Task, spec: TaskSpec, n: int) -> tuple[list[Group], bool]:
    """The inputs of the next `n` jobs, and whether these are the last ones.

    An open dataset may still grow, so its last, incomplete group waits. The outputs of another task become available in
    any order, and the task's row remembers but one place, so they wait until that task has ended.
    """
    if task.input_dataset_id is None:
        n = min(n, spec.n_jobs - task.n_formed)
        return [()] * n, task.n_formed + n >= spec.n_jobs
    if task.input_dataset.state == DatasetState.DELETED.value:
        return [], True
    size = spec.files_per_job
    closed = task.input_dataset.state == DatasetState.CLOSED.value
    if not closed and task.input_dataset.task_id is not None:
        return [], False
    files = list(_next_files(task).limit(n * size + 1).tuples())
    used = files[: n * size]
    if not closed:
        used = used[: len(used) - len(used) % size]
    groups: list[Group] = [used[start : start + size] for start in range(0, len(used), size)]
    return groups, closed and len(files) == len(used)


def _new_job(task: Task, spec: TaskSpec, job_nr: int, files: Group) -> NewJob:
    lfn = files[0][1] if files else ""
    return NewJob(job_nr, [file_id for file_id, _ in files], output_names(spec, task.id, job_nr, lfn))
