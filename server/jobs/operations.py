"""What users do to tasks and jobs after they were accepted: pause, resume, give another priority, try again, cancel with what follows.

Each wish is one word in the task's row; the task's jobs are then brought in line with it a chunk at a time, so that pilots are
not held up, and whatever interrupts that is made good by the next pass. Only `retry` changes states.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from protocol.errors import PilotageError
from protocol.messages.requests import RetrySpec
from protocol.messages.views import RetryReply
from protocol.states import FINAL, Actor, DatasetState, JobState, TaskState, sources
from server import catalogue, containers, task_manager
from server.access import trail
from server.brokerage import dependencies
from server.core import Core
from server.database import Chain, Part, Rows
from server.jobs import copies, moves
from server.jobs.retrying import RETRIED
from server.jobs.statements import listed
from server.models import ArchivedJob, Dataset, File, Job, Task, now
from server.pace import Pace
from server.specs import outputs_of, spec_of
from server.tallies import expected_jobs
from server.upkeep import archive
from server.waiting import wake

WINDOW = 5_000
"""Numbers of jobs among which those to be changed are looked for in one query."""
MOST = 500
LEAST = 25
"""Jobs changed in one transaction, however slow it is: what it costs by itself is then shared."""
RETRY_SECONDS = 5.0
"""A request has jobs tried again for so long; the client asks again for the rest."""
MOST_NEWS = 10_000
"""Jobs that waiting pilots are told of; more do not wait."""

SETTLE = Chain(
    Rows("waiting", {"id": "bigint", "number": "bigint"}),
    Part(
        "settled",
        f"""UPDATE job SET priority = :priority, ready_nr = CASE
                WHEN job.ready_after IS NOT NULL THEN job.ready_nr
                WHEN job.state <> '{JobState.READY.value}' AND coalesce(job.copies, 0) = 0 THEN job.ready_nr
                WHEN :paused = 1 THEN NULL
                ELSE coalesce(job.ready_nr, waiting.number) END
            FROM waiting WHERE job.id = waiting.id AND job.state NOT IN ({listed(sorted(FINAL))})
            RETURNING job.id""",
        {},
    ),
    result="settled",
)
"""Bring jobs in line with their task: their priority, and whether they wait in the queue or outside of it."""

RETRY = Chain(
    Rows("again", {"id": "bigint", "number": "bigint", "attempt_nr": "integer", "was": "text"}),
    Part(
        "retried",
        f"""UPDATE job SET state = '{JobState.READY.value}', priority = :priority, changed = :now,
                ready_nr = CASE WHEN :paused = 1 THEN NULL ELSE again.number END, ready_after = NULL,
                payload_failures = 0, losses = 0, unacknowledged = 0, kills = 0, loss = NULL,
                copies = CAST(:copies AS integer), avoid_node = NULL, avoid_queue = NULL, avoid_until = NULL, error = NULL, error_detail = NULL, ended_at = NULL, counted = FALSE
            FROM again WHERE job.id = again.id AND job.state IN ({listed(sources(JobState.READY, Actor.USER))})
            RETURNING job.id""",
        {},
    ),
    Part(
        "noted",
        f"""INSERT INTO job_event (job_id, attempt_nr, at, actor, event, detail)
            SELECT id, attempt_nr, CAST(:now AS double precision), '{Actor.USER.value}', '{RETRIED}',
                CAST(:who AS text) || ': was ' || was
            FROM again
            RETURNING job_id""",
        {},
    ),
    result="retried",
)
"""Jobs that ended badly, locked by the caller, are READY again with both budgets whole; with an event for each."""


# -- waiting: pause, resume, priority ---------------------------------------------------------------------------------------


def pause(core: Core, id_or_name: str, who: str) -> Task:
    """No further job of the task is formed or handed out; those that pilots hold go on."""
    return _wish(core, id_or_name, who, "task pause", paused=True)


def resume(core: Core, id_or_name: str, who: str) -> Task:
    return _wish(core, id_or_name, who, "task resume", paused=False)


def set_priority(core: Core, id_or_name: str, priority: int, who: str) -> Task:
    """Also for the jobs that wait already; the boost of the task stays."""
    return _wish(core, id_or_name, who, "task set-priority", f"priority {priority}", priority=priority)


def _wish(core: Core, id_or_name: str, who: str, action: str, detail: str = "", **wish: object) -> Task:
    def work() -> Task:
        task = task_manager.find(id_or_name)
        if task.ended is not None:
            raise _too_late(task)
        Task.update(unsettled=True, **wish).where(Task.id == task.id).execute()
        trail.note(who, action, task.name, detail)
        return task

    task = core.database.write(work)
    settle(core, task.id)
    return Task.get_by_id(task.id)


def _too_late(task: Task) -> PilotageError:
    state = task_manager.state_of(task)
    advice = f"what ended badly can be tried again: pilotage task retry {task.name}"
    if state is TaskState.COMPLETED:
        advice = "nothing: every job of it has completed"
    return PilotageError("WRONG_STATE", f"task {task.name} has ended as {state.value}", advice=advice)


def settle_all(core: Core) -> int:
    """For the task-executor's pass: what was interrupted, or has come back to a queue since; how many tasks there were."""
    with core.database.reading():
        task_ids = [task.id for task in Task.select(Task.id).where(Task.unsettled)]
    for task_id in task_ids:
        settle(core, task_id, again=False)
    return len(task_ids)


