"""The numbers of running attempts over time."""

from typing import Any

from peewee import BigIntegerField, CompositeKey, Model, TextField


def up(migrator: Any, db: Any) -> None:
    class MetricPoint(Model):
        attempt_id = BigIntegerField()
        at = BigIntegerField()
        metrics = TextField()

        class Meta:
            database = db
            table_name = "metric_point"
            primary_key = CompositeKey("attempt_id", "at")

    db.create_tables([MetricPoint])
