"""The pilot that docs/pilot-apis.md builds from the five APIs, against the real server: its jobs count like any other's."""

from __future__ import annotations

from tests.acceptance.world import World, words
from tests.running_server import ROOT


def small_pilot(world: World, queue: str) -> str:
    """The last example of the document, for this server."""
    program = (ROOT / "docs" / "pilot-apis.md").read_text().rpartition("```python\n")[2].partition("```")[0]
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
