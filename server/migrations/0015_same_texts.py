"""Of archived failures with one signature two texts, the first and the last by the alphabet: whether all say the same."""

from typing import Any


def up(migrator: Any, db: Any) -> None:
    db.execute_sql("""ALTER TABLE "task_outcome" ADD COLUMN "last_example" TEXT NOT NULL DEFAULT ''""")
    # Of those that are there it is not known: the signature agrees with their texts up to its first placeholder.
    db.execute_sql(
        """UPDATE "task_outcome" SET
            "example" = CASE WHEN "signature" < "example" THEN "signature" ELSE "example" END,
            "last_example" = CASE WHEN "signature" < "example" THEN "example" ELSE "signature" END"""
    )
