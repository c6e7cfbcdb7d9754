"""The native door for users and operators: tasks, jobs, datasets, files, pilots, queues, storages, bundles."""

from __future__ import annotations

from typing import Any

from protocol.errors import BY_NAME
from protocol.messages import (
    BundleRef,
    DatasetSpec,
    DatasetView,
    FileList,
    JobView,
    Page,
    PilotView,
    QueueSpec,
    QueueStateSpec,
    QueueView,
    StorageSpec,
    StorageView,
    TaskSpec,
    TaskView,
)
from protocol.states import DatasetState, JobState, PilotState, TaskState
from server import bundles, catalogue, computing, job_executor, job_manager, task_manager
from server.routes import Call, Door
from server.tokens import Role
from server.wire import path_id

door = Door()


def _values(states: Any) -> tuple[str, ...]:
    return tuple(state.value for state in states)


# -- tasks ------------------------------------------------------------------------------------------------------------------


@door.route("POST", "/v1/tasks", Role.USER, TaskSpec, TaskView, 201)
def submit_task(call: Call, spec: TaskSpec) -> TaskView:
    """Register a task."""
    return task_manager.register(call.core, spec, call.caller.name)


@door.route("GET", "/v1/tasks", Role.USER, None, Page)
def list_tasks(call: Call) -> Page:
    """Tasks, by state or a part of the name."""
    cursor = call.query.cursor()
    state, name = call.query.text("state", _values(TaskState)), call.query.text("name")
    call.query.finish()
    return task_manager.tasks(cursor, state, name)


@door.route("GET", "/v1/tasks/<task>", Role.USER, None, TaskView)
def show_task(call: Call, task: str) -> TaskView:
    """One task, by its number or name, with its specification."""
    return task_manager.view(task_manager.find(task), with_spec=True)


@door.route("POST", "/v1/tasks/<task>/cancel", Role.USER, None, TaskView)
def cancel_task(call: Call, task: str) -> TaskView:
    """Cancel a task and all of its jobs that have not ended."""
    return task_manager.cancel(call.core, task, call.caller.name)


# -- jobs -------------------------------------------------------------------------------------------------------------------


@door.route("GET", "/v1/jobs", Role.USER, None, Page)
def list_jobs(call: Call) -> Page:
    """Jobs, by task (number or name), state or error."""
    cursor = call.query.cursor()
    task, state = call.query.text("task"), call.query.text("state", _values(JobState))
    error = call.query.text("error", tuple(BY_NAME))
    call.query.finish()
    return job_manager.jobs(cursor, task_manager.find(task).id if task else None, state, error)


@door.route("GET", "/v1/jobs/<job>", Role.USER, None, JobView)
def show_job(call: Call, job: str) -> JobView:
    """One job with its files, attempts and history."""
    return job_manager.details(job_manager.find(path_id(job, "job")))


@door.route("POST", "/v1/jobs/<job>/cancel", Role.USER, None, JobView)
def cancel_job(call: Call, job: str) -> JobView:
    """Cancel a job that has not ended; one that has is left as it is."""
    found = job_manager.find(path_id(job, "job"))
    job_executor.cancel(call.core, [found.id], call.caller.name, "the job was cancelled")
    return job_manager.details(job_manager.find(found.id))


# -- datasets and files -----------------------------------------------------------------------------------------------------


@door.route("POST", "/v1/datasets", Role.USER, DatasetSpec, DatasetView, 201)
def create_dataset(call: Call, spec: DatasetSpec) -> DatasetView:
    """Register a dataset, with its first files."""
    return catalogue.create(call.core, spec)


@door.route("GET", "/v1/datasets", Role.USER, None, Page)
def list_datasets(call: Call) -> Page:
    """Datasets, by state or a part of the name."""
    cursor = call.query.cursor()
    state, name = call.query.text("state", _values(DatasetState)), call.query.text("name")
    call.query.finish()
    return catalogue.datasets(cursor, state, name)


