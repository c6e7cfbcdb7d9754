"""getJob: bind READY jobs to the pilot that asks, now (late binding); the same request yields the same attempts again."""

from __future__ import annotations

import functools
import json
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import peewee

from protocol import cached
from protocol.errors import PilotageError
from protocol.messages.pilots import GetJobRequest, InputFile, JobSpec, OutputFile
from protocol.resources import Offer
from protocol.states import QueueState
from server import replicas
from server.access import tokens
from server.brokerage import broker, nodes
from server.brokerage.broker import WINDOW, Lane
from server.core import Core
from server.database import Chain
from server.jobs import moves, replication, statements
from server.jobs.places import log_url, physical_name
from server.jobs.statements import SPARE
from server.leaseclock import lease_clock
from server.models import Attempt, now
from server.recent import PilotFacts, QueueFacts, TaskFacts, pilot_facts, queue_facts, storage_url, task_facts
from server.replicas import Place

MOST_AT_ONCE = 300
"""Jobs in one answer, so that a transaction is short; who wants more asks again."""
SIGN_OF_LIFE_SECONDS = 5.0
"""How often at most the database is told that a pilot which asks for jobs is alive."""


def claim(core: Core, request: GetJobRequest) -> list[JobSpec]:
    """Jobs for this offer, at most `n_jobs`; none if nothing fits now.

    A request that is repeated gets the attempts that it got before and that have not ended, with the same tokens: its first
    attempt's row can be there once only.
    """
    asked = time.monotonic()
    with core.database.reading():
        queue, pilot = _who(core, request)
        try:
            rows = core.database.write(lambda: _claim(core, request, queue, pilot, asked), atomic=False)
        except peewee.IntegrityError as error:
            if "request_id" not in str(error):
                raise
            rows = []
        if rows:
            moves.tell_ready(core, [row[3] for row in rows if row[7]])
            return _specs(core, [(*row[:6], row[8]) for row in rows], queue.storage, queue.site)
        return _again(core, request)


def _who(core: Core, request: GetJobRequest) -> tuple[QueueFacts, PilotFacts]:
    queue = queue_facts(core.recent, request.queue)
    if queue is None:
        raise PilotageError("NOT_FOUND", f"no queue {request.queue}; see 'pilotage queue list'")
    if queue.resource_type != request.resource_type.value:
        raise PilotageError(
            "WRONG_STATE",
            f"{queue.name} is a {queue.resource_type} queue and this pilot is of type {request.resource_type}",
        )
    pilot = pilot_facts(core.database, core.recent, request.pilot_id)
    if pilot is None:
        core.recent.forget()
        raise PilotageError(
            "NOT_FOUND", f"no pilot {request.pilot_id} is registered; a pilot's first word is registerPilot"
        )
    return queue, pilot


def _claim(
    core: Core, request: GetJobRequest, queue: QueueFacts, pilot: PilotFacts, asked: float
) -> list[Any]:
    """Rows of statements.CLAIM, each with the memory that the job gets.

    On Postgres each statement is a transaction of its own, and a part of the jobs is no harm.
    """
    _tell_alive(core, request, queue)
    node = request.node or pilot.node
    if not _hands_out(core, queue, node) or pilot.draining:
        return []
    wanted = 1 if queue.state is QueueState.TEST else min(request.n_jobs, MOST_AT_ONCE)
    rows: list[Any] = []
    nonce = tokens.new_nonce()
    for lane in core.broker.lanes(core.database, _offer(request, queue, pilot), asked):
        values = {
            "job_class": lane.class_id,
            "priority": lane.priority,
            "place": lane.place,
            "n": wanted - len(rows),
            "node": node,
            "queue": queue.name,
            "storage": queue.storage,
            "pilot_id": request.pilot_id,
            "request_id": request.request_id,
            "first_nr": len(rows),
            "nonce": nonce,
            "acknowledge_seconds": core.limits.acknowledge_seconds,
            "lease_seconds": queue.lease_seconds,
            "cores": lane.needs.cores,
            "now": now(),
        }
        took = _take(core, lane, request, queue, values)
        # Of a job that ran out of memory the class asks for more than its task.
        rows += [(*row, lane.needs.memory_mb) for row in took]
        core.broker.charge(lane, len(took))
        if len(rows) >= wanted:
            break
    return rows


