"""Looking at an attempt that runs: what somebody wants to see goes out with the answers to heartbeats, and comes back with the next.

A row of `AttemptDebug` holds both, for all server processes. It is bounded, written by the attempt's holder alone, and removed
some time after the attempt's end. Without such rows a heartbeat costs nothing more.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from protocol.errors import PilotageError
from protocol.files import check_inside
from protocol.messages import from_wire
from protocol.messages.pilots import LONGEST_TAIL, DebugOrder, DebugReport, InspectionOrder
from protocol.messages.requests import DebugWish
from protocol.messages.views import DebugView, InspectionView
from protocol.redaction import lines, one_line, redact
from protocol.states import FINAL, HELD, Actor, JobState
from server.core import Core
from server.jobs import moves
from server.models import ArchivedJob, Attempt, AttemptDebug, Queue, now
from server.paging import iso

WATCHED_SECONDS = 60.0
"""How long after the last look the pilot goes on sending every few seconds."""
QUICK_SECONDS, SLOW_SECONDS = 2.0, 300.0
"""How often a pilot sends: while somebody watches, and in debug mode alone."""
KEPT_SECONDS = 600.0
"""After the last look at an attempt that has ended."""
MOST_INSPECTIONS = 8
"""Kept of one attempt, with their answers; the oldest go."""


@dataclass(frozen=True)
class Order:
    """What the answer about an attempt has beside its state."""

    debug: DebugOrder | None
    soft_stop: bool


# -- with heartbeats --------------------------------------------------------------------------------------------------------


def orders(core: Core) -> Mapping[int, Order]:
    """By attempt, what pilots are to be told; as of a second ago at most."""
    return core.recent.get(("debug",), _orders)


def _orders() -> dict[int, Order]:
    wanted = AttemptDebug.is_on | AttemptDebug.soft_stop | (AttemptDebug.watched_until > now())
    return {row.attempt_id: Order(_order(row), row.soft_stop) for row in AttemptDebug.select().where(wanted)}


def _order(row: AttemptDebug) -> DebugOrder | None:
    if row.watched_until > now():
        asked = [each for each in json.loads(row.inspections) if each["text"] is None]
        inspect = [InspectionOrder(each["number"], each["kind"]) for each in asked]
        return DebugOrder(QUICK_SECONDS, row.file, inspect)
    return DebugOrder(SLOW_SECONDS, row.file) if row.is_on else None


def take(core: Core, reports: Iterable[tuple[int, DebugReport]]) -> None:
    """Keep what pilots sent of attempts that they hold; what nobody asked for is dropped."""
    told = orders(core)
    for attempt_id, report in reports:
        if attempt_id in told and told[attempt_id].debug is not None:
            core.database.write(lambda: _keep(core, attempt_id, report))  # noqa: B023  # it is run at once


def _keep(core: Core, attempt_id: int, report: DebugReport) -> None:
    row = core.database.locked(AttemptDebug.select().where(AttemptDebug.attempt_id == attempt_id)).first()
    if row is None:
        return
    inspections = json.loads(row.inspections)
    answers = {(answer.number, answer.kind): answer.text for answer in report.answers}
    for each in inspections:
        text = answers.get((each["number"], each["kind"]))
        if each["text"] is None and text is not None:
            each |= {"at": now(), "text": _clean(text)}
    kept = {
        "stdout": _clean(report.stdout),
        "stdoutSize": report.stdout_size,
        "file": one_line(report.file)[:1000],
        "text": _clean(report.text),
        "size": report.size,
    }
    AttemptDebug.update(at=now(), report=json.dumps(kept), inspections=json.dumps(inspections)).where(
        AttemptDebug.attempt_id == attempt_id
    ).execute()


def _clean(text: str) -> str:
    """Pilots do the same: but who holds the token may be no pilot of ours."""
    return lines(redact(text))[-LONGEST_TAIL:]


# -- what users ask ---------------------------------------------------------------------------------------------------------


def look(core: Core, job_id: int, wish: DebugWish) -> DebugView:
    """Take a wish, and show what there is; WRONG_STATE if no pilot holds the job and nothing of it was kept, BAD_REQUEST."""
    check_inside(wish.file or "", "file")
    with core.database.reading():
        attempt = _attempt(job_id)
        if attempt.ended_at is None:
            core.database.write(lambda: _changed(core, attempt.id, lambda row: _wish(row, wish)))
        elif not AttemptDebug.select().where(AttemptDebug.attempt_id == attempt.id).exists():
            raise _not_held(job_id, attempt.job.state)
        return _view(attempt)


def soft_stop(core: Core, job_id: int, who: str) -> None:
    """The payload is told to end at the pilot's next heartbeat, and what it makes of that counts."""

    def work() -> None:
        attempt = _attempt(job_id)
        if attempt.ended_at is not None:
            raise _not_held(job_id, attempt.job.state)
        row = _changed(core, attempt.id, lambda row: {"soft_stop": True})
        if not row.soft_stop:
            moves.event(job_id, attempt.attempt_nr, Actor.USER, "SOFT_STOP", who)

    core.database.write(work)


