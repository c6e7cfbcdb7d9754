"""Three dispatcher hosts on one Postgres behind a real balancer: one is killed in the middle, and nobody has to do anything."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.acceptance.world import World
from tests.faults.crew import Habits
from tests.faults.installation import Installation, new_database
from tests.postgres import Cluster, free_port
from tests.running_server import RunningServer, serving
from tests.waiting import wait_until

CONFIGURATION = """
global
    maxconn 2000
defaults
    mode http
    timeout connect 5s
    timeout client 11m
    timeout http-request 30s
frontend pilotage
    bind 127.0.0.1:{port}
    use_backend waiting if {{ path /v1/wait }}
    default_backend dispatchers
backend waiting
    timeout server 11m
    option httpchk GET /healthz
{waiting}
backend dispatchers
    timeout server 90s
    option httpchk GET /healthz
{dispatchers}
"""
"""As docs/server.md tells, without TLS."""


def lines(ports: list[int]) -> str:
    return "\n".join(
        f"    server host{number} 127.0.0.1:{port} check inter 300ms" for number, port in enumerate(ports)
    )


@contextmanager
def balancer(directory: Path, port: int, dispatchers: list[int], waiting: list[int]) -> Iterator[None]:
    """haproxy before these ports of this machine."""
    path = directory / "haproxy.cfg"
    path.write_text(CONFIGURATION.format(port=port, dispatchers=lines(dispatchers), waiting=lines(waiting)))
    with open(directory / "haproxy.log", "wb") as log:
        process = subprocess.Popen(
            ["haproxy", "-db", "-f", str(path)], stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
    try:
        wait_until(
            lambda: json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5)), 20
        )
        yield
    finally:
        process.kill()
        process.wait()
        print((directory / "haproxy.log").read_text())


@pytest.fixture
def url(postgres_cluster: Cluster) -> str:
    return new_database(postgres_cluster)


@pytest.mark.component("haproxy")
@pytest.mark.slow
def test_f01_of_three_hosts_behind_a_balancer_one_is_killed_and_nothing_is_lost_or_done_twice(
    url: str, tmp_path: Path
) -> None:
    port, waiting = free_port(), [free_port() for _ in range(3)]
    door = f"http://127.0.0.1:{port}"
    with ExitStack() as stack:
        servers: list[RunningServer] = []
        for number, wait_port in enumerate(waiting):
            directory = tmp_path / f"host{number}"
            if number:
                directory.mkdir(mode=0o700)
                shutil.copy(tmp_path / "host0" / "server.key", directory)
            extra = {
                "PILOTAGE_SERVER__WAIT_PORT": str(wait_port),
                "PILOTAGE_SERVER__WAIT_URL": door,
            }
            servers.append(stack.enter_context(serving(directory, "--database", url, extra=extra)))
        stack.enter_context(
            balancer(tmp_path, port, [int(each.url.rpartition(":")[2]) for each in servers], waiting)
        )
        where = Installation(servers[0])
        stack.callback(where.close)
        queue = where.queue()
        task = where.submit(queue, 300)
        with where.crew(queue, 8, Habits(payload_seconds=(0.0, 0.1)), url=door) as crew:
            where.completed(crew.history, 100, crew)
            servers[1].kill()
            where.completed(crew.history, 180, crew)
            servers[1].start()
            where.ended(task, crew)
        _, attempts = where.rows([task])
        assert {row["error"] for row in attempts} == {None}
        where.judge("one of three hosts killed", [task], crew.history, rounds=1, kills=1)
        a_pilot_waits_through_the_balancer(servers, tmp_path, door, waiting)


def a_pilot_waits_through_the_balancer(
    servers: list[RunningServer], directory: Path, door: str, ports: list[int]
) -> None:
    """A real one: it is parked at some host and woken by a job that another host made READY."""

    def parked() -> int:
        answers = (urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) for port in ports)
        return sum(json.load(answer)["parked"] for answer in answers)

    world = World(servers[2], directory, "balanced")
    queue = world.queue()
    quiet = {"PILOTAGE_HEARTBEAT__WAITING_SECONDS": "600"}
    world.start(
        "-m", "pilot", "--url", door, "-q", queue, "--token-file", str(servers[0].pilot_token), "-a", "work", extra=quiet
    )  # fmt: skip
    world.until(lambda: parked() == 1, "a pilot that waits")
    assert world.ended(world.submit(queue, ["true"])).state == "COMPLETED"
    world.close()


def test_a_host_with_another_key_is_refused(url: str, tmp_path: Path) -> None:
    """It would refuse every word about what the others have handed out."""
    with serving(tmp_path / "first", "--database", url) as server:
        other = RunningServer(tmp_path / "other", "--database", url)
        with pytest.raises(pytest.fail.Exception):
            other.start()
        other.kill()
        assert "another server.key" in other.text_of_log()
        server.request("GET", "/v1/tasks")
