"""What benchmarks found: with the attempt that they ran in, and the last one of each pilot."""

from typing import Any


def up(migrator: Any, db: Any) -> None:
    for table in ("attempt", "pilot"):
        db.execute_sql(f'ALTER TABLE "{table}" ADD COLUMN "benchmark" TEXT NULL')
