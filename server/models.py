"""The tables. Times are seconds since 1970 (UTC) and only shown; leases count in the database's own lease clock."""

from __future__ import annotations

import time
from typing import Any

from peewee import (
    BigAutoField,
    BigIntegerField,
    BooleanField,
    CompositeKey,
    DoubleField,
    ForeignKeyField,
    IntegerField,
    Model,
    TextField,
)

from protocol.states import HELD, JobState, ReplicaState
from server.database import proxy


def now() -> float:
    return time.time()


class Table(Model):
    class Meta:
        database = proxy
        legacy_table_names = False


class Counter(Table):
    """Sequences, and the lease clock: seconds that only the reaper counts."""

    name = TextField(primary_key=True)
    value = BigIntegerField(default=0)


class Site(Table):
    """The centre that owns queues and storage."""

    name = TextField(primary_key=True)
    state = TextField(default="online")
    state_reason = TextField(default="")


class Storage(Table):
    """A place for outputs; `url` is absolute or relative to each node's data root."""

    name = TextField(primary_key=True)
    url = TextField()
    site = TextField(null=True)
    """The site whose pilots are near it; None: near to none in particular."""


class Queue(Table):
    """A computing queue: the description of a resource that pilots pull for."""

    name = TextField(primary_key=True)
    site = ForeignKeyField(Site, backref="queues")
    resource_type = TextField()
    state = TextField(default="online")
    storage = ForeignKeyField(Storage)
    copytools = TextField(default="[]")
    lease_seconds = IntegerField(default=60)
    heartbeat_seconds = IntegerField(default=20)
    timefloor_seconds = IntegerField(default=0)
    requeue_delay_seconds = IntegerField(default=0)
    """How long a lost job waits before it may be claimed by another pilot."""
    tags = TextField(default="[]")
    """JSON list of what its nodes offer to jobs that require it: software, CVMFS, ..."""
    country_group = TextField(default="")
    state_reason = TextField(default="")
    state_by = TextField(default="")
    """Who set the state; "" for a queue that is as it was made."""
    state_attempt_id = BigIntegerField(default=0)
    """The last attempt there was when the state was set: what attempts before it came to says nothing about it."""
    pilot_settings = TextField(default="{}")
    """JSON: what its pilots do otherwise than their own settings say, section.key → value."""


class Node(Table):
    """A worker node that jobs have failed on within seconds, one after the other; one that is put aside gets no jobs."""

    queue = ForeignKeyField(Queue, index=False)
    name = TextField()
    quick_failures = IntegerField(default=0)
    first_attempt_id = BigIntegerField(default=0)
    """The first failure of the present row: a success after it ends the row."""
    held_until = BigIntegerField(default=0)
    """Gets no job before this (lease clock), while it is not clear whether node or jobs are at fault."""
    set_aside = DoubleField(null=True)
    reason = TextField(default="")

    class Meta:
        primary_key = CompositeKey("queue", "name")


class Dataset(Table):
    """A named collection of files; a closed one never changes, and a deleted one stays, with its files, for who asks what was made of it."""

    id = BigAutoField()
    name = TextField(unique=True)
    scope = TextField()
    state = TextField(default="open")
    created = DoubleField(default=now)
    closed = DoubleField(null=True)
    deleted = DoubleField(null=True)
    task_id = BigIntegerField(null=True, index=True)
    owner = TextField(default="")
    n_files = BigIntegerField(default=0)
    mebibytes = BigIntegerField(default=0)
    bytes_more = BigIntegerField(default=0)
    """Available files, and their size in two parts, since the sum may be more than the databases' integers hold; without
    those of jobs that the closer has not counted."""


class DatasetMetadata(Table):
    """What people say of a dataset: a value for a key, and the number that the value is, if it is one."""

    dataset = ForeignKeyField(Dataset, index=False)
    key = TextField()
    value = TextField()
    number = DoubleField(null=True)

    class Meta:
        primary_key = CompositeKey("dataset", "key")
        indexes = ((("key", "value"), False), (("key", "number"), False))


class Container(Table):
    """A named list of datasets."""

    number = BigAutoField()
    name = TextField(unique=True)
    owner = TextField(default="")
    created = DoubleField(default=now)


