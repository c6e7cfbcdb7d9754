"""The checks of an audit that need the database alone: for each a query whose rows are what is wrong.

A query looks at the rows of one table with ids from `:low` to `:high`, so that neither side ever holds much at a time;
`{range}` says so, and keeps to one task if the audit does. A job that a user has tried again after it was archived is in both
tables: the archive has its earlier attempts, and counts only where it is the only one (`{cold}`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

from protocol.messages import from_wire
from protocol.messages.requests import TaskSpec
from protocol.states import FINAL, HELD, JobState
from server.auditing.findings import Finding, Report, finding
from server.auditing.snapshot import Snapshot

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Given a title and how much there is to do, a context that is told how much more is done."""


@dataclass(frozen=True)
class Scope:
    """A table that is gone through by its ids: its letter in the queries, how many at a time, and which belong to a task."""

    letter: str
    chunk: int
    of_task: str

    def put_into(self, sql: str, task: int | None) -> str:
        """The query for the rows between two ids, of one task or of all."""
        between = f"{self.letter}.id BETWEEN :low AND :high"
        sql = sql.replace("{cold}", "NOT EXISTS (SELECT 1 FROM job h WHERE h.id = x.id)")
        return sql.replace("{range}", between if task is None else f"{between} AND {self.of_task}")


SCOPES = {
    "task": Scope("t", 200, "t.id = :task"),
    "job": Scope("j", 10_000, "j.task_id = :task"),
    "attempt": Scope("a", 10_000, "a.job_id IN (SELECT id FROM job WHERE task_id = :task)"),
    "dataset": Scope("d", 2_000, "d.task_id = :task"),
    "file": Scope("f", 10_000, "f.dataset_id = (SELECT output_dataset_id FROM task WHERE id = :task)"),
}


@dataclass(frozen=True)
class Query:
    """Rows of a table for which a check does not hold, and the sentence that each of them makes."""

    check: str
    table: str
    sentence: str
    sql: str


def _words(*states: JobState) -> str:
    return "(" + ", ".join(f"'{state.value}'" for state in states) + ")"


def _is(state: JobState) -> str:
    return f"= '{state.value}'"


def _times() -> str:
    """For each state that has a time: it is missing, or there is one of a state after it."""
    columns = [f"a.{state.name.lower()}_at" for state in HELD]
    wrong = []
    for index, state in enumerate(HELD):
        faults = [f"{columns[index]} IS NULL", *(f"{later} IS NOT NULL" for later in columns[index + 1 :])]
        wrong.append(f"a.state {_is(state)} AND ({' OR '.join(faults)})")
    return " OR ".join(f"({each})" for each in wrong)


_FINAL = _words(*sorted(FINAL))
_HELD = _words(*HELD)
_HOLDS = "j.id = a.job_id AND (j.attempt_id = a.id OR j.copies IS NOT NULL)"
"""An attempt is its job's own, or may be one of several copies."""
_CLOCK = "(SELECT value / 1000 FROM counter WHERE name = 'lease_clock')"

