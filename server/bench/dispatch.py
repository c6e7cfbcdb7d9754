"""The rows of `pilotage bench dispatch`: how fast the dispatcher is, beside a reference in the same run, and against our goals."""

from __future__ import annotations

import contextlib
import http.client
import json
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from protocol.errors import PilotageError
from server.bench.planting import Planter
from server.bench.report import Goal, Row
from server.bench.stage import (
    PILOTS,
    QUEUE,
    Installation,
    Stage,
    Target,
    cpu_seconds,
    resident_mb,
)

OF_REFERENCE = Goal(0.8, of_reference=True)
PANDA = 49.0
"""Cycles of getJob, running, finished per second, by the real PanDA server on a machine of two cores."""
PANDA_CPU_MS = 44.0
"""What one of them costs there, server and database together."""
MOST_CLIENTS = 16


@dataclass(frozen=True)
class Sizes:
    """How much is measured. Seconds are of one run."""

    runs: int = 5
    seconds: float = 5.0
    warm_up: float = 1.0
    claims: int = 1_500
    """getJob calls in a run of the row `flat`."""
    few_jobs: int = 10_000
    jobs: int = 10_000_000
    ready_jobs: int = 1_000_000
    dead: int = 300_000
    """Entries of the queue's index that nobody can clean up."""
    window: float = 190.0
    """How long pilots poll and send heartbeats: longer than a lease."""
    parked: int = 5_000
    new_jobs: int = 100
    waiting: int = 1_000
    bindings: int = 100
    """Single jobs that are submitted in each run while pilots wait."""
    files: int = 100_000
    cycles: int = 200_000
    """Life cycles during which the workers' memory is watched."""


FULL = Sizes()
QUICK = Sizes(
    runs=3,
    seconds=0.2,
    warm_up=0.05,
    claims=100,
    few_jobs=2_000,
    jobs=200_000,
    ready_jobs=20_000,
    dead=2_000,
    window=0.9,
    parked=100,
    new_jobs=10,
    waiting=50,
    bindings=5,
    files=500,
    cycles=300,
)
TINY = Sizes(
    runs=1,
    seconds=0.05,
    warm_up=0.01,
    claims=8,
    few_jobs=100,
    jobs=400,
    ready_jobs=100,
    dead=100,
    window=0.2,
    parked=5,
    new_jobs=2,
    waiting=3,
    bindings=2,
    files=20,
    cycles=100,
)


@dataclass
class Sample:
    """One run: cycles per second, and milliseconds of CPU per cycle."""

    rate: float
    cpu: float
    client_cpu: float
    latency: dict[str, dict[str, float]]


