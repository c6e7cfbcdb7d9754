"""Who cancels a task while that is going on, and how much a dataset holds: so that neither has to be looked for among millions."""

from typing import Any

STATEMENTS = (
    "ALTER TABLE task ADD COLUMN cancelled_by TEXT",
    "CREATE INDEX task_being_cancelled ON task (id) WHERE cancelled_by IS NOT NULL",
    "ALTER TABLE task ADD COLUMN n_attempts BIGINT NOT NULL DEFAULT 0",
    # Whoever deletes a file asks who reads it: the foreign key does.
    "CREATE INDEX job_input_file_id ON job_input (file_id)",
    "ALTER TABLE dataset ADD COLUMN n_files BIGINT NOT NULL DEFAULT 0",
    "ALTER TABLE dataset ADD COLUMN mebibytes BIGINT NOT NULL DEFAULT 0",
    "ALTER TABLE dataset ADD COLUMN bytes_more BIGINT NOT NULL DEFAULT 0",
    # Those that jobs made are added by the closer, which counts every job of before now.
    "UPDATE dataset SET n_files = s.n, mebibytes = s.mebibytes, bytes_more = s.more FROM ("
    "SELECT dataset_id, count(*) AS n, sum(size / 1048576) AS mebibytes, sum(size & 1048575) AS more"
    " FROM file WHERE state = 'available' AND job_id IS NULL GROUP BY dataset_id) AS s WHERE dataset.id = s.dataset_id",
)


def up(migrator: Any, db: Any) -> None:
    for statement in STATEMENTS:
        db.execute_sql(statement)
