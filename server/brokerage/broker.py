"""Which READY jobs fit a pilot, and in which order: by the shares of groups, then priority, then first come, first served.

Jobs with equal needs form a class; those of a class with equal priority wait in one *lane*, in the order in which they
became READY. A process remembers which lanes there are and how far it has come in each, so that a claim touches one entry
of an index; every second, and before anybody is told that there is no job, it looks from the start again.
"""

from __future__ import annotations

import functools
import json
import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from protocol.messages import from_wire, to_wire
from protocol.messages.requests import TaskSpec
from protocol.resources import Needs, Offer, ResourceType, fits
from server.brokerage import shares
from server.brokerage.shares import Share
from server.database import Chain, Database, Part
from server.models import JobClass, WorkingGroup

WINDOW = 100
"""So many of the first jobs of a lane may change places for a preference."""
LOOK_SECONDS = 1.0
"""How old what a process remembers may become while there is work."""
QUICK_SECONDS, LOOKING_SHARE = 0.01, 0.05
"""Looks that take longer than that are to take no more than this share of the time."""
FIRST_GUESS_SECONDS = 60.0
"""How long a job of a class is taken to run while none has ended."""

LANES = Chain(
    Part(
        "lanes",
        """WITH RECURSIVE first (id, job_class_id, priority, ready_nr) AS (
               SELECT * FROM (
                   SELECT id, job_class_id, priority, ready_nr FROM job WHERE ready_nr IS NOT NULL
                   ORDER BY job_class_id, priority DESC, ready_nr LIMIT 1
               ) AS very_first
               UNION ALL
               SELECT job.id, job.job_class_id, job.priority, job.ready_nr FROM first JOIN job ON job.id = coalesce(
                   (SELECT id FROM job WHERE ready_nr IS NOT NULL AND job_class_id = first.job_class_id
                        AND job.priority < first.priority ORDER BY job.priority DESC, ready_nr LIMIT 1),
                   (SELECT id FROM job WHERE ready_nr IS NOT NULL AND job_class_id > first.job_class_id
                        ORDER BY job_class_id, job.priority DESC, ready_nr LIMIT 1))
           )
           SELECT job_class_id, priority, ready_nr, key, core_seconds
           FROM first JOIN job_class ON job_class.id = job_class_id""",
        {},
    ),
    result="lanes",
)
"""The lanes, by the first job of each: one look-up in the index of READY jobs after the other, however many jobs there are.

On Postgres a look-up passes over what was claimed and cannot be cleaned up yet; so there is only one for each lane.
"""

GROUPS = Chain(Part("groups", "SELECT name, parent, share, usage FROM working_group", {}), result="groups")
SITES = Chain(Part("sites", "SELECT count(*) FROM site", {}), result="sites")


def needs_of(spec: TaskSpec, working_group: str = "") -> Needs:
    return Needs(
        resource_type=spec.resource_type,
        cores=spec.cores,
        memory_mb=spec.memory_mb,
        disk_mb=spec.disk_mb,
        walltime_seconds=spec.walltime_seconds,
        gpus=spec.gpus,
        queue=spec.queue,
        site=spec.site,
        label=spec.prod_source_label,
        working_group=working_group or spec.working_group,
        country_group=spec.country_group,
        tags=tuple(sorted(set(spec.requires))),
        image=bool(spec.image) or any(step.image for step in spec.steps),
    )


def class_of(needs: Needs) -> JobClass:
    """The class of these needs, made if it is new; inside `Database.write`."""
    key = json.dumps(to_wire(needs), sort_keys=True)
    JobClass.insert(key=key, core_seconds=FIRST_GUESS_SECONDS * needs.cores).on_conflict_ignore().execute()
    found: JobClass = JobClass.get(JobClass.key == key)
    return found


def forget_usage(seconds: float, half_life_seconds: float) -> None:
    """What groups have used counts less as time goes by; inside `Database.write`."""
    kept = 0.5 ** (seconds / half_life_seconds)
    WorkingGroup.update(usage=WorkingGroup.usage * kept).where(WorkingGroup.usage > 0).execute()


