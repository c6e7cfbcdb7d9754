"""Tasks whose jobs were removed from the archive, as an operator wanted it: that they are missing is no damage."""

from typing import Any


def up(migrator: Any, db: Any) -> None:
    db.execute_sql("""ALTER TABLE "task" ADD COLUMN "pruned" BOOLEAN NOT NULL DEFAULT FALSE""")
    # Until now nothing has noted it.
    db.execute_sql(
        """UPDATE "task" SET "pruned" = TRUE WHERE "archived" AND "n_formed" > 0
            AND NOT EXISTS (SELECT 1 FROM "archived_job" WHERE "archived_job"."task_id" = "task"."id")"""
    )
