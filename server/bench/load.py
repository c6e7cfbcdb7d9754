"""Clients that cost little: one process, one loop, a keep-alive connection and a generator for each pilot.

`python -m server.bench.load` reads one order a line and answers it with one line, both JSON. It is a process of its own, so that
what the clients use is not counted as the server's, and it uses raw sockets, since the usual libraries cost as much as the server.
"""

from __future__ import annotations

import heapq
import itertools
import json
import os
import select
import socket
import sys
import time
from collections.abc import Callable, Generator, Iterable
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from protocol.states import JobState

S = JobState
STEPS: dict[str, list[list[JobState]]] = {
    "life cycle": [
        [S.OBTAINED],
        [S.PRE_PROCESSING, S.STAGE_IN, S.RUNNING],
        [S.FINISHED, S.POST_PROCESSING, S.STAGE_OUT, S.COMPLETED],
    ],
    "two updates": [
        [S.OBTAINED, S.PRE_PROCESSING, S.STAGE_IN, S.RUNNING],
        [S.FINISHED, S.POST_PROCESSING, S.STAGE_OUT, S.COMPLETED],
    ],
}
"""The states that each update of a cycle brings."""
STDIN = 0
QUIET_SECONDS = 30
"""A server that says nothing for so long is broken, and the run fails."""


class Request(NamedTuple):
    """What a script yields to be sent; it gets the body of the answer back. Without a body it is a GET."""

    label: str
    path: str
    """Or a whole URL, where it goes elsewhere; then `fresh`."""
    body: Any = None
    fresh: bool = False
    """On a connection of its own, closed afterwards."""


class Pause(NamedTuple):
    """What a script yields to go on at this time (of `time.monotonic`)."""

    until: float


Script = Generator["Request | Pause", Any, None]


class BadAnswer(Exception):
    """The server refused something that it should have taken."""


class Tally:
    """What the clients of one order did."""

    def __init__(self) -> None:
        self.cycles = 0
        self.latencies: dict[str, list[float]] = {}
        self.dry = False
        """A client asked for a job and there was none."""
        self.held: list[tuple[int, int, str]] = []
        """Attempts that were claimed and not ended: the pilot's number, the attempt's id and token."""
        self.arrivals: list[tuple[int, float]] = []
        """Attempts that came to pilots that waited, and when (seconds since 1970)."""
        self.parked = 0
        self.woken = 0


