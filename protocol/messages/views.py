"""What users and operators see."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

from protocol.messages import bounded, message
from protocol.messages.pilots import BenchmarkReport, CacheReport, GpuKind


@message
class ReplicaView:
    """A place where a file lies, and what is known of it there; `storage` is "" for an address that somebody registered."""

    storage: str
    url: str
    state: str
    reason: str = ""
    changed: Optional[str] = None
    """When the state was set; None: never since it was made."""


@message
class FileView:
    """A file; `url` is where jobs read it, the best of its replicas, which lists of files tell all of."""

    lfn: str
    scope: str
    dataset: str
    size: int
    checksums: Dict[str, str]
    url: str
    state: str
    job_id: Optional[int] = None
    replicas: Optional[List[ReplicaView]] = bounded(None, of=ReplicaView)


@message
class DatasetView:
    name: str
    scope: str
    state: str
    n_files: int
    size: int
    created: str
    closed: Optional[str] = None
    deleted: Optional[str] = None
    task_id: Optional[int] = None
    owner: str = ""
    metadata: Optional[Dict[str, str]] = None
    n_added: Optional[int] = None
    n_known: Optional[int] = None
    """Of files that were sent in a stream: how many are new, and how many were there already."""
    n_waiting: Optional[int] = None
    """Files that the slowest task over it has still to process, counted up to 100,000; told of one dataset, not in lists."""


@message
class ContainerView:
    """A named list of datasets; the datasets themselves of one container, not in lists."""

    name: str
    owner: str
    created: str
    n_datasets: int
    datasets: Optional[List[DatasetView]] = bounded(None, of=DatasetView)


@message
class LineageStep:
    """A dataset, and what made it: a task with its inputs, or nobody, where it was registered."""

    dataset: str
    level: int
    """0: the dataset that was asked for; below 0 what it was made of, above 0 what was made of it."""
    state: str
    owner: str = ""
    task_id: Optional[int] = None
    task: str = ""
    inputs: List[str] = bounded(list)
    command: str = ""
    software: str = ""


@message
class Lineage:
    """Where a dataset comes from and what became of it."""

    dataset: str
    steps: List[LineageStep] = bounded(list, of=LineageStep)
    more: bool = False
    """There are so many that not all are told."""


@message
class TaskView:
    """A task as the server reports it; `counts` holds the number of jobs in each state that occurs."""

    task_id: int
    name: str
    owner: str
    state: str
    n_jobs: int
    counts: Dict[str, int]
    n_attempts: int
    created: str
    resource_type: str
    priority: int
    input_dataset: Optional[str] = None
    output_dataset: Optional[str] = None
    output_state: Optional[str] = None
    n_outputs: int = 0
    started: Optional[str] = None
    ended: Optional[str] = None
    errors: Dict[str, int] = bounded(dict)
    spec: Optional[Dict[str, Any]] = None
    paused: bool = False
    boost: int = 0
    working_group: str = ""
    waiting: Optional[str] = None
    """Why none of its jobs is formed or handed out, in a line; told of one task, not in lists."""


@message
class FailureView:
    """Failed attempts of a task with one error and one signature: how many, where they lie, and what is probably at fault."""

    error: str
    signature: str
    """The detail, without what differs from job to job."""
    n_jobs: int
    n_attempts: int
    cause: str
    """A blame of the catalogue, or "input"; proposed from where the failures lie and where jobs complete."""
    why: str
    where: List[str] = bounded(list)
    """Which node, storage or site it is."""
    error_code: Optional[int] = None
    example: str = ""
    n_recovered: int = 0
    """Those of the jobs that have completed since."""
    n_nodes: int = 0
    nodes: Dict[str, int] = bounded(dict)
    """Failed attempts on each; the first ones, as of queues, storages and sites."""
    queues: Dict[str, int] = bounded(dict)
    storages: Dict[str, int] = bounded(dict)
    sites: Dict[str, int] = bounded(dict)
    job_ids: List[int] = bounded(list)
    """Some of the jobs."""
    inputs: List[str] = bounded(list)
    """What those read."""


@message
class TaskFailures:
    """What went wrong in a task, clustered; the signature with most jobs first."""

    task_id: int
    task: str
    n_attempts: int
    """Attempts that failed, and below those that completed."""
    n_completed: int
    failures: List[FailureView] = bounded(list, of=FailureView)
    n_other: int = 0
    """Failed attempts with rarer signatures, which are not listed."""


@message
class RetryReply:
    """How many jobs are tried again, how many were left as they were, and why."""

    n_jobs: int
    n_left: int = 0
    reason: str = ""
    more: bool = False
    """There are so many that the request is to be repeated for the rest."""


@message
class StateTime:
    """One line of a job's history: the state, when it was entered (UTC), and by whose word."""

    state: str
    at: str
    attempt_nr: int = 0
    by: str = ""
    detail: str = ""


