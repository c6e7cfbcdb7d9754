"""The batch job in which a pilot runs, and the settings that a queue gives to its pilots."""

from typing import Any

COLUMNS = (
    ("pilot", "batch_system", "''"),
    ("pilot", "batch_id", "''"),
    ("queue", "pilot_settings", "'{}'"),
)


def up(migrator: Any, db: Any) -> None:
    for table, name, default in COLUMNS:
        db.execute_sql(f'ALTER TABLE "{table}" ADD COLUMN "{name}" TEXT NOT NULL DEFAULT {default}')