def settle(core: Core, task_id: int, again: bool = True) -> None:
    """Bring the jobs of a task in line with it. If its row changes meanwhile, whoever has changed it goes on.

    After a wish the next pass looks `again`: a job may have been on its way into the queue, with the wish before in mind.
    """
    with core.database.reading():
        task = Task.get_by_id(task_id)
        wish = (task.paused, task.job_priority)
        pace = Pace(most=MOST)
        for ids in _chunks(_unlike(task), pace):
            if not core.database.write(functools.partial(_settle_some, core, task_id, wish, ids, pace)):
                return
    core.broker.changed()

    def done() -> None:
        settled = (Task.paused == task.paused) & (Task.priority == task.priority)
        Task.update(unsettled=False).where(Task.id == task_id, settled).execute()

    if not again:
        core.database.write(done)
    if not task.paused:
        _poke(core, task)


def _unlike(task: Task) -> Iterator[int]:
    """Jobs of a task that do not wait as it wants them to, looked for in parts of bounded length."""
    in_queue = Job.ready_nr.is_null(False) if task.paused else Job.ready_nr.is_null()
    waits = (Job.state == JobState.READY.value) | (Job.copies > 0)
    misplaced = waits & Job.ready_after.is_null() & in_queue
    for first in range(1, task.n_formed + 1, WINDOW):
        query = Job.select(Job.id).where(
            Job.task == task.id,
            Job.job_nr.between(first, first + WINDOW - 1),
            Job.ended_at.is_null(),
            misplaced | (Job.priority != task.job_priority),
        )
        yield from [job_id for (job_id,) in query.order_by(Job.job_nr).tuples()]


def _settle_some(core: Core, task_id: int, wish: tuple[bool, int], ids: Sequence[int], pace: Pace) -> bool:
    """Inside `Database.write`; False if the task wants something else by now."""
    with pace.measured(len(ids)):
        task = core.database.locked(Task.select().where(Task.id == task_id)).get()
        if (task.paused, task.job_priority) != wish:
            return False
        numbers = core.database.next_numbers(moves.READY_NUMBERS, len(ids))
        waiting = list(zip(ids, numbers, strict=True))
        core.database.run(SETTLE, waiting=waiting, priority=task.job_priority, paused=int(task.paused))
    return True


# -- trying again -----------------------------------------------------------------------------------------------------------


def retry(core: Core, id_or_name: str, wish: RetrySpec, who: str) -> RetryReply:
    """New attempts for jobs of a task that ended badly, with both budgets whole.

    A task that had ended goes on, and its output dataset is open again. WRONG_STATE if a later task reads that already.
    """
    every = not (wish.failed or wish.cancelled or wish.job_nr)
    states = {
        *((JobState.FAILED,) if every or wish.failed or wish.job_nr else ()),
        *((JobState.CANCELLED,) if every or wish.cancelled or wish.job_nr else ()),
    }
    # One that was cancelled early forms the rest of its jobs too, unless others were asked for.
    go_on = JobState.CANCELLED in states and not wish.job_nr

    def begin() -> tuple[Task, bool]:
        task = core.database.locked(Task.select().where(Task.id == task_manager.find(id_or_name).id)).get()
        if task.cancelled_by is not None and not go_on:
            raise PilotageError(
                "WRONG_STATE", f"task {task.name} is still being cancelled; ask again in a moment"
            )
        goes_on = go_on and task.cancelled and not task.all_formed
        if goes_on:
            _reopen(core, task)
        if go_on:
            Task.update(cancelled=False, cancelled_by=None).where(Task.id == task.id).execute()
        return task, goes_on

    task, goes_on = core.database.write(begin)
    cancelled = task.cancelled and not go_on
    with core.database.reading():
        tried = left = 0
        deadline, more = time.monotonic() + RETRY_SECONDS, False
        pace = Pace(first=20, most=MOST)
        for ids in _chunks(_ended_badly(task, states, wish.job_nr), pace):
            if more := bool(tried + left) and time.monotonic() > deadline:
                break
            n = core.database.write(functools.partial(_retry_paced, core, task.id, cancelled, ids, who, pace))
            tried, left = tried + n, left + len(ids) - n
    if not (tried or left or goes_on):
        raise PilotageError("WRONG_STATE", _nothing_to_retry(task, states, wish.job_nr))
    core.database.write(lambda: trail.note(who, "task retry", task.name, f"{tried} jobs"))
    core.broker.changed()
    if tried and not task.paused:
        _poke(core, task)
    return RetryReply(tried, left, _why_left(left), more)


