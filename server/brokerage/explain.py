"""Why a job or a task is where it is, in plain words: what keeps it, who could take it, what is missing there, who goes first.

Only looks, with the rules that brokerage and task-executor use themselves, so that it never says something else than they do.
What a pilot tells with its request alone (its label, its group, the time it has left) the server does not keep: it is said as such.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from peewee import fn

from protocol.errors import BY_NAME
from protocol.messages.requests import TaskSpec
from protocol.messages.views import Explanation, QueueFit
from protocol.resources import Needs, fits, misfits
from protocol.states import FINAL, HELD, MEANING, DatasetState, JobState, QueueState, TaskState
from server import computing, job_manager, task_manager
from server.access import quotas
from server.brokerage import broker, dependencies
from server.core import Core
from server.jobs import copies
from server.leaseclock import lease_clock
from server.models import (
    ArchivedJob,
    Attempt,
    File,
    Job,
    JobClass,
    JobEvent,
    Node,
    Pilot,
    Queue,
    Site,
    Task,
    now,
)
from server.paging import iso
from server.recent import closed_because, runs_images
from server.specs import spec_of

MOST_BEFORE = 10_000
"""Jobs that go before another one are counted up to so many."""
MOST_NAMES = 5
"""Names that a sentence lists."""
MOST_PILOTS = 1_000
"""Pilots of a queue that are compared with a job's needs; the others are like them."""
NO_PILOT = "no pilot is alive there"
LABEL = TaskSpec(name="x", command=["x"]).prod_source_label
"""The label of tasks that were given none: most pilots take it, so nothing is said about it."""
BUSY = "pilots there are busy, or ask at their next turn"


# -- jobs -------------------------------------------------------------------------------------------------------------------


def job(core: Core, job_id: int) -> Explanation:
    """Everything that can be said about one job; NOT_FOUND."""
    found = job_manager.find(job_id)
    task = Task.get_by_id(found.task_id)
    if isinstance(found, ArchivedJob):
        return _about(found, task, found.ended_at, _ended(found, ""))
    state = JobState(found.state)
    if state in FINAL:
        return _about(
            found,
            task,
            found.changed,
            [*_ended(found, found.error_detail), *_by_whom(found)],
        )
    if state in HELD:
        return _about(found, task, found.changed, _held(found))
    if state is not JobState.READY:
        return _about(found, task, found.changed, [MEANING[state], *_forming(core, task)])
    return _ready(core, found, task)


def _about(job: Any, task: Task, since: float, reasons: list[str]) -> Explanation:
    return Explanation(
        task_id=task.id,
        task=task.name,
        state=job.state,
        since=iso(since),
        reasons=reasons,
        job_id=job.id,
        job_nr=job.job_nr,
    )


def _ended(job: Job | ArchivedJob, detail: str | None) -> list[str]:
    if job.state == JobState.COMPLETED.value:
        return ["it has completed: its outputs are registered"]
    words = [f"it has ended with {job.error}"]
    if job.error in BY_NAME:
        entry = BY_NAME[job.error]
        words[0] += f": {entry.text}" + (f" ({detail})" if detail else "")
        words.append(f"by the fault of the {entry.blame.value}; what to do: {entry.advice_for(job.id)}")
    words.append(f"it is not tried again by itself; a user may: 'pilotage job retry {job.id}'")
    return words


def _by_whom(job: Job) -> list[str]:
    event = JobEvent.select().where(JobEvent.job == job.id).order_by(JobEvent.id.desc()).first()
    return [f"last word about it: {event.event} by the {event.actor}, {event.detail}"] if event else []


def _held(job: Job) -> list[str]:
    attempt = Attempt.get_by_id(job.attempt_id)
    words = [
        f"{MEANING[JobState(job.state)]}: pilot {attempt.pilot_id} holds it on node {attempt.node} of queue {attempt.queue}"
        f", attempt {attempt.attempt_nr}"
    ]
    if job.copies is not None and spec_of(job.task).replicate > 1:
        words.append(_copies(job))
    pilot = Pilot.get_or_none(Pilot.pilot_id == attempt.pilot_id)
    if pilot is not None:
        words.append(f"that pilot was heard {_ago(pilot.last_seen)}")
    left = attempt.lease_until - lease_clock()
    if job.state == JobState.EXTRACTED.value:
        words.append(f"if the pilot does not acknowledge it within {max(left, 0)} s, another one may have it")
    else:
        words.append(f"if the pilot is silent for {max(left, 0)} s more, another one may have it")
    return words