class ContainerMember(Table):
    """A dataset in a container; their numbers are their order."""

    number = BigAutoField()
    container = ForeignKeyField(Container, index=False)
    dataset = ForeignKeyField(Dataset)

    class Meta:
        indexes = ((("container", "dataset"), True),)


class File(Table):
    """A file of a dataset. One that a job will make is *declared* until COMPLETED makes it *available*."""

    id = BigAutoField()
    dataset = ForeignKeyField(Dataset, index=False)
    scope = TextField()
    lfn = TextField()
    state = TextField(default="available")
    size = BigIntegerField(default=0)
    checksums = TextField(default="{}")
    created = DoubleField(default=now)
    job_id = BigIntegerField(null=True, index=True)

    class Meta:
        indexes = ((("scope", "lfn"), True), (("dataset", "id"), False))


class Replica(Table):
    """Where a copy of a file lies: this row is what publishes it."""

    id = BigAutoField()
    file = ForeignKeyField(File)
    storage = ForeignKeyField(Storage, null=True)
    url = TextField()
    created = DoubleField(default=now)
    state = TextField(default=ReplicaState.GOOD.value)
    reason = TextField(default="")
    """Why it is not good, in words."""
    changed = DoubleField(null=True)
    """When its state was set last; None: never since it was made."""


Replica.add_index(
    Replica.index(Replica.storage, where=Replica.state != ReplicaState.GOOD.value, name="replica_not_good")
)


class JobClass(Table):
    """Jobs with equal needs: brokerage looks at classes, so jobs that do not fit cost nothing to pass over."""

    id = BigAutoField()
    key = TextField(unique=True)
    core_seconds = DoubleField(default=60.0)
    """What one attempt uses, as a moving average over those that ended lately."""


class Task(Table):
    """A user's whole unit over a dataset. Its state is computed from its jobs, never set."""

    id = BigAutoField()
    name = TextField(unique=True)
    owner = TextField()
    spec = TextField()
    resource_type = TextField()
    priority = IntegerField(default=0)
    job_class = ForeignKeyField(JobClass)
    input_dataset = ForeignKeyField(Dataset, null=True, backref="consumers")
    """Of a task over a container: the one of which jobs are formed now, or were formed last."""
    input_container = TextField(null=True)
    """The container that the task was submitted over; what it listed then is in `TaskInput`."""
    output_dataset = ForeignKeyField(Dataset, null=True, backref="producers")
    n_formed = IntegerField(default=0)
    last_file_id = BigIntegerField(default=0)
    all_formed = BooleanField(default=False, index=True)
    cancelled = BooleanField(default=False)
    cancelled_by = TextField(null=True)
    """Who has cancelled it, while jobs of it may still have to be ended."""
    paused = BooleanField(default=False)
    unsettled = BooleanField(default=False)
    """Whether jobs of it may still wait as before its last pause, resumption or change of priority."""
    working_group = TextField(default="")
    country_group = TextField(default="")
    boost = IntegerField(default=0)
    """Added to the priority of its jobs, for later steps of a chain and for tags that the operator favours."""
    n_completed = IntegerField(default=0)
    n_failed = IntegerField(default=0)
    n_cancelled = IntegerField(default=0)
    """Jobs that have ended and that the closer has counted (`Job.counted`)."""
    n_attempts = BigIntegerField(default=0)
    """Attempts of those jobs."""
    created = DoubleField(default=now)
    started = DoubleField(null=True)
    ended = DoubleField(null=True, index=True)
    archived = BooleanField(default=False)
    """Whether all of its jobs have left the hot tables."""
    target_storage = TextField(null=True)
    """Where it copies its input dataset to; what its jobs write are replicas of what they read."""
    pruned = BooleanField(default=False)
    """Its jobs have left the archive too, or are leaving it: only its counters tell of them."""

    @property
    def job_priority(self) -> int:
        return int(self.priority + self.boost)


Task.add_index(
    Task.index(Task.ended, where=Task.ended.is_null(False) & ~Task.archived, name="task_to_archive")
)
Task.add_index(Task.index(Task.id, where=Task.unsettled, name="task_unsettled"))
Task.add_index(Task.index(Task.id, where=Task.cancelled_by.is_null(False), name="task_being_cancelled"))


