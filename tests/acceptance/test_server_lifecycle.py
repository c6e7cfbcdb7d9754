"""The server stops, is killed, is paused, and comes back: pilots go on, no result is lost, and no job is done twice."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from protocol.errors import PilotExit
from protocol.messages.views import TaskView
from protocol.states import JobState
from tests.acceptance.world import LEASE, QUICK, World, errors, words

# -- killed while jobs run ----------------------------------------------------------------------------------------------------


def test_f01_a_server_that_is_killed_again_and_again_loses_no_job_and_lets_none_be_done_twice(
    own_world: World,
) -> None:
    """Each payload writes a line into a file of its own when it runs; the audit at the end looks at the rest."""
    queue = own_world.queue()
    runs = own_world.directory / "runs"
    runs.mkdir()
    script = f"echo {{attempt_nr}} >> {runs}/{{job_nr}}; sleep 0.3; echo {{job_nr}} > {{output}}"
    task = own_world.submit_shell(queue, script, n_jobs=12, outputs=["out-{job_nr}"])
    for number in (1, 2):
        own_world.pilot(queue, work=f"work-{number}")
    for enough in (2, 5, 8):
        own_world.until(partial(_has_completed, own_world, task, enough), f"{enough} complete jobs")
        own_world.server.kill()
        own_world.server.start()
    task = own_world.ended(task)
    assert (task.state, task.n_outputs, task.output_state) == ("COMPLETED", 12, "closed")
    attempts = [attempt for job in own_world.jobs(task) for attempt in job.attempts or ()]
    assert {attempt.error for attempt in attempts} <= {None, "NOT_ACKNOWLEDGED"}
    assert [len((runs / str(number)).read_text().split()) for number in range(1, 13)] == [1] * 12


def _has_completed(world: World, task: TaskView, enough: int) -> bool:
    return world.session.task(task.task_id).counts.get("COMPLETED", 0) >= enough


def test_a_result_that_comes_while_the_server_is_away_is_delivered_when_it_is_back(own_world: World) -> None:
    queue = own_world.queue()
    pilot = own_world.pilot(queue)
    go, task = _payload_that_waits(own_world, queue)
    own_world.server.kill()
    go.touch()
    own_world.until(
        lambda: list(own_world.directory.glob("work/outbox/*/*.json")), "the result in the outbox"
    )
    own_world.server.start()
    assert own_world.ended(task).state == "COMPLETED"
    assert errors(own_world.job(task)) == [None]
    own_world.until(lambda: not list(own_world.directory.glob("work/outbox/*/*.json")), "an empty outbox")
    assert pilot.is_running()


def _payload_that_waits(world: World, queue: str) -> tuple[Path, TaskView]:
    """A running job that ends when the file is there."""
    go = world.directory / world.unique("go")
    task = world.submit_shell(
        queue, f"until [ -e {go} ]; do sleep 0.05; done; echo done > {{output}}", outputs=["out"]
    )
    world.reached(task, JobState.RUNNING)
    return go, task


def test_a_result_outlives_its_pilot_and_the_next_pilot_on_the_node_delivers_it(own_world: World) -> None:
    """Its own pilot gave up with exit code 79; a file that others could read would give the attempt's token away."""
    queue = own_world.queue()
    pilot = own_world.pilot(queue, settings={**QUICK, "PILOTAGE_CONNECTION__GIVE_UP_SECONDS": "1"})
    go, task = _payload_that_waits(own_world, queue)
    own_world.server.kill()
    go.touch()
    assert pilot.wait(20) == PilotExit.SERVER_UNREACHABLE
    (result,) = own_world.directory.glob("work/outbox/*/*.json")
    assert result.stat().st_mode & 0o777 == 0o600
    own_world.server.start()
    own_world.pilot(queue)
    assert own_world.ended(task).state == "COMPLETED"
    assert errors(own_world.job(task)) == [None]
    own_world.until(lambda: not result.exists(), "the outbox to be empty")