def _take(
    core: Core, lane: Lane, request: GetJobRequest, queue: QueueFacts, values: dict[str, Any]
) -> list[Any]:
    """Jobs of one lane: its first ones, or of the first hundred those that suit this pilot best."""
    if request.task_id is None and not core.broker.sites_matter and not request.cached:
        took = core.database.run(statements.CLAIM, **values)
        if took:
            lane.took(took[-1][6])
    else:
        best = _best(core, request, queue, values)
        ranked = [(job_id, rank) for rank, job_id in enumerate(best)]
        took = core.database.run(statements.CLAIM_THESE, wanted=ranked, **values) if ranked else []
    if not took:
        behind = {name: values[name] for name in ("job_class", "priority", "place")}
        # Jobs that only avoid this node are there for others.
        lane.empty = not core.database.run(statements.WAITING, **behind)
    return took


def _best(core: Core, request: GetJobRequest, queue: QueueFacts, values: dict[str, Any]) -> list[int]:
    """Of the first hundred jobs of a lane those that suit this pilot best: of its task, read from its cache, at its site."""
    window, most = max(WINDOW, values["n"]), values["n"] + SPARE
    rows = core.database.run(
        statements.WINDOW,
        **values,
        window=window,
        best=window if request.cached else most,
        task_id=request.task_id or 0,
        site=queue.site,
    )
    if request.cached and len(rows) > 1:
        there = _bytes_there(core, [job_id for job_id, _ in rows], cached.marks_in(request.cached))
        rows = sorted(rows, key=lambda row: (row[1], -there[row[0]]))
    return [job_id for job_id, _ in rows[:most]]


def _bytes_there(core: Core, job_ids: list[int], marks: frozenset[str]) -> Counter[int]:
    """How many bytes of its inputs each of these jobs finds in a cache that holds what has these marks."""
    there: Counter[int] = Counter()
    for job_id, lfn, size, checksums in _of_jobs(core, statements.READ, job_ids):
        if not marks.isdisjoint(_marks_of(checksums, size, lfn)):
            there[job_id] += size
    return there


@functools.lru_cache(maxsize=4096)
def _marks_of(checksums: str, size: int, lfn: str) -> set[str]:
    """Of the jobs in a window nearly all are in the next one as well."""
    return cached.marks_of(json.loads(checksums), size, lfn)


def _tell_alive(core: Core, request: GetJobRequest, queue: QueueFacts) -> None:
    """Any call of a pilot is a sign of life; the database is told of it now and then."""
    tell = functools.partial(
        core.database.run,
        statements.SEEN,
        pilot_id=request.pilot_id,
        lease_seconds=queue.lease_seconds,
        now=now(),
    )
    core.recent.get(("alive", request.pilot_id), tell, SIGN_OF_LIFE_SECONDS)


def _hands_out(core: Core, queue: QueueFacts, node: str) -> bool:
    """Whether this queue gives jobs to this node now; one in test has one job at a time."""
    if queue.state is QueueState.TEST:
        held = Attempt.select().where(
            Attempt.queue == queue.name, Attempt.ended_at.is_null(), Attempt.lease_until >= lease_clock()
        )
        return not held.exists() and not nodes.is_closed(core, queue.name, node)
    return queue.state is QueueState.ONLINE and not nodes.is_closed(core, queue.name, node)


def _offer(request: GetJobRequest, queue: QueueFacts, pilot: PilotFacts) -> Offer:
    return Offer(
        resource_type=request.resource_type,
        queue=queue.name,
        cores=request.cores,
        memory_mb=request.memory_mb,
        disk_mb=request.disk_mb,
        walltime_seconds=request.walltime_seconds,
        gpus=request.gpus,
        site=queue.site,
        label=request.prod_source_label,
        working_group=request.working_group,
        country_group=request.country_group or queue.country_group,
        allow_other_country=request.allow_other_country,
        tags=(*queue.tags, *pilot.tags, *request.tags),
        images=queue.images and request.images is not False,
    )


def offer(core: Core, request: GetJobRequest) -> Offer:
    """What this pilot offers, for its ticket when there was no job."""
    return _offer(request, *_who(core, request))


def _again(core: Core, request: GetJobRequest) -> list[JobSpec]:
    """The attempts that this request was given before and that have not ended."""
    specs = []
    for *row, storage, queue_name, key in core.database.run(
        statements.AGAIN, request_id=request.request_id, pilot_id=request.pilot_id
    ):
        queue = queue_facts(core.recent, queue_name)
        site = queue.site if queue else ""
        specs += _specs(core, [(*row, broker.needs_in(key).memory_mb)], storage, site)
    return specs


