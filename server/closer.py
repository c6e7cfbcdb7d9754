"""Finished tasks: when the whole block is processed, the task ends and its output dataset is closed."""

from __future__ import annotations

from server import task_manager
from server.core import Core
from server.models import Task


def run_once(core: Core) -> int:
    """One pass over the tasks that have not ended; how many ended now."""
    with core.database.reading():
        candidates = [
            task.id
            for task in Task.select(Task.id).where(Task.ended.is_null(), Task.all_formed | Task.cancelled)
        ]
    return sum(task_manager.end(core, task_id) for task_id in candidates)
