"""Numbers that are never given again, also when the last row has left its table; what of a task lies in the archive."""

from typing import Any

from peewee import SqliteDatabase

NUMBERED = ("attempt", "dataset", "file", "job", "job_class", "task")

STATEMENTS = (
    "ALTER TABLE task ADD COLUMN archived BOOLEAN NOT NULL DEFAULT FALSE",
    "CREATE INDEX task_to_archive ON task (ended) WHERE ended IS NOT NULL AND NOT archived",
    "CREATE INDEX archived_job_error ON archived_job (task_id, error) WHERE error IS NOT NULL",
)


def up(migrator: Any, db: Any) -> None:
    for statement in STATEMENTS:
        db.execute_sql(statement)
    if isinstance(db, SqliteDatabase):
        _count_on(db)


def _count_on(db: Any) -> None:
    """Let SQLite count the numbers of these tables on, instead of taking the one after the highest that is there.

    The word AUTOINCREMENT changes how numbers are chosen and nothing of what is stored, so it is put into the tables'
    definitions; to copy the tables instead would take minutes. The first table that has it brings `sqlite_sequence`.
    """
    db.execute_sql("CREATE TABLE first_counted (id INTEGER PRIMARY KEY AUTOINCREMENT)")
    db.execute_sql("DROP TABLE first_counted")
    (version,) = db.execute_sql("PRAGMA schema_version").fetchone()
    db.execute_sql("PRAGMA writable_schema = ON")
    for name in NUMBERED:
        db.execute_sql(
            "UPDATE sqlite_master SET sql = replace(sql, '\"id\" INTEGER NOT NULL PRIMARY KEY',"
            " '\"id\" INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT') WHERE type = 'table' AND name = ?",
            (name,),
        )
        db.execute_sql(
            f"INSERT INTO sqlite_sequence (name, seq) SELECT '{name}', coalesce(max(id), 0) FROM \"{name}\""
        )
    db.execute_sql(f"PRAGMA schema_version = {version + 1}")
    db.execute_sql("PRAGMA writable_schema = OFF")
