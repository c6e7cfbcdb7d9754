"""Sites, queues and storages as the operator defines them, and the pilots that register at a queue."""

from __future__ import annotations

import json

from protocol.errors import PilotageError
from protocol.messages import (
    Page,
    PilotEnd,
    PilotRegistration,
    QueueForPilot,
    QueueSpec,
    QueueView,
    StorageSpec,
    StorageView,
)
from protocol.resources import ResourceType
from protocol.states import HELD, JobState, QueueState
from server.core import Core
from server.job_executor import lease_clock
from server.models import Attempt, Job, Pilot, Queue, Site, Storage, Task, now

LOCAL = "LOCAL"
DEFAULT_QUEUES = {"CPU": ResourceType.CPU, "GPU": ResourceType.GPU}
"""The queues of a new installation; a pilot without -q goes to the one of its resource type."""


def set_up_defaults(core: Core, storage_url: str) -> None:
    """What a new installation begins with: one site, one storage, a queue for each resource type; inside `Database.write`."""
    if Queue.select().exists():
        return
    Site.get_or_create(name=LOCAL)
    Storage.get_or_create(name=LOCAL, defaults={"url": storage_url})
    for name, resource_type in DEFAULT_QUEUES.items():
        Queue.create(
            name=name,
            site=LOCAL,
            resource_type=resource_type.value,
            storage=LOCAL,
            lease_seconds=core.limits.lease_seconds,
            heartbeat_seconds=core.limits.heartbeat_seconds,
        )


def find_queue(name: str) -> Queue:
    queue = Queue.get_or_none(Queue.name == name)
    if queue is None:
        known = ", ".join(row.name for row in Queue.select(Queue.name).order_by(Queue.name).limit(20))
        raise PilotageError("NOT_FOUND", f"no queue {name}; there are {known}")
    return queue


def create_queue(core: Core, spec: QueueSpec) -> QueueView:
    def work() -> Queue:
        if Queue.get_or_none(Queue.name == spec.name):
            raise PilotageError("ALREADY_EXISTS", f"there is a queue {spec.name} already")
        storage = Storage.get_or_none(Storage.name == (spec.storage or LOCAL))
        if storage is None:
            raise PilotageError(
                "NOT_FOUND", f"no storage {spec.storage or LOCAL}; see 'pilotage storage list'"
            )
        lease = spec.lease_seconds or core.limits.lease_seconds
        heartbeat = spec.heartbeat_seconds or core.limits.heartbeat_seconds
        if heartbeat >= lease:
            raise PilotageError(
                "BAD_REQUEST", "heartbeatSeconds must be below leaseSeconds, or every pilot loses its jobs"
            )
        Site.get_or_create(name=spec.site)
        return Queue.create(
            name=spec.name,
            site=spec.site,
            resource_type=spec.resource_type.value,
            storage=storage.name,
            copytools=json.dumps(spec.copytools),
            lease_seconds=lease,
            heartbeat_seconds=heartbeat,
            timefloor_seconds=spec.timefloor_seconds,
        )

    return queue_view(core.database.write(work))


def set_queue_state(core: Core, name: str, state: str) -> QueueView:
    if state not in {each.value for each in QueueState}:
        raise PilotageError(
            "BAD_REQUEST", f"state: {state[:40]!a}; a queue is {', '.join(each.value for each in QueueState)}"
        )

    def work() -> Queue:
        find_queue(name)
        Queue.update(state=state).where(Queue.name == name).execute()
        return find_queue(name)

    return queue_view(core.database.write(work))


def queue_view(queue: Queue) -> QueueView:
    held = [state.value for state in HELD]
    ready = (
        Job.select()
        .join(Task)
        .where(Job.state == JobState.READY.value, Task.resource_type == queue.resource_type)
    )
    return QueueView(
        name=queue.name,
        site=queue.site_id,
        resource_type=queue.resource_type,
        state=queue.state,
        storage=queue.storage_id,
        copytools=json.loads(queue.copytools),
        lease_seconds=queue.lease_seconds,
        heartbeat_seconds=queue.heartbeat_seconds,
        timefloor_seconds=queue.timefloor_seconds,
        n_ready=ready.count(),
        n_held=Attempt.select()
        .where(Attempt.queue == queue.name, Attempt.ended_at.is_null(), Attempt.state.in_(held))
        .count(),
        n_pilots=Pilot.select()
        .where(Pilot.queue == queue.name, Pilot.ended.is_null(), Pilot.lease_until >= lease_clock())
        .count(),
    )