class Bench:
    """One kind of database. What several rows share is made when the first of them asks for it."""

    def __init__(self, stage: Stage, sizes: Sizes) -> None:
        self.stage = stage
        self.sizes = sizes
        self.load = stage.load()
        self._subject: Installation | None = None
        self._reference: tuple[Target, Installation] | None = None

    @property
    def database(self) -> str:
        return self.stage.kind

    def subject(self) -> Installation:
        if self._subject is None:
            self._subject = self.fresh()
        return self._subject

    def fresh(self) -> Installation:
        """A server with pilots that have registered."""
        made = self.stage.installation()
        self.load.run(made.target, "register", clients=MOST_CLIENTS)
        return made

    def reference(self) -> tuple[Target, Installation]:
        if self._reference is None:
            self._reference = self.stage.reference(self.subject())
        return self._reference

    # -- measuring --------------------------------------------------------------------------------------------------

    def sample(self, target: Target, stocked: Installation, guess: int, script: str, **order: Any) -> Sample:
        """One run, with as many jobs at hand as it may take: `guess`, or more where that was too few."""
        for factor in (1, 4, 16, 64):
            stocked.stock(guess * factor)
            before = cpu_seconds(target.pids())
            answer = self.load.run(target, script, **order)
            used = cpu_seconds(target.pids()) - before
            if not answer["dry"]:
                break
        cycles = max(answer["cycles"], 1)
        return Sample(
            answer["cycles"] / answer["seconds"],
            1000 * used / cycles,
            1000 * answer["cpu"] / cycles,
            answer["latency"],
        )

    def compare(
        self, name: str, goal: Goal, script: str, clients: int, rate: int, **order: Any
    ) -> tuple[Row, list[Sample]]:
        """Subject and reference in turn; `rate` is about what the faster one may reach, per second."""
        subject, (reference, base) = self.subject(), self.reference()
        pairs = ((subject.target, subject), (reference, base))
        order |= {"clients": clients}

        def once(seconds: float) -> list[Sample]:
            guess = int(rate * seconds) + 10 * clients * order.get("n", 1)
            return [
                self.sample(target, stocked, guess, script, seconds=seconds, **order)
                for target, stocked in pairs
            ]

        once(self.sizes.warm_up)
        runs = [once(self.sizes.seconds) for _ in range(self.sizes.runs)]
        ours, theirs = [run[0] for run in runs], [run[1] for run in runs]
        row = Row(
            name=name,
            database=self.database,
            unit="jobs/s",
            values=[sample.rate for sample in ours],
            reference=[sample.rate for sample in theirs],
            goal=goal,
            cpu=[sample.cpu for sample in ours],
            reference_cpu=[sample.cpu for sample in theirs],
            client_cpu=[sample.client_cpu for sample in ours],
        )
        return row, ours

    def repeat(self, installation: Installation, guess: int, script: str, **order: Any) -> list[Sample]:
        """The same run several times on one server."""
        return [
            self.sample(installation.target, installation, guess, script, **order)
            for _ in range(self.sizes.runs)
        ]


Rows = Iterator[Row]


# -- rates ------------------------------------------------------------------------------------------------------------


def life_cycle(bench: Bench) -> Rows:
    """getJob and three updates, one job at a time."""
    for clients in (8, 16):
        name = f"getJob + 3 updates, {clients} clients"
        yield bench.compare(name, OF_REFERENCE, "single", clients, 3000, steps="life cycle")[0]


def panda(bench: Bench) -> Rows:
    """getJob, running, finished: what was measured on the PanDA server; ten times its rate at a twentieth of its CPU."""
    name = "getJob + running + finished, 8 clients"
    row, _ = bench.compare(name, Goal(10 * PANDA), "single", 8, 3000, steps="two updates")
    yield row
    goal = Goal(PANDA_CPU_MS / 20, at_least=False)
    yield Row(f"CPU of {name}", bench.database, "ms/job", row.cpu, row.reference_cpu, goal)


def following(bench: Bench) -> Rows:
    """The last update of one job brings the next one: twenty times the PanDA server's rate."""
    yield bench.compare(
        "running + finished with the next job, 8 clients", Goal(20 * PANDA), "chained", 8, 6000
    )[0]


def bulk(bench: Bench) -> Rows:
    """getJob for n jobs, and one update for all of them at each step."""
    for n in (10, 100):
        name = f"getJob + 3 updates, {n} jobs at a time, 8 clients"
        yield bench.compare(name, OF_REFERENCE, "bulk", 8, 30_000, n=n, steps="life cycle")[0]


# -- what must not make it slower ---------------------------------------------------------------------------------------


def flat(bench: Bench) -> Rows:
    """getJob with very many jobs in the database, against few."""
    sizes, installation = bench.sizes, bench.fresh()
    planter, task = installation.planter, installation.task_id

    def measured() -> list[Sample]:
        bench.sample(installation.target, installation, sizes.claims, "claim", clients=8, count=sizes.claims)
        return bench.repeat(installation, sizes.claims, "claim", clients=8, count=sizes.claims)

    installation.stock(sizes.few_jobs)
    planter.settle()
    few = measured()
    began = time.monotonic()
    planter.ended(task, sizes.jobs - sizes.ready_jobs)
    installation.stock(sizes.ready_jobs)
    planter.settle()
    note = f"planted within {time.monotonic() - began:.0f} s; the reference is the same server with {sizes.few_jobs:,} jobs"
    many = measured()
    name = f"getJob with {sizes.jobs:,} jobs, {sizes.ready_jobs:,} READY, 8 clients"
    yield _before_and_after(bench, name, few, many, note)
    yield Row(
        name=f"p99 of {name}",
        database=bench.database,
        unit="ms",
        values=[sample.latency["getJob"]["p99"] for sample in many],
        reference=[sample.latency["getJob"]["p99"] for sample in few],
        goal=Goal(1 / 0.8, at_least=False, of_reference=True),
    )


