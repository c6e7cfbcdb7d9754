"""Make jobs, hand them to pilots, take their updates, register outputs: every change of a job's state passes through here.

A move is one conditional UPDATE whose row count is the answer; a final state never changes. What a function here changes it
changes in one transaction of `Database.write`, so a crash leaves all of it or nothing.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from urllib.parse import quote

from protocol.errors import BY_NAME, Budget, ErrorEntry, PilotageError, Retry, shorten
from protocol.files import check_checksums, check_lfn
from protocol.messages import (
    AttemptUpdate,
    BundleRef,
    Command,
    GetJobRequest,
    Heartbeat,
    InputFile,
    JobSpec,
    OutputFile,
    OutputReport,
    UpdateReply,
)
from protocol.resources import Offer
from protocol.states import FINAL, HELD, PILOT_OWNED, Actor, JobState, QueueState, sources
from server import brokerage, tokens
from server.core import Core
from server.models import (
    STATE_TIMES,
    Attempt,
    Bundle,
    Counter,
    Dataset,
    File,
    Job,
    JobEvent,
    JobInput,
    Pilot,
    Queue,
    Replica,
    Task,
    now,
)
from server.specs import spec_of

LEASE_CLOCK = "lease_clock"
READY_NUMBERS = "ready_nr"
PILOT_MAY_REPORT = frozenset((*PILOT_OWNED, JobState.COMPLETED, JobState.FAILED))
LONGEST_PAUSE_SECONDS = 600
LONGEST_METRIC_NAME = 100
TAKEN_AWAY = frozenset({"LOST_HEARTBEAT", "NOT_ACKNOWLEDGED", "CANCELLED_BY_USER"})
"""The errors of attempts that the server took from their pilots; no pilot reports one itself."""


def lease_clock() -> int:
    """Whole seconds; the counter in the database has milliseconds, so that short passes add up."""
    return int(Counter.get_by_id(LEASE_CLOCK).value // 1000)


def advance_lease_clock(core: Core, seconds: float, seen: int | None = None) -> int:
    """The reaper's right alone; the clock after it, in milliseconds. One that is not as it was `seen` stays as it is."""

    def work() -> int:
        condition = Counter.name == LEASE_CLOCK
        if seen is not None:
            condition &= Counter.value == seen
        Counter.update(value=Counter.value + int(seconds * 1000)).where(condition).execute()
        return int(Counter.get_by_id(LEASE_CLOCK).value)

    return core.database.write(work)


# -- forming ----------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class NewJob:
    """A job to be formed: its number in the task, the files it reads and the names it will write."""

    job_nr: int
    file_ids: Sequence[int]
    output_lfns: Sequence[str]


def form(core: Core, task: Task, new_jobs: Sequence[NewJob]) -> None:
    """Make jobs of a task and put them into the queue; inside `Database.write`.

    A job whose output names cannot be can never complete: it is formed and fails at once, with that as its error.
    """
    numbers = core.database.next_numbers(READY_NUMBERS, len(new_jobs))
    for new, ready_nr in zip(new_jobs, numbers, strict=True):
        error, detail = _wrong_names(task, new)
        job = Job.create(
            task=task,
            job_nr=new.job_nr,
            job_class=task.job_class_id,
            priority=task.priority,
            state=(JobState.FAILED if error else JobState.READY).value,
            ready_nr=None if error else ready_nr,
            error=error,
            error_detail=detail,
        )
        if new.file_ids:
            JobInput.insert_many(
                [(task.id, file_id, job.id) for file_id in new.file_ids], _INPUT_FIELDS
            ).execute()
        if new.output_lfns and not error:
            dataset = task.output_dataset
            rows = [(dataset.id, dataset.scope, lfn, "declared", job.id) for lfn in new.output_lfns]
            File.insert_many(rows, _OUTPUT_FIELDS).execute()


_INPUT_FIELDS = [JobInput.task, JobInput.file, JobInput.job]
_OUTPUT_FIELDS = [File.dataset, File.scope, File.lfn, File.state, File.job_id]