QUERIES = (
    Query(
        "job-numbers",
        "task",
        "task {task} has formed {n_formed} jobs; there are {jobs}, with {numbers} numbers from {lowest} to {highest}",
        """
        SELECT t.id AS task, t.n_formed, COALESCE(n.jobs, 0) AS jobs, COALESCE(n.numbers, 0) AS numbers, n.lowest, n.highest
        FROM task t LEFT JOIN (
            SELECT task_id, COUNT(*) AS jobs, COUNT(DISTINCT job_nr) AS numbers, MIN(job_nr) AS lowest, MAX(job_nr) AS highest
            FROM (SELECT task_id, job_nr FROM job WHERE task_id BETWEEN :low AND :high UNION ALL
                  SELECT x.task_id, x.job_nr FROM archived_job x WHERE x.task_id BETWEEN :low AND :high AND {cold}) AS every
            GROUP BY task_id) AS n ON n.task_id = t.id
        WHERE {range} AND NOT t.pruned AND (COALESCE(n.jobs, 0) <> t.n_formed OR n.numbers <> n.jobs OR n.lowest <> 1 OR n.highest <> n.jobs)
        """,
    ),
    Query(
        "job-inputs",
        "task",
        "file {file} of the input of task {task} is read by no job of that task",
        """
        SELECT t.id AS task, f.lfn AS file
        FROM task t JOIN file f ON f.dataset_id = t.input_dataset_id
             LEFT JOIN job_input i ON i.task_id = t.id AND i.file_id = f.id LEFT JOIN job j ON j.id = i.job_id
        WHERE {range} AND NOT t.pruned AND f.state = 'available' AND (t.all_formed OR f.id <= t.last_file_id)
              AND (j.id IS NULL OR j.task_id <> t.id)
              AND NOT EXISTS (SELECT 1 FROM archived_job x WHERE x.task_id = t.id)
              AND NOT EXISTS (SELECT 1 FROM replica r WHERE r.file_id = f.id AND r.storage_id = t.target_storage)
        """,
    ),
    Query(
        "job-inputs",
        "task",
        "file {file} of {dataset}, which task {task} has read in its container, is read by no job of that task",
        """
        SELECT t.id AS task, f.lfn AS file, d.name AS dataset
        FROM task t JOIN task_input p ON p.task_id = t.id AND p.dataset_id = t.input_dataset_id
             JOIN task_input e ON e.task_id = t.id AND e.position < p.position
             JOIN dataset d ON d.id = e.dataset_id JOIN file f ON f.dataset_id = e.dataset_id
             LEFT JOIN job_input i ON i.task_id = t.id AND i.file_id = f.id LEFT JOIN job j ON j.id = i.job_id
        WHERE {range} AND NOT t.pruned AND f.state = 'available' AND (j.id IS NULL OR j.task_id <> t.id)
              AND NOT EXISTS (SELECT 1 FROM archived_job x WHERE x.task_id = t.id)
        """,
    ),
    Query(
        "counters",
        "task",
        "task {task} counts {n_completed} completed, {n_failed} failed and {n_cancelled} cancelled jobs and {n_attempts} attempts; "
        "there are {completed}, {failed} and {cancelled}, and {attempts}",
        f"""
        SELECT t.id AS task, t.n_completed, t.n_failed, t.n_cancelled, t.n_attempts, COALESCE(n.completed, 0) AS completed,
               COALESCE(n.failed, 0) AS failed, COALESCE(n.cancelled, 0) AS cancelled, COALESCE(n.attempts, 0) AS attempts
        FROM task t LEFT JOIN (
            SELECT task_id, SUM(CASE WHEN state {_is(JobState.COMPLETED)} THEN 1 ELSE 0 END) AS completed,
                   SUM(CASE WHEN state {_is(JobState.FAILED)} THEN 1 ELSE 0 END) AS failed,
                   SUM(CASE WHEN state {_is(JobState.CANCELLED)} THEN 1 ELSE 0 END) AS cancelled, SUM(attempt_nr) AS attempts
            FROM (SELECT task_id, state, attempt_nr FROM job WHERE counted AND task_id BETWEEN :low AND :high UNION ALL
                  SELECT x.task_id, x.state, x.attempt_nr FROM archived_job x
                  WHERE x.task_id BETWEEN :low AND :high AND {{cold}}) AS every
            GROUP BY task_id) AS n ON n.task_id = t.id
        WHERE {{range}} AND NOT t.pruned AND (t.n_completed <> COALESCE(n.completed, 0) OR t.n_failed <> COALESCE(n.failed, 0)
              OR t.n_cancelled <> COALESCE(n.cancelled, 0) OR t.n_attempts <> COALESCE(n.attempts, 0))
        """,
    ),
    Query(
        "job-state",
        "job",
        "job {job} is in {state}, which is no state",
        f"SELECT j.id AS job, j.task_id AS task, j.state FROM job j WHERE {{range}} AND j.state NOT IN {_words(*JobState)}",
    ),
    Query(
        "job-state",
        "job",
        "job {job} is {state}, and the time of its end is {ended_at}",
        f"""
        SELECT j.id AS job, j.task_id AS task, j.state, j.ended_at FROM job j
        WHERE {{range}} AND (j.state IN {_FINAL}) = (j.ended_at IS NULL)
        """,
    ),
    Query(
        "verdict",
        "job",
        "job {job} is {state}, and its error is {error}",
        f"""
        SELECT j.id AS job, j.task_id AS task, j.state, j.error FROM job j
        WHERE {{range}} AND ((j.state {_is(JobState.COMPLETED)} AND j.error IS NOT NULL)
              OR (j.state IN {_words(JobState.FAILED, JobState.CANCELLED)} AND j.error IS NULL))
        """,
    ),
    Query(
        "queued",
        "job",
        "job {job} is {state}, and yet it may be claimed (place {ready_nr}, not before {ready_after})",
        f"""
        SELECT j.id AS job, j.task_id AS task, j.state, j.ready_nr, j.ready_after FROM job j
        WHERE {{range}} AND j.state <> '{JobState.READY.value}' AND (j.ready_nr IS NOT NULL OR j.ready_after IS NOT NULL)
              AND NOT (j.state IN {_HELD} AND COALESCE(j.copies, 0) > 0)
        """,
    ),
    Query(
        "queued",
        "job",
        "job {job} is {state} and nobody will ever claim it: it has no place in the queue, and no pause that ends",
        f"""
        SELECT j.id AS job, j.task_id AS task, j.state FROM job j JOIN task t ON t.id = j.task_id
        WHERE {{range}} AND j.state {_is(JobState.READY)} AND j.ready_nr IS NULL AND j.ready_after IS NULL
              AND NOT t.paused AND NOT t.unsettled
        """,
    ),
    Query(
        "held",
        "job",
        "job {job} is {state} and has no live attempt: nobody owns it",
        f"""
        SELECT j.id AS job, j.task_id AS task, j.state
        FROM job j LEFT JOIN attempt a ON a.id = j.attempt_id AND a.job_id = j.id AND a.ended_at IS NULL
        WHERE {{range}} AND j.state IN {_HELD} AND a.id IS NULL
        """,
    ),
    Query(
        "held",
        "job",
        "job {job} is {state}, and its attempt {attempt} is {other}",
        f"""
        SELECT j.id AS job, j.task_id AS task, j.state, a.id AS attempt, a.state AS other
        FROM job j JOIN attempt a ON a.id = j.attempt_id AND a.job_id = j.id AND a.ended_at IS NULL
        WHERE {{range}} AND j.state IN {_HELD} AND a.state <> j.state
        """,
    ),
    Query(
        "ended-task",
        "job",
        "job {job} is {state}, and its task {task} has ended",
        f"""
        SELECT j.id AS job, j.task_id AS task, j.state FROM job j JOIN task t ON t.id = j.task_id
        WHERE {{range}} AND t.ended IS NOT NULL AND j.state NOT IN {_FINAL}
        """,
    ),
    Query(
        "one-attempt",
        "attempt",
        "attempt {attempt} of job {job} lives, and the job's attempt is {current}",
        f"""
        SELECT a.id AS attempt, a.job_id AS job, j.attempt_id AS current FROM attempt a JOIN job j ON j.id = a.job_id
        WHERE {{range}} AND a.ended_at IS NULL AND (j.attempt_id IS NULL OR j.attempt_id <> a.id)
              AND (j.copies IS NULL OR j.state NOT IN {_words(*HELD, *sorted(FINAL))})
        """,
    ),
    Query(
        "one-attempt",
        "attempt",
        "attempt {attempt} lives, and its job {job} is {state}",
        f"""
        SELECT a.id AS attempt, a.job_id AS job, j.state FROM attempt a JOIN job j ON {_HOLDS}
        WHERE {{range}} AND a.ended_at IS NULL AND j.state IN {_FINAL}
        """,
    ),
    Query(
        "attempt-numbers",
        "job",
        "job {job} is at attempt {attempt_nr}; there are {attempts}, with {numbers} numbers from {lowest} to {highest}, and {earlier} in the archive",
        """
        SELECT j.id AS job, j.task_id AS task, j.attempt_nr, COUNT(a.id) AS attempts, COALESCE(x.attempt_nr, 0) AS earlier,
               COUNT(DISTINCT a.attempt_nr) AS numbers, MIN(a.attempt_nr) AS lowest, MAX(a.attempt_nr) AS highest
        FROM job j LEFT JOIN archived_job x ON x.id = j.id LEFT JOIN attempt a ON a.job_id = j.id
        WHERE {range} GROUP BY j.id, j.task_id, j.attempt_nr, x.attempt_nr
        HAVING COUNT(a.id) <> j.attempt_nr - COALESCE(x.attempt_nr, 0) OR COUNT(DISTINCT a.attempt_nr) <> COUNT(a.id)
               OR MIN(a.attempt_nr) <> COALESCE(x.attempt_nr, 0) + 1 OR MAX(a.attempt_nr) <> j.attempt_nr
        """,
    ),
    Query(
        "attempt-numbers",
        "job",
        "job {job} is at attempt {attempt_nr}, and the attempt that it names, {attempt}, is another one",
        """
        SELECT j.id AS job, j.task_id AS task, j.attempt_nr, j.attempt_id AS attempt
        FROM job j LEFT JOIN archived_job x ON x.id = j.id LEFT JOIN attempt a ON a.id = j.attempt_id
        WHERE {range} AND j.attempt_nr > COALESCE(x.attempt_nr, 0)
              AND (a.id IS NULL OR a.job_id <> j.id OR (a.attempt_nr <> j.attempt_nr AND j.copies IS NULL))
        """,
    ),
    Query(
        "completed-attempt",
        "job",
        "job {job} is {state}, its last attempt is {attempt}, and {completed} of its attempts completed",
        f"""
        SELECT j.id AS job, j.task_id AS task, j.state, j.attempt_id AS attempt,
               SUM(CASE WHEN a.state {_is(JobState.COMPLETED)} THEN 1 ELSE 0 END) AS completed
        FROM job j LEFT JOIN attempt a ON a.job_id = j.id
        WHERE {{range}} GROUP BY j.id, j.task_id, j.state, j.attempt_id
        HAVING SUM(CASE WHEN a.state {_is(JobState.COMPLETED)} THEN 1 ELSE 0 END)
               <> CASE WHEN j.state {_is(JobState.COMPLETED)} THEN 1 ELSE 0 END
               OR SUM(CASE WHEN a.state {_is(JobState.COMPLETED)} AND a.id <> j.attempt_id THEN 1 ELSE 0 END) > 0
        """,
    ),
    Query(
        "history",
        "attempt",
        "attempt {attempt} of job {job} is {state}, and its times do not end there",
        f"""
        SELECT a.id AS attempt, a.job_id AS job, a.state FROM attempt a
        WHERE {{range}} AND (a.state NOT IN {_words(*HELD, *sorted(FINAL))}
              OR (a.state IN {_FINAL}) = (a.ended_at IS NULL) OR {_times()})
        """,
    ),
    Query(
        "lease",
        "attempt",
        "attempt {attempt} holds job {job} for pilot {pilot}, which nobody knows",
        f"""
        SELECT a.id AS attempt, a.job_id AS job, a.pilot_id AS pilot
        FROM attempt a JOIN job j ON {_HOLDS} LEFT JOIN pilot p ON p.pilot_id = a.pilot_id
        WHERE {{range}} AND a.ended_at IS NULL AND j.state IN {_HELD} AND p.pilot_id IS NULL
        """,
    ),
    Query(
        "lease",
        "attempt",
        "attempt {attempt} of pilot {pilot} holds job {job}, and its lease ran out {seconds} s ago",
        f"""
        SELECT a.id AS attempt, a.job_id AS job, a.pilot_id AS pilot, {_CLOCK} - a.lease_until AS seconds
        FROM attempt a JOIN job j ON {_HOLDS}
        WHERE {{range}} AND a.ended_at IS NULL AND j.state IN {_HELD} AND a.lease_until + :patience < {_CLOCK}
        """,
    ),
    Query(
        "ended-pilot",
        "attempt",
        "attempt {attempt} holds job {job} for pilot {pilot}, which has ended; its lease has {seconds} s left",
        f"""
        SELECT a.id AS attempt, a.job_id AS job, a.pilot_id AS pilot, a.lease_until - {_CLOCK} AS seconds
        FROM attempt a JOIN job j ON {_HOLDS} JOIN pilot p ON p.pilot_id = a.pilot_id
        WHERE {{range}} AND a.ended_at IS NULL AND j.state IN {_HELD} AND p.ended IS NOT NULL
              AND a.lease_until + :patience >= {_CLOCK}
        """,
    ),
    Query(
        "output-dataset",
        "dataset",
        "dataset {dataset} is {state}, and its task {task} has {ended}",
        """
        SELECT d.name AS dataset, d.state, t.id AS task,
               CASE WHEN t.ended IS NULL THEN 'not ended' ELSE 'ended' END AS ended
        FROM dataset d JOIN task t ON t.id = d.task_id
        WHERE {range} AND (t.ended IS NULL) <> (d.state = 'open')
        """,
    ),
    Query(
        "dataset-size",
        "dataset",
        "dataset {dataset} counts {n_files} files, {mebibytes} MiB and {bytes_more} bytes; there are {files}, {whole} MiB and {more} bytes",
        """
        SELECT d.name AS dataset, d.n_files, d.mebibytes, d.bytes_more, COALESCE(n.files, 0) AS files,
               COALESCE(n.whole, 0) AS whole, COALESCE(n.more, 0) AS more
        FROM dataset d LEFT JOIN (
            SELECT f.dataset_id, COUNT(*) AS files, SUM(f.size / 1048576) AS whole, SUM(f.size & 1048575) AS more
            FROM file f LEFT JOIN job j ON j.id = f.job_id
            WHERE f.dataset_id BETWEEN :low AND :high AND f.state = 'available' AND (j.id IS NULL OR j.counted)
            GROUP BY f.dataset_id) AS n ON n.dataset_id = d.id
        WHERE {range} AND (d.n_files <> COALESCE(n.files, 0) OR d.mebibytes <> COALESCE(n.whole, 0)
              OR d.bytes_more <> COALESCE(n.more, 0))
        """,
    ),
    Query(
        "closed-dataset",
        "file",
        "file {file} of the closed dataset {dataset} is only declared, by job {job}",
        """
        SELECT f.lfn AS file, d.name AS dataset, f.job_id AS job FROM file f JOIN dataset d ON d.id = f.dataset_id
        WHERE {range} AND f.state = 'declared' AND d.state = 'closed'
        """,
    ),
    Query(
        "published",
        "file",
        "file {file} is in the catalogue, and its job {job} is {state}",
        f"""
        SELECT f.lfn AS file, f.job_id AS job, COALESCE(j.state, x.state, 'unknown') AS state
        FROM file f LEFT JOIN job j ON j.id = f.job_id LEFT JOIN archived_job x ON x.id = f.job_id
        WHERE {{range}} AND f.state = 'available' AND f.job_id IS NOT NULL
              AND COALESCE(j.state, x.state, '') <> '{JobState.COMPLETED.value}'
              AND NOT EXISTS (SELECT 1 FROM dataset d JOIN task t ON t.id = d.task_id WHERE d.id = f.dataset_id AND t.pruned)
        """,
    ),
    Query(
        "replicas",
        "file",
        "file {file} is {state} and has {replicas} places where it lies",
        """
        SELECT f.lfn AS file, f.job_id AS job, f.state, COUNT(r.id) AS replicas
        FROM file f LEFT JOIN replica r ON r.file_id = f.id
        WHERE {range} GROUP BY f.id, f.lfn, f.job_id, f.state
        HAVING (f.state = 'available'
                AND (COUNT(r.id) = 0 OR (f.job_id IS NOT NULL AND COUNT(r.id) <> COUNT(DISTINCT r.storage_id))))
               OR (f.state = 'declared' AND COUNT(r.id) > 0)
        """,
    ),
    Query(
        "attempt-in-name",
        "file",
        "file {file} of job {job} lies at {url}, which is not the name of attempt {attempt}",
        f"""
        SELECT f.lfn AS file, j.id AS job, j.attempt_id AS attempt, r.url
        FROM file f JOIN replica r ON r.file_id = f.id JOIN job j ON j.id = f.job_id
        WHERE {{range}} AND j.state {_is(JobState.COMPLETED)} AND r.url NOT LIKE '%.' || CAST(j.attempt_id AS TEXT)
              AND NOT EXISTS (SELECT 1 FROM task t WHERE t.input_dataset_id = f.dataset_id AND t.target_storage = r.storage_id)
        """,
    ),
)