class TaskInput(Table):
    """A dataset that a task over a container reads: one after the other."""

    task = ForeignKeyField(Task, index=False)
    position = IntegerField()
    dataset = ForeignKeyField(Dataset)

    class Meta:
        primary_key = CompositeKey("task", "position")


class TaskDependency(Table):
    """A task forms no jobs before another one has completed."""

    task = ForeignKeyField(Task, index=False)
    on_task = ForeignKeyField(Task)

    class Meta:
        primary_key = CompositeKey("task", "on_task")


class Job(Table):
    """One payload run carved from a task. `ready_nr` is set while it, or a copy of it, may be claimed, and gives the order in its class."""

    id = BigAutoField()
    task = ForeignKeyField(Task, index=False)
    job_nr = IntegerField()
    job_class = ForeignKeyField(JobClass, index=False)
    state = TextField(default=JobState.REGISTERED.value)
    priority = IntegerField(default=0)
    ready_nr = BigIntegerField(null=True)
    ready_after = BigIntegerField(null=True)
    """Lease clock before which a retry does not make sense."""
    attempt_nr = IntegerField(default=0)
    attempt_id = BigIntegerField(null=True)
    payload_failures = IntegerField(default=0)
    losses = IntegerField(default=0)
    unacknowledged = IntegerField(default=0)
    kills = IntegerField(default=0)
    """Pilots that fell silent while they ran its payload."""
    loss = TextField(null=True)
    """Set while its lease has run out and nobody has claimed it: the error that its last attempt then ends with."""
    copies = IntegerField(null=True)
    """How many further copies of it may be handed out while one runs; NULL: it never has any (see `copies`)."""
    copy_nodes = TextField(null=True)
    """The nodes that were given a copy since it was READY, each between line breaks."""
    avoid_node = TextField(null=True)
    avoid_until = BigIntegerField(null=True)
    """The node that its last attempt failed on by the node's own fault, and how long to avoid it (lease clock)."""
    avoid_queue = TextField(null=True)
    """The queue that it avoids for as long."""
    site = TextField(null=True)
    """Where its first input lies, if that is known: pilots of this site are preferred."""
    error = TextField(null=True)
    error_detail = TextField(null=True)
    registered = DoubleField(default=now)
    changed = DoubleField(default=now)
    ended_at = DoubleField(null=True)
    counted = BooleanField(default=False)
    """Whether the closer has added it to its task's numbers."""

    class Meta:
        indexes = ((("task", "job_nr"), True),)


Job.add_index(
    Job.index(
        Job.job_class, Job.priority.desc(), Job.ready_nr, where=Job.ready_nr.is_null(False), name="job_ready"
    )
)
Job.add_index(Job.index(Job.ready_after, where=Job.ready_after.is_null(False), name="job_later"))
# No index has the state itself: so that a move on Postgres changes a row in place (HOT) and touches no index.
Job.add_index(Job.index(Job.task, where=Job.ended_at.is_null(), name="job_open"))
Job.add_index(Job.index(Job.task, where=Job.ended_at.is_null(False) & ~Job.counted, name="job_uncounted"))
Job.add_index(Job.index(Job.task, Job.error, where=Job.error.is_null(False), name="job_error"))


class JobInput(Table):
    """Which file a job reads; each file of a task is read by exactly one of its jobs."""

    task = ForeignKeyField(Task, index=False)
    file = ForeignKeyField(File)
    job = ForeignKeyField(Job, backref="job_inputs")

    class Meta:
        primary_key = CompositeKey("task", "file")


