"""Somebody looks at a job that runs: a real server, a real pilot, and the commands."""

from __future__ import annotations

import json

from protocol.states import JobState
from tests.acceptance.world import World

COUNTS = """
echo begun > log.txt
trap 'echo told to end; echo saved > {output}; exit 0' TERM
n=0
while :; do n=$((n + 1)); echo "event $n"; sleep 0.1; done
"""


def test_123_a_running_job_is_followed_inspected_and_told_to_end(world: World) -> None:
    queue = world.queue(lease_seconds=5, heartbeat_seconds=1)
    task = world.submit_shell(queue, COUNTS, outputs=["out"])
    world.pilot(queue)
    job = world.reached(task, JobState.RUNNING)
    where = {"PILOTAGE_CLIENT__STATE_DIRECTORY": str(world.server.directory)}
    follower = world.start("-m", "client.cli", "job", "tail", str(job.job_id), "-f", extra=where)
    follower.says(r"event 10\n")
    assert world.pilotage("job", "tail", str(job.job_id), "--file", "log.txt") == "begun\n"
    assert "event $n" in world.pilotage("job", "ps", str(job.job_id)), "the command of the payload"
    stack = json.loads(world.pilotage("job", "stack", str(job.job_id), "--json"))
    assert "process " in stack["text"]
    world.pilotage("job", "stop", str(job.job_id))
    assert world.ended(task).state == "COMPLETED"
    assert world.output(task) == "saved\n"
    assert follower.wait(10) == 0
    events = [line for line in follower.text.splitlines() if line.startswith("event ")]
    numbers = [int(line.split()[1]) for line in events]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), "each line once, and none left out"
    assert "has ended: COMPLETED" in follower.text
    assert [line.detail for line in world.job(task).history or [] if line.state == "SOFT_STOP"]
