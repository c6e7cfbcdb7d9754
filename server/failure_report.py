"""What went wrong in a task, hot and archived attempts together: counted by the database, clustered by signature, with causes.

The archive adds what the attempts of the jobs that it takes came to, to `TaskOutcome`, in the same transaction; a report reads
both in one statement. A job that a user has tried again after it was archived counts once more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from protocol.errors import BY_NAME
from protocol.messages.views import FailureView, TaskFailures
from protocol.states import JobState
from server import failures, job_manager
from server.core import Core
from server.database import Chain, Part, Rows
from server.failures import Failures, Place
from server.models import Queue, Task, TaskOutcome

MOST_ROWS = 20_000
"""Rows that the database gives: one for each error, folded detail and place. What is rarer is only counted."""
MOST_SIGNATURES = 50
MOST_PLACES = 10
"""Nodes, queues and the like named of one signature, those with most failures first."""
MOST_JOBS = 5
"""Jobs of one signature that are named, and whose inputs are."""
MOST_KEPT = 2_000
"""Rows that the archive keeps of one task; what comes then is kept without its signature."""

_COMPLETED, _FAILED = JobState.COMPLETED.value, JobState.FAILED.value
_HOT = f"""
    WITH failed AS MATERIALIZED (
        SELECT attempt.id, attempt.error, {failures.folded("coalesce(attempt.error_detail, '')")} AS detail,
            attempt.node, attempt.queue, coalesce(attempt.storage_id, '') AS storage, attempt.job_id,
            CASE WHEN job.state = '{_COMPLETED}' THEN 1 ELSE 0 END AS recovered,
            coalesce(attempt.error_detail, '') AS example
        FROM job JOIN attempt ON attempt.job_id = job.id
        WHERE {{which}} AND attempt.state = '{_FAILED}' AND attempt.error IS NOT NULL
    )
    SELECT error, detail, node, queue, storage, count(*) AS n_attempts, sum(first) AS n_jobs,
        sum(first * CASE WHEN low <> high THEN 1 ELSE 0 END) AS n_spread, sum(first * recovered) AS n_recovered,
        min(job_id) AS first_job, min(example) AS example, max(example) AS last_example
    FROM (
        SELECT error, detail, node, queue, storage, job_id, recovered, example,
            CASE WHEN row_number() OVER (of_job ORDER BY id) = 1 THEN 1 ELSE 0 END AS first,
            min(node) OVER of_job AS low, max(node) OVER of_job AS high
        FROM failed
        WINDOW of_job AS (PARTITION BY job_id, error, detail)
    ) AS counted GROUP BY error, detail, node, queue, storage
    UNION ALL
    SELECT '', '', attempt.node, attempt.queue, coalesce(attempt.storage_id, ''), count(*), 0, 0, 0, 0, '', ''
    FROM job JOIN attempt ON attempt.job_id = job.id
    WHERE {{which}} AND attempt.state = '{_COMPLETED}'
    GROUP BY attempt.node, attempt.queue, coalesce(attempt.storage_id, '')
    UNION ALL
    SELECT error, {failures.folded("coalesce(error_detail, '')")}, '', '', '', count(*), count(*), 0, 0, min(id),
        min(coalesce(error_detail, '')), max(coalesce(error_detail, ''))
    FROM job WHERE {{which}} AND state = '{_FAILED}' AND error IS NOT NULL AND attempt_nr = 0
    GROUP BY error, {failures.folded("coalesce(error_detail, '')")}"""
"""Failed attempts by error, detail without its numbers, and place; the completed ones by place, without an error; and jobs that
could not even be tried."""

_COLUMNS = (
    *("task_id", "error", "signature", "node", "queue", "storage"),
    *("n_attempts", "n_jobs", "n_spread", "n_recovered", "first_job", "example", "last_example"),
)
_KINDS = dict.fromkeys(_COLUMNS, "text") | dict.fromkeys(("task_id", *_COLUMNS[6:11]), "bigint")

OF_TASK = Chain(
    Part(
        "found",
        f"""SELECT error, detail, node, queue, storage, CAST(n_attempts AS bigint), CAST(n_jobs AS bigint),
                CAST(n_spread AS bigint), CAST(n_recovered AS bigint), first_job, example, last_example,
                CAST(sum(n_attempts) OVER () AS bigint)
            FROM (
                SELECT * FROM ({_HOT.format(which="job.task_id = :task")}) AS hot
                UNION ALL
                SELECT {", ".join(_COLUMNS[1:])} FROM task_outcome WHERE task_id = :task
            ) AS outcome ORDER BY n_attempts DESC LIMIT {MOST_ROWS}""",
        {},
    ),
    result="found",
)

OF_JOBS = Chain(
    Rows("these", {"id": "bigint"}),
    Part(
        "found",
        f"""SELECT error, detail, node, queue, storage, CAST(n_attempts AS bigint), CAST(n_jobs AS bigint),
                CAST(n_spread AS bigint), CAST(n_recovered AS bigint), first_job, example, last_example
            FROM ({_HOT.format(which="job.id IN (SELECT id FROM these)")}) AS outcome""",
        {},
    ),
    result="found",
)

_ADD = Chain(
    Rows("added", _KINDS),
    Part(
        "kept",
        f"""INSERT INTO task_outcome ({", ".join(_COLUMNS)}) SELECT {", ".join(_COLUMNS)} FROM added WHERE 1 = 1
            ON CONFLICT (task_id, error, signature, node, queue, storage) DO UPDATE SET
                n_attempts = task_outcome.n_attempts + excluded.n_attempts,
                n_jobs = task_outcome.n_jobs + excluded.n_jobs,
                n_spread = task_outcome.n_spread + excluded.n_spread,
                n_recovered = task_outcome.n_recovered + excluded.n_recovered,
                example = CASE WHEN excluded.example < task_outcome.example
                    THEN excluded.example ELSE task_outcome.example END,
                last_example = CASE WHEN excluded.last_example > task_outcome.last_example
                    THEN excluded.last_example ELSE task_outcome.last_example END
            RETURNING task_id""",
        {},
    ),
    result="kept",
)


def add(core: Core, task_id: int, job_ids: Iterable[int]) -> None:
    """Keep what the attempts of these jobs of a task came to, which are about to leave the hot tables; inside `Database.write`."""
    found = core.database.run(OF_JOBS, these=[(job_id,) for job_id in job_ids])
    if not found:
        return
    kept = {
        each.signature
        for each in TaskOutcome.select(TaskOutcome.signature).where(TaskOutcome.task_id == task_id).distinct()
    }
    rows: dict[tuple[str, ...], list[Any]] = {}
    for error, detail, node, queue, storage, *numbers, first_job, example, last in found:
        signature = failures.signature(detail)
        if signature not in kept and len(kept) >= MOST_KEPT:
            signature = example = last = ""
        kept.add(signature)
        key = error, signature, node, queue, storage
        row = rows.setdefault(key, [0, 0, 0, 0, first_job, example, last])
        row[:4] = [before + number for before, number in zip(row[:4], numbers, strict=True)]
        row[5:] = [min(row[5], example), max(row[6], last)]
    core.database.run(_ADD, added=[(task_id, *key, *row) for key, row in sorted(rows.items())])


def report(core: Core, task: Task) -> TaskFailures:
    """The signatures of a task's failures, the most frequent first, each with its places and a probable cause."""
    rows = core.database.run(OF_TASK, task=task.id)
    sites = dict(Queue.select(Queue.name, Queue.site).tuples())
    completed: Counter[Place] = Counter()
    found: dict[tuple[str, str], Failures] = {}
    for error, detail, node, queue, storage, *numbers, first_job, example, last, _ in rows:
        place = Place(node, queue, storage, sites.get(queue, ""))
        if not error:
            completed[place] += numbers[0]
            continue
        key = error, failures.signature(detail)
        _count(found.setdefault(key, Failures(*key, example, last)), place, numbers, first_job)
        found[key].first, found[key].last = min(found[key].first, example), max(found[key].last, last)
    shown = sorted(
        found.values(), key=lambda each: (-each.n_jobs, -each.n_attempts, each.error, each.signature)
    )
    n_failed = sum(each.n_attempts for each in shown)
    n_seen = n_failed + sum(completed.values())
    told = shown[:MOST_SIGNATURES]
    return TaskFailures(
        task_id=task.id,
        task=task.name,
        n_attempts=n_failed + (rows[0][-1] - n_seen if rows else 0),
        n_completed=sum(completed.values()),
        failures=[_view(each, completed, task.input_dataset_id is not None) for each in told],
        n_other=(rows[0][-1] - n_seen if rows else 0)
        + sum(each.n_attempts for each in shown[MOST_SIGNATURES:]),
    )


