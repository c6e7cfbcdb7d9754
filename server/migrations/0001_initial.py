"""The first schema: a frozen copy of the tables, which does not change when the models do."""

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


def up(migrator: Any, db: Any) -> None:
    class JobClass(Model):
        id = BigAutoField()
        key = TextField(unique=True)

        class Meta:
            database = db
            table_name = "job_class"

    class Dataset(Model):
        id = BigAutoField()
        name = TextField(unique=True)
        scope = TextField()
        state = TextField(default="open")
        created = DoubleField()
        closed = DoubleField(null=True)
        task_id = BigIntegerField(index=True, null=True)

        class Meta:
            database = db
            table_name = "dataset"

    class Task(Model):
        id = BigAutoField()
        name = TextField(unique=True)
        owner = TextField()
        spec = TextField()
        resource_type = TextField()
        priority = IntegerField(default=0)
        job_class = ForeignKeyField(JobClass)
        input_dataset = ForeignKeyField(Dataset, null=True)
        output_dataset = ForeignKeyField(Dataset, null=True)
        n_formed = IntegerField(default=0)
        last_file_id = BigIntegerField(default=0)
        all_formed = BooleanField(index=True, default=False)
        cancelled = BooleanField(default=False)
        created = DoubleField()
        started = DoubleField(null=True)
        ended = DoubleField(index=True, null=True)

        class Meta:
            database = db
            table_name = "task"

    class Job(Model):
        id = BigAutoField()
        task = ForeignKeyField(Task, index=False)
        job_nr = IntegerField()
        job_class = ForeignKeyField(JobClass, index=False)
        state = TextField(default="REGISTERED")
        priority = IntegerField(default=0)
        ready_nr = BigIntegerField(null=True)
        ready_after = BigIntegerField(null=True)
        attempt_nr = IntegerField(default=0)
        attempt_id = BigIntegerField(null=True)
        payload_failures = IntegerField(default=0)
        losses = IntegerField(default=0)
        unacknowledged = IntegerField(default=0)
        error = TextField(null=True)
        error_detail = TextField(null=True)
        registered = DoubleField()
        changed = DoubleField()

        class Meta:
            database = db
            table_name = "job"
            indexes = ((("task", "job_nr"), True), (("task", "state"), False))

    class Storage(Model):
        name = TextField(primary_key=True)
        url = TextField()

        class Meta:
            database = db
            table_name = "storage"

    class Attempt(Model):
        id = BigAutoField()
        job = ForeignKeyField(Job, index=False)
        attempt_nr = IntegerField()
        pilot_id = TextField(index=True)
        node = TextField(default="")
        queue = TextField()
        request_id = TextField(index=True)
        nonce = TextField()
        state = TextField(default="EXTRACTED")
        seq = BigIntegerField(default=0)
        lease_until = BigIntegerField()
        ready_at = DoubleField()
        extracted_at = DoubleField()
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
            database = db
            table_name = "attempt"
            indexes = ((("job", "attempt_nr"), True),)

    class Bundle(Model):
        digest = TextField(primary_key=True)
        size = BigIntegerField()
        owner = TextField()
        created = DoubleField()

        class Meta:
            database = db
            table_name = "bundle"

    class Counter(Model):
        name = TextField(primary_key=True)
        value = BigIntegerField(default=0)

        class Meta:
            database = db
            table_name = "counter"

    class File(Model):
        id = BigAutoField()
        dataset = ForeignKeyField(Dataset, index=False)
        scope = TextField()
        lfn = TextField()
        state = TextField(default="available")
        size = BigIntegerField(default=0)
        checksums = TextField(default="{}")
        created = DoubleField()
        job_id = BigIntegerField(index=True, null=True)

        class Meta:
            database = db
            table_name = "file"
            indexes = ((("scope", "lfn"), True), (("dataset", "id"), False))

    class JobEvent(Model):
        id = BigAutoField()
        job = ForeignKeyField(Job)
        attempt_nr = IntegerField(default=0)
        at = DoubleField()
        actor = TextField()
        event = TextField()
        detail = TextField(default="")

        class Meta:
            database = db
            table_name = "job_event"

    class JobInput(Model):
        task = ForeignKeyField(Task, index=False)
        file = ForeignKeyField(File, index=False)
        job = ForeignKeyField(Job)

        class Meta:
            database = db
            table_name = "job_input"
            primary_key = CompositeKey("task", "file")

    class Site(Model):
        name = TextField(primary_key=True)
        state = TextField(default="online")

        class Meta:
            database = db
            table_name = "site"

    class Queue(Model):
        name = TextField(primary_key=True)
        site = ForeignKeyField(Site)
        resource_type = TextField()
        state = TextField(default="online")
        storage = ForeignKeyField(Storage)
        copytools = TextField(default="[]")
        lease_seconds = IntegerField(default=60)
        heartbeat_seconds = IntegerField(default=20)
        timefloor_seconds = IntegerField(default=0)

        class Meta:
            database = db
            table_name = "queue"

    class Pilot(Model):
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
        first_seen = DoubleField()
        last_seen = DoubleField()
        lease_until = BigIntegerField()
        ended = DoubleField(null=True)
        exit_code = IntegerField(null=True)
        reason = TextField(null=True)
        n_done = IntegerField(default=0)

        class Meta:
            database = db
            table_name = "pilot"

    class Replica(Model):
        id = BigAutoField()
        file = ForeignKeyField(File)
        storage = ForeignKeyField(Storage, null=True)
        url = TextField()
        created = DoubleField()

        class Meta:
            database = db
            table_name = "replica"

    class Token(Model):
        id = BigAutoField()
        name = TextField()
        role = TextField()
        queue = TextField(null=True)
        hash = TextField(unique=True)
        created = DoubleField()
        expires = DoubleField(null=True)
        revoked = DoubleField(null=True)

        class Meta:
            database = db
            table_name = "token"

    Job.add_index(
        Job.index(
            Job.job_class,
            Job.priority.desc(),
            Job.ready_nr,
            where=Job.ready_nr.is_null(False),
            name="job_ready",
        )
    )
    Job.add_index(Job.index(Job.ready_after, where=Job.ready_after.is_null(False), name="job_later"))
    Attempt.add_index(
        Attempt.index(Attempt.lease_until, where=Attempt.ended_at.is_null(), name="attempt_live")
    )

    db.create_tables(
        [
            JobClass,
            Dataset,
            Task,
            Job,
            Storage,
            Attempt,
            Bundle,
            Counter,
            File,
            JobEvent,
            JobInput,
            Site,
            Queue,
            Pilot,
            Replica,
            Token,
        ]
    )
    for name in ("lease_clock", "ready_nr"):
        Counter.create(name=name, value=0)
