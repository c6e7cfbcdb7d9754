"""The models of a pilot's GPUs, and whether it is to be replaced by the server's present pilot."""

from typing import Any

COLUMNS = (
    ("gpu_kinds", "TEXT NOT NULL DEFAULT '[]'"),
    ("updating", "BOOLEAN NOT NULL DEFAULT FALSE"),
)


def up(migrator: Any, db: Any) -> None:
    for name, kind in COLUMNS:
        db.execute_sql(f'ALTER TABLE "pilot" ADD COLUMN "{name}" {kind}')
