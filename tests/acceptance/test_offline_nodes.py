"""Pilots in a network namespace without network, and bridges that speak for them through a directory that both see."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator

import pytest

from pilot import letterbox
from pilot.bridge import VERBS
from protocol.errors import PilotExit
from protocol.messages import from_wire
from protocol.messages.views import TaskView
from protocol.states import SUCCESS, JobState
from server.access.tokens import Role
from server.app import DOORS
from tests.acceptance.proxy import Proxy, running
from tests.acceptance.world import QUICK, Running, World, errors, words
from tests.running_server import RunningServer
from tests.waiting import wait_until

WITHOUT_NETWORK = """
import os, sys
os.execvp("unshare", ["unshare", "--net", "--map-root-user", "--", sys.executable, *sys.argv[1:]])
"""
"""A program that becomes another one, in a network namespace of its own with nothing in it."""
CLIENT = "0123456789abcdef"


def bridge(world: World, url: str = "") -> Running:
    return world.start(
        *("-m", "pilot", "bridge", "--directory", str(world.directory / "shared")),
        *("--url", url or world.server.url, "--token-file", str(world.server.pilot_token)),
        log=world.unique("bridge"),
    )


def working_bridge(world: World, url: str = "") -> Running:
    started = bridge(world, url)
    started.says("bridge begins")
    wait_until((world.directory / "shared" / letterbox.LOCK).exists, 10, "the bridge's directory")
    return started


def offline_pilot(world: World, queue: str, *options: str) -> Running:
    """It has no token either."""
    return world.start(
        *("-c", WITHOUT_NETWORK, "-m", "pilot", "--bridge", str(world.directory / "shared"), "-q", queue),
        *("-a", "work", *options),
        extra=QUICK,
        log=world.unique("pilot"),
    )


def left(world: World) -> list[str]:
    """What lies in the shared directory beside its own three."""
    paths = (world.directory / "shared").rglob("*")
    names = {str(path.relative_to(world.directory / "shared")) for path in paths}
    return sorted(names - {letterbox.REQUESTS, letterbox.ANSWERS, letterbox.LOCK})


@pytest.mark.component("unshare")
def test_121_a_pilot_without_network_does_jobs_with_files_and_shipped_code(world: World) -> None:
    queue = world.queue()
    working_bridge(world)
    tool = world.directory / "tool.sh"
    tool.write_text("#!/bin/sh\necho shipped; cat $1; grep -c : /proc/net/dev\n")
    tool.chmod(0o755)
    data = world.directory / "in.txt"
    data.write_text("data\n")
    shown = world.pilotage(
        *("task", "submit", "--name", world.unique("offline"), "--ship", str(tool), "--queue", queue),
        *("--input", world.dataset(data), "--output", "{stem}.out", "--json"),
        *("--", "sh", "-c", "{bundle}/tool.sh {input} > {output}"),
    )
    task = world.note(from_wire(TaskView, json.loads(shown)))
    pilot = offline_pilot(world, queue, "--max-jobs", "1")
    assert pilot.wait(30) == 0
    assert world.ended(task).state == "COMPLETED"
    job = world.job(task)
    assert (errors(job), words(job)) == ([None], [state.value for state in SUCCESS])
    assert world.output(task) == "shipped\ndata\n1\n", "the only device of its network is lo"
    assert "pilot ends" in pilot.text and pilot.troubles() == []
    (seen,) = world.session.pilots(queue=queue)
    assert seen.exit_code == 0
    assert left(world) == []


@pytest.mark.component("unshare")
def test_121_heartbeats_cancellation_and_sigterm_go_through_the_bridge(world: World) -> None:
    queue = world.queue(lease_seconds=5)
    working_bridge(world)
    go = world.directory / "go"
    task = world.submit_shell(queue, f"sleep 6; touch {go}; exec sleep 1000")
    pilot = offline_pilot(world, queue)
    wait_until(go.exists, 30, "a payload that outlives a lease")
    assert world.job(task).state == JobState.RUNNING.value
    world.session.cancel_task(task.task_id)
    world.no_payload_is_left()
    second = world.submit_shell(queue, "exec sleep 1000", max_attempts=1)
    world.reached(second, JobState.RUNNING, timeout=30)
    pilot.signal(signal.SIGTERM)
    assert pilot.wait(11) == 143
    assert errors(world.attempt_ended(second)) == ["PILOT_SIGTERM"]
    assert errors(world.job(task)) == ["CANCELLED_BY_USER"]
    world.session.cancel_task(second.task_id)
    assert left(world) == []


def test_121_a_pilot_gives_up_as_it_was_told_to_where_no_bridge_runs(world: World) -> None:
    """By default an answer is awaited for a minute."""
    queue, shared = world.queue(), world.directory / "shared"
    for each in (shared, shared / letterbox.REQUESTS, shared / letterbox.ANSWERS):
        letterbox.make(each)
    options = ("-m", "pilot", "--bridge", str(shared), "-q", queue, "-a", "work", "--give-up", "2")
    extra = {**QUICK, "PILOTAGE_HEARTBEAT__POLL_SECONDS": "0.2", "PILOTAGE_HEARTBEAT__POLL_MAX_SECONDS": "1"}
    alone = world.start(*options, extra=extra)
    assert alone.wait(15) == PilotExit.SERVER_UNREACHABLE
    assert "no bridge has answered yet; does one run?" in alone.text and "BRIDGE_SILENT" in alone.text
    now = working_bridge(world)
    idle = world.start(*options, extra=extra)
    world.until(lambda: world.session.pilots(queue=queue), "a pilot that is registered")
    now.kill()
    assert idle.wait(20) == PilotExit.SERVER_UNREACHABLE
    assert "no bridge has answered yet; does one run?" in idle.text and "BRIDGE_SILENT" in idle.text


@pytest.mark.component("unshare")
def test_121_bridges_that_are_killed_again_and_again_lose_no_job_and_do_none_twice(world: World) -> None:
    queue = world.queue()
    now = working_bridge(world)
    ran = world.directory / "ran"
    ran.mkdir()
    script = f"echo {{attempt_nr}} >> {ran}/{{job_nr}}; sleep 0.1; echo {{job_nr}} > {{output}}"
    task = world.submit_shell(queue, script, n_jobs=16, outputs=["out-{job_nr}"])
    pilot = offline_pilot(world, queue, "--slots", "2")
    for n_ran in (2, 5, 8, 11):
        wait_until(lambda n_ran=n_ran: len(list(ran.iterdir())) >= n_ran, 30, f"{n_ran} jobs")  # type: ignore[misc]
        now.kill()
        now = bridge(world)
    assert world.ended(task).state == "COMPLETED"
    assert [errors(job) for job in world.jobs(task)] == [[None]] * 16
    assert [path.read_text() for path in ran.iterdir()] == ["1\n"] * 16
    pilot.signal(signal.SIGTERM)
    assert pilot.wait(11) == 143
    assert left(world) == []


class Deadly(Proxy):
    """Before the server, for a bridge that dies when the server has done what was asked, and has not told it yet."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.victim: Running | None = None
        self.at = ""

    def _is_lost(self, path: str) -> bool:
        if path != self.at or self.victim is None:
            return super()._is_lost(path)
        self.victim.kill()
        self.victim = None
        return True