def _wrong_names(task: Task, new: NewJob) -> tuple[str | None, str | None]:
    """Error and detail if an output name of a new job is no name or exists already."""
    if not new.output_lfns:
        return None, None
    try:
        for lfn in new.output_lfns:
            check_lfn(lfn)
    except PilotageError as error:
        return error.name, error.detail
    scope = task.output_dataset.scope
    taken = {
        row.lfn
        for row in File.select(File.lfn).where(File.scope == scope, File.lfn.in_(list(new.output_lfns)))
    }
    taken |= {lfn for lfn in new.output_lfns if new.output_lfns.count(lfn) > 1}
    return ("DUPLICATE_OUTPUT", f"in scope {scope}: {', '.join(sorted(taken))}") if taken else (None, None)


# -- handing out ------------------------------------------------------------------------------------------------------------


def claim(core: Core, request: GetJobRequest) -> list[JobSpec]:
    """Bind jobs to this pilot now (late binding); the same request id yields the same attempts again, with the same tokens."""

    def work() -> list[int]:
        # First, since it locks the pilot's row: two copies of one request do not pass each other.
        queue = _open_queue(request)
        repeated = Attempt.select().where(
            Attempt.request_id == request.request_id, Attempt.pilot_id == request.pilot_id
        )
        attempts = list(repeated.order_by(Attempt.id))
        if not attempts and queue is not None:
            ids = brokerage.candidates(core.database, _offer(request, queue), request.n_jobs, request.task_id)
            for job_id in ids:
                attempt = _bind(core, job_id, request, queue)
                if attempt is not None:
                    attempts.append(attempt)
        return [attempt.id for attempt in attempts if attempt.ended_at is None]

    attempt_ids = core.database.write(work)
    return [_job_spec(core, attempt_id) for attempt_id in attempt_ids]


def _open_queue(request: GetJobRequest) -> Queue | None:
    """The pilot's queue; None if it hands out nothing now."""
    queue = Queue.get_or_none(Queue.name == request.queue)
    if queue is None:
        raise PilotageError("NOT_FOUND", f"no queue {request.queue}; see 'pilotage queue list'")
    if queue.resource_type != request.resource_type.value:
        raise PilotageError(
            "WRONG_STATE",
            f"{queue.name} is a {queue.resource_type} queue and this pilot is of type {request.resource_type}",
        )
    if (
        not Pilot.update(last_seen=now(), lease_until=lease_clock() + queue.lease_seconds)
        .where(Pilot.pilot_id == request.pilot_id)
        .execute()
    ):
        raise PilotageError(
            "NOT_FOUND", f"no pilot {request.pilot_id} is registered; a pilot's first word is registerPilot"
        )
    return queue if queue.state in (QueueState.ONLINE.value, QueueState.TEST.value) else None


def _offer(request: GetJobRequest, queue: Queue) -> Offer:
    return Offer(
        resource_type=request.resource_type,
        queue=queue.name,
        cores=request.cores,
        memory_mb=request.memory_mb,
        disk_mb=request.disk_mb,
        walltime_seconds=request.walltime_seconds,
        gpus=request.gpus,
        label=request.prod_source_label,
    )


def _bind(core: Core, job_id: int, request: GetJobRequest, queue: Queue) -> Attempt | None:
    """READY → EXTRACTED for one job; None if somebody else was quicker or its budget is spent."""
    job = Job.get_by_id(job_id)
    _end_expired(job)
    moved = (
        Job.update(
            state=JobState.EXTRACTED.value, ready_nr=None, attempt_nr=Job.attempt_nr + 1, changed=now()
        )
        .where(Job.id == job_id, Job.state.in_(_names(sources(JobState.EXTRACTED, Actor.DISPATCHER))))
        .execute()
    )
    if not moved:
        return None
    attempt = Attempt.create(
        job=job_id,
        attempt_nr=job.attempt_nr + 1,
        pilot_id=request.pilot_id,
        node=request.node or Pilot.get(Pilot.pilot_id == request.pilot_id).node,
        queue=queue.name,
        request_id=request.request_id,
        nonce=tokens.new_nonce(),
        ready_at=job.changed,
        storage=queue.storage_id,
        lease_until=lease_clock() + core.limits.acknowledge_seconds,
    )
    log_url = f"{queue.storage.url}/log/task-{job.task_id}/job-{job_id}.{attempt.id}.tar.gz"
    Attempt.update(log_url=log_url).where(Attempt.id == attempt.id).execute()
    Job.update(attempt_id=attempt.id).where(Job.id == job_id).execute()
    Task.update(started=now()).where(Task.id == job.task_id, Task.started.is_null()).execute()
    return attempt


