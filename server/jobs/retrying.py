"""What the end of a failed attempt means for its job: which budget pays, and by which rule it is tried again, and how.

Each application of a rule that does more than to repeat the job is an event in the job's history.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from typing import Any

from peewee import fn

from protocol.errors import Budget, ErrorEntry, Retry, shorten
from protocol.messages.pilots import AttemptUpdate
from protocol.states import Actor, JobState
from server.brokerage import broker
from server.core import Core
from server.healing import Rule
from server.jobs import copies, moves
from server.leaseclock import lease_clock
from server.models import Attempt, Job, JobEvent, Pilot, Queue
from server.recent import task_facts

AVOID_SECONDS = 600
"""How long a job is kept from the node, or the queue, whose fault its failure was."""
HEALED = "HEALED"
GIVEN_UP = "GIVEN_UP"
RETRIED = "RETRIED"
LARGEST_SECONDS = 10.0
"""How old may be what is known of the largest pilot."""


@dataclass(frozen=True)
class Treatment:
    """What is changed in a job before it is tried again, and in words what that is."""

    words: str = ""
    changes: dict[str, object] = field(default_factory=dict)


def end_failed(
    core: Core,
    row: dict[str, Any],
    said: AttemptUpdate,
    entry: ErrorEntry,
    *,
    other_replica: bool = False,
) -> None:
    """The job of a failed attempt (a row of `statements.MOVED`) ends, or is READY again; inside `Database.write`.

    `other_replica`: the attempt failed by a copy of an input, and there is another one that is good.
    """
    detail = shorten(said.error_detail if entry.name == said.error else f"{said.error}: {said.error_detail}")
    job = core.database.locked(Job.select().where(Job.id == row["job_id"])).get()
    spec = task_facts(core.recent, job.task_id).spec
    failures = job.payload_failures + (entry.budget is Budget.PAYLOAD)
    losses = job.losses + (entry.budget is Budget.INFRASTRUCTURE)
    rule = core.healing.rule_for(entry)
    changes: dict[str, object] = {
        "payload_failures": failures,
        "losses": losses,
        "error": entry.name,
        "error_detail": detail,
        "copies": copies.after_the_first(spec),
    }
    spent = failures >= spec.max_attempts or losses > spec.max_losses
    if spent or _gives_up(job, rule, entry, other_replica):
        target = JobState.FAILED
    else:
        target = JobState.READY
        if other_replica:
            treatment = Treatment("with another replica of its input", moves.back_in_queue(core, 0))
        else:
            treatment = _treatment(core, job, row, rule, losses)
        _note(job, rule, entry, treatment)
        changes |= treatment.changes
    moves.set_job(row["job_id"], row["id"], target, Actor.PILOT, **changes)


def _gives_up(job: Job, rule: Rule, entry: ErrorEntry, other_replica: bool) -> bool:
    """Whether the rule ends the job though its budgets would allow another try."""
    # An input that is wrong in two attempts one after the other is wrong wherever it is read.
    if rule.retry is Retry.FRESH_INPUT and job.error == entry.name and not other_replica:
        return True
    why = ""
    if rule.retry is Retry.NEVER:
        why = "never tried again" if entry.retry is not Retry.NEVER else ""
    elif rule.times is None or _applied(job, entry) < rule.times:
        return False
    else:
        why = f"{rule.retry.value} has been tried {rule.times} times"
    if why:
        moves.event(
            job.id, job.attempt_nr, Actor.HEALING, GIVEN_UP, f"{entry.name}: {why}, by the server's rule"
        )
    return True


def _applied(job: Job, entry: ErrorEntry) -> int:
    """How often a rule for this error was applied to the job, since a user last had it tried again."""
    of_job = JobEvent.select().where(JobEvent.job == job.id)
    retried = of_job.where(JobEvent.event == RETRIED).select(fn.MAX(JobEvent.id)).scalar() or 0
    healed = of_job.where(
        JobEvent.event == HEALED, JobEvent.id > retried, JobEvent.detail.startswith(f"{entry.name}: ")
    )
    return int(healed.count())


def _note(job: Job, rule: Rule, entry: ErrorEntry, treatment: Treatment) -> None:
    if rule.times is None and not treatment.words:
        return  # repeated as the catalogue says
    nth = f" ({_applied(job, entry) + 1} of {rule.times}, by the server's rule)" if rule.times else ""
    words = treatment.words or "tried again"
    moves.event(job.id, job.attempt_nr, Actor.HEALING, HEALED, f"{entry.name}: {words}{nth}")


def _treatment(core: Core, job: Job, row: dict[str, Any], rule: Rule, losses: int) -> Treatment:
    if rule.retry is Retry.LATER:
        seconds = rule.pause_seconds or moves.pause(core, max(losses, 1))
        return Treatment(f"later, in {seconds} s", moves.back_in_queue(core, seconds))
    back = moves.back_in_queue(core, 0)
    if rule.retry is Retry.ELSEWHERE:
        bound = broker.needs_in(job.job_class.key).queue
        kind = "queue" if rule.avoid_queue and not bound else "node"
        where = {"avoid_node": None, "avoid_queue": None, f"avoid_{kind}": row[kind]}
        words = f"on another {kind} than {row[kind]}, for {AVOID_SECONDS} s"
        return Treatment(words, back | where | {"avoid_until": lease_clock() + AVOID_SECONDS})
    if rule.retry is Retry.MORE_MEMORY:
        return _more_memory(core, job, row, rule, back)
    if rule.retry is Retry.FRESH_INPUT:
        return Treatment("with its inputs copied anew", back)
    return Treatment("", back)


def _more_memory(core: Core, job: Job, row: dict[str, Any], rule: Rule, back: dict[str, object]) -> Treatment:
    """The job goes into the class of the same needs with more memory, where there is more to be had."""
    needs = broker.needs_in(job.job_class.key)
    largest = core.recent.get(
        ("largest pilot", needs.resource_type, needs.queue),
        lambda: _largest_mb(needs.resource_type.value, needs.queue),
        LARGEST_SECONDS,
    )
    memory = core.healing.memory(rule, needs.memory_mb, _peak_mb(row["id"]), largest)
    if memory <= needs.memory_mb:
        had = f"with the {needs.memory_mb} MB" if needs.memory_mb else "with the memory"
        return Treatment(f"{had} that it had, for there is no more", back)
    raised = broker.class_of(replace(needs, memory_mb=memory))
    before = f"{needs.memory_mb} MB" if needs.memory_mb else "any"
    return Treatment(f"with {memory} MB of memory, before: {before}", back | {"job_class": raised.id})


def _largest_mb(resource_type: str, queue: str) -> int:
    """What the largest living pilot has for one job."""
    found = Pilot.select(fn.MAX(Pilot.memory_mb / Pilot.slots)).join(Queue)
    found = found.where(
        Pilot.ended.is_null(), Pilot.lease_until >= lease_clock(), Queue.resource_type == resource_type
    )
    return int((found.where(Pilot.queue == queue) if queue else found).scalar() or 0)


def _peak_mb(attempt_id: int) -> float:
    """What the attempt's pilot measured; 0 if it has not."""
    metrics = json.loads(Attempt.get_by_id(attempt_id).metrics or "{}")
    peak = metrics.get("memory_peak_mb", 0)
    return float(peak) if isinstance(peak, (int, float)) and math.isfinite(peak) and peak > 0 else 0.0