class Attempt(Table):
    """One try of a job, with a time per state, and the last `seq` that its pilot used."""

    id = BigAutoField()
    job = ForeignKeyField(Job, index=False)
    attempt_nr = IntegerField()
    pilot_id = TextField()
    node = TextField(default="")
    queue = TextField()
    request_id = TextField()
    request_nr = IntegerField(default=0)
    """Which of the jobs that the request was given, from 0."""
    nonce = TextField()
    state = TextField(default=JobState.EXTRACTED.value)
    seq = BigIntegerField(default=0)
    lease_until = BigIntegerField()
    lease_seconds = IntegerField(default=60)
    left_out = IntegerField(default=0)
    """Heartbeats of its pilot in a row that did not name it."""
    cores = IntegerField(default=1)
    ready_at = DoubleField()
    extracted_at = DoubleField(default=now)
    obtained_at = DoubleField(null=True)
    pre_processing_at = DoubleField(null=True)
    stage_in_at = DoubleField(null=True)
    running_at = DoubleField(null=True)
    finished_at = DoubleField(null=True)
    post_processing_at = DoubleField(null=True)
    stage_out_at = DoubleField(null=True)
    ended_at = DoubleField(null=True)
    exit_code = IntegerField(null=True)
    error = TextField(null=True)
    error_detail = TextField(null=True)
    storage = ForeignKeyField(Storage, null=True, index=False)
    log_size = BigIntegerField(null=True)
    log_checksums = TextField(null=True)
    metrics = TextField(null=True)
    benchmark = TextField(null=True)
    """JSON of a `BenchmarkReport`."""

    class Meta:
        indexes = ((("job", "attempt_nr"), True), (("request_id", "pilot_id", "request_nr"), True))


Attempt.add_index(Attempt.index(Attempt.pilot_id, where=Attempt.ended_at.is_null(), name="attempt_live"))

STATE_TIMES: dict[JobState, Any] = {state: getattr(Attempt, state.name.lower() + "_at") for state in HELD}
"""The column that keeps when an attempt entered a state."""


class JobEvent(Table):
    """What happened to a job by another word than its pilot's: a user, the reaper, the server."""

    id = BigAutoField()
    job = ForeignKeyField(Job)
    attempt_nr = IntegerField(default=0)
    at = DoubleField(default=now)
    actor = TextField()
    event = TextField()
    detail = TextField(default="")


class Pilot(Table):
    """An agent on a worker node, known from its first word on."""

    number = BigAutoField()
    pilot_id = TextField(unique=True)
    queue = ForeignKeyField(Queue)
    node = TextField()
    version = TextField()
    slots = IntegerField()
    cores = IntegerField()
    memory_mb = BigIntegerField()
    disk_mb = BigIntegerField()
    gpus = IntegerField()
    first_seen = DoubleField(default=now)
    last_seen = DoubleField(default=now)
    lease_until = BigIntegerField()
    ended = DoubleField(null=True)
    exit_code = IntegerField(null=True)
    reason = TextField(null=True)
    n_done = IntegerField(default=0)
    draining = BooleanField(default=False)
    """It is to take no further job and to end."""
    tags = TextField(default="[]")
    batch_system = TextField(default="")
    batch_id = TextField(default="")
    """The job of that batch system in which it runs."""
    gpu_kinds = TextField(default="[]")
    updating = BooleanField(default=False)
    """It is draining, to be replaced by the server's present pilot."""
    benchmark = TextField(null=True)
    """The last one that ran in one of its jobs."""
    cache = TextField(null=True)
    """JSON of its last `CacheReport`."""


class WorkingGroup(Table):
    """Whose share of the resources pays for a task. Shares count among the children of one parent, and nest."""

    name = TextField(primary_key=True)
    parent = TextField(null=True)
    share = IntegerField(default=100)
    usage = DoubleField(default=0.0)
    """Core-seconds, halved each half-life; of itself, its children keep theirs."""
    max_open_jobs = IntegerField(null=True)
    """READY and running jobs at a time; None: without limit."""


class Account(Table):
    """A person or service that owns tasks."""

    name = TextField(primary_key=True)
    working_group = TextField(default="")
    max_open_jobs = IntegerField(null=True)
    created = DoubleField(default=now)


class Token(Table):
    """A credential, hashed; the token itself is shown once and kept nowhere."""

    id = BigAutoField()
    name = TextField()
    role = TextField()
    account = TextField(null=True)
    queue = TextField(null=True)
    hash = TextField(unique=True)
    created = DoubleField(default=now)
    expires = DoubleField(null=True)
    revoked = DoubleField(null=True)


class Bundle(Table):
    """The user's code that travels with tasks: content-addressed, the bytes lie in the state directory."""

    digest = TextField(primary_key=True)
    size = BigIntegerField()
    owner = TextField()
    created = DoubleField(default=now)


