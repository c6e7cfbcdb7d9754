"""Counts and finished tasks: jobs that have ended are added to their task's numbers, and a task whose jobs have all ended is closed.

So nobody who asks how far a task is counts millions of jobs, and no update of a job waits for a counter.
"""

from __future__ import annotations

import functools
import time

from protocol.states import JobState
from server import tallies, task_manager
from server.core import Core
from server.database import Chain, Part
from server.jobs import cancelling
from server.models import Task
from server.pace import Pace

PASS_SECONDS = 0.3
"""So long a pass ends jobs, and so long it counts, at most; the rest is for the next pass."""
NEWS_WEIGHT = 0.2
"""How much the jobs that ended last count in what their class is expected to use."""
MEBIBYTE = 2**20


def _number_of(state: JobState) -> str:
    return f"sum(CASE WHEN state = '{state.value}' THEN 1 ELSE 0 END)"


COUNT = Chain(
    Part(
        "uncounted",
        # In the order of its index, or Postgres may go through all jobs to find the few.
        "SELECT id, task_id FROM job WHERE ended_at IS NOT NULL AND NOT counted ORDER BY task_id LIMIT :n",
        {"id": "bigint", "task_id": "bigint"},
    ),
    # A task that somebody else is just changing waits for the next pass.
    Part(
        "theirs",
        "SELECT task.id FROM task WHERE task.id IN (SELECT task_id FROM uncounted) {skip_locked}",
        {"id": "bigint"},
    ),
    Part(
        "counted",
        """UPDATE job SET counted = TRUE FROM uncounted
           WHERE job.id = uncounted.id AND uncounted.task_id IN (SELECT id FROM theirs)
               AND job.ended_at IS NOT NULL AND NOT job.counted
           RETURNING job.id, job.task_id, job.state, job.attempt_nr""",
        {"id": "bigint", "task_id": "bigint", "state": "text", "attempt_nr": "bigint"},
    ),
    Part(
        "added",
        f"""UPDATE task SET n_completed = n_completed + s.completed, n_failed = n_failed + s.failed,
                n_cancelled = n_cancelled + s.cancelled, n_attempts = n_attempts + s.attempts
            FROM (SELECT task_id, {_number_of(JobState.COMPLETED)} AS completed, {_number_of(JobState.FAILED)} AS failed,
                      {_number_of(JobState.CANCELLED)} AS cancelled, sum(attempt_nr) AS attempts
                  FROM counted GROUP BY task_id) AS s
            WHERE task.id = s.task_id
            RETURNING task.id""",
        {},
    ),
    Part(
        "dropped",
        f"""DELETE FROM file WHERE state = 'declared'
                AND job_id IN (SELECT id FROM counted WHERE state <> '{JobState.COMPLETED.value}')
            RETURNING id""",
        {},
    ),
    Part(
        "made",
        f"""SELECT file.dataset_id, count(*) AS n, sum(file.size / {MEBIBYTE}) AS mebibytes,
                sum(file.size & {MEBIBYTE - 1}) AS more
            FROM counted JOIN file ON file.job_id = counted.id
            WHERE counted.state = '{JobState.COMPLETED.value}' AND file.state = 'available'
            GROUP BY file.dataset_id""",
        {"dataset_id": "bigint", "n": "bigint", "mebibytes": "bigint", "more": "bigint"},
    ),
    Part(
        "grown",
        """UPDATE dataset SET n_files = n_files + made.n, mebibytes = dataset.mebibytes + made.mebibytes,
               bytes_more = bytes_more + made.more
           FROM made WHERE dataset.id = made.dataset_id
           RETURNING dataset.id""",
        {},
    ),
    Part(
        "used",
        """SELECT job.job_class_id AS class_id, avg(attempt.cores * (attempt.ended_at - attempt.extracted_at)) AS mean
           FROM counted JOIN job ON job.id = counted.id JOIN attempt ON attempt.id = job.attempt_id
           WHERE attempt.ended_at > attempt.extracted_at GROUP BY job.job_class_id""",
        {"class_id": "bigint", "mean": "double precision"},
    ),
    Part(
        "learned",
        f"""UPDATE job_class SET core_seconds = core_seconds * {1 - NEWS_WEIGHT} + used.mean * {NEWS_WEIGHT}
            FROM used WHERE job_class.id = used.class_id RETURNING job_class.id""",
        {},
    ),
    Part("number", "SELECT count(*) AS n FROM counted", {"n": "bigint"}),
    result="number",
    bulk=True,
)
"""Add jobs that have ended to their tasks' numbers, and what they made to their datasets'; what others declared never comes.

What they used tells what the next jobs of their class are expected to use (`brokerage.Broker.charge`).
"""


def run_once(core: Core) -> int:
    """One pass: end the jobs of cancelled tasks, count, then close the tasks that have ended; how many ended now."""
    cancelling.go_on(core, PASS_SECONDS)
    count(core, PASS_SECONDS)
    with core.database.reading():
        candidates = [task.id for task in Task.select(Task.id).where(tallies.may_end())]
    ended = sum(task_manager.end(core, task_id) for task_id in candidates)
    if ended:
        core.to_form.set()  # others may have waited for them
    return ended


def count(core: Core, seconds: float) -> int:
    """Add jobs that have ended to the numbers of their tasks, for so long; how many."""
    deadline = time.monotonic() + seconds
    least = core.database.bulk_least
    pace = Pace(max(100, least), seconds=core.database.bulk_seconds, least=least)
    counted = 0
    while True:
        wanted = pace.rows
        new = core.database.write(functools.partial(_count_some, core, pace))
        counted += new
        if new < wanted or time.monotonic() > deadline:
            return counted


def _count_some(core: Core, pace: Pace) -> int:
    rows = pace.rows
    with pace.measured(rows):
        [(number,)] = core.database.run(COUNT, n=rows)
    return int(number)
