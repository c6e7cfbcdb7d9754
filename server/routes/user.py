"""The native door for users and operators: tasks, jobs, datasets, files, pilots, queues, storages, bundles."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Any

from protocol.errors import BY_NAME
from protocol.messages.pilots import BundleRef
from protocol.messages.requests import (
    ContainerChange,
    ContainerSpec,
    DatasetSpec,
    DebugWish,
    FileList,
    FileSpec,
    MetadataChange,
    NodeStateSpec,
    PrioritySpec,
    QueueChange,
    QueueSpec,
    QueueStateSpec,
    ReplicaFindings,
    RetrySpec,
    StorageSpec,
    TaskSpec,
)
from protocol.messages.views import (
    ContainerView,
    DatasetCleaned,
    DatasetView,
    DebugView,
    Explanation,
    JobMetrics,
    JobView,
    Lineage,
    NodeView,
    Page,
    PilotsDrained,
    PilotView,
    QueueView,
    ReplicasMarked,
    RetryReply,
    SiteView,
    StorageView,
    TaskFailures,
    TaskView,
)
from protocol.states import TASK_FINAL, DatasetState, JobState, PilotState, TaskState
from server import (
    accounting,
    backlog,
    bundles,
    catalogue,
    computing,
    containers,
    failure_report,
    job_executor,
    job_manager,
    lineage,
    replicas,
    task_manager,
)
from server.access import groups, ownership, trail
from server.access.tokens import Role
from server.brokerage import explain
from server.http.wire import CURSOR, Parameter, path_id
from server.jobs import debugging, operations, series
from server.routes import Call, Door
from server.upkeep import retention

door = Door()


FIRST_DAY, LAST_DAY = datetime.date(1970, 1, 1), datetime.date(9999, 12, 30)


def _state(states: Any) -> Parameter:
    return Parameter("state", "the state that they are in", tuple(state.value for state in states))


def _yes(name: str, about: str) -> Parameter:
    return Parameter(name, about, ("yes", "no"))


# -- tasks ------------------------------------------------------------------------------------------------------------------


@door.route("POST", "/v1/tasks", Role.USER, TaskSpec, TaskView, 201)
def submit_task(call: Call, spec: TaskSpec) -> TaskView:
    """Register a task."""
    groups.check_use(call.caller, spec.working_group)
    if spec.replicate_to and spec.input_dataset:
        ownership.check_dataset(call.caller, spec.input_dataset)  # its command makes what others will read
    registered = task_manager.register(call.core, spec, call.caller.name)
    registered.waiting = explain.no_queue(spec)
    return registered


@door.route(
    "GET",
    "/v1/tasks",
    Role.USER,
    None,
    Page,
    query=(
        *CURSOR,
        _state(TaskState),
        Parameter("name", "a part of the name"),
        Parameter("owner", "whose they are"),
        Parameter("group", "the working group whose share pays"),
    ),
)
def list_tasks(call: Call) -> Page:
    """Tasks, by state, a part of the name, owner or working group."""
    cursor = call.query.cursor()
    state, name = call.query.text("state"), call.query.text("name")
    owner, group = call.query.text("owner"), call.query.text("group")
    return task_manager.tasks(cursor, state, name, owner, group)


@door.route("GET", "/v1/tasks/<task>", Role.USER, None, TaskView)
def show_task(call: Call, task: str) -> TaskView:
    """One task, by its number or name, with its specification."""
    found = task_manager.find(task)
    shown = task_manager.view(found, with_spec=True)
    if TaskState(shown.state) not in TASK_FINAL:
        shown.waiting = explain.hint(found)
    return shown


@door.route("GET", "/v1/tasks/<task>/why", Role.USER, None, Explanation)
def explain_task(call: Call, task: str) -> Explanation:
    """Why a task does not go on: in plain words, with what each queue has to say."""
    return explain.task(call.core, task_manager.find(task))


@door.route("GET", "/v1/tasks/<task>/errors", Role.USER, None, TaskFailures)
def show_task_errors(call: Call, task: str) -> TaskFailures:
    """What went wrong in a task: failures with the same signature together, where they lie, and what is probably at fault."""
    return failure_report.report(call.core, task_manager.find(task))


@door.route(
    "POST",
    "/v1/tasks/<task>/cancel",
    Role.USER,
    None,
    TaskView,
    query=(_yes("cascade", "cancel the tasks that come after it as well"),),
)
def cancel_task(call: Call, task: str) -> TaskView:
    """Cancel a task and all of its jobs that have not ended; with `cascade=yes` the tasks that come after it as well."""
    cascade = call.query.is_yes("cascade")
    if cascade:
        ownership.check_dependents(call.caller, task)
    operations.cancel(call.core, task, call.caller.name, cascade)
    return task_manager.view(task_manager.find(task))


@door.route("POST", "/v1/tasks/<task>/retry", Role.USER, RetrySpec, RetryReply)
def retry_task(call: Call, wish: RetrySpec, task: str) -> RetryReply:
    """Try jobs again that failed or were cancelled: new attempts, with both budgets whole."""
    return operations.retry(call.core, task, wish, call.caller.name)


@door.route("POST", "/v1/tasks/<task>/pause", Role.USER, None, TaskView)
def pause_task(call: Call, task: str) -> TaskView:
    """Form and hand out no further job of a task; those that run go on."""
    return task_manager.view(operations.pause(call.core, task, call.caller.name))


@door.route("POST", "/v1/tasks/<task>/resume", Role.USER, None, TaskView)
def resume_task(call: Call, task: str) -> TaskView:
    """Let a paused task go on."""
    return task_manager.view(operations.resume(call.core, task, call.caller.name))


@door.route("POST", "/v1/tasks/<task>/priority", Role.USER, PrioritySpec, TaskView)
def set_task_priority(call: Call, wish: PrioritySpec, task: str) -> TaskView:
    """Give a task another priority, and its jobs that have not ended."""
    return task_manager.view(operations.set_priority(call.core, task, wish.priority, call.caller.name))


# -- jobs -------------------------------------------------------------------------------------------------------------------


@door.route(
    "GET",
    "/v1/jobs",
    Role.USER,
    None,
    Page,
    query=(
        *CURSOR,
        Parameter("task", "number or name of their task"),
        _state(JobState),
        Parameter("error", "the error that they ended with", tuple(BY_NAME)),
    ),
)
def list_jobs(call: Call) -> Page:
    """Jobs, by task (number or name), state or error."""
    cursor = call.query.cursor()
    task, state = call.query.text("task"), call.query.text("state")
    error = call.query.text("error")
    return job_manager.jobs(cursor, task_manager.find(task).id if task else None, state, error)


@door.route("GET", "/v1/jobs/<job>", Role.USER, None, JobView)
def show_job(call: Call, job: str) -> JobView:
    """One job with its files, attempts and history."""
    return job_manager.details(job_manager.find(path_id(job, "job")))


@door.route("GET", "/v1/jobs/<job>/metrics", Role.USER, None, JobMetrics)
def show_metrics(call: Call, job: str) -> JobMetrics:
    """What the pilots measured while the job ran: at most 120 points per attempt, and the last numbers."""
    found = job_manager.details(job_manager.find(path_id(job, "job")))
    return series.of_job(found.job_id, found.attempts or ())


@door.route("POST", "/v1/jobs/<job>/cancel", Role.USER, None, JobView)
def cancel_job(call: Call, job: str) -> JobView:
    """Cancel a job that has not ended; one that has is left as it is."""
    found = job_manager.find(path_id(job, "job"))
    job_executor.cancel(call.core, [found.id], call.caller.name, "the job was cancelled")
    return job_manager.details(job_manager.find(found.id))


@door.route("POST", "/v1/jobs/<job>/retry", Role.USER, None, JobView)
def retry_job(call: Call, job: str) -> JobView:
    """Try a job again that failed or was cancelled."""
    job_id = path_id(job, "job")
    operations.retry_job(call.core, job_id, call.caller.name)
    return job_manager.details(job_manager.find(job_id))


@door.route("POST", "/v1/jobs/<job>/debug", Role.USER, DebugWish, DebugView)
def debug_job(call: Call, wish: DebugWish, job: str) -> DebugView:
    """Look at a job that runs: the ends of its files, and what its pilot is asked; repeated while somebody watches."""
    return debugging.look(call.core, path_id(job, "job"), wish)


@door.route("POST", "/v1/jobs/<job>/stop", Role.USER, None, JobView)
def stop_job(call: Call, job: str) -> JobView:
    """Tell the payload of a job to end by itself (SIGTERM); what it makes of that counts."""
    job_id = path_id(job, "job")
    debugging.soft_stop(call.core, job_id, call.caller.name)
    return job_manager.details(job_manager.find(job_id))


@door.route("GET", "/v1/jobs/<job>/why", Role.USER, None, Explanation)
def explain_job(call: Call, job: str) -> Explanation:
    """Why a job is where it is: what keeps it, which queues could take it, what is missing in each, how many are before it."""
    return explain.job(call.core, path_id(job, "job"))


# -- datasets and files -----------------------------------------------------------------------------------------------------


@door.route("POST", "/v1/datasets", Role.USER, DatasetSpec, DatasetView, 201)
def create_dataset(call: Call, spec: DatasetSpec) -> DatasetView:
    """Register a dataset, with its first files."""
    return catalogue.create(call.core, spec, call.caller.name)


@door.route(
    "GET",
    "/v1/datasets",
    Role.USER,
    None,
    Page,
    query=(
        *CURSOR,
        _state(DatasetState),
        Parameter("name", "a part of the name"),
        Parameter("where", "metadata that they have, as beam=pp or run>=7; may be repeated", many=True),
    ),
)
def list_datasets(call: Call) -> Page:
    """Datasets, by state, a part of the name or metadata; those that were deleted only by their state."""
    cursor = call.query.cursor()
    state, name = call.query.text("state"), call.query.text("name")
    return catalogue.datasets(cursor, state, name, call.query.texts("where"))


@door.route("GET", "/v1/datasets/<name>", Role.USER, None, DatasetView)
def show_dataset(call: Call, name: str) -> DatasetView:
    """One dataset, with how many of its files wait to be processed."""
    found = catalogue.find(name)
    shown = catalogue.view(found)
    shown.n_waiting = backlog.of(found)
    return shown


@door.route("GET", "/v1/datasets/<name>/lineage", Role.USER, None, Lineage)
def show_lineage(call: Call, name: str) -> Lineage:
    """Of what a dataset was made, by which tasks, and what was made of it."""
    return lineage.of(catalogue.find(name))


@door.route(
    "POST",
    "/v1/datasets/<name>/files",
    Role.USER,
    FileList,
    DatasetView,
    query=(_yes("close", "close the dataset then"),),
    lines=FileSpec,
)
def add_files(call: Call, files: FileList | Iterator[FileSpec], name: str) -> DatasetView:
    """Add files to an open dataset: a list, or any number of them as JSON lines (with `close=yes` it is closed then)."""
    close = call.query.is_yes("close")
    if isinstance(files, FileList):
        return catalogue.add_files(call.core, name, files.files, files.close or close)
    return catalogue.add_stream(call.core, name, files, close)


@door.route("POST", "/v1/datasets/<name>/close", Role.USER, None, DatasetView)
def close_dataset(call: Call, name: str) -> DatasetView:
    """Close a dataset for good."""
    return catalogue.close(call.core, name)


@door.route("POST", "/v1/datasets/<name>/metadata", Role.USER, MetadataChange, DatasetView)
def set_metadata(call: Call, wish: MetadataChange, name: str) -> DatasetView:
    """Say something of a dataset: values for keys."""
    return catalogue.set_metadata(call.core, name, wish)


@door.route("POST", "/v1/datasets/<name>/delete", Role.USER, None, DatasetView)
def delete_dataset(call: Call, name: str) -> DatasetView:
    """Delete a dataset that no task uses any more; its files lie where they are until the storages are cleaned."""
    return catalogue.delete(call.core, name, call.caller.name)


@door.route(
    "GET",
    "/v1/datasets/<name>/files",
    Role.USER,
    None,
    Page,
    query=CURSOR,
)
def list_dataset_files(call: Call, name: str) -> Page:
    """The files of a dataset."""
    cursor = call.query.cursor()
    return catalogue.files(cursor, dataset=name)


@door.route("POST", "/v1/containers", Role.USER, ContainerSpec, ContainerView, 201)
def create_container(call: Call, spec: ContainerSpec) -> ContainerView:
    """Make a container: a named list of datasets, over which a task may run."""
    return containers.create(call.core, spec, call.caller.name)


@door.route(
    "GET", "/v1/containers", Role.USER, None, Page, query=(*CURSOR, Parameter("name", "a part of the name"))
)
def list_containers(call: Call) -> Page:
    """Containers, by a part of the name."""
    cursor = call.query.cursor()
    return containers.page(cursor, call.query.text("name"))


@door.route("GET", "/v1/containers/<name>", Role.USER, None, ContainerView)
def show_container(call: Call, name: str) -> ContainerView:
    """One container with its datasets."""
    return containers.details(containers.find(name))


@door.route("POST", "/v1/containers/<name>/datasets", Role.USER, ContainerChange, ContainerView)
def change_container(call: Call, wish: ContainerChange, name: str) -> ContainerView:
    """Add datasets to a container, and take others out; tasks that were submitted before are not changed."""
    return containers.change(call.core, name, wish)


@door.route("POST", "/v1/containers/<name>/delete", Role.USER, None, None)
def delete_container(call: Call, name: str) -> dict[str, Any]:
    """Remove a container; its datasets stay."""
    containers.delete(call.core, name)
    return {}


@door.route(
    "GET",
    "/v1/files",
    Role.USER,
    None,
    Page,
    query=(
        *CURSOR,
        Parameter("dataset", "the name of their dataset"),
        Parameter("scope", "where their names are unique"),
        Parameter("lfn", "the logical name of one"),
    ),
)
def list_files(call: Call) -> Page:
    """Files, by dataset, scope or logical name."""
    cursor = call.query.cursor()
    dataset, scope, lfn = call.query.text("dataset"), call.query.text("scope"), call.query.text("lfn")
    return catalogue.files(cursor, dataset, scope, lfn)


@door.route("PUT", "/v1/bundles/<digest>", Role.USER, None, BundleRef, takes="application/gzip")
def put_bundle(call: Call, digest: str) -> BundleRef:
    """Keep a bundle (.tar.gz) under its SHA-256."""
    return bundles.store(call.core, digest, call.request.stream, call.caller.name)


# -- accounting -------------------------------------------------------------------------------------------------------------


@door.route(
    "GET",
    "/v1/usage",
    Role.USER,
    None,
    Page,
    query=(
        Parameter("by", "what a line is about; the owner unless told otherwise", tuple(accounting.BY)),
        Parameter("since", "the first day (UTC)", is_day=True),
        Parameter("until", "the last day (UTC)", is_day=True),
    ),
)
def show_usage(call: Call) -> Page:
    """Core-hours and bytes by owner, group or queue, from the day `since` to the day `until` (UTC, both included)."""
    by = call.query.text("by") or "owner"
    since, until = call.query.day("since", FIRST_DAY), call.query.day("until", LAST_DAY)
    lines = accounting.report(call.core, by, since, until)
    return Page(items=lines, total=len(lines))


# -- resources --------------------------------------------------------------------------------------------------------------


@door.route(
    "GET",
    "/v1/pilots",
    Role.USER,
    None,
    Page,
    query=(
        *CURSOR,
        Parameter("queue", "the name of their queue"),
        _state(PilotState),
    ),
)
def list_pilots(call: Call) -> Page:
    """Pilots, by queue or state."""
    cursor = call.query.cursor()
    queue, state = call.query.text("queue"), call.query.text("state")
    return job_manager.pilots(cursor, queue, state)


@door.route("GET", "/v1/pilots/<pilot>", Role.USER, None, PilotView)
def show_pilot(call: Call, pilot: str) -> PilotView:
    """One pilot."""
    return job_manager.pilot(pilot)


@door.route("POST", "/v1/pilots/<pilot>/drain", Role.ADMIN, None, PilotView)
def drain_pilot(call: Call, pilot: str) -> PilotView:
    """Tell a pilot to take no further job and to end."""
    computing.drain_pilot(call.core, pilot, call.caller.name)
    return job_manager.pilot(pilot)


@door.route("POST", "/v1/pilots/<pilot>/update", Role.ADMIN, None, PilotView)
def update_pilot(call: Call, pilot: str) -> PilotView:
    """Tell a pilot to end when its jobs have, so that the server's present pilot takes its place."""
    computing.drain_pilot(call.core, pilot, call.caller.name, update=True)
    return job_manager.pilot(pilot)