def _job_spec(core: Core, attempt_id: int) -> JobSpec:
    """Everything a pilot needs for this attempt; the same at every repetition."""
    attempt = Attempt.get_by_id(attempt_id)
    job = Job.get_by_id(attempt.job_id)
    spec = spec_of(job.task)
    bundle = Bundle.get_or_none(Bundle.digest == spec.bundle) if spec.bundle else None
    return JobSpec(
        job_id=job.id,
        job_nr=job.job_nr,
        task_id=job.task_id,
        attempt_id=attempt.id,
        attempt_nr=attempt.attempt_nr,
        attempt_token=tokens.attempt_token(core.key, attempt.id, attempt.nonce),
        command=spec.command,
        environment=spec.environment,
        inputs=_inputs(job),
        outputs=_outputs(job, attempt),
        log_url=attempt.log_url,
        bundle=BundleRef(bundle.digest, bundle.size) if bundle else None,
        data_type=spec.data_type,
        cores=spec.cores,
        gpus=spec.gpus,
        memory_mb=spec.memory_mb,
        disk_mb=spec.disk_mb,
        walltime_seconds=spec.walltime_seconds,
        prod_source_label=spec.prod_source_label,
    )


def _inputs(job: Job) -> list[InputFile]:
    rows = (
        File.select(File, Dataset.name.alias("dataset_name"))
        .join(JobInput, on=(JobInput.file == File.id))
        .join(Dataset, on=(File.dataset == Dataset.id))
        .where(JobInput.job == job.id)
        .order_by(File.id)
        .objects()
    )
    inputs = []
    for row in rows:
        replica = Replica.select().where(Replica.file == row.id).order_by(Replica.id).first()
        url = replica.url if replica else ""
        inputs.append(
            InputFile(row.lfn, row.scope, row.dataset_name, row.size, json.loads(row.checksums), url)
        )
    return inputs


def _outputs(job: Job, attempt: Attempt) -> list[OutputFile]:
    dataset = job.task.output_dataset
    rows = File.select().where(File.job_id == job.id).order_by(File.id)
    return [
        OutputFile(row.lfn, row.scope, dataset.name, _physical_name(attempt, dataset.name, row))
        for row in rows
    ]


def _physical_name(attempt: Attempt, dataset_name: str, file: File) -> str:
    """The URL that this attempt alone may write: it contains the attempt's id, which is never used again."""
    return f"{attempt.storage.url}/{quote(dataset_name)}/{quote(file.lfn)}.{attempt.id}"


# -- the pilot's words ------------------------------------------------------------------------------------------------------


def update(core: Core, word: AttemptUpdate) -> UpdateReply:
    """Take one word about an attempt; STALE_ATTEMPT, and nothing changed, if the attempt is not the sender's any more."""
    return core.database.write(lambda: _update(core, word))


def _update(core: Core, word: AttemptUpdate) -> UpdateReply:
    attempt = _authentic(core, word.attempt_id, word.attempt_token)
    if attempt is None or _is_taken(attempt):
        why = f"{attempt.error}" if attempt else "there is none with this token"
        raise PilotageError("STALE_ATTEMPT", f"attempt {word.attempt_id}: {why}")
    moves = _checked_moves(word)
    if word.seq <= attempt.seq:
        return _reply(attempt)
    if attempt.ended_at is not None:
        return _add_log(attempt, word, moves)
    if not moves and attempt.state == JobState.EXTRACTED.value:
        moves = [(JobState.OBTAINED, now())]  # the first word acknowledges, whatever it says
    target = moves[-1][0] if moves else JobState(attempt.state)
    if target is JobState.COMPLETED:
        _register_outputs(attempt, word.outputs)
    _move_attempt(core, attempt, word, moves)
    if target is JobState.FAILED:
        _keep_job(attempt)
        _end_failed(core, attempt, word)
    elif target is JobState.COMPLETED:
        _set_job(attempt, JobState.COMPLETED, Actor.PILOT, error=None, error_detail=None)
    elif target.value != attempt.state:
        _set_job(attempt, target, Actor.PILOT)
    else:
        _keep_job(attempt)
    if target in FINAL:
        Pilot.update(n_done=Pilot.n_done + 1).where(Pilot.pilot_id == attempt.pilot_id).execute()
    return _reply(Attempt.get_by_id(attempt.id))


