"""The pilot that docs/pilot-apis.md builds from the five APIs, against the real server: its jobs count like any other's."""

from __future__ import annotations

import json

from protocol.messages import from_wire
from protocol.messages.pilots import Step, StepKind
from protocol.messages.views import TaskView
from protocol.states import JobState
from tests.acceptance.world import World, errors, words
from tests.running_server import ROOT

DOCUMENT = (ROOT / "docs" / "pilot-apis.md").read_text()


def small_pilot(world: World, queue: str, program: str = "") -> str:
    """The last example of the document, or another one, for this server."""
    program = program or DOCUMENT.rpartition("```python\n")[2].partition("```")[0]
    (world.directory / "pilot.token").write_text(world.server.pilot_token.read_text())
    changed = program.replace("http://127.0.0.1:8080", world.server.url).replace('"CPU"', f'"{queue}"')
    changed = changed.replace("wait_seconds=5", "wait_seconds=1")
    assert changed.count(queue) == 1
    return changed


def test_156_157_158_160_a_pilot_made_of_the_apis_does_a_task_with_inputs_and_outputs(world: World) -> None:
    queue = world.queue()
    files = [world.directory / f"{number}.txt" for number in range(3)]
    for file in files:
        file.write_text(f"the text of {file.name}\n")
    task = world.submit_shell(
        queue, "cp {input} {output}; grep -v '^the text of 1' {input}", input_dataset=world.dataset(*files), outputs=["{stem}.out"], max_attempts=1,
    )  # fmt: skip
    pilot = world.start("-W", "error", "-c", small_pilot(world, queue))
    ended = world.ended(task)
    assert pilot.wait(30) == 0, pilot.text
    assert ended.counts["COMPLETED"] == 2 and ended.counts["FAILED"] == 1, ended.counts
    jobs = world.jobs(task)
    assert [job.error for job in jobs] == [None, "PAYLOAD_FAILED", None]
    assert {"OBTAINED", "STAGE-IN", "RUNNING", "STAGE-OUT", "COMPLETED"} <= set(words(jobs[0]))


def test_157_a_program_after_the_page_gives_back_what_it_cannot_do_at_nobodys_cost(world: World) -> None:
    queue = world.queue()
    tool = world.directory / "tool.sh"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    tasks = [
        world.submit(queue, ["touch", "ran"], max_attempts=1, **further)
        for further in (
            {"steps": [Step(StepKind.PRE, ["true"])]},
            {"pilot_settings": {"limits.looping_seconds": "60"}},
            {"software": "/cvmfs/nowhere"},
        )
    ]
    shown = world.pilotage(
        *("task", "submit", "--name", world.unique("shipped"), "--ship", str(tool)),
        *("--queue", queue, "--jobs", "1", "--json", "--", "touch", "ran"),
    )
    tasks.append(world.note(from_wire(TaskView, json.loads(shown))))
    good = world.submit(queue, ["touch", "done"])
    jobs = [world.reached(task, JobState.READY) for task in (*tasks, good)]
    example = DOCUMENT.partition("## Communicator")[2].partition("```python\n")[2].partition("```")[0]
    program = world.start(
        "-c",
        small_pilot(world, queue, example).replace("get_jobs(wait_seconds=60)", "get_jobs(5)"),
    )
    assert program.wait(30) == 0, program.text
    assert world.ended(good).state == "COMPLETED"
    for task, job in zip(tasks, jobs, strict=False):
        assert errors(world.attempt_ended(task)) == ["NOT_SUPPORTED"]
        assert world.job(task).state == JobState.READY.value
        assert f"job {job.job_id} is given back: this program cannot do what the job asks for" in program.text
        world.session.cancel_task(task.task_id)
    assert (world.directory / "done").exists() and not (world.directory / "ran").exists()
    assert world.session.nodes(queue=queue) == []