def retry_job(core: Core, job_id: int, who: str) -> None:
    """The same for one job, hot or archived, by its id."""
    job = moves.find(job_id)
    reply = retry(core, str(job.task_id), RetrySpec(job_nr=job.job_nr), who)
    if not reply.n_jobs:
        raise PilotageError("WRONG_STATE", f"job {job_id}: {reply.reason}")


def _nothing_to_retry(task: Task, states: Iterable[JobState], job_nr: int | None) -> str:
    ended = " or ".join(sorted(state.value for state in states))
    with_state = f"the task is {task_manager.state_of(Task.get_by_id(task.id)).value}"
    if job_nr is None:
        return f"no job of task {task.name} is {ended}; {with_state}"
    job = next(
        (
            found
            for table, task_id in ((Job, Job.task), (ArchivedJob, ArchivedJob.task_id))
            if (found := table.get_or_none(task_id == task.id, table.job_nr == job_nr))
        ),
        None,
    )
    if job is None:
        n_jobs = expected_jobs(task)
        if job_nr <= n_jobs:
            return f"job {job_nr} of task {task.name} is not formed; {with_state}"
        so_far = "" if task.all_formed or task.input_dataset_id is None else " so far"
        jobs = f"{n_jobs} job{'' if n_jobs == 1 else 's'}"
        return f"task {task.name} has {jobs}{so_far}, numbered from 1, and no job {job_nr}; {with_state}"
    return f"job {job_nr} of task {task.name} is {job.state}; what is {ended} can be tried again"


def _why_left(left: int) -> str:
    return "names of their outputs belong to other files by now" if left else ""


def _ended_badly(task: Task, states: Iterable[JobState], job_nr: int | None) -> Iterator[int]:
    """Ids of the jobs in these states, hot and archived ones: each of them has an error, and that has an index."""
    wanted = moves.names(states)
    archived = ArchivedJob.select(ArchivedJob.id).where(
        ArchivedJob.task_id == task.id, ArchivedJob.error.is_null(False), ArchivedJob.state.in_(wanted)
    )
    hot = Job.select(Job.id).where(Job.task == task.id, Job.error.is_null(False), Job.state.in_(wanted))
    for query, table in ((archived, ArchivedJob), (hot, Job)):
        if job_nr is not None:
            query = query.where(table.job_nr == job_nr)
        yield from [row_id for (row_id,) in query.order_by(table.id).tuples()]


def _retry_paced(core: Core, task_id: int, cancelled: bool, ids: Sequence[int], who: str, pace: Pace) -> int:
    with pace.measured(len(ids)):
        return _retry_some(core, task_id, cancelled, ids, who)


def _retry_some(core: Core, task_id: int, cancelled: bool, ids: Sequence[int], who: str) -> int:
    """Try these jobs again, as far as they may be; inside `Database.write`. How many are.

    `cancelled`: whether the task was when the user asked. WRONG_STATE if somebody has cancelled it since: the later wish counts.
    """
    task = core.database.locked(Task.select().where(Task.id == task_id)).get()
    if task.cancelled_by is not None or task.cancelled != cancelled:
        raise PilotageError(
            "WRONG_STATE", f"task {task.name} was cancelled meanwhile: no further job is tried again"
        )
    _revive(ids)
    badly = Job.state.in_(moves.names(sources(JobState.READY, Actor.USER)))
    jobs = list(core.database.locked(Job.select().where(Job.id.in_(ids), badly).order_by(Job.id)))
    if not jobs:
        return 0
    _reopen(core, task)
    jobs = _with_outputs(task, jobs)
    if not jobs:
        return 0
    numbers = core.database.next_numbers(moves.READY_NUMBERS, len(jobs))
    again = [(job.id, number, job.attempt_nr, job.state) for job, number in zip(jobs, numbers, strict=True)]
    core.database.run(
        RETRY,
        again=again,
        priority=task.job_priority,
        paused=int(task.paused),
        copies=copies.after_the_first(spec_of(task)),
        who=who,
        now=now(),
    )
    counted = Counter(job.state for job in jobs if job.counted)
    changes: dict[str, object] = {
        "ended": None,
        "n_failed": Task.n_failed - counted[JobState.FAILED.value],
        "n_cancelled": Task.n_cancelled - counted[JobState.CANCELLED.value],
        "n_attempts": Task.n_attempts - sum(job.attempt_nr for job in jobs if job.counted),
    }
    Task.update(changes).where(Task.id == task_id).execute()
    return len(jobs)


