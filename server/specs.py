"""A task's specification as it is kept: the text in the database, and the object made of it once."""

from __future__ import annotations

import functools
import json

from protocol import templates
from protocol.messages import TaskSpec, from_wire, to_wire
from server.models import Task


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