def _before_and_after(bench: Bench, name: str, before: list[Sample], after: list[Sample], note: str) -> Row:
    return Row(
        name=name,
        database=bench.database,
        unit="jobs/s",
        values=[sample.rate for sample in after],
        reference=[sample.rate for sample in before],
        goal=OF_REFERENCE,
        cpu=[sample.cpu for sample in after],
        reference_cpu=[sample.cpu for sample in before],
        client_cpu=[sample.client_cpu for sample in after],
        note=note,
    )


def old_transaction(bench: Bench) -> Rows:
    """Life cycles while one long transaction keeps the database from cleaning up what lies before the head of the queue."""
    sizes, installation = bench.sizes, bench.subject()
    order: dict[str, Any] = {"clients": 8, "steps": "life cycle", "seconds": sizes.seconds}
    guess = int(3000 * sizes.seconds) + 100
    bench.sample(installation.target, installation, guess, "single", **{**order, "seconds": sizes.warm_up})
    before = bench.repeat(installation, guess, "single", **order)
    with _old_snapshot(installation.database):
        bulk_order = {"clients": 8, "steps": "two updates", "n": min(500, sizes.dead)}
        installation.stock(sizes.dead + 10_000)
        bench.load.run(installation.target, "bulk", count=sizes.dead, **bulk_order)
        after = bench.repeat(installation, guess, "single", **order)
    name = f"getJob + 3 updates behind {sizes.dead:,} dead entries, 8 clients"
    yield _before_and_after(bench, name, before, after, "the reference is the same server before")


@contextlib.contextmanager
def _old_snapshot(url: str) -> Iterator[None]:
    """A transaction that has read and does not end."""
    reader = Planter(url)
    try:
        reader.execute("BEGIN" if reader.is_sqlite else "BEGIN ISOLATION LEVEL REPEATABLE READ")
        reader.execute("SELECT count(*) FROM counter")
        yield
        reader.execute("ROLLBACK")
    finally:
        reader.close()


# -- many pilots --------------------------------------------------------------------------------------------------------

POLLING, POLL_SECONDS = 5_000, 30
BEATING, BEAT_SECONDS = 20_000, 60
IDLE_QUEUE = "GPU"
"""A queue of each new installation that has no jobs here."""


def _cores(target: Target, seconds: float) -> float:
    """Cores that server and database use, over so many seconds."""
    before, began = cpu_seconds(target.pids()), time.monotonic()
    time.sleep(seconds)
    return (cpu_seconds(target.pids()) - before) / (time.monotonic() - began)


def _spoken(bench: Bench, target: Target, script: str, **order: Any) -> tuple[list[float], dict[str, Any]]:
    """Cores used in each part of the time in which pilots speak, and what came of it."""
    sizes = bench.sizes
    bench.load.start(target, script, window=sizes.window, **order)
    cores = [_cores(target, sizes.window / sizes.runs) for _ in range(sizes.runs)]
    return cores, bench.load.result()


