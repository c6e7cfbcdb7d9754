"""The rows of `pilotage bench pilot`: what a pilot costs, beside other systems that run the same tasks on the same cores."""

from __future__ import annotations

import contextlib
import http.client
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocol.errors import PilotageError
from protocol.states import JobState
from server.bench import peers
from server.bench.report import Goal, Row
from server.bench.stage import Installation, Process, Stage, cpu_seconds, tree, wait_until

COMPLETED, FAILED, RUNNING = JobState.COMPLETED.value, JobState.FAILED.value, JobState.RUNNING.value
SLOTS = 2
AHEAD = 10
BRISK = {"get_job.claim_ahead": str(AHEAD), "limits.log_archive_of_failed_only": "yes"}
"""Pilot settings of a queue for very short jobs."""
ONE_BY_ONE = {"limits.log_archive_of_failed_only": "yes"}
NO_OP = ["/bin/true"]
PATIENCE_SECONDS = 600
FEW_SLOTS, MANY_SLOTS = 1, 11
FILE_BYTES = 1 << 20


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    runs: int = 5
    jobs: int = 2_000
    """No-op jobs of one run."""
    pauses: int = 100
    """Jobs of one run of `gap`."""
    window: float = 60.0
    """Seconds over which an idle pilot and one with running jobs are watched."""


FULL = Sizes()
QUICK = Sizes(runs=3, jobs=150, pauses=15, window=4.0)
TINY = Sizes(runs=1, jobs=6, pauses=4, window=0.3)

Rows = Iterator[Row]


class Bench:
    """A server, the pilots that work for it, and the systems to compare with."""

    def __init__(self, stage: Stage, sizes: Sizes, python_of_peers: str | None) -> None:
        self.sizes = sizes
        self.python_of_peers = python_of_peers
        self.installation: Installation = stage.installation()
        self._numbers = iter(range(1, 1_000_000))

    def name(self, what: str) -> str:
        return f"{what}-{next(self._numbers)}"

    def queue(self, pilot_settings: dict[str, str] | None = None) -> str:
        name = self.name("BENCH")
        self.installation.request("POST", "/v1/queues", {"name": name, "pilotSettings": pilot_settings or {}})
        return name

    @contextlib.contextmanager
    def pilot(self, queue: str, slots: int = 1) -> Iterator[Process]:
        """A pilot at work; it ends with the block."""
        home = self.installation.directory.parent
        token = self.installation.directory / "pilot.token"
        words = [
            "--url",
            self.installation.url,
            "--token-file",
            str(token),
            "-q",
            queue,
            "--slots",
            str(slots),
        ]
        words += ["-a", str(home / self.name("work"))]
        process = Process("pilot", *words, log=home / f"{self.name('pilot')}.log")
        try:
            yield process
        finally:
            process.stop()

    def submit(self, queue: str, n_jobs: int, command: Sequence[str], **more: Any) -> int:
        spec = {"name": self.name("task"), "command": command, "nJobs": n_jobs, "queue": queue, **more}
        return int(self.installation.request("POST", "/v1/tasks", spec)["taskId"])

    def ended(self, task: int, n_jobs: int) -> None:
        """When the server has the results of all of them, and they are good."""

        def counts() -> dict[str, int]:
            found: dict[str, int] = self.installation.request("GET", f"/v1/tasks/{task}")["counts"]
            return found

        wait_until(
            lambda: counts().get(COMPLETED, 0) >= n_jobs or counts().get(FAILED), PATIENCE_SECONDS, "end"
        )
        if counts() != {COMPLETED: n_jobs}:
            raise PilotageError("SERVER_ERROR", f"the jobs of a benchmark ended otherwise: {counts()}")


# -- rates ------------------------------------------------------------------------------------------------------------


def no_op(bench: Bench) -> Rows:
    """Jobs that do nothing, from their submission to the last result in the server, in turn with the others."""
    n, peer_names = bench.sizes.jobs, peers.NAMES if bench.python_of_peers else ()
    ways = {"claiming ahead": bench.queue(BRISK), "one by one": bench.queue(ONE_BY_ONE)}
    rates: dict[str, list[float]] = {name: [] for name in (*ways, *peer_names, "spawn and wait")}
    costs: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(bench.sizes.runs):
        for name, queue in ways.items():
            rate, cost = _rate(bench, queue, n)
            rates[name].append(rate)
            costs[name].append(cost)
        for name in (*peer_names, "spawn and wait"):
            rates[name].append(_rate_of_peer(bench, name, n))
    limit = rates.pop("spawn and wait")
    best = max((rates[name] for name in peer_names), key=statistics.median, default=limit)
    goals = {"claiming ahead": (best, 1.0), "one by one": (rates.get("parsl", limit), 0.5)}
    for name in ways:
        reference, bound = goals[name]
        goal = Goal(bound, of_reference=True) if peer_names else None
        yield Row(
            f"/bin/true, {SLOTS} slots, {name}", "sqlite", "jobs/s", rates[name], reference, goal, costs[name]
        )
    for name in peer_names:
        yield Row(f"/bin/true, {SLOTS} workers, {name}", "none", "tasks/s", rates[name], limit)
    note = "the reference of the peers; ours is compared with " + (
        "the fastest of them, and with Parsl" if peer_names else "this"
    )
    yield Row(f"/bin/true, spawn and wait, {SLOTS} processes", "none", "tasks/s", limit, note=note)