class Client:
    """One connection and the script that speaks over it."""

    def __init__(self, script: Script, address: tuple[str, int], head: str) -> None:
        self.script = script
        self.address = address
        self.head = head
        self.socket: socket.socket | None = None
        self.buffer = b""
        self.request: Request | None = None
        self.began = 0.0
        self.tries = 0

    def send(self, request: Request) -> None:
        body = b"" if request.body is None else json.dumps(request.body, separators=(",", ":")).encode()
        address, path = self.address, request.path
        if path.startswith("http://"):
            parts = urlsplit(path)
            address, path = (str(parts.hostname), parts.port or 80), f"{parts.path}?{parts.query}"
        if self.socket is None:
            self._connect(address)
        assert self.socket is not None
        self.request = request
        self.buffer = b""
        self.began = time.perf_counter()
        verb = "GET" if request.body is None else "POST"
        close = "Connection: close\r\n" if request.fresh else ""
        head = f"{verb} {path} HTTP/1.1\r\n{self.head}{close}Content-Length: {len(body)}\r\n\r\n"
        self.socket.sendall(head.encode() + body)

    def _connect(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, timeout=QUIET_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(None)  # with one, each recv is two system calls

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket = None

    def receive(self) -> Any:
        """The answer if all of it has come, else None; the connection is closed where the server says so."""
        assert self.socket is not None and self.request is not None
        data = self.socket.recv(1 << 18)
        if not data:
            raise ConnectionResetError("the server closed the connection")
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return None
        head = self.buffer[:end].lower()
        _, _, after = head.partition(b"\r\ncontent-length: ")
        length = int(after.partition(b"\r\n")[0])
        if len(self.buffer) < end + 4 + length:
            return None
        body = self.buffer[end + 4 :]
        if b"\r\nconnection: close" in head or self.request.fresh:
            self.close()
        status = int(head[9:12])
        if status >= 300:
            raise BadAnswer(f"{self.request.path}: {status} {body[:300].decode(errors='replace')}")
        return body


class Loop:
    """Drives scripts until each has ended."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.tally = Tally()
        self._address = (order["host"], order["port"])
        self._head = (
            f"Host: {order['host']}:{order['port']}\r\nAuthorization: Bearer {order['token']}\r\n"
            "Content-Type: application/json\r\n"
        )
        self._poll = select.epoll()
        self._clients: dict[int, Client] = {}
        self._timers: list[tuple[float, int, Client]] = []
        self._numbers = itertools.count()
        self._until_told = bool(order.get("until_told"))
        if self._until_told:
            self._poll.register(STDIN, select.EPOLLIN)

    def run(self, scripts: Iterable[Script]) -> None:
        for script in scripts:
            self._step(Client(script, self._address, self._head), None)
        is_told = False
        while (self._clients or self._timers) and not is_told:
            ready = self._poll.poll(self._patience())
            if not (ready or self._timers or self._until_told):
                raise BadAnswer(f"no answer within {QUIET_SECONDS} s")
            for descriptor, _ in ready:
                if descriptor == STDIN:
                    is_told = True
                else:
                    self._readable(self._clients[descriptor])
            while self._timers and self._timers[0][0] <= time.monotonic():
                self._step(heapq.heappop(self._timers)[2], None)
        if is_told:
            self._end()

    def _patience(self) -> float:
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else QUIET_SECONDS

    def _end(self) -> None:
        """The line that ends a run which has no end of its own."""
        sys.stdin.readline()
        for client in self._clients.values():
            client.close()

    def _readable(self, client: Client) -> None:
        assert client.request is not None
        descriptor = client.socket.fileno() if client.socket is not None else -1
        try:
            body = client.receive()
        except ConnectionError:
            # As a pilot does: every request may be sent again.
            client.tries += 1
            if client.tries > 3:
                raise
            self._forget(descriptor)
            client.close()
            self._send(client, client.request)
            return
        if body is None:
            return
        client.tries = 0
        self._forget(descriptor)
        took = time.perf_counter() - client.began
        self.tally.latencies.setdefault(client.request.label, []).append(took)
        self._step(client, body)

    def _forget(self, descriptor: int) -> None:
        self._clients.pop(descriptor)

    def _step(self, client: Client, body: Any) -> None:
        try:
            wish = client.script.send(body)
        except StopIteration:
            client.close()
            return
        if isinstance(wish, Pause):
            heapq.heappush(self._timers, (wish.until, next(self._numbers), client))
        else:
            self._send(client, wish)

    def _send(self, client: Client, request: Request) -> None:
        is_new = client.socket is None
        client.send(request)
        assert client.socket is not None
        descriptor = client.socket.fileno()
        self._clients[descriptor] = client
        if is_new:  # a closed one has left the poll by itself
            self._poll.register(descriptor, select.EPOLLIN)


# -- scripts --------------------------------------------------------------------------------------------------------


def get_job(order: dict[str, Any], pilot: int, request_id: str, n: int = 1) -> dict[str, Any]:
    return {
        "requestId": request_id,
        "pilotId": f"{order['pilots']}-{pilot}",
        "queue": order["queue"],
        "resourceType": order["resource"],
        "prodSourceLabel": order["label"],
        "nJobs": n,
    }


def word(job: dict[str, Any], seq: int, states: list[JobState]) -> dict[str, Any]:
    at = time.time()
    update: dict[str, Any] = {
        "attemptId": job["attemptId"],
        "attemptToken": job["attemptToken"],
        "seq": seq,
        "moves": [{"state": state.value, "at": at} for state in states],
    }
    if states[-1] is S.COMPLETED:
        update["outputs"] = []
    return update


class Run:
    """The bounds of one order: a time, or a number of cycles in all, whichever it has."""

    def __init__(self, order: dict[str, Any], tally: Tally) -> None:
        self.order = order
        self.tally = tally
        self.id = os.urandom(6).hex()
        self._end = time.monotonic() + order.get("seconds", 1e9)
        self._left = order.get("count", 1 << 60)

    def take(self, n: int = 1) -> bool:
        """Whether one more cycle (of `n` jobs) may begin."""
        if self._left <= 0 or time.monotonic() >= self._end or self.tally.dry:
            return False
        self._left -= n
        return True

    def request_id(self, pilot: int, number: int) -> str:
        return f"{self.id}.{pilot}.{number}"


def register(run: Run, pilot: int) -> Script:
    name = f"{run.order['pilots']}-{pilot}"
    yield Request(
        "register",
        "/v1/registerPilot",
        {
            "pilotId": name,
            "node": f"node-{pilot}",
            "version": "bench",
            "queue": run.order["queue"],
            "resourceType": run.order["resource"],
        },
    )
    run.tally.cycles += 1


def single(run: Run, pilot: int) -> Script:
    """getJob, then each update by itself."""
    steps = STEPS[run.order["steps"]]
    number = 0
    while run.take():
        number += 1
        body = yield Request("getJob", "/v1/getJob", get_job(run.order, pilot, run.request_id(pilot, number)))
        jobs = json.loads(body)["jobs"]
        if not jobs:
            run.tally.dry = True
            return
        for seq, states in enumerate(steps, start=1):
            yield Request("updateJob", "/v1/updateJob", word(jobs[0], seq, states))
        run.tally.cycles += 1


def chained(run: Run, pilot: int) -> Script:
    """The last update of one job asks for the next one: two requests a job."""
    steps = STEPS["two updates"]
    body = yield Request("getJob", "/v1/getJob", get_job(run.order, pilot, run.request_id(pilot, 0)))
    jobs = json.loads(body)["jobs"]
    while jobs:
        job = jobs[0]
        yield Request("updateJob", "/v1/updateJob", word(job, 1, steps[0]))
        last = word(job, 2, steps[1])
        goes_on = run.take()
        if goes_on:
            last["next"] = get_job(run.order, pilot, f"attempt-{job['attemptId']}.2")
        body = yield Request("updateJob with next", "/v1/updateJob", last)
        run.tally.cycles += 1
        if not goes_on:
            return
        answer = json.loads(body)
        if "next" not in answer:
            raise BadAnswer("updateJob: the answer has no next")
        jobs = answer["next"]["jobs"]
    run.tally.dry = True


def bulk(run: Run, pilot: int) -> Script:
    """getJob for n jobs, then one request per step for all of them."""
    n, steps = run.order["n"], STEPS[run.order["steps"]]
    number = 0
    while run.take(n):
        number += 1
        body = yield Request(
            "getJob", "/v1/getJob", get_job(run.order, pilot, run.request_id(pilot, number), n)
        )
        jobs = json.loads(body)["jobs"]
        if not jobs:
            run.tally.dry = True
            return
        for seq, states in enumerate(steps, start=1):
            yield from updates([word(job, seq, states) for job in jobs])
        run.tally.cycles += len(jobs)


def updates(words: list[dict[str, Any]]) -> Script:
    body = yield Request("updateJobs", "/v1/updateJobs", {"updates": words})
    refused = [answer for answer in json.loads(body)["answers"] if answer.get("error")]
    if refused:
        raise BadAnswer(f"updateJobs: {refused[0]}")


def claim(run: Run, pilot: int) -> Script:
    """getJob alone; what was claimed is ended afterwards, or handed back to whoever ordered it (`keep`)."""
    number = 0
    while run.take():
        number += 1
        body = yield Request("getJob", "/v1/getJob", get_job(run.order, pilot, run.request_id(pilot, number)))
        jobs = json.loads(body)["jobs"]
        if not jobs:
            run.tally.dry = True
            return
        run.tally.held.append((pilot, jobs[0]["attemptId"], jobs[0]["attemptToken"]))
        run.tally.cycles += 1


def hold(run: Run, first: int) -> Script:
    """One job for each of many pilots, reported as running; a client speaks for several pilots, one after the other."""
    for pilot in range(first, run.order["total"], run.order["clients"]):
        body = yield Request("getJob", "/v1/getJob", get_job(run.order, pilot, run.request_id(pilot, 0)))
        jobs = json.loads(body)["jobs"]
        if not jobs:
            run.tally.dry = True
            return
        yield Request("updateJob", "/v1/updateJob", word(jobs[0], 1, STEPS["two updates"][0]))
        run.tally.held.append((pilot, jobs[0]["attemptId"], jobs[0]["attemptToken"]))
        run.tally.cycles += 1


def _moments(run: Run, pilot: int) -> Generator[Pause, None, None]:
    """When a pilot speaks that does so once a period: the pilots are spread evenly over it."""
    period, all_of_them = run.order["period"], run.order["spread"]
    began = time.monotonic()
    phase = period * pilot / all_of_them
    for number in itertools.count():
        at = phase + number * period
        if at >= run.order["window"]:
            return
        yield Pause(began + at)


def polling(run: Run, pilot: int) -> Script:
    """A pilot that asks now and then, each time on a new connection."""
    for number, pause in enumerate(_moments(run, pilot)):
        yield pause
        yield Request(
            "getJob", "/v1/getJob", get_job(run.order, pilot, run.request_id(pilot, number)), fresh=True
        )
        run.tally.cycles += 1


def heartbeats(run: Run, pilot: int) -> Script:
    """A pilot that holds one job and says so now and then, each time on a new connection."""
    pilot, attempt, token = run.order["held"][pilot]
    body = {
        "pilotId": f"{run.order['pilots']}-{pilot}",
        "attempts": [{"attemptId": attempt, "attemptToken": token}],
    }
    for pause in _moments(run, pilot):
        yield pause
        answer = yield Request("heartbeat", "/v1/heartbeat", body, fresh=True)
        if json.loads(answer)["answers"][0]["command"] != "continue":
            raise BadAnswer(f"heartbeat: {answer[:300]!r}")
        run.tally.cycles += 1


PARKING = 400
"""Pilots that come to wait, per second."""
WAIT_SECONDS = 600


def park(run: Run, pilot: int) -> Script:
    """A pilot that waits for work, does what it gets in no time, and waits again, until the run is told to end."""
    yield Pause(time.monotonic() + pilot / PARKING)
    for number in itertools.count():
        request = get_job(run.order, pilot, run.request_id(pilot, number))
        reply = json.loads((yield Request("getJob", "/v1/getJob", request, fresh=True)))
        for job in reply["jobs"]:
            run.tally.arrivals.append((job["attemptId"], time.time()))
            yield Request("updateJob", "/v1/updateJob", word(job, 1, [S.COMPLETED]), fresh=True)
        if reply["jobs"]:
            continue
        if not reply.get("ticket"):
            raise BadAnswer("getJob: there is no ticket to wait with")
        if number == 0:
            run.tally.parked += 1
            if run.tally.parked == run.order["clients"]:
                say({"parked": run.tally.parked})
        url = f"{reply['waitUrl']}?ticket={quote(reply['ticket'])}&timeout={WAIT_SECONDS}"
        yield Request("wait", url, fresh=True)
        run.tally.woken += 1


def end_held(run: Run, held: list[tuple[int, int, str]], chunk: int = 100) -> Script:
    """End what was claimed, a hundred jobs at a time."""
    for start in range(0, len(held), chunk):
        jobs = [
            {"attemptId": attempt, "attemptToken": token} for _, attempt, token in held[start : start + chunk]
        ]
        yield from updates([word(job, 9, [S.COMPLETED]) for job in jobs])


def finish(run: Run, pilot: int) -> Script:
    """End what `hold` holds."""
    yield from end_held(run, run.order["held"])


SCRIPTS: dict[str, Callable[[Run, int], Script]] = {
    "register": register,
    "single": single,
    "chained": chained,
    "bulk": bulk,
    "claim": claim,
    "hold": hold,
    "polling": polling,
    "heartbeats": heartbeats,
    "finish": finish,
    "park": park,
}


def obey(order: dict[str, Any]) -> dict[str, Any]:
    """Carry out one order; what came of it."""
    loop = Loop(order)
    run = Run(order, loop.tally)
    script = SCRIPTS[order["script"]]
    first = order.get("first", 0)
    before, began = time.process_time(), time.perf_counter()
    loop.run(script(run, pilot) for pilot in range(first, first + order["clients"]))
    seconds, cpu = time.perf_counter() - began, time.process_time() - before
    tally = loop.tally
    answer = {
        "cycles": tally.cycles,
        "seconds": seconds,
        "cpu": cpu,
        "dry": tally.dry,
        "latency": {label: _quantiles(values) for label, values in tally.latencies.items()},
    }
    if order["script"] == "park":
        answer |= {"arrivals": tally.arrivals, "woken": tally.woken}
    if order.get("keep"):
        answer["held"] = tally.held
    elif tally.held:
        loop.run([end_held(run, tally.held)])
    return answer


def _quantiles(values: list[float]) -> dict[str, float]:
    """Milliseconds."""
    values.sort()
    at = {"p50": 0.5, "p99": 0.99}
    return {name: 1000 * values[min(int(len(values) * part), len(values) - 1)] for name, part in at.items()}


def say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main() -> None:
    while line := sys.stdin.readline():
        try:
            say(obey(json.loads(line)))
        except (BadAnswer, OSError) as error:
            say({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
