"""F4, F15, F16, F17 with real pilots: killed at random, by their own payloads, twice with the same output, on a node that fails."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path

import pytest

from protocol.states import JobState
from tests.acceptance.world import QUICK, World, errors
from tests.faults import scenarios
from tests.faults.conftest import Install
from tests.faults.installation import SHORT_LEASE

ON_NODE = """
import runpy, socket, sys
name = sys.argv.pop(1)
socket.gethostname = lambda: name
runpy.run_module("pilot", run_name="__main__", alter_sys=True)
"""
"""A pilot on a node of another name."""


@pytest.mark.slow
def test_f04_pilots_killed_at_random_lose_no_job_and_are_not_charged_to_the_payload(
    install: Install, tmp_path: Path
) -> None:
    with install(extra=scenarios.SOON_UNACKNOWLEDGED) as where:
        world = World(where.server, tmp_path, "f04")
        scenarios.pilot_kills(where, world, kills=6, n_jobs=24)
        world.close()


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
        n_jobs=24,
        outputs=["out-{job_nr}"],
    )
    for name, extra in (("good", {}), ("hole", {"HOLE": "1"})):
        world.start(
            "-c", ON_NODE, name, "--url", world.server.url, "-q", queue, "--processor-type", "cpu",
            "--token-file", str(world.server.pilot_token), "-a", str(world.directory / name), extra={**QUICK, **extra},
        )  # fmt: skip
    assert world.ended(task, 60).state == "COMPLETED"
    (hole,) = world.session.nodes(queue=queue)
    assert (hole.node, hole.state in ("held", "offline")) == ("hole", True), hole
    assert "5 jobs in a row" in hole.reason
    failed = Counter(
        attempt.node for job in world.jobs(task) for attempt in job.attempts or () if attempt.error
    )
    assert failed == {"hole": 5}
    print("F17 a node on which all fails: rounds: 1, jobs: 24, failed attempts: 5, lost: 0, twice: 0")
