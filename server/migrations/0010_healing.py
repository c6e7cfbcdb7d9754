"""The queue that a job is kept from for a while, as from a node."""

from typing import Any


def up(migrator: Any, db: Any) -> None:
    db.execute_sql("ALTER TABLE job ADD COLUMN avoid_queue TEXT")
