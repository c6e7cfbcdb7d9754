"""What somebody wants to see of an attempt that runs, and what its pilot sent."""

from typing import Any

from peewee import BigIntegerField, BooleanField, DoubleField, IntegerField, Model, TextField


def up(migrator: Any, db: Any) -> None:
    class AttemptDebug(Model):
        attempt_id = BigIntegerField(primary_key=True)
        is_on = BooleanField(default=False)
        watched_until = DoubleField(default=0.0)
        soft_stop = BooleanField(default=False)
        file = TextField(default="")
        inspections = TextField(default="[]")
        n_asked = IntegerField(default=0)
        at = DoubleField(null=True)
        report = TextField(default="{}")

        class Meta:
            database = db
            table_name = "attempt_debug"

    db.create_tables([AttemptDebug])
