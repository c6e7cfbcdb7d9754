"""A second task over files that a node keeps: its pilots get the jobs whose inputs are there, and nothing is copied again."""

from __future__ import annotations

from pathlib import Path

from protocol.messages.views import PilotView
from protocol.states import JobState
from tests.acceptance.world import World


def test_jobs_go_to_the_node_that_keeps_their_inputs(world: World, tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.spd" for number in range(6)]
    for number, path in enumerate(files):
        path.write_text(f"file {number}\n")
    settings = {"cache.directory": str(tmp_path / "cache"), "cache.free_mb": "0"}
    queue = world.queue(pilot_settings=settings)

    def pilot(n_jobs: int) -> PilotView:
        """One that does so many jobs, as the server knows it when it has ended."""
        world.pilot(queue, "--max-jobs", str(n_jobs)).wait(40)
        return next(iter(world.session.pilots(queue=queue)))

    def task(*paths: Path) -> int:
        """A task that counts in each of these files, with all its jobs formed."""
        made = world.submit_shell(
            queue, 'wc -l < "{input}" > "{output}"', input_dataset=world.dataset(*paths), outputs=["{stem}.n"]
        )
        world.until(
            lambda: world.session.task(made.task_id).counts.get(JobState.READY.value) == len(paths),
            "its jobs",
        )
        return made.task_id

    task(*files[3:])
    first = pilot(3)
    assert first.cache is not None and (first.cache.hits, first.cache.misses) == (0, 3)
    second = task(*files)
    again = pilot(3)
    assert again.cache is not None and (again.cache.hits, again.cache.misses) == (3, 0)
    states = {job.job_nr: job.state for job in world.session.jobs(task=second)}
    done, ready = JobState.COMPLETED.value, JobState.READY.value
    assert states == {1: ready, 2: ready, 3: ready, 4: done, 5: done, 6: done}
    last = pilot(3)
    assert last.cache is not None and (last.cache.hits, last.cache.misses) == (0, 3)
    assert "100 %" in world.pilotage("pilot", "list", "--queue", queue)