def _authentic(core: Core, attempt_id: int, token: str) -> Attempt | None:
    """The attempt that the token belongs to; words about a job, its claim and its cancellation wait for each other here."""
    query = Attempt.select().join(Job).where(Attempt.id == attempt_id)
    attempt = core.database.locked(query, Job, Attempt).first()
    if attempt is None or not tokens.is_token_of(core.key, attempt.id, attempt.nonce, token):
        return None
    return attempt


def _is_taken(attempt: Attempt) -> bool:
    """Whether the server ended the attempt, and not its pilot."""
    return attempt.ended_at is not None and attempt.error in TAKEN_AWAY


def _reply(attempt: Attempt) -> UpdateReply:
    return UpdateReply(attempt.id, attempt.state, Command.STOP if _is_taken(attempt) else Command.CONTINUE)


def _checked_moves(word: AttemptUpdate) -> list[tuple[JobState, float]]:
    """The moves of an update as states in order, or BAD_REQUEST."""
    moves = []
    for move in word.moves:
        if move.state not in {state.value for state in PILOT_MAY_REPORT}:
            known = ", ".join(state.value for state in (*PILOT_OWNED, JobState.COMPLETED, JobState.FAILED))
            raise PilotageError(
                "BAD_REQUEST",
                f"moves: {move.state[:40]!a} is no state that a pilot reports; those are {known}",
            )
        moves.append((JobState(move.state), move.at))
    order = [_RANK[state] for state, _ in moves]
    if any(later <= earlier for earlier, later in itertools.pairwise(order)):
        raise PilotageError(
            "BAD_REQUEST",
            f"moves: {', '.join(state.value for state, _ in moves)} are not in the order of the states",
        )
    last = moves[-1][0] if moves else None
    if word.error and last is not JobState.FAILED:
        raise PilotageError("BAD_REQUEST", "error: only with a move to FAILED as the last one")
    if word.error in TAKEN_AWAY:
        raise PilotageError("BAD_REQUEST", f"error: {word.error} is for the server to say")
    if last is JobState.FAILED and not word.error:
        raise PilotageError("BAD_REQUEST", "error: FAILED needs the name of an error of the catalogue")
    if word.outputs is not None and last is not JobState.COMPLETED:
        raise PilotageError("BAD_REQUEST", "outputs: only with a move to COMPLETED as the last one")
    return moves


_RANK = {state: rank for rank, state in enumerate((*PILOT_OWNED, JobState.COMPLETED, JobState.FAILED))}


def _move_attempt(
    core: Core, attempt: Attempt, word: AttemptUpdate, moves: list[tuple[JobState, float]]
) -> None:
    """The conditional UPDATE of the attempt's own row: its state, times, `seq`, lease and what the word brought."""
    queue = Queue.get_by_id(attempt.queue)
    changes: dict[object, object] = {
        Attempt.seq: word.seq,
        Attempt.lease_until: lease_clock() + queue.lease_seconds,
    }
    condition = (Attempt.id == attempt.id) & Attempt.ended_at.is_null() & (Attempt.seq < word.seq)
    if moves:
        target = moves[-1][0]
        changes[Attempt.state] = target.value
        for state, at in moves:
            if state in STATE_TIMES:
                changes[STATE_TIMES[state]] = at
        if target in FINAL:
            changes[Attempt.ended_at] = now()
        # A heartbeat may have acknowledged the attempt before: the state it is in already is no move and no error.
        condition &= Attempt.state.in_([*_names(sources(target, Actor.PILOT)), target.value])
    if word.exit_code is not None:
        changes[Attempt.exit_code] = word.exit_code
    if word.error:
        entry = _entry(word)
        changes[Attempt.error] = entry.name
        changes[Attempt.error_detail] = shorten(word.error_detail)
    if word.log is not None:
        changes[Attempt.log_size] = word.log.size
        changes[Attempt.log_checksums] = json.dumps(check_checksums(word.log.checksums))
    if word.metrics is not None:
        changes[Attempt.metrics] = _metrics_text(word.metrics)
    if not Attempt.update(changes).where(condition).execute():
        wanted = moves[-1][0].value if moves else "this word"
        raise PilotageError(
            "WRONG_STATE", f"attempt {attempt.id} is in {attempt.state}; {wanted} does not follow from there"
        )