def polling(bench: Bench) -> Rows:
    """Pilots that find no job and ask again each half minute."""
    subject, sizes = bench.subject(), bench.sizes
    speaking = min(POLLING, max(int(POLLING * sizes.window / POLL_SECONDS), 1))
    order: dict[str, Any] = {"pilots": "poll", "queue": IDLE_QUEUE, "resource": "gpu"}
    bench.load.run(subject.target, "register", clients=1, **order)
    subject.planter.pilots("poll", speaking)
    order |= {"clients": speaking, "spread": POLLING, "period": POLL_SECONDS}
    cores, answer = _spoken(bench, subject.target, "polling", **order)
    reference, _ = bench.reference()
    least, _ = _spoken(bench, reference, "polling", **order)
    p99 = answer["latency"]["getJob"]["p99"]
    note = f"{answer['cycles']:,} requests, each on a new connection; p99 {p99:.1f} ms"
    name = f"{POLLING:,} pilots asking each {POLL_SECONDS} s"
    yield Row(name, bench.database, "cores", cores, least, Goal(0.25, at_least=False), note=note)


def heartbeats(bench: Bench) -> Rows:
    """Pilots that hold a job each and say so once a minute."""
    subject, sizes = bench.subject(), bench.sizes
    speaking = min(BEATING, max(int(BEATING * sizes.window / BEAT_SECONDS), 1))
    queue = {"name": "BEATING", "leaseSeconds": 3 * BEAT_SECONDS, "heartbeatSeconds": BEAT_SECONDS}
    subject.request("POST", "/v1/queues", queue)
    order: dict[str, Any] = {"pilots": "beat", "queue": "BEATING"}
    bench.load.run(subject.target, "register", clients=1, **order)
    subject.planter.pilots("beat", speaking)
    subject.stock(speaking)
    held = bench.load.run(subject.target, "hold", clients=8, total=speaking, keep=True, **order)["held"]
    spoken = {"clients": speaking, "spread": BEATING, "period": BEAT_SECONDS, "held": held}
    cores, answer = _spoken(bench, subject.target, "heartbeats", **order, **spoken)
    lost = subject.planter.number(
        "SELECT count(*) FROM attempt JOIN job ON job.id = attempt.job_id WHERE attempt.queue = 'BEATING'"
        " AND (attempt.ended_at IS NOT NULL OR job.ready_nr IS NOT NULL)"
    )
    bench.load.run(subject.target, "finish", clients=1, held=held)
    p99 = answer["latency"]["heartbeat"]["p99"]
    note = f"{answer['cycles']:,} heartbeats, each on a new connection; p99 {p99:.1f} ms; leases lost: {lost}"
    name = f"{BEATING:,} pilots with a heartbeat each {BEAT_SECONDS} s"
    goal = Goal(0.5, at_least=False)
    yield Row(name, bench.database, "cores", cores, goal=goal, note=note, failed=lost > 0)


WAITING_LABEL = "ptest"
"""Pilots that wait take jobs of this label alone, of which none are planted."""


@contextlib.contextmanager
def _parked(bench: Bench, n: int) -> Iterator[dict[str, Any]]:
    """`n` pilots that wait for work; afterwards there is in the dictionary what came of it."""
    subject, load = bench.subject(), bench.stage.load()
    outcome: dict[str, Any] = {}
    pilots = f"park-{uuid.uuid4().hex[:6]}"
    bench.load.run(subject.target, "register", clients=1, pilots=pilots)
    subject.planter.pilots(pilots, n)
    order = {"clients": n, "pilots": pilots, "label": WAITING_LABEL, "until_told": True}
    load.start(subject.target, "park", **order)
    if load.result() != {"parked": n}:
        raise PilotageError("SERVER_ERROR", "the pilots do not wait")
    time.sleep(0.5)  # the last ones are on their way
    yield outcome
    outcome |= load.end()


def _new_task(subject: Installation, n_jobs: int) -> None:
    name = f"new-{uuid.uuid4().hex[:12]}"
    spec = {"name": name, "command": ["true"], "nJobs": n_jobs, "prodSourceLabel": WAITING_LABEL}
    subject.request("POST", "/v1/tasks", spec)