def look(snapshot: Snapshot, report: Report, task: int | None, patience: int, progress: Progress) -> None:
    """All checks, table by table; `patience` is how many seconds of the lease clock the reaper may be late."""
    for table, scope in SCOPES.items():
        queries = [query for query in QUERIES if query.table == table]
        names = {query.check for query in queries} | ({"outputs"} if table == "job" else set())
        for low, high, n_rows in ranges(snapshot, table, task, progress):
            for name in names:
                report.looked(name, n_rows)
            for found in _faults(snapshot, queries, scope, task, low=low, high=high, patience=patience):
                report.add(found)
            if table == "job":
                for found in _wrong_outputs(snapshot, scope, task, low=low, high=high):
                    report.add(found)
        for name in names:
            report.looked(name, 0)


def _faults(
    snapshot: Snapshot, queries: Iterable[Query], scope: Scope, task: int | None, **limits: int
) -> Iterator[Finding]:
    for query in queries:
        for row in snapshot.rows(scope.put_into(query.sql, task), task=task, **limits):
            yield finding(query.check, query.sentence, row)


def ranges(
    snapshot: Snapshot, table: str, task: int | None, progress: Progress
) -> Iterator[tuple[int, int, int]]:
    """First and last id of each part of a table, and how many rows it has; between two of them the moment may change."""
    scope = SCOPES[table]
    where = scope.of_task if task is not None else "1 = 1"
    ends = snapshot.one(
        f"SELECT MIN(id) AS low, MAX(id) AS high FROM {table} {scope.letter} WHERE {where}", task=task
    )
    if ends is None or ends["low"] is None:
        return
    count = scope.put_into(f"SELECT COUNT(*) AS n FROM {table} {scope.letter} WHERE {{range}}", task)
    with progress(f"{table}s", ends["high"] - ends["low"] + 1) as advance:
        for low in range(ends["low"], ends["high"] + 1, scope.chunk):
            high = low + scope.chunk - 1
            counted = snapshot.one(count, low=low, high=high, task=task)
            if counted and counted["n"]:
                yield low, high, counted["n"]
            advance(scope.chunk)
            snapshot.renew_if_old()