def _metrics_text(metrics: dict[str, float]) -> str:
    """Metrics as they are kept; BAD_REQUEST for a name that is too long."""
    for name in metrics:
        if len(name) > LONGEST_METRIC_NAME:
            raise PilotageError(
                "BAD_REQUEST", f"metrics: {name[:40]!a}... is longer than {LONGEST_METRIC_NAME} characters"
            )
    return json.dumps(metrics)


def _entry(word: AttemptUpdate) -> ErrorEntry:
    return BY_NAME.get(word.error, BY_NAME["GENERAL_ERROR"])


def _set_job(attempt: Attempt, target: JobState, actor: Actor, **changes: object) -> None:
    """Move the job that this attempt holds; STALE_ATTEMPT, and the transaction is undone, if it holds it no more."""
    if target is not JobState.READY:
        changes = {"ready_nr": None, "ready_after": None, **changes}
    moved = (
        Job.update(state=target.value, changed=now(), **changes)
        .where(
            Job.id == attempt.job_id,
            Job.attempt_id == attempt.id,
            Job.state.in_(_names(sources(target, actor))),
        )
        .execute()
    )
    if not moved:
        raise PilotageError(
            "STALE_ATTEMPT", f"attempt {attempt.id} does not hold job {attempt.job_id} any more"
        )


def _keep_job(attempt: Attempt) -> None:
    """A word without a move: if the lease had run out and nobody has claimed the job since, it goes back to its pilot."""
    Job.update(state=attempt.state, ready_nr=None, ready_after=None, changed=now()).where(
        Job.id == attempt.job_id, Job.attempt_id == attempt.id, Job.state == JobState.READY.value
    ).execute()


def _add_log(attempt: Attempt, word: AttemptUpdate, moves: list[tuple[JobState, float]]) -> UpdateReply:
    """An attempt that its pilot has ended changes no more; the pilot may still add the log archive, once."""
    if moves or word.log is None or attempt.log_size is not None:
        raise PilotageError("STALE_ATTEMPT", f"attempt {attempt.id} has ended as {attempt.state}")
    Attempt.update(
        seq=word.seq, log_size=word.log.size, log_checksums=json.dumps(check_checksums(word.log.checksums))
    ).where(Attempt.id == attempt.id).execute()
    return _reply(attempt)


def _register_outputs(attempt: Attempt, reports: list[OutputReport] | None) -> None:
    """Publish the outputs: the declared names, all of them and no others, become available where this attempt wrote them."""
    job = Job.get_by_id(attempt.job_id)
    declared = {row.lfn: row for row in File.select().where(File.job_id == job.id)}
    reported = {report.lfn: report for report in reports or []}
    if len(reported) != len(reports or []) or declared.keys() != reported.keys():
        missing, extra = sorted(declared.keys() - reported.keys()), sorted(reported.keys() - declared.keys())
        raise PilotageError(
            "BAD_REQUEST",
            f"outputs: COMPLETED needs each declared output once; missing: {missing[:5]}, not declared: {extra[:5]}",
        )
    for lfn, report in reported.items():
        row = declared[lfn]
        File.update(
            state="available",
            size=report.size,
            checksums=json.dumps(check_checksums(report.checksums)),
            created=now(),
        ).where(File.id == row.id).execute()
        url = _physical_name(attempt, job.task.output_dataset.name, row)
        Replica.create(file=row.id, storage=attempt.storage_id, url=url)


def _end_failed(core: Core, attempt: Attempt, word: AttemptUpdate) -> None:
    """A failed attempt: the catalogue says which budget pays, and whether and when the job is tried again."""
    entry = _entry(word)
    detail = shorten(word.error_detail if entry.name == word.error else f"{word.error}: {word.error_detail}")
    job = Job.get_by_id(attempt.job_id)
    spec = spec_of(job.task)
    failures = job.payload_failures + (entry.budget is Budget.PAYLOAD)
    losses = job.losses + (entry.budget is Budget.INFRASTRUCTURE)
    # An input that is wrong in two attempts one after the other is wrong wherever it is read.
    still_wrong = entry.retry is Retry.FRESH_INPUT and job.error == entry.name
    spent = failures >= spec.max_attempts or losses > spec.max_losses or still_wrong
    charged = {"payload_failures": failures, "losses": losses, "error": entry.name, "error_detail": detail}
    if spent or entry.retry is Retry.NEVER:
        _set_job(attempt, JobState.FAILED, Actor.PILOT, **charged)
    else:
        pause = _pause(core, losses) if entry.retry is Retry.LATER else 0
        _set_job(attempt, JobState.READY, Actor.PILOT, **charged, **_back_in_queue(core, pause))


