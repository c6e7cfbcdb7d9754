"""A task whose jobs measure the nodes: its result as a file, with the job, with the pilot, and at the collector."""

from __future__ import annotations

import json
from pathlib import Path

from protocol.files import local_path
from protocol.messages import from_wire
from protocol.messages.views import TaskView
from tests.acceptance.world import World
from tests.fakes.collector import Collector


def test_169_a_benchmark_task_needs_no_command_and_its_result_is_everywhere(world: World) -> None:
    queue = world.queue()
    shown = world.pilotage(
        "task", "submit", "--benchmark", "--name", world.unique("bench"), "--cores", "2", "--queue", queue, "--json"
    )  # fmt: skip
    task = world.note(from_wire(TaskView, json.loads(shown)))
    with Collector() as collector:
        pilot = world.pilot(
            queue, "--max-jobs", "1", "--pilot-id", "measured", settings={"PILOTAGE_SERVICES__COLLECTOR": collector.url}
        )  # fmt: skip
        world.ended(task)
        assert pilot.wait(15) == 0
        [(_, _, posted)] = collector.got
    [job] = world.jobs(task)
    [output] = job.outputs or []
    written = json.loads(Path(local_path(output.url, str(world.directory))).read_text())
    assert output.lfn == "benchmark.json" and written["cores"] == 2
    [attempt] = job.attempts or []
    assert attempt.benchmark is not None and attempt.benchmark.scores == written["scores"] == posted["scores"]
    assert posted["job_id"] == job.job_id and posted["by"] == attempt.benchmark.by == "payload"
    assert "integer" in world.pilotage("job", "show", str(job.job_id))
    assert f"in job {job.job_id}" in world.pilotage("pilot", "show", job.pilot_id or "")