def test_a_result_of_a_killed_pilot_is_delivered_by_the_next_one(own_world: World) -> None:
    queue = own_world.queue()
    pilot = own_world.pilot(queue)
    go, task = _payload_that_waits(own_world, queue)
    own_world.server.kill()
    go.touch()
    own_world.until(
        lambda: list(own_world.directory.glob("work/outbox/*/*.json")), "the result in the outbox"
    )
    pilot.kill()
    own_world.server.start()
    own_world.pilot(queue)
    assert own_world.ended(task).state == "COMPLETED"
    assert errors(own_world.job(task)) == [None]


def test_a_payload_that_fails_while_the_server_is_away_is_told_later_and_tried_again(
    own_world: World,
) -> None:
    queue = own_world.queue()
    own_world.pilot(queue)
    go = own_world.directory / "go"
    task = own_world.submit_shell(
        queue, f"until [ -e {go} ]; do sleep 0.05; done; echo words; test {{attempt_nr}} = 2"
    )
    own_world.reached(task, JobState.RUNNING)
    own_world.server.kill()
    go.touch()
    own_world.until(
        lambda: list(own_world.directory.glob("work/outbox/*/*.json")), "the result in the outbox"
    )
    own_world.server.start()
    assert own_world.ended(task).state == "COMPLETED"
    assert errors(own_world.job(task)) == ["PAYLOAD_FAILED", None]
    assert own_world.log(task).count("words") >= 2


def test_f06_a_machine_that_was_suspended_for_longer_than_the_leases_takes_no_job_away(
    own_world: World,
) -> None:
    """Lease time is a counter which the server itself advances: while it stands still nobody ages.

    The server wakes first, and its reaper has looked before the pilot can say its next word.
    """
    queue = own_world.queue(**LEASE)
    pilot = own_world.pilot(queue)
    go, task = _payload_that_waits(own_world, queue)
    process = own_world.server.process
    assert process is not None
    pilot.signal(signal.SIGSTOP)
    os.killpg(process.pid, signal.SIGSTOP)
    resumed_at = time.monotonic() + LEASE["lease_seconds"] + 1.5
    own_world.until(lambda: time.monotonic() > resumed_at, "more than a lease")
    os.killpg(process.pid, signal.SIGCONT)
    clock = own_world.session.health()["leaseClock"]
    own_world.until(lambda: own_world.session.health()["leaseClock"] > clock, "two passes of the reaper")
    pilot.signal(signal.SIGCONT)
    go.touch()
    assert own_world.ended(task).state == "COMPLETED"
    job = own_world.job(task)
    assert errors(job) == [None]
    assert "LOST_HEARTBEAT" not in words(job)


# -- the operator's commands ----------------------------------------------------------------------------------------------------


@pytest.fixture
def state(world: World) -> Iterator[str]:
    """A state directory for servers that a test starts by command; whatever still runs there is stopped."""
    directory = world.directory / "by-command"
    yield str(directory)
    if (directory / "server.json").exists():
        world.pilotage("server", "stop", "--state", str(directory))


def test_start_status_and_stop_say_what_they_did(world: World, state: str) -> None:
    assert world.cli("server", "status", "--state", state).returncode == 1
    started = world.pilotage("server", "start", "--state", state, "--port", "0")
    url = re.search(r"The server is at (http://127\.0\.0\.1:\d+) \(process (\d+)\)", started)
    assert url, started
    assert url[1] in world.pilotage("server", "status", "--state", state)
    facts = json.loads(world.pilotage("server", "status", "--state", state, "--json"))
    assert (facts["running"], facts["url"], facts["pid"]) == (True, url[1], int(url[2]))
    assert "has stopped" in world.pilotage("server", "stop", "--state", state)
    assert _state(url[2]) in "ZX"
    gone = world.cli("server", "status", "--state", state)
    assert (gone.returncode, "No server runs" in gone.stdout) == (1, True)
    assert "No server runs" in world.pilotage("server", "stop", "--state", state)


def test_only_its_owner_can_read_what_lies_in_a_state_directory(world: World) -> None:
    directory = world.server.directory
    assert directory.stat().st_mode & 0o777 == 0o700
    for token in ("admin.token", "pilot.token"):
        assert (directory / token).stat().st_mode & 0o777 == 0o600


