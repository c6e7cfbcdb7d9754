"""A task's specification as it is kept: the text in the database, and the object made of it once."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence

from protocol import templates
from protocol.messages import from_wire, to_wire
from protocol.messages.requests import TaskSpec
from server.models import File, Job, JobInput, Task


def dump(spec: TaskSpec) -> str:
    return json.dumps(to_wire(spec))


@functools.lru_cache(maxsize=1024)
def _load(text: str) -> TaskSpec:
    return from_wire(TaskSpec, json.loads(text))


def spec_of(task: Task) -> TaskSpec:
    """Not to be changed: it is shared."""
    return _load(task.spec)


def output_names(spec: TaskSpec, task_id: int, job_nr: int, lfn: str) -> list[str]:
    """What a job writes: the templates, filled in with its number and the name of its first input ("" if it has none)."""
    values = {"lfn": lfn, "stem": templates.stem(lfn), "task_id": str(task_id), "job_nr": str(job_nr)}
    return [templates.fill(template, values) for template in spec.outputs]


def outputs_of(task: Task, jobs: Sequence[Job]) -> dict[int, list[str]]:
    """What each of these jobs of a task writes, by its id; also of those that have failed, which declare it no more."""
    spec = spec_of(task)
    if spec.replicate_to:
        return _inputs([job.id for job in jobs])
    if not spec.outputs:
        return {job.id: [] for job in jobs}
    first_lfns = _first_inputs([job.id for job in jobs]) if task.input_dataset_id is not None else {}
    return {job.id: output_names(spec, task.id, job.job_nr, first_lfns.get(job.id, "")) for job in jobs}


def _first_inputs(job_ids: Sequence[int]) -> dict[int, str]:
    return {job_id: lfns[0] for job_id, lfns in _inputs(job_ids).items() if lfns}


def _inputs(job_ids: Sequence[int]) -> dict[int, list[str]]:
    """What each of these jobs reads, in order."""
    rows = (
        JobInput.select(JobInput.job, File.lfn)
        .join(File, on=(JobInput.file == File.id))
        .where(JobInput.job.in_(job_ids))
        .order_by(File.id)
    )
    found: dict[int, list[str]] = {job_id: [] for job_id in job_ids}
    for job_id, lfn in rows.tuples():
        found[job_id].append(lfn)
    return found
