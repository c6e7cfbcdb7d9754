"""Leases per attempt, ended jobs counted by the closer, groups and accounts, nodes put aside, the archive; indexes for flat claims."""

from typing import Any

from peewee import (
    BigAutoField,
    BigIntegerField,
    CompositeKey,
    DoubleField,
    IntegerField,
    Model,
    SqliteDatabase,
    TextField,
)

COLUMNS = (
    ("job_class", "core_seconds", "DOUBLE PRECISION NOT NULL DEFAULT 60"),
    ("storage", "site", "TEXT"),
    ("queue", "requeue_delay_seconds", "INTEGER NOT NULL DEFAULT 0"),
    ("queue", "tags", "TEXT NOT NULL DEFAULT '[]'"),
    ("queue", "country_group", "TEXT NOT NULL DEFAULT ''"),
    ("site", "state_reason", "TEXT NOT NULL DEFAULT ''"),
    ("queue", "state_reason", "TEXT NOT NULL DEFAULT ''"),
    ("queue", "state_by", "TEXT NOT NULL DEFAULT ''"),
    ("queue", "state_attempt_id", "BIGINT NOT NULL DEFAULT 0"),
    ("task", "paused", "BOOLEAN NOT NULL DEFAULT FALSE"),
    ("task", "unsettled", "BOOLEAN NOT NULL DEFAULT FALSE"),
    ("task", "working_group", "TEXT NOT NULL DEFAULT ''"),
    ("task", "country_group", "TEXT NOT NULL DEFAULT ''"),
    ("task", "boost", "INTEGER NOT NULL DEFAULT 0"),
    ("task", "n_completed", "INTEGER NOT NULL DEFAULT 0"),
    ("task", "n_failed", "INTEGER NOT NULL DEFAULT 0"),
    ("task", "n_cancelled", "INTEGER NOT NULL DEFAULT 0"),
    ("job", "kills", "INTEGER NOT NULL DEFAULT 0"),
    ("job", "loss", "TEXT"),
    ("job", "avoid_node", "TEXT"),
    ("job", "avoid_until", "BIGINT"),
    ("job", "site", "TEXT"),
    ("job", "ended_at", "DOUBLE PRECISION"),
    ("job", "counted", "BOOLEAN NOT NULL DEFAULT FALSE"),
    ("attempt", "request_nr", "INTEGER NOT NULL DEFAULT 0"),
    ("attempt", "lease_seconds", "INTEGER NOT NULL DEFAULT 60"),
    ("attempt", "left_out", "INTEGER NOT NULL DEFAULT 0"),
    ("attempt", "cores", "INTEGER NOT NULL DEFAULT 1"),
    ("pilot", "draining", "BOOLEAN NOT NULL DEFAULT FALSE"),
    ("pilot", "tags", "TEXT NOT NULL DEFAULT '[]'"),
    ("token", "account", "TEXT"),
)

STATEMENTS = (
    "UPDATE job SET ended_at = changed WHERE state IN ('COMPLETED', 'FAILED', 'CANCELLED')",
    # Of a million rows only those are written that get another value.
    "UPDATE attempt SET request_nr = n.nr FROM (SELECT id, row_number() OVER (PARTITION BY request_id ORDER BY id) - 1"
    " AS nr FROM attempt) AS n WHERE n.id = attempt.id AND n.nr > 0",
    "UPDATE attempt SET lease_seconds = q.lease_seconds FROM queue AS q"
    " WHERE q.name = attempt.queue AND q.lease_seconds <> 60",
    'DROP INDEX "job_task_id_state"',
    'DROP INDEX "attempt_pilot_id"',
    'DROP INDEX "attempt_request_id"',
    'DROP INDEX "attempt_live"',
    "CREATE INDEX task_unsettled ON task (id) WHERE unsettled",
    'ALTER TABLE attempt DROP COLUMN "log_url"',
    "CREATE INDEX job_open ON job (task_id) WHERE ended_at IS NULL",
    "CREATE INDEX job_uncounted ON job (task_id) WHERE ended_at IS NOT NULL AND NOT counted",
    "CREATE INDEX job_error ON job (task_id, error) WHERE error IS NOT NULL",
    "CREATE UNIQUE INDEX attempt_request_id_pilot_id_request_nr ON attempt (request_id, pilot_id, request_nr)",
    "CREATE INDEX attempt_live ON attempt (pilot_id) WHERE ended_at IS NULL",
)


def up(migrator: Any, db: Any) -> None:
    for table, name, kind in COLUMNS:
        db.execute_sql(f'ALTER TABLE "{table}" ADD COLUMN "{name}" {kind}')
    for statement in STATEMENTS:
        db.execute_sql(statement)
    if not isinstance(db, SqliteDatabase):
        # A number may be drawn without waiting for whoever drew the last one.
        db.execute_sql("CREATE SEQUENCE ready_nr")
        db.execute_sql(
            "SELECT setval('ready_nr', greatest(1, (SELECT value FROM counter WHERE name = 'ready_nr')))"
        )
    _create_tables(db)


def _create_tables(db: Any) -> None:
    class Node(Model):
        queue_id = TextField()
        name = TextField()
        quick_failures = IntegerField(default=0)
        first_attempt_id = BigIntegerField(default=0)
        held_until = BigIntegerField(default=0)
        set_aside = DoubleField(null=True)
        reason = TextField(default="")

        class Meta:
            database = db
            table_name = "node"
            primary_key = CompositeKey("queue_id", "name")

    class TaskDependency(Model):
        task_id = BigIntegerField()
        on_task_id = BigIntegerField(index=True)

        class Meta:
            database = db
            table_name = "task_dependency"
            primary_key = CompositeKey("task_id", "on_task_id")

    class WorkingGroup(Model):
        name = TextField(primary_key=True)
        parent = TextField(null=True)
        share = IntegerField(default=100)
        usage = DoubleField(default=0.0)
        max_open_jobs = IntegerField(null=True)

        class Meta:
            database = db
            table_name = "working_group"

    class Account(Model):
        name = TextField(primary_key=True)
        working_group = TextField(default="")
        max_open_jobs = IntegerField(null=True)
        created = DoubleField()

        class Meta:
            database = db
            table_name = "account"

    class AdminEvent(Model):
        id = BigAutoField()
        at = DoubleField()
        who = TextField()
        action = TextField()
        subject = TextField(default="")
        detail = TextField(default="")

        class Meta:
            database = db
            table_name = "admin_event"

    class ArchivedJob(Model):
        id = BigIntegerField(primary_key=True)
        task_id = BigIntegerField()
        job_nr = IntegerField()
        state = TextField()
        attempt_nr = IntegerField()
        error = TextField(null=True)
        ended_at = DoubleField()
        details = TextField()

        class Meta:
            database = db
            table_name = "archived_job"
            indexes = ((("task_id", "job_nr"), True),)

    class Usage(Model):
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
            database = db
            table_name = "usage"
            primary_key = CompositeKey("day", "owner", "working_group", "queue")

    db.create_tables([Node, TaskDependency, WorkingGroup, Account, AdminEvent, ArchivedJob, Usage])