@door.route("GET", "/v1/datasets/<name>", Role.USER, None, DatasetView)
def show_dataset(call: Call, name: str) -> DatasetView:
    """One dataset."""
    return catalogue.view(catalogue.find(name))


@door.route("POST", "/v1/datasets/<name>/files", Role.USER, FileList, DatasetView)
def add_files(call: Call, files: FileList, name: str) -> DatasetView:
    """Add files to an open dataset."""
    return catalogue.add_files(call.core, name, files.files, files.close)


@door.route("POST", "/v1/datasets/<name>/close", Role.USER, None, DatasetView)
def close_dataset(call: Call, name: str) -> DatasetView:
    """Close a dataset for good."""
    return catalogue.close(call.core, name)


@door.route("GET", "/v1/datasets/<name>/files", Role.USER, None, Page)
def list_dataset_files(call: Call, name: str) -> Page:
    """The files of a dataset."""
    cursor = call.query.cursor()
    call.query.finish()
    return catalogue.files(cursor, dataset=name)


@door.route("GET", "/v1/files", Role.USER, None, Page)
def list_files(call: Call) -> Page:
    """Files, by dataset, scope or logical name."""
    cursor = call.query.cursor()
    dataset, scope, lfn = call.query.text("dataset"), call.query.text("scope"), call.query.text("lfn")
    call.query.finish()
    return catalogue.files(cursor, dataset, scope, lfn)


@door.route("PUT", "/v1/bundles/<digest>", Role.USER, None, BundleRef)
def put_bundle(call: Call, digest: str) -> BundleRef:
    """Keep a bundle (.tar.gz) under its SHA-256."""
    return bundles.store(call.core, digest, call.request.stream, call.caller.name)


# -- resources --------------------------------------------------------------------------------------------------------------


@door.route("GET", "/v1/pilots", Role.USER, None, Page)
def list_pilots(call: Call) -> Page:
    """Pilots, by queue or state."""
    cursor = call.query.cursor()
    queue, state = call.query.text("queue"), call.query.text("state", _values(PilotState))
    call.query.finish()
    return job_manager.pilots(cursor, queue, state)


@door.route("GET", "/v1/pilots/<pilot>", Role.USER, None, PilotView)
def show_pilot(call: Call, pilot: str) -> PilotView:
    """One pilot."""
    return job_manager.pilot(pilot)


@door.route("GET", "/v1/queues", Role.USER, None, Page)
def list_queues(call: Call) -> Page:
    """All queues, with what waits and runs in each."""
    call.query.finish()
    return computing.queues()


@door.route("POST", "/v1/queues", Role.ADMIN, QueueSpec, QueueView, 201)
def create_queue(call: Call, spec: QueueSpec) -> QueueView:
    """Define a queue."""
    return computing.create_queue(call.core, spec)


@door.route("GET", "/v1/queues/<name>", Role.USER, None, QueueView)
def show_queue(call: Call, name: str) -> QueueView:
    """One queue."""
    return computing.queue_view(computing.find_queue(name))


@door.route("POST", "/v1/queues/<name>/state", Role.ADMIN, QueueStateSpec, QueueView)
def set_queue_state(call: Call, wish: QueueStateSpec, name: str) -> QueueView:
    """Set a queue online, test, drain or offline."""
    return computing.set_queue_state(call.core, name, wish.state)


@door.route("GET", "/v1/storages", Role.USER, None, Page)
def list_storages(call: Call) -> Page:
    """All storages."""
    call.query.finish()
    return computing.storages()


@door.route("POST", "/v1/storages", Role.ADMIN, StorageSpec, StorageView, 201)
def create_storage(call: Call, spec: StorageSpec) -> StorageView:
    """Define a storage."""
    return computing.create_storage(call.core, spec)


@door.route("GET", "/v1/sites", Role.USER, None, Page)
def list_sites(call: Call) -> Page:
    """All sites."""
    call.query.finish()
    return computing.sites()
