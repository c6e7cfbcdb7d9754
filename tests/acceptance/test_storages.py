"""Outputs go where their storage is, or nowhere: never into a directory that a pilot has made in the place of a mount."""

from __future__ import annotations

from pathlib import Path

from protocol.messages.requests import StorageSpec
from protocol.states import JobState
from tests.acceptance.world import World, errors


def test_a_storage_that_is_not_mounted_gets_no_outputs_and_the_job_is_none_of_those_that_completed(
    world: World, tmp_path: Path
) -> None:
    directory = tmp_path / "mount" / "out"
    directory.parent.mkdir()
    name = world.unique("storage")
    world.session.create_storage(StorageSpec(name, f"file://{directory}"))
    assert directory.is_dir(), "a new storage is made where the server can"
    directory.rmdir()

    queue = world.queue(storage=name)
    task = world.submit_shell(queue, "echo something > {output}", outputs=["out"], max_losses=0)
    pilot = world.pilot(queue)
    job = world.job(world.ended(task))
    assert job.state == JobState.FAILED
    assert "NODE_MOUNT_MISSING" in errors(job)
    assert not directory.exists()
    assert f"there is no directory {directory}" in pilot.text
