"""Plant jobs, attempts and pilots in bulk, straight into the database: minutes for ten million, where the API takes hours.

A job is planted by copying one that the server has formed, so that every column is as the server writes it; what is
written at a time is small, so that a server at work on the same database is not held up for long.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from typing import Any

from protocol.states import JobState

CHUNK = 20_000
"""Rows in one transaction."""
NEVER = 1 << 60
"""A lease clock that never comes: a job that waits for it keeps its task open."""


class Planter:
    """Writes into the database of one server, which may be at work meanwhile."""

    def __init__(self, url: str) -> None:
        self.is_sqlite = url.startswith("sqlite:")
        self._connection: Any
        if self.is_sqlite:
            self._connection = sqlite3.connect(url[len("sqlite:///") :], isolation_level=None, timeout=60)
            self._connection.execute("PRAGMA synchronous=normal")
        else:
            import psycopg

            self._connection = psycopg.connect(url, autocommit=True)
            self._connection.execute("SET synchronous_commit = off")
            with contextlib.suppress(psycopg.errors.InsufficientPrivilege):
                # No foreign keys are looked at: rows are planted in half the time.
                self._connection.execute("SET session_replication_role = replica")

    def close(self) -> None:
        self._connection.close()

    def execute(self, statement: str, **values: Any) -> list[tuple[Any, ...]]:
        """One statement with values by `:name`; its rows."""
        if not self.is_sqlite:
            statement = statement.replace("%", "%%")
            for name in values:
                statement = statement.replace(f":{name}", f"%({name})s")
            cursor = self._connection.execute(statement.encode(), values)
            return list(cursor.fetchall()) if cursor.description else []
        return list(self._connection.execute(statement, values).fetchall())

    def number(self, statement: str, **values: Any) -> int:
        return int(self.execute(statement, **values)[0][0] or 0)

    def _columns(self, table: str) -> list[str]:
        if self.is_sqlite:
            return [row[1] for row in self.execute(f"PRAGMA table_info({table})")]
        statement = (
            "SELECT column_name FROM information_schema.columns"
            " WHERE table_schema = current_schema() AND table_name = :name ORDER BY ordinal_position"
        )
        return [row[0] for row in self.execute(statement, name=table)]

    def _copy(self, table: str, source: str, n: int, changes: dict[str, str], where: str = "") -> None:
        """Insert `n` copies of rows of `source`, with these columns changed: SQL in which `g.n` counts from 1."""
        columns = [name for name in self._columns(table) if name != "id" or "id" in changes]
        values = ", ".join(changes.get(name, f"old.{name}") for name in columns)
        if self.is_sqlite:
            counted = f"WITH RECURSIVE g(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM g WHERE n < {n})"
            series = "g"
        else:
            counted, series = "", f"generate_series(1, {n}) AS g(n)"
        # CROSS JOIN: SQLite keeps this order, so that the rows come in the order of their numbers.
        self.execute(
            f"INSERT INTO {table} ({', '.join(columns)}) {counted}"
            f" SELECT {values} FROM {series} CROSS JOIN {source} AS old {where}"
        )

    # -- what is planted --------------------------------------------------------------------------------------------

    def model(self, task_id: int) -> int:
        """The job that is copied: one of this task, which the server has formed and nobody has claimed."""
        return self.number("SELECT id FROM job WHERE task_id = :task ORDER BY job_nr LIMIT 1", task=task_id)

    def waiting(self, task_id: int, most: int) -> int:
        """How many jobs like those of this task may be claimed; it counts no further than `most`."""
        return self.number(
            "SELECT count(*) FROM (SELECT 1 FROM job WHERE ready_nr IS NOT NULL AND job_class_id ="
            f" (SELECT job_class_id FROM task WHERE id = :task) LIMIT {most}) AS counted",
            task=task_id,
        )

    def keep_open(self, task_id: int) -> None:
        """A job that nobody can claim, so that the task does not end when it has run dry."""
        self._jobs(task_id, 1, {"ready_nr": "NULL", "ready_after": str(NEVER)})

    def ready(self, task_id: int, n: int) -> None:
        """`n` jobs that may be claimed, behind those that are there."""
        for size in _chunks(n):
            if self.is_sqlite:
                number = "(SELECT value FROM counter WHERE name = 'ready_nr') + g.n"
            else:
                number = "nextval('ready_nr')"
            self.begin()
            self._jobs(task_id, size, {"ready_nr": number, "ready_after": "NULL"})
            if self.is_sqlite:
                self.execute("UPDATE counter SET value = value + :n WHERE name = 'ready_nr'", n=size)
            self.commit()

    def ended(self, task_id: int, n: int) -> None:
        """`n` jobs that have completed and been counted, each with its attempt."""
        done, now = JobState.COMPLETED.value, time.time()
        for size in _chunks(n):
            self.begin()
            job, attempt = (self.number(f"SELECT max(id) FROM {table}") for table in ("job", "attempt"))
            changes = {
                "id": f"{job} + g.n",
                "state": f"'{done}'",
                "ready_nr": "NULL",
                "ready_after": "NULL",
                "attempt_nr": "1",
                "attempt_id": f"{attempt} + g.n",
                "ended_at": f"{now}",
                "counted": "TRUE",
            }
            self._jobs(task_id, size, changes)
            self._attempts(size, job, attempt, done, now)
            if not self.is_sqlite:
                for table in ("job", "attempt"):
                    self.execute(
                        f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), (SELECT max(id) FROM {table}))"
                    )
            self.execute(
                "UPDATE task SET n_completed = n_completed + :n WHERE id = :task", n=size, task=task_id
            )
            self.commit()

    def _attempts(self, n: int, job: int, attempt: int, state: str, now: float) -> None:
        """The attempts of the `n` jobs behind `job`: all that happened to them happened `now`."""
        values = {name: str(now) for name in self._columns("attempt") if name.endswith("_at")} | {
            "id": f"{attempt} - {job} + id",
            "job_id": "id",
            "attempt_nr": "1",
            "pilot_id": "'planted'",
            "node": "'node'",
            "queue": "'CPU'",
            "request_id": "'planted-' || (1000000000 + id)",  # each a little greater than the last, as in life
            "request_nr": "0",
            "nonce": "'0123456789abcdef0123456789abcdef'",
            "state": f"'{state}'",
            "seq": "3",
            "lease_until": "0",
            "lease_seconds": "60",
            "left_out": "0",
            "cores": "1",
            "storage_id": "'LOCAL'",
        }
        self.execute(
            f"INSERT INTO attempt ({', '.join(values)}) SELECT {', '.join(values.values())}"
            f" FROM job WHERE id > {job} AND id <= {job + n} ORDER BY id"
        )

    def _jobs(self, task_id: int, n: int, changes: dict[str, str]) -> None:
        fresh = {
            "job_nr": f"(SELECT max(job_nr) FROM job WHERE task_id = {task_id}) + g.n",
            "state": f"'{JobState.READY.value}'",
            "attempt_nr": "0",
            "attempt_id": "NULL",
            "ended_at": "NULL",
            "counted": "FALSE",
            "changed": str(time.time()),
        }
        self._copy("job", "job", n, fresh | changes, f"WHERE old.id = {self.model(task_id)}")
        self.execute("UPDATE task SET n_formed = n_formed + :n WHERE id = :task", n=n, task=task_id)

    def pilots(self, prefix: str, n: int) -> None:
        """Pilots PREFIX-1 and so on, as PREFIX-0, which has registered."""
        number = next(name for name in self._columns("pilot") if name in ("number", "id"))
        first = self.number("SELECT max(number) FROM pilot")
        for start in range(1, n, CHUNK):
            size = min(CHUNK, n - start)
            self.begin()
            self._copy(
                "pilot",
                "pilot",
                size,
                {
                    number: f"{first + start} + g.n",
                    "pilot_id": f"'{prefix}-' || ({start} - 1 + g.n)",
                    "node": f"'node-' || ({start} - 1 + g.n)",
                },
                f"WHERE old.pilot_id = '{prefix}-0'",
            )
            self.commit()
        if not self.is_sqlite:
            self.execute(
                "SELECT setval(pg_get_serial_sequence('pilot', 'number'), (SELECT max(number) FROM pilot))"
            )

    def begin(self) -> None:
        self.execute("BEGIN IMMEDIATE" if self.is_sqlite else "BEGIN")

    def commit(self) -> None:
        self.execute("COMMIT")

    def settle(self) -> None:
        """What autovacuum would do by itself in time: fresh statistics, and a log that is written back."""
        if self.is_sqlite:
            self.execute("PRAGMA wal_checkpoint(PASSIVE)")
        else:
            self.execute("VACUUM ANALYZE job")
            self.execute("VACUUM ANALYZE attempt")
            self.execute("CHECKPOINT")


def _chunks(n: int) -> list[int]:
    return [min(CHUNK, n - start) for start in range(0, n, CHUNK)]
