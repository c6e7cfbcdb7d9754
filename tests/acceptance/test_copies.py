"""Copies of a job with real pilots: two nodes run it at once, the first that completes is its outcome, the other one is stopped."""

from __future__ import annotations

import json

from protocol.states import JobState
from tests.acceptance.world import World, errors

SECOND_WINS = (
    "if [ {{attempt_nr}} = 1 ]; then exec sleep 1000; fi; "
    "until [ -e {go} ]; do sleep 0.05; done; echo attempt {{attempt_nr}} > {{output}}"
)
"""The copy that was handed out first leads; so the one that completes has to take that from it."""


def test_two_nodes_run_copies_of_a_job_and_the_first_one_that_completes_is_its_only_outcome(
    world: World,
) -> None:
    queue = world.queue()
    pilots = [world.pilot(queue, "--node-name", name, work=name) for name in ("node-a", "node-b")]
    go = world.directory / "go"
    submitted = world.pilotage(
        "task", "submit", "--queue", queue, "--jobs", "1", "--replicate", "2", "--output", "out", "--json",
        "--", "sh", "-c", SECOND_WINS.format(go=go),
    )  # fmt: skip
    task = world.note(world.session.task(json.loads(submitted)["taskId"]))

    def both_run() -> bool:
        attempts = world.job(task).attempts or []
        assert [each.state for each in attempts] == [JobState.RUNNING.value] * 2, attempts
        return True

    world.until(both_run, "both copies to run")
    go.touch()
    ended = world.ended(task)
    assert (ended.state, ended.counts, ended.n_outputs) == ("COMPLETED", {"COMPLETED": 1}, 1)
    world.no_payload_is_left()
    job = world.job(task)
    first, second = job.attempts or []
    assert {first.node, second.node} == {"node-a", "node-b"}
    assert (first.state, second.state, errors(job)) == ("CANCELLED", "COMPLETED", ["ANOTHER_COPY_WON", None])
    files = list(world.session.dataset_files(str(ended.output_dataset)))
    assert [(file.lfn, file.job_id) for file in files] == [("out", job.job_id)]
    assert world.output(task) == "attempt 2\n"

    loser = pilots[0] if first.node == "node-a" else pilots[1]
    loser.says(f"job is given up.*attempt {second.attempt_id} of the job completed first")
    assert not loser.troubles()
    world.pilotage("audit", "--state", str(world.server.directory), "--task", task.name)
    assert world.ended(world.submit(queue, ["true"], n_jobs=2)).counts == {"COMPLETED": 2}
    assert all(pilot.is_running() for pilot in pilots)
