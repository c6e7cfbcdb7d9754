"""Replicas with real pilots: a dataset is copied by jobs, a bit that flips on a disk is found, and another replica is read."""

from __future__ import annotations

import json
from pathlib import Path

from protocol.files import local_path
from protocol.messages.requests import StorageSpec
from protocol.states import JobState
from tests.acceptance.world import World, errors


def test_a_flipped_bit_is_found_at_stage_in_and_the_next_attempt_reads_the_copy_that_jobs_have_made(
    world: World, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    names = ("a file.spd", "b.spd")
    for name in names:
        (tmp_path / "data" / name).write_bytes(name.encode() * 1000)
    dataset = world.dataset(*(tmp_path / "data" / name for name in names))
    storage = world.session.create_storage(
        StorageSpec(world.unique("storage"), f"file://{tmp_path}/new")
    ).name
    queue = world.queue()
    pilot = world.pilot(queue)

    # Copied by ordinary jobs.
    words = ("dataset", "replicate", dataset, "--to", storage, "--queue", queue)
    copying = world.note(world.session.task(json.loads(world.pilotage(*words, "--json"))["taskId"]))
    assert world.ended(copying).counts == {"COMPLETED": 2}
    files = {file.lfn: file for file in world.session.dataset_files(dataset)}
    copies = {
        lfn: [each for each in file.replicas or () if each.storage == storage] for lfn, file in files.items()
    }
    for name in names:
        [copy] = copies[name]
        assert Path(local_path(copy.url)).read_bytes() == name.encode() * 1000

    # A bit flips; the file keeps its size.
    place = tmp_path / "data" / names[0]
    content = bytearray(place.read_bytes())
    content[4000] ^= 1
    place.write_bytes(content)
    task = world.submit(
        queue, ["cp", "{input}", "{output}"], input_dataset=dataset, outputs=["{stem}.copy"], max_attempts=1
    )
    assert world.ended(task).counts == {"COMPLETED": 2}
    job = next(job for job in world.jobs(task) if job.inputs and job.inputs[0].lfn == names[0])
    assert errors(job) == ["STAGE_IN_BLAKE3_MISMATCH", None]
    assert [attempt.state for attempt in job.attempts or ()] == [
        JobState.FAILED.value,
        JobState.COMPLETED.value,
    ]
    assert Path(local_path(job.outputs[0].url)).read_bytes() == names[0].encode() * 1000  # type: ignore[index]
    told = world.pilotage("dataset", "files", dataset)
    assert "2; suspect: STAGE_IN_BLAKE3_MISMATCH" in told and f"(attempt {job.attempts[0].attempt_id}" in told  # type: ignore[index]

    # A bit flips on the storage too: a look there finds it, and the same command as before mends it.
    [damaged] = (Path(local_path(each.url)) for each in copies[names[1]])
    content = bytearray(damaged.read_bytes())
    content[0] ^= 128
    damaged.write_bytes(content)
    state = ["--state", str(world.server.directory)]
    checked = world.cli("storage", "check", storage, *state, "--repair")
    assert checked.returncode == 1 and "wrong-checksum" in checked.stdout, checked.stderr
    assert "1 replica marked" in checked.stdout
    again = world.note(
        world.session.task(
            json.loads(world.pilotage(*words, "--task", world.unique("again"), "--json"))["taskId"]
        )
    )
    assert world.ended(again).counts == {"COMPLETED": 1}, "the good one is left out"
    assert "all is as the catalogue says" in world.pilotage("storage", "check", storage, *state)
    world.until(lambda: not damaged.exists(), "the sweeper to remove the damaged copy")
    assert not [line for line in pilot.troubles() if "MISMATCH" not in line], pilot.troubles()


def test_a_copy_goes_to_no_storage_that_is_not_mounted_on_the_node(world: World, tmp_path: Path) -> None:
    (tmp_path / "a.spd").write_bytes(b"bytes")
    dataset = world.dataset(tmp_path / "a.spd")
    root = tmp_path / "mount" / "new"
    root.parent.mkdir()
    storage = world.session.create_storage(StorageSpec(world.unique("storage"), f"file://{root}")).name
    root.rmdir()
    queue = world.queue()
    world.pilot(queue)
    task = world.submit(
        queue, ["cp", "{input}", "."], input_dataset=dataset, replicate_to=storage, max_losses=0
    )
    assert errors(world.job(world.ended(task))) == ["NODE_MOUNT_MISSING"]
    assert not root.exists()