@message
class AttemptView:
    attempt_id: int
    attempt_nr: int
    state: str
    pilot_id: str
    node: str
    queue: str
    exit_code: Optional[int] = None
    error: Optional[str] = None
    error_code: Optional[int] = None
    error_detail: Optional[str] = None
    started: Optional[str] = None
    ended: Optional[str] = None
    log_url: Optional[str] = None
    metrics: Optional[Dict[str, float]] = None
    benchmark: Optional[BenchmarkReport] = bounded(None, of=BenchmarkReport)


@message
class JobView:
    job_id: int
    job_nr: int
    task_id: int
    task: str
    state: str
    resource_type: str
    priority: int
    attempt_nr: int
    created: str
    changed: str
    pilot_id: Optional[str] = None
    node: Optional[str] = None
    error: Optional[str] = None
    error_code: Optional[int] = None
    error_detail: Optional[str] = None
    replicate: int = 1
    """Copies of it that may run at the same time."""
    inputs: Optional[List[FileView]] = bounded(None, of=FileView)
    outputs: Optional[List[FileView]] = bounded(None, of=FileView)
    attempts: Optional[List[AttemptView]] = bounded(None, of=AttemptView)
    history: Optional[List[StateTime]] = bounded(None, of=StateTime)


@message
class MetricPoint:
    """The numbers of an attempt at one moment (UTC)."""

    at: str
    metrics: Dict[str, float]


@message
class AttemptMetrics:
    """The numbers of one attempt: the last ones, and some points on the way there."""

    attempt_id: int
    attempt_nr: int
    state: str
    metrics: Optional[Dict[str, float]] = None
    points: List[MetricPoint] = bounded(list, of=MetricPoint)


@message
class JobMetrics:
    """What the pilots measured of a job's attempts over time. Of a job in the archive only the last numbers are left."""

    job_id: int
    attempts: List[AttemptMetrics] = bounded(list, of=AttemptMetrics)


@message
class InspectionView:
    """What a pilot found out; `text` is absent until it has answered."""

    number: int
    kind: str
    at: Optional[str] = None
    text: Optional[str] = None


@message
class DebugView:
    """What is seen of an attempt that somebody looks at: the ends of its files as its pilot sent them last."""

    job_id: int
    attempt_id: int
    attempt_nr: int
    state: str
    node: str
    pilot_id: str
    on: bool
    """Debug mode until the end of the attempt."""
    heartbeat_seconds: int
    """How soon the pilot hears of it at the latest."""
    ended: bool = False
    at: Optional[str] = None
    """When the pilot sent what follows; absent until it has."""
    stdout: str = ""
    stdout_size: int = 0
    file: str = ""
    text: str = ""
    size: int = 0
    inspections: List[InspectionView] = bounded(list, of=InspectionView)


@message
class QueueFit:
    """What one queue has to say to a job: whether it hands out jobs, and what is missing there, in plain words."""

    queue: str
    site: str
    state: str
    n_pilots: int = 0
    """Pilots that are alive there."""
    n_fitting: int = 0
    """Those of them that could take the job."""
    missing: List[str] = bounded(list)


@message
class Explanation:
    """Why a job or a task is where it is: sentences, the most important first, and what each queue has to say."""

    task_id: int
    task: str
    state: str
    since: str
    reasons: List[str]
    job_id: Optional[int] = None
    job_nr: Optional[int] = None
    n_before: Optional[int] = None
    """Jobs that go before it; counted up to a bound."""
    retry_seconds: Optional[int] = None
    """Until it may be handed out again."""
    queues: List[QueueFit] = bounded(list, of=QueueFit)