def _pause(core: Core, losses: int) -> int:
    return int(min(core.limits.retry_seconds * 2.0 ** min(max(losses - 1, 0), 20), LONGEST_PAUSE_SECONDS))


def _back_in_queue(core: Core, pause: int) -> dict[str, object]:
    """How a job enters READY: claimable at once, or when the lease clock has gone on by `pause` seconds."""
    if pause:
        return {"ready_nr": None, "ready_after": lease_clock() + pause}
    return {"ready_nr": core.database.next_numbers(READY_NUMBERS, 1)[0], "ready_after": None}


# -- leases -----------------------------------------------------------------------------------------------------------------


def heartbeat(core: Core, word: Heartbeat) -> list[UpdateReply]:
    """Renew the leases of all attempts that a living pilot names; each answer says whether it still holds that one."""

    def work() -> list[UpdateReply]:
        clock = lease_clock()
        pilot = Pilot.get_or_none(Pilot.pilot_id == word.pilot_id)
        if pilot is None:
            raise PilotageError(
                "NOT_FOUND", f"no pilot {word.pilot_id} is registered; a pilot's first word is registerPilot"
            )
        lease = clock + pilot.queue.lease_seconds
        # In one order whatever the word's, and the pilot last: then two words never wait for each other.
        answers = {
            index: _renew(core, held.attempt_id, held.attempt_token, lease, held.metrics)
            for index, held in sorted(enumerate(word.attempts), key=lambda pair: pair[1].attempt_id)
        }
        Pilot.update(last_seen=now(), lease_until=lease).where(Pilot.pilot_id == word.pilot_id).execute()
        return [answers[index] for index in range(len(word.attempts))]

    return core.database.write(work)


def _renew(
    core: Core, attempt_id: int, token: str, lease: int, metrics: dict[str, float] | None
) -> UpdateReply:
    attempt = _authentic(core, attempt_id, token)
    if attempt is None:
        return UpdateReply(attempt_id, "", Command.STOP)
    if attempt.ended_at is None:
        changes: dict[object, object] = {Attempt.lease_until: lease}
        if metrics is not None:
            changes[Attempt.metrics] = _metrics_text(metrics)
        if attempt.state == JobState.EXTRACTED.value:
            # The first word about an attempt is its acknowledgement, also when that word is a heartbeat.
            attempt.state = JobState.OBTAINED.value
            changes |= {Attempt.state: attempt.state, Attempt.obtained_at: now()}
            _set_job(attempt, JobState.OBTAINED, Actor.PILOT)
        else:
            _keep_job(attempt)
        Attempt.update(changes).where(Attempt.id == attempt.id).execute()
    return _reply(attempt)


def expire(core: Core, limit: int = 25) -> int:
    """Make the jobs of attempts whose lease ran out claimable again; how many there were.

    The old attempt stays valid until somebody claims the job, so a late word before that keeps it; only a job whose budget
    this loss would overdraw ends here.
    """

    def work() -> int:
        overdue = (
            Attempt.select()
            .join(Job, on=(Job.attempt_id == Attempt.id))
            .where(
                Attempt.ended_at.is_null(), Attempt.lease_until < lease_clock(), Job.state.in_(_names(HELD))
            )
            .limit(limit)
        )
        expired = list(core.database.skip_locked(overdue, Job, Attempt))
        for attempt in expired:
            name = _loss_name(attempt)
            _event(
                attempt.job_id,
                attempt.attempt_nr,
                Actor.REAPER,
                name,
                f"pilot {attempt.pilot_id} was silent in {attempt.state}",
            )
            if _is_last_loss(core, attempt):
                _fail_lost(attempt)
            else:
                _set_job(attempt, JobState.READY, Actor.REAPER, **_back_in_queue(core, 0))
        return len(expired)

    return core.database.write(work)


def _loss_name(attempt: Attempt) -> str:
    return "NOT_ACKNOWLEDGED" if attempt.state == JobState.EXTRACTED.value else "LOST_HEARTBEAT"