def queues() -> Page:
    return Page(items=[queue_view(queue) for queue in Queue.select().order_by(Queue.name)])


def sites() -> Page:
    return Page(
        items=[{"name": site.name, "state": site.state} for site in Site.select().order_by(Site.name)]
    )


def create_storage(core: Core, spec: StorageSpec) -> StorageView:
    if not spec.url.startswith("file:") and "://" not in spec.url:
        raise PilotageError(
            "BAD_REQUEST", f"url: {spec.url[:200]!a} is no URL; a directory is file:///its/path"
        )

    def work() -> Storage:
        if Storage.get_or_none(Storage.name == spec.name):
            raise PilotageError("ALREADY_EXISTS", f"there is a storage {spec.name} already")
        return Storage.create(name=spec.name, url=spec.url.rstrip("/"))

    created = core.database.write(work)
    return StorageView(created.name, created.url)


def storages() -> Page:
    return Page(items=[StorageView(row.name, row.url) for row in Storage.select().order_by(Storage.name)])


# -- pilots -----------------------------------------------------------------------------------------------------------------


def register_pilot(core: Core, word: PilotRegistration) -> QueueForPilot:
    """Know a pilot from now on, and tell it about its queue; said again, it changes nothing but what the pilot has."""

    def work() -> Queue:
        queue = find_queue(word.queue) if word.queue else _default_queue(word.resource_type)
        if queue.resource_type != word.resource_type.value:
            raise PilotageError(
                "WRONG_STATE",
                f"{queue.name} is a {queue.resource_type} queue and this pilot is of type {word.resource_type}",
            )
        facts = {
            "queue": queue.name,
            "node": word.node,
            "version": word.version,
            "slots": word.slots,
            "cores": word.cores,
            "memory_mb": word.memory_mb,
            "disk_mb": word.disk_mb,
            "gpus": word.gpus,
            "last_seen": now(),
            "lease_until": lease_clock() + queue.lease_seconds,
            "ended": None,
            "exit_code": None,
            "reason": None,
        }
        if (
            not Pilot.update(**facts)
            .where(Pilot.pilot_id == word.pilot_id, Pilot.node == word.node)
            .execute()
        ):
            if Pilot.get_or_none(Pilot.pilot_id == word.pilot_id):
                raise PilotageError(
                    "ALREADY_EXISTS", f"a pilot {word.pilot_id} is registered from another node"
                )
            Pilot.create(pilot_id=word.pilot_id, **facts)
        return queue

    queue = core.database.write(work)
    return QueueForPilot(
        name=queue.name,
        site=queue.site_id,
        resource_type=ResourceType(queue.resource_type),
        state=queue.state,
        copytools=json.loads(queue.copytools),
        lease_seconds=queue.lease_seconds,
        heartbeat_seconds=queue.heartbeat_seconds,
        timefloor_seconds=queue.timefloor_seconds,
    )


def _default_queue(resource_type: ResourceType) -> Queue:
    queue = Queue.select().where(Queue.resource_type == resource_type.value).order_by(Queue.name).first()
    if queue is None:
        raise PilotageError(
            "NOT_FOUND", f"there is no {resource_type} queue; make one with 'pilotage queue create'"
        )
    return queue


def end_pilot(core: Core, word: PilotEnd) -> None:
    def work() -> None:
        ended = {"ended": now(), "last_seen": now(), "exit_code": word.exit_code, "reason": word.reason}
        if not Pilot.update(**ended).where(Pilot.pilot_id == word.pilot_id).execute():
            raise PilotageError("NOT_FOUND", f"no pilot {word.pilot_id} is registered")

    core.database.write(work)
