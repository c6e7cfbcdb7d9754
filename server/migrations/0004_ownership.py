"""Who registered a dataset: its owner may add files and close it. Of those that are there, the task's owner or the operator."""

from typing import Any


def up(migrator: Any, db: Any) -> None:
    db.execute_sql("ALTER TABLE dataset ADD COLUMN owner TEXT NOT NULL DEFAULT ''")
    db.execute_sql(
        "UPDATE dataset SET owner = coalesce((SELECT t.owner FROM task AS t WHERE t.id = dataset.task_id), 'admin')"
    )