def _copies(job: Job) -> str:
    n, most = copies.running(job).count(), spec_of(job.task).replicate
    more = f"; {job.copies} more may be handed out, to other nodes" if job.copies else ""
    return f"{n} of {most} copies run{more}; the first one that completes is its outcome"


def _ready(core: Core, job: Job, task: Task) -> Explanation:
    needs = broker.needs_in(job.job_class.key)
    told = _about(job, task, job.changed, [])
    avoids = job if (job.avoid_until or 0) > lease_clock() else None
    told.queues = _fits(needs, avoids)
    if task.paused:
        told.reasons.append(f"its task is paused; 'pilotage task resume {task.name}' lets it go on")
    elif job.ready_after is not None:
        told.retry_seconds = max(job.ready_after - lease_clock(), 0)
        told.reasons.append(f"it may be handed out again in {told.retry_seconds} s{_last_time(job)}")
    elif job.ready_nr is None:
        told.reasons.append("it is being put back into the queue")
    if job.loss is not None:
        silent = Attempt.get_by_id(job.attempt_id)
        told.reasons.append(
            f"pilot {silent.pilot_id} on node {silent.node} fell silent with it: the first pilot that asks gets it, "
            "and that one keeps it if it speaks before"
        )
    if avoids is not None and job.avoid_node is not None:
        told.reasons.append(
            f"for {job.avoid_until - lease_clock()} s it avoids the node {job.avoid_node}, "
            f"by whose fault it failed{_with_error(job)}"
        )
    if avoids is not None and job.avoid_queue is not None:
        told.reasons.append(
            f"for {job.avoid_until - lease_clock()} s it avoids the queue {job.avoid_queue}, by the server's rule"
        )
    told.reasons += _who_could(needs, told.queues)
    if job.ready_nr is not None and not task.paused:
        told.n_before = _before(job, needs, told.queues)
        told.reasons.append(_in_words(told.n_before))
    return told


def _last_time(job: Job) -> str:
    if job.loss is not None:
        return ", since its queue lets lost jobs wait"
    return f", since its last attempt failed{_with_error(job)}" if job.error else ""


def _with_error(job: Job) -> str:
    text = BY_NAME[job.error].text if job.error in BY_NAME else job.error
    return f" with {job.error} ({text})" if job.error else ""


def _before(job: Job, needs: Needs, queues: Sequence[QueueFit]) -> int:
    """Jobs that are handed out earlier to whoever could take this one, counted up to a bound."""
    earlier = (Job.priority > job.priority) | ((Job.priority == job.priority) & (Job.ready_nr < job.ready_nr))
    n = _count((Job.job_class == job.job_class_id) & earlier)
    if n < MOST_BEFORE:
        for other in _waiting_classes():
            if other.id != job.job_class_id and _compete(needs, broker.needs_in(other.key), queues):
                n += _count((Job.job_class == other.id) & earlier)
    return min(n, MOST_BEFORE)


def _count(condition: Any) -> int:
    rows = Job.select(Job.id).where(condition, Job.ready_nr.is_null(False)).limit(MOST_BEFORE)
    return int(rows.count())


def _waiting_classes() -> list[JobClass]:
    waiting = Job.select(Job.id).where(Job.job_class == JobClass.id, Job.ready_nr.is_null(False))
    return list(JobClass.select().where(fn.EXISTS(waiting)))


def _compete(needs: Needs, other: Needs, queues: Sequence[QueueFit]) -> bool:
    """Whether some queue could give a pilot either of the two."""
    rows = {
        row.name: row
        for row in Queue.select().where(Queue.name.in_([fit.queue for fit in queues if not fit.missing]))
    }
    return any(fits(other, computing.as_offer(queue, other)) for queue in rows.values())


