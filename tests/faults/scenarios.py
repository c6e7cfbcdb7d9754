"""The faults that take their toll in numbers: each is a function with its size, small in CI and large by `make soak`."""

from __future__ import annotations

import json
import random
import secrets
import signal
import socket
import statistics
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from selectors import EVENT_READ, DefaultSelector
from typing import Any
from urllib.parse import urlsplit

from protocol.messages.pilots import JobSpec
from protocol.messages.views import TaskView
from protocol.states import JobState
from tests.acceptance.world import World
from tests.faults.crew import EVERY_STEP, Habits
from tests.faults.history import OK, History, Word
from tests.faults.installation import SHORT_LEASE, Installation, Tally
from tests.faults.network import Weather, under

S = JobState
SOON_UNACKNOWLEDGED = {"PILOTAGE_QUEUE__ACKNOWLEDGE_SECONDS": "3"}
"""A job that was handed out and of which no word comes is free again sooner than in life."""
HEALING_SECONDS = 10.0
"""After the database is back the server serves again within so long."""


# -- F1, F2: the server and the database are killed ---------------------------------------------------------------------------


def server_kills(where: Installation, kills: int, n_jobs: int, seed: int = 1) -> Tally:
    """F1: kill -9 the server `kills` times while `n_jobs` jobs are done."""
    chance = random.Random(seed)
    queue = where.queue()
    task = where.submit(queue, n_jobs)
    with where.crew(queue, seed=seed) as crew:
        for number in range(1, kills + 1):
            where.completed(crew.history, n_jobs * number // (kills + 1), crew)
            _pause(chance.uniform(0, 0.1))
            where.server.kill()
            where.server.start()
        where.ended(task, crew, 60 + n_jobs)
    return where.judge("F1 kill -9 the server", [task], crew.history, rounds=kills, kills=kills)


def database_kills(where: Installation, kills: int, n_jobs: int, seed: int = 2) -> Tally:
    """F2: kill -9 Postgres: 503 with Retry-After while it is away, served again by itself within ten seconds."""
    queue = where.queue()
    task = where.submit(queue, n_jobs)
    healed = []
    refusals: list[tuple[int, str]] = []
    with where.crew(queue, seed=seed) as crew:
        for number in range(1, kills + 1):
            where.completed(crew.history, n_jobs * number // (kills + 1), crew)
            with _asking(where, refusals):
                where.kill_database()
            back = time.monotonic()
            where.until(lambda: where.session.task(task.task_id), "an answer with the database", 30)
            healed.append(time.monotonic() - back)
        where.ended(task, crew)
    strange = {status for status, retry_after in refusals if status != 503 or not retry_after}
    assert not strange, f"answers while the database was away: {Counter(refusals)}"
    assert max(healed) <= HEALING_SECONDS
    return where.judge(
        "F2 kill -9 the database", [task], crew.history, rounds=kills, kills=kills,
        refused=len(refusals), healed_seconds=round(max(healed), 2),
    )  # fmt: skip


class _asking:
    """Ask all the time for something that needs the database, and note how it is refused."""

    def __init__(self, where: Installation, refusals: list[tuple[int, str]]) -> None:
        token = where.server.admin_token.read_text().strip()
        self._request = urllib.request.Request(
            f"{where.server.url}/v1/tasks", headers={"Authorization": f"Bearer {token}"}
        )
        self._refusals = refusals
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._over.wait(0.02):
            try:
                urllib.request.urlopen(self._request, timeout=30).close()
            except urllib.error.HTTPError as error:
                with error:
                    self._refusals.append((error.code, error.headers.get("Retry-After") or ""))

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


# -- F4: pilots are killed ----------------------------------------------------------------------------------------------------


def pilot_kills(
    where: Installation,
    world: World,
    kills: int,
    n_jobs: int,
    n_pilots: int = 4,
    seconds: float = 0.3,
    seed: int = 4,
) -> Tally:
    """F4: kill -9 real pilots at random; the loss is charged to no payload. What a killed one left running ends by itself."""
    chance = random.Random(seed)
    queue = world.queue(**SHORT_LEASE)
    task = world.submit_shell(
        queue, f"sleep {seconds}; echo {{job_nr}} > {{output}}", n_jobs=n_jobs, outputs=["out-{job_nr}"],
        max_attempts=1, max_losses=1000,
    )  # fmt: skip

    def has_completed(enough: int) -> bool:
        return world.session.task(task.task_id).counts.get("COMPLETED", 0) >= enough

    pilots = [world.pilot(queue, work=f"work-{number}") for number in range(n_pilots)]
    for kill in range(1, kills + 1):
        enough = n_jobs * kill // (kills + 1)
        world.until(partial(has_completed, enough), f"{enough} completed jobs", 120)
        number = chance.randrange(n_pilots)
        pilots[number].kill()
        pilots[number] = world.pilot(queue, work=f"work-{number}")
    world.ended(task, 120)
    _, attempts = where.rows([task])
    errors = Counter(row["error"] for row in attempts)
    assert set(errors) <= {None, "LOST_HEARTBEAT", "NOT_ACKNOWLEDGED"}, errors
    return where.judge(
        "F4 kill -9 pilots", [task], History(), rounds=kills, kills=kills, losses=len(attempts) - n_jobs
    )


# -- F6: the server is paused -------------------------------------------------------------------------------------------------


def server_pauses(where: Installation, rounds: int, pause_seconds: float, seed: int = 6) -> Tally:
    """F6: SIGSTOP the server for longer than any lease while pilots work: none that is alive loses its job."""
    queue = where.queue(**SHORT_LEASE)
    tasks = []
    with where.crew(queue, 6, Habits(payload_seconds=(0.5, 1.5)), seed=seed) as crew:
        for _ in range(rounds):
            tasks.append(where.submit(queue, 12))
            before = crew.history.completed
            where.completed(crew.history, before + 1, crew)
            where.signal_server(signal.SIGSTOP)
            _pause(pause_seconds)
            where.signal_server(signal.SIGCONT)
            where.ended(tasks[-1], crew)
    _, attempts = where.rows(tasks)
    errors = Counter(row["error"] for row in attempts)
    assert set(errors) == {None}, f"the server was paused, and attempts ended with {errors}"
    return where.judge("F6 SIGSTOP the server", tasks, crew.history, rounds=rounds)


# -- F7, F8, F9: the network ------------------------------------------------------------------------------------------------


def lost_replies(where: Installation, drops: int, seed: int = 7) -> Tally:
    """F7: the reply of getJob gets lost after the commit: the same request brings the same job, and none is stuck."""
    queue = where.queue()
    with under(where.server.url, Weather(seed, lose_reply=0.5, paths=("/v1/getJob",))) as network:
        with where.crew(queue, seed=seed, url=network.url) as crew:
            tasks = []
            while network.counts["reply lost"] < drops:
                tasks.append(where.submit(queue, min(1000, max(20, drops // 2))))
                where.ended(tasks[-1], crew)
    _, attempts = where.rows(tasks)
    assert {row["error"] for row in attempts} == {None}
    return where.judge("F7 lost getJob replies", tasks, crew.history, rounds=network.counts["reply lost"])


def repeated_words(where: Installation, n_jobs: int, seed: int = 8) -> Tally:
    """F8: the reply of an update gets lost, the word is repeated up to 50 times, in parallel and out of order."""
    queue = where.queue()
    task = where.submit(queue, n_jobs)
    weather = Weather(seed, lose_reply=0.2, repeat=0.3, most=50, paths=("/v1/updateJob",))
    with under(where.server.url, weather) as network, where.crew(queue, seed=seed, url=network.url) as crew:
        where.ended(task, crew, 120 + n_jobs)
    jobs, attempts = where.rows([task])
    assert len(attempts) == len(jobs) == n_jobs
    assert {row["error"] for row in attempts} == {None}
    return where.judge("F8 repeated words", [task], crew.history, rounds=n_jobs, **network.figures())


def bad_weather(where: Installation, n_jobs: int, longest_seconds: float, seed: int = 9) -> Tally:
    """F9: everything at once: requests and replies get lost, come late, twice and in another order; pilots die and fail."""
    queue = where.queue(**SHORT_LEASE)
    task = where.submit(queue, n_jobs, max_attempts=10, max_losses=100)
    weather = Weather(
        seed,
        lose_request=0.05,
        lose_reply=0.05,
        repeat=0.1,
        late=0.25,
        late_seconds=(0.0, longest_seconds),
        most=3,
    )
    habits = Habits(dies=0.25, fails=0.05, payload_seconds=(0.0, 0.2), read_seconds=2.0, steps=EVERY_STEP)
    with under(where.server.url, weather) as network:
        with where.crew(queue, 12, habits, seed=seed, url=network.url) as crew:
            where.ended(task, crew, 120 + longest_seconds + n_jobs)
            network.calm()
        view = where.session.task(task.task_id)
    return where.judge(
        "F9 late words in any order",
        [task],
        crew.history,
        rounds=n_jobs,
        states=view.counts,
        **network.figures(),
    )


# -- F11: many ask for few ----------------------------------------------------------------------------------------------------


def stampedes(where: Installation, rounds: int, n_pilots: int = 1000, n_jobs: int = 100) -> Tally:
    """F11: a thousand getJob at once for a hundred jobs, each on a connection of its own."""
    queue = where.queue()
    token = where.server.pilot_token.read_text().strip()
    word = {"pilotId": f"stampede-{queue}", "node": "n", "version": "1", "queue": queue}
    where.server.request("POST", "/v1/registerPilot", word, where.server.pilot_token)
    history = History()
    seconds: list[float] = []
    tasks = []
    for _ in range(rounds):
        task = where.submit(queue, n_jobs, outputs=[])
        tasks.append(task)
        where.until(partial(_all_ready, where, task, n_jobs), f"{n_jobs} READY jobs")
        bodies = [
            {"requestId": secrets.token_hex(8), "pilotId": f"stampede-{queue}", "queue": queue}
            for _ in range(n_pilots)
        ]
        answers = at_once(where.server.url, token, "/v1/getJob", bodies)
        assert {status for status, _, _ in answers} == {200}, Counter(status for status, _, _ in answers)
        jobs = [job for _, answer, _ in answers for job in answer["jobs"]]
        assert len(jobs) == n_jobs == len({job["jobId"] for job in jobs}), f"{len(jobs)} grants"
        assert (
            sorted(len(answer["jobs"]) for _, answer, _ in answers)
            == [0] * (n_pilots - n_jobs) + [1] * n_jobs
        )
        seconds += [took for _, _, took in answers]
        for body, (_, answer, _) in zip(bodies, answers):
            attempts = [job["attemptId"] for job in answer["jobs"]]
            history.end(history.begin(Word(body["pilotId"], body["requestId"], attempts)), OK)
        _complete(where, jobs, history, f"stampede-{queue}")
    for task in tasks:
        where.ended(task)
    p99 = statistics.quantiles(seconds, n=100)[98]
    return where.judge("F11 1,000 getJob at once", tasks, history, rounds=rounds, p99_ms=round(p99 * 1000))


def _all_ready(where: Installation, task: TaskView, n_jobs: int) -> bool:
    return where.session.task(task.task_id).counts.get("READY") == n_jobs


def _complete(where: Installation, jobs: Sequence[dict[str, Any]], history: History, pilot: str) -> None:
    updates = [
        {"attemptId": job["attemptId"], "attemptToken": job["attemptToken"], "seq": 1,
         "moves": [{"state": S.COMPLETED.value, "at": time.time()}]}
        for job in jobs
    ]  # fmt: skip
    words = [
        history.begin(Word(pilot, attempt=job["attemptId"], seq=1, state=S.COMPLETED.value)) for job in jobs
    ]
    answers = where.server.request("POST", "/v1/updateJobs", {"updates": updates}, where.server.pilot_token)
    for word, answer in zip(words, answers["answers"]):
        assert answer["state"] == S.COMPLETED.value, answer
        history.end(word, OK)


def at_once(url: str, token: str, path: str, bodies: Sequence[Any]) -> list[tuple[int, Any, float]]:
    """Send all of them before any answer is read: status, body and seconds of each, in their order."""
    address = urlsplit(url)
    asks: list[tuple[socket.socket, bytes]] = []
    got: dict[int, tuple[bytes, float]] = {}
    with DefaultSelector() as selector:
        for number, body in enumerate(bodies):
            data = json.dumps(body).encode()
            head = (
                f"POST {path} HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {token}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n"
            )
            ask = socket.create_connection((str(address.hostname), address.port or 80), timeout=60)
            asks.append((ask, head.encode() + data))
            selector.register(ask, EVENT_READ, (number, bytearray()))
        began = time.monotonic()
        for ask, data in asks:
            ask.sendall(data)
        while len(got) < len(asks):
            ready = selector.select(60)
            assert ready, f"{len(got)} of {len(asks)} answers, and then silence"
            for key, _ in ready:
                number, buffer = key.data
                piece = key.fileobj.recv(1 << 16)  # type: ignore[union-attr]
                buffer += piece
                if not piece:
                    selector.unregister(key.fileobj)
                    got[number] = (bytes(buffer), time.monotonic() - began)
    for ask, _ in asks:
        ask.close()
    return [_parsed(*got[number]) for number in range(len(asks))]


def _parsed(answer: bytes, seconds: float) -> tuple[int, Any, float]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body), seconds


# -- F21: cancelled at each state -----------------------------------------------------------------------------------------------


def cancellations(where: Installation, rounds: int, seed: int = 21) -> Tally:
    """F21: each job is cancelled just before, while or just after its pilot says a certain word; one of both wins, whole."""
    moments = [(state, when) for state in (*S,)[3:11] for when in ("before", "while", "after")]
    queue = where.queue()
    chance = random.Random(seed)
    plan = {number: moments[number % len(moments)] for number in range(1, rounds * len(moments) + 1)}
    pool = ThreadPoolExecutor(8)
    cancelled: dict[int, bool] = {}
    waiting: list[Any] = []

    def cancel(job: JobSpec, after_seconds: float) -> None:
        _pause(after_seconds)
        cancelled[job.job_id] = where.session.cancel_job(job.job_id).state == S.CANCELLED.value

    def before(job: JobSpec, state: JobState) -> None:
        at, when = plan[job.job_nr]
        if at is not state:
            return
        if when == "before":
            cancel(job, 0)
        else:
            waiting.append(pool.submit(cancel, job, 0 if when == "while" else chance.uniform(0.002, 0.02)))

    task = where.submit(queue, len(plan))
    with pool, where.crew(queue, 6, Habits(steps=EVERY_STEP, before=before), seed=seed) as crew:
        where.ended(task, crew, 120 + len(plan))
        for each in waiting:
            each.result()
    outcome = _outcome_of_cancelled(where, task, cancelled)
    return where.judge(
        "F21 cancelled at each state", [task], crew.history, rounds=len(plan), cancelled=outcome["CANCELLED"],
        completed=outcome["COMPLETED"],
    )  # fmt: skip


def _outcome_of_cancelled(where: Installation, task: TaskView, cancelled: dict[int, bool]) -> Counter[str]:
    """Who was told that it is cancelled is; nothing of a cancelled job is published, and all of a completed one."""
    outcome: Counter[str] = Counter()
    for row in where.session.jobs(task=task.task_id):
        job = where.session.job(row.job_id)
        outcome[job.state] += 1
        published = [file for file in job.outputs or () if file.state == "available"]
        assert len(published) == (job.state == "COMPLETED"), (job.state, job.outputs)
        assert (job.state == "CANCELLED") == cancelled[job.job_id], (job.state, job.history)
    assert set(outcome) == {"CANCELLED", "COMPLETED"}, outcome
    return outcome


def _pause(seconds: float) -> None:
    """Let time pass: the fault itself has a length."""
    threading.Event().wait(seconds)
