"""Pilots that wait for work beside the real server: woken when there is some, and none the worse when who wakes them dies."""

from __future__ import annotations

import json
import os
import secrets
import signal
import time
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from protocol.states import QueueState
from tests.acceptance.world import QUICK, World
from tests.parked import Parked
from tests.running_server import RunningServer, serving
from tests.waiting import wait_until

PATIENT = {**QUICK, "PILOTAGE_HEARTBEAT__WAITING_SECONDS": "600"}
"""Pilots that would not ask by themselves within the time of a test."""


def waiting_processes(server: RunningServer) -> list[int]:
    """The server's waiting process, as long as it lives."""
    assert server.process is not None
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    return [
        int(pid) for pid in children if b"server.waiting.process" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def get_job(server: RunningServer, pilot: str, queue: str) -> Any:
    """The answer to a question for a job, by hand."""
    word = {"requestId": secrets.token_hex(8), "pilotId": pilot, "queue": queue}
    return server.request("POST", "/v1/getJob", word, server.pilot_token)


def tickets_for(server: RunningServer, queue: str, n: int) -> tuple[str, list[str]]:
    """The address at which to wait, and tickets of `n` pilots."""
    answers = []
    for number in range(n):
        word = {"pilotId": f"p{number}", "node": "n", "version": "1", "queue": queue}
        server.request("POST", "/v1/registerPilot", word, server.pilot_token)
        answers.append(get_job(server, f"p{number}", queue))
    return answers[0]["waitUrl"], [answer["ticket"] for answer in answers]


def n_parked(world: World, queue: str) -> int:
    """How many pilots wait for work at this server."""
    url, _ = tickets_for(world.server, queue, 1)
    with urllib.request.urlopen(f"http://{urlsplit(url).netloc}/healthz", timeout=5) as answer:
        return int(json.load(answer)["parked"])


def test_of_many_pilots_that_wait_a_new_task_wakes_about_as_many_as_it_has_jobs(own_world: World) -> None:
    queue = own_world.queue()
    url, tickets = tickets_for(own_world.server, queue, 60)
    with Parked(url, tickets) as parked:
        own_world.until(lambda: n_parked(own_world, queue) == 60, "60 that wait")
        own_world.session.cancel_task(own_world.submit_shell(own_world.queue(), "true", n_jobs=20).name)
        own_world.submit_shell(queue, "true", n_jobs=10)
        parked.listen(10, lambda: len(parked.woken) >= 10)
        parked.listen(0.5)
        assert 10 <= len(parked.woken) <= 15
        assert sorted(parked.woken) == list(range(len(parked.woken)))
    for task in own_world._tasks:
        own_world.session.cancel_task(str(task))


def test_a_pilot_that_waits_has_a_new_job_within_a_second(own_world: World) -> None:
    """0.2 s are the aim; it would not ask by itself for minutes."""
    queue = own_world.queue()
    own_world.pilot(queue, settings=PATIENT)
    seconds = []
    for _ in range(5):
        own_world.until(lambda: n_parked(own_world, queue) == 1, "a pilot that waits")
        began = time.monotonic()
        task = own_world.submit_shell(queue, "true")
        own_world.until(lambda: own_world.job(task).attempt_nr, "an attempt")  # noqa: B023
        seconds.append(time.monotonic() - began)
        own_world.ended(task)
    print(f"seconds from the task to the attempt: {seconds}")
    assert sorted(seconds)[2] < 1.0


def test_a_waiting_process_that_is_killed_comes_back_and_its_pilots_go_on(own_world: World) -> None:
    queue = own_world.queue()
    own_world.pilot(queue, settings=PATIENT)
    for _ in range(3):
        own_world.until(lambda: n_parked(own_world, queue) == 1, "a pilot that waits")
        (killed,) = waiting_processes(own_world.server)
        os.kill(killed, signal.SIGKILL)
        task = own_world.submit_shell(queue, "true")
        assert own_world.ended(task).state == "COMPLETED"
        own_world.until(lambda: waiting_processes(own_world.server) not in ([], [killed]), "another process")  # noqa: B023
    assert "is started again" in own_world.server.text_of_log()


def test_a_server_that_is_stopped_sends_pilots_away_that_wait_and_they_come_back(own_world: World) -> None:
    queue = own_world.queue()
    pilot = own_world.pilot(queue, settings=PATIENT)
    own_world.until(lambda: n_parked(own_world, queue) == 1, "a pilot that waits")
    began = time.monotonic()
    own_world.server.stop()
    assert time.monotonic() - began < 8
    pilot.says("the pilot polls|no answer to getJob", 10)
    own_world.server.start()
    assert own_world.ended(own_world.submit_shell(queue, "true")).state == "COMPLETED"


def test_the_waiting_process_ends_with_a_server_that_is_killed(own_world: World) -> None:
    process = own_world.server.process
    assert process is not None
    (waiting,) = wait_until(lambda: waiting_processes(own_world.server), 10, "the waiting process")
    process.kill()
    wait_until(lambda: not Path(f"/proc/{waiting}/cmdline").exists(), 10, "its end")
    own_world.server.kill()
    own_world.server.start()


def test_a_pilot_that_knows_no_tickets_is_told_when_to_ask(own_world: World) -> None:
    """An older pilot leaves them alone."""
    queue = own_world.queue()
    tickets_for(own_world.server, queue, 1)
    assert get_job(own_world.server, "p0", queue)["waitSeconds"] > 0
    task = own_world.submit_shell(queue, "true")
    found = own_world.until(lambda: get_job(own_world.server, "p0", queue)["jobs"], "a job")
    assert len(found) == 1
    own_world.session.cancel_task(task.name)


def test_the_address_at_which_to_wait_is_the_host_that_the_pilot_knows_or_what_is_set(tmp_path: Path) -> None:
    with serving(tmp_path / "one") as server:
        url, _ = tickets_for(server, "CPU", 1)
        assert urlsplit(url).hostname == "127.0.0.1"
        server.url = server.url.replace("127.0.0.1", "localhost")
        url, _ = tickets_for(server, "CPU", 1)
        assert urlsplit(url).hostname == "localhost"
    extra = {"PILOTAGE_SERVER__WAIT_URL": "https://front.example/pilotage/"}
    with serving(tmp_path / "two", extra=extra) as server:
        url, _ = tickets_for(server, "CPU", 1)
        assert url == "https://front.example/pilotage/v1/wait"


def test_a_queue_that_comes_online_wakes_the_pilots_that_wait_there(own_world: World) -> None:
    queue = own_world.queue()
    own_world.session.set_queue_state(queue, QueueState.OFFLINE)
    own_world.pilot(queue, settings=PATIENT)
    task = own_world.submit_shell(queue, "true")
    own_world.until(lambda: n_parked(own_world, queue) >= 1, "a pilot that waits")
    own_world.session.set_queue_state(queue, QueueState.ONLINE)
    assert own_world.ended(task, 15).state == "COMPLETED"