def _revive(ids: Sequence[int]) -> None:
    """Bring those that lie in the archive alone back into the hot tables."""
    hot = {job_id for (job_id,) in Job.select(Job.id).where(Job.id.in_(ids)).tuples()}
    missing = [job_id for job_id in ids if job_id not in hot]
    if missing:
        archive.revive(list(ArchivedJob.select().where(ArchivedJob.id.in_(missing))))


def _reopen(core: Core, task: Task) -> None:
    """Let a task that has ended go on, its output dataset open again.

    WRONG_STATE if somebody relies on its being closed, or if what it reads or fills was deleted.
    """
    if task.ended is None:
        return
    # Locked: nobody deletes them meanwhile.
    ids = [each.id for each in containers.inputs_of(task)] + [task.output_dataset_id]
    used = Dataset.select().where(Dataset.id.in_(ids))
    for dataset in core.database.locked(used.order_by(Dataset.id)):
        if dataset.state == DatasetState.DELETED.value:
            what = "output" if dataset.id == task.output_dataset_id else "input"
            raise PilotageError("WRONG_STATE", f"{dataset.name}, the {what} of task {task.name}, was deleted")
    output = task.output_dataset
    if output is not None:
        # Locked: a reader that is just forming its first jobs is waited for.
        for reader in core.database.locked(Task.select().where(catalogue.reads(output.id))):
            if reader.n_formed:
                raise PilotageError(
                    "WRONG_STATE",
                    f"task {reader.name} has read {output.name}, the output of task {task.name}; "
                    "submit a task over the missing files instead",
                )
        Dataset.update(state=DatasetState.OPEN.value, closed=None).where(
            Dataset.id == output.id, Dataset.state == DatasetState.CLOSED.value
        ).execute()
    Task.update(ended=None).where(Task.id == task.id).execute()


def _with_outputs(task: Task, jobs: Sequence[Job]) -> list[Job]:
    """Declare the outputs of these jobs again, which the end of the task has removed; those whose names are free or theirs."""
    dataset = task.output_dataset
    if dataset is None:
        return list(jobs)
    wanted = outputs_of(task, jobs)
    every = [lfn for lfns in wanted.values() for lfn in lfns]
    there = dict(
        File.select(File.lfn, File.job_id).where(File.scope == dataset.scope, File.lfn.in_(every)).tuples()
    )
    rows, able = [], []
    for job in jobs:
        lfns = wanted[job.id]
        if len(set(lfns)) == len(lfns) and all(there.get(lfn, job.id) == job.id for lfn in lfns):
            able.append(job)
            rows += [(dataset.id, dataset.scope, lfn, "declared", job.id) for lfn in lfns if lfn not in there]
            there.update(dict.fromkeys(lfns, job.id))
    if rows:
        File.insert_many(rows, [File.dataset, File.scope, File.lfn, File.state, File.job_id]).execute()
    return able


# -- ending -----------------------------------------------------------------------------------------------------------------


def cancel(core: Core, id_or_name: str, who: str, cascade: bool = False) -> list[int]:
    """Cancel a task, and with `cascade` those that come after it; which these were."""
    task = task_manager.find(id_or_name)
    later = [Task.get_by_id(each) for each in dependencies.dependents(task.id)] if cascade else []
    # The last ones first: none of them begins because the one before it has ended.
    after = [each.id for each in reversed(later) if each.ended is None]
    core.database.write(
        lambda: trail.note(who, "task cancel", task.name, f"and {len(after)} after it" if after else "")
    )
    for each in (*after, task.id):
        task_manager.cancel(core, str(each), who)
    return after


def _poke(core: Core, task: Task) -> None:
    """Wake the pilots that wait: jobs of this task have come into the queue."""
    waiting = Job.select(Job.id).where(
        Job.job_class == task.job_class_id, Job.priority == task.job_priority, Job.ready_nr.is_null(False)
    )
    if core.waiting is not None:
        wake.poke(core, {task.job_class.key: waiting.limit(MOST_NEWS).count()})


def _chunks(ids: Iterable[int], pace: Pace) -> Iterator[list[int]]:
    rest = iter(ids)
    while chunk := list(islice(rest, max(pace.rows, LEAST))):
        yield chunk
