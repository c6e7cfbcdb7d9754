"""F4, F15, F16, F17 with real pilots: killed at random, by their own payloads, twice with the same output, on a node that fails."""

from __future__ import annotations

import random
import re
import signal
from collections import Counter
from collections.abc import Iterator

import pytest

from protocol.states import JobState
from tests.acceptance.world import QUICK, World, errors
from tests.faults.installation import SHORT_LEASE, Installation

ON_NODE = """
import runpy, socket, sys
name = sys.argv.pop(1)
socket.gethostname = lambda: name
runpy.run_module("pilot", run_name="__main__", alter_sys=True)
"""
"""A pilot on a node of another name."""
LOST = {None, "LOST_HEARTBEAT", "NOT_ACKNOWLEDGED"}


@pytest.fixture
def world(
    shared: Installation, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    name = re.sub(r"\W+", "-", request.node.name.removeprefix("test_"))[:20].strip("-")
    world = World(shared.server, tmp_path_factory.mktemp(name), name)
    yield world
    world.close()


@pytest.mark.slow
def test_f04_pilots_killed_at_random_lose_no_job_and_are_not_charged_to_the_payload(world: World) -> None:
    """A killed pilot's payload is killed too, as a batch system does with what is left of a job."""
    chance = random.Random(4)
    queue = world.queue(**SHORT_LEASE)
    task = world.submit_shell(
        queue,
        "sleep 0.3; echo {job_nr} > {output}",
        n_jobs=24,
        outputs=["out-{job_nr}"],
        max_attempts=1,
        max_losses=100,
    )
    pilots = [world.pilot(queue, work=f"work-{number}") for number in range(4)]
    for enough in (2, 5, 8, 11, 14, 17):
        world.until(
            lambda: world.session.task(task.task_id).counts.get("COMPLETED", 0) >= enough, f"{enough} jobs"
        )  # noqa: B023
        number = chance.randrange(len(pilots))
        pilots[number].kill()
        pilots[number] = world.pilot(queue, work=f"work-{number}")
    task = world.ended(task, 60)
    assert (task.state, task.n_outputs) == ("COMPLETED", 24)
    attempts = Counter(error for job in world.jobs(task) for error in errors(job))
    assert set(attempts) <= LOST, attempts
    print(f"F4 kill -9 pilots: kills: 6, jobs: 24, attempts: {attempts}, lost: 0, twice: 0")


def test_f15_of_two_attempts_that_write_the_same_output_at_once_one_is_published_whole(world: World) -> None:
    """The first pilot is paused until its job has been given to another; then both payloads write and both pilots store."""
    queue = world.queue(**SHORT_LEASE)
    go = world.directory / "go"
    script = f"until [ -e {go} ]; do sleep 0.05; done; yes attempt {{attempt_nr}} | head -100000 > {{output}}"
    task = world.submit_shell(queue, script, outputs=["out"])
    first = world.pilot(queue)
    world.reached(task, JobState.RUNNING)
    first.signal(signal.SIGSTOP)
    world.pilot(queue)
    world.reached(task, JobState.RUNNING, attempt_nr=2)
    go.touch()
    first.signal(signal.SIGCONT)
    assert world.ended(task).state == "COMPLETED"
    assert errors(world.job(task)) == ["LOST_HEARTBEAT", None]
    assert set(world.output(task).splitlines()) == {"attempt 2"}
    first.says("job is given up")


@pytest.mark.slow
def test_f16_a_payload_that_kills_its_pilot_costs_three_pilots_and_no_other_job(world: World) -> None:
    queue = world.queue(**SHORT_LEASE)
    killer = world.submit_shell(queue, "kill -9 $PPID", priority=1)
    others = world.submit_shell(queue, "sleep 0.1", n_jobs=8)
    pilots = [world.pilot(queue, work=f"work-{number}") for number in range(4)]
    assert world.ended(killer, 60).state == "FAILED"
    job = world.job(killer)
    assert (job.error, len(job.attempts or ())) == ("KILLS_PILOTS", 3)
    assert world.ended(others, 60).state == "COMPLETED"
    died = [pilot.popen.poll() for pilot in pilots]
    assert Counter(died) == {-signal.SIGKILL: 3, None: 1}
    print("F16 a payload that kills its pilots: rounds: 1, kills: 3, lost: 0, twice: 0")


@pytest.mark.slow
def test_f17_a_node_on_which_every_payload_fails_is_put_aside_and_the_task_completes(world: World) -> None:
    """The hole takes jobs as fast as they fail; the good node needs a while for each."""
    queue = world.queue()
    task = world.submit_shell(
        queue,
        'test -z "$HOLE" || exit 1; sleep 0.2; echo done > {output}',
        n_jobs=40,
        outputs=["out-{job_nr}"],
    )
    for name, extra in (("good", {}), ("hole", {"HOLE": "1"})):
        world.start(
            "-c", ON_NODE, name, "--url", world.server.url, "-q", queue, "--processor-type", "cpu",
            "--token-file", str(world.server.pilot_token), "-a", str(world.directory / name), extra={**QUICK, **extra},
        )  # fmt: skip
    assert world.ended(task, 60).state == "COMPLETED"
    (hole,) = world.session.nodes(queue=queue)
    assert hole.node == "hole" and hole.state != "online" and "5 jobs in a row" in hole.reason, hole
    failed = Counter(
        attempt.node for job in world.jobs(task) for attempt in job.attempts or () if attempt.error
    )
    assert failed == {"hole": 5}
    print("F17 a node on which all fails: rounds: 1, jobs: 40, failed attempts: 5, lost: 0, twice: 0")