@message
class JobLog:
    """Where the log archive of each attempt of a job lies."""

    job_id: int
    attempts: List[AttemptView] = bounded(list, of=AttemptView)


@message
class PilotView:
    pilot_id: str
    state: str
    node: str
    queue: str
    site: str
    resource_type: str
    version: str
    slots: int
    cores: int
    memory_mb: int
    gpus: int
    n_held: int
    n_done: int
    first_seen: str
    last_seen: str
    exit_code: Optional[int] = None
    reason: Optional[str] = None
    draining: bool = False
    """It takes no further job and ends when those that it holds have."""
    updating: bool = False
    """Whoever started it will start the server's present pilot in its place."""
    batch_system: str = ""
    batch_id: str = ""
    gpu_kinds: List[GpuKind] = bounded(list, of=GpuKind)
    benchmark: Optional[BenchmarkReport] = bounded(None, of=BenchmarkReport)
    """The last one."""
    cache: Optional[CacheReport] = bounded(None, of=CacheReport)
    """As it told last; None: it keeps no inputs."""


@message
class PilotsDrained:
    """How many pilots were told to take no further job, or to be replaced."""

    n_pilots: int


@message
class NodeView:
    """A worker node that jobs have failed on within seconds, or that an operator put aside.

    `state`: online; held for a minute, while other nodes show whether the jobs are at fault; offline, that is put aside.
    """

    queue: str
    node: str
    state: str
    quick_failures: int = 0
    since: Optional[str] = None
    reason: str = ""


@message
class SiteView:
    name: str
    state: str
    state_reason: str = ""


@message
class QueueView:
    name: str
    site: str
    resource_type: str
    state: str
    storage: str
    copytools: List[str]
    lease_seconds: int
    heartbeat_seconds: int
    timefloor_seconds: int
    n_ready: int = 0
    n_held: int = 0
    n_pilots: int = 0
    requeue_delay_seconds: int = 0
    tags: List[str] = bounded(list)
    country_group: str = ""
    state_reason: str = ""
    state_by: str = ""
    pilot_settings: Dict[str, str] = bounded(dict)


@message
class StorageView:
    """A storage, and how many replicas on it are not good."""

    name: str
    url: str
    site: str = ""
    n_suspect: int = 0
    n_bad: int = 0


@message
class DatasetCleaned:
    """The outputs of a dataset that went, or would go: files and bytes that it had, and files that are still to go."""

    dataset: str
    n_files: int
    size: int
    n_left: int
    why_not: str = ""
    """Why they may not go."""


@message
class ReplicasMarked:
    """How many replicas have another state now; the others had it, or are gone."""

    n_changed: int


@message
class UsageView:
    """What an owner, a group or a queue used in a time; only attempts that have ended are counted."""

    name: str
    n_attempts: int
    n_completed: int
    core_hours: float
    input_bytes: int
    output_bytes: int


@message
class TokenView:
    """A token as it may be seen; the token itself only in the answer that made it."""

    token_id: int
    name: str
    role: str
    created: str
    account: str = ""
    queue: str = ""
    expires: Optional[str] = None
    revoked: Optional[str] = None
    valid: bool = True
    token: Optional[str] = None


@message
class GroupView:
    """A working group; `usage` in core-seconds, halved each half-life, with that of the groups below."""

    name: str
    parent: str = ""
    share: int = 100
    fraction: float = 0.0
    """Its part of all resources while every group has jobs that wait."""
    usage: float = 0.0
    max_open_jobs: int = 0
    n_open: int = 0
    """Jobs formed and not ended, with those of the groups below."""


@message
class AccountView:
    name: str
    created: str
    working_group: str = ""
    max_open_jobs: int = 0
    n_open: int = 0


@message
class TrailEntry:
    """One administrative action."""

    entry_id: int
    at: str
    who: str
    action: str
    subject: str = ""
    detail: str = ""


@message
class Page:
    """One page of a list. `next_cursor` is given back as `after=` for the following page; absent at the end."""

    items: List[Any]
    total: Optional[int] = None
    next_cursor: Optional[int] = None


@message
class ErrorReply:
    """The one shape of a failure on every route; `error` is a name of the catalogue, `detail` is for people."""

    error: str
    code: int
    text: str
    detail: str
    advice: str
    fields: Optional[Dict[str, Any]] = None