def parked(bench: Bench) -> Rows:
    """Pilots that wait: what they cost, how many wake for new jobs, and whether others are held up."""
    subject, sizes = bench.subject(), bench.sizes
    others: dict[str, Any] = {"clients": 4, "steps": "life cycle", "seconds": sizes.seconds}
    guess = int(3000 * sizes.seconds) + 100

    def p99() -> float:
        sample = bench.sample(subject.target, subject, guess, "single", **others)
        return sample.latency["getJob"]["p99"]

    before = [p99() for _ in range(sizes.runs)]
    after = []
    with _parked(bench, sizes.parked) as outcome:
        cores = [_cores(subject.target, max(sizes.seconds, 0.5)) for _ in range(sizes.runs)]
        memory_mb = resident_mb(subject.waiting_processes())
        for _ in range(sizes.runs):
            _new_task(subject, sizes.new_jobs)
            after.append(p99())
        time.sleep(1.0)
    database, name = bench.database, f"{sizes.parked:,} parked pilots"
    yield Row(f"{name}: CPU", database, "cores", cores, goal=Goal(0.1, at_least=False))
    yield Row(f"{name}: the waiting process", database, "MB", [memory_mb], goal=Goal(200.0, at_least=False))
    taken, new = len(outcome["arrivals"]), sizes.new_jobs * sizes.runs
    yield Row(
        f"{name}: woken by {sizes.new_jobs} new jobs",
        database,
        "pilots",
        [outcome["woken"] / sizes.runs],
        goal=Goal(1.5 * sizes.new_jobs, at_least=False),
        note=f"{taken} of {new} jobs reached a pilot",
        failed=taken < new,
    )
    goal = Goal(2.0, at_least=False, of_reference=True)
    yield Row(f"{name}: p99 of getJob by others", database, "ms", after, before, goal)


def binding(bench: Bench) -> Rows:
    """From the moment a job is READY until a pilot that waited has it."""
    subject, sizes = bench.subject(), bench.sizes
    with _parked(bench, sizes.waiting) as outcome:
        for _ in range(sizes.bindings * sizes.runs):
            _new_task(subject, 1)
            time.sleep(0.05)
        time.sleep(1.5)
    arrivals: list[tuple[int, float]] = sorted(outcome["arrivals"])
    first = arrivals[0][0] if arrivals else 0
    ready = dict(subject.planter.execute("SELECT id, ready_at FROM attempt WHERE id >= :first", first=first))
    took = [1000 * (at - ready[attempt]) for attempt, at in arrivals]
    n = sizes.bindings
    runs = [sorted(took[start : start + n]) for start in range(0, len(took), n)]
    note = f"{len(took)} of {n * sizes.runs} jobs reached a pilot; READY is noted a little before its commit"
    for quantile, bound in ((0.5, 20.0), (0.99, 200.0)):
        name = f"from READY to a waiting pilot, {sizes.waiting:,} waiting: p{100 * quantile:g}"
        values = [run[min(int(len(run) * quantile), len(run) - 1)] for run in runs]
        goal = Goal(bound, at_least=False)
        yield Row(name, bench.database, "ms", values, goal=goal, note=note, failed=len(took) < n * sizes.runs)
        note = ""


# -- datasets and tasks -------------------------------------------------------------------------------------------------

FILES_A_REQUEST = 5_000
LABEL = "managed"
"""Jobs of this label are not among those that were planted."""


def registration(bench: Bench) -> Rows:
    """Files into a dataset, a task over all of them, and its first job."""
    subject, sizes = bench.subject(), bench.sizes
    rates, cpu, accepted, first = [], [], [], []
    for _ in range(sizes.runs):
        name = f"files-{uuid.uuid4().hex[:12]}"
        before = cpu_seconds(subject.target.pids())
        rates.append(sizes.files / _register(subject, name, sizes.files))
        cpu.append(1000 * (cpu_seconds(subject.target.pids()) - before) / sizes.files)
        spec = {"name": name, "command": ["true"], "inputDataset": name, "prodSourceLabel": LABEL}
        began = time.monotonic()
        subject.request("POST", "/v1/tasks", spec)
        accepted.append(time.monotonic() - began)
        first.append(_first_job(subject))
        subject.request("POST", f"/v1/tasks/{name}/cancel", {})
    database = bench.database
    yield Row(
        f"registration of {sizes.files:,} files", database, "files/s", rates, goal=Goal(5000.0), cpu=cpu
    )
    name = f"task of {sizes.files:,} jobs"
    yield Row(f"{name}: accepted", database, "s", accepted, goal=Goal(1.0, at_least=False))
    yield Row(f"{name}: first job dispatched", database, "s", first, goal=Goal(1.0, at_least=False))