@door.route("GET", "/v1/queues", Role.USER, None, Page)
def list_queues(call: Call) -> Page:
    """All queues, with what waits and runs in each."""
    return computing.queues()


@door.route("POST", "/v1/queues", Role.ADMIN, QueueSpec, QueueView, 201)
def create_queue(call: Call, spec: QueueSpec) -> QueueView:
    """Define a queue."""
    return trail.noted(
        call.core,
        call.caller.name,
        "queue create",
        spec.name,
        trail.facts(spec, "site", "storage"),
        lambda: computing.create_queue(call.core, spec),
    )


@door.route("GET", "/v1/queues/<name>", Role.USER, None, QueueView)
def show_queue(call: Call, name: str) -> QueueView:
    """One queue."""
    return computing.queue_view(computing.find_queue(name))


@door.route("POST", "/v1/queues/<name>", Role.ADMIN, QueueChange, QueueView)
def change_queue(call: Call, wish: QueueChange, name: str) -> QueueView:
    """Change what a queue was made with; what is left out stays."""
    return computing.change_queue(call.core, name, wish, call.caller.name)


@door.route("POST", "/v1/queues/<name>/delete", Role.ADMIN, None, None)
def delete_queue(call: Call, name: str) -> dict[str, Any]:
    """Delete a queue that nothing uses: no job runs there, no pilot is alive, no task has only this one."""
    computing.delete_queue(call.core, name, call.caller.name)
    return {}


