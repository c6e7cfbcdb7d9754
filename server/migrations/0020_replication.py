"""The storage to which a task copies its input dataset, if it does."""

from typing import Any


def up(migrator: Any, db: Any) -> None:
    db.execute_sql("""ALTER TABLE "task" ADD COLUMN "target_storage" TEXT""")