def _register(subject: Installation, name: str, n: int) -> float:
    """Seconds until a new dataset of `n` files is closed. The bodies are made beforehand."""
    bodies = []
    for start in range(0, n, FILES_A_REQUEST):
        numbers = range(start, min(start + FILES_A_REQUEST, n))
        files = [
            {"lfn": f"{name}.{i:08}.spd", "size": 2**21, "url": f"file:///data/{name}.{i:08}.spd"}
            for i in numbers
        ]
        bodies.append(json.dumps({"files": files, "close": numbers.stop == n}))
    subject.request("POST", "/v1/datasets", {"name": name})
    began = time.monotonic()
    with contextlib.closing(_connect(subject)) as connection:
        for body in bodies:
            _call(connection, subject.admin_token, f"/v1/datasets/{name}/files", body)
    return time.monotonic() - began


def _first_job(subject: Installation) -> float:
    """Seconds until a pilot that asks all the time gets a job of the new task."""
    began = time.monotonic()
    with contextlib.closing(_connect(subject)) as connection:
        while time.monotonic() - began < 60:
            word = {"requestId": uuid.uuid4().hex, "pilotId": f"{PILOTS}-0", "queue": QUEUE}
            body = json.dumps({**word, "prodSourceLabel": LABEL})
            if _call(connection, subject.token, "/v1/getJob", body)["jobs"]:
                break
            time.sleep(0.005)
    return time.monotonic() - began


def _connect(subject: Installation) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(subject.target.host, subject.target.port, timeout=300)


def _call(connection: http.client.HTTPConnection, token: str, path: str, body: str) -> Any:
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    connection.request("POST", path, body, headers)
    with connection.getresponse() as answer:
        content = answer.read()
    if answer.status >= 300:
        raise RuntimeError(f"{path}: {answer.status} {content[:300]!r}")
    return json.loads(content)


def memory(bench: Bench) -> Rows:
    """The workers' memory over very many life cycles."""
    subject, sizes = bench.subject(), bench.sizes
    tenth = sizes.cycles // 10
    seen = []
    for _ in range(10):
        bench.sample(subject.target, subject, tenth, "single", clients=16, count=tenth, steps="life cycle")
        seen.append(resident_mb(subject.workers()))
    note = "the last three tenths; the reference is the first tenth"
    goal = Goal(1.05, at_least=False, of_reference=True)
    name = f"memory of the workers over {sizes.cycles:,} life cycles"
    yield Row(name, bench.database, "MB", seen[-3:], seen[:1], goal, note=note)


ROWS: dict[str, Callable[[Bench], Rows]] = {
    "life-cycle": life_cycle,
    "panda": panda,
    "following": following,
    "bulk": bulk,
    "polling": polling,
    "heartbeats": heartbeats,
    "parked": parked,
    "binding": binding,
    "registration": registration,
    "memory": memory,
    "old-transaction": old_transaction,
    "flat": flat,
}
"""What `--only` takes, in the order in which it is measured."""


def measure(stage: Stage, sizes: Sizes, names: list[str], say: Callable[[str], None]) -> list[Row]:
    """The rows of these names on one kind of database."""
    bench = Bench(stage, sizes)
    rows = []
    for name in names:
        began = time.monotonic()
        rows += list(ROWS[name](bench))
        say(f"{stage.kind}: {name}, {time.monotonic() - began:.1f} s")
    return rows
