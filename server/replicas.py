"""What is known of the copies of files: which one a job is given, and which ones pilots and looks at storages found wrong.

A pilot's word makes a replica *suspect*: its node may be at fault as well. Only who looks at the storage itself
(`pilotage storage check`) calls it *bad*, or good again. One that is not good is given to jobs only where there is no better
one: they verify what they get, and somebody may have mended it meanwhile.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from peewee import fn

from protocol.errors import PilotageError, shorten
from protocol.messages.requests import ReplicaFinding
from protocol.messages.views import ReplicaView
from protocol.redaction import one_line
from protocol.states import ReplicaState
from server.access import trail
from server.core import Core
from server.models import JobInput, Replica, Storage, now
from server.paging import iso
from server.recent import Recent

AGAINST_IT = frozenset(
    {
        "INPUT_NOT_FOUND",
        "INPUT_SIZE_MISMATCH",
        "REPLICA_NOT_FOUND",
        "STAGE_IN_ADLER32_MISMATCH",
        "STAGE_IN_BLAKE3_MISMATCH",
        "STAGE_IN_MD5_MISMATCH",
    }
)
"""Errors of a stage-in that say something about the copy which was read, and not about the way to it."""
_RANK = {state.value: rank for rank, state in enumerate(ReplicaState)}


class Place(NamedTuple):
    """Where a copy lies, as a claim reads it."""

    url: str
    state: str
    storage: str | None


def best(recent: Recent, places: Sequence[Place], site: str) -> str:
    """The address that a job of this site is given: one that is good, then one that is near, then the oldest."""
    if len(places) == 1:  # nearly always
        return places[0].url
    return min(places, key=lambda place: (_RANK[place.state], _site_of(recent, place) != site)).url


def _site_of(recent: Recent, place: Place) -> str | None:
    """As `jobs.forming` has it for brokerage: of the storage that it was written to, or in which its address lies."""
    storages = recent.get(
        ("storages",),
        lambda: sorted(Storage.select(Storage.url, Storage.name, Storage.site).tuples(), key=_longest_first),
    )
    for url, name, site in storages:
        if place.storage == name or (place.storage is None and place.url.startswith(f"{url}/")):
            return site
    return None


def _longest_first(row: tuple[str, ...]) -> int:
    return -len(row[0])


def in_order(replicas: Sequence[Replica]) -> list[Replica]:
    """The replicas of a file, the one first that jobs are given where no site counts."""
    return sorted(replicas, key=lambda replica: (_RANK[replica.state], replica.id))


def suspect(job_id: int, url: str, reason: str) -> bool:
    """A pilot says that the input of its job at this address is not as registered; inside `Database.write`.

    Whether the file has another replica that is good. An address that is no input of the job says nothing.
    """
    inputs = JobInput.select(JobInput.file).where(JobInput.job == job_id)
    named = Replica.select().where(Replica.file.in_(inputs), Replica.url == url).first()
    if named is None:
        return False
    changes = Replica.update(state=ReplicaState.SUSPECT.value, reason=shorten(reason), changed=now())
    changes.where(Replica.id == named.id, Replica.state == ReplicaState.GOOD.value).execute()
    return bool(
        Replica.select()
        .where(
            Replica.file == named.file_id, Replica.id != named.id, Replica.state == ReplicaState.GOOD.value
        )
        .exists()
    )


def mark(core: Core, findings: Sequence[ReplicaFinding], caller: str) -> int:
    """Note what somebody saw who looked at the storages; how many replicas have another state now."""
    allowed = (ReplicaState.GOOD.value, ReplicaState.BAD.value)
    for index, found in enumerate(findings):
        if found.state not in allowed:
            raise PilotageError(
                "BAD_REQUEST",
                f"findings[{index}].state: {found.state!a} is not what a look can find; write {' or '.join(allowed)}",
            )

    def work() -> int:
        changed = sum(_mark(found) for found in findings)
        if changed:
            trail.note(caller, "storage check", "", f"{_counted(findings)}; {changed} changed")
        return changed

    return core.database.write(work)


def _mark(found: ReplicaFinding) -> int:
    """One that has gone or has another address meanwhile is not the one that was looked at."""
    reason = shorten(one_line(found.reason)) if found.state != ReplicaState.GOOD.value else ""
    changes = Replica.update(state=found.state, reason=reason, changed=now())
    same = (Replica.id == found.replica_id) & (Replica.url == found.url)
    return int(changes.where(same, Replica.state != found.state).execute())


def _counted(findings: Sequence[ReplicaFinding]) -> str:
    counts = Counter(found.state for found in findings)
    return ", ".join(f"{n} {state}" for state, n in sorted(counts.items()))


def not_good() -> dict[tuple[str, str], int]:
    """How many replicas there are on each storage that are not good, by its name and their state."""
    query = (
        Replica.select(Replica.storage, Replica.state, fn.COUNT(Replica.id))
        .where(Replica.state != ReplicaState.GOOD.value)
        .group_by(Replica.storage, Replica.state)
    )
    return {(storage or "", state): n for storage, state, n in query.tuples()}


def view(replica: Replica) -> ReplicaView:
    return ReplicaView(
        storage=replica.storage_id or "",
        url=replica.url,
        state=replica.state,
        reason=replica.reason,
        changed=iso(replica.changed) if replica.changed else None,
    )
