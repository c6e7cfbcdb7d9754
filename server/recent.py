"""Rows that change seldom and are asked for at every call, remembered for a second; what never changes, for longer."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

from peewee import JOIN

from protocol import pilot_settings
from protocol.messages.pilots import BundleRef
from protocol.messages.requests import TaskSpec
from protocol.states import QueueState
from server.database import Chain, Database, Part
from server.models import Bundle, Dataset, Queue, Site, Storage, Task
from server.specs import spec_of

T = TypeVar("T")
SECONDS = 1.0
MOST = 100_000
"""Entries kept; beyond that all are forgotten."""


class Recent:
    """What this process has read within the last second. Who changes such a row calls `forget`; other processes wait a second."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._kept: dict[Hashable, tuple[float, Any]] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, load: Callable[[], T], seconds: float | None = None) -> T:
        """What `load` gave last, at most so long ago; an error of it is not remembered."""
        now = time.monotonic()
        kept = self._kept.get(key)
        if kept is not None and now < kept[0]:
            return kept[1]
        value = load()
        with self._lock:
            if len(self._kept) >= MOST:
                self._kept.clear()
            self._kept[key] = (now + (self._seconds if seconds is None else seconds), value)
        return value

    def forget(self) -> None:
        with self._lock:
            self._kept.clear()


@dataclass(frozen=True)
class QueueFacts:
    """What a claim needs to know of a queue."""

    name: str
    site: str
    resource_type: str
    state: QueueState
    storage: str
    lease_seconds: int
    requeue_delay_seconds: int
    tags: tuple[str, ...]
    country_group: str
    images: bool
    """Whether its pilots run the containers that tasks ask for."""
    closed: str
    """Why it hands out nothing, in words, or "" if it does."""


def runs_images(queue: Queue) -> bool:
    """Whether its pilots run the containers that tasks ask for, as far as the queue itself says so."""
    return pilot_settings.lets_tasks_name_images(json.loads(queue.pilot_settings))


def closed_because(queue: Queue) -> str:
    """Why a queue hands out nothing, in words, or "" if it does."""
    if queue.site.state == QueueState.OFFLINE.value:
        return f"the site {queue.site_id} is offline{_said(queue.site.state_reason)}"
    if queue.state in (QueueState.DRAIN.value, QueueState.OFFLINE.value):
        return f"the queue is in {queue.state}{_said(queue.state_reason)}"
    return ""


def _said(reason: str) -> str:
    return f": {reason}" if reason else ""


def queue_facts(recent: Recent, name: str) -> QueueFacts | None:
    """None if there is no such queue; a queue of a site that is offline is offline."""

    def load() -> QueueFacts | None:
        row = Queue.select(Queue, Site).join(Site).where(Queue.name == name).first()
        if row is None:
            return None
        state = QueueState(row.state) if row.site.state != QueueState.OFFLINE.value else QueueState.OFFLINE
        return QueueFacts(
            row.name,
            row.site_id,
            row.resource_type,
            state,
            row.storage_id,
            row.lease_seconds,
            row.requeue_delay_seconds,
            tuple(json.loads(row.tags)),
            row.country_group,
            runs_images(row),
            closed_because(row),
        )

    return recent.get(("queue", name), load)


@dataclass(frozen=True)
class PilotFacts:
    """What a claim, and a heartbeat, need to know of a pilot."""

    queue: str
    node: str
    draining: bool
    updating: bool
    tags: tuple[str, ...]


_PILOT = Chain(
    Part(
        "known", "SELECT queue_id, node, draining, updating, tags FROM pilot WHERE pilot_id = :pilot_id", {}
    ),
    result="known",
)


def pilot_facts(database: Database, recent: Recent, pilot_id: str) -> PilotFacts | None:
    """None if there is no such pilot. Each heartbeat asks, so the statement is a compiled one."""

    def load() -> PilotFacts | None:
        with database.reading():
            rows = database.run(_PILOT, pilot_id=pilot_id)
        for queue, node, draining, updating, tags in rows:
            return PilotFacts(queue, node, bool(draining), bool(updating), tuple(json.loads(tags)))
        return None

    return recent.get(("pilot", pilot_id), load)


def storage_url(recent: Recent, name: str) -> str:
    return recent.get(("storage", name), lambda: str(Storage.get_by_id(name).url))


@dataclass(frozen=True)
class TaskFacts:
    """What does not change of a task once it is registered."""

    task_id: int
    spec: TaskSpec
    output_dataset: str
    bundle: BundleRef | None


def task_facts(recent: Recent, task_id: int) -> TaskFacts:
    def load() -> TaskFacts:
        query = Task.select(Task, Dataset).join(Dataset, JOIN.LEFT_OUTER, on=Task.output_dataset)
        task = query.where(Task.id == task_id).get()
        spec = spec_of(task)
        bundle = Bundle.get_or_none(Bundle.digest == spec.bundle) if spec.bundle else None
        return TaskFacts(
            task_id,
            spec,
            task.output_dataset.name if task.output_dataset_id is not None else "",
            BundleRef(bundle.digest, bundle.size) if bundle else None,
        )

    return recent.get(("task", task_id), load, seconds=3600)
