"""What is known of each replica: whether it is as registered, and if not, why and since when."""

from typing import Any

STATEMENTS = (
    """ALTER TABLE "replica" ADD COLUMN "state" TEXT NOT NULL DEFAULT 'good'""",
    """ALTER TABLE "replica" ADD COLUMN "reason" TEXT NOT NULL DEFAULT ''""",
    """ALTER TABLE "replica" ADD COLUMN "changed" DOUBLE PRECISION""",
    # Few rows are in it, so that the many good ones cost nothing and the others are found among ten millions.
    """CREATE INDEX "replica_not_good" ON "replica" ("storage_id") WHERE "state" <> 'good'""",
)


def up(migrator: Any, db: Any) -> None:
    for statement in STATEMENTS:
        db.execute_sql(statement)
