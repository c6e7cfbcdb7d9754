"""How many further copies of a job may be handed out, and who has one. No row of the jobs there are is touched."""

from typing import Any

STATEMENTS = (
    "ALTER TABLE job ADD COLUMN copies INTEGER",
    "ALTER TABLE job ADD COLUMN copy_nodes TEXT",
)


def up(migrator: Any, db: Any) -> None:
    for statement in STATEMENTS:
        db.execute_sql(statement)
