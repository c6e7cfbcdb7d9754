"""News of jobs that wait, read from the database, for those who do not know of which classes they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peewee import fn

from server.core import Core
from server.models import Job, JobClass
from server.waiting import wake

MOST = 1000
"""Of the jobs of one class that waits so many are told of: more pilots than that do not wait for a queue to open."""
CHUNK = 500


def of_jobs(core: Core, job_ids: Sequence[int]) -> None:
    """Wake pilots for those of these jobs that can be claimed now; after the commit that made them READY again."""
    if core.waiting is None:
        return
    for start in range(0, len(job_ids), CHUNK):
        chosen = Job.id.in_(list(job_ids[start : start + CHUNK]))
        query = Job.select(JobClass.key, fn.COUNT(Job.id)).join(JobClass).where(chosen, _IS_READY)
        with core.database.reading():
            wake.poke(core, dict(query.group_by(JobClass.key).tuples()))


def of_queue(core: Core, queue: str) -> None:
    """A queue hands out jobs again: wake its pilots for what waits, whatever that is; they were passed over till now."""
    if core.waiting is None:
        return
    with core.database.reading():
        wake.poke(core, dict(_waiting()), queue)


_IS_READY = Job.ready_nr.is_null(False)


def _waiting() -> list[tuple[Any, int]]:
    """Each class of which jobs wait, and how many, by a few look-ups in the index however many jobs there are."""
    found = []
    class_id = Job.select(fn.MIN(Job.job_class)).where(_IS_READY).scalar()
    while class_id is not None:
        of_class = Job.select(Job.id).where(_IS_READY, Job.job_class == class_id)
        found.append((JobClass.get_by_id(class_id).key, of_class.limit(MOST).count()))
        class_id = Job.select(fn.MIN(Job.job_class)).where(_IS_READY, Job.job_class > class_id).scalar()
    return found