def _is_last_loss(core: Core, attempt: Attempt) -> bool:
    job = Job.get_by_id(attempt.job_id)
    if attempt.state == JobState.EXTRACTED.value:
        return bool(job.unacknowledged + 1 >= core.limits.unacknowledged)
    return bool(job.losses + 1 > spec_of(job.task).max_losses)


def _fail_lost(attempt: Attempt) -> None:
    """The loss that spends the budget: the job ends."""
    name = _loss_name(attempt)
    verdict = "NEVER_ACKNOWLEDGED" if name == "NOT_ACKNOWLEDGED" else "INFRASTRUCTURE_BUDGET_SPENT"
    detail = f"the last attempt, {attempt.attempt_nr}, ended with {name} on node {attempt.node} (pilot {attempt.pilot_id})"
    _set_job(attempt, JobState.FAILED, Actor.REAPER, error=verdict, error_detail=detail, **_charge(name))
    _end_attempt(attempt, JobState.FAILED, name, detail)


def _end_expired(job: Job) -> None:
    """Somebody claims a job: if its last attempt ran out of its lease, now that attempt ends."""
    attempt = Attempt.get_or_none(Attempt.id == job.attempt_id) if job.attempt_id else None
    if attempt is None or attempt.ended_at is not None:
        return
    name = _loss_name(attempt)
    _end_attempt(
        attempt, JobState.FAILED, name, f"silent since {attempt.state}; the job was claimed by another pilot"
    )
    Job.update(**_charge(name)).where(Job.id == job.id).execute()


def _charge(loss: str) -> dict[str, object]:
    return (
        {"unacknowledged": Job.unacknowledged + 1}
        if loss == "NOT_ACKNOWLEDGED"
        else {"losses": Job.losses + 1}
    )


def _end_attempt(attempt: Attempt, state: JobState, error: str, detail: str) -> None:
    Attempt.update(state=state.value, ended_at=now(), error=error, error_detail=shorten(detail)).where(
        Attempt.id == attempt.id, Attempt.ended_at.is_null()
    ).execute()


def promote(core: Core, limit: int = 100) -> int:
    """Make READY jobs claimable whose pause before a retry is over; how many there were."""

    def work() -> int:
        due = (
            Job.select(Job.id)
            .where(Job.ready_after <= lease_clock(), Job.state == JobState.READY.value)
            .limit(limit)
        )
        ids = [job.id for job in due]
        for job_id, number in zip(ids, core.database.next_numbers(READY_NUMBERS, len(ids)), strict=True):
            Job.update(ready_nr=number, ready_after=None).where(
                Job.id == job_id, Job.ready_after.is_null(False)
            ).execute()
        return len(ids)

    return core.database.write(work)


# -- users ------------------------------------------------------------------------------------------------------------------


def cancel(core: Core, job_ids: Sequence[int], actor_name: str, reason: str) -> int:
    """End these jobs as CANCELLED, those that have not ended; how many were. Their pilots are told at their next word."""

    def work() -> int:
        cancelled = 0
        for job_id in job_ids:
            moved = (
                Job.update(
                    state=JobState.CANCELLED.value,
                    ready_nr=None,
                    ready_after=None,
                    changed=now(),
                    error="CANCELLED_BY_USER",
                    error_detail=reason,
                )
                .where(Job.id == job_id, Job.state.in_(_names(sources(JobState.CANCELLED, Actor.USER))))
                .execute()
            )
            if moved:
                cancelled += 1
                job = Job.get_by_id(job_id)
                attempt = Attempt.get_or_none(Attempt.id == job.attempt_id) if job.attempt_id else None
                if attempt is not None and attempt.ended_at is None:
                    _end_attempt(attempt, JobState.CANCELLED, "CANCELLED_BY_USER", reason)
                _event(job_id, job.attempt_nr, Actor.USER, "CANCELLED_BY_USER", f"{actor_name}: {reason}")
        return cancelled

    return core.database.write(work)


def _event(job_id: int, attempt_nr: int, actor: Actor, event: str, detail: str) -> None:
    JobEvent.create(job=job_id, attempt_nr=attempt_nr, actor=actor.value, event=event, detail=shorten(detail))


def _names(states: Sequence[JobState]) -> list[str]:
    return [state.value for state in states]