def _attempt(job_id: int) -> Attempt:
    """The attempt that leads now, or was the last one."""
    job = moves.find(job_id)
    if isinstance(job, ArchivedJob):
        raise _not_held(job_id, job.state)
    attempt = Attempt.get_or_none(Attempt.id == job.attempt_id) if job.attempt_id is not None else None
    if attempt is None or (JobState(job.state) not in HELD and attempt.ended_at is None):
        raise _not_held(job_id, job.state)
    return attempt


def _not_held(job_id: int, state: str) -> PilotageError:
    return PilotageError(
        "WRONG_STATE",
        f"job {job_id} is {state}: no pilot runs it now",
        advice=f"see what there was: pilotage job log {job_id}"
        + ("" if JobState(state) in FINAL else f"; or why it waits: pilotage job why {job_id}"),
    )


def _changed(
    core: Core, attempt_id: int, change: Callable[[AttemptDebug], dict[str, object]]
) -> AttemptDebug:
    """Change the attempt's row, which is made if there is none; the row as it was before. Inside `Database.write`."""
    AttemptDebug.insert(attempt_id=attempt_id).on_conflict_ignore().execute()
    mine = AttemptDebug.attempt_id == attempt_id
    before: AttemptDebug = core.database.locked(AttemptDebug.select().where(mine)).get()
    AttemptDebug.update(change(before)).where(mine).execute()
    return before


def _wish(row: AttemptDebug, wish: DebugWish) -> dict[str, object]:
    changes: dict[str, Any] = {"is_on": row.is_on if wish.on is None else wish.on}
    if wish.watch or wish.inspect:
        changes["watched_until"] = now() + WATCHED_SECONDS
    elif wish.on is False:
        changes["watched_until"] = 0.0
    if wish.file is not None:
        changes["file"] = wish.file
    if wish.inspect:
        asked = {"number": row.n_asked + 1, "kind": wish.inspect, "at": None, "text": None}
        changes["n_asked"] = row.n_asked + 1
        changes["inspections"] = json.dumps([*json.loads(row.inspections), asked][-MOST_INSPECTIONS:])
    return changes


def _view(attempt: Attempt) -> DebugView:
    row = AttemptDebug.get_by_id(attempt.id)
    queue = Queue.get_by_id(attempt.queue)
    found = from_wire(DebugReport, json.loads(row.report))
    return DebugView(
        job_id=attempt.job_id,
        attempt_id=attempt.id,
        attempt_nr=attempt.attempt_nr,
        state=attempt.state,
        node=attempt.node,
        pilot_id=attempt.pilot_id,
        on=row.is_on,
        heartbeat_seconds=queue.heartbeat_seconds,
        ended=attempt.ended_at is not None,
        at=None if row.at is None else iso(row.at),
        stdout=found.stdout,
        stdout_size=found.stdout_size,
        file=found.file,
        text=found.text,
        size=found.size,
        inspections=[
            InspectionView(each["number"], each["kind"], each["at"] and iso(each["at"]), each["text"])
            for each in json.loads(row.inspections)
        ],
    )


# -- cleaning up ------------------------------------------------------------------------------------------------------------


def forget_old(core: Core) -> int:
    """Remove what was kept of attempts that have ended and that nobody has looked at for a while; how many."""
    with core.database.reading():
        living = Attempt.select(Attempt.id).where(Attempt.ended_at.is_null())
        old = AttemptDebug.select(AttemptDebug.attempt_id).where(
            AttemptDebug.watched_until < now() - KEPT_SECONDS,
            AttemptDebug.attempt_id.not_in(living.where(Attempt.id == AttemptDebug.attempt_id)),
        )
        ids = [row.attempt_id for row in old]
    if ids:
        core.database.write(lambda: AttemptDebug.delete().where(AttemptDebug.attempt_id.in_(ids)).execute())
    return len(ids)