@functools.lru_cache(maxsize=4096)
def needs_in(key: str) -> Needs:
    body = json.loads(key)
    body["resourceType"] = ResourceType(body["resourceType"])
    return replace(from_wire(Needs, body), tags=tuple(body.get("tags", ())))


@dataclass
class Lane:
    """READY jobs of one class and priority. `place`: the number of the job claimed last; the next ones are behind it."""

    class_id: int
    priority: int
    needs: Needs
    core_seconds: float
    place: int
    empty: bool = False

    def took(self, ready_nr: int) -> None:
        self.place = max(self.place, ready_nr)


class Broker:
    """What one process remembers of the lanes and of the shares; all of it can be forgotten at any time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._looking = threading.Lock()
        self._lanes: list[Lane] = []
        self._tree: dict[str, Share] = {}
        self._unsaved: dict[str, float] = {}
        self._looked = -math.inf
        self._took = 0.0
        self._changed = True
        self.sites_matter = False
        """Whether there is more than one site, so that it matters at which of them an input lies."""

    def changed(self) -> None:
        """Jobs have become READY."""
        self._changed = True

    def lanes(self, database: Database, offer: Offer, asked: float) -> Iterator[Lane]:
        """Lanes that fit the offer and may hold a job, best first; inside `write`.

        At the end those of a look that began after the request came (`asked`, monotonic): many requests that find nothing at
        the same time share one.
        """
        self._look_now_and_then(database)
        seen = self._looked
        yield from self._fitting(offer)
        if seen < asked:
            self._look(database, asked)
            yield from self._fitting(offer)

    def charge(self, lane: Lane, n: int) -> None:
        """Jobs of this lane were handed out: its group has used what they are expected to use."""
        group = lane.needs.working_group
        if group in self._tree:
            used = n * lane.core_seconds
            with self._lock:
                self._tree[group] = replace(self._tree[group], usage=self._tree[group].usage + used)
                self._unsaved[group] = self._unsaved.get(group, 0.0) + used

    def _fitting(self, offer: Offer) -> list[Lane]:
        found = [lane for lane in self._lanes if not lane.empty and fits(lane.needs, offer)]
        if len(found) < 2:
            return found
        found.sort(key=lambda lane: (-lane.priority, lane.place))
        groups = {lane.needs.working_group for lane in found}
        if len(groups) > 1:
            turn = {group: index for index, group in enumerate(shares.turns(self._tree, groups))}
            found.sort(key=lambda lane: turn[lane.needs.working_group])
        return found

    def _look_now_and_then(self, database: Database) -> None:
        """If it is time; meanwhile the others go on with what is known."""
        if self._is_time() and self._looking.acquire(blocking=False):
            try:
                self._read(database)
            finally:
                self._looking.release()

    def _is_time(self) -> bool:
        pause = self._took / LOOKING_SHARE if self._took > QUICK_SECONDS else 0.0
        return time.monotonic() - self._looked >= (pause if self._changed else max(pause, LOOK_SECONDS))

    def _look(self, database: Database, since: float) -> None:
        """Read the lanes anew if the last look began before `since`."""
        with self._looking:
            if self._looked < since:
                self._read(database)

    def _read(self, database: Database) -> None:
        began = time.monotonic()
        self._changed = False
        self._save_usage()
        lanes = [
            Lane(class_id, priority, needs_in(key), core_seconds, first_nr - 1)
            for class_id, priority, first_nr, key, core_seconds in database.run(LANES)
        ]
        tree = {name: Share(parent, share, usage) for name, parent, share, usage in database.run(GROUPS)}
        with self._lock:
            self._lanes, self._tree, self._looked = lanes, tree, began
        self.sites_matter = database.run(SITES)[0][0] > 1
        self._took = time.monotonic() - began

    def _save_usage(self) -> None:
        with self._lock:
            unsaved, self._unsaved = self._unsaved, {}
        for group, used in sorted(unsaved.items()):
            WorkingGroup.update(usage=WorkingGroup.usage + used).where(WorkingGroup.name == group).execute()
