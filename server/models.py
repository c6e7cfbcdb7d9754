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

from protocol.states import HELD, JobState
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


class Storage(Table):
    """A place for outputs; `url` is absolute or relative to each node's data root."""

    name = TextField(primary_key=True)
    url = TextField()


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


class Dataset(Table):
    """A named collection of files; a closed one never changes."""

    id = BigAutoField()
    name = TextField(unique=True)
    scope = TextField()
    state = TextField(default="open")
    created = DoubleField(default=now)
    closed = DoubleField(null=True)
    task_id = BigIntegerField(null=True, index=True)


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


class JobClass(Table):
    """Jobs with equal needs: brokerage looks at classes, so jobs that do not fit cost nothing to pass over."""

    id = BigAutoField()
    key = TextField(unique=True)


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
    output_dataset = ForeignKeyField(Dataset, null=True, backref="producers")
    n_formed = IntegerField(default=0)
    last_file_id = BigIntegerField(default=0)
    all_formed = BooleanField(default=False, index=True)
    cancelled = BooleanField(default=False)
    created = DoubleField(default=now)
    started = DoubleField(null=True)
    ended = DoubleField(null=True, index=True)


class Job(Table):
    """One payload run carved from a task. `ready_nr` is set while it may be claimed, and gives the order in its class."""

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
    error = TextField(null=True)
    error_detail = TextField(null=True)
    registered = DoubleField(default=now)
    changed = DoubleField(default=now)

    class Meta:
        indexes = ((("task", "job_nr"), True), (("task", "state"), False))


Job.add_index(
    Job.index(
        Job.job_class, Job.priority.desc(), Job.ready_nr, where=Job.ready_nr.is_null(False), name="job_ready"
    )
)
Job.add_index(Job.index(Job.ready_after, where=Job.ready_after.is_null(False), name="job_later"))


class JobInput(Table):
    """Which file a job reads; each file of a task is read by exactly one of its jobs."""

    task = ForeignKeyField(Task, index=False)
    file = ForeignKeyField(File, index=False)
    job = ForeignKeyField(Job, backref="job_inputs")

    class Meta:
        primary_key = CompositeKey("task", "file")


class Attempt(Table):
    """One try of a job, with a time per state, and the last `seq` that its pilot used."""

    id = BigAutoField()
    job = ForeignKeyField(Job, index=False)
    attempt_nr = IntegerField()
    pilot_id = TextField(index=True)
    node = TextField(default="")
    queue = TextField()
    request_id = TextField(index=True)
    nonce = TextField()
    state = TextField(default=JobState.EXTRACTED.value)
    seq = BigIntegerField(default=0)
    lease_until = BigIntegerField()
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
    log_url = TextField(default="")
    log_size = BigIntegerField(null=True)
    log_checksums = TextField(null=True)
    metrics = TextField(null=True)

    class Meta:
        indexes = ((("job", "attempt_nr"), True),)


Attempt.add_index(Attempt.index(Attempt.lease_until, where=Attempt.ended_at.is_null(), name="attempt_live"))

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


class Token(Table):
    """A credential, hashed; the token itself is shown once and kept nowhere."""

    id = BigAutoField()
    name = TextField()
    role = TextField()
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


TABLES: tuple[type[Table], ...] = (
    Counter,
    Site,
    Storage,
    Queue,
    Dataset,
    File,
    Replica,
    JobClass,
    Task,
    Job,
    JobInput,
    Attempt,
    JobEvent,
    Pilot,
    Token,
    Bundle,
)
