"""Sites, queues, nodes and storages as the operator wants them, and the pilots that register at a queue."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from peewee import fn

import copytools
from protocol import __version__, pilot_settings
from protocol.errors import PilotageError
from protocol.files import local_path
from protocol.messages import to_wire
from protocol.messages.pilots import GpuKind, PilotEnd, PilotRegistration, QueueForPilot
from protocol.messages.requests import NodeStateSpec, QueueChange, QueueSpec, QueueStateSpec, StorageSpec
from protocol.messages.views import NodeView, Page, PilotsDrained, QueueView, SiteView, StorageView
from protocol.plugins import check_known
from protocol.redaction import one_line
from protocol.resources import Needs, Offer, ResourceType, misfits
from protocol.settings import QUEUE
from protocol.states import QueueState, ReplicaState
from server import replicas
from server.access import trail
from server.brokerage import availability, broker
from server.brokerage.nodes import HELD_BACK
from server.core import Core
from server.leaseclock import lease_clock
from server.models import Attempt, Job, JobClass, Node, Pilot, Queue, Site, Storage, Task, Token, now
from server.paging import iso
from server.recent import pilot_facts, runs_images
from server.urls import check_url
from server.waiting import news

LOCAL = "LOCAL"
OPEN_OR_CLOSED = (QueueState.ONLINE, QueueState.OFFLINE)
"""What sites and nodes can be."""
DEFAULT_QUEUES = {"CPU": ResourceType.CPU, "GPU": ResourceType.GPU}
"""The queues of a new installation; a pilot without -q goes to the one of its resource type."""


def set_up_defaults(core: Core, storage_url: str) -> None:
    """What a new installation begins with: one site, one storage, a queue for each resource type; inside `Database.write`."""
    if Queue.select().exists():
        return
    Site.get_or_create(name=LOCAL)
    Storage.get_or_create(name=LOCAL, defaults={"url": storage_url})
    _make_directory(storage_url)
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
    _check_for_pilots(spec.copytools, spec.pilot_settings)

    def work() -> Queue:
        if Queue.get_or_none(Queue.name == spec.name):
            raise PilotageError("ALREADY_EXISTS", f"there is a queue {spec.name} already")
        return Queue.create(**_columns(core, spec, Queue()))

    return queue_view(core.database.write(work))


def change_queue(core: Core, name: str, wish: QueueChange, who: str) -> QueueView:
    """Set what the wish names. Pilots are told when they register: those that run go on with what they know."""
    _check_for_pilots(wish.copytools or (), wish.pilot_settings or {})

    def work() -> Queue:
        queue = core.database.locked(Queue.select().where(Queue.name == name)).first() or find_queue(name)
        if wish.resource_type is not None and wish.resource_type.value != queue.resource_type:
            _check_unused(queue)
        if changes := _columns(core, wish, queue):
            Queue.update(**changes).where(Queue.name == name).execute()
            trail.note(who, "queue set", name, trail.facts(wish, *(each.name for each in fields(wish))))
        return find_queue(name)

    queue = core.database.write(work)
    core.recent.forget()
    if queue.state in (QueueState.ONLINE.value, QueueState.TEST.value):
        news.of_queue(core, name)
    return queue_view(queue)


def delete_queue(core: Core, name: str, who: str) -> None:
    """WRONG_STATE while anything uses it. Its pilots, which have ended, are forgotten, and tokens for it alone are revoked."""

    def work() -> None:
        _check_unused(
            core.database.locked(Queue.select().where(Queue.name == name)).first() or find_queue(name)
        )
        Pilot.delete().where(Pilot.queue == name).execute()
        Node.delete().where(Node.queue == name).execute()
        Token.update(revoked=now()).where(Token.queue == name, Token.revoked.is_null()).execute()
        Queue.delete().where(Queue.name == name).execute()
        trail.note(who, "queue delete", name)

    core.database.write(work)
    core.recent.forget()


def _check_unused(queue: Queue) -> None:
    """WRONG_STATE with what uses it: jobs that run there, pilots that are alive, tasks that no other queue takes."""
    name = queue.name
    if n := Attempt.select().where(Attempt.queue == name, Attempt.ended_at.is_null()).count():
        raise PilotageError(
            "WRONG_STATE",
            f"pilots of {name} hold jobs ({n}); close it with 'pilotage queue set {name} drain' and wait for them",
        )
    if n := Pilot.select().where(Pilot.queue == name, alive()).count():
        raise PilotageError(
            "WRONG_STATE",
            f"pilots of {name} are alive ({n}); 'pilotage pilot drain --queue {name}' ends them",
        )
    if waiting := _tasks_of_this_alone(queue):
        more = f" and {len(waiting) - 5} more" if len(waiting) > 5 else ""
        raise PilotageError(
            "WRONG_STATE",
            f"no other queue takes the jobs of tasks that have not ended: {', '.join(waiting[:5])}{more}",
        )


def _tasks_of_this_alone(queue: Queue) -> list[str]:
    """Tasks that have not ended, which this queue takes and no other one does: as those that are bound to it."""
    others = list(Queue.select().where(Queue.name != queue.name))

    def is_taken_by(row: Queue, needs: Needs) -> bool:
        return not misfits(needs, as_offer(row, needs))

    def has_no_other(key: str) -> bool:
        needs = broker.needs_in(key)
        return is_taken_by(queue, needs) and not any(is_taken_by(other, needs) for other in others)

    tasks = Task.select(Task.name, JobClass.key).join(JobClass).where(Task.ended.is_null())
    found = list(tasks.order_by(Task.id).tuples())
    alone = {key for key in {key for _, key in found} if has_no_other(key)}
    return [name for name, key in found if key in alone]


def _check_for_pilots(tools: Sequence[str], wanted: dict[str, str]) -> None:
    """BAD_REQUEST for what would end each pilot of the queue at its start."""
    pilot_settings.check(QUEUE, wanted)
    listed = wanted.get("copytools.names", "").split(",")
    for name in (*tools, *(part.strip() for part in listed if part.strip())):
        check_known(name, copytools.names(), "copytools:")


def _columns(core: Core, said: QueueSpec | QueueChange, queue: Queue) -> dict[str, Any]:
    """What is said of a queue, as columns; `queue` is how it was. Inside `Database.write`, for the site may be a new one."""
    given = {each.name: value for each in fields(said) if (value := getattr(said, each.name)) is not None}
    if "storage" in given:
        name = given["storage"] or LOCAL
        if Storage.get_or_none(Storage.name == name) is None:
            raise PilotageError("NOT_FOUND", f"no storage {name}; see 'pilotage storage list'")
        given["storage"] = name
    if "resource_type" in given:
        given["resource_type"] = given["resource_type"].value
    for name in ("lease_seconds", "heartbeat_seconds"):
        if name in given:
            given[name] = given[name] or getattr(core.limits, name)
    heartbeat, lease = (
        given.get(name, getattr(queue, name)) for name in ("heartbeat_seconds", "lease_seconds")
    )
    if heartbeat >= lease:
        raise PilotageError(
            "BAD_REQUEST",
            f"heartbeatSeconds must be below leaseSeconds, or every pilot loses its jobs: {heartbeat} and {lease}",
        )
    if "copytools" in given:
        given["copytools"] = json.dumps(given["copytools"])
    if "tags" in given:
        given["tags"] = json.dumps(sorted(set(given["tags"])))
    gone = given.pop("unset", ())
    if gone or "pilot_settings" in given:
        merged = {**json.loads(queue.pilot_settings), **given.get("pilot_settings", {})}
        given["pilot_settings"] = json.dumps({key: text for key, text in merged.items() if key not in gone})
    if "site" in given:
        Site.get_or_create(name=given["site"])
    return given


def _wanted(state: str, states: Iterable[QueueState], what: str) -> QueueState:
    """The state that an operator names, or BAD_REQUEST."""
    known = [each.value for each in states]
    if state not in known:
        raise PilotageError("BAD_REQUEST", f"state: {state[:40]!a}; a {what} is {' or '.join(known)}")
    return QueueState(state)


def set_queue_state(core: Core, name: str, wish: QueueStateSpec, who: str) -> QueueView:
    state = _wanted(wish.state, QueueState, "queue")

    def work() -> Queue:
        find_queue(name)
        availability.set_state(name, state, wish.reason, who)
        return find_queue(name)

    queue = core.database.write(work)
    core.recent.forget()
    if state in (QueueState.ONLINE, QueueState.TEST):
        news.of_queue(core, name)
    return queue_view(queue)


def set_site_state(core: Core, name: str, wish: QueueStateSpec, who: str) -> SiteView:
    """Open or close a site: of one that is offline no queue hands out jobs, whatever the queues' own states."""
    state = _wanted(wish.state, OPEN_OR_CLOSED, "site")

    def work() -> Site:
        moved = Site.update(state=state.value, state_reason=wish.reason).where(Site.name == name).execute()
        if not moved:
            known = ", ".join(row.name for row in Site.select(Site.name).order_by(Site.name).limit(20))
            raise PilotageError("NOT_FOUND", f"no site {name[:200]}; there are {known}")
        trail.note(who, "site set", name, f"{state.value}: {wish.reason}" if wish.reason else state.value)
        return Site.get_by_id(name)

    site = core.database.write(work)
    core.recent.forget()
    if state is QueueState.ONLINE:
        availability.announce(core, [queue.name for queue in site.queues])
    return _site_view(site)


