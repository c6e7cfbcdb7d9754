"""Which READY jobs fit a pilot, and in which order: by class of needs, then by priority, then first come, first served."""

from __future__ import annotations

import functools
import heapq
import json

from peewee import fn

from protocol.messages import TaskSpec, from_wire, to_wire
from protocol.resources import Needs, Offer, ResourceType, fits
from server.database import Database
from server.models import Job, JobClass

WINDOW = 100
"""So many of the first candidates may change places for a preference."""


def needs_of(spec: TaskSpec) -> Needs:
    return Needs(
        resource_type=spec.resource_type,
        cores=spec.cores,
        memory_mb=spec.memory_mb,
        disk_mb=spec.disk_mb,
        walltime_seconds=spec.walltime_seconds,
        gpus=spec.gpus,
        queue=spec.queue,
        label=spec.prod_source_label,
    )


def class_of(needs: Needs) -> JobClass:
    """The class of these needs, made if it is new; inside `Database.write`."""
    key = json.dumps(to_wire(needs), sort_keys=True)
    JobClass.insert(key=key).on_conflict_ignore().execute()
    found: JobClass = JobClass.get(JobClass.key == key)
    return found


@functools.lru_cache(maxsize=4096)
def needs_in(key: str) -> Needs:
    body = json.loads(key)
    body["resourceType"] = ResourceType(body["resourceType"])
    return from_wire(Needs, body)


def fitting_classes(offer: Offer) -> list[int]:
    """Only classes of which a job waits are looked at: those of the past cost nothing."""
    waiting = Job.select(Job.id).where(Job.job_class == JobClass.id, Job.ready_nr.is_null(False))
    rows = JobClass.select(JobClass.id, JobClass.key).where(fn.EXISTS(waiting)).tuples()
    return [class_id for class_id, key in rows if fits(needs_in(key), offer)]


def candidates(database: Database, offer: Offer, n: int, same_task: int | None = None) -> list[int]:
    """Ids of at most `n` READY jobs for this offer, best first; inside `Database.write`.

    Each class is read from its own end of the index, so the cost grows neither with the number of jobs nor with those that
    do not fit. Jobs of `same_task` go before others of the same priority.
    """
    window = max(n, WINDOW) if same_task else n
    found: list[tuple[int, bool, int, int]] = []
    for class_id in fitting_classes(offer):
        query = (
            Job.select(Job.priority, Job.task, Job.ready_nr, Job.id)
            .where(Job.job_class == class_id, Job.ready_nr.is_null(False))
            .order_by(Job.priority.desc(), Job.ready_nr)
            .limit(window)
            .tuples()
        )
        for priority, task_id, ready_nr, job_id in database.skip_locked(query):
            found.append((-priority, task_id != same_task, ready_nr, job_id))
    return [job_id for *_, job_id in heapq.nsmallest(n, found)]