def _rate(bench: Bench, queue: str, n: int) -> tuple[float, float]:
    """Jobs per second, and milliseconds of CPU a job of server, pilot and payloads together."""
    with bench.pilot(queue, SLOTS) as pilot:
        for warm_up in (SLOTS, max(n // 10, SLOTS)):  # the first ones tell how long such payloads last
            bench.ended(bench.submit(queue, warm_up, NO_OP), warm_up)

        def cpu() -> float:
            return cpu_seconds(bench.installation.target.server_pids() + tree(pilot.popen.pid))

        before, began = cpu(), time.monotonic()
        bench.ended(bench.submit(queue, n, NO_OP), n)
        seconds = time.monotonic() - began
        return n / seconds, 1000 * (cpu() - before) / n


def _rate_of_peer(bench: Bench, name: str, n: int) -> float:
    python = sys.executable if name == "spawn and wait" else str(bench.python_of_peers)
    home = bench.installation.directory.parent / bench.name("peer")
    home.mkdir()
    done = subprocess.run(
        [python, str(Path(peers.__file__)), name, str(n), str(SLOTS)],
        cwd=home, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False,
    )  # fmt: skip
    if done.returncode:
        raise PilotageError("SERVER_ERROR", f"{name} could not be measured: {done.stderr.strip()[-500:]}")
    return float(done.stdout.split()[-1])


# -- between two payloads ---------------------------------------------------------------------------------------------


def gap(bench: Bench) -> Rows:
    """From the end of one payload to the start of the next in the same slot, with default settings."""
    plain, reference, with_files = [], [], []
    for _ in range(bench.sizes.runs):
        plain.append(_gap(bench, has_files=False))
        with_files.append(_gap(bench, has_files=True))
        reference.append(_round_trip(bench) + _process_start(bench))
    goal = Goal(10, at_least=False)
    beyond = [ours - least for ours, least in zip(plain, reference, strict=True)]
    note = (
        "p50; subtracted: "
        + f"{statistics.median(reference):.1f} ms for one HTTP round trip and one process start"
    )
    yield Row(
        "from payload to payload, beyond round trip and process", "sqlite", "ms", beyond, goal=goal, note=note
    )
    more = [files - none for files, none in zip(with_files, plain, strict=True)]
    name = "the same with 1 MiB in and 1 MiB out: more"
    yield Row(name, "sqlite", "ms", more, goal=Goal(30, at_least=False))


def _gap(bench: Bench, has_files: bool) -> float:
    """Milliseconds, p50 of one pilot with one slot."""
    home, n = bench.installation.directory.parent, bench.sizes.pauses
    times = home / bench.name("times")
    work = "cp {input} {output}; " if has_files else ""
    more: dict[str, Any] = {}
    if has_files:
        more = {"inputDataset": _dataset(bench, n), "nJobs": 0, "outputs": ["out-{job_nr}"]}
    queue = bench.queue()
    with bench.pilot(queue):
        bench.ended(bench.submit(queue, 2, NO_OP), 2)
        task = bench.submit(queue, n, ["sh", "-c", f"{_stamp(times)}; {work}{_stamp(times)}"], **more)
        bench.ended(task, n)
    return _gaps(times)


def _stamp(times: Path) -> str:
    return f"date +%s.%N >> {times}"


def _gaps(times: Path) -> float:
    moments = [float(line) for line in times.read_text().split()]
    ends, starts = moments[1:-1:2], moments[2::2]
    return 1000 * statistics.median(start - end for end, start in zip(ends, starts, strict=True))


def _dataset(bench: Bench, n: int) -> str:
    """A dataset of `n` files of 1 MiB."""
    name, home = bench.name("files"), bench.installation.directory.parent
    files = []
    for number in range(n):
        path = home / f"{name}.{number}"
        path.write_bytes(bytes(FILE_BYTES))
        files.append({"lfn": path.name, "size": FILE_BYTES, "url": f"file://{path}"})
    bench.installation.request("POST", "/v1/datasets", {"name": name})
    bench.installation.request("POST", f"/v1/datasets/{name}/files", {"files": files})
    bench.installation.request("POST", f"/v1/datasets/{name}/close", {})
    return name


def _round_trip(bench: Bench) -> float:
    """Milliseconds, p50 on a kept connection."""
    target = bench.installation.target
    connection = http.client.HTTPConnection(target.host, target.port)
    seconds = []
    for _ in range(bench.sizes.pauses):
        began = time.perf_counter()
        connection.request("GET", "/healthz")
        json.loads(connection.getresponse().read())
        seconds.append(time.perf_counter() - began)
    connection.close()
    return 1000 * statistics.median(seconds)


def _process_start(bench: Bench) -> float:
    """The gap where nothing lies between two payloads but the start of the next."""
    times = bench.installation.directory.parent / bench.name("times")
    for _ in range(bench.sizes.pauses):
        subprocess.run(["sh", "-c", f"{_stamp(times)}; {_stamp(times)}"], check=True)
    return _gaps(times)


# -- weight -----------------------------------------------------------------------------------------------------------


def start(bench: Bench) -> Rows:
    """From the start of the process to the first job."""
    wall, cpu = [], []
    for _ in range(bench.sizes.runs):
        queue = bench.queue()
        task = bench.submit(queue, 1, NO_OP)
        began = time.time()
        with bench.pilot(queue) as pilot:
            bench.ended(task, 1)
            cpu.append(cpu_seconds([pilot.popen.pid]))
        microseconds = f"SELECT cast(1000000 * (max(extracted_at) - {began!r}) AS integer) FROM attempt"
        wall.append(bench.installation.planter.number(microseconds) / 1e6)
    goal = Goal(0.5, at_least=False)
    yield Row("start of a pilot to its first job", "sqlite", "s", wall, goal=goal)
    note = "with the first job and the report about it"
    yield Row("start of a pilot: CPU", "sqlite", "s", cpu, goal=goal, note=note)


def weight(bench: Bench) -> Rows:
    """Memory by slots, and CPU of a pilot that waits and of one that watches payloads."""
    memory: dict[int, list[float]] = {FEW_SLOTS: [], MANY_SLOTS: []}
    busy: dict[int, list[float]] = {FEW_SLOTS: [], MANY_SLOTS: []}
    idle = []
    for _ in range(bench.sizes.runs):
        for slots in memory:
            resident, used, waiting = _weigh(bench, slots)
            memory[slots].append(resident)
            busy[slots].append(100 * used / slots)
            if slots == FEW_SLOTS:
                idle.append(100 * waiting)
    further = MANY_SLOTS - FEW_SLOTS
    each = [(many - few) / further for few, many in zip(memory[FEW_SLOTS], memory[MANY_SLOTS], strict=True)]
    yield Row(
        "memory of a pilot with 1 slot", "sqlite", "MB", memory[FEW_SLOTS], goal=Goal(50, at_least=False)
    )
    yield Row("memory for each further slot", "sqlite", "MB", each, goal=Goal(1, at_least=False))
    yield Row(
        "CPU of a pilot that waits for work", "sqlite", "% of a core", idle, goal=Goal(0.2, at_least=False)
    )
    for slots, shares in busy.items():
        name = f"CPU for each running job, {slots} slots"
        yield Row(name, "sqlite", "% of a core", shares, goal=Goal(0.5, at_least=False))


def _weigh(bench: Bench, slots: int) -> tuple[float, float, float]:
    """Resident MB with all slots at work, and the cores used then and when there is no work."""
    queue, window = bench.queue(), bench.sizes.window
    with bench.pilot(queue, slots) as pilot:
        pid = pilot.popen.pid

        def cores() -> float:
            before = cpu_seconds([pid])
            time.sleep(window)
            return (cpu_seconds([pid]) - before) / window

        bench.ended(bench.submit(queue, 1, NO_OP), 1)
        waiting = cores() if slots == FEW_SLOTS else 0.0
        task = bench.submit(queue, slots, ["sleep", "100000"])
        counts = f"/v1/tasks/{task}"
        wait_until(
            lambda: bench.installation.request("GET", counts)["counts"].get(RUNNING, 0) == slots,
            60,
            "payloads",
        )
        used = cores()
        return _resident_mb(pid), used, waiting


def _resident_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise PilotageError("SERVER_ERROR", f"process {pid} has no memory")


ROWS: dict[str, Callable[[Bench], Rows]] = {"no-op": no_op, "gap": gap, "start": start, "weight": weight}
"""What `--only` takes, in the order in which it is measured."""


def measure(
    stage: Stage, sizes: Sizes, names: list[str], python_of_peers: str | None, say: Callable[[str], None]
) -> list[Row]:
    bench = Bench(stage, sizes, python_of_peers)
    rows = []
    for name in names:
        began = time.monotonic()
        rows += list(ROWS[name](bench))
        say(f"{name}, {time.monotonic() - began:.1f} s")
    return rows