@pytest.fixture
def deadly(shared_server: RunningServer) -> Iterator[Deadly]:
    with running(Deadly(shared_server.url)) as proxy:
        yield proxy


@pytest.mark.component("unshare")
@pytest.mark.parametrize("verb", ["getJob", "updateJob"])
def test_121_f07_f08_a_bridge_that_dies_between_server_and_answer_loses_nothing(
    world: World, deadly: Deadly, verb: str
) -> None:
    queue = world.queue()
    task = world.submit_shell(queue, "echo {attempt_nr} > {output}", outputs=["out-{job_nr}"])
    world.until(lambda: world.session.task(task.task_id).counts.get("READY") == 1, "the job")
    deadly.victim, deadly.at = working_bridge(world, deadly.url), f"/v1/{verb}"
    first = deadly.victim
    pilot = offline_pilot(world, queue, "--max-jobs", "1")
    first.wait(30)
    working_bridge(world)
    assert pilot.wait(30) == 0
    assert world.ended(task).state == "COMPLETED"
    assert errors(world.job(task)) == [None]
    assert world.output(task) == "1\n"
    assert left(world) == []


@pytest.mark.component("unshare")
def test_121_a_second_bridge_stands_by_and_takes_over(world: World) -> None:
    queue = world.queue()
    first = working_bridge(world)
    second = bridge(world)
    second.says("another bridge works here")
    task = world.submit(queue, ["true"], n_jobs=2)
    assert offline_pilot(world, queue, "--max-jobs", "1").wait(30) == 0
    first.signal(signal.SIGTERM)
    assert first.wait(10) == 0
    assert offline_pilot(world, queue, "--max-jobs", "1").wait(30) == 0
    assert world.ended(task).state == "COMPLETED"
    second.signal(signal.SIGTERM)
    assert second.wait(10) == 0
    assert re.search(r"passed_on=[1-9]", second.text)


def request(path: str, method: str = "POST", **more: object) -> bytes:
    return json.dumps({"method": method, "path": path, "seconds": 60, **more}).encode() + b"\n{}"


