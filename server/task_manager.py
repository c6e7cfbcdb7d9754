"""Register, cancel and report tasks. A task's state is computed from its jobs."""

from __future__ import annotations

import json

from peewee import fn

from protocol import templates
from protocol.errors import PilotageError
from protocol.files import check_lfn
from protocol.messages import Page, TaskSpec, TaskView
from protocol.resources import ResourceType
from protocol.states import FINAL, DatasetState, JobState, TaskState, task_state
from server import brokerage, catalogue, job_executor
from server.core import Core
from server.models import Attempt, Bundle, Dataset, File, Job, Queue, Task, now
from server.paging import Cursor, iso, page_of
from server.specs import dump, spec_of

CANCEL_CHUNK = 25
"""Jobs cancelled in one transaction."""
LONGEST_COMMAND = 65_536
"""Bytes of all words together; Linux takes 128 KiB in one word and more in all, but nobody should."""
LONGEST_ENVIRONMENT_VALUE = 32_000


def register(core: Core, spec: TaskSpec, owner: str) -> TaskView:
    """Accept a task: everything that can be wrong with it is said now, not by its jobs."""
    _check(spec)

    def work() -> Task:
        if Task.get_or_none(Task.name == spec.name):
            raise PilotageError("ALREADY_EXISTS", f"there is a task {spec.name} already")
        _check_against_database(spec)
        task = Task.create(
            name=spec.name,
            owner=owner,
            spec=dump(spec),
            resource_type=spec.resource_type.value,
            priority=spec.priority,
            job_class=brokerage.class_of(brokerage.needs_of(spec)),
            input_dataset=Dataset.get(Dataset.name == spec.input_dataset) if spec.input_dataset else None,
        )
        if spec.outputs:
            output = catalogue.create_output(spec.output_dataset or f"{spec.name}.out", task.id)
            Task.update(output_dataset=output).where(Task.id == task.id).execute()
        return Task.get_by_id(task.id)

    return view(core.database.write(work), with_spec=True)


def _check(spec: TaskSpec) -> None:
    """What can be said of a specification by itself."""
    if spec.name.isdigit():
        raise PilotageError(
            "BAD_REQUEST", f"name: {spec.name} has only digits and would be taken for a task's number"
        )
    if sum(len(word.encode()) for word in spec.command) > LONGEST_COMMAND:
        raise PilotageError(
            "BAD_REQUEST", f"command: more than {LONGEST_COMMAND} bytes; ship a script instead (--ship)"
        )
    for index, word in enumerate(spec.command):
        used = templates.check(word, templates.COMMAND_PLACEHOLDERS, f"command[{index}]")
        _check_use(used, spec, f"command[{index}]")
        if "\0" in word:
            raise PilotageError("BAD_REQUEST", f"command[{index}] contains a NUL character")
    for name, value in spec.environment.items():
        if (
            not name
            or "=" in name
            or "\0" in name + value
            or len(name) > 200
            or len(value) > LONGEST_ENVIRONMENT_VALUE
        ):
            raise PilotageError(
                "BAD_REQUEST", f"environment: {name[:60]!a} is no name and value that a process can have"
            )
        used = templates.check(value, templates.COMMAND_PLACEHOLDERS, f"environment {name}")
        _check_use(used, spec, f"environment {name}")
    if spec.gpus and spec.resource_type is not ResourceType.GPU:
        raise PilotageError(
            "BAD_REQUEST", f"gpus: {spec.gpus} are asked for, and resourceType is {spec.resource_type}"
        )
    if bool(spec.input_dataset) == bool(spec.n_jobs):
        raise PilotageError(
            "BAD_REQUEST", "a task has either an input dataset (one job per file) or nJobs jobs without input"
        )
    if spec.n_jobs and spec.files_per_job != 1:
        raise PilotageError("BAD_REQUEST", "filesPerJob goes with an input dataset only")
    for index, output in enumerate(spec.outputs):
        used = templates.check(output, templates.OUTPUT_PLACEHOLDERS, f"outputs[{index}]")
        check_lfn(templates.fill(output, dict.fromkeys(templates.OUTPUT_PLACEHOLDERS, "1")))
        if not used & ({"lfn", "stem", "job_nr"} if spec.input_dataset else {"job_nr"}) and spec.n_jobs != 1:
            better = "{stem} or {job_nr}" if spec.input_dataset else "{job_nr}"
            raise PilotageError(
                "BAD_REQUEST",
                f"outputs[{index}] {output[:60]!a} is the same for every job; put {better} into it",
            )
        if spec.n_jobs and used & {"lfn", "stem"}:
            raise PilotageError(
                "BAD_REQUEST", f"outputs[{index}] {output[:60]!a} names an input, and the task has none"
            )
    if len(set(spec.outputs)) != len(spec.outputs):
        raise PilotageError("BAD_REQUEST", "outputs: a template is there twice")


def _check_use(used: set[str], spec: TaskSpec, where: str) -> None:
    """A placeholder that stands for nothing in this task would silently become nothing."""
    for names, given, what in (
        ({"input", "inputs", "lfn", "stem"}, spec.input_dataset, "input dataset"),
        ({"output", "outputs"}, spec.outputs, "outputs"),
        ({"bundle"}, spec.bundle, "bundle (--ship)"),
    ):
        if used & names and not given:
            raise PilotageError(
                "BAD_REQUEST", f"{where}: {{{min(used & names)}}} is used, and the task has no {what}"
            )