def _wrong_outputs(snapshot: Snapshot, scope: Scope, task: int | None, **limits: int) -> Iterator[Finding]:
    """The one check that needs the specification of tasks: how many outputs a job has to have."""
    of_jobs = f"FROM job j WHERE {{range}} AND j.state {_is(JobState.COMPLETED)}"
    specs = f"SELECT t.id, t.spec FROM task t WHERE t.id IN (SELECT j.task_id {of_jobs})"
    due = {
        row["id"]: len(from_wire(TaskSpec, json.loads(row["spec"])).outputs)
        for row in snapshot.rows(scope.put_into(specs, task), task=task, **limits)
    }
    counts = f"""
        SELECT j.id AS job, j.task_id AS task, COUNT(f.id) AS files,
               SUM(CASE WHEN f.state = 'declared' THEN 1 ELSE 0 END) AS declared
        FROM (SELECT j.id, j.task_id {of_jobs}) AS j LEFT JOIN file f ON f.job_id = j.id GROUP BY j.id, j.task_id
    """
    sentence = "job {job} completed with {available} of its {due} outputs, and {declared} are only declared"
    for row in snapshot.rows(scope.put_into(counts, task), task=task, **limits):
        facts = {**row, "due": due.get(row["task"], 0), "available": row["files"] - row["declared"]}
        if facts["available"] != facts["due"] or facts["declared"]:
            yield finding("outputs", sentence, facts)
