"""Who may change a task, a job or a dataset: its owner, who manages the owner's group, and an admin; look may everybody.

The application asks here before any view that changes something, by the address of its route, so that no view can forget to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from protocol.errors import PilotageError
from server import catalogue, containers, task_manager
from server.access import groups
from server.access.tokens import Caller, Role
from server.brokerage import dependencies
from server.http.wire import path_id
from server.models import ArchivedJob, Job, Task
from server.routes import Route

Guard = Callable[[Caller, Mapping[str, str]], None]
"""Given the caller and the parts of the address that name things; FORBIDDEN, or NOT_FOUND where there is none."""

MAKING = frozenset({"POST /v1/tasks", "POST /v1/datasets", "POST /v1/containers", "PUT /v1/bundles/<digest>"})
"""What makes something new, which then is the caller's."""


def guard_of(route: Route) -> Guard | None:
    """What must be asked before this route's view; None where nothing of anybody's is changed."""
    if route.role is not Role.USER or route.method == "GET" or f"{route.method} {route.path}" in MAKING:
        return None
    for start, guard in _GUARDS.items():
        if route.path.startswith(start):
            return guard
    raise RuntimeError(
        f"{route.method} {route.path} changes nobody's; say whose in server/access/ownership.py"
    )


def may_change(caller: Caller, owner: str, group: str = "") -> bool:
    return (
        caller.role is Role.ADMIN
        or (caller.role in (Role.USER, Role.GROUP) and caller.name == owner)
        or groups.manages(caller, owner, group)
    )


def _check(caller: Caller, owner: str, group: str, what: str) -> None:
    if not may_change(caller, owner, group):
        raise PilotageError(
            "FORBIDDEN",
            f"{what} is {owner or 'nobody'}'s: its owner may change it, who manages the owner's group, and an admin",
            advice="ask one of them",
        )


def check_dependents(caller: Caller, id_or_name: str) -> None:
    """FORBIDDEN unless the caller may change all tasks that come after this one: a word about one then reaches them too."""
    for task_id in dependencies.dependents(task_manager.find(id_or_name).id):
        _check_task(caller, Task.get_by_id(task_id))


def _check_task(caller: Caller, task: Task) -> None:
    _check(caller, task.owner, task.working_group, f"task {task.name}")


def _task(caller: Caller, parts: Mapping[str, str]) -> None:
    _check_task(caller, task_manager.find(parts["task"]))


def _job(caller: Caller, parts: Mapping[str, str]) -> None:
    job_id = path_id(parts["job"], "job")
    job = Job.get_or_none(Job.id == job_id) or ArchivedJob.get_or_none(ArchivedJob.id == job_id)
    if job is None:
        raise PilotageError("NOT_FOUND", f"no job {job_id}; see 'pilotage job list'")
    _check_task(caller, Task.get_by_id(job.task_id))


def check_dataset(caller: Caller, name: str) -> None:
    """FORBIDDEN unless the caller may change this dataset, or add replicas to its files."""
    dataset = catalogue.find(name)
    _check(caller, dataset.owner, "", f"dataset {dataset.name}")


def _container(caller: Caller, parts: Mapping[str, str]) -> None:
    container = containers.find(parts["name"])
    _check(caller, container.owner, "", f"container {container.name}")


def _dataset(caller: Caller, parts: Mapping[str, str]) -> None:
    check_dataset(caller, parts["name"])


_GUARDS: dict[str, Guard] = {
    "/v1/tasks/<task>/": _task,
    "/v1/jobs/<job>/": _job,
    "/v1/datasets/<name>": _dataset,
    "/v1/containers/<name>": _container,
}