def _in_words(n: int) -> str:
    if not n:
        return "no job is before it"
    many = (
        f"{MOST_BEFORE} jobs or more are" if n >= MOST_BEFORE else "1 job is" if n == 1 else f"{n} jobs are"
    )
    return f"{many} before it, by priority and by time; the shares of working groups may put others first"


# -- queues -----------------------------------------------------------------------------------------------------------------


def _fits(needs: Needs, avoids: Job | None = None) -> list[QueueFit]:
    """What each queue has to say, those that could take the job first; `avoids`: a job that keeps away from a node or a queue."""
    aside = {(row.queue_id, row.name): row for row in Node.select().where(Node.set_aside.is_null(False))}
    queues = Queue.select(Queue, Site).join(Site).order_by(Queue.name)
    found = [_fit(needs, queue, aside, avoids) for queue in queues]
    return sorted(found, key=lambda fit: (bool(fit.missing), not fit.n_fitting, fit.queue))


def _fit(needs: Needs, queue: Queue, aside: dict[tuple[str, str], Node], avoids: Job | None) -> QueueFit:
    told = QueueFit(
        queue.name, queue.site_id, _state_of(queue), missing=misfits(needs, computing.as_offer(queue, needs))
    )
    pilots = list(Pilot.select().where(Pilot.queue == queue.name, computing.alive()).limit(MOST_PILOTS))
    told.n_pilots = len(pilots)
    if avoids is not None and avoids.avoid_queue == queue.name:
        told.missing.append("the job avoids this queue for a while")
    if told.missing:
        return told
    reasons: Counter[str] = Counter()
    for pilot in pilots:
        node = aside.get((queue.name, pilot.node))
        wrong = misfits(needs, computing.as_offer(queue, needs, pilot))
        if avoids is not None and avoids.avoid_node == pilot.node:
            wrong.append(f"the job avoids the node {pilot.node} for a while")
        if pilot.draining:
            wrong.append("the pilot is draining")
        if node is not None:
            wrong.append(f"the node {pilot.node} is put aside: {node.reason}")
        reasons.update(wrong)
        told.n_fitting += not wrong
    closed = closed_because(queue)
    told.missing = [closed] if closed else []
    if not pilots:
        told.missing += [*_tags(needs, queue), NO_PILOT]
    elif not told.n_fitting:
        told.missing += [reason for reason, _ in reasons.most_common(MOST_NAMES)]
    return told


def _state_of(queue: Queue) -> str:
    offline = QueueState.OFFLINE.value
    return offline if queue.site.state == offline else str(queue.state)


def _tags(needs: Needs, queue: Queue) -> list[str]:
    missing = [tag for tag in needs.tags if tag not in json.loads(queue.tags)]
    return [f"the queue itself does not offer {', '.join(missing)}; a pilot's node may"] if missing else []


def _who_could(needs: Needs, queues: Sequence[QueueFit]) -> list[str]:
    """The sentence on who could take it, or why nobody can."""
    able = [fit for fit in queues if not fit.missing]
    if able:
        names = _names([f"{fit.queue} ({fit.n_fitting} of {fit.n_pilots} pilots)" for fit in able])
        words = [f"queues that can take it: {names}; {BUSY}"]
        if any(fit.state == QueueState.TEST.value for fit in able):
            words.append("a queue in test gets one job at a time")
        return [*words, *_what_pilots_say(needs)]
    return [
        f"nobody can take it now: {_shortest(needs, queues)}",
        *_start(needs, queues),
        *_what_pilots_say(needs),
    ]


def _start(needs: Needs, queues: Sequence[QueueFit]) -> list[str]:
    """Where nothing is missing but a pilot: how one is started."""
    name = next((fit.queue for fit in queues if fit.missing == [NO_PILOT]), None)
    if name is None:
        return _let_images_in(needs)
    label = "" if needs.label == LABEL else f" -j {needs.label}"
    return [f"to start a pilot on a node: 'pilotage pilot run -q {name}{label}'"]