def queue_view(queue: Queue) -> QueueView:
    return _queue_view(queue, _numbers())


def queues() -> Page:
    numbers = _numbers()
    return Page(items=[_queue_view(queue, numbers) for queue in Queue.select().order_by(Queue.name)])


class _Numbers(NamedTuple):
    """What waits, runs and lives now, read once for all queues."""

    ready: list[tuple[Needs, int]]
    held: dict[str, int]
    pilots: dict[str, int]


def _numbers() -> _Numbers:
    ready = (
        Job.select(JobClass.key, fn.COUNT(Job.id))
        .join(JobClass)
        .where(Job.ready_nr.is_null(False))
        .group_by(JobClass.id, JobClass.key)
    )
    held = Attempt.select(Attempt.queue, fn.COUNT(Attempt.id)).where(Attempt.ended_at.is_null())
    pilots = Pilot.select(Pilot.queue, fn.COUNT(Pilot.number)).where(alive())
    return _Numbers(
        [(broker.needs_in(key), n) for key, n in ready.tuples()],
        dict(held.group_by(Attempt.queue).tuples()),
        dict(pilots.group_by(Pilot.queue).tuples()),
    )


def alive() -> Any:
    """The condition that a pilot has not ended and was heard within its lease."""
    return Pilot.ended.is_null() & (Pilot.lease_until >= lease_clock())


