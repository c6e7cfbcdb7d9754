"""Outputs go where their storage is, or nowhere: never into a directory that a pilot has made in the place of a mount."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

from copytools import checksum
from protocol.messages.requests import StorageSpec
from protocol.states import JobState
from tests.acceptance.world import QUICK, World, errors
from tests.storages import STORAGES
from tests.storages.base import Storage
from tests.users import place_for_all


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


@pytest.fixture(params=[pytest.param(name, id=name) for name in ("objectstore-seaweed", "http-xrootd")])
def storage(request: pytest.FixtureRequest) -> Iterator[Storage]:
    with place_for_all() as place, STORAGES[request.param](place) as running:
        running.clear()
        yield running


def test_input_and_outputs_lie_across_the_network_and_nobody_learns_the_credentials(
    world: World, storage: Storage, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    paths = [tmp_path / "in" / name for name in ("run-1.spd", "run 2.spd")]
    for path in paths:
        path.write_bytes(path.name.encode() * 1000)
        storage.write(f"in/{path.name}", path.read_bytes())
    dataset = world.dataset(*paths, url_prefix=f"{storage.root}in")
    for path in paths:
        path.unlink()

    options = "\n".join(f"{key} = {value}" for key, value in storage.options.items())
    (tmp_path / "site.ini").write_text(f"[copytool:{storage.tool}]\n{options}\n")
    name = world.unique("storage")
    world.session.create_storage(StorageSpec(name, f"{storage.root}out"))
    queue = world.queue(storage=name, copytools=[storage.tool])
    script = "env; cat '{input}' >'{output}'"
    task = world.submit_shell(queue, script, input_dataset=dataset, outputs=["{stem}.out"])
    secrets = {"AWS_SECRET_ACCESS_KEY": "not-for-payloads", "BEARER_TOKEN": "nor-this-one"}
    pilot = world.pilot(queue, "--config", str(tmp_path / "site.ini"), settings={**QUICK, **secrets})
    view = world.ended(task)

    assert view.counts == {JobState.COMPLETED.value: 2}, [errors(job) for job in world.jobs(task)]
    files = world.session.dataset_files(str(view.output_dataset))
    stored = {file.url: storage.read(_name(storage, file.url)) for file in files}
    assert sorted(stored.values()) == sorted(path.name.encode() * 1000 for path in paths)
    for file in files:
        (tmp_path / "back").write_bytes(stored[file.url])
        assert file.size == len(stored[file.url])
        assert checksum.of(tmp_path / "back", tuple(file.checksums)) == file.checksums
    archives = [each for each in storage.files() if each.endswith(".tar.gz")]
    assert len(archives) == 2, "the log archives lie there too"
    told = pilot.text + "".join(_unpacked(storage.read(each)) for each in archives)
    assert "PILOTAGE_JOB_ID=" in told and "AWS_" not in told
    if "credentials_file" in storage.options:
        secrets["file"] = Path(storage.options["credentials_file"]).read_text().rpartition("=")[2].strip()
    assert not [secret for secret in secrets.values() if secret in told]


def _unpacked(archive: bytes) -> str:
    with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
        files = [packed.extractfile(member) for member in packed if member.isfile()]
        return "".join(file.read().decode(errors="replace") for file in files if file)


def _name(storage: Storage, url: str) -> str:
    assert url.startswith(storage.root)
    return unquote(url[len(storage.root) :])