def _let_images_in(needs: Needs) -> list[str]:
    """Where nothing is missing but leave for the task's container: how it is given."""
    plain = dataclasses.replace(needs, image=False)
    for queue in Queue.select().order_by(Queue.name) if needs.image else ():
        if not runs_images(queue) and not misfits(plain, computing.as_offer(queue, plain)):
            return [
                f"to let {queue.name} run containers for tasks: 'pilotage queue set {queue.name} --pilot-setting "
                "payload.task_images=yes', and payload.executor=bubblewrap or apptainer; then start pilots anew"
            ]
    return []


def _shortest(needs: Needs, queues: Sequence[QueueFit]) -> str:
    """Why nobody can take it: what no queue has, or else what the queue says that is nearest to taking it."""
    if not queues:
        return "there is no queue"
    kind = [row.name for row in Queue.select() if not misfits(needs, computing.as_offer(row, needs))]
    common = set.intersection(*(set(fit.missing) for fit in queues))
    lacking = _lacking(needs, kind)
    if lacking or common:
        return _names([*lacking, *sorted(common)])
    nearest = min(queues, key=lambda fit: (fit.queue not in kind, len(fit.missing), -fit.n_pilots))
    return _names([f"{nearest.queue}: {reason}" for reason in nearest.missing])


def _lacking(needs: Needs, kind: Sequence[str]) -> list[str]:
    """Amounts that no pilot has that is alive in these queues, which are of the right kind."""
    amounts = (
        ("cores", needs.cores, Pilot.cores, 1),  # a slot has one, however many slots there are
        ("MB of memory", needs.memory_mb, Pilot.memory_mb, 0),
        ("MB of disk", needs.disk_mb, Pilot.disk_mb, 0),
        ("GPUs", needs.gpus, Pilot.gpus, 0),
    )
    there = Pilot.select(*(fn.MAX(column / Pilot.slots) for _, _, column, _ in amounts))
    shares = there.where(Pilot.queue.in_(kind), computing.alive()).tuples().first()
    return [
        f"no pilot that is alive has {need} {what} for a job (at most {max(share, least)})"
        for (what, need, _, least), share in zip(amounts, shares, strict=True)
        if share is not None and need > max(share, least)
    ]


def _what_pilots_say(needs: Needs) -> list[str]:
    """What is known only when a pilot asks."""
    words = []
    if needs.label not in ("", LABEL):
        words.append(f"pilots started with another label than {needs.label} (-j) do not take it")
    if needs.walltime_seconds:
        words.append(f"a pilot must have {needs.walltime_seconds} s of its time left")
    if needs.image:
        words.append(
            "pilots take it that run containers (payload.executor) and were started since their queue lets tasks name images"
        )
    return words


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more


# -- tasks ------------------------------------------------------------------------------------------------------------------


def task(core: Core, found: Task) -> Explanation:
    """Why a task does not go on: what keeps its jobs from being formed, and what keeps those that are READY."""
    state = task_manager.state_of(found)
    told = Explanation(
        found.id, found.name, state.value, iso(found.ended or found.started or found.created), reasons=[]
    )
    if found.ended is not None:
        told.reasons.append(f"it has ended as {state.value}")
        told.reasons += _failed(found)
        if state is not TaskState.COMPLETED:
            told.reasons.append(f"what ended badly can be tried again: 'pilotage task retry {found.name}'")
        return told
    told.reasons += _forming(core, found)
    counts = task_manager.counts_of(found)
    if ready := counts.get(JobState.READY, 0):
        told.reasons += [f"{ready} of its jobs {_be(ready)} READY", *_first_ready(core, found, told)]
    elif not counts:
        needs = broker.needs_in(found.job_class.key)
        told.queues = _fits(needs)
        told.reasons += _who_could(needs, told.queues)
    if held := sum(counts.get(each, 0) for each in HELD):
        told.reasons.append(f"{held} of its jobs {_be(held)} with pilots")
    told.reasons += _failed(found)
    return told


def _failed(found: Task) -> list[str]:
    """With which errors how many of its jobs have failed, and where to read about the first of them."""
    errors = task_manager.errors_of(found)
    if not errors:
        return []
    many = ", ".join(f"{name} {count}" for name, count in sorted(errors.items()))
    n = sum(errors.values())
    return [
        f"{n} of its jobs {'has' if n == 1 else 'have'} failed: {many}; "
        f"what they say: 'pilotage task errors {found.name}'; "
        f"which they are: 'pilotage job list --task {found.name} --state FAILED'"
    ]