def _check_against_database(spec: TaskSpec) -> None:
    """What the specification names must exist."""
    if spec.input_dataset:
        dataset = catalogue.find(spec.input_dataset)
        if dataset.state == DatasetState.DELETED.value:
            raise PilotageError("WRONG_STATE", f"dataset {dataset.name} was deleted")
        if (
            dataset.state == DatasetState.CLOSED.value
            and not File.select().where(File.dataset == dataset.id).exists()
        ):
            raise PilotageError(
                "BAD_REQUEST", f"dataset {dataset.name} is closed and has no files: there would be no job"
            )
    if spec.queue:
        queue = Queue.get_or_none(Queue.name == spec.queue)
        if queue is None:
            raise PilotageError("NOT_FOUND", f"no queue {spec.queue}; see 'pilotage queue list'")
        if queue.resource_type != spec.resource_type.value:
            raise PilotageError(
                "BAD_REQUEST",
                f"queue {queue.name} is a {queue.resource_type} queue and the task asks for {spec.resource_type}",
            )
    if spec.bundle and not Bundle.get_or_none(Bundle.digest == spec.bundle):
        raise PilotageError(
            "NOT_FOUND", f"no bundle {spec.bundle}; send it first: PUT /v1/bundles/{spec.bundle}"
        )


def find(id_or_name: str) -> Task:
    task = Task.get_or_none(Task.id == int(id_or_name)) if _is_id(id_or_name) else None
    task = task or Task.get_or_none(Task.name == id_or_name)
    if task is None:
        raise PilotageError("NOT_FOUND", f"no task {id_or_name[:200]}; see 'pilotage task list'")
    return task


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20 and 0 < int(text) < 2**63


def cancel(core: Core, id_or_name: str, caller: str) -> TaskView:
    """End a task: no further job is formed, and those that have not ended are cancelled, a chunk at a time."""

    def stop_forming() -> int:
        task = find(id_or_name)
        if task.ended is None:
            Task.update(cancelled=True).where(Task.id == task.id, Task.ended.is_null()).execute()
        return int(task.id)

    task_id = core.database.write(stop_forming)
    with core.database.reading():
        unfinished = Job.state.not_in([state.value for state in FINAL])
        while ids := [
            job.id for job in Job.select(Job.id).where(Job.task == task_id, unfinished).limit(CANCEL_CHUNK)
        ]:
            job_executor.cancel(core, ids, caller, f"task {task_id} was cancelled")
        return view(Task.get_by_id(task_id))


# -- reports ----------------------------------------------------------------------------------------------------------------


def counts_of(task: Task) -> dict[JobState, int]:
    rows = Job.select(Job.state, fn.COUNT(Job.id)).where(Job.task == task.id).group_by(Job.state).tuples()
    return {JobState(state): n for state, n in rows}


def expected_jobs(task: Task) -> int:
    """How many jobs the task has when all are formed; of an open input dataset, as many as its files give now."""
    spec = spec_of(task)
    if task.all_formed:
        return int(task.n_formed)
    if task.input_dataset_id is None:
        return spec.n_jobs
    n_files = File.select().where(File.dataset == task.input_dataset_id, File.state == "available").count()
    expected = -(-n_files // spec.files_per_job)
    # An open dataset may grow: there is always one more to come.
    return expected + (task.input_dataset.state == DatasetState.OPEN.value)


def state_of(task: Task) -> TaskState:
    return task_state(counts_of(task), expected_jobs(task), task.cancelled)


def view(task: Task, with_spec: bool = False) -> TaskView:
    counts = counts_of(task)
    expected = expected_jobs(task)
    output = task.output_dataset
    n_outputs = (
        File.select().where(File.dataset == output.id, File.state == "available").count() if output else 0
    )
    errors = (
        Job.select(Job.error, fn.COUNT(Job.id))
        .where(Job.task == task.id, Job.state == JobState.FAILED.value)
        .group_by(Job.error)
    )
    return TaskView(
        task_id=task.id,
        name=task.name,
        owner=task.owner,
        state=task_state(counts, expected, task.cancelled).value,
        n_jobs=expected,
        counts={state.value: counts[state] for state in JobState if state in counts},
        n_attempts=Attempt.select().join(Job, on=(Attempt.job == Job.id)).where(Job.task == task.id).count(),
        created=iso(task.created),
        resource_type=task.resource_type,
        priority=task.priority,
        input_dataset=task.input_dataset.name if task.input_dataset else None,
        output_dataset=output.name if output else None,
        output_state=output.state if output else None,
        n_outputs=n_outputs,
        started=iso(task.started) if task.started else None,
        ended=iso(task.ended) if task.ended else None,
        errors=dict(errors.tuples()),
        spec=json.loads(task.spec) if with_spec else None,
    )


def tasks(cursor: Cursor, state: str = "", name: str = "") -> Page:
    query = Task.select()
    if name:
        query = query.where(Task.name.contains(name))
    if state:
        matching = [task.id for task in query if state_of(task).value == state]
        query = Task.select().where(Task.id.in_(matching))
    return page_of(query, Task.id, cursor, view)


def end(core: Core, task_id: int) -> bool:
    """Close a task whose jobs have all ended, and its output dataset, once; whether it was that time."""

    def work() -> bool:
        task = core.database.locked(Task.select().where(Task.id == task_id)).get()
        if task.ended is not None:
            return False
        counts = counts_of(task)
        formed = sum(counts.values())
        if formed != sum(counts.get(state, 0) for state in FINAL) or not (task.all_formed or task.cancelled):
            return False
        if task.output_dataset_id is not None:
            catalogue.close_output(task.output_dataset_id)
        # Not all_formed too: of a task that was cancelled before, the jobs not formed count as not done.
        last = Job.select(fn.MAX(Job.changed)).where(Job.task == task.id).scalar()
        Task.update(ended=last or now()).where(Task.id == task.id).execute()
        return True

    return core.database.write(work)