# -- what a pilot is given --------------------------------------------------------------------------------------------------


def _specs(core: Core, rows: Sequence[Any], storage: str, site: str) -> list[JobSpec]:
    """Everything a pilot needs for these attempts (id, number, nonce, job id, job number, task id, memory); the same each time."""
    url = storage_url(core.recent, storage)
    tasks = {row[5]: task_facts(core.recent, row[5]) for row in rows}
    inputs = _inputs(core, [row[3] for row in rows if tasks[row[5]].spec.input_dataset], site)
    outputs = outputs_of(core, [row[3] for row in rows if tasks[row[5]].spec.outputs])
    return [
        _spec(core, row, tasks[row[5]], url, inputs.get(row[3], []), outputs.get(row[3], {})) for row in rows
    ]


def _spec(
    core: Core, row: Any, task: TaskFacts, url: str, inputs: list[InputFile], output_lfns: Iterable[str]
) -> JobSpec:
    attempt_id, attempt_nr, nonce, job_id, job_nr, task_id, memory_mb = row
    spec = task.spec
    return JobSpec(
        job_id=job_id,
        job_nr=job_nr,
        task_id=task_id,
        attempt_id=attempt_id,
        attempt_nr=attempt_nr,
        attempt_token=tokens.attempt_token(core.key, attempt_id, nonce),
        command=spec.command,
        environment=spec.environment,
        inputs=inputs,
        outputs=replication.outputs(core, task, inputs, attempt_id)
        if spec.replicate_to
        else [
            OutputFile(
                lfn,
                spec_scope(task),
                task.output_dataset,
                physical_name(url, task.output_dataset, lfn, attempt_id),
            )
            for lfn in output_lfns
        ],
        log_url=log_url(url, task_id, job_id, attempt_id),
        bundle=task.bundle,
        data_type=spec.data_type,
        cores=spec.cores,
        gpus=spec.gpus,
        memory_mb=memory_mb,
        disk_mb=spec.disk_mb,
        walltime_seconds=spec.walltime_seconds,
        prod_source_label=spec.prod_source_label,
        steps=spec.steps,
        image=spec.image,
        software=spec.software,
        software_checksum=spec.software_checksum,
        # What is copied has to come, whatever other jobs of the queue read where it lies.
        pilot_settings={
            **spec.pilot_settings,
            **({"copytools.direct_access": ""} if spec.replicate_to else {}),
        },
    )


def spec_scope(task: TaskFacts) -> str:
    """The scope of a task's outputs is the name of its output dataset."""
    return task.output_dataset


def _inputs(core: Core, job_ids: list[int], site: str) -> dict[int, list[InputFile]]:
    """The inputs of each job, each with the replica that is best for a pilot of this site."""
    found: dict[int, dict[int, InputFile]] = {}
    places: dict[tuple[int, int], list[Place]] = {}
    for job_id, file_id, lfn, scope, dataset, size, checksums, url, *what in _of_jobs(
        core, statements.INPUTS, job_ids
    ):
        inputs = found.setdefault(job_id, {})
        if file_id not in inputs:
            inputs[file_id] = InputFile(lfn, scope, dataset, size, json.loads(checksums), url or "")
        if url:
            places.setdefault((job_id, file_id), []).append(Place(url, *what))
    for (job_id, file_id), of_file in places.items():
        found[job_id][file_id].url = replicas.best(core.recent, of_file, site)
    return {job_id: list(inputs.values()) for job_id, inputs in found.items()}


def outputs_of(core: Core, job_ids: list[int]) -> dict[int, dict[str, tuple[int, str]]]:
    """The outputs that each job declares, by their names: the id in the catalogue, and the dataset."""
    found: dict[int, dict[str, tuple[int, str]]] = {}
    for job_id, lfn, file_id, dataset in _of_jobs(core, statements.DECLARED, job_ids):
        found.setdefault(job_id, {})[lfn] = (file_id, dataset)
    return found


def _of_jobs(core: Core, chain: Chain, job_ids: list[int]) -> list[Any]:
    return core.database.run(chain, wanted=[(job_id,) for job_id in job_ids]) if job_ids else []