class AdminEvent(Table):
    """The trail of administrative actions: who did what to what, and when."""

    id = BigAutoField()
    at = DoubleField(default=now)
    who = TextField()
    action = TextField()
    subject = TextField(default="")
    detail = TextField(default="")


class ArchivedJob(Table):
    """A job of a task that ended a while ago, out of the hot tables: its numbers, and all the rest as one JSON text.

    A user may have it tried again: then there is a hot job of the same number, and this keeps its earlier attempts.
    """

    id = BigIntegerField(primary_key=True)
    task_id = BigIntegerField()
    job_nr = IntegerField()
    state = TextField()
    attempt_nr = IntegerField()
    error = TextField(null=True)
    ended_at = DoubleField()
    details = TextField()

    class Meta:
        indexes = ((("task_id", "job_nr"), True),)


ArchivedJob.add_index(
    ArchivedJob.index(
        ArchivedJob.task_id,
        ArchivedJob.error,
        where=ArchivedJob.error.is_null(False),
        name="archived_job_error",
    )
)


class Usage(Table):
    """What archived attempts used, by day (UTC), owner, group and queue; those in the hot tables are summed on demand."""

    day = TextField()
    owner = TextField()
    working_group = TextField()
    queue = TextField()
    n_attempts = BigIntegerField(default=0)
    n_completed = BigIntegerField(default=0)
    core_seconds = DoubleField(default=0.0)
    input_bytes = BigIntegerField(default=0)
    output_bytes = BigIntegerField(default=0)

    class Meta:
        primary_key = CompositeKey("day", "owner", "working_group", "queue")


class TaskOutcome(Table):
    """What the archived attempts of a task came to, by error, signature and place; without an error: those that completed."""

    task_id = BigIntegerField()
    error = TextField()
    signature = TextField()
    node = TextField()
    queue = TextField()
    storage = TextField()
    n_attempts = BigIntegerField(default=0)
    n_jobs = BigIntegerField(default=0)
    n_spread = BigIntegerField(default=0)
    n_recovered = BigIntegerField(default=0)
    """As in server/failures.py."""
    first_job = BigIntegerField(default=0)
    example = TextField(default="")
    last_example = TextField(default="")
    """The texts that come first and last in the order of the alphabet; equal where all are."""

    class Meta:
        primary_key = CompositeKey("task_id", "error", "signature", "node", "queue", "storage")


class MetricPoint(Table):
    """The numbers of an attempt at one moment (`server/jobs/series.py`); they go when its job is archived."""

    attempt_id = BigIntegerField()
    at = BigIntegerField()
    """Seconds since 1970."""
    metrics = TextField()

    class Meta:
        primary_key = CompositeKey("attempt_id", "at")


class AttemptDebug(Table):
    """What somebody wants to see of an attempt that runs, and what its pilot sent last; removed some time after its end."""

    attempt_id = BigIntegerField(primary_key=True)
    is_on = BooleanField(default=False)
    watched_until = DoubleField(default=0.0)
    soft_stop = BooleanField(default=False)
    file = TextField(default="")
    inspections = TextField(default="[]")
    """JSON list of what was asked, with the answers that have come: number, kind, at, text."""
    n_asked = IntegerField(default=0)
    at = DoubleField(null=True)
    report = TextField(default="{}")
    """JSON: what the pilot sent last, without answers."""

    class Meta:
        table_name = "attempt_debug"


class Garbage(Table):
    """A file that an attempt of an archived job may have left on a storage, and that nothing publishes."""

    id = BigAutoField()
    attempt_id = BigIntegerField(index=True)
    url = TextField()
    due = DoubleField(index=True)
    """When it may be removed; when it is looked for again, where it could not be reached."""


TABLES: tuple[type[Table], ...] = (
    Counter,
    Site,
    Storage,
    Queue,
    Node,
    Dataset,
    DatasetMetadata,
    Container,
    ContainerMember,
    File,
    Replica,
    JobClass,
    Task,
    TaskInput,
    TaskDependency,
    Job,
    JobInput,
    Attempt,
    JobEvent,
    Pilot,
    WorkingGroup,
    Account,
    Token,
    Bundle,
    AdminEvent,
    ArchivedJob,
    Usage,
    TaskOutcome,
    AttemptDebug,
    MetricPoint,
    Garbage,
)