@door.route("POST", "/v1/queues/<name>/state", Role.ADMIN, QueueStateSpec, QueueView)
def set_queue_state(call: Call, wish: QueueStateSpec, name: str) -> QueueView:
    """Set a queue online, test, drain or offline."""
    return computing.set_queue_state(call.core, name, wish, call.caller.name)


@door.route(
    "POST",
    "/v1/queues/<name>/drainPilots",
    Role.ADMIN,
    None,
    PilotsDrained,
    query=(_yes("outdated", "only those of another version than the server's"),),
)
def drain_pilots(call: Call, name: str) -> PilotsDrained:
    """Tell the pilots that are in a queue now to take no further job and to end."""
    return computing.drain_pilots(call.core, name, call.caller.name, call.query.is_yes("outdated"))


@door.route(
    "POST",
    "/v1/queues/<name>/updatePilots",
    Role.ADMIN,
    None,
    PilotsDrained,
    query=(_yes("outdated", "only those of another version than the server's"),),
)
def update_pilots(call: Call, name: str) -> PilotsDrained:
    """Tell the pilots that are in a queue now to end when their jobs have, so that the server's present pilot takes their place."""
    outdated = call.query.is_yes("outdated")
    return computing.drain_pilots(call.core, name, call.caller.name, outdated, update=True)