def test_a_server_listens_on_loopback_only_unless_told_otherwise(world: World) -> None:
    port = int(world.server.url.rpartition(":")[2])
    listening = [
        line.split()[1]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if line.split()[3] == "0A"
    ]
    assert [address for address in listening if address.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]


def test_a_server_that_is_stopped_and_started_again_knows_everything_and_running_jobs_go_on(
    world: World, state: str
) -> None:
    """With the commands alone, as an operator does for an upgrade."""
    started = world.pilotage("server", "start", "--state", state, "--port", "0")
    url = re.search(r"http://127\.0\.0\.1:(\d+)", started)
    assert url
    of_state = ("--state-directory", state)
    go = world.directory / "go"
    script = f"until [ -e {go} ]; do sleep 0.05; done; echo done > {{output}}"
    world.pilotage(
        "task", "submit", *of_state, "--name", "t", "--jobs", "1", "--output", "out", "--", "sh", "-c", script
    )
    world.start(
        "-m",
        "pilot",
        "--url",
        url[0],
        "-q",
        "CPU",
        "--token-file",
        f"{state}/pilot.token",
        "-a",
        "work",
        extra=QUICK,
    )

    def is_in(word: str) -> bool:
        return word in world.cli("job", "list", *of_state).stdout

    world.until(lambda: is_in("RUNNING"), "a running job")
    world.pilotage("server", "stop", "--state", state)
    go.touch()
    world.pilotage("server", "start", "--state", state, "--port", url[1])
    world.until(lambda: is_in("COMPLETED"), "the end of the job")
    assert json.loads(world.pilotage("task", "show", "t", *of_state, "--json"))["nAttempts"] == 1


def test_a_second_server_on_the_same_state_directory_is_refused_and_the_first_one_goes_on(
    world: World,
) -> None:
    first = world.server
    for more in ([], ["--foreground"]):
        done = world.cli("server", "start", "--state", str(first.directory), "--port", "0", *more)
        assert done.returncode == 1
        assert re.search(rf"Error: another server works in this state directory.*{first.url}", done.stderr), (
            done.stderr
        )
        assert "pilotage server stop" in done.stderr
    assert (
        json.loads(world.pilotage("server", "status", "--state", str(first.directory), "--json"))["url"]
        == first.url
    )
    assert world.session.health()["status"] == "ok"


def test_a_port_that_is_taken_is_told_in_one_line_and_leaves_no_server(world: World, state: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = world.cli("server", "start", "--state", state, "--port", str(port))
    assert done.returncode == 1
    assert f"127.0.0.1:{port} is in use by another program" in done.stderr
    assert world.cli("server", "status", "--state", state).returncode == 1


@pytest.mark.parametrize("kill", [os.killpg, os.kill], ids=["all of it", "its first process"])
def test_a_killed_server_leaves_nothing_that_keeps_the_next_one_from_starting(
    world: World, state: str, kill: Callable[[int, int], None]
) -> None:
    started = world.pilotage("server", "start", "--state", state, "--port", "0")
    found = re.search(r"http://127\.0\.0\.1:(\d+) \(process (\d+)\)", started)
    assert found
    kill(int(found[2]), signal.SIGKILL)  # its own session, which `server start` made for it
    world.until(
        lambda: world.cli("server", "status", "--state", state).returncode == 1, "the end of the server"
    )
    assert found[1] in world.pilotage("server", "start", "--state", state, "--port", found[1])


def test_a_server_told_to_end_ends_with_all_its_processes(own_world: World) -> None:
    process = own_world.server.process
    assert process is not None
    own_world.server.stop()
    pids = [pid for pid in os.listdir("/proc") if pid.isdigit()]
    assert not [pid for pid in pids if _state(pid) not in "ZX" and _session(pid) == str(process.pid)]


def _state(pid: str) -> str:
    """R, S, …; X where there is no such process, and Z where only nobody has asked for its exit code yet."""
    return _stat(pid)[0]


def _session(pid: str) -> str:
    return _stat(pid)[3]


def _stat(pid: str) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ["X", "", "", ""]