def _queue_view(queue: Queue, numbers: _Numbers) -> QueueView:
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
        n_ready=sum(n for needs, n in numbers.ready if not misfits(needs, as_offer(queue, needs))),
        n_held=numbers.held.get(queue.name, 0),
        n_pilots=numbers.pilots.get(queue.name, 0),
        requeue_delay_seconds=queue.requeue_delay_seconds,
        tags=json.loads(queue.tags),
        country_group=queue.country_group,
        state_reason=queue.state_reason,
        state_by=queue.state_by,
        pilot_settings=json.loads(queue.pilot_settings),
    )


def as_offer(queue: Queue, needs: Needs, pilot: Pilot | None = None) -> Offer:
    """What a queue offers to jobs with these needs; of a pilot there, what it registered with.

    What only the pilot's own request says (its label, its group, the time it has left) is taken to fit, and without a pilot
    so is what nodes differ in.
    """
    # A pilot's node may have tags of its own, so without one a queue is not refused for a missing tag.
    tags = (*json.loads(queue.tags), *json.loads(pilot.tags)) if pilot else needs.tags
    return Offer(
        resource_type=ResourceType(queue.resource_type),
        queue=queue.name,
        cores=max(1, pilot.cores // pilot.slots) if pilot else needs.cores,
        memory_mb=pilot.memory_mb // pilot.slots if pilot else needs.memory_mb,
        disk_mb=pilot.disk_mb // pilot.slots if pilot else needs.disk_mb,
        gpus=pilot.gpus // pilot.slots if pilot else needs.gpus,
        site=queue.site_id,
        country_group=queue.country_group or needs.country_group,
        tags=tags,
        images=runs_images(queue),
    )


def sites() -> Page:
    return Page(items=[_site_view(site) for site in Site.select().order_by(Site.name)])


def _site_view(site: Site) -> SiteView:
    return SiteView(site.name, site.state, site.state_reason)


# -- nodes ------------------------------------------------------------------------------------------------------------------


def nodes(queue: str = "") -> Page:
    """Nodes that were put aside or on which jobs failed within seconds; those that do well are not kept."""
    query = Node.select().order_by(Node.queue, Node.name)
    if queue:
        query = query.where(Node.queue == find_queue(queue).name)
    return Page(items=[_node_view(row) for row in query])


def set_node_state(core: Core, queue: str, wish: NodeStateSpec, who: str) -> NodeView:
    """Lift a node that was put aside, or put one aside by hand."""
    state = _wanted(wish.state, OPEN_OR_CLOSED, "node")

    def work() -> Node:
        find_queue(queue)
        if state is QueueState.OFFLINE:
            facts = {"set_aside": now(), "reason": f"by {who}: {wish.reason}" if wish.reason else f"by {who}"}
            Node.insert(queue=queue, name=wish.node, **facts).on_conflict(
                conflict_target=[Node.queue, Node.name], update=facts
            ).execute()
        elif (
            not Node.update(set_aside=None, quick_failures=0, held_until=0, reason="")
            .where(Node.queue == queue, Node.name == wish.node)
            .execute()
        ):
            raise PilotageError("NOT_FOUND", f"no node {wish.node[:200]} of {queue} was put aside")
        trail.note(
            who,
            "node set",
            f"{queue} {wish.node}",
            f"{state.value}: {wish.reason}" if wish.reason else state.value,
        )
        return Node.get(Node.queue == queue, Node.name == wish.node)

    node = core.database.write(work)
    core.recent.forget()
    if state is QueueState.ONLINE:
        availability.announce(core, [queue])
    return _node_view(node)


def _node_view(node: Node) -> NodeView:
    if node.set_aside is not None:
        state = QueueState.OFFLINE.value
    else:
        state = HELD_BACK if node.held_until > lease_clock() else QueueState.ONLINE.value
    return NodeView(
        queue=node.queue_id,
        node=node.name,
        state=state,
        quick_failures=node.quick_failures,
        since=iso(node.set_aside) if node.set_aside is not None else None,
        reason=node.reason,
    )


# -- storages ---------------------------------------------------------------------------------------------------------------


def create_storage(core: Core, spec: StorageSpec) -> StorageView:
    if not spec.url.startswith("file:") and "://" not in spec.url:
        raise PilotageError(
            "BAD_REQUEST", f"url: {spec.url[:200]!a} is no URL; a directory is file:///its/path"
        )
    check_url(spec.url, core.limits.url_schemes)

    def work() -> Storage:
        if Storage.get_or_none(Storage.name == spec.name):
            raise PilotageError("ALREADY_EXISTS", f"there is a storage {spec.name} already")
        if spec.site and not Site.get_or_none(Site.name == spec.site):
            raise PilotageError("NOT_FOUND", f"no site {spec.site}; see 'pilotage site list'")
        return Storage.create(name=spec.name, url=spec.url.rstrip("/"), site=spec.site or None)

    storage = core.database.write(work)
    _make_directory(storage.url)
    return _storage_view(storage)


def _make_directory(url: str) -> None:
    """That of a new storage, if this machine has the one in which it is to lie: pilots make none, lest a mount is missing there."""
    if url.startswith("file:///"):
        with contextlib.suppress(OSError, PilotageError):
            Path(local_path(url)).mkdir(exist_ok=True)


def storages() -> Page:
    wrong = replicas.not_good()
    return Page(items=[_storage_view(row, wrong) for row in Storage.select().order_by(Storage.name)])


def _storage_view(storage: Storage, wrong: Mapping[tuple[str, str], int] = {}) -> StorageView:
    n_suspect, n_bad = (
        wrong.get((storage.name, state.value), 0) for state in (ReplicaState.SUSPECT, ReplicaState.BAD)
    )
    return StorageView(storage.name, storage.url, storage.site or "", n_suspect, n_bad)


# -- pilots -----------------------------------------------------------------------------------------------------------------


def register_pilot(core: Core, word: PilotRegistration) -> QueueForPilot:
    """Know a pilot from now on, and tell it about its queue; said again, it changes nothing but what the pilot has."""

    def work() -> tuple[Queue, str]:
        queue = find_queue(word.queue) if word.queue else _default_queue(word.resource_type)
        if queue.resource_type != word.resource_type.value:
            raise PilotageError(
                "WRONG_STATE",
                f"{queue.name} is a {queue.resource_type} queue and this pilot is of type {word.resource_type}",
                advice="name a queue of its type, or its type with --resource-type: by itself a pilot is of type gpu where it finds a GPU",
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
            "tags": json.dumps(sorted(set(word.tags))),
            "batch_system": word.batch_system,
            "batch_id": word.batch_id,
            "gpu_kinds": json.dumps([_gpu_kind(each) for each in word.gpu_kinds]),
            "last_seen": now(),
            "lease_until": lease_clock() + queue.lease_seconds,
            "ended": None,
            "exit_code": None,
            "reason": None,
        }
        # One statement: the same word may be on its way twice at the same time.
        known = Pilot.insert(pilot_id=word.pilot_id, **facts).on_conflict(
            conflict_target=[Pilot.pilot_id], update=facts, where=(Pilot.node == word.node)
        )
        if not list(known.returning(Pilot.pilot_id).tuples().execute()):
            raise PilotageError("ALREADY_EXISTS", f"a pilot {word.pilot_id} is registered from another node")
        return queue, queue.storage.url

    queue, storage_url = core.database.write(work)
    return QueueForPilot(
        name=queue.name,
        site=queue.site_id,
        resource_type=ResourceType(queue.resource_type),
        state=queue.state,
        copytools=json.loads(queue.copytools),
        lease_seconds=queue.lease_seconds,
        heartbeat_seconds=queue.heartbeat_seconds,
        timefloor_seconds=queue.timefloor_seconds,
        pilot_settings=json.loads(queue.pilot_settings),
        storage_url=storage_url,
    )


def _default_queue(resource_type: ResourceType) -> Queue:
    queue = Queue.select().where(Queue.resource_type == resource_type.value).order_by(Queue.name).first()
    if queue is None:
        raise PilotageError(
            "NOT_FOUND", f"there is no {resource_type} queue; make one with 'pilotage queue create'"
        )
    return queue


def queue_of_pilot(core: Core, pilot_id: str) -> str:
    """The queue that a pilot registered at; "" if none did. A second old at most."""

    def load() -> str:
        row = Pilot.get_or_none(Pilot.pilot_id == pilot_id)
        return str(row.queue_id) if row else ""

    return core.recent.get(("queue of pilot", pilot_id), load)


def end_pilot(core: Core, word: PilotEnd) -> None:
    def work() -> None:
        ended = {"ended": now(), "last_seen": now(), "exit_code": word.exit_code, "reason": word.reason}
        ended |= {"cache": json.dumps(to_wire(word.cache))} if word.cache is not None else {}
        if not Pilot.update(**ended).where(Pilot.pilot_id == word.pilot_id).execute():
            raise PilotageError("NOT_FOUND", f"no pilot {word.pilot_id} is registered")

    core.database.write(work)


def _gpu_kind(kind: GpuKind) -> Any:
    """As it is kept: what a driver calls its GPUs is shown to people."""
    return to_wire(replace(kind, model=one_line(kind.model)))


def is_draining(core: Core, pilot_id: str) -> bool:
    """Whether a pilot is to take no further job; as of a second ago at most."""
    facts = pilot_facts(core.database, core.recent, pilot_id)
    return facts is not None and facts.draining


def is_updating(core: Core, pilot_id: str) -> bool:
    """Whether it is to be replaced then."""
    facts = pilot_facts(core.database, core.recent, pilot_id)
    return facts is not None and facts.updating


def drain_pilot(core: Core, pilot_id: str, who: str, update: bool = False) -> None:
    """Tell one pilot to take no further job and to end, or to be replaced then; one that has ended is left as it is."""
    wanted, action = _ending(update)

    def work() -> None:
        known = Pilot.pilot_id == pilot_id
        if not Pilot.select().where(known).exists():
            raise PilotageError("NOT_FOUND", f"no pilot {pilot_id[:200]}; see 'pilotage pilot list'")
        if Pilot.update(wanted).where(known, Pilot.ended.is_null(), ~Pilot.draining).execute():
            trail.note(who, action, pilot_id)

    core.database.write(work)
    core.recent.forget()


def drain_pilots(
    core: Core, queue: str, who: str, outdated: bool = False, update: bool = False
) -> PilotsDrained:
    """Tell all pilots that are there now in a queue, or those of another version than ours; those that come later are not meant."""
    wanted, action = _ending(update)

    def work() -> int:
        find_queue(queue)
        here = (Pilot.queue == queue) & alive() & ~Pilot.draining
        if outdated:
            here &= Pilot.version != __version__
        drained: int = Pilot.update(wanted).where(here).execute()
        trail.note(who, action, f"queue {queue}", f"{drained} pilots")
        return drained

    drained = core.database.write(work)
    core.recent.forget()
    return PilotsDrained(drained)


def _ending(update: bool) -> tuple[dict[str, bool], str]:
    """What is set of a pilot, and how the trail calls it; one that drains already is not to be replaced."""
    return {"draining": True, "updating": update}, "pilot update" if update else "pilot drain"