@door.route("POST", "/v1/queues/<name>/nodes", Role.ADMIN, NodeStateSpec, NodeView)
def set_node_state(call: Call, wish: NodeStateSpec, name: str) -> NodeView:
    """Put a worker node of a queue aside, or lift one that was."""
    return computing.set_node_state(call.core, name, wish, call.caller.name)


@door.route(
    "GET",
    "/v1/nodes",
    Role.USER,
    None,
    Page,
    query=(Parameter("queue", "the name of their queue"),),
)
def list_nodes(call: Call) -> Page:
    """Worker nodes that were put aside or on which jobs failed within seconds, by queue."""
    queue = call.query.text("queue")
    return computing.nodes(queue)


@door.route("GET", "/v1/storages", Role.USER, None, Page)
def list_storages(call: Call) -> Page:
    """All storages."""
    return computing.storages()


@door.route("POST", "/v1/storages", Role.ADMIN, StorageSpec, StorageView, 201)
def create_storage(call: Call, spec: StorageSpec) -> StorageView:
    """Define a storage."""
    return trail.noted(
        call.core,
        call.caller.name,
        "storage create",
        spec.name,
        spec.url,
        lambda: computing.create_storage(call.core, spec),
    )


@door.route(
    "POST",
    "/v1/datasets/<name>/clean",
    Role.ADMIN,
    None,
    DatasetCleaned,
    query=(_yes("dry", "only tell what would go"),),
)
def clean_dataset(call: Call, name: str) -> DatasetCleaned:
    """Remove the outputs of a dataset for good; asked again while files are left. The dataset is deleted then."""
    return retention.clean(call.core, name, call.caller.name, dry=call.query.is_yes("dry"))


@door.route("POST", "/v1/replicas", Role.ADMIN, ReplicaFindings, ReplicasMarked)
def mark_replicas(call: Call, found: ReplicaFindings) -> ReplicasMarked:
    """Note which replicas somebody who looked at the storages found bad, or good again."""
    return ReplicasMarked(replicas.mark(call.core, found.findings, call.caller.name))


@door.route("GET", "/v1/sites", Role.USER, None, Page)
def list_sites(call: Call) -> Page:
    """All sites."""
    return computing.sites()


@door.route("POST", "/v1/sites/<name>/state", Role.ADMIN, QueueStateSpec, SiteView)
def set_site_state(call: Call, wish: QueueStateSpec, name: str) -> SiteView:
    """Set a site online or offline: of one that is offline no queue hands out jobs."""
    return computing.set_site_state(call.core, name, wish, call.caller.name)
