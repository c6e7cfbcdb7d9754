"""What the archived attempts of a task came to, and where: so that failures can be told apart without opening the archive."""

from typing import Any

from peewee import BigIntegerField, CompositeKey, Model, TextField


def up(migrator: Any, db: Any) -> None:
    class TaskOutcome(Model):
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
        first_job = BigIntegerField(default=0)
        example = TextField(default="")

        class Meta:
            database = db
            table_name = "task_outcome"
            primary_key = CompositeKey("task_id", "error", "signature", "node", "queue", "storage")

    db.create_tables([TaskOutcome])