def _be(n: int) -> str:
    return "is" if n == 1 else "are"


def _first_ready(core: Core, found: Task, told: Explanation) -> list[str]:
    """What keeps the one that goes first, said for all of them."""
    first = (
        Job.select()
        .where(Job.task == found.id, Job.ended_at.is_null(), Job.state == JobState.READY.value)
        .order_by(Job.ready_nr.is_null(), Job.ready_nr, Job.id)
        .first()
    )
    if first is None:
        return []
    of_job = _ready(core, first, found)
    told.queues, told.n_before, told.retry_seconds = of_job.queues, of_job.n_before, of_job.retry_seconds
    return [f"the first of them is job {first.id}: {of_job.reasons[0]}", *of_job.reasons[1:]]


def _forming(core: Core, found: Task) -> list[str]:
    """What keeps further jobs of a task from being formed; an empty list if nothing does or all are."""
    if found.cancelled:
        return ["it was cancelled: no further job is formed"]
    words = []
    if found.paused:
        words.append(f"it is paused; 'pilotage task resume {found.name}' lets it go on")
    if found.all_formed:
        return words
    words += [_waits_for(other, found) for other in dependencies.unmet(found)]
    words += _input(found)
    words += quotas.now().full(found)
    stock = Job.select(Job.id).where(
        Job.job_class == found.job_class_id,
        Job.priority == found.job_priority,
        Job.ready_nr.is_null(False),
        Job.state == JobState.READY.value,
    )
    if (n := stock.limit(core.limits.ready_stock).count()) >= core.limits.ready_stock:
        words.append(f"{n} jobs of its kind are READY already; more are formed as pilots take these")
    return words


def _waits_for(other: Task, found: Task) -> str:
    state = task_manager.state_of(other)
    if other.ended is None:
        return f"it waits for task {other.name} to complete, which is {state.value}"
    return (
        f"it waits for task {other.name}, which has ended as {state.value}: retry that one, "
        f"or 'pilotage task cancel {found.name}'"
    )


def _input(found: Task) -> list[str]:
    """What is missing in its input dataset."""
    dataset = found.input_dataset
    if dataset is None or dataset.state != DatasetState.OPEN.value:
        return []
    if dataset.task_id is not None:
        maker = Task.get_by_id(dataset.task_id)
        return [f"its input {dataset.name} is the output of task {maker.name}, which has not ended"]
    new = File.select().where(
        File.dataset == dataset.id, File.state == "available", File.id > found.last_file_id
    )
    size = spec_of(found).files_per_job
    if (n := new.limit(size).count()) >= size:
        return []
    lacks = f"{n} of the {size} files of its next job are there" if size > 1 else "all of its files have jobs"
    return [f"its input {dataset.name} is open: {lacks}; it ends when the dataset is closed"]


def hint(found: Task) -> str | None:
    """Why a task does not go on, in one line; None if it does or has ended. Cheap: nothing is counted."""
    if found.ended is not None or found.cancelled:
        return None
    see = f"; see 'pilotage task why {found.name}'"
    if found.paused:
        return f"it is paused{see}"
    if not found.all_formed and (
        waiting := [_waits_for(other, found) for other in dependencies.unmet(found)]
    ):
        return waiting[0] + see
    if not found.all_formed and (full := quotas.now().full(found)):
        return full[0] + see
    needs = broker.needs_in(found.job_class.key)
    queues = _fits(needs)
    if any(not fit.missing for fit in queues):
        return None
    return f"nobody can take its jobs now: {_shortest(needs, queues)}{see}"


def no_queue(spec: TaskSpec) -> str | None:
    """Why no queue is of the kind that a new task needs, whatever pilots there are; None if one is."""
    needs = broker.needs_of(spec)
    if any(not misfits(needs, computing.as_offer(queue, needs)) for queue in Queue.select()):
        return None
    return f"no queue takes its jobs: {_shortest(needs, _fits(needs))}; see 'pilotage task why {spec.name}'"


def _ago(moment: float) -> str:
    return f"{max(now() - moment, 0):.0f} s ago"