def test_121_what_no_pilot_asks_is_refused_told_and_never_reaches_the_server(world: World) -> None:
    working = working_bridge(world)
    requests = world.directory / "shared" / letterbox.REQUESTS
    answers = world.directory / "shared" / letterbox.ANSWERS / CLIENT
    answers.mkdir(mode=0o700)
    secret = world.directory / "secret"
    secret.write_bytes(request("/v1/registerPilot"))
    secret.chmod(0o600)
    bad = {
        "1": request("/v1/tasks"),
        "2": request("/v1/bundles/../tasks", "GET"),
        "3": request("http://other.example/v1/getJob"),
        "4": request("/v1/getJob\r\nX: y"),
        "5": request("/v1/getJob", seconds="long"),
        "6": b"garbage",
        "7": b"[" * 100_000,
        "8": b"",
    }
    part = requests / ".part"
    for number, content in bad.items():
        part.write_bytes(content)
        part.rename(requests / f"{CLIENT}.{number}")
    (requests / f"{CLIENT}.9").symlink_to(secret)
    os.mkfifo(requests / f"{CLIENT}.10")
    with open(part, "wb") as file:
        file.truncate(letterbox.LARGEST_REQUEST + 1)
    part.rename(requests / f"{CLIENT}.11")
    (requests / f"{CLIENT}.12").mkdir()
    (requests / "no name of ours; rm -rf ~\x1b[2J").touch()
    n_refused = 13

    def refused() -> bool:
        assert working.text.count("a file is refused") == n_refused, working.text
        return True

    wait_until(refused, 10, "all refusals")
    wait_until(lambda: [path.name for path in requests.iterdir()] == [f"{CLIENT}.12"], 10, "tidiness")
    assert "\x1b" not in working.text
    assert secret.exists()
    told = sorted(answers.iterdir(), key=lambda path: int(path.name))
    assert [path.name for path in told] == [str(number) for number in range(1, 13)]
    for path in told:
        head, _, body = path.read_bytes().partition(b"\n")
        assert (json.loads(head)["status"], json.loads(body)["error"]) == (400, "BAD_REQUEST")
    working.signal(signal.SIGTERM)
    assert working.wait(10) == 0
    assert "passed_on=0" in working.text
    assert f"refused={n_refused} " in working.text


def test_121_a_request_for_which_nobody_waits_any_more_is_not_passed_on(world: World) -> None:
    """A killed pilot's question for a job, while no bridge ran: the job would wait for its lease to end."""
    queue = world.queue()
    working_bridge(world).kill()
    requests = world.directory / "shared" / letterbox.REQUESTS
    task = world.submit(queue, ["true"])
    world.until(lambda: world.session.task(task.task_id).counts.get("READY") == 1, "the job")
    late = requests / f"{CLIENT}.1"
    word = {"requestId": "late", "pilotId": "late", "queue": queue}
    late.write_bytes(request("/v1/getJob", seconds=30) + json.dumps(word).encode())
    late.chmod(0o600)
    an_hour_ago = late.stat().st_mtime - 3600
    os.utime(late, (an_hour_ago, an_hour_ago))
    forgotten = world.directory / "shared" / letterbox.ANSWERS / CLIENT
    forgotten.mkdir(mode=0o700)
    (forgotten / "7").touch()
    for path in (forgotten / "7", forgotten):
        os.utime(path, (an_hour_ago - 86_400, an_hour_ago - 86_400))
    half = requests / ".half"
    half.touch()
    os.utime(half, (an_hour_ago - 1, an_hour_ago - 1))
    second = working_bridge(world)
    wait_until(lambda: not list(requests.iterdir()) and not forgotten.exists(), 10, "an empty directory")
    second.signal(signal.SIGTERM)
    assert second.wait(10) == 0
    assert "passed_on=0 refused=0 too_late=1" in second.text
    assert world.session.task(task.task_id).counts == {"READY": 1}
    world.session.cancel_task(task.task_id)


def test_121_a_directory_that_others_can_enter_is_refused_at_both_ends(world: World) -> None:
    shared = world.directory / "shared"
    shared.mkdir(mode=0o755)
    shared.chmod(0o755)
    refused = bridge(world)
    assert refused.wait(10) == 2
    assert "chmod 700" in refused.text
    shared.chmod(0o700)
    elsewhere = world.directory / "elsewhere"
    shared.rename(elsewhere)
    shared.symlink_to(elsewhere)
    assert bridge(world).wait(10) == 2
    shared.unlink()
    nowhere = world.pilot("CPU", "--bridge", str(shared))
    assert nowhere.wait(10) == 2
    assert "is it mounted here" in nowhere.text


def test_121_the_bridge_passes_on_what_pilots_may_ask_and_nothing_else() -> None:
    routes = [route for door in DOORS for route in door.routes]
    digest = "0123456789abcdef" * 4
    passed = {
        route
        for route in routes
        if VERBS.fullmatch(f"{route.method} {route.path.replace('<digest>', digest)}")
    }
    assert passed == {route for route in routes if route.role is Role.PILOT}
