"""Make jobs: rows of jobs, of what they read and of what they will write, many at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from protocol.errors import PilotageError
from protocol.files import check_lfn
from protocol.states import JobState
from server import registration
from server.core import Core
from server.database import Chain, Part, Rows
from server.jobs import copies
from server.jobs.moves import READY_NUMBERS
from server.models import Task, now
from server.specs import spec_of


@dataclass(frozen=True)
class NewJob:
    """A job to be formed: its number in the task, the files it reads and the names it will write."""

    job_nr: int
    file_ids: Sequence[int]
    output_lfns: Sequence[str]


Wrong = tuple[str, str]
"""Error and detail of a job that can never complete."""

_SITE = """
    SELECT storage.site FROM replica JOIN storage
        ON storage.name = replica.storage_id
        OR (replica.storage_id IS NULL AND substr(replica.url, 1, length(storage.url) + 1) = storage.url || '/')
    WHERE replica.file_id = new.first_file AND storage.site IS NOT NULL
    ORDER BY CASE WHEN replica.state = 'good' THEN 0 ELSE 1 END, replica.id, length(storage.url) DESC LIMIT 1"""
"""Where a file lies that was written to one of our storages, or that was registered with an address in one."""

MAKE = Chain(
    Rows(
        "new",
        {
            "job_nr": "integer",
            "state": "text",
            "ready_nr": "bigint",
            "first_file": "bigint",
            "error": "text",
            "error_detail": "text",
        },
    ),
    Part(
        "made",
        f"""INSERT INTO job (task_id, job_nr, job_class_id, state, priority, ready_nr, attempt_nr, payload_failures, losses,
                unacknowledged, kills, copies, site, error, error_detail, registered, changed, ended_at, counted)
            SELECT CAST(:task AS bigint), job_nr, CAST(:job_class AS bigint), state, CAST(:priority AS integer), ready_nr,
                0, 0, 0, 0, 0, CAST(:copies AS integer), ({_SITE}), error, error_detail, CAST(:now AS double precision),
                CAST(:now AS double precision), CASE WHEN ready_nr IS NULL THEN CAST(:now AS double precision) END, FALSE
            FROM new ORDER BY job_nr
            RETURNING id, job_nr""",
        {"id": "bigint", "job_nr": "integer"},
    ),
    result="made",
    bulk=True,
)

FILL = Chain(
    Rows("inputs", {"file_id": "bigint", "job_id": "bigint"}),
    Rows("outputs", {"lfn": "text", "job_id": "bigint"}),
    Part(
        "reading",
        """INSERT INTO job_input (task_id, file_id, job_id)
           SELECT CAST(:task AS bigint), file_id, job_id FROM inputs
           RETURNING job_id""",
        {},
    ),
    Part(
        "declared",
        """INSERT INTO file (dataset_id, scope, lfn, state, size, checksums, created, job_id)
           SELECT CAST(:dataset AS bigint), CAST(:scope AS text), lfn, 'declared', 0, '{}',
               CAST(:now AS double precision), job_id
           FROM outputs
           RETURNING job_id""",
        {},
    ),
    result="reading",
    bulk=True,
)
"""What new jobs read and will write."""


def form(core: Core, task: Task, new_jobs: Sequence[NewJob]) -> int:
    """Make jobs of a task and put them into the queue; inside `Database.write`. How many of them may be claimed.

    A job whose output names cannot be can never complete: it is formed and fails at once, with that as its error.
    """
    moment = now()
    wrong = _wrong_names(core, task, new_jobs)
    numbers = iter(core.database.next_numbers(READY_NUMBERS, len(new_jobs) - len(wrong)))
    rows = [
        (new.job_nr, JobState.FAILED.value, None, *_first(new), *wrong[new.job_nr])
        if new.job_nr in wrong
        else (new.job_nr, JobState.READY.value, next(numbers), *_first(new), None, None)
        for new in new_jobs
    ]
    made = core.database.run(
        MAKE,
        new=rows,
        task=task.id,
        job_class=task.job_class_id,
        priority=task.job_priority,
        copies=copies.after_the_first(spec_of(task)),
        now=moment,
    )
    job_ids = {job_nr: job_id for job_id, job_nr in made}
    inputs = [(file_id, job_ids[new.job_nr]) for new in new_jobs for file_id in new.file_ids]
    outputs = [
        (lfn, job_ids[new.job_nr]) for new in new_jobs if new.job_nr not in wrong for lfn in new.output_lfns
    ]
    if inputs or outputs:
        scope = task.output_dataset.scope if outputs else ""
        core.database.run(
            FILL,
            inputs=inputs,
            outputs=outputs,
            task=task.id,
            dataset=task.output_dataset_id,
            scope=scope,
            now=moment,
        )
    return len(new_jobs) - len(wrong)


def _first(new: NewJob) -> tuple[int | None]:
    return (new.file_ids[0] if new.file_ids else None,)


def _wrong_names(core: Core, task: Task, new_jobs: Sequence[NewJob]) -> dict[int, Wrong]:
    """By number, the jobs with an output name that is no name or exists already; of two with the same one, the second."""
    wrong: dict[int, Wrong] = {}
    for new in new_jobs:
        try:
            for lfn in new.output_lfns:
                check_lfn(lfn)
        except PilotageError as error:
            wrong[new.job_nr] = (error.name, error.detail)
    right = [new for new in new_jobs if new.output_lfns and new.job_nr not in wrong]
    if not right:
        return wrong
    scope = task.output_dataset.scope
    taken = set(registration.taken(core, scope, [lfn for new in right for lfn in new.output_lfns]))
    for new in right:
        mine = set(new.output_lfns)
        twice = (
            {lfn for lfn in mine if new.output_lfns.count(lfn) > 1}
            if len(mine) < len(new.output_lfns)
            else set()
        )
        if bad := (mine & taken) | twice:
            wrong[new.job_nr] = ("DUPLICATE_OUTPUT", f"in scope {scope}: {', '.join(sorted(bad))}")
        else:
            taken |= mine
    return wrong