def _count(found: Failures, place: Place, numbers: list[int], first_job: int) -> None:
    n_attempts, n_jobs, n_spread, n_recovered = numbers
    found.n_attempts += n_attempts
    found.n_jobs += n_jobs
    found.n_spread += n_spread
    found.n_recovered += n_recovered
    found.job_ids.add(first_job)
    if place.node:
        found.places[place] += n_attempts


def _view(found: Failures, completed: Counter[Place], has_inputs: bool) -> FailureView:
    cause = failures.propose(found, completed, has_inputs)
    job_ids = sorted(found.job_ids)[:MOST_JOBS]
    nodes = _without_nothing(found.by(lambda place: place.node))
    return FailureView(
        error=found.error,
        error_code=BY_NAME[found.error].code if found.error in BY_NAME else None,
        signature=found.text,
        example=found.first,
        n_jobs=found.n_jobs,
        n_attempts=found.n_attempts,
        n_recovered=found.n_recovered,
        cause=cause.kind,
        where=list(cause.where[:MOST_PLACES]),
        why=cause.why,
        n_nodes=len(nodes),
        nodes=dict(nodes.most_common(MOST_PLACES)),
        queues=dict(_without_nothing(found.by(lambda place: place.queue)).most_common(MOST_PLACES)),
        storages=dict(_without_nothing(found.by(lambda place: place.storage)).most_common(MOST_PLACES)),
        sites=dict(_without_nothing(found.by(lambda place: place.site)).most_common(MOST_PLACES)),
        job_ids=job_ids,
        inputs=_inputs(job_ids) if has_inputs else [],
    )


def _without_nothing(counts: Counter[str]) -> Counter[str]:
    return Counter({name: n for name, n in counts.items() if name})


def _inputs(job_ids: list[int]) -> list[str]:
    """What these jobs read, in short."""
    return [
        file.lfn for job_id in job_ids for file in job_manager.details(job_manager.find(job_id)).inputs or ()
    ][:MOST_PLACES]
